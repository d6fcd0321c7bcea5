//! Where a Bee may send HTTP requests: what `http:` of a manifest lists, and which addresses a name may lead to.
//!
//! A host is compared as text, in one spelling only: lower-case ASCII, no dot at its end, an address in its usual form. Whatever is spelled
//! otherwise (`0x7f.1`, `2130706433`, `EXAMPLE.com.`) is refused rather than understood, since whoever resolves it might understand it
//! differently.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// Longest name in DNS.
const HOST_BYTES_MAX: usize = 253;
const LABEL_BYTES_MAX: usize = 63;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scheme {
    Http,
    Https,
}

impl Scheme {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    #[must_use]
    pub fn port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

/// A host in its one spelling.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Host {
    Name(String),
    Address(IpAddr),
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Address(IpAddr::V6(v6)) => write!(f, "[{v6}]"),
            Self::Address(v4) => v4.fmt(f),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadHost(String);

impl FromStr for Host {
    type Err = BadHost;

    fn from_str(text: &str) -> Result<Self, BadHost> {
        let shown: String = text.chars().take(80).collect();
        let bad = |why: &str| BadHost(format!("`{shown}` is no host: {why}"));
        if let Some(inner) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            let v6: Ipv6Addr = inner
                .parse()
                .map_err(|_| bad("there is no IPv6 address in the brackets"))?;
            return Ok(Self::Address(IpAddr::V6(v6)));
        }
        if let Ok(v4) = text.parse::<Ipv4Addr>() {
            return Ok(Self::Address(IpAddr::V4(v4)));
        }
        if text.is_empty() || text.len() > HOST_BYTES_MAX {
            return Err(bad("a name has 1 to 253 bytes"));
        }
        if text.ends_with('.') {
            return Err(bad("leave the dot at the end out"));
        }
        for label in text.split('.') {
            let fits = label
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_');
            if label.is_empty()
                || label.len() > LABEL_BYTES_MAX
                || !fits
                || label.starts_with('-')
                || label.ends_with('-')
            {
                return Err(bad(
                    "names are of a-z, 0-9, `-` and dots; others are written in their ASCII form, xn--…",
                ));
            }
        }
        let last = text.rsplit('.').next().unwrap_or_default();
        // As browsers tell addresses from names: what ends in a number is an address, in a spelling that is not ours.
        if last.bytes().all(|b| b.is_ascii_digit()) || last.starts_with("0x") {
            return Err(bad("write an address as 192.0.2.1"));
        }
        Ok(Self::Name(text.to_owned()))
    }
}

/// One line of `http:`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HttpGrant {
    pub scheme: Scheme,
    /// All names below it, not itself.
    pub below: bool,
    pub host: Host,
    pub port: u16,
}

impl HttpGrant {
    #[must_use]
    pub fn allows(&self, scheme: Scheme, host: &Host, port: u16) -> bool {
        if scheme != self.scheme || port != self.port {
            return false;
        }
        match (&self.host, host) {
            (Host::Name(own), Host::Name(name)) if self.below => name
                .strip_suffix(own.as_str())
                .is_some_and(|rest| rest.len() > 1 && rest.ends_with('.')),
            (own, host) => own == host,
        }
    }
}

impl FromStr for HttpGrant {
    type Err = BadHost;

    fn from_str(text: &str) -> Result<Self, BadHost> {
        let (scheme, rest) = match text.split_once("://") {
            None => (Scheme::Https, text),
            Some(("https", rest)) => (Scheme::Https, rest),
            Some(("http", rest)) => (Scheme::Http, rest),
            Some(_) => return Err(BadHost("there are http:// and https://".to_owned())),
        };
        if rest.contains(['/', '@', '?', '#']) {
            return Err(BadHost("write a host and perhaps a port: no path, no user".to_owned()));
        }
        let (below, rest) = match rest.strip_prefix("*.") {
            Some(rest) => (true, rest),
            None => (false, rest),
        };
        let (host, port) = match rest.rsplit_once(':') {
            // Within brackets it is part of the address.
            Some((host, port)) if !port.contains(']') => {
                let number = port
                    .parse::<u16>()
                    .ok()
                    .filter(|number| *number > 0 && number.to_string() == port);
                (host, number.ok_or_else(|| BadHost(format!("`{port}` is no port")))?)
            }
            _ => (rest, scheme.port()),
        };
        let host: Host = host.parse()?;
        if below && !matches!(&host, Host::Name(name) if name.contains('.')) {
            return Err(BadHost(
                "`*.` stands before a name of at least two parts: `*.example.com`".to_owned(),
            ));
        }
        Ok(Self {
            scheme,
            below,
            host,
            port,
        })
    }
}

impl fmt::Display for HttpGrant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}://{}{}",
            self.scheme.as_str(),
            if self.below { "*." } else { "" },
            self.host
        )?;
        if self.port == self.scheme.port() {
            Ok(())
        } else {
            write!(f, ":{}", self.port)
        }
    }
}

impl TryFrom<String> for HttpGrant {
    type Error = BadHost;

    fn try_from(text: String) -> Result<Self, BadHost> {
        text.parse()
    }
}

impl From<HttpGrant> for String {
    fn from(grant: HttpGrant) -> Self {
        grant.to_string()
    }
}

/// What an address is to a Bee that asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// The internet.
    Public,
    /// Of this machine or its own network.
    Private,
    /// Where clouds keep a machine's credentials, and what else is of this link: only by its address.
    Link,
    /// Nothing that answers HTTP.
    Never,
}

/// IPv4 addresses that an IPv6 one stands for are seen as what they are.
#[must_use]
pub fn reach(address: IpAddr) -> Reach {
    match address {
        IpAddr::V4(v4) => reach_v4(v4),
        IpAddr::V6(v6) => reach_v6(v6),
    }
}

fn reach_v4(v4: Ipv4Addr) -> Reach {
    let [a, b, c, d] = v4.octets();
    match (a, b, c) {
        // Where clouds tell machines their credentials, though the address is none of a link: of Azure, Alibaba, Oracle.
        (168, 63, 129) if d == 16 => Reach::Link,
        (100, 100, 100) if d == 200 => Reach::Link,
        (192, 0, 0) if d == 192 => Reach::Link,
        (0 | 224..=255, ..) => Reach::Never,
        (169, 254, _) => Reach::Link,
        (10 | 127, ..) | (172, 16..=31, _) | (192, 168, _) => Reach::Private,
        // Shared by carriers, of protocols, of benchmarks; clouds have services in some of them.
        (100, 64..=127, _) | (192, 0, 0) | (198, 18..=19, _) => Reach::Private,
        // In documents only.
        (192, 0, 2) | (198, 51, 100) | (203, 0, 113) => Reach::Never,
        // The former 6to4 relays.
        (192, 88, 99) => Reach::Never,
        _ => Reach::Public,
    }
}

fn reach_v6(v6: Ipv6Addr) -> Reach {
    let s = v6.segments();
    let v4 = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        reach_v4(Ipv4Addr::new(a, b, c, d))
    };
    match s {
        [0, 0, 0, 0, 0, 0, 0, 0] => Reach::Never,
        [0, 0, 0, 0, 0, 0, 0, 1] => Reach::Private,
        // Mapped, translated, compatible, NAT64, NAT64 of a network's own, 6to4: an IPv4 address inside.
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0, 0, 0, 0, 0xffff, 0, high, low] | [0, 0, 0, 0, 0, 0, high, low] => {
            v4(high, low)
        }
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => v4(high, low),
        [0x64, 0xff9b, 1, ..] => Reach::Private,
        [0x2002, high, low, ..] => v4(high, low),
        // Teredo hides both of its addresses; documents; discard only.
        [0x2001, 0, ..] | [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] | [0x100, 0, 0, 0, ..] => Reach::Never,
        // ISATAP: an IPv4 address at the end, in whatever network.
        [_, _, _, _, 0 | 0x200, 0x5efe, high, low] => v4(high, low),
        // What a cloud has for its machines' credentials is a unique local address, and no name leads there either.
        [0xfd00, 0xec2, ..] | [0xfd20, 0xce, ..] => Reach::Link,
        [first, ..] if first & 0xfe00 == 0xfc00 || first & 0xffc0 == 0xfec0 => Reach::Private,
        [first, ..] if first & 0xffc0 == 0xfe80 => Reach::Link,
        // Multicast, and all that is not handed out to anybody.
        [first, ..] if first & 0xe000 == 0x2000 => Reach::Public,
        _ => Reach::Never,
    }
}

/// Whether a name is of a kind that is only ever resolved at home, so that whoever lists it means a private address: public DNS has none of
/// them, and nobody elsewhere can make one lead there.
#[must_use]
pub fn is_home(name: &str) -> bool {
    const HOME: [&str; 6] = [".localhost", ".local", ".internal", ".lan", ".home.arpa", ".test"];
    !name.contains('.') || HOME.iter().any(|end| name.ends_with(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grants_read_and_show_as_they_are_written() {
        for (text, shown) in [
            ("api.example.com", "https://api.example.com"),
            ("https://*.example.org:8443", "https://*.example.org:8443"),
            ("http://127.0.0.1:9000", "http://127.0.0.1:9000"),
            ("http://[::1]", "http://[::1]"),
            ("http://[::1]:8080", "http://[::1]:8080"),
            ("billing:8080", "https://billing:8080"),
        ] {
            let grant: HttpGrant = text.parse().unwrap();
            assert_eq!(grant.to_string(), shown);
            assert_eq!(shown.parse::<HttpGrant>().unwrap(), grant);
        }
        for bad in [
            "",
            "*",
            "*.com",
            "*.1.2.3.4",
            "a.*.com",
            "ftp://a.com",
            "https://a.com/path",
            "https://user@a.com",
            "a.com:0",
            "a.com:65536",
            "a.com:080",
            "a.com.",
            "A.com",
            "ex\u{0430}mple.com",
            "a..com",
            "-a.com",
            "2130706433",
            "0x7f000001",
            "0x7f.1",
            "0177.0.0.1",
            "127.1",
            "127.0.0.01",
            "256.1.1.1",
            "::1",
            "[::1",
            "[127.0.0.1]",
            "a b.com",
            "a.com\n",
        ] {
            assert!(bad.parse::<HttpGrant>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_grant_allows_what_it_says_and_nothing_else() {
        let allows = |grant: &str, url: &str| {
            let asked: HttpGrant = url.parse().unwrap();
            grant
                .parse::<HttpGrant>()
                .unwrap()
                .allows(asked.scheme, &asked.host, asked.port)
        };
        assert!(allows("api.example.com", "https://api.example.com"));
        assert!(allows("*.example.com", "a.b.example.com") && allows("http://[::1]:1", "http://[0:0::1]:1"));
        for (grant, url) in [
            ("api.example.com", "http://api.example.com"),
            ("api.example.com", "api.example.com:444"),
            ("api.example.com", "xapi.example.com"),
            ("api.example.com", "api.example.com.evil.org"),
            ("*.example.com", "example.com"),
            ("*.example.com", "evilexample.com"),
            ("127.0.0.1", "[::ffff:127.0.0.1]"),
        ] {
            assert!(!allows(grant, url), "{grant} {url}");
        }
    }

    #[test]
    fn addresses_are_seen_through_their_disguises() {
        for (reach_is, addresses) in [
            (
                Reach::Public,
                &[
                    "8.8.8.8",
                    "172.32.0.1",
                    "2606:4700::1111",
                    "2a00::1",
                    "64:ff9b::808:808",
                ][..],
            ),
            (
                Reach::Private,
                &[
                    "127.0.0.1",
                    "127.255.255.254",
                    "10.1.2.3",
                    "172.16.0.1",
                    "172.31.255.255",
                    "192.168.0.1",
                    "100.64.0.1",
                    "198.18.0.1",
                    "::1",
                    "fc00::1",
                    "fd12::1",
                    "fec0::1",
                    "::ffff:127.0.0.1",
                    "::ffff:10.0.0.1",
                    "::127.0.0.1",
                    "64:ff9b::7f00:1",
                    "64:ff9b:1::1",
                    "2002:7f00:1::1",
                    "::ffff:0:192.168.1.1",
                    "2606::5efe:10.0.0.1",
                ],
            ),
            (
                Reach::Link,
                &[
                    "169.254.169.254",
                    "fe80::1",
                    "febf::1",
                    "::ffff:169.254.169.254",
                    "64:ff9b::a9fe:a9fe",
                    "fd00:ec2::254",
                    "fd20:ce::254",
                    "168.63.129.16",
                    "100.100.100.200",
                    "192.0.0.192",
                    "64:ff9b::a83f:8110",
                ],
            ),
            (
                Reach::Never,
                &[
                    "0.0.0.0",
                    "0.1.2.3",
                    "224.0.0.1",
                    "239.255.255.255",
                    "240.0.0.1",
                    "255.255.255.255",
                    "192.0.2.1",
                    "::",
                    "ff02::1",
                    "2001:db8::1",
                    "2001::1",
                    "100::1",
                    "4000::1",
                    "::ffff:0.0.0.0",
                    "2002:e000:1::",
                ],
            ),
        ] {
            for address in addresses {
                assert_eq!(reach(address.parse().unwrap()), reach_is, "{address}");
            }
        }
    }

    #[test]
    fn names_of_home_are_those_that_nobody_else_can_resolve() {
        for home in [
            "localhost",
            "billing",
            "a.local",
            "x.internal",
            "svc.test",
            "a.localhost",
            "nas.home.arpa",
        ] {
            assert!(is_home(home), "{home}");
        }
        for out in [
            "example.com",
            "local.example.com",
            "internal",
            "notlocal.com",
            "a.internal.com",
        ]
        .into_iter()
        .filter(|n| n.contains('.'))
        {
            assert!(!is_home(out), "{out}");
        }
    }
}
