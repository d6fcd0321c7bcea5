//! The way to a node.

use std::time::Duration;

use skep_client::{Gateway, Kind, Login};
use skep_proto::v1::access_client::AccessClient;
use skep_proto::v1::audit_client::AuditClient;
use skep_proto::v1::beekeeper_client::BeekeeperClient;
use skep_proto::v1::edges_client::EdgesClient;
use skep_proto::v1::models_client::ModelsClient;
use skep_proto::v1::secrets_client::SecretsClient;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};

use super::failure::{Exit, Failure, Outcome};
use super::login;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Responses and lists may be larger than tonic's default; still bounded.
const DECODE_BYTES_MAX: usize = 16 << 20;

/// A channel that shows who calls.
pub type Wire = InterceptedService<Channel, Login>;

pub async fn beekeeper(node: &str) -> Outcome<BeekeeperClient<Wire>> {
    let wire = wire(node, login::login(node)?).await?;
    Ok(BeekeeperClient::new(wire).max_decoding_message_size(DECODE_BYTES_MAX))
}

/// Tenants and tokens.
pub async fn access(node: &str) -> Outcome<AccessClient<Wire>> {
    access_with(node, login::login(node)?).await
}

pub async fn access_with(node: &str, login: Login) -> Outcome<AccessClient<Wire>> {
    let wire = wire(node, login).await?;
    Ok(AccessClient::new(wire).max_decoding_message_size(DECODE_BYTES_MAX))
}

pub async fn edges(node: &str) -> Outcome<EdgesClient<Wire>> {
    let wire = wire(node, login::login(node)?).await?;
    Ok(EdgesClient::new(wire).max_decoding_message_size(DECODE_BYTES_MAX))
}

pub async fn secrets(node: &str) -> Outcome<SecretsClient<Wire>> {
    Ok(SecretsClient::new(wire(node, login::login(node)?).await?))
}

pub async fn models(node: &str) -> Outcome<ModelsClient<Wire>> {
    let wire = wire(node, login::login(node)?).await?;
    Ok(ModelsClient::new(wire).max_decoding_message_size(DECODE_BYTES_MAX))
}

pub async fn audit(node: &str) -> Outcome<AuditClient<Wire>> {
    Ok(AuditClient::new(wire(node, login::login(node)?).await?))
}

pub async fn gateway(node: &str) -> Outcome<Gateway> {
    // What the client would say of a bad URL or an absent node is said once, here, with its remedy.
    let url = endpoint(node)?.uri().to_string();
    let login = login::login(node)?;
    // The client's words end with the system's reason.
    Gateway::connect_with(url, login).await.map_err(|e| match e.kind {
        Kind::Invalid => Failure::new(Exit::Usage, e.message),
        _ => absent(node, e.message.rsplit(": ").next()),
    })
}

/// Nobody listens at `node`, or not in our language.
pub fn absent(node: &str, why: Option<&str>) -> Failure {
    // "Connection refused (os error 111)" says no more than that nobody answers.
    let why = match why.map(|w| w.split(" (os error").next().unwrap_or(w)) {
        None | Some("" | "Connection refused") => String::new(),
        Some(why) => format!(" ({why})"),
    };
    Failure::new(Exit::Unavailable, format!("no node answers at {node}{why}")).remedy(format!(
        "is `skep serve` running at {node}? Start one with `skep serve --data DIR`, or name another with --node URL"
    ))
}

async fn wire(node: &str, login: Login) -> Outcome<Wire> {
    let endpoint = login
        .endpoint(endpoint(node)?)
        .map_err(|e| Failure::new(Exit::Usage, e.message))?;
    let channel = endpoint.connect().await.map_err(|e| {
        // tonic says "transport error"; the reason is at the end of the chain.
        let mut cause: &dyn std::error::Error = &e;
        while let Some(next) = cause.source() {
            cause = next;
        }
        absent(node, Some(&cause.to_string()))
    })?;
    Ok(InterceptedService::new(channel, login))
}

fn endpoint(node: &str) -> Outcome<Endpoint> {
    let url = if node.contains("://") {
        node.to_owned()
    } else {
        format!("http://{node}")
    };
    let bad = |why: &str| {
        Failure::new(Exit::Usage, format!("`{node}` is not a node's URL: {why}"))
            .remedy("write --node http://HOST:PORT")
    };
    if !url.starts_with("http://") && !url.starts_with("https://") {
        return Err(bad("it begins neither with http:// nor with https://"));
    }
    let endpoint = Endpoint::from_shared(url).map_err(|e| bad(&e.to_string()))?;
    if endpoint.uri().port().is_none() {
        return Err(bad("it names no port"));
    }
    Ok(endpoint.connect_timeout(CONNECT_TIMEOUT).http2_adaptive_window(true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_absent_node_is_told_in_one_plain_line() {
        // Port 1 is privileged and free.
        let node = "http://127.0.0.1:1";
        let beekeeper = beekeeper(node).await.map(|_| ()).unwrap_err();
        let gateway = gateway(node).await.map(|_| ()).unwrap_err();
        for told in [beekeeper, gateway] {
            assert_eq!(told.message, "no node answers at http://127.0.0.1:1");
            assert!(told.remedy.unwrap().contains("skep serve"));
        }
        assert_eq!(
            absent("n", Some("Connection reset by peer (os error 104)")).message,
            "no node answers at n (Connection reset by peer)"
        );
    }

    #[test]
    fn urls_of_nodes() {
        for good in [
            "http://127.0.0.1:4020",
            "https://h:1",
            "localhost:4020",
            "http://[::1]:1",
        ] {
            assert!(endpoint(good).is_ok(), "{good}");
        }
        for bad in ["", "ftp://h:1", "http://h", "http://a b:1"] {
            assert_eq!(endpoint(bad).unwrap_err().exit, Exit::Usage, "{bad}");
        }
    }
}
