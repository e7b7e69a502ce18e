//! Files that change under a running process: as Kubernetes swaps a mounted volume, and as a test takes back what it broke.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::support::tools;

/// A folder as kubelet keeps it: each name leads to `..data`, which leads to a folder with one version of all files. A new version is
/// seen whole or not at all, and no file that is open or watched ever changes.
pub struct Mount {
    folder: PathBuf,
    version: usize,
}

impl Mount {
    /// Makes one of all files of this folder.
    pub fn of(folder: &Path) -> Self {
        let mount = Self {
            folder: folder.to_owned(),
            version: 1,
        };
        let names = names(folder);
        fs::create_dir(mount.versioned()).unwrap();
        for name in &names {
            fs::rename(folder.join(name), mount.versioned().join(name)).unwrap();
        }
        mount.lead();
        mount
    }

    /// Makes a new version of what `edit` makes of the one before, and swaps it in.
    pub fn swap(&mut self, edit: impl FnOnce(&Path)) {
        let old = self.versioned();
        self.version += 1;
        let new = self.versioned();
        fs::create_dir(&new).unwrap();
        for name in names(&old) {
            fs::copy(old.join(&name), new.join(&name)).unwrap();
        }
        edit(&new);
        self.lead();
        fs::remove_dir_all(old).unwrap();
    }

    fn versioned(&self) -> PathBuf {
        self.folder.join(format!("..version-{}", self.version))
    }

    /// As kubelet's AtomicWriter does: `..data` is swapped first, then names that are new come and those that are gone go.
    fn lead(&self) {
        let next = self.folder.join("..data_tmp");
        symlink(self.versioned().file_name().unwrap(), &next).unwrap();
        fs::rename(next, self.folder.join("..data")).unwrap();
        for name in names(&self.versioned()) {
            let link = self.folder.join(&name);
            if link.symlink_metadata().is_err() {
                symlink(Path::new("..data").join(&name), link).unwrap();
            }
        }
        for name in names(&self.folder) {
            let link = self.folder.join(&name);
            if link.is_symlink() && !link.exists() {
                fs::remove_file(link).unwrap();
            }
        }
    }
}

/// All names in a folder, but for those that begin with two dots.
fn names(folder: &Path) -> Vec<OsString> {
    let entries = fs::read_dir(folder).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name())
        .filter(|name| !name.to_str().unwrap().starts_with(".."))
        .collect()
}

/// A folder's files, their contents and modes, to go back to.
pub struct Backup {
    folder: PathBuf,
    files: BTreeMap<OsString, (Vec<u8>, u32)>,
}

impl Backup {
    pub fn of(folder: &Path) -> Self {
        let file = |name: OsString| {
            let path = folder.join(&name);
            let mode = fs::metadata(&path).unwrap().permissions().mode();
            (name, (fs::read(path).unwrap(), mode & 0o777))
        };
        Self {
            folder: folder.to_owned(),
            files: names(folder).into_iter().map(file).collect(),
        }
    }

    /// Brings all of them back. What has come since stays.
    pub fn restore(&self) {
        for (name, (content, mode)) in &self.files {
            tools::write(&self.folder.join(name), content, *mode);
        }
    }
}
