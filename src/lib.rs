//! The broker as a library.

pub mod clock;
pub mod egress;
