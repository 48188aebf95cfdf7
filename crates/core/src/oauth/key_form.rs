//! Describes a file that should be a key or certificate in PEM. The description names the fix, and contains nothing
//! from the file.

use std::fmt;

use rustls::pki_types::PrivateKeyDer;
use serde::{Deserialize, de::IgnoredAny};

/// The two parts of a key pair that a source may contain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The private key.
    Key,
    /// The certificate of the key.
    Certificate,
}

/// A recognized form that the broker does not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A JSON Web Key (RFC 7517 section 4).
    Jwk,
    /// A JSON Web Key set (RFC 7517 section 5).
    JwkSet,
    /// The key file of a Google service account.
    KeyFile,
    /// JSON of another kind.
    Json,
    /// PKCS #12 (RFC 7292), the form in which Azure exports keys.
    Pfx,
    /// Java's own key store.
    JavaKeyStore,
    /// DER without the PEM lines.
    Der,
    /// The base64 of DER, without the first and last line of PEM.
    Unarmoured,
    /// PEM in a second base64 encoding.
    TwiceBase64,
    /// PEM whose line breaks are the two characters `\` and `n`.
    EscapedLineBreaks,
    /// PEM on one line.
    OneLine,
    /// Text of a Windows editor, in UTF-16.
    Utf16,
    /// A private key with a passphrase.
    Encrypted,
    /// A key in OpenSSH's own form.
    OpenSsh,
    /// A key in PuTTY's own form.
    Putty,
    /// An OpenPGP key.
    Pgp,
    /// A PKCS #7 file with certificates (RFC 2315).
    Pkcs7,
    /// A certificate instead of a private key.
    Certificate,
    /// A private key instead of a certificate.
    PrivateKey,
    /// A public key.
    PublicKey,
    /// A certificate request (RFC 2986).
    Request,
    /// OpenSSL's own form of a certificate.
    TrustedCertificate,
    /// PEM lines around damaged content.
    Damaged,
}

impl fmt::Display for Form {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Jwk => "a JSON Web Key (JWK), where PEM is needed: export the key in PEM (PKCS#8) where it was made",
            Self::JwkSet => "a set of JSON Web Keys (JWKS), where one key in PEM is needed",
            Self::KeyFile => "the key file of a Google service account: refer to it as serviceAccountKey",
            Self::Json => "JSON, where PEM is needed",
            Self::Pfx => {
                "a PKCS#12 file (PFX), where PEM is needed: `openssl pkcs12 -in <file> -nocerts -nodes` writes the key, and \
                 `openssl pkcs12 -in <file> -clcerts -nokeys` the certificate"
            }
            Self::JavaKeyStore => "a Java key store (JKS), where PEM is needed",
            Self::Der => {
                "DER, where PEM is needed: `openssl pkey -inform DER -in <file>` writes a key in PEM, and `openssl x509 \
                 -inform DER -in <file>` a certificate"
            }
            Self::Unarmoured => "base64 without the lines -----BEGIN …----- and -----END …----- of PEM",
            Self::TwiceBase64 => "PEM that is encoded in base64 once too often",
            Self::EscapedLineBreaks => {
                "PEM whose line breaks are written as the two characters \\n: replace each \\n with a real line break"
            }
            Self::OneLine => "PEM on one line: the line breaks are missing",
            Self::Utf16 => "text in UTF-16, where UTF-8 is needed",
            Self::Encrypted => {
                "a private key that is encrypted with a passphrase: `openssl pkey -in <file>` writes it without one"
            }
            Self::OpenSsh => {
                "a private key in OpenSSH's own form: `ssh-keygen -p -m PKCS8 -f <file>` rewrites the file in PEM"
            }
            Self::Putty => "a private key in PuTTY's own form: PuTTYgen exports it for other programs",
            Self::Pgp => "an OpenPGP message or key, where PEM is needed",
            Self::Pkcs7 => "a PKCS#7 file: `openssl pkcs7 -print_certs -in <file>` writes its certificates in PEM",
            Self::Certificate => "a certificate, where a private key is needed",
            Self::PrivateKey => "a private key, where a certificate is needed",
            Self::PublicKey => "a public key alone",
            Self::Request => "a certificate request (CSR), which is not the certificate that was issued for it",
            Self::TrustedCertificate => {
                "a TRUSTED CERTIFICATE of OpenSSL: `openssl x509 -in <file>` writes it as a CERTIFICATE"
            }
            Self::Damaged => "a damaged PEM block, or one whose content contradicts its first line",
        })
    }
}

/// Recognizes the form of `content`, in which the broker did not find the `wanted` part. `None`: the form is unknown.
pub(super) fn recognize(content: &[u8], wanted: Part) -> Option<Form> {
    if content.starts_with(&[0xff, 0xfe]) || content.starts_with(&[0xfe, 0xff]) {
        return Some(Form::Utf16);
    }
    let Ok(text) = std::str::from_utf8(content) else { return binary(content) };
    let text = text.trim_start_matches('\u{feff}').trim();
    if text.starts_with('{') {
        return json(text);
    }
    armoured(text, wanted).or_else(|| {
        // The base64 of "-----BEGIN", and of the first bytes of most DER.
        let forms = [("LS0tLS1CRUdJTi", Form::TwiceBase64), ("MII", Form::Unarmoured), ("MC4CAQAw", Form::Unarmoured)];
        forms.iter().find(|(beginning, _)| text.starts_with(beginning)).map(|(_, form)| *form)
    })
}

/// Recognizes binary forms. PKCS #12 begins with version 3 (RFC 7292 section 4), a Java key store with a magic number,
/// and other DER with a SEQUENCE.
fn binary(content: &[u8]) -> Option<Form> {
    let head = content.get(..16).unwrap_or(content);
    let is_pfx = head.windows(3).any(|window| window == [2, 1, 3]);
    match content.first()? {
        0xfe if content.starts_with(&[0xfe, 0xed, 0xfe, 0xed]) => Some(Form::JavaKeyStore),
        0x30 if is_pfx => Some(Form::Pfx),
        0x30 => Some(Form::Der),
        _ => None,
    }
}

fn json(text: &str) -> Option<Form> {
    #[derive(Deserialize)]
    struct File {
        kty: Option<IgnoredAny>,
        keys: Option<IgnoredAny>,
        #[serde(rename = "type")]
        kind: Option<String>,
    }
    let file: File = serde_json::from_str(text).ok()?;
    Some(match file {
        File { kty: Some(_), .. } => Form::Jwk,
        File { keys: Some(_), .. } => Form::JwkSet,
        File { kind: Some(kind), .. } if kind == "service_account" => Form::KeyFile,
        File { .. } => Form::Json,
    })
}

/// Recognizes encodings whose first line names them.
fn armoured(text: &str, wanted: Part) -> Option<Form> {
    let begins = |label: &str| text.contains(&format!("-----BEGIN {label}"));
    let has = |label: &str| text.contains(&format!("{label}-----"));
    if text.starts_with("PuTTY-User-Key-File") {
        return Some(Form::Putty);
    }
    if !text.contains("-----BEGIN ") {
        return None;
    }
    if text.contains("\\n") {
        return Some(Form::EscapedLineBreaks);
    }
    if !text.contains(['\n', '\r']) {
        return Some(Form::OneLine);
    }
    let key = wanted == Part::Key;
    let table = [
        (begins("ENCRYPTED PRIVATE KEY") || text.contains("Proc-Type: 4,ENCRYPTED"), Form::Encrypted),
        (begins("OPENSSH PRIVATE KEY"), Form::OpenSsh),
        (begins("PGP "), Form::Pgp),
        (begins("PKCS7"), Form::Pkcs7),
        (has("PRIVATE KEY"), if key { Form::Damaged } else { Form::PrivateKey }),
        (begins("TRUSTED CERTIFICATE"), if key { Form::Certificate } else { Form::TrustedCertificate }),
        (has("CERTIFICATE REQUEST"), Form::Request),
        (has("CERTIFICATE"), if key { Form::Certificate } else { Form::Damaged }),
        (has("PUBLIC KEY"), Form::PublicKey),
    ];
    table.into_iter().find(|(found, _)| *found).map(|(_, form)| form)
}

/// The kind of a key, for a message.
pub(super) fn kind(key: &PrivateKeyDer<'_>) -> &'static str {
    // Object identifiers in DER. The curves are first, because an EC key also has the general identifier of EC keys.
    const KINDS: [(&[u8], &str); 9] = [
        (&[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07], "an EC key on the curve P-256"),
        (&[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22], "an EC key on the curve P-384"),
        (&[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x23], "an EC key on the curve P-521"),
        (&[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x0a], "an EC key on the curve secp256k1"),
        (&[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01], "an RSA key"),
        (
            &[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0a],
            "an RSA key for PSS alone (id-RSASSA-PSS)",
        ),
        (&[0x06, 0x03, 0x2b, 0x65, 0x70], "an Ed25519 key"),
        (&[0x06, 0x03, 0x2b, 0x65, 0x71], "an Ed448 key"),
        (&[0x06, 0x03, 0x2b, 0x65, 0x6e], "an X25519 key, which signs nothing"),
    ];
    if matches!(key, PrivateKeyDer::Pkcs1(_)) {
        return "an RSA key";
    }
    let der = key.secret_der();
    let has = |identifier: &[u8]| der.windows(identifier.len()).any(|window| window == identifier);
    KINDS.iter().find(|(identifier, _)| has(identifier)).map_or("a key of another kind", |(_, words)| words)
}

#[cfg(test)]
mod tests {
    use rcgen::KeyPair;
    use rustls::pki_types::pem::PemObject as _;

    use super::*;

    fn pem(label: &str, content: &str) -> String {
        format!("-----BEGIN {label}-----\n{content}\n-----END {label}-----\n")
    }

    #[test]
    fn a_form_that_is_not_read_is_named() {
        let encrypted = pem("RSA PRIVATE KEY", "Proc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nAAAA");
        let table: Vec<(Vec<u8>, Part, Form)> = [
            (r#"{"kty": "RSA", "d": "x"}"#.to_owned(), Part::Key, Form::Jwk),
            (" {\"keys\": []}\n".into(), Part::Key, Form::JwkSet),
            (r#"{"type": "service_account"}"#.into(), Part::Key, Form::KeyFile),
            (r#"{"privateKey": "x"}"#.into(), Part::Key, Form::Json),
            (pem("ENCRYPTED PRIVATE KEY", "AAAA"), Part::Key, Form::Encrypted),
            (encrypted, Part::Key, Form::Encrypted),
            (pem("OPENSSH PRIVATE KEY", "AAAA"), Part::Key, Form::OpenSsh),
            ("PuTTY-User-Key-File-3: ssh-rsa\n".into(), Part::Key, Form::Putty),
            (pem("PGP PRIVATE KEY BLOCK", "AAAA"), Part::Key, Form::Pgp),
            (pem("PKCS7", "AAAA"), Part::Certificate, Form::Pkcs7),
            (pem("CERTIFICATE", "AAAA"), Part::Key, Form::Certificate),
            (pem("CERTIFICATE", "!"), Part::Certificate, Form::Damaged),
            (pem("TRUSTED CERTIFICATE", "AAAA"), Part::Certificate, Form::TrustedCertificate),
            (pem("TRUSTED CERTIFICATE", "AAAA"), Part::Key, Form::Certificate),
            (pem("CERTIFICATE REQUEST", "AAAA"), Part::Certificate, Form::Request),
            (pem("PUBLIC KEY", "AAAA"), Part::Key, Form::PublicKey),
            (pem("PRIVATE KEY", "AAAA"), Part::Certificate, Form::PrivateKey),
            (pem("RSA PRIVATE KEY", "!"), Part::Key, Form::Damaged),
            (pem("PRIVATE KEY", "AAAA").replace('\n', "\\n"), Part::Key, Form::EscapedLineBreaks),
            (format!("{}\n", pem("PRIVATE KEY", "AAAA").replace('\n', "\\n")), Part::Key, Form::EscapedLineBreaks),
            (pem("PRIVATE KEY", "AAAA").replace('\n', " "), Part::Key, Form::OneLine),
            ("LS0tLS1CRUdJTiBQUklWQVRFIEtFWS0tLS0t".into(), Part::Key, Form::TwiceBase64),
            ("MIIEvQIBADANBg".into(), Part::Key, Form::Unarmoured),
        ]
        .into_iter()
        .map(|(text, wanted, form)| (text.into_bytes(), wanted, form))
        .chain([
            (vec![0x30, 0x82, 0x09, 0xa1, 0x02, 0x01, 0x03, 0x30, 0x82, 0xff], Part::Key, Form::Pfx),
            (vec![0x30, 0x82, 0x04, 0xbd, 0x02, 0x01, 0x00, 0xff], Part::Key, Form::Der),
            (vec![0xfe, 0xed, 0xfe, 0xed, 0x00], Part::Key, Form::JavaKeyStore),
            (vec![0xff, 0xfe, b'-', 0], Part::Key, Form::Utf16),
        ])
        .collect();
        for (content, wanted, form) in table {
            assert_eq!(recognize(&content, wanted), Some(form), "{}", String::from_utf8_lossy(&content));
        }
        for content in [&b""[..], b"hello", b"\x80\x81", b"{"] {
            assert_eq!(recognize(content, Part::Key), None);
        }
    }

    #[test]
    fn kinds_of_keys_are_distinguished() {
        for (algorithm, words) in [
            (&rcgen::PKCS_RSA_SHA256, "an RSA key"),
            (&rcgen::PKCS_ECDSA_P256_SHA256, "an EC key on the curve P-256"),
            (&rcgen::PKCS_ECDSA_P384_SHA384, "an EC key on the curve P-384"),
            (&rcgen::PKCS_ED25519, "an Ed25519 key"),
        ] {
            let pem = KeyPair::generate_for(algorithm).unwrap().serialize_pem();
            assert_eq!(kind(&PrivateKeyDer::from_pem_slice(pem.as_bytes()).unwrap()), words);
        }
    }
}
