//! What scanning and splicing cost by the size of the body, apart and together.
#![allow(missing_docs, reason = "criterion's macros make public items")]

mod order;

use bytes::Bytes;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kybio_gateway::account::AppId;
use kybio_gateway::payload;
use kybio_gateway::payload::Whole;

fn payload(criterion: &mut Criterion) {
    let app_id = AppId::new("abcdefghijklmn").expect("an appId");
    let mut group = criterion.benchmark_group("payload");
    for size in SIZES {
        let body = Bytes::from(order::order(size));
        let checked = || payload::check(Whole::in_one_piece(body.clone())).expect("JSON");
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(BenchmarkId::new("scan", size), |bencher| {
            bencher.iter(|| payload::scan::scan(&body));
        });
        group.bench_function(BenchmarkId::new("splice", size), |bencher| {
            let splice = |draft: payload::Draft| draft.address(&app_id);
            bencher.iter_batched(checked, splice, BatchSize::SmallInput);
        });
        group.bench_function(BenchmarkId::new("both", size), |bencher| {
            bencher.iter(|| checked().address(&app_id));
        });
    }
    group.finish();
}

/// From the vendor's own example to more than anybody sends.
const SIZES: [usize; 5] = [300, 1_024, 4_096, 65_536, 1_048_576];

criterion_group!(benches, payload);
criterion_main!(benches);
