//! Stand-ins of mail servers that accept the tokens of a stand-in of an identity provider: SMTP with STARTTLS, IMAP and POP3
//! with TLS, each on its own port. The identity provider's CA issues their certificates.
//!
//! | stand-in | of | beside |
//! |---|---|---|
//! | [`Exchange`] | Exchange Online, with High Volume Email | [`super::Microsoft`] |
//! | [`Gmail`] | Gmail | [`super::Google`] |
//!
//! ```ignore
//! let entra = Microsoft::start(Cloud::Public);
//! let exchange = Exchange::beside(&entra);
//! exchange.mailbox("billing@contoso.com");
//! exchange.run("Set-CASMailbox -Identity billing@contoso.com -SmtpClientAuthenticationDisabled $false").unwrap();
//! assert_eq!(exchange.logins(), [(Protocol::Smtp, "billing@contoso.com".to_owned(), true)]);
//! ```

mod dialogue;
pub mod exchange;
pub mod gmail;
mod powershell;
mod session;

use std::{
    net::{IpAddr, SocketAddr, TcpListener},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicI64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use k8s_openapi::jiff::Timestamp;
use mailtoken_mail::protocol::Protocol;
use rustls::ServerConfig;
use tokio::sync::watch;

use self::dialogue::{Verdict, Words};
pub use self::{exchange::Exchange, gmail::Gmail};

/// Whether a mail server works.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Condition {
    /// The server works.
    #[default]
    Well,
    /// The server limits the mailbox's connections.
    Throttled,
    /// The server reads a login and never answers.
    Hanging,
}

/// The texts and the state of a mail service.
pub trait Service: Send + 'static {
    /// The texts of the service, except refusals.
    const WORDS: Words;

    /// Decides about a login at `now`, in seconds since 1970.
    fn judge(&mut self, protocol: Protocol, user: &str, token: &str, now: i64) -> Verdict;
}

/// A running mail server. It stops when dropped.
pub struct MailStandIn<S> {
    addresses: [SocketAddr; 3],
    shared: Arc<Shared<S>>,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

struct Shared<S> {
    service: Mutex<S>,
    tls: Arc<ServerConfig>,
    condition: Mutex<Condition>,
    logins: Mutex<Vec<(Protocol, String, bool)>>,
    ahead: AtomicI64,
}

impl<S: Service> MailStandIn<S> {
    /// Listens on these ports for SMTP, IMAP and POP3; 0 means any free port.
    fn serve(address: IpAddr, ports: [u16; 3], tls: Arc<ServerConfig>, service: S) -> Self {
        let listeners = ports.map(|port| TcpListener::bind((address, port)).unwrap());
        let addresses = listeners.each_ref().map(|listener| listener.local_addr().unwrap());
        let shared = Arc::new(Shared {
            service: Mutex::new(service),
            tls,
            condition: Mutex::default(),
            logins: Mutex::default(),
            ahead: AtomicI64::new(0),
        });
        let (stop, stopped) = watch::channel(false);
        let serving = shared.clone();
        let thread = std::thread::spawn(move || session::run(listeners, serving, stopped));
        Self { addresses, shared, stop, thread: Some(thread) }
    }
}

impl<S> MailStandIn<S> {
    fn service(&self) -> MutexGuard<'_, S> {
        self.shared.service.lock().unwrap()
    }

    /// Returns the port for a protocol.
    pub fn port(&self, protocol: Protocol) -> u16 {
        self.addresses[protocol as usize].port()
    }

    /// Sets whether the server works.
    pub fn set(&self, condition: Condition) {
        *self.shared.condition.lock().unwrap() = condition;
    }

    /// Returns all logins so far, in order: the protocol, the user name, and whether the server accepted the token.
    pub fn logins(&self) -> Vec<(Protocol, String, bool)> {
        self.shared.logins.lock().unwrap().clone()
    }

    /// Sets the server's clock this number of seconds ahead of this machine's clock, or behind it.
    pub fn clock_ahead(&self, seconds: i64) {
        self.shared.ahead.store(seconds, Ordering::Relaxed);
    }
}

impl<S: Service> Shared<S> {
    fn judge(&self, protocol: Protocol, user: &str, token: &str) -> Verdict {
        let verdict = match *self.condition.lock().unwrap() {
            Condition::Hanging => Verdict::Hang,
            Condition::Throttled => Verdict::Refused(S::WORDS.of(protocol).throttled.to_owned()),
            Condition::Well => {
                let now = Timestamp::now().as_second() + self.ahead.load(Ordering::Relaxed);
                self.service.lock().unwrap().judge(protocol, user, token, now)
            }
        };
        let accepted = matches!(verdict, Verdict::Accepted | Verdict::NotConnected);
        self.logins.lock().unwrap().push((protocol, user.to_owned(), accepted));
        verdict
    }
}

impl<S> Drop for MailStandIn<S> {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// Maximum time without data from a client.
const IDLE: Duration = Duration::from_secs(300);
