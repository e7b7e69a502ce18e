//! Who else may use a file: by its mode, and by its access control list if it has one.

use rustix::process::getegid;
use rustix::process::geteuid;
use rustix::process::getgroups;

/// What a file says of who may use it, besides its owner.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Access {
    /// As stat(2) has it. With a list, the group's part is the list's mask (acl(5)).
    pub(super) mode: u32,
    pub(super) group: u32,
    /// Its list, in the form of [`ACL`]; `None` if there's none.
    pub(super) list: Option<Vec<u8>>,
}

/// The extended attribute that holds it: a version, and entries of a tag, permissions and an id, all little-endian (linux/posix_acl_xattr.h).
pub(super) const ACL: &str = "system.posix_acl_access";

/// A list that's longer is nobody's idea of a private file: room for a hundred entries.
pub(super) const ACL_BYTES_MAX: usize = 1_024;

const VERSION: u32 = 2;
const ENTRY_LENGTH: usize = 8;

/// Tags of entries.
const OWNER: u16 = 0x01;
const USER: u16 = 0x02;
const OWNING_GROUP: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHERS: u16 = 0x20;

const READ: u16 = 4;
const WRITE: u16 = 2;

/// A process that wants to read.
struct Process {
    user: u32,
    groups: Vec<u32>,
}

impl Process {
    fn this() -> Self {
        let groups = getgroups().unwrap_or_default().into_iter();
        let groups = groups.chain([getegid()]).map(rustix::process::Gid::as_raw);
        Self {
            user: geteuid().as_raw(),
            groups: groups.collect(),
        }
    }
}

impl Access {
    /// Nobody but its owner and this process may read or write it, and of groups only those that the process is in may read.
    pub(super) fn is_private(&self) -> bool {
        self.is_private_to(&Process::this())
    }

    fn is_private_to(&self, process: &Process) -> bool {
        let [group, others] = [3, 0].map(|shift| (self.mode >> shift & 0o7) as u16);
        let is_ours = |group: u32| process.groups.contains(&group);
        let may_group = |permissions: u16, id: u32| {
            permissions & WRITE == 0 && (permissions & READ == 0 || is_ours(id))
        };
        if others != 0 {
            return false;
        }
        let Some(list) = &self.list else {
            return may_group(group, self.group);
        };
        // What isn't understood may let anybody in.
        let Some(entries) = entries(list) else {
            return false;
        };
        let mask = entries.iter().find(|(tag, ..)| *tag == MASK);
        let mask = mask.map_or(READ | WRITE, |(_, permissions, _)| *permissions);
        entries.iter().all(|(tag, permissions, id)| {
            let effective = permissions & mask;
            match *tag {
                OWNER | MASK => true,
                USER => *id == process.user || effective & (READ | WRITE) == 0,
                OWNING_GROUP => may_group(effective, self.group),
                GROUP => may_group(effective, *id),
                OTHERS => permissions & (READ | WRITE) == 0,
                _ => false,
            }
        })
    }
}

/// Tag, permissions and id of each.
fn entries(list: &[u8]) -> Option<Vec<(u16, u16, u32)>> {
    let (version, rest) = list.split_first_chunk()?;
    let (entries, odd) = rest.as_chunks::<ENTRY_LENGTH>();
    if u32::from_le_bytes(*version) != VERSION || !odd.is_empty() {
        return None;
    }
    let entry = |[a, b, c, d, id @ ..]: &[u8; ENTRY_LENGTH]| {
        (
            u16::from_le_bytes([*a, *b]),
            u16::from_le_bytes([*c, *d]),
            u32::from_le_bytes(*id),
        )
    };
    Some(entries.iter().map(entry).collect())
}

#[cfg(test)]
mod tests {
    use super::Access;
    use super::GROUP;
    use super::MASK;
    use super::OTHERS;
    use super::OWNER;
    use super::OWNING_GROUP;
    use super::Process;
    use super::USER;

    fn is_private(mode: u32, list: Option<Vec<u8>>) -> bool {
        let process = Process {
            user: 7,
            groups: vec![70, 71],
        };
        let group = 70;
        Access { mode, group, list }.is_private_to(&process)
    }

    #[test]
    fn a_file_is_private_or_its_groups() {
        for mode in [0o400, 0o600, 0o440, 0o640, 0o100_400, 0o100_640] {
            assert!(is_private(mode, None), "{mode:o}");
        }
        for mode in [0o644, 0o404, 0o602, 0o660, 0o620, 0o601, 0o100_444] {
            assert!(!is_private(mode, None), "{mode:o}");
        }
        let another = Access {
            mode: 0o440,
            group: 72,
            list: None,
        };
        let process = Process {
            user: 7,
            groups: vec![70, 71],
        };
        assert!(!another.is_private_to(&process));
    }

    #[test]
    fn a_list_lets_in_whom_it_names() {
        let list = |named: &[(u16, u16, u32)]| {
            let mut bytes = 2_u32.to_le_bytes().to_vec();
            for (tag, permissions, id) in [(OWNER, 6, !0), (OWNING_GROUP, 0, !0), (OTHERS, 0, !0)]
                .iter()
                .chain(named)
            {
                bytes.extend(tag.to_le_bytes());
                bytes.extend(permissions.to_le_bytes());
                bytes.extend(id.to_le_bytes());
            }
            bytes
        };
        let mask = |permissions| (MASK, permissions, !0);
        for (named, expected) in [
            // As systemd hands credentials over, since version 254.
            (&[(USER, 4, 7), mask(4)][..], true),
            (&[(USER, 6, 7), mask(6)], true),
            (&[(USER, 4, 8), mask(4)], false),
            (&[(USER, 2, 8), mask(6)], false),
            (&[(USER, 4, 8), mask(0)], true),
            (&[(USER, 4, 7), (USER, 4, 8), mask(4)], false),
            (&[(GROUP, 4, 71), mask(4)], true),
            (&[(GROUP, 6, 71), mask(6)], false),
            (&[(GROUP, 6, 71), mask(4)], true),
            (&[(GROUP, 4, 72), mask(4)], false),
            (&[(0x40, 4, 7)], false),
            (&[], true),
        ] {
            assert_eq!(is_private(0o440, Some(list(named))), expected, "{named:?}");
        }
        assert!(!is_private(0o444, Some(list(&[]))));
        for odd in [
            vec![],
            vec![2, 0, 0],
            list(&[])[1..].to_vec(),
            vec![3, 0, 0, 0],
        ] {
            assert!(!is_private(0o400, Some(odd.clone())), "{odd:?}");
        }
    }
}
