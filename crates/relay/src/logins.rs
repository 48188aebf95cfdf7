//! Local logins: mounted Secrets of type kubernetes.io/basic-auth. The relay reads them at each login.

use std::path::{Path, PathBuf};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use zeroize::Zeroizing;

use crate::mount::{self, Mount};

/// The local logins below one folder.
#[derive(Debug)]
pub(crate) struct Logins {
    root: PathBuf,
}

/// Why a local login fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wrong {
    /// No local login has the user name.
    User,
    /// The local login has another password.
    Password,
}

struct LocalLogin {
    user: String,
    password: Zeroizing<Vec<u8>>,
    mailbox: Option<String>,
}

impl Logins {
    /// Opens the local logins in a folder.
    ///
    /// # Errors
    ///
    /// A sentence that says why the relay does not start.
    pub(crate) fn open(root: &Path) -> Result<Self, String> {
        let logins = Self { root: root.to_owned() };
        match mount::folders(root) {
            Ok(_) => Ok(logins),
            Err(error) => Err(format!(
                "the folder {} (--logins) cannot be read: {error}. Mount a Secret of type kubernetes.io/basic-auth there",
                root.display()
            )),
        }
    }

    /// Returns the number of complete local logins.
    pub(crate) fn count(&self) -> usize {
        self.read().len()
    }

    fn read(&self) -> Vec<LocalLogin> {
        let folders = mount::folders(&self.root).unwrap_or_default();
        folders.iter().filter_map(|folder| mount::read(folder, LocalLogin::read).ok().flatten()).collect()
    }

    /// Returns the name of the mailbox that belongs to the user name and the password. The duration does not depend on
    /// the password.
    pub(crate) fn check(&self, user: &str, password: &[u8]) -> Result<String, Wrong> {
        let mut result = Err(Wrong::User);
        for login in self.read().into_iter().filter(|login| login.user.eq_ignore_ascii_case(user)) {
            match (verify_slices_are_equal(&login.password, password), &result) {
                (Ok(()), Err(_)) => result = Ok(login.mailbox.unwrap_or(login.user)),
                (Err(_), Err(_)) => result = Err(Wrong::Password),
                (_, Ok(_)) => {}
            }
        }
        result
    }
}

impl LocalLogin {
    fn read(mount: &Mount) -> std::io::Result<Option<Self>> {
        let (user, password) = (mount.text("username")?, mount.read("password")?);
        let (Some(user), Some(password)) = (user, password) else { return Ok(None) };
        let complete = !user.is_empty() && !password.is_empty();
        Ok(complete.then_some(Self { user, password, mailbox: mount.text("mailbox")? }))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::mount::tests::{publish, scratch};

    #[test]
    fn user_name_and_password_are_those_of_one_login() {
        let root = scratch("logins");
        for (folder, keys) in [
            ("app", &[("username", "app"), ("password", "s3cret"), ("mailbox", "billing@shop.example")][..]),
            ("old", &[("username", "app"), ("password", "before"), ("mailbox", "billing@shop.example")]),
            ("own", &[("username", "own@shop.example"), ("password", "x")]),
            ("without", &[("username", "without")]),
            ("blank", &[("username", "blank"), ("password", "")]),
        ] {
            fs::create_dir(root.join(folder)).unwrap();
            publish(&root.join(folder), "..1", keys);
        }
        let logins = Logins::open(&root).unwrap();
        assert_eq!(logins.count(), 3);
        for (user, password, mailbox) in [
            ("app", "s3cret", Ok("billing@shop.example")),
            ("APP", "before", Ok("billing@shop.example")),
            ("app", "s3cre", Err(Wrong::Password)),
            ("app", "", Err(Wrong::Password)),
            ("own@shop.example", "x", Ok("own@shop.example")),
            ("billing@shop.example", "s3cret", Err(Wrong::User)),
            ("without", "", Err(Wrong::User)),
            ("blank", "", Err(Wrong::User)),
        ] {
            assert_eq!(logins.check(user, password.as_bytes()), mailbox.map(str::to_owned), "{user}");
        }
        publish(&root.join("own"), "..2", &[("username", "own@shop.example"), ("password", "y")]);
        assert_eq!(logins.check("own@shop.example", b"x"), Err(Wrong::Password));
        assert!(Logins::open(Path::new("/nonexistent")).is_err());
    }
}
