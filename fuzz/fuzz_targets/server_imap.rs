//! The server's side of IMAP before login: any split of a client's bytes gives the same steps, and no reply contains
//! the bytes.
#![no_main]

mod mail_server;

use libfuzzer_sys::fuzz_target;
use mailtoken_mail::protocol::Protocol;

fuzz_target!(|data: &[u8]| mail_server::run(Protocol::Imap, data));
