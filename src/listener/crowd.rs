//! How many connections each one has: a limit on them, so that nobody takes the place of all others.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

/// Connections that are open now, by whose they are. Nobody is in it who has none.
#[derive(Debug)]
pub(super) struct Crowd<K: Eq + Hash>(Arc<Mutex<HashMap<K, usize>>>);

impl<K: Eq + Hash> Default for Crowd<K> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

/// One connection of somebody's, until it's dropped.
#[derive(Debug)]
pub(super) struct Place<K: Eq + Hash> {
    key: K,
    crowd: Arc<Mutex<HashMap<K, usize>>>,
}

impl<K: Eq + Hash + Clone> Crowd<K> {
    /// One more connection of theirs, unless they have `max` already.
    pub(super) fn enter(&self, key: K, max: usize) -> Option<Place<K>> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(key.clone()).or_default();
        if *count >= max {
            // An entry was there already: a limit is at least one.
            return None;
        }
        *count += 1;
        Some(Place {
            key,
            crowd: Arc::clone(&self.0),
        })
    }
}

impl<K: Eq + Hash> Drop for Place<K> {
    fn drop(&mut self) {
        let mut counts = self.crowd.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.key);
            }
        }
    }
}

/// Bits of an IPv6 address that tell one network from another: the rest is for its owner to choose (RFC 4291, section 2.5.1). Sites often
/// have many such networks (RFC 6177, section 2), and are as many here.
const IPV6_PREFIX: u32 = 64;

/// Whose an address is: an IPv4 address its own, an IPv6 address its network's.
pub(super) fn owner(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let network = address.to_bits() & (u128::MAX << (Ipv6Addr::BITS - IPV6_PREFIX));
            Ipv6Addr::from_bits(network).into()
        }
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::Crowd;
    use super::owner;
    use proptest::prelude::*;

    #[test]
    fn nobody_has_more_than_allowed_and_who_leaves_makes_room() {
        let crowd = Crowd::default();
        let first = crowd.enter("a", 2).expect("room");
        let second = crowd.enter("a", 2).expect("room");
        assert!(crowd.enter("a", 2).is_none());
        assert!(crowd.enter("b", 2).is_some(), "another one's");
        assert!(crowd.enter("a", 3).is_some(), "a limit that was raised");
        drop(first);
        assert!(crowd.enter("a", 1).is_none(), "a limit that was lowered");
        drop(second);
        assert!(crowd.enter("a", 1).is_some());
        assert!(crowd.0.lock().expect("whole").is_empty(), "nothing is kept");
    }

    #[test]
    fn a_network_is_one_and_an_old_address_in_a_new_coat_is_the_same() {
        let owner = |text: &str| owner(text.parse().expect(text)).to_string();
        for (address, expected) in [
            ("192.0.2.7", "192.0.2.7"),
            ("::ffff:192.0.2.7", "192.0.2.7"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
            ("2001:db8:1:2:ffff:ffff:ffff:ffff", "2001:db8:1:2::"),
            ("2001:db8:1:3::1", "2001:db8:1:3::"),
            ("::1", "::"),
        ] {
            assert_eq!(owner(address), expected, "{address}");
        }
    }

    proptest! {
        /// After any coming and going, the counts are those of who is there.
        #[test]
        fn counts_are_of_who_is_there(steps in proptest::collection::vec((0u8..4, any::<bool>()), 1..100)) {
            let crowd = Crowd::default();
            let mut there = Vec::new();
            for (key, comes) in steps {
                let count = there.iter().filter(|(other, _)| *other == key).count();
                if comes {
                    let place = crowd.enter(key, 3);
                    prop_assert_eq!(place.is_some(), count < 3);
                    there.extend(place.map(|place| (key, place)));
                } else if let Some(at) = there.iter().position(|(other, _)| *other == key) {
                    there.swap_remove(at);
                }
            }
        }
    }
}
