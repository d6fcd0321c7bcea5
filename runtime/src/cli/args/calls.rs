//! What goes in, and what is said meanwhile.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::{duration, header, pointer};

#[derive(Debug, Args)]
#[command(after_help = "\
A response that is text is printed with a newline at its end; --raw prints its very bytes.

Examples:
  skep request hello-world '{\"name\": \"Bee\"}'
  skep request thumbnail --file photo.jpg --raw > small.jpg
  skep request order - --idempotency-key order-17 < order.json")]
pub struct Request {
    /// What the Swarm is called by: the `gateway` of its manifest
    pub subject: String,
    /// What to send; `-` reads stdin
    pub payload: Option<String>,
    /// Send a file's content; `-` reads stdin
    #[arg(short, long, conflicts_with = "payload", value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// The message's key, for stages with `key: message`
    #[arg(long)]
    pub key: Option<String>,
    /// A header of the message; may be repeated
    #[arg(long = "header", value_parser = header, value_name = "NAME=VALUE")]
    pub headers: Vec<(String, String)>,
    /// How long to wait: `500ms`, `30s`, `2m`
    #[arg(long, value_parser = duration, default_value = "30s")]
    pub timeout: Duration,
    /// A repeated call with the same key takes effect once and gets the same response
    #[arg(long, value_name = "KEY")]
    pub idempotency_key: Option<String>,
    /// Show the stages passed and their times
    #[arg(long)]
    pub trace: bool,
    /// Print the response's very bytes, without a newline at the end
    #[arg(long, conflicts_with = "trace")]
    pub raw: bool,
    /// Print parts of the response as the Bee makes them
    #[arg(long, conflicts_with_all = ["idempotency_key", "trace"])]
    pub stream: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Each line of a file or of stdin is a message, also an empty one. When the connection breaks, the messages that are not durable
yet are sent again, and take effect once.

Examples:
  skep submit hello-world '{\"name\": \"a\"}' '{\"name\": \"b\"}'
  skep submit orders --file orders.ndjson --key-json /customer --skip-empty
  tail -f events.log | skep submit events -")]
pub struct Submit {
    /// What the Swarm is called by: the `gateway` of its manifest
    pub subject: String,
    /// The messages; `-` reads stdin, a line a message
    #[arg(required_unless_present = "file")]
    pub payloads: Vec<String>,
    /// A file with a line a message, empty lines included; `-` reads stdin
    #[arg(short, long, conflicts_with = "payloads", value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// The key of every message
    #[arg(long, conflicts_with = "key_json")]
    pub key: Option<String>,
    /// Take each message's key from its JSON, by pointer
    #[arg(long, value_name = "/POINTER", value_parser = pointer)]
    pub key_json: Option<String>,
    /// A header of every message; may be repeated
    #[arg(long = "header", value_parser = header, value_name = "NAME=VALUE")]
    pub headers: Vec<(String, String)>,
    /// Send no message for an empty line
    #[arg(long)]
    pub skip_empty: bool,
    /// How long to try again, without a single message getting through, when the node cannot be reached
    #[arg(long, value_parser = duration, default_value = "60s", value_name = "TIME")]
    pub retry_for: Duration,
}

#[derive(Debug, Args)]
pub struct Logs {
    /// The Swarm's name
    pub swarm: String,
    /// Only this stage
    pub stage: Option<String>,
    /// Go on with new lines as they come
    #[arg(short, long)]
    pub follow: bool,
    /// The last so many lines; 0: all that are kept
    #[arg(short = 'n', long, default_value_t = 0)]
    pub tail: u32,
}
