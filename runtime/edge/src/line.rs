//! The line by which an edge enrols: shown once at the hub, typed once at the edge.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use crate::keys::Public;
use crate::limits::LINE_BYTES_MAX;

const FORM: &str = "skep-edge-1.";

/// What an edge needs to know of its hub before it has ever spoken with it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Line {
    /// `http://…` or `https://…`.
    pub hub: String,
    pub tenant: String,
    /// Of the edge.
    pub name: String,
    /// From now on the edge believes who proves this key, and nobody else.
    #[serde(with = "hex_key")]
    pub hub_key: Public,
    pub secret: String,
}

/// The secret is not for logs.
impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Line")
            .field("hub", &self.hub)
            .field("tenant", &self.tenant)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// Why a text is no such line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadLine {
    #[error("an enrolment line begins with `{FORM}`: `skep edge enroll NAME` at the hub prints one")]
    Form,
    #[error(
        "the enrolment line is cut short or mistyped: copy it whole, or make another with `skep edge enroll NAME` at the hub"
    )]
    Damaged,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let json = serde_json::to_vec(self).map_err(|_| fmt::Error)?;
        write!(f, "{FORM}{}", URL_SAFE_NO_PAD.encode(json))
    }
}

impl FromStr for Line {
    type Err = BadLine;

    fn from_str(text: &str) -> Result<Self, BadLine> {
        let text = text.trim();
        let body = text.strip_prefix(FORM).ok_or(BadLine::Form)?;
        if body.len() > LINE_BYTES_MAX {
            return Err(BadLine::Damaged);
        }
        let json = URL_SAFE_NO_PAD.decode(body).map_err(|_| BadLine::Damaged)?;
        serde_json::from_slice(&json).map_err(|_| BadLine::Damaged)
    }
}

/// 64 hexadecimal digits.
pub(crate) mod hex_key {
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serializer};
    use skep_model::id::Digest;

    pub(crate) fn serialize<S: Serializer>(key: &[u8; 32], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&Digest(*key).to_hex())
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<[u8; 32], D::Error> {
        let text = String::deserialize(from)?;
        text.parse::<Digest>().map(|digest| digest.0).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn line() -> Line {
        Line {
            hub: "https://hub.example:7600".into(),
            tenant: "default".into(),
            name: "mill-1".into(),
            hub_key: [7; 32],
            secret: "s3cret".into(),
        }
    }

    #[test]
    fn a_line_reads_back_and_its_secret_is_not_shown() {
        let text = line().to_string();
        assert!(text.starts_with("skep-edge-1.") && !text.contains(' '), "{text}");
        assert_eq!(format!("  {text}\n").parse(), Ok(line()));
        assert!(!format!("{:?}", line()).contains("s3cret"));
    }

    #[test]
    fn a_mistyped_line_says_so() {
        let text = line().to_string();
        assert_eq!("mill-1".parse::<Line>(), Err(BadLine::Form));
        assert_eq!(text[..text.len() - 5].parse::<Line>(), Err(BadLine::Damaged));
        assert_eq!(format!("{FORM}!").parse::<Line>(), Err(BadLine::Damaged));
        let long = format!("{FORM}{}", "A".repeat(LINE_BYTES_MAX + 1));
        assert_eq!(long.parse::<Line>(), Err(BadLine::Damaged));
    }

    proptest! {
        #[test]
        fn no_text_breaks_it(text in "\\PC{0,80}") {
            let _ = text.parse::<Line>();
            let _ = format!("{FORM}{text}").parse::<Line>();
        }
    }
}
