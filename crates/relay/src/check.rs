//! The command `check`: logs in immediately with each mounted Secret, and prints each result with the fix.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
};

use mailtoken_mail::{protocol::Protocol, server::Refusal};

use crate::{
    mailboxes::Mailboxes,
    relay::Relay,
    settings::{ProtocolName, Settings},
    upstream,
};

/// The result of one login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Accepted,
    Refused,
    Unknown,
}

/// Logs in with the Secret of each mailbox, or of the mailbox with this user name. Returns the exit code: 0 if the
/// servers accepted all logins, 1 if a server refused one, 3 if the result of one is unknown.
///
/// # Errors
///
/// A sentence that says why nothing can be checked.
pub async fn run(settings: &Settings, mailbox: Option<&str>, protocol: Option<ProtocolName>) -> Result<u8, String> {
    let relay = Relay::open(settings.clone())?;
    let logins = wanted(&relay.mailboxes, mailbox, protocol.map(Protocol::from))?;
    let mut verdicts = vec![];
    for (protocol, mailbox, folder) in logins {
        let (verdict, text) = one(&relay, protocol, &folder).await;
        let line = format!("{:<4} {mailbox}  {text}\n", protocol.as_str());
        // A reader that has closed the pipe still gets the exit code.
        drop(std::io::stdout().write_all(line.as_bytes()));
        verdicts.push(verdict);
    }
    Ok(exit_code(&verdicts))
}

fn exit_code(verdicts: &[Verdict]) -> u8 {
    match verdicts {
        _ if verdicts.contains(&Verdict::Refused) => 1,
        _ if verdicts.contains(&Verdict::Unknown) => 3,
        _ => 0,
    }
}

/// Returns the logins to try: protocol, mailbox and folder.
fn wanted(
    mailboxes: &Mailboxes,
    mailbox: Option<&str>,
    protocol: Option<Protocol>,
) -> Result<Vec<(Protocol, String, PathBuf)>, String> {
    let mut wanted = vec![];
    for (name, folder, protocols) in mailboxes.protocols() {
        if mailbox.is_some_and(|mailbox| !mailbox.eq_ignore_ascii_case(&name)) {
            continue;
        }
        let of_interest = protocols.into_iter().filter(|one| protocol.is_none_or(|protocol| protocol == *one));
        wanted.extend(of_interest.map(|one| (one, name.clone(), folder.clone())));
    }
    if wanted.is_empty() {
        return Err(
            "no mounted Secret has this mailbox and protocol, or none has a token yet: check it with kubectl get \
                    mailcredentials"
                .to_owned(),
        );
    }
    Ok(wanted)
}

async fn one(relay: &Relay, protocol: Protocol, folder: &Path) -> (Verdict, String) {
    match upstream::probe(relay, protocol, folder).await {
        Ok(server) => (Verdict::Accepted, format!("accepted by {server}")),
        Err(failed) => match failed.refusal {
            Refusal::Permanent(_) => (Verdict::Refused, format!("refused: {}", failed.why)),
            Refusal::Temporary => (Verdict::Unknown, format!("unknown: {}", failed.why)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_comes_before_an_unknown_result() {
        for (verdicts, code) in [
            (&[Verdict::Accepted, Verdict::Accepted][..], 0),
            (&[Verdict::Accepted, Verdict::Unknown], 3),
            (&[Verdict::Unknown, Verdict::Refused], 1),
        ] {
            assert_eq!(exit_code(verdicts), code);
        }
    }
}
