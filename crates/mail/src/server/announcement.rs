//! The capabilities that the relay announces before login. It may announce less than the mail servers offer, but not
//! more.

use crate::dialogue::Capabilities;

/// SMTP extensions that the relay announces for any mail server, because every server with XOAUTH2 has them.
pub(super) const SMTP_ALWAYS: [&str; 3] = ["PIPELINING", "8BITMIME", "ENHANCEDSTATUSCODES"];
/// IMAP capabilities that the relay itself has, without a mail server.
pub(super) const IMAP_ALWAYS: [&str; 4] = ["IMAP4rev1", "SASL-IR", "LITERAL-", "ID"];

/// SMTP extensions that reach the server unchanged after login (RFC 1870, 6531, 3461, 3030, 2852, 4865, 6710, 9422).
const SMTP_PASSED: [&str; 9] =
    ["SIZE", "SMTPUTF8", "DSN", "CHUNKING", "BINARYMIME", "DELIVERBY", "FUTURERELEASE", "MT-PRIORITY", "LIMITS"];
/// IMAP capabilities that have no meaning, or another meaning, before login. `IMAP4rev2` requires more of a server than
/// the relay has before login.
const IMAP_DROPPED: [&str; 7] =
    ["AUTH", "COMPRESS", "IMAP4rev2", "LITERAL+", "LOGINDISABLED", "STARTTLS", "UNAUTHENTICATE"];
/// Maximum octets of all IMAP capabilities together: clients read lines of 8,192 octets (RFC 7162 section 4).
const MAX_WORDS: usize = 4096;

/// The lines of EHLO's reply that every server offers, with the smallest `SIZE`. Skips a line whose parameters differ.
pub fn smtp_capabilities(servers: &[&Capabilities]) -> Vec<String> {
    SMTP_PASSED.iter().filter_map(|keyword| common(keyword, servers)).collect()
}

fn common(keyword: &str, servers: &[&Capabilities]) -> Option<String> {
    let parameters: Vec<_> = servers.iter().map(|server| server.parameters(keyword)).collect::<Option<_>>()?;
    let first = parameters.first()?;
    if keyword == "SIZE" {
        // Without a parameter, or with 0, the server names no limit (RFC 1870 section 4).
        let limits = parameters.iter().filter_map(|size| size.trim().parse::<u64>().ok()).filter(|size| *size > 0);
        return Some(limits.min().map_or("SIZE".to_owned(), |size| format!("SIZE {size}")));
    }
    let same = parameters.iter().all(|other| other == first);
    same.then(|| if first.is_empty() { keyword.to_owned() } else { format!("{keyword} {first}") })
}

/// The IMAP capabilities that every server offers after login, without the capabilities that the relay itself provides.
pub fn imap_capabilities(servers: &[&Capabilities]) -> Vec<String> {
    let Some((first, others)) = servers.split_first() else { return vec![] };
    let has = |server: &Capabilities, word: &str| server.lines().any(|other| other.eq_ignore_ascii_case(word));
    let dropped = |word: &str| {
        let name = word.split('=').next().unwrap_or_default();
        let is_own = IMAP_ALWAYS.iter().any(|own| own.eq_ignore_ascii_case(word));
        is_own || IMAP_DROPPED.iter().any(|dropped| dropped.eq_ignore_ascii_case(name))
    };
    let mut octets = 0;
    let words = first.lines().filter(|word| !dropped(word) && others.iter().all(|server| has(server, word)));
    words
        .take_while(|word| {
            octets += word.len() + 1;
            octets <= MAX_WORDS
        })
        .map(str::to_owned)
        .collect()
}
