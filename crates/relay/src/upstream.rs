//! The login at the mail server with the token in a mounted Secret. If the login fails, the relay retries with a newer
//! token, or with the second folder of a pair.

use std::{path::Path, time::Duration};

use mailtoken_mail::{
    answers::{Cause, ServerCode, Verdict},
    dialogue::{Capabilities, Failure, Outcome, Purpose},
    protocol::Protocol,
    server::Refusal,
};
use mailtoken_net::{
    clock::Clock,
    mail::{Attempt, Deadline, DialProblem, MailServer, Session, connect_unguarded, login},
};
use rustix::net::sockopt;
use secrecy::ExposeSecret as _;
use tokio::{net::TcpStream, sync::OwnedSemaphorePermit};

use crate::{
    account::{self, Account, NotReady, Server},
    advice::advice,
    leg::Leg,
    mailboxes::Found,
    metrics::LoginOutcome,
    relay::Relay,
};

/// Time limit of a connection to a mail server, including all its addresses.
const CONNECT: Duration = Duration::from_secs(10);
/// Time limit of a login at a mail server, including the connection.
const LOGIN: Duration = Duration::from_secs(20);
/// Time without data after which the kernel checks a peer, and the interval between two checks.
const KEEP_ALIVE: Duration = Duration::from_secs(60);
/// Number of unanswered checks after which the kernel closes the connection.
const KEEP_ALIVES: u32 = 3;
/// Returns the time limit in milliseconds for a peer to acknowledge sent data. The kernel also disconnects a live peer
/// that does not read for this time. So the limit is longer than the idle timeouts that RFC 5321, RFC 9051 and RFC 1939
/// require of servers.
const fn user_timeout(protocol: Protocol) -> u32 {
    match protocol {
        Protocol::Smtp => 6 * 60_000,
        Protocol::Imap => 31 * 60_000,
        Protocol::Pop3 => 11 * 60_000,
    }
}

/// A session at a mail server.
pub(crate) struct LoggedIn {
    pub(crate) leg: Leg,
    /// Bytes that the server sent after its last reply of the login.
    pub(crate) unread: Vec<u8>,
    pub(crate) offered: Capabilities,
    pub(crate) server: Server,
    /// Whether the login used the second folder of a pair.
    pub(crate) fell_back: bool,
    /// The connection permit of the mailbox (SMTP only).
    pub(crate) place: Option<OwnedSemaphorePermit>,
}

/// Why the login gave no session.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) outcome: LoginOutcome,
    pub(crate) refusal: Refusal,
    /// What is wrong and how to fix it, for the log.
    pub(crate) why: String,
}

impl Failed {
    /// Creates a failure that a later login may not have.
    pub(crate) fn temporary(outcome: LoginOutcome, why: String) -> Self {
        Self { outcome, refusal: Refusal::Temporary, why }
    }

    /// Creates a failure that a user must fix.
    pub(crate) fn permanent(outcome: LoginOutcome, code: Option<ServerCode>, why: String) -> Self {
        Self { outcome, refusal: Refusal::Permanent(code), why }
    }
}

/// Logs in at the client's mailbox. If that fails, logs in with the second folder of the pair.
pub(crate) async fn log_in(
    relay: &Relay,
    protocol: Protocol,
    found: &Found,
    client_name: Option<&str>,
) -> Result<LoggedIn, Failed> {
    let first = match at_folder(relay, protocol, &found.folder, client_name).await {
        Err(failed) => failed,
        accepted => return accepted,
    };
    let Some(second) = &found.fallback else { return Err(first) };
    match at_folder(relay, protocol, second, client_name).await {
        Ok(logged_in) => {
            relay.metrics.fell_back(&found.mailbox);
            let (outcome, why) = (first.outcome.name(), &first.why);
            tracing::warn!(mailbox = found.mailbox, outcome, why, "second folder used");
            Ok(LoggedIn { fell_back: true, ..logged_in })
        }
        Err(second) => Err(worst(first, second)),
    }
}

/// Returns the failure that the client learns if both folders of a pair fail. The failure is temporary if one of the
/// two is temporary, because the program then retries.
fn worst(first: Failed, second: Failed) -> Failed {
    let why = format!("first folder: {}. Second folder: {}", first.why, second.why);
    match first.refusal {
        Refusal::Permanent(_) => Failed { why, ..second },
        Refusal::Temporary => Failed { why, ..first },
    }
}

async fn at_folder(
    relay: &Relay,
    protocol: Protocol,
    folder: &Path,
    client_name: Option<&str>,
) -> Result<LoggedIn, Failed> {
    let mut account = read(folder, protocol)?;
    let place = match protocol {
        Protocol::Smtp => {
            let place = relay.smtp_places.take(&account.server.host, &account.user).await;
            // The broker may have replaced the token during the wait.
            account = read(folder, protocol)?;
            Some(place.ok_or_else(|| {
                let why = format!("{} has as many SMTP sessions as --max-smtp-per-mailbox allows", account.user);
                Failed::temporary(LoginOutcome::Unavailable, why)
            })?)
        }
        Protocol::Imap | Protocol::Pop3 => None,
    };
    let failed = match at_server(relay, &account, client_name).await {
        Ok((leg, unread, offered)) => {
            return Ok(LoggedIn { leg, unread, offered, server: account.server, fell_back: false, place });
        }
        Err(failed) => failed,
    };
    if failed.outcome == LoginOutcome::Refused
        && let Ok(newer) = read(folder, protocol)
        && newer.token.expose_secret() != account.token.expose_secret()
    {
        let (leg, unread, offered) = at_server(relay, &newer, client_name).await?;
        return Ok(LoggedIn { leg, unread, offered, server: newer.server, fell_back: false, place });
    }
    Err(failed)
}

fn read(folder: &Path, protocol: Protocol) -> Result<Account, Failed> {
    let now = Clock::system().now().as_second();
    let shown = folder.display();
    let not_ready = match account::read(folder, protocol, now) {
        Ok(Ok(account)) => return Ok(account),
        Ok(Err(not_ready)) => not_ready,
        Err(error) => return Err(Failed::temporary(LoginOutcome::NoToken, format!("{shown} cannot be read: {error}"))),
    };
    Err(match not_ready {
        NotReady::NoToken => Failed::temporary(
            LoginOutcome::NoToken,
            format!(
                "the Secret in {shown} has no token yet: check the MailCredential with kubectl get mailcredentials"
            ),
        ),
        NotReady::Expired => Failed::temporary(
            LoginOutcome::Expired,
            format!(
                "the token in {shown} has expired or expires within 30 s: check the MailCredential with kubectl get \
                 mailcredentials, and that the Secret is not mounted with subPath"
            ),
        ),
        NotReady::NoProtocol => Failed::permanent(
            LoginOutcome::Protocol,
            None,
            format!(
                "the Secret in {shown} has no server for this protocol: name all protocols of your programs in spec.protocols of the MailCredential"
            ),
        ),
    })
}

/// Logs in only to check the login, and returns the server's host. IMAP opens INBOX read-only.
pub(crate) async fn probe(relay: &Relay, protocol: Protocol, folder: &Path) -> Result<String, Failed> {
    let account = read(folder, protocol)?;
    attempt(relay, &account, Purpose::Probe, None).await.map(|_| account.server.host)
}

async fn at_server(
    relay: &Relay,
    account: &Account,
    client_name: Option<&str>,
) -> Result<(Leg, Vec<u8>, Capabilities), Failed> {
    let (offered, session) = attempt(relay, account, Purpose::Session, client_name).await?;
    relay.learned.learn(&account.server, &offered);
    match session {
        Some(Session { stream, unread }) => Ok((Leg::Server(Box::new(stream)), unread, offered)),
        None => Err(not_reached(relay, account, "the session is gone")),
    }
}

async fn attempt(
    relay: &Relay,
    account: &Account,
    purpose: Purpose,
    client_name: Option<&str>,
) -> Result<(Capabilities, Option<Session<TcpStream>>), Failed> {
    let Server { protocol, host, port, security } = &account.server;
    let server = MailServer { protocol: *protocol, security: *security, host, port: *port };
    let deadline = Deadline::after(LOGIN);
    let stream = match tokio::time::timeout(CONNECT, connect_unguarded(&server, &relay.lookups)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(not_reached(relay, account, &error.to_string())),
        Err(_) => return Err(not_reached(relay, account, &format!("no connection to {host} within {CONNECT:?}"))),
    };
    watch(&stream, *protocol);
    let attempt = Attempt {
        server,
        tls: relay.mail_servers.clone(),
        purpose,
        client_name: client_name.unwrap_or_default(),
        user: &account.user,
        token: &account.token,
        deadline,
    };
    let ended = match login(stream, &attempt).await {
        Ok(ended) => ended,
        Err(error) => {
            let failed = not_reached(relay, account, &error.to_string());
            return Err(match error.problem() {
                DialProblem::Tls => Failed { outcome: LoginOutcome::Tls, ..failed },
                DialProblem::EgressDenied | DialProblem::Unavailable => failed,
            });
        }
    };
    match ended.outcome {
        Outcome::Accepted(offered) => Ok((offered, ended.session)),
        Outcome::Failed(failure) => {
            relay.metrics.refused_upstream(*protocol, failure.cause);
            Err(refused(failure, account))
        }
    }
}

fn not_reached(relay: &Relay, account: &Account, why: &str) -> Failed {
    relay.metrics.refused_upstream(account.server.protocol, Cause::Unavailable);
    Failed::temporary(LoginOutcome::Unavailable, why.to_owned())
}

/// Converts a mail server's answer to the failure that the client learns.
fn refused(failure: Failure, account: &Account) -> Failed {
    let Failure { cause, code } = failure;
    let advice = advice(cause, account.server.protocol, &account.user, &account.server.host);
    let why = code.map_or_else(|| advice.clone(), |code| format!("{code}: {advice}"));
    match cause {
        // The server is the wrong one, or its administrator must act. The token is not the problem.
        Cause::OffersXclient | Cause::NoStartTls | Cause::Preauthenticated | Cause::BytesAfterStartTls => {
            Failed::temporary(LoginOutcome::Unavailable, why)
        }
        _ => match cause.verdict() {
            Verdict::Refused => Failed::permanent(LoginOutcome::Refused, code, why),
            Verdict::Unknown => Failed::temporary(LoginOutcome::Unavailable, why),
        },
    }
}

/// Sets socket options with which the kernel detects a peer that no longer exists.
pub(crate) fn watch(stream: &TcpStream, protocol: Protocol) {
    let set = || {
        sockopt::set_tcp_nodelay(stream, true)?;
        sockopt::set_socket_keepalive(stream, true)?;
        sockopt::set_tcp_keepidle(stream, KEEP_ALIVE)?;
        sockopt::set_tcp_keepintvl(stream, KEEP_ALIVE)?;
        sockopt::set_tcp_keepcnt(stream, KEEP_ALIVES)?;
        sockopt::set_tcp_user_timeout(stream, user_timeout(protocol))
    };
    // A socket that rejects an option works without it.
    if let Err(error) = set() {
        tracing::debug!(%error, "socket option not set");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_fails_for_good_only_if_both_do() {
        let temporary = || Failed::temporary(LoginOutcome::Expired, "expired".to_owned());
        let permanent = || Failed::permanent(LoginOutcome::Refused, None, "refused".to_owned());
        for (first, second, refusal) in [
            (temporary(), permanent(), Refusal::Temporary),
            (permanent(), temporary(), Refusal::Temporary),
            (permanent(), permanent(), Refusal::Permanent(None)),
            (temporary(), temporary(), Refusal::Temporary),
        ] {
            assert_eq!(worst(first, second).refusal, refusal);
        }
    }
}
