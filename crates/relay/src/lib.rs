//! The relay: a mail program logs in at the relay with a user name and a password, and the relay logs in at the mail
//! server with the token in a mounted Secret. After the login the relay copies bytes. The relay has no credentials of
//! its own, stores nothing, and uses neither Kubernetes nor an HTTP client.

mod account;
mod admin;
mod advice;
pub mod app;
pub mod check;
mod copy;
mod leg;
mod limits;
mod listeners;
pub mod log;
mod logins;
mod mailboxes;
mod metrics;
mod mount;
mod open_files;
pub mod ready;
mod relay;
mod session;
pub mod settings;
mod tls;
mod upstream;
