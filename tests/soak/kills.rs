//! Kills the broker at random moments, and reconstructs the effect from the objects in the cluster and from the
//! server's record of each request.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use k8s_openapi::{api::core::v1::Secret, jiff::Timestamp};
use kube::ResourceExt as _;
use mail_token_broker::api::{MailCredential, names};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::{
    Chance,
    servers::{APP, PEOPLE, Server},
};
use mailtoken_testkit::{
    Broker, Cluster, Manifest, Monitor, Namespace, by_seed, credential, fixture::reason, fixture::text,
    namespace::find, source, standin::strict::Exchange, wait::until_in,
};

/// Number of credentials with refresh tokens. One more credential uses client credentials.
const PERSONS: usize = 6;
/// Range of the time between the start and the kill of a broker, in milliseconds.
const MOMENTS: (u64, u64) = (200, 2500);
/// End of that range for every second kill: the broker renews all tokens right after its start.
const EARLY: u64 = 900;
/// Maximum time in which the server handles a request of a killed broker.
const HANDLED: Duration = Duration::from_millis(300);
/// Time limit for the recovery after the last kill.
const HEALED: Duration = Duration::from_secs(120);
/// Number of stores whose duration is measured.
const TIMED: usize = 100;

/// The last step of a refresh before a kill.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    #[default]
    Rest,
    Claimed,
    Asked,
    Answered,
    Stored,
    Published,
}

/// The steps at which a refresh was in progress, with their descriptions.
pub const STEPS: &[(Step, &str)] = &[
    (Step::Claimed, "K1 claimed, not asked"),
    (Step::Asked, "K2 asked, not answered"),
    (Step::Answered, "K3 answered, nothing stored"),
    (Step::Stored, "K4 refresh token stored, target not"),
    (Step::Published, "K5 target written, status not"),
];

/// The counts of the kills at one server.
pub struct Tally {
    pub server: String,
    pub kills: usize,
    /// Number of kills while no refresh was in progress.
    pub quiet: usize,
    /// Number of refreshes in progress at a kill, by step.
    pub hits: BTreeMap<Step, usize>,
    /// Number of lost sign-ins, by the step of the refresh at the kill.
    pub losses: BTreeMap<Step, usize>,
    pub requests: usize,
    /// How often the broker sent a refresh token that it had sent before.
    pub again: usize,
    /// Number of refresh tokens that were between request and store at a kill.
    outstanding: usize,
    /// Times from the handling of a request to the store of its refresh token.
    windows: Vec<Duration>,
    pub wrong: Vec<String>,
}

impl Tally {
    /// Describes the losses for the fault log.
    pub fn lost(&self) -> String {
        match self.losses.values().sum::<usize>() {
            0 => format!("nothing, at {}", self.server),
            number => format!("{number} sign-ins, at {}, all between request and store", self.server),
        }
    }

    /// Returns how often the broker had to send a token again.
    pub fn forced(&self) -> usize {
        self.outstanding
    }

    /// Returns the median, the 99th percentile and the maximum in milliseconds.
    pub fn window(&self) -> String {
        let mut sorted = self.windows.clone();
        sorted.sort();
        let at = |part: usize| sorted.get((sorted.len() * part / 100).min(sorted.len().saturating_sub(1)));
        let shown = |time: Option<&Duration>| time.map_or("-".to_owned(), |time| time.as_millis().to_string());
        [at(50), at(99), sorted.last()].map(shown).join(" / ")
    }
}

/// A credential of the test.
#[derive(Default)]
struct Subject {
    name: String,
    /// The accounts that its access tokens may have: for the server, each sign-in may be another account.
    accounts: BTreeSet<String>,
    by_person: bool,
    /// The refresh token that was between request and store at a kill, and the step of the first such kill.
    suspect: Option<(String, Step)>,
    /// The refresh token of the last lost sign-in.
    lost: Option<String>,
    last: Step,
    /// The progress after the previous kill.
    former: Option<Progress>,
}

/// A value that changes with every step of a refresh: refresh token, access token, claim, number of requests, and
/// whether the status reports the token.
type Progress = (String, String, Option<String>, usize, bool);

/// The state of one credential in the cluster.
struct Observed<'a> {
    credential: &'a MailCredential,
    access: String,
    refresh: String,
    claim: Option<String>,
}

impl Observed<'_> {
    /// Returns the step of the credential's refresh at the kill.
    fn step(&self, subject: &Subject, journal: &[Exchange], server: &dyn Server, killed: Timestamp) -> Step {
        let refresh = server.id(&self.refresh);
        let presented = |one: &&Exchange| subject.by_person && one.presented.as_ref() == Some(&refresh);
        let newest = journal.iter().rev().find(|one| subject.accounts.contains(&one.account) && one.issued.is_some());
        let behind = newest.filter(|one| one.issued != Some(server.id(&self.access)));
        let under_way = |one: &Exchange| {
            let latency = i64::try_from(server.latency().as_millis()).unwrap();
            let answered = one.at.as_millisecond() + latency <= killed.as_millisecond();
            if answered { Step::Answered } else { Step::Asked }
        };
        if subject.lost.as_ref() == Some(&self.refresh) {
            // The seed's Secret already contains the next refresh token.
            return Step::Rest;
        }
        if let Some(exchange) = journal.iter().rev().find(presented) {
            return under_way(exchange);
        }
        match behind {
            _ if self.claim.is_some() => Step::Claimed,
            Some(_) if subject.by_person => Step::Stored,
            Some(exchange) => under_way(exchange),
            None if self.is_reported() => Step::Rest,
            None => Step::Published,
        }
    }

    fn progress(&self, subject: &Subject, journal: &[Exchange]) -> Progress {
        let requests = journal.iter().filter(|one| subject.accounts.contains(&one.account)).count();
        (self.refresh.clone(), self.access.clone(), self.claim.clone(), requests, self.is_reported())
    }

    fn is_reported(&self) -> bool {
        let fingerprint = format!("sha256:{}", names::hex16(&Sha256::digest(&self.access)));
        let token = self.credential.status.as_ref().and_then(|status| status.token.as_ref());
        token.is_some_and(|token| token.fingerprint == fingerprint)
    }

    /// Whether the credential has recovered. While a broker stops, it requests no token, so the last one may expire.
    fn is_well(&self, broker_runs: bool) -> bool {
        let is = |kind: &str| find(self.credential, kind).is_some_and(|condition| condition.status == "True");
        let has_token = is("Ready") || (!broker_runs && reason(self.credential, "Ready") == "Expired");
        has_token && is("Renewed") && !is("Stalled")
    }

    /// Whether the server has refused the refresh token, and the status reports the refusal.
    fn is_lost(&self, subject: &Subject, journal: &[Exchange], server: &dyn Server) -> bool {
        let refresh = server.id(&self.refresh);
        let refused = |one: &Exchange| one.presented.as_ref() == Some(&refresh) && one.issued.is_none();
        subject.by_person
            && subject.lost.as_ref() != Some(&self.refresh)
            && reason(self.credential, "Stalled") == "InvalidGrant"
            && journal.iter().any(refused)
    }
}

struct Soak<'a> {
    server: &'a dyn Server,
    ns: Namespace,
    broker: Broker,
    subjects: Vec<Subject>,
    tally: Tally,
}

/// Kills a broker `kills` times.
pub async fn soak(cluster: &Cluster, server: &dyn Server, kills: usize, chance: &mut Chance) -> Tally {
    println!("\n{}: {PERSONS} refresh tokens and client credentials", server.name());
    let (mut soak, monitor) = Soak::begin(cluster, server).await;
    for number in 1..=kills {
        let latest = if number % 2 == 0 { MOMENTS.1 } else { EARLY };
        tokio::time::sleep(Duration::from_millis(chance.between(MOMENTS.0, latest))).await;
        let killed = Timestamp::now();
        soak.broker.kill();
        tokio::time::sleep(HANDLED).await;
        soak.record_kill(killed).await;
        soak.broker.relaunch();
        if number % 10 == 0 || number == kills {
            let Tally { hits, losses, quiet, .. } = &soak.tally;
            println!("{number} of {kills} kills, {quiet} at rest; hit {hits:?}; lost {losses:?}");
        }
    }
    soak.tally.kills = kills;
    soak.heal().await;
    soak.time().await;
    soak.close(monitor).await
}

impl<'a> Soak<'a> {
    async fn begin(cluster: &Cluster, server: &'a dyn Server) -> (Self, Monitor) {
        let ns = cluster.namespace().await;
        for manifest in server.manifests() {
            ns.apply(manifest).await;
        }
        let settings =
            Broker::settings(&ns).flag("--request-timeout=5s").env("POD_UID", "a-pods-uid").env("RUST_LOG", "info");
        let broker = settings.start().await;
        let tally = Tally {
            server: server.name().to_owned(),
            kills: 0,
            quiet: 0,
            hits: BTreeMap::new(),
            losses: BTreeMap::new(),
            requests: 0,
            again: 0,
            outstanding: 0,
            windows: vec![],
            wrong: vec![],
        };
        let mut soak = Self { server, ns, broker, subjects: vec![], tally };
        let monitor = Monitor::start(&soak.ns);
        soak.add(APP.to_owned(), BTreeSet::from([server.app()]), credential(APP), APP).await;
        for number in 0..PERSONS {
            let name = format!("person-{number}");
            let account = soak.sign_in(&name).await;
            let seed = json!({"refreshToken": {"secretRef": {"name": format!("seed-{name}"), "key": "refresh_token"}}});
            let manifest = by_seed(&name).set("spec.grant", seed);
            soak.add(name, BTreeSet::from([account]), manifest, PEOPLE).await;
        }
        soak.heal().await;
        (soak, monitor)
    }

    async fn add(&mut self, name: String, accounts: BTreeSet<String>, manifest: Manifest, provider: &str) {
        let mailbox = self.server.mailbox(&name);
        let manifest = manifest.set("spec.providerRef.name", provider).set("spec.mailbox.address", mailbox);
        self.ns.apply(manifest).await;
        let by_person = provider == PEOPLE;
        self.subjects.push(Subject { name, accounts, by_person, ..Subject::default() });
    }

    /// Signs a user in. Returns the account.
    async fn sign_in(&self, name: &str) -> String {
        let (account, token) = self.server.sign_in(name);
        self.ns.apply(source(&format!("seed-{name}"), "refresh_token", &token)).await;
        account
    }

    /// Records the effect of a kill, and losses.
    async fn record_kill(&mut self, killed: Timestamp) {
        let before: usize = self.tally.hits.values().sum();
        // The credentials need not have recovered yet.
        self.check_all(Some(killed)).await.ok();
        let after: usize = self.tally.hits.values().sum();
        self.tally.quiet += usize::from(before == after);
    }

    /// Checks whether all credentials have recovered. A user whose sign-in was lost signs in again.
    async fn check_all(&mut self, killed: Option<Timestamp>) -> Result<(), String> {
        let journal = self.server.journal();
        let credentials = self.ns.api::<MailCredential>().list(&Default::default()).await.unwrap();
        let secrets = self.ns.api::<Secret>().list(&Default::default()).await.unwrap();
        let mut unwell = vec![];
        let mut subjects = std::mem::take(&mut self.subjects);
        for subject in &mut subjects {
            let secret = |name: &str| secrets.iter().find(|secret| secret.name_any() == name);
            let grant = secret(&format!("{}-grant", subject.name));
            let observed = Observed {
                credential: credentials.iter().find(|one| one.name_any() == subject.name).unwrap(),
                access: secret(&subject.name).map(|secret| text(secret, "access_token")).unwrap_or_default(),
                refresh: grant.map(|secret| text(secret, "refresh_token")).unwrap_or_default(),
                claim: grant.and_then(|secret| secret.annotations().get(names::ANNOTATION_CLAIM).cloned()),
            };
            if observed.is_lost(subject, &journal, self.server) {
                self.lose(subject, &observed).await;
            } else if let Some(killed) = killed {
                let progress = Some(observed.progress(subject, &journal));
                let step = observed.step(subject, &journal, self.server, killed);
                // If the progress is unchanged, the broker was killed before its first step.
                let met = std::mem::replace(&mut subject.former, progress.clone()) != progress;
                if met {
                    self.note(subject, &observed, step);
                }
            }
            if !observed.is_well(killed.is_none()) {
                let [ready, renewed] = ["Ready", "Renewed"].map(|kind| reason(observed.credential, kind));
                unwell.push(format!("{}: Ready {ready}, Renewed {renewed}", subject.name));
            }
        }
        self.subjects = subjects;
        if unwell.is_empty() { Ok(()) } else { Err(unwell.join(", ")) }
    }

    fn note(&mut self, subject: &mut Subject, observed: &Observed<'_>, step: Step) {
        subject.last = step;
        if step == Step::Rest {
            return;
        }
        *self.tally.hits.entry(step).or_default() += 1;
        if subject.by_person && matches!(step, Step::Asked | Step::Answered) {
            self.tally.outstanding += 1;
            let known = subject.suspect.take().filter(|(token, _)| *token == observed.refresh);
            subject.suspect = known.or_else(|| Some((observed.refresh.clone(), step)));
        }
    }

    async fn lose(&mut self, subject: &mut Subject, observed: &Observed<'_>) {
        let cause = subject.suspect.take().filter(|(token, _)| *token == observed.refresh);
        let step = cause.as_ref().map_or(subject.last, |(_, step)| *step);
        *self.tally.losses.entry(step).or_default() += 1;
        if cause.is_none() {
            let server = self.server.name();
            self.tally.wrong.push(format!("{server}: {} lost its sign-in, last hit at {step:?}", subject.name));
        }
        subject.lost = Some(observed.refresh.clone());
        subject.accounts.insert(self.sign_in(&subject.name).await);
    }

    /// Waits until all credentials have recovered.
    async fn heal(&mut self) {
        until_in(HEALED, "all credentials are ready", async || self.check_all(None).await).await;
    }

    /// Measures the time between the issue of a refresh token and its store, without kills.
    async fn time(&mut self) {
        let start = Timestamp::now();
        let timed = |journal: Vec<Exchange>| {
            journal.into_iter().filter(|one| one.at > start && one.presented.is_some() && one.issued.is_some())
        };
        until_in(HEALED, "enough renewals are timed", async || match timed(self.server.journal()).count() {
            number if number >= TIMED => Ok(()),
            number => {
                tokio::time::sleep(Duration::from_secs(1)).await;
                Err(format!("{number} so far"))
            }
        })
        .await;
        assert!(self.broker.terminate().await.success());
        let stores: Vec<_> = self
            .ns
            .cluster
            .audit()
            .into_iter()
            .filter(|event| event.namespace == self.ns.name && event.access.verb == "patch" && event.code < 300)
            .collect();
        for exchange in timed(self.server.journal()) {
            let subject = self.subjects.iter().find(|one| one.accounts.contains(&exchange.account)).unwrap();
            let (name, answered) = (format!("{}-grant", subject.name), exchange.at + self.server.latency());
            let store = stores.iter().find(|event| event.name == name && event.at > answered);
            let store = store.unwrap_or_else(|| panic!("no store of {name} after {answered}"));
            self.tally.windows.push(store.at.duration_since(answered).unsigned_abs());
        }
    }

    /// Checks that no refresh is incomplete, and that no Secret ever contained a wrong token.
    async fn close(mut self, monitor: Monitor) -> Tally {
        let name = self.server.name();
        self.check_all(Some(Timestamp::now())).await.unwrap_or_else(|unwell| {
            self.tally.wrong.push(format!("{name}: after the end {unwell}"));
        });
        let left = self.subjects.iter().filter(|subject| subject.last != Step::Rest);
        let left: Vec<_> =
            left.map(|subject| format!("{name}: {} ended at {:?}", subject.name, subject.last)).collect();
        self.tally.wrong.extend(left);
        for (credential, tokens) in monitor.end().await {
            let accounts = &self.subjects.iter().find(|subject| subject.name == credential).unwrap().accounts;
            let foreign = |token: &&String| self.server.account(token).is_none_or(|whose| !accounts.contains(&whose));
            let foreign = tokens.iter().filter(foreign).count();
            if foreign > 0 {
                self.tally.wrong.push(format!("{name}: {credential} was ready with {foreign} wrong tokens"));
            }
        }
        let journal = self.server.journal();
        self.tally.requests = journal.len();
        let presented: Vec<_> = journal.iter().filter_map(|exchange| exchange.presented.as_ref()).collect();
        self.tally.again = presented.len() - presented.iter().collect::<BTreeSet<_>>().len();
        if self.tally.again > self.tally.forced() {
            self.tally.wrong.push(format!("{name}: {} refresh tokens were sent again", self.tally.again));
        }
        if self.broker.log().contains("panicked") {
            self.tally.wrong.push(format!("{name}: the broker panicked"));
        }
        self.tally
    }
}
