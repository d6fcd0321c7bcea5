//! How values are written for the other process, and read. Both are the same program, so there is no version.
//!
//! Written here rather than by a library's derive, because the reader is the node and the writer may be hostile: a list of nothing is two bytes
//! in most formats, and a hundred times that in memory. This reader counts what it makes against a budget before it makes it, and takes
//! large payloads from the frame without a copy.

use std::collections::BTreeMap;

use bytes::Bytes;

/// What cannot be read, in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Broken(pub(super) &'static str);

/// A frame that is being read.
pub(super) struct Reader {
    rest: Bytes,
    /// Of the whole frame, bytes.
    length: usize,
    /// Bytes of memory that lists may still take.
    budget: usize,
}

impl Reader {
    /// `budget`: what all lists in it may take in memory together, beside the bytes of the frame.
    pub(super) fn new(frame: Bytes, budget: usize) -> Self {
        Self {
            length: frame.len(),
            rest: frame,
            budget,
        }
    }

    pub(super) fn bytes(&mut self, count: usize) -> Result<Bytes, Broken> {
        if count > self.rest.len() {
            return Err(Broken("a frame that ends too soon"));
        }
        Ok(self.rest.split_to(count))
    }

    fn length(&mut self) -> Result<usize, Broken> {
        usize::try_from(u32::take(self)?).map_err(|_| Broken("a length that is none"))
    }

    fn spend(&mut self, bytes: usize) -> Result<(), Broken> {
        let left = self.budget.checked_sub(bytes);
        self.budget = left.ok_or(Broken("more values than a frame may have"))?;
        Ok(())
    }

    /// One whole value, and nothing after it.
    pub(super) fn whole<T: Wire>(mut self) -> Result<T, Broken> {
        let value = T::take(&mut self)?;
        if self.rest.is_empty() {
            Ok(value)
        } else {
            Err(Broken("a frame with something behind its end"))
        }
    }
}

/// A value that crosses to the other process.
pub(super) trait Wire: Sized {
    fn put(&self, to: &mut Vec<u8>);
    fn take(from: &mut Reader) -> Result<Self, Broken>;
}

macro_rules! numbers {
    ($($number:ty),*) => {$(
        impl Wire for $number {
            fn put(&self, to: &mut Vec<u8>) {
                to.extend_from_slice(&self.to_le_bytes());
            }

            fn take(from: &mut Reader) -> Result<Self, Broken> {
                let bytes = from.bytes(size_of::<Self>())?;
                Ok(Self::from_le_bytes(bytes.as_ref().try_into().map_err(|_| Broken("a number cut short"))?))
            }
        }
    )*};
}

numbers!(u8, u16, u32, u64);

impl Wire for bool {
    fn put(&self, to: &mut Vec<u8>) {
        to.push(u8::from(*self));
    }

    fn take(from: &mut Reader) -> Result<Self, Broken> {
        match u8::take(from)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Broken("a choice that is none")),
        }
    }
}

impl Wire for () {
    fn put(&self, _: &mut Vec<u8>) {}

    fn take(_: &mut Reader) -> Result<Self, Broken> {
        Ok(())
    }
}

/// Frames are far shorter than 4 GiB, see `link.rs`.
pub(super) fn put_length(length: usize, to: &mut Vec<u8>) {
    u32::try_from(length).unwrap_or(u32::MAX).put(to);
}

pub(super) fn put_bytes(bytes: &[u8], to: &mut Vec<u8>) {
    put_length(bytes.len(), to);
    to.extend_from_slice(bytes);
}

impl Wire for Bytes {
    fn put(&self, to: &mut Vec<u8>) {
        put_bytes(self, to);
    }

    fn take(from: &mut Reader) -> Result<Self, Broken> {
        let length = from.length()?;
        let bytes = from.bytes(length)?;
        // A payload may be kept for long, in a topic: it must not keep a frame of which it is a small part.
        Ok(match bytes.len() < from.length / 2 {
            true => Self::copy_from_slice(&bytes),
            false => bytes,
        })
    }
}

impl Wire for String {
    fn put(&self, to: &mut Vec<u8>) {
        put_bytes(self.as_bytes(), to);
    }

    fn take(from: &mut Reader) -> Result<Self, Broken> {
        let bytes = Bytes::take(from)?;
        let text = std::str::from_utf8(&bytes).map_err(|_| Broken("a text that is none"))?;
        Ok(text.to_owned())
    }
}

impl<const N: usize> Wire for [u8; N] {
    fn put(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(self);
    }

    fn take(from: &mut Reader) -> Result<Self, Broken> {
        let bytes = from.bytes(N)?;
        bytes.as_ref().try_into().map_err(|_| Broken("a value cut short"))
    }
}

impl<T: Wire> Wire for Option<T> {
    fn put(&self, to: &mut Vec<u8>) {
        self.is_some().put(to);
        if let Some(value) = self {
            value.put(to);
        }
    }

    fn take(from: &mut Reader) -> Result<Self, Broken> {
        bool::take(from)?.then(|| T::take(from)).transpose()
    }
}

impl<T: Wire, E: Wire> Wire for Result<T, E> {
    fn put(&self, to: &mut Vec<u8>) {
        self.is_ok().put(to);
        match self {
            Ok(value) => value.put(to),
            Err(error) => error.put(to),
        }
    }

    fn take(from: &mut Reader) -> Result<Self, Broken> {
        Ok(if bool::take(from)? {
            Ok(T::take(from)?)
        } else {
            Err(E::take(from)?)
        })
    }
}

impl<T: Wire> Wire for Vec<T> {
    fn put(&self, to: &mut Vec<u8>) {
        put_length(self.len(), to);
        self.iter().for_each(|value| value.put(to));
    }

    fn take(from: &mut Reader) -> Result<Self, Broken> {
        let length = from.length()?;
        // Paid before it is allocated, at the size that it will have.
        from.spend(length.saturating_mul(size_of::<T>().max(1)))?;
        let mut all = Self::with_capacity(length);
        for _ in 0..length {
            all.push(T::take(from)?);
        }
        Ok(all)
    }
}

impl<A: Wire, B: Wire> Wire for (A, B) {
    fn put(&self, to: &mut Vec<u8>) {
        self.0.put(to);
        self.1.put(to);
    }

    fn take(from: &mut Reader) -> Result<Self, Broken> {
        Ok((A::take(from)?, B::take(from)?))
    }
}

impl<K: Wire + Ord, V: Wire> Wire for BTreeMap<K, V> {
    fn put(&self, to: &mut Vec<u8>) {
        put_length(self.len(), to);
        for (key, value) in self {
            key.put(to);
            value.put(to);
        }
    }

    fn take(from: &mut Reader) -> Result<Self, Broken> {
        Ok(Vec::<(K, V)>::take(from)?.into_iter().collect())
    }
}

/// A struct, field by field.
macro_rules! fields {
    ($type:ty { $($field:ident),* $(,)? }) => {
        impl $crate::apart::codec::Wire for $type {
            fn put(&self, to: &mut Vec<u8>) {
                $($crate::apart::codec::Wire::put(&self.$field, to);)*
            }

            fn take(from: &mut $crate::apart::codec::Reader) -> Result<Self, $crate::apart::codec::Broken> {
                $(let $field = $crate::apart::codec::Wire::take(from)?;)*
                Ok(Self { $($field),* })
            }
        }
    };
}
pub(super) use fields;

/// Something that has a spelling.
macro_rules! spelled {
    ($($type:ty),* $(,)?) => {$(
        impl $crate::apart::codec::Wire for $type {
            fn put(&self, to: &mut Vec<u8>) {
                $crate::apart::codec::Wire::put(&self.to_string(), to);
            }

            fn take(from: &mut $crate::apart::codec::Reader) -> Result<Self, $crate::apart::codec::Broken> {
                let text = <String as $crate::apart::codec::Wire>::take(from)?;
                text.parse().map_err(|_| $crate::apart::codec::Broken("a name that is none"))
            }
        }
    )*};
}
pub(super) use spelled;

#[cfg(test)]
pub(super) fn written<T: Wire>(value: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    value.put(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Value = Vec<(String, (Option<Bytes>, Result<BTreeMap<String, u64>, Vec<[u8; 3]>>))>;

    fn value() -> impl Strategy<Value = Value> {
        let map = prop::collection::btree_map(".{0,5}", any::<u64>(), 0..4);
        let blocks = prop::collection::vec(any::<[u8; 3]>(), 0..4);
        let either = prop_oneof![map.prop_map(Ok), blocks.prop_map(Err)];
        let bytes = prop::option::of(prop::collection::vec(any::<u8>(), 0..20).prop_map(Bytes::from));
        prop::collection::vec((".{0,9}", (bytes, either)), 0..6)
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(value in value()) {
            let bytes = Bytes::from(written(&value));
            prop_assert_eq!(Reader::new(bytes.clone(), 1 << 20).whole::<Value>(), Ok(value));
            for cut in 0..bytes.len() {
                prop_assert!(Reader::new(bytes.slice(..cut), 1 << 20).whole::<Value>().is_err());
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Reader::new(bytes.into(), 1 << 16).whole::<Value>();
        }
    }

    #[test]
    fn a_list_is_paid_for_before_it_is_made() {
        // Four bytes that say: four thousand million entries of nothing.
        let bytes = Bytes::from_static(&[0xff; 4]);
        assert_eq!(
            Reader::new(bytes.clone(), 1 << 30).whole::<Vec<()>>(),
            Err(Broken("more values than a frame may have"))
        );
        assert!(Reader::new(bytes, 1 << 30).whole::<Vec<String>>().is_err());
        let small = written(&vec![String::new(); 10]);
        assert!(
            Reader::new(small.clone().into(), 10 * size_of::<String>())
                .whole::<Vec<String>>()
                .is_ok()
        );
        assert!(
            Reader::new(small.into(), 10 * size_of::<String>() - 1)
                .whole::<Vec<String>>()
                .is_err()
        );
    }
}
