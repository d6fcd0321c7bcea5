//! The wire format of Protocol Buffers, read without taking memory: a message is a run of fields, each a number and a value that borrows.
//!
//! Source: protobuf.dev/programming-guides/encoding. Groups, which ONNX has none of, are refused.

use super::Refusal;

/// One field's value. Which of them it may be is for the reader of the field to say.
#[derive(Debug, Clone, Copy)]
pub enum Value<'a> {
    Varint(u64),
    Fixed64,
    Bytes(&'a [u8]),
    Fixed32,
}

/// The fields of one message, in the order in which they were written.
#[derive(Debug, Clone)]
pub struct Fields<'a> {
    rest: &'a [u8],
    /// The message's name, for errors.
    of: &'static str,
    /// Fields that may come once and have come, a bit each. Protocol Buffers let a field come again and merge it or take the last,
    /// so what is inspected could be another thing than what is loaded.
    seen: u64,
}

impl<'a> Fields<'a> {
    pub fn new(of: &'static str, bytes: &'a [u8]) -> Self {
        Self {
            rest: bytes,
            of,
            seen: 0,
        }
    }

    pub fn broken(&self, why: &str) -> Refusal {
        Refusal::Broken(format!("{} {why}", self.of))
    }

    /// # Errors
    /// It ends inside a field, or is no message at all.
    pub fn next(&mut self) -> Result<Option<(u32, Value<'a>)>, Refusal> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let number = u32::try_from(key >> 3).ok().filter(|number| *number != 0);
        let number = number.ok_or_else(|| self.broken("has a field with a number that cannot be"))?;
        let value = match key & 7 {
            0 => Value::Varint(self.varint()?),
            1 => {
                self.take(8)?;
                Value::Fixed64
            }
            2 => {
                let length = self.varint()?;
                Value::Bytes(self.take(length)?)
            }
            5 => {
                self.take(4)?;
                Value::Fixed32
            }
            _ => return Err(self.broken("has a field of a kind that ONNX does not use")),
        };
        Ok(Some((number, value)))
    }

    /// That a field which may come once comes for the first time.
    pub fn once(&mut self, number: u32) -> Result<(), Refusal> {
        let bit = 1u64 << (number & 63);
        if self.seen & bit != 0 {
            return Err(self.broken(&format!("has its field {number} twice")));
        }
        self.seen |= bit;
        Ok(())
    }

    pub fn bytes(&self, value: Value<'a>) -> Result<&'a [u8], Refusal> {
        match value {
            Value::Bytes(bytes) => Ok(bytes),
            _ => Err(self.broken("has a number where a text or message belongs")),
        }
    }

    pub fn text(&self, value: Value<'a>) -> Result<&'a str, Refusal> {
        std::str::from_utf8(self.bytes(value)?).map_err(|_| self.broken("has a text that is not UTF-8"))
    }

    pub fn number(&self, value: Value<'a>) -> Result<u64, Refusal> {
        match value {
            Value::Varint(number) => Ok(number),
            _ => Err(self.broken("has something else where a number belongs")),
        }
    }

    /// How many numbers a field adds, one alone or packed. `size` is what each takes; 0: they are varints.
    pub fn numbers(&self, value: Value<'a>, size: usize) -> Result<usize, Refusal> {
        match (value, size) {
            (Value::Bytes(bytes), 0) => {
                // Each ends with a byte below 128.
                let ends = bytes.iter().filter(|byte| **byte < 128).count();
                let whole = bytes.last().is_none_or(|byte| *byte < 128);
                if whole {
                    Ok(ends)
                } else {
                    Err(self.broken("has packed numbers that end inside one"))
                }
            }
            (Value::Bytes(bytes), size) if bytes.len() % size == 0 => Ok(bytes.len() / size),
            (Value::Varint(_), 0) | (Value::Fixed32, 4) | (Value::Fixed64, 8) => Ok(1),
            _ => Err(self.broken("has something else where numbers belong")),
        }
    }

    /// The varints of a field, one alone or packed.
    pub fn each(&self, value: Value<'a>, mut take: impl FnMut(u64) -> Result<(), Refusal>) -> Result<(), Refusal> {
        match value {
            Value::Varint(number) => take(number),
            Value::Bytes(bytes) => {
                let mut packed = Fields::new(self.of, bytes);
                while !packed.rest.is_empty() {
                    take(packed.varint()?)?;
                }
                Ok(())
            }
            _ => Err(self.broken("has something else where numbers belong")),
        }
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8], Refusal> {
        let length = usize::try_from(length).ok();
        let (taken, rest) = length
            .and_then(|length| self.rest.split_at_checked(length))
            .ok_or_else(|| self.broken("ends inside a field"))?;
        self.rest = rest;
        Ok(taken)
    }

    fn varint(&mut self) -> Result<u64, Refusal> {
        let mut number = 0u64;
        for at in 0..10 {
            let Some((byte, rest)) = self.rest.split_first() else {
                return Err(self.broken("ends inside a number"));
            };
            self.rest = rest;
            number |= u64::from(byte & 127) << (7 * at);
            if *byte < 128 {
                return Ok(number);
            }
        }
        Err(self.broken("has a number of more than ten bytes"))
    }
}
