//! Where a key lies in a Redis Cluster: its slot, and who serves it.

use redis::{Arg, Cmd, Value};

use super::reply::{list, number, some_text};
use crate::Error;

pub(super) const SLOTS: usize = 16_384;

/// What stands between the first brace and the next closing one, if anything does; else all of it.
fn tag(key: &[u8]) -> &[u8] {
    let inside = key.iter().position(|b| *b == b'{').and_then(|open| {
        let rest = &key[open + 1..];
        let close = rest.iter().position(|b| *b == b'}')?;
        (close > 0).then(|| &rest[..close])
    });
    inside.unwrap_or(key)
}

/// CRC-16/XMODEM.
fn crc(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc: u16, byte| {
        (0..8).fold(crc ^ (u16::from(*byte) << 8), |crc, _| {
            if crc & 0x8000 == 0 {
                crc << 1
            } else {
                (crc << 1) ^ 0x1021
            }
        })
    })
}

pub(super) fn slot(key: &[u8]) -> usize {
    usize::from(crc(tag(key))) % SLOTS
}

/// The key of a command: of a script the first that it declares, of others what follows their name.
pub(super) fn key_of(command: &Cmd) -> &[u8] {
    let mut args = command.args_iter().map(|arg| match arg {
        Arg::Simple(bytes) => bytes,
        _ => &[],
    });
    let at = if args.next() == Some(b"EVALSHA") { 2 } else { 0 };
    args.nth(at).unwrap_or_default()
}

/// Who serves slots `first..=last`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Range {
    pub first: usize,
    pub last: usize,
    /// `host:port`.
    pub leader: String,
}

/// The answer to CLUSTER SLOTS. A server that does not know its own name leaves it out: it is the one that was `asked`.
pub(super) fn ranges(answer: Value, asked: &str) -> Result<Vec<Range>, Error> {
    let mut out = Vec::new();
    for row in list(answer)? {
        let mut row = list(row)?.into_iter();
        let mut next = || row.next().unwrap_or(Value::Nil);
        let place = |value| number(value).map(|n| usize::try_from(n).unwrap_or(SLOTS));
        let (first, last) = (place(next())?, place(next())?);
        let mut leader = list(next())?.into_iter();
        let host = leader.next().and_then(some_text).filter(|h| !h.is_empty() && h != "?");
        let port = number(leader.next().unwrap_or(Value::Nil))?;
        if first > last || last >= SLOTS {
            return Err(Error::Corrupt(format!("a cluster with slots {first} to {last}")));
        }
        let host = match host {
            Some(host) if host.contains(':') => format!("[{host}]"),
            Some(host) => host,
            None => asked.rsplit_once(':').map_or(asked, |(host, _)| host).to_owned(),
        };
        out.push(Range {
            first,
            last,
            leader: format!("{host}:{port}"),
        });
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_the_specification() {
        assert_eq!(crc(b"123456789"), 0x31c3);
        assert_eq!(slot(b"foo"), 12_182);
        assert_eq!(slot(b"sk:{foo}:m"), 12_182);
        assert_eq!(slot(b"{}foo"), slot(b"{}foo"));
        assert_eq!(tag(b"{}foo"), b"{}foo");
        assert_eq!(tag(b"a{b{c}d}"), b"b{c");
        assert_eq!(tag(b"a{b"), b"a{b");
    }

    #[test]
    fn a_command_s_key_is_found() {
        let mut script = redis::cmd("EVALSHA");
        script.arg("digest").arg(1).arg("sk:{t}:m").arg("other");
        assert_eq!(key_of(&script), b"sk:{t}:m");
        let mut get = redis::cmd("HGET");
        get.arg("sk:store").arg("id");
        assert_eq!(key_of(&get), b"sk:store");
        assert_eq!(key_of(&redis::cmd("PING")), b"");
    }

    #[test]
    fn ranges_name_their_leaders() {
        let text = |s: &str| Value::BulkString(s.as_bytes().to_vec());
        let node = |host: Value| Value::Array(vec![host, Value::Int(7000), text("id")]);
        let row = |a, b, host| Value::Array(vec![Value::Int(a), Value::Int(b), node(host)]);
        let answer = Value::Array(vec![
            row(0, 99, text("10.0.0.1")),
            row(100, 16_383, Value::Nil),
            row(7, 7, text("::1")),
        ]);
        let found = ranges(answer, "here:1").unwrap();
        let leaders: Vec<&str> = found.iter().map(|r| r.leader.as_str()).collect();
        assert_eq!(leaders, ["10.0.0.1:7000", "here:7000", "[::1]:7000"]);
        assert_eq!((found[1].first, found[1].last), (100, 16_383));
        assert!(ranges(Value::Array(vec![row(5, 20_000, Value::Nil)]), "h:1").is_err());
    }
}
