//! Whom the client believes: the system's roots, and a provider's CA bundle.

use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::{Error as PemError, PemObject, SectionKind};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore};
use tracing::warn;

/// Bytes of a CA bundle, at most: twice the size of the usual file with all public roots.
pub const BUNDLE_LIMIT: usize = 512 * 1024;

/// Servers whose sessions a client remembers, to resume them without a full handshake.
const REMEMBERED_SESSIONS: usize = 32;

/// What is wrong with a CA bundle.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// It is larger than [`BUNDLE_LIMIT`]; nothing of it was read.
    #[error("the ca bundle has {size} bytes, more than the {limit} that are read")]
    TooLarge {
        /// The bundle's size in bytes.
        size: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// There is no PEM block in it.
    #[error("the ca bundle holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)")]
    NoCertificate,
    /// It holds a private key, which has no business there.
    #[error("the ca bundle holds a private key: it must hold certificates only")]
    PrivateKey,
    /// It holds a PEM block that is no certificate, or whose first line is indented or damaged.
    #[error("the ca bundle holds a PEM block that is no certificate, or whose first line is indented or damaged")]
    ForeignBlock,
    /// A block has no end, a damaged first line, or is not base64 inside.
    #[error("block {position} of the ca bundle is damaged: {detail}")]
    DamagedBlock {
        /// Which block it is, from 1.
        position: usize,
        /// What is damaged.
        detail: &'static str,
    },
    /// A block is well-formed, but what it holds is no X.509 certificate.
    #[error("block {position} of the ca bundle is no X.509 certificate")]
    InvalidCertificate {
        /// Which block it is, from 1.
        position: usize,
    },
    /// The TLS or HTTP library refused certificates that it had parsed.
    #[error("the ca bundle could not be used")]
    Unusable,
}

/// The system's roots; `SSL_CERT_FILE` and `SSL_CERT_DIR` count. Having none is allowed: each provider may bring its own.
pub(super) fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let loaded = rustls_native_certs::load_native_certs();
    for error in &loaded.errors {
        warn!(%error, "a certificate of the system could not be read");
    }
    let (_, ignored) = roots.add_parsable_certificates(loaded.certs);
    if ignored > 0 {
        warn!(ignored, "certificates of the system could not be parsed");
    }
    if roots.is_empty() {
        warn!("the system has no ca certificates: only providers with a ca bundle can be reached");
    }
    roots
}

/// Verification as rustls does it, with nothing left out.
pub(super) fn client_config(roots: RootCertStore) -> Result<ClientConfig, rustls::Error> {
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&TLS13, &TLS12])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.resumption = Resumption::in_memory_sessions(REMEMBERED_SESSIONS);
    Ok(config)
}

/// The size comes first: parsing PEM and DER of any size is what others were attacked with (CVE-2024-12401).
pub(super) fn check_size(bundle: &[u8]) -> Result<(), BundleError> {
    match bundle.len() {
        size if size > BUNDLE_LIMIT => Err(BundleError::TooLarge { size, limit: BUNDLE_LIMIT }),
        _ => Ok(()),
    }
}

/// Adds every certificate of `bundle`, or none: a bundle of which a part was passed over would fail later, elsewhere.
///
/// Text between the blocks is a comment, as `openssl x509 -text` writes it.
pub(super) fn add_bundle(roots: &mut RootCertStore, bundle: &[u8]) -> Result<(), BundleError> {
    check_size(bundle)?;
    let mut found = 0;
    for block in <(SectionKind, Vec<u8>)>::pem_slice_iter(bundle) {
        found += 1;
        let (kind, content) = block.map_err(|error| damaged(found, &error))?;
        match kind {
            SectionKind::Certificate => {}
            SectionKind::PrivateKey | SectionKind::RsaPrivateKey | SectionKind::EcPrivateKey => {
                return Err(BundleError::PrivateKey);
            }
            _ => return Err(BundleError::ForeignBlock),
        }
        let certificate = CertificateDer::from(content);
        roots.add(certificate).map_err(|_| BundleError::InvalidCertificate { position: found })?;
    }
    // The parser passes over blocks it does not know, and over first lines that do not begin a line.
    match beginnings(bundle) {
        0 => Err(BundleError::NoCertificate),
        begun if begun != found => Err(BundleError::ForeignBlock),
        _ => Ok(()),
    }
}

fn beginnings(bundle: &[u8]) -> usize {
    const BEGIN: &[u8] = b"-----BEGIN ";
    bundle.windows(BEGIN.len()).filter(|window| *window == BEGIN).count()
}

fn damaged(position: usize, error: &PemError) -> BundleError {
    let detail = match error {
        PemError::MissingSectionEnd { .. } => "its last line is missing",
        PemError::IllegalSectionStart { .. } => "its first line does not end in five hyphens",
        PemError::Base64Decode(_) => "it is not base64",
        _ => "it cannot be read",
    };
    BundleError::DamagedBlock { position, detail }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate() -> String {
        rcgen::generate_simple_self_signed(["ca.test".to_owned()]).unwrap().cert.pem()
    }

    fn read(bundle: &str) -> Result<usize, BundleError> {
        let mut roots = RootCertStore::empty();
        add_bundle(&mut roots, bundle.as_bytes()).map(|()| roots.len())
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
    fn junk_in_a_bundle_is_named() {
        let good = certificate();
        let key = rcgen::KeyPair::generate().unwrap().serialize_pem();
        assert_eq!(read(&format!("{good}{key}")), Err(BundleError::PrivateKey));
        let unknown = "-----BEGIN TRUSTED CERTIFICATE-----\nAAAA\n-----END TRUSTED CERTIFICATE-----\n";
        assert_eq!(read(&format!("{good}{unknown}")), Err(BundleError::ForeignBlock));
        assert_eq!(read(&good.replace("-----BEGIN", "  -----BEGIN")), Err(BundleError::ForeignBlock));
        let endless = format!("{good}-----BEGIN CERTIFICATE-----\nAAAA\n");
        let detail = "its last line is missing";
        assert_eq!(read(&endless), Err(BundleError::DamagedBlock { position: 2, detail }));
        let detail = "it is not base64";
        let noise = good.replace("MII", "!!!");
        assert_eq!(read(&noise), Err(BundleError::DamagedBlock { position: 1, detail }));
        let hollow = format!("{good}-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
        assert_eq!(read(&hollow), Err(BundleError::InvalidCertificate { position: 2 }));
    }
}
