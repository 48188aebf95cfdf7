//! The broker and the relay with real components: an API server, Keycloak, oidc-provider, Dovecot and Postfix.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "in tests a panic is the report")]
#![allow(clippy::disallowed_methods, reason = "tests measure real time")]

mod federation;
mod keycloak;
mod login;
mod mail_servers;
mod private_key_jwt;
mod relay;
mod sign_in;
mod stack_providers;
