//! Sealing and opening of packets, and what a handshake costs. One line per implementation of AES-256-GCM.
//!
//! `cargo bench -p pilotage-benches --bench crypto`

use std::hint::black_box;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use pilotage_proto::crypto::{
    AwsLcAes256Gcm, EphemeralKey, Identity, PacketAead, RustCryptoAes256Gcm, TAG_LEN, verify,
};

/// A small request, a full 1,452-byte datagram, the draft's segment, a loopback-sized datagram.
const PACKETS: [usize; 4] = [64, 1400, 4096, 60 * 1024];

fn nonce(counter: u64) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_be_bytes());
    nonce
}

fn aead(c: &mut Criterion, name: &str, aead: &dyn PacketAead) {
    let mut group = c.benchmark_group(name);
    for len in PACKETS {
        let mut buf = vec![0x5A; len + TAG_LEN];
        group.throughput(Throughput::Bytes(len as u64));
        let mut counter = 0;
        group.bench_function(BenchmarkId::new("seal", len), |b| {
            b.iter(|| {
                counter += 1;
                aead.seal_in_place(&nonce(counter), &[0, 0, 0, 1], black_box(&mut buf));
            });
        });
        aead.seal_in_place(&nonce(0), &[0, 0, 0, 1], &mut buf);
        let sealed = buf.clone();
        // Opening destroys its input, so each round starts from a fresh copy, made outside of the time.
        group.bench_function(BenchmarkId::new("open", len), |b| {
            b.iter_batched_ref(
                || sealed.clone(),
                |buf| aead.open_in_place(&nonce(0), &[0, 0, 0, 1], black_box(buf)).is_some(),
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

fn packets(c: &mut Criterion) {
    aead(c, "aes-256-gcm/aws-lc", &AwsLcAes256Gcm::new(&[7; 32]));
    aead(c, "aes-256-gcm/rustcrypto", &RustCryptoAes256Gcm::new(&[7; 32]));
}

fn handshake(c: &mut Criterion) {
    let mut group = c.benchmark_group("handshake");
    let identity = Identity::from_seed([1; 32]);
    let message = [3; 40];
    let signature = identity.sign(&message);
    let public = identity.public_key();
    group.bench_function("sign", |b| b.iter(|| identity.sign(black_box(&message))));
    group.bench_function("verify", |b| b.iter(|| verify(black_box(&public), &message, &signature)));
    let ours = EphemeralKey::from_bytes([5; 32]);
    let theirs = EphemeralKey::from_bytes([6; 32]).public();
    group.bench_function("new_key", |b| b.iter(|| EphemeralKey::from_bytes(black_box([5; 32]))));
    group.bench_function("tunnel_key", |b| b.iter(|| ours.tunnel_key(black_box(&theirs))));
    group.finish();
}

criterion_group!(benches, packets, handshake);
criterion_main!(benches);
