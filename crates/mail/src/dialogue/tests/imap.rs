//! Dialogues with IMAP servers that send unusual responses.

use super::*;

const UNTIL_TOKEN: &str = "S: * OK [CAPABILITY IMAP4rev1 AUTH=XOAUTH2] ready
        C: m1 AUTHENTICATE XOAUTH2
        S: +
        TOKEN XOAUTH2
";

fn session(transcript: &str) {
    play(Protocol::Imap, Security::Tls, Purpose::Session, transcript);
}

#[test]
fn a_greeting_is_ok_and_nothing_else() {
    for greeting in ["* CAPABILITY IMAP4rev1 AUTH=XOAUTH2", "* 3 EXISTS", "m0 OK", "m0 NO go away", "+ go on"] {
        session(&format!("S: {greeting}\nMalformed"));
    }
}

#[test]
fn untagged_lines_are_ignored_where_they_announce_nothing() {
    session(
        "S: * OK ready
        C: m1 CAPABILITY
        S: * OK [ALERT] maintenance tonight, see {b} or {}
        S: * CAPABILITY IMAP4rev1 AUTH=XOAUTH2
        S: * FLAGS (\\Seen)
        S: m1 OK
        C: m2 AUTHENTICATE XOAUTH2
        S: +
        TOKEN XOAUTH2
        S: m2 OK [CAPABILITY IMAP4rev1] done
        accepted IMAP4rev1",
    );
}

#[test]
fn a_challenge_after_the_token_is_answered_and_says_whether_it_is_refused() {
    // The challenge is {"status":"401"} in base64.
    session(&format!("{UNTIL_TOKEN}S: + eyJzdGF0dXMiOiI0MDEifQ==\nC:\ninterrupted: Refused"));
    // The challenge is hello in base64.
    session(&format!("{UNTIL_TOKEN}S: + aGVsbG8=\nC:\ninterrupted: Unavailable"));
}

#[test]
fn an_accepted_token_stays_accepted_without_a_list_of_capabilities() {
    let accepted = format!("{UNTIL_TOKEN}S: m1 OK done\nC: m2 CAPABILITY\n");
    session(&format!("{accepted}S: m2 NO not now\naccepted"));
    session(&format!("{accepted}S: m2 BAD what?\naccepted"));
    session(&format!("{accepted}S: * BYE shutting down\nUnavailable: BYE"));
}

#[test]
fn a_server_that_does_not_know_starttls_has_none_and_one_that_refuses_it_is_not_available() {
    let until_starttls = "S: * OK [CAPABILITY IMAP4rev1 STARTTLS] ready\nC: m1 STARTTLS\n";
    let plays = |transcript: String| play(Protocol::Imap, Security::StartTls, Purpose::Session, &transcript);
    plays(format!("{until_starttls}S: m1 BAD unknown command\nC: m2 LOGOUT\nNoStartTls"));
    plays(format!("{until_starttls}S: m1 NO not now\nUnavailable: NO"));
}

#[test]
fn a_login_that_failed_stays_failed() {
    let mut driver = Driver::new(Protocol::Imap, Security::Tls, Purpose::Session);
    driver.unread.extend(b"* PREAUTH welcome\r\n");
    let failure = Failure::from(Cause::Preauthenticated);
    assert_eq!(driver.next(), Step::Done(Outcome::Failed(failure)));
    assert_eq!(driver.login.interrupted(), failure);
}
