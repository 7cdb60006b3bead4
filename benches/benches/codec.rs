//! The codec on the per-packet path: header and CRC, frame split. Payloads of a small request, a full 1,452-byte
//! datagram, the draft's segment and a loopback-sized datagram.
//!
//! `cargo bench -p pilotage-benches --bench codec`

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use pilotage_wire::packet::{Flags, HEADER_LEN, Header, Packet, Protocol, checksum};
use pilotage_wire::{Address, NodeId, frame, sack};

const PAYLOADS: [usize; 4] = [64, 1400, 4096, 60 * 1024];

const HEADER: Header = Header {
    flags: Flags::ACK,
    protocol: Protocol::Stream,
    src: Address::new(0, 1),
    dst: Address::new(0, 2),
    src_port: 49_152,
    dst_port: 1000,
    seq: 1,
    ack: 1,
    window: 512,
};

/// A finished packet with a payload that is not all zeros.
fn packet(payload_len: usize) -> Vec<u8> {
    let mut buf: Vec<u8> = (0..HEADER_LEN + payload_len).map(|at| at as u8).collect();
    HEADER.encode(&mut buf, payload_len).expect("the buffer was made for it");
    buf
}

fn packets(c: &mut Criterion) {
    let mut group = c.benchmark_group("packet");
    for payload_len in PAYLOADS {
        let mut buf = packet(payload_len);
        group.throughput(Throughput::Bytes(payload_len as u64));
        group.bench_function(BenchmarkId::new("encode", payload_len), |b| {
            b.iter(|| black_box(&HEADER).encode(black_box(&mut buf), payload_len));
        });
        group.bench_function(BenchmarkId::new("decode", payload_len), |b| {
            b.iter(|| black_box(Packet::decode(black_box(&buf))).is_ok());
        });
        group.bench_function(BenchmarkId::new("decode_trusted", payload_len), |b| {
            b.iter(|| black_box(Packet::decode_trusted(black_box(&buf))).is_ok());
        });
        let (head, payload) = buf.split_first_chunk::<HEADER_LEN>().expect("starts with a header");
        group.bench_function(BenchmarkId::new("crc", payload_len), |b| {
            b.iter(|| checksum(black_box(head), black_box(payload)));
        });
    }
    group.finish();
}

fn frames(c: &mut Criterion) {
    let mut group = c.benchmark_group("frame");
    let mut pils = vec![0; frame::PILS_OVERHEAD + HEADER_LEN + 1400];
    frame::encode_pils_header(NodeId(1), &[7; 12], &mut pils).expect("the buffer was made for it");
    group.bench_function("pils_header", |b| {
        b.iter(|| frame::encode_pils_header(black_box(NodeId(1)), black_box(&[7; 12]), &mut pils));
    });
    group.bench_function("decode_pils", |b| b.iter(|| black_box(frame::decode(black_box(&pils))).is_ok()));
    group.bench_function("split_pils_mut", |b| {
        b.iter(|| black_box(frame::split_pils_mut(black_box(&mut pils))).is_some());
    });
    group.finish();
}

fn sacks(c: &mut Criterion) {
    let mut group = c.benchmark_group("sack");
    let blocks = [(8193, 12_289), (16_385, 20_481), (24_577, 28_673), (32_769, 36_865)];
    let mut payload = [0; sack::MAX_LEN];
    group.bench_function("encode/4", |b| b.iter(|| sack::encode(black_box(&blocks), &mut payload)));
    group.bench_function("decode/4", |b| b.iter(|| sack::decode(black_box(&payload))));
    group.bench_function("looks_like_sack", |b| b.iter(|| sack::looks_like_sack(black_box(&payload))));
    group.finish();
}

criterion_group!(benches, packets, frames, sacks);
criterion_main!(benches);
