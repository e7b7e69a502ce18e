//! Promise W4: no framing trick makes an extra call upstream, or gives one caller's answer to another. What goes up is always our own
//! request, with our own length; where the HTTP library is laxer than the standard, SECURITY.md says so.

use std::collections::BTreeSet;

use crate::support::street::{Expected, Street};
use crate::support::{corpus, tools};

/// Byte by byte, while a neighbour makes honest calls.
#[tokio::test]
async fn no_stream_of_bytes_on_http1_makes_an_extra_call_or_gets_anothers_answer() {
    let cases = corpus::cases("framing/http1.txt", 60);
    let mut street = Street::start().await;
    let mut wrong = Vec::new();
    for case in &cases {
        let expected = Expected::of(&case.class);
        wrong.extend(street.tries(case, &case.bytes(), &expected).await);
    }
    street.settles().await;
    assert_eq!(street.arrived(), (vec![], vec![]), "late");
    corpus::all_as_they_should_be(cases.len(), &wrong);
}

/// Frame by frame, while a neighbour makes honest calls.
#[tokio::test]
async fn no_sequence_of_frames_on_http2_makes_an_extra_call_or_gets_anothers_answer() {
    let cases = corpus::cases("framing/http2.txt", 40);
    let mut street = Street::start().await;
    let mut wrong = Vec::new();
    for case in &cases {
        let expected = Expected::of(&case.class);
        wrong.extend(street.tries_frames(case, &case.lines, &expected).await);
    }
    street.settles().await;
    assert_eq!(street.arrived(), (vec![], vec![]), "late");
    corpus::all_as_they_should_be(cases.len(), &wrong);
}

/// The table in SECURITY.md says what the library forgives: each of its rows is shown by a case, and no case shows more.
#[test]
fn what_the_library_forgives_is_what_the_security_policy_says() {
    let text = std::fs::read_to_string(tools::root().join("SECURITY.md")).unwrap();
    let table = text
        .split("| what is forgiven | what becomes of it |")
        .nth(1)
        .unwrap();
    let rows = table
        .lines()
        .skip(2)
        .map_while(|line| line.strip_prefix("| ")?.split_once(" |"));
    let written: BTreeSet<_> = rows.map(|(forgiven, _)| forgiven.to_owned()).collect();
    let files = [
        "framing/http1.txt",
        "framing/http2.txt",
        "paths/targets.txt",
    ];
    let cases = files.iter().flat_map(|file| corpus::cases(file, 40));
    let classes = cases.flat_map(|case| {
        let classes = case.class.split(" / ").map(Expected::of);
        classes
            .filter_map(|expected| expected.lax)
            .collect::<Vec<_>>()
    });
    let shown: BTreeSet<_> = classes.collect();
    assert!(!shown.is_empty());
    assert_eq!(shown, written);
}
