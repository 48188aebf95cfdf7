//! MailProviders and ClusterMailProviders that the API server rejects by the schema alone.

use mailtoken_testkit::{table::*, *};
use serde_json::{Value, json};

#[tokio::test]
async fn a_provider_is_of_one_kind_that_there_is() {
    refused([
        ("none", plain().without("spec.oauth2"), "name exactly one provider"),
        ("two", plain().set("spec.oidc.issuerURL", "https://id.example.org"), "name exactly one provider"),
        ("three", plain().set("spec.oidc.issuerURL", "https://x").set("spec.microsoft.tenantID", "x"), "exactly one"),
        ("an unknown one", plain().without("spec.oauth2").set("spec.mailru", json!({})), "mailru"),
        ("no client", plain().without("spec.client"), "spec.client: required value"),
        ("no tenant", microsoft(json!({})), "tenantid: required value"),
        ("two presets", preset("google").set("spec.yahoo", json!({})), "name exactly one provider"),
        ("no token endpoint", plain().set("spec.oauth2", json!({})), "tokenurl: required value"),
        ("no issuer", plain().without("spec.oauth2").set("spec.oidc", json!({})), "issuerurl: required value"),
        ("an unknown field", plain().set("spec.nonsense", 1), "nonsense"),
        ("allowed, which only those of the cluster have", plain().set("spec.allowed", json!([])), "allowed"),
    ])
    .await;
    accepted([
        ("oauth2", plain()),
        ("oidc", plain().without("spec.oauth2").set("spec.oidc.issuerURL", "https://id.example.org/realms/mail")),
        ("microsoft", microsoft(json!({"tenantID": "contoso.onmicrosoft.com"}))),
        ("by its id", microsoft(json!({"tenantID": "2f1c6a0e-0000-4000-8000-000000000000", "cloud": "China"}))),
        ("google", preset("google")),
        ("yahoo", preset("yahoo")),
        ("fastmail", preset("fastmail")),
        ("a public client", plain().set("spec.client", json!({"id": "mailer"}))),
    ])
    .await;
}

#[tokio::test]
async fn urls_are_https_with_a_plain_host() {
    let long = format!("https://id.example.org/{}", "x".repeat(2_049 - 23));
    let bad: [&str; 30] = [
        "http://id.example.org/token",
        "HTTP://id.example.org/token",
        "ftp://id.example.org/token",
        "//id.example.org/token",
        "id.example.org/token",
        "https:/id.example.org",
        "https://",
        "https:///token",
        "https://user:password@id.example.org/token",
        "https://user@id.example.org/token",
        "https://@id.example.org/token",
        "https://id.example.org/token#fragment",
        "https://id.example.org/token#",
        "https://id.example.org/to ken",
        "https://id.example.org /token",
        " https://id.example.org/token",
        "https://id.example.org/token\n",
        "https://id.example.org/\r\nHost: x",
        "https://id.example.org\\@evil.example",
        "https://id.example.org:0/token",
        "https://id.example.org:65536/token",
        "https://id.example.org:99999/token",
        "https://id.example.org:443a/token",
        "https://id.example.org:/token",
        "https://id.example.org:-1/token",
        "https://bücher.example/token",
        "https://id_x.example.org/token",
        "https://-id.example.org/token",
        "https://[::1/token",
        "https://%69d.example.org/token",
    ];
    let issuer = |url: &str| plain().without("spec.oauth2").set("spec.oidc.issuerURL", url);
    for field in ["spec.oauth2.tokenURL", "spec.oauth2.deviceAuthorizationURL", "spec.oauth2.revocationURL"] {
        refused(bad.map(|url| (url, plain().set(field, url), "must be an https:// URL"))).await;
        refused([("2049 characters", plain().set(field, long.as_str()), "too long")]).await;
    }
    refused(bad.map(|url| (url, issuer(url), "must be an https:// URL"))).await;
    let full = &long[..2_048];
    let good = [
        "https://id.example.org",
        "https://id.example.org:65535/token?tenant=a&b=%20c",
        "https://id.example.org:25/",
        "https://192.0.2.1:8443/token",
        "https://[2001:db8::1]:8443/token",
        "https://localhost/~a/b;c=d/@e",
        full,
    ];
    accepted(good.map(|url| (url, plain().set("spec.oauth2.tokenURL", url)))).await;
    accepted(good.map(|url| (url, issuer(url)))).await;
}

#[tokio::test]
async fn a_tenant_is_no_path() {
    let tenant = |tenant: &str| microsoft(json!({"tenantID": tenant}));
    let long = "x".repeat(254);
    let wrong = ["", "a/b", "a/../b", "a b", "a\n", "a\r\nHost: b", "a?b", "a#b", "a%2fb", "-a", "ä", "a@b", &long];
    refused(wrong.map(|text| (text, tenant(text), "tenantid"))).await;
    refused([
        ("an unknown cloud", microsoft(json!({"tenantID": "x", "cloud": "Gov"})), "unsupported value"),
        ("DoD without servers", microsoft(json!({"tenantID": "x", "cloud": "USGovDoD"})), "no published mail servers"),
    ])
    .await;
    let servers = json!({"smtp": {"host": "smtp.example.mil", "port": 587}});
    let dod = microsoft(json!({"tenantID": "x", "cloud": "USGovDoD"}));
    refused([("with an empty list", dod.clone().set("spec.servers", json!({})), "no published mail servers")]).await;
    accepted([("DoD with servers", dod.set("spec.servers", servers))]).await;
}

#[tokio::test]
async fn a_client_has_an_id_without_line_breaks_and_at_most_eight_ways() {
    let id = |id: &str| plain().set("spec.client.id", id);
    let long = "x".repeat(257);
    let wrong = ["", " a", "a ", "a\n", "a\r\nb", "a\u{1}b", "ä", &long];
    refused(wrong.map(|text| (text, id(text), "spec.client.id"))).await;
    accepted([("a space within", id("mail sender")), ("256 characters", id(&"x".repeat(256)))]).await;

    let way = || json!({"clientSecret": {"secretRef": {"name": "idp-client", "key": "client-secret"}}});
    let ways = |ways: Value| plain().set("spec.client.authentication", ways);
    let secret =
        |field: &str, value: Value| plain().set(&format!("spec.client.authentication.0.clientSecret.{field}"), value);
    refused([
        ("nine", ways(json!(vec![way(); 9])), "must have at most 8 items"),
        ("an empty one", ways(json!([{}])), "name one way"),
        ("an unknown one", ways(json!([{"password": {}}])), "password"),
        ("no reference", ways(json!([{"clientSecret": {}}])), "secretref: required value"),
        ("an unknown method", secret("method", json!("JWT")), "unsupported value"),
        ("no date", secret("expiresAt", json!("tomorrow")), "expiresat"),
        ("a date that the broker cannot read", secret("expiresAt", json!("9999-12-31T23:59:59Z")), "between the years"),
        ("another namespace", secret("secretRef.namespace", json!("other")), "namespace"),
        ("no name", secret("secretRef.name", json!("")), "secretref.name"),
        ("a path", secret("secretRef.name", json!("../x")), "secretref.name"),
        ("a line break in the name", secret("secretRef.name", json!("a\n")), "secretref.name"),
        ("no key", secret("secretRef.key", json!("")), "secretref.key"),
        ("a line break in the key", secret("secretRef.key", json!("a\n")), "secretref.key"),
        ("a path in the key", secret("secretRef.key", json!("a/b")), "secretref.key"),
    ])
    .await;
    accepted([
        ("eight", ways(json!(vec![way(); 8]))),
        (
            "with all",
            secret("method", json!("Basic"))
                .set("spec.client.authentication.0.clientSecret.expiresAt", "2027-01-01T00:00:00Z"),
        ),
    ])
    .await;
}

#[tokio::test]
async fn parameters_are_bounded_and_none_that_the_protocol_uses() {
    let one = |name: &str, value: &str| plain().entry("spec.client.parameters", name, value);
    let many = |count: usize| {
        let map: serde_json::Map<_, _> = (0..count).map(|n| (format!("p{n}"), json!("v".repeat(1_024)))).collect();
        plain().set("spec.client.parameters", map)
    };
    let own = "grant_type client_id client_secret client_assertion client_assertion_type scope refresh_token assertion \
               device_code subject_token subject_token_type code code_verifier redirect_uri username password";
    refused(own.split(' ').map(|name| (name, one(name, "x"), "the broker sets this parameter itself"))).await;
    let long = "n".repeat(65);
    let names = ["", "a b", "a=b", "a&b", "ä", "a\n", &long];
    refused(names.map(|name| (name, one(name, "x"), "names of parameters have"))).await;
    refused(["a\nb", "a\u{1}", "\u{200b}"].map(|value| (value, one("audience", value), "spec.client.parameters")))
        .await;
    refused([
        ("1025 characters", one("audience", &"v".repeat(1_025)), "too long"),
        ("17 of them", many(17), "must have at most 16"),
    ])
    .await;
    accepted([
        ("an audience", one("audience", "https://mail.example/?a=b&c d")),
        ("64 characters", one(&"n".repeat(64), "x")),
        ("a name with dots", one("x-a.b_c", "ä")),
        ("16 of 1024", many(16)),
    ])
    .await;
}

#[tokio::test]
async fn an_assertions_audience_is_a_word_or_a_url() {
    let place = json!({"name": "m365-app", "key": "tls.key"});
    let jwt = |audience: &str| {
        let jwt = json!({"privateKeyJWT": {"keyRef": place, "audience": audience}});
        plain().set("spec.client.authentication", json!([jwt]))
    };
    let oidc =
        |audience: &str| jwt(audience).without("spec.oauth2").set("spec.oidc.issuerURL", "https://id.example.org");
    let wrong =
        ["", "issuer", "http://id.example.org", "https://", "https://id.example.org/ x", "urn:x", "https://a\nb"];
    refused(wrong.map(|audience| (audience, jwt(audience), "audience"))).await;
    refused([("an issuer that there is not", jwt("Issuer"), "the audience Issuer is for oidc")]).await;
    accepted(
        ["TokenURL", "https://id.example.org", "https://[::1]:8443/a?b=c"].map(|audience| (audience, jwt(audience))),
    )
    .await;
    accepted([("the issuer", oidc("Issuer"))]).await;
}

#[tokio::test]
async fn a_google_service_account_without_a_key_needs_a_token_and_no_client_id() {
    const AUDIENCE: &str = "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/c";
    let token = json!([{"serviceAccountToken": {"audience": AUDIENCE, "serviceAccountRef": {"name": "mailer"}}}]);
    let keyless = |account: &str| {
        preset("google")
            .without("spec.client.id")
            .set("spec.client.authentication", token.clone())
            .set("spec.google", json!({"serviceAccount": account}))
    };
    let good = "mailer@mail-project.iam.gserviceaccount.com";
    let wrong = ["", "mailer", "mailer@contoso.com", "a/b@p.iam.gserviceaccount.com", "a@p.iam.gserviceaccount.com/x"];
    refused(wrong.map(|account| (account, keyless(account), "serviceaccount"))).await;
    refused([
        ("an account without a token", keyless(good).without("spec.client.authentication"), "go together"),
        ("a token without an account", keyless(good).set("spec.google", json!({})), "go together"),
    ])
    .await;
    accepted([("both", keyless(good)), ("of the project itself", keyless("123@developer.gserviceaccount.com"))]).await;
}

#[tokio::test]
async fn each_client_authentication_is_the_only_one_of_its_entry_and_fits_its_provider() {
    let place = json!({"name": "m365-app", "key": "tls.key"});
    let ways = |ways: Value| plain().set("spec.client.authentication", ways);
    let jwt = |field: &str, value: Value| {
        ways(json!([{"privateKeyJWT": {"keyRef": place}}]))
            .set(&format!("spec.client.authentication.0.privateKeyJWT.{field}"), value)
    };
    let token = |token: Value| ways(json!([{"serviceAccountToken": token}]));
    let named = json!({"audience": "api://AzureADTokenExchange", "serviceAccountRef": {"name": "mailer"}});
    let file = json!({"serviceAccountKey": {"secretRef": {"name": "g", "key": "key.json"}}});
    let secret = json!({"clientSecret": {"secretRef": {"name": "idp-client", "key": "client-secret"}}});
    let google = || preset("google").set("spec.client.authentication", json!([file]));
    let of_cluster = |manifest: Manifest| {
        manifest
            .set("kind", "ClusterMailProvider")
            .set("metadata.name", "schema-ways")
            .set("spec.allowed", json!([everybody()]))
    };
    let own = token(json!({"audience": "api://AzureADTokenExchange"}));
    refused([
        (
            "two in one",
            ways(json!([{"serviceAccountToken": named, "privateKeyJWT": {"keyRef": place}}])),
            "name one way",
        ),
        ("no key", ways(json!([{"privateKeyJWT": {}}])), "keyref: required value"),
        ("an unknown algorithm", jwt("algorithm", json!("HS256")), "unsupported value"),
        ("a key id with a line break", jwt("keyID", json!("a\n")), "keyid"),
        ("an empty key id", jwt("keyID", json!("")), "keyid"),
        (
            "a certificate of another namespace",
            jwt("certificateRef", json!({"name": "a", "key": "b", "namespace": "c"})),
            "namespace",
        ),
        ("no audience", token(json!({"serviceAccountRef": {"name": "mailer"}})), "audience: required value"),
        ("an empty audience", token(json!({"audience": "", "serviceAccountRef": {"name": "mailer"}})), "audience"),
        ("two audiences", token(json!({"audience": "a\nb", "serviceAccountRef": {"name": "mailer"}})), "audience"),
        ("an account without a name", token(json!({"audience": "a", "serviceAccountRef": {}})), "name: required value"),
        (
            "an account that is a path",
            token(json!({"audience": "a", "serviceAccountRef": {"name": "a/b"}})),
            "serviceaccountref.name",
        ),
        ("the broker's own identity", own.clone(), "only a ClusterMailProvider may use"),
        (
            "the broker's own identity as the second way",
            ways(json!([secret, {"serviceAccountToken": {"audience": "a"}}])),
            "only a ClusterMailProvider may use",
        ),
        ("a key file elsewhere", ways(json!([file])), "serviceAccountKey is Google's"),
        ("a key file elsewhere, of the cluster", of_cluster(ways(json!([file]))), "serviceAccountKey is Google's"),
        (
            "a key file nowhere",
            google().set("spec.client.authentication", json!([{"serviceAccountKey": {}}])),
            "secretref: required value",
        ),
        ("no id", plain().without("spec.client.id"), "name the client in spec.client.id"),
        ("no id, with a token", token(named.clone()).without("spec.client.id"), "name the client in spec.client.id"),
        (
            "no id, of the cluster",
            of_cluster(own.clone()).without("spec.client.id"),
            "name the client in spec.client.id",
        ),
        ("no id at google", preset("google").without("spec.client.id"), "name the client in spec.client.id"),
        ("an empty id", google().set("spec.client.id", ""), "spec.client.id"),
    ])
    .await;
    accepted([
        ("a key", ways(json!([{"privateKeyJWT": {"keyRef": place}}]))),
        ("PS256", jwt("algorithm", json!("PS256"))),
        ("RS256", jwt("algorithm", json!("RS256"))),
        ("ES256", jwt("algorithm", json!("ES256"))),
        ("EdDSA", jwt("algorithm", json!("EdDSA"))),
        ("a certificate", jwt("certificateRef", json!({"name": "m365-app", "key": "tls.crt"}))),
        ("a token of a named account", token(named)),
        ("the broker's own identity, of the cluster", of_cluster(own)),
        ("a key file", google()),
        ("a key file without an id", google().without("spec.client.id")),
        ("a key file of the cluster", of_cluster(google().without("spec.client.id"))),
    ])
    .await;
}

#[tokio::test]
async fn a_rate_limit_admits_at_least_one_request() {
    let limit = |limit: Value| plain().set("spec.rateLimit", limit);
    refused([
        ("empty", limit(json!({})), "requestsperminute: required value"),
        ("nothing", limit(json!({"requestsPerMinute": 0})), "requestsperminute"),
        ("less than nothing", limit(json!({"requestsPerMinute": -1})), "requestsperminute"),
        ("too much", limit(json!({"requestsPerMinute": 60_001})), "requestsperminute"),
        ("no burst", limit(json!({"requestsPerMinute": 1, "burst": 0})), "burst"),
        ("too large a burst", limit(json!({"requestsPerMinute": 1, "burst": 1_001})), "burst"),
        ("a word", limit(json!({"requestsPerMinute": "many"})), "requestsperminute"),
    ])
    .await;
    accepted([
        ("the least", limit(json!({"requestsPerMinute": 1}))),
        ("the most", limit(json!({"requestsPerMinute": 60_000, "burst": 1_000}))),
    ])
    .await;
}

#[tokio::test]
async fn scopes_servers_and_bundles_are_bounded() {
    let server = |field: &str, value: Value| plain().set(&format!("spec.servers.smtp.{field}"), value);
    let place = json!({"name": "idp-ca", "key": "ca.crt"});
    refused([
        ("a scope with a space", plain().set("spec.scopes", json!(["a b"])), "spec.scopes[0]"),
        ("a scope with a line break", plain().set("spec.scopes", json!(["a\n"])), "spec.scopes[0]"),
        ("a scope of 513 characters", plain().set("spec.scopes", json!(["s".repeat(513)])), "too long"),
        ("65 scopes", plain().set("spec.scopes", json!(many("s", 65))), "must have at most 64 items"),
        ("a host with a line break", server("host", json!("smtp.example.org\n")), "smtp.host"),
        ("a host with a space", server("host", json!("smtp example")), "smtp.host"),
        ("a host that is a URL", server("host", json!("https://smtp.example.org")), "smtp.host"),
        ("a host with its port", server("host", json!("smtp.example.org:587")), "smtp.host"),
        ("an empty host", server("host", json!("")), "smtp.host"),
        ("a host of 254 characters", server("host", json!("x".repeat(254))), "too long"),
        ("port 0", server("port", json!(0)), "smtp.port"),
        ("port 65536", server("port", json!(65536)), "smtp.port"),
        ("a port in words", server("port", json!("587")), "smtp.port"),
        ("no port", plain().without("spec.servers.smtp.port"), "smtp.port: required value"),
        ("no TLS", server("security", json!("None")), "unsupported value"),
        ("an unknown protocol", plain().set("spec.servers.nntp.host", "x"), "nntp"),
        ("a bundle nowhere", plain().set("spec.caBundleRef", json!({})), "name one place"),
        (
            "a bundle in two places",
            plain().set("spec.caBundleRef", json!({"configMap": place, "secret": place})),
            "name one place",
        ),
        ("another namespace", plain().set("spec.caBundleRef.configMap.namespace", "other"), "namespace"),
    ])
    .await;
    accepted([
        ("an IPv6 host", server("host", json!("2001:db8::1"))),
        ("a bundle in a Secret", plain().set("spec.caBundleRef", json!({"secret": place}))),
        ("64 scopes of 512", plain().set("spec.scopes", json!(vec!["s".repeat(512); 64]))),
    ])
    .await;
}

#[tokio::test]
async fn a_cluster_provider_must_list_its_namespaces_and_mailboxes() {
    let entry = json!({"namespaceSelector": {}, "mailboxes": ["*@example.org"]});
    let allowed = |list: Value| cluster().set("spec.allowed", list);
    let mailbox = |pattern: &str| allowed(json!([{"namespaceSelector": {}, "mailboxes": [pattern]}]));
    refused([
        ("nobody said", cluster().without("spec.allowed"), "spec.allowed: required value"),
        ("an empty list", allowed(json!([])), "spec.allowed"),
        ("65 entries", allowed(json!(vec![entry.clone(); 65])), "must have at most 64 items"),
        ("no selector", allowed(json!([{"mailboxes": ["*@example.org"]}])), "namespaceselector: required value"),
        ("no mailboxes", allowed(json!([{"namespaceSelector": {}}])), "mailboxes: required value"),
        ("an empty list of mailboxes", allowed(json!([{"namespaceSelector": {}, "mailboxes": []}])), "mailboxes"),
        (
            "257 mailboxes",
            allowed(json!([{"namespaceSelector": {}, "mailboxes": many("a@b", 257)}])),
            "must have at most 256 items",
        ),
        (
            "an unknown grant",
            allowed(json!([{"namespaceSelector": {}, "mailboxes": ["*@b"], "grants": ["password"]}])),
            "unsupported value",
        ),
        ("two providers", cluster().set("spec.oidc.issuerURL", "https://x"), "name exactly one provider"),
        ("http", cluster().set("spec.oauth2.tokenURL", "http://x"), "must be an https:// URL"),
        ("another namespace", cluster().set("spec.caBundleRef.configMap.namespace", "other"), "namespace"),
    ])
    .await;
    let wrong = ["", "@example.org", "*@", "*@exa mple", "*@example.org\n", "a@b@c", "a,b@c", "a\u{200b}@b"];
    refused(wrong.map(|pattern| (pattern, mailbox(pattern), "mailboxes"))).await;
    let good = [
        "*@example.org",
        "noreply@example.org",
        "team-*@*.example.org",
        "*@*",
        "büro@пример.рф",
        "svc",
        "svc-*",
        "taro..y@b",
    ];
    accepted(good.map(|p| (p, mailbox(p)))).await;
    let grants = ["clientCredentials", "refreshToken", "deviceCode", "jwtBearer", "tokenExchange"];
    let full = json!({"namespaceSelector": {}, "mailboxes": vec!["*@example.org"; 256], "grants": grants});
    accepted([("64 entries of 256", allowed(json!(vec![full; 64])))]).await;
}

fn plain() -> Manifest {
    Manifest(json!({
        "apiVersion": "mailtoken.dev/v1alpha1",
        "kind": "MailProvider",
        "metadata": {"name": "idp"},
        "spec": {
            "oauth2": {"tokenURL": "https://id.example.org/token"},
            "client": {
                "id": "mailer",
                "authentication": [{"clientSecret": {"secretRef": {"name": "idp-client", "key": "client-secret"}}}],
            },
            "servers": {"smtp": {"host": "smtp.example.org", "port": 587, "security": "STARTTLS"}},
            "caBundleRef": {"configMap": {"name": "idp-ca", "key": "ca.crt"}},
        },
    }))
}

fn microsoft(settings: Value) -> Manifest {
    plain().without("spec.oauth2").without("spec.servers").set("spec.microsoft", settings)
}

/// Returns a provider with a preset without settings.
fn preset(name: &str) -> Manifest {
    plain().without("spec.oauth2").set(&format!("spec.{name}"), json!({}))
}

fn everybody() -> Value {
    json!({"namespaceSelector": {}, "mailboxes": ["*@example.org"]})
}

/// Returns a ClusterMailProvider. No other test of this file may create one, because its name is cluster-wide.
fn cluster() -> Manifest {
    plain()
        .set("kind", "ClusterMailProvider")
        .set("metadata.name", "schema")
        .set("spec.allowed", json!([{"namespaceSelector": {}, "mailboxes": ["*@example.org"]}]))
}
