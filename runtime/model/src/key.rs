//! The key of a message: taken from it at the door and from what stages publish, by a stage's `key:`.

use std::fmt;

use bytes::Bytes;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::id::Uid;
use crate::limits::KEY_BYTES_MAX;
use crate::swarm::KeySource;

/// Why a message has no key. The caller adds the stage's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("the message has no key: set one, for this stage has `key: message`")]
    NoMessageKey,
    #[error("the message has no header `{0}`, from which this stage takes its key")]
    NoHeader(String),
    #[error("the payload is not JSON ({cause}), and this stage takes its key from `json:{pointer}`")]
    NotJson { pointer: String, cause: String },
    #[error("the payload has nothing at `{0}`, from which this stage takes its key")]
    NothingThere(String),
    #[error("the payload has {found} at `{pointer}`: a key is a string, a number or a boolean")]
    NotScalar { pointer: String, found: &'static str },
    #[error("the key is empty")]
    Empty,
    #[error("the key has {0} bytes, at most {KEY_BYTES_MAX} are allowed")]
    TooLong(usize),
}

/// Takes a message's key. `origin` is [`crate::message::Message::origin`], `key` what the publisher set. Numbers and booleans count as
/// their JSON text.
///
/// The payload is walked without building a tree: what is off the pointer's path is only checked.
///
/// # Errors
/// [`KeyError`], which is the publisher's to mend.
pub fn extract(
    source: &KeySource,
    origin: Uid,
    key: Option<&str>,
    headers: &[(String, String)],
    payload: &Bytes,
) -> Result<String, KeyError> {
    let found = match source {
        KeySource::Origin => return Ok(origin.to_string()),
        KeySource::All => return Ok("all".to_owned()),
        KeySource::Message => key.ok_or(KeyError::NoMessageKey)?.to_owned(),
        KeySource::Header(name) => headers
            .iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.clone())
            .ok_or_else(|| KeyError::NoHeader(name.clone()))?,
        KeySource::Json(pointer) => at_pointer(pointer, payload)?,
    };
    match found.len() {
        0 => Err(KeyError::Empty),
        n if n > KEY_BYTES_MAX => Err(KeyError::TooLong(n)),
        _ => Ok(found),
    }
}

fn at_pointer(pointer: &str, payload: &[u8]) -> Result<String, KeyError> {
    let not_json = |cause: &dyn fmt::Display| KeyError::NotJson {
        pointer: pointer.to_owned(),
        cause: cause.to_string(),
    };
    // RFC 6901: `~1` is `/`, `~0` is `~`, in this order.
    let path: Vec<String> = pointer
        .split('/')
        .skip(1)
        .map(|t| t.replace("~1", "/").replace("~0", "~"))
        .collect();
    let text = std::str::from_utf8(payload).map_err(|e| not_json(&e))?;
    let mut json = serde_json::Deserializer::from_str(text);
    let found = Walk { path: &path }
        .deserialize(&mut json)
        .and_then(|found| json.end().map(|()| found))
        .map_err(|e| not_json(&e))?;
    match found {
        Found::Scalar(key) => Ok(key),
        Found::Nothing => Err(KeyError::NothingThere(pointer.to_owned())),
        Found::Other(found) => Err(KeyError::NotScalar {
            pointer: pointer.to_owned(),
            found,
        }),
    }
}

enum Found {
    Scalar(String),
    Nothing,
    Other(&'static str),
}

/// Goes down one step of the path a level of the document.
struct Walk<'a> {
    path: &'a [String],
}

impl Walk<'_> {
    fn scalar(&self, text: impl ToString) -> Found {
        if self.path.is_empty() {
            Found::Scalar(text.to_string())
        } else {
            Found::Nothing
        }
    }
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = Found;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Found, D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = Found;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_str<E>(self, v: &str) -> Result<Found, E> {
        Ok(self.scalar(v))
    }

    fn visit_bool<E>(self, v: bool) -> Result<Found, E> {
        Ok(self.scalar(v))
    }

    fn visit_u64<E>(self, v: u64) -> Result<Found, E> {
        Ok(self.scalar(v))
    }

    fn visit_i64<E>(self, v: i64) -> Result<Found, E> {
        Ok(self.scalar(v))
    }

    fn visit_f64<E>(self, v: f64) -> Result<Found, E> {
        // As JSON writes it: `1.0`, not `1`.
        Ok(self.scalar(serde_json::Number::from_f64(v).map_or_else(|| v.to_string(), |n| n.to_string())))
    }

    fn visit_unit<E>(self) -> Result<Found, E> {
        Ok(if self.path.is_empty() {
            Found::Other("null")
        } else {
            Found::Nothing
        })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Found, A::Error> {
        let Some((step, rest)) = self.path.split_first() else {
            while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            return Ok(Found::Other("an object"));
        };
        let mut found = Found::Nothing;
        while let Some(hit) = map.next_key_seed(Is(step))? {
            if hit {
                // Of a name given twice the last one counts, as in most parsers.
                found = map.next_value_seed(Walk { path: rest })?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Found, A::Error> {
        let Some((step, rest)) = self.path.split_first() else {
            while seq.next_element::<IgnoredAny>()?.is_some() {}
            return Ok(Found::Other("an array"));
        };
        // RFC 6901 allows no leading zero and no sign.
        let plain = step == "0" || (!step.starts_with('0') && step.bytes().all(|b| b.is_ascii_digit()));
        let index = plain.then(|| step.parse::<usize>().ok()).flatten();
        let mut found = Found::Nothing;
        let mut at = 0;
        loop {
            if index == Some(at) {
                match seq.next_element_seed(Walk { path: rest })? {
                    Some(f) => found = f,
                    None => return Ok(found),
                }
            } else if seq.next_element::<IgnoredAny>()?.is_none() {
                return Ok(found);
            }
            at += 1;
        }
    }
}

/// Compares an object's key without keeping it.
struct Is<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for Is<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<bool, D::Error> {
        d.deserialize_str(self)
    }
}

impl Visitor<'_> for Is<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object's key")
    }

    fn visit_str<E>(self, v: &str) -> Result<bool, E> {
        Ok(v == self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn json(pointer: &str, payload: &str) -> Result<String, KeyError> {
        extract(
            &KeySource::Json(pointer.into()),
            Uid::default(),
            None,
            &[],
            &Bytes::copy_from_slice(payload.as_bytes()),
        )
    }

    #[test]
    fn message_and_header() {
        let none = Bytes::new();
        assert_eq!(
            extract(&KeySource::Message, Uid::default(), Some("a"), &[], &none).unwrap(),
            "a"
        );
        assert_eq!(
            extract(&KeySource::Message, Uid::default(), None, &[], &none),
            Err(KeyError::NoMessageKey)
        );
        assert_eq!(
            extract(&KeySource::Message, Uid::default(), Some(""), &[], &none),
            Err(KeyError::Empty)
        );
        let headers = [("User".to_owned(), "u1".to_owned())];
        let source = KeySource::Header("user".into());
        assert_eq!(extract(&source, Uid::default(), None, &headers, &none).unwrap(), "u1");
        assert_eq!(
            extract(&source, Uid::default(), None, &[], &none),
            Err(KeyError::NoHeader("user".into()))
        );
        let long = "x".repeat(KEY_BYTES_MAX + 1);
        assert_eq!(
            extract(&KeySource::Message, Uid::default(), Some(&long), &[], &none),
            Err(KeyError::TooLong(KEY_BYTES_MAX + 1))
        );
    }

    #[test]
    fn json_pointers_as_rfc_6901_has_them() {
        let doc = r#"{"a":{"b":["x",7,true,1.5,-3]},"a/b":"slash","m~n":"tilde","":"empty","n":null,"d":1,"d":2}"#;
        for (pointer, key) in [
            ("/a/b/0", "x"),
            ("/a/b/1", "7"),
            ("/a/b/2", "true"),
            ("/a/b/3", "1.5"),
            ("/a/b/4", "-3"),
            ("/a~1b", "slash"),
            ("/m~0n", "tilde"),
            ("/", "empty"),
            ("/d", "2"),
        ] {
            assert_eq!(json(pointer, doc).as_deref(), Ok(key), "{pointer}");
        }
        assert_eq!(json("", "\"whole\"").as_deref(), Ok("whole"));
        for absent in ["/x", "/a/b/5", "/a/b/00", "/a/b/-", "/a/b/0/x", "/n/x"] {
            assert_eq!(
                json(absent, doc),
                Err(KeyError::NothingThere(absent.into())),
                "{absent}"
            );
        }
        for (pointer, found) in [
            ("/a", "an object"),
            ("/a/b", "an array"),
            ("/n", "null"),
            ("", "an object"),
        ] {
            let pointer = pointer.to_owned();
            assert_eq!(json(&pointer, doc), Err(KeyError::NotScalar { pointer, found }));
        }
    }

    #[test]
    fn what_is_not_json_is_said_so() {
        for bad in ["", "{", "{\"a\":1}x", "{\"a\":1,}", "hello"] {
            assert!(matches!(json("/a", bad), Err(KeyError::NotJson { .. })), "{bad}");
        }
        let invalid_utf8 = Bytes::from_static(b"{\"a\":\"\xff\"}");
        assert!(matches!(
            extract(&KeySource::Json("/a".into()), Uid::default(), None, &[], &invalid_utf8),
            Err(KeyError::NotJson { .. })
        ));
    }

    #[test]
    fn a_deep_document_is_no_danger() {
        let deep = format!("{{\"x\":{}{},\"a\":\"k\"}}", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(json("/a", &deep).as_deref(), Ok("k"));
    }

    proptest! {
        #[test]
        fn agrees_with_a_tree(s in "\\PC{0,40}", n in any::<i64>(), step in "[a-c/~0-9]{0,3}") {
            let doc = serde_json::json!({ "a": { "b": s, "c": [n, s] }, step.clone(): s });
            let text = doc.to_string();
            for pointer in ["/a/b".to_owned(), "/a/c/1".into(), "/a/c/0".into(), format!("/{}", step.replace('~', "~0").replace('/', "~1"))] {
                let want = match doc.pointer(&pointer) {
                    Some(serde_json::Value::String(s)) => Some(s.clone()),
                    Some(serde_json::Value::Number(n)) => Some(n.to_string()),
                    _ => None,
                };
                prop_assert_eq!(json(&pointer, &text).ok(), want.filter(|k| !k.is_empty()));
            }
        }
    }
}
