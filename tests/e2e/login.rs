//! End-to-end tests of `login`: a user signs in at Keycloak and at oidc-provider, the test applies the printed
//! MailCredential unchanged, and a broker keeps it Ready with the user's refresh token.

use std::{collections::BTreeMap, io::Write as _, process::Stdio};

use k8s_openapi::api::core::v1::Secret;
use mail_token_broker::api::MailCredential;
use mailtoken_testkit::*;
use serde_json::json;

/// A public client of a provider in the stack, as the MailProvider `people`.
struct LoginFixture {
    ns: Namespace,
    person: String,
    other: String,
}

impl LoginFixture {
    /// Creates the fixture. The arguments are names of variables in the stack's `env` file: of the issuer and of the
    /// client.
    async fn new(issuer: &str, client: &str) -> Self {
        let ns = Cluster::complete().namespace().await;
        let env = |name: &str| ns.cluster.env(name);
        let ca = std::fs::read_to_string(env("CA_CERT")).unwrap();
        let bundle =
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "ca"}, "data": {"ca.crt": ca}});
        let imap =
            json!({"host": env("IMAP_HOST"), "port": env("IMAP_PORT").parse::<u16>().unwrap(), "security": "TLS"});
        let provider = json!({
            "apiVersion": "mailtoken.dev/v1alpha1",
            "kind": "MailProvider",
            "metadata": {"name": "people"},
            "spec": {
                "oidc": {"issuerURL": env(issuer)},
                "client": {"id": env(client)},
                "servers": {"imap": imap},
                "caBundleRef": {"configMap": {"name": "ca", "key": "ca.crt"}},
            },
        });
        let (person, other) = (env("PERSON_USER"), env("OTHER_USER"));
        ns.apply(bundle).await;
        ns.apply(provider).await;
        Self { ns, person, other }
    }

    async fn both() -> [Self; 2] {
        [
            Self::new("KEYCLOAK_ISSUER", "KEYCLOAK_DESKTOP_CLIENT_ID").await,
            Self::new("OIDC_ISSUER", "OIDC_NATIVE_CLIENT_ID").await,
        ]
    }

    /// Runs `login` for the user's mailbox, while `account` signs in. Returns the last page and the command.
    async fn sign_in(&self, account: &str) -> (String, Login) {
        let flags = ["--provider", "people", "--mailbox", &self.person, "--secret", "seed", "--protocol", "IMAP"];
        let login =
            Login::start(&self.ns, &[&flags[..], &["--no-browser", "--allow-private-cidr=127.0.0.0/8"]].concat());
        let url = login.url().await;
        // `sign_in` also returns a page that shows an error.
        let page = self.ns.cluster.sign_in(&url, &["--as", account]).unwrap_or_else(|reported| reported);
        (page, login)
    }

    async fn seed(&self) -> Option<Secret> {
        self.ns.api::<Secret>().get_opt("seed").await.unwrap()
    }

    /// Applies the printed MailCredential as a user does.
    fn apply(&self, printed: &str) {
        let mut kubectl = self.ns.cluster.kubectl();
        let mut child = kubectl.args(["apply", "-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(printed.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success(), "{printed}");
    }

    /// Signs the user in, and applies the printed MailCredential. Returns the target Secret when the credential is
    /// Ready.
    async fn ready(&self) -> BTreeMap<String, String> {
        let (page, login) = self.sign_in(&self.person).await;
        let (status, printed, err) = login.end().await;
        assert!(status.success(), "{err}");
        assert!(page.contains("You can close this window"), "{page}");
        let seed = text(&self.seed().await.unwrap(), "refresh_token");
        leaks::assert_absent(&[("the page", page), ("its output", printed.clone()), ("its words", err)], &[seed]);

        self.apply(&printed);
        self.ns.condition::<MailCredential>("person", "Ready", "TokenValid").await;
        self.ns.secret("person-mail-token").await
    }
}

#[tokio::test]
async fn a_user_of_keycloak_signs_in_and_their_mailbox_opens_with_the_secret() {
    let fixture = LoginFixture::new("KEYCLOAK_ISSUER", "KEYCLOAK_DESKTOP_CLIENT_ID").await;
    let broker = Broker::start(&fixture.ns).await;
    let secret = fixture.ready().await;
    assert!(mail::login(&fixture.ns, "imap", &secret).unwrap().starts_with("imap:"));
    leaks::assert_no_secret_shown(&fixture.ns, &broker, vec![]).await;
}

#[tokio::test]
async fn a_person_of_oidc_provider_signs_in_and_the_credential_is_ready() {
    let fixture = LoginFixture::new("OIDC_ISSUER", "OIDC_NATIVE_CLIENT_ID").await;
    let broker = Broker::start(&fixture.ns).await;
    assert_eq!(fixture.ready().await["username"], fixture.person);
    leaks::assert_no_secret_shown(&fixture.ns, &broker, vec![]).await;
}

#[tokio::test]
async fn another_account_is_refused_with_both_named_and_nothing_is_written() {
    for fixture in LoginFixture::both().await {
        let (page, login) = fixture.sign_in(&fixture.other).await;
        let complaint = login.refused().await;
        let both = format!("{} signed in, and the mailbox is {}", fixture.other, fixture.person);
        assert!(complaint.contains(&both), "{complaint}");
        assert!(page.contains(&both), "{page}");
        assert_eq!(fixture.seed().await, None);
    }
}
