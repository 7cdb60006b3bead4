//! The anti-replay window, once per received frame.
//!
//! `cargo bench -p pilotage-benches --bench replay`

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pilotage_proto::replay::ReplayWindow;

fn replay(c: &mut Criterion) {
    let mut group = c.benchmark_group("replay");
    group.throughput(Throughput::Elements(1));
    for (name, step) in [("in_order", 1u64), ("with_gaps", 100), ("window_jumps", 10_000)] {
        let mut window = <ReplayWindow>::new();
        let mut counter = 0u64;
        group.bench_function(name, |b| {
            b.iter(|| {
                counter += step;
                window.check(black_box(counter)) && window.mark(counter)
            });
        });
    }
    // Neighbours swapped all the way.
    let mut window = <ReplayWindow>::new();
    let mut round = 0u64;
    group.bench_function("reordered", |b| {
        b.iter(|| {
            round += 1;
            let counter = round ^ 1;
            window.check(black_box(counter)) && window.mark(counter)
        });
    });
    let mut window = <ReplayWindow>::new();
    window.mark(1 << 20);
    group.bench_function("duplicate", |b| b.iter(|| window.check(black_box(1 << 20))));
    group.finish();
}

criterion_group!(benches, replay);
criterion_main!(benches);
