//! Reads one generation of a mounted Secret. The kubelet replaces the link `..data`, so all files change at the same
//! time.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use zeroize::Zeroizing;

/// Name of the link to the current generation.
const DATA: &str = "..data";
/// Maximum size of a file in octets. A token has up to 9,000.
const MAX_FILE: u64 = 65_536;
/// Number of attempts to read, because the kubelet may replace the generation during a read.
const ATTEMPTS: usize = 3;

/// One generation of a mounted folder.
#[derive(Debug)]
pub(crate) struct Mount {
    folder: PathBuf,
    generation: Option<OsString>,
}

impl Mount {
    /// Opens the current generation. A folder without the link, for example a folder of plain files, is its own
    /// generation.
    pub(crate) fn open(folder: &Path) -> io::Result<Self> {
        match fs::read_link(folder.join(DATA)) {
            Ok(target) => Ok(Self { folder: folder.join(&target), generation: Some(target.into_os_string()) }),
            Err(_) => fs::metadata(folder).map(|_| Self { folder: folder.to_owned(), generation: None }),
        }
    }

    /// Returns the name of the generation; `None` if the folder has no link.
    pub(crate) fn generation(&self) -> Option<&OsString> {
        self.generation.as_ref()
    }

    /// Whether the Secret does not exist yet, or has no keys.
    pub(crate) fn is_empty(&self) -> io::Result<bool> {
        let hidden = |entry: &io::Result<fs::DirEntry>| {
            entry.as_ref().is_ok_and(|entry| entry.file_name().as_encoded_bytes().starts_with(b"."))
        };
        Ok(fs::read_dir(&self.folder)?.all(|entry| hidden(&entry)))
    }

    /// Reads the content of a key; `None` if the Secret does not have the key. The memory is wiped on drop.
    ///
    /// # Errors
    ///
    /// If the generation no longer exists, or the file cannot be read or is too long.
    pub(crate) fn read(&self, key: &str) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
        let file = match File::open(self.folder.join(key)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return fs::metadata(&self.folder).map(|_| None);
            }
            Err(error) => return Err(error),
        };
        let length = file.metadata()?.len();
        if length > MAX_FILE {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        // The buffer has room for the whole file, so it does not grow and leave a copy behind.
        let mut content = Zeroizing::new(Vec::with_capacity(usize::try_from(length).unwrap_or_default() + 64));
        file.take(MAX_FILE).read_to_end(&mut content)?;
        Ok(Some(content))
    }

    /// Reads the text of a key, without line ends at its end.
    pub(crate) fn text(&self, key: &str) -> io::Result<Option<String>> {
        let content = self.read(key)?;
        Ok(content
            .and_then(|content| Some(std::str::from_utf8(&content).ok()?.trim_end_matches(['\r', '\n']).to_owned())))
    }
}

/// Reads from one generation. If the kubelet replaces the generation during the read, reads again from the next one.
pub(crate) fn read<T>(folder: &Path, read: impl Fn(&Mount) -> io::Result<T>) -> io::Result<T> {
    let mut attempts = 1;
    loop {
        match Mount::open(folder).and_then(|mount| read(&mount)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && attempts < ATTEMPTS => attempts += 1,
            result => return result,
        }
    }
}

/// Returns the mounted Secrets in a folder, sorted: the folder itself, if it has files, otherwise its subfolders.
pub(crate) fn folders(root: &Path) -> io::Result<Vec<PathBuf>> {
    let mut folders = vec![];
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        if entry.file_name() == DATA {
            return Ok(vec![root.to_owned()]);
        }
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        match entry.path().is_dir() {
            true => folders.push(entry.path()),
            false => return Ok(vec![root.to_owned()]),
        }
    }
    folders.sort();
    Ok(folders)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// Creates an empty folder with this name for the tests of this process.
    pub(crate) fn scratch(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("mail-token-relay-{}-{name}", std::process::id()));
        drop(fs::remove_dir_all(&folder));
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    /// Writes a generation as the kubelet does, and removes the previous one.
    pub(crate) fn publish(folder: &Path, generation: &str, keys: &[(&str, &str)]) {
        let before = fs::read_link(folder.join(DATA)).ok();
        fs::create_dir_all(folder.join(generation)).unwrap();
        for (key, value) in keys {
            fs::write(folder.join(generation).join(key), value).unwrap();
            if fs::symlink_metadata(folder.join(key)).is_err() {
                symlink(Path::new(DATA).join(key), folder.join(key)).unwrap();
            }
        }
        symlink(generation, folder.join("..data_tmp")).unwrap();
        fs::rename(folder.join("..data_tmp"), folder.join(DATA)).unwrap();
        if let Some(before) = before {
            fs::remove_dir_all(folder.join(before)).unwrap();
        }
    }

    #[test]
    fn all_keys_are_of_one_generation() {
        let folder = scratch("generation");
        publish(&folder, "..1", &[("a", "1\n"), ("b", "1")]);
        let first = Mount::open(&folder).unwrap();
        assert_eq!(first.text("a").unwrap().as_deref(), Some("1"));
        assert_eq!(first.text("c").unwrap(), None);
        assert!(!first.is_empty().unwrap());
        publish(&folder, "..2", &[("a", "2"), ("b", "2")]);
        assert!(first.read("b").is_err(), "a generation that is gone has no keys");
        assert_eq!(read(&folder, |mount| mount.text("b")).unwrap().as_deref(), Some("2"));
    }

    #[test]
    fn a_folder_is_one_secret_or_has_one_in_each_folder() {
        let root = scratch("folders");
        assert_eq!(folders(&root).unwrap(), Vec::<PathBuf>::new());
        for name in ["b", "a", ".hidden"] {
            fs::create_dir(root.join(name)).unwrap();
        }
        assert_eq!(folders(&root).unwrap(), [root.join("a"), root.join("b")]);
        assert!(Mount::open(&root.join("a")).unwrap().is_empty().unwrap());
        publish(&root.join("a"), "..1", &[]);
        assert!(Mount::open(&root.join("a")).unwrap().is_empty().unwrap());
        assert_eq!(folders(&root.join("a")).unwrap(), [root.join("a")]);
        fs::write(root.join("file"), "x").unwrap();
        assert_eq!(folders(&root).unwrap(), std::slice::from_ref(&root));
    }

    #[test]
    fn a_file_has_a_limit() {
        let folder = scratch("limit");
        fs::write(folder.join("a"), vec![b'x'; 65_537]).unwrap();
        assert_eq!(Mount::open(&folder).unwrap().read("a").unwrap_err().kind(), io::ErrorKind::FileTooLarge);
    }
}
