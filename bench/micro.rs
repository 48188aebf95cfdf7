//! Benchmarks of pure functions: `cargo bench --bench micro`.

#![allow(clippy::unwrap_used, reason = "what fails here ends the benchmark")]
#![allow(missing_docs, reason = "criterion's macros make public functions")]

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use k8s_openapi::jiff::SignedDuration;
use mail_token_broker::{
    api::provider::ProviderSpec,
    oauth::{TokenAnswer, read_token_response},
    policy::{
        self, Observed,
        observed::{History, Target, TokenFacts},
    },
    providers::{self, Profile},
    render,
};
use mailtoken_core::fixtures::{self, Case, at};
use serde_json::json;

fn profile() -> Profile {
    let spec: ProviderSpec = serde_json::from_value(json!({
        "oauth2": {"tokenURL": "https://id.example.org/token"}, "client": {"id": "mailer"},
        "servers": {"smtp": {"host": "smtp.example.org", "port": 587}},
    }))
    .unwrap();
    providers::profile(&spec).unwrap()
}

/// Returns a token response. The token is as long as Microsoft's for one application.
fn answer() -> http::Response<Vec<u8>> {
    let body =
        json!({"token_type": "Bearer", "expires_in": 3599, "ext_expires_in": 3599, "access_token": "x".repeat(1_400)});
    http::Response::new(body.to_string().into_bytes())
}

fn parsed() -> TokenAnswer {
    read_token_response(&answer(), at(0), &[]).unwrap()
}

/// Returns the observation of a credential whose token is valid for an hour.
fn observed() -> Observed {
    let token = TokenFacts { fingerprint: parsed().token.fingerprint(), length: Some(1_400), ..fixtures::token() };
    Observed { target: Target::Own(fixtures::published(token)), ..Case::ready().observed }
}

fn benches(criterion: &mut Criterion) {
    let now = at(0) + SignedDuration::from_mins(1);
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
        bencher.iter(|| read_token_response(black_box(&answer), at(0), &[]));
    });
    let (credential, profile, token) = (fixtures::credential(), profile(), parsed().token);
    criterion.bench_function("render::render, XOAuth2", |bencher| {
        bencher.iter(|| render::render(black_box(&credential), &profile, black_box(&token)));
    });
}

criterion_group!(micro, benches);
criterion_main!(micro);
