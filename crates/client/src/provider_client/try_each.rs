//! The order in which the broker tries the client authentications of a provider.

use crate::{api::Reason, oauth::Refusal, provider_client::authentication::Authentication};

/// Yields the client authentications one after the other. Yields the next one only if the provider refused the client
/// itself, or if the previous one could not be used. After any other refusal, another authentication would not help.
pub struct TryEach<'a> {
    entries: &'a [Authentication],
    first: usize,
    tried: usize,
    ended: bool,
    last: Option<(Refusal, &'a Authentication)>,
}

impl<'a> TryEach<'a> {
    /// Begins at the entry `first`, which the provider accepted last. After the last entry continues with entry 0.
    pub fn new(entries: &'a [Authentication], first: usize) -> Self {
        Self { entries, first: if first < entries.len() { first } else { 0 }, tried: 0, ended: false, last: None }
    }

    /// Returns the next entry to try.
    pub fn next_entry(&mut self) -> Option<&'a Authentication> {
        if self.ended || self.tried >= self.entries.len() {
            return None;
        }
        let index = (self.first + self.tried) % self.entries.len();
        self.tried += 1;
        self.entries.get(index)
    }

    /// Records that `entry` cannot be used, so that no request was sent.
    pub fn unusable(&mut self, entry: &'a Authentication, why: Refusal) {
        self.last = Some((why, entry));
    }

    /// Records that the provider refused a request with `entry`.
    pub fn refused(&mut self, entry: &'a Authentication, refusal: Refusal) {
        self.ended = !matches!(refusal.reason, Reason::InvalidClient | Reason::ClientSecretExpired);
        self.last = Some((refusal, entry));
    }

    /// Returns the last refusal with its entry; `None` if no entry was tried.
    pub fn into_refusal(self) -> Option<(Refusal, &'a Authentication)> {
        self.last
    }
}

#[cfg(test)]
mod tests {
    use crate::{oauth::ClientAuth, provider_client::authentication::ClientCredential};

    use super::*;

    fn entries(count: usize) -> Vec<Authentication> {
        (0..count)
            .map(|index| Authentication::new("none", index, Ok(ClientCredential::Fixed(ClientAuth::Public))))
            .collect()
    }

    /// Tries entries that the provider refuses for `reason`. Returns their order, and the entry of the last refusal.
    fn tried(count: usize, first: usize, reason: Reason) -> (Vec<usize>, Option<usize>) {
        let entries = entries(count);
        let (mut each, mut order) = (TryEach::new(&entries, first), vec![]);
        while let Some(entry) = each.next_entry() {
            order.push(entry.index);
            each.refused(entry, Refusal::new(reason, "no"));
        }
        (order, each.into_refusal().map(|(_, entry)| entry.index))
    }

    #[test]
    fn the_next_is_tried_only_where_the_client_is_refused() {
        assert_eq!(tried(3, 0, Reason::InvalidClient), (vec![0, 1, 2], Some(2)));
        assert_eq!(tried(3, 1, Reason::ClientSecretExpired), (vec![1, 2, 0], Some(0)));
        assert_eq!(tried(3, 7, Reason::InvalidClient), (vec![0, 1, 2], Some(2)), "an entry was removed");
        for reason in [Reason::InvalidGrant, Reason::Throttled, Reason::ProviderUnavailable, Reason::InvalidScope] {
            assert_eq!(tried(3, 1, reason), (vec![1], Some(1)), "{reason:?}");
        }
        assert_eq!(tried(0, 0, Reason::InvalidClient), (vec![], None));
    }

    #[test]
    fn an_entry_that_cannot_be_used_is_passed_over() {
        let entries = entries(2);
        let mut each = TryEach::new(&entries, 0);
        let first = each.next_entry().unwrap();
        each.unusable(first, Refusal::new(Reason::SourceInvalid, "no"));
        assert_eq!(each.next_entry().map(|entry| entry.index), Some(1));
        assert!(each.next_entry().is_none());
        assert_eq!(
            each.into_refusal().map(|(refusal, entry)| (refusal.reason, entry.index)),
            Some((Reason::SourceInvalid, 0))
        );
    }
}
