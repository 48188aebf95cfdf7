//! Comparisons with imap-codec: the server reads the same credentials from the LOGIN and AUTHENTICATE commands that
//! imap-codec writes.

use imap_codec::{
    CommandCodec,
    encode::Encoder as _,
    imap_types::{
        auth::AuthMechanism,
        command::{Command, CommandBody},
        core::{AString, IString, Literal, LiteralMode, Quoted},
    },
};
use proptest::prelude::*;

use super::*;

/// A string in one of its possible forms: an atom if possible, quoted if possible, or a literal of either kind.
fn string(text: &str, form: u8) -> AString<'static> {
    let literal = |mode| {
        let mut literal = Literal::try_from(text.as_bytes().to_vec()).unwrap();
        literal.set_mode(mode);
        AString::String(IString::Literal(literal))
    };
    match form {
        0 => AString::try_from(text.to_owned()).unwrap(),
        1 => match Quoted::try_from(text.to_owned()) {
            Ok(quoted) => AString::String(IString::Quoted(quoted)),
            Err(_) => literal(LiteralMode::Sync),
        },
        2 => literal(LiteralMode::Sync),
        _ => literal(LiteralMode::NonSync),
    }
}

/// The credentials that a session reads from the bytes of a command.
fn read(bytes: &[u8]) -> Option<Credentials> {
    let mut session = Session::new(Protocol::Imap, PLAIN);
    let mut taken = 0;
    loop {
        let (length, step) = session.advance(&bytes[taken..]);
        taken += length;
        match step {
            Step::LogIn(Identity::Password(credentials)) => return Some(credentials),
            Step::Write(_) => {}
            _ => return None,
        }
    }
}

fn encoded(tag: &str, body: CommandBody<'_>) -> Vec<u8> {
    CommandCodec::default().encode(&Command::new(tag, body).unwrap()).dump()
}

proptest! {
    #[test]
    fn a_login_of_imap_codec_is_read_in_every_form(
        user in "[ -~\u{e9}]{1,40}",
        password in "[\u{1}-~\u{e9}]{0,60}",
        (first, second) in (0_u8..4, 0_u8..4),
        tag in "[A-Za-z0-9.]{1,10}",
    ) {
        let body = CommandBody::login(string(&user, first), string(&password, second)).unwrap();
        let found = read(&encoded(&tag, body)).expect("credentials");
        prop_assert_eq!(found.user, user);
        prop_assert_eq!(found.password.as_slice(), password.as_bytes());
    }

    #[test]
    fn an_initial_response_of_imap_codec_is_read(user in "[!-~]{1,40}", password in "[!-~]{1,60}") {
        let message = format!("\0{user}\0{password}").into_bytes();
        let found = read(&encoded("a", CommandBody::authenticate_with_ir(AuthMechanism::Plain, message))).expect("credentials");
        prop_assert_eq!(found.user, user);
        prop_assert_eq!(found.password.as_slice(), password.as_bytes());
    }
}
