//! KYBIO's signature rule in a few lines of its own, so that nothing of the product's is checked by itself. Here an account's key follows
//! from its appId, so that any number of accounts needs no list.

use md5::{Digest, Md5};

/// The appId of an account by its number.
pub fn app_id(number: usize) -> String {
    format!("app{number:011}")
}

/// The key of an appId.
pub fn key(app_id: &str) -> String {
    format!("key-of-{app_id}")
}

/// What `data-signature` must be: upper(hex(md5(key + body))).
pub fn signature(app_id: &str, body: &[u8]) -> String {
    let digest = Md5::new()
        .chain_update(key(app_id))
        .chain_update(body)
        .finalize();
    digest.iter().map(|byte| format!("{byte:02X}")).collect()
}

/// The appId that a body begins with, as everybody here puts it.
pub fn app_id_of(body: &[u8]) -> Option<&str> {
    let rest = body.strip_prefix(b"{\"appId\":\"")?;
    let end = rest.iter().position(|byte| *byte == b'"')?;
    std::str::from_utf8(&rest[..end]).ok()
}
