//! A connection to one server, and why there is none, in words.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client};

use super::options::RedisOptions;
use crate::Error;

/// The library's error in words, without the password.
pub(super) fn reach(options: &RedisOptions, error: &redis::RedisError) -> String {
    let at = options.shown();
    let text = options.scrub(&error.to_string());
    let hint = match error.code() {
        Some("NOAUTH") => "it wants a password: put it into the URL (redis://:PASSWORD@host)",
        Some("WRONGPASS") => "user name or password is wrong",
        Some("NOPERM") => "this user may not run what skep needs (ACL: allcommands on keys sk:*, channels sk:*)",
        Some("LOADING") => "it is loading its data: wait until it is done",
        _ if error.kind() == redis::ErrorKind::AuthenticationFailed => "user name or password is wrong or missing",
        _ if error.is_timeout() => "no answer: is it a Redis, is the port right, does it want TLS (rediss://)?",
        _ if text.contains("refused") => "nobody listens there: is Redis running, is the port right?",
        _ if text.contains("certificate")
            || text.contains("tls")
            || text.contains("TLS")
            || text.contains("corrupt message") =>
        {
            "TLS does not come about: rediss:// speaks TLS, redis:// does not, and the certificate must be trusted by this machine"
        }
        _ if error.is_connection_dropped() => {
            "it closed the connection: does it want TLS (rediss://), or refuse connections from here (protected-mode)?"
        }
        _ => "check the URL (redis://[user:password@]host:port/[db])",
    };
    format!("Redis at {at} cannot be used: {hint} ({text})")
}

/// The library's client of one server: an address, nothing is sent yet.
pub(super) fn client(options: &RedisOptions, url: &str) -> Result<Client, Error> {
    if url.starts_with("rediss:") {
        // The library takes the process's choice; whoever made one before is right.
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
    Client::open(url).map_err(|e| Error::Unavailable(reach(options, &e)))
}

/// A connection to one server.
pub(super) async fn connect(
    options: &RedisOptions,
    url: &str,
    response: Duration,
) -> Result<MultiplexedConnection, Error> {
    // The library's own default, half a second, is shorter than a busy server's answer.
    let config = AsyncConnectionConfig::new()
        .set_response_timeout(Some(response))
        .set_connection_timeout(Some(options.connect_timeout));
    let found = client(options, url)?
        .get_multiplexed_async_connection_with_config(&config)
        .await;
    found.map_err(|e| Error::Unavailable(reach(options, &e)))
}
