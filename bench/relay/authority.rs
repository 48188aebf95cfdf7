//! A certificate chain of realistic size: a leaf with 25 names, two intermediates, and a root. All have RSA keys of
//! 2,048 bits.

use std::{fs, path::Path, sync::Arc};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_RSA_SHA256, RsaKeySize,
};
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs::{self, Ticketer},
    pki_types::PrivateKeyDer,
};

/// Number of names in the leaf certificate.
const NAMES: usize = 25;

/// Writes the root to a file, and returns the TLS configuration of the mail server. Clients resume sessions by tickets.
pub fn server(root_file: &Path) -> Arc<ServerConfig> {
    let root = CertifiedIssuer::self_signed(authority("Shop Root R1"), key()).unwrap();
    let second = CertifiedIssuer::signed_by(authority("Shop Public Server Authentication R36"), key(), &root).unwrap();
    let first = CertifiedIssuer::signed_by(authority("Shop Organization Validation CA 7"), key(), &second).unwrap();
    fs::write(root_file, root.pem()).unwrap();

    let others = (1..NAMES).map(|number| format!("mail-{number:02}.protection.shop.example"));
    let names: Vec<_> = std::iter::once("localhost".to_owned()).chain(others).collect();
    let mut params = CertificateParams::new(names).unwrap();
    describe(&mut params, "mail.shop.example");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let leaf_key = key();
    let leaf = params.signed_by(&leaf_key, &first).unwrap();

    let chain = vec![leaf.der().clone(), first.der().clone(), second.der().clone()];
    let leaf_key = PrivateKeyDer::try_from(leaf_key.serialize_der()).unwrap();
    let builder = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    let mut config = builder.with_single_cert(chain, leaf_key).unwrap();
    config.ticketer = Ticketer::new().unwrap();
    Arc::new(config)
}

fn key() -> KeyPair {
    KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap()
}

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(vec![]).unwrap();
    describe(&mut params, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    params
}

fn describe(params: &mut CertificateParams, name: &str) {
    params.distinguished_name.push(DnType::CountryName, "US");
    params.distinguished_name.push(DnType::OrganizationName, "Shop Example Corporation");
    params.distinguished_name.push(DnType::CommonName, name);
}
