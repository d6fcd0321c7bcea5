//! How a machine becomes an edge: it makes a key, shows the line's secret to the hub, and keeps what the hub signs.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use skep_proto::v1;
use skep_proto::v1::edges_client::EdgesClient;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

use crate::hello;
use crate::home::{Home, Identity};
use crate::keys::verifies;
use crate::limits::{ALIVE_EVERY_MS, ALIVE_WITHIN_MS, GREETING_MS};
use crate::line::Line;
use crate::orders::hex;

/// Enrols the folder `dir`. `ca`: certificates (PEM) of the hub's authority, where the machine does not know it. `insecure`: also without TLS over
/// a network, where whoever stands between can take and forge what the two say behind their proofs.
///
/// # Errors
/// An edge lives there already; the hub cannot be reached, refuses, or is not the one that the line is of.
pub async fn enroll(dir: &Path, line: &Line, ca: Option<String>, insecure: bool) -> anyhow::Result<Identity> {
    if is_open(&line.hub) && !insecure {
        bail!(
            "{} is without TLS: whoever stands between could read and forge what is handed over. Serve the hub with TLS and invite the edge with \
             `--hub https://…`; or give --allow-insecure where nobody else is on that network",
            line.hub
        );
    }
    let home = Home::make(dir)?;
    if home.is_enrolled() {
        let known = home.identity()?;
        bail!(
            "{} is the folder of edge `{}` of {} already: give another --data, or remove it together with all that waits in it",
            dir.display(),
            known.name,
            known.hub
        );
    }
    let key = home.key()?;
    let channel = endpoint(&line.hub, ca.as_deref())?
        .connect()
        .await
        .map_err(|e| unreached(&line.hub, &e))?;
    let asked = v1::EnrollRequest {
        tenant: line.tenant.clone(),
        name: line.name.clone(),
        secret: line.secret.clone(),
        edge_key: key.public().to_vec().into(),
    };
    let said = EdgesClient::new(channel).enroll(asked).await;
    let said = said
        .map_err(|status| anyhow::anyhow!("the hub refuses: {}", status.message()))?
        .into_inner();
    let id: [u8; 16] = said.edge.as_ref().try_into().ok().context("the hub gave no id")?;
    let words = hello::enrolled(&line.tenant, &line.name, &id, &key.public());
    if !verifies(&line.hub_key, &words, &said.signature) {
        bail!(
            "{} has another key than the hub that the line is of: it is another hub, or somebody stands between; nothing was kept",
            line.hub
        );
    }
    let identity = Identity {
        format: 1,
        hub: line.hub.clone(),
        tenant: line.tenant.clone(),
        name: line.name.clone(),
        edge: hex(&id),
        hub_key: line.hub_key,
        ca,
    };
    home.enrolled(&identity)?;
    Ok(identity)
}

/// Whether a hub's address leads over a network, and without TLS.
#[must_use]
pub fn is_open(hub: &str) -> bool {
    let Some(rest) = hub.strip_prefix("http://") else {
        return false;
    };
    let host = rest.split('/').next().unwrap_or(rest);
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    let name = match host.strip_prefix('[') {
        Some(six) => six.split(']').next().unwrap_or(six),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    let near = name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
    !near && name != "localhost"
}

/// How a hub is called: a connection on which nothing comes for a while is asked whether it lives, so one whose other end has gone without a word is
/// given up.
pub(crate) fn endpoint(hub: &str, ca: Option<&str>) -> anyhow::Result<Endpoint> {
    let bad = || format!("`{hub}` is no address of a hub: write http://HOST:PORT or https://HOST:PORT");
    let mut endpoint = Channel::from_shared(hub.to_owned())
        .with_context(bad)?
        .connect_timeout(Duration::from_millis(GREETING_MS))
        .http2_keep_alive_interval(Duration::from_millis(ALIVE_EVERY_MS))
        .keep_alive_timeout(Duration::from_millis(ALIVE_WITHIN_MS))
        .keep_alive_while_idle(true);
    if hub.starts_with("https://") {
        let mut tls = ClientTlsConfig::new();
        tls = match ca {
            Some(pem) => tls.ca_certificate(Certificate::from_pem(pem)),
            None => tls.with_native_roots(),
        };
        endpoint = endpoint.tls_config(tls).with_context(bad)?;
    }
    Ok(endpoint)
}

pub(crate) fn unreached(hub: &str, error: &tonic::transport::Error) -> anyhow::Error {
    // What lies below says more than `transport error`.
    let mut below: &dyn std::error::Error = error;
    while let Some(source) = below.source() {
        below = source;
    }
    anyhow::anyhow!("the hub {hub} cannot be reached: {below}")
}

#[cfg(test)]
mod tests {
    use super::is_open;

    #[test]
    fn without_tls_only_this_machine_is_near() {
        for near in [
            "https://hub:7700",
            "http://127.0.0.1:7700",
            "http://127.9.9.9",
            "http://[::1]:7700",
            "http://localhost:1/",
        ] {
            assert!(!is_open(near), "{near}");
        }
        for open in [
            "http://hub:7700",
            "http://10.0.0.1:7700",
            "http://localhost.example.com",
            "http://127.0.0.1@evil:80",
            "http://127.0.0.1.example.com",
            "http://[fe80::1]:80",
            "http://0.0.0.0:1",
        ] {
            assert!(is_open(open), "{open}");
        }
    }
}
