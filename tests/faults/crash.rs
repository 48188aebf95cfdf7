//! `kill -9` of the broker at every step of a refresh: what is lost, and what the next start recovers. The broker
//! reaches each step by a fail point (`crates/net/src/fail_point.rs`). The tests use three grants: client credentials,
//! a refresh token that each use replaces, and a refresh token at a server that treats a second use as theft.

use std::time::Duration;

use mail_token_broker::api::{MailCredential, names};
use mailtoken_testkit::{fault_log::tried, namespace::find, standin::Fault, *};
use sha2::{Digest as _, Sha256};

/// A request timeout longer than a test waits. So steps after a restart do not wait for the claim of the killed
/// process.
const CLAIMED_FOR_LONG: &str = "--request-timeout=20s";

/// The beginning of the log line at a fail point.
const STOPPED: &str = "stopped at ";

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    ClientCredentials,
    /// A refresh token; the server accepts the previous token once more.
    Grace,
    /// A refresh token; the server ends the sign-in when a token is used again.
    Strict,
}

impl Kind {
    fn is_rotating(self) -> bool {
        self != Self::ClientCredentials
    }

    /// Returns the account of the access tokens.
    fn account(self) -> &'static str {
        if self.is_rotating() { "billing@example.org" } else { "mailer" }
    }
}

/// A credential whose renewal is about to begin, and the broker that the test kills during the renewal.
struct Crash {
    fixture: RefreshFixture,
    kind: Kind,
    monitor: Monitor,
    /// The access token before the renewal.
    published: String,
    /// The refresh token before the renewal.
    kept: String,
    /// Number of token requests before the renewal.
    sent: usize,
    /// The value of the reissue annotation of the renewal.
    asked: String,
}

impl Crash {
    /// Creates the fixture with a first token, and restarts the broker so that it stops at `point`.
    async fn prepare(kind: Kind, point: Option<&str>) -> Self {
        let mut fixture = RefreshFixture::with(pod).await;
        fixture.idp.grace(usize::from(kind == Kind::Grace));
        let monitor = Monitor::start(&fixture.ns);
        let kept = if kind.is_rotating() {
            fixture.issued().await;
            fixture.kept().await
        } else {
            fixture.ns.apply(credential("billing")).await;
            fixture.ready().await;
            String::new()
        };
        if let Some(point) = point {
            fixture.broker.kill();
            fixture.broker.set("MAILTOKEN_STOP_AT", Some(point));
            fixture.broker.again().await;
        }
        let published = text(&fixture.ns.get("billing").await, "access_token");
        let sent = fixture.idp.token_requests().len();
        Self { fixture, kind, monitor, published, kept, sent, asked: String::new() }
    }

    /// Requests a new token.
    async fn ask(&mut self) {
        self.asked = self.fixture.ask().await;
    }

    /// Waits until the broker has stopped at its point. Then kills it and starts it again.
    async fn kill_when_stopped(&mut self) {
        logged(&self.fixture, STOPPED).await;
        self.kill().await;
    }

    async fn kill(&mut self) {
        self.fixture.broker.kill();
        self.fixture.broker.set("MAILTOKEN_STOP_AT", None);
        self.fixture.broker.again().await;
    }

    /// Checks that the next start recovers after `requests` token requests, `presented` of them with the former refresh
    /// token.
    async fn heals(self, requests: usize, presented: usize) {
        let Self { fixture, kind, monitor, published, kept, sent, asked } = self;
        let credential = fixture.answered(&asked).await;
        let token = text(&fixture.ns.get("billing").await, "access_token");
        assert_eq!(
            (reason(&credential, "Ready"), reason(&credential, "Renewed")),
            reasons("TokenValid", "RenewalSucceeded")
        );
        assert_ne!(token, published);
        assert_eq!(Some(&token), fixture.idp.latest(kind.account()).as_ref(), "{kind:?}");
        let fingerprint = format!("sha256:{}", names::hex16(&Sha256::digest(&token)));
        assert_eq!(field(&credential, "/status/token/fingerprint"), fingerprint.as_str());
        assert_eq!(fixture.idp.token_requests().len(), sent + requests, "{kind:?}");
        if kind.is_rotating() {
            assert_eq!(fixture.idp.presented(&kept), presented, "{kind:?}");
            assert!(fixture.idp.is_valid(&fixture.kept().await));
        }
        fixture.renew().await;
        assert_eq!(fixture.idp.token_requests().len(), sent + requests + 1, "{kind:?}");
        assert_eq!((fixture.idp.reuses(), fixture.idp.families_revoked()), (0, 0));
        only_tokens_of(kind, monitor, &fixture).await;
    }

    /// Checks that the broker reports the end of a sign-in, sends no requests in a loop, and that pods keep a valid
    /// token. Then a user signs in.
    async fn loses(self) {
        let Self { fixture, kind, monitor, published, kept, sent, asked } = self;
        let failed = fixture.ns.condition::<MailCredential>("billing", "Renewed", "InvalidGrant").await;
        assert!(failed.message.contains("mail-token-broker login"), "{}", failed.message);
        let reported: MailCredential = fixture.ns.get("billing").await;
        assert_eq!((reason(&reported, "Ready"), reason(&reported, "Renewed")), reasons("TokenValid", "InvalidGrant"));
        assert_eq!(find(&reported, "Ready").unwrap().status, "True");
        fixture.ns.event_reasons_include("billing", &["Warning InvalidGrant"]).await;
        holds(Duration::from_secs(7), "there is no loop", async || match fixture.idp.token_requests().len() {
            number if number == sent + 2 => Ok(()),
            number => Err(format!("{number} requests")),
        })
        .await;
        assert_eq!((fixture.idp.presented(&kept), fixture.kept().await), (2, kept), "it is kept nevertheless");
        assert_eq!(text(&fixture.ns.get("billing").await, "access_token"), published);
        fixture.seed().await;
        fixture.answered(&asked).await;
        fixture.ready().await;
        assert!(fixture.idp.is_valid(&fixture.kept().await));
        only_tokens_of(kind, monitor, &fixture).await;
    }
}

/// Changes the settings so that a restarted broker continues immediately.
fn pod(settings: broker::Settings) -> broker::Settings {
    settings.without("--request-timeout").flag(CLAIMED_FOR_LONG).env("POD_UID", "a-pods-uid")
}

/// Waits until the broker's log contains `words`.
async fn logged(fixture: &RefreshFixture, words: &str) {
    until(&format!("it logs {words:?}"), async || match fixture.broker.log().contains(words) {
        true => Ok(()),
        false => Err(String::new()),
    })
    .await;
}

fn reasons(ready: &str, renewed: &str) -> (String, String) {
    (ready.to_owned(), renewed.to_owned())
}

/// Checks that the Secret contained a token of this account whenever the credential was ready.
async fn only_tokens_of(kind: Kind, monitor: Monitor, fixture: &RefreshFixture) {
    let seen = monitor.end().await;
    assert!(seen.contains_key("billing"), "{seen:?}");
    for token in &seen["billing"] {
        assert_eq!(fixture.idp.account(token).as_deref(), Some(kind.account()), "{token:?}");
    }
}

/// Kills the broker at a point of a renewal.
async fn killed_at(point: &str, kind: Kind) -> Crash {
    let mut crash = Crash::prepare(kind, Some(point)).await;
    crash.ask().await;
    crash.kill_when_stopped().await;
    crash
}

/// Kills the broker while it waits for the token response.
async fn killed_while_asking(kind: Kind) -> Crash {
    let mut crash = Crash::prepare(kind, None).await;
    crash.fixture.idp.next(Fault::Late(PATIENCE * 2));
    crash.ask().await;
    crash.fixture.asked(crash.sent + 1).await;
    crash.kill().await;
    crash
}

#[tokio::test]
async fn killed_before_the_request_the_broker_requests_the_token_once() {
    let heals = async |kind| killed_at("before-request", kind).await.heals(1, 1).await;
    tokio::join!(heals(Kind::ClientCredentials), heals(Kind::Grace), heals(Kind::Strict));
    tried("K1", 3, "nothing");
}

#[tokio::test]
async fn killed_while_it_waits_for_the_response_the_broker_retries_once_immediately() {
    let heals = async |kind| killed_while_asking(kind).await.heals(2, 2).await;
    let loses = async |kind| killed_while_asking(kind).await.loses().await;
    tokio::join!(heals(Kind::ClientCredentials), heals(Kind::Grace), loses(Kind::Strict));
    tried("K2", 3, "the sign-in, at the server without grace");
}

#[tokio::test]
async fn killed_with_an_unstored_response_the_broker_retries_once_immediately() {
    let heals = async |kind| killed_at("answer-received", kind).await.heals(2, 2).await;
    let loses = async |kind| killed_at("answer-received", kind).await.loses().await;
    tokio::join!(heals(Kind::ClientCredentials), heals(Kind::Grace), loses(Kind::Strict));
    tried("K3", 3, "the sign-in, at the server without grace");
}

#[tokio::test]
async fn killed_before_the_acknowledgement_of_a_write_the_broker_reads_the_secret() {
    let heals = async |point, kind, requests| killed_at(point, kind).await.heals(requests, 1).await;
    tokio::join!(
        heals("target-written", Kind::ClientCredentials, 1),
        // The refresh token is stored; the access token of the same response is lost.
        heals("grant-written", Kind::Grace, 2),
        heals("grant-written", Kind::Strict, 2),
    );
    tried("K4", 3, "nothing");
}

#[tokio::test]
async fn killed_before_the_status_write_the_broker_reports_the_token_in_the_secret() {
    let heals = async |kind| killed_at("before-status", kind).await.heals(1, 1).await;
    tokio::join!(heals(Kind::ClientCredentials), heals(Kind::Grace), heals(Kind::Strict));
    tried("K5", 3, "nothing");
}

/// Only the recovery from a failure has an Event.
#[tokio::test]
async fn killed_before_the_event_of_a_recovery_the_status_reports_the_recovery() {
    let heals = async |kind| {
        let mut crash = Crash::prepare(kind, Some("status-written:2")).await;
        crash.fixture.idp.next(Fault::error("temporarily_unavailable"));
        crash.ask().await;
        crash.fixture.ns.condition::<MailCredential>("billing", "Renewed", "ProviderUnavailable").await;
        crash.ask().await;
        crash.kill_when_stopped().await;
        crash.heals(2, 1).await;
    };
    tokio::join!(heals(Kind::ClientCredentials), heals(Kind::Grace), heals(Kind::Strict));
    tried("K6", 3, "the Event; the status has the same content");
}

/// If the broker cannot renew its lease, the lease must last as long as a request may take. Otherwise the broker
/// neither sends nor claims a refresh token.
#[tokio::test]
async fn killed_during_a_renewal_of_the_lease_the_broker_has_sent_no_request_that_outlasts_the_lease() {
    let withheld = async |kind| {
        let mut crash = Crash::prepare(kind, Some("lease-written:2")).await;
        logged(&crash.fixture, STOPPED).await;
        let before = crash.fixture.grant().await.metadata.resource_version;
        crash.ask().await;
        logged(&crash.fixture, "leadership may end before the reply").await;
        assert_eq!(crash.fixture.idp.token_requests().len(), crash.sent);
        assert_eq!(crash.fixture.grant().await.metadata.resource_version, before, "it was claimed");
        crash.kill().await;
        crash.heals(1, 1).await;
    };
    // The broker may request any number of these tokens, as long as it leads.
    let sent = async |kind| {
        let mut crash = Crash::prepare(kind, Some("lease-written:2")).await;
        crash.ask().await;
        crash.fixture.answered(&crash.asked).await;
        crash.kill_when_stopped().await;
        crash.heals(1, 1).await;
    };
    tokio::join!(sent(Kind::ClientCredentials), withheld(Kind::Grace), withheld(Kind::Strict));
    tried("K7", 3, "nothing");
}

#[tokio::test]
async fn killed_at_any_step_of_the_first_refresh_a_seed_yields_its_token() {
    let first = async |point: &str, presented| {
        let mut fixture = RefreshFixture::with(|settings| pod(settings).env("MAILTOKEN_STOP_AT", point)).await;
        fixture.idp.grace(1);
        let monitor = Monitor::start(&fixture.ns);
        let seed = fixture.seed().await;
        fixture.ns.apply(by_seed("billing")).await;
        logged(&fixture, STOPPED).await;
        fixture.broker.kill();
        fixture.broker.set("MAILTOKEN_STOP_AT", None);
        fixture.broker.again().await;
        fixture.ready().await;
        assert_eq!(fixture.idp.presented(&seed), presented, "{point}");
        assert!(fixture.idp.is_valid(&fixture.kept().await));
        fixture.renew().await;
        assert_eq!((fixture.idp.reuses(), fixture.idp.families_revoked()), (0, 0), "{point}");
        only_tokens_of(Kind::Grace, monitor, &fixture).await;
    };
    tokio::join!(first("grant-written", 1), first("before-request", 1), first("answer-received", 2));
    tokio::join!(first("grant-written:2", 1), first("target-written", 1), first("before-status", 1));
    tried("K1", 2, "nothing");
    tried("K3", 1, "nothing");
    tried("K4", 2, "nothing");
    tried("K5", 1, "nothing");
}
