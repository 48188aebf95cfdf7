use super::*;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256, RSA_PSS_2048_8192_SHA256, UnparsedPublicKey,
    VerificationAlgorithm,
};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519, PKCS_RSA_SHA256};

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

fn params() -> AssertionParams<'static> {
    AssertionParams { audience: "https://id/token", token_url: "https://id/token", unique: "j1", now: now() }
}

fn pair(algorithm: SigningAlgorithm) -> KeyPair {
    let kind = match algorithm {
        SigningAlgorithm::PS256 | SigningAlgorithm::RS256 => &PKCS_RSA_SHA256,
        SigningAlgorithm::ES256 => &PKCS_ECDSA_P256_SHA256,
        SigningAlgorithm::EdDSA => &PKCS_ED25519,
    };
    KeyPair::generate_for(kind).unwrap()
}

fn certificate(pair: &KeyPair) -> String {
    CertificateParams::new(vec!["mailer".into()]).unwrap().self_signed(pair).unwrap().pem()
}

fn part(jwt: &str, at: usize) -> Value {
    serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(jwt.split('.').nth(at).unwrap()).unwrap()).unwrap()
}

#[test]
fn each_algorithm_signs_what_its_public_key_verifies() {
    let table: [(SigningAlgorithm, &'static dyn VerificationAlgorithm); 4] = [
        (SigningAlgorithm::PS256, &RSA_PSS_2048_8192_SHA256),
        (SigningAlgorithm::RS256, &RSA_PKCS1_2048_8192_SHA256),
        (SigningAlgorithm::ES256, &ECDSA_P256_SHA256_FIXED),
        (SigningAlgorithm::EdDSA, &ED25519),
    ];
    for (algorithm, verification) in table {
        let pair = pair(algorithm);
        let key = SigningKey::read(pair.serialize_pem().as_bytes(), None, algorithm, Some("k1".into())).unwrap();
        let jwt = key.client_assertion("app", params()).unwrap();
        let jwt = jwt.expose_secret();
        let (message, signature) = jwt.rsplit_once('.').unwrap();
        let signature = BASE64_URL_SAFE_NO_PAD.decode(signature).unwrap();
        let public = UnparsedPublicKey::new(verification, pair.public_key_raw());
        public.verify(message.as_bytes(), &signature).unwrap_or_else(|_| panic!("{algorithm:?}"));
        assert_eq!(part(jwt, 0), json!({"alg": name(algorithm), "typ": "JWT", "kid": "k1"}));
        assert_eq!(
            part(jwt, 1),
            json!({
                "iss": "app", "sub": "app", "aud": "https://id/token", "jti": "j1",
                "iat": 1_799_999_970, "nbf": 1_799_999_970, "exp": 1_800_000_300,
            })
        );
    }
}

#[test]
fn a_certificate_gives_its_thumbprint_and_its_end() {
    let pair = pair(SigningAlgorithm::ES256);
    let pem = certificate(&pair);
    let key =
        SigningKey::read(pair.serialize_pem().as_bytes(), Some(pem.as_bytes()), SigningAlgorithm::ES256, None).unwrap();
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    let jwt = key.client_assertion("app", params()).unwrap();
    let thumbprint = BASE64_URL_SAFE_NO_PAD.encode(Sha256::digest(&der));
    let header = part(jwt.expose_secret(), 0);
    assert_eq!((&header["x5t#S256"], header.get("x5t")), (&json!(thumbprint), None));
    assert_eq!(key.expires_at().unwrap().to_string(), "4096-01-01T00:00:00Z");
}

#[test]
fn rs256_names_the_certificate_by_sha_1_too() {
    let pair = pair(SigningAlgorithm::RS256);
    let pem = certificate(&pair);
    let key = pair.serialize_pem();
    for (algorithm, both) in [(SigningAlgorithm::RS256, true), (SigningAlgorithm::PS256, false)] {
        let key = SigningKey::read(key.as_bytes(), Some(pem.as_bytes()), algorithm, None).unwrap();
        let header = part(key.client_assertion("app", params()).unwrap().expose_secret(), 0);
        // 20 and 32 bytes in base64url.
        assert_eq!(header["x5t"].as_str().map(str::len), both.then_some(27), "{header}");
        assert_eq!(header["x5t#S256"].as_str().map(str::len), Some(43), "{header}");
    }
}

#[test]
fn flaws_are_named_and_junk_is_cheap() {
    let (rsa, ec) = (pair(SigningAlgorithm::RS256).serialize_pem(), pair(SigningAlgorithm::ES256));
    let ec_pem = ec.serialize_pem();
    let other = certificate(&pair(SigningAlgorithm::ES256));
    let junk = vec![b'-'; 900_000];
    let read = |key: &[u8], certificate: Option<&[u8]>, algorithm| {
        SigningKey::read(key, certificate, algorithm, None).unwrap_err()
    };
    let es = SigningAlgorithm::ES256;
    assert_eq!(read(&junk, None, es), (KeyFlaw::TooLarge, Part::Key));
    assert_eq!(read(&junk[..PEM_MAX], None, es), (KeyFlaw::NoKey, Part::Key));
    assert_eq!(read(b"", None, es), (KeyFlaw::NoKey, Part::Key));
    assert_eq!(read(other.as_bytes(), None, es), (KeyFlaw::Holds(Form::Certificate), Part::Key));
    let (rsa_kind, ec_kind) = (KeyFlaw::WrongKind("an RSA key"), KeyFlaw::WrongKind("an EC key on the curve P-256"));
    assert_eq!(read(rsa.as_bytes(), None, es), (rsa_kind, Part::Key));
    assert_eq!(read(ec_pem.as_bytes(), None, SigningAlgorithm::PS256), (ec_kind, Part::Key));
    assert_eq!(read(ec_pem.as_bytes(), None, SigningAlgorithm::EdDSA), (ec_kind, Part::Key));
    let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap().serialize_pem();
    let curve = KeyFlaw::WrongKind("an EC key on the curve P-384");
    assert_eq!(read(p384.as_bytes(), None, es), (curve, Part::Key));
    let escaped = ec_pem.replace('\n', "\\n");
    assert_eq!(read(escaped.as_bytes(), None, es), (KeyFlaw::Holds(Form::EscapedLineBreaks), Part::Key));
    assert_eq!(read(ec_pem.as_bytes(), Some(&junk), es), (KeyFlaw::TooLarge, Part::Certificate));
    let longest = Some(&junk[..PEM_MAX]);
    assert_eq!(read(ec_pem.as_bytes(), longest, es), (KeyFlaw::NoCertificate, Part::Certificate));
    let key = (KeyFlaw::Holds(Form::PrivateKey), Part::Certificate);
    assert_eq!(read(ec_pem.as_bytes(), Some(ec_pem.as_bytes()), es), key);
    assert_eq!(read(ec_pem.as_bytes(), Some(other.as_bytes()), es), (KeyFlaw::Mismatch, Part::Certificate));
}

#[test]
fn an_rsa_key_has_2048_to_4096_bits_and_the_flaw_names_what_it_has() {
    for (bits, flaw) in [
        (1024, KeyFlaw::RsaBits(1024)),
        (2047, KeyFlaw::RsaBits(2047)),
        // These lengths are accepted, but the test data is only the beginning of a key.
        (2048, KeyFlaw::WrongKind("an RSA key")),
        (4096, KeyFlaw::WrongKind("an RSA key")),
        (4097, KeyFlaw::RsaBits(4097)),
        (8192, KeyFlaw::RsaBits(8192)),
    ] {
        let body = base64::prelude::BASE64_STANDARD.encode(crate::oauth::rsa::tests::pkcs_1(bits));
        let pem = format!("-----BEGIN RSA PRIVATE KEY-----\n{body}\n-----END RSA PRIVATE KEY-----\n");
        let read = SigningKey::read(pem.as_bytes(), None, SigningAlgorithm::RS256, None);
        assert_eq!(read.unwrap_err(), (flaw, Part::Key));
        let file = json!({"type": "service_account", "client_email": "a@b", "private_key": pem}).to_string();
        let read = ServiceAccountKey::read(file.as_bytes()).unwrap_err();
        assert_eq!(read, KeyFileFlaw::Key(flaw));
    }
}

#[test]
fn a_configured_audience_is_in_the_assertions_of_client_and_grant() {
    let pem = pair(SigningAlgorithm::ES256).serialize_pem();
    let read = || SigningKey::read(pem.as_bytes(), None, SigningAlgorithm::ES256, None).unwrap();
    for (audience, named) in [(None, "https://id/token"), (Some("https://id".to_owned()), "https://id")] {
        let key = read().with_audience(audience);
        assert_eq!(part(key.client_assertion("app", params()).unwrap().expose_secret(), 1)["aud"], named);
        let grant = GrantKey { key: &key, issuer: "app", names_scopes: false };
        assert_eq!(part(grant.assertion("a@b.c", params(), &[]).unwrap().expose_secret(), 1)["aud"], named);
    }
}

#[test]
fn a_key_is_never_shown() {
    let pem = pair(SigningAlgorithm::EdDSA).serialize_pem();
    let key = SigningKey::read(pem.as_bytes(), None, SigningAlgorithm::EdDSA, None).unwrap();
    assert_eq!(format!("{key:?}"), r#"SigningKey { algorithm: "EdDSA", .. }"#);
}

#[test]
fn a_key_file_signs_for_a_mailbox_and_its_token_uri_is_ignored() {
    let pem = pair(SigningAlgorithm::RS256).serialize_pem();
    let file = json!({
        "type": "service_account", "client_email": "mailer@project.iam.gserviceaccount.com", "private_key_id": "k7",
        "private_key": pem, "token_uri": "https://evil.example.org/token",
    });
    let account = ServiceAccountKey::read(file.to_string().as_bytes()).unwrap();
    let auth = super::super::ClientAuth::ServiceAccountKey(account);
    let jwt = auth.grant_key("").unwrap().assertion("a@b.c", params(), &["s1".into(), "s2".into()]).unwrap();
    assert_eq!(part(jwt.expose_secret(), 0), json!({"alg": "RS256", "typ": "JWT", "kid": "k7"}));
    let claims = part(jwt.expose_secret(), 1);
    assert_eq!(claims["iss"], "mailer@project.iam.gserviceaccount.com");
    assert_eq!((&claims["sub"], &claims["scope"]), (&json!("a@b.c"), &json!("s1 s2")));
    assert_eq!(claims["aud"], "https://id/token");
}

#[test]
fn another_json_file_differs_from_a_key_file() {
    let read = |json: &str| ServiceAccountKey::read(json.as_bytes()).unwrap_err();
    assert_eq!(read("-----BEGIN PRIVATE KEY-----"), KeyFileFlaw::NotAKeyFile);
    assert_eq!(read(r#"{"installed": {"client_id": "x"}}"#), KeyFileFlaw::NotAKeyFile);
    assert_eq!(read(r#"{"type": "authorized_user"}"#), KeyFileFlaw::OtherKind);
    assert_eq!(read(r#"{"type": "external_account"}"#), KeyFileFlaw::ExternalAccount);
    assert_eq!(read(r#"{"type": "service_account"}"#), KeyFileFlaw::NotAKeyFile);
    let junk = r#"{"type": "service_account", "client_email": "a@b", "private_key": "junk"}"#;
    assert_eq!(read(junk), KeyFileFlaw::Key(KeyFlaw::NoKey));
    let pem = pair(SigningAlgorithm::RS256).serialize_pem().replace('\n', "\\n");
    let twice = json!({"type": "service_account", "client_email": "a@b", "private_key": pem}).to_string();
    assert_eq!(read(&twice), KeyFileFlaw::Key(KeyFlaw::Holds(Form::EscapedLineBreaks)));
    assert_eq!(read(&"x".repeat(PEM_MAX)), KeyFileFlaw::NotAKeyFile);
    assert_eq!(read(&"x".repeat(900_000)), KeyFileFlaw::TooLarge);
    assert_eq!(read("\u{feff}{}"), KeyFileFlaw::Encoding("a byte order mark"));
    assert_eq!(ServiceAccountKey::read(&[0xff, 0xfe, 0x7b, 0]).unwrap_err(), KeyFileFlaw::Encoding("UTF-16"));
}
