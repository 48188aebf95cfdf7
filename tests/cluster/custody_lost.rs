//! Answers that never came, or were worth nothing, after the server had rotated: what is lost, and what is told.

use std::time::Duration;

use mail_token_broker::api::MailCredential;
use mailtoken_testkit::{
    custody::REQUEST_TIMEOUT,
    server::Response,
    standin::{Fault, Odd},
    *,
};
use serde_json::json;

/// Each way to lose an answer that the server has rotated for.
fn losses() -> [Fault; 4] {
    [Fault::Lost, Fault::garbage(), Fault::bad_gateway(), Fault::Late(REQUEST_TIMEOUT * 2)]
}

#[tokio::test]
async fn after_a_lost_answer_the_same_token_is_tried_once_more_at_once_and_nothing_is_lost() {
    let custody = Custody::new().await;
    custody.idp.grace(1);
    custody.issued().await;
    for fault in losses() {
        let shown = format!("{fault:?}");
        let (before, requests) = (custody.kept().await, custody.idp.token_requests().len());
        custody.idp.next(fault);
        let renewed = custody.renew().await;
        let kept = custody.kept().await;
        assert_eq!(custody.idp.token_requests().len(), requests + 2, "{shown}");
        assert_eq!(custody.idp.presented(&before), 2, "{shown}");
        assert!(custody.idp.is_valid(&kept), "{shown}");
        assert_eq!(text(&custody.grant().await, "previous_refresh_token"), before, "{shown}");
        assert_eq!(field(&renewed, "/status/failedAttempts"), 0, "{shown}");
    }
    assert_eq!((custody.idp.reuses(), custody.idp.families_revoked()), (0, 0));
    let told = custody.ns.told("billing").await;
    assert!(told.is_empty(), "nothing had to be told: {told:?}");
}

#[tokio::test]
async fn without_grace_a_lost_answer_ends_the_grant_which_is_told_honestly_and_without_a_loop() {
    let custody = Custody::new().await;
    custody.issued().await;
    let (before, requests) = (custody.grant().await, custody.idp.token_requests().len());
    custody.idp.next(Fault::Lost);
    custody.ask().await;
    let renewed = custody.ns.condition::<MailCredential>("billing", "Renewed", "InvalidGrant").await;
    assert!(renewed.message.contains("mail-token-broker login --provider idp"), "{}", renewed.message);
    let billing: MailCredential = custody.ns.get("billing").await;
    // The token is still good, so nothing is stalled.
    assert_eq!((reason(&billing, "Ready").as_str(), reason(&billing, "Stalled").as_str()), ("TokenValid", ""));
    holds(Duration::from_secs(8), "nothing more is asked for", async || match custody.idp.token_requests().len() {
        number if number == requests + 2 => Ok(()),
        number => Err(format!("{number}")),
    })
    .await;
    assert_eq!(custody.grant().await.data, before.data, "what is kept is not thrown away");
    assert_eq!((custody.idp.reuses(), custody.idp.families_revoked()), (1, 1));

    // Another sign-in mends it, at once.
    custody.seed().await;
    custody.ns.condition::<MailCredential>("billing", "Renewed", "RenewalSucceeded").await;
    custody.ns.tells("billing", &["Warning InvalidGrant", "Normal RenewalSucceeded"]).await;
}

#[tokio::test]
async fn a_refusal_in_words_is_not_tried_again_at_once() {
    let custody = Custody::new().await;
    custody.issued().await;
    let (kept, requests) = (custody.kept().await, custody.idp.token_requests().len());
    let refusals = [
        (Fault::throttled(3600), "Throttled"),
        (Fault::error("invalid_client"), "InvalidClient"),
        (Fault::Refused(Response::json(200, &json!({"error": "invalid_grant"}))), "InvalidGrant"),
        (Fault::error("interaction_required"), "AuthorizationRequired"),
        (Fault::Refused(Response::text(404, "")), "MalformedResponse"),
    ];
    for (number, (fault, expected)) in refusals.into_iter().enumerate() {
        custody.idp.next(fault);
        custody.ask().await;
        custody.ns.condition::<MailCredential>("billing", "Renewed", expected).await;
        assert_eq!(custody.idp.token_requests().len(), requests + number + 1, "{expected}");
    }
    assert_eq!(custody.kept().await, kept);
    custody.renew().await;
    assert_eq!(custody.idp.reuses(), 0);
}

#[tokio::test]
async fn a_refresh_token_is_kept_also_from_an_answer_that_is_worth_nothing_else() {
    let custody = Custody::new().await;
    custody.issued().await;
    let seed = custody.idp.refresh_token("mailer", "billing@example.org", "mail");
    let answers = [
        json!({"token_type": "Bearer", "refresh_token": seed}),
        json!({"access_token": "t", "token_type": "mac", "refresh_token": format!("{seed}-2")}),
        json!({"access_token": "a b", "scope": ["mail"], "expires_in": {}, "refresh_token": seed}),
    ];
    for answer in answers {
        let (before, requests) = (custody.kept().await, custody.idp.token_requests().len());
        custody.idp.next(Fault::Refused(Response::json(200, &answer)));
        custody.idp.next(Fault::throttled(3600));
        custody.ask().await;
        let grant = custody.rotated(&before).await;
        assert_eq!(text(&grant, "refresh_token"), answer["refresh_token"].as_str().unwrap());
        assert_eq!(text(&grant, "previous_refresh_token"), before);
        custody.ns.condition::<MailCredential>("billing", "Renewed", "MalformedResponse").await;
        // The next attempt is the one that is throttled, with the token that came.
        custody.asked(requests + 2).await;
        custody.ns.condition::<MailCredential>("billing", "Renewed", "Throttled").await;
    }
    let last = custody.kept().await;
    custody.renew().await;
    assert_eq!((custody.idp.presented(&last), custody.idp.reuses()), (1, 0));
}

#[tokio::test]
async fn a_refresh_token_is_kept_and_the_token_published_whatever_they_are_wrapped_in() {
    let custody = Custody::new().await;
    custody.issued().await;
    for (name, odd) in Odd::ALL.into_iter().take(10) {
        let before = custody.kept().await;
        custody.idp.odd(Some(odd));
        custody.renew().await;
        let grant = custody.rotated(&before).await;
        assert_eq!(text(&grant, "previous_refresh_token"), before, "{name}");
    }
    custody.idp.odd(None);
    let last = custody.kept().await;
    custody.renew().await;
    assert_eq!((custody.idp.presented(&last), custody.idp.reuses()), (1, 0));
}

#[tokio::test]
async fn an_outage_with_a_code_of_its_own_leaves_open_what_became_of_the_refresh_token_and_costs_seconds() {
    let custody = Custody::new().await;
    custody.issued().await;
    let (kept, requests) = (custody.kept().await, custody.idp.token_requests().len());
    let outage = || Fault::Refused(Response::json(500, &json!({"error": "unknown_error", "error_description": "x"})));
    custody.idp.next(outage());
    custody.idp.next(outage());
    custody.ask().await;
    // At once, since the first answer says nothing of the token; then after seconds.
    custody.asked(requests + 2).await;
    let failed = custody.ns.condition::<MailCredential>("billing", "Renewed", "ProviderUnavailable").await;
    assert!(failed.message.contains("unknown_error"), "{}", failed.message);
    custody.rotated(&kept).await;
    assert_eq!(custody.idp.reuses(), 0);
}
