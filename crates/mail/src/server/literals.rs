//! An IMAP command with its literals and quoted strings (RFC 9051 sections 4.3 and 9).

use zeroize::Zeroizing;

use super::input::Octets;

/// Maximum octets of a literal (RFC 7888 section 5).
pub const MAX_LITERAL: usize = 4096;
/// Maximum octets of a command with its literals.
const MAX_COMMAND: usize = 16_384;
/// Maximum number of characters of a tag.
const MAX_TAG: usize = 64;

/// A literal that a line announces at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Announced {
    pub(super) octets: usize,
    /// Whether the client waits for a continuation before it sends the octets.
    pub(super) waits: bool,
}

/// The part of a command that has arrived.
#[derive(Debug, Default)]
pub(super) struct Command {
    pieces: Vec<Piece>,
    octets: usize,
}

#[derive(Debug)]
enum Piece {
    Text(Octets),
    Literal(Octets),
}

impl Command {
    /// Whether no line of the command has arrived.
    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Adds a line, and returns the literal that it announces.
    pub(super) fn add_line(&mut self, mut line: Octets) -> Option<Announced> {
        let announced = announced(&line);
        if let Some((start, _)) = announced {
            line.truncate(start);
        }
        self.octets += line.len();
        self.pieces.push(Piece::Text(line));
        announced.map(|(_, announced)| announced)
    }

    pub(super) fn add_literal(&mut self, octets: Octets) {
        self.octets += octets.len();
        self.pieces.push(Piece::Literal(octets));
    }

    /// Whether a literal of `octets` octets fits.
    pub(super) fn has_room(&self, octets: usize) -> bool {
        octets <= MAX_LITERAL && self.octets + octets <= MAX_COMMAND
    }

    /// The tag, if it is valid. The tag is the only part of the input that a reply contains.
    pub(super) fn tag(&self) -> Option<String> {
        let tag = self.words().next()?;
        let valid = (1..=MAX_TAG).contains(&tag.len()) && tag.iter().all(|byte| is_tag_character(*byte));
        valid.then(|| tag.iter().map(|byte| char::from(*byte)).collect())
    }

    /// The command's name in upper case.
    pub(super) fn verb(&self) -> Vec<u8> {
        self.words().nth(1).unwrap_or_default().to_ascii_uppercase()
    }

    /// The words after the command's name in the first line.
    pub(super) fn arguments(&self) -> impl Iterator<Item = &[u8]> {
        self.words().skip(2).filter(|word| !word.is_empty())
    }

    fn words(&self) -> impl Iterator<Item = &[u8]> {
        let text: &[u8] = match self.pieces.first() {
            Some(Piece::Text(text)) => text,
            _ => &[],
        };
        text.split(|byte| *byte == b' ')
    }

    /// The two strings after the command's name: atoms, quoted strings or literals. `None`: there are not exactly two.
    pub(super) fn two_strings(mut self) -> Option<(Octets, Octets)> {
        let Some(Piece::Text(first)) = self.pieces.first_mut() else { return None };
        let spaces = first.iter().enumerate().filter(|(_, byte)| **byte == b' ');
        let after_verb = spaces.map(|(at, _)| at).nth(1)?;
        // Copy the rest, so that dropping the old buffer wipes the verb.
        *first = Zeroizing::new(first[after_verb..].to_vec());
        let mut pieces = self.pieces.into_iter();
        let mut cursor = Cursor { text: pieces.next().map(Piece::octets)?, at: 0, pieces };
        cursor.space()?;
        let user = cursor.string()?;
        cursor.space()?;
        let password = cursor.string()?;
        cursor.is_at_end().then_some((user, password))
    }
}

impl Piece {
    fn octets(self) -> Octets {
        match self {
            Self::Text(octets) | Self::Literal(octets) => octets,
        }
    }
}

/// Reads strings from the pieces of a command.
struct Cursor {
    text: Octets,
    at: usize,
    pieces: std::vec::IntoIter<Piece>,
}

impl Cursor {
    fn rest(&self) -> &[u8] {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn is_at_end(&mut self) -> bool {
        self.rest().is_empty() && self.pieces.next().is_none()
    }

    fn space(&mut self) -> Option<()> {
        (self.rest().first() == Some(&b' ')).then(|| self.at += 1)
    }

    fn string(&mut self) -> Option<Octets> {
        match self.rest().first() {
            None => {
                let literal = self.pieces.next().map(Piece::octets)?;
                self.text = self.pieces.next().map(Piece::octets)?;
                self.at = 0;
                Some(literal)
            }
            Some(b'"') => self.quoted(),
            Some(_) => {
                let length = self.rest().iter().take_while(|byte| is_atom_character(**byte)).count();
                let atom = Zeroizing::new(self.rest()[..length].to_vec());
                self.at += length;
                (length > 0).then_some(atom)
            }
        }
    }

    fn quoted(&mut self) -> Option<Octets> {
        let mut string = Zeroizing::new(Vec::with_capacity(self.rest().len()));
        let mut bytes = self.rest().iter().enumerate().skip(1);
        loop {
            match bytes.next()? {
                (at, b'"') => {
                    self.at += at + 1;
                    return Some(string);
                }
                (_, b'\\') => string.push(*bytes.next()?.1),
                (_, byte) => string.push(*byte),
            }
        }
    }
}

/// The position of a literal's announcement `{n}` or `{n+}` at the end of a line, and the announced literal.
fn announced(line: &[u8]) -> Option<(usize, Announced)> {
    let inner = line.strip_suffix(b"}")?;
    let start = inner.iter().rposition(|byte| *byte == b'{')?;
    let digits = &inner[start + 1..];
    let (digits, waits) = digits.strip_suffix(b"+").map_or((digits, true), |digits| (digits, false));
    let number = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(digits).ok().filter(|_| number)?;
    Some((start, Announced { octets: text.parse().unwrap_or(usize::MAX), waits }))
}

/// RFC 9051 section 9: `tag` is one or more ASTRING-CHAR without `+`.
fn is_tag_character(byte: u8) -> bool {
    byte.is_ascii_graphic() && !b"(){%*\"\\+".contains(&byte)
}

/// Whether a byte belongs to an atom. RFC 9051 allows fewer bytes, but clients send passwords without quotes.
fn is_atom_character(byte: u8) -> bool {
    byte > b' ' && byte != 0x7f && !b"(){\"".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Octets {
        Zeroizing::new(text.as_bytes().to_vec())
    }

    #[test]
    fn a_login_has_exactly_two_strings() {
        for (line, strings) in [
            (r"a LOGIN me secret", Some(("me", "secret"))),
            (r#"a LOGIN "me" "se\"c\\ret {3}""#, Some(("me", r#"se"c\ret {3}"#))),
            (r#"a LOGIN me """#, Some(("me", ""))),
            (r"a LOGIN me p%ss*", Some(("me", "p%ss*"))),
            (r"a LOGIN me", None),
            (r"a LOGIN  me secret", None),
            (r"a LOGIN me secret more", None),
            (r#"a LOGIN "me secret"#, None),
            (r#"a LOGIN "me"secret"#, None),
            (r"a LOGIN (me) secret", None),
            (r"a LOGIN", None),
            (r"a", None),
        ] {
            let mut command = Command::default();
            assert_eq!(command.add_line(text(line)), None, "{line}");
            let found = command.two_strings();
            let found = found
                .as_ref()
                .map(|(user, password)| (std::str::from_utf8(user).unwrap(), std::str::from_utf8(password).unwrap()));
            assert_eq!(found, strings, "{line}");
        }
    }

    #[test]
    fn literals_stand_for_strings() {
        let mut command = Command::default();
        assert_eq!(command.add_line(text("a LOGIN {2}")), Some(Announced { octets: 2, waits: true }));
        command.add_literal(text("me"));
        assert_eq!(command.add_line(text(" {6+}")), Some(Announced { octets: 6, waits: false }));
        command.add_literal(text("a\r\n\"b "));
        assert_eq!(command.add_line(text("")), None);
        assert_eq!(command.two_strings(), Some((text("me"), text("a\r\n\"b "))));
        for (line, octets) in
            [("{99999999999999999999}", Some(usize::MAX)), ("{}", None), ("{+}", None), ("{1 }", None)]
        {
            assert_eq!(announced(line.as_bytes()).map(|(_, announced)| announced.octets), octets, "{line}");
        }
    }

    #[test]
    fn a_tag_has_a_closed_set_of_characters_and_a_limit() {
        for (line, tag) in [
            ("a1 NOOP", Some("a1")),
            ("A.b-c] NOOP", Some("A.b-c]")),
            ("+ NOOP", None),
            ("a+ NOOP", None),
            ("* NOOP", None),
            (" NOOP", None),
            ("\u{e9} NOOP", None),
            ("", None),
        ] {
            let mut command = Command::default();
            command.add_line(text(line));
            assert_eq!(command.tag().as_deref(), tag, "{line}");
        }
        for (length, valid) in [(MAX_TAG, true), (MAX_TAG + 1, false)] {
            let mut command = Command::default();
            command.add_line(text(&"t".repeat(length)));
            assert_eq!(command.tag().is_some(), valid);
        }
    }
}
