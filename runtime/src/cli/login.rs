//! `login`, `logout`, `whoami`: which node is meant where none is named, and what is shown to it.
//!
//! What `login` stored is for its URL alone: no other node is ever shown the token. Variables go before the file.

use std::fs::OpenOptions;
use std::io::{ErrorKind, IsTerminal as _, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::json;
use skep_client::Login;
use skep_model::access::Secret;
use skep_model::limits::{CREDENTIAL_FILE_BYTES_MAX, OIDC_TOKEN_BYTES_MAX};
use skep_proto::v1;

use super::args::{self, NODE_DEFAULT};
use super::connect;
use super::failure::{Exit, Failure, Outcome};
use super::output::{Printer, shown, time};

const FORMAT: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Stored {
    format: u32,
    url: String,
    token: String,
    /// PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ca: Option<String>,
}

fn file() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let dir = set("XDG_CONFIG_HOME").or_else(|| Some(set("HOME")?.join(".config")))?;
    Some(dir.join("skep").join("login.json"))
}

/// As it is compared: with a scheme, without a slash at the end.
fn plain(url: &str) -> String {
    let url = url.trim_end_matches('/');
    match url.contains("://") {
        true => url.to_owned(),
        false => format!("http://{url}"),
    }
}

fn stored() -> Outcome<Option<Stored>> {
    let Some(path) = file() else { return Ok(None) };
    let bad = |why: String| {
        Failure::new(Exit::Usage, format!("what `skep login` stored cannot be used: {why}"))
            .remedy("log in again with `skep login URL`, or remove it with `skep logout`")
    };
    let file = match std::fs::File::open(&path) {
        Ok(file) => file,
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
        Err(e) => return Err(bad(format!("{}: {e}", path.display()))),
    };
    let mode = file.metadata()?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(bad(format!("others may read {}: it holds a token", path.display())));
    }
    let mut text = String::new();
    file.take(CREDENTIAL_FILE_BYTES_MAX).read_to_string(&mut text)?;
    // The library would show what it met, which may be the token.
    let stored: Stored = serde_json::from_str(&text).map_err(|_| bad(format!("{} is damaged", path.display())))?;
    if stored.format != FORMAT {
        return Err(bad(format!("{} was written by another skep", path.display())));
    }
    Ok(Some(stored))
}

/// The node that is meant: the named one, that of the last login, or one on this machine.
pub fn node(named: Option<&str>) -> String {
    match named {
        Some(named) => named.to_owned(),
        // What is wrong with the file is said where its token is needed.
        None => stored()
            .ok()
            .flatten()
            .map_or_else(|| NODE_DEFAULT.to_owned(), |s| s.url),
    }
}

/// Set, and not to nothing.
fn set(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|v| !v.trim().is_empty())
}

/// What goes with every login: the client's certificate, and whether a token may go in the clear. The latter is no variable of `serve`'s: who
/// lets a client show its token has not said that a node may listen without a door.
fn surroundings() -> Outcome<Login> {
    let login = match (set("SKEP_CLIENT_CERT"), set("SKEP_CLIENT_KEY")) {
        (Some(cert), Some(key)) => Login::default().identity(read(Path::new(&cert))?, read(Path::new(&key))?),
        (None, None) => Login::default(),
        _ => {
            return Err(Failure::new(Exit::Usage, "a client's certificate is given by halves")
                .remedy("set both SKEP_CLIENT_CERT and SKEP_CLIENT_KEY"));
        }
    };
    Ok(match set("SKEP_TOKEN_IN_THE_CLEAR").as_deref() {
        Some("1" | "true") => login.in_the_clear(),
        _ => login,
    })
}

/// What a node is shown: by `SKEP_TOKEN` and `SKEP_CA`, or what was stored for this very URL.
pub fn login(node: &str) -> Outcome<Login> {
    let kept = match set("SKEP_TOKEN") {
        // With a token at hand the file matters for nothing but whom to trust.
        Some(_) => stored().ok().flatten(),
        None => stored()?,
    };
    let kept = kept.filter(|s| plain(&s.url) == plain(node));
    let token = set("SKEP_TOKEN").or_else(|| kept.as_ref().map(|s| s.token.clone()));
    let ca = match set("SKEP_CA") {
        Some(path) => Some(read(Path::new(&path))?),
        None => kept.and_then(|s| s.ca),
    };
    let mut login = surroundings()?;
    if let Some(token) = token {
        if !may_be_token(token.trim()) {
            return Err(not_a_token());
        }
        login = login.token(&token).map_err(|_| not_a_token())?;
    }
    if let Some(ca) = ca {
        login = login.ca(ca);
    }
    Ok(login)
}

/// A token of the platform's own, or what may be one of an OpenID provider: three parts in base64url, of which the last may not be empty.
fn may_be_token(text: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty()
            && part
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    let jwt = || text.len() <= OIDC_TOKEN_BYTES_MAX && text.split('.').count() == 3 && text.split('.').all(part);
    Secret::parse(text).is_some() || jwt()
}

fn not_a_token() -> Failure {
    Failure::new(Exit::Usage, "this is no token: it is not whole, or was mistyped").remedy(
        "a token begins with skep_ and has 91 characters, one of an OpenID provider has three parts with dots between them: copy all of it",
    )
}

fn read(path: &Path) -> Outcome<String> {
    let named = |e: std::io::Error| Failure::new(Exit::NotFound, format!("cannot read {}: {e}", path.display()));
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(named)?;
    file.take(CREDENTIAL_FILE_BYTES_MAX)
        .read_to_string(&mut text)
        .map_err(named)?;
    Ok(text)
}

pub async fn run(args: args::Login, out: Printer) -> Outcome {
    let token = match args.token.as_deref() {
        Some(token) if token != "-" => {
            eprintln!(
                "note: other users of this machine see what is typed; leave --token out and it is read from stdin"
            );
            token.to_owned()
        }
        _ => {
            if std::io::stdin().is_terminal() {
                eprint!("token: ");
            }
            let mut line = String::new();
            std::io::stdin().read_line(&mut line)?;
            line
        }
    };
    let token = token.trim().to_owned();
    if !may_be_token(&token) {
        return Err(not_a_token());
    }
    let ca = args.ca.clone().or_else(|| set("SKEP_CA").map(Into::into));
    let ca = ca.as_deref().map(read).transpose()?;
    let url = plain(&args.url);
    let mut login = surroundings()?.token(&token).map_err(|_| not_a_token())?;
    if let Some(ca) = &ca {
        login = login.ca(ca.clone());
    }
    // Not stored before the node knows it.
    let who = connect::access_with(&url, login)
        .await?
        .who_am_i(v1::WhoAmIRequest {})
        .await?;
    let stored = Stored {
        format: FORMAT,
        url: url.clone(),
        token,
        ca,
    };
    keep(&stored)?;
    told(&url, &who.into_inner(), out)
}

/// Whole or not at all, and nobody else's to read.
fn keep(stored: &Stored) -> Outcome {
    let path = file().ok_or_else(|| {
        Failure::new(Exit::Usage, "there is no place for the login").remedy("set HOME, or use SKEP_TOKEN and SKEP_NODE")
    })?;
    let named = |e: std::io::Error| Failure::new(Exit::Failed, format!("cannot write {}: {e}", path.display()));
    let dir = path.parent().unwrap_or(Path::new("."));
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(named)?;
    let next = path.with_extension(format!("{}.tmp", std::process::id()));
    let text = serde_json::to_string_pretty(stored).map_err(|e| Failure::new(Exit::Internal, e.to_string()))?;
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&next)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .and_then(|()| std::fs::rename(&next, &path));
    written.map_err(|e| {
        let _ = std::fs::remove_file(&next);
        named(e)
    })
}

pub fn logout(out: Printer) -> Outcome {
    let gone = match file() {
        None => false,
        Some(path) => match std::fs::remove_file(&path) {
            Ok(()) => true,
            Err(e) if e.kind() == ErrorKind::NotFound => false,
            Err(e) => {
                return Err(Failure::new(
                    Exit::Failed,
                    format!("cannot remove {}: {e}", path.display()),
                ));
            }
        },
    };
    if out.json() {
        return out.document(&json!({ "removed": gone }));
    }
    out.line(match gone {
        true => "logged out here; the token itself is good until it is revoked",
        false => "nobody was logged in",
    })
}

pub async fn whoami(node: &str, out: Printer) -> Outcome {
    let who = connect::access(node).await?.who_am_i(v1::WhoAmIRequest {}).await?;
    told(node, &who.into_inner(), out)
}

fn told(url: &str, who: &v1::WhoAmIReply, out: Printer) -> Outcome {
    let token = who.token.clone().unwrap_or_default();
    if out.json() {
        let identity = who.identity.as_ref().map(
            |identity| json!({ "subject": identity.subject, "name": identity.name, "expires_ms": identity.expires_ms }),
        );
        return out.document(&json!({
            "url": url, "open": who.open, "tenant": who.tenant, "role": who.role,
            "token": (!token.id.is_empty()).then(|| super::tokens::as_json(&token)), "identity": identity,
        }));
    }
    if who.open {
        return out.line(&format!(
            "{url}: no token was ever made, so everybody who reaches it may do everything; `skep token bootstrap` makes the first"
        ));
    }
    let (by, name, expires_ms) = match &who.identity {
        Some(identity) => (
            format!("OpenID subject {}", shown(&identity.subject)),
            &identity.name,
            identity.expires_ms,
        ),
        None => (format!("token {}", token.id), &token.name, token.expires_ms),
    };
    let until = match expires_ms {
        0 => String::new(),
        ms => format!(", until {}", time(ms)),
    };
    let name = match name.as_str() {
        "" => String::new(),
        name => format!(" ({})", shown(name)),
    };
    let whose = match who.role.as_str() {
        "operator" => "operator of the platform".to_owned(),
        role => format!("tenant {}, role {role}", who.tenant),
    };
    out.line(&format!("{url}: {whose}, by {by}{name}{until}"))
}
