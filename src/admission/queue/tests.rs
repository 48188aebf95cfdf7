//! Tables and properties of the order, the shares and the budgets.

use proptest::prelude::*;

use super::*;

const NOW: Duration = Duration::from_secs(1_000);
const SMALL: Budgets = Budgets { total: 8, host: 4, reserve: 2 };

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

fn ask(namespace: &str, host: &str, class: Class, due: i64) -> Ask {
    Ask {
        namespace: namespace.into(),
        name: "billing".into(),
        host: host.into(),
        provider: format!("provider of {host}").into(),
        limit: None,
        class,
        due: at(due),
    }
}

fn renewal(namespace: &str, host: &str) -> Ask {
    ask(namespace, host, Class::Renewal, 0)
}

fn limited(namespace: &str, class: Class) -> Ask {
    Ask { limit: Some(Limit::new(60, 1)), ..ask(namespace, "idp", class, 0) }
}

/// Sends `number` rows one after the other to a host with one permit. Each request takes a second.
fn served(queue: &mut Queue<u64>, number: usize) -> Vec<u64> {
    let mut order = vec![];
    for second in 0..number {
        let now = NOW + Duration::from_secs(second as u64);
        for key in queue.admit(now) {
            assert!(queue.send(&key, now).is_some());
            queue.free(&key);
            order.push(key);
            if order.len() == number {
                return order;
            }
        }
    }
    order
}

fn one_permit() -> Queue<u64> {
    Queue::new(Budgets { total: 1, host: 1, reserve: 0 })
}

#[test]
fn a_namespace_is_served_by_class_and_then_by_due_time() {
    use Class::{EndsSoon, Person, Renewal, Retry};
    let rows = [(Retry, 1), (Renewal, 9), (Renewal, 2), (EndsSoon, 7), (Person, 8), (Person, 3), (EndsSoon, 5)];
    let mut queue = one_permit();
    for (number, (class, due)) in rows.into_iter().enumerate() {
        queue.ask(&(number as u64), ask("shop", "idp", class, due), NOW);
    }
    assert_eq!(served(&mut queue, 7), [5, 4, 6, 3, 2, 1, 0]);
}

#[test]
fn rows_of_one_class_and_due_time_are_served_in_their_order_of_arrival() {
    let mut queue = one_permit();
    (0..10).for_each(|number| queue.ask(&number, renewal("shop", "idp"), NOW));
    // The row keeps its age although its owner asks again.
    queue.ask(&0, ask("shop", "idp", Class::Renewal, 0), NOW + Duration::from_secs(5));
    assert_eq!(served(&mut queue, 10), (0..10).collect::<Vec<_>>());
}

#[test]
fn two_namespaces_get_equal_shares_however_many_rows_they_have() {
    let mut queue = one_permit();
    (0..1_000).for_each(|number| queue.ask(&number, renewal("flood", "idp"), NOW));
    (1_000..1_010).for_each(|number| queue.ask(&number, ask("quiet", "idp", Class::Renewal, 999), NOW));
    let quiet = served(&mut queue, 20).into_iter().filter(|key| *key >= 1_000).count();
    assert_eq!(quiet, 10);
}

#[test]
fn a_flood_of_the_best_class_leaves_others_every_second_permit() {
    let mut queue = one_permit();
    (0..1_000).for_each(|number| queue.ask(&number, ask("flood", "idp", Class::Person, 0), NOW));
    (1_000..1_010).for_each(|number| queue.ask(&number, ask("quiet", "idp", Class::Retry, 0), NOW));
    let quiet = served(&mut queue, 20).into_iter().filter(|key| *key >= 1_000).count();
    assert_eq!(quiet, 10);
}

#[test]
fn a_person_waits_for_few_of_the_thousand_namespaces_that_renew() {
    let mut queue = one_permit();
    (0..1_000).for_each(|number| queue.ask(&number, renewal(&format!("ns-{number}"), "idp"), NOW));
    queue.ask(&1_000, ask("late", "idp", Class::Person, 0), NOW);
    assert!(served(&mut queue, 2).contains(&1_000));
}

#[test]
fn a_namespace_holds_half_of_a_host_while_another_waits_and_all_of_it_otherwise() {
    let mut queue = Queue::new(Budgets::default());
    (0..100).for_each(|number| queue.ask(&number, renewal("flood", "idp"), NOW));
    assert_eq!(queue.admit(NOW).len(), 32);
    (100..200).for_each(|number| queue.ask(&number, renewal("quiet", "idp"), NOW));
    (0..16).for_each(|key| queue.free(&key));
    let admitted = queue.admit(NOW);
    assert_eq!(admitted.len(), 16);
    assert!(admitted.iter().all(|key| *key >= 100), "{admitted:?}");
}

#[test]
fn no_namespace_takes_the_last_permits_of_all() {
    let mut queue = Queue::new(Budgets::default());
    for number in 0..500 {
        queue.ask(&number, renewal("flood", &format!("host-{}", number % 10)), NOW);
    }
    assert_eq!(queue.admit(NOW).len(), 128 - 16);
    queue.ask(&500, renewal("quiet", "idp"), NOW);
    assert_eq!(queue.admit(NOW), [500]);
}

#[test]
fn a_host_that_hangs_takes_no_place_from_the_others() {
    let mut queue = Queue::new(Budgets::default());
    (0..1_000).for_each(|number| queue.ask(&number, renewal("shop", "slow"), NOW));
    assert_eq!(queue.admit(NOW).len(), 32);
    queue.ask(&1_000, renewal("shop", "quick"), NOW);
    assert_eq!(queue.admit(NOW), [1_000]);
}

#[test]
fn a_rate_limit_admits_one_row_an_interval_and_delays_no_other_provider() {
    let mut queue = Queue::new(Budgets::default());
    (0..3).for_each(|number| queue.ask(&number, limited("shop", Class::Renewal), NOW));
    let other = Ask { provider: "another".into(), limit: None, ..limited("shop", Class::Renewal) };
    queue.ask(&3, other, NOW);
    let mut first = queue.admit(NOW);
    first.sort_unstable();
    assert_eq!(first, [0, 3]);
    assert_eq!(queue.opens_after(NOW), Some(NOW + Duration::from_secs(1)));
    assert!(queue.admit(NOW + Duration::from_millis(999)).is_empty());
    assert_eq!(queue.admit(NOW + Duration::from_secs(1)), [1]);
    // The second request of an attempt also counts.
    assert!(queue.send(&1, NOW).is_some());
    queue.charge(&1, NOW + Duration::from_secs(1));
    assert_eq!(queue.opens_after(NOW + Duration::from_secs(1)), Some(NOW + Duration::from_secs(3)));
}

#[test]
fn a_host_that_fails_gets_ten_repeated_requests_a_second_until_it_serves_one() {
    let mut queue = Queue::new(Budgets { total: 100, host: 100, reserve: 0 });
    let failed = |queue: &mut Queue<u64>, key: u64, now| {
        assert!(queue.send(&key, now).is_some());
        queue.end("idp", false);
        queue.free(&key);
    };
    (0..50).for_each(|number| queue.ask(&number, ask("shop", "idp", Class::Retry, 0), NOW));
    queue.end("idp", false);
    let admitted = queue.admit(NOW);
    assert_eq!(admitted.len(), 10, "the burst");
    assert_eq!(queue.opens_after(NOW), Some(NOW + Duration::from_millis(100)));
    // A withdrawn offer refunds its charge.
    queue.withdraw(&admitted[0]);
    assert_eq!(queue.admit(NOW).len(), 1);
    admitted[1..].iter().for_each(|key| failed(&mut queue, *key, NOW));
    assert!(queue.admit(NOW).is_empty());
    // The limit applies only to repeated requests to this host, not to first attempts or other hosts.
    (100..120).for_each(|number| queue.ask(&number, renewal("shop", "idp"), NOW));
    (200..220).for_each(|number| queue.ask(&number, ask("shop", "other", Class::Retry, 0), NOW));
    assert!(queue.admit(NOW).iter().all(|key| *key >= 100));
    // The limit remains after a wait of a minute.
    let later = NOW + Duration::from_secs(90);
    assert_eq!(queue.admit(later).len(), 10);
    queue.end("idp", true);
    assert_eq!(queue.admit(later).len(), 50 - 21);
}

#[test]
fn rows_that_wait_at_one_host_share_their_names() {
    let mut queue = one_permit();
    (0..3).for_each(|number| queue.ask(&number, renewal("shop", "idp"), NOW));
    let [first, last] = [0, 2].map(|key| queue.asked(&key).unwrap());
    let same = |of: fn(&Ask) -> &Arc<str>| Arc::ptr_eq(of(first), of(last));
    assert!(same(|ask| &ask.host) && same(|ask| &ask.provider) && same(|ask| &ask.namespace));
}

#[test]
fn namespaces_take_turns_at_a_rate_limit() {
    let mut queue = Queue::new(Budgets::default());
    (0..100).for_each(|number| queue.ask(&number, limited("flood", Class::Person), NOW));
    assert_eq!(served(&mut queue, 3), [0, 1, 2]);
    queue.ask(&100, limited("quiet", Class::Renewal), NOW);
    let at = |second| NOW + Duration::from_secs(second);
    let mut next = queue.admit(at(10));
    next.extend(queue.admit(at(11)));
    assert!(next.contains(&100), "{next:?}");
}

#[test]
fn a_changed_or_removed_limit_applies_immediately() {
    let mut queue = Queue::new(Budgets::default());
    (0..3).for_each(|number| queue.ask(&number, limited("shop", Class::Renewal), NOW));
    assert_eq!(queue.admit(NOW), [0]);
    queue.ask(&1, Ask { limit: None, ..limited("shop", Class::Renewal) }, NOW);
    assert_eq!(queue.admit(NOW).len(), 2, "the flow has the limit that was asked for last");
}

#[test]
fn a_row_that_is_withdrawn_frees_its_place_and_its_charge() {
    let mut queue = Queue::new(Budgets::default());
    (0..3).for_each(|number| queue.ask(&number, limited("shop", Class::Renewal), NOW));
    assert_eq!(queue.admit(NOW), [0]);
    queue.withdraw(&0);
    queue.withdraw(&1);
    assert_eq!(queue.admit(NOW), [2]);
    assert!(queue.send(&2, NOW).is_some());
    queue.withdraw(&2);
    assert_eq!(queue.state(&2), Some((State::Sent, NOW)), "what is in flight ends on its own");
    assert!(queue.send(&0, NOW).is_none(), "it has no permit any more");
}

#[test]
fn a_row_that_asks_for_another_host_gives_its_place_back() {
    let mut queue = Queue::new(SMALL);
    queue.ask(&0, renewal("shop", "issuer"), NOW);
    assert_eq!(queue.admit(NOW), [0]);
    queue.ask(&0, ask("shop", "issuer", Class::Person, 5), NOW);
    assert_eq!(queue.state(&0).unwrap().0, State::Offered, "the permit is good for it");
    queue.ask(&0, renewal("shop", "token"), NOW);
    assert_eq!(queue.state(&0).unwrap().0, State::Queued);
    assert!(!queue.hosts.contains_key("issuer"));
}

#[test]
fn a_row_that_waits_for_a_minute_is_served_before_better_new_rows() {
    let mut queue = one_permit();
    queue.ask(&0, ask("shop", "idp", Class::Retry, 0), NOW);
    let late = NOW + LONG_WAIT;
    (1..100).for_each(|number| queue.ask(&number, ask("shop", "idp", Class::Person, 0), late));
    let mut order = vec![];
    for _ in 0..4 {
        for key in queue.admit(late) {
            queue.free(&key);
            order.push(key);
        }
    }
    assert!(order.contains(&0), "{order:?}");
}

#[test]
fn nothing_is_given_after_the_end() {
    let mut queue = Queue::new(SMALL);
    (0..6).for_each(|number| queue.ask(&number, renewal("shop", "idp"), NOW));
    let admitted = queue.admit(NOW);
    assert!(queue.send(&admitted[0], NOW).is_some());
    queue.clear();
    assert!(queue.admit(NOW).is_empty());
    assert_eq!(queue.used, 1);
}

#[test]
fn an_offer_that_is_not_used_is_found() {
    let mut queue = Queue::new(SMALL);
    (0..2).for_each(|number| queue.ask(&number, renewal("shop", "idp"), NOW));
    queue.admit(NOW);
    assert!(queue.send(&0, NOW).is_some());
    assert_eq!(queue.unused_since(NOW + Duration::from_secs(1)), [1]);
    assert!(queue.unused_since(NOW).is_empty());
}

/// An operation on a queue.
#[derive(Clone, Debug)]
enum Event {
    Ask { key: u64, namespace: u8, host: u8, class: u8, due: i64, limited: bool },
    Withdraw(u64),
    Send(u64),
    Free(u64),
    Pass(u64),
}

fn event() -> impl Strategy<Value = Event> {
    let key = 0u64..40;
    prop_oneof![
        4 => (key.clone(), 0u8..4, 0u8..4, 0u8..4, 0i64..50, prop::bool::weighted(0.2)).prop_map(
            |(key, namespace, host, class, due, limited)| Event::Ask { key, namespace, host, class, due, limited }
        ),
        1 => key.clone().prop_map(Event::Withdraw),
        3 => key.clone().prop_map(Event::Send),
        2 => key.prop_map(Event::Free),
        1 => (1u64..90).prop_map(Event::Pass),
    ]
}

fn class(number: u8) -> Class {
    [Class::Person, Class::EndsSoon, Class::Renewal, Class::Retry][usize::from(number)]
}

/// Counts the rows with a permit that `of` accepts.
fn permits(queue: &Queue<u64>, of: impl Fn(&Ask) -> bool) -> usize {
    queue.rows.values().filter(|row| row.state != State::Queued && of(&row.ask)).count()
}

proptest! {
    #[test]
    fn budgets_are_kept_and_no_place_is_left_free_that_a_row_could_use(events in prop::collection::vec(event(), 1..200)) {
        let mut queue = Queue::new(SMALL);
        let mut now = NOW;
        for event in events {
            match event {
                Event::Ask { key, namespace, host, class: number, due, limited } => {
                    let ask = ask(&format!("ns-{namespace}"), &format!("host-{host}"), class(number), due);
                    let limit = limited.then(|| Limit::new(6, 2));
                    let provider = if limited { format!("limited {host}").into() } else { ask.provider.clone() };
                    queue.ask(&key, Ask { limit, provider, ..ask }, now);
                }
                Event::Withdraw(key) => queue.withdraw(&key),
                Event::Send(key) => { queue.send(&key, now); }
                Event::Free(key) => if queue.state(&key).is_some_and(|(state, _)| state == State::Sent) { queue.free(&key) },
                Event::Pass(seconds) => now += Duration::from_secs(seconds),
            }
            let before: Vec<_> = queue.namespaces.clone().into_iter().collect();
            let admitted = queue.admit(now);
            prop_assert!(admitted.iter().all(|key| queue.state(key).unwrap().0 == State::Offered));
            prop_assert_eq!(queue.used, permits(&queue, |_| true));
            prop_assert!(queue.used <= SMALL.total);
            for (name, host) in &queue.hosts {
                prop_assert_eq!(host.used, permits(&queue, |ask| ask.host == *name));
                prop_assert!(host.used <= SMALL.host);
            }
            // A namespace gets no permit beyond the total minus the reserve.
            for (namespace, used) in &queue.namespaces {
                prop_assert_eq!(*used, permits(&queue, |ask| ask.namespace == *namespace));
                let had = before.iter().find(|(name, _)| name == namespace).map_or(0, |(_, had)| *had);
                prop_assert!(*used <= had.max(SMALL.total - SMALL.reserve), "{namespace} has {used}");
            }
            // A row waits only if a limit is reached.
            for row in queue.rows.values().filter(|row| row.state == State::Queued) {
                let full = queue.used == SMALL.total || queue.hosts[&row.ask.host].used == SMALL.host;
                let closed = queue.bucket_of(&row.ask.provider, row.ask.limit).is_some_and(|bucket| bucket.opens_at() > now);
                let shared = queue.used + SMALL.reserve >= SMALL.total
                    && queue.namespaces.get(&row.ask.namespace).is_some_and(|used| *used >= SMALL.total / 2);
                prop_assert!(full || closed || shared, "{:?}", row.ask);
            }
        }
        for key in 0..40 {
            queue.free(&key);
        }
        prop_assert!(queue.rows.is_empty() && queue.hosts.is_empty() && queue.namespaces.is_empty());
        prop_assert_eq!(queue.used, 0);
    }

    #[test]
    fn every_row_is_served_although_better_ones_keep_coming(
        permit in 0u64..40, class_of in 0u8..4, newcomers in prop::collection::vec((0u8..3, 0u8..4), 200),
    ) {
        let mut queue = Queue::new(Budgets { total: 1, host: 1, reserve: 0 });
        let mut now = NOW;
        for number in 0..40 {
            let class = class(if number == permit { class_of } else { 0 });
            queue.ask(&number, ask("ns-0", "idp", class, 0), now);
        }
        let mut waited = 0;
        for (number, (namespace, class_of)) in newcomers.into_iter().enumerate() {
            now += Duration::from_secs(1);
            queue.ask(&(100 + number as u64), ask(&format!("ns-{namespace}"), "idp", class(class_of), 0), now);
            let next = queue.admit(now);
            prop_assert_eq!(next.len(), 1);
            queue.free(&next[0]);
            if next[0] == permit {
                return Ok(());
            }
            waited = number;
        }
        // After a minute, every second permit goes to the three namespaces in turn. Within a namespace, the oldest of
        // forty rows is first.
        prop_assert!(waited < 199, "it was never served");
    }
}
