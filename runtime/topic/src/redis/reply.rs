//! What scripts answer, taken apart.

use bytes::Bytes;
use redis::Value;

use crate::Error;

fn odd(value: &Value) -> Error {
    // Never the value itself: it may be somebody's payload.
    let kind = match value {
        Value::Nil => "nothing",
        Value::Int(_) => "a number",
        Value::BulkString(_) | Value::SimpleString(_) => "a string",
        Value::Array(_) => "a list",
        _ => "something else",
    };
    Error::Corrupt(format!("Redis answered {kind} where a script answers otherwise"))
}

pub(super) fn list(value: Value) -> Result<Vec<Value>, Error> {
    match value {
        Value::Array(items) => Ok(items),
        other => Err(odd(&other)),
    }
}

pub(super) fn bytes(value: Value) -> Result<Bytes, Error> {
    match value {
        Value::BulkString(bytes) => Ok(bytes.into()),
        Value::SimpleString(text) => Ok(text.into()),
        other => Err(odd(&other)),
    }
}

pub(super) fn text(value: Value) -> Result<String, Error> {
    match value {
        Value::SimpleString(text) => Ok(text),
        Value::VerbatimString { text, .. } => Ok(text),
        Value::Okay => Ok("OK".to_owned()),
        Value::BulkString(bytes) => {
            String::from_utf8(bytes).map_err(|_| Error::Corrupt("Redis answered text that is none".to_owned()))
        }
        other => Err(odd(&other)),
    }
}

pub(super) fn some_text(value: Value) -> Option<String> {
    text(value).ok()
}

pub(super) fn number(value: Value) -> Result<u64, Error> {
    match value {
        Value::Int(n) => u64::try_from(n).map_err(|_| Error::Corrupt("Redis answered a negative count".to_owned())),
        other => {
            let text = text(other)?;
            text.parse()
                .map_err(|_| Error::Corrupt(format!("Redis answered `{text}` for a number")))
        }
    }
}

pub(super) fn id(value: Value) -> Result<[u8; 16], Error> {
    let bytes = bytes(value)?;
    bytes[..]
        .try_into()
        .map_err(|_| Error::Corrupt("an id has not 16 bytes".to_owned()))
}

/// A script's answer: its word and what comes with it.
pub(super) struct Said {
    pub word: String,
    rest: std::vec::IntoIter<Value>,
}

impl Said {
    pub fn of(value: Value) -> Result<Self, Error> {
        let mut rest = list(value)?.into_iter();
        let word = text(rest.next().ok_or_else(|| odd(&Value::Nil))?)?;
        Ok(Self { word, rest })
    }

    pub fn next(&mut self) -> Result<Value, Error> {
        self.rest.next().ok_or_else(|| odd(&Value::Nil))
    }

    pub fn number(&mut self) -> Result<u64, Error> {
        number(self.next()?)
    }

    pub fn text(&mut self) -> Result<String, Error> {
        text(self.next()?)
    }

    pub fn list(&mut self) -> Result<Vec<Value>, Error> {
        list(self.next()?)
    }

    /// What every script may answer.
    pub fn refusal(&mut self) -> Error {
        match self.word.as_str() {
            "GONE" => Error::Gone,
            "FENCED" => Error::Fenced,
            "STALE" => Error::Stale,
            "HELD_STILL" => Error::Unavailable("a backup reads the Swarm, which stays as it is meanwhile".to_owned()),
            "ASIDE" => Error::Unavailable("the Swarm is being restored".to_owned()),
            "GONE_INPUT" => Error::InputGone,
            "DAMAGED" => {
                let what = self.text().unwrap_or_default();
                Error::Corrupt(format!(
                    "a part of the inbox is missing at {what}: a key was deleted or lost; restore the store from a copy"
                ))
            }
            other => Error::Corrupt(format!("a script answered `{other}`")),
        }
    }
}
