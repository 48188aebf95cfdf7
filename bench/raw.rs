//! The floor: for each credential only one token request, one write of a Secret and one write of a status, with the
//! same content as the broker's. Without a queue, a lease, checks and retries, only the API server's cost remains.

use std::{sync::Arc, time::Duration};

use futures::StreamExt as _;
use k8s_openapi::{
    api::core::v1::Secret,
    jiff::{SignedDuration, Timestamp},
};
use kube::{
    Api, Client, Resource as _, ResourceExt as _,
    api::{Patch, PatchParams, PostParams},
    runtime::{
        WatchStreamExt as _,
        watcher::{self, watcher},
    },
};
use mail_token_broker::{
    api::{MailCredential, names, names::rfc3339, provider::ProviderSpec, status::TokenStatus},
    oauth::Token,
    providers::{self, Profile},
    render::render,
};
use mailtoken_testkit::Namespace;
use serde_json::json;
use tokio::task::JoinHandle;

use crate::provider::{self, Provider};

/// A raw writer that runs until it is dropped.
pub struct RawWriter(JoinHandle<()>);

struct Worker {
    client: Client,
    http: reqwest::Client,
    token_url: String,
    profile: Profile,
}

impl RawWriter {
    /// Watches, and serves every credential without a token, with this number of workers.
    pub fn start(ns: &Namespace, provider: &Provider, workers: usize) -> Self {
        Self::renew(ns, provider, workers, Timestamp::UNIX_EPOCH)
    }

    /// Also serves credentials whose token is older than `than`.
    pub fn renew(ns: &Namespace, provider: &Provider, workers: usize, than: Timestamp) -> Self {
        let worker = Arc::new(Worker {
            client: ns.client.clone(),
            http: http_client(&provider.ca()),
            token_url: provider.token_url(),
            profile: profile(provider::spec("idp", &provider.token_url())),
        });
        let api: Api<MailCredential> = ns.api();
        Self(tokio::spawn(async move {
            watcher(api, watcher::Config::default())
                .applied_objects()
                .filter_map(async |credential| credential.ok())
                .filter(move |credential| {
                    let token = token(credential);
                    std::future::ready(token.is_none_or(|token| token.issued_at.0 < than))
                })
                .map(|credential| {
                    let worker = worker.clone();
                    tokio::spawn(async move { worker.serve(&credential).await })
                })
                .buffer_unordered(workers)
                .for_each(async |served| served.unwrap())
                .await;
        }))
    }
}

impl Drop for RawWriter {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Worker {
    async fn serve(&self, credential: &MailCredential) {
        let fresh = self.token().await;
        let (namespace, name) = (credential.namespace().unwrap(), credential.name_any());
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &namespace);
        let secret = self.secret(credential, &fresh);
        let written = match token(credential) {
            None => secrets.create(&PostParams::default(), &secret).await,
            Some(_) => secrets.patch(&name, &PatchParams::default(), &Patch::Merge(secret)).await,
        };
        let credentials: Api<MailCredential> = Api::namespaced(self.client.clone(), &namespace);
        let status = status(credential, &fresh, written.unwrap().resource_version());
        credentials.patch_status(&name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    }

    async fn token(&self) -> Token {
        #[derive(serde::Deserialize)]
        struct Answer {
            access_token: String,
            expires_in: i64,
        }
        let fields = [
            ("grant_type", "client_credentials"),
            ("client_id", "mailer"),
            ("client_secret", "a client secret"),
            ("scope", "https://mail.example.org/.default"),
        ];
        let form = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
        let issued_at = Timestamp::now();
        let request = self.http.post(&self.token_url).body(form);
        let request = request.header("content-type", "application/x-www-form-urlencoded");
        let body = request.send().await.unwrap().bytes().await.unwrap();
        let answer: Answer = serde_json::from_slice(&body).unwrap();
        Token {
            access_token: answer.access_token.into(),
            token_type: "Bearer".to_owned(),
            issued_at,
            expires_at: issued_at + SignedDuration::from_secs(answer.expires_in),
            refresh_at: None,
            scopes: vec![],
        }
    }

    fn secret(&self, credential: &MailCredential, token: &Token) -> Secret {
        let name = credential.name_any();
        let hash = "0123456789abcdef";
        let metadata = json!({
            "name": name,
            "labels": {names::LABEL_MANAGED_BY: names::MANAGER, names::LABEL_CREDENTIAL: name},
            "annotations": {
                names::ANNOTATION_ISSUED_AT: rfc3339(token.issued_at),
                names::ANNOTATION_EXPIRES_AT: rfc3339(token.expires_at),
                names::ANNOTATION_FINGERPRINT: token.fingerprint().as_str(),
                names::ANNOTATION_ISSUED_FOR: hash,
                names::ANNOTATION_LAYOUT: hash,
            },
            "ownerReferences": [credential.controller_owner_ref(&())],
        });
        Secret {
            metadata: serde_json::from_value(metadata).unwrap(),
            type_: Some(names::SECRET_TYPE_TARGET.to_owned()),
            data: Some(render(credential, &self.profile, token).expect("it fits")),
            ..Secret::default()
        }
    }
}

fn token(credential: &MailCredential) -> Option<&TokenStatus> {
    credential.status.as_ref()?.token.as_ref()
}

fn status(credential: &MailCredential, token: &Token, version: Option<String>) -> serde_json::Value {
    let condition = |kind: &str, reason: &str, message: String| {
        json!({
            "type": kind, "status": "True", "reason": reason, "message": message,
            "lastTransitionTime": rfc3339(token.issued_at), "observedGeneration": credential.metadata.generation,
        })
    };
    let renewal = token.expires_at - SignedDuration::from_mins(12);
    let valid = format!("the token is valid until {}; it will be renewed at {}", token.expires_at, renewal);
    json!({"status": {
        "observedGeneration": credential.metadata.generation,
        "conditions": [
            condition("Ready", "TokenValid", valid),
            condition("Renewed", "RenewalSucceeded", "the last token request succeeded".to_owned()),
        ],
        "secretName": credential.name_any(),
        "secretResourceVersion": version,
        "token": {
            "issuedAt": rfc3339(token.issued_at), "expiresAt": rfc3339(token.expires_at), "renewalTime": rfc3339(renewal),
            "fingerprint": token.fingerprint().as_str(), "length": 1_400,
        },
        "client": {"method": "clientSecret", "index": 0},
        "failedAttempts": 0,
    }})
}

fn profile(spec: serde_json::Value) -> Profile {
    providers::profile(&serde_json::from_value::<ProviderSpec>(spec).unwrap()).unwrap()
}

fn http_client(ca: &str) -> reqwest::Client {
    let ca = reqwest::Certificate::from_pem(ca.as_bytes()).unwrap();
    reqwest::Client::builder().tls_certs_only([ca]).timeout(Duration::from_secs(10)).build().unwrap()
}
