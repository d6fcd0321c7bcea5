//! Reads the named fields of the first message of a gRPC stream while it passes, in whatever pieces it comes.

use super::names::{Field, Fields, Form};

/// One field that is held to be read: names are far shorter. Of a longer one its length is told.
const FIELD_BYTES_MAX: usize = 4 << 10;
/// What is kept of one name.
const NAME_BYTES_MAX: usize = 200;
/// Of a field that comes several times, together.
const NAMES_BYTES_MAX: usize = 1_000;
/// Numbers of a list that are told one by one.
const NUMBERS_MAX: usize = 10;

/// A thing that a call names.
pub type Object = (&'static str, String);

/// Bytes before the message: a flag and its length.
const PREFIX_BYTES: usize = 5;

pub struct Scan {
    fields: Fields,
    found: Vec<Object>,
    step: Step,
    held: Vec<u8>,
    /// Bytes of the message that are to come.
    left: u64,
}

#[derive(Clone, Copy)]
enum Step {
    Prefix,
    /// A field's number and kind.
    Tag,
    /// The value of a field without a length.
    Varint(u32),
    Length(u32),
    /// A field that is read.
    Take(u32, usize),
    Skip(u64),
    Done,
}

impl Scan {
    pub fn new(fields: Fields) -> Self {
        Self {
            fields,
            found: Vec::new(),
            step: Step::Prefix,
            held: Vec::new(),
            left: 0,
        }
    }

    /// Whether the whole first message was seen, or cannot be read.
    pub fn is_done(&self) -> bool {
        matches!(self.step, Step::Done)
    }

    pub fn take(&mut self) -> Vec<Object> {
        std::mem::take(&mut self.found)
    }

    pub fn pass(&mut self, mut data: &[u8]) {
        while !self.is_done() && !data.is_empty() {
            match self.step {
                Step::Skip(bytes) => {
                    let some = bytes.min(data.len() as u64);
                    data = data
                        .get(usize::try_from(some).unwrap_or(usize::MAX)..)
                        .unwrap_or_default();
                    self.left = self.left.saturating_sub(some);
                    self.step = if bytes > some {
                        Step::Skip(bytes - some)
                    } else {
                        self.next()
                    };
                }
                Step::Take(number, bytes) => {
                    let some = (bytes - self.held.len()).min(data.len());
                    self.held.extend_from_slice(&data[..some]);
                    data = &data[some..];
                    self.left = self.left.saturating_sub(some as u64);
                    if self.held.len() == bytes {
                        let held = std::mem::take(&mut self.held);
                        self.bytes(number, &held);
                        self.step = self.next();
                    }
                }
                _ => {
                    let byte = data[0];
                    data = &data[1..];
                    self.byte(byte);
                }
            }
        }
    }

    /// After a field.
    fn next(&self) -> Step {
        if self.left == 0 { Step::Done } else { Step::Tag }
    }

    fn byte(&mut self, byte: u8) {
        if let Step::Prefix = self.step {
            self.held.push(byte);
            if self.held.len() == PREFIX_BYTES {
                let length = [self.held[1], self.held[2], self.held[3], self.held[4]];
                self.left = u64::from(u32::from_be_bytes(length));
                // Compressed ones are refused behind us.
                self.step = if self.held[0] == 0 { self.next() } else { Step::Done };
                self.held.clear();
            }
            return;
        }
        self.left = self.left.saturating_sub(1);
        self.held.push(byte);
        if byte & 0x80 != 0 {
            // No varint is longer, and none goes beyond its message.
            if self.held.len() >= 10 || self.left == 0 {
                self.step = Step::Done;
            }
            return;
        }
        let value = varint(&self.held).map_or(0, |(value, _)| value);
        self.held.clear();
        self.step = match self.step {
            Step::Tag => {
                let number = u32::try_from(value >> 3).unwrap_or(0);
                match value & 7 {
                    0 => Step::Varint(number),
                    1 => Step::Skip(8),
                    2 => Step::Length(number),
                    5 => Step::Skip(4),
                    _ => Step::Done,
                }
            }
            Step::Varint(number) => {
                self.number(number, value);
                self.next()
            }
            Step::Length(number) => {
                let wanted = self.fields.iter().any(|field| field.at[0] == number);
                match usize::try_from(value) {
                    Ok(0) => self.next(),
                    _ if value > self.left => Step::Done,
                    Ok(bytes) if wanted && bytes <= FIELD_BYTES_MAX => Step::Take(number, bytes),
                    _ => {
                        // Or a record would say that the call named nothing.
                        for field in self.fields.iter().filter(|field| field.at[0] == number) {
                            add(&mut self.found, field.what, format!("({value} bytes, not read)"));
                        }
                        Step::Skip(value)
                    }
                }
            }
            _ => Step::Done,
        };
    }

    fn number(&mut self, number: u32, value: u64) {
        let fields = self.fields.iter().filter(|field| *field.at == [number]);
        for field in fields {
            add_number(&mut self.found, field, value);
        }
    }

    fn bytes(&mut self, number: u32, bytes: &[u8]) {
        for field in self.fields.iter().filter(|field| field.at[0] == number) {
            match field.at {
                [_] => add_bytes(&mut self.found, field, bytes),
                [_, inner] => inside(&mut self.found, field, *inner, bytes),
                _ => {}
            }
        }
    }
}

/// A field of a message that is held as a whole.
fn inside(found: &mut Vec<Object>, field: &'static Field, number: u32, mut bytes: &[u8]) {
    while let Some((tag, rest)) = varint(bytes) {
        let Some((value, rest)) = (match tag & 7 {
            0 | 2 => varint(rest),
            1 => rest.get(8..).map(|rest| (0, rest)),
            5 => rest.get(4..).map(|rest| (0, rest)),
            _ => None,
        }) else {
            return;
        };
        let is_it = tag >> 3 == u64::from(number);
        bytes = match tag & 7 {
            2 => {
                let Some((held, rest)) = usize::try_from(value).ok().and_then(|n| rest.split_at_checked(n)) else {
                    return;
                };
                if is_it {
                    add_bytes(found, field, held);
                }
                rest
            }
            kind => {
                if is_it && kind == 0 {
                    add_number(found, field, value);
                }
                rest
            }
        };
    }
}

fn add_number(found: &mut Vec<Object>, field: &'static Field, value: u64) {
    let text = match field.form {
        Form::Number | Form::Numbers => value.to_string(),
        Form::Flag => (value != 0).to_string(),
        Form::Text => return,
    };
    add(found, field.what, text);
}

fn add_bytes(found: &mut Vec<Object>, field: &'static Field, bytes: &[u8]) {
    match field.form {
        Form::Text => {
            let text = String::from_utf8_lossy(bytes);
            let clean = text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c });
            let mut name: String = clean.take(NAME_BYTES_MAX).collect();
            while name.len() > NAME_BYTES_MAX {
                name.pop();
            }
            add(found, field.what, name);
        }
        Form::Numbers => {
            let (mut rest, mut all, mut count) = (bytes, Vec::new(), 0_usize);
            while let Some((value, after)) = varint(rest) {
                if count < NUMBERS_MAX {
                    all.push(value.to_string());
                }
                (rest, count) = (after, count + 1);
            }
            if count > NUMBERS_MAX {
                all.push(format!("and {} more", count - NUMBERS_MAX));
            }
            add(found, field.what, all.join(" "));
        }
        Form::Number | Form::Flag => {}
    }
}

/// A field that comes again is one of several, or hides the first from whoever decodes the message: all are told, within a bound.
fn add(found: &mut Vec<Object>, what: &'static str, name: String) {
    match found.iter_mut().find(|(known, _)| *known == what) {
        Some((_, known)) if known.len() + name.len() < NAMES_BYTES_MAX => {
            known.push(' ');
            known.push_str(&name);
        }
        Some((_, known)) if !known.ends_with('…') => known.push_str(" …"),
        Some(_) => {}
        None => found.push((what, name)),
    }
}

fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0_u64;
    for (at, byte) in bytes.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f).checked_shl(7 * u32::try_from(at).ok()?)?;
        if byte & 0x80 == 0 {
            return Some((value, &bytes[at + 1..]));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message;
    use skep_model::Bytes;
    use skep_proto::v1;

    use super::super::names;
    use super::*;

    fn framed(message: &impl Message) -> Vec<u8> {
        let body = message.encode_to_vec();
        let mut out = vec![0];
        out.extend(u32::try_from(body.len()).unwrap().to_be_bytes());
        out.extend(body);
        out
    }

    fn scan(fields: Fields, bytes: &[u8], piece: usize) -> (Vec<Object>, bool) {
        let mut scan = Scan::new(fields);
        bytes.chunks(piece).for_each(|piece| scan.pass(piece));
        (scan.take(), scan.is_done())
    }

    #[test]
    fn names_are_found_in_whatever_pieces_they_come_and_values_never() {
        let secret = v1::SetSecretRequest {
            name: "api-key".to_owned(),
            value: Bytes::from_static(b"sk-0123456789"),
        };
        let module = v1::PushModuleRequest {
            part: Some(v1::push_module_request::Part::Header(v1::PushHeader {
                name: "orders".to_owned(),
                tag: "next".to_owned(),
                digest: "ab".repeat(32),
                size: 77,
                signature: "ed25519:A:B".to_owned(),
            })),
        };
        let chunk = v1::PushModuleRequest {
            part: Some(v1::push_module_request::Part::Chunk(vec![7; 300_000].into())),
        };
        let letters = v1::DiscardDeadLettersRequest {
            swarm: "s".to_owned(),
            ids: (1..=12).chain([u64::MAX]).collect(),
        };
        let apply = v1::ApplySwarmRequest {
            manifest: "name: x\n".repeat(50_000),
            rescale: true,
            ..v1::ApplySwarmRequest::default()
        };
        for piece in [1, 2, 3, 7, 4_096, 1 << 20] {
            let asked = |path: &str, bytes: &[u8]| scan(names::of(path).0, bytes, piece);
            let name = |what, name: &str| (what, name.to_owned());
            assert_eq!(
                asked("/skep.v1.Secrets/SetSecret", &framed(&secret)),
                (vec![name("secret", "api-key")], true)
            );
            let mut stream = framed(&module);
            stream.extend(framed(&chunk));
            assert_eq!(
                asked("/skep.v1.Beekeeper/PushModule", &stream),
                (vec![name("module", "orders"), name("tag", "next")], true)
            );
            assert_eq!(asked("/skep.v1.Beekeeper/PushModule", &framed(&chunk)), (vec![], true));
            assert_eq!(
                asked("/skep.v1.Beekeeper/DiscardDeadLetters", &framed(&letters)).0[1].1,
                "1 2 3 4 5 6 7 8 9 10 and 3 more"
            );
            assert_eq!(
                asked("/skep.v1.Beekeeper/ApplySwarm", &framed(&apply)),
                (vec![name("rescale", "true")], true)
            );
            assert_eq!(asked("/skep.v1.Beekeeper/Backup", &[0; 5]), (vec![], true));
            assert!(!asked("/skep.v1.Beekeeper/Backup", &[0; 4]).1);
        }
        let long = v1::CreateTenantRequest {
            name: "e\u{301}\n".repeat(1_000),
            ..v1::CreateTenantRequest::default()
        };
        let (found, _) = scan(names::of("/skep.v1.Access/CreateTenant").0, &framed(&long), 64);
        assert!(found[0].1.len() <= NAME_BYTES_MAX && !found[0].1.contains('\n'));
        // A name that is none is not passed over in silence.
        let huge = v1::CreateTenantRequest {
            name: "x".repeat(FIELD_BYTES_MAX + 1),
            ..v1::CreateTenantRequest::default()
        };
        let (found, done) = scan(names::of("/skep.v1.Access/CreateTenant").0, &framed(&huge), 64);
        assert_eq!(
            (found, done),
            (vec![("tenant", "(4097 bytes, not read)".to_owned())], true)
        );
    }

    proptest! {
        /// Whatever comes is read to its end, or given up, without more than one field held.
        #[test]
        fn noise_is_survived(mut bytes in prop::collection::vec(any::<u8>(), 0..400), piece in 1_usize..50) {
            if let Some(first) = bytes.first_mut() { *first = 0; }
            for path in ["/skep.v1.Beekeeper/PushModule", "/skep.v1.Beekeeper/DiscardDeadLetters", "/skep.v1.Access/RotateToken"] {
                let (asked, answered) = names::of(path);
                for fields in [asked, answered] {
                    let (found, _) = scan(fields, &bytes, piece);
                    prop_assert!(found.iter().all(|(_, name)| name.len() <= 300));
                }
            }
        }
    }
}
