//! The state that all connections share.

use std::{collections::HashMap, sync::Arc};

use mailtoken_mail::{
    dialogue::Capabilities,
    protocol::Protocol,
    server::{imap_capabilities, smtp_capabilities},
};
use mailtoken_net::mail::Lookups;
use parking_lot::Mutex;
use rustls::ClientConfig;
use tokio_util::sync::CancellationToken;

use crate::{
    account::Server,
    limits::{Places, SmtpPlaces},
    logins::Logins,
    mailboxes::Mailboxes,
    metrics::Metrics,
    settings::Settings,
    tls::{self, ServerTls},
};

/// Maximum number of servers whose capabilities the relay keeps: three for each mailbox. If there are more, the relay
/// drops all of them, including servers of Secrets that have changed.
const MAX_LEARNED: usize = 768;

/// The state that all connections share.
pub(crate) struct Relay {
    pub(crate) settings: Settings,
    pub(crate) mailboxes: Mailboxes,
    pub(crate) logins: Option<Logins>,
    /// The relay's certificate.
    pub(crate) certificate: Option<ServerTls>,
    /// The TLS configuration for mail servers. It resumes TLS sessions.
    pub(crate) mail_servers: Arc<ClientConfig>,
    /// Name lookups in flight. Clients that log in at the same time share the lookup of their server's name.
    pub(crate) lookups: Lookups,
    pub(crate) learned: Learned,
    pub(crate) places: Arc<Places>,
    pub(crate) smtp_places: SmtpPlaces,
    pub(crate) metrics: Arc<Metrics>,
    /// Cancelled at SIGTERM: the relay accepts no more connections and logins.
    pub(crate) stopping: CancellationToken,
}

impl Relay {
    /// Reads the files that the settings name, and checks them.
    ///
    /// # Errors
    ///
    /// A sentence that says why the relay does not start.
    pub(crate) fn open(settings: Settings) -> Result<Self, String> {
        Ok(Self {
            mailboxes: Mailboxes::open(&settings.mailboxes, &settings.fallbacks)?,
            logins: settings.logins.as_deref().map(Logins::open).transpose()?,
            certificate: settings.tls.as_ref().map(ServerTls::open).transpose()?,
            mail_servers: tls::mail_servers(settings.ca_file.as_deref())?,
            lookups: Lookups::default(),
            learned: Learned::default(),
            places: Places::new(settings.max_connections),
            smtp_places: SmtpPlaces::new(settings.max_smtp_per_mailbox),
            metrics: Metrics::new(),
            stopping: CancellationToken::new(),
            settings,
        })
    }

    /// Returns the capabilities that the mail servers of all mailboxes offered at their last logins. Returns no
    /// capabilities while those of one server are unknown.
    pub(crate) fn announcement(&self, protocol: Protocol) -> Vec<String> {
        self.learned.common(protocol, &self.mailboxes.servers(protocol))
    }
}

/// The capabilities that mail servers offered at their last login.
#[derive(Default)]
pub(crate) struct Learned(Mutex<HashMap<Server, Capabilities>>);

impl Learned {
    /// Stores the capabilities of a server.
    pub(crate) fn learn(&self, server: &Server, offered: &Capabilities) {
        let mut learned = self.0.lock();
        if learned.get(server).is_some_and(|known| known == offered) {
            return;
        }
        if learned.len() >= MAX_LEARNED {
            learned.clear();
        }
        learned.insert(server.clone(), offered.clone());
    }

    fn common(&self, protocol: Protocol, servers: &[Server]) -> Vec<String> {
        let learned = self.0.lock();
        let offered: Option<Vec<_>> = servers.iter().map(|server| learned.get(server)).collect();
        match (offered, protocol) {
            (Some(offered), Protocol::Smtp) => smtp_capabilities(&offered),
            (Some(offered), Protocol::Imap) => imap_capabilities(&offered),
            (None, _) | (_, Protocol::Pop3) => vec![],
        }
    }
}
