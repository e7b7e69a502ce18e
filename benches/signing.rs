//! What scanning, splicing and signing cost by the size of the body, apart and together.
#![allow(missing_docs, reason = "criterion's macros make public items")]

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kybio_gateway::account::{AppId, AppKey};
use kybio_gateway::payload::Whole;
use kybio_gateway::{payload, sign};
use zeroize::Zeroizing;

/// An order of about this many bytes, in the shape of the vendor's own example.
fn order(size: usize) -> Bytes {
    let item = r#"{"productUid":102066793346170331,"comment":"no onions","quantity":1.2,"manualSellPrice":30.2}"#;
    let items = vec![item; size.div_ceil(item.len() + 1).max(1)].join(",");
    format!(r#"{{"payMethod":"Cash","customerNumber":"8008010001","orderDateTime":"2016-03-01 12:00:00","items":[{items}]}}"#).into()
}

fn signing(criterion: &mut Criterion) {
    let app_id = AppId::new("abcdefghijklmn").expect("an appId");
    let key = AppKey::new(&Zeroizing::new(b"1234567890123456789".to_vec())).expect("a key");
    let mut group = criterion.benchmark_group("signing");
    for size in [256, 1_024, 16 * 1_024, 256 * 1_024, 1_024 * 1_024] {
        let body = order(size);
        group.throughput(Throughput::Bytes(body.len() as u64));
        group.bench_function(BenchmarkId::new("scan", size), |bencher| {
            bencher.iter(|| payload::scan::scan(&body));
        });
        group.bench_function(BenchmarkId::new("scan and splice", size), |bencher| {
            bencher.iter(|| {
                payload::check(Whole::in_one_piece(body.clone()))
                    .expect("JSON")
                    .address(&app_id)
            });
        });
        let payload = payload::check(Whole::in_one_piece(body.clone()))
            .expect("JSON")
            .address(&app_id)
            .expect("no other appId");
        group.bench_function(BenchmarkId::new("sign", size), |bencher| {
            bencher.iter(|| sign::sign(&payload, &key));
        });
        group.bench_function(BenchmarkId::new("all three", size), |bencher| {
            bencher.iter(|| {
                sign::sign(
                    &payload::check(Whole::in_one_piece(body.clone()))
                        .expect("JSON")
                        .address(&app_id)
                        .expect("no other appId"),
                    &key,
                )
            });
        });
    }
    group.finish();
}

criterion_group!(benches, signing);
criterion_main!(benches);
