//! The probe: the broker logs in at the mail servers of a credential with the token in its Secret, at one server after the
//! other. Each login has a permit and a task of its own, so that a mail server that hangs delays no other activity.

use std::{panic::AssertUnwindSafe, sync::Arc};

use aws_lc_rs::digest::{SHA256, digest};
use futures::FutureExt as _;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::ResourceExt as _;
use mailtoken_mail::dialogue::{Outcome, Purpose};

use crate::{
    admission::{Answer, Ask},
    api::{
        MailCredential, Reason,
        credential::{Protocol, ProviderKind},
        provider::Server,
        provider_object::{ProviderKey, ProviderObject},
        reference::key,
    },
    error::PANIC,
    mail::{DialError, DialProblem, MailServer, Phase},
    policy::{
        Observed, checks,
        hash::ProviderHash,
        probe::{self, Login, Next, ProbeInputs, state::Made},
        stored::stored_token,
    },
    provider_client::{connection, resolve},
    reconcile::{
        act::{activity::Activity, mail_logins::account},
        context::Context,
        provider_cache::bundle_hash,
    },
    render::SECRET_MAX,
};

/// Wait before the broker retries a login that it could not begin: the Secret was not readable, or another login at the
/// mailbox was in flight.
const LOGIN_RETRY: SignedDuration = SignedDuration::from_secs(5);

/// Observes the probe of a credential whose provider is `object`. When all logins of the probe have ended, records their
/// results.
pub(in crate::reconcile) fn observe(
    observed: &mut Observed,
    object: Option<&ProviderObject>,
    hash: &ProviderHash,
    context: &Context,
) {
    if context.requests.probes.is_none() || observed.credential.spec.probe.is_none() {
        return;
    }
    let uid = checks::uid(&observed.credential).to_owned();
    let meta = object.map(ProviderObject::meta);
    let generation = meta.and_then(|meta| meta.generation).unwrap_or_default().to_string();
    let provider = [meta.and_then(|meta| meta.uid.as_deref()).unwrap_or_default(), generation.as_str()];
    let bundle = object.and_then(|object| context.providers.bundle(object, hash));
    let grant = observed.grant.as_ref();
    let inputs = ProbeInputs::new(&observed.credential, provider, grant, observed.handled_reissue(), bundle);
    let (unreported, round) = context.cache.with(&uid, |entry| {
        let state = &mut entry.probe;
        let wanted = probe::protocols(&observed.credential);
        (state.unreported.clone(), state.take_round(&wanted, context.clock.now()))
    });
    let (record, verdict) = match unreported.map(|unreported| *unreported) {
        Some((record, verdict)) => (Some(record), Some(verdict)),
        None => (observed.credential.status.as_ref().and_then(|status| status.probe.clone()), None),
    };
    observed.probe = Some(probe::Probe { record, verdict, inputs });
    if let Some(round) = round {
        observed.conclude(&round);
        let unreported = observed.probe.clone().and_then(|probe| Some(Box::new((probe.record?, probe.verdict?))));
        context.cache.with(&uid, |entry| entry.probe.unreported = unreported);
    }
}

/// Starts the next login of a credential's probe, if a login is due and the admission gives a permit. Returns the time of the
/// retry, if the broker could not begin the last login.
pub(in crate::reconcile) fn start(observed: &Observed, context: &Arc<Context>) -> Option<Timestamp> {
    let probes = context.requests.probes.as_ref()?;
    let credential = &observed.credential;
    let (uid, row, now) = (checks::uid(credential), Activity::probe(credential), context.clock.now());
    let (Next::Now(class), Some(probe), Ok(provider)) =
        (probe::next(observed, now), &observed.probe, &observed.provider)
    else {
        probes.admission.withdraw(&row);
        context.cache.with(uid, |entry| entry.probe.abandon());
        return None;
    };
    let (protocol, again) =
        context.cache.with(uid, |entry| entry.probe.next_login(&probe::protocols(credential), &probe.inputs, now))?;
    if let Some(again) = again {
        return Some(again);
    }
    let server = provider.profile.server(protocol)?;
    let ask = Ask {
        namespace: checks::namespace(credential).into(),
        name: credential.name_any().into(),
        host: format!("{}:{}", server.host.to_ascii_lowercase(), server.port).into(),
        provider: "".into(),
        limit: None,
        class,
        due: probe.record.as_ref().map_or(now, |record| record.next_time.0.min(now)),
    };
    let Answer::Admitted(permit) = probes.admission.ask(&row, ask) else { return None };
    let login = LoginTask {
        credential: credential.clone(),
        secret: observed.target_name(),
        protocol,
        server: server.clone(),
        user: provider.profile.username(credential, protocol).to_owned(),
        context: context.clone(),
    };
    context.cache.with(uid, |entry| entry.probe.in_flight = true);
    let span = tracing::info_span!("probe", ?protocol, namespace = checks::namespace(credential), name = %credential.name_any());
    tokio::spawn(tracing::Instrument::instrument(
        async move {
            let made = AssertUnwindSafe(login.run()).catch_unwind().await.unwrap_or_else(|_| {
                login.context.metrics.reconcile_error(PANIC);
                tracing::error!("probe panicked");
                None
            });
            let LoginTask { credential, context, .. } = &login;
            let again = context.clock.now() + LOGIN_RETRY;
            context.cache.with(checks::uid(credential), |entry| entry.probe.end(protocol, made, again));
            drop(permit);
            context.queue.enqueue_credential(key(&**credential));
        },
        span,
    ));
    None
}

/// The inputs of one login.
struct LoginTask {
    credential: Arc<MailCredential>,
    /// The name of the Secret with the token.
    secret: String,
    protocol: Protocol,
    server: Server,
    user: String,
    context: Arc<Context>,
}

impl LoginTask {
    /// Logs in. `None`: the broker could not begin the login, and retries it.
    async fn run(&self) -> Option<Made> {
        let Self { credential, context, server, .. } = self;
        let probes = context.requests.probes.as_ref()?;
        if !context.leadership.is_leader() {
            return None;
        }
        let port = u16::try_from(server.port).ok()?;
        let _turn = probes.turns.take(account(&server.host, port, &self.user))?;
        let object = context.stores.provider(&ProviderKey::of(credential))?;
        let home = context.stores.home(&object.key()).to_owned();
        let bundle = match resolve::ca_bundle(&object, &home, &context.kubernetes.client, None).await {
            Ok(Ok(bundle)) => bundle,
            // The provider's status reports the CA bundle that cannot be used.
            Ok(Err(_)) => return None,
            Err(error) => return self.unreadable(&error.to_string()),
        };
        let namespace = checks::namespace(credential);
        let reservation = context.kubernetes.secrets.reads.reserve(namespace, SECRET_MAX).await;
        let secret = match context.kubernetes.secrets.read(namespace, &self.secret).await {
            Ok(secret) => secret?,
            Err(error) => return self.unreadable(&error.to_string()),
        };
        let (stored, _) = stored_token(&secret, None)?;
        drop((secret, reservation));
        let token = stored.token;
        let dialer = match object.key().kind {
            ProviderKind::MailProvider => probes.dialer.clone(),
            ProviderKind::ClusterMailProvider => probes.dialer.for_cluster(),
        };
        let (protocol, security) = (self.protocol, server.security());
        let target = MailServer { protocol, security, host: &server.host, port };
        let timer = context.metrics.login(self.protocol);
        let outcome = dialer.login(&target, bundle.as_deref(), Purpose::Probe, &self.user, &token.access_token).await;
        let login = match outcome {
            Ok(Outcome::Accepted(_)) => Login::Accepted,
            Ok(Outcome::Failed(failure)) => Login::Answered { cause: failure.cause, code: failure.code },
            Err(error) => {
                tracing::info!(%error, "mail server not reached");
                not_connected(&error, &object, &home)
            }
        };
        timer.observe(login.outcome(), login.reason());
        tracing::info!(outcome = login.outcome().as_str(), reason = login.reason().as_str(), "probe ended");
        let bundle = bundle.as_deref().map(|pem| bundle_hash(digest(&SHA256, pem).as_ref())).unwrap_or_default();
        Some(Made { login, fingerprint: token.fingerprint(), bundle })
    }

    fn unreadable(&self, why: &str) -> Option<Made> {
        tracing::warn!(why, "probe not sent: object not read, retrying");
        None
    }
}

/// Returns the result of a login whose connection failed: the reason, and the message with the fix.
fn not_connected(error: &DialError, object: &ProviderObject, home: &str) -> Login {
    let (reason, words) = match (error.problem(), error) {
        (DialProblem::EgressDenied, _) => {
            (Reason::EgressDenied, format!("{error}. {}", connection::allow(error.allowance(), object, "mail server")))
        }
        (DialProblem::Tls, DialError::Tls { kind, .. }) => (
            Reason::MailServerTLSFailed,
            match connection::trust_advice(*kind, object, home) {
                Some(advice) => format!("{error}. {advice}"),
                None => format!("{error}. The operator of the mail server must fix that"),
            },
        ),
        (DialProblem::Tls, _) => (Reason::MailServerTLSFailed, error.to_string()),
        (DialProblem::Unavailable, _) => (
            Reason::MailServerUnavailable,
            format!(
                "{}. If the server is right, a firewall or a NetworkPolicy may block the broker's way to it. To correct \
                 host and port: `{}`",
                unavailable(error),
                connection::subject(object).command("edit")
            ),
        ),
    };
    Login::NotConnected { reason, words }
}

/// Returns why a server is unavailable. The message is the same for a port that refuses connections and for a port that
/// a firewall filters, so that a tenant cannot map the ports of a network with probes. The log shows the difference.
fn unavailable(error: &DialError) -> String {
    match error {
        DialError::NotConnected { host, port, .. }
        | DialError::TimedOut { host, port, phase: Phase::Connection, .. } => {
            format!("no connection to {host} on port {port}")
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_port_that_refuses_is_described_like_one_that_is_filtered() {
        let (host, port) = ("mail.example.org".to_owned(), 25);
        let closed = |detail: &str| DialError::NotConnected { host: host.clone(), port, detail: detail.to_owned() };
        let timed_out = |phase| DialError::TimedOut { host: host.clone(), port, phase, after: Duration::from_secs(5) };
        for error in [closed("connection refused"), closed("host unreachable"), timed_out(Phase::Connection)] {
            assert_eq!(unavailable(&error), "no connection to mail.example.org on port 25", "{error}");
        }
        assert!(unavailable(&timed_out(Phase::Login)).contains("did not finish the login"));
    }
}
