//! The claims of Exchange Online's tokens.

use crate::{
    api::{credential::Protocol, grant::GrantType, provider::ProviderSpec},
    oauth::Claims,
};

/// Application id of Office 365 Exchange Online, the same in every tenant.
const EXCHANGE: &str = "00000002-0000-0ff1-ce00-000000000000";

/// Why mail servers will refuse a token with these claims. Entra ID also issues app-only tokens without any role.
pub(super) fn unsuitable(
    claims: &Claims,
    spec: &ProviderSpec,
    grant: GrantType,
    protocols: &[Protocol],
) -> Option<String> {
    let audiences = claims.words("aud");
    if !audiences.is_empty() && !audiences.iter().any(|audience| is_exchange(audience)) {
        return Some(
            "the token is not for Exchange Online, so mail servers refuse it: leave spec.scopes of the credential and of \
             the provider empty"
                .to_owned(),
        );
    }
    let (claim, name): (_, fn(Protocol) -> &'static str) = match grant {
        GrantType::ClientCredentials => ("roles", super::role),
        _ => ("scp", super::permission),
    };
    let held = claims.words(claim);
    let missing: Vec<_> =
        protocols.iter().map(|protocol| name(*protocol)).filter(|name| !held.contains(name)).collect();
    if missing.is_empty() {
        return None;
    }
    let client = client(spec);
    let fix = match grant {
        GrantType::ClientCredentials => format!(
            "`for role in {}; do az ad app permission add --id {client} --api {EXCHANGE} --api-permissions \"$(az ad sp \
             show --id {EXCHANGE} --query \"appRoles[?value=='$role'].id\" -o tsv)=Role\"; done; az ad app permission \
             admin-consent --id {client}`, then a new token: roles are written into it",
            missing.join(" ")
        ),
        _ => {
            "a new sign-in that asks for them: leave spec.scopes of the credential and of the provider empty".to_owned()
        }
    };
    Some(format!(
        "the token lacks {}, without which the mail server refuses the login. It takes {fix}",
        missing.join(" and ")
    ))
}

/// Whether an audience is Exchange Online: its URL in any cloud, or its application id.
fn is_exchange(audience: &str) -> bool {
    let host = audience.strip_prefix("https://").unwrap_or_default();
    audience == EXCHANGE || host.starts_with("outlook") || host.starts_with("partner.outlook.")
}

/// The client's id, or a placeholder for an id that a shell would interpret.
fn client(spec: &ProviderSpec) -> &str {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    if spec.client.id.bytes().all(plain) { &spec.client.id } else { "<application id>" }
}

#[cfg(test)]
mod tests {
    use GrantType::{ClientCredentials, RefreshToken};
    use Protocol::{Imap, Pop3, Smtp};
    use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
    use serde_json::{Value, json};

    use super::*;

    fn message(claims: &Value, grant: GrantType, protocols: &[Protocol]) -> Option<String> {
        let spec = serde_json::from_value(json!({"microsoft": {"tenantID": "t"}, "client": {"id": "app-1"}})).unwrap();
        let token = format!("e30.{}.c2ln", BASE64_URL_SAFE_NO_PAD.encode(claims.to_string()));
        unsuitable(&Claims::read(&token).unwrap(), &spec, grant, protocols)
    }

    #[test]
    fn a_suitable_token_has_no_message() {
        for (claims, grant, protocols) in [
            (
                json!({"aud": "https://outlook.office365.com", "roles": ["SMTP.SendAsApp", "IMAP.AccessAsApp"]}),
                ClientCredentials,
                &[Smtp, Imap][..],
            ),
            (json!({"aud": EXCHANGE, "roles": ["POP.AccessAsApp"]}), ClientCredentials, &[Pop3]),
            (json!({"aud": "https://outlook.office.com/", "scp": "User.Read SMTP.Send"}), RefreshToken, &[Smtp]),
            (json!({"aud": "https://partner.outlook.cn", "scp": "IMAP.AccessAsUser.All"}), RefreshToken, &[Imap]),
            (json!({"roles": ["SMTP.SendAsApp"]}), ClientCredentials, &[Smtp]),
        ] {
            assert_eq!(message(&claims, grant, protocols), None, "{claims}");
        }
    }

    #[test]
    fn a_token_without_a_role_or_for_another_service_has_a_message() {
        let exchange = "https://outlook.office365.com";
        for (claims, grant, protocols, part) in [
            (json!({"aud": exchange}), ClientCredentials, &[Smtp][..], "az ad app permission admin-consent --id app-1"),
            (
                json!({"aud": exchange, "roles": ["SMTP.SendAsApp"]}),
                ClientCredentials,
                &[Smtp, Imap, Pop3],
                "lacks IMAP.AccessAsApp and POP.AccessAsApp",
            ),
            (json!({"aud": exchange, "scp": "IMAP.AccessAsUser.All"}), RefreshToken, &[Smtp], "SMTP.Send"),
            (
                json!({"aud": "https://graph.microsoft.com", "scp": "SMTP.Send"}),
                RefreshToken,
                &[Smtp],
                "not for Exchange Online",
            ),
            (json!({"aud": "00000003-0000-0000-c000-000000000000"}), ClientCredentials, &[Smtp], "not for Exchange"),
        ] {
            let message = message(&claims, grant, protocols).unwrap();
            assert!(message.contains(part), "{message}");
        }
        let hostile = message(&json!({"aud": "`reboot`", "roles": ["`reboot`"]}), ClientCredentials, &[Smtp]).unwrap();
        assert!(!hostile.contains("reboot"), "{hostile}");
    }
}
