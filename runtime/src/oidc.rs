//! The OpenID provider whose tokens let in beside the platform's own: its settings, and the task that reads its keys.
//!
//! ```text
//!   ISSUER/.well-known/openid-configuration ─► issuer (must be the one that was set), jwks_uri ─► keys ─► the door's `Provider`
//! ```
//! OpenID Connect Discovery 1.0 §4; RFC 7517. Keys are read at start, every few minutes, and when somebody shows a token of a key that is not known,
//! but never more often than [`OIDC_REFRESH_LEAST_MS`]. While the provider cannot be reached the keys stay that were read last, for a day.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use reqwest::{Client, Url, redirect};
use serde::Deserialize;
use skep_gateway::door::oidc::{Claim, Keys, Mapping, Provider, Rules};
use skep_model::access::Role;
use skep_model::limits::{
    OIDC_ANSWER_BYTES_MAX, OIDC_FETCH_MS, OIDC_KEYS_KEPT_MS, OIDC_REFRESH_LEAST_MS, OIDC_REFRESH_MS, OIDC_URL_BYTES_MAX,
};
use skep_model::name::TenantId;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::tls;

pub const TENANT_CLAIM_DEFAULT: &str = "tenant";
pub const ROLE_CLAIM_DEFAULT: &str = "roles";
const DISCOVERY: &str = "/.well-known/openid-configuration";

/// A provider, as flags name it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OidcSettings {
    pub issuer: String,
    pub audience: String,
    /// Who signed the provider's certificate (PEM); `None`: whom the system trusts.
    pub ca: Option<PathBuf>,
    pub tenant_claim: Option<String>,
    pub role_claim: Option<String>,
    /// Each `VALUE=TENANT`.
    pub tenants: Vec<String>,
    /// Each `VALUE=ROLE`.
    pub roles: Vec<String>,
}

impl OidcSettings {
    /// What tokens must say, and what that means here.
    ///
    /// # Errors
    /// Which setting cannot be, and what would do.
    pub fn read(&self) -> Result<(Rules, Mapping), String> {
        let issuer = address(&self.issuer).map_err(|why| format!("`oidc-issuer` {why}"))?;
        if issuer.query().is_some() {
            return Err("`oidc-issuer` has a query: leave it out".to_owned());
        }
        if self.audience.is_empty() {
            return Err(
                "`oidc-audience` is empty: name what the provider puts into `aud` of tokens for this platform"
                    .to_owned(),
            );
        }
        let claim = |set: &Option<String>, default: &str| {
            Claim::new(set.as_deref().unwrap_or(default))
                .ok_or("a claim's name is empty: name one, or a JSON pointer to it")
        };
        fn pairs<T: std::str::FromStr<Err: std::fmt::Display>>(
            what: &str,
            all: &[String],
        ) -> Result<Vec<(String, T)>, String> {
            let pair = |text: &String| match text.rsplit_once('=') {
                Some((value, named)) if !value.is_empty() => {
                    let named = named.parse().map_err(|e| format!("`{what}` is `{text}`: {e}"))?;
                    Ok((value.to_owned(), named))
                }
                _ => Err(format!(
                    "`{what}` is `{text}`: write VALUE=NAME, what the claim says and what it means here"
                )),
            };
            all.iter().map(pair).collect()
        }
        // Which of two holds would be for their order to say, and one may be an operator's.
        fn once<T>(what: &str, all: Vec<(String, T)>) -> Result<BTreeMap<String, T>, String> {
            let mut found = BTreeMap::new();
            for (value, named) in all {
                if found.contains_key(&value) {
                    return Err(format!("`{what}` says twice what `{value}` means: say it once"));
                }
                found.insert(value, named);
            }
            Ok(found)
        }
        let mapping = Mapping {
            tenant_claim: claim(&self.tenant_claim, TENANT_CLAIM_DEFAULT)?,
            role_claim: claim(&self.role_claim, ROLE_CLAIM_DEFAULT)?,
            tenants: once("oidc-tenant", pairs::<TenantId>("oidc-tenant", &self.tenants)?)?,
            roles: once("oidc-role", pairs::<Role>("oidc-role", &self.roles)?)?,
        };
        let rules = Rules {
            issuer: self.issuer.clone(),
            audience: self.audience.clone(),
        };
        Ok((rules, mapping))
    }
}

/// A URL of a provider: what is read there decides who comes in, so it is read by TLS, but on this machine.
fn address(text: &str) -> Result<Url, String> {
    if text.len() > OIDC_URL_BYTES_MAX {
        return Err(format!("is longer than {OIDC_URL_BYTES_MAX} bytes"));
    }
    let url: Url = text.parse().map_err(|e| format!("is no URL: {e}"))?;
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let near = host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
    match url.scheme() {
        "https" => {}
        "http" if near => {}
        _ => return Err("is not https://: only on this machine may it be http://".to_owned()),
    }
    if !url.username().is_empty() || url.password().is_some() || url.fragment().is_some() {
        return Err("has a password or a fragment: leave them out".to_owned());
    }
    Ok(url)
}

/// Where a provider's keys are, by its description. It may have a query, as some providers' do.
fn keys_address(issuer: &str, text: &str) -> Result<Url, String> {
    let url = address(text)?;
    // Or whoever may listen on this machine could say what the keys of a provider elsewhere are.
    if url.scheme() != "https" && address(issuer)?.scheme() == "https" {
        return Err("is not https://, and the issuer is".to_owned());
    }
    Ok(url)
}

#[derive(Deserialize)]
struct Description {
    issuer: String,
    jwks_uri: String,
}

/// Reads a provider's keys.
pub struct Reader {
    provider: Arc<Provider>,
    client: Client,
    /// When keys were read last.
    read: Option<Instant>,
}

impl Reader {
    /// # Errors
    /// A setting that cannot be, or a file that cannot be used.
    pub fn new(settings: &OidcSettings) -> anyhow::Result<Self> {
        let (rules, mapping) = settings.read().map_err(anyhow::Error::msg)?;
        let mut client = Client::builder()
            .tls_backend_preconfigured(tls::client(settings.ca.as_deref())?)
            // The provider says where its keys are; nobody else does.
            .redirect(redirect::Policy::none())
            .timeout(Duration::from_millis(OIDC_FETCH_MS));
        if address(&rules.issuer).is_ok_and(|issuer| issuer.scheme() == "http") {
            // What is asked in the clear stays on this machine: `HTTP_PROXY` would say what the keys are. By TLS a proxy only hands on.
            client = client.no_proxy();
        }
        let client = client.build().context("set up the client of the OpenID provider")?;
        Ok(Self {
            provider: Provider::new(rules, mapping),
            client,
            read: None,
        })
    }

    #[must_use]
    pub fn provider(&self) -> &Arc<Provider> {
        &self.provider
    }

    /// Keeps the keys in step with the provider's, until `stop`.
    pub async fn follow(mut self, stop: CancellationToken) {
        let work = async {
            let mut troubled = false;
            loop {
                let begun = Instant::now();
                self.provider.begin();
                match self.fetch().await {
                    Ok(keys) => {
                        let none = keys.is_empty();
                        if none {
                            if !troubled {
                                tracing::warn!(
                                    issuer = self.provider.issuer(),
                                    "the OpenID provider has no key for RS256, ES256 or EdDSA that has an id (`kid`): its tokens let nobody in"
                                );
                            }
                        } else if troubled || self.read.is_none() {
                            tracing::info!(
                                issuer = self.provider.issuer(),
                                keys = keys.len(),
                                "read the OpenID provider's keys"
                            );
                        }
                        (troubled, self.read) = (none, Some(begun));
                        self.provider.read(keys);
                    }
                    Err(error) => {
                        // Said once a trouble.
                        if !std::mem::replace(&mut troubled, true) {
                            let error = format!("{error:#}");
                            tracing::warn!(
                                issuer = self.provider.issuer(),
                                error,
                                "cannot read the OpenID provider's keys: those that are known stay"
                            );
                        }
                        if self
                            .read
                            .is_some_and(|read| read.elapsed() > Duration::from_millis(OIDC_KEYS_KEPT_MS))
                        {
                            self.read = None;
                            self.provider.forget();
                            tracing::warn!(
                                "the OpenID provider's keys were not read for a day: its tokens let nobody in until they are"
                            );
                        }
                        self.provider.unread();
                    }
                }
                let next = if troubled {
                    OIDC_REFRESH_LEAST_MS
                } else {
                    OIDC_REFRESH_MS
                };
                tokio::select! {
                    () = sleep(Duration::from_millis(next)) => {}
                    () = self.provider.wanted() => sleep_until(begun + Duration::from_millis(OIDC_REFRESH_LEAST_MS)).await,
                }
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = work => {}
        }
    }

    async fn fetch(&self) -> anyhow::Result<Keys> {
        let issuer = self.provider.issuer();
        let at = format!("{}{DISCOVERY}", issuer.trim_end_matches('/'));
        let text = self.get(&at).await?;
        let description: Description =
            serde_json::from_slice(&text).with_context(|| format!("{at} is no description of an OpenID provider"))?;
        if description.issuer != issuer {
            let said: String = description.issuer.chars().take(200).collect();
            bail!("{at} says that the issuer is {said:?}: `oidc-issuer` must be that, to the letter");
        }
        let at = description.jwks_uri;
        let at = keys_address(issuer, &at).map_err(|why| anyhow::anyhow!("the provider's jwks_uri {why}"))?;
        let text = self.get(at.as_str()).await?;
        // None at all is an answer too: whoever withdraws the last key means it.
        Keys::read(&text).with_context(|| format!("{at} is no set of keys"))
    }

    /// One answer, of a bounded size.
    async fn get(&self, at: &str) -> anyhow::Result<Vec<u8>> {
        let mut answer = self.client.get(at).send().await.map_err(whole)?;
        if !answer.status().is_success() {
            bail!("{at} answers {}", answer.status());
        }
        let mut text = Vec::new();
        while let Some(piece) = answer.chunk().await.map_err(whole)? {
            if text.len() + piece.len() > OIDC_ANSWER_BYTES_MAX {
                bail!("{at} answers with more than {OIDC_ANSWER_BYTES_MAX} bytes");
            }
            text.extend_from_slice(&piece);
        }
        Ok(text)
    }
}

/// The library's error says where; what was wrong is in its causes.
fn whole(error: reqwest::Error) -> anyhow::Error {
    anyhow::Error::new(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> OidcSettings {
        OidcSettings {
            issuer: "https://id.example.com/realm".into(),
            audience: "skep".into(),
            ..OidcSettings::default()
        }
    }

    #[test]
    fn settings_that_cannot_be_are_refused_by_name() {
        assert!(settings().read().is_ok());
        for issuer in [
            "http://127.0.0.1:9",
            "http://localhost:9/a",
            "http://[::1]:9",
            "https://h",
        ] {
            assert!(
                OidcSettings {
                    issuer: issuer.into(),
                    ..settings()
                }
                .read()
                .is_ok(),
                "{issuer}"
            );
        }
        for issuer in [
            "",
            "id.example.com",
            "http://id.example.com",
            "ftp://h",
            "https://u:p@h",
            "https://h/?a",
            "https://h/#a",
            "http://127.0.0.1.example.com",
        ] {
            let refused = OidcSettings {
                issuer: issuer.into(),
                ..settings()
            }
            .read()
            .unwrap_err();
            assert!(refused.starts_with("`oidc-issuer` "), "{issuer}: {refused}");
        }
        let long = OidcSettings {
            issuer: format!("https://h/{}", "a".repeat(OIDC_URL_BYTES_MAX)),
            ..settings()
        };
        assert!(long.read().unwrap_err().contains("longer"));
        assert!(
            OidcSettings {
                audience: String::new(),
                ..settings()
            }
            .read()
            .is_err()
        );
        assert!(
            OidcSettings {
                role_claim: Some(String::new()),
                ..settings()
            }
            .read()
            .is_err()
        );
        for role in ["admins", "=admin", "admins=boss", "admins="] {
            let refused = OidcSettings {
                roles: vec![role.into()],
                ..settings()
            }
            .read()
            .unwrap_err();
            assert!(refused.contains(role) && refused.contains("oidc-role"), "{refused}");
        }
        for (roles, tenants) in [
            (vec!["ops=operator", "ops=read"], vec![]),
            (vec![], vec!["7=acme", "8=zeta", "7=zeta"]),
        ] {
            let owned = |all: Vec<&str>| all.into_iter().map(str::to_owned).collect();
            let refused = OidcSettings {
                roles: owned(roles),
                tenants: owned(tenants),
                ..settings()
            }
            .read()
            .unwrap_err();
            assert!(refused.contains("twice"), "{refused}");
        }
        // A value may have an equals sign of its own, as names in LDAP do.
        let (_, mapping) = OidcSettings {
            roles: vec!["cn=ops,dc=example=operator".into()],
            tenants: vec!["7=acme".into()],
            ..settings()
        }
        .read()
        .unwrap();
        assert_eq!(mapping.roles["cn=ops,dc=example"], Role::Operator);
        assert_eq!(mapping.tenants["7"].as_str(), "acme");
    }

    #[test]
    fn keys_of_a_provider_elsewhere_are_read_by_tls_only() {
        let (near, far) = ("http://127.0.0.1:9", "https://id.example.com");
        assert!(keys_address(far, "https://keys.example.com/k?p=policy").is_ok());
        assert!(keys_address(near, "http://127.0.0.1:9/k?p=policy").is_ok());
        assert!(keys_address(near, "https://id.example.com/k").is_ok());
        for at in [
            "http://127.0.0.1:9/k",
            "http://id.example.com/k",
            "file:///k",
            "k",
            "https://u:p@h/k",
        ] {
            assert!(keys_address(far, at).is_err(), "{at}");
        }
    }

    #[tokio::test]
    async fn a_provider_that_withdraws_its_last_key_is_heard() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let issuer = format!("http://{}", listener.local_addr().unwrap());
        let description = serde_json::json!({ "issuer": issuer, "jwks_uri": format!("{issuer}/keys?p=a") });
        let served = tokio::spawn(async move {
            // Its description and its keys, of three readings.
            for keys in [
                include_str!("../../gateway/src/door/oidc/tests/rs256.jwks"),
                r#"{"keys":[]}"#,
                "busy",
            ] {
                for (path, text) in [
                    ("/.well-known/", description.to_string()),
                    ("/keys?p=a ", keys.to_owned()),
                ] {
                    let (mut conn, _) = listener.accept().await.unwrap();
                    let mut asked = Vec::new();
                    while !asked.ends_with(b"\r\n\r\n") {
                        asked.push(conn.read_u8().await.unwrap());
                    }
                    assert!(
                        asked.starts_with(format!("GET {path}").as_bytes()),
                        "{}",
                        String::from_utf8_lossy(&asked)
                    );
                    let head = format!(
                        "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
                        text.len()
                    );
                    conn.write_all((head + &text).as_bytes()).await.unwrap();
                }
            }
        });
        let reader = Reader::new(&OidcSettings { issuer, ..settings() }).unwrap();
        assert_eq!(reader.fetch().await.unwrap().len(), 1);
        // None is what it says; what is no set of keys says nothing.
        assert!(reader.fetch().await.unwrap().is_empty());
        assert!(reader.fetch().await.is_err());
        served.await.unwrap();
    }
}
