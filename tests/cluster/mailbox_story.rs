//! The set-up of a mailbox at Exchange Online, with the stand-ins of Microsoft: the condition names commands, an
//! administrator runs them, and the server then accepts the token.

use mail_token_broker::api::{MailCredential, MailProvider};
use mailtoken_mail::protocol::Protocol;
use mailtoken_testkit::{
    namespace::find,
    standin::{App, Cloud, Exchange, Microsoft},
    *,
};
use serde_json::json;

const APP: &str = "2f1c6a0e-0000-4000-8000-000000000000";
const MAILBOX: &str = "billing@contoso.com";

/// A namespace with a broker that reaches the stand-ins by Microsoft's names.
struct Story {
    ns: Namespace,
    entra: Microsoft,
    exchange: Exchange,
    broker: Broker,
}

impl Story {
    async fn begin(protocols: &[&str]) -> Self {
        let entra = Microsoft::start(Cloud::Public);
        entra.register(App::new(APP).secret("a client secret of Entra"));
        let exchange = Exchange::beside(&entra);
        exchange.mailbox(MAILBOX);
        let ns = Cluster::shared().namespace().await;
        let names = [Cloud::Public.host(), "smtp.office365.com", "outlook.office365.com"];
        let ports = [
            (587, exchange.port(Protocol::Smtp)),
            (993, exchange.port(Protocol::Imap)),
            (995, exchange.port(Protocol::Pop3)),
        ];
        let proxy = proxy::Proxy::with_mail(entra.port(), &ports);
        let settings = names.iter().fold(Broker::settings(&ns), |settings, name| settings.host(name));
        let broker = settings.flag(format!("--egress-proxy={}", proxy.url())).start().await;
        let ca = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "ca"}, "data": {"ca.crt": entra.ca()}});
        ns.apply(ca).await;
        ns.apply(source("app", "client-secret", "a client secret of Entra")).await;
        let authentication = json!([{"clientSecret": {"secretRef": {"name": "app", "key": "client-secret"}}}]);
        ns.apply(json!({
            "apiVersion": "mailtoken.dev/v1alpha1", "kind": "MailProvider", "metadata": {"name": "idp"}, "spec": {
                "microsoft": {"tenantID": "contoso.onmicrosoft.com"},
                "client": {"id": APP, "authentication": authentication},
                "caBundleRef": {"configMap": {"name": "ca", "key": "ca.crt"}},
            },
        }))
        .await;
        ns.condition::<MailProvider>("idp", "Ready", "ProviderReady").await;
        let manifest =
            credential("billing").set("spec.mailbox.address", MAILBOX).set("spec.protocols", json!(protocols));
        ns.apply(manifest.set("spec.probe", json!({"protocols": protocols}))).await;
        Self { ns, entra, exchange, broker }
    }

    async fn message(&self, reason: &str) -> String {
        self.ns.condition::<MailCredential>("billing", "MailboxAuthorized", reason).await.message
    }

    /// Runs the PowerShell commands in a message.
    fn obey(&self, message: &str) {
        let commands = remedy::quoted(message).into_iter().filter(|text| !text.starts_with("kubectl "));
        let commands: Vec<_> = commands.collect();
        assert!(!commands.is_empty(), "no command: {message}");
        for command in commands {
            self.exchange.run(command).unwrap_or_else(|refusal| panic!("{command}: {refusal}"));
        }
    }
}

#[tokio::test]
async fn the_commands_of_the_condition_open_the_mailbox() {
    let story = Story::begin(&["SMTP", "IMAP", "POP3"]).await;
    // In a new tenant, authenticated SMTP is off, and the application has no permission.
    let refused =
        |object: &MailCredential| find(object, "MailboxAuthorized").is_some_and(|reported| reported.status == "False");
    let mut runs = 0;
    let mut object = story.ns.until::<MailCredential>("billing", "the mailbox is refused", refused).await;
    while refused(&object) {
        runs += 1;
        assert!(runs <= 3, "the commands do not help: {:?}", find(&object, "MailboxAuthorized"));
        let reported = find(&object, "MailboxAuthorized").unwrap();
        story.obey(&reported.message);
        let before = object.status.unwrap().probe.unwrap().last_time;
        story.ns.annotate::<MailCredential>("billing", "mailtoken.dev/reissue", &runs.to_string()).await;
        let again = |object: &MailCredential| {
            let probe = object.status.as_ref().and_then(|status| status.probe.as_ref());
            probe.is_some_and(|probe| probe.last_time != before)
        };
        object = story.ns.until::<MailCredential>("billing", "it is probed again", again).await;
    }
    let message = story.message("LoginSucceeded").await;
    assert!(message.contains("smtp.office365.com:587") && message.contains("outlook.office365.com:993"), "{message}");
    mailtoken_testkit::leaks::assert_no_secret_shown(&story.ns, &story.broker, story.entra.issued()).await;
}
