//! The result of a request to a provider, and its effect on the observations of the credential.

use k8s_openapi::jiff::Timestamp;

use super::{
    Observed,
    advice::{self, AdviceContext},
    grant::RefreshGrant,
    hash::{AttemptHash, RefreshTokenHash},
    observed::UnwrittenToken,
    status::words,
};
use crate::{
    api::{Reason, status::ClientStatus},
    oauth::Refusal,
};

/// The result of a request to a provider.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// The provider issued a token.
    Issued(Box<UnwrittenToken>),
    /// A step of a sign-in succeeded, but the provider has not issued a token yet.
    Noted {
        /// The client authentication that the provider accepted.
        client: ClientStatus,
    },
    /// The request failed.
    Refused {
        /// The failure, and the context of the advice to the user.
        refused: Box<Refused>,
        /// Hash of the inputs at the time of the request, [`Observed::attempt_hash_for`]. The inputs may have changed since.
        attempt_hash: AttemptHash,
    },
}

/// A request that failed.
#[derive(Clone, Debug)]
pub struct Refused {
    /// Why the request failed.
    pub refusal: Refusal,
    /// The names and commands for the advice to the user.
    pub context: AdviceContext,
    /// The client authentication that the broker tried last.
    pub client: Option<ClientStatus>,
    /// Hash of the refresh token that the broker sent.
    pub spent: Option<RefreshTokenHash>,
}

/// Whether [`Observed::record`] has recorded an outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Recorded {
    /// The outcome is recorded.
    Yes,
    /// The outcome is not recorded. Another replica has already exchanged the refused refresh token, so the refusal
    /// says nothing about the stored token.
    Superseded,
}

impl Observed {
    /// Records the outcome of the last request.
    pub fn record(&mut self, outcome: Outcome, now: Timestamp) -> Recorded {
        match outcome {
            Outcome::Issued(unwritten) if now >= unwritten.answer.token.expires_at => {
                let life = unwritten.answer.token.expires_at.duration_since(unwritten.answer.token.issued_at);
                let what = format!("the token ended before it arrived: its lifetime is {}", words(life));
                let refusal = Refusal::new(Reason::MalformedResponse, what);
                let message = format!("{}. {}", refusal.what, advice::AGAIN);
                let attempt_hash = self.attempt_hash.clone();
                self.history.fail(&refusal, message, &attempt_hash, now);
            }
            Outcome::Issued(unwritten) => self.unwritten = Some(*unwritten),
            Outcome::Noted { client } => self.history.step(client, &self.attempt_hash),
            Outcome::Refused { refused, attempt_hash } => {
                let Refused { refusal, context, client, spent } = *refused;
                let stored = self.grant.as_ref().and_then(RefreshGrant::token);
                if refusal.reason == Reason::InvalidGrant
                    && let (Some(spent), Some(stored)) = (spent, stored)
                    && spent != stored.hash
                {
                    return Recorded::Superseded;
                }
                let message = advice::explain(&refusal, &context);
                self.history.client = client.or_else(|| self.history.client.take());
                self.history.fail(&refusal, message, &attempt_hash, now);
            }
        }
        Recorded::Yes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{Case, at};
    use crate::{api::grant::GrantType, policy::commands::KubectlObject};

    fn refused(spent: &str, reason: Reason) -> (Recorded, u32) {
        let mut case = Case::ready();
        case.by_refresh_token();
        let subject = KubectlObject::credential(&case.observed.credential);
        let refused = Refused {
            refusal: Refusal::new(reason, "no"),
            context: AdviceContext {
                provider: "MailProvider shop/idp".to_owned(),
                subject: subject.clone(),
                client_id: "client".to_owned(),
                scopes: subject.clone(),
                secret: None,
                basic: false,
                grant: GrantType::RefreshToken,
                credential: subject,
                mailbox: "billing@example.org".to_owned(),
                sign_in: String::new(),
                federated: None,
                again: advice::AGAIN,
            },
            client: None,
            spent: Some(spent.into()),
        };
        let outcome = Outcome::Refused { refused: Box::new(refused), attempt_hash: case.observed.attempt_hash.clone() };
        let recorded = case.observed.record(outcome, at(10));
        (recorded, case.observed.history.failed_attempts)
    }

    #[test]
    fn a_refusal_of_a_refresh_token_that_another_replica_has_exchanged_says_nothing() {
        assert_eq!(refused("hash", Reason::InvalidGrant), (Recorded::Yes, 1), "the stored token");
        assert_eq!(refused("the one before", Reason::InvalidGrant), (Recorded::Superseded, 0));
        assert_eq!(
            refused("the one before", Reason::InvalidClient),
            (Recorded::Yes, 1),
            "the client is refused all the same"
        );
    }
}
