//! The HTTP client, the login at mail servers, the server for metrics and probes, and name resolution, with hostile
//! peers on real sockets.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "in tests a panic is the report")]
#![allow(clippy::disallowed_methods, reason = "tests measure real time")]

mod admin;
mod egress_dns;
mod idp;
mod mail;
mod tunnels;
