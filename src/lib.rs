//! The broker as a library.

pub mod clock;
pub mod egress;
pub mod idp;
pub mod lease;
