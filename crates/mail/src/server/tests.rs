//! Dialogues with clients, as transcripts: `C:` is a line of the client, `S:` a line that the server must send, `TLS` a
//! handshake, `LOGIN` the credentials, `CLOSE` the end. `ACCEPT`, `REFUSE` and `TEMPORARY` are decisions of the caller.

mod differential;

use proptest::prelude::*;

use super::*;
use crate::{answers::ServerCode, dialogue};

const PLAIN: Offer = Offer { start_tls: false, needs_tls: false, without_auth: false, capabilities: vec![] };

/// The capabilities that the login at a mail server found.
fn offered(protocol: Protocol, words: &str) -> Capabilities {
    if protocol == Protocol::Pop3 {
        return Capabilities::default();
    }
    let security = crate::protocol::Security::Tls;
    let mut login = dialogue::Login::new(protocol, security, dialogue::Purpose::Session, "client.example");
    let lines = words.split(", ").map(|line| format!("250-{line}\r\n")).collect::<String>();
    let bytes = match protocol {
        Protocol::Smtp => format!("220 x\r\n250-mail.example\r\n{lines}250 AUTH XOAUTH2\r\n334 \r\n235 ok\r\n"),
        _ => format!("* OK [CAPABILITY AUTH=XOAUTH2] x\r\n+\r\n* CAPABILITY {words}\r\nm1 OK\r\n"),
    };
    let mut taken = 0;
    loop {
        match login.advance(&bytes.as_bytes()[taken..]) {
            (_, dialogue::Step::Done(dialogue::Outcome::Accepted(offered))) => return offered,
            (length, dialogue::Step::Write(_) | dialogue::Step::SendToken(_)) => taken += length,
            (_, step) => panic!("{step:?}"),
        }
    }
}

fn shown(step: &Step) -> Vec<String> {
    match step {
        Step::Read => vec![],
        Step::Write(bytes) => {
            let text = std::str::from_utf8(bytes).unwrap();
            text.strip_suffix("\r\n")
                .unwrap()
                .split("\r\n")
                .map(|line| format!("S: {line}").trim_end().to_owned())
                .collect()
        }
        Step::StartTls => vec!["TLS".to_owned()],
        Step::LogIn(Identity::WithoutAuth) => vec!["LOGIN without auth".to_owned()],
        Step::LogIn(Identity::Password(Credentials { user, authorization, password })) => {
            let authorization = authorization.as_ref().map(|other| format!(" for {other}")).unwrap_or_default();
            let login = format!("LOGIN {user} / {}{authorization}", String::from_utf8_lossy(password));
            vec![login.trim_end().to_owned()]
        }
        Step::Close(ending) => vec![format!("CLOSE {}", ending.name())],
    }
}

/// Plays a transcript, and fails if the server takes another step.
#[track_caller]
fn play(protocol: Protocol, offer: Offer, transcript: &str) {
    let mut session = Session::new(protocol, offer);
    let mut found = vec![];
    let mut unread: Vec<u8> = vec![];
    let lines: Vec<_> = transcript.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let steps = |session: &mut Session, unread: &mut Vec<u8>, found: &mut Vec<String>| loop {
        let (taken, step) = session.advance(unread);
        unread.drain(..taken);
        found.extend(shown(&step));
        match step {
            Step::Read | Step::Close(_) | Step::LogIn(_) => return,
            Step::StartTls => session.tls_started(),
            Step::Write(_) => {}
        }
    };
    steps(&mut session, &mut unread, &mut found);
    for line in &lines {
        match line.split_once(' ') {
            Some(("C:", text)) => unread.extend(format!("{text}\r\n").replace("\\n\r\n", "\n").into_bytes()),
            _ if *line == "C:" => unread.extend(b"\r\n"),
            Some(("ACCEPT", words)) => {
                let Accepted { reply, forward } = session.accept(&offered(protocol, words));
                let lines = |name: &str, bytes: &[u8]| {
                    let text = String::from_utf8(bytes.to_vec()).unwrap();
                    text.lines().map(|line| format!("{name} {line}")).collect::<Vec<_>>()
                };
                found.push((*line).to_owned());
                found.extend(lines("S:", &reply));
                found.extend(lines("FORWARD", &forward));
                continue;
            }
            _ if line.starts_with("REFUSE") || *line == "TEMPORARY" => {
                session.refuse(match *line {
                    "REFUSE 535 5.7.139" => Refusal::Permanent(Some(ServerCode::Smtp(535, Some((5, 7, 139))))),
                    "REFUSE" => Refusal::Permanent(None),
                    _ => Refusal::Temporary,
                });
            }
            _ => continue,
        }
        found.push((*line).to_owned());
        steps(&mut session, &mut unread, &mut found);
    }
    assert_eq!(found, lines, "found:\n{}\n", found.join("\n"));
}

#[test]
fn smtp_takes_plain_and_login_with_and_without_initial_response() {
    play(
        Protocol::Smtp,
        PLAIN,
        "S: 220 mail-token-relay ESMTP
        C: EHLO client.example
        S: 250-mail-token-relay
        S: 250-PIPELINING
        S: 250-8BITMIME
        S: 250-ENHANCEDSTATUSCODES
        S: 250 AUTH PLAIN LOGIN
        C: AUTH PLAIN
        S: 334
        C: AG1lAHNlY3JldA==
        LOGIN me / secret
        REFUSE
        S: 535 5.7.8 Authentication failed: the relay's log has the cause
        C: auth plain AG1lAHNlY3JldA==
        LOGIN me / secret
        TEMPORARY
        S: 454 4.7.0 Temporary authentication failure: the relay's log has the cause
        C: AUTH PLAIN b3RoZXIAbWUAc2VjcmV0
        LOGIN me / secret for other
        REFUSE 535 5.7.139
        S: 535 5.7.8 The mail server refused the token (535 5.7.139)
        C: AUTH LOGIN
        S: 334 VXNlcm5hbWU6
        C: bWU=
        S: 334 UGFzc3dvcmQ6
        C: c2VjcmV0
        LOGIN me / secret
        TEMPORARY
        S: 454 4.7.0 Temporary authentication failure: the relay's log has the cause
        C: AUTH LOGIN bWU=
        S: 334 UGFzc3dvcmQ6
        C:
        LOGIN me /
        ACCEPT SIZE 35
        S: 235 2.7.0 Authentication successful",
    );
}

#[test]
fn smtp_before_login_answers_what_the_contract_lists() {
    play(
        Protocol::Smtp,
        PLAIN,
        "S: 220 mail-token-relay ESMTP
        C: HELO client.example
        S: 250 mail-token-relay
        C: NOOP\\n
        S: 250 2.0.0 OK
        C: RSET
        S: 250 2.0.0 OK
        C: MAIL FROM:<me@example.com>
        S: 530 5.7.0 Authentication required
        C: RCPT TO:<you@example.com>
        S: 530 5.7.0 Authentication required
        C: DATA
        S: 530 5.7.0 Authentication required
        C: BDAT 6 LAST
        S: 530 5.7.0 Authentication required
        C: QUIT
        C: BDAT x
        S: 501 5.5.4 BDAT needs a size
        C: XCLIENT NAME=x
        S: 500 5.5.1 Command not recognized
        C:
        S: 500 5.5.2 Empty command
        C: STARTTLS
        S: 502 5.5.1 STARTTLS is not available
        C: AUTH
        S: 501 5.5.4 AUTH needs a mechanism
        C: AUTH CRAM-MD5
        S: 504 5.5.4 Mechanism not offered: use PLAIN or LOGIN
        C: AUTH PLAIN
        S: 334
        C: *
        S: 501 5.7.0 Authentication cancelled
        C: AUTH PLAIN AG1lAHNlY3JldA
        S: 501 5.5.2 Cannot decode the response
        C: AUTH PLAIN =
        S: 501 5.5.2 Cannot decode the response
        C: AUTH LOGIN
        S: 334 VXNlcm5hbWU6
        C: b!Q=
        S: 501 5.5.2 Cannot decode the response
        C: BDAT 65536
        S: 421 4.7.0 Too many octets before login
        CLOSE octets",
    );
    play(Protocol::Smtp, PLAIN, "S: 220 mail-token-relay ESMTP\nC: QUIT\nS: 221 2.0.0 Bye\nCLOSE quit");
}

#[test]
fn smtp_accepts_no_password_before_tls() {
    let capabilities = vec!["SIZE 35".to_owned()];
    play(
        Protocol::Smtp,
        Offer { start_tls: true, needs_tls: true, without_auth: true, capabilities },
        "S: 220 mail-token-relay ESMTP
        C: EHLO client.example
        S: 250-mail-token-relay
        S: 250-PIPELINING
        S: 250-8BITMIME
        S: 250-ENHANCEDSTATUSCODES
        S: 250-SIZE 35
        S: 250 STARTTLS
        C: AUTH PLAIN AG1lAHNlY3JldA==
        S: 530 5.7.0 Must issue a STARTTLS command first
        C: MAIL FROM:<me@example.com>
        S: 530 5.7.0 Must issue a STARTTLS command first
        C: STARTTLS now
        S: 501 5.5.4 STARTTLS has no parameters
        C: STARTTLS
        S: 220 2.0.0 Ready to start TLS
        TLS
        C: STARTTLS
        S: 502 5.5.1 STARTTLS is not available
        C: EHLO client.example
        S: 250-mail-token-relay
        S: 250-PIPELINING
        S: 250-8BITMIME
        S: 250-ENHANCEDSTATUSCODES
        S: 250-SIZE 35
        S: 250 AUTH PLAIN LOGIN
        C: AUTH PLAIN AG1lAHNlY3JldA==
        LOGIN me / secret",
    );
}

#[test]
fn a_mail_without_auth_is_a_login_where_it_is_allowed() {
    play(
        Protocol::Smtp,
        Offer { without_auth: true, ..PLAIN },
        "S: 220 mail-token-relay ESMTP
        C: HELO client.example
        S: 250 mail-token-relay
        C: RCPT TO:<you@example.com>
        S: 503 5.5.1 Send MAIL first
        C: MAIL FROM:<me@example.com> SIZE=3
        LOGIN without auth
        TEMPORARY
        S: 454 4.7.0 Temporary authentication failure: the relay's log has the cause
        C: MAIL FROM:<me@example.com>\\n
        LOGIN without auth
        ACCEPT SIZE 35
        FORWARD MAIL FROM:<me@example.com>",
    );
}

#[test]
fn imap_takes_login_and_authenticate() {
    play(
        Protocol::Imap,
        PLAIN,
        r#"S: * OK [CAPABILITY IMAP4rev1 SASL-IR LITERAL- ID AUTH=PLAIN AUTH=LOGIN] mail-token-relay ready
        C: a1 CAPABILITY
        S: * CAPABILITY IMAP4rev1 SASL-IR LITERAL- ID AUTH=PLAIN AUTH=LOGIN
        S: a1 OK Completed
        C: a2 noop
        S: a2 OK Completed
        C: a3 ID ("name" {3}
        S: + OK
        C: x
        C: "version" {2+}
        C:
        C: )
        S: * ID NIL
        S: a3 OK Completed
        C: a4 LOGIN {2}
        S: + OK
        C: me {6+}
        C: secret
        LOGIN me / secret
        REFUSE
        S: a4 NO [AUTHENTICATIONFAILED] The relay's log has the cause
        C: a5 LOGIN "m\"e" ""
        LOGIN m"e /
        TEMPORARY
        S: a5 NO [UNAVAILABLE] Temporary failure: the relay's log has the cause
        C: a6 AUTHENTICATE PLAIN
        S: +
        C: AG1lAHNlY3JldA==
        LOGIN me / secret
        REFUSE 535 5.7.139
        S: a6 NO [AUTHENTICATIONFAILED] The mail server refused the token
        C: a7 AUTHENTICATE LOGIN
        S: + VXNlcm5hbWU6
        C: bWU=
        S: + UGFzc3dvcmQ6
        C: c2VjcmV0
        LOGIN me / secret
        TEMPORARY
        S: a7 NO [UNAVAILABLE] Temporary failure: the relay's log has the cause
        C: a8 AUTHENTICATE PLAIN AG1lAHNlY3JldA==
        LOGIN me / secret
        ACCEPT IMAP4rev1 IDLE AUTH=XOAUTH2 X]
        S: a8 OK [CAPABILITY IMAP4rev1 IDLE AUTH=XOAUTH2] Logged in"#,
    );
}

#[test]
fn imap_refuses_what_does_not_fit() {
    play(
        Protocol::Imap,
        PLAIN,
        "S: * OK [CAPABILITY IMAP4rev1 SASL-IR LITERAL- ID AUTH=PLAIN AUTH=LOGIN] mail-token-relay ready
        C: a1 NOOP\\n
        S: a1 BAD A line must end with CRLF
        C: a2 LOGIN {4097}
        S: a2 BAD Literal too long
        C: a3 APPEND INBOX {5}
        S: a3 BAD Command not recognized before login
        C: a4 SELECT INBOX
        S: a4 BAD Command not recognized before login
        C: a5 LOGIN me
        S: a5 BAD LOGIN needs a user name and a password
        C: <b>x</b>* LOGIN me secret
        S: * BAD A command begins with a tag
        C: a6 AUTHENTICATE
        S: a6 BAD AUTHENTICATE needs a mechanism
        C: a7 AUTHENTICATE GSSAPI
        S: a7 NO Mechanism not offered: use PLAIN or LOGIN
        C: a8 AUTHENTICATE PLAIN
        S: +
        C: *
        S: a8 BAD Authentication cancelled
        C: a9 AUTHENTICATE LOGIN
        S: + VXNlcm5hbWU6
        C: bWU=\\n
        S: a9 BAD A line must end with CRLF
        C: b1 STARTTLS
        S: b1 BAD STARTTLS is not available
        C: b2 LOGIN {4097+}
        S: * BYE Too many octets before login
        CLOSE octets",
    );
    play(
        Protocol::Imap,
        Offer { start_tls: true, needs_tls: true, capabilities: vec!["IDLE".to_owned()], ..PLAIN },
        "S: * OK [CAPABILITY IMAP4rev1 SASL-IR LITERAL- ID LOGINDISABLED STARTTLS IDLE] mail-token-relay ready
        C: a1 LOGIN {2}
        S: a1 NO [PRIVACYREQUIRED] Send STARTTLS first
        C: a2 AUTHENTICATE PLAIN
        S: a2 NO [PRIVACYREQUIRED] Send STARTTLS first
        C: a3 STARTTLS
        S: a3 OK Begin TLS negotiation
        TLS
        C: a4 CAPABILITY
        S: * CAPABILITY IMAP4rev1 SASL-IR LITERAL- ID AUTH=PLAIN AUTH=LOGIN IDLE
        S: a4 OK Completed
        C: a5 LOGOUT
        S: * BYE Logging out
        S: a5 OK Completed
        CLOSE quit",
    );
}

#[test]
fn pop3_takes_user_and_pass_and_auth() {
    play(
        Protocol::Pop3,
        PLAIN,
        "S: +OK mail-token-relay ready
        C: STLS
        S: -ERR STLS is not available
        C: CAPA
        S: +OK
        S: USER
        S: SASL PLAIN LOGIN
        S: RESP-CODES
        S: AUTH-RESP-CODE
        S: TOP
        S: UIDL
        S: .
        C: AUTH
        S: +OK
        S: PLAIN
        S: LOGIN
        S: .
        C: APOP me c4c9334bac560ecc979e58001b3e22fb
        S: -ERR Command not recognized before login
        C: PASS secret
        S: -ERR Send USER first
        C: USER me
        S: +OK
        C: PASS  sec ret
        LOGIN me /  sec ret
        REFUSE
        S: -ERR [AUTH] Authentication failed: the relay's log has the cause
        C: USER me\\n
        S: -ERR A line must end with CRLF
        C: NOOP
        S: +OK
        C: AUTH LOGIN
        S: + VXNlcm5hbWU6
        C: bWU=
        S: + UGFzc3dvcmQ6
        C: c2VjcmV0
        LOGIN me / secret
        TEMPORARY
        S: -ERR [SYS/TEMP] Temporary failure: the relay's log has the cause
        C: AUTH NTLM
        S: -ERR Mechanism not offered: use PLAIN or LOGIN
        C: AUTH PLAIN
        S: +
        C: x
        S: -ERR Cannot decode the response
        C: AUTH PLAIN AG1lAHNlY3JldA==
        LOGIN me / secret
        ACCEPT IMAP4rev1
        S: +OK Logged in",
    );
    play(
        Protocol::Pop3,
        Offer { start_tls: true, needs_tls: true, ..PLAIN },
        "S: +OK mail-token-relay ready
        C: CAPA
        S: +OK
        S: RESP-CODES
        S: AUTH-RESP-CODE
        S: TOP
        S: UIDL
        S: STLS
        S: .
        C: USER me
        S: -ERR Send STLS first
        C: AUTH PLAIN AG1lAHNlY3JldA==
        S: -ERR Send STLS first
        C: STLS
        S: +OK Begin TLS
        TLS
        C: AUTH
        S: +OK
        S: PLAIN
        S: LOGIN
        S: .
        C: QUIT
        S: +OK Bye
        CLOSE quit",
    );
}

#[test]
fn three_refused_logins_end_the_session() {
    let refused = |login: &str, reply: &str| format!("C: {login}\nLOGIN me / secret\nREFUSE\nS: {reply}\n").repeat(3);
    for (protocol, greeting, rounds, last) in [
        (
            Protocol::Smtp,
            "220 mail-token-relay ESMTP",
            refused("AUTH PLAIN AG1lAHNlY3JldA==", "535 5.7.8 Authentication failed: the relay's log has the cause"),
            "S: 421 4.7.0 Too many refused logins\nCLOSE refusals",
        ),
        (
            Protocol::Imap,
            "* OK [CAPABILITY IMAP4rev1 SASL-IR LITERAL- ID AUTH=PLAIN AUTH=LOGIN] mail-token-relay ready",
            refused("a LOGIN me secret", "a NO [AUTHENTICATIONFAILED] The relay's log has the cause"),
            "S: * BYE Too many refused logins\nCLOSE refusals",
        ),
        (
            Protocol::Pop3,
            "+OK mail-token-relay ready",
            refused("AUTH PLAIN AG1lAHNlY3JldA==", "-ERR [AUTH] Authentication failed: the relay's log has the cause"),
            "CLOSE refusals",
        ),
    ] {
        play(protocol, PLAIN, &format!("S: {greeting}\n{rounds}{last}"));
    }
}

#[test]
fn commands_and_octets_before_login_have_a_limit() {
    for protocol in Protocol::ALL {
        let found = |input: &[u8]| {
            let steps = steps(protocol, PLAIN, input, &[usize::MAX]);
            steps.last().map(|(_, step)| shown(step).concat())
        };
        let noop: &[u8] = if protocol == Protocol::Imap { b"a NOOP\r\n" } else { b"NOOP\r\n" };
        assert!(found(&noop.repeat(100)).unwrap().starts_with("S: "));
        assert_eq!(found(&noop.repeat(101)).as_deref(), Some("CLOSE commands"));
        assert_eq!(found(&vec![b'x'; MAX_OCTETS]).as_deref(), Some("CLOSE octets"));
        assert_eq!(found(&vec![b'x'; 2 * MAX_OCTETS]).as_deref(), Some("CLOSE octets"));
        let too_long = [&vec![b'x'; MAX_LINE + 1], &b"\r\n"[..]].concat();
        assert!(found(&too_long).unwrap().ends_with("Line too long") || protocol == Protocol::Imap);
    }
    let response = [&b"AUTH PLAIN\r\n"[..], &vec![b'x'; MAX_CONTINUATION + 1], b"\r\n"].concat();
    let last = steps(Protocol::Smtp, PLAIN, &response, &[usize::MAX]).pop().map(|(_, step)| shown(&step).concat());
    assert_eq!(last.as_deref(), Some("S: 500 5.5.6 Authentication exchange line is too long"));
}

#[test]
fn a_client_of_smtp_has_a_name() {
    let named = |protocol, input: &[u8]| {
        let mut session = Session::new(protocol, PLAIN);
        let mut rest = input;
        loop {
            let (taken, step) = session.advance(rest);
            rest = &rest[taken..];
            if step == Step::Read {
                return session.client_name().map(str::to_owned);
            }
        }
    };
    assert_eq!(named(Protocol::Smtp, b"EHLO printer.example\r\n").as_deref(), Some("printer.example"));
    assert_eq!(named(Protocol::Smtp, b"NOOP\r\n"), None);
    assert_eq!(named(Protocol::Imap, b"a NOOP\r\n"), None);
}

#[test]
fn other_protocols_are_recognized() {
    for protocol in Protocol::ALL {
        for (input, ending) in [
            (&b"\x16\x03\x01\x02\0\x01"[..], "CLOSE tls_on_plain_port"),
            (b"GET / HTTP/1.1\r\nHost: x\r\n", "CLOSE http"),
            (b"PRI * HTTP/2.0\r\n\r\n", "CLOSE http"),
            (b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n", "CLOSE proxy_header"),
            (b"\r\n\r\n\0\r\nQUIT\n\x21\x11", "CLOSE proxy_header"),
        ] {
            let last = steps(protocol, PLAIN, input, &[1]).pop().map(|(_, step)| shown(&step).concat());
            assert_eq!(last.as_deref(), Some(ending), "{protocol:?} {input:?}");
        }
    }
}

#[test]
fn the_relay_announces_what_every_server_offers() {
    let smtp = |servers: &[&str]| {
        let servers: Vec<_> = servers.iter().map(|words| offered(Protocol::Smtp, words)).collect();
        smtp_capabilities(&servers.iter().collect::<Vec<_>>()).join(", ")
    };
    assert_eq!(smtp(&[]), "");
    assert_eq!(
        smtp(&["SIZE 35, smtputf8, XCLIENTS, DSN, BURL imap, REQUIRETLS, ETRN, CHUNKING, LIMITS RCPTMAX=3"]),
        "SIZE 35, SMTPUTF8, DSN, CHUNKING, LIMITS RCPTMAX=3"
    );
    assert_eq!(smtp(&["SIZE 35, DSN, LIMITS RCPTMAX=3", "LIMITS RCPTMAX=4, SIZE 30, CHUNKING"]), "SIZE 30");
    assert_eq!(smtp(&["SIZE 0", "SIZE"]), "SIZE");
    assert_eq!(smtp(&["SIZE 35", "DSN"]), "");
    let imap = |servers: &[&str]| {
        let servers: Vec<_> = servers.iter().map(|words| offered(Protocol::Imap, words)).collect();
        imap_capabilities(&servers.iter().collect::<Vec<_>>()).join(" ")
    };
    assert_eq!(imap(&[]), "");
    assert_eq!(
        imap(&[
            "IMAP4rev1 IMAP4rev2 IDLE AUTH=PLAIN STARTTLS LOGINDISABLED LITERAL+ COMPRESS=DEFLATE UNAUTHENTICATE SASL-IR QUOTA=RES"
        ]),
        "IDLE QUOTA=RES"
    );
    assert_eq!(imap(&["IDLE MOVE", "move"]), "MOVE");
}

/// All steps for bytes that arrive in pieces of the given lengths, each step with the number of bytes taken so far.
/// Refuses every second login.
fn steps(protocol: Protocol, offer: Offer, bytes: &[u8], pieces: &[usize]) -> Vec<(usize, Step)> {
    let mut session = Session::new(protocol, offer);
    let (mut steps, mut arrived, mut taken, mut logins) = (vec![], 0, 0, 0);
    let mut pieces = pieces.iter().copied().cycle();
    loop {
        let (length, step) = session.advance(&bytes[taken..arrived]);
        taken += length;
        match &step {
            Step::Read if arrived == bytes.len() => return steps,
            Step::Read => {
                arrived = bytes.len().min(arrived.saturating_add(pieces.next().unwrap_or(1).max(1)));
                continue;
            }
            Step::Close(_) => {
                steps.push((taken, step));
                return steps;
            }
            Step::StartTls => session.tls_started(),
            Step::LogIn(_) => {
                logins += 1;
                session.refuse(if logins % 2 == 0 { Refusal::Permanent(None) } else { Refusal::Temporary });
            }
            Step::Write(_) => {}
        }
        steps.push((taken, step));
    }
}

/// A word that no reply of the server contains.
const CANARY: &str = "kanarienvogel";

/// Bytes of a client: commands of the three protocols, and nonsense between them.
fn client() -> impl Strategy<Value = Vec<u8>> {
    let commands = prop_oneof![
        8 => prop::sample::select(vec![
            "EHLO kanarienvogel", "HELO kanarienvogel", "MAIL FROM:<kanarienvogel>", "RCPT TO:<x>", "BDAT 7", "RSET", "AUTH PLAIN", "AUTH LOGIN",
            "AUTH PLAIN AGthbmFyaWVudm9nZWwAeA==", "AUTH LOGIN a2FuYXJpZW52b2dlbA==", "a2FuYXJpZW52b2dlbA==", "AGthbmFyaWVudm9nZWwAeA==", "*",
            "t1 LOGIN kanarienvogel x", "t2 LOGIN {13}", "kanarienvogel {3+}", "t3 LOGIN \"kanarienvogel\" \"\"", "t4 ID (\"a\" \"kanarienvogel\")",
            "t5 AUTHENTICATE PLAIN", "t6 AUTHENTICATE LOGIN", "t7 CAPABILITY", "t8 STARTTLS", "STARTTLS", "STLS", "CAPA", "USER kanarienvogel",
            "PASS kanarienvogel", "(kanarienvogel) NOOP", "XYZ kanarienvogel", "", "GET / HTTP/1.1",
        ]).prop_map(|line| format!("{line}\r\n").into_bytes()),
        1 => prop::sample::select(vec!["NOOP\n", "t9 NOOP\n", "kanarienvogel"]).prop_map(|line| line.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..40),
        1 => Just(vec![b'x'; MAX_CONTINUATION + 10]),
    ];
    prop::collection::vec(commands, 0..20).prop_map(|commands| commands.concat())
}

proptest! {
    #[test]
    fn any_split_of_the_input_gives_the_same_steps(
        protocol in prop::sample::select(Protocol::ALL.to_vec()),
        (start_tls, needs_tls, without_auth) in any::<(bool, bool, bool)>(),
        bytes in client(),
        pieces in prop::collection::vec(1_usize..50, 1..20),
    ) {
        let offer = || Offer { start_tls, needs_tls, without_auth, capabilities: vec![] };
        prop_assert_eq!(steps(protocol, offer(), &bytes, &[usize::MAX]), steps(protocol, offer(), &bytes, &pieces));
    }

    #[test]
    fn no_reply_contains_what_the_client_sent_but_its_tag(
        protocol in prop::sample::select(Protocol::ALL.to_vec()),
        (start_tls, without_auth) in any::<(bool, bool)>(),
        bytes in client(),
    ) {
        let offer = Offer { start_tls, needs_tls: false, without_auth, capabilities: vec![] };
        for (_, step) in steps(protocol, offer, &bytes, &[usize::MAX]) {
            if let Step::Write(written) = step {
                let text = String::from_utf8(written).unwrap();
                prop_assert!(text.ends_with("\r\n"));
                prop_assert!(text.bytes().all(|byte| byte.is_ascii_graphic() || b" \r\n".contains(&byte)));
                let without_tags = text.lines().map(|line| match protocol {
                    Protocol::Imap => line.split_once(' ').map_or("", |(_, rest)| rest),
                    _ => line,
                });
                for line in without_tags {
                    prop_assert!(!line.contains(CANARY) && !line.contains("a2FuYXJpZW52b2dlbA"), "{}", line);
                }
            }
        }
    }
}
