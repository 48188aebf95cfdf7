//! The end of a credential. With `revocationPolicy: OnDelete` a finalizer keeps it until its tokens are revoked, or until
//! that has been tried for a minute: nobody's deletion, not that of a namespace either, waits longer.

use std::{sync::Arc, time::Duration};

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::{
    Api, ResourceExt as _,
    api::{Patch, PatchParams},
    runtime::controller::Action,
};
use serde_json::json;

use super::{
    Context,
    act::{Revocation, revoke},
    custody, full_name, report,
};
use crate::{
    api::{MailCredential, Reason, Retry, credential::RevocationPolicy, names},
    error::{Error, told_by},
    policy::{checks, notices::Notice},
};

/// How long revocation is tried, from the deletion on.
const PATIENCE: SignedDuration = SignedDuration::from_mins(1);
/// How far apart attempts are.
const AGAIN: Duration = Duration::from_secs(5);

/// Sees to it that a credential has the finalizer just if its policy wants it. Most have none, and cost nothing.
pub(super) async fn finalizer(
    credential: Arc<MailCredential>,
    context: &Context,
) -> Result<Arc<MailCredential>, Error> {
    let has = credential.finalizers().iter().any(|name| name == names::FINALIZER_REVOKE);
    let wants = credential.spec.revocation_policy == RevocationPolicy::OnDelete;
    if has == wants {
        return Ok(credential);
    }
    let written = set(&credential, wants, context).await?;
    let Some(mut written) = written else { return Ok(credential) };
    written.metadata.managed_fields = None;
    let written = Arc::new(written);
    context.memory.with(checks::uid(&credential), |entry| entry.written = Some(written.clone()));
    Ok(written)
}

/// Adds the finalizer, or takes it away; `None` if the credential is gone.
async fn set(credential: &MailCredential, wanted: bool, context: &Context) -> Result<Option<MailCredential>, Error> {
    let others = credential.finalizers().iter().filter(|name| *name != names::FINALIZER_REVOKE).cloned();
    let own = wanted.then(|| names::FINALIZER_REVOKE.to_owned());
    let finalizers: Vec<String> = others.chain(own).collect();
    let metadata = json!({
        "uid": credential.metadata.uid, "resourceVersion": credential.metadata.resource_version, "finalizers": finalizers,
    });
    let api: Api<MailCredential> = Api::namespaced(context.client.clone(), checks::namespace(credential));
    let patch = Patch::Merge(json!({"metadata": metadata}));
    match api.patch(&credential.name_any(), &PatchParams::default(), &patch).await {
        Ok(written) => Ok(Some(written)),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
        Err(source) => Err(Error::WriteFinalizer { name: full_name(credential), source }),
    }
}

/// Takes leave of a credential that is being deleted.
pub(super) fn farewell(credential: Arc<MailCredential>, deleted: Timestamp, context: &Arc<Context>) -> Action {
    let uid = checks::uid(&credential).to_owned();
    if !credential.finalizers().iter().any(|name| name == names::FINALIZER_REVOKE) {
        context.memory.forget(&uid);
        return Action::await_change();
    }
    // A request that is under way may bring one more token: its end wakes the credential.
    let now = context.clock.now();
    let busy = context.memory.with(&uid, |entry| entry.in_flight.replace(now).is_some());
    if !busy {
        let context = context.clone();
        tokio::spawn(async move {
            // Until a watch shows that the finalizer has gone, this stays under way, or all would be revoked once more.
            let Err(error) = take_leave(&credential, deleted, &context).await else { return };
            let why = std::error::Error::source(&error).and_then(|source| source.downcast_ref()).map(told_by);
            tracing::warn!(why, "{error} failed; it is tried again");
            context.metrics.reconcile_error(error.category());
            tokio::time::sleep(AGAIN).await;
            context.memory.finish(&uid, None);
            context.waker.credential((checks::namespace(&credential).to_owned(), credential.name_any()));
        });
    }
    Action::await_change()
}

async fn take_leave(credential: &Arc<MailCredential>, deleted: Timestamp, context: &Arc<Context>) -> Result<(), Error> {
    if let Err(error) = custody::keep_unsaved(credential, context).await {
        tracing::warn!(%error, "the last refresh token of a deleted credential was not stored, so it is not revoked");
    }
    let revocation = loop {
        let revocation = revoke(credential, context).await;
        let out_of_time = context.clock.now().duration_since(deleted) >= PATIENCE;
        match &revocation {
            Revocation::Failed(why, Retry::Transient) if !out_of_time => {
                tracing::warn!(why, "tokens could not be revoked yet; it is tried again");
                tokio::time::sleep(AGAIN).await;
            }
            _ => break revocation,
        }
    };
    if let Some(notice) = notice(&revocation) {
        report::tell(credential, &notice, context).await;
    }
    set(credential, false, context).await.map(drop)
}

fn notice(revocation: &Revocation) -> Option<Notice> {
    let (warning, reason, note) = match revocation {
        Revocation::Nothing => return None,
        Revocation::Revoked => (false, Reason::GrantRevoked, "the provider has revoked the tokens".to_owned()),
        Revocation::NotSupported => (
            true,
            Reason::RevocationNotSupported,
            "the provider has no way to revoke tokens: the access token ends by itself, and a refresh token has to be \
             revoked in the provider's own console"
                .to_owned(),
        ),
        Revocation::Failed(why, _) => (
            true,
            Reason::RevocationFailed,
            format!("the tokens are not revoked: {why}. Revoke them in the provider's own console"),
        ),
    };
    Some(Notice { warning, reason, note })
}
