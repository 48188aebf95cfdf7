//! The fixture of tests of refresh tokens: a server that revokes a token that is used twice, and a broker.

use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use mailtoken_core::api::MailCredential;
use serde_json::{Value, json};

use super::{
    Broker, Cluster, Manifest, Namespace, broker::Settings, credential, field, fixture::text, source, standin::Strict,
    wait::until,
};

/// The request timeout of the broker in [`RefreshFixture`]. A claim lasts twice this time and five seconds.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
/// Annotation that makes the API server reject changes of a Secret's data, after [`RefreshFixture::guarded`].
const SEALED: &str = "test/sealed";
/// Annotation that makes the API server reject every write to a Secret, except a write that removes the annotation.
pub const SHUT: &str = "test/shut";

/// A namespace with the provider `idp`, a [`Strict`] server, and a broker.
pub struct RefreshFixture {
    /// The namespace.
    pub ns: Namespace,
    /// The provider's server.
    pub idp: Strict,
    /// The broker, which watches only this namespace.
    pub broker: Broker,
}

impl RefreshFixture {
    /// Creates the fixture with one broker that always leads, so that no test waits for the lease of a killed broker.
    pub async fn new() -> Self {
        Self::with(|settings| settings.flag("--leader-elect=false")).await
    }

    /// Creates the fixture with changed settings of the broker.
    pub async fn with(change: impl FnOnce(Settings) -> Settings) -> Self {
        let ns = Cluster::shared().namespace().await;
        let idp = Strict::start();
        idp.client("mailer", Some("a client secret"));
        ns.apply(source("idp-client", "client-secret", "a client secret")).await;
        provider(&ns, &idp).await;
        let broker = change(Self::settings(&ns)).start().await;
        Self { ns, idp, broker }
    }

    /// Returns the settings of a broker of this namespace, without `--leader-elect`.
    pub fn settings(ns: &Namespace) -> Settings {
        Broker::settings(ns).flag(format!("--request-timeout={}s", REQUEST_TIMEOUT.as_secs()))
    }

    /// Issues a refresh token as for a user's sign-in, and applies it as the seed's Secret. Returns the token.
    pub async fn seed(&self) -> String {
        let token = self.idp.refresh_token("mailer", "billing@example.org", "mail");
        self.ns.apply(source("seed", "refresh_token", &token)).await;
        token
    }

    /// Applies the credential `billing` with a seed, and waits for its first token.
    pub async fn issued(&self) -> MailCredential {
        self.seed().await;
        self.ns.apply(by_seed("billing")).await;
        self.ready().await
    }

    /// Waits until `billing` is ready.
    pub async fn ready(&self) -> MailCredential {
        self.ns.condition::<MailCredential>("billing", "Ready", "TokenValid").await;
        self.ns.get("billing").await
    }

    /// Requests a new token, and waits until the broker has handled the request.
    pub async fn renew(&self) -> MailCredential {
        let asked = self.ask().await;
        self.answered(&asked).await
    }

    /// Waits until the broker has handled the request of [`Self::ask`].
    pub async fn answered(&self, asked: &str) -> MailCredential {
        let answered = |credential: &MailCredential| field(credential, "/status/lastHandledReissue") == asked;
        self.ns.until::<MailCredential>("billing", "the reissue is answered", answered).await
    }

    /// Requests a new token by the annotation `mailtoken.dev/reissue`. Returns the value of the annotation.
    pub async fn ask(&self) -> String {
        let value = format!("{:?}", std::time::Instant::now());
        self.ns.annotate::<MailCredential>("billing", "mailtoken.dev/reissue", &value).await;
        value
    }

    /// Returns the grant Secret of `billing`, which stores the refresh token.
    pub async fn grant(&self) -> Secret {
        self.ns.get("billing-grant").await
    }

    /// Returns the stored refresh token.
    pub async fn kept(&self) -> String {
        text(&self.grant().await, "refresh_token")
    }

    /// Waits until the stored refresh token differs from `before`.
    pub async fn rotated(&self, before: &str) -> Secret {
        let differs = |secret: &Secret| text(secret, "refresh_token") != before;
        self.ns.until("billing-grant", "it keeps another refresh token", differs).await
    }

    /// Waits until the server has received `times` token requests.
    pub async fn asked(&self, times: usize) {
        until(&format!("{times} token requests"), async || match self.idp.token_requests().len() {
            number if number >= times => Ok(()),
            number => Err(format!("{number} so far")),
        })
        .await;
    }

    /// Prepares [`Self::seal`]: applies a policy that rejects changed data in a sealed Secret.
    pub async fn guarded(&self) {
        let ns = &self.ns;
        let rule =
            json!({"apiGroups": [""], "apiVersions": ["v1"], "operations": ["UPDATE"], "resources": ["secrets"]});
        let has = |object: &str, key: &str| {
            format!("has({object}.metadata.annotations) && '{key}' in {object}.metadata.annotations")
        };
        let unsealed = format!("!({}) || oldObject.data == object.data", has("oldObject", SEALED));
        let open = format!("!({}) || !({})", has("oldObject", SHUT), has("object", SHUT));
        ns.apply(json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
            "metadata": {"name": ns.name},
            "spec": {
                "failurePolicy": "Fail", "matchConstraints": {"resourceRules": [rule]},
                "validations": [
                    {"expression": unsealed, "message": "it is sealed"}, {"expression": open, "message": "it is shut"},
                ],
            },
        }))
        .await;
        ns.apply(json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": {"name": ns.name},
            "spec": {
                "policyName": ns.name, "validationActions": ["Deny"],
                "matchResources": {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": ns.name}}},
            },
        }))
        .await;
        let probe = source("probe", "key", "value").entry("metadata.annotations", SEALED, "true");
        ns.apply(probe).await;
        let mut number = 0;
        until("the policy is in force", async || {
            number += 1;
            let change = json!({"stringData": {"key": number.to_string()}});
            match ns.api::<Secret>().patch("probe", &PatchParams::default(), &Patch::Merge(change)).await {
                Err(error) if error.to_string().contains("sealed") => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        ns.delete::<Secret>("probe").await;
    }

    /// Makes the API server reject other refresh tokens in the grant Secret. It still accepts a claim.
    pub async fn seal(&self) {
        self.ns.annotate::<Secret>("billing-grant", SEALED, "true").await;
    }

    /// Ends [`Self::seal`].
    pub async fn unseal(&self) {
        self.mark(json!({SEALED: null})).await;
    }

    /// Changes annotations of the grant Secret. A null value removes an annotation.
    pub async fn mark(&self, annotations: Value) {
        self.ns.patch::<Secret>("billing-grant", json!({"metadata": {"annotations": annotations}})).await;
    }

    /// Returns the verbs of all requests for objects of this name since the start, in order, including failed requests.
    pub fn verbs(&self, resource: &str, name: &str, all: &[&str]) -> Vec<String> {
        let of = |verb: &String| all.contains(&verb.as_str());
        let audit = self.ns.audit().into_iter();
        audit
            .filter(|event| event.access.resource == resource && event.name == name)
            .map(|event| event.access.verb)
            .filter(of)
            .collect()
    }

    /// Deletes an object without waiting.
    pub async fn drop(&self, secret: &str) {
        let api: Api<Secret> = self.ns.api();
        api.delete(secret, &DeleteParams::default()).await.unwrap();
    }
}

/// Applies the manifests of [`provider_of`].
pub async fn provider(ns: &Namespace, idp: &Strict) {
    for manifest in provider_of(idp) {
        ns.apply(manifest).await;
    }
}

/// Returns the CA of this server, and the MailProvider `idp` for this server.
pub fn provider_of(idp: &Strict) -> [Manifest; 2] {
    [
        Manifest(json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "idp-ca"}, "data": {"ca.crt": idp.ca()},
        })),
        Manifest(json!({
            "apiVersion": "mailtoken.dev/v1alpha1", "kind": "MailProvider", "metadata": {"name": "idp"},
            "spec": {
                "oauth2": {"tokenURL": idp.token_url()},
                "client": {
                    "id": "mailer",
                    "authentication": [{"clientSecret": {"secretRef": {"name": "idp-client", "key": "client-secret"}}}],
                },
                "caBundleRef": {"configMap": {"name": "idp-ca", "key": "ca.crt"}},
            },
        })),
    ]
}

/// Returns a MailCredential whose seed is the refresh token in the Secret `seed`.
pub fn by_seed(name: &str) -> Manifest {
    credential(name).set("spec.grant", json!({"refreshToken": {"secretRef": {"name": "seed", "key": "refresh_token"}}}))
}
