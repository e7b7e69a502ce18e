//! B1, B2, B3, W2, X2 for bytes that nobody thought of: seeds, changed at random, through the checks that the fuzz targets run for longer
//! (`tests/fuzz`). This one file uses the gateway's code, because no socket is fast enough for that.

#[path = "fuzz/checks.rs"]
mod checks;
#[path = "fuzz/seeds.rs"]
mod seeds;

use std::cell::Cell;

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestRunner};

#[test]
fn whatever_the_body_it_is_spliced_exactly_or_refused_rightly() {
    tried(&seeds::body(), 5_000, checks::body);
}

#[test]
fn whatever_the_target_it_is_one_operation_or_refused() {
    tried(&seeds::path(), 4_000, checks::path);
}

#[test]
fn whatever_the_reply_it_is_read_as_it_stands_or_not_at_all() {
    tried(&seeds::reply(), 3_000, checks::reply);
}

/// Each seed as it is, and this many changed ones. The check says which were taken.
fn tried(seeds: &[Vec<u8>], count: u32, check: impl Fn(&[u8]) -> bool) {
    let taken = Cell::new(seeds.iter().filter(|seed| check(seed)).count());
    assert!((10..seeds.len()).contains(&taken.replace(0)));
    let config = Config {
        cases: count,
        failure_persistence: None,
        ..Config::default()
    };
    let changed = changed(seeds.to_vec());
    TestRunner::new(config)
        .run(&changed, |bytes| {
            taken.set(taken.get() + usize::from(check(&bytes)));
            Ok(())
        })
        .unwrap();
    // Bytes that are all refused, or all taken, would show little.
    let some = count as usize / 50;
    let taken = taken.get();
    assert!(
        (some..count as usize - some).contains(&taken),
        "{taken} of {count}"
    );
}

/// One change, at places that fit whatever length there is.
#[derive(Clone, Debug)]
enum Edit {
    Cut(Index),
    Remove(Index, usize),
    Insert(Index, Vec<u8>),
    Overwrite(Index, u8),
    Repeat(Index, usize, usize),
    /// From here on as another seed from there on.
    Splice(Index, Index, Index),
}

fn changed(seeds: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let place = any::<Index>;
    // What means something to one of the readers.
    let words = r#"[{}\[\]:,"\\\x00-\x20]|\\u00[46][19]|\\ud8[0-3]|"appId":|"a":|app_?id|[0-9.eE+-]{1,5}|null|[/.%?;#@|]|status|"success"|gzip|é|İ|ａ"#;
    let edit = prop_oneof![
        1 => place().prop_map(Edit::Cut),
        3 => (place(), 1_usize..20).prop_map(|(at, length)| Edit::Remove(at, length)),
        5 => (place(), words).prop_map(|(at, word)| Edit::Insert(at, word.into_bytes())),
        3 => (place(), any::<u8>()).prop_map(|(at, byte)| Edit::Overwrite(at, byte)),
        1 => (place(), 1_usize..40, 1_usize..200).prop_map(|(at, length, times)| Edit::Repeat(at, length, times)),
        1 => (place(), place(), place()).prop_map(|(at, seed, from)| Edit::Splice(at, seed, from)),
    ];
    let edits = proptest::collection::vec(edit, 1..4);
    (place(), edits).prop_map(move |(seed, edits)| {
        let start = seed.get(&seeds).clone();
        edits
            .iter()
            .fold(start, |bytes, edit| edited(bytes, edit, &seeds))
    })
}

fn edited(mut bytes: Vec<u8>, edit: &Edit, seeds: &[Vec<u8>]) -> Vec<u8> {
    // Behind the last byte is a place too.
    let place = |at: &Index, bytes: &[u8]| at.index(bytes.len() + 1);
    match edit {
        Edit::Cut(at) => bytes.truncate(place(at, &bytes)),
        Edit::Remove(at, length) => {
            let at = place(at, &bytes);
            bytes.drain(at..bytes.len().min(at + length));
        }
        Edit::Insert(at, word) => {
            let at = place(at, &bytes);
            bytes.splice(at..at, word.iter().copied());
        }
        Edit::Overwrite(at, byte) => {
            let at = place(at, &bytes);
            bytes.splice(at..bytes.len().min(at + 1), [*byte]);
        }
        Edit::Repeat(at, length, times) => {
            let at = place(at, &bytes);
            let piece = bytes[at..bytes.len().min(at + length)].repeat(*times);
            bytes.splice(at..at, piece);
        }
        Edit::Splice(at, seed, from) => {
            let other = seed.get(seeds);
            bytes.truncate(place(at, &bytes));
            bytes.extend(&other[place(from, other)..]);
        }
    }
    bytes.truncate(seeds::LENGTH_MAX);
    bytes
}
