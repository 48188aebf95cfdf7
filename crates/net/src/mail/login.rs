//! Runs a login over a connection: passes the server's bytes to the state machine and executes the steps that it
//! returns.

use std::{net::IpAddr, sync::Arc, time::Duration};

use mailtoken_mail::{
    answers::Cause,
    dialogue::{Login, Outcome, Purpose, Step},
    protocol::Security,
    sasl,
};
use rustls::{ClientConfig, pki_types::ServerName};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    time::Instant,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    MailServer,
    error::{DialError, Phase},
};

/// Size of the buffer for one read from a server, in bytes.
const BUFFER: usize = 4096;

/// One login: the server, the purpose and the token.
pub struct Attempt<'a> {
    /// The server. TLS verifies its host name.
    pub server: MailServer<'a>,
    /// The TLS configuration, for example the result of [`crate::tls::client_config`].
    pub tls: Arc<ClientConfig>,
    /// The purpose of the login.
    pub purpose: Purpose,
    /// The name in SMTP's EHLO: a domain, or an address literal ([`address_literal`]).
    pub client_name: &'a str,
    /// The user name at the server.
    pub user: &'a str,
    /// The access token. The driver sends the token once.
    pub token: &'a SecretString,
    /// The time by which the login must have ended.
    pub deadline: Deadline,
}

/// The end of a time limit, with the length of the limit.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    at: Instant,
    after: Duration,
}

impl Deadline {
    /// Returns the end of a time limit that begins now.
    #[expect(clippy::disallowed_methods, reason = "the duration of a login is monotonic time")]
    pub fn after(limit: Duration) -> Self {
        Self { at: Instant::now() + limit, after: limit }
    }
}

/// The end of a login.
pub struct Ended<S> {
    /// The server's answer, as an outcome.
    pub outcome: Outcome,
    /// The session, if the server accepted the token and the purpose is [`Purpose::Session`].
    pub session: Option<Session<S>>,
}

/// A session at a server that has accepted the token.
pub struct Session<S> {
    /// The encrypted connection. The server waits for a command.
    pub stream: TlsStream<S>,
    /// Bytes that the server sent after its last reply of the login.
    pub unread: Vec<u8>,
}

/// Formats the local address for SMTP's EHLO (RFC 5321 section 4.1.3).
pub fn address_literal(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => format!("[{address}]"),
        IpAddr::V6(address) => format!("[IPv6:{address}]"),
    }
}

/// Logs in over `stream`, a new connection without any data read or written.
///
/// If the server refuses the token and then closes the connection or sends nothing more, the refusal is the outcome,
/// not an error.
///
/// # Errors
///
/// If the connection breaks, TLS fails, or the deadline passes before the server has answered.
pub async fn login<S>(stream: S, attempt: &Attempt<'_>) -> Result<Ended<S>, DialError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let MailServer { protocol, security, .. } = attempt.server;
    let login = Login::new(protocol, security, attempt.purpose, attempt.client_name);
    let buffer = Box::new([0; BUFFER]);
    let mut driver = Driver { attempt, login, buffer, read: 0, taken: 0, phase: Phase::Login };
    match tokio::time::timeout_at(attempt.deadline.at, driver.run(stream)).await {
        Ok(ended) => ended,
        Err(_) => match driver.known_outcome() {
            Some(outcome) => Ok(Ended { outcome, session: None }),
            None => Err(timed_out(&attempt.server, driver.phase, attempt.deadline.after)),
        },
    }
}

pub(super) fn timed_out(server: &MailServer<'_>, phase: Phase, after: Duration) -> DialError {
    DialError::TimedOut { host: server.host.to_owned(), port: server.port, phase, after }
}

/// Returns the name that the server's certificate must have.
fn server_name(host: &str) -> Option<ServerName<'static>> {
    match host.parse::<IpAddr>() {
        Ok(address) => Some(ServerName::IpAddress(address.into())),
        Err(_) => ServerName::try_from(host.strip_suffix('.').unwrap_or(host).to_owned()).ok(),
    }
}

/// Why the driver stops reading and writing on a stream.
enum Stop {
    StartTls,
    Done(Outcome),
}

struct Driver<'a> {
    attempt: &'a Attempt<'a>,
    login: Login,
    buffer: Box<[u8; BUFFER]>,
    /// Number of bytes in the buffer.
    read: usize,
    /// Number of bytes in the buffer that the state machine has processed.
    taken: usize,
    phase: Phase,
}

impl Driver<'_> {
    async fn run<S>(&mut self, mut plain: S) -> Result<Ended<S>, DialError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        if self.attempt.server.security == Security::StartTls {
            let outcome = match self.talk(&mut plain).await? {
                Stop::Done(outcome) => Some(outcome),
                Stop::StartTls if self.unread().is_empty() => None,
                Stop::StartTls => Some(Outcome::Failed(Cause::BytesAfterStartTls.into())),
            };
            if let Some(outcome) = outcome {
                return Ok(Ended { outcome, session: None });
            }
        }
        self.phase = Phase::Tls;
        let mut stream = self.start_tls(plain).await?;
        self.phase = Phase::Login;
        let outcome = match self.talk(&mut stream).await? {
            Stop::Done(outcome) => outcome,
            // The state machine requests TLS only once.
            Stop::StartTls => Outcome::Failed(Cause::Malformed.into()),
        };
        if self.attempt.purpose == Purpose::Session && matches!(outcome, Outcome::Accepted(_)) {
            let session = Session { stream, unread: self.unread().to_vec() };
            return Ok(Ended { outcome, session: Some(session) });
        }
        // The outcome is known, so errors while closing the connection do not matter.
        drop(stream.shutdown().await);
        Ok(Ended { outcome, session: None })
    }

    async fn start_tls<S>(&self, plain: S) -> Result<TlsStream<S>, DialError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let server = &self.attempt.server;
        let name = server_name(server.host).ok_or_else(|| DialError::NameNotFound { host: server.host.to_owned() })?;
        let connected = TlsConnector::from(self.attempt.tls.clone()).connect(name, plain).await;
        connected.map_err(|error| DialError::broken(server, Phase::Tls, Some(&error)))
    }

    async fn talk<T>(&mut self, stream: &mut T) -> Result<Stop, DialError>
    where
        T: AsyncRead + AsyncWrite + Unpin,
    {
        loop {
            let unread = self.buffer.get(self.taken..self.read).unwrap_or_default();
            let (taken, step) = self.login.advance(unread);
            self.taken += taken;
            match step {
                Step::Read => {
                    let error = match stream.read(&mut self.buffer[..]).await {
                        Ok(0) => None,
                        Ok(read) => {
                            (self.read, self.taken) = (read, 0);
                            continue;
                        }
                        Err(error) => Some(error),
                    };
                    let known = self.known_outcome().map(Stop::Done);
                    return known.ok_or_else(|| DialError::broken(&self.attempt.server, self.phase, error.as_ref()));
                }
                Step::Write(bytes) => write(stream, &[&bytes]).await,
                Step::SendToken(mechanism) => {
                    let Attempt { user, token, .. } = self.attempt;
                    match sasl::response(mechanism, user, token.expose_secret()) {
                        Ok(response) => write(stream, &[response.as_bytes(), b"\r\n"]).await,
                        Err(cause) => return Ok(Stop::Done(Outcome::Failed(cause.into()))),
                    }
                }
                Step::StartTls => return Ok(Stop::StartTls),
                Step::Done(outcome) => return Ok(Stop::Done(outcome)),
            }
        }
    }

    /// Bytes that the driver has read and the state machine has not processed.
    fn unread(&self) -> &[u8] {
        self.buffer.get(self.taken..self.read).unwrap_or_default()
    }

    /// Returns the outcome, if the server has given one although the login is incomplete: the driver could not write
    /// the last command, or the server's final reply after the challenge of a refusal is missing.
    fn known_outcome(&mut self) -> Option<Outcome> {
        if let (_, Step::Done(outcome)) = self.login.advance(&[]) {
            return Some(outcome);
        }
        let failure = self.login.interrupted();
        (failure.cause == Cause::Refused).then_some(Outcome::Failed(failure))
    }
}

/// Writes all parts. Ignores an error, which the next read reports: the server may have answered before it closed the
/// connection.
async fn write<T: AsyncWrite + Unpin>(stream: &mut T, parts: &[&[u8]]) {
    let written = async {
        for part in parts {
            stream.write_all(part).await?;
        }
        stream.flush().await
    };
    drop(written.await);
}

#[cfg(test)]
mod tests {
    use mailtoken_mail::protocol::Protocol;
    use rustls::{ServerConfig, crypto::aws_lc_rs, pki_types::PrivateKeyDer};
    use tokio::io::DuplexStream;
    use tokio_rustls::TlsAcceptor;

    use super::*;
    use crate::tls::{add_bundle, client_config};

    const LIMIT: Duration = Duration::from_secs(15);

    /// Returns the TLS configurations of a client and of a server that the client trusts.
    fn configurations() -> (Arc<ClientConfig>, TlsAcceptor) {
        let made = rcgen::generate_simple_self_signed(["mail.test".to_owned()]).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        add_bundle(&mut roots, made.cert.pem().as_bytes()).unwrap();
        let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
        let server = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        (Arc::new(client_config(roots).unwrap()), TlsAcceptor::from(Arc::new(server)))
    }

    /// Logs in at an SMTP server that sends `lines` within TLS. The server sends each line but the first after it has
    /// read something. After the last line it neither reads nor sends. At most `room` bytes are in flight.
    async fn at_server(
        purpose: Purpose,
        room: usize,
        lines: &'static [&'static str],
    ) -> Result<Ended<DuplexStream>, DialError> {
        let (tls, acceptor) = configurations();
        let (client, server) = tokio::io::duplex(room);
        tokio::spawn(async move {
            let mut stream = acceptor.accept(server).await.unwrap();
            for (at, line) in lines.iter().enumerate() {
                let mut heard = [0; 4096];
                if at > 0 {
                    assert_ne!(stream.read(&mut heard).await.unwrap(), 0);
                }
                stream.write_all(line.as_bytes()).await.unwrap();
                stream.flush().await.unwrap();
            }
            std::future::pending::<()>().await;
        });
        let server = MailServer { protocol: Protocol::Smtp, security: Security::Tls, host: "mail.test", port: 465 };
        let (token, deadline) = ("t".into(), Deadline::after(LIMIT));
        let attempt = Attempt { server, tls, purpose, client_name: "[127.0.0.1]", user: "u", token: &token, deadline };
        login(client, &attempt).await
    }

    const CHALLENGED: &[&str] = &["220 a\r\n", "250 AUTH XOAUTH2\r\n", "334 \r\n", "334 eyJzdGF0dXMiOiI0MDEifQ==\r\n"];
    const ACCEPTED: &[&str] = &["220 a\r\n", "250 AUTH XOAUTH2\r\n", "334 \r\n", "235 ok\r\n250 more\r\n"];

    #[tokio::test(start_paused = true)]
    async fn a_session_has_what_the_server_sent_after_its_last_reply() {
        let ended = at_server(Purpose::Session, 65_536, ACCEPTED).await.unwrap();
        assert!(matches!(ended.outcome, Outcome::Accepted(_)));
        assert_eq!(ended.session.unwrap().unread, b"250 more\r\n");
        assert!(at_server(Purpose::Probe, 65_536, ACCEPTED).await.unwrap().session.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_falls_silent_after_the_challenge_of_a_refusal_has_refused() {
        let ended = at_server(Purpose::Probe, 65_536, CHALLENGED).await.unwrap();
        assert_eq!(ended.outcome, Outcome::Failed(Cause::Refused.into()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_does_not_read_the_goodbye_has_accepted() {
        let ended = at_server(Purpose::Probe, 16, ACCEPTED).await.unwrap();
        assert!(matches!(ended.outcome, Outcome::Accepted(_)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_server_is_given_up_at_the_deadline() {
        let silent_at =
            |phase| Some(DialError::TimedOut { host: "mail.test".to_owned(), port: 465, phase, after: LIMIT });
        for length in 0..3 {
            let error = at_server(Purpose::Probe, 65_536, &ACCEPTED[..length]).await.err();
            assert_eq!(error, silent_at(Phase::Login), "after {length} lines");
        }
        let (tls, _) = configurations();
        let (client, _server) = tokio::io::duplex(65_536);
        let server = MailServer { protocol: Protocol::Smtp, security: Security::Tls, host: "mail.test", port: 465 };
        let (token, deadline) = ("t".into(), Deadline::after(LIMIT));
        let purpose = Purpose::Probe;
        let attempt = Attempt { server, tls, purpose, client_name: "", user: "u", token: &token, deadline };
        assert_eq!(login(client, &attempt).await.err(), silent_at(Phase::Tls));
    }

    #[test]
    fn an_address_is_written_as_rfc_5321_has_it() {
        assert_eq!(address_literal("192.0.2.1".parse().unwrap()), "[192.0.2.1]");
        assert_eq!(address_literal("2001:db8::1".parse().unwrap()), "[IPv6:2001:db8::1]");
    }
}
