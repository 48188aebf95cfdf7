//! What all probes share: the admission of their logins, the dialer, and the accounts with a login under way.

use std::collections::HashSet;

use parking_lot::Mutex;

use crate::{mail::MailDialer, reconcile::act::activity::Admission};

/// The admission and the dialer of all probes.
pub struct Probes {
    /// Decides when a login may begin.
    pub admission: Admission,
    /// Dials mail servers.
    pub(super) dialer: MailDialer,
    /// The accounts, each at its server, with a login under way: one login at a time for each mailbox.
    busy: Mutex<HashSet<Account>>,
}

/// A user name at a server: host, port, user name in lower case.
pub(super) type Account = (String, u16, String);

/// The right to log in with an account, until it is dropped.
pub(super) struct Turn<'a> {
    probes: &'a Probes,
    account: Account,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.probes.busy.lock().remove(&self.account);
    }
}

impl Probes {
    /// Probes that dial with `dialer`, as `admission` permits.
    pub fn new(admission: Admission, dialer: MailDialer) -> Self {
        Self { admission, dialer, busy: Mutex::default() }
    }

    /// The turn of an account; `None` while another login with it is under way.
    pub(super) fn turn(&self, account: Account) -> Option<Turn<'_>> {
        let free = self.busy.lock().insert(account.clone());
        free.then_some(Turn { probes: self, account })
    }
}
