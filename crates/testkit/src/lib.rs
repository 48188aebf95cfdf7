//! The fixtures of the tests: real components, stand-ins, and the built broker as a process. For example:
//!
//! ```ignore
//! let ns = Cluster::shared().namespace().await;
//! let idp = Idp::start();
//! let broker = Broker::start(&ns).await;
//! ns.provider(&idp).await;
//! ns.apply(credential("billing")).await;
//! ns.condition::<MailCredential>("billing", "Ready", "TokenValid").await;
//! idp.answer(Answer::error("invalid_client"));
//! ```
//!
//! A test that lacks a tool fails and names the command to run. No test is skipped.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what fails here is a test's failure")]
#![allow(clippy::disallowed_methods, reason = "tests measure real time")]

pub mod api_proxy;
pub mod audit;
pub mod broker;
pub mod cluster;
pub mod dns;
pub mod fault_log;
pub mod fixture;
pub mod hostile;
pub mod hostile_h2;
pub mod hostile_mail;
pub mod idp;
pub mod leaks;
pub mod login;
pub mod mail;
pub mod manifest;
pub mod mark;
pub mod monitor;
pub mod namespace;
pub mod part;
pub mod process;
pub mod proxy;
pub mod realm;
pub mod refresh_fixture;
pub mod remedy;
pub mod server;
pub mod standin;
pub mod table;
pub mod tenants;
pub mod wait;

pub use api_proxy::{ApiProxy, Ending, Trouble};
pub use broker::Broker;
pub use cluster::Cluster;
pub use fixture::{Fixture, field, reason, text};
pub use idp::{Answer, Idp};
pub use login::Login;
pub use manifest::{Manifest, ca_bundle, credential, provider, source};
pub use monitor::Monitor;
pub use namespace::Namespace;
pub use refresh_fixture::{RefreshFixture, by_seed};
pub use tenants::Tenants;
pub use wait::{PATIENCE, holds, until};
