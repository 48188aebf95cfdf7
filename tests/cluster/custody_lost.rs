//! Lost or unusable responses after the server has rotated the refresh token: what is lost, and what the broker
//! reports.

use std::time::Duration;

use mail_token_broker::api::MailCredential;
use mailtoken_testkit::{
    refresh_fixture::REQUEST_TIMEOUT,
    server::Response,
    standin::{Fault, Odd},
    *,
};
use serde_json::json;

/// Returns each way to lose a response after the server has rotated the token.
fn losses() -> [Fault; 4] {
    [Fault::Lost, Fault::garbage(), Fault::bad_gateway(), Fault::Late(REQUEST_TIMEOUT * 2)]
}

#[tokio::test]
async fn after_a_lost_answer_the_same_token_is_tried_again_immediately_and_nothing_is_lost() {
    let fixture = RefreshFixture::new().await;
    fixture.idp.grace(1);
    fixture.issued().await;
    for fault in losses() {
        let shown = format!("{fault:?}");
        let (before, requests) = (fixture.kept().await, fixture.idp.token_requests().len());
        fixture.idp.next(fault);
        let renewed = fixture.renew().await;
        let kept = fixture.kept().await;
        assert_eq!(fixture.idp.token_requests().len(), requests + 2, "{shown}");
        assert_eq!(fixture.idp.presented(&before), 2, "{shown}");
        assert!(fixture.idp.is_valid(&kept), "{shown}");
        assert_eq!(text(&fixture.grant().await, "previous_refresh_token"), before, "{shown}");
        assert_eq!(field(&renewed, "/status/failedAttempts"), 0, "{shown}");
    }
    assert_eq!((fixture.idp.reuses(), fixture.idp.families_revoked()), (0, 0));
    let reported = fixture.ns.event_reasons("billing").await;
    assert!(reported.is_empty(), "nothing had to be reported: {reported:?}");
}

#[tokio::test]
async fn without_grace_a_lost_response_ends_the_grant_which_is_reported_without_a_loop() {
    let fixture = RefreshFixture::new().await;
    fixture.issued().await;
    let (before, requests) = (fixture.grant().await, fixture.idp.token_requests().len());
    fixture.idp.next(Fault::Lost);
    fixture.ask().await;
    let renewed = fixture.ns.condition::<MailCredential>("billing", "Renewed", "InvalidGrant").await;
    assert!(renewed.message.contains("mail-token-broker login --provider idp"), "{}", renewed.message);
    let billing: MailCredential = fixture.ns.get("billing").await;
    // The access token is still valid, so the credential is not stalled.
    assert_eq!((reason(&billing, "Ready").as_str(), reason(&billing, "Stalled").as_str()), ("TokenValid", ""));
    holds(Duration::from_secs(8), "nothing more is asked for", async || match fixture.idp.token_requests().len() {
        number if number == requests + 2 => Ok(()),
        number => Err(format!("{number}")),
    })
    .await;
    assert_eq!(fixture.grant().await.data, before.data, "what is kept is not thrown away");
    assert_eq!((fixture.idp.reuses(), fixture.idp.families_revoked()), (1, 1));

    // Another sign-in fixes the failure immediately.
    fixture.seed().await;
    fixture.ns.condition::<MailCredential>("billing", "Renewed", "RenewalSucceeded").await;
    fixture.ns.event_reasons_include("billing", &["Warning InvalidGrant", "Normal RenewalSucceeded"]).await;
}

#[tokio::test]
async fn a_refusal_in_words_is_not_tried_again_immediately() {
    let fixture = RefreshFixture::new().await;
    fixture.issued().await;
    let (kept, requests) = (fixture.kept().await, fixture.idp.token_requests().len());
    let refusals = [
        (Fault::throttled(3600), "Throttled"),
        (Fault::error("invalid_client"), "InvalidClient"),
        (Fault::Refused(Response::json(200, &json!({"error": "invalid_grant"}))), "InvalidGrant"),
        (Fault::error("interaction_required"), "AuthorizationRequired"),
        (Fault::Refused(Response::text(404, "")), "MalformedResponse"),
    ];
    for (number, (fault, expected)) in refusals.into_iter().enumerate() {
        fixture.idp.next(fault);
        fixture.ask().await;
        fixture.ns.condition::<MailCredential>("billing", "Renewed", expected).await;
        assert_eq!(fixture.idp.token_requests().len(), requests + number + 1, "{expected}");
    }
    assert_eq!(fixture.kept().await, kept);
    fixture.renew().await;
    assert_eq!(fixture.idp.reuses(), 0);
}

#[tokio::test]
async fn a_refresh_token_is_kept_also_from_an_otherwise_useless_response() {
    let fixture = RefreshFixture::new().await;
    fixture.issued().await;
    let seed = fixture.idp.refresh_token("mailer", "billing@example.org", "mail");
    let answers = [
        json!({"token_type": "Bearer", "refresh_token": seed}),
        json!({"access_token": "t", "token_type": "mac", "refresh_token": format!("{seed}-2")}),
        json!({"access_token": "a b", "scope": ["mail"], "expires_in": {}, "refresh_token": seed}),
    ];
    for answer in answers {
        let (before, requests) = (fixture.kept().await, fixture.idp.token_requests().len());
        fixture.idp.next(Fault::Refused(Response::json(200, &answer)));
        fixture.idp.next(Fault::throttled(3600));
        fixture.ask().await;
        let grant = fixture.rotated(&before).await;
        assert_eq!(text(&grant, "refresh_token"), answer["refresh_token"].as_str().unwrap());
        assert_eq!(text(&grant, "previous_refresh_token"), before);
        fixture.ns.condition::<MailCredential>("billing", "Renewed", "MalformedResponse").await;
        // The next attempt sends the token from the malformed response, and the provider throttles it.
        fixture.asked(requests + 2).await;
        fixture.ns.condition::<MailCredential>("billing", "Renewed", "Throttled").await;
    }
    let last = fixture.kept().await;
    fixture.renew().await;
    assert_eq!((fixture.idp.presented(&last), fixture.idp.reuses()), (1, 0));
}

#[tokio::test]
async fn a_refresh_token_is_kept_and_the_token_published_in_any_wrapping() {
    let fixture = RefreshFixture::new().await;
    fixture.issued().await;
    for (name, odd) in Odd::ALL.into_iter().take(10) {
        let before = fixture.kept().await;
        fixture.idp.odd(Some(odd));
        fixture.renew().await;
        let grant = fixture.rotated(&before).await;
        assert_eq!(text(&grant, "previous_refresh_token"), before, "{name}");
    }
    fixture.idp.odd(None);
    let last = fixture.kept().await;
    fixture.renew().await;
    assert_eq!((fixture.idp.presented(&last), fixture.idp.reuses()), (1, 0));
}

#[tokio::test]
async fn an_outage_with_its_own_code_leaves_the_refresh_token_unknown_and_costs_seconds() {
    let fixture = RefreshFixture::new().await;
    fixture.issued().await;
    let (kept, requests) = (fixture.kept().await, fixture.idp.token_requests().len());
    let outage = || Fault::Refused(Response::json(500, &json!({"error": "unknown_error", "error_description": "x"})));
    fixture.idp.next(outage());
    fixture.idp.next(outage());
    fixture.ask().await;
    // The broker retries immediately, because the first response does not concern the token. Later it retries after
    // seconds.
    fixture.asked(requests + 2).await;
    let failed = fixture.ns.condition::<MailCredential>("billing", "Renewed", "ProviderUnavailable").await;
    assert!(failed.message.contains("unknown_error"), "{}", failed.message);
    fixture.rotated(&kept).await;
    assert_eq!(fixture.idp.reuses(), 0);
}
