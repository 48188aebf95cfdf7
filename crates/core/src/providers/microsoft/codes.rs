//! The meaning of Microsoft's AADSTS codes, which refine the OAuth error.
//!
//! Source: "Microsoft Entra authentication and authorization error codes"
//! (<https://learn.microsoft.com/entra/identity-platform/reference-error-codes>, in `MicrosoftDocs/entra-docs` at 04f6554).
//! The groups below have each code of that list that client credentials, refresh tokens and device codes can meet. The
//! tests list the other codes by their subject (SAML, WS-Federation, Kerberos, password changes, devices), and the
//! codes that users report although the list lacks them.
//!
//! Microsoft may change codes without notice, so they only choose between reasons and texts. With a code outside of the
//! groups, the OAuth error alone determines the meaning.

use k8s_openapi::jiff::SignedDuration;

use super::super::{RefusalContext, general, is_throttled};
use crate::{
    api::{Reason, grant::GrantType},
    oauth::Refusal,
};

/// A group of codes with one meaning.
struct Group {
    codes: &'static [u32],
    /// The condition's reason for the codes.
    reason: Reason,
    /// The fix in addition to the reason's general advice; may be empty.
    mend: &'static str,
    /// The fix after a user's sign-in. `None`: the same as `mend`.
    delegated: Option<&'static str>,
}

/// Wait after Microsoft's loop detection ("Client throttling", MSAL's documentation).
const LOOP_REST: SignedDuration = SignedDuration::from_mins(1);

/// Refines a refusal by its code.
pub(super) fn refine(refusal: &mut Refusal, context: &RefusalContext) {
    let number = refusal.provider_code.as_deref().and_then(|code| code.strip_prefix("AADSTS")?.parse::<u32>().ok());
    let Some((number, group)) = number.and_then(|number| Some((number, find(number)?))) else {
        return general(refusal, context);
    };
    if is_throttled(refusal) {
        return;
    }
    if number == 700_023 && refusal.error.as_ref().is_some_and(|error| error.as_str() == "invalid_scope") {
        // The list has this code for a scope, but the token endpoint also reports it for the audience of a client
        // assertion.
        return general(refusal, context);
    }
    let mend = group.delegated.filter(|_| context.grant != GrantType::ClientCredentials).unwrap_or(group.mend);
    refusal.understood(group.reason, (!mend.is_empty()).then_some(mend));
    if number == 50196 {
        refusal.retry_after = refusal.retry_after.max(Some(LOOP_REST));
    }
}

fn find(number: u32) -> Option<&'static Group> {
    GROUPS.iter().find(|group| group.codes.contains(&number))
}

const fn group(codes: &'static [u32], reason: Reason, mend: &'static str) -> Group {
    Group { codes, reason, mend, delegated: None }
}

const GROUPS: &[Group] = &[
    group(&[50196, 90055], Reason::Throttled, ""),
    group(
        &[
            40008, 40010, 50000, 50033, 50086, 50087, 50088, 50166, 51005, 70012, 80001, 80002, 80005, 80007, 80013,
            80014, 90006, 90012, 90024, 90033, 90036, 90090, 90091, 90092, 230109, 501621,
        ],
        Reason::ProviderUnavailable,
        "",
    ),
    group(
        &[70002, 7000215],
        Reason::InvalidClient,
        "The client secret is wrong. Store its Value (Entra shows the Value once, beside the Secret ID, which is a \
         GUID) with `{put}`, or create a new secret with `az ad app credential reset --id {client} --append`. A new \
         secret takes some minutes to work",
    ),
    group(
        &[7000222],
        Reason::ClientSecretExpired,
        "The client secret has expired. Create a new one with `az ad app credential reset --id {client} --append`, then \
         store it with `{put}`",
    ),
    group(
        &[50003, 50006, 50012, 50013, 50027, 50048, 50120, 700021, 700023, 700027, 700030, 900384],
        Reason::InvalidClient,
        "Entra does not accept the signature of the client's key. Register the certificate with `az ad app credential \
         reset --id {client} --append --cert @tls.crt`, where tls.crt is the certificate in \
         spec.client.authentication[].privateKeyJWT.certificateRef. A new certificate takes some minutes to work",
    ),
    group(&[500133, 700024], Reason::ClockSkew, ""),
    // Many users report this code, but the list lacks it.
    group(
        &[7000229],
        Reason::InvalidClient,
        "The client secret is right, but the application has no service principal in this tenant. Create one with `az \
         ad sp create --id {client}`, then consent with `az ad app permission admin-consent --id {client}`",
    ),
    group(
        &[700011, 700016],
        Reason::InvalidClient,
        "The tenant does not know spec.client.id. Set it to the Application (client) ID with `{merge} \
         '{\"spec\":{\"client\":{\"id\":\"<application id>\"}}}'`. If the id is right, spec.microsoft.tenantID is not \
         the tenant in which the application is registered. A new registration takes some minutes to be known",
    ),
    group(
        // The list lacks 900021 and 900023: the tenant is neither an id nor a domain.
        &[50049, 50059, 50107, 50128, 50169, 90002, 90019, 900021, 900023],
        Reason::RequestRefused,
        "There is no such tenant. Set the right one with `{merge} '{\"spec\":{\"microsoft\":{\"tenantID\":\"<tenant id \
         or domain>\"}}}'`",
    ),
    group(
        &[90038, 90043, 90051, 900382, 900432, 1000104],
        Reason::InvalidClient,
        "The tenant is in another of Microsoft's clouds (USGov, USGovDoD or China). Set the cloud with `{merge} \
         '{\"spec\":{\"microsoft\":{\"cloud\":\"<cloud>\"}}}'`",
    ),
    group(
        &[70001, 7000112, 1000031],
        Reason::InvalidClient,
        "The application is disabled in this tenant. Enable it with `az ad sp update --id {client} --set \
         accountEnabled=true`",
    ),
    group(
        &[700025],
        Reason::InvalidClient,
        "The application is registered as a public client, which must not authenticate. Empty the list with `{merge} \
         '{\"spec\":{\"client\":{\"authentication\":[]}}}'`, or change the registration",
    ),
    Group {
        codes: &[7000218],
        reason: Reason::InvalidClient,
        mend: "The application must authenticate. Add a client secret, a key or a ServiceAccount to \
               spec.client.authentication of the provider",
        delegated: Some(
            "The application must authenticate, or be registered as a public client with `az ad app update --id \
             {client} --is-fallback-public-client true`. To authenticate, add its secret to spec.client.authentication \
             of the provider",
        ),
    },
    group(
        &[70021, 70025, 700211, 700212, 700213, 700229],
        Reason::FederationMismatch,
        "No federated credential of the application has exactly this issuer, subject and audience: {issuer}, {subject}, \
         {audience} (letter case counts). Create one with `{trust}`. A change takes some minutes to be known",
    ),
    group(&[28000, 28002, 28003, 70011, 700022, 1002012], Reason::InvalidScope, ""),
    group(
        &[901002],
        Reason::InvalidScope,
        "The v2.0 endpoint takes scopes and no resource. Remove `resource` from spec.client.parameters with `{merge} \
         '{\"spec\":{\"client\":{\"parameters\":{\"resource\":null}}}}'`",
    ),
    group(
        // The list lacks 500014: the service principal is disabled, usually because a subscription has lapsed.
        &[50001, 500011, 500014, 650052, 650054],
        Reason::InvalidScope,
        "The tenant has no service principal for Exchange Online. Check spec.microsoft.cloud of the provider, and that \
         the tenant has an Exchange licence",
    ),
    Group {
        codes: &[65001, 65005, 90008, 90009, 90093, 90094, 90095, 90099, 650056, 650057],
        reason: Reason::ConsentRequired,
        mend: "Add the application permission SMTP.SendAsApp (IMAP.AccessAsApp, POP.AccessAsApp) of Office 365 Exchange \
               Online to the application, then run `az ad app permission admin-consent --id {client}`. A new consent \
               takes some minutes to count",
        delegated: Some(
            "Neither {mailbox} nor an administrator has consented that the application uses this mailbox. Sign in with \
             `{sign_in}` and accept. Where the tenant leaves consent to administrators, one of them runs `az ad app \
             permission admin-consent --id {client}`",
        ),
    },
    group(
        &[65004],
        Reason::ConsentRequired,
        "The person declined what the application asks for. Sign in again with `{sign_in}` and accept",
    ),
    group(
        &[65002],
        Reason::ConsentRequired,
        "spec.client.id is an application of Microsoft's own, which must not ask for this. Register your own with `az \
         ad app create --display-name mail-token-broker`, then set its id with `{merge} \
         '{\"spec\":{\"client\":{\"id\":\"<application id>\"}}}'`",
    ),
    group(
        &[9002341],
        Reason::AuthorizationRequired,
        "{mailbox} must permit single sign-on once. Sign in again with `{sign_in}` and accept",
    ),
    group(
        &[50105],
        Reason::ConsentRequired,
        "The application is for assigned accounts only, and {mailbox} is not assigned. An administrator assigns it \
         under Users and groups of the Enterprise application on https://entra.microsoft.com, or admits all accounts \
         with `az ad sp update --id {client} --set appRoleAssignmentRequired=false`",
    ),
    group(
        &[90027, 90124, 90130, 50194, 9001023, 9002332],
        Reason::RequestRefused,
        "This request works in a single tenant only. Name the tenant with `{merge} \
         '{\"spec\":{\"microsoft\":{\"tenantID\":\"<tenant id or domain>\"}}}'`",
    ),
    group(
        &[70008, 700082, 700084],
        Reason::InvalidGrant,
        "The refresh token has expired: it was not used for 90 days, or (for a single-page application) is older than a \
         day. Sign in again with `{sign_in}`",
    ),
    group(
        &[40009, 40015, 50085, 50089, 50139, 50173, 54005, 70000, 700005],
        Reason::InvalidGrant,
        "The refresh token was revoked, or belongs to another application. Sign-ins end when the password changes and \
         when an administrator revokes them. Sign in again with `{sign_in}`",
    ),
    group(
        &[70043],
        Reason::InvalidGrant,
        "A Conditional Access policy requires a new sign-in at intervals (its sign-in frequency). Exempt {mailbox} or \
         the application from it, then sign in again with `{sign_in}`",
    ),
    group(
        &[50055, 50056, 50064, 50125, 50126, 50132, 50133, 50135, 50144],
        Reason::InvalidGrant,
        "The password of {mailbox} has expired or was changed. Sign in again with `{sign_in}`",
    ),
    group(
        &[16000, 16003, 50014, 50020, 50034, 50197, 51004, 90072, 500208],
        Reason::InvalidGrant,
        "The account that signed in is not in this tenant, or is of another kind. Sign in as {mailbox} with \
         `{sign_in}`, or name the tenant of {mailbox} with `{merge} '{\"spec\":{\"microsoft\":{\"tenantID\":\"<tenant \
         id or domain>\"}}}'`",
    ),
    group(
        &[50053],
        Reason::InvalidGrant,
        "The account {mailbox} is locked, or signs in from an address that Entra considers malicious. An administrator \
         finds the cause in the sign-in log of https://entra.microsoft.com, by the correlationID in status.lastError, \
         and unlocks the account. Then sign in again with `{sign_in}`",
    ),
    group(
        &[50015, 54000],
        Reason::AuthorizationRequired,
        "The account {mailbox} belongs to a minor, for whom a guardian or an administrator must consent. Use the \
         account of an adult, or correct its age group on https://entra.microsoft.com",
    ),
    group(
        &[50057],
        Reason::InvalidGrant,
        "The account {mailbox} is disabled. Enable it with `az ad user update --id {mailbox} --account-enabled true`",
    ),
    Group {
        codes: &[50058, 50072, 50074, 50076, 50078, 50079, 50158, 50161, 53004, 53010, 700020],
        reason: Reason::AuthorizationRequired,
        mend: "",
        delegated: Some(
            "{mailbox} must give a second factor. Sign in again with `{sign_in}`, or exempt this account in the \
             tenant's Conditional Access policies",
        ),
    },
    Group {
        codes: &[
            50005, 50097, 50127, 50129, 50131, 50155, 50177, 50178, 50187, 53000, 53001, 53002, 53003, 53011, 530032,
            530034,
        ],
        reason: Reason::AuthorizationRequired,
        mend: "A Conditional Access policy for workload identities blocks the application. An administrator finds the \
               policy in the sign-in log of https://entra.microsoft.com, by the correlationID in status.lastError, and \
               exempts the application",
        delegated: Some(
            "A Conditional Access policy blocks the sign-in of {mailbox}. An administrator finds the policy in the \
             sign-in log of https://entra.microsoft.com, by the correlationID in status.lastError, and exempts the \
             account. Then sign in again with `{sign_in}`",
        ),
    },
    Group {
        codes: &[530035],
        reason: Reason::AuthorizationRequired,
        mend: "The security defaults of the tenant block the application. An administrator replaces them by Conditional \
               Access policies (Entra ID, Overview, Properties, Manage security defaults on \
               https://entra.microsoft.com)",
        delegated: Some(
            "The security defaults of the tenant block the sign-in of {mailbox}. An administrator replaces them by \
             Conditional Access policies (Entra ID, Overview, Properties, Manage security defaults on \
             https://entra.microsoft.com). Then sign in again with `{sign_in}`",
        ),
    },
    group(
        &[50002, 500021, 500022],
        Reason::AuthorizationRequired,
        "A proxy between the broker and Entra restricts which tenants may be used (it adds the header \
         Restrict-Access-To-Tenants). Its administrator adds the tenant of spec.microsoft.tenantID, or exempts the \
         broker's requests",
    ),
    group(
        &[500212, 500213],
        Reason::AuthorizationRequired,
        "The cross-tenant access settings of one of the two tenants forbid the sign-in. Use an account of the tenant in \
         spec.microsoft.tenantID, or have an administrator allow the access (External Identities on \
         https://entra.microsoft.com)",
    ),
    group(
        &[16001, 16002, 50140, 50143, 50168, 50180, 50199, 51006, 90123, 160021],
        Reason::AuthorizationRequired,
        "Entra requires {mailbox} to answer another page of the sign-in. Sign in again with `{sign_in}`",
    ),
    group(
        &[50042, 50043, 50124, 50170],
        Reason::RequestRefused,
        "The tenant's own settings for the application or its claims are not valid. An administrator finds the cause in \
         the sign-in log of https://entra.microsoft.com, by the correlationID in status.lastError",
    ),
    group(&[70016], Reason::AuthorizationRequired, ""),
    group(
        &[50134, 70018, 70019, 90119, 90120],
        Reason::AuthorizationRequired,
        "The code for the sign-in has expired or was used before. Get a new one with `{sign_in}`",
    ),
    group(
        &[50011, 70004, 900971],
        Reason::RequestRefused,
        "The application does not know the redirect URI of the sign-in. Register it with `az ad app update --id \
         {client} --public-client-redirect-uris http://localhost`, then run `{sign_in}`",
    ),
    group(
        &[50146, 501461],
        Reason::RequestRefused,
        "The application maps claims, which needs a signing key of its own. Set acceptMappedClaims to true in its \
         manifest on https://entra.microsoft.com, or use an application without claims mapping",
    ),
    group(
        &[
            50029, 50050, 50147, 51000, 70003, 70005, 70007, 90004, 90005, 90010, 90013, 90014, 90015, 90023, 90056,
            90100, 90102, 90117, 90121, 900144, 900561, 501481, 501491, 9002313,
        ],
        Reason::RequestRefused,
        "Entra does not understand the request. Check that spec.client.parameters and spec.scopes contain nothing \
         foreign with `{get} -o jsonpath='{.spec}'`. If they do not, report this code to the maintainers of the broker",
    ),
];

#[cfg(test)]
mod tests;
