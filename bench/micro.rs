//! Benchmarks of pure functions: `cargo bench --bench micro`.

#![allow(clippy::unwrap_used, reason = "what fails here ends the benchmark")]
#![allow(missing_docs, reason = "criterion's macros make public functions")]

use std::{hint::black_box, sync::Arc};

use criterion::{Criterion, criterion_group, criterion_main};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use mail_token_broker::{
    api::{MailCredential, Reason, provider::ProviderSpec},
    oauth::{TokenAnswer, read_token_response},
    policy::{
        self, Observed,
        observed::{History, Provider, Published, Target, TokenFacts},
    },
    providers, render,
};
use serde_json::json;

fn issued_at() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

fn credential() -> MailCredential {
    serde_json::from_value(json!({
        "apiVersion": "mailtoken.dev/v1alpha1",
        "kind": "MailCredential",
        "metadata": {"name": "billing", "namespace": "shop", "uid": "7d5e1b5e-0000-4000-8000-000000000001", "generation": 1},
        "spec": {
            "providerRef": {"name": "idp"},
            "mailbox": {"address": "billing@example.org"},
            "grant": {"clientCredentials": {}},
        },
    }))
    .unwrap()
}

fn provider() -> Provider {
    let spec: ProviderSpec = serde_json::from_value(json!({
        "oauth2": {"tokenURL": "https://id.example.org/token"}, "client": {"id": "mailer"},
        "servers": {"smtp": {"host": "smtp.example.org", "port": 587}},
    }))
    .unwrap();
    Provider {
        profile: providers::profile(&spec).unwrap(),
        blocker: None,
        issued_for: "inputs".into(),
        scopes: vec![],
        layout: "layout".into(),
        secret_size: 0,
        bound_to: "bound".into(),
        revocable_at: "".into(),
    }
}

/// A token as long as Microsoft's for one application.
fn answer() -> http::Response<Vec<u8>> {
    let body =
        json!({"token_type": "Bearer", "expires_in": 3599, "ext_expires_in": 3599, "access_token": "x".repeat(1_400)});
    http::Response::new(body.to_string().into_bytes())
}

fn parsed() -> TokenAnswer {
    read_token_response(&answer(), issued_at(), &[]).unwrap()
}

/// A credential whose token is valid for an hour.
fn observed() -> Observed {
    let token = TokenFacts {
        issued_at: issued_at(),
        expires_at: issued_at() + SignedDuration::from_hours(1),
        refresh_at: None,
        scopes: vec![],
        fingerprint: parsed().token.fingerprint(),
        object_id: None,
        unsuitable: None,
        length: Some(1_400),
    };
    let published = Published {
        name: "billing".to_owned(),
        uid: "secret".to_owned(),
        resource_version: "7".to_owned(),
        token: Some(token),
        issued_for: "inputs".into(),
        layout: "layout".into(),
        applied: None,
        has_annotations: true,
        handled_reissue: None,
        intact: true,
        must_recreate: false,
    };
    Observed {
        credential: Arc::new(credential()),
        history: History {
            last: Some((Reason::RenewalSucceeded, "the last token request succeeded".to_owned())),
            ..History::default()
        },
        target: Target::Own(published),
        previous: None,
        rival: None,
        provider: Ok(provider()),
        grant: None,
        unwritten: None,
        in_flight: false,
        queued: false,
        attempt: "attempt".into(),
    }
}

fn benches(criterion: &mut Criterion) {
    let now = issued_at() + SignedDuration::from_mins(1);
    let valid = observed();
    criterion.bench_function("policy::decide, a valid token", |bencher| {
        bencher.iter(|| policy::decide(black_box(&valid), black_box(now)));
    });
    let fresh = Observed { target: Target::Absent, history: History::default(), ..observed() };
    criterion.bench_function("policy::decide, a new credential", |bencher| {
        bencher.iter(|| policy::decide(black_box(&fresh), black_box(now)));
    });
    let decision = policy::decide(&valid, now);
    criterion.bench_function("policy::status, a valid token", |bencher| {
        bencher.iter(|| policy::status::status(black_box(&valid), black_box(&decision), black_box(now)));
    });
    let answer = answer();
    criterion.bench_function("oauth::read_token_response, 1,400 characters", |bencher| {
        bencher.iter(|| read_token_response(black_box(&answer), issued_at(), &[]));
    });
    let (credential, provider, token) = (credential(), provider(), parsed().token);
    criterion.bench_function("render::render, XOAuth2", |bencher| {
        bencher.iter(|| render::render(black_box(&credential), &provider.profile, black_box(&token)));
    });
}

criterion_group!(micro, benches);
criterion_main!(micro);
