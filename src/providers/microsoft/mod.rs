//! Microsoft Entra ID and Exchange Online, in Microsoft's four clouds.
//!
//! Sources: "Authenticate an IMAP, POP or SMTP connection using OAuth" (Exchange documentation), "National cloud
//! deployments" and "Microsoft Entra authentication and authorization error codes" (identity platform documentation).

use k8s_openapi::jiff::SignedDuration;

use super::{Case, Profile, TokenSource};
use crate::{
    api::{
        Reason,
        credential::Protocol,
        grant::GrantType,
        provider::{Cloud, Microsoft, ProviderSpec, Security, Server, Servers},
    },
    oauth::{Refusal, discovery::Endpoints},
};

struct CloudFacts {
    /// Host of the authority.
    authority: &'static str,
    /// Host of the resource that app-only scopes name.
    resource: &'static str,
    /// Hosts for SMTP, IMAP, POP3; `None` where Microsoft publishes none.
    mail: Option<[&'static str; 3]>,
}

const fn facts(cloud: Cloud) -> CloudFacts {
    match cloud {
        Cloud::Public => CloudFacts {
            authority: "login.microsoftonline.com",
            resource: "outlook.office365.com",
            mail: Some(["smtp.office365.com", "outlook.office365.com", "outlook.office365.com"]),
        },
        Cloud::USGov => CloudFacts {
            authority: "login.microsoftonline.us",
            resource: "outlook.office365.us",
            mail: Some(["smtp.office365.us", "outlook.office365.us", "outlook.office365.us"]),
        },
        Cloud::USGovDoD => {
            CloudFacts { authority: "login.microsoftonline.us", resource: "outlook.office365.us", mail: None }
        }
        Cloud::China => CloudFacts {
            authority: "login.partner.microsoftonline.cn",
            resource: "partner.outlook.cn",
            mail: Some(["smtp.partner.outlook.cn", "partner.outlook.cn", "partner.outlook.cn"]),
        },
    }
}

/// A refresh token that is not used for 90 days ends ("Refresh tokens in the Microsoft identity platform").
const IDLE_LIFE: SignedDuration = SignedDuration::from_hours(90 * 24);

/// The profile of a tenant; servers in the spec win over the preset's.
pub(super) fn profile(settings: &Microsoft, servers: &Servers) -> Profile {
    let facts = facts(settings.cloud);
    let server = |given: &Option<Server>, at: usize, port, security| {
        given.clone().or_else(|| {
            let host = (*facts.mail?.get(at)?).to_owned();
            Some(Server { host, port, security: Some(security) })
        })
    };
    Profile {
        preset: "microsoft",
        source: TokenSource::Known(Endpoints {
            token_url: format!("https://{}/{}/oauth2/v2.0/token", facts.authority, settings.tenant_id),
            device_authorization_url: Some(format!(
                "https://{}/{}/oauth2/v2.0/devicecode",
                facts.authority, settings.tenant_id
            )),
            revocation_url: None,
            authorization_url: Some(format!(
                "https://{}/{}/oauth2/v2.0/authorize",
                facts.authority, settings.tenant_id
            )),
        }),
        servers: Servers {
            smtp: server(&servers.smtp, 0, 587, Security::StartTls),
            imap: server(&servers.imap, 1, 993, Security::Tls),
            pop3: server(&servers.pop3, 2, 995, Security::Tls),
        },
        grants: &[GrantType::ClientCredentials, GrantType::RefreshToken, GrantType::DeviceCode],
        guid_is_no_secret: true,
        scopes,
        objection,
        refine,
        unsuitable: |_, _, _, _| None,
        idle_life: Some(IDLE_LIFE),
    }
}

fn scopes(spec: &ProviderSpec, grant: GrantType, _: &[Protocol]) -> Vec<String> {
    let cloud = spec.microsoft.as_ref().map(|settings| settings.cloud).unwrap_or_default();
    match grant {
        GrantType::ClientCredentials => vec![format!("https://{}/.default", facts(cloud).resource)],
        _ => vec![],
    }
}

fn objection(spec: &ProviderSpec, grant: GrantType, scopes: &[String]) -> Option<String> {
    let settings = spec.microsoft.as_ref()?;
    match grant {
        GrantType::ClientCredentials => {
            let tenant = settings.tenant_id.to_ascii_lowercase();
            if ["common", "consumers", "organizations"].contains(&tenant.as_str()) {
                return Some(format!(
                    "app-only tokens come from one tenant, and {tenant} is none: set spec.microsoft.tenantID of the \
                     provider to the tenant's id or domain"
                ));
            }
            let wanted = format!("https://{}/.default", facts(settings.cloud).resource);
            (scopes != [wanted.as_str()]).then(|| {
                format!(
                    "app-only tokens for mail have exactly the scope {wanted}: leave scopes empty, or set just that"
                )
            })
        }
        _ => None,
    }
}

/// What an AADSTS code says beyond the OAuth error. Microsoft may change codes without notice, so they only choose
/// between reasons and words; a code that is not here leaves the OAuth error's meaning.
fn refine(refusal: &mut Refusal, _: &Case) {
    let Some(code) = refusal.provider_code.as_deref().and_then(|code| code.strip_prefix("AADSTS")) else { return };
    let Some((_, reason, advice)) = CODES.iter().find(|(codes, ..)| codes.contains(&code)) else { return };
    refusal.reason = *reason;
    refusal.advice = (!advice.is_empty()).then_some(advice);
}

/// Codes, what they mean here, and what to do beyond what the reason itself says.
const CODES: &[(&[&str], Reason, &str)] = &[
    (&["50196", "90055"], Reason::Throttled, ""),
    (
        &[
            "50033", "50087", "50088", "70012", "80001", "80002", "80005", "80014", "90006", "90012", "90024", "90033",
            "90090",
        ],
        Reason::ProviderUnavailable,
        "",
    ),
    (
        &["7000215"],
        Reason::InvalidClient,
        "The client secret is not right: put its Value (Entra shows it once, beside the Secret ID, which is a GUID) in \
         place with `{put}`; `az ad app credential reset --id {client} --append` makes a new one",
    ),
    (
        &["7000222"],
        Reason::ClientSecretExpired,
        "The client secret has ended: put a new one in place with `{put}`; `az ad app credential reset --id {client} \
         --append` makes one",
    ),
    (
        &["700016"],
        Reason::InvalidClient,
        "The tenant does not know spec.client.id: set it to the Application (client) ID with `{merge} \
         '{\"spec\":{\"client\":{\"id\":\"<application id>\"}}}'`; if it is right, spec.microsoft.tenantID is not the \
         tenant that the app is registered in",
    ),
    (
        &["90002"],
        Reason::RequestRefused,
        "There is no such tenant: name the right one with `{merge} \
         '{\"spec\":{\"microsoft\":{\"tenantID\":\"<tenant id or domain>\"}}}'`",
    ),
    (
        &["90038", "900382", "900432"],
        Reason::InvalidClient,
        "The tenant is in another of Microsoft's clouds (USGov, USGovDoD or China): name it with `{merge} \
         '{\"spec\":{\"microsoft\":{\"cloud\":\"<cloud>\"}}}'`",
    ),
    (
        &["70001", "7000112"],
        Reason::InvalidClient,
        "The application is disabled in this tenant: enable it with `az ad sp update --id {client} --set \
         accountEnabled=true`",
    ),
    (
        &["700025"],
        Reason::InvalidClient,
        "The application is registered as a public client: empty the list with `{merge} \
         '{\"spec\":{\"client\":{\"authentication\":[]}}}'`, or change the registration",
    ),
    (
        &["7000218"],
        Reason::InvalidClient,
        "The application needs a client secret: name one in spec.client.authentication of the provider",
    ),
    (&["70011", "28002", "700022"], Reason::InvalidScope, ""),
    (
        &["500011"],
        Reason::InvalidScope,
        "The tenant has no service principal for Exchange Online: check spec.microsoft.cloud of the provider, and that \
         the tenant has an Exchange licence",
    ),
    (
        &["650056", "650057", "65001", "90094"],
        Reason::ConsentRequired,
        "Add the application permission SMTP.SendAsApp (IMAP.AccessAsApp, POP.AccessAsApp) of Office 365 Exchange Online \
         to the app, then `az ad app permission admin-consent --id {client}`",
    ),
    (
        &["9001023", "50194", "90130"],
        Reason::RequestRefused,
        "App-only tokens come from one tenant: name it with `{merge} \
         '{\"spec\":{\"microsoft\":{\"tenantID\":\"<tenant id or domain>\"}}}'`",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(tenant: &str, cloud: Cloud) -> ProviderSpec {
        serde_json::from_value(serde_json::json!({
            "microsoft": {"tenantID": tenant, "cloud": cloud},
            "client": {"id": "app"},
        }))
        .unwrap()
    }

    #[test]
    fn each_cloud_has_its_own_authority_scope_and_servers() {
        let table = [
            (
                Cloud::Public,
                "login.microsoftonline.com",
                "https://outlook.office365.com/.default",
                Some("smtp.office365.com"),
            ),
            (
                Cloud::USGov,
                "login.microsoftonline.us",
                "https://outlook.office365.us/.default",
                Some("smtp.office365.us"),
            ),
            (Cloud::USGovDoD, "login.microsoftonline.us", "https://outlook.office365.us/.default", None),
            (
                Cloud::China,
                "login.partner.microsoftonline.cn",
                "https://partner.outlook.cn/.default",
                Some("smtp.partner.outlook.cn"),
            ),
        ];
        for (cloud, authority, scope, smtp) in table {
            let spec = spec("contoso.com", cloud);
            let profile = super::super::profile(&spec).unwrap();
            assert_eq!(profile.source.identity(), format!("https://{authority}/contoso.com/oauth2/v2.0/token"));
            assert_eq!((profile.scopes)(&spec, GrantType::ClientCredentials, &[Protocol::Smtp]), [scope]);
            assert_eq!(profile.server(Protocol::Smtp).map(|server| server.host.as_str()), smtp);
        }
    }

    #[test]
    fn app_only_needs_a_tenant_and_the_default_scope() {
        let default = ["https://outlook.office365.com/.default".to_owned()];
        let object = |tenant: &str, scopes: &[String]| {
            objection(&spec(tenant, Cloud::Public), GrantType::ClientCredentials, scopes)
        };
        assert_eq!(object("contoso.com", &default), None);
        assert!(object("Common", &default).unwrap().contains("spec.microsoft.tenantID"));
        assert!(
            object("contoso.com", &["https://graph.microsoft.com/.default".into()])
                .unwrap()
                .contains("outlook.office365.com")
        );
    }

    const CASE: Case = Case { grant: GrantType::ClientCredentials, grant_age: None };

    #[test]
    fn a_code_refines_and_an_unknown_one_does_not() {
        let mut refusal = Refusal::new(Reason::InvalidGrant, "x");
        refusal.provider_code = Some("AADSTS50196".into());
        refine(&mut refusal, &CASE);
        assert_eq!(refusal.reason, Reason::Throttled);
        let mut refusal = Refusal::new(Reason::InvalidClient, "x");
        refusal.provider_code = Some("AADSTS424242".into());
        refine(&mut refusal, &CASE);
        assert_eq!(refusal.reason, Reason::InvalidClient);
    }
}
