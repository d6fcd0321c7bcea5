//! `signer`, and how a push gets its signature.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use serde_json::json;
use skep_model::id::Digest;
use skep_model::name::ModuleName;

use super::args::{self, SignerCommand};
use super::failure::{Exit, Failure, Outcome};
use super::modules;
use super::output::Printer;
use crate::signatures::{BadSignature, Signature, SigningKey};

pub async fn run(args: args::Signer, out: Printer) -> Outcome {
    match args.what {
        SignerCommand::New { file } => {
            let (key, text) = SigningKey::make().map_err(|e| refused(&e))?;
            write(&file, &text)?;
            let public = key.public().to_string();
            if out.json() {
                return out.document(&json!({ "file": file, "public_key": public }));
            }
            out.line(&public)
        }
        SignerCommand::Show { file } => {
            let public = SigningKey::read(&file).map_err(|e| refused(&e))?.public().to_string();
            if out.json() {
                return out.document(&json!({ "public_key": public }));
            }
            out.line(&public)
        }
        SignerCommand::Sign { key, module, name } => {
            let name = match name {
                Some(name) => name,
                None => modules::name_of(&module)?,
            };
            let name: ModuleName = name.parse().map_err(|e| {
                Failure::new(Exit::Refused, format!("the module's name: {e}")).remedy("give another with --name")
            })?;
            let digest = Digest::of(&modules::read(&module).await?);
            let key = SigningKey::read(&key).map_err(|e| refused(&e))?;
            let signature = key.sign(&name, &digest).to_string();
            if out.json() {
                let (name, digest) = (name.as_str(), digest.to_string());
                return out.document(&json!({ "name": name, "digest": digest, "signature": signature }));
            }
            out.line(&signature)
        }
    }
}

/// What a push says of who signed it, as text. A signature that is given is looked at here too: the mistake is found before the upload.
pub fn signature(given: &args::SignedBy, name: &ModuleName, digest: &Digest) -> Outcome<Option<String>> {
    let signature = match (&given.sign_key, &given.signature) {
        (_, Some(text)) => {
            let signature: Signature = text.parse().map_err(|e| refused(&e))?;
            signature.verify(name, digest).map_err(|e| refused(&e))?;
            signature
        }
        (Some(file), None) => SigningKey::read(file).map_err(|e| refused(&e))?.sign(name, digest),
        (None, None) => return Ok(None),
    };
    Ok(Some(signature.to_string()))
}

fn refused(e: &BadSignature) -> Failure {
    Failure::new(Exit::Refused, e.to_string())
}

/// For its owner's eyes, and never over another.
fn write(file: &Path, text: &str) -> Outcome {
    let made = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(file)
        .and_then(|mut made| made.write_all(text.as_bytes()));
    made.map_err(|e| match e.kind() {
        std::io::ErrorKind::AlreadyExists => {
            let message = format!("{} is there already: nothing was written", file.display());
            Failure::new(Exit::Conflict, message).remedy("name another file")
        }
        _ => Failure::new(Exit::Failed, format!("cannot write {}: {e}", file.display())),
    })
}
