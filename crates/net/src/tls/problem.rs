//! TLS errors, in words that say how to fix them.

use jiff::Timestamp;
use rustls::CertificateError;
use rustls::pki_types::UnixTime;

/// Maximum number of certificate names in a message.
const LISTED_NAMES: usize = 3;

/// Maximum length in characters of a library's text that may contain a server's data.
const FOREIGN_TEXT: usize = 200;

/// Kinds of TLS problems. Each kind has its own fix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsProblem {
    /// No trusted authority issued the certificate: the CA bundle is missing or wrong.
    UnknownIssuer,
    /// The certificate has expired or is not valid yet: renew it, or a clock is wrong.
    Expired,
    /// A certificate of the chain has a critical extension that rustls-webpki does not know, such as certificate
    /// policies (RFC 5280 section 4.2). rustls-webpki does not check the extensions of certificates in the CA bundle.
    CriticalExtension,
    /// The certificate is for other names: the URL or the certificate must change.
    WrongName,
    /// Another problem, such as a server without TLS on this port.
    Other,
}

/// Returns the kind of a TLS error, and a clause in plain words.
pub fn tls_problem(error: &rustls::Error) -> (TlsProblem, String) {
    let other = |detail: String| (TlsProblem::Other, detail);
    match error {
        rustls::Error::InvalidCertificate(problem) => certificate_problem(problem),
        rustls::Error::AlertReceived(alert) => other(format!("the server broke off the handshake ({alert:?})")),
        rustls::Error::PeerIncompatible(problem) => {
            other(format!("the server has no TLS version or cipher in common with the broker ({problem:?})"))
        }
        rustls::Error::InvalidMessage(_) => other("the server does not speak TLS on this port".to_owned()),
        problem => other(bounded(&problem.to_string())),
    }
}

pub(super) fn certificate_problem(problem: &CertificateError) -> (TlsProblem, String) {
    match problem {
        CertificateError::UnknownIssuer => {
            let detail = "the server's certificate was issued by no authority that is trusted here";
            (TlsProblem::UnknownIssuer, detail.to_owned())
        }
        CertificateError::BadSignature => {
            let detail = "the server's certificate was not signed by the trusted authority whose name it gives";
            (TlsProblem::UnknownIssuer, detail.to_owned())
        }
        CertificateError::ExpiredContext { not_after, .. } => {
            (TlsProblem::Expired, format!("the server's certificate expired at {}", moment(*not_after)))
        }
        CertificateError::Expired => (TlsProblem::Expired, "the server's certificate has expired".to_owned()),
        CertificateError::NotValidYetContext { not_before, .. } => {
            (TlsProblem::Expired, format!("the server's certificate is valid only from {}", moment(*not_before)))
        }
        CertificateError::NotValidYet => (TlsProblem::Expired, "the server's certificate is not valid yet".to_owned()),
        CertificateError::NotValidForNameContext { presented, .. } => {
            (TlsProblem::WrongName, format!("the server's certificate is for {}", names(presented)))
        }
        CertificateError::NotValidForName => {
            (TlsProblem::WrongName, "the server's certificate is for other names".to_owned())
        }
        CertificateError::UnhandledCriticalExtension => critical_extension(),
        CertificateError::Other(cause) if cause.to_string().contains("UnsupportedCriticalExtension") => {
            critical_extension()
        }
        CertificateError::Other(cause) if cause.to_string().contains("CaUsedAsEndEntity") => {
            (TlsProblem::Other, "the server uses the certificate of an authority as its own".to_owned())
        }
        problem => {
            (TlsProblem::Other, format!("the server's certificate was refused ({})", bounded(&problem.to_string())))
        }
    }
}

fn critical_extension() -> (TlsProblem, String) {
    let detail = "a certificate that the server sends has a critical extension that the broker does not process";
    (TlsProblem::CriticalExtension, detail.to_owned())
}

fn moment(time: UnixTime) -> String {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    Timestamp::from_second(seconds).map_or_else(|_| "an impossible time".to_owned(), |time| time.to_string())
}

/// Lists the names of a certificate from a trusted authority. rustls returns them in their `Debug` form.
fn names(presented: &[String]) -> String {
    let bare = |name: &String| {
        let inside = name.split_once('(').map_or(name.as_str(), |(_, rest)| rest.trim_end_matches(')'));
        bounded(inside.trim_matches('"'))
    };
    let mut listed: Vec<_> = presented.iter().take(LISTED_NAMES).map(bare).collect();
    match presented.len() {
        0 => return "no name at all".to_owned(),
        more if more > LISTED_NAMES => listed.push(format!("{} more", more - LISTED_NAMES)),
        _ => {}
    }
    listed.join(", ")
}

/// Cuts a library's text to [`FOREIGN_TEXT`] and removes characters that could mislead a reader.
pub(crate) fn bounded(text: &str) -> String {
    // Quotes, backticks and `$` could change a command that the message contains.
    let plain = |character: &char| !character.is_control() && !matches!(character, '`' | '$' | '"' | '\'' | '\\');
    text.chars().filter(plain).take(FOREIGN_TEXT).collect()
}
