//! Messages for refusals: what is wrong, where, and the command or field that fixes it.

use serde_json::json;

use super::commands::{KubectlObject, quoted, word};
use crate::{
    api::{Reason, grant::GrantType},
    oauth::Refusal,
};

/// Text about the broker's next action after a transient failure.
pub const AGAIN: &str = "The broker tries again";

/// The names and commands that the advice about a refused request contains.
#[derive(Clone, Debug)]
pub struct AdviceContext {
    /// The provider, such as `MailProvider shop/m365`.
    pub provider: String,
    /// The provider's object for `kubectl`.
    pub subject: KubectlObject,
    /// The client's id at the provider.
    pub client_id: String,
    /// The object whose spec has the requested scopes: the credential or the provider.
    pub scopes: KubectlObject,
    /// Namespace, name and key of the client secret or key file that the client used.
    pub secret: Option<(String, String, String)>,
    /// Whether the broker sent the client secret in the Authorization header (`method: Basic`).
    pub basic: bool,
    /// The OAuth grant type of the attempt.
    pub grant: GrantType,
    /// The credential's object for `kubectl`.
    pub credential: KubectlObject,
    /// The account that logs in to the mail servers.
    pub mailbox: String,
    /// The command with which the user signs in again.
    pub sign_in: String,
    /// The federated identity of the request, if any.
    pub federated: Option<Federated>,
    /// Text about the next action after a transient failure: [`AGAIN`], or the user's action.
    pub again: &'static str,
}

/// The claims of a federated identity's assertion. The provider must trust exactly these claims.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Federated {
    /// The claim `iss` of the assertion.
    pub issuer: String,
    /// The claim `sub` of the assertion.
    pub subject: String,
    /// The claim `aud` of the assertion.
    pub audience: String,
}

/// The message for a refusal. The advice for the provider's own code comes before the general advice for the reason.
pub fn explain(refusal: &Refusal, context: &AdviceContext) -> String {
    let mend = match refusal.advice {
        Some(advice) => filled(advice, context),
        None if refusal.unknown_code => unknown(context),
        None => general(refusal.reason, context),
    };
    [sentence(&refusal.what), sentence(&mend)].join(" ").trim_end().to_owned()
}

/// Ends a non-empty text with a full stop.
fn sentence(text: &str) -> String {
    match text.is_empty() || text.ends_with('.') {
        true => text.to_owned(),
        false => format!("{text}."),
    }
}

/// Fills the `{placeholders}` of an advice from `providers`. Other braces stay unchanged.
fn filled(advice: &str, context: &AdviceContext) -> String {
    let mut text = String::new();
    let mut rest = advice;
    while let Some((before, after)) = rest.split_once('{') {
        text += before;
        let filling = after.split_once('}').and_then(|(name, rest)| Some((filling(name, context)?, rest)));
        match filling {
            Some((value, after)) => {
                text += &value;
                rest = after;
            }
            None => {
                text.push('{');
                rest = after;
            }
        }
    }
    text + rest
}

/// The value of a placeholder. `None`: no placeholder has this name.
fn filling(name: &str, context: &AdviceContext) -> Option<String> {
    let federated = |part: fn(&Federated) -> &String, unknown: &str| {
        context.federated.as_ref().map_or_else(|| unknown.to_owned(), |federated| part(federated).clone())
    };
    Some(match name {
        // The command that stores another client secret.
        "put" => put(context),
        // The command that stores another key file.
        "put_file" => match &context.secret {
            Some((namespace, name, key)) => KubectlObject::secret(namespace, name).put_source(key),
            None => context.subject.command("edit"),
        },
        // The command that patches the provider, without the fields.
        "merge" => context.subject.merging(),
        // The command that shows the provider.
        "get" => context.subject.command("get"),
        "client" => word(&context.client_id),
        "mailbox" => word(&context.mailbox),
        // The command with which the user signs in again.
        "sign_in" => context.sign_in.clone(),
        "issuer" => federated(|federated| &federated.issuer, "<issuer>"),
        "subject" => federated(|federated| &federated.subject, "<subject>"),
        "audience" => federated(|federated| &federated.audience, "<audience>"),
        // The full name of Google's workload identity provider, for gcloud.
        "pool_provider" => workload_identity(&federated(|federated| &federated.audience, "<provider>")).0,
        // The federated identity in the form of Google's IAM.
        "principal" => {
            let (_, pool) = workload_identity(&federated(|federated| &federated.audience, "<provider>"));
            let subject = federated(|federated| &federated.subject, "<subject>");
            format!("principal://iam.googleapis.com/{pool}/subject/{subject}")
        }
        // The command that makes Microsoft trust the federated identity.
        "trust" => trust(context),
        _ => return None,
    })
}

/// The names of Google's workload identity provider and of its pool, read from an assertion's audience.
fn workload_identity(audience: &str) -> (String, String) {
    let provider = audience.strip_prefix("//iam.googleapis.com/").unwrap_or(audience);
    let pool = provider.split_once("/providers/").map_or(provider, |(pool, _)| pool);
    (word(provider), pool.to_owned())
}

fn put(context: &AdviceContext) -> String {
    match &context.secret {
        Some((namespace, name, key)) => KubectlObject::secret(namespace, name).put(key, "<client secret>"),
        None => context.subject.command("edit"),
    }
}

fn trust(context: &AdviceContext) -> String {
    let Federated { issuer, subject, audience } = context.federated.clone().unwrap_or_else(|| Federated {
        issuer: "<issuer>".to_owned(),
        subject: "<subject>".to_owned(),
        audience: "<audience>".to_owned(),
    });
    // Entra requires a unique name of letters, digits and dashes for each federated credential.
    let account = subject.strip_prefix("system:serviceaccount:").unwrap_or("mail-token-broker");
    let name: String = account.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(120).collect();
    let fields = json!({"name": name, "issuer": issuer, "subject": subject, "audiences": [audience]});
    format!(
        "az ad app federated-credential create --id {} --parameters {}",
        word(&context.client_id),
        quoted(&fields.to_string())
    )
}

/// The advice for a refusal that the broker does not know. The refusal may be transient.
fn unknown(context: &AdviceContext) -> String {
    format!(
        "The broker does not know this response. It sends the request again after 1 and 5 minutes, then after 15 minutes \
         to 6 hours. If the error persists, see the provider's documentation, and correct the {} with `{}`",
        context.provider,
        context.subject.command("edit")
    )
}

/// The general advice for a reason.
fn general(reason: Reason, context: &AdviceContext) -> String {
    let AdviceContext { provider, subject, sign_in, again, .. } = context;
    match reason {
        Reason::InvalidClient | Reason::ClientSecretExpired => client(context),
        Reason::InvalidScope => format!(
            "Ask for scopes that the provider knows with `{}`; an empty list asks for its defaults",
            context.scopes.merge(&json!({"spec": {"scopes": ["<scope>"]}}))
        ),
        Reason::InvalidGrant => grant(context),
        Reason::ConsentRequired if context.grant.is_delegated() => format!(
            "Neither the user nor an administrator has consented to what the {provider} asks for: sign in with `{sign_in}` \
             and accept, or have an administrator consent at the provider"
        ),
        Reason::ConsentRequired => {
            format!("An administrator must consent at the provider to what the {provider} asks for")
        }
        Reason::AuthorizationRequired if context.grant.is_delegated() => {
            format!("A user must sign in as {}: `{sign_in}`", context.mailbox)
        }
        Reason::AuthorizationRequired => format!(
            "The provider requires a user to sign in, and the grant {} has no user: exempt the client of the {provider} \
             from the policy that requires it, or use refreshToken or deviceCode",
            context.grant.as_str()
        ),
        Reason::FederationMismatch => {
            let [issuer, subject, audience] =
                ["issuer", "subject", "audience"].map(|name| filling(name, context).unwrap_or_default());
            format!(
                "Make the provider trust tokens with exactly the issuer {issuer}, the subject {subject} and the audience \
                 {audience} for the client {}. A change may take some minutes",
                context.client_id
            )
        }
        Reason::ClockSkew => format!(
            "Correct the clock that is wrong, usually that of the broker's node: `timedatectl` there shows whether NTP \
             synchronises the clock, and `timedatectl set-ntp true` turns NTP on. {again}"
        ),
        Reason::Throttled => {
            "The provider limits requests: the next is sent at status.nextAttemptTime, and no action is needed"
                .to_owned()
        }
        Reason::ProviderUnavailable => (*again).to_owned(),
        Reason::MalformedResponse => format!(
            "{again}. If the error persists, see whether status.tokenURL of the {provider} is the token \
             endpoint: `{} -o jsonpath='{{.status.tokenURL}}'`",
            subject.command("get")
        ),
        Reason::RequestRefused => {
            format!(
                "See the provider's documentation for this code, and correct the {provider} with `{}`",
                subject.command("edit")
            )
        }
        // The text `Refusal::what` is complete for failures of egress, TLS and writes.
        _ => String::new(),
    }
}

/// RFC 6749 section 2.3.1 requires clients to form-encode id and secret before base64. Many servers do not decode the
/// form-encoding.
const BASIC: &str = ". If both are right, this server may not decode the form-encoding of method Basic (RFC 6749 section \
                     2.3.1): set clientSecret.method to Post";

/// The advice for a refused client.
fn client(context: &AdviceContext) -> String {
    let AdviceContext { provider, subject, .. } = context;
    let id = subject.merge(&json!({"spec": {"client": {"id": "<client id>"}}}));
    match &context.secret {
        Some(_) if context.grant != GrantType::JwtBearer => format!(
            "The client secret or the client id is wrong. Store the right secret with `{}`, or the right id into \
             the {provider} with `{id}`{}",
            put(context),
            if context.basic { BASIC } else { "" }
        ),
        _ => format!(
            "The client id is not right, or the provider does not accept the client authentication: correct the \
             {provider} with `{id}`, or compare its spec.client.authentication with the registration"
        ),
    }
}

/// The advice for a refused grant.
fn grant(context: &AdviceContext) -> String {
    let AdviceContext { provider, credential, mailbox, sign_in, .. } = context;
    match context.grant {
        GrantType::ClientCredentials => format!("The {provider} does not accept this grant: see its own log for why"),
        GrantType::RefreshToken | GrantType::DeviceCode => format!(
            "The refresh token has ended, or belongs to another client. The broker keeps it, and tries it again from \
             time to time. Sign in again as {mailbox} with `{sign_in}`"
        ),
        GrantType::JwtBearer => format!(
            "The provider does not accept the JWT of the client {} about {mailbox}: the provider must know the mailbox and \
             the key that signs, and must let the client act for the mailbox",
            context.client_id
        ),
        GrantType::TokenExchange => format!(
            "The provider does not accept the subject token: put a fresh one into the Secret that `{} -o \
             jsonpath='{{.spec.grant.tokenExchange.subjectToken.secretRef}}'` names",
            credential.command("get")
        ),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::{SignedDuration, Timestamp};

    use super::*;
    use crate::{api::credential::ProviderKind, oauth::refusal::read_refusal, providers::RefusalContext};

    fn context() -> AdviceContext {
        let subject = KubectlObject::provider(ProviderKind::MailProvider, "shop", "m365");
        AdviceContext {
            provider: "MailProvider shop/m365".into(),
            scopes: subject.clone(),
            subject,
            client_id: "app-id".into(),
            secret: Some(("shop".into(), "m365-app".into(), "client-secret".into())),
            basic: false,
            grant: GrantType::ClientCredentials,
            credential: KubectlObject::secret("shop", "billing"),
            mailbox: "billing@example.org".into(),
            sign_in: "sign in".into(),
            federated: None,
            again: AGAIN,
        }
    }

    #[test]
    fn a_secret_that_went_into_the_header_may_be_right_at_a_server_that_does_not_decode_it() {
        let refusal = Refusal::new(Reason::InvalidClient, "the provider answered invalid_client");
        let reported = |basic| explain(&refusal, &AdviceContext { basic, ..context() });
        assert!(reported(true).contains("set clientSecret.method to Post"), "{}", reported(true));
        assert!(!reported(false).contains("Post"), "{}", reported(false));
    }

    #[test]
    fn a_workload_identity_is_named_as_google_names_it() {
        let audience = "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/c";
        let federated = Federated {
            issuer: "https://k".into(),
            subject: "system:serviceaccount:shop:mailer".into(),
            audience: audience.into(),
        };
        let context = AdviceContext { federated: Some(federated), ..context() };
        assert_eq!(
            filled("{pool_provider} {principal}", &context),
            "projects/1/locations/global/workloadIdentityPools/p/providers/c \
             principal://iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/subject/\
             system:serviceaccount:shop:mailer"
        );
    }

    #[test]
    fn a_wrong_secret_is_reported_with_the_command_that_replaces_it() {
        let text = explain(&Refusal::new(Reason::InvalidClient, "the provider answered invalid_client"), &context());
        assert!(text.contains(
            r#"`kubectl -n shop patch secret m365-app --type merge -p '{"stringData":{"client-secret":"<client secret>"}}'`"#
        ));
    }

    #[test]
    fn the_providers_own_advice_is_filled_in() {
        let mut refusal = Refusal::new(Reason::InvalidClient, "no");
        refusal.advice = Some("Do `{put}`, `{merge} '{}'` or `az --id {client}`");
        let text = explain(&refusal, &context());
        assert!(text.starts_with("no. Do `kubectl -n shop patch secret m365-app "), "{text}");
        assert!(
            text.ends_with("`kubectl -n shop patch mailprovider m365 --type merge -p '{}'` or `az --id app-id`."),
            "{text}"
        );
    }

    const GRANTS: [GrantType; 5] = [
        GrantType::ClientCredentials,
        GrantType::RefreshToken,
        GrantType::DeviceCode,
        GrantType::JwtBearer,
        GrantType::TokenExchange,
    ];

    #[test]
    fn no_message_ends_in_the_air() {
        for (reason, grant) in Reason::ALL.iter().flat_map(|reason| GRANTS.map(|grant| (*reason, grant))) {
            let text = explain(&Refusal::new(reason, "what"), &AdviceContext { grant, ..context() });
            assert!(text.starts_with("what.") && text.ends_with('.') && !text.contains(".."), "{text}");
            assert_eq!(text.matches('`').count() % 2, 0, "{text}");
        }
    }

    #[test]
    fn each_refusal_is_reported_with_its_fix() {
        let federated = Some(Federated { issuer: "https://i".into(), subject: "s".into(), audience: "a".into() });
        let context = AdviceContext { federated, ..context() };
        for (reason, mend) in [
            (
                Reason::InvalidScope,
                r#"`kubectl -n shop patch mailprovider m365 --type merge -p '{"spec":{"scopes":["<scope>"]}}'`"#,
            ),
            (
                Reason::ConsentRequired,
                "An administrator must consent at the provider to what the MailProvider shop/m365",
            ),
            (Reason::AuthorizationRequired, "exempt the client of the MailProvider shop/m365 from the policy"),
            (
                Reason::FederationMismatch,
                "the issuer https://i, the subject s and the audience a for the client app-id",
            ),
            (Reason::ClockSkew, "`timedatectl set-ntp true`"),
            (Reason::Throttled, "the next is sent at status.nextAttemptTime"),
            (Reason::ProviderUnavailable, "The broker tries again"),
            (Reason::MalformedResponse, "`kubectl -n shop get mailprovider m365 -o jsonpath='{.status.tokenURL}'`"),
            (Reason::RequestRefused, "`kubectl -n shop edit mailprovider m365`"),
        ] {
            let text = explain(&Refusal::new(reason, "no"), &context);
            assert!(text.contains(mend), "{text}");
        }
    }

    #[test]
    fn a_complete_text_is_used_alone_and_ends_with_one_full_stop() {
        for what in ["no", "no."] {
            assert_eq!(explain(&Refusal::new(Reason::EgressDenied, what), &context()), "no.");
        }
    }

    #[test]
    fn the_message_for_a_new_sign_in_names_the_command() {
        for grant in [GrantType::RefreshToken, GrantType::DeviceCode] {
            for reason in [Reason::InvalidGrant, Reason::AuthorizationRequired, Reason::ConsentRequired] {
                let text = explain(&Refusal::new(reason, "no"), &AdviceContext { grant, ..context() });
                assert!(text.contains("`sign in`"), "{text}");
            }
        }
    }

    #[test]
    fn a_federated_identity_is_reported_as_sent_with_the_command_that_trusts_it() {
        let federated = Some(Federated {
            issuer: "https://oidc.example.org".into(),
            subject: "system:serviceaccount:shop:mailer".into(),
            audience: "api://AzureADTokenExchange".into(),
        });
        let text = filled("{issuer}|{subject}|{audience}|{trust}", &AdviceContext { federated, ..context() });
        assert_eq!(
            text,
            "https://oidc.example.org|system:serviceaccount:shop:mailer|api://AzureADTokenExchange|az ad app \
             federated-credential create --id app-id --parameters '{\"audiences\":[\"api://AzureADTokenExchange\"],\
             \"issuer\":\"https://oidc.example.org\",\"name\":\"shop-mailer\",\"subject\":\
             \"system:serviceaccount:shop:mailer\"}'"
        );
    }

    /// The messages for every advice of the presets.
    fn advised() -> Vec<String> {
        let thousands = [28, 50, 53, 65, 70, 80, 90, 500, 530, 650, 700, 900, 1002, 7000, 9001];
        let codes = thousands.into_iter().flat_map(|thousand| thousand * 1000..(thousand + 1) * 1000);
        let codes = codes.map(|code| ("invalid_grant", Some(format!("AADSTS{code}"))));
        let errors = ["invalid_grant", "unauthorized_client", "admin_policy_enforced", "deleted_client"];
        let errors =
            errors.map(|error| (error, None)).into_iter().chain([("invalid_grant", Some("invalid_rapt".into()))]);
        let mut messages = vec![];
        for (preset, answers) in [("microsoft", codes.collect::<Vec<_>>()), ("google", errors.collect())] {
            let settings = if preset == "google" { json!({}) } else { json!({"tenantID": "t"}) };
            let spec = serde_json::from_value(json!({preset: settings, "client": {"id": "app"}})).unwrap();
            let profile = crate::providers::profile(&spec).unwrap();
            for ((error, code), grant) in
                answers.iter().flat_map(|answer| profile.grants.iter().map(move |g| (answer, *g)))
            {
                let body = json!({"error": error}).to_string();
                let answer = http::Response::builder().status(400).body(body).unwrap();
                let mut refusal = read_refusal(&answer, Timestamp::UNIX_EPOCH);
                refusal.provider_code.clone_from(code);
                let grant_age = Some(SignedDuration::from_hours(7 * 24));
                (profile.refine)(&mut refusal, &RefusalContext { grant, grant_age, assertion: false });
                if refusal.advice.is_some() {
                    messages.push(explain(&refusal, &AdviceContext { grant, ..context() }));
                }
            }
        }
        messages
    }

    #[test]
    fn every_advice_is_filled_in_and_its_commands_are_fit_for_the_shell() {
        let messages = advised();
        assert!(messages.len() > 100, "only {}", messages.len());
        let mut script = String::new();
        for text in &messages {
            assert_eq!(text.matches('`').count() % 2, 0, "{text}");
            let open = text.split('{').skip(1).filter_map(|rest| rest.split_once('}'));
            let left = open.filter(|(name, _)| name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'));
            assert_eq!(left.count(), 0, "{text}");
            let commands = text.split('`').skip(1).step_by(2).filter(|code| code.contains(' '));
            script.extend(commands.map(|command| format!("{command}\n")));
        }
        let shell = std::process::Command::new("sh").args(["-nc", &script]).output().unwrap();
        assert!(shell.status.success(), "{}\n{script}", String::from_utf8_lossy(&shell.stderr));
    }

    #[test]
    fn a_key_file_is_stored_as_a_file_and_not_as_a_secret() {
        let context = AdviceContext {
            grant: GrantType::JwtBearer,
            secret: Some(("shop".into(), "g".into(), "key.json".into())),
            ..context()
        };
        let command = filled("{put_file}", &context);
        assert!(
            command.starts_with("kubectl -n shop create secret generic g --from-file=key.json=<file> "),
            "{command}"
        );
        assert!(!explain(&Refusal::new(Reason::InvalidClient, "no"), &context).contains("client secret"));
    }

    #[test]
    fn a_name_from_a_user_cannot_become_a_command() {
        let context = AdviceContext { client_id: "$(reboot)".into(), ..context() };
        assert_eq!(filled("az --id {client} {unknown} {", &context), "az --id '$(reboot)' {unknown} {");
    }
}
