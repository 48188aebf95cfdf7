//! TLS of all clients: the trusted authorities, and errors in plain words.

mod problem;
mod trust;

pub(crate) use self::problem::bounded;
pub use self::{
    problem::{TlsProblem, tls_problem},
    trust::{BUNDLE_LIMIT, BundleError, Skipped, add_bundle, check_size, client_config, system_roots},
};
