//! The built relay between programs and mail servers that a test controls: the client's view, the server's view, the
//! log and the metrics.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what fails here is a test's failure")]
#![allow(clippy::disallowed_methods, reason = "tests make tokens that are valid now")]

mod answers;
mod copying;
mod failures;
mod limits;
mod login;
mod logins;
mod process;
mod security;
mod stand_ins;
mod support;
