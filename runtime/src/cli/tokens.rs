//! `token`.

use std::time::Duration;

use serde_json::{Value, json};
use skep_model::access::{Secret, TokenId};
use skep_model::env::OsEntropy;
use skep_proto::v1;

use super::args::{self, TokenCommand};
use super::connect;
use super::failure::Outcome;
use super::output::{Printer, shown, time};

pub async fn token(args: args::Token, node: &str, out: Printer) -> Outcome {
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    match args.what {
        TokenCommand::Generate => {
            let secret = Secret::random(TokenId::random(&OsEntropy), &OsEntropy);
            if out.json() {
                return out.document(&json!({ "token": secret.text() }));
            }
            out.line(&secret.text())
        }
        TokenCommand::Bootstrap => {
            let made = connect::access(node).await?.bootstrap(v1::BootstrapRequest {}).await?;
            new(made.into_inner(), out)?;
            eprintln!("from now on every call needs a token, on all nodes of this store: skep login {node}");
            Ok(())
        }
        TokenCommand::Create {
            tenant,
            role,
            ttl,
            name,
        } => {
            let request = v1::CreateTokenRequest {
                tenant: tenant.unwrap_or_default(),
                role,
                name: name.unwrap_or_default(),
                ttl_ms: ttl.map_or(0, ms),
            };
            let made = connect::access(node).await?.create_token(request).await?;
            new(made.into_inner(), out)
        }
        TokenCommand::List { tenant } => {
            let request = v1::ListTokensRequest {
                tenant: tenant.unwrap_or_default(),
            };
            let all = connect::access(node)
                .await?
                .list_tokens(request)
                .await?
                .into_inner()
                .tokens;
            if out.json() {
                return out.document(&json!({ "tokens": all.iter().map(as_json).collect::<Vec<_>>() }));
            }
            let rows = all.iter().map(|t| {
                let end = |ms: u64| if ms == 0 { "never".to_owned() } else { time(ms) };
                vec![
                    t.id.clone(),
                    if t.tenant.is_empty() {
                        "-".to_owned()
                    } else {
                        t.tenant.clone()
                    },
                    t.role.clone(),
                    shown(&t.name),
                    time(t.created_ms),
                    end(t.expires_ms),
                    t.made_by.clone(),
                ]
            });
            out.table_of_lines(
                &["ID", "TENANT", "ROLE", "NAME", "CREATED", "ENDS", "MADE BY"],
                rows.collect(),
            )
        }
        TokenCommand::Revoke { id } => {
            let gone = connect::access(node)
                .await?
                .revoke_token(v1::RevokeTokenRequest { id })
                .await?
                .into_inner();
            if out.json() {
                return out.document(&as_json(&gone));
            }
            out.line(&format!(
                "token {} is revoked: it is refused at this node from now on, and at all others within two seconds",
                gone.id
            ))
        }
        TokenCommand::Rotate { id, grace } => {
            let request = v1::RotateTokenRequest {
                id,
                grace_ms: grace.map_or(0, ms),
            };
            let made = connect::access(node).await?.rotate_token(request).await?;
            new(made.into_inner(), out)
        }
    }
}

/// The token alone on stdout, so that a script can take it.
fn new(made: v1::NewToken, out: Printer) -> Outcome {
    let token = made.token.unwrap_or_default();
    if out.json() {
        let mut told = as_json(&token);
        told["token"] = made.text.into();
        return out.document(&told);
    }
    let whose = match token.tenant.as_str() {
        "" => "of the operator".to_owned(),
        tenant => format!("of tenant {tenant}, role {}", token.role),
    };
    eprintln!("token {} {whose}: it is shown once", token.id);
    out.line(&made.text)
}

pub fn as_json(token: &v1::Token) -> Value {
    let at = |ms: u64| (ms > 0).then_some(ms);
    json!({
        "id": token.id, "tenant": (!token.tenant.is_empty()).then_some(&token.tenant), "role": token.role, "name": token.name,
        "created_ms": token.created_ms, "expires_ms": at(token.expires_ms), "made_by": token.made_by,
        "former_until_ms": at(token.former_until_ms),
    })
}
