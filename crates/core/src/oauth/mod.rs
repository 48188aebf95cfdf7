//! The OAuth protocol without input and output: builds an `http::Request` from values, and reads values from an
//! `http::Response`.

pub mod assertion;
pub mod authorization;
pub mod claims;
pub mod client_auth;
pub mod device;
pub mod discovery;
mod error_body;
mod error_code;
pub mod key_form;
mod lenient;
pub mod refusal;
pub mod revocation;
mod rsa;
pub mod token;
pub mod token_request;

pub use claims::Claims;
pub use client_auth::{ClientAuth, Impersonation, SecretFlaw};
pub use refusal::{OAuthError, Refusal};
pub use token::{Token, TokenAnswer, read_token_response};
pub use token_request::{GrantProof, TokenRequest, token_request};

#[cfg(test)]
mod tests {
    use secrecy::SecretString;
    use zeroize::{ZeroizeOnDrop, Zeroizing};

    use super::{assertion, client_auth, device, token, token_request};
    use crate::lacks;

    /// Asserts that no type of this module that holds a secret, or a value with a secret, implements `$trait`.
    macro_rules! secrets_lack {
        ($trait:path) => {
            lacks!($trait: SecretString, Zeroizing<Vec<u8>>, Zeroizing<String>, token::Token, token::TokenAnswer,
                token::Rotated, device::DeviceAuthorization, client_auth::ClientAuth,
                client_auth::Impersonation, assertion::SigningKey,
                assertion::ServiceAccountKey, token_request::GrantProof<'static>, token_request::TokenRequest<'static>);
        };
    }
    secrets_lack!(std::fmt::Display);
    secrets_lack!(serde::Serialize);

    #[test]
    fn types_with_a_secret_wipe_it_and_print_nothing() {
        const fn wipes<T: ZeroizeOnDrop>() {}
        wipes::<SecretString>();
        wipes::<Zeroizing<Vec<u8>>>();
        wipes::<Zeroizing<String>>();
        // In every package except the tests' package, fields of these names hold secrets.
        let names = [
            "access_token",
            "refresh_token",
            "id_token",
            "device_code",
            "client_secret",
            "private_key",
            "previous",
            "verifier",
        ];
        let field = |line: &str| {
            let (name, kind) = line.trim().trim_end_matches(',').split_once(": ")?;
            let name = name.strip_prefix("pub ").or(name.strip_prefix("pub(super) ")).unwrap_or(name);
            (names.contains(&name) && kind.ends_with(['>', 'g', '8', ']'])).then(|| kind.to_owned())
        };
        let mut seen = 0;
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let members = std::fs::read_dir(root.join("crates")).unwrap().map(|member| member.unwrap().path().join("src"));
        let mut folders: Vec<_> = members.chain([root.join("src")]).collect();
        folders.retain(|folder| folder.is_dir() && !folder.ends_with("testkit/src"));
        while let Some(folder) = folders.pop() {
            for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                for kind in std::fs::read_to_string(&path).unwrap().lines().filter_map(field) {
                    let plain = ["String", "Option<String>", "Vec<u8>", "Box<str>"].contains(&kind.as_str());
                    assert!(!plain, "{}: a secret in a {kind}", path.display());
                    seen += usize::from(kind.contains("SecretString"));
                }
            }
        }
        assert!(seen >= 8, "only {seen} fields found");
    }
}
