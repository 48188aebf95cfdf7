//! TLS of the relay: its own certificate, which the relay reads again after a change, and the authorities of mail
//! servers.

use std::{fs, path::Path, sync::Arc, time::SystemTime};

use mailtoken_net::tls::{add_bundle, client_config, system_roots};
use parking_lot::Mutex;
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
    version::{TLS12, TLS13},
};

use crate::settings::TlsFiles;

/// The relay's certificate, read from files.
#[derive(Debug)]
pub(crate) struct ServerTls {
    files: TlsFiles,
    current: Mutex<Current>,
}

#[derive(Debug)]
struct Current {
    /// The modification times of the files that the relay read last, usable or not.
    read: Stamp,
    config: Arc<ServerConfig>,
}

/// The modification times of the three files; `None` for a file that does not exist.
type Stamp = [Option<SystemTime>; 3];

impl ServerTls {
    /// Reads the certificate files.
    ///
    /// # Errors
    ///
    /// A sentence that says why the relay does not start.
    pub(crate) fn open(files: &TlsFiles) -> Result<Self, String> {
        let read = stamp(files);
        let config = load(files)?;
        Ok(Self { files: files.clone(), current: Mutex::new(Current { read, config }) })
    }

    /// Returns the configuration for the next handshake. If the files have changed and do not match each other, the
    /// relay keeps the previous configuration.
    pub(crate) fn config(&self) -> Arc<ServerConfig> {
        let now = stamp(&self.files);
        let mut current = self.current.lock();
        if current.read != now {
            current.read = now;
            match load(&self.files) {
                Ok(config) => {
                    current.config = config;
                    tracing::info!("certificate read again");
                }
                Err(why) => tracing::warn!(why, "certificate not used: the relay keeps the one before"),
            }
        }
        current.config.clone()
    }
}

fn stamp(files: &TlsFiles) -> Stamp {
    let changed = |path: &Path| fs::metadata(path).and_then(|file| file.modified()).ok();
    [changed(&files.cert), changed(&files.key), files.client_ca.as_deref().and_then(changed)]
}

fn load(files: &TlsFiles) -> Result<Arc<ServerConfig>, String> {
    let certificates = certificates(&files.cert)?;
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .map_err(|error| format!("{} has no private key in PEM form: {error}", files.key.display()))?;
    let builder = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(|error| format!("TLS does not start: {error}"))?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(self::certificates(path)?);
            let provider = Arc::new(aws_lc_rs::default_provider());
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(
                verifier.map_err(|error| format!("{} cannot be used: {error}", path.display()))?,
            )
        }
    };
    let config = builder.with_single_cert(certificates, key).map_err(|error| {
        format!("{} and {} do not make a certificate: {error}", files.cert.display(), files.key.display())
    })?;
    Ok(Arc::new(config))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let read = read.map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
    if read.is_empty() { Err(format!("{} has no certificate in PEM form", path.display())) } else { Ok(read) }
}

/// Returns the configuration for mail servers: it trusts the system's authorities and the authorities in a file.
///
/// # Errors
///
/// A sentence that says why the relay does not start.
pub(crate) fn mail_servers(ca_file: Option<&Path>) -> Result<Arc<ClientConfig>, String> {
    let mut roots = system_roots();
    if let Some(path) = ca_file {
        let shown = path.display();
        let bundle = fs::read(path).map_err(|error| format!("{shown} (--ca-file) cannot be read: {error}"))?;
        if let Some(skipped) =
            add_bundle(&mut roots, &bundle).map_err(|error| format!("{shown} (--ca-file): {error}"))?
        {
            tracing::warn!(%skipped, "blocks of --ca-file skipped");
        }
    }
    client_config(roots).map(Arc::new).map_err(|error| format!("TLS does not start: {error}"))
}
