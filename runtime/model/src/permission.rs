//! What a manifest grants a Bee, one thing at a time, and what one revision grants that the one before did not.

use std::fmt;
use std::str::FromStr;

use crate::egress::HttpGrant;
use crate::name::{ModelRef, SecretName, StageName};
use crate::swarm::{Stage, Swarm};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Permission {
    Secret(SecretName),
    Http(HttpGrant),
    Model(ModelRef),
}

impl Permission {
    fn of(stage: &Stage) -> impl Iterator<Item = Self> {
        let secrets = stage.secrets.iter().cloned().map(Self::Secret);
        let http = stage.http.iter().cloned().map(Self::Http);
        secrets.chain(http).chain(stage.models.iter().cloned().map(Self::Model))
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Secret(name) => write!(f, "secret:{name}"),
            Self::Http(host) => write!(f, "http:{host}"),
            Self::Model(model) => write!(f, "model:{model}"),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{what}` is nothing that is granted: write `http:api.example.com`, `model:NAME` or `secret:NAME`{why}")]
pub struct NoPermission {
    what: String,
    why: String,
}

impl FromStr for Permission {
    type Err = NoPermission;

    fn from_str(text: &str) -> Result<Self, NoPermission> {
        let bad = |why: String| NoPermission {
            what: text.chars().take(80).collect(),
            why,
        };
        match text.split_once(':') {
            Some(("secret", name)) => name.parse().map(Self::Secret).map_err(|e| bad(format!(": {e}"))),
            Some(("model", model)) => model.parse().map(Self::Model).map_err(|e| bad(format!(": {e}"))),
            Some(("http", host)) => host.parse().map(Self::Http).map_err(|e| bad(format!(": {e}"))),
            _ => Err(bad(String::new())),
        }
    }
}

/// What `new` grants its Bees beyond `old`. A Bee that has moved to another name is a new one.
#[must_use]
pub fn gained(old: &Swarm, new: &Swarm) -> Vec<(StageName, Permission)> {
    let mut out = Vec::new();
    for stage in &new.stages {
        let before: Vec<Permission> = old.stage(&stage.name).into_iter().flat_map(Permission::of).collect();
        let now = Permission::of(stage).filter(|permission| !before.contains(permission));
        out.extend(now.map(|permission| (stage.name.clone(), permission)));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::parse;

    #[test]
    fn only_what_is_more_is_gained() {
        let swarm = |a: &str, b: &str| {
            let line =
                |name, grants| format!("  - {{ name: {name}, module: m, input: {{ gateway: {name} }}{grants} }}\n");
            parse(&format!("name: s\nbees:\n{}{}", line("a", a), line("b", b))).unwrap()
        };
        let gained = |old: &Swarm, new: &Swarm| -> Vec<String> {
            let all = gained(old, new).into_iter();
            all.map(|(stage, permission)| format!("{stage} {permission}")).collect()
        };
        let (none, some) = (swarm("", ""), swarm(", secrets: [k]", ", http: [a.com, b.com]"));
        assert_eq!(
            gained(&none, &some),
            ["a secret:k", "b http:https://a.com", "b http:https://b.com"]
        );
        assert_eq!(
            gained(&none, &swarm(", models: [digits]", "")),
            ["a model:digits:latest"]
        );
        assert_eq!(gained(&some, &none), [""; 0]);
        assert_eq!(gained(&some, &some), [""; 0]);
        // What another Bee has is not this one's, and a wider host is another.
        assert_eq!(
            gained(&some, &swarm(", http: [a.com]", ", http: ['*.a.com', b.com]")),
            ["a http:https://a.com", "b http:https://*.a.com"]
        );
    }

    #[test]
    fn permissions_read_as_they_show() {
        for text in [
            "secret:api-key",
            "http:https://a.com",
            "http:http://[::1]:8080",
            "model:digits:v1",
        ] {
            assert_eq!(text.parse::<Permission>().unwrap().to_string(), text);
        }
        assert_eq!("http:a.com:443".parse::<Permission>(), "http:https://a.com".parse());
        for bad in ["", "http", "http:", "secret:", "secret:A", "model:X", "all"] {
            assert!(bad.parse::<Permission>().is_err(), "{bad}");
        }
    }
}
