//! The effects of a kill, an outage or a changed clock, for `docs/reliability.md`.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "in tests a panic is the report")]
#![allow(clippy::disallowed_methods, reason = "tests measure real time")]

mod apiserver;
mod clock;
mod control_plane;
mod crash;
mod environment;
mod leader;
