//! The authorities that a client trusts: the system's roots, and a provider's CA bundle.

use std::{fmt, sync::Arc};

use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::{Error as PemError, PemObject};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore};
use tracing::warn;

/// Maximum size of a CA bundle in bytes: twice the size of the usual file with all public roots.
pub const BUNDLE_LIMIT: usize = 512 * 1024;

/// Number of servers whose TLS sessions a client remembers, to resume them without a full handshake.
const REMEMBERED_SESSIONS: usize = 32;

/// Errors of a CA bundle.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// The bundle is larger than [`BUNDLE_LIMIT`]. The broker parsed none of it.
    #[error("the ca bundle has {size} bytes, more than the {limit} that are read")]
    TooLarge {
        /// The bundle's size in bytes.
        size: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The bundle has no PEM block.
    #[error("the ca bundle holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)")]
    NoCertificate,
    /// The bundle has PEM blocks, but none is a usable certificate.
    #[error("the ca bundle holds no certificate that can be used: {0}")]
    NothingUsable(Skipped),
    /// The TLS or HTTP library refused certificates that it had parsed.
    #[error("the ca bundle could not be used")]
    Unusable,
}

/// Reads the system's roots, also from `SSL_CERT_FILE` and `SSL_CERT_DIR`. The result may be empty, because each
/// provider may have its own bundle.
pub fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let loaded = rustls_native_certs::load_native_certs();
    for error in &loaded.errors {
        warn!(%error, "certificate of the system not read");
    }
    let (_, ignored) = roots.add_parsable_certificates(loaded.certs);
    if ignored > 0 {
        warn!(ignored, "certificates of the system not parsed");
    }
    if roots.is_empty() {
        warn!("no CA certificates in the system: only servers with a CA bundle are reachable");
    }
    roots
}

/// Returns a client configuration with TLS 1.2 and 1.3 and rustls' complete verification.
///
/// # Errors
/// If no TLS version or cipher is available.
pub fn client_config(roots: RootCertStore) -> Result<ClientConfig, rustls::Error> {
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&TLS13, &TLS12])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.resumption = Resumption::in_memory_sessions(REMEMBERED_SESSIONS);
    Ok(config)
}

/// Checks the size of a CA bundle before the caller parses it: parsing PEM and DER of any size is a known attack
/// (CVE-2024-12401).
pub fn check_size(bundle: &[u8]) -> Result<(), BundleError> {
    match bundle.len() {
        size if size > BUNDLE_LIMIT => Err(BundleError::TooLarge { size, limit: BUNDLE_LIMIT }),
        _ => Ok(()),
    }
}

/// The skipped blocks of a CA bundle, for messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    named: Vec<String>,
    more: usize,
}

/// Maximum number of blocks that a message describes. The message counts the others.
const NAMED_BLOCKS: usize = 5;
/// Maximum length of a block's kind in characters.
const KIND_LENGTH: usize = 40;

impl fmt::Display for Skipped {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.named.join(", "))?;
        match self.more {
            0 => Ok(()),
            more => write!(formatter, " and {more} more"),
        }
    }
}

/// Adds the certificates of `bundle`. Returns the blocks that are not certificates, which files of system roots may
/// also contain; `None` if there are none.
///
/// Text between the blocks is a comment, as `openssl x509 -text` writes it.
pub fn add_bundle(roots: &mut RootCertStore, bundle: &[u8]) -> Result<Option<Skipped>, BundleError> {
    check_size(bundle)?;
    let (mut added, mut skipped) = (0, Skipped { named: vec![], more: 0 });
    for (index, block) in blocks(bundle).into_iter().enumerate() {
        match add_block(roots, block) {
            Ok(()) => added += 1,
            Err(_) if skipped.named.len() == NAMED_BLOCKS => skipped.more += 1,
            Err(why) => skipped.named.push(format!("block {} ({}) {why}", index + 1, kind(block))),
        }
    }
    match (added, skipped.named.is_empty()) {
        (0, true) => Err(BundleError::NoCertificate),
        (0, false) => Err(BundleError::NothingUsable(skipped)),
        (_, nothing) => Ok((!nothing).then_some(skipped)),
    }
}

const BEGIN: &[u8] = b"-----BEGIN ";

/// Splits a bundle into PEM blocks, each with the text up to the next `-----BEGIN `.
fn blocks(bundle: &[u8]) -> Vec<&[u8]> {
    let begins: Vec<_> =
        bundle.windows(BEGIN.len()).enumerate().filter(|(_, window)| *window == BEGIN).map(|(at, _)| at).collect();
    let ends = begins.iter().skip(1).copied().chain([bundle.len()]);
    begins.iter().zip(ends).filter_map(|(begin, end)| bundle.get(*begin..end)).collect()
}

/// Returns the kind from a block's first line, without characters that could mislead a reader.
fn kind(block: &[u8]) -> String {
    let line = block.get(BEGIN.len()..).unwrap_or_default().split(|byte| matches!(byte, b'\n' | b'\r')).next();
    let label = String::from_utf8_lossy(line.unwrap_or_default());
    let label = label.split("-----").next().unwrap_or_default();
    let shown: String =
        label.chars().filter(|letter| letter.is_ascii_graphic() || *letter == ' ').take(KIND_LENGTH).collect();
    if shown.trim().is_empty() { "without a kind".to_owned() } else { shown }
}

/// Adds the certificate in a block, or returns a clause that says why this is impossible.
fn add_block(roots: &mut RootCertStore, block: &[u8]) -> Result<(), &'static str> {
    match kind(block).as_str() {
        "CERTIFICATE" => {}
        kind if kind.ends_with("PRIVATE KEY") => return Err("is a private key, which does not belong there"),
        "TRUSTED CERTIFICATE" => return Err("has OpenSSL's own form: `openssl x509 -in <file>` rewrites it"),
        _ => return Err("is not a certificate"),
    }
    // Accepts indented lines, for example of a bundle that a user pasted into YAML.
    let lines: Vec<_> = block.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).collect();
    let certificate = CertificateDer::from_pem_slice(&lines.join(&b'\n')).map_err(|error| damaged(&error))?;
    roots.add(certificate).map_err(|_| "is not an X.509 certificate")
}

fn damaged(error: &PemError) -> &'static str {
    match error {
        PemError::MissingSectionEnd { .. } => "is damaged: its last line is missing",
        PemError::IllegalSectionStart { .. } => "is damaged: its first line does not end in five hyphens",
        PemError::Base64Decode(_) => "is damaged: it is not base64",
        _ => "is damaged",
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, CustomExtension, DnType, IsCa, KeyPair};
    use rustls::{
        client::{WebPkiServerVerifier, danger::ServerCertVerifier as _},
        pki_types::{ServerName, UnixTime},
    };

    use super::*;
    use crate::tls::problem::{TlsProblem, certificate_problem};

    /// Verifies a chain of root, intermediate and leaf. The certificate with the index `critical` has critical
    /// certificate policies.
    fn verdict(critical: usize, trusted: &[usize]) -> Result<(), rustls::Error> {
        let mut policies = CustomExtension::from_oid_content(
            &[2, 5, 29, 32],
            // The policy 1.2.3 (RFC 5280 section 4.2.1.4).
            vec![0x30, 0x06, 0x30, 0x04, 0x06, 0x02, 0x2a, 0x03],
        );
        policies.set_criticality(true);
        let params = |index: usize, names: &[String]| {
            let mut params = CertificateParams::new(names).unwrap();
            params.distinguished_name.push(DnType::CommonName, format!("certificate {index}"));
            params.custom_extensions = if index == critical { vec![policies.clone()] } else { vec![] };
            params.is_ca = if names.is_empty() { IsCa::Ca(BasicConstraints::Unconstrained) } else { IsCa::NoCa };
            params
        };
        let root = CertifiedIssuer::self_signed(params(0, &[]), KeyPair::generate().unwrap()).unwrap();
        let middle = CertifiedIssuer::signed_by(params(1, &[]), KeyPair::generate().unwrap(), &root).unwrap();
        let key = KeyPair::generate().unwrap();
        let leaf = params(2, &["id.test".to_owned()]).signed_by(&key, &middle).unwrap();
        let mut roots = RootCertStore::empty();
        let bundle: Vec<_> = trusted.iter().map(|index| [root.pem(), middle.pem()][*index].clone()).collect();
        add_bundle(&mut roots, bundle.concat().as_bytes()).unwrap();
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
        let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(1_800_000_000));
        let name = ServerName::try_from("id.test").unwrap();
        verifier.verify_server_cert(leaf.der(), &[middle.der().clone()], &name, &[], now).map(drop)
    }

    #[test]
    fn an_intermediate_with_a_critical_extension_is_accepted_once_the_bundle_has_it() {
        assert_eq!(verdict(3, &[0]), Ok(()));
        assert_eq!(verdict(0, &[0]), Ok(()), "the extensions of a root are not checked");
        for critical in [1, 2] {
            let Err(rustls::Error::InvalidCertificate(problem)) = verdict(critical, &[0]) else { panic!("{critical}") };
            let (problem, words) = certificate_problem(&problem);
            assert_eq!(problem, TlsProblem::CriticalExtension, "{critical}: {words}");
        }
        assert_eq!(verdict(1, &[0, 1]), Ok(()));
        assert_eq!(verdict(1, &[1]), Ok(()));
    }

    fn certificate() -> String {
        rcgen::generate_simple_self_signed(["ca.test".to_owned()]).unwrap().cert.pem()
    }

    fn read(bundle: &str) -> Result<usize, BundleError> {
        let mut roots = RootCertStore::empty();
        add_bundle(&mut roots, bundle.as_bytes()).map(|_| roots.len())
    }

    /// Returns the number of added certificates, and the text about the skipped blocks.
    fn counted(bundle: &str) -> (usize, String) {
        let mut roots = RootCertStore::empty();
        let skipped = add_bundle(&mut roots, bundle.as_bytes()).unwrap();
        (roots.len(), skipped.map(|skipped| skipped.to_string()).unwrap_or_default())
    }

    fn block(kind: &str, content: &str) -> String {
        format!("-----BEGIN {kind}-----\n{content}\n-----END {kind}-----\n")
    }

    #[test]
    fn every_certificate_of_a_bundle_is_added_and_text_between_them_is_a_comment() {
        assert_eq!(read(&certificate()), Ok(1));
        assert_eq!(read(&format!("# first\n{}\n# second\n{}", certificate(), certificate())), Ok(2));
        assert_eq!(read(&certificate().replace('\n', "\r\n")), Ok(1));
    }

    #[test]
    fn a_bundle_without_a_certificate_is_refused() {
        assert_eq!(read(""), Err(BundleError::NoCertificate));
        assert_eq!(read("corp-ca"), Err(BundleError::NoCertificate));
    }

    #[test]
    fn a_bundle_is_measured_before_it_is_parsed() {
        let huge = "x".repeat(BUNDLE_LIMIT + 1);
        assert_eq!(read(&huge), Err(BundleError::TooLarge { size: BUNDLE_LIMIT + 1, limit: BUNDLE_LIMIT }));
        let padded = format!("{}{}", certificate(), "\n".repeat(BUNDLE_LIMIT));
        assert!(matches!(read(&padded), Err(BundleError::TooLarge { .. })));
    }

    #[test]
    fn the_good_certificates_count_and_the_other_blocks_are_named_by_position_and_kind() {
        let good = certificate();
        let key = rcgen::KeyPair::generate().unwrap().serialize_pem();
        let trusted = block("TRUSTED CERTIFICATE", "AAAA");
        let (noise, hollow) = (block("CERTIFICATE", "!!!!"), block("CERTIFICATE", "AAAA"));
        let endless = "-----BEGIN CERTIFICATE-----\nAAAA\n";
        let open = "-----BEGIN CERTIFICATE\nAAAA\n-----END CERTIFICATE-----\n";
        for (bundle, added, words) in [
            (format!("{good}{good}"), 2, ""),
            (format!("{good}{trusted}{good}"), 2, "block 2 (TRUSTED CERTIFICATE) has OpenSSL's own form"),
            (format!("{key}{good}"), 1, "block 1 (PRIVATE KEY) is a private key, which does not belong there"),
            (format!("{good}{}", block("PKCS7", "AAAA")), 1, "block 2 (PKCS7) is not a certificate"),
            (format!("{good}{noise}"), 1, "block 2 (CERTIFICATE) is damaged: it is not base64"),
            (format!("{noise}{good}"), 1, "block 1 (CERTIFICATE) is damaged: it is not base64"),
            (format!("{good}{hollow}"), 1, "block 2 (CERTIFICATE) is not an X.509 certificate"),
            (format!("{good}{endless}"), 1, "block 2 (CERTIFICATE) is damaged: its last line is missing"),
            (format!("{endless}{good}"), 1, "block 1 (CERTIFICATE) is damaged"),
            (format!("{open}{good}"), 1, "block 1 (CERTIFICATE) is damaged"),
            (format!("{good}{}", block("\u{1b}[31mX\u{202e}", "AAAA")), 1, "block 2 ([31mX) is not a certificate"),
            (good.replace("-----BEGIN", "  -----BEGIN"), 1, ""),
            (good.lines().map(|line| format!("    {line}\r\n")).collect(), 1, ""),
        ] {
            let (certificates, skipped) = counted(&bundle);
            assert_eq!(certificates, added, "{bundle}");
            assert!(skipped.starts_with(words) && words.is_empty() == skipped.is_empty(), "{skipped}");
        }
        let many = format!("{good}{}", trusted.repeat(7));
        assert!(counted(&many).1.ends_with("and 2 more"), "{}", counted(&many).1);
    }

    #[test]
    fn a_bundle_without_a_good_certificate_names_what_it_holds() {
        let error =
            read(&format!("{}{}", block("TRUSTED CERTIFICATE", "AAAA"), block("CERTIFICATE", "!"))).unwrap_err();
        let words = error.to_string();
        assert!(words.contains("block 1 (TRUSTED CERTIFICATE)") && words.contains("block 2 (CERTIFICATE)"), "{words}");
    }
}
