//! `secret`.

use std::io::{IsTerminal as _, Read as _};
use std::path::Path;

use serde_json::{Value, json};
use skep_model::limits::SECRET_BYTES_MAX;
use skep_proto::v1;

use super::args::{self, SecretCommand};
use super::connect;
use super::failure::{Exit, Failure, Outcome};
use super::output::{Printer, time};
use crate::wording::count;

pub async fn run(args: args::Secret, node: &str, out: Printer) -> Outcome {
    match args.what {
        SecretCommand::Set { name, file } => {
            let value = value(file.as_deref())?.into();
            let request = v1::SetSecretRequest { name, value };
            let set = connect::secrets(node).await?.set_secret(request).await?.into_inner();
            if out.json() {
                return out.document(&shown(&set));
            }
            let granted = match set.granted.as_slice() {
                [] => "; grant it to a Bee with `secrets: [...]` in its manifest".to_owned(),
                some => format!("; {} read it from their next batch on", some.join(", ")),
            };
            out.line(&format!("secret {} is set, version {}{granted}", set.name, set.version))
        }
        SecretCommand::List => {
            let list = connect::secrets(node)
                .await?
                .list_secrets(v1::ListSecretsRequest {})
                .await?;
            let all = list.into_inner().secrets;
            if out.json() {
                return out.document(&json!({ "secrets": all.iter().map(shown).collect::<Vec<_>>() }));
            }
            let rows = all.iter().map(|secret| {
                vec![
                    secret.name.clone(),
                    secret.version.to_string(),
                    time(secret.set_ms),
                    secret.granted.join(", "),
                    secret.trouble.clone(),
                ]
            });
            out.table_of_lines(&["SECRET", "VERSION", "SET", "GRANTED TO", "TROUBLE"], rows.collect())
        }
        SecretCommand::Delete { name, force } => {
            let request = v1::DeleteSecretRequest {
                name: name.clone(),
                force,
            };
            connect::secrets(node).await?.delete_secret(request).await?;
            out.line(&format!("secret {name} is gone"))
        }
        SecretCommand::Reseal => {
            let request = v1::ResealSecretsRequest {};
            let done = connect::secrets(node)
                .await?
                .reseal_secrets(request)
                .await?
                .into_inner();
            if out.json() {
                return out.document(&json!({ "resealed": done.resealed }));
            }
            let what = count(done.resealed, "secret");
            out.line(&format!(
                "{what} sealed anew; keys behind the first can be taken out of the files"
            ))
        }
    }
}

/// Never an argument: those stand in the shell's history and in the list of processes.
pub(super) fn value(file: Option<&Path>) -> Result<Vec<u8>, Failure> {
    let too_long = || {
        let what = format!("a secret has at most {SECRET_BYTES_MAX} bytes");
        Failure::new(Exit::Usage, what)
    };
    let most = SECRET_BYTES_MAX as u64 + 3;
    let mut value = Vec::new();
    match file {
        Some(path) => {
            let read = std::fs::File::open(path).and_then(|file| file.take(most).read_to_end(&mut value));
            read.map_err(|e| Failure::new(Exit::Usage, format!("cannot read {}: {e}", path.display())))?;
        }
        None => {
            if std::io::stdin().is_terminal() {
                eprintln!("the value, then Ctrl-D:");
            }
            std::io::stdin().lock().take(most).read_to_end(&mut value)?;
            if value.ends_with(b"\n") {
                value.pop();
                if value.ends_with(b"\r") {
                    value.pop();
                }
            }
        }
    }
    if value.len() > SECRET_BYTES_MAX {
        return Err(too_long());
    }
    Ok(value)
}

fn shown(secret: &v1::Secret) -> Value {
    json!({
        "name": secret.name, "version": secret.version, "set_ms": secret.set_ms, "granted": secret.granted,
        "trouble": secret.trouble,
    })
}
