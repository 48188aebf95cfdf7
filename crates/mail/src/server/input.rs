//! Splits a client's bytes into lines and counted octets, within bounds. Both may hold a password, so dropping them
//! wipes their memory.

use zeroize::Zeroizing;

/// Maximum octets of a line that answers a SASL prompt, without its line end (RFC 4954 section 4).
pub const MAX_CONTINUATION: usize = 12_288;
/// Maximum octets of any other line, without its line end.
pub const MAX_LINE: usize = 4096;
/// Initial capacity of a line in octets. Most lines need no more.
const USUAL_LINE: usize = 128;

/// Octets that may hold a password. Dropping them wipes the memory.
pub(super) type Octets = Zeroizing<Vec<u8>>;

/// The result of taking bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// The line or the octets are not complete.
    Incomplete,
    /// A line without its line end. `crlf`: whether the line ended with CRLF, otherwise with LF.
    Line { bytes: Octets, crlf: bool },
    /// The octets that [`Input::expect_octets`] requested.
    Octets(Octets),
    /// A line that exceeds its limit has ended.
    TooLong,
}

/// Unfinished input.
#[derive(Debug, Default)]
pub(super) struct Input {
    partial: Octets,
    /// Whether the line exceeds its limit, so that the reader drops the rest of the line.
    too_long: bool,
    /// Octets that the reader must still take before the next line.
    octets: usize,
    /// Whether the reader drops the octets.
    skips: bool,
}

impl Input {
    /// Reads `octets` octets before the next line, as one piece. Zero octets are complete immediately.
    pub(super) fn expect_octets(&mut self, octets: usize) {
        (self.octets, self.skips) = (octets, false);
    }

    /// Drops `octets` octets before the next line.
    pub(super) fn skip(&mut self, octets: usize) {
        (self.octets, self.skips) = (octets, true);
    }

    /// Takes bytes up to the end of the line, or of the requested octets.
    pub(super) fn take(&mut self, input: &[u8], limit: usize) -> (usize, Taken) {
        if self.octets > 0 {
            return self.take_octets(input);
        }
        let end = input.iter().position(|byte| *byte == b'\n');
        let part = &input[..end.unwrap_or(input.len())];
        // The limit has one more octet for the CR.
        self.too_long |= self.partial.len() + part.len() > limit + 1;
        match self.too_long {
            true => self.partial = Zeroizing::default(),
            false => append(&mut self.partial, part),
        }
        let Some(end) = end else { return (input.len(), Taken::Incomplete) };
        let mut bytes = std::mem::take(&mut self.partial);
        let crlf = bytes.last() == Some(&b'\r');
        if crlf {
            bytes.pop();
        }
        let too_long = std::mem::take(&mut self.too_long) || bytes.len() > limit;
        (end + 1, if too_long { Taken::TooLong } else { Taken::Line { bytes, crlf } })
    }

    fn take_octets(&mut self, input: &[u8]) -> (usize, Taken) {
        let length = self.octets.min(input.len());
        self.octets -= length;
        if !self.skips {
            append(&mut self.partial, &input[..length]);
        }
        if self.octets > 0 {
            return (length, Taken::Incomplete);
        }
        (length, Taken::Octets(std::mem::take(&mut self.partial)))
    }
}

/// Appends bytes. If the memory must grow, wipes the old memory.
fn append(bytes: &mut Octets, more: &[u8]) {
    let length = bytes.len() + more.len();
    if length > bytes.capacity() {
        let mut grown = Zeroizing::new(Vec::with_capacity(length.next_power_of_two().max(USUAL_LINE)));
        grown.extend_from_slice(bytes);
        *bytes = grown;
    }
    bytes.extend_from_slice(more);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str, crlf: bool) -> Taken {
        Taken::Line { bytes: Zeroizing::new(text.as_bytes().to_vec()), crlf }
    }

    #[test]
    fn a_line_ends_with_lf_and_may_have_a_cr_before_it() {
        for (input, taken) in [
            (&b"a b\r\nrest"[..], (5, line("a b", true))),
            (b"a\nrest", (2, line("a", false))),
            (b"\r\n", (2, line("", true))),
            (b"a\r", (2, Taken::Incomplete)),
        ] {
            assert_eq!(Input::default().take(input, MAX_LINE), taken, "{input:?}");
        }
    }

    #[test]
    fn a_line_beyond_its_limit_is_dropped_to_its_end() {
        let mut input = Input::default();
        assert_eq!(input.take(b"12345\r\n", 5).1, line("12345", true));
        assert_eq!(input.take(b"123456\r\nnext", 5), (8, Taken::TooLong));
        assert_eq!(input.take(b"1234567", 5), (7, Taken::Incomplete));
        assert!(input.partial.is_empty());
        assert_eq!(input.take(b"89\nnext", 5), (3, Taken::TooLong));
        assert_eq!(input.take(b"next\n", 5).1, line("next", false));
    }

    #[test]
    fn octets_are_read_before_the_next_line() {
        let mut input = Input::default();
        input.expect_octets(3);
        assert_eq!(input.take(b"a\n", MAX_LINE), (2, Taken::Incomplete));
        assert_eq!(input.take(b"bc\n", MAX_LINE), (1, Taken::Octets(Zeroizing::new(b"a\nb".to_vec()))));
        input.skip(2);
        assert_eq!(input.take(b"xyz\n", MAX_LINE), (2, Taken::Octets(Zeroizing::default())));
        assert_eq!(input.take(b"z\n", MAX_LINE).1, line("z", false));
    }
}
