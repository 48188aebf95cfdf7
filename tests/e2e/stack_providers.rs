//! The behaviour of the stack's identity providers, tested with raw requests. The broker's own tests rely on this
//! behaviour.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpListener,
    process::{Command, Stdio},
};

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, RSA_PKCS1_SHA256, RSA_PSS_SHA256, RsaKeyPair,
    },
};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use mailtoken_testkit::*;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use url::{Url, form_urlencoded};

const DEVICE_CODE: &str = "urn:ietf:params:oauth:grant-type:device_code";
const JWT_BEARER: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
const TOKEN_EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";

/// A provider of the stack, with its public client for sign-ins.
struct Provider {
    cluster: Cluster,
    discovery: Value,
    public: String,
}

impl Provider {
    fn new(cluster: &Cluster, issuer: &str, public: &str) -> Self {
        let mut provider = Self { cluster: cluster.clone(), discovery: Value::Null, public: cluster.env(public) };
        let url = format!("{}/.well-known/openid-configuration", cluster.env(issuer));
        provider.discovery = serde_json::from_str(&provider.curl(&url, "")).unwrap();
        provider
    }

    fn keycloak(cluster: &Cluster) -> Self {
        Self::new(cluster, "KEYCLOAK_ISSUER", "KEYCLOAK_DESKTOP_CLIENT_ID")
    }

    fn oidc(cluster: &Cluster) -> Self {
        Self::new(cluster, "OIDC_ISSUER", "OIDC_NATIVE_CLIENT_ID")
    }

    fn both() -> [Self; 2] {
        let cluster = Cluster::complete();
        [Self::keycloak(&cluster), Self::oidc(&cluster)]
    }

    fn endpoint(&self, name: &str) -> &str {
        self.discovery[name].as_str().unwrap_or_else(|| panic!("no {name}: {:#}", self.discovery))
    }

    /// Returns the body of the response to a request with this curl configuration.
    fn curl(&self, url: &str, configuration: &str) -> String {
        let mut curl = Command::new("curl")
            .args(["-sS", "--noproxy", "*", "--max-time", "20", "--cacert", &self.cluster.env("CA_CERT")])
            .args(["--config", "-", url])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        curl.stdin.take().unwrap().write_all(configuration.as_bytes()).unwrap();
        let output = curl.wait_with_output().unwrap();
        assert!(output.status.success(), "{url}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn post(&self, endpoint: &str, form: &[(&str, &str)]) -> Value {
        let form = form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish();
        let answer = self.curl(self.endpoint(endpoint), &format!("data = \"{form}\""));
        if answer.is_empty() { Value::Null } else { serde_json::from_str(&answer).unwrap() }
    }

    /// Posts a form to the token endpoint as the public client, and returns the response.
    fn token(&self, grant: &str, form: &[(&str, &str)]) -> Value {
        self.post("token_endpoint", &[&[("client_id", self.public.as_str()), ("grant_type", grant)], form].concat())
    }

    fn refreshed(&self, refresh_token: &str) -> Value {
        self.token("refresh_token", &[("refresh_token", refresh_token)])
    }

    /// Starts a device sign-in, executes the user's part with these options, and returns the token response.
    fn device(&self, options: &[&str]) -> Value {
        let form = [("client_id", self.public.as_str()), ("scope", "openid email offline_access")];
        let started = self.post("device_authorization_endpoint", &form);
        self.cluster.sign_in(&member(&started, "verification_uri_complete"), options).unwrap();
        self.token(DEVICE_CODE, &[("device_code", &member(&started, "device_code"))])
    }
}

/// Returns a string member of a response. Fails if the member is missing.
fn member(answer: &Value, name: &str) -> String {
    answer[name].as_str().unwrap_or_else(|| panic!("no {name}: {answer:#}")).to_owned()
}

fn claims(token: &str) -> Value {
    let body = token.split('.').nth(1).unwrap();
    serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(body).unwrap()).unwrap()
}

#[tokio::test]
async fn a_person_signs_in_for_a_device_whose_refresh_tokens_work_once() {
    for provider in Provider::both() {
        let first = provider.device(&[]);
        let identity = claims(&member(&first, "id_token"));
        assert_eq!(identity["email"], provider.cluster.env("PERSON_USER"));
        // Keycloak 26.4 counts in whole seconds: it does not detect the reuse of a token that was refreshed in the
        // second of its issue.
        until("the second of its issue is over", async || match wait::now().as_second() {
            now if now > identity["iat"].as_i64().unwrap() => Ok(()),
            now => Err(now.to_string()),
        })
        .await;

        let second = provider.refreshed(&member(&first, "refresh_token"));
        assert_ne!(second["refresh_token"], first["refresh_token"]);
        let third = provider.refreshed(&member(&second, "refresh_token"));
        member(&third, "access_token");

        for used in [&first, &third] {
            let refused = provider.refreshed(&member(used, "refresh_token"));
            assert_eq!(refused["error"], "invalid_grant", "a reuse ends them all: {refused:#}");
        }
    }
}

#[test]
fn a_person_denies_a_device() {
    for provider in Provider::both() {
        assert_eq!(provider.device(&["--deny"])["error"], "access_denied");
    }
}

#[test]
fn a_wrong_password_ends_the_sign_in() {
    let keycloak = Provider::keycloak(&Cluster::complete());
    let form = [("client_id", keycloak.public.as_str())];
    let started = keycloak.post("device_authorization_endpoint", &form);
    let url = member(&started, "verification_uri_complete");
    let reported = keycloak.cluster.sign_in(&url, &["--as", "nobody@shop.example"]).unwrap_err();
    assert!(reported.contains("Invalid username or password"), "{reported}");
}

#[test]
fn another_person_signs_in_by_authorization_code_at_any_port_of_this_machine() {
    let verifier = "0123456789-0123456789-0123456789-0123456789";
    let challenge = BASE64_URL_SAFE_NO_PAD.encode(Sha256::digest(verifier));
    for (provider, host) in
        Provider::both().iter().flat_map(|provider| [(provider, "localhost"), (provider, "127.0.0.1")])
    {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let redirect = format!("http://{host}:{}/", listener.local_addr().unwrap().port());
        let client = std::thread::spawn(move || {
            let (mut browser, _) = listener.accept().unwrap();
            let mut request = [0; 4096];
            let length = browser.read(&mut request).unwrap();
            browser.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 6\r\n\r\nThanks").unwrap();
            let path = String::from_utf8_lossy(&request[..length]).split(' ').nth(1).unwrap().to_owned();
            let url = Url::parse(&format!("http://localhost{path}")).unwrap();
            url.query_pairs().find(|(name, _)| name == "code").map(|(_, code)| code.into_owned()).unwrap()
        });
        let mut url = Url::parse(provider.endpoint("authorization_endpoint")).unwrap();
        url.query_pairs_mut().extend_pairs([
            ("client_id", provider.public.as_str()),
            ("response_type", "code"),
            ("scope", "openid email offline_access"),
            ("redirect_uri", &redirect),
            ("code_challenge", &challenge),
            ("code_challenge_method", "S256"),
        ]);

        let reported = provider.cluster.sign_in(url.as_str(), &["--as", "other@shop.example"]).unwrap();
        assert!(reported.ends_with(&format!("{redirect}\nThanks\n")), "{reported}");

        let code = client.join().unwrap();
        let form = [("code", code.as_str()), ("redirect_uri", &redirect), ("code_verifier", verifier)];
        let answer = provider.token("authorization_code", &form);
        assert_eq!(claims(&member(&answer, "id_token"))["email"], "other@shop.example");
        member(&provider.refreshed(&member(&answer, "refresh_token")), "access_token");
    }
}

#[test]
fn a_revoked_refresh_token_is_refused() {
    for provider in Provider::both() {
        let token = member(&provider.device(&[]), "refresh_token");
        let form = [("client_id", provider.public.as_str()), ("token", &token), ("token_type_hint", "refresh_token")];
        assert_eq!(provider.post("revocation_endpoint", &form), Value::Null);
        assert_eq!(provider.refreshed(&token)["error"], "invalid_grant");
    }
}

#[test]
fn keycloak_exchanges_a_users_token() {
    let keycloak = Provider::keycloak(&Cluster::complete());
    let subject = member(&keycloak.device(&[]), "access_token");
    let [id, secret] =
        ["KEYCLOAK_EXCHANGE_CLIENT_ID", "KEYCLOAK_EXCHANGE_CLIENT_SECRET"].map(|name| keycloak.cluster.env(name));
    let form = [
        ("grant_type", TOKEN_EXCHANGE),
        ("client_id", &id),
        ("client_secret", &secret),
        ("subject_token", &subject),
        ("subject_token_type", ACCESS_TOKEN),
    ];
    let answer = keycloak.post("token_endpoint", &form);
    assert_eq!(answer["issued_token_type"], ACCESS_TOKEN);
    let claims = claims(&member(&answer, "access_token"));
    assert_eq!((&claims["azp"], &claims["mailbox"]), (&json!(id), &json!(keycloak.cluster.env("PERSON_USER"))));
}

#[tokio::test]
async fn keycloak_takes_the_token_of_a_service_account_without_another_client_id_than_its_subject() {
    let ns = Cluster::complete().namespace().await;
    let client = format!("federated-{}", ns.name);
    realm::federate(&ns, &client, "mailer").await;
    let keycloak = Provider::keycloak(&ns.cluster);
    let ask = |audience: &str, id: &[(&str, &str)]| {
        let assertion = ns.kubectl(["create", "token", "mailer", "--audience", audience]);
        let form = [
            ("grant_type", "client_credentials"),
            ("client_assertion_type", JWT_BEARER),
            ("client_assertion", assertion.trim_end()),
        ];
        keycloak.post("token_endpoint", &[&form, id].concat())
    };
    let issuer = keycloak.endpoint("issuer");
    let subject = format!("system:serviceaccount:{}:mailer", ns.name);

    for id in [&[][..], &[("client_id", subject.as_str())]] {
        assert_eq!(claims(&member(&ask(issuer, id), "access_token"))["azp"], client);
    }
    assert_eq!(ask(issuer, &[("client_id", &client)])["error"], "invalid_client");
    assert_eq!(ask("another audience", &[])["error"], "invalid_client");
}

#[test]
fn the_oidc_provider_takes_a_secret_as_field_and_as_encoded_header() {
    let oidc = Provider::oidc(&Cluster::complete());
    let env = |name: &str| oidc.cluster.env(name);
    let (id, secret) = (env("OIDC_CLIENT_ID"), env("OIDC_CLIENT_SECRET"));
    let grant = ("grant_type", "client_credentials");
    let posted =
        oidc.post("token_endpoint", &[grant, ("client_id", &id), ("client_secret", &secret), ("scope", "mail")]);
    assert_eq!(member(&posted, "scope"), "mail");

    let encoded = form_urlencoded::byte_serialize(secret.as_bytes()).collect::<String>();
    for (secret, accepted) in [(&encoded, true), (&secret, false)] {
        let configuration =
            format!("user = \"{}:{secret}\"\ndata = \"grant_type=client_credentials\"", env("OIDC_BASIC_CLIENT_ID"));
        let answer = oidc.curl(oidc.endpoint("token_endpoint"), &configuration);
        assert_eq!(answer.contains("access_token"), accepted, "{answer}");
    }
}

#[test]
fn the_oidc_provider_takes_an_assertion_by_each_algorithm_once() {
    let oidc = Provider::oidc(&Cluster::complete());
    for algorithm in ["RS256", "PS256", "ES256", "EdDSA"] {
        let assertion = assertion(&oidc, algorithm, oidc.endpoint("issuer"));
        let ask = |assertion: &str| {
            let form = [
                ("grant_type", "client_credentials"),
                ("client_assertion_type", JWT_BEARER),
                ("client_assertion", assertion),
            ];
            oidc.post("token_endpoint", &form)
        };
        member(&ask(&assertion), "access_token");
        assert_eq!(ask(&assertion)["error"], "invalid_client", "{algorithm}: again");
        assert_eq!(ask(&self::assertion(&oidc, algorithm, "https://localhost/"))["error"], "invalid_client");
    }
}

/// Signs a client assertion (RFC 7523, section 3) with the key for this algorithm.
fn assertion(oidc: &Provider, algorithm: &str, audience: &str) -> String {
    let kind = match algorithm {
        "ES256" => "ec",
        "EdDSA" => "ed25519",
        _ => "rsa",
    };
    let file = format!("{}/{kind}.key", oidc.cluster.env("OIDC_JWT_KEYS"));
    let pem = fs::read_to_string(file).unwrap();
    let key = rcgen::KeyPair::from_pem(&pem).unwrap().serialize_der();
    let now = wait::now();
    let client = oidc.cluster.env("OIDC_JWT_CLIENT_ID");
    let claims = json!({
        "iss": client, "sub": client, "aud": audience, "jti": format!("{algorithm}-{}", now.as_nanosecond()),
        "iat": now.as_second(), "exp": now.as_second() + 60,
    });
    let part = |value: Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(json!({"alg": algorithm, "kid": kind})), part(claims));
    let random = SystemRandom::new();
    let rsa = |padding| {
        let key = RsaKeyPair::from_pkcs8(&key).unwrap();
        let mut signature = vec![0; key.public_modulus_len()];
        key.sign(padding, &random, signed.as_bytes(), &mut signature).unwrap();
        signature
    };
    let signature = match algorithm {
        "RS256" => rsa(&RSA_PKCS1_SHA256),
        "PS256" => rsa(&RSA_PSS_SHA256),
        "ES256" => {
            let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &key).unwrap();
            key.sign(&random, signed.as_bytes()).unwrap().as_ref().to_vec()
        }
        _ => Ed25519KeyPair::from_pkcs8_maybe_unchecked(&key).unwrap().sign(signed.as_bytes()).as_ref().to_vec(),
    };
    format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
}
