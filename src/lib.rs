//! The broker as a library. `ARCHITECTURE.md` describes what each module contains.

pub mod admin;
pub mod admission;
pub mod app;
pub mod cli;
mod controller;
pub mod health;
pub mod lease;
pub mod metrics;
mod reconcile;
pub mod release;
mod side;
pub mod stop;
mod stores;
pub mod telemetry;

pub use mailtoken_client::{error, kubernetes, login, provider_client, settings};
pub use mailtoken_core::{api, oauth, policy, providers, render};
pub use mailtoken_net::{clock, egress, fail_point, idp, mail};
