//! An organization at Microsoft and one at Google. Each has an identity provider, and a mail server with one mailbox.

use serde_json::json;

use super::{App, Cloud, Exchange, Gmail, Google, Microsoft, google};

/// The mailbox of both organizations.
pub const MAILBOX: &str = "billing@contoso.com";
/// The id of the application at Entra ID, whose secret is `s3cret`.
pub const APP: &str = "2f1c6a0e-0000-4000-8000-000000000000";

/// Entra ID with one application, and Exchange with one mailbox.
pub struct Contoso {
    /// The stand-in of Entra ID.
    pub entra: Microsoft,
    /// The stand-in of Exchange.
    pub exchange: Exchange,
    /// The registered application.
    pub app: App,
}

impl Contoso {
    /// Starts a new tenant: SMTP AUTH is off, and the application has no permission for the mailbox.
    pub fn start() -> Self {
        let entra = Microsoft::start(Cloud::Public);
        let app = App::new(APP).secret("s3cret").public();
        entra.register(app.clone());
        let exchange = Exchange::beside(&entra);
        exchange.mailbox(MAILBOX);
        Self { entra, exchange, app }
    }

    /// Starts a tenant that is configured as a set-up guide describes.
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

    /// Returns the form with which the application requests a token for Exchange.
    pub const fn form() -> [(&'static str, &'static str); 4] {
        [
            ("grant_type", "client_credentials"),
            ("client_id", APP),
            ("client_secret", "s3cret"),
            ("scope", "https://outlook.office365.com/.default"),
        ]
    }
}

/// Google with one service account that may act for the mailbox.
pub struct Workspace {
    /// The stand-in of Google's OAuth server.
    pub google: Google,
    /// The stand-in of Gmail.
    pub gmail: Gmail,
    /// The service account with its key.
    pub account: google::ServiceAccount,
}

impl Workspace {
    /// Starts the organization. The service account may act for the mailbox with the scopes for Gmail's mail servers
    /// and for sending through Gmail's API.
    pub fn start() -> Self {
        let google = Google::start();
        let account = google.service_account("mailer");
        google
            .delegate(&account.client_id, &["https://mail.google.com/", "https://www.googleapis.com/auth/gmail.send"]);
        google.mailbox(MAILBOX);
        let gmail = Gmail::beside(&google);
        Self { google, gmail, account }
    }

    /// Signs the assertion with which the service account requests a token with this scope for the mailbox.
    pub fn assertion(&self, scope: &str) -> String {
        let now = self.google.now();
        self.account.key.jwt(&json!({
            "iss": self.account.email, "sub": MAILBOX, "scope": scope, "aud": google::TOKEN_URL, "iat": now,
            "exp": now + 600,
        }))
    }
}
