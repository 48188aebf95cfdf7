//! Exchange and Gmail: each stand-in accepts the tokens of its identity provider, and refuses with the texts of the
//! real server.

use std::{ops::Deref, time::Duration};

use mail_token_broker::egress::EgressPolicy;
use mail_token_broker::idp::Settings;
use mail_token_broker::mail::{DialError, Limits, MailDialer, MailServer};
use mailtoken_mail::answers::Cause;
use mailtoken_mail::dialogue::{Failure, Outcome, Purpose};
use mailtoken_mail::protocol::{Mechanism, Protocol, Security};
use mailtoken_mail::sasl;
use mailtoken_testkit::PATIENCE;
use mailtoken_testkit::proxy::Proxy;
use mailtoken_testkit::standin::mail::exchange::Policy;
use mailtoken_testkit::standin::mail::{Condition, MailStandIn, gmail};
use mailtoken_testkit::standin::{
    Jwt,
    organization::{Contoso, Workspace},
};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

use super::{APP, Caller, GMAIL, PERSON, TOKEN, text};

const SMTP: Protocol = Protocol::Smtp;
const IMAP: Protocol = Protocol::Imap;
const POP3: Protocol = Protocol::Pop3;

/// A client of a mail server on this machine.
struct Client {
    dialer: MailDialer,
    ca: Vec<u8>,
}

impl Client {
    fn new(ca: String) -> Self {
        let egress = EgressPolicy::new(vec!["127.0.0.0/8".parse().unwrap()]);
        Self::with(ca, Settings { request_timeout: PATIENCE, egress, proxy: None, no_proxy: vec![] })
    }

    fn with(ca: String, settings: Settings) -> Self {
        let limits = Limits { connect: PATIENCE, total: PATIENCE };
        Self { dialer: MailDialer::new(&settings).unwrap().with_limits(limits), ca: ca.into_bytes() }
    }

    async fn reach(&self, (protocol, host, port): (Protocol, &str, u16), user: &str, token: &str) -> Shown {
        let security = if protocol == SMTP { Security::StartTls } else { Security::Tls };
        let server = MailServer { protocol, security, host, port };
        let token = token.into();
        shown(&self.dialer.login(&server, Some(&self.ca), Purpose::Probe, user, &token).await)
    }

    async fn log_in<S>(&self, mail: &MailStandIn<S>, protocol: Protocol, user: &str, token: &str) -> Shown {
        self.reach((protocol, "localhost", mail.port(protocol)), user, token).await
    }

    /// Logs in by all protocols, and returns the results.
    async fn all<S>(&self, mail: &MailStandIn<S>, user: &str, token: &str) -> [Shown; 3] {
        let [smtp, imap, pop3] = Protocol::ALL.map(|protocol| self.log_in(mail, protocol, user, token));
        [smtp.await, imap.await, pop3.await]
    }
}

/// A cause and a code; `None` if the server accepted the login.
type Shown = Option<(Cause, String)>;

fn shown(login: &Result<Outcome, DialError>) -> Shown {
    match login {
        Ok(Outcome::Accepted(_)) => None,
        Ok(Outcome::Failed(Failure { cause, code })) => {
            Some((*cause, code.map(|code| code.to_string()).unwrap_or_default()))
        }
        Err(error) => panic!("{error}"),
    }
}

fn refused(cause: Cause, code: &str) -> Shown {
    Some((cause, code.to_owned()))
}

/// Returns the refusals of Exchange that do not name the reason.
fn no_permission() -> [Shown; 3] {
    [("535 5.7.3"), ("NO"), ("-ERR")].map(|code| refused(Cause::PermissionMissing, code))
}

/// A tenant at Microsoft, and a client of its mail server.
struct Microsoft365 {
    tenant: Contoso,
    client: Client,
}

impl Deref for Microsoft365 {
    type Target = Contoso;

    fn deref(&self) -> &Contoso {
        &self.tenant
    }
}

impl Microsoft365 {
    fn new() -> Self {
        Self::of(Contoso::start())
    }

    /// Creates a tenant that is configured as a set-up guide describes.
    fn set_up() -> Self {
        Self::of(Contoso::set_up())
    }

    fn of(tenant: Contoso) -> Self {
        let client = Client::new(tenant.entra.ca());
        Self { tenant, client }
    }

    async fn app_token(&self) -> String {
        text(&Caller::of_microsoft(&self.entra).granted(TOKEN, &Contoso::form()).await["access_token"])
    }

    /// Requests a token for a user's consent.
    async fn persons_token(&self, account: &str, scopes: &str) -> String {
        let refresh_token = self.entra.refresh_token(APP, account, scopes);
        let form = [
            ("grant_type", "refresh_token"),
            ("client_id", APP),
            ("client_secret", "s3cret"),
            ("refresh_token", &refresh_token),
            ("scope", scopes),
        ];
        text(&Caller::of_microsoft(&self.entra).granted(TOKEN, &form).await["access_token"])
    }

    async fn all(&self, token: &str) -> [Shown; 3] {
        self.client.all(&self.exchange, PERSON, token).await
    }
}

#[tokio::test]
async fn a_new_tenant_is_set_up_by_the_commands_that_its_refusals_call_for() {
    let contoso = Microsoft365::new();
    let token = contoso.app_token().await;
    let tenant = refused(Cause::SmtpAuthDisabledForTenant, "535 5.7.139");
    let not_connected = refused(Cause::NotConnected, "BAD");
    let [_, _, pop3] = no_permission();
    assert_eq!(contoso.all(&token).await, [tenant, not_connected.clone(), pop3.clone()]);

    contoso.run("Set-TransportConfig -SmtpClientAuthenticationDisabled $false");
    let [smtp, imap, _] = no_permission();
    assert_eq!(contoso.all(&token).await, [smtp, not_connected, pop3.clone()]);

    let object_id = contoso.app.object_id();
    contoso.run(&format!("New-ServicePrincipal -AppId {APP} -ObjectId {object_id}"));
    assert_eq!(contoso.all(&token).await, no_permission());
    assert_eq!(contoso.all(&token).await[1], imap);

    contoso.run(&format!("Add-MailboxPermission -Identity '{PERSON}' -User {object_id} -AccessRights FullAccess"));
    assert_eq!(contoso.all(&token).await, [None, None, None]);
    assert_eq!(contoso.exchange.logins().last(), Some(&(POP3, PERSON.to_owned(), true)));
}

#[tokio::test]
async fn exchange_refuses_what_is_switched_off_and_accepts_it_after_the_command() {
    let contoso = Microsoft365::set_up();
    let token = contoso.app_token().await;
    let [_, imap, pop3] = no_permission();
    for (protocol, parameter, off, refusal) in [
        (SMTP, "SmtpClientAuthenticationDisabled", "$true", refused(Cause::SmtpAuthDisabledForMailbox, "535 5.7.139")),
        (IMAP, "ImapEnabled", "$false", imap),
        (POP3, "PopEnabled", "$false", pop3),
    ] {
        let on = if off == "$true" { "$false" } else { "$true" };
        for (value, expected) in [(off, refusal), (on, None)] {
            contoso.run(&format!("Set-CASMailbox -Identity {PERSON} -{parameter} {value}"));
            assert_eq!(
                contoso.client.log_in(&contoso.exchange, protocol, PERSON, &token).await,
                expected,
                "{parameter}"
            );
        }
    }
    // The setting of the mailbox overrides the tenant's setting.
    contoso.run("Set-TransportConfig -SmtpClientAuthenticationDisabled $true");
    assert_eq!(contoso.all(&token).await, [None, None, None]);
    contoso.run(&format!("Remove-MailboxPermission -Identity {PERSON} -User {APP} -AccessRights FullAccess"));
    assert_eq!(contoso.all(&token).await, no_permission());
}

#[tokio::test]
async fn exchange_finds_the_object_id_and_not_the_application_id() {
    let contoso = Microsoft365::set_up();
    let token = contoso.app_token().await;
    contoso.run(&format!("Remove-ServicePrincipal -Identity {APP}"));
    // A common mistake: the object id of the app registration instead of the Enterprise application.
    contoso.run(&format!("New-ServicePrincipal -AppId {APP} -ObjectId 00000000-0000-4000-8000-00000000beef"));
    contoso.run(&format!("Add-MailboxPermission -Identity {PERSON} -User {APP} -AccessRights FullAccess"));
    let [smtp, _, pop3] = no_permission();
    assert_eq!(contoso.all(&token).await, [smtp, refused(Cause::NotConnected, "BAD"), pop3]);
}

#[tokio::test]
async fn exchange_accepts_only_tokens_of_its_tenant_for_the_mailbox_and_the_protocol() {
    let contoso = Microsoft365::set_up();
    let token = contoso.app_token().await;
    let foreign = Microsoft365::set_up().app_token().await;
    for token in ["garbage", &foreign, &token[..token.len() - 2]] {
        assert_eq!(contoso.all(token).await, no_permission());
    }
    assert_eq!(contoso.client.all(&contoso.exchange, "nobody@contoso.com", &token).await, no_permission());

    contoso.exchange.clock_ahead(3600);
    assert_eq!(contoso.all(&token).await, no_permission());
    contoso.exchange.clock_ahead(0);

    contoso.entra.register(contoso.app.clone().roles(&["IMAP.AccessAsApp"]));
    let [smtp, _, pop3] = no_permission();
    assert_eq!(contoso.all(&contoso.app_token().await).await, [smtp, None, pop3]);
}

#[tokio::test]
async fn exchange_accepts_a_person_at_their_mailbox_and_at_one_that_is_shared_with_them() {
    let contoso = Microsoft365::set_up();
    let scopes = "https://outlook.office.com/SMTP.Send https://outlook.office.com/IMAP.AccessAsUser.All";
    let token = contoso.persons_token(PERSON, scopes).await;
    let [_, _, pop3] = no_permission();
    assert_eq!(contoso.all(&token).await, [None, None, pop3], "POP is not among the scopes");

    contoso.exchange.mailbox("Anna@contoso.com");
    let token = contoso.persons_token("anna@contoso.com", scopes).await;
    assert_eq!(contoso.all(&token).await, no_permission());
    contoso.run(&format!("Add-MailboxPermission -Identity {PERSON} -User anna@contoso.com -AccessRights FullAccess"));
    assert_eq!(contoso.all(&token).await[..2], [None, None]);
}

#[tokio::test]
async fn a_policy_of_the_tenant_blocks_logins_in_its_own_words() {
    let contoso = Microsoft365::set_up();
    let token = contoso.app_token().await;
    for policy in [Policy::SecurityDefaults, Policy::ConditionalAccess] {
        contoso.exchange.block(Some(policy));
        assert_eq!(contoso.all(&token).await[0], refused(Cause::BlockedByPolicy, "535 5.7.139"), "{policy:?}");
    }
    contoso.exchange.block(None);
    assert_eq!(contoso.all(&token).await, [None, None, None]);
}

#[tokio::test]
async fn high_volume_email_refuses_a_token_that_ends_soon() {
    let contoso = Microsoft365::new();
    contoso.exchange.high_volume("hve@contoso.com");
    let smtp = |token: String| {
        let contoso = &contoso;
        async move { contoso.client.log_in(&contoso.exchange, SMTP, "hve@contoso.com", &token).await }
    };
    contoso.entra.lifetime(540);
    assert_eq!(smtp(contoso.app_token().await).await, refused(Cause::TokenTooShortLived, "501 5.5.127"));
    contoso.entra.lifetime(3599);
    assert_eq!(smtp(contoso.app_token().await).await, None);
}

#[tokio::test]
async fn exchange_throttles_and_hangs_until_it_is_well() {
    let contoso = Microsoft365::set_up();
    let token = contoso.app_token().await;
    contoso.exchange.set(Condition::Throttled);
    let throttled =
        [refused(Cause::Throttled, "432 4.3.2"), refused(Cause::Throttled, "BAD"), refused(Cause::Unavailable, "-ERR")];
    assert_eq!(contoso.all(&token).await, throttled);

    contoso.exchange.set(Condition::Hanging);
    let limits = Limits { connect: PATIENCE, total: Duration::from_secs(1) };
    for protocol in Protocol::ALL {
        let security = if protocol == SMTP { Security::StartTls } else { Security::Tls };
        let server = MailServer { protocol, security, host: "localhost", port: contoso.exchange.port(protocol) };
        let dialer = contoso.client.dialer.clone().with_limits(limits);
        let login =
            dialer.login(&server, Some(&contoso.client.ca), Purpose::Probe, PERSON, &token.as_str().into()).await;
        assert!(matches!(login, Err(DialError::TimedOut { .. })), "{login:?}");
    }
    contoso.exchange.set(Condition::Well);
    assert_eq!(contoso.all(&token).await, [None, None, None]);
}

#[test]
fn a_command_that_lacks_something_is_refused() {
    let contoso = Microsoft365::set_up();
    for command in [
        "",
        "Get-CASMailbox -Identity billing@contoso.com",
        "Set-CASMailbox -SmtpClientAuthenticationDisabled $false",
        "Set-CASMailbox -Identity nobody@contoso.com -ImapEnabled $true",
        "Set-CASMailbox -Identity billing@contoso.com -ImapEnabled true",
        "Set-CASMailbox -Identity billing@contoso.com -ImapEnabled",
        "Set-CASMailbox -Identity 'billing@contoso.com -ImapEnabled $true",
        "Add-MailboxPermission -Identity billing@contoso.com -User <object id> -AccessRights FullAccess",
        "Add-MailboxPermission -Identity billing@contoso.com -User nobody -AccessRights FullAccess",
        "Add-MailboxPermission -Identity billing@contoso.com -User anna -AccessRights ReadPermission",
        "New-ServicePrincipal -AppId 2f1c6a0e-0000-4000-8000-000000000000 -ObjectId 1",
        "Remove-ServicePrincipal -Identity nobody",
    ] {
        assert!(contoso.exchange.run(command).is_err(), "{command}");
    }
}

#[tokio::test]
async fn the_real_names_of_mail_servers_lead_to_a_stand_in_through_a_proxy() {
    let contoso = Microsoft365::set_up();
    let token = contoso.app_token().await;
    let exchange = &contoso.exchange;
    let proxy = Proxy::with_mail(
        contoso.entra.port(),
        &[(587, exchange.port(SMTP)), (993, exchange.port(IMAP)), (995, exchange.port(POP3))],
    );
    // The real names have public addresses. The proxy connects to none of them.
    let egress = EgressPolicy::default();
    let proxied = Some(proxy.url().parse().unwrap());
    let settings = Settings { request_timeout: PATIENCE, egress, proxy: proxied, no_proxy: vec![] };
    let client = Client::with(contoso.entra.ca(), settings);
    for server in
        [(SMTP, "smtp.office365.com", 587), (IMAP, "outlook.office365.com", 993), (POP3, "outlook.office365.com", 995)]
    {
        assert_eq!(client.reach(server, PERSON, &token).await, None, "{server:?}");
    }
    assert_eq!(proxy.asked().first().map(String::as_str), Some("smtp.office365.com:587"));
}

/// A tenant at Google, and a client of its mail server.
struct GoogleWorkspace {
    tenant: Workspace,
    client: Client,
}

impl Deref for GoogleWorkspace {
    type Target = Workspace;

    fn deref(&self) -> &Workspace {
        &self.tenant
    }
}

impl GoogleWorkspace {
    fn new() -> Self {
        let tenant = Workspace::start();
        let client = Client::new(tenant.google.ca());
        Self { tenant, client }
    }

    async fn token(&self, scope: &str) -> String {
        let assertion = self.assertion(scope);
        assert!(Jwt::read(&assertion).is_some());
        let form = [("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer"), ("assertion", &assertion)];
        text(&Caller::of_google(&self.google).granted("/token", &form).await["access_token"])
    }

    async fn all(&self, token: &str) -> [Shown; 3] {
        self.client.all(&self.gmail, PERSON, token).await
    }
}

/// Returns Gmail's refusals of a token.
fn bad_token() -> [Shown; 3] {
    ["535 5.7.8", "NO [AUTHENTICATIONFAILED]", "-ERR [AUTH]"].map(|code| refused(Cause::Refused, code))
}

#[tokio::test]
async fn gmail_accepts_its_tokens_and_refuses_others_by_a_challenge() {
    let workspace = GoogleWorkspace::new();
    let token = workspace.token(GMAIL).await;
    assert_eq!(workspace.all(&token).await, [None, None, None]);
    assert_eq!(workspace.all("garbage").await, bad_token());
    assert_eq!(workspace.all(&workspace.token("https://www.googleapis.com/auth/gmail.send").await).await, bad_token());
    assert_eq!(workspace.client.all(&workspace.gmail, "other@contoso.com", &token).await, bad_token());

    workspace.gmail.clock_ahead(3600);
    assert_eq!(workspace.all(&token).await, bad_token());
    workspace.gmail.clock_ahead(0);

    let form = [("token", token.as_str())];
    Caller::of_google(&workspace.google).granted("/revoke", &form).await;
    assert_eq!(workspace.all(&token).await, bad_token());
    assert_eq!(workspace.gmail.logins().len(), 18);
}

#[tokio::test]
async fn gmail_refuses_what_is_switched_off_and_throttles() {
    let workspace = GoogleWorkspace::new();
    let token = workspace.token(GMAIL).await;
    let well = gmail::Settings::default();
    for (settings, expected) in [
        (gmail::Settings { imap: false, ..well }, [None, refused(Cause::Refused, "NO [ALERT]"), None]),
        (gmail::Settings { pop: false, ..well }, [None, None, refused(Cause::Refused, "-ERR [SYS/PERM]")]),
        (
            gmail::Settings { browser_sign_in: true, ..well },
            [
                refused(Cause::BrowserSignInRequired, "534 5.7.9"),
                refused(Cause::Refused, "NO [ALERT]"),
                refused(Cause::Refused, "-ERR [AUTH]"),
            ],
        ),
        (well, [None, None, None]),
    ] {
        workspace.gmail.settings(PERSON, settings);
        assert_eq!(workspace.all(&token).await, expected, "{settings:?}");
    }
    workspace.gmail.set(Condition::Throttled);
    let throttled = [
        refused(Cause::Throttled, "454 4.7.0"),
        refused(Cause::Throttled, "NO [ALERT]"),
        refused(Cause::Unavailable, "-ERR [SYS/TEMP]"),
    ];
    assert_eq!(workspace.all(&token).await, throttled);
}

/// A connection on which a test sends and reads protocol lines.
struct Raw(BufReader<tokio_rustls::client::TlsStream<TcpStream>>);

impl Raw {
    async fn connect(port: u16, ca: &str) -> Self {
        use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject as _};
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap()).unwrap();
        let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let tcp = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
        Self(BufReader::new(connector.connect(ServerName::try_from("localhost").unwrap(), tcp).await.unwrap()))
    }

    /// Reads the next line.
    async fn hear(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).await.unwrap();
        line.trim_end().to_owned()
    }

    async fn say(&mut self, line: &str) -> String {
        self.0.write_all(format!("{line}\r\n").as_bytes()).await.unwrap();
        self.0.flush().await.unwrap();
        self.hear().await
    }
}

#[tokio::test]
async fn the_servers_know_initial_responses_and_limit_their_lines() {
    let workspace = GoogleWorkspace::new();
    let token = workspace.token(GMAIL).await;
    let response = sasl::response(Mechanism::OAuthBearer, PERSON, &token).unwrap();
    let (gmail, ca) = (&workspace.gmail, workspace.google.ca());
    let mut imap = Raw::connect(gmail.port(IMAP), &ca).await;
    assert!(imap.hear().await.starts_with("* OK Gimap ready"));
    assert!(imap.say("a NOOP").await.starts_with("a OK"));
    assert!(imap.say("a EXAMINE INBOX").await.starts_with("a BAD"), "before the login");
    assert!(imap.say("a AUTHENTICATE PLAIN").await.starts_with("a NO"));
    assert!(imap.say("a AUTHENTICATE XOAUTH2 !").await.starts_with("a NO"));
    assert!(imap.say(&format!("a AUTHENTICATE OAUTHBEARER {}", response.as_str())).await.starts_with("* CAPABILITY"));
    assert!(imap.hear().await.starts_with("a OK"));
    assert!(imap.say("b EXAMINE INBOX").await.starts_with("* FLAGS"));

    let mut pop3 = Raw::connect(gmail.port(POP3), &ca).await;
    assert!(pop3.hear().await.starts_with("+OK Gpop ready"));
    let line = format!("AUTH OAUTHBEARER {}", response.as_str());
    assert!(line.len() > 255 && pop3.say(&line).await.starts_with("-ERR bad command"));
    assert_eq!(pop3.say("AUTH OAUTHBEARER").await, "+");
    assert!(pop3.say(&response).await.starts_with("+OK Welcome"));
    assert_eq!(pop3.say("STAT").await, "+OK 0 0");
}
