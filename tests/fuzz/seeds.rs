//! Where mutation starts: the vendor's samples, the corpora, and a few of our own for what those don't have.

use std::fs;

use crate::support::corpus;
use crate::support::tools;

/// In bytes. Longer ones cost time and show nothing more: all limits but that of the body itself fit.
pub const LENGTH_MAX: usize = 16 * 1024;

/// Request bodies.
pub fn body() -> Vec<Vec<u8>> {
    let cases = corpus::cases("bodies/bodies.txt", 60);
    let cases = cases.iter().map(corpus::Case::bytes);
    let own = [&b"{\"\\ud83c\\udf63\":1,\"\\ud83c\":[-0.0E+5,{}]}"[..]];
    seeds(
        samples(".req.json")
            .chain(cases)
            .chain(own.map(<[u8]>::to_vec)),
    )
}

/// Targets, each with its `Host` fields on lines of their own: as `checks::path` takes them.
pub fn path() -> Vec<Vec<u8>> {
    let cases = corpus::cases("paths/targets.txt", 60);
    let cases = cases.iter().map(|case| {
        let (line, fields) = case.lines.split_first().expect("a request line");
        let target = line
            .iter()
            .position(|byte| *byte == b' ')
            .map_or(0, |at| at + 1);
        let mut seed = line[target..].to_vec();
        if fields.is_empty() {
            seed.extend(b"\ngateway.test");
        }
        for host in fields
            .iter()
            .filter_map(|field| field.strip_prefix(b"host: "))
        {
            seed.extend([b"\n", host].concat());
        }
        seed
    });
    let own = [
        "/openapi/v1/promotionOpenApi/promotion/addCouponcode\n[::1]:8443",
        "https://127.0.0.1:8443/openapi/v1/a-b_c.d/e\n127.0.0.1:8443",
        "/openapi/v1/a/b\n%2Frun%2Fa.sock\nb",
        "user@gateway.test:443\nuser@gateway.test:443",
    ];
    seeds(cases.chain(own.map(|own| own.as_bytes().to_vec())))
}

/// Replies with what they're tried with: as `checks::reply` takes them.
pub fn reply() -> Vec<Vec<u8>> {
    let accepted = ["gzip", "", "gzip;q=0, *", "*;q=0.5", "deflate, *;q=0"];
    let samples = samples(".resp.json")
        .zip(accepted.iter().cycle())
        .enumerate();
    let samples = samples.flat_map(|(number, (body, accepted))| {
        // As it is, and packed in some way.
        [String::new(), number.to_string()].map(|number| {
            let head = format!("200\n\n{accepted}\n\n{number}\n");
            [head.as_bytes(), &body].concat()
        })
    });
    let own = [
        "200\ngzip\ngzip\n\n\n\x1f",
        "200\nx-gzip|identity\ndeflate\n\n\n{}",
        "200\nbr\n*;q=0.1\n100\n\n{\"status\":\"success\"}",
        "200\nidentity\n\n20\n\n{\"status\":\"success\"}",
        "200\n\n\n\n\n\u{feff}{\"status\":\"ERROR\",\"errorCode\":\"5004\",\"messages\":[\"busy\",1]}",
        "200\n\n\n\n\n{\"errorCode\":1e999,\"status\":\"error\",\"messages\":\"b\\u0075sy\"}",
        "200\n\n\n\n\n{\"status\":\"success\",\"\\u0073tatus\":\"error\"}",
        "200\n\n\n\n\n[\"success\",{\"status\":\"success\"}]",
        "200\n\n\n\n\n{\"data\":{\"status\":\"success\"},\"a\":\"\\ud800\"}",
        "200\n\n\n\n\n \r\n{\"status\":\"ok\"}",
        "429\n\n\n\n\n{\"status\":\"error\",\"errorCode\":7}",
        "302\n\n\n\n\n",
    ];
    seeds(samples.chain(own.map(|own| own.as_bytes().to_vec())))
}

/// The vendor's samples with such a name.
fn samples(ending: &'static str) -> impl Iterator<Item = Vec<u8>> {
    let folder = tools::root().join("tests/vectors/samples");
    let paths = fs::read_dir(folder)
        .expect("the samples")
        .map(|entry| entry.expect("a sample").path());
    let mut paths: Vec<_> = paths
        .filter(|path| path.to_string_lossy().ends_with(ending))
        .collect();
    paths.sort();
    assert!(paths.len() > 20, "{} samples", paths.len());
    paths
        .into_iter()
        .map(|path| fs::read(path).expect("a sample"))
}

fn seeds(all: impl Iterator<Item = Vec<u8>>) -> Vec<Vec<u8>> {
    let seeds: Vec<_> = all.filter(|seed| seed.len() <= LENGTH_MAX).collect();
    assert!(seeds.len() > 20, "{} seeds", seeds.len());
    seeds
}
