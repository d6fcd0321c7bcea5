//! What a caller shows: tokens, the platform's own and an OpenID provider's, and the proof of one node to another. And the keys of a provider.

use std::sync::OnceLock;

use skep_gateway::door::oidc::{Keys, Rules};
use skep_model::access::{PeerKey, Secret, SecretHash, TOKEN_BYTES, TokenId};
use skep_model::env::SeededEntropy;
use skep_model::limits::OIDC_KEYS_MAX;

/// Made by `openssl`: a provider's keys, and a token of one of them.
const PROVIDER: &[u8] = include_bytes!("../../../gateway/src/door/oidc/tests/rs256.jwks");
const JWT: &str = include_str!("../../../gateway/src/door/oidc/tests/rs256.jwt");
const NOW_MS: u64 = 1_800_000_000_000;

pub fn run(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return false;
    };
    let mut taken = false;
    if let Some(secret) = Secret::parse(text) {
        // One token has one spelling, so a list of those that leaked can be searched for.
        assert_eq!(secret.text(), text);
        assert_eq!(text.len(), TOKEN_BYTES);
        assert!(
            !format!("{} {}", secret.id, secret.hash()).contains(&text[18..82]),
            "the secret is shown"
        );
        taken = true;
    }
    if let Ok(id) = text.parse::<TokenId>() {
        assert_eq!(id.to_string(), text);
        taken = true;
    }
    if let Ok(hash) = text.parse::<SecretHash>() {
        assert_eq!(hash.to_string(), text);
        taken = true;
    }
    if let Some(key) = PeerKey::parse(text) {
        assert_eq!(key.to_hex(), text);
        assert!(key.proves(&key.proof("/p", 7), "/p", 7));
        taken = true;
    }
    let key = PeerKey::random(&SeededEntropy::new(1));
    // Who does not have the key proves nothing, but for what the key's holder said.
    if key.proves(text, "/p", 1_000_000) {
        assert_eq!(text, key.proof("/p", 1_000_000), "proven in another spelling");
        taken = true;
    }
    taken | provider(text)
}

fn provider(text: &str) -> bool {
    static KEYS: OnceLock<(Keys, Rules)> = OnceLock::new();
    let (keys, rules) = KEYS.get_or_init(|| {
        let rules = Rules {
            issuer: "https://id.example.com".to_owned(),
            audience: "skep".to_owned(),
        };
        (Keys::read(PROVIDER).expect("keys"), rules)
    });
    if keys.verify(text, rules, NOW_MS).is_ok() {
        // A token of a provider too has one spelling; and nobody makes another without its key.
        assert_eq!(text, JWT.trim(), "forged");
        return true;
    }
    match Keys::read(text.as_bytes()) {
        Ok(keys) => {
            assert!(keys.len() <= OIDC_KEYS_MAX);
            true
        }
        Err(_) => false,
    }
}
