//! An API server that refuses, loses and throttles the broker's requests, and ends its watches.

use std::{collections::BTreeSet, time::Duration};

use k8s_openapi::api::core::v1::Secret;
use mail_token_broker::api::MailCredential;
use mailtoken_testkit::{fault_log::tried, refresh_fixture::provider as strict_provider, standin::Strict, *};
use serde_json::json;

/// The faults of an API server for a write.
const TROUBLES: [Trouble; 5] =
    [Trouble::status(409), Trouble::throttled(1), Trouble::status(500), Trouble::status(504), Trouble::Lost];
/// Time longer than the broker waits for a response or an event of the API server.
const AFTER_SILENCE: Duration = Duration::from_secs(120);

/// Creates a namespace with a broker that reaches the API server through a proxy.
async fn behind_proxy() -> (Fixture, ApiProxy) {
    let ns = Cluster::shared().namespace().await;
    let (idp, api) = (Idp::start(), ApiProxy::start(&ns.cluster));
    ns.provider(&idp).await;
    let broker = Broker::settings(&ns).kubeconfig(&api.kubeconfig()).start().await;
    (Fixture { ns, idp, broker }, api)
}

/// Reissues the tokens of all these credentials, and waits until each status reports the new token.
async fn renew_all(ns: &Namespace, names: &[String], value: &str) {
    for name in names {
        ns.annotate::<MailCredential>(name, "mailtoken.dev/reissue", value).await;
    }
    for name in names {
        let handled = |found: &MailCredential| field(found, "/status/lastHandledReissue") == value;
        ns.until_in::<MailCredential>(AFTER_SILENCE, name, "it was issued again", handled).await;
    }
}

/// Returns the tokens in these Secrets.
async fn published(ns: &Namespace, names: &[String]) -> BTreeSet<String> {
    let mut tokens = BTreeSet::new();
    for name in names {
        tokens.insert(text(&ns.get::<Secret>(name).await, "access_token"));
    }
    tokens
}

#[tokio::test]
async fn after_any_result_of_a_write_each_token_is_requested_once_and_finally_written() {
    let (fixture, api) = behind_proxy().await;
    let names: Vec<_> = (0..TROUBLES.len()).map(|number| format!("mailbox-{number}")).collect();
    for trouble in TROUBLES {
        api.next(1, "POST", &format!("/{}/secrets", fixture.ns.name), trouble);
    }
    for name in &names {
        fixture.ns.apply(credential(name)).await;
    }
    for name in &names {
        fixture.ready(name).await;
    }
    api.done().await;
    assert_eq!(fixture.idp.token_requests().len(), names.len());
    assert_eq!(published(&fixture.ns, &names).await, BTreeSet::from_iter(fixture.idp.issued()));

    for (name, trouble) in names.iter().zip(TROUBLES) {
        api.next(2, "PATCH", &format!("/secrets/{name}?"), trouble.clone());
        api.next(2, "PUT", &format!("/mailcredentials/{name}/status"), trouble);
    }
    renew_all(&fixture.ns, &names, "1").await;
    api.done().await;
    assert_eq!(fixture.idp.token_requests().len(), 2 * names.len());
    let latest = fixture.idp.issued().split_off(names.len());
    assert_eq!(published(&fixture.ns, &names).await, BTreeSet::from_iter(latest));

    // The broker only writes the status, so no watch event starts another reconcile.
    for (name, trouble) in names.iter().zip(TROUBLES) {
        api.next(1, "PUT", &format!("/mailcredentials/{name}/status"), trouble);
        fixture.ns.patch::<MailCredential>(name, json!({"spec": {"suspend": true}})).await;
    }
    for name in &names {
        fixture.ns.condition::<MailCredential>(name, "Renewed", "Suspended").await;
    }
    api.done().await;
    tried("F09", 6 * names.len(), "nothing");
}

#[tokio::test]
async fn after_any_result_of_a_claim_or_a_store_no_refresh_token_is_spent_twice() {
    let ns = Cluster::shared().namespace().await;
    let (idp, api) = (Strict::start(), ApiProxy::start(&ns.cluster));
    idp.client("mailer", Some("a client secret"));
    ns.apply(source("idp-client", "client-secret", "a client secret")).await;
    strict_provider(&ns, &idp).await;
    let _broker = Broker::settings(&ns).kubeconfig(&api.kubeconfig()).start().await;
    let names: Vec<_> = (0..TROUBLES.len()).map(|number| format!("mailbox-{number}")).collect();
    for name in &names {
        let (seed, token) =
            (format!("seed-{name}"), idp.refresh_token("mailer", &format!("{name}@example.org"), "mail"));
        ns.apply(source(&seed, "refresh_token", &token)).await;
        ns.apply(by_seed(name).set("spec.grant.refreshToken.secretRef.name", seed)).await;
    }
    for name in &names {
        ns.condition::<MailCredential>(name, "Ready", "TokenValid").await;
    }
    let issued = idp.token_requests().len();
    assert_eq!(issued, names.len());

    for (round, before) in [0, 1].into_iter().enumerate() {
        for (name, trouble) in names.iter().zip(TROUBLES) {
            let grant = format!("/secrets/{name}-grant?");
            // The claim is the first write of a renewal, the store of the new token the second.
            api.next(before, "PATCH", &grant, Trouble::None);
            api.next(2, "PATCH", &grant, trouble);
        }
        renew_all(&ns, &names, &round.to_string()).await;
        api.done().await;
        assert_eq!(idp.token_requests().len(), (round + 2) * issued);
    }
    assert_eq!((idp.reuses(), idp.families_revoked()), (0, 0));
    for name in &names {
        assert!(idp.is_valid(&text(&ns.get(&format!("{name}-grant")).await, "refresh_token")));
    }
    tried("F09", 4 * names.len(), "nothing");
}

#[tokio::test]
async fn an_unanswered_call_is_cancelled_and_repeated() {
    let (fixture, api) = behind_proxy().await;
    let names = ["first", "second", "third"].map(str::to_owned);
    for name in &names {
        fixture.issued(credential(name)).await;
    }
    api.next(1, "PATCH", "/secrets/first?", Trouble::Silence);
    api.next(1, "PUT", "/mailcredentials/second/status", Trouble::Silence);
    renew_all(&fixture.ns, &names, "1").await;
    api.done().await;
    assert_eq!(fixture.idp.token_requests().len(), 2 * names.len());
    tried("F09", 2, "nothing");
}

#[tokio::test]
async fn a_silent_watch_is_restarted() {
    let (fixture, api) = behind_proxy().await;
    fixture.mark("before").await;
    api.end_watches(Ending::Silence);
    fixture.ns.apply(credential("after")).await;
    let ready = |found: &MailCredential| reason(found, "Ready") == "TokenValid";
    fixture.ns.until_in::<MailCredential>(AFTER_SILENCE, "after", "it is seen", ready).await;
    assert_eq!(fixture.idp.token_requests().len(), 2);
    tried("F09", 1, "nothing");
}

#[tokio::test]
async fn watches_that_end_in_any_way_miss_nothing_and_ask_for_nothing_twice() {
    let (fixture, api) = behind_proxy().await;
    let at_rest = fixture.issued(credential("at-rest")).await;
    let mut credentials = 1;
    for (round, ending) in [Ending::Cut, Ending::Gone, Ending::Gone, Ending::Cut].into_iter().enumerate() {
        fixture.issued(credential(&format!("doomed-{round}"))).await;
        let before = api.asked().len();
        // The first attempts to list again fail with these responses.
        let path = format!("/{}/", fixture.ns.name);
        for trouble in [Trouble::status(410), Trouble::throttled(1), Trouble::status(500)] {
            api.next(6, "GET", &path, trouble);
        }
        api.end_watches(ending);
        fixture.ns.api::<MailCredential>().delete(&format!("doomed-{round}"), &Default::default()).await.unwrap();
        fixture.ns.apply(credential(&format!("new-{round}")).set("spec.secret.name", format!("doomed-{round}"))).await;
        fixture.ready(&format!("new-{round}")).await;
        api.done().await;
        credentials += 2;
        assert_eq!(fixture.idp.token_requests().len(), credentials);
        let about_rest = api.asked().split_off(before).into_iter().filter(|asked| asked.path.contains("at-rest"));
        assert_eq!(about_rest.count(), 0, "nothing of it has changed");
    }
    fixture.ns.patch::<MailCredential>("at-rest", json!({"spec": {"secret": {"formats": ["TokenJSON"]}}})).await;
    fixture.ready("at-rest").await;
    let now: MailCredential = fixture.ns.get("at-rest").await;
    assert_eq!(field(&now, "/status/token"), field(&at_rest, "/status/token"));
    assert_eq!(fixture.idp.token_requests().len(), credentials);
    tried("F09", 4, "nothing");
}

/// The list has many pages. Between two pages the broker works with the previous objects.
#[tokio::test]
async fn a_change_while_a_watch_of_hundreds_ends_is_handled_in_seconds() {
    const HUNDREDS: usize = 400;
    const NEW: usize = 60;
    let (fixture, api) = behind_proxy().await;
    let names: Vec<_> = (0..HUNDREDS).map(|number| format!("c-{number:03}")).collect();
    for name in &names {
        fixture.ns.apply(credential(name)).await;
    }
    for name in &names {
        fixture.ready(name).await;
    }
    // The proxy holds the next list until the following changes are made. The new credentials are on the list's first
    // and last pages.
    let list = format!("/{}/mailcredentials?", fixture.ns.name);
    api.next(1, "GET", &list, Trouble::Held);
    api.end_watches_of("/mailcredentials?", Ending::Gone);
    let created: Vec<_> =
        (0..NEW).map(|number| format!("{}-{number:02}", if number % 2 == 0 { "a" } else { "z" })).collect();
    for name in &created {
        fixture.ns.apply(credential(name)).await;
    }
    fixture.ns.patch::<MailCredential>("c-005", json!({"spec": {"suspend": true}})).await;
    fixture.ns.delete::<MailCredential>("c-006").await;
    fixture.ns.delete::<MailCredential>("c-007").await;
    fixture.ns.apply(credential("c-007").set("spec.secret.formats", json!(["TokenJSON"]))).await;
    api.release();

    let soon = Duration::from_secs(20);
    for name in created.iter().map(String::as_str).chain(["c-007"]) {
        let ready = |found: &MailCredential| reason(found, "Ready") == "TokenValid";
        fixture.ns.until_in::<MailCredential>(soon, name, "it is Ready", ready).await;
    }
    let suspended = |found: &MailCredential| reason(found, "Renewed") == "Suspended";
    fixture.ns.until_in::<MailCredential>(soon, "c-005", "its suspension is reported", suspended).await;
    fixture.broker.forgets("c-006").await;
    // The new credential of the same name has taken the token over, in its own format.
    assert!(fixture.ns.secret("c-007").await.contains_key("token.json"));
    assert_eq!(fixture.idp.token_requests().len(), HUNDREDS + NEW);
    for kind in ["credential", "provider"] {
        let swept = fixture.broker.metric("mailtoken_sweep_enqueued_total", &format!("kind=\"{kind}\"")).await;
        assert_eq!(swept, Some(0.0), "{kind}: the sweep had to enqueue something");
    }
    tried("F09", 1, "nothing");
}

#[tokio::test]
async fn the_pages_of_a_list_become_smaller_with_large_objects_and_larger_without() {
    const USUAL: usize = 150;
    let (fixture, api) = behind_proxy().await;
    let pages = || -> Vec<usize> {
        let limit = |path: &str| path.split(['?', '&']).find_map(|pair| pair.strip_prefix("limit=")?.parse().ok());
        api.asked()
            .iter()
            .filter(|asked| asked.path.contains("/mailcredentials?"))
            .filter_map(|it| limit(&it.path))
            .collect()
    };
    let list_again = async |mark: &str| {
        let lists = pages().len();
        api.end_watches_of("/mailcredentials?", Ending::Gone);
        until("another list", async || if pages().len() > lists { Ok(()) } else { Err(format!("{lists} lists")) })
            .await;
        fixture.mark(mark).await;
        *pages().last().unwrap()
    };
    assert_eq!(pages(), [USUAL]);

    // 16 objects of a megabyte do not fit into one page.
    let labels: serde_json::Map<_, _> =
        (0..10_000).map(|number| (format!("example.org/{number}"), "x".repeat(63).into())).collect();
    let large: Vec<_> = (0..16).map(|number| format!("large-{number}")).collect();
    for name in &large {
        let object = credential(name).set("spec.suspend", true).set("metadata.labels", json!(labels));
        fixture.ns.apply(object).await;
    }
    let mut page = list_again("with-large-objects").await;
    assert!(page < large.len(), "{page} objects of a megabyte in one page");
    for name in &large {
        fixture.ns.delete::<MailCredential>(name).await;
    }
    while page < USUAL {
        let next = list_again(&format!("after-{page}")).await;
        assert_eq!(next, (2 * page).min(USUAL));
        page = next;
    }
    tried("F09", 1, "nothing");
}
