//! The protocol without any input or output: values become an `http::Request`, an `http::Response` becomes values.

pub mod assertion;
pub mod authorization;
pub mod claims;
pub mod client_auth;
pub mod device;
pub mod discovery;
pub mod grant;
pub mod refusal;
pub mod revocation;
pub mod token;

pub use claims::Claims;
pub use client_auth::{ClientAuth, SecretFlaw};
pub use grant::{GrantProof, TokenRequest, token_request};
pub use refusal::{OAuthError, Refusal};
pub use token::{Token, TokenAnswer, read_token_response};
