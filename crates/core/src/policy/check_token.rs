//! Checks of an issued token: the account that signed in, and the subject in the token's claims. Pure.

use std::collections::BTreeSet;

use crate::{
    api::{Reason, grant::GrantType},
    oauth::{Claims, Refusal, claims},
    providers::{Profile, account},
};

/// Refuses a token if the `names` in the response show that another account than `expected` signed in.
///
/// # Errors
/// The refusal names the account that signed in.
pub fn check_account(expected: &str, names: &[String], profile: &Profile) -> Result<(), Refusal> {
    if !profile.is_another_account(expected, names) {
        return Ok(());
    }
    // The message shows no name that could mislead a reader.
    let shown: BTreeSet<_> = account::comparable(expected, names).filter(|name| claims::is_shown(name)).collect();
    let who = if shown.is_empty() { "another account".to_owned() } else { Vec::from_iter(shown).join(", ") };
    let what = format!(
        "{who} signed in, and {expected} was expected. If both are names of one account, write the name that signed in into \
         spec.mailbox.authenticateAs"
    );
    Err(Refusal::new(Reason::AuthorizationRequired, what))
}

/// The id of the token's subject, for the Secret: the id of a service principal at Microsoft, which is a GUID. A user has
/// no use for the ids of users, or for ids of another form.
pub fn object_id(grant: GrantType, claims: &Claims) -> Option<&str> {
    let is_guid = |id: &&str| id.len() == 36 && id.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    claims.text("oid").filter(|_| grant == GrantType::ClientCredentials).filter(is_guid)
}

#[cfg(test)]
mod tests {
    use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
    use serde_json::json;

    use super::*;
    use crate::{api::provider::ProviderSpec, providers};

    #[test]
    fn another_account_is_refused_and_named_where_its_name_can_be_shown() {
        let spec = json!({"oauth2": {"tokenURL": "https://x/t"}, "client": {"id": "c"}});
        let spec: ProviderSpec = serde_json::from_value(spec).unwrap();
        let profile = providers::profile(&spec).unwrap();
        // The names in the response, and who signed in.
        let table: [(&[&str], Option<&str>); 8] = [
            (&[], None),
            (&["Billing@Example.org"], None),
            (&["other@example.org", "billing@example.org"], None),
            // A plain user name proves nothing about an address.
            (&["svc"], None),
            (&["other@example.org"], Some("other@example.org")),
            (&["z@example.org", "a@example.org", "z@example.org"], Some("a@example.org, z@example.org")),
            (&["$(id)@example.org"], Some("another account")),
            (&["$(id)@example.org", "svc", "a@example.org"], Some("a@example.org")),
        ];
        for (names, who) in table {
            let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
            let refusal = check_account("billing@example.org", &names, &profile).err();
            let found = refusal.map(|refusal| {
                assert_eq!(refusal.reason, Reason::AuthorizationRequired);
                refusal.what
            });
            let expected = who.map(|who| {
                format!(
                    "{who} signed in, and billing@example.org was expected. If both are names of one account, write the name \
                     that signed in into spec.mailbox.authenticateAs"
                )
            });
            assert_eq!(found, expected, "{names:?}");
        }
    }

    #[test]
    fn only_the_guid_of_a_service_principal_is_recorded() {
        const GUID: &str = "7d5e1b5e-0000-4000-8000-0000000000aF";
        let table = [
            (GrantType::ClientCredentials, json!({"oid": GUID}), Some(GUID)),
            (GrantType::RefreshToken, json!({"oid": GUID}), None),
            (GrantType::ClientCredentials, json!({"sub": GUID}), None),
            (GrantType::ClientCredentials, json!({"oid": "7d5e1b5e"}), None),
            (GrantType::ClientCredentials, json!({"oid": "7d5e1b5e-0000-4000-8000-00000000000g"}), None),
        ];
        for (grant, claims, expected) in table {
            let token = format!("e30.{}.", BASE64_URL_SAFE_NO_PAD.encode(claims.to_string()));
            let claims = Claims::read(&token).unwrap();
            assert_eq!(object_id(grant, &claims), expected, "{grant:?} {claims:?}");
        }
    }
}
