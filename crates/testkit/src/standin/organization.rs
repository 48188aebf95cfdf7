//! An organization at Microsoft and one at Google: an identity provider, and the mail server beside it with one mailbox.

use serde_json::json;

use super::{App, Cloud, Exchange, Gmail, Google, Microsoft, google};

/// The mailbox of both organizations.
pub const MAILBOX: &str = "billing@contoso.com";
/// The application at Entra ID, with the secret `s3cret`.
pub const APP: &str = "2f1c6a0e-0000-4000-8000-000000000000";

/// Entra ID with one application, and Exchange with one mailbox.
pub struct Contoso {
    /// The identity provider.
    pub entra: Microsoft,
    /// The mail server.
    pub exchange: Exchange,
    /// The application, as it is registered.
    pub app: App,
}

impl Contoso {
    /// A new tenant: SMTP AUTH is off, and the application has no permission at the mailbox.
    pub fn start() -> Self {
        let entra = Microsoft::start(Cloud::Public);
        let app = App::new(APP).secret("s3cret").public();
        entra.register(app.clone());
        let exchange = Exchange::beside(&entra);
        exchange.mailbox(MAILBOX);
        Self { entra, exchange, app }
    }

    /// A tenant with everything that a set-up guide says.
    pub fn set_up() -> Self {
        let contoso = Self::start();
        contoso.permit();
        contoso.run(&format!("Set-CASMailbox -Identity '{MAILBOX}' -SmtpClientAuthenticationDisabled $false"));
        contoso
    }

    /// Gives the application access to the mailbox.
    pub fn permit(&self) {
        let object_id = self.app.object_id();
        self.run(&format!("New-ServicePrincipal -AppId {APP} -ObjectId {object_id} -DisplayName 'mail broker'"));
        self.run(&format!("Add-MailboxPermission -Identity {MAILBOX} -User 'mail broker' -AccessRights FullAccess"));
    }

    /// Runs a command of Exchange's PowerShell.
    pub fn run(&self, command: &str) {
        self.exchange.run(command).unwrap();
    }

    /// The form with which the application requests a token for Exchange.
    pub const fn form() -> [(&'static str, &'static str); 4] {
        [
            ("grant_type", "client_credentials"),
            ("client_id", APP),
            ("client_secret", "s3cret"),
            ("scope", "https://outlook.office365.com/.default"),
        ]
    }
}

/// Google with one service account, to which the mailbox is delegated.
pub struct Workspace {
    /// The identity provider.
    pub google: Google,
    /// The mail server.
    pub gmail: Gmail,
    /// The service account with its key.
    pub account: google::ServiceAccount,
}

impl Workspace {
    /// A service account may use the mailbox with the scopes for Gmail's mail servers and for sending through its API.
    pub fn start() -> Self {
        let google = Google::start();
        let account = google.service_account("mailer");
        google
            .delegate(&account.client_id, &["https://mail.google.com/", "https://www.googleapis.com/auth/gmail.send"]);
        google.mailbox(MAILBOX);
        let gmail = Gmail::beside(&google);
        Self { google, gmail, account }
    }

    /// The assertion with which the service account requests a token with this scope for the mailbox.
    pub fn assertion(&self, scope: &str) -> String {
        let now = self.google.now();
        self.account.key.jwt(&json!({
            "iss": self.account.email, "sub": MAILBOX, "scope": scope, "aud": google::TOKEN_URL, "iat": now,
            "exp": now + 600,
        }))
    }
}
