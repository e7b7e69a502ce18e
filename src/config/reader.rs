//! Files as configuration reads them: each with its owner and mode, and all remembered by their content, so that a change of any of
//! them can be seen later.

use std::collections::BTreeMap;
use std::fs::File;
use std::hash::BuildHasher;
use std::hash::Hash;
use std::hash::RandomState;
use std::io;
use std::io::ErrorKind;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use rustix::fs::OFlags;
use rustix::fs::Stat;
use rustix::fs::fgetxattr;
use rustix::fs::fstat;
use rustix::io::Errno;
use zeroize::Zeroizing;

use crate::config::access::ACL;
use crate::config::access::ACL_BYTES_MAX;
use crate::config::access::Access;

/// What the system's certificates are noted as.
pub(super) const SYSTEM_ROOTS: &str = "system roots";

/// Reads files, and remembers what it has read.
pub struct Reader {
    blind: bool,
    keys: RandomState,
    seen: Mutex<Seen>,
    /// What is being opened and read now.
    opening: Mutex<Option<PathBuf>>,
    /// A file had another content when it was read a second time.
    torn: AtomicBool,
}

/// What was read, by content. Digests are keyed anew for each process, and never shown: some are of secrets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    files: BTreeMap<PathBuf, (u64, u64)>,
    patterns: BTreeMap<String, u64>,
    /// What isn't a file of ours, such as the system's certificates. Not looked at again by itself.
    others: BTreeMap<&'static str, u64>,
}

/// A file as it was read.
pub(super) struct Content {
    /// Wiped when dropped: it may be a key.
    pub(super) bytes: Zeroizing<Vec<u8>>,
    pub(super) access: Access,
    user: u32,
}

impl Default for Reader {
    fn default() -> Self {
        Self {
            blind: false,
            keys: RandomState::new(),
            seen: Mutex::default(),
            opening: Mutex::default(),
            torn: AtomicBool::new(false),
        }
    }
}

impl Reader {
    /// Opens nothing: to look at what was written where the files aren't.
    #[must_use]
    pub fn blind() -> Self {
        Self {
            blind: true,
            ..Self::default()
        }
    }

    /// It opens nothing.
    pub(super) fn is_blind(&self) -> bool {
        self.blind
    }

    /// What was read since it last forgot.
    #[must_use]
    pub fn seen(&self) -> Seen {
        self.lock().clone()
    }

    /// Begins anew.
    pub fn forget(&self) {
        *self.lock() = Seen::default();
        self.torn.store(false, Ordering::Release);
    }

    /// Whether all that was read is of one moment: nothing of it has changed since.
    #[must_use]
    pub fn is_of_one_moment(&self) -> bool {
        self.blind || (!self.torn.load(Ordering::Acquire) && self.is_still(&self.seen()))
    }

    /// Whether all of it is still as it was.
    #[must_use]
    pub fn is_still(&self, seen: &Seen) -> bool {
        self.look_again(seen) == *seen
    }

    /// The same files and patterns, as they are now.
    #[must_use]
    pub fn look_again(&self, seen: &Seen) -> Seen {
        let again = |path: &PathBuf, limit: u64| self.digest(&self.open(path, limit));
        Seen {
            files: seen
                .files
                .iter()
                .map(|(path, (limit, _))| (path.clone(), (*limit, again(path, *limit))))
                .collect(),
            patterns: seen
                .patterns
                .keys()
                .map(|pattern| (pattern.clone(), self.keys.hash_one(matches(pattern))))
                .collect(),
            others: seen.others.clone(),
        }
    }

    /// The whole of a regular file, of which there may be `limit` bytes.
    pub(super) fn read(&self, path: &Path, limit: u64) -> io::Result<Content> {
        if self.blind {
            return Err(ErrorKind::Unsupported.into());
        }
        let content = self.open(path, limit);
        let entry = (limit, self.digest(&content));
        let before = self.lock().files.insert(path.to_owned(), entry);
        if before.is_some_and(|(_, digest)| digest != entry.1) {
            self.torn.store(true, Ordering::Release);
        }
        content
    }

    /// The files that a pattern matches, in the order of their names.
    ///
    /// # Errors
    /// When it isn't a pattern, or a folder can't be read.
    pub(super) fn matches(&self, pattern: &str) -> Result<Vec<PathBuf>, String> {
        let found = matches(pattern);
        let digest = self.keys.hash_one(&found);
        self.lock().patterns.insert(pattern.to_owned(), digest);
        found
    }

    /// Remembers what was read some other way.
    pub(super) fn note(&self, what: &'static str, content: &impl Hash) {
        let digest = self.keys.hash_one(content);
        self.lock().others.insert(what, digest);
    }

    /// The file that is being opened or read just now.
    #[must_use]
    pub fn opening(&self) -> Option<PathBuf> {
        self.opening
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn open(&self, path: &Path, limit: u64) -> io::Result<Content> {
        let now = |path| *self.opening.lock().unwrap_or_else(PoisonError::into_inner) = path;
        now(Some(path.to_owned()));
        let content = open(path, limit);
        now(None);
        content
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        // Nothing that holds it can panic half-way through a change.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn digest(&self, read: &io::Result<Content>) -> u64 {
        match read {
            Ok(content) => {
                let Content {
                    bytes,
                    access,
                    user,
                } = content;
                self.keys.hash_one((&***bytes, access, user))
            }
            Err(error) => self.keys.hash_one(error.kind()),
        }
    }
}

impl Seen {
    /// What a file's content was known by; `None` if it wasn't read.
    pub(super) fn file(&self, path: &Path) -> Option<u64> {
        self.files.get(path).map(|(_, digest)| *digest)
    }

    /// The same for what isn't a file.
    pub(super) fn other(&self, what: &str) -> Option<u64> {
        self.others.get(what).copied()
    }
}

/// A folder of files may be empty. One that isn't there, or can't be looked into, isn't: what it holds would be gone without a word.
fn matches(pattern: &str) -> Result<Vec<PathBuf>, String> {
    let paths = glob::glob(pattern).map_err(|error| format!("not a pattern: {}", error.msg))?;
    let unreadable = |path: &Path, error: &io::Error| match error.kind() {
        ErrorKind::NotFound => format!("there is no folder {}", path.display()),
        _ => format!("the folder {} can't be read: {error}", path.display()),
    };
    if let Some((plain, _)) = pattern.split_once(['*', '?', '['])
        && let Some(folder) = Path::new(&format!("{plain}x")).parent()
        && !folder.as_os_str().is_empty()
    {
        std::fs::read_dir(folder).map_err(|error| unreadable(folder, &error))?;
    }
    paths
        .map(|path| path.map_err(|error| unreadable(error.path(), error.error())))
        .collect()
}

/// What is checked is what is read: the open file, not its name. A pipe of that name isn't waited for.
fn open(path: &Path, limit: u64) -> io::Result<Content> {
    let nonblocking = OFlags::NONBLOCK.bits().cast_signed();
    let file = File::options()
        .read(true)
        .custom_flags(nonblocking)
        .open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::new(
            ErrorKind::InvalidInput,
            "it isn't a regular file",
        ));
    }
    let Stat {
        st_mode,
        st_uid,
        st_gid,
        ..
    } = fstat(&file)?;
    // Room for all of it at once: what a growing buffer leaves behind isn't wiped.
    let room = metadata.len().min(limit) + 1;
    let mut bytes = Zeroizing::new(Vec::with_capacity(
        usize::try_from(room).unwrap_or_default(),
    ));
    let list = access_list(&file);
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::new(
            ErrorKind::FileTooLarge,
            format!("it's larger than {limit} bytes"),
        ));
    }
    let access = Access {
        mode: st_mode,
        group: st_gid,
        list,
    };
    Ok(Content {
        bytes,
        access,
        user: st_uid,
    })
}

/// One that can't be read is as good as one that can't be understood; where there are none, or it has none, there's none.
fn access_list(file: &File) -> Option<Vec<u8>> {
    let mut list = [0; ACL_BYTES_MAX];
    match fgetxattr(file, ACL, &mut list) {
        Ok(length) => list.get(..length).map(<[u8]>::to_vec),
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::NOSYS) => None,
        Err(_) => Some(Vec::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::Reader;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_change_of_content_mode_or_kind_is_seen() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a");
        let reader = Reader::default();
        fs::write(&path, "one").expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("changed");
        reader.read(&path, 100).map(drop).expect("read");
        let seen = reader.seen();
        assert!(reader.is_still(&seen));
        for change in [
            &|| fs::write(&path, "two") as std::io::Result<()>,
            &|| fs::set_permissions(&path, fs::Permissions::from_mode(0o644)),
            &|| fs::write(&path, "x".repeat(101)),
            &|| fs::remove_file(&path),
            &|| fs::create_dir(&path),
        ] as [&dyn Fn() -> std::io::Result<()>; 5]
        {
            let before = reader.look_again(&seen);
            change().expect("changed");
            assert!(!reader.is_still(&before));
        }
        fs::remove_dir(&path).expect("removed");
        fs::write(&path, "one").expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("changed");
        assert!(reader.is_still(&seen), "the same again is no change");
    }

    #[test]
    fn a_change_under_the_reading_is_seen() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a");
        let reader = Reader::default();
        let read = || reader.read(&path, 100).map(drop).expect("read");
        fs::write(&path, "one").expect("written");
        read();
        read();
        assert!(reader.is_of_one_moment());
        // What was used is the first content, though the second one is there to stay.
        fs::write(&path, "two").expect("written");
        assert!(!reader.is_of_one_moment());
        read();
        assert!(reader.is_still(&reader.seen()) && !reader.is_of_one_moment());
        reader.forget();
        read();
        assert!(reader.is_of_one_moment());
    }

    #[test]
    fn a_swapped_link_and_a_new_file_of_a_pattern_are_seen() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        for (name, text) in [("one", "1"), ("two", "2")] {
            fs::create_dir(at(name)).expect("a folder");
            fs::write(at(name).join("file"), text).expect("written");
        }
        symlink("one", at("data")).expect("a link");
        let reader = Reader::default();
        reader.read(&at("data/file"), 10).map(drop).expect("read");
        let pattern = at("data").join("*").display().to_string();
        assert_eq!(reader.matches(&pattern).expect("a pattern").len(), 1);
        let seen = reader.seen();
        symlink("two", at("next")).expect("a link");
        fs::rename(at("next"), at("data")).expect("swapped");
        assert!(!reader.is_still(&seen));
        let seen = reader.look_again(&seen);
        fs::write(at("data/more"), "3").expect("written");
        assert!(!reader.is_still(&seen));
    }
}
