//! Checks an issued token: the account that signed in, and the claims of the token.

use std::collections::BTreeSet;

use kube::ResourceExt as _;

use crate::{
    api::{Reason, grant::GrantType, names},
    oauth::{Claims, Refusal, TokenAnswer, claims},
    policy::{inputs, observed::UnwrittenToken, outcome::Outcome},
    provider_client::authentication::Authentication,
    providers::account,
    reconcile::act::attempt::{Attempt, client_status},
};

impl Attempt {
    /// Refuses a token if the response names another account than the mailbox's.
    pub(super) fn check_account(&self, answer: &TokenAnswer) -> Result<(), Refusal> {
        let expected = self.credential.spec.mailbox.user();
        if !self.profile.is_another_account(expected, &answer.names) {
            return Ok(());
        }
        // A status shows no name that could mislead a reader.
        let plain = account::comparable(expected, &answer.names).filter(|name| claims::is_shown(name));
        let who = plain.collect::<BTreeSet<_>>();
        let who = if who.is_empty() { "another account".to_owned() } else { Vec::from_iter(who).join(", ") };
        let what = format!(
            "{who} signed in, and {expected} was expected. If both are names of one account, write the name that signed in \
             into spec.mailbox.authenticateAs"
        );
        Err(Refusal::new(Reason::AuthorizationRequired, what))
    }

    /// The outcome of a token request, with the annotations that the target Secret will have.
    pub(super) fn issued(&self, answer: TokenAnswer, entry: &Authentication) -> Outcome {
        let (credential, spec) = (&self.credential, self.object.spec());
        let claims = Claims::read(secrecy::ExposeSecret::expose_secret(&answer.token.access_token));
        let unsuitable = claims.as_ref().and_then(|claims| {
            (self.profile.unsuitable)(claims, spec, credential.spec.grant.kind(), &credential.spec.protocols)
        });
        Outcome::Issued(Box::new(UnwrittenToken {
            object_id: claims
                .as_ref()
                // Users need the object id only of a service principal.
                .filter(|_| credential.spec.grant.kind() == GrantType::ClientCredentials)
                .and_then(|claims| claims.text("oid"))
                .filter(|id| is_id(id))
                .map(str::to_owned),
            unsuitable,
            answer,
            issued_for: inputs::issued_for(credential, spec, &self.profile, &self.scopes),
            revocable_at: inputs::revocable_at(credential, &self.profile, &spec.client.id),
            reissue: credential.annotations().get(names::ANNOTATION_REISSUE).cloned(),
            client: Some(client_status(entry)),
            follows: self.published.clone(),
        }))
    }
}

/// Whether `id` is a GUID, as Microsoft's object ids are. The status shows no other ids.
fn is_id(id: &str) -> bool {
    id.len() == 36 && id.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-')
}
