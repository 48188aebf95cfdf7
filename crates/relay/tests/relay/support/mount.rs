//! Mounted Secrets, written as the kubelet writes them.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

use super::Server;

/// A folder that the test removes at its end.
pub struct Folder(PathBuf);

impl Folder {
    /// Creates a folder below Cargo's folder for tests.
    pub fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        drop(fs::remove_dir_all(&path));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// Returns the path of the folder.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Publishes a generation of a Secret in the subfolder `name`.
    pub fn publish(&self, name: &str, keys: &BTreeMap<String, String>) {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let folder = self.0.join(name);
        let generation = format!("..{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let data = folder.join(&generation);
        fs::create_dir_all(&data).unwrap();
        for (key, value) in keys {
            fs::write(data.join(key), value).unwrap();
            if fs::symlink_metadata(folder.join(key)).is_err() {
                symlink(Path::new("..data").join(key), folder.join(key)).unwrap();
            }
        }
        let before = fs::read_link(folder.join("..data")).ok();
        symlink(&generation, folder.join("..data_tmp")).unwrap();
        fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
        if let Some(before) = before {
            fs::remove_dir_all(folder.join(before)).unwrap();
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

/// Returns the keys of a Secret for these servers, with a token that is valid for an hour.
pub fn secret(user: &str, token: &str, servers: &[&Server]) -> BTreeMap<String, String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let mut keys: BTreeMap<String, String> = [
        ("access_token", token.to_owned()),
        ("token_type", "Bearer".to_owned()),
        ("expires_at_unix", (now + 3600).to_string()),
        ("username", user.to_owned()),
        ("from", format!("from-{user}")),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into();
    for server in servers {
        let prefix = server.prefix();
        keys.insert(format!("{prefix}_host"), "localhost".to_owned());
        keys.insert(format!("{prefix}_port"), server.port().to_string());
        keys.insert(format!("{prefix}_security"), server.security().to_owned());
        keys.insert(format!("{prefix}_username"), user.to_owned());
    }
    keys
}
