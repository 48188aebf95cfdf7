//! A credential for most unit tests, and its observations. The unit tests of other packages enable the feature `fixtures`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "only tests use this module, in which a panic is the report")]

use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use serde_json::json;

use crate::{
    api::{MailCredential, Reason, provider::ProviderSpec},
    oauth::{Refusal, Token, TokenAnswer},
    policy::{
        Blocker, Observed,
        grant::{Claim, GrantSecret, RefreshGrant, SignIn, TokenNote},
        observed::{History, Provider, Published, Target, TokenFacts, UnwrittenToken},
    },
    providers,
};

/// A secret that no log, Event, status or message may contain.
pub const CANARY: &str = "canary-0123456789abcdef";

/// The credential `shop/billing` for billing@example.org, without a status.
pub fn credential() -> MailCredential {
    serde_json::from_value(json!({
        "apiVersion": "mailtoken.dev/v1alpha1",
        "kind": "MailCredential",
        "metadata": {"name": "billing", "namespace": "shop", "uid": "7d5e1b5e-0000-4000-8000-000000000001", "generation": 1},
        "spec": {
            "providerRef": {"name": "idp"},
            "mailbox": {"address": "billing@example.org"},
            "grant": {"clientCredentials": {}},
        },
    }))
    .unwrap()
}

/// The time `second` seconds after the issue of the [`token`].
pub fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

/// A token that is valid for an hour from `at(0)`.
pub fn token() -> TokenFacts {
    TokenFacts {
        issued_at: at(0),
        expires_at: at(3600),
        refresh_at: None,
        scopes: vec!["mail.send".into()],
        fingerprint: "sha256:0123456789abcdef".into(),
        object_id: None,
        unsuitable: None,
        length: Some(40),
    }
}

/// The Secret `billing` as the broker writes it.
pub fn published(token: TokenFacts) -> Published {
    Published {
        name: "billing".into(),
        uid: "secret".into(),
        resource_version: "7".into(),
        token: Some(token),
        issued_for: "inputs".into(),
        layout: "layout".into(),
        applied: None,
        has_annotations: true,
        handled_reissue: None,
        intact: true,
        must_recreate: false,
    }
}

/// The record in a grant Secret about the refresh token `hash`, which the provider has not replaced.
pub fn note() -> TokenNote {
    TokenNote {
        hash: "hash".into(),
        bound_to: "bound".into(),
        revocable_at: "revocable".into(),
        obtained_at: at(0),
        last_used_at: Some(at(0)),
        expires_at: None,
        rotations: 0,
    }
}

/// A blocker with the reason `reason`.
pub fn blocker(reason: Reason) -> Blocker {
    Blocker::new(reason, format!("{} and its fix", reason.as_str()))
}

/// Observations and their time.
#[derive(Clone, Debug)]
pub struct Case {
    /// The observations of the credential.
    pub observed: Observed,
    /// The time of the observations.
    pub now: Timestamp,
}

impl Case {
    /// A credential with a token that was just issued.
    pub fn ready() -> Self {
        let spec: ProviderSpec =
            serde_json::from_value(json!({"oauth2": {"tokenURL": "https://x/t"}, "client": {"id": "c"}})).unwrap();
        let provider = Provider {
            profile: providers::profile(&spec).unwrap(),
            blocker: None,
            issued_for: "inputs".into(),
            client_id: "c".into(),
            scopes: vec!["mail.send".into()],
            layout: "layout".into(),
            secret_size: 0,
            bound_to: "bound".into(),
            revocable_at: "revocable".into(),
        };
        let observed = Observed {
            credential: Arc::new(credential()),
            history: History {
                last: Some((Reason::RenewalSucceeded, "the last token request succeeded".into())),
                ..History::default()
            },
            target: Target::Own(published(token())),
            previous: None,
            rival: None,
            provider: Ok(provider),
            grant: None,
            unwritten: None,
            in_flight: false,
            queued: false,
            attempt_hash: "attempt".into(),
            probe: None,
        };
        Self { observed, now: at(0) }
    }

    /// A credential that was just created.
    #[allow(clippy::new_without_default, reason = "no test needs a default")]
    pub fn new() -> Self {
        let mut case = Self::ready();
        case.without_token();
        case
    }

    /// Removes the Secret and the history of the credential.
    pub fn without_token(&mut self) {
        self.observed.target = Target::Absent;
        self.observed.history = History::default();
    }

    /// The provider, which must exist.
    pub fn provider(&mut self) -> &mut Provider {
        self.observed.provider.as_mut().unwrap()
    }

    /// Changes the target Secret, which must belong to the credential.
    pub fn own(&mut self, change: impl FnOnce(&mut Published)) {
        let Target::Own(published) = &mut self.observed.target else { panic!("there is no Secret") };
        change(published);
    }

    /// Changes the MailCredential object.
    pub fn credential(&mut self, change: impl FnOnce(&mut MailCredential)) {
        change(Arc::make_mut(&mut self.observed.credential));
    }

    /// Sets the creation time to `at(second)`.
    pub fn created(&mut self, second: i64) {
        let created = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(second));
        self.credential(|credential| credential.metadata.creation_timestamp = Some(created));
    }

    /// Sets an annotation of the credential.
    pub fn annotate(&mut self, key: &str, value: &str) {
        self.credential(|credential| {
            credential.metadata.annotations.get_or_insert_default().insert(key.into(), value.into());
        });
    }

    /// Records an attempt that failed at `at(0)`.
    pub fn failed(&mut self, reason: Reason) {
        self.failed_at(reason, 0);
    }

    /// Records an attempt that failed at `at(second)`.
    pub fn failed_at(&mut self, reason: Reason, second: i64) {
        let refusal = Refusal::new(reason, "what");
        let attempt = self.observed.attempt_hash.clone();
        self.observed.history.fail(&refusal, "what. What to do.".into(), &attempt, at(second));
    }

    /// Adds a token that the broker has obtained, but not written yet.
    pub fn hold(&mut self) {
        let token = Token {
            access_token: CANARY.into(),
            token_type: "Bearer".into(),
            issued_at: at(0),
            expires_at: at(3600),
            refresh_at: None,
            scopes: vec![],
        };
        self.observed.unwritten = Some(UnwrittenToken {
            answer: TokenAnswer { token, assumed: vec![], names: vec![] },
            issued_for: "inputs".into(),
            revocable_at: "revocable".into(),
            object_id: None,
            unsuitable: None,
            reissue: None,
            client: None,
            follows: None,
        });
    }

    /// Sets the grant to a stored refresh token that the broker last used at `at(0)`.
    pub fn by_refresh_token(&mut self) -> &mut RefreshGrant {
        let spec = json!({"refreshToken": {"secretRef": {"name": "seed", "key": "refresh_token"}}});
        self.by(spec)
    }

    /// Sets the grant to a sign-in with a device code.
    pub fn by_device_code(&mut self) -> &mut RefreshGrant {
        self.by(json!({"deviceCode": {}}))
    }

    fn by(&mut self, spec: serde_json::Value) -> &mut RefreshGrant {
        self.credential(|credential| credential.spec.grant = serde_json::from_value(spec).unwrap());
        let token = TokenNote { rotations: 1, ..note() };
        self.observed.grant.insert(RefreshGrant {
            stored: Some(GrantSecret { name: "billing-grant".into(), token: Some(token), ..GrantSecret::default() }),
            bound_to: Some("bound".into()),
            revocable_at: "revocable".into(),
            asked_by: "spec".into(),
            asked_for: Some("inputs".into()),
            holder: "me".into(),
            ..RefreshGrant::default()
        })
    }

    /// The credential's grant, which must exist.
    pub fn grant(&mut self) -> &mut RefreshGrant {
        self.observed.grant.as_mut().unwrap()
    }

    /// The metadata of the grant Secret, which must exist.
    pub fn stored(&mut self) -> &mut GrantSecret {
        self.grant().stored.as_mut().unwrap()
    }

    /// Sets a claim of the broker `holder` on the refresh token until `at(until)`.
    pub fn claimed(&mut self, holder: &str, until: i64) {
        let claim = Claim { holder: holder.into(), since: at(0), until: at(until), token: "hash".into() };
        self.stored().claim = Some(claim);
    }

    /// Sets a sign-in whose code was shown at `at(0)` and is valid until `at(until)`. The first code was shown at
    /// `at(began)`.
    pub fn signing_in(&mut self, began: i64, until: i64) -> &mut SignIn {
        self.stored().sign_in.insert(SignIn {
            user_code: "ABCD".into(),
            verification_uri: "https://x/d".into(),
            verification_uri_complete: None,
            expires_at: at(until),
            interval: 5,
            shown_at: at(0),
            began_at: at(began),
            asked_by: "spec".into(),
            asked_for: "inputs".into(),
            ended: None,
        })
    }

    /// Writes the status of the case into the credential.
    pub fn write_status(&mut self) {
        let decision = crate::policy::decide(&self.observed, self.now);
        let status = crate::policy::status::status(&self.observed, &decision, self.now);
        self.credential(|credential| credential.status = Some(status));
    }
}

/// Fails to compile for a type that has the trait, because the name `item` is then ambiguous.
#[macro_export]
macro_rules! lacks {
    ($trait:path: $($type:ty),+) => {
        $(const _: () = {
            trait Lacks<Marker> { fn item() {} }
            impl<T: ?Sized> Lacks<()> for T {}
            struct Has;
            impl<T: ?Sized + $trait> Lacks<Has> for T {}
            let _ = <$type as Lacks<_>>::item;
        };)+
    };
}
