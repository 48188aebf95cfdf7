//! Dialogues with servers, as transcripts: `S:` is a line of the server, `C:` a line that the client must send, `TLS` a
//! handshake, `TOKEN` the SASL response. The last line is the outcome.

mod differential;
mod imap;

use proptest::prelude::*;

use super::*;

/// A login, its steps so far, and the input that the login has not taken.
struct Driver {
    login: Login,
    unread: Vec<u8>,
}

impl Driver {
    fn new(protocol: Protocol, security: Security, purpose: Purpose) -> Self {
        Self { login: Login::new(protocol, security, purpose, "client.example"), unread: vec![] }
    }

    fn next(&mut self) -> Step {
        let (taken, step) = self.login.advance(&self.unread);
        self.unread.drain(..taken);
        step
    }
}

fn outcome(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Accepted(offered) => {
            format!("accepted {}", offered.lines().collect::<Vec<_>>().join(", ")).trim_end().to_owned()
        }
        Outcome::Failed(Failure { cause, code: Some(code) }) => format!("{cause:?}: {code}"),
        Outcome::Failed(Failure { cause, code: None }) => format!("{cause:?}"),
    }
}

/// Plays a transcript, and fails if the client takes another step.
#[track_caller]
fn play(protocol: Protocol, security: Security, purpose: Purpose, transcript: &str) {
    let mut driver = Driver::new(protocol, security, purpose);
    let lines: Vec<_> = transcript.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let mut lines = lines.iter().peekable();
    loop {
        while let Some(line) = lines.next_if(|line| line.starts_with("S:")) {
            driver.unread.extend(format!("{}\r\n", line[2..].trim_start()).into_bytes());
        }
        let wanted = lines.next().expect("the transcript ends with an outcome");
        let found = match driver.next() {
            Step::Read => match driver.login.interrupted() {
                failure if lines.peek().is_none() => format!("interrupted: {}", outcome(&Outcome::Failed(failure))),
                _ => panic!("the client waits at {wanted:?}"),
            },
            Step::Write(bytes) => {
                format!("C: {}", String::from_utf8(bytes).unwrap().trim_end_matches("\r\n")).trim_end().to_owned()
            }
            Step::StartTls => "TLS".to_owned(),
            Step::SendToken(mechanism) => format!("TOKEN {}", mechanism.name()),
            Step::Done(ended) => outcome(&ended),
        };
        assert_eq!(found, *wanted, "in {transcript}");
        if lines.peek().is_none() {
            return;
        }
    }
}

fn probe(protocol: Protocol, transcript: &str) {
    play(protocol, Security::Tls, Purpose::Probe, transcript);
}

#[test]
fn smtp_starts_tls_and_forgets_what_it_learned_before() {
    play(
        Protocol::Smtp,
        Security::StartTls,
        Purpose::Probe,
        "S: 220 mail.example ESMTP
        C: EHLO client.example
        S: 250-mail.example
        S: 250-AUTH XOAUTH2
        S: 250 STARTTLS
        C: STARTTLS
        S: 220 2.0.0 go
        TLS
        C: EHLO client.example
        S: 250-mail.example
        S: 250-SIZE 157286400
        S: 250 AUTH PLAIN OAUTHBEARER
        C: AUTH OAUTHBEARER
        S: 334
        TOKEN OAUTHBEARER
        S: 235 2.7.0 ok
        C: QUIT
        accepted mail.example, SIZE 157286400, AUTH PLAIN OAUTHBEARER",
    );
}

#[test]
fn a_session_leaves_the_connection_open() {
    let until_token = "S: 220 mail.example ESMTP
        C: EHLO client.example
        S: 250-mail.example
        S: 250 AUTH=XOAUTH2
        C: AUTH XOAUTH2
        S: 334
        TOKEN XOAUTH2
        S: 235 2.7.0 ok
        accepted mail.example, AUTH=XOAUTH2";
    play(Protocol::Smtp, Security::Tls, Purpose::Session, until_token);
    play(
        Protocol::Imap,
        Security::Tls,
        Purpose::Session,
        "S: * OK [CAPABILITY IMAP4rev1 AUTH=XOAUTH2] ready
        C: m1 AUTHENTICATE XOAUTH2
        S: +
        TOKEN XOAUTH2
        S: m1 OK AUTHENTICATE completed.
        C: m2 CAPABILITY
        S: * CAPABILITY IMAP4rev1 IDLE
        S: m2 OK CAPABILITY completed.
        accepted IMAP4rev1, IDLE",
    );
    play(
        Protocol::Imap,
        Security::Tls,
        Purpose::Session,
        "S: * OK ready
        C: m1 CAPABILITY
        S: * CAPABILITY IMAP4rev1 AUTH=XOAUTH2
        S: m1 OK
        C: m2 AUTHENTICATE XOAUTH2
        S: +
        TOKEN XOAUTH2
        S: * CAPABILITY IMAP4rev1 UNSELECT
        S: m2 OK ok
        accepted IMAP4rev1, UNSELECT",
    );
    play(
        Protocol::Pop3,
        Security::Tls,
        Purpose::Session,
        "S: +OK ready
        C: CAPA
        S: +OK
        S: SASL PLAIN XOAUTH2
        S: .
        C: AUTH XOAUTH2
        S: +
        TOKEN XOAUTH2
        S: +OK User successfully authenticated.
        accepted SASL PLAIN XOAUTH2",
    );
}

#[test]
fn imap_opens_the_mailbox_to_see_whether_it_is_there() {
    let until_token = "S: * OK The Microsoft Exchange IMAP4 service is ready.
        C: m1 CAPABILITY
        S: * CAPABILITY IMAP4 IMAP4rev1 AUTH=PLAIN AUTH=XOAUTH2 SASL-IR UIDPLUS
        S: m1 OK CAPABILITY completed.
        C: m2 AUTHENTICATE XOAUTH2
        S: +
        TOKEN XOAUTH2
        S: m2 OK AUTHENTICATE completed.
        C: m3 EXAMINE INBOX\n";
    for (answer, ended) in [
        (
            "S: * 12 EXISTS
             S: * FLAGS {3}
             S: abc)
             S: m3 OK [READ-ONLY] EXAMINE completed.",
            "accepted",
        ),
        ("S: m3 BAD User is authenticated but not connected.", "NotConnected: BAD"),
        ("S: m3 NO Server Unavailable. 15", "Unavailable: NO"),
        ("S: * BYE Connection is closed. 13", "Unavailable: BYE"),
    ] {
        let goodbye = if ended.starts_with("Unavailable") { "" } else { "C: m4 LOGOUT\n" };
        probe(Protocol::Imap, &format!("{until_token}{answer}\n{goodbye}{ended}"));
    }
}

#[test]
fn imap_and_pop3_start_tls_too() {
    play(
        Protocol::Imap,
        Security::StartTls,
        Purpose::Session,
        "S: * OK [CAPABILITY IMAP4rev1 STARTTLS AUTH=OAUTHBEARER LOGINDISABLED] ready
        C: m1 STARTTLS
        S: m1 OK begin
        TLS
        C: m2 CAPABILITY
        S: * CAPABILITY IMAP4rev1 AUTH=XOAUTH2
        S: m2 OK done
        C: m3 AUTHENTICATE XOAUTH2
        S: + 
        TOKEN XOAUTH2
        S: m3 OK [CAPABILITY IMAP4rev1 IDLE] in
        accepted IMAP4rev1, IDLE",
    );
    play(
        Protocol::Pop3,
        Security::StartTls,
        Purpose::Probe,
        "S: +OK
        C: CAPA
        S: +OK
        S: STLS
        S: .
        C: STLS
        S: +OK
        TLS
        C: CAPA
        S: +OK
        S: SASL OAUTHBEARER
        S: .
        C: AUTH OAUTHBEARER
        S: +
        TOKEN OAUTHBEARER
        S: +OK
        C: QUIT
        accepted SASL OAUTHBEARER",
    );
}

#[test]
fn a_challenge_reports_a_refusal_and_is_answered_once() {
    // {"status":"401","schemes":"bearer","scope":"https://mail.google.com/"} in base64.
    let refusal = "eyJzdGF0dXMiOiI0MDEiLCJzY2hlbWVzIjoiYmVhcmVyIiwic2NvcGUiOiJodHRwczovL21haWwuZ29vZ2xlLmNvbS8ifQ==";
    let smtp = |mechanism: &str, answer: &str, rest: &str| {
        probe(
            Protocol::Smtp,
            &format!(
                "S: 220 x
                C: EHLO client.example
                S: 250 AUTH {mechanism}
                C: AUTH {mechanism}
                S: 334
                TOKEN {mechanism}
                S: 334 {refusal}
                C: {answer}
                {rest}"
            ),
        );
    };
    let final_reply = "S: 535-5.7.8 Username and Password not accepted. For more information, go to
        S: 535 5.7.8  https://support.google.com/mail/?p=BadCredentials
        C: QUIT
        Refused: 535 5.7.8";
    smtp("XOAUTH2", "", final_reply);
    smtp("OAUTHBEARER", "AQ==", final_reply);
    smtp("XOAUTH2", "", &format!("S: 334 {refusal}\nRefused"));
    smtp("XOAUTH2", "", "interrupted: Refused");
}

#[test]
fn every_row_of_the_table_gives_its_cause() {
    for (reply, ended) in [
        (
            "535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Tenant. Visit https://aka.ms/smtp_auth_disabled",
            "SmtpAuthDisabledForTenant: 535 5.7.139",
        ),
        (
            "535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Mailbox.",
            "SmtpAuthDisabledForMailbox: 535 5.7.139",
        ),
        (
            "535 5.7.139 Authentication unsuccessful, basic authentication is disabled.",
            "PasswordLoginDisabled: 535 5.7.139",
        ),
        (
            "535 5.7.139 Authentication unsuccessful, the request did not meet the criteria to be authenticated successfully.",
            "BlockedByPolicy: 535 5.7.139",
        ),
        (
            "535 5.7.139 Authentication unsuccessful, user is locked by your organization's security defaults policy.",
            "BlockedByPolicy: 535 5.7.139",
        ),
        ("535 5.7.139 Blocked by Conditional Access.", "BlockedByPolicy: 535 5.7.139"),
        ("535 5.7.139 something new", "Refused: 535 5.7.139"),
        ("535 5.7.3 Authentication unsuccessful [AM0PR01CA0001]", "PermissionMissing: 535 5.7.3"),
        ("535 5.7.30 other", "Refused: 535 5.7.30"),
        ("501 5.5.127 Token lifetime", "TokenTooShortLived: 501 5.5.127"),
        ("501 5.5.124 Invalid XOAUTH2 auth data", "WrongAccountKind: 501 5.5.124"),
        ("534-5.7.9 Please log in with your web browser", "BrowserSignInRequired: 534 5.7.9"),
        ("534-5.7.14 <https://accounts.google.com/signin/continue>", "BrowserSignInRequired: 534 5.7.14"),
        ("535 5.7.8 Error: authentication failed", "Refused: 535 5.7.8"),
        ("550 no", "Refused: 550"),
        ("432 4.3.2 Concurrent connections limit exceeded", "Throttled: 432 4.3.2"),
        ("421 4.3.2 Service not available", "Throttled: 421 4.3.2"),
        ("454 4.7.0 Temporary authentication failure", "Throttled: 454 4.7.0"),
        ("451 4.7.9 later", "Throttled: 451 4.7.9"),
        ("535 9.7.8 odd", "Refused: 535"),
        ("599 5.7.8.9 odd", "Refused: 599"),
        ("235x", "Malformed"),
        ("250 2.0.0 what", "Malformed"),
        ("999 what", "Malformed"),
        ("garbage", "Malformed"),
    ] {
        // Another line follows a line with a hyphen.
        let more = if reply.as_bytes()[3] == b'-' { format!("\nS: {} more", &reply[..3]) } else { String::new() };
        let silent = ["Throttled", "Malformed"].iter().any(|cause| ended.starts_with(cause));
        let goodbye = if silent { "" } else { "C: QUIT\n" };
        probe(
            Protocol::Smtp,
            &format!(
                "S: 220 x
                C: EHLO client.example
                S: 250 AUTH XOAUTH2
                C: AUTH XOAUTH2
                S: 334
                TOKEN XOAUTH2
                S: {reply}{more}
                {goodbye}{ended}"
            ),
        );
    }
    for (reply, ended) in [
        ("m2 NO AUTHENTICATE failed.", "PermissionMissing: NO"),
        ("m2 NO [AUTHENTICATIONFAILED] Invalid credentials (Failure)", "Refused: NO [AUTHENTICATIONFAILED]"),
        ("m2 no [authenticationfailed] Authentication failed.", "Refused: NO [AUTHENTICATIONFAILED]"),
        ("m2 NO [ALERT] Too many simultaneous connections. (Failure)", "Throttled: NO [ALERT]"),
        ("m2 BAD Request is throttled. Suggested Backoff Time: 299999 milliseconds", "Throttled: BAD"),
        ("m2 NO [LIMIT] no", "Throttled: NO [LIMIT]"),
        ("m2 NO [INUSE] no", "Throttled: NO [INUSE]"),
        ("m2 NO [UNAVAILABLE] no", "Unavailable: NO [UNAVAILABLE]"),
        ("m2 NO Server Unavailable. 15", "Unavailable: NO"),
        ("* BYE [LIMIT] no", "Throttled: BYE [LIMIT]"),
        ("* BYE Connection closed. 14", "Unavailable: BYE"),
        ("m2 NO [SECRET-OF-THE-SERVER] no", "Refused: NO"),
        ("m2 BAD what", "Refused: BAD"),
        ("m2 WHAT what", "Malformed"),
        ("m9 OK", "Malformed"),
        ("* PREAUTH", "Preauthenticated"),
    ] {
        let silent =
            ["Throttled", "Malformed", "Unavailable", "Preauthenticated"].iter().any(|cause| ended.starts_with(cause));
        let goodbye = if silent { "" } else { "C: m3 LOGOUT\n" };
        probe(
            Protocol::Imap,
            &format!(
                "S: * OK
                C: m1 CAPABILITY
                S: * CAPABILITY AUTH=XOAUTH2
                S: m1 OK
                C: m2 AUTHENTICATE XOAUTH2
                S: +
                TOKEN XOAUTH2
                S: {reply}
                {goodbye}{ended}"
            ),
        );
    }
    for (reply, ended) in [
        ("-ERR Authentication failure: unknown user name or bad password.", "PermissionMissing: -ERR"),
        ("-ERR [AUTH] no", "Refused: -ERR [AUTH]"),
        ("-ERR [IN-USE] no", "MailboxInUse: -ERR [IN-USE]"),
        ("-ERR Unable to lock maildrop", "MailboxInUse: -ERR"),
        ("-ERR [LOGIN-DELAY] later", "Throttled: -ERR [LOGIN-DELAY]"),
        ("-ERR [SYS/TEMP] later", "Unavailable: -ERR [SYS/TEMP]"),
        ("-ERR Server Unavailable. 21", "Unavailable: -ERR"),
        ("-ERR [SYS/PERM] no", "Refused: -ERR [SYS/PERM]"),
        ("-ERR [HOST mx.example] no", "Refused: -ERR"),
        ("WHAT", "Malformed"),
    ] {
        let silent =
            ["Throttled", "Malformed", "Unavailable", "MailboxInUse"].iter().any(|cause| ended.starts_with(cause));
        let goodbye = if silent { "" } else { "C: QUIT\n" };
        probe(
            Protocol::Pop3,
            &format!(
                "S: +OK
                C: CAPA
                S: +OK
                S: SASL XOAUTH2
                S: .
                C: AUTH XOAUTH2
                S: +
                TOKEN XOAUTH2
                S: {reply}
                {goodbye}{ended}"
            ),
        );
    }
}

#[test]
fn what_a_server_does_not_offer_is_not_used() {
    use Security::{StartTls, Tls};
    for (protocol, security, transcript) in [
        (Protocol::Smtp, StartTls, "S: 220 x\nC: EHLO client.example\nS: 250 AUTH XOAUTH2\nC: QUIT\nNoStartTls"),
        (Protocol::Smtp, Tls, "S: 220 x\nC: EHLO client.example\nS: 250 AUTH PLAIN LOGIN\nC: QUIT\nNoMechanism"),
        (Protocol::Smtp, Tls, "S: 220 x\nC: EHLO client.example\nS: 502 5.5.1 what\nC: QUIT\nNoMechanism"),
        (
            Protocol::Smtp,
            Tls,
            "S: 220 x\nC: EHLO client.example\nS: 250-XCLIENT NAME\nS: 250 AUTH XOAUTH2\nC: QUIT\nOffersXclient",
        ),
        (Protocol::Smtp, Tls, "S: 421 4.3.2 no\nThrottled: 421 4.3.2"),
        (Protocol::Smtp, Tls, "S: 421 4.7.0 Too many connections from your address\nThrottled: 421 4.7.0"),
        (Protocol::Smtp, Tls, "S: 554 5.7.1 no\nUnavailable: 554 5.7.1"),
        (Protocol::Smtp, Tls, "S: HTTP/1.1 400 Bad Request\nMalformed"),
        (
            Protocol::Smtp,
            StartTls,
            "S: 220 x\nC: EHLO client.example\nS: 250 STARTTLS\nC: STARTTLS\nS: 454 4.7.0 TLS not available\nThrottled: 454 4.7.0",
        ),
        (
            Protocol::Smtp,
            StartTls,
            "S: 220 x\nC: EHLO client.example\nS: 250 STARTTLS\nC: STARTTLS\nS: 502 no\nC: QUIT\nNoStartTls",
        ),
        (Protocol::Imap, StartTls, "S: * OK [CAPABILITY IMAP4rev1] x\nC: m1 LOGOUT\nNoStartTls"),
        (Protocol::Imap, Tls, "S: * OK [CAPABILITY IMAP4rev1 AUTH=PLAIN] x\nC: m1 LOGOUT\nNoMechanism"),
        (Protocol::Imap, Tls, "S: * PREAUTH hello\nPreauthenticated"),
        (Protocol::Imap, StartTls, "S: * PREAUTH hello\nPreauthenticated"),
        (Protocol::Imap, Tls, "S: * BYE no\nUnavailable: BYE"),
        (Protocol::Imap, Tls, "S: 220 smtp.example\nMalformed"),
        (Protocol::Pop3, StartTls, "S: +OK\nC: CAPA\nS: -ERR what\nC: QUIT\nNoStartTls"),
        (Protocol::Pop3, Tls, "S: +OK\nC: CAPA\nS: +OK\nS: USER\nS: .\nC: QUIT\nNoMechanism"),
        (Protocol::Pop3, Tls, "S: -ERR [SYS/TEMP] no\nUnavailable: -ERR [SYS/TEMP]"),
        (Protocol::Pop3, Tls, "interrupted: Unavailable"),
    ] {
        play(protocol, security, Purpose::Probe, transcript);
    }
}

#[test]
fn a_client_name_that_does_not_fit_is_replaced() {
    for (name, sent) in [
        ("a.example", "a.example"),
        ("", "[127.0.0.1]"),
        ("a\r\nRSET", "[127.0.0.1]"),
        (&"x".repeat(256), "[127.0.0.1]"),
    ] {
        let mut login = Login::new(Protocol::Smtp, Security::Tls, Purpose::Session, name);
        assert_eq!(login.advance(b"220 x\r\n").1, Step::Write(format!("EHLO {sent}\r\n").into_bytes()));
    }
}

/// All steps for bytes that arrive in pieces of the given lengths, each step with the number of bytes taken so far.
fn steps(
    protocol: Protocol,
    security: Security,
    purpose: Purpose,
    bytes: &[u8],
    pieces: &[usize],
) -> Vec<(usize, Step)> {
    let mut login = Login::new(protocol, security, purpose, "client.example");
    let (mut steps, mut arrived, mut taken) = (vec![], 0, 0);
    let mut pieces = pieces.iter().copied().cycle();
    loop {
        let (length, step) = login.advance(&bytes[taken..arrived]);
        taken += length;
        match step {
            Step::Read if arrived == bytes.len() => return steps,
            Step::Read => arrived = bytes.len().min(arrived + pieces.next().unwrap_or(1).max(1)),
            Step::Done(_) => {
                steps.push((taken, step));
                return steps;
            }
            step => steps.push((taken, step)),
        }
    }
}

#[test]
fn a_literal_is_skipped_however_reads_split_it() {
    let bytes = b"* OK\r\n* ID {11}\r\nm1 BAD no\r\n)\r\n* CAPABILITY AUTH=XOAUTH2\r\nm1 OK\r\n";
    let wanted = [b"m1 CAPABILITY\r\n".to_vec(), b"m2 AUTHENTICATE XOAUTH2\r\n".to_vec()].map(Step::Write);
    for length in 1..bytes.len() {
        let steps = steps(Protocol::Imap, Security::Tls, Purpose::Probe, bytes, &[length]);
        assert_eq!(steps.into_iter().map(|(_, step)| step).collect::<Vec<_>>(), wanted, "{length}");
    }
    let too_long = b"* OK\r\n* ID {4097}\r\n";
    let (_, last) = steps(Protocol::Imap, Security::Tls, Purpose::Probe, too_long, &[1]).pop().unwrap();
    assert_eq!(last, Step::Done(Outcome::Failed(Cause::Malformed.into())));
}

/// Bytes of a server: lines that lead far into the dialogue, and nonsense between them.
fn server() -> impl Strategy<Value = Vec<u8>> {
    let lines = prop_oneof![
        8 => prop::sample::select(vec![
            "220 x", "250-AUTH XOAUTH2", "250 STARTTLS", "250 AUTH XOAUTH2", "334 ", "334 eyJzdGF0dXMiOiI0MDEifQ==", "235 2.7.0 ok",
            "535 5.7.3 no", "* OK hi", "* OK [CAPABILITY AUTH=XOAUTH2 STARTTLS] hi", "* CAPABILITY AUTH=XOAUTH2 STARTTLS", "* X {3}",
            "m1 OK", "m2 OK", "m3 OK", "m4 NO [LIMIT] x", "+", "+ ", "+OK", "SASL XOAUTH2", "STLS", ".", "-ERR [AUTH] x", "* BYE",
        ]).prop_map(|line| format!("{line}\r\n").into_bytes()),
        1 => prop::collection::vec(any::<u8>(), 0..40),
        1 => Just(vec![b'x'; MAX_LINE + 10]),
    ];
    prop::collection::vec(lines, 0..20).prop_map(|lines| lines.concat())
}

proptest! {
    #[test]
    fn any_split_of_the_input_gives_the_same_steps(
        protocol in prop::sample::select(Protocol::ALL.to_vec()),
        start_tls: bool,
        probe: bool,
        bytes in server(),
        pieces in prop::collection::vec(1_usize..50, 1..20),
    ) {
        let security = if start_tls { Security::StartTls } else { Security::Tls };
        let purpose = if probe { Purpose::Probe } else { Purpose::Session };
        let whole = steps(protocol, security, purpose, &bytes, &[usize::MAX]);
        let split = steps(protocol, security, purpose, &bytes, &pieces);
        // After a failure the caller reads no more.
        let compared = |steps: Vec<(usize, Step)>| -> Vec<_> {
            let counts = |step: &Step| !matches!(step, Step::Done(Outcome::Failed(_)));
            steps.into_iter().map(|(taken, step)| (counts(&step).then_some(taken), step)).collect()
        };
        prop_assert_eq!(compared(whole), compared(split));
    }

    #[test]
    fn the_client_sends_nothing_that_the_server_wrote(protocol in prop::sample::select(Protocol::ALL.to_vec()), bytes in server()) {
        let known = ["EHLO client.example", "STARTTLS", "STLS", "AUTH XOAUTH2", "AUTHENTICATE XOAUTH2", "", "AQ==", "QUIT", "CAPA", "CAPABILITY",
            "EXAMINE INBOX", "LOGOUT"];
        for (_, step) in steps(protocol, Security::StartTls, Purpose::Probe, &bytes, &[usize::MAX]) {
            if let Step::Write(written) = step {
                let text = String::from_utf8(written).unwrap();
                let line = text.strip_suffix("\r\n").unwrap();
                let command = line.split_once(' ').filter(|(tag, _)| tag.starts_with('m')).map_or(line, |(_, command)| command);
                prop_assert!(known.contains(&command), "{}", line);
            }
        }
    }
}
