//! The broker as a library.

pub mod clock;
