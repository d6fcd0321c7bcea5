//! How to come in: a token, whom to trust, and who one is.

use std::fmt;

use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};
use tonic::{Request, Status};

use crate::{Error, Kind, Outcome};

/// What a connection shows the node, and what it wants to see. Without anything: nothing, as for a node on this machine that has no tokens.
#[derive(Clone, Default)]
pub struct Login {
    token: Option<MetadataValue<Ascii>>,
    ca: Option<Vec<u8>>,
    identity: Option<(Vec<u8>, Vec<u8>)>,
    in_the_clear: bool,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login")
            .field("token", &self.token.is_some())
            .field("ca", &self.ca.is_some())
            .field("identity", &self.identity.is_some())
            .finish()
    }
}

impl Login {
    /// With a token, as `skep token create` gave it.
    ///
    /// # Errors
    /// It cannot be one.
    pub fn token(mut self, token: &str) -> Result<Self, Error> {
        let mut value: MetadataValue<Ascii> = format!("Bearer {}", token.trim())
            .parse()
            .map_err(|_| invalid("the token is none: it has characters that no token has"))?;
        // Neither shown by anybody's log, nor kept by compression.
        value.set_sensitive(true);
        self.token = Some(value);
        Ok(self)
    }

    /// Trusts certificates that these signed (PEM), in place of those that the system trusts.
    #[must_use]
    pub fn ca(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.ca = Some(pem.into());
        self
    }

    /// Shows a certificate of its own, both in PEM: for nodes with `--client-ca`.
    #[must_use]
    pub fn identity(mut self, cert: impl Into<Vec<u8>>, key: impl Into<Vec<u8>>) -> Self {
        self.identity = Some((cert.into(), key.into()));
        self
    }

    /// Lets a token travel without TLS to another machine, where everybody between may read it.
    #[must_use]
    pub fn in_the_clear(mut self) -> Self {
        self.in_the_clear = true;
        self
    }

    /// An endpoint that is reached as this login says.
    ///
    /// # Errors
    /// A token would travel in the clear; what should be a certificate is none.
    pub fn endpoint(&self, endpoint: Endpoint) -> Result<Endpoint, Error> {
        let uri = endpoint.uri();
        if uri.scheme_str() != Some("https") {
            let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
            let near = host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
            if self.token.is_some() && !near && !self.in_the_clear {
                return Err(invalid(
                    "the token would travel in the clear: use https://, or a node on this machine",
                ));
            }
            return Ok(endpoint);
        }
        let mut tls = match &self.ca {
            Some(pem) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem)),
            None => ClientTlsConfig::new().with_native_roots(),
        };
        if let Some((cert, key)) = &self.identity {
            tls = tls.identity(Identity::from_pem(cert, key));
        }
        endpoint
            .tls_config(tls)
            .map_err(|e| invalid(format!("TLS cannot be set up: {}", crate::gateway::whole(&e))))
    }
}

fn invalid(why: impl Into<String>) -> Error {
    Error::new(Kind::Invalid, Outcome::NotDone, why)
}

impl Interceptor for Login {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.token {
            request.metadata_mut().insert("authorization", token.clone());
        }
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_does_not_leave_the_machine_in_the_clear() {
        let login = Login::default().token("skep_x").unwrap();
        let reach = |login: &Login, url: &'static str| login.endpoint(Endpoint::from_static(url)).map(|_| ());
        for near in ["http://127.0.0.1:1", "http://localhost:1", "http://[::1]:1"] {
            assert!(reach(&login, near).is_ok(), "{near}");
        }
        for far in [
            "http://10.0.0.1:1",
            "http://example.org:1",
            "http://127.0.0.1.example.org:1",
        ] {
            assert!(reach(&login, far).unwrap_err().message.contains("https"), "{far}");
            assert!(reach(&Login::default(), far).is_ok(), "{far}");
            assert!(reach(&login.clone().in_the_clear(), far).is_ok(), "{far}");
        }
        assert!(!format!("{login:?}").contains("skep_x"));
        assert!(Login::default().token("a\nb").is_err());
    }
}
