//! The relay: a mail program logs in at it with a user name and a password, and the relay logs in at the real mail server with the
//! token in a mounted Secret. From then on it copies bytes. It has no credentials of its own, stores nothing, and uses neither
//! Kubernetes nor an HTTP client.

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
