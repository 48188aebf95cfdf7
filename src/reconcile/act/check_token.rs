//! Checks an issued token: the account that signed in, and the claims of the token.

use kube::ResourceExt as _;

use crate::{
    api::names,
    oauth::{Claims, Refusal, TokenAnswer},
    policy::{check_token, inputs, observed::UnwrittenToken, outcome::Outcome},
    provider_client::authentication::Authentication,
    reconcile::act::attempt::{Attempt, client_status},
};

impl Attempt {
    /// Refuses a token if the response names another account than the mailbox's.
    pub(super) fn check_account(&self, answer: &TokenAnswer) -> Result<(), Refusal> {
        check_token::check_account(self.credential.spec.mailbox.user(), &answer.names, &self.profile)
    }

    /// Returns the outcome of a token request, with the annotations that the target Secret will have.
    pub(super) fn issued(&self, answer: TokenAnswer, entry: &Authentication) -> Outcome {
        let (credential, spec) = (&self.credential, self.object.spec());
        let grant = credential.spec.grant.kind();
        let claims = Claims::read(secrecy::ExposeSecret::expose_secret(&answer.token.access_token));
        let object_id = claims.as_ref().and_then(|claims| check_token::object_id(grant, claims)).map(str::to_owned);
        let unsuitable = claims
            .as_ref()
            .and_then(|claims| (self.profile.unsuitable)(claims, spec, grant, &credential.spec.protocols));
        Outcome::Issued(Box::new(UnwrittenToken {
            object_id,
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
