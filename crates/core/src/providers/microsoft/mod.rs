//! Microsoft Entra ID and Exchange Online, in Microsoft's four clouds.
//!
//! Sources: "Authenticate an IMAP, POP or SMTP connection using OAuth" (Exchange documentation), "National cloud
//! deployments", "Scopes and permissions" and "Refresh tokens" (identity platform documentation).

mod codes;
mod token;

use k8s_openapi::jiff::SignedDuration;

use super::{Profile, Redirect, SignIn, TokenSource, account::Accounts, servers};
use crate::{
    api::{
        credential::Protocol,
        grant::GrantType,
        provider::{Cloud, Microsoft, ProviderSpec, Servers},
    },
    oauth::discovery::Endpoints,
};

struct CloudFacts {
    /// Host of the authority.
    authority: &'static str,
    /// Host of the resource that app-only scopes name.
    app_resource: &'static str,
    /// Host of the resource that delegated scopes name.
    resource: &'static str,
    /// Hosts for SMTP, IMAP and POP3. `None`: Microsoft publishes no hosts.
    mail: Option<[&'static str; 3]>,
}

const fn facts(cloud: Cloud) -> CloudFacts {
    match cloud {
        Cloud::Public => CloudFacts {
            authority: "login.microsoftonline.com",
            app_resource: "outlook.office365.com",
            resource: "outlook.office.com",
            mail: Some(["smtp.office365.com", "outlook.office365.com", "outlook.office365.com"]),
        },
        Cloud::USGov => CloudFacts {
            authority: "login.microsoftonline.us",
            app_resource: "outlook.office365.us",
            resource: "outlook.office365.us",
            mail: Some(["smtp.office365.us", "outlook.office365.us", "outlook.office365.us"]),
        },
        Cloud::USGovDoD => CloudFacts {
            authority: "login.microsoftonline.us",
            app_resource: "outlook.office365.us",
            resource: "outlook.office365.us",
            mail: None,
        },
        Cloud::China => CloudFacts {
            authority: "login.partner.microsoftonline.cn",
            app_resource: "partner.outlook.cn",
            resource: "partner.outlook.cn",
            mail: Some(["smtp.partner.outlook.cn", "partner.outlook.cn", "partner.outlook.cn"]),
        },
    }
}

/// The servers of personal accounts.
const PERSONAL: [&str; 3] = ["smtp-mail.outlook.com", "outlook.office365.com", "outlook.office365.com"];
/// The tenant of all personal accounts.
const CONSUMERS: &str = "consumers";
/// The scope without which Microsoft returns no refresh token.
const OFFLINE: &str = "offline_access";
/// OpenID Connect's scopes belong to no resource, so a request may combine them with the scopes of one resource.
/// Microsoft compares the path of a redirect URI to localhost with the registered `http://localhost`, but not the port.
const SIGN_IN: SignIn = SignIn {
    scopes: &["openid", "profile", "email"],
    parameters: &[("prompt", "select_account")],
    redirect: Redirect::Localhost(""),
    issuer: None,
};
/// Lifetime of an unused refresh token: 90 days.
const IDLE_LIFE: SignedDuration = SignedDuration::from_hours(90 * 24);

/// Returns the profile of a tenant.
pub(super) fn profile(settings: &Microsoft, given: &Servers) -> Profile {
    let facts = facts(settings.cloud);
    let tenant = &settings.tenant_id;
    let endpoint = |name: &str| format!("https://{}/{tenant}/oauth2/v2.0/{name}", facts.authority);
    let source = TokenSource::Known(Endpoints {
        token_url: endpoint("token"),
        device_authorization_url: Some(endpoint("devicecode")),
        // Entra ID has no revocation endpoint: it revokes all sign-ins of a user together.
        revocation_url: None,
        authorization_url: Some(endpoint("authorize")),
    });
    let mail = if tenant.eq_ignore_ascii_case(CONSUMERS) { Some(PERSONAL) } else { facts.mail };
    let grants = &[GrantType::ClientCredentials, GrantType::RefreshToken, GrantType::DeviceCode];
    Profile {
        sign_in: SIGN_IN,
        accounts: Accounts { shared_by_address: true, ..Accounts::default() },
        guid_is_no_secret: true,
        scopes,
        unsupported,
        refine: codes::refine,
        unsuitable: token::unsuitable,
        idle_life: Some(IDLE_LIFE),
        // "Refresh tokens": Microsoft does not revoke a refresh token that a client exchanges for a new refresh token.
        keeps_replaced_tokens: true,
        ..Profile::new("microsoft", source, servers(given, mail), grants)
    }
}

/// The name of a protocol in delegated scopes.
const fn permission(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Smtp => "SMTP.Send",
        Protocol::Imap => "IMAP.AccessAsUser.All",
        Protocol::Pop3 => "POP.AccessAsUser.All",
    }
}

/// The name of a protocol in the roles of an application.
const fn role(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Smtp => "SMTP.SendAsApp",
        Protocol::Imap => "IMAP.AccessAsApp",
        Protocol::Pop3 => "POP.AccessAsApp",
    }
}

fn app_scope(cloud: Cloud) -> String {
    format!("https://{}/.default", facts(cloud).app_resource)
}

fn scopes(spec: &ProviderSpec, grant: GrantType, protocols: &[Protocol]) -> Vec<String> {
    let cloud = spec.microsoft.as_ref().map(|settings| settings.cloud).unwrap_or_default();
    if grant == GrantType::ClientCredentials {
        return vec![app_scope(cloud)];
    }
    let resource = facts(cloud).resource;
    let mail = protocols.iter().map(|protocol| format!("https://{resource}/{}", permission(*protocol)));
    // A refresh must not request more scopes than the sign-in, which another program may have made.
    let identity = if grant == GrantType::DeviceCode { SIGN_IN.scopes } else { &[] };
    mail.chain([OFFLINE.to_owned()]).chain(identity.iter().map(|scope| (*scope).to_owned())).collect()
}

fn unsupported(spec: &ProviderSpec, grant: GrantType, scopes: &[String]) -> Option<String> {
    let settings = spec.microsoft.as_ref()?;
    if grant == GrantType::ClientCredentials {
        app_objection(settings, scopes)
    } else {
        delegated_objection(grant, scopes)
    }
}

fn app_objection(settings: &Microsoft, scopes: &[String]) -> Option<String> {
    let tenant = settings.tenant_id.to_ascii_lowercase();
    if ["common", CONSUMERS, "organizations"].contains(&tenant.as_str()) {
        return Some(format!(
            "app-only tokens come from one tenant, and {tenant} is not one tenant: set spec.microsoft.tenantID of the \
             provider to the tenant's id or domain"
        ));
    }
    let wanted = app_scope(settings.cloud);
    (scopes != [wanted.as_str()]).then(|| {
        format!(
            "app-only tokens for mail have exactly the scope {wanted}: leave scopes empty, or set exactly that scope"
        )
    })
}

fn delegated_objection(grant: GrantType, scopes: &[String]) -> Option<String> {
    const LEAVE: &str = "leave scopes empty, so that the broker requests the right ones";
    let is_identity = |scope: &&String| scope.as_str() == OFFLINE || SIGN_IN.scopes.contains(&scope.as_str());
    let named: Vec<_> = scopes.iter().filter(|scope| !is_identity(scope)).map(|scope| split(scope)).collect();
    if let Some((_, permission)) = named.iter().find(|(resource, _)| is_graph(resource)) {
        return Some(format!(
            "the scope {permission} belongs to Microsoft Graph, and no mail server accepts it: {LEAVE}"
        ));
    }
    if named.iter().any(|(_, permission)| *permission == ".default") {
        return Some(format!("a person signs in for permissions by name, not for .default: {LEAVE}"));
    }
    let first = named.first().map(|(resource, _)| same(resource));
    if let Some((other, _)) = named.iter().find(|(resource, _)| Some(same(resource)) != first) {
        return Some(format!(
            "Microsoft issues a token for one resource, and the scopes name {} and {other}: {LEAVE}",
            first.unwrap_or_default()
        ));
    }
    let mail = [Protocol::Smtp, Protocol::Imap, Protocol::Pop3].map(permission);
    if !named.iter().any(|(_, permission)| mail.contains(permission)) {
        return Some(format!("none of the scopes is for SMTP, IMAP or POP3: {LEAVE}"));
    }
    (grant == GrantType::DeviceCode && !scopes.iter().any(|scope| scope == OFFLINE))
        .then(|| format!("without the scope {OFFLINE} a sign-in leaves no refresh token: add it, or {LEAVE}"))
}

/// Splits a scope into the host of the resource and the permission. A permission without a resource belongs to
/// Microsoft Graph.
fn split(scope: &str) -> (&str, &str) {
    let rest = scope.strip_prefix("https://").unwrap_or(scope);
    rest.split_once('/').map_or(("", rest), |(host, permission)| (host, permission.trim_start_matches('/')))
}

fn is_graph(resource: &str) -> bool {
    resource.is_empty() || resource.starts_with("graph.microsoft.") || resource == "microsoftgraph.chinacloudapi.cn"
}

/// Maps both names of Exchange Online in the public cloud to one name.
fn same(resource: &str) -> &str {
    if resource == "outlook.office365.com" { "outlook.office.com" } else { resource }
}
