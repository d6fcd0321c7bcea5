//! What an OpenID provider signs with, and what a token of it says: RFC 7515, 7517, 7519, OpenID Connect Core 1.0 §3.1.3.7. No I/O: whoever fetches
//! keys gives them ([`Keys::read`]), and the time is an argument.
//!
//! The library parses and compares; `ring` does the mathematics, as everywhere here.

use std::collections::HashMap;
use std::sync::Once;

use jsonwebtoken::crypto::{CryptoProvider, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind, Validation, decode, decode_header};
use ring::signature as ring_signature;
use serde_json::{Map, Value};
use signature::Verifier;
use skep_model::limits::{OIDC_KEYS_MAX, OIDC_LEEWAY_MS, OIDC_TOKEN_BYTES_MAX};
use tokio_util::sync::CancellationToken;

/// Kinds of tokens that let somebody in: RFC 7519 §5.1, RFC 9068 §2.1; without `application/`, in small letters.
const KINDS: [&str; 2] = ["jwt", "at+jwt"];

/// Keys of a provider, each good for one algorithm.
#[derive(Default)]
pub struct Keys {
    by_id: HashMap<String, Key>,
}

struct Key {
    algorithm: Algorithm,
    key: DecodingKey,
    /// Called when the provider drops it: what was begun with its tokens ends.
    end: CancellationToken,
}

impl Key {
    fn is(&self, other: &Self) -> bool {
        use DecodingKeyKind::{RsaModulusExponent, SecretOrDer};
        let same = match (self.key.kind(), other.key.kind()) {
            (SecretOrDer(point), SecretOrDer(other)) => point == other,
            (RsaModulusExponent { n, e }, RsaModulusExponent { n: other_n, e: other_e }) => {
                n == other_n && e == other_e
            }
            _ => false,
        };
        same && self.algorithm == other.algorithm
    }
}

/// What a node asks of a token.
#[derive(Debug, Clone)]
pub struct Rules {
    pub issuer: String,
    pub audience: String,
}

/// Why a token lets nobody in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It is none, or damaged, or larger than any.
    #[error("it is no signed JSON Web Token")]
    NoToken,
    #[error("its algorithm is none of RS256, ES256 and EdDSA")]
    Algorithm,
    #[error("its kind (`typ`) is neither JWT nor at+jwt: the provider signs it for something else")]
    Kind,
    #[error("it has extensions that must be understood (`crit`), and none is")]
    Critical,
    /// It names no key, or one that the provider did not have when its keys were read last. They may have been changed since.
    #[error("its key is none of the provider's")]
    UnknownKey(String),
    #[error("its signature is not of the key that it names")]
    Signature,
    #[error("it is of another issuer")]
    Issuer,
    #[error("it is for another audience")]
    Audience,
    #[error("it has expired, or does not say when it will")]
    Expired,
    #[error("it is not good yet")]
    Early,
}

/// A token that is what it says.
#[derive(Debug, Clone, PartialEq)]
pub struct Verified {
    pub until_ms: u64,
    /// Called when the provider drops the key that it is signed by.
    pub dropped: CancellationToken,
    pub claims: Map<String, Value>,
}

impl Keys {
    /// Reads a JWK set. Keys that are not for signatures, of other kinds, or without a name are passed over.
    ///
    /// # Errors
    /// It is no JWK set.
    pub fn read(text: &[u8]) -> Result<Self, serde_json::Error> {
        let set: JwkSet = serde_json::from_slice(text)?;
        let by_id = set.keys.iter().filter_map(Self::one).take(OIDC_KEYS_MAX).collect();
        Ok(Self { by_id })
    }

    /// As the keys after these: one that stays goes on, and what was begun with another ends.
    pub(super) fn after(mut self, former: &Self) -> Self {
        for (id, before) in &former.by_id {
            match self.by_id.get_mut(id).filter(|key| key.is(before)) {
                Some(key) => key.end = before.end.clone(),
                None => before.end.cancel(),
            }
        }
        self
    }

    fn one(jwk: &Jwk) -> Option<(String, Key)> {
        let common = &jwk.common;
        let signs = common
            .public_key_use
            .as_ref()
            .is_none_or(|u| *u == PublicKeyUse::Signature);
        let verifies = common
            .key_operations
            .as_ref()
            .is_none_or(|all| all.contains(&KeyOperations::Verify));
        let algorithm = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => Algorithm::RS256,
            AlgorithmParameters::EllipticCurve(ec) if ec.curve == EllipticCurve::P256 => Algorithm::ES256,
            AlgorithmParameters::OctetKeyPair(ed) if ed.curve == EllipticCurve::Ed25519 => Algorithm::EdDSA,
            _ => return None,
        };
        let named = common
            .key_algorithm
            .as_ref()
            .is_none_or(|named| named.to_string() == format!("{algorithm:?}"));
        let id = common.key_id.clone().filter(|id| !id.is_empty())?;
        (signs && verifies && named).then_some(())?;
        let key = Key {
            algorithm,
            key: DecodingKey::from_jwk(jwk).ok()?,
            end: CancellationToken::new(),
        };
        Some((id, key))
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether it has none: nobody comes in by it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// The key decides which algorithm is taken, never the token: so neither `none` nor a public key used as a secret passes.
    ///
    /// # Errors
    /// [`Refused`]; what is wrong with the signature comes first.
    pub fn verify(&self, token: &str, rules: &Rules, now_ms: u64) -> Result<Verified, Refused> {
        by_ring();
        if token.len() > OIDC_TOKEN_BYTES_MAX || token.split('.').count() != 3 {
            return Err(Refused::NoToken);
        }
        let header = decode_header(token).map_err(|e| match e.kind() {
            // An algorithm that nobody knows, `none` among them, is a header of another shape.
            ErrorKind::Json(e) if e.is_data() => Refused::Algorithm,
            ErrorKind::InvalidAlgorithmName => Refused::Algorithm,
            _ => Refused::NoToken,
        })?;
        if !matches!(header.alg, Algorithm::RS256 | Algorithm::ES256 | Algorithm::EdDSA) {
            return Err(Refused::Algorithm);
        }
        // RFC 7515 §4.1.11: whoever does not know an extension that is named there must refuse.
        if header.crit.is_some() {
            return Err(Refused::Critical);
        }
        // RFC 8725 §3.11: a provider signs more than tokens to come in by, such as events, logouts and answers to introspection.
        let kind = header.typ.unwrap_or_else(|| KINDS[0].to_owned()).to_ascii_lowercase();
        if !KINDS.contains(&kind.strip_prefix("application/").unwrap_or(&kind)) {
            return Err(Refused::Kind);
        }
        let id = header.kid.unwrap_or_default();
        let Key { algorithm, key, end } = self.by_id.get(&id).ok_or(Refused::UnknownKey(id))?;
        if header.alg != *algorithm {
            return Err(Refused::Algorithm);
        }
        let mut validation = Validation::new(*algorithm);
        // Times are compared below, by the node's clock.
        validation.validate_exp = false;
        validation.required_spec_claims = ["exp", "iss", "aud"].map(str::to_owned).into();
        validation.set_audience(&[&rules.audience]);
        validation.set_issuer(&[&rules.issuer]);
        let decoded = decode::<Map<String, Value>>(token, key, &validation).map_err(|e| match e.kind() {
            ErrorKind::InvalidSignature => Refused::Signature,
            ErrorKind::InvalidIssuer => Refused::Issuer,
            ErrorKind::InvalidAudience => Refused::Audience,
            ErrorKind::MissingRequiredClaim(claim) => match claim.as_str() {
                "iss" => Refused::Issuer,
                "aud" => Refused::Audience,
                _ => Refused::Expired,
            },
            ErrorKind::InvalidAlgorithm => Refused::Algorithm,
            _ => Refused::NoToken,
        })?;
        let claims = decoded.claims;
        let until_ms = claims.get("exp").and_then(ms).ok_or(Refused::Expired)?;
        if !is_live(until_ms, now_ms) {
            return Err(Refused::Expired);
        }
        if let Some(from) = claims.get("nbf")
            && ms(from).is_none_or(|from_ms| from_ms > now_ms.saturating_add(OIDC_LEEWAY_MS))
        {
            return Err(Refused::Early);
        }
        Ok(Verified {
            until_ms,
            dropped: end.clone(),
            claims,
        })
    }
}

/// Whether a token that is good until then is good now.
pub(super) fn is_live(until_ms: u64, now_ms: u64) -> bool {
    now_ms < until_ms.saturating_add(OIDC_LEEWAY_MS)
}

/// Seconds since 1970, whole or not, as ms.
fn ms(seconds: &Value) -> Option<u64> {
    let seconds = seconds.as_f64().filter(|s| (0.0..1e15).contains(s))?;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 0 and 1e18 after the check"
    )]
    Some((seconds * 1_000.0) as u64)
}

// --------------------------------------------------------------------------------------------------------------- ring

fn by_ring() {
    static PROVIDER: CryptoProvider = CryptoProvider {
        signer_factory: |_, _| Err(ErrorKind::UnsupportedAlgorithm.into()),
        verifier_factory: |algorithm, key| {
            Ok(Box::new(ByRing {
                algorithm: *algorithm,
                key: key.clone(),
            }))
        },
        key_utils: KeyUtils::new_unimplemented(),
    };
    static ONCE: Once = Once::new();
    // Nobody else in this process uses the library.
    ONCE.call_once(|| {
        let _ = PROVIDER.install_default();
    });
}

struct ByRing {
    algorithm: Algorithm,
    key: DecodingKey,
}

impl Verifier<Vec<u8>> for ByRing {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), signature::Error> {
        let done = match (self.algorithm, self.key.kind()) {
            (Algorithm::RS256, DecodingKeyKind::RsaModulusExponent { n, e }) => {
                let key = ring_signature::RsaPublicKeyComponents { n, e };
                key.verify(&ring_signature::RSA_PKCS1_2048_8192_SHA256, message, signature)
            }
            (Algorithm::ES256, DecodingKeyKind::SecretOrDer(point)) => {
                let key = ring_signature::UnparsedPublicKey::new(&ring_signature::ECDSA_P256_SHA256_FIXED, point);
                key.verify(message, signature)
            }
            (Algorithm::EdDSA, DecodingKeyKind::SecretOrDer(point)) => {
                let key = ring_signature::UnparsedPublicKey::new(&ring_signature::ED25519, point);
                key.verify(message, signature)
            }
            _ => return Err(signature::Error::new()),
        };
        done.map_err(|_| signature::Error::new())
    }
}

impl JwtVerifier for ByRing {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

#[cfg(test)]
pub(in crate::door) mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
    use ring::rand::SystemRandom;
    use ring::signature::{EcdsaKeyPair, Ed25519KeyPair, KeyPair as _};
    use serde_json::json;

    use super::*;

    pub(in crate::door) const NOW: u64 = 1_800_000_000_000;

    pub(in crate::door) struct Signer {
        ec: EcdsaKeyPair,
        ed: Ed25519KeyPair,
        random: SystemRandom,
    }

    impl Signer {
        pub(in crate::door) fn new() -> Self {
            let random = SystemRandom::new();
            let algorithm = &ring_signature::ECDSA_P256_SHA256_FIXED_SIGNING;
            let ec = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
            let ed = Ed25519KeyPair::generate_pkcs8(&random).unwrap();
            Self {
                ec: EcdsaKeyPair::from_pkcs8(algorithm, ec.as_ref(), &random).unwrap(),
                ed: Ed25519KeyPair::from_pkcs8(ed.as_ref()).unwrap(),
                random,
            }
        }

        fn jwks(&self) -> Value {
            let point = self.ec.public_key().as_ref();
            json!({ "keys": [
                { "kty": "EC", "crv": "P-256", "kid": "ec", "use": "sig", "alg": "ES256",
                  "x": BASE64.encode(&point[1..33]), "y": BASE64.encode(&point[33..]) },
                { "kty": "OKP", "crv": "Ed25519", "kid": "ed", "x": BASE64.encode(self.ed.public_key().as_ref()) },
                { "kty": "oct", "kid": "secret", "k": BASE64.encode(b"everybody knows it, it is in the public set") },
                { "kty": "EC", "crv": "P-256", "kid": "enc", "use": "enc",
                  "x": BASE64.encode(&point[1..33]), "y": BASE64.encode(&point[33..]) },
                { "kty": "quantum", "kid": "new" },
                { "kty": "OKP", "crv": "Ed25519", "x": BASE64.encode(self.ed.public_key().as_ref()) },
            ] })
        }

        pub(in crate::door) fn keys(&self) -> Keys {
            Keys::read(self.jwks().to_string().as_bytes()).unwrap()
        }

        pub(in crate::door) fn sign(&self, header: &Value, claims: &Value) -> String {
            let message = format!(
                "{}.{}",
                BASE64.encode(header.to_string()),
                BASE64.encode(claims.to_string())
            );
            let signature = match header["alg"].as_str().unwrap() {
                "ES256" => self
                    .ec
                    .sign(&self.random, message.as_bytes())
                    .unwrap()
                    .as_ref()
                    .to_vec(),
                "EdDSA" => self.ed.sign(message.as_bytes()).as_ref().to_vec(),
                "none" => Vec::new(),
                // With what everybody can read of the key, as a secret.
                _ => {
                    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, self.ec.public_key().as_ref());
                    ring::hmac::sign(&key, message.as_bytes()).as_ref().to_vec()
                }
            };
            format!("{message}.{}", BASE64.encode(signature))
        }
    }

    pub(in crate::door) fn rules() -> Rules {
        Rules {
            issuer: "https://id.example.com".into(),
            audience: "skep".into(),
        }
    }

    pub(in crate::door) fn claims() -> Value {
        json!({ "iss": "https://id.example.com", "aud": "skep", "exp": NOW / 1_000 + 300, "sub": "ann", "groups": ["a", 7] })
    }

    fn with(name: &str, value: Value) -> Value {
        let mut all = claims();
        match value {
            Value::Null => drop(all.as_object_mut().unwrap().remove(name)),
            value => all[name] = value,
        }
        all
    }

    #[test]
    fn good_tokens_are_taken_and_say_what_they_say() {
        let signer = Signer::new();
        let keys = signer.keys();
        assert_eq!(
            keys.len(),
            2,
            "what is no public key for signatures, or has no name, is passed over"
        );
        for (alg, kid) in [("ES256", "ec"), ("EdDSA", "ed")] {
            let token = signer.sign(&json!({ "alg": alg, "kid": kid, "typ": "JWT" }), &claims());
            let verified = keys.verify(&token, &rules(), NOW).unwrap();
            assert_eq!(verified.until_ms, NOW + 300_000);
            assert_eq!(verified.claims["groups"], json!(["a", 7]));
        }
        for typ in ["at+jwt", "application/at+jwt", "AT+JWT", "jwt"] {
            let token = signer.sign(&json!({ "alg": "EdDSA", "kid": "ed", "typ": typ }), &claims());
            assert!(keys.verify(&token, &rules(), NOW).is_ok(), "{typ}");
        }
        let many = signer.sign(
            &json!({ "alg": "EdDSA", "kid": "ed" }),
            &with("aud", json!(["other", "skep"])),
        );
        assert!(keys.verify(&many, &rules(), NOW).is_ok());
        // Within the leeway, and a moment beyond.
        let token = signer.sign(&json!({ "alg": "EdDSA", "kid": "ed" }), &claims());
        assert!(
            keys.verify(&token, &rules(), NOW + 300_000 + OIDC_LEEWAY_MS - 1)
                .is_ok()
        );
        assert_eq!(
            keys.verify(&token, &rules(), NOW + 300_000 + OIDC_LEEWAY_MS),
            Err(Refused::Expired)
        );
    }

    /// Made by `openssl`, which is no part of what is tested.
    #[test]
    fn what_another_program_signed_by_rsa_is_taken() {
        let keys = Keys::read(include_bytes!("tests/rs256.jwks")).unwrap();
        let token = include_str!("tests/rs256.jwt").trim();
        assert!(keys.verify(token, &rules(), NOW).is_ok());
        let (body, signature) = token.rsplit_once('.').unwrap();
        let mut other = BASE64.decode(signature).unwrap();
        other[7] ^= 1;
        let forged = format!("{body}.{}", BASE64.encode(other));
        assert_eq!(keys.verify(&forged, &rules(), NOW), Err(Refused::Signature));
    }

    #[test]
    fn bad_tokens_are_refused_for_what_is_wrong_with_them() {
        let (signer, stranger) = (Signer::new(), Signer::new());
        let keys = signer.keys();
        let head = |alg: &str, kid: &str| json!({ "alg": alg, "kid": kid });
        let ed = head("EdDSA", "ed");
        let typed = |typ: &str| json!({ "alg": "EdDSA", "kid": "ed", "typ": typ });
        let unknown = |id: &str| Refused::UnknownKey(id.to_owned());
        for (token, why) in [
            (
                signer.sign(&ed, &with("exp", json!(NOW / 1_000 - 31))),
                Refused::Expired,
            ),
            (signer.sign(&ed, &with("exp", Value::Null)), Refused::Expired),
            (signer.sign(&ed, &with("exp", json!("soon"))), Refused::Expired),
            (signer.sign(&ed, &with("exp", json!(-1))), Refused::Expired),
            (signer.sign(&ed, &with("nbf", json!(NOW / 1_000 + 31))), Refused::Early),
            (signer.sign(&ed, &with("nbf", json!({}))), Refused::Early),
            (signer.sign(&ed, &with("aud", json!("other"))), Refused::Audience),
            (signer.sign(&ed, &with("aud", Value::Null)), Refused::Audience),
            (signer.sign(&ed, &with("aud", json!(["skep2"]))), Refused::Audience),
            (
                signer.sign(&ed, &with("iss", json!("https://id.example.com/"))),
                Refused::Issuer,
            ),
            (signer.sign(&ed, &with("iss", Value::Null)), Refused::Issuer),
            (stranger.sign(&ed, &claims()), Refused::Signature),
            (signer.sign(&head("none", "ed"), &claims()), Refused::Algorithm),
            (signer.sign(&head("HS256", "ec"), &claims()), Refused::Algorithm),
            (signer.sign(&head("HS256", "secret"), &claims()), Refused::Algorithm),
            (signer.sign(&head("EdDSA", "ec"), &claims()), Refused::Algorithm),
            (signer.sign(&typed("logout+jwt"), &claims()), Refused::Kind),
            (
                signer.sign(&typed("application/secevent+jwt"), &claims()),
                Refused::Kind,
            ),
            (signer.sign(&typed("token-introspection+jwt"), &claims()), Refused::Kind),
            (signer.sign(&typed(""), &claims()), Refused::Kind),
            (
                signer.sign(
                    &json!({ "alg": "EdDSA", "kid": "ed", "crit": ["b64"], "b64": true }),
                    &claims(),
                ),
                Refused::Critical,
            ),
            (
                signer.sign(&json!({ "alg": "EdDSA", "kid": "ed", "crit": [] }), &claims()),
                Refused::Critical,
            ),
            (signer.sign(&head("EdDSA", "enc"), &claims()), unknown("enc")),
            (signer.sign(&json!({ "alg": "EdDSA" }), &claims()), unknown("")),
            (signer.sign(&head("EdDSA", "next"), &claims()), unknown("next")),
        ] {
            assert_eq!(keys.verify(&token, &rules(), NOW), Err(why), "{token}");
        }
        // Claims of one, signature of another; pieces; noise.
        let good = signer.sign(&ed, &claims());
        let (body, signature) = good.rsplit_once('.').unwrap();
        let other = signer.sign(&ed, &with("sub", json!("bob")));
        let swapped = format!("{}.{signature}", other.rsplit_once('.').unwrap().0);
        assert_eq!(keys.verify(&swapped, &rules(), NOW), Err(Refused::Signature));
        assert_eq!(keys.verify(&format!("{body}."), &rules(), NOW), Err(Refused::Signature));
        let long = format!("{}.{body}", "a".repeat(OIDC_TOKEN_BYTES_MAX));
        for none in [
            "",
            ".",
            "..",
            "a.b.c",
            "skep_0123456789ab_00",
            body,
            &long,
            &format!("{good}.x"),
            "\0.\0.\0",
        ] {
            assert_eq!(keys.verify(none, &rules(), NOW), Err(Refused::NoToken), "{none}");
        }
        assert!(Keys::read(b"{}").is_err() && Keys::read(b"<html>").is_err());
        assert!(Keys::read(br#"{"keys":[]}"#).unwrap().is_empty());
    }
}
