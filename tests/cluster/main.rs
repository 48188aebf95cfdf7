//! The broker with a real etcd and API server: one control plane for all tests, and a namespace for each test.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "in tests a panic is the report")]
#![allow(clippy::disallowed_methods, reason = "tests measure real time")]

mod allowed;
mod backoff;
mod big_providers;
mod bounded;
mod canary;
mod canary_grants;
mod changes;
mod connections;
mod counts;
mod custody;
mod custody_crashes;
mod custody_lost;
mod defaults;
mod device;
mod first_errors;
mod grants;
mod harness;
mod hostile;
mod identity;
mod issue;
mod lease;
mod login;
mod mailbox_story;
mod manual_edits;
mod ownership;
mod probe;
mod process;
mod rate_limit;
mod repair;
mod revocation;
mod scale;
mod schema;
mod schema_providers;
mod sources;
mod sources_watched;
mod tenancy;
mod tenancy_forged;
mod writes;
