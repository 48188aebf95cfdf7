//! Tells: one patch of the status if it differs, and an Event if a condition turned.

use std::sync::Arc;

use kube::{
    Api, Resource as _, ResourceExt as _,
    api::{Patch, PatchParams},
    runtime::events::{Event, EventType},
};
use serde_json::json;

use super::{Context, full_name};
use crate::{
    api::{MailCredential, names},
    error::{Error, told_by},
    policy::{
        Decision, Observed, checks,
        notices::{Notice, notices},
        status::{status, tells_of_an_end},
    },
};
use k8s_openapi::jiff::Timestamp;

/// Writes the status of a credential if it differs, then tells what has turned.
pub(super) async fn report(
    observed: &Observed,
    decision: &Decision,
    context: &Context,
    now: Timestamp,
) -> Result<(), Error> {
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
        return Ok(());
    }
    if under_way && !tells_of_an_end(&before.conditions, &after.conditions) {
        return Ok(());
    }
    let api: Api<MailCredential> = Api::namespaced(context.client.clone(), checks::namespace(credential));
    let patch = json!({
        "apiVersion": MailCredential::api_version(&()),
        "kind": MailCredential::kind(&()),
        // The uid keeps the status from a credential that was deleted and made anew.
        "metadata": {"name": credential.name_any(), "uid": credential.metadata.uid},
        "status": after,
    });
    let params = PatchParams::apply(names::MANAGER).force();
    let written = api.patch_status(&credential.name_any(), &params, &Patch::Apply(&patch)).await;
    match written {
        Ok(mut written) => {
            written.metadata.managed_fields = None;
            context.memory.with(checks::uid(credential), |entry| {
                (entry.written, entry.untold) = (Some(Arc::new(written)), None);
            });
        }
        // Deleted, or deleted and made anew: nobody is left to tell.
        Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => return Ok(()),
        Err(source) => return Err(Error::WriteStatus { name: full_name(credential), source }),
    }
    for notice in notices(&before, &after) {
        tell(credential, &notice, context).await;
    }
    Ok(())
}

/// Writes an Event. One that is lost is logged; the status tells the same.
pub(super) async fn tell(credential: &MailCredential, notice: &Notice, context: &Context) {
    let event = event(notice);
    if let Err(error) = context.recorder.publish(&event, &credential.object_ref(&())).await {
        tracing::warn!(error = told_by(&error), reason = event.reason, "an Event could not be written");
    }
}

/// Longest note that the API server takes (`events.k8s.io/v1`).
const NOTE_MAX: usize = 1024;

pub(super) fn event(notice: &Notice) -> Event {
    let note = match notice.note.char_indices().nth(NOTE_MAX - 1) {
        Some((end, _)) => format!("{}…", notice.note.get(..end.saturating_sub(3)).unwrap_or(&notice.note)),
        None => notice.note.clone(),
    };
    Event {
        type_: if notice.warning { EventType::Warning } else { EventType::Normal },
        reason: notice.reason.as_str().to_owned(),
        note: Some(note),
        action: "Reconcile".to_owned(),
        secondary: None,
    }
}
