//! The parts that all probes share: the admission of logins, the dialer, and the accounts with a login in flight.

use std::{collections::HashSet, sync::Arc};

use parking_lot::Mutex;

use crate::{mail::MailDialer, reconcile::act::activity::Admission};

/// The admission, the dialer and the accounts of all probes.
pub struct Probes {
    /// Decides when a login may begin.
    pub admission: Admission,
    /// Connects to mail servers.
    pub(super) dialer: MailDialer,
    /// Allows one login at a time for each account.
    pub(super) turns: Turns,
}

impl Probes {
    /// Creates the state of probes that connect with `dialer` when `admission` permits it.
    pub fn new(admission: Admission, dialer: MailDialer) -> Self {
        Self { admission, dialer, turns: Turns::default() }
    }
}

/// Returns the account of `user` at a server, as one key. Letter case does not distinguish accounts.
pub(super) fn account(host: &str, port: u16, user: &str) -> String {
    format!("{host}:{port} {user}").to_lowercase()
}

/// The accounts with a login in flight.
#[derive(Default)]
pub(super) struct Turns(Arc<Mutex<HashSet<String>>>);

impl Turns {
    /// Reserves `account` for one login. `None`: another login with this account is in flight.
    pub(super) fn take(&self, account: String) -> Option<Turn> {
        if !self.0.lock().insert(account.clone()) {
            return None;
        }
        Some(Turn { busy: self.0.clone(), account })
    }
}

/// The right to log in with an account. Dropping the value ends the right.
pub(super) struct Turn {
    busy: Arc<Mutex<HashSet<String>>>,
    account: String,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.busy.lock().remove(&self.account);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_has_one_login_at_a_time_until_its_turn_ends() {
        let turns = Turns::default();
        let billing = || account("mail.example.org", 993, "billing");
        let first = turns.take(billing()).unwrap();
        // A failed attempt to take the turn does not end the turn of the login in flight.
        for attempt in [billing(), billing(), account("MAIL.example.org", 993, "Billing")] {
            assert!(turns.take(attempt).is_none());
        }
        for other in [
            account("mail.example.org", 587, "billing"),
            account("mail.example.com", 993, "billing"),
            account("mail.example.org", 993, "support"),
        ] {
            assert!(turns.take(other).is_some());
        }
        drop(first);
        assert!(turns.take(billing()).is_some());
    }
}
