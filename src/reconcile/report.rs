//! Tells: one patch of the status if it differs, and an Event if a condition turned.

use std::sync::Arc;

use kube::{
    Api, Resource as _, ResourceExt as _,
    api::{Patch, PatchParams},
};
use serde_json::json;

use super::{Context, full_name};
use crate::{
    api::{MailCredential, names},
    error::Error,
    fail_point,
    policy::{
        Decision, Observed, checks,
        notices::{Notice, notices},
        status::{status, tells_of_an_end},
    },
};
use k8s_openapi::jiff::{SignedDuration, Timestamp};

/// The end of a token is told at the latest after this, though a request for another one is under way: most bring it
/// sooner, also after a start with many tokens that have ended, and tell nothing but that.
const END_TOLD_AFTER: SignedDuration = SignedDuration::from_secs(30);

/// When the end of a token is told although a request for another one is under way.
pub(super) fn end_told_at(credential: &MailCredential, context: &Context) -> Option<Timestamp> {
    let since = context.memory.with(checks::uid(credential), |entry| entry.in_flight)?;
    Some(since + END_TOLD_AFTER)
}

/// Writes the status of a credential if it differs, then tells what has turned. `false`: somebody else has written the
/// object meanwhile, and it has to be looked at again.
pub(super) async fn report(
    observed: &Observed,
    decision: &Decision,
    context: &Context,
    now: Timestamp,
) -> Result<bool, Error> {
    let credential = &observed.credential;
    let before = credential.status.clone().unwrap_or_default();
    let after = status(observed, decision, now);
    let under_way = matches!(
        decision,
        Decision::Issue(_)
            | Decision::SignIn
            | Decision::Poll
            | Decision::InFlight
            | Decision::KeepGrant
            | Decision::Store
            | Decision::Publish(_)
    );
    if before == after {
        context.memory.with(checks::uid(credential), |entry| entry.untold = None);
        return Ok(true);
    }
    let patient = end_told_at(credential, context).is_some_and(|at| now < at);
    if under_way && (patient || !tells_of_an_end(&before.conditions, &after.conditions)) {
        return Ok(true);
    }
    let api: Api<MailCredential> = Api::namespaced(context.client.clone(), checks::namespace(credential));
    let patch = json!({
        "apiVersion": MailCredential::api_version(&()),
        "kind": MailCredential::kind(&()),
        // The uid keeps the status from a credential that was deleted and made anew, the version from one that another
        // broker, which leads now, has written.
        "metadata": {
            "name": credential.name_any(),
            "uid": credential.metadata.uid,
            "resourceVersion": credential.metadata.resource_version,
        },
        "status": after,
    });
    let params = PatchParams::apply(names::MANAGER).force();
    fail_point::pass("before-status").await;
    let written = api.patch_status(&credential.name_any(), &params, &Patch::Apply(&patch)).await;
    match written {
        Ok(mut written) => {
            written.metadata.managed_fields = None;
            context.memory.with(checks::uid(credential), |entry| {
                (entry.written, entry.untold) = (Some(Arc::new(written)), None);
            });
        }
        // Nobody is left to tell.
        Err(kube::Error::Api(status)) if status.code == 404 => return Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => return Ok(false),
        Err(source) => return Err(Error::WriteStatus { name: full_name(credential), source }),
    }
    fail_point::pass("status-written").await;
    for notice in notices(&before, &after) {
        tell(credential, &notice, context).await;
    }
    Ok(true)
}

/// Writes an Event.
pub(super) async fn tell(credential: &MailCredential, notice: &Notice, context: &Context) {
    context.events.publish(notice, &credential.object_ref(&()), context.clock.now()).await;
}
