//! Variable-length integers: LEB128, 7 bits a byte, least significant first.

pub(crate) fn put(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Writes a signed number, zigzag-encoded: small absolute values are short.
pub(crate) fn put_signed(out: &mut Vec<u8>, number: i64) {
    put(out, (number << 1 ^ number >> 63) as u64);
}

pub(crate) fn put_str(out: &mut Vec<u8>, text: &str) {
    put(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

/// Reads encoded values from a slice; methods return `None` for truncated or invalid input.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first()?;
            self.0 = rest;
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(number);
            }
        }
        None
    }

    pub fn signed(&mut self) -> Option<i64> {
        let number = self.number()?;
        Some((number >> 1) as i64 ^ -((number & 1) as i64))
    }

    /// Reads a length-prefixed byte string.
    pub fn record(&mut self) -> Option<&'a [u8]> {
        let len = usize::try_from(self.number()?).ok()?;
        let (record, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(record)
    }

    pub fn str(&mut self) -> Option<&'a str> {
        std::str::from_utf8(self.record()?).ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn round_trips(numbers in prop::collection::vec(any::<u64>(), 0..20), text in ".*") {
            let mut out = Vec::new();
            for &number in &numbers {
                put(&mut out, number);
                put_signed(&mut out, number as i64);
                put(&mut out, number % 300);
            }
            put_str(&mut out, &text);
            let mut bytes = Bytes::new(&out);
            for &number in &numbers {
                prop_assert_eq!(bytes.number(), Some(number));
                prop_assert_eq!(bytes.signed(), Some(number as i64));
                prop_assert_eq!(bytes.number(), Some(number % 300));
            }
            prop_assert_eq!(bytes.str(), Some(&text[..]));
            prop_assert_eq!(bytes.number(), None);
        }
    }

    #[test]
    fn length_grows_with_value() {
        for (number, len) in [(0, 1), (127, 1), (128, 2), (1 << 35, 6), (u64::MAX, 10)] {
            let mut out = Vec::new();
            put(&mut out, number);
            assert_eq!(out.len(), len, "{number}");
        }
    }
}
