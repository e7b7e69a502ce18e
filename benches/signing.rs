//! What the signature costs by the size of the body, alone and with all that comes before it.
#![allow(missing_docs, reason = "criterion's macros make public items")]

mod order;

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kybio_gateway::account::{AppId, AppKey};
use kybio_gateway::payload::{Payload, Whole};
use kybio_gateway::{payload, sign};
use zeroize::Zeroizing;

fn signing(criterion: &mut Criterion) {
    let app_id = AppId::new("abcdefghijklmn").expect("an appId");
    let key = AppKey::new(&Zeroizing::new(b"1234567890123456789".to_vec())).expect("a key");
    let mut group = criterion.benchmark_group("signing");
    for size in SIZES {
        let body = Bytes::from(order::order(size));
        let addressed = || -> Payload {
            payload::check(Whole::in_one_piece(body.clone()))
                .expect("JSON")
                .address(&app_id)
                .expect("no other appId")
        };
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(BenchmarkId::new("sign", size), |bencher| {
            let payload = addressed();
            bencher.iter(|| sign::sign(&payload, &key));
        });
        group.bench_function(BenchmarkId::new("scan, splice and sign", size), |bencher| {
            bencher.iter(|| sign::sign(&addressed(), &key));
        });
    }
    group.finish();
}

/// From the vendor's own example to more than anybody sends.
const SIZES: [usize; 5] = [300, 1_024, 4_096, 65_536, 1_048_576];

criterion_group!(benches, signing);
criterion_main!(benches);
