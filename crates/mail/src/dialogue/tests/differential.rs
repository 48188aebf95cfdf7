//! Comparisons with the parsers smtp-proto and imap-codec. They read whole protocols, whereas the login reads a small
//! part. Where they accept a server's line, the login must read the same content.

use imap_codec::{
    ResponseCodec,
    decode::Decoder as _,
    imap_types::response::{Code, Data, Response, Status, StatusKind},
};
use proptest::prelude::*;
use smtp_proto::{AUTH_OAUTHBEARER, AUTH_XOAUTH2, EXT_START_TLS, EhloResponse, response::parser::ResponseReceiver};

use super::*;

/// The result of a login for some bytes: the last line that it writes before it reads or ends, and its outcome.
fn last(protocol: Protocol, security: Security, mut bytes: &[u8]) -> (String, Option<Outcome>) {
    let mut login = Login::new(protocol, security, Purpose::Probe, "client.example");
    let mut written = String::new();
    loop {
        let (taken, step) = login.advance(bytes);
        bytes = &bytes[taken..];
        match step {
            Step::Write(line) => written = String::from_utf8(line).unwrap().trim_end().to_owned(),
            Step::Read => return (written, None),
            Step::Done(outcome) => return (written, Some(outcome)),
            Step::StartTls | Step::SendToken(_) => return (format!("{step:?}"), None),
        }
    }
}

fn refusal(outcome: Option<Outcome>) -> Option<String> {
    match outcome {
        Some(Outcome::Failed(Failure { code, .. })) => code.map(|code| code.to_string()),
        Some(Outcome::Accepted(_)) | None => None,
    }
}

/// Returns the text in mixed case: each set bit of `bits` makes a letter lower case.
fn cased(text: &str, bits: u64) -> String {
    let case = |(at, c): (usize, char)| if bits >> (at % 64) & 1 == 0 { c } else { c.to_ascii_lowercase() };
    text.chars().enumerate().map(case).collect()
}

/// Some of `words`, in any order and case.
fn some(words: &[&'static str]) -> impl Strategy<Value = Vec<String>> + use<> {
    let word = (prop::sample::select(words.to_vec()), any::<u64>()).prop_map(|(word, bits)| cased(word, bits));
    prop::collection::vec(word, 1..8)
}

/// The command with the mechanism that a login chooses, or the cause of its failure.
fn chosen(xoauth2: bool, oauthbearer: bool, command: &str) -> (String, Option<Cause>) {
    match (xoauth2, oauthbearer) {
        (true, _) => (format!("{command} XOAUTH2"), None),
        (false, true) => (format!("{command} OAUTHBEARER"), None),
        (false, false) => (String::new(), Some(Cause::NoMechanism)),
    }
}

fn ends_with(found: (String, Option<Outcome>), expected: (String, Option<Cause>)) -> bool {
    match (found, expected) {
        ((_, Some(Outcome::Failed(failure))), (_, Some(cause))) => failure.cause == cause,
        ((written, None), (command, None)) => written.ends_with(&command),
        _ => false,
    }
}

proptest! {
    #[test]
    fn smtp_replies_have_the_code_that_smtp_proto_finds(
        code in 400_u16..600,
        class in 2_u8..6,
        same_class: bool,
        numbers in (0_u8..=255, 0_u8..=255),
        enhanced: bool,
        text in "[ -~]{0,60}",
        lines in 1_usize..5,
    ) {
        let class = if same_class { u8::try_from(code / 100).unwrap() } else { class };
        let prefix = if enhanced { format!("{class}.{}.{} ", numbers.0, numbers.1) } else { String::new() };
        let line = |at| format!("{code}{}{prefix}{text}\r\n", if at == lines { ' ' } else { '-' });
        let reply: String = (1..=lines).map(line).collect();
        let theirs = ResponseReceiver::default().parse(&mut reply.as_bytes().iter()).unwrap();
        // RFC 2034 section 4: the class is the first digit of the code. smtp-proto does not check this.
        let esc = Some(theirs.esc).filter(|[class, ..]| u16::from(*class) == theirs.code / 100 && (enhanced || *class > 0));
        let bytes = format!("220 x\r\n250 AUTH XOAUTH2\r\n{reply}");
        let ours = refusal(last(Protocol::Smtp, Security::Tls, bytes.as_bytes()).1);
        let expected = match esc {
            Some([class, subject, detail]) => format!("{} {class}.{subject}.{detail}", theirs.code),
            None => theirs.code.to_string(),
        };
        prop_assert_eq!(ours, Some(expected), "{}", reply);
    }

    #[test]
    fn ehlo_offers_what_smtp_proto_finds(
        keywords in some(&[
            "STARTTLS", "STARTTLSX", "XSTARTTLS", "AUTH PLAIN XOAUTH2", "AUTH OAUTHBEARER LOGIN", "AUTH PLAIN", "XAUTH XOAUTH2",
            "SIZE 35882577", "PIPELINING", "8BITMIME", "AUTH XOAUTH OAUTHBEARER", "DSN",
        ]),
    ) {
        let lines: Vec<_> = ["mail.example".to_owned()].into_iter().chain(keywords).collect();
        let line = |(at, line): (usize, &String)| format!("250{}{line}\r\n", if at + 1 == lines.len() { ' ' } else { '-' });
        let reply: String = lines.iter().enumerate().map(line).collect();
        let theirs = EhloResponse::parse(&mut reply.as_bytes().iter()).unwrap();
        let has = |mechanism| theirs.auth_mechanisms & mechanism != 0;
        let bytes = format!("220 x\r\n{reply}");
        let expected = chosen(has(AUTH_XOAUTH2), has(AUTH_OAUTHBEARER), "AUTH");
        prop_assert!(ends_with(last(Protocol::Smtp, Security::Tls, bytes.as_bytes()), expected), "{}", reply);
        let expected = match theirs.capabilities & EXT_START_TLS {
            0 => (String::new(), Some(Cause::NoStartTls)),
            _ => ("STARTTLS".to_owned(), None),
        };
        prop_assert!(ends_with(last(Protocol::Smtp, Security::StartTls, bytes.as_bytes()), expected), "{}", reply);
    }

    #[test]
    fn imap_refusals_have_the_status_and_code_that_imap_codec_finds(
        status in prop::sample::select(vec!["NO", "BAD"]),
        case: u64,
        response_code in prop::option::of(prop_oneof![
            prop::sample::select(vec![
                "ALERT", "AUTHENTICATIONFAILED", "UNAVAILABLE", "LIMIT", "INUSE", "OVERQUOTA", "READ-ONLY", "CONTACTADMIN x", "X-OWN",
                "UIDNEXT 7", "TRYCREATE", "ALERTX",
            ]).prop_map(str::to_owned),
            "[A-Z-]{1,12}( [a-z0-9 ]{1,12})?",
        ]),
        text in "[A-Za-z][ -~]{0,40}",
    ) {
        let code = response_code.map(|code| format!("[{code}] ")).unwrap_or_default();
        let line = format!("m1 {} {}{text}\r\n", cased(status, case), cased(&code, case));
        let Ok((rest, Response::Status(Status::Tagged(theirs)))) = ResponseCodec::default().decode(line.as_bytes()) else {
            return Err(TestCaseError::reject("imap-codec does not read the line"));
        };
        prop_assert!(rest.is_empty());
        let known = match theirs.body.code {
            Some(Code::Alert) => Some("ALERT".to_owned()),
            Some(Code::OverQuota) => Some("OVERQUOTA".to_owned()),
            Some(Code::UidNotSticky) => Some("UIDNOTSTICKY".to_owned()),
            Some(Code::Other(other)) => {
                let name = String::from_utf8_lossy(other.inner()).to_ascii_uppercase();
                crate::answers::imap_code(&format!("[{}]", name.split(' ').next().unwrap_or_default())).map(str::to_owned)
            }
            _ => None,
        };
        let status = if theirs.body.kind == StatusKind::Bad { "BAD" } else { "NO" };
        let expected = known.map_or(status.to_owned(), |code| format!("{status} [{code}]"));
        let bytes = format!("* OK [CAPABILITY AUTH=XOAUTH2] x\r\n{line}");
        let ours = refusal(last(Protocol::Imap, Security::Tls, bytes.as_bytes()).1);
        prop_assert_eq!(ours, Some(expected), "{}", line);
    }

    #[test]
    fn imap_capabilities_are_those_that_imap_codec_finds(
        words in some(&[
            "IMAP4REV1", "AUTH=XOAUTH2", "AUTH=OAUTHBEARER", "AUTH=PLAIN", "STARTTLS", "XSTARTTLS", "STARTTLSX", "LOGINDISABLED",
            "X-AUTH=XOAUTH2", "SASL-IR", "AUTH=XOAUTH2X",
        ]),
        in_greeting: bool,
    ) {
        let data = format!("* CAPABILITY {}\r\n", words.join(" "));
        let Ok((_, Response::Data(Data::Capability(theirs)))) = ResponseCodec::default().decode(data.as_bytes()) else {
            return Err(TestCaseError::fail(data));
        };
        let has = |wanted: &str| theirs.as_ref().iter().any(|known| known.to_string().eq_ignore_ascii_case(wanted));
        let bytes = match in_greeting {
            true => format!("* OK [CAPABILITY {}] x\r\n", words.join(" ")),
            false => format!("* OK x\r\n{data}m1 OK x\r\n"),
        };
        let expected = chosen(has("AUTH=XOAUTH2"), has("AUTH=OAUTHBEARER"), "AUTHENTICATE");
        prop_assert!(ends_with(last(Protocol::Imap, Security::Tls, bytes.as_bytes()), expected), "{}", bytes);
        let expected = match has("STARTTLS") {
            true => ("STARTTLS".to_owned(), None),
            false => (String::new(), Some(Cause::NoStartTls)),
        };
        prop_assert!(ends_with(last(Protocol::Imap, Security::StartTls, bytes.as_bytes()), expected), "{}", bytes);
    }
}
