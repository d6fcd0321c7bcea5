//! Validated names. All of them are DNS labels, so that they can be joined with `/`, `.` and `:` without escaping.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::id::Digest;

/// Longest name, in bytes: a DNS label's (RFC 1123).
pub const NAME_BYTES_MAX: usize = 63;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadName {
    #[error("a name must not be empty")]
    Empty,
    #[error("a name has at most 63 bytes, this one has {0}")]
    TooLong(usize),
    #[error("`{0}` is not a name: use a-z, 0-9 and `-`, first and last a letter or digit (a DNS label)")]
    NotALabel(String),
    #[error("`{0}` is not a node's label: use KEY=VALUE, both of a-z, 0-9 and `-`, first and last a letter or digit")]
    NotANodeLabel(String),
    #[error("`{0}` is not a {1} reference: use NAME, NAME:TAG or NAME@sha256:DIGEST")]
    NotARef(String, &'static str),
}

fn check_label(s: &str) -> Result<(), BadName> {
    if s.is_empty() {
        return Err(BadName::Empty);
    }
    if s.len() > NAME_BYTES_MAX {
        return Err(BadName::TooLong(s.len()));
    }
    let ok = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = s.as_bytes();
    if bytes.iter().all(|&b| ok(b) || b == b'-') && ok(bytes[0]) && ok(bytes[bytes.len() - 1]) {
        Ok(())
    } else {
        Err(BadName::NotALabel(s.to_owned()))
    }
}

fn check_pair(s: &str) -> Result<(), BadName> {
    let sound = |(key, value)| check_label(key).and_then(|()| check_label(value)).is_ok();
    match s.split_once('=') {
        Some(pair) if sound(pair) => Ok(()),
        _ => Err(BadName::NotANodeLabel(s.chars().take(2 * NAME_BYTES_MAX + 1).collect())),
    }
}

macro_rules! label {
    ($(#[$doc:meta])* $name:ident) => {
        label! { $(#[$doc])* $name by check_label }
    };
    ($(#[$doc:meta])* $name:ident by $check:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = BadName;

            fn from_str(s: &str) -> Result<Self, BadName> {
                $check(s).map(|()| Self(s.into()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str(&self.0)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

label! {
    /// The unit of isolation.
    TenantId
}
label! {
    /// A graph of Bees inside a tenant.
    SwarmName
}
label! {
    /// One Bee's place in a Swarm.
    StageName
}
label! {
    /// The name under which clients call a Swarm, inside a tenant.
    Subject
}
label! {
    /// A registered function in a module.
    BeeName
}
label! {
    /// A module's name inside a tenant.
    ModuleName
}
label! {
    /// A model's name inside a tenant.
    ModelName
}
label! {
    /// A movable tag of a module or model.
    Tag
}
label! {
    /// A named output of a Bee.
    OutputName
}
label! {
    /// A tenant's secret.
    SecretName
}
label! {
    /// What an operator says of a node, and asks of one: `KEY=VALUE`.
    NodeLabel by check_pair
}

impl TenantId {
    /// The one tenant of a node on which no tenants are configured.
    #[must_use]
    pub fn default_tenant() -> Self {
        Self("default".into())
    }
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// `latest` where nothing is said.
    Tag(Tag),
    Digest(Digest),
}

impl Default for Version {
    fn default() -> Self {
        Self::Tag(Tag("latest".into()))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => write!(f, "{tag}"),
            Self::Digest(digest) => write!(f, "{digest}"),
        }
    }
}

macro_rules! reference {
    ($(#[$doc:meta])* $name:ident, $of:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name {
            pub name: $of,
            pub version: Version,
        }

        impl FromStr for $name {
            type Err = BadName;

            fn from_str(s: &str) -> Result<Self, BadName> {
                let bad = || BadName::NotARef(s.to_owned(), $what);
                if let Some((name, digest)) = s.split_once('@') {
                    let digest = digest.strip_prefix("sha256:").ok_or_else(bad)?;
                    return Ok(Self {
                        name: name.parse()?,
                        version: Version::Digest(digest.parse().map_err(|_| bad())?),
                    });
                }
                let (name, version) = match s.split_once(':') {
                    Some((name, tag)) => (name, Version::Tag(tag.parse()?)),
                    None => (s, Version::default()),
                };
                Ok(Self {
                    name: name.parse()?,
                    version,
                })
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match &self.version {
                    Version::Tag(tag) => write!(f, "{}:{tag}", self.name),
                    Version::Digest(digest) => write!(f, "{}@{digest}", self.name),
                }
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

reference! {
    /// How a manifest names a module: `name`, `name:tag` or `name@sha256:…`.
    ModuleRef, ModuleName, "module"
}
reference! {
    /// How a manifest, a Bee or a client names a model: as a module is named. A tag is read anew for each call, a digest stays.
    ModelRef, ModelName, "model"
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_dns_labels() {
        for good in ["a", "a-b", "0", &"x".repeat(63)] {
            assert!(good.parse::<StageName>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "-a",
            "a-",
            "A",
            "a.b",
            "a/b",
            "a:b",
            "é",
            "a b",
            "a\0",
            &"x".repeat(64),
        ] {
            assert!(bad.parse::<StageName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn module_references() {
        let digest = Digest::of(b"x");
        assert_eq!("hello".parse::<ModuleRef>().unwrap().to_string(), "hello:latest");
        assert_eq!("hello:v1".parse::<ModuleRef>().unwrap().to_string(), "hello:v1");
        let pinned = format!("hello@{digest}");
        assert_eq!(pinned.parse::<ModuleRef>().unwrap().to_string(), pinned);
        for bad in [
            "",
            ":v1",
            "hello:",
            "hello@",
            "hello@sha256:12",
            "hello@md5:12",
            "a:b:c",
            "a/b",
        ] {
            assert!(bad.parse::<ModuleRef>().is_err(), "{bad}");
            assert!(bad.parse::<ModelRef>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_name_holds_a_separator(s in "\\PC{0,80}") {
            if let Ok(name) = s.parse::<SwarmName>() {
                let separated = name.as_str().contains(['/', '.', ':', '{', '}', '\0', ' ']);
                prop_assert!(!separated);
            }
        }
    }
}
