//! Requests over HTTP, to the hosts that the manifest lists.
//!
//! ```no_run
//! # use skep::{Message, Swarm};
//! #[skep::bee]
//! fn enrich(swarm: &mut Swarm, message: Message) -> skep::Result {
//!     let answer = skep::http::Request::post("https://api.example.com/orders")
//!         .header("content-type", "application/json")
//!         .body(message.payload())
//!         .send()?;
//!     if answer.status() != 200 {
//!         return Err(skep::Error::fail("upstream", format!("answered {}", answer.status())));
//!     }
//!     swarm.publish(answer.into_body());
//!     Ok(())
//! }
//! ```
//! ```yaml
//!     http: [api.example.com]
//! ```
//! A request is not part of what is committed with the message: an attempt that fails after it, or a batch that runs again, sends it again.
//! The node adds `idempotency-key: <message>-<number of the request>` to what is not GET, HEAD or OPTIONS, unless the Bee sets one: the same at
//! each attempt. A redirect is an answer like others.

use std::fmt;
use std::time::Duration;

/// A request. Made, then sent once.
#[derive(Debug, Clone)]
#[must_use]
pub struct Request {
    pub(crate) method: String,
    pub(crate) url: String,
    pub(crate) headers: Vec<(String, Vec<u8>)>,
    pub(crate) body: Vec<u8>,
    pub(crate) timeout: Option<Duration>,
}

impl Request {
    /// Of any method.
    pub fn new(method: impl Into<String>, url: impl Into<String>) -> Self {
        Self {
            method: method.into(),
            url: url.into(),
            headers: Vec::new(),
            body: Vec::new(),
            timeout: None,
        }
    }

    /// `GET`.
    pub fn get(url: impl Into<String>) -> Self {
        Self::new("GET", url)
    }

    /// `POST`.
    pub fn post(url: impl Into<String>) -> Self {
        Self::new("POST", url)
    }

    /// One header more. `host`, `connection` and their like are the node's.
    pub fn header(mut self, name: impl Into<String>, value: impl AsRef<[u8]>) -> Self {
        self.headers.push((name.into(), value.as_ref().to_vec()));
        self
    }

    /// What is sent: at most 4 MiB.
    pub fn body(mut self, body: impl AsRef<[u8]>) -> Self {
        self.body = body.as_ref().to_vec();
        self
    }

    /// How long to wait for a connection, for the answer to begin, and for each piece of it; 10 s and 30 s by default, which are the most. The
    /// stage's timeout ends all of it.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Sends it and waits for the whole answer.
    ///
    /// # Errors
    /// There is no answer. One with a status that says so is none.
    pub fn send(self) -> Result<Response, HttpError> {
        #[cfg(target_arch = "wasm32")]
        return wasm::send(self);
        #[cfg(not(target_arch = "wasm32"))]
        return Err(HttpError {
            code: "no-node".to_owned(),
            message: format!("{} {}: requests are sent by a node only", self.method, self.url),
        });
    }
}

/// An answer, whatever its status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    status: u16,
    headers: Vec<(String, Vec<u8>)>,
    body: Vec<u8>,
}

impl Response {
    /// 200, 404…
    #[must_use]
    pub fn status(&self) -> u16 {
        self.status
    }

    /// The first header of a name, in whatever case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<std::borrow::Cow<'_, str>> {
        let mut all = self.headers.iter();
        let found = all.find(|(known, _)| known.eq_ignore_ascii_case(name))?;
        Some(String::from_utf8_lossy(&found.1))
    }

    /// All headers, in their order.
    #[must_use]
    pub fn headers(&self) -> &[(String, Vec<u8>)] {
        &self.headers
    }

    /// What was answered: at most 16 MiB.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// What was answered, without a copy.
    #[must_use]
    pub fn into_body(self) -> Vec<u8> {
        self.body
    }
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpError {
    code: String,
    message: String,
}

impl HttpError {
    /// In the words of `wasi:http`: `http-request-denied`, `destination-ip-prohibited`, `connection-timeout`…
    #[must_use]
    pub fn code(&self) -> &str {
        &self.code
    }
}

impl fmt::Display for HttpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for HttpError {}

#[cfg(target_arch = "wasm32")]
mod wasm {
    use super::{HttpError, Request, Response};

    mod bindings {
        #![allow(clippy::all, clippy::pedantic, missing_docs, clippy::allow_attributes_without_reason)]
        wit_bindgen::generate!({
            path: "wit-http",
            world: "skep:outgoing/outgoing",
            generate_all,
        });
    }

    use bindings::wasi::http::outgoing_handler;
    use bindings::wasi::http::types::{
        ErrorCode, Fields, IncomingBody, Method, OutgoingBody, OutgoingRequest, RequestOptions, Scheme,
    };
    use bindings::wasi::io::streams::StreamError;

    /// Bytes asked of a stream at once, and written to one.
    const PIECE_BYTES: u64 = 64 << 10;
    const WRITTEN_BYTES: usize = 4 << 10;

    pub(super) fn send(request: Request) -> Result<Response, HttpError> {
        let shown = format!(
            "{} {}",
            request.method,
            request.url.split(['?', '#']).next().unwrap_or_default()
        );
        let error = |code: String| HttpError {
            message: format!("{shown}: {code}"),
            code,
        };
        let bad = |what: &str| error(what.to_owned());
        let (scheme, rest) = match request.url.split_once("://") {
            Some(("http", rest)) => (Scheme::Http, rest),
            Some(("https", rest)) => (Scheme::Https, rest),
            _ => return Err(bad("the URL begins neither with http:// nor with https://")),
        };
        let rest = rest.split('#').next().unwrap_or_default();
        let at = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(at);
        let path = match path {
            "" => "/".to_owned(),
            path if path.starts_with('?') => format!("/{path}"),
            path => path.to_owned(),
        };
        let headers = Fields::from_list(&request.headers);
        let headers = headers.map_err(|e| error(format!("a header is not to be sent: {e:?}")))?;
        if !request.body.is_empty() && !headers.has("content-length") {
            let length = request.body.len().to_string().into_bytes();
            headers
                .append("content-length", &length)
                .map_err(|e| error(format!("{e:?}")))?;
        }
        let asked = OutgoingRequest::new(headers);
        let method = match request.method.as_str() {
            "GET" => Method::Get,
            "HEAD" => Method::Head,
            "POST" => Method::Post,
            "PUT" => Method::Put,
            "DELETE" => Method::Delete,
            "OPTIONS" => Method::Options,
            "PATCH" => Method::Patch,
            other => Method::Other(other.to_owned()),
        };
        asked.set_method(&method).map_err(|()| bad("the method is none"))?;
        asked
            .set_scheme(Some(&scheme))
            .map_err(|()| bad("the scheme is none"))?;
        asked
            .set_authority(Some(authority))
            .map_err(|()| bad("the host is none"))?;
        asked
            .set_path_with_query(Some(&path))
            .map_err(|()| bad("the path is none"))?;
        let options = RequestOptions::new();
        if let Some(timeout) = request.timeout {
            let ns = Some(u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX));
            // What a node does not offer is left as it is.
            let _ = options.set_connect_timeout(ns);
            let _ = options.set_first_byte_timeout(ns);
            let _ = options.set_between_bytes_timeout(ns);
        }
        let told = |code: ErrorCode| error(name(&code));
        let body = asked.body().map_err(|()| bad("it has no body"))?;
        let answer = outgoing_handler::handle(asked, Some(options)).map_err(told)?;
        if !request.body.is_empty() {
            let stream = body.write().map_err(|()| bad("its body is not written"))?;
            for piece in request.body.chunks(WRITTEN_BYTES) {
                // Who refused the request takes no body; the answer says why.
                if stream.blocking_write_and_flush(piece).is_err() {
                    break;
                }
            }
        }
        let finished = OutgoingBody::finish(body, None);
        answer.subscribe().block();
        let answered = match answer.get() {
            Some(Ok(Ok(answered))) => answered,
            Some(Ok(Err(code))) => return Err(told(code)),
            _ => return Err(bad("there is no answer")),
        };
        // An answer may come before all was sent.
        let _ = finished;
        let headers = answered.headers().entries();
        let status = answered.status();
        let body = answered.consume().map_err(|()| bad("there is no body"))?;
        let stream = body.stream().map_err(|()| bad("there is no body"))?;
        let mut bytes = Vec::new();
        loop {
            match stream.blocking_read(PIECE_BYTES) {
                Ok(piece) => bytes.extend_from_slice(&piece),
                Err(StreamError::Closed) => break,
                Err(StreamError::LastOperationFailed(e)) => {
                    let code = bindings::wasi::http::types::http_error_code(&e);
                    return Err(code.map_or_else(|| error(e.to_debug_string()), told));
                }
            }
        }
        drop(stream);
        drop(IncomingBody::finish(body));
        Ok(Response {
            status,
            headers,
            body: bytes,
        })
    }

    /// As the interface has it.
    fn name(code: &ErrorCode) -> String {
        let text = format!("{code:?}");
        let text = text.strip_prefix("ErrorCode::").unwrap_or(&text);
        let name: String = text.chars().take_while(char::is_ascii_alphanumeric).collect();
        let mut out = String::new();
        for (at, letter) in name.chars().enumerate() {
            if letter.is_uppercase() && at > 0 {
                out.push('-');
            }
            out.push(letter.to_ascii_lowercase());
        }
        out
    }
}
