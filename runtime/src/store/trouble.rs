//! Amazon's S3 and what speaks like it: how it is reached, and what its errors mean in words.
//!
//! What the library says may repeat requests and answers, credentials among them (RUSTSEC-2024-0358). Only codes and the innermost
//! cause are told, without any secret of the environment.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::path::Path;
use std::time::Duration;

use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, Checksum, S3ConditionalPut};
use object_store::{BackoffConfig, ClientConfigKey, RetryConfig};
use skep_model::limits::{STORE_CONNECT_MS, STORE_QUIET_MS, STORE_REQUEST_MS, STORE_RETRIES_MAX, STORE_RETRY_MS};

use crate::settings::{ArtifactSettings, without_password};

/// Why a store cannot be used, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {remedy}")]
pub struct Trouble {
    pub what: String,
    pub remedy: String,
}

/// Variables that are nobody's business.
const SECRETS: [&str; 3] = [
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
];
/// Any of them says where credentials come from.
const CREDENTIALS: [&str; 5] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_SKIP_SIGNATURE",
];
const NO_CREDENTIALS: &str =
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (outside of a machine or container with a role)";

/// The variables `AWS_*`, by which endpoint, region and credentials of S3 are told. Not shown.
#[derive(Clone, Default)]
pub struct Access(BTreeMap<String, String>);

impl Access {
    /// Those of this process.
    #[must_use]
    pub fn of_environment() -> Self {
        std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect()
    }

    fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    fn no_credentials(&self) -> bool {
        CREDENTIALS.iter().all(|name| !self.has(name))
    }
}

impl FromIterator<(String, String)> for Access {
    fn from_iter<T: IntoIterator<Item = (String, String)>>(variables: T) -> Self {
        let ours = variables.into_iter().filter(|(name, _)| name.starts_with("AWS_"));
        Self(ours.collect())
    }
}

/// The client of a bucket.
pub(super) fn s3(bucket: &str, access: &Access) -> Result<AmazonS3, Trouble> {
    // The library takes the process's choice; whoever made one before is right.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = AmazonS3Builder::new();
    for (name, value) in &access.0 {
        if let Ok(key) = name.to_ascii_lowercase().parse() {
            builder = builder.with_config(key, value);
        }
    }
    builder = builder
        .with_bucket_name(bucket)
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        .with_retry(RetryConfig {
            backoff: BackoffConfig::default(),
            max_retries: STORE_RETRIES_MAX,
            retry_timeout: Duration::from_millis(STORE_RETRY_MS),
        });
    if !access.has("AWS_CHECKSUM_ALGORITHM") {
        builder = builder.with_checksum_algorithm(Checksum::SHA256);
    }
    for (variable, key, ms) in [
        ("AWS_CONNECT_TIMEOUT", ClientConfigKey::ConnectTimeout, STORE_CONNECT_MS),
        ("AWS_READ_TIMEOUT", ClientConfigKey::ReadTimeout, STORE_QUIET_MS),
        ("AWS_TIMEOUT", ClientConfigKey::Timeout, STORE_REQUEST_MS),
    ] {
        if !access.has(variable) {
            builder = builder.with_config(AmazonS3ConfigKey::Client(key), format!("{ms} ms"));
        }
    }
    builder.build().map_err(|e| Trouble {
        what: format!("the variables AWS_* do not fit: {}", cause(&e, access)),
        remedy: "look at AWS_ENDPOINT_URL, AWS_REGION and the credentials".to_owned(),
    })
}

/// Whether it is the bucket that is not there.
pub(super) fn no_bucket(e: &object_store::Error) -> bool {
    code(&chain(e)) == Some("NoSuchBucket")
}

pub(super) fn of_folder(dir: &Path, e: &std::io::Error) -> Trouble {
    let remedy = match e.kind() {
        std::io::ErrorKind::PermissionDenied => "give this user the right to write there, or look at --artifacts",
        std::io::ErrorKind::StorageFull => "make room there",
        _ => "look at --artifacts",
    };
    Trouble {
        what: format!("cannot use the folder {}: {e}", dir.display()),
        remedy: remedy.to_owned(),
    }
}

pub(super) fn silent(settings: &ArtifactSettings, access: &Access, patience: Duration) -> Trouble {
    let remedy = match settings {
        ArtifactSettings::S3 { .. } if access.no_credentials() => NO_CREDENTIALS,
        ArtifactSettings::S3 { .. } => "look at AWS_ENDPOINT_URL, AWS_REGION and the network",
        _ => "look at the disk or the network that it lies on",
    };
    Trouble {
        what: format!(
            "{} does not answer within {} s",
            reached(settings, access),
            patience.as_secs()
        ),
        remedy: remedy.to_owned(),
    }
}

/// The place and how one gets there.
fn reached(settings: &ArtifactSettings, access: &Access) -> String {
    let endpoint = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"]
        .iter()
        .find_map(|name| access.0.get(*name));
    match (settings, endpoint) {
        (ArtifactSettings::S3 { .. }, Some(endpoint)) => format!("{settings} at {}", without_password(endpoint)),
        _ => settings.to_string(),
    }
}

pub(super) fn of(settings: &ArtifactSettings, access: &Access, doing: &str, e: &object_store::Error) -> Trouble {
    let text = chain(e);
    let has = |words: &[&str]| words.iter().any(|word| text.contains(word));
    let (why, remedy) = match code(&text) {
        Some("NoSuchBucket") => (
            "there is no such bucket".to_owned(),
            "make it, or look at --artifacts, AWS_REGION and AWS_ENDPOINT_URL",
        ),
        Some(
            code @ ("InvalidAccessKeyId"
            | "SignatureDoesNotMatch"
            | "InvalidToken"
            | "ExpiredToken"
            | "InvalidSecurity"),
        ) => (
            format!("the credentials are not accepted ({code})"),
            "look at AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN",
        ),
        Some("RequestTimeTooSkewed") => (
            "this machine's clock is not the server's".to_owned(),
            "set the clock, by NTP for instance",
        ),
        Some(code @ ("PermanentRedirect" | "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException")) => (
            format!("the bucket is in another region ({code})"),
            "set AWS_REGION to the bucket's",
        ),
        _ if matches!(e, object_store::Error::PermissionDenied { .. }) || has(&["AccessDenied"]) => (
            "the credentials may not do that".to_owned(),
            "allow s3:GetObject, s3:PutObject, s3:DeleteObject, s3:ListBucket and s3:AbortMultipartUpload on the bucket",
        ),
        _ if matches!(e, object_store::Error::Unauthenticated { .. }) => (
            "the credentials are not accepted".to_owned(),
            "look at AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        ),
        _ if has(&["without LOCATION"]) => (
            "the bucket is in another region".to_owned(),
            "set AWS_REGION to the bucket's",
        ),
        _ if has(&["169.254.169.254", "metadata endpoint"]) || (access.no_credentials() && has(&["redential"])) => {
            ("there are no credentials".to_owned(), NO_CREDENTIALS)
        }
        _ if has(&["scheme is not allowed"]) => (
            "plain HTTP is not allowed".to_owned(),
            "use https://, or set AWS_ALLOW_HTTP=true for a store on your own machine or network",
        ),
        _ if has(&["refused"]) => (
            "nobody listens there".to_owned(),
            "look whether the store runs and AWS_ENDPOINT_URL is right",
        ),
        _ if has(&["dns error", "lookup address"]) => (
            "there is no such host".to_owned(),
            "look at AWS_ENDPOINT_URL, or at AWS_REGION",
        ),
        _ if has(&["certificate", "tls", "TLS", "corrupt message"]) => (
            format!("TLS does not come about ({})", cause(e, access)),
            "https:// speaks TLS, http:// does not, and this machine must trust the certificate",
        ),
        _ if has(&["timed out", "timeout", "deadline"]) => (
            "no answer in time".to_owned(),
            "look at AWS_ENDPOINT_URL and the network, then try again",
        ),
        Some(code) => (
            format!("it answers {code}"),
            "look at the store's own log, then try again",
        ),
        None => (cause(e, access), "look at the store, then try again"),
    };
    let remedy = match settings {
        ArtifactSettings::S3 { .. } => remedy,
        _ if has(&["Permission denied"]) => "give this user the right to write there",
        _ if has(&["No space left", "os error 28"]) => "make room there",
        _ => "look at the disk or the network that it lies on",
    };
    Trouble {
        what: format!("cannot {doing} in {}: {why}", reached(settings, access)),
        remedy: remedy.to_owned(),
    }
}

/// All that is said of it, for looking and not for showing.
fn chain(e: &object_store::Error) -> String {
    let mut text = e.to_string();
    let mut source = e.source();
    while let Some(inner) = source {
        text.push('\n');
        text.push_str(&inner.to_string());
        source = inner.source();
    }
    text
}

/// The innermost cause, on one short line, without secrets.
fn cause(e: &object_store::Error, access: &Access) -> String {
    const SHOWN_MAX: usize = 200;
    let mut last = e.to_string();
    let mut source = e.source();
    while let Some(inner) = source {
        last = inner.to_string();
        source = inner.source();
    }
    for secret in SECRETS.iter().filter_map(|name| access.0.get(*name)) {
        if !secret.is_empty() {
            last = last.replace(secret.as_str(), "***");
        }
    }
    last.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(SHOWN_MAX)
        .collect()
}

/// What S3 calls its error.
fn code(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once("<Code>")?;
    let (code, _) = rest.split_once("</Code>")?;
    let plain = (1..=64).contains(&code.len()) && code.bytes().all(|b| b.is_ascii_alphanumeric());
    plain.then_some(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(e: object_store::Error) -> String {
        let settings = ArtifactSettings::S3 {
            bucket: "bees".to_owned(),
            prefix: "p".to_owned(),
        };
        let secret = ("AWS_SECRET_ACCESS_KEY".to_owned(), "hush".to_owned());
        of(&settings, &Access::from_iter([secret]), "read the module", &e).to_string()
    }

    fn generic(text: &str) -> object_store::Error {
        object_store::Error::Generic {
            store: "S3",
            source: text.to_owned().into(),
        }
    }

    #[test]
    fn errors_are_told_by_what_to_do() {
        for (text, says) in [
            ("404: <Error><Code>NoSuchBucket</Code>", "there is no such bucket"),
            ("403: <Code>SignatureDoesNotMatch</Code>", "AWS_SECRET_ACCESS_KEY"),
            ("403: <Code>AccessDenied</Code>", "s3:PutObject"),
            ("301: <Code>PermanentRedirect</Code>", "AWS_REGION"),
            ("Received redirect without LOCATION", "AWS_REGION"),
            ("URL scheme is not allowed", "AWS_ALLOW_HTTP"),
            ("tcp connect error: Connection refused (os error 111)", "nobody listens"),
            ("dns error: failed to lookup address", "no such host"),
            ("invalid peer certificate: UnknownIssuer", "trust the certificate"),
            ("operation timed out", "no answer in time"),
            ("500: <Code>InternalError</Code>", "it answers InternalError"),
            ("something\nelse with hush", "something else with ***"),
        ] {
            let told = told(generic(text));
            assert!(told.contains(says) && told.contains("s3://bees/p"), "{text}: {told}");
        }
        // What a server says is not repeated as it is.
        let told = told(generic(&format!("<Code>{}\u{1b}[2J</Code>", "x".repeat(500))));
        assert!(told.len() < 500 && !told.contains('\u{1b}'), "{told}");
    }
}
