//! The decisions, one sentence a test.

pub(crate) mod fixtures;
