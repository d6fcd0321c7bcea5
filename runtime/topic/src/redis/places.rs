//! The addresses that a URL names: one server, several of which one leads, or servers of a cluster.

use crate::Error;

const CLUSTER: &str = "+cluster://";

/// `redis://[user:password@]host:port[,host:port…]/[db]`; `redis+cluster://` for a cluster, `rediss` for TLS.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Places {
    pub cluster: bool,
    /// `host:port`, those of a cluster only to begin with.
    pub addresses: Vec<String>,
    /// Scheme, user and password; and the database.
    before: String,
    after: String,
}

impl Places {
    /// `userinfo`: what stands before the hosts, if anything does.
    pub fn of(url: &str, userinfo: Option<&str>) -> Result<Self, Error> {
        let bad = |why: &str| Error::Unavailable(format!("the address of Redis {why}"));
        let (scheme, rest) = url.split_once("://").ok_or_else(|| bad("names no scheme"))?;
        let cluster = url.contains(CLUSTER);
        let scheme = scheme.strip_suffix("+cluster").unwrap_or(scheme);
        let hosts = &rest[userinfo.map_or(0, |info| info.len() + 1)..];
        let end = hosts.find(['/', '?', '#']).unwrap_or(hosts.len());
        let (hosts, after) = hosts.split_at(end);
        if cluster && !matches!(after, "" | "/" | "/0") {
            return Err(bad("of a cluster names a database: there is only one, leave it out"));
        }
        let addresses: Vec<String> = hosts.split(',').map(with_port).collect();
        if addresses.iter().any(|a| a.starts_with(':')) {
            return Err(bad("names no host"));
        }
        let userinfo = userinfo.map_or_else(String::new, |info| format!("{info}@"));
        Ok(Self {
            cluster,
            addresses,
            before: format!("{scheme}://{userinfo}"),
            after: after.to_owned(),
        })
    }

    /// The URL of one server, as the library takes it.
    pub fn url(&self, address: &str) -> String {
        format!("{}{address}{}", self.before, self.after)
    }
}

fn with_port(host: &str) -> String {
    let named = host.rsplit_once(':').is_some_and(|(_, port)| !port.contains(']'));
    if named { host.to_owned() } else { format!("{host}:6379") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_apart() {
        let of = |url, info| Places::of(url, info).map(|p| (p.cluster, p.addresses.clone(), p.url("x:1")));
        let texts = |of: &[&str]| of.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(
            of("redis://127.0.0.1:7000/2", None),
            Ok((false, texts(&["127.0.0.1:7000"]), "redis://x:1/2".to_owned()))
        );
        assert_eq!(
            of("rediss://a:b@one,[::1],[::1]:7/1", Some("a:b")),
            Ok((
                false,
                texts(&["one:6379", "[::1]:6379", "[::1]:7"]),
                "rediss://a:b@x:1/1".to_owned()
            ))
        );
        assert_eq!(
            of("redis+cluster://:pw@h1:1,h2:2", Some(":pw")),
            Ok((true, texts(&["h1:1", "h2:2"]), "redis://:pw@x:1".to_owned()))
        );
        assert!(of("redis+cluster://h/3", None).is_err());
        assert!(of("redis://h:1,/0", None).is_err());
    }
}
