//! Cases as data: the corpora, whose README says how they are written.

use std::collections::HashSet;
use std::fs;

use crate::support::tools;

/// One case.
pub struct Case {
    pub name: String,
    /// What is to come of it.
    pub class: String,
    pub lines: Vec<Vec<u8>>,
}

impl Case {
    /// Its lines, one right after the other.
    pub fn bytes(&self) -> Vec<u8> {
        self.lines.concat()
    }
}

/// All cases of a file in `tests/corpora`: that many at least, each with a name of its own.
pub fn cases(file: &str, least: usize) -> Vec<Case> {
    let text = fs::read_to_string(tools::root().join("tests/corpora").join(file)).unwrap();
    let mut cases: Vec<Case> = Vec::new();
    let mut short: Vec<(&str, &str)> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let place = format!("{file}, line {}", number + 1);
        assert_eq!(
            line,
            line.trim_end(),
            "{place}: white space that editors take away"
        );
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if line.starts_with('{') {
            short.push(line.split_once(" = ").expect(&place));
            continue;
        }
        let line = short.iter().fold(line.to_owned(), |line, (name, text)| {
            line.replace(name, text)
        });
        if let Some(more) = line.strip_prefix("  ") {
            let case = cases.last_mut().expect(&place);
            case.lines.push(bytes(more, &place));
            continue;
        }
        let mut parts = line.splitn(3, " | ");
        cases.push(Case {
            name: parts.next().unwrap().to_owned(),
            class: String::from_utf8(bytes(parts.next().expect(&place), &place)).unwrap(),
            lines: parts.map(|text| bytes(text, &place)).collect(),
        });
    }
    let names: HashSet<_> = cases.iter().map(|case| &case.name).collect();
    assert_eq!(names.len(), cases.len(), "{file}: two cases have one name");
    assert!(cases.len() >= least, "{file}: {}", cases.len());
    cases
}

/// What a text of the corpora stands for.
fn bytes(text: &str, place: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some(character) = rest.chars().next() {
        if let Some(generator) = rest.strip_prefix("{repeat:") {
            let (count, after) = generator.split_once(':').expect(place);
            let (piece, after) = after.split_once('}').expect(place);
            let count = count.parse().expect(place);
            bytes.extend(repeated(piece, count, place));
            rest = after;
            continue;
        }
        rest = &rest[character.len_utf8()..];
        if character != '\\' {
            bytes.extend(character.to_string().as_bytes());
            continue;
        }
        let (escape, after) = rest.split_at_checked(1).expect(place);
        rest = after;
        bytes.push(match escape {
            "n" => b'\n',
            "r" => b'\r',
            "t" => b'\t',
            "\\" => b'\\',
            "x" => {
                let (digits, after) = rest.split_at_checked(2).expect(place);
                rest = after;
                u8::from_str_radix(digits, 16).expect(place)
            }
            other => panic!("{place}: \\{other}"),
        });
    }
    bytes
}

fn repeated(piece: &str, count: usize, place: &str) -> Vec<u8> {
    if !piece.contains('#') {
        return bytes(piece, place).repeat(count);
    }
    let numbered = |number: usize| bytes(&piece.replace('#', &number.to_string()), place);
    (0..count).flat_map(numbered).collect()
}

/// Ends the test if some cases came out differently, and names each of them.
pub fn all_as_they_should_be(tried: usize, wrong: &[String]) {
    assert!(
        wrong.is_empty(),
        "{} of {tried} are wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}
