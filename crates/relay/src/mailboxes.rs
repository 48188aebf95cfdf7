//! The mounted mailboxes: finds the mailbox for a client's user name, and rejects ambiguous mounts at the start.

use std::{
    ffi::OsString,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use mailtoken_mail::protocol::Protocol;
use parking_lot::Mutex;

use crate::{
    account::{self, Names, Server},
    mount::{self, Mount},
    settings::Fallback,
};

/// Maximum number of mailboxes.
const MAX_MAILBOXES: usize = 256;

/// The mailboxes below one folder.
#[derive(Debug)]
pub(crate) struct Mailboxes {
    root: PathBuf,
    fallbacks: Vec<Fallback>,
    known: Mutex<Vec<Arc<Known>>>,
}

/// A mounted Secret, as the relay read it last.
#[derive(Debug, PartialEq, Eq)]
struct Known {
    folder: PathBuf,
    generation: Option<OsString>,
    /// The names in the Secret; `None` if the Secret does not exist yet, or the broker did not write it.
    names: Option<Names>,
}

/// The mailbox for a client's user name.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// The user name of the Secret, for logs and metrics.
    pub(crate) mailbox: String,
    pub(crate) folder: PathBuf,
    /// The folder to use if the login with `folder` fails.
    pub(crate) fallback: Option<PathBuf>,
}

/// Why no mailbox belongs to a client's user name.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NotFound {
    /// No mounted Secret has the user name.
    Unknown,
    /// No mounted Secret has the user name, but a Secret that does not exist yet may have it.
    NotYet,
    /// The Secrets in these two folders have the user name.
    Ambiguous(String, String),
    /// The Secret in this folder has no server for the protocol.
    NoProtocol { folder: String, mailbox: String },
}

impl Mailboxes {
    /// Reads the folders, and checks them.
    ///
    /// # Errors
    ///
    /// A sentence that says why the relay does not start.
    pub(crate) fn open(root: &Path, fallbacks: &[Fallback]) -> Result<Self, String> {
        let mailboxes = Self { root: root.to_owned(), fallbacks: fallbacks.to_vec(), known: Mutex::default() };
        let shown = root.display();
        let known = mailboxes.refresh().map_err(|error| {
            format!(
                "the folder {shown} (--mailboxes) cannot be read: {error}. Mount a Secret of a MailCredential there"
            )
        })?;
        if known.len() > MAX_MAILBOXES {
            return Err(format!(
                "{shown} has {} folders, more than the {MAX_MAILBOXES} that the relay serves",
                known.len()
            ));
        }
        for one in &known {
            if one.names.is_none() && !mount::read(&one.folder, Mount::is_empty).unwrap_or(false) {
                return Err(format!(
                    "{} is not empty and not a Secret of a MailCredential: it needs the keys access_token, \
                     expires_at_unix and username. Mount the Secret that `spec.secret.name` names, and no other",
                    one.folder.display()
                ));
            }
        }
        for name in fallbacks.iter().flat_map(|pair| [&pair.first, &pair.second]) {
            if !known.iter().any(|one| one.folder == root.join(name)) {
                return Err(format!("--smtp-fallback names the folder {name}, and {shown} has no such folder"));
            }
        }
        match mailboxes.duplicate(&known) {
            None => Ok(mailboxes),
            Some((name, first, second)) => Err(format!(
                "the Secrets in {} and {} have the same user name {name}: mount one of them, or name both as a pair with \
                 --smtp-fallback",
                first.display(),
                second.display()
            )),
        }
    }

    /// Returns a user name that two Secrets have although neither is the second of a pair, and the folders of both.
    fn duplicate<'a>(&self, known: &'a [Arc<Known>]) -> Option<(&'a str, &'a Path, &'a Path)> {
        let mut firsts = known.iter().filter(|one| !self.is_second(&one.folder));
        while let Some(one) = firsts.next() {
            let Some(names) = &one.names else { continue };
            let others = firsts.clone().filter_map(|other| Some((other, other.names.as_ref()?)));
            for (other, other_names) in others {
                if let Some(name) = names.users().find(|name| other_names.has_user(name)) {
                    return Some((name, &one.folder, &other.folder));
                }
            }
        }
        None
    }

    fn is_second(&self, folder: &Path) -> bool {
        self.fallbacks.iter().any(|pair| folder == self.root.join(&pair.second))
    }

    /// Returns the current mailboxes. Reads a Secret again only if its generation has changed.
    fn refresh(&self) -> io::Result<Vec<Arc<Known>>> {
        let folders = mount::folders(&self.root)?;
        let before = self.known.lock().clone();
        let mut known = vec![];
        for folder in folders.into_iter().take(MAX_MAILBOXES + 1) {
            let generation = Mount::open(&folder)?.generation().cloned();
            let kept = before.iter().find(|one| one.folder == folder && one.generation == generation);
            known.push(match kept.filter(|_| generation.is_some()) {
                Some(one) => one.clone(),
                None => {
                    let read = |mount: &Mount| Ok((mount.generation().cloned(), account::names(mount)?));
                    // The login reports a Secret that the relay cannot read.
                    let (generation, names) = mount::read(&folder, read).unwrap_or_default();
                    Arc::new(Known { folder, generation, names })
                }
            });
        }
        self.known.lock().clone_from(&known);
        Ok(known)
    }

    /// Returns the mailbox for a client's user name.
    pub(crate) fn find(&self, protocol: Protocol, name: &str) -> Result<Found, NotFound> {
        let known = self.refresh().unwrap_or_default();
        let matching = |has: fn(&Names, &str) -> bool, seconds: bool| {
            let of_kind = known.iter().filter(move |one| self.is_second(&one.folder) == seconds);
            of_kind.filter_map(move |one| one.names.as_ref().filter(|names| has(names, name)).map(|names| (one, names)))
        };
        let mut found: Vec<_> = matching(Names::has_user, false).collect();
        for (has, seconds) in [(Names::has_user as fn(&Names, &str) -> bool, true), (Names::has_from, false)] {
            if found.is_empty() {
                found = matching(has, seconds).collect();
            }
        }
        let shown = |folder: &Path| folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match found.as_slice() {
            [] if known.is_empty() || known.iter().any(|one| one.names.is_none()) => Err(NotFound::NotYet),
            [] => Err(NotFound::Unknown),
            [(one, names)] if names.at(protocol).is_none() => {
                Err(NotFound::NoProtocol { folder: shown(&one.folder), mailbox: names.mailbox.clone() })
            }
            [(one, names)] => Ok(self.with_fallback(protocol, &known, names.mailbox.clone(), &one.folder)),
            [(one, _), (other, _), ..] => Err(NotFound::Ambiguous(shown(&one.folder), shown(&other.folder))),
        }
    }

    /// Adds the other folder of the pair. While the first Secret of a pair does not exist, the second Secret provides
    /// the names.
    fn with_fallback(&self, protocol: Protocol, known: &[Arc<Known>], mailbox: String, folder: &Path) -> Found {
        let is_missing = |folder: &Path| known.iter().any(|one| one.folder == folder && one.names.is_none());
        let paths = self.fallbacks.iter().map(|pair| (self.root.join(&pair.first), self.root.join(&pair.second)));
        let mut paths = paths.filter(|_| protocol == Protocol::Smtp);
        let pair = paths.find(|(first, second)| first == folder || (second == folder && is_missing(first)));
        match pair {
            Some((first, second)) => Found { mailbox, folder: first, fallback: Some(second) },
            None => Found { mailbox, folder: folder.to_owned(), fallback: None },
        }
    }

    /// Returns the servers of all mailboxes for a protocol, without duplicates.
    pub(crate) fn servers(&self, protocol: Protocol) -> Vec<Server> {
        let mut servers: Vec<Server> = vec![];
        for one in self.refresh().unwrap_or_default() {
            let Some((_, server)) = one.names.as_ref().and_then(|names| names.at(protocol)) else { continue };
            if !servers.contains(server) {
                servers.push(server.clone());
            }
        }
        servers
    }

    /// Returns the user names of all mailboxes, with their folders and protocols.
    pub(crate) fn protocols(&self) -> Vec<(String, PathBuf, Vec<Protocol>)> {
        let known = self.refresh().unwrap_or_default();
        let one = |one: &Arc<Known>| {
            let names = one.names.as_ref()?;
            let protocols = names.servers.iter().map(|(_, server)| server.protocol).collect();
            Some((names.mailbox.clone(), one.folder.clone(), protocols))
        };
        known.iter().filter_map(one).collect()
    }

    /// Returns the user names of all mailboxes, with their folders.
    pub(crate) fn all(&self) -> Vec<(String, PathBuf)> {
        let known = self.refresh().unwrap_or_default();
        known.iter().filter_map(|one| Some((one.names.as_ref()?.mailbox.clone(), one.folder.clone()))).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{
        account::tests::keys,
        mount::tests::{publish, scratch},
    };

    const IMAP: [(&str, &str); 2] = [("imap_host", "imap.shop.example"), ("imap_port", "993")];

    fn mounted(name: &str, secrets: &[(&str, &[(&str, &str)])]) -> PathBuf {
        let root = scratch(name);
        for (folder, more) in secrets {
            fs::create_dir(root.join(folder)).unwrap();
            if *more != [("missing", "")] {
                publish(&root.join(folder), "..1", &keys(more));
            }
        }
        root
    }

    fn open(root: &Path, fallbacks: &[&str]) -> Result<Mailboxes, String> {
        Mailboxes::open(root, &fallbacks.iter().map(|pair| pair.parse().unwrap()).collect::<Vec<_>>())
    }

    #[test]
    fn a_mailbox_is_found_by_its_user_names_before_its_sender() {
        let shared = [("username", "shared@shop.example"), ("imap_username", "svc@shop.example"), IMAP[0], IMAP[1]];
        let root = mounted("find", &[("billing", &[]), ("shared", &shared)]);
        let mailboxes = open(&root, &[]).unwrap();
        for (name, folder) in [
            ("billing@shop.example", Some("billing")),
            ("BILLING@SHOP.EXAMPLE", Some("billing")),
            ("shared@shop.example", Some("shared")),
            ("svc@shop.example", Some("shared")),
            ("other@shop.example", None),
            ("", None),
        ] {
            let found = mailboxes.find(Protocol::Smtp, name);
            assert_eq!(found.ok().map(|found| found.folder), folder.map(|folder| root.join(folder)), "{name}");
        }
        let no_protocol =
            NotFound::NoProtocol { folder: "billing".to_owned(), mailbox: "billing@shop.example".to_owned() };
        assert_eq!(mailboxes.find(Protocol::Imap, "billing@shop.example"), Err(no_protocol));
        assert_eq!(mailboxes.find(Protocol::Imap, "other@shop.example"), Err(NotFound::Unknown));
    }

    #[test]
    fn a_sender_of_two_mailboxes_is_ambiguous() {
        let one = [("username", "a@shop.example"), ("from", "Team@shop.example")];
        let other = [("username", "b@shop.example"), ("from", "team@shop.example")];
        let root = mounted("ambiguous", &[("a", &one), ("b", &other)]);
        let mailboxes = open(&root, &[]).unwrap();
        let ambiguous = NotFound::Ambiguous("a".to_owned(), "b".to_owned());
        assert_eq!(mailboxes.find(Protocol::Smtp, "TEAM@shop.example"), Err(ambiguous));
        assert!(mailboxes.find(Protocol::Smtp, "a@shop.example").is_ok());
    }

    #[test]
    fn a_renewed_secret_is_read_again() {
        let root = mounted("renewed", &[("billing", &[])]);
        let mailboxes = open(&root, &[]).unwrap();
        publish(&root.join("billing"), "..2", &keys(&[("username", "new@shop.example")]));
        assert!(mailboxes.find(Protocol::Smtp, "new@shop.example").is_ok());
        // The sender's address has not changed.
        assert!(mailboxes.find(Protocol::Smtp, "billing@shop.example").is_ok());
        assert_eq!(mailboxes.all(), [("new@shop.example".to_owned(), root.join("billing"))]);
    }

    #[test]
    fn the_relay_starts_before_a_secret_exists() {
        let root = mounted("missing", &[("billing", &[("missing", "")])]);
        let mailboxes = open(&root, &[]).unwrap();
        assert_eq!(mailboxes.find(Protocol::Smtp, "billing@shop.example"), Err(NotFound::NotYet));
        publish(&root.join("billing"), "..1", &keys(&[]));
        assert!(mailboxes.find(Protocol::Smtp, "billing@shop.example").is_ok());
        assert_eq!(open(&scratch("nothing"), &[]).unwrap().find(Protocol::Smtp, "a"), Err(NotFound::NotYet));
    }

    #[test]
    fn the_relay_does_not_start_with_what_is_not_its_own() {
        let root = mounted("foreign", &[("billing", &[])]);
        fs::create_dir(root.join("foreign")).unwrap();
        fs::write(root.join("foreign/password"), "x").unwrap();
        let why = open(&root, &[]).unwrap_err();
        assert!(why.contains("foreign is not empty and not a Secret of a MailCredential"), "{why}");
        assert!(open(Path::new("/nonexistent"), &[]).unwrap_err().contains("cannot be read"));
        let twins = mounted("twins", &[("a", &[]), ("b", &[("username", "BILLING@shop.example")])]);
        let why = open(&twins, &[]).unwrap_err();
        assert!(why.contains("have the same user name billing@shop.example"), "{why}");
        assert!(open(&twins, &["a=c"]).unwrap_err().contains("no such folder"));
    }

    #[test]
    fn the_second_of_a_pair_may_have_the_same_names() {
        let root = mounted("pair", &[("first", &[]), ("second", &[])]);
        let mailboxes = open(&root, &["first=second"]).unwrap();
        let found = mailboxes.find(Protocol::Smtp, "billing@shop.example").unwrap();
        assert_eq!((found.folder, found.fallback), (root.join("first"), Some(root.join("second"))));
        let missing = mounted("missing-pair", &[("first", &[("missing", "")]), ("second", &[])]);
        let found = open(&missing, &["first=second"]).unwrap().find(Protocol::Smtp, "billing@shop.example").unwrap();
        assert_eq!((found.folder, found.fallback), (missing.join("first"), Some(missing.join("second"))));
    }
}
