//! Requests to providers. Each request runs in a task of its own: a slow provider delays no reconcile, and no watch event
//! cancels a request.

pub mod activity;
pub(super) mod admit;
mod attempt;
mod check_token;
mod device;
mod keyless;
pub mod mail_logins;
pub mod probe;
mod refusals;
pub mod revoke;
mod sign;
pub(super) mod start;
mod token;
mod usable_provider;
