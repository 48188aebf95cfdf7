//! The login at a mail server for any bytes that the server sends.

use mailtoken_mail::{
    dialogue::{Login, Outcome, Purpose, Step},
    protocol::{Protocol, Security},
};

/// Commands that the client may send, without an IMAP tag.
const COMMANDS: [&str; 12] = [
    "EHLO client.example",
    "STARTTLS",
    "STLS",
    "AUTH XOAUTH2",
    "AUTH OAUTHBEARER",
    "AUTHENTICATE XOAUTH2",
    "AUTHENTICATE OAUTHBEARER",
    "",
    "AQ==",
    "QUIT",
    "CAPA",
    "EXAMINE INBOX",
];

/// Plays a server's bytes. The first byte chooses the security, the purpose and the lengths of the reads. The steps are
/// the same as after a single read, the client sends only its own commands, and the login ends or asks for more bytes.
pub fn run(protocol: Protocol, data: &[u8]) {
    let Some((options, bytes)) = data.split_first() else { return };
    let security = if options & 1 == 0 { Security::Tls } else { Security::StartTls };
    let purpose = if options & 2 == 0 { Purpose::Probe } else { Purpose::Session };
    let length = usize::from(options >> 2).max(1);
    let (whole, split) =
        (steps(protocol, security, purpose, bytes, usize::MAX), steps(protocol, security, purpose, bytes, length));
    assert_eq!(whole, split);
    assert!(whole.len() <= 20, "{whole:?}");
    for (_, step) in &whole {
        if let Step::Write(written) = step {
            let line =
                std::str::from_utf8(written).ok().and_then(|text| text.strip_suffix("\r\n")).expect("a line of text");
            let command =
                line.split_once(' ').filter(|(tag, _)| tag.starts_with('m')).map_or(line, |(_, command)| command);
            assert!(COMMANDS.contains(&command) || ["CAPABILITY", "LOGOUT"].contains(&command), "{line}");
        }
    }
}

/// The steps for bytes that arrive in reads of `length` bytes. A step that is not a failure has the number of bytes
/// taken so far.
fn steps(
    protocol: Protocol,
    security: Security,
    purpose: Purpose,
    bytes: &[u8],
    length: usize,
) -> Vec<(Option<usize>, Step)> {
    let mut login = Login::new(protocol, security, purpose, "client.example");
    let (mut steps, mut arrived, mut taken) = (vec![], 0, 0);
    loop {
        let (more, step) = login.advance(&bytes[taken..arrived]);
        taken += more;
        match step {
            Step::Read if arrived == bytes.len() => {
                let _ = login.interrupted();
                return steps;
            }
            Step::Read => arrived = bytes.len().min(arrived.saturating_add(length)),
            Step::Done(Outcome::Failed(_)) => {
                steps.push((None, step));
                return steps;
            }
            Step::Done(_) => {
                steps.push((Some(taken), step));
                return steps;
            }
            step => steps.push((Some(taken), step)),
        }
    }
}
