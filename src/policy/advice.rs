//! What is told about a refusal: what is wrong, where, and the command or field that mends it.

use serde_json::json;

use super::commands::Subject;
use crate::{
    api::{Reason, grant::GrantType},
    oauth::Refusal,
};

/// Where an attempt was made from.
#[derive(Clone, Debug)]
pub struct Place {
    /// The provider, such as `MailProvider shop/m365`.
    pub provider: String,
    /// The same for `kubectl`.
    pub subject: Subject,
    /// The client's id.
    pub client_id: String,
    /// Whose scopes were asked for: the credential's or the provider's.
    pub scopes: Subject,
    /// Namespace, name and key of the client secret that was sent, if one was.
    pub secret: Option<(String, String, String)>,
    /// The grant that was asked for.
    pub grant: GrantType,
    /// The credential for `kubectl`.
    pub credential: Subject,
    /// The account that logs in.
    pub mailbox: String,
    /// The command by which a person signs in anew.
    pub sign_in: String,
    /// The federated identity that was sent, if one was.
    pub federated: Option<Federated>,
}

/// A federated identity, as its assertion names it: the provider must trust just these.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Federated {
    /// `iss`.
    pub issuer: String,
    /// `sub`.
    pub subject: String,
    /// `aud`.
    pub audience: String,
}

/// The message for a refusal. What the provider's own code says goes before what the reason says in general.
pub fn explain(refusal: &Refusal, place: &Place) -> String {
    let mend = match refusal.advice {
        Some(advice) => filled(advice, place),
        None => general(refusal.reason, place),
    };
    [sentence(&refusal.what), sentence(&mend)].join(" ").trim_end().to_owned()
}

/// One sentence, with its full stop.
fn sentence(text: &str) -> String {
    match text.is_empty() || text.ends_with('.') {
        true => text.to_owned(),
        false => format!("{text}."),
    }
}

/// Fills an advice of `providers`: `{put}` is the command that puts another client secret into its place, `{merge}` the
/// command that patches the provider (fields follow), `{client}` the client's id.
fn filled(advice: &str, place: &Place) -> String {
    advice
        .replace("{put}", &put(place))
        .replace("{merge}", &place.subject.merging())
        .replace("{client}", &place.client_id)
}

fn put(place: &Place) -> String {
    match &place.secret {
        Some((namespace, name, key)) => Subject::secret(namespace, name).put(key, "<client secret>"),
        None => place.subject.command("edit"),
    }
}

/// What a reason asks for at any provider.
fn general(reason: Reason, place: &Place) -> String {
    let Place { provider, subject, secret, .. } = place;
    match reason {
        Reason::InvalidClient | Reason::ClientSecretExpired => {
            let id = subject.merge(&json!({"spec": {"client": {"id": "<client id>"}}}));
            match secret {
                Some(_) => format!(
                    "The client secret or the client id is not right. Put the right secret in place with `{}`, or the \
                     right id into the {provider} with `{id}`",
                    put(place)
                ),
                None => format!(
                    "The client id is not right, or the client may not do without a secret: correct the {provider} with \
                     `{id}`, or name a secret in its spec.client.authentication"
                ),
            }
        }
        Reason::InvalidScope => format!(
            "Ask for scopes that the provider knows with `{}`; an empty list asks for its defaults",
            place.scopes.merge(&json!({"spec": {"scopes": ["<scope>"]}}))
        ),
        Reason::InvalidGrant => format!("The {provider} does not accept this grant: see its own log for why"),
        Reason::ConsentRequired => {
            format!("An administrator has to consent at the provider to what the {provider} asks for")
        }
        Reason::AuthorizationRequired => "A person has to sign in at the provider".to_owned(),
        Reason::Throttled => {
            "The provider wants fewer requests: the next is sent at status.nextAttemptTime, nothing needs to be done"
                .to_owned()
        }
        Reason::ProviderUnavailable => "It is tried again by itself".to_owned(),
        Reason::MalformedResponse => format!(
            "It is tried again by itself. If it stays so, see whether status.tokenURL of the {provider} is the token \
             endpoint: `{} -o jsonpath='{{.status.tokenURL}}'`",
            subject.command("get")
        ),
        Reason::RequestRefused => {
            format!(
                "See the provider's documentation for this code, and correct the {provider} with `{}`",
                subject.command("edit")
            )
        }
        // Egress, TLS and writes say it all in `what`.
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::credential::ProviderKind;

    fn place() -> Place {
        let subject = Subject::provider(ProviderKind::MailProvider, "shop", "m365");
        Place {
            provider: "MailProvider shop/m365".into(),
            scopes: subject.clone(),
            subject,
            client_id: "app-id".into(),
            secret: Some(("shop".into(), "m365-app".into(), "client-secret".into())),
            grant: GrantType::ClientCredentials,
            credential: Subject::secret("shop", "billing"),
            mailbox: "billing@example.org".into(),
            sign_in: "sign in".into(),
            federated: None,
        }
    }

    #[test]
    fn a_wrong_secret_is_told_with_the_command_that_replaces_it() {
        let text = explain(&Refusal::new(Reason::InvalidClient, "the provider answered invalid_client"), &place());
        assert!(text.contains(
            r#"`kubectl -n shop patch secret m365-app --type merge -p '{"stringData":{"client-secret":"<client secret>"}}'`"#
        ));
    }

    #[test]
    fn the_providers_own_advice_is_filled_in() {
        let mut refusal = Refusal::new(Reason::InvalidClient, "no");
        refusal.advice = Some("Do `{put}`, `{merge} '{}'` or `az --id {client}`");
        let text = explain(&refusal, &place());
        assert!(text.starts_with("no. Do `kubectl -n shop patch secret m365-app "), "{text}");
        assert!(
            text.ends_with("`kubectl -n shop patch mailprovider m365 --type merge -p '{}'` or `az --id app-id`."),
            "{text}"
        );
    }

    #[test]
    fn no_message_ends_in_the_air() {
        for reason in Reason::ALL {
            let text = explain(&Refusal::new(*reason, "what"), &place());
            assert!(text.starts_with("what.") && text.ends_with('.') && !text.contains(".."), "{text}");
            assert_eq!(text.matches('`').count() % 2, 0, "{text}");
        }
    }
}
