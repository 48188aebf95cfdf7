//! The login at IMAP servers: any split of a server's bytes gives the same steps, and the client sends only its own commands.
#![no_main]

mod mail_login;

use libfuzzer_sys::fuzz_target;
use mailtoken_mail::protocol::Protocol;

fuzz_target!(|data: &[u8]| mail_login::run(Protocol::Imap, data));
