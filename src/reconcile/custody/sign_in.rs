//! The sign-in by a device code (RFC 8628), as the grant Secret stores it.

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use secrecy::SecretString;

use crate::{
    api::MailCredential,
    oauth::device::DeviceAuthorization,
    policy::{
        checks,
        device_code::sign_in,
        grant::{RefreshGrant, TokenNote},
    },
    reconcile::{
        context::Context,
        custody::{
            data::{Data, hash},
            pending::{CustodyError, SignInEnd, SignedIn},
            secret::{absent, read_grant, write},
        },
    },
};

/// Begins a sign-in, or continues it with another code: writes the codes in `authorization` into the grant Secret.
pub(in crate::reconcile) async fn begin_sign_in(
    credential: &MailCredential,
    authorization: &DeviceAuthorization,
    grant: &RefreshGrant,
    now: Timestamp,
    context: &Context,
) -> Result<(), CustodyError> {
    let (mut stored, mut data) =
        read_grant(credential, context).await?.unwrap_or_else(|| (absent(credential), Data::default()));
    stored.sign_in = Some(sign_in(authorization, grant, stored.sign_in.as_ref(), now));
    data.device_code = Some(authorization.device_code.clone());
    write(credential, &stored, &data, context).await?;
    let codes = (authorization.user_code.clone(), authorization.device_code.clone());
    context.cache.with(checks::uid(credential), |entry| entry.sign_in.device_code = Some(codes));
    Ok(())
}

/// Returns the device code of the sign-in with this user code. `None`: the grant Secret has another sign-in, or none.
pub(in crate::reconcile) async fn device_code(
    credential: &MailCredential,
    user_code: &str,
    context: &Context,
) -> Result<Option<SecretString>, CustodyError> {
    let uid = checks::uid(credential);
    let known = context.cache.with(uid, |entry| entry.sign_in.device_code.clone());
    if let Some((_, device_code)) = known.filter(|(known, _)| known == user_code) {
        return Ok(Some(device_code));
    }
    let Some((stored, data)) = read_grant(credential, context).await? else { return Ok(None) };
    let device_code = data.device_code.filter(|_| stored.sign_in.is_some_and(|stored| stored.user_code == user_code));
    let codes = device_code.clone().map(|device_code| (user_code.to_owned(), device_code));
    context.cache.with(uid, |entry| entry.sign_in.device_code = codes);
    Ok(device_code)
}

/// Writes a longer interval between polls into the grant Secret, so that the interval outlives a restart.
pub(in crate::reconcile) async fn slow_down(
    credential: &MailCredential,
    by: SignedDuration,
    context: &Context,
) -> Result<(), CustodyError> {
    let Some((mut stored, data)) = read_grant(credential, context).await? else { return Ok(()) };
    let Some(sign_in) = &mut stored.sign_in else { return Ok(()) };
    sign_in.interval = sign_in.interval.saturating_add(by.as_secs());
    write(credential, &stored, &data, context).await.map(drop)
}

/// Ends a sign-in: writes the refresh token, or the reason why the sign-in failed, into the grant Secret.
pub(in crate::reconcile) async fn end_sign_in(
    credential: &MailCredential,
    ended: SignInEnd,
    context: &Context,
) -> Result<(), CustodyError> {
    let (mut stored, mut data) =
        read_grant(credential, context).await?.unwrap_or_else(|| (absent(credential), Data::default()));
    match ended {
        SignInEnd::SignedIn(SignedIn { rotated, bound_to, revocable_at, at }) => {
            stored.sign_in = None;
            if let Some(rotated) = rotated {
                stored.token = Some(TokenNote {
                    hash: hash(&rotated.refresh_token),
                    bound_to,
                    revocable_at,
                    obtained_at: at,
                    last_used_at: Some(at),
                    expires_at: rotated.expires_at,
                    rotations: 0,
                });
                data.replace(rotated.refresh_token);
            }
        }
        SignInEnd::Failed(how) => {
            if let Some(sign_in) = &mut stored.sign_in {
                sign_in.ended = Some(how);
            }
        }
    }
    data.device_code = None;
    write(credential, &stored, &data, context).await?;
    context
        .cache
        .with(checks::uid(credential), |entry| (entry.sign_in.device_code, entry.sign_in.next_poll) = (None, None));
    Ok(())
}
