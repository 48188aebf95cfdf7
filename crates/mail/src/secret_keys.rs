//! The names of the keys in the Secret that pods mount. Keys for one protocol begin with `smtp_`, `imap_` or `pop3_`.

/// Placeholders with a value for every credential. Each placeholder is also the name of a key.
pub const COMMON: [&str; 8] =
    ["access_token", "token_type", "expires_at", "expires_at_unix", "username", "from", "xoauth2", "oauthbearer"];
/// Suffixes after `smtp_`, `imap_` and `pop3_` of placeholders and keys for the protocol's server.
pub const SERVER: [&str; 3] = ["host", "port", "security"];
/// Suffix after `smtp_`, `imap_` and `pop3_` of the placeholder and key for the user name at that protocol's server.
pub const USERNAME: &str = "username";
/// Suffixes after `smtp_`, `imap_` and `pop3_` of keys that are not placeholders: the SASL responses for the protocol's
/// user name.
pub const RESPONSES: [&str; 2] = ["xoauth2", "oauthbearer"];
/// The key of the file that Postfix's sasl-xoauth2 reads.
pub const SASL_XOAUTH2: &str = "sasl-xoauth2.json";
/// The key of the file with the token and its expiry.
pub const TOKEN_JSON: &str = "token.json";
