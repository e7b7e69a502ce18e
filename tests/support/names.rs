//! Hosts' names of a process's own, by cwrap's nss_wrapper: no name server is asked.

use std::path::{Path, PathBuf};

fn library() -> PathBuf {
    let found = std::fs::read_dir("/usr/lib").unwrap();
    found
        .map(|folder| folder.unwrap().path().join("libnss_wrapper.so"))
        .find(|path| path.exists())
        .expect("libnss-wrapper (see .ci/install)")
}

/// The environment of a process that looks names up in this file, which is like /etc/hosts.
pub fn from_file(hosts: &Path) -> Vec<(&'static str, String)> {
    vec![
        ("LD_PRELOAD", library().display().to_string()),
        ("NSS_WRAPPER_HOSTS", hosts.display().to_string()),
    ]
}
