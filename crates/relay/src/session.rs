//! One connection of a client: the relay answers until the client has logged in, then copies bytes.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use mailtoken_mail::server::{Credentials, Ending, Identity, Offer, Session, Step};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::Instant,
};
use tokio_rustls::TlsAcceptor;

use crate::{
    copy,
    leg::Leg,
    limits::Place,
    logins::Wrong,
    mailboxes::{Found, NotFound},
    metrics::{Connected, LoginOutcome},
    relay::Relay,
    settings::Listener,
    upstream::{self, Failed, LoggedIn},
};

/// Maximum number of bytes of one read from a client before login.
const BUFFER: usize = 2048;
/// Delay of the answer to a wrong name or password, so that guessing is slow.
const DELAY: Duration = Duration::from_secs(1);
/// Time limit to send the last reply and to wait until the client closes.
const LAST_REPLY: Duration = Duration::from_secs(2);

/// A client that has logged in.
struct Opened {
    client: Leg,
    logged_in: LoggedIn,
    mailbox: String,
    /// The bytes to send to the mail server first.
    to_server: Vec<u8>,
}

/// Serves a connection to its end.
pub(crate) async fn serve(
    relay: Arc<Relay>,
    stream: TcpStream,
    peer: SocketAddr,
    listener: Listener,
    mut place: Place,
) {
    let mut connected = relay.metrics.connected(listener.protocol);
    let protocol = listener.protocol.as_str();
    // On the heap, including the result, so that a session in progress does not hold the memory of a login.
    let counts = (&mut place, &mut connected);
    let Some(opened) = Box::pin(open(&relay, stream, peer, listener, counts)).await else { return };
    let Opened { mut client, logged_in, mailbox, to_server } = *opened;
    let LoggedIn { leg: mut server_leg, unread, offered, server, place: smtp_place, .. } = logged_in;
    // A session in progress does not need the capabilities.
    drop(offered);
    let (host, begun) = (server.host, now());
    client.limit_buffers();
    server_leg.limit_buffers();
    let (counter_up, counter_down) = relay.metrics.bytes(listener.protocol);
    let ended = copy::both(&mut client, &mut server_leg, (to_server, counter_up), (unread, counter_down)).await;
    drop(smtp_place);
    let (to_server, to_client, seconds) = (ended.to_server, ended.to_client, begun.elapsed().as_secs());
    let error = ended.error.map(|error| error.kind().to_string());
    tracing::info!(protocol, client = %peer, mailbox, server = host, to_server, to_client, seconds, error, "session ended");
}

#[expect(clippy::disallowed_methods, reason = "durations of logins and sessions are monotonic time")]
fn now() -> Instant {
    Instant::now()
}

/// Answers the client until it has logged in, or the connection has ended.
async fn open(
    relay: &Arc<Relay>,
    stream: TcpStream,
    peer: SocketAddr,
    listener: Listener,
    counts: (&mut Place, &mut Connected),
) -> Option<Box<Opened>> {
    upstream::watch(&stream, listener.protocol);
    let protocol = listener.protocol;
    let offer = Offer {
        start_tls: relay.certificate.is_some() && !listener.implicit_tls,
        needs_tls: relay.settings.needs_start_tls(&listener),
        without_auth: relay.settings.without_auth.is_some(),
        capabilities: relay.announcement(protocol),
    };
    let session = Session::new(protocol, offer);
    let buffer = vec![0; BUFFER];
    let leg = Some(Leg::Plain(stream));
    let mut front = Front { relay, peer, listener, counts, leg, session, buffer, read: 0, taken: 0 };
    let ended = tokio::select! {
        biased;
        () = relay.stopping.cancelled() => Err(Stop::Ending(Ending::ShuttingDown)),
        ended = tokio::time::timeout(relay.settings.login_timeout, front.run()) => {
            ended.unwrap_or(Err(Stop::Ending(Ending::TooSlow)))
        }
    };
    match ended {
        Ok((logged_in, mailbox, to_server)) => {
            front.leg.map(|client| Box::new(Opened { client, logged_in, mailbox, to_server }))
        }
        Err(stop) => {
            front.end(stop).await;
            None
        }
    }
}

/// Why the connection ends without a login.
enum Stop {
    Ending(Ending),
    /// The client has closed the connection.
    Gone,
}

impl From<io::Error> for Stop {
    fn from(_: io::Error) -> Self {
        Self::Gone
    }
}

/// A client before login.
struct Front<'a> {
    relay: &'a Arc<Relay>,
    peer: SocketAddr,
    listener: Listener,
    /// The guards that count this connection as one before login.
    counts: (&'a mut Place, &'a mut Connected),
    /// The connection to the client; `None` during a TLS handshake.
    leg: Option<Leg>,
    session: Session,
    buffer: Vec<u8>,
    /// Number of bytes in the buffer.
    read: usize,
    /// Number of bytes in the buffer that the session has processed.
    taken: usize,
}

impl Front<'_> {
    async fn run(&mut self) -> Result<(LoggedIn, String, Vec<u8>), Stop> {
        if self.listener.implicit_tls {
            self.start_tls().await?;
        }
        loop {
            let (taken, step) = self.session.advance(&self.buffer[self.taken..self.read]);
            self.taken += taken;
            match step {
                Step::Read => {
                    let read = self.leg.as_mut().ok_or(Stop::Gone)?.read(&mut self.buffer).await?;
                    if read == 0 {
                        return Err(Stop::Gone);
                    }
                    (self.read, self.taken) = (read, 0);
                }
                Step::Write(bytes) => self.write(&bytes).await?,
                Step::StartTls if self.taken < self.read => return Err(Stop::Ending(Ending::BytesAfterStartTls)),
                Step::StartTls => {
                    self.start_tls().await?;
                    self.session.tls_started();
                }
                Step::Close(ending) => return Err(Stop::Ending(ending)),
                Step::LogIn(identity) => {
                    if let Some((logged_in, mailbox)) = self.log_in(identity).await {
                        let accepted = self.session.accept(&logged_in.offered);
                        self.counts.0.logged_in();
                        self.counts.1.logged_in();
                        self.write(&accepted.reply).await?;
                        let ahead = &self.buffer[self.taken..self.read];
                        return Ok((logged_in, mailbox, [&accepted.forward, ahead].concat()));
                    }
                }
            }
        }
    }

    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(leg) = &mut self.leg else { return Ok(()) };
        leg.write_all(bytes).await?;
        leg.flush().await
    }

    async fn start_tls(&mut self) -> Result<(), Stop> {
        let (Some(Leg::Plain(stream)), Some(certificate)) = (self.leg.take(), &self.relay.certificate) else {
            return Err(Stop::Gone);
        };
        match TlsAcceptor::from(certificate.config()).accept(stream).await {
            Ok(stream) => {
                self.leg = Some(Leg::Client(Box::new(stream)));
                Ok(())
            }
            Err(error) => {
                let (protocol, client) = (self.listener.protocol.as_str(), self.peer);
                let error = error.get_ref().map_or_else(|| error.kind().to_string(), ToString::to_string);
                tracing::warn!(protocol, %client, error, "TLS handshake of a client failed");
                Err(Stop::Gone)
            }
        }
    }

    /// Logs in at the mail server. Reports a failure to the session.
    async fn log_in(&mut self, identity: Identity) -> Option<(LoggedIn, String)> {
        let (protocol, begun) = (self.listener.protocol, now());
        let (found, result) = match self.mailbox(identity) {
            Ok(found) => {
                let client_name = self.session.client_name();
                let result = upstream::log_in(self.relay, protocol, &found, client_name).await;
                (found.mailbox, result)
            }
            Err((mailbox, failed)) => (mailbox, Err(failed)),
        };
        let outcome = result.as_ref().map_or_else(|failed| failed.outcome, |_| LoginOutcome::Accepted);
        let (name, client, mailbox) = (protocol.as_str(), self.peer, found);
        self.relay.metrics.login(protocol, &mailbox, outcome, begun.elapsed());
        let milliseconds = begun.elapsed().as_millis() as u64;
        let failed = match result {
            Ok(logged_in) => {
                let (server, fell_back) = (&logged_in.server.host, logged_in.fell_back);
                tracing::info!(protocol = name, %client, mailbox, server, fell_back, milliseconds, "login accepted");
                return Some((logged_in, mailbox));
            }
            Err(failed) => failed,
        };
        let (outcome, why) = (failed.outcome.name(), failed.why);
        tracing::warn!(protocol = name, %client, mailbox, outcome, why, milliseconds, "login failed");
        let is_guess = [LoginOutcome::UnknownUser, LoginOutcome::BadPassword, LoginOutcome::Protocol];
        if is_guess.contains(&failed.outcome) {
            tokio::time::sleep(DELAY).await;
        }
        self.session.refuse(failed.refusal);
        None
    }

    /// Returns the mailbox of the client, if the client may use it. Otherwise returns the failure and the mailbox for
    /// log and metrics, which is empty if no mounted mailbox has the name.
    fn mailbox(&self, identity: Identity) -> Result<Found, (String, Failed)> {
        let wrong = |outcome, why: &str| (String::new(), Failed::permanent(outcome, None, why.to_owned()));
        let name = match identity {
            Identity::WithoutAuth => self.relay.settings.without_auth.clone().unwrap_or_default(),
            Identity::Password(credentials) => self.user(credentials).map_err(|(outcome, why)| wrong(outcome, why))?,
        };
        self.relay.mailboxes.find(self.listener.protocol, &name).map_err(|error| match error {
            NotFound::Unknown => wrong(LoginOutcome::UnknownUser, "no mounted mailbox has this user name"),
            NotFound::NotYet => {
                let why = "no mounted mailbox has this user name, and a mounted Secret does not exist yet: check it with \
                           kubectl get mailcredentials";
                (String::new(), Failed::temporary(LoginOutcome::NoToken, why.to_owned()))
            }
            NotFound::Ambiguous(one, other) => {
                let why = format!("the mailboxes in {one} and {other} have this sender: log in with a user name");
                wrong(LoginOutcome::UnknownUser, &why)
            }
            NotFound::NoProtocol { folder, mailbox } => {
                let why = format!("the Secret in {folder} has no server for this protocol: name all protocols of your programs in spec.protocols");
                (mailbox, Failed::permanent(LoginOutcome::Protocol, None, why))
            }
        })
    }

    /// Returns the name of the mailbox that belongs to the credentials.
    fn user(&self, credentials: Credentials) -> Result<String, (LoginOutcome, &'static str)> {
        let Credentials { user, authorization, password } = credentials;
        if authorization.is_some_and(|other| !other.eq_ignore_ascii_case(&user)) {
            return Err((
                LoginOutcome::UnknownUser,
                "the client asks for an authorization identity that is not its user name",
            ));
        }
        let Some(logins) = &self.relay.logins else { return Ok(user) };
        logins.check(&user, &password).map_err(|wrong| match wrong {
            Wrong::User => (LoginOutcome::UnknownUser, "no login in --logins has this user name"),
            Wrong::Password => (LoginOutcome::BadPassword, "the login has another password"),
        })
    }

    /// Sends the last reply, and closes the connection.
    async fn end(mut self, stop: Stop) {
        let (protocol, client) = (self.listener.protocol.as_str(), self.peer);
        let ending = match stop {
            Stop::Gone => {
                tracing::debug!(protocol, %client, "client left before login");
                return;
            }
            Stop::Ending(ending) => ending,
        };
        self.relay.metrics.rejected(ending);
        let reason = ending.name();
        match ending {
            Ending::Quit => tracing::debug!(protocol, %client, reason, "connection ended before login"),
            _ => tracing::warn!(protocol, %client, reason, why = explanation(ending), "connection ended before login"),
        }
        let Some(leg) = &mut self.leg else { return };
        // A session that ended for another reason has already sent its reply.
        let reply = match ending {
            Ending::ShuttingDown | Ending::TooSlow => ending.reply(self.listener.protocol),
            _ => vec![],
        };
        last_reply(leg, &reply).await;
    }
}

/// Says what a user can do about a connection that the relay closed.
fn explanation(ending: Ending) -> &'static str {
    match ending {
        Ending::Tls => {
            "the client began TLS on a port without TLS: turn TLS off in the program, or set --smtps, --imaps or --pop3s"
        }
        Ending::Http => "the client speaks HTTP: check which port it uses",
        Ending::Proxy => "the client sent a PROXY header: turn the PROXY protocol off in front of the relay",
        Ending::BytesAfterStartTls => "the client sent bytes between STARTTLS and the handshake",
        Ending::TooManyRefusals => "three logins were refused: check the user name and the password in the program",
        Ending::TooManyCommands | Ending::TooManyOctets => "the client sent more than a login needs",
        Ending::TooSlow => "the client did not log in within --login-timeout",
        Ending::TooManyConnections => "raise --max-connections, or let programs close what they do not use",
        Ending::ShuttingDown => "the relay stops",
        Ending::Quit => "the client ended the session",
    }
}

/// Writes a last reply and closes the connection. Then reads and ignores the client's bytes for up to 2 s: an unread
/// byte would reset the connection and destroy the reply.
async fn last_reply(leg: &mut Leg, reply: &[u8]) {
    let closed = async {
        leg.write_all(reply).await?;
        leg.shutdown().await?;
        let mut ignored = [0; 512];
        while leg.read(&mut ignored).await? > 0 {}
        Ok::<_, io::Error>(())
    };
    drop(tokio::time::timeout(LAST_REPLY, closed).await);
}

/// Refuses a connection because no permit is free.
pub(crate) async fn refuse(relay: Arc<Relay>, stream: TcpStream, peer: SocketAddr, listener: Listener) {
    let ending = Ending::TooManyConnections;
    relay.metrics.rejected(ending);
    let (protocol, reason) = (listener.protocol.as_str(), ending.name());
    tracing::warn!(protocol, client = %peer, reason, why = explanation(ending), "connection ended before login");
    // A client that begins with TLS would not understand a plain reply.
    let reply = if listener.implicit_tls { vec![] } else { ending.reply(listener.protocol) };
    last_reply(&mut Leg::Plain(stream), &reply).await;
}
