//! Splits a server's bytes into lines, within bounds.

/// Maximum number of lines of one reply.
pub const MAX_LINES: usize = 64;
/// Maximum octets of one line, without its line end.
pub const MAX_LINE: usize = 2048;

/// The unfinished line, and the remaining limits of the reply.
#[derive(Debug)]
pub(super) struct Lines {
    partial: Vec<u8>,
    /// Octets of an IMAP literal that the reader must still skip.
    skip: usize,
    /// Number of lines that the reply in progress may still have.
    left: usize,
}

/// The result of taking bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// The line is not complete.
    Incomplete,
    /// A line without its line end. `?` replaces each byte that is not ASCII.
    Line(String),
    /// The line, or the reply, exceeds its limit.
    TooLong,
}

impl Default for Lines {
    fn default() -> Self {
        Self { partial: vec![], skip: 0, left: MAX_LINES }
    }
}

impl Lines {
    /// Allows the next reply the full number of lines.
    pub(super) fn begin_reply(&mut self) {
        self.left = MAX_LINES;
    }

    /// Skips octets before the next line.
    pub(super) fn skip(&mut self, octets: usize) {
        self.skip = octets;
    }

    /// Takes bytes up to the end of the line. LF ends a line; a CR before the LF belongs to the line end.
    pub(super) fn take(&mut self, input: &[u8]) -> (usize, Taken) {
        let skipped = self.skip.min(input.len());
        self.skip -= skipped;
        let input = &input[skipped..];
        let end = input.iter().position(|byte| *byte == b'\n');
        let part = &input[..end.unwrap_or(input.len())];
        // The limit has one more octet for the CR.
        if self.partial.len() + part.len() > MAX_LINE + 1 || self.left == 0 {
            return (0, Taken::TooLong);
        }
        self.partial.extend_from_slice(part);
        let Some(end) = end else { return (skipped + input.len(), Taken::Incomplete) };
        let mut line = std::mem::take(&mut self.partial);
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        if line.len() > MAX_LINE {
            return (0, Taken::TooLong);
        }
        self.left -= 1;
        let line = line.into_iter().map(|byte| if byte.is_ascii() { char::from(byte) } else { '?' }).collect();
        (skipped + end + 1, Taken::Line(line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_ends_with_lf_and_may_have_a_cr_before_it() {
        for (input, taken) in [
            (&b"a b\r\nrest"[..], (5, Taken::Line("a b".to_owned()))),
            (b"a\nrest", (2, Taken::Line("a".to_owned()))),
            (b"\r\n", (2, Taken::Line(String::new()))),
            (b"\xff\n", (2, Taken::Line("?".to_owned()))),
            (b"a\r", (2, Taken::Incomplete)),
        ] {
            assert_eq!(Lines::default().take(input), taken, "{input:?}");
        }
    }

    #[test]
    fn a_line_and_a_reply_have_a_limit() {
        let longest = [vec![b'x'; MAX_LINE], b"\r\n".to_vec()].concat();
        assert!(matches!(Lines::default().take(&longest), (_, Taken::Line(line)) if line.len() == MAX_LINE));
        assert_eq!(Lines::default().take(&[vec![b'x'; MAX_LINE + 1], b"\n".to_vec()].concat()).1, Taken::TooLong);
        assert_eq!(Lines::default().take(&vec![b'x'; MAX_LINE + 2]).1, Taken::TooLong);
        let mut lines = Lines::default();
        for _ in 0..MAX_LINES {
            assert_eq!(lines.take(b"x\n").1, Taken::Line("x".to_owned()));
        }
        assert_eq!(lines.take(b"x\n").1, Taken::TooLong);
        lines.begin_reply();
        assert_eq!(lines.take(b"x\n").1, Taken::Line("x".to_owned()));
    }
}
