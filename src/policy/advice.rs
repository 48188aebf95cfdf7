//! What is told about a refusal: what is wrong, where, and the command or field that mends it.

use crate::{api::Reason, oauth::Refusal};

/// Where an attempt was made from.
#[derive(Clone, Debug)]
pub struct Place {
    /// The provider, such as `MailProvider shop/m365`.
    pub provider: String,
    /// Its name for `kubectl`, such as `-n shop mailprovider m365`.
    pub provider_command: String,
    /// Namespace, name and key of the client secret that was sent, if one was.
    pub secret: Option<(String, String, String)>,
}

/// The message for a refusal.
pub fn explain(refusal: &Refusal, place: &Place) -> String {
    let advice = refusal.advice.map(str::to_owned).unwrap_or_default();
    let parts = [sentence(&refusal.what), sentence(&general(refusal, place)), advice];
    parts.iter().filter(|part| !part.is_empty()).map(String::as_str).collect::<Vec<_>>().join(" ")
}

/// One sentence, with its full stop.
fn sentence(text: &str) -> String {
    match text.is_empty() || text.ends_with('.') {
        true => text.to_owned(),
        false => format!("{text}."),
    }
}

/// What a reason asks for at any provider.
fn general(refusal: &Refusal, place: &Place) -> String {
    let Place { provider, provider_command, secret } = place;
    match refusal.reason {
        Reason::InvalidClient | Reason::ClientSecretExpired => match secret {
            Some((namespace, name, key)) => format!(
                "The id in spec.client.id of the {provider}, or the secret that it was sent with, is not right: put the \
                 client secret into the Secret with `kubectl -n {namespace} patch secret {name} --type merge -p \
                 '{{\"stringData\":{{\"{key}\":\"<client secret>\"}}}}'`, or the id with `kubectl edit {provider_command}`"
            ),
            None => format!("Check spec.client of the {provider} with `kubectl edit {provider_command}`"),
        },
        Reason::InvalidScope => {
            format!("Correct spec.scopes of the credential or of the {provider} (empty: the preset's)")
        }
        Reason::InvalidGrant => format!("The {provider} does not accept this grant: see its own log for why"),
        Reason::ConsentRequired => {
            format!("An administrator has to consent at the provider to what the {provider} asks for")
        }
        Reason::AuthorizationRequired => "A person has to sign in at the provider".to_owned(),
        Reason::Throttled => {
            "It asks for fewer requests: the next attempt is made when it allows, nothing needs to be done".to_owned()
        }
        Reason::ProviderUnavailable => "It is tried again by itself".to_owned(),
        Reason::MalformedResponse => {
            format!("Check that the {provider} names the token endpoint: `kubectl get {provider_command} -o yaml`")
        }
        Reason::RequestRefused => format!("Check the {provider} with `kubectl edit {provider_command}`"),
        // Egress, TLS and writes say it all in `what`.
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_secret_is_told_with_the_command_that_replaces_it() {
        let place = Place {
            provider: "MailProvider shop/m365".into(),
            provider_command: "-n shop mailprovider m365".into(),
            secret: Some(("shop".into(), "m365-app".into(), "client-secret".into())),
        };
        let text = explain(&Refusal::new(Reason::InvalidClient, "the provider answered invalid_client"), &place);
        assert!(text.contains(
            r#"`kubectl -n shop patch secret m365-app --type merge -p '{"stringData":{"client-secret":"<client secret>"}}'`"#
        ));
    }
}
