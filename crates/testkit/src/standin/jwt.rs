//! JWTs with RSA signatures (RFC 7515, RFC 7518 sections 3.3 and 3.5).

use aws_lc_rs::{
    digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest},
    rand::SystemRandom,
    rsa::KeyPair as RsaKeyPair,
    signature::{
        ECDSA_P256_SHA256_FIXED, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256, RSA_PSS_2048_8192_SHA256,
        RSA_PSS_SHA256, RsaPublicKeyComponents, UnparsedPublicKey,
    },
};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use rcgen::{CertificateParams, KeyPair, PKCS_RSA_SHA256, PublicKeyData as _};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use serde_json::{Value, json};
use x509_parser::{
    certificate::X509Certificate, prelude::FromDer as _, public_key::PublicKey as Parsed, x509::SubjectPublicKeyInfo,
};

use super::random;

/// An RSA key of 2,048 bits for signatures.
pub struct Key {
    pair: KeyPair,
    /// The `kid` of the key.
    pub id: String,
}

impl Key {
    /// Generates a key with a random `kid`.
    pub fn generate() -> Self {
        Self { pair: KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap(), id: random(20) }
    }

    /// Returns the private key in PEM (PKCS#8).
    pub fn pem(&self) -> String {
        self.pair.serialize_pem()
    }

    /// Returns a self-signed certificate for the key in PEM.
    pub fn certificate(&self) -> String {
        CertificateParams::new(vec!["mailer".to_owned()]).unwrap().self_signed(&self.pair).unwrap().pem()
    }

    /// Returns the public key.
    pub fn public(&self) -> PublicKey {
        let der = self.pair.subject_public_key_info();
        PublicKey::of(&SubjectPublicKeyInfo::from_der(&der).unwrap().1)
    }

    /// Returns a key set with the public key (RFC 7517).
    pub fn jwks(&self) -> Value {
        let PublicKey { n, e } = self.public();
        let encode = |number| BASE64_URL_SAFE_NO_PAD.encode(number);
        let key = json!({"kty": "RSA", "use": "sig", "alg": "RS256", "kid": self.id, "n": encode(n), "e": encode(e)});
        json!({"keys": [key]})
    }

    /// Signs a JWT by RS256 whose header has the `kid`.
    pub fn jwt(&self, claims: &Value) -> String {
        self.jwt_with(&json!({"alg": "RS256", "typ": "JWT", "kid": self.id}), claims)
    }

    /// Signs a JWT with this header, by the header's `alg`: PS256, otherwise RS256.
    pub fn jwt_with(&self, header: &Value, claims: &Value) -> String {
        let encode = |part: &Value| BASE64_URL_SAFE_NO_PAD.encode(part.to_string());
        let message = format!("{}.{}", encode(header), encode(claims));
        let pair = RsaKeyPair::from_pkcs8(self.pair.serialized_der()).unwrap();
        let mut signature = vec![0; pair.public_modulus_len()];
        let encoding = if header["alg"] == "PS256" { &RSA_PSS_SHA256 } else { &RSA_PKCS1_SHA256 };
        pair.sign(encoding, &SystemRandom::new(), message.as_bytes(), &mut signature).unwrap();
        format!("{message}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
    }
}

/// An RSA public key: modulus and exponent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey {
    n: Vec<u8>,
    e: Vec<u8>,
}

impl PublicKey {
    /// Returns the key with this `kid` from a key set.
    pub fn find(jwks: &Value, id: &Value) -> Option<Self> {
        let key = jwks["keys"].as_array()?.iter().find(|key| key["kid"] == *id)?;
        let number = |name: &str| BASE64_URL_SAFE_NO_PAD.decode(key[name].as_str()?).ok();
        Some(Self { n: number("n")?, e: number("e")? })
    }

    fn of(info: &SubjectPublicKeyInfo<'_>) -> Self {
        let Ok(Parsed::RSA(key)) = info.parsed() else { panic!("no RSA key") };
        let trimmed = |number: &[u8]| number.iter().copied().skip_while(|byte| *byte == 0).collect();
        Self { n: trimmed(key.modulus), e: trimmed(key.exponent) }
    }
}

/// A registered certificate.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// The public key of the certificate.
    pub key: PublicKey,
    /// `x5t`: base64url of the SHA-1 thumbprint.
    pub sha1: String,
    /// `x5t#S256`: base64url of the SHA-256 thumbprint.
    pub sha256: String,
}

impl Certificate {
    /// Parses a certificate in PEM.
    pub fn read(pem: &str) -> Self {
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        let key = PublicKey::of(X509Certificate::from_der(&der).unwrap().1.public_key());
        let thumbprint = |algorithm| BASE64_URL_SAFE_NO_PAD.encode(digest(algorithm, &der));
        Self { key, sha1: thumbprint(&SHA1_FOR_LEGACY_USE_ONLY), sha256: thumbprint(&SHA256) }
    }
}

/// A parsed JWT whose signature is not yet verified.
#[derive(Clone, Debug)]
pub struct Jwt {
    /// The header.
    pub header: Value,
    /// The claims.
    pub claims: Value,
    message: String,
    signature: Vec<u8>,
}

impl Jwt {
    /// Parses a JWT; `None` if the text is not a JWT.
    pub fn read(text: &str) -> Option<Self> {
        let (message, signature) = text.rsplit_once('.')?;
        let (header, claims) = message.split_once('.')?;
        let bytes = |part: &str| BASE64_URL_SAFE_NO_PAD.decode(part).ok();
        let object = |part: &str| serde_json::from_slice(&bytes(part)?).ok().filter(Value::is_object);
        Some(Self {
            header: object(header)?,
            claims: object(claims)?,
            message: message.to_owned(),
            signature: bytes(signature)?,
        })
    }

    /// Whether this key signed the JWT by one of `algorithms`: `RS256`, `PS256`.
    pub fn signed_by(&self, key: &PublicKey, algorithms: &[&str]) -> bool {
        let Some(algorithm) = self.header["alg"].as_str().filter(|name| algorithms.contains(name)) else {
            return false;
        };
        let parameters = if algorithm == "PS256" { &RSA_PSS_2048_8192_SHA256 } else { &RSA_PKCS1_2048_8192_SHA256 };
        let PublicKey { n, e } = key;
        RsaPublicKeyComponents { n, e }.verify(parameters, self.message.as_bytes(), &self.signature).is_ok()
    }

    /// Whether the key with the JWT's `kid` in a key set signed the JWT by one of `algorithms`: `RS256`, `PS256`,
    /// `ES256`.
    pub fn signed_by_set(&self, jwks: &Value, algorithms: &[&str]) -> bool {
        let key = jwks["keys"].as_array().into_iter().flatten().find(|key| key["kid"] == self.header["kid"]);
        let Some(key) = key else { return false };
        if self.header["alg"] != "ES256" {
            return PublicKey::find(jwks, &self.header["kid"]).is_some_and(|key| self.signed_by(&key, algorithms));
        }
        let number = |name: &str| BASE64_URL_SAFE_NO_PAD.decode(key[name].as_str()?).ok();
        let (Some(x), Some(y)) = (number("x"), number("y")) else { return false };
        let point = [vec![4], x, y].concat();
        let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point);
        algorithms.contains(&"ES256") && public.verify(self.message.as_bytes(), &self.signature).is_ok()
    }

    /// Returns a text claim; empty if the claim is missing.
    pub fn text(&self, claim: &str) -> &str {
        self.claims[claim].as_str().unwrap_or_default()
    }

    /// Whether `aud` contains this audience (RFC 7519 section 4.1.3).
    pub fn is_for(&self, audience: &str) -> bool {
        let aud = &self.claims["aud"];
        aud == audience || aud.as_array().is_some_and(|several| several.iter().any(|one| one == audience))
    }

    /// Returns a time claim in seconds since 1970.
    pub fn time(&self, claim: &str) -> Option<i64> {
        self.claims[claim].as_i64()
    }
}
