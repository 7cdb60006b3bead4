//! What reassembly costs per segment: in order (the straight path), with one gap, and under attack.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pilotage_proto::assembler::{Assembler, MAX_RANGES};

const SEGMENT: usize = 1400;
/// Segments between two reads, as one GRO batch brings them.
const BATCH: u64 = 32;

fn in_order(c: &mut Criterion) {
    let mut group = c.benchmark_group("assembler");
    for size in [64, SEGMENT, 8900] {
        let data = vec![7; size];
        let mut out = vec![0; size * BATCH as usize];
        let mut assembler = Assembler::new(4 << 20);
        let mut offset = 0;
        group.throughput(Throughput::Elements(BATCH));
        group.bench_function(format!("in order, {BATCH} segments of {size} bytes and one read"), |b| {
            b.iter(|| {
                for _ in 0..BATCH {
                    black_box(assembler.insert(offset, &data));
                    offset += size as u64;
                }
                black_box(assembler.read(&mut out))
            });
        });
    }
    group.finish();
}

fn one_gap(c: &mut Criterion) {
    let data = vec![7; SEGMENT];
    let mut out = vec![0; SEGMENT * BATCH as usize];
    let mut assembler = Assembler::new(4 << 20);
    let mut offset = 0;
    let mut group = c.benchmark_group("assembler");
    group.throughput(Throughput::Elements(BATCH));
    group.bench_function(format!("first of {BATCH} segments comes last"), |b| {
        b.iter(|| {
            for i in (1..BATCH).chain([0]) {
                black_box(assembler.insert(offset + i * SEGMENT as u64, &data));
            }
            offset += BATCH * SEGMENT as u64;
            black_box(assembler.read(&mut out))
        });
    });
    group.finish();
}

fn one_byte_gaps(c: &mut Criterion) {
    let mut assembler = Assembler::new(4 << 20);
    for i in 1..=MAX_RANGES as u64 {
        assembler.insert(i * 2, &[1]);
    }
    let beyond = MAX_RANGES as u64 * 2 + 2;
    let mut group = c.benchmark_group("assembler");
    group.throughput(Throughput::Elements(1));
    group.bench_function("one gap too many", |b| {
        b.iter(|| black_box(assembler.insert(black_box(beyond), &[1])));
    });
    group.bench_function("first gap filled and opened again among all others", |b| {
        let mut at = 0;
        let mut end = beyond;
        let mut byte = [0];
        b.iter(|| {
            // Fills the lowest gap, and opens one at the top in return.
            black_box(assembler.insert(at, &[1, 1]));
            black_box(assembler.insert(end, &[1]));
            assembler.read(&mut byte);
            assembler.read(&mut byte);
            at += 2;
            end += 2;
        });
    });
    group.finish();
}

criterion_group!(benches, in_order, one_gap, one_byte_gaps);
criterion_main!(benches);
