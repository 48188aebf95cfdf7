//! `login`: the built binary, a scripted provider, a scripted browser, and a real API server.

use std::{collections::BTreeMap, time::Duration};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use mail_token_broker::{
    api::{ClusterMailProvider, MailCredential},
    clock::Clock,
    egress::EgressPolicy,
    idp::{IdpClients, Settings},
};
use mailtoken_testkit::{
    hostile::Validity,
    idp::{AUTHORIZE, DEVICE, DISCOVERY},
    proxy::Proxy,
    *,
};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// The path of Yahoo's token endpoint.
const YAHOO: &str = "/oauth2/get_token";

/// A namespace with the MailProvider `idp`, which uses discovery.
struct LoginFixture {
    ns: Namespace,
    idp: Idp,
}

impl LoginFixture {
    async fn new() -> Self {
        let ns = Cluster::shared().namespace().await;
        let idp = Idp::start();
        ns.provider(&idp).await;
        ns.apply(oidc(&idp)).await;
        idp.answer(signed_in("billing@example.org"));
        Self { ns, idp }
    }

    /// Starts `login` for billing@example.org and the Secret `seed`.
    fn login(&self, flags: &[&str]) -> Login {
        self.login_at("idp", &[flags, &["--allow-private-cidr=127.0.0.0/8"]].concat())
    }

    fn login_at(&self, provider: &str, flags: &[&str]) -> Login {
        let own = ["--provider", provider, "--mailbox", "billing@example.org", "--secret", "seed"];
        Login::start(&self.ns, &[&own, flags].concat())
    }

    /// Signs in with a browser. Returns the last page and the command, whether the sign-in succeeds or not.
    async fn sign_in(&self) -> (String, Login) {
        let login = self.login(&["--no-browser"]);
        let page = self.browse(&login.url().await).await;
        (page, login)
    }

    /// Requests the provider's page as a browser does, and follows the redirect. Returns the last page.
    async fn browse(&self, url: &str) -> String {
        get(&self.location(url).await).await
    }

    async fn location(&self, url: &str) -> String {
        let settings = Settings {
            request_timeout: Duration::from_secs(10),
            egress: EgressPolicy::new(vec!["127.0.0.0/8".parse().unwrap()]),
            proxy: None,
            no_proxy: vec![],
        };
        let clients = IdpClients::new(settings, Clock::system()).unwrap();
        let client = clients.for_trust(Some(self.idp.ca().as_bytes())).unwrap();
        let request = http::Request::get(url).body(vec![]).unwrap();
        let exchange = client.send(request, || true).await.unwrap();
        exchange.response.headers()["location"].to_str().unwrap().to_owned()
    }

    async fn seed(&self) -> Option<Secret> {
        self.ns.api::<Secret>().get_opt("seed").await.unwrap()
    }

    /// Returns the last refresh token that the provider issued.
    fn refresh_token(&self) -> String {
        self.idp.issued().into_iter().rfind(|token| token.starts_with("refresh")).unwrap()
    }

    /// Checks that texts for users contain no token, code or client secret.
    fn assert_silent(&self, texts: &[&str]) {
        let text = texts.concat();
        for secret in self.idp.issued().iter().map(String::as_str).chain(["a client secret"]) {
            assert!(!text.contains(secret), "{secret} is in:\n{text}");
        }
    }
}

/// Sends one request by HTTP, and returns the response.
async fn get(url: &str) -> String {
    let url = url::Url::parse(url).unwrap();
    let mut stream = TcpStream::connect(("127.0.0.1", url.port().unwrap())).await.unwrap();
    let target = &url[url::Position::BeforePath..];
    stream.write_all(format!("GET {target} HTTP/1.1\r\nhost: localhost\r\n\r\n").as_bytes()).await.unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).await.unwrap();
    page
}

fn oidc(idp: &Idp) -> Manifest {
    provider(idp).without("spec.oauth2").set("spec.oidc.issuerURL", idp.issuer())
}

/// Returns a token response for the account with this address.
fn signed_in(email: &str) -> Answer {
    let payload = BASE64_URL_SAFE_NO_PAD.encode(json!({"email": email, "sub": "1"}).to_string());
    Answer::token(3600).rotating().field("id_token", format!("e30.{payload}.c2ln"))
}

#[tokio::test]
async fn a_person_signs_in_with_a_browser_and_the_seed_is_written() {
    let fixture = LoginFixture::new().await;
    let (page, login) = fixture.sign_in().await;
    assert!(page.starts_with("HTTP/1.1 200") && page.contains("You can close this window"), "{page}");
    let (status, out, err) = login.end().await;
    assert!(status.success(), "{err}");

    let seed = fixture.seed().await.unwrap();
    assert_eq!(text(&seed, "refresh_token"), fixture.refresh_token());
    assert_eq!(field(&seed, "/metadata/labels"), json!({"mailtoken.dev/source": "true"}));
    assert!(err.contains("billing@example.org signed in"), "{err}");
    fixture.assert_silent(&[&page, &out, &err]);

    let proposal: Value = serde_yaml::from_str(&out).unwrap();
    fixture.ns.apply(proposal).await;
    let applied: MailCredential = fixture.ns.get("billing").await;
    let seed = field(&applied, "/spec/grant/refreshToken/secretRef");
    assert_eq!(seed, json!({"name": "seed", "key": "refresh_token"}));
}

#[tokio::test]
async fn login_uses_the_code_flow_with_pkce_and_offline_access() {
    let fixture = LoginFixture::new().await;
    let parameters = json!({"resource": "https://mail.example/", "state": "fixed", "prompt": "none"});
    fixture.ns.apply(oidc(&fixture.idp).set("spec.client.parameters", parameters)).await;
    let (_, login) = fixture.sign_in().await;
    login.end().await;
    let asked = fixture.idp.requests_at(AUTHORIZE)[0].query();
    let sent = fixture.idp.token_requests()[0].form();
    assert_ne!(asked["state"], "fixed", "the sign-in's own parameters stay");
    assert_eq!(sent["resource"], "https://mail.example/");
    for (name, value) in [
        ("resource", "https://mail.example/"),
        ("response_type", "code"),
        ("client_id", "mailer"),
        ("code_challenge_method", "S256"),
        ("scope", "openid email offline_access"),
        ("prompt", "consent"),
        ("login_hint", "billing@example.org"),
    ] {
        assert_eq!(asked[name], value);
    }
    assert_eq!(asked["code_challenge"], BASE64_URL_SAFE_NO_PAD.encode(Sha256::digest(&sent["code_verifier"])));
    assert_eq!(asked["redirect_uri"], sent["redirect_uri"]);
    assert!(asked["redirect_uri"].starts_with("http://localhost:"), "{asked:?}");
    assert_eq!(
        (sent["grant_type"].as_str(), sent["client_secret"].as_str()),
        ("authorization_code", "a client secret")
    );
    assert!(sent["code"].starts_with("code-canary"));
}

#[tokio::test]
async fn another_account_is_refused_and_nothing_is_written() {
    let fixture = LoginFixture::new().await;
    fixture.idp.answer(signed_in("mallory@example.org"));
    let (page, login) = fixture.sign_in().await;
    assert!(page.starts_with("HTTP/1.1 400") && page.contains("Not signed in"), "{page}");
    let complaint = login.refused().await;
    assert!(complaint.contains("mallory@example.org") && complaint.contains("billing@example.org"), "{complaint}");
    assert_eq!(fixture.seed().await, None);
    fixture.assert_silent(&[&page, &complaint]);
}

#[tokio::test]
async fn a_name_without_an_at_sign_proves_nothing_and_login_says_so() {
    let fixture = LoginFixture::new().await;
    fixture.idp.answer(signed_in("billing"));
    let (_, login) = fixture.sign_in().await;
    let (status, _, err) = login.end().await;
    assert!(status.success() && err.contains("does not say who signed in"), "{err}");
    assert!(fixture.seed().await.is_some());
}

#[tokio::test]
async fn a_user_name_signs_in_for_a_credential_that_names_it_and_is_compared_with_the_account() {
    let fixture = LoginFixture::new().await;
    let flags = ["--mailbox", "svc", "--secret", "seed", "--no-browser", "--allow-private-cidr=127.0.0.0/8"];
    let login = || Login::start(&fixture.ns, &[&["--provider", "idp"], &flags[..]].concat());
    let complaint = login().refused().await;
    assert!(complaint.contains("authenticateAs: svc"), "{complaint}");
    let refresh = json!({"refreshToken": {"secretRef": {"name": "seed", "key": "refresh_token"}}});
    let seeded = credential("billing").set("spec.grant", refresh).set("spec.mailbox.authenticateAs", "svc");
    fixture.ns.apply(seeded).await;

    let named = |name: &str| {
        let claims = json!({"email": "billing@example.org", "preferred_username": name});
        let payload = BASE64_URL_SAFE_NO_PAD.encode(claims.to_string());
        Answer::token(3600).rotating().field("id_token", format!("e30.{payload}.c2ln"))
    };
    fixture.idp.answer(named("anna"));
    let other = login();
    fixture.browse(&other.url().await).await;
    let complaint = other.refused().await;
    assert!(complaint.contains("anna signed in, and the mailbox is svc"), "{complaint}");
    assert_eq!(fixture.seed().await, None);

    fixture.idp.answer(named("SVC"));
    let right = login();
    fixture.browse(&right.url().await).await;
    let (status, _, err) = right.end().await;
    assert!(status.success() && err.contains("svc signed in"), "{err}");
    assert!(fixture.seed().await.is_some());
    assert_eq!(fixture.idp.requests_at(AUTHORIZE)[0].query()["scope"], "openid email offline_access profile");
}

#[tokio::test]
async fn a_foreign_secret_is_left_alone_and_refused_before_the_sign_in() {
    let fixture = LoginFixture::new().await;
    let unlabelled = source("seed", "password", "hunter2").without("metadata.labels");
    fixture.ns.apply(unlabelled.clone()).await;
    let complaint = fixture.login(&["--no-browser"]).refused().await;
    let label = format!("kubectl -n {} label secret seed mailtoken.dev/source=true", fixture.ns.name);
    assert!(complaint.contains(&label), "{complaint}");
    fixture.ns.remove(&unlabelled).await;
    fixture.ns.gone::<Secret>("seed").await;

    let own = source("seed", "access_token", "t").entry(
        "metadata.labels",
        "app.kubernetes.io/managed-by",
        "mail-token-broker",
    );
    fixture.ns.apply(own.clone()).await;
    let complaint = fixture.login(&["--no-browser"]).refused().await;
    assert!(complaint.contains("the broker's own") && complaint.contains("`--secret`"), "{complaint}");
    fixture.ns.remove(&own).await;
    fixture.ns.gone::<Secret>("seed").await;

    fixture.ns.apply(source("seed", "refresh_token", "old").set("immutable", true)).await;
    let complaint = fixture.login(&["--no-browser"]).refused().await;
    assert!(complaint.contains("delete secret seed"), "{complaint}");
    assert_eq!(fixture.idp.requests().len(), 0);
}

#[tokio::test]
async fn a_second_login_re_seeds_and_proposes_nothing() {
    let fixture = LoginFixture::new().await;
    fixture.ns.apply(source("seed", "note", "kept")).await;
    let refresh = json!({"refreshToken": {"secretRef": {"name": "seed", "key": "refresh_token"}}});
    let seeded = credential("billing").set("spec.grant", refresh).set("spec.scopes", json!(["mail"]));
    fixture.ns.apply(seeded).await;
    for _ in 0..2 {
        let (_, login) = fixture.sign_in().await;
        let (status, out, err) = login.end().await;
        assert!(status.success() && out.is_empty(), "{out}{err}");
        assert!(err.contains("/billing is re-seeded"), "{err}");
        let seed = fixture.seed().await.unwrap();
        assert_eq!(text(&seed, "refresh_token"), fixture.refresh_token());
        assert_eq!(text(&seed, "note"), "kept");
    }
    assert_eq!(fixture.idp.requests_at(AUTHORIZE)[0].query()["scope"], "mail openid email offline_access");
}

#[tokio::test]
async fn a_refusal_in_the_browser_appears_there_and_in_the_terminal() {
    let fixture = LoginFixture::new().await;
    let login = fixture.login(&["--no-browser"]);
    let url = url::Url::parse(&login.url().await).unwrap();
    let parameter = |name: &str| url.query_pairs().find(|(key, _)| key == name).unwrap().1.into_owned();
    let back = parameter("redirect_uri");
    assert!(get(&format!("{back}?code=stolen&state=guessed")).await.starts_with("HTTP/1.1 400"), "another state");
    let page = get(&format!("{back}?error=access_denied&error_description=%3Cb%3E&state={}", parameter("state"))).await;
    assert!(page.starts_with("HTTP/1.1 400") && !page.contains("<b>"), "{page}");
    let complaint = login.refused().await;
    assert!(complaint.contains("access_denied") && complaint.contains("was declined"), "{complaint}");
    assert_eq!((fixture.idp.token_requests().len(), fixture.seed().await), (0, None));
}

#[tokio::test]
async fn an_answer_without_a_refresh_token_is_no_sign_in() {
    let fixture = LoginFixture::new().await;
    fixture.idp.answer(Answer::token(3600));
    let (_, login) = fixture.sign_in().await;
    let complaint = login.refused().await;
    assert!(complaint.contains("no refresh token"), "{complaint}");
    assert_eq!(fixture.seed().await, None);
}

#[tokio::test]
async fn a_wrong_client_secret_is_reported_with_the_command_that_fixes_it() {
    let fixture = LoginFixture::new().await;
    fixture.idp.answer(Answer::error("invalid_client"));
    let (_, login) = fixture.sign_in().await;
    let complaint = login.refused().await;
    assert!(complaint.contains("invalid_client") && complaint.contains("patch secret idp-client"), "{complaint}");
}

#[tokio::test]
async fn device_polls_are_as_slow_as_the_provider_wants() {
    let fixture = LoginFixture::new().await;
    fixture.idp.next(Answer::error("authorization_pending"));
    fixture.idp.next(Answer::error("slow_down"));
    let login = fixture.login(&["--device"]);
    let shown = login.line("sign in as ").await;
    assert!(shown.contains(&fixture.idp.url("/sign-in")) && shown.contains("WDJB-MJHT"), "{shown}");
    let (status, out, err) = login.end().await;
    assert!(status.success(), "{err}");
    assert_eq!(text(&fixture.seed().await.unwrap(), "refresh_token"), fixture.refresh_token());
    fixture.assert_silent(&[&out, &err]);
    assert_eq!(fixture.idp.requests_at(DEVICE)[0].form()["scope"], "openid email offline_access");
    let polls = fixture.idp.token_requests();
    let gaps: Vec<_> = polls.windows(2).map(|pair| pair[1].at - pair[0].at).collect();
    assert_eq!(gaps.len(), 2);
    assert!(gaps[0] >= Duration::from_millis(900) && gaps[1] >= Duration::from_secs(6), "{gaps:?}");
}

#[tokio::test]
async fn a_device_sign_in_that_is_declined_or_runs_out_ends() {
    let fixture = LoginFixture::new().await;
    fixture.idp.next(Answer::error("access_denied"));
    let complaint = fixture.login(&["--device"]).refused().await;
    assert!(complaint.contains("was declined"), "{complaint}");
    fixture.idp.next(Answer::error("expired_token"));
    let complaint = fixture.login(&["--device"]).refused().await;
    assert!(complaint.contains("before the code expired"), "{complaint}");
    fixture.idp.answer(Answer::error("authorization_pending"));
    let uri = fixture.idp.url("/sign-in");
    let brief = json!({"device_code": "d", "user_code": "U", "verification_uri": uri, "expires_in": 3, "interval": 1});
    fixture.idp.next_at(DEVICE, Answer::json(200, brief));
    let complaint = fixture.login(&["--device"]).refused().await;
    assert!(complaint.contains("before the code expired"), "{complaint}");
    assert_eq!(fixture.seed().await, None);
}

#[tokio::test]
async fn a_server_without_an_authorization_endpoint_wants_a_device() {
    let fixture = LoginFixture::new().await;
    fixture.ns.apply(provider(&fixture.idp)).await;
    let complaint = fixture.login(&["--no-browser"]).refused().await;
    assert!(complaint.contains("--secret seed --device`"), "{complaint}");
    let complaint = fixture.login(&["--device"]).refused().await;
    assert!(complaint.contains("spec.oauth2.deviceAuthorizationURL"), "{complaint}");
    fixture.ns.apply(provider(&fixture.idp).set("spec.oauth2.deviceAuthorizationURL", fixture.idp.url(DEVICE))).await;
    let (status, _, err) = fixture.login(&["--device"]).end().await;
    assert!(status.success(), "{err}");
}

#[tokio::test]
async fn a_private_address_is_connected_to_only_if_that_is_allowed() {
    let fixture = LoginFixture::new().await;
    let complaint = fixture.login_at("idp", &["--no-browser"]).refused().await;
    assert!(complaint.contains("(loopback)") && !complaint.contains("--allow-private-cidr"), "{complaint}");
    assert_eq!(fixture.idp.connections(), 0);
}

#[tokio::test]
async fn a_transient_failure_asks_the_user_to_run_login_again() {
    let fixture = LoginFixture::new().await;
    fixture.idp.answer_at(DISCOVERY, Answer::status(503));
    for (validity, problem) in [(Validity::Present, "HTTP 503"), (Validity::Past, "expired")] {
        fixture.idp.present(&["localhost"], validity);
        let complaint = fixture.login(&["--no-browser"]).refused().await;
        assert!(complaint.contains(problem), "{complaint}");
        assert!(complaint.contains("Run the command again"), "{complaint}");
        assert!(!complaint.contains("The broker tries again"), "{complaint}");
    }
}

#[tokio::test]
async fn an_interrupted_login_writes_nothing() {
    let fixture = LoginFixture::new().await;
    let login = fixture.login(&["--no-browser"]);
    login.url().await;
    process::output(std::process::Command::new("kill").args(["-s", "INT", &login.id().to_string()]));
    assert_eq!(login.refused().await, "interrupted: nothing was written");
    assert_eq!(fixture.seed().await, None);
}

#[tokio::test]
async fn a_provider_of_the_cluster_is_asked_only_for_those_it_allows() {
    let fixture = LoginFixture::new().await;
    let name = fixture.ns.name.clone();
    let wide = |mailboxes: Value| {
        oidc(&fixture.idp)
            .set("kind", "ClusterMailProvider")
            .set("metadata.name", name.as_str())
            .set("spec.allowed", json!([{"namespaceSelector": {}, "mailboxes": mailboxes}]))
    };
    let flags = ["--no-browser", "--cluster", "--broker-namespace", &name, "--allow-private-cidr=127.0.0.0/8"];
    let login = || fixture.login_at(&name, &flags);
    fixture.ns.apply(wide(json!(["orders@example.org"]))).await;
    let complaint = login().refused().await;
    assert!(complaint.contains("does not allow billing@example.org"), "{complaint}");
    fixture.ns.apply(wide(json!(["*@example.org"]))).await;
    let login = login();
    fixture.browse(&login.url().await).await;
    let (status, out, err) = login.end().await;
    assert!(status.success() && out.contains("ClusterMailProvider"), "{out}{err}");
    let api: Api<ClusterMailProvider> = Api::all(fixture.ns.client.clone());
    api.delete(&name, &Default::default()).await.unwrap();
}

/// Starts `login` at Yahoo, whose hosts resolve to the fixture's server.
async fn yahoo(fixture: &LoginFixture, flags: &[&str]) -> Login {
    fixture.idp.present(&["api.login.yahoo.com"], Validity::Present);
    fixture.idp.answer_at(YAHOO, Answer::token(3600).rotating());
    fixture
        .ns
        .apply(provider(&fixture.idp).without("spec.oauth2").without("spec.servers").set("spec.yahoo", json!({})))
        .await;
    let proxy = format!("--egress-proxy={}", Proxy::start(fixture.idp.port()).url());
    let own = ["--provider", "idp", "--mailbox", "billing@example.org", "--secret", "seed", "--no-browser"];
    let reach = ["--allow-private-cidr=127.0.0.0/8", &proxy];
    Login::start_with_host("api.login.yahoo.com", &fixture.ns, &[&own[..], &reach, flags].concat())
}

#[tokio::test]
async fn a_code_that_yahoo_shows_is_pasted() {
    let fixture = LoginFixture::new().await;
    let mut login = yahoo(&fixture, &[]).await;
    let url = url::Url::parse(&login.url().await).unwrap();
    let asked: BTreeMap<_, _> = url.query_pairs().into_owned().collect();
    assert!(url.as_str().starts_with("https://api.login.yahoo.com/oauth2/request_auth?"), "{url}");
    assert_eq!((asked["redirect_uri"].as_str(), asked["scope"].as_str()), ("oob", "mail-w"));
    login.line("then paste the code").await;
    login.enter("  pasted-code \r");
    let (status, out, err) = login.end().await;
    assert!(status.success() && out.contains("kind: MailCredential"), "{out}{err}");

    let sent = fixture.idp.requests_at(YAHOO)[0].form();
    assert_eq!((sent["code"].as_str(), sent["redirect_uri"].as_str()), ("pasted-code", "oob"));
    assert_eq!(asked["code_challenge"], BASE64_URL_SAFE_NO_PAD.encode(Sha256::digest(&sent["code_verifier"])));
    assert_eq!(text(&fixture.seed().await.unwrap(), "refresh_token"), fixture.refresh_token());
    fixture.assert_silent(&[&out, &err]);
}

#[tokio::test]
async fn a_missing_code_and_a_needless_port_are_refused_before_yahoo_is_asked() {
    let fixture = LoginFixture::new().await;
    let mut login = yahoo(&fixture, &[]).await;
    login.line("then paste the code").await;
    login.enter(" ");
    let complaint = login.refused().await;
    assert!(complaint.contains("no code was pasted, and nothing was written"), "{complaint}");
    let complaint = yahoo(&fixture, &["--port=8400"]).await.refused().await;
    assert!(complaint.contains("leave out `--port`"), "{complaint}");
    assert_eq!((fixture.idp.requests().len(), fixture.seed().await), (0, None));
}

#[tokio::test]
async fn the_address_at_which_the_browser_ended_is_pasted() {
    let fixture = LoginFixture::new().await;
    let mut login = fixture.login(&["--paste", "--redirect-uri=https://localhost"]);
    let url = url::Url::parse(&login.url().await).unwrap();
    let asked: BTreeMap<_, _> = url.query_pairs().into_owned().collect();
    assert_eq!(asked["redirect_uri"], "https://localhost");
    login.line("then copy the address").await;
    login.enter(url.as_str());
    login.line("that is not the address at which this sign-in ended").await;
    login.enter("https://localhost/?code=stolen&state=guessed");
    let ended = fixture.location(url.as_str()).await;
    assert!(ended.starts_with("https://localhost/?code="), "{ended}");
    login.enter(&ended);
    let (status, out, err) = login.end().await;
    assert!(status.success() && out.contains("kind: MailCredential"), "{out}{err}");
    let sent = fixture.idp.token_requests()[0].form();
    assert_eq!(sent["redirect_uri"], "https://localhost");
    assert_eq!(text(&fixture.seed().await.unwrap(), "refresh_token"), fixture.refresh_token());
    fixture.assert_silent(&[&out, &err]);

    let complaint = fixture.login(&["--redirect-uri=https://localhost"]).refused().await;
    assert!(complaint.contains("add `--paste`"), "{complaint}");
}

#[tokio::test]
async fn a_server_that_names_its_authorization_endpoint_takes_a_sign_in_with_a_browser() {
    let fixture = LoginFixture::new().await;
    let named = provider(&fixture.idp).set("spec.oauth2.authorizationURL", fixture.idp.url(AUTHORIZE));
    fixture.ns.apply(named.set("spec.scopes", json!(["mail-w"]))).await;
    let (page, login) = fixture.sign_in().await;
    assert!(page.starts_with("HTTP/1.1 200"), "{page}");
    let (status, out, err) = login.end().await;
    assert!(status.success() && !err.contains("the response will be sent to"), "{out}{err}");
    assert_eq!(text(&fixture.seed().await.unwrap(), "refresh_token"), fixture.refresh_token());
}

#[tokio::test]
async fn a_response_that_goes_to_another_host_is_announced_and_confirmed() {
    let fixture = LoginFixture::new().await;
    let elsewhere = format!("127.0.0.1:{}", fixture.idp.port());
    fixture.idp.present(&["localhost", "127.0.0.1"], Validity::Present);
    let document = json!({
        "issuer": fixture.idp.issuer(), "authorization_endpoint": fixture.idp.url(AUTHORIZE),
        "token_endpoint": format!("https://{elsewhere}/token"),
    });
    fixture.idp.answer_at(DISCOVERY, Answer::json(200, document));
    let announced = format!("is on localhost:{}, but the response will be sent to {elsewhere}", fixture.idp.port());

    let mut login = fixture.login(&["--no-browser"]);
    assert!(login.line("the sign-in page is on ").await.contains(&announced));
    login.line(&format!("the operator of {elsewhere}")).await;
    login.enter("no");
    let complaint = login.refused().await;
    assert!(complaint.contains("nothing was sent") && !complaint.contains("https://localhost"), "{complaint}");
    assert_eq!((fixture.idp.token_requests().len(), fixture.seed().await), (0, None));

    let mut login = fixture.login(&["--no-browser"]);
    login.line("the operator of ").await;
    login.enter("yes");
    fixture.browse(&login.url().await).await;
    assert!(login.end().await.0.success());

    let login = fixture.login(&["--no-browser", "--token-host", &elsewhere]);
    fixture.browse(&login.url().await).await;
    let (status, _, err) = login.end().await;
    assert!(status.success() && err.contains(&announced) && !err.contains("the operator of"), "{err}");
}

#[tokio::test]
async fn a_code_that_is_entered_at_another_hosts_page_is_announced_and_confirmed() {
    let fixture = LoginFixture::new().await;
    let elsewhere = json!({
        "device_code": "d", "user_code": "WDJB-MJHT", "verification_uri": "https://login.example.com/device",
        "expires_in": 600, "interval": 1,
    });
    fixture.idp.answer_at(DEVICE, Answer::json(200, elsewhere));
    let mut login = fixture.login(&["--device"]);
    let announced = login.line("the sign-in page is on ").await;
    let destination = format!("localhost:{}", fixture.idp.port());
    assert!(announced.contains(&format!("is on login.example.com, but the response will be sent to {destination}")));
    login.line("the operator of ").await;
    login.enter("");
    let complaint = login.refused().await;
    assert!(complaint.contains(&format!("`--token-host {destination}`")), "{complaint}");
    assert_eq!(fixture.idp.token_requests().len(), 0);

    let (status, _, err) = fixture.login(&["--device", "--token-host", &destination]).end().await;
    assert!(status.success() && err.contains("WDJB-MJHT"), "{err}");
}

#[tokio::test]
async fn the_browser_starts_with_a_local_page_that_redirects_once() {
    let fixture = LoginFixture::new().await;
    let own = ["--provider", "idp", "--mailbox", "billing@example.org", "--secret", "seed"];
    let flags = [&own[..], &["--allow-private-cidr=127.0.0.0/8"]].concat();
    let (login, started) = Login::start_with_browser(&fixture.ns, &flags);
    let url = login.url().await;
    let page = until("the browser is started", async || {
        let page = std::fs::read_to_string(&started).unwrap_or_default();
        if page.is_empty() { Err(String::new()) } else { Ok(page) }
    })
    .await;
    assert!(page.starts_with("http://127.0.0.1:") && !page.contains('?'), "{page}");
    let led = get(&page).await;
    assert!(led.starts_with("HTTP/1.1 303") && led.contains(&format!("location: {url}\r\n")), "{led}");
    fixture.browse(&url).await;
    assert!(login.end().await.0.success());

    let (login, started) = Login::start_with_browser(&fixture.ns, &flags);
    login.url().await;
    let page = until("the browser is started", async || {
        let page = std::fs::read_to_string(&started).unwrap_or_default();
        if page.is_empty() { Err(String::new()) } else { Ok(page) }
    })
    .await;
    get(&page).await;
    assert!(get(&page).await.starts_with("HTTP/1.1 410"));
    let complaint = login.refused().await;
    assert!(complaint.contains("was opened twice"), "{complaint}");
}

#[tokio::test]
async fn a_kubeconfig_and_a_context_can_be_named() {
    let fixture = LoginFixture::new().await;
    let kubeconfig = fixture.ns.cluster.kubeconfig();
    let renamed = fixture.ns.cluster.dir().join(format!("{}.login", fixture.ns.name));
    let text = std::fs::read_to_string(kubeconfig).unwrap();
    std::fs::write(&renamed, text.replace("- name: stack\n  context:", "- name: other\n  context:")).unwrap();
    let file = renamed.to_str().unwrap();
    let login = fixture.login(&["--no-browser", "--kubeconfig", file, "--context=other"]);
    fixture.browse(&login.url().await).await;
    let (status, _, err) = login.end().await;
    assert!(status.success(), "{err}");
    let complaint = fixture.login(&["--no-browser", "--kubeconfig", file]).refused().await;
    assert!(complaint.contains("the kubeconfig cannot be used"), "{complaint}");
}
