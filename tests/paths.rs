//! Promise W2: a caller that is granted one operation reaches that one alone, whatever its request line and its header say.

use crate::support::corpus;
use crate::support::street::{Expected, Street};

/// On the request line byte by byte; where there are no header fields of a case's own, as `:method` and `:path` of HTTP/2 too.
#[tokio::test]
async fn whatever_the_target_only_the_granted_operation_is_reached() {
    let cases = corpus::cases("paths/targets.txt", 60);
    let mut street = Street::start().await;
    let (mut tried, mut wrong) = (0, Vec::new());
    for case in &cases {
        let (class, on_http2) = case
            .class
            .split_once(" / ")
            .unwrap_or((&case.class, &case.class));
        let (line, fields) = case.lines.split_first().unwrap();
        let host = if fields.is_empty() {
            "host: gateway.test\r\n"
        } else {
            ""
        };
        let mut bytes = [line, &b" HTTP/1.1\r\n"[..], host.as_bytes()].concat();
        fields
            .iter()
            .for_each(|field| bytes.extend([field, &b"\r\n"[..]].concat()));
        bytes.extend(b"content-type: application/json\r\ncontent-length: 7\r\n\r\n{\"n\":1}");
        wrong.extend(street.tries(case, &bytes, &Expected::of(class)).await);
        tried += 1;
        if fields.is_empty() {
            let space = line.iter().position(|byte| *byte == b' ').unwrap();
            let (method, path) = (&line[..space], &line[space + 1..]);
            let lines = [
                b"HEADERS 1 END_HEADERS".to_vec(),
                [b":method: ", method].concat(),
                [b":path: ", path].concat(),
                b"the usual but :method :path".to_vec(),
                b"DATA 1 END_STREAM {\"n\":1}".to_vec(),
            ];
            let fault = street
                .tries_frames(case, &lines, &Expected::of(on_http2))
                .await;
            wrong.extend(fault.map(|fault| format!("{fault} (HTTP/2)")));
            tried += 1;
        }
    }
    street.settles().await;
    assert_eq!(street.arrived(), (vec![], vec![]), "late");
    corpus::all_as_they_should_be(tried, &wrong);
}
