//! JWTs for client authentication (RFC 7523 section 2.2), and the keys that sign them.

use std::{fmt, ops::RangeInclusive, sync::Arc};

use aws_lc_rs::{
    digest::{SHA1_FOR_LEGACY_USE_ONLY, digest},
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair},
};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use rustls::{
    SignatureScheme,
    crypto::aws_lc_rs::sign::any_supported_type,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    sign::{CertifiedKey, Signer},
};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use x509_parser::{certificate::X509Certificate, prelude::FromDer as _};

pub use super::key_form::Part;

use super::{
    key_form::{self, Form},
    rsa::modulus_bits,
};
use crate::api::authentication::SigningAlgorithm;

/// Maximum size of PEM in bytes, checked before parsing (CVE-2024-12401: parsing 856 kB took cert-manager 750 ms). The
/// largest accepted key, RSA with 4,096 bits, has 3.3 kB.
const PEM_MAX: usize = 32 * 1024;
/// Accepted bits of an RSA key. RFC 7518 section 3.3 requires at least 2,048. A signature takes about 5 ms with 4,096 bits,
/// and 33 ms with 8,192 bits.
const RSA_BITS: RangeInclusive<usize> = 2_048..=4_096;
/// Validity of an assertion. Microsoft requires at most 5 to 10 minutes.
const LIFETIME: SignedDuration = SignedDuration::from_mins(5);
/// How far an assertion's issue time lies in the past, for providers whose clock is behind.
const BACKDATED: SignedDuration = SignedDuration::from_secs(30);

/// Errors of a key or certificate.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum KeyFlaw {
    /// The content has more than 32 KiB.
    #[error("is larger than any key or certificate: more than 32 KiB")]
    TooLarge,
    /// The content has no private key.
    #[error("holds no private key in PEM (PKCS#8, PKCS#1 or SEC 1, without a passphrase)")]
    NoKey,
    /// The content has another form than a key or certificate in PEM.
    #[error("holds {0}")]
    Holds(Form),
    /// The key cannot sign with the algorithm. The value is the kind of the key.
    #[error(
        "holds {0}, which does not fit the algorithm: PS256 and RS256 need RSA, ES256 needs EC P-256, EdDSA needs Ed25519"
    )]
    WrongKind(&'static str),
    /// The RSA key is too short or too long; the value is its number of bits.
    #[error("holds an RSA key of {0} bits, and only those of 2048 to 4096 bits are used")]
    RsaBits(usize),
    /// The content has no certificate.
    #[error("holds no certificate in PEM")]
    NoCertificate,
    /// The certificate belongs to another key.
    #[error("holds the certificate of another key")]
    Mismatch,
}

/// The parameters of an assertion that depend on the request, not on the client.
#[derive(Clone, Copy, Debug)]
pub struct AssertionParams<'a> {
    /// The audience of the assertion: the token endpoint (RFC 7523 section 3).
    pub audience: &'a str,
    /// The token endpoint. The broker sends an assertion only to the origin of this endpoint.
    pub token_url: &'a str,
    /// The claim `jti`, which no other assertion has.
    pub unique: &'a str,
    /// The time of the request, for the times in the assertion.
    pub now: Timestamp,
}

/// A private key that is ready to sign.
#[derive(Clone)]
pub struct SigningKey {
    signer: Arc<dyn JwsSigner>,
    algorithm: &'static str,
    key_id: Option<String>,
    thumbprints: Option<Thumbprints>,
    expires_at: Option<Timestamp>,
    /// The `aud` of the key's assertions. `None`: the token endpoint.
    audience: Option<String>,
}

/// The thumbprints by which a provider finds the registered certificate.
#[derive(Clone)]
struct Thumbprints {
    /// `x5t#S256` (RFC 7515 section 4.1.8).
    sha256: String,
    /// `x5t` (RFC 7515 section 4.1.7). This SHA-1 hash only names the certificate; no check depends on its strength.
    sha1: String,
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("SigningKey").field("algorithm", &self.algorithm).finish_non_exhaustive()
    }
}

/// A signer in the format of a JWS (RFC 7518 section 3).
trait JwsSigner: Send + Sync {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SigningError>;
}

/// RSA and Ed25519 signatures have the same bytes in JWS and in TLS.
impl JwsSigner for Box<dyn Signer> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SigningError> {
        Signer::sign(&**self, message).map_err(|_| SigningError)
    }
}

/// JWS needs the two numbers of an ECDSA signature at fixed length (RFC 7518 section 3.4); TLS uses ASN.1.
impl JwsSigner for EcdsaKeyPair {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SigningError> {
        let signature = EcdsaKeyPair::sign(self, &SystemRandom::new(), message).map_err(|_| SigningError)?;
        Ok(signature.as_ref().to_vec())
    }
}

/// A parsed key failed to sign.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("the private key does not sign")]
pub struct SigningError;

impl SigningKey {
    /// Reads a key and an optional certificate, both in PEM.
    ///
    /// # Errors
    /// The flaw, and whether it is in the key or in the certificate.
    pub fn read(
        key: &[u8],
        certificate: Option<&[u8]>,
        algorithm: SigningAlgorithm,
        key_id: Option<String>,
    ) -> Result<Self, (KeyFlaw, Part)> {
        let of_key = |flaw| (flaw, Part::Key);
        let der = private_key(key).map_err(of_key)?;
        if let Some(bits) = modulus_bits(&der).filter(|bits| !RSA_BITS.contains(bits)) {
            return Err(of_key(KeyFlaw::RsaBits(bits)));
        }
        let signer = signer(&der, algorithm).map_err(of_key)?;
        let mut this =
            Self { signer, algorithm: name(algorithm), key_id, thumbprints: None, expires_at: None, audience: None };
        if let Some(pem) = certificate {
            let (thumbprints, expires_at) = read_certificate(pem, &der).map_err(|flaw| (flaw, Part::Certificate))?;
            (this.thumbprints, this.expires_at) = (Some(thumbprints), expires_at);
        }
        Ok(this)
    }

    /// Returns the key with the `aud` of its assertions. `None`: the token endpoint. The broker sends the assertions to
    /// the token endpoint in either case.
    pub fn with_audience(self, audience: Option<String>) -> Self {
        Self { audience, ..self }
    }

    /// Returns the parameters with the key's own audience, if the key has one.
    fn named<'a>(&'a self, params: AssertionParams<'a>) -> AssertionParams<'a> {
        AssertionParams { audience: self.audience.as_deref().unwrap_or(params.audience), ..params }
    }

    /// The time at which the certificate expires, if any.
    pub fn expires_at(&self) -> Option<Timestamp> {
        self.expires_at
    }

    /// Signs an assertion of the client about itself: issuer and subject are `client_id`.
    ///
    /// # Errors
    /// If the key fails to sign.
    pub fn client_assertion(&self, client_id: &str, params: AssertionParams<'_>) -> Result<SecretString, SigningError> {
        self.jwt(&claims(client_id, client_id, self.named(params)))
    }

    /// Signs a JWT in compact form (RFC 7515 section 7.1).
    fn jwt(&self, claims: &Value) -> Result<SecretString, SigningError> {
        let mut header = json!({"alg": self.algorithm, "typ": "JWT"});
        let thumbprints = self.thumbprints.as_ref();
        // AD FS supports only RS256 and `x5t`. Servers with the newer algorithms also support `x5t#S256`.
        let sha1 = thumbprints.filter(|_| self.algorithm == name(SigningAlgorithm::RS256)).map(|of| &of.sha1);
        let sha256 = thumbprints.map(|of| &of.sha256);
        for (member, value) in [("kid", self.key_id.as_ref()), ("x5t#S256", sha256), ("x5t", sha1)] {
            if let Some(value) = value {
                header[member] = json!(value);
            }
        }
        let encode = |part: &Value| BASE64_URL_SAFE_NO_PAD.encode(part.to_string());
        let message = format!("{}.{}", encode(&header), encode(claims));
        let signature = self.signer.sign(message.as_bytes())?;
        Ok(format!("{message}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature)).into())
    }
}

/// The claims of an assertion (RFC 7523 section 3).
fn claims(issuer: &str, subject: &str, params: AssertionParams<'_>) -> Value {
    let issued_at = (params.now - BACKDATED).as_second();
    json!({
        "iss": issuer, "sub": subject, "aud": params.audience, "jti": params.unique,
        "iat": issued_at, "nbf": issued_at, "exp": (params.now + LIFETIME).as_second(),
    })
}

/// The claims of a Google service account's assertion about a mailbox, with the scopes (domain-wide delegation).
pub fn delegation_claims(account: &str, subject: &str, params: AssertionParams<'_>, scopes: &[String]) -> Value {
    let mut claims = claims(account, subject, params);
    claims["scope"] = json!(scopes.join(" "));
    claims
}

/// A key and its owner, for JWTs about a subject.
#[derive(Clone, Copy, Debug)]
pub struct GrantKey<'a> {
    pub(super) key: &'a SigningKey,
    pub(super) issuer: &'a str,
    /// Whether the assertion contains the scopes, as Google requires. Other servers expect the scopes in the token
    /// request.
    pub(super) names_scopes: bool,
}

impl GrantKey<'_> {
    /// Signs an assertion that requests a token for `subject`.
    pub(super) fn assertion(
        &self,
        subject: &str,
        params: AssertionParams<'_>,
        scopes: &[String],
    ) -> Result<SecretString, SigningError> {
        let params = self.key.named(params);
        self.key.jwt(&match self.names_scopes {
            true => delegation_claims(self.issuer, subject, params, scopes),
            false => claims(self.issuer, subject, params),
        })
    }
}

/// A Google service account from its key file.
#[derive(Clone, Debug)]
pub struct ServiceAccountKey {
    /// The account's signing key.
    pub key: SigningKey,
    /// The account's address, which is the issuer of its assertions.
    pub email: String,
    /// The account's number, which an administrator enters for domain-wide delegation. If the file has no number, this
    /// is the address.
    pub client_id: String,
}

/// Errors of a key file.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum KeyFileFlaw {
    /// The file has more than 32 KiB.
    #[error("is larger than any key file: more than 32 KiB")]
    TooLarge,
    /// An editor saved the file with a byte order mark or as UTF-16. The value names which.
    #[error(
        "was saved by an editor with {0}: download the key file again, or save it as UTF-8 without a byte order mark"
    )]
    Encoding(&'static str),
    /// The file is not JSON, or lacks a required member.
    #[error("is not a key file of a service account: it must be the JSON file as downloaded")]
    NotAKeyFile,
    /// The file is JSON of another kind, such as the file of an OAuth client.
    #[error("is a JSON file of another kind: its type must be service_account")]
    OtherKind,
    /// The file is the configuration of a workload identity federation (an external account).
    #[error(
        "is the configuration of a workload identity federation (type external_account), which only Google's libraries \
         read: use serviceAccountToken with google.serviceAccount instead, which needs no file"
    )]
    ExternalAccount,
    /// The broker cannot use the file's private key. The value has the reason.
    #[error("has a private_key that {0}; it must be RSA in PEM, as downloaded")]
    Key(KeyFlaw),
}

impl ServiceAccountKey {
    /// Reads a key file. Ignores the file's `token_uri`: with it, the author of the file could choose the recipient of
    /// the assertion.
    ///
    /// # Errors
    /// If the file or its key cannot be used.
    pub fn read(json: &[u8]) -> Result<Self, KeyFileFlaw> {
        #[derive(Deserialize)]
        struct File {
            #[serde(rename = "type")]
            kind: Option<String>,
            client_email: Option<String>,
            client_id: Option<String>,
            private_key_id: Option<String>,
            private_key: Option<SecretString>,
        }
        if json.len() > PEM_MAX {
            return Err(KeyFileFlaw::TooLarge);
        }
        match json {
            [0xef, 0xbb, 0xbf, ..] => return Err(KeyFileFlaw::Encoding("a byte order mark")),
            [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => return Err(KeyFileFlaw::Encoding("UTF-16")),
            _ => {}
        }
        let file: File = serde_json::from_slice(json).map_err(|_| KeyFileFlaw::NotAKeyFile)?;
        if file.kind.as_deref() != Some("service_account") {
            return Err(match file.kind.as_deref() {
                None => KeyFileFlaw::NotAKeyFile,
                Some("external_account") => KeyFileFlaw::ExternalAccount,
                Some(_) => KeyFileFlaw::OtherKind,
            });
        }
        let (Some(email), Some(pem)) = (file.client_email, file.private_key) else {
            return Err(KeyFileFlaw::NotAKeyFile);
        };
        let key = SigningKey::read(pem.expose_secret().as_bytes(), None, SigningAlgorithm::RS256, file.private_key_id)
            .map_err(|(flaw, _)| KeyFileFlaw::Key(flaw))?;
        let client_id = file.client_id.unwrap_or_else(|| email.clone());
        Ok(Self { key, email, client_id })
    }
}

const fn name(algorithm: SigningAlgorithm) -> &'static str {
    match algorithm {
        SigningAlgorithm::PS256 => "PS256",
        SigningAlgorithm::RS256 => "RS256",
        SigningAlgorithm::ES256 => "ES256",
        SigningAlgorithm::EdDSA => "EdDSA",
    }
}

fn private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, KeyFlaw> {
    if pem.len() > PEM_MAX {
        return Err(KeyFlaw::TooLarge);
    }
    PrivateKeyDer::from_pem_slice(pem)
        .map_err(|_| key_form::recognize(pem, Part::Key).map_or(KeyFlaw::NoKey, KeyFlaw::Holds))
}

fn signer(key: &PrivateKeyDer<'_>, algorithm: SigningAlgorithm) -> Result<Arc<dyn JwsSigner>, KeyFlaw> {
    let wrong_kind = || KeyFlaw::WrongKind(key_form::kind(key));
    let scheme = match algorithm {
        SigningAlgorithm::PS256 => SignatureScheme::RSA_PSS_SHA256,
        SigningAlgorithm::RS256 => SignatureScheme::RSA_PKCS1_SHA256,
        SigningAlgorithm::EdDSA => SignatureScheme::ED25519,
        SigningAlgorithm::ES256 => {
            let pair = EcdsaKeyPair::from_private_key_der(&ECDSA_P256_SHA256_FIXED_SIGNING, key.secret_der());
            return Ok(Arc::new(pair.map_err(|_| wrong_kind())?));
        }
    };
    let signing = any_supported_type(key).map_err(|_| wrong_kind())?;
    Ok(Arc::new(signing.choose_scheme(&[scheme]).ok_or_else(wrong_kind)?))
}

/// Reads the thumbprints and the expiry of the key's certificate.
fn read_certificate(pem: &[u8], key: &PrivateKeyDer<'_>) -> Result<(Thumbprints, Option<Timestamp>), KeyFlaw> {
    if pem.len() > PEM_MAX {
        return Err(KeyFlaw::TooLarge);
    }
    let none = || key_form::recognize(pem, Part::Certificate).map_or(KeyFlaw::NoCertificate, KeyFlaw::Holds);
    let der = CertificateDer::from_pem_slice(pem).map_err(|_| none())?;
    let (_, certificate) = X509Certificate::from_der(&der).map_err(|_| none())?;
    let expires_at = Timestamp::from_second(certificate.validity().not_after.timestamp()).ok();
    let thumbprints = Thumbprints {
        sha256: BASE64_URL_SAFE_NO_PAD.encode(Sha256::digest(&der)),
        sha1: BASE64_URL_SAFE_NO_PAD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, &der)),
    };
    let signing = any_supported_type(key).map_err(|_| KeyFlaw::WrongKind(key_form::kind(key)))?;
    CertifiedKey::new(vec![der.clone()], signing).keys_match().map_err(|_| KeyFlaw::Mismatch)?;
    Ok((thumbprints, expires_at))
}

#[cfg(test)]
mod tests;
