//! What the driver costs per packet on real sockets: allocations and system calls of two nodes with one bulk stream
//! between them (spec/decisions/0006-memory-copies.md).

use std::alloc::System;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pilotage::{NodeBuilder, NodeStats, Peer, ProtoConfig, SecureMode, Stream};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Bytes of one measured round.
const ROUND: usize = 32 << 20;
/// Rounds that are measured; the best counts, because a machine that is busy elsewhere makes queues, which need memory
/// for once, and small batches.
const ROUNDS: usize = 8;
/// Longest time for everything.
const LIMIT: Duration = Duration::from_secs(120);

/// A node that says how its tunnel is protected: a change to S1 on the way takes memory, once.
fn node(mode: SecureMode, max_datagram_size: usize) -> NodeBuilder {
    let bind: SocketAddr = "127.0.0.1:0".parse().expect("address");
    let config = ProtoConfig { max_datagram_size, ..ProtoConfig::default() };
    let buffer = 4 << 20;
    pilotage::Node::builder()
        .bind(bind)
        .config(config)
        .secure_mode(mode)
        .recv_buffer_bytes(buffer)
        .send_buffer_bytes(buffer)
}

/// What both nodes did since `before`.
#[derive(Debug)]
struct Calls {
    packets: u64,
    sent_in: u64,
    received_in: u64,
    polls: u64,
}

fn calls(before: &[NodeStats; 2], after: &[NodeStats; 2]) -> Calls {
    let sum = |f: fn(&NodeStats) -> u64| after.iter().map(f).sum::<u64>() - before.iter().map(f).sum::<u64>();
    Calls {
        packets: sum(|s| s.endpoint.datagrams_sent),
        sent_in: sum(|s| s.send_calls),
        received_in: sum(|s| s.receive_calls),
        polls: sum(|s| s.poll_calls),
    }
}

fn read(stream: &mut Stream, buf: &mut [u8], bytes: usize) {
    let mut got = 0;
    while got < bytes {
        got += stream.read(buf).expect("the stream goes on");
    }
}

/// Rounds of a bulk stream: allocations and calls of each.
fn rounds(mode: SecureMode, max_datagram_size: usize) -> (usize, Vec<(usize, Calls)>) {
    let server = node(mode, max_datagram_size).start().expect("node");
    let client =
        node(mode, max_datagram_size).peer(server.address(), server.local_addr(), Some(server.public_key()));
    let client = client.start().expect("node");
    let offload = server.stats().socket.gso_segments;
    let listener = server.listen(7).expect("port");
    let mut out = client.connect(Peer::At(server.address(), server.local_addr()), 7).expect("connection");
    let mut into = listener.accept().expect("connection");
    let over = Arc::new(AtomicBool::new(false));
    let writer = std::thread::spawn({
        let over = over.clone();
        move || {
            let chunk = vec![0x5A; 128 << 10];
            while !over.load(Ordering::Relaxed) && out.write_all(&chunk).is_ok() {}
        }
    });
    let mut buf = vec![0; 256 << 10];
    // Windows, buffers and the datagram size find their place.
    read(&mut into, &mut buf, 2 * ROUND);
    let start = Instant::now();
    let mut seen = Vec::with_capacity(ROUNDS);
    while seen.len() < ROUNDS && start.elapsed() < LIMIT {
        let before = [server.stats(), client.stats()];
        let region = Region::new(ALLOCATOR);
        read(&mut into, &mut buf, ROUND);
        let change = region.change();
        let calls = calls(&before, &[server.stats(), client.stats()]);
        println!("{} allocations, {} reallocations, {calls:?}", change.allocations, change.reallocations);
        seen.push((change.allocations + change.reallocations, calls));
    }
    over.store(true, Ordering::Relaxed);
    drop(into);
    let _ = writer.join();
    (offload, seen)
}

#[test]
fn a_bulk_stream_over_sockets_allocates_nothing_and_sends_batches() {
    let modes = [SecureMode::Draft, SecureMode::S1];
    for (mode, datagram) in modes.into_iter().flat_map(|mode| [(mode, 1_452), (mode, 65_507)]) {
        let (offload, rounds) = rounds(mode, datagram);
        // An application's call that wakes another thread takes one for its list; that is rare, and not per packet. With
        // packets of 64 KiB there may be some in every round.
        let (allocations, packets) = rounds.iter().fold((0, 0), |(a, p), (n, c)| (a + n, p + c.packets));
        assert!(
            datagram > 60_000 || allocations as u64 * 1_000 <= packets,
            "{mode:?}: {allocations} in {packets} packets"
        );
        // Nowhere more than some rings take that grow again, in doublings.
        assert!(rounds.iter().all(|(allocations, _)| *allocations <= 60), "{mode:?}, {datagram}: {rounds:?}");
        let per_packet =
            |(_, c): &(usize, Calls)| (c.sent_in + c.received_in + c.polls) as f64 / c.packets as f64;
        let best = rounds.iter().map(per_packet).fold(f64::INFINITY, f64::min);
        println!("{mode:?}, {datagram}: {best:.3} system calls per packet, both nodes together");
        if datagram > 60_000 {
            // A batch is one packet: a call each to send and receive, and acknowledgements and polls between them.
            assert!(best <= 4.0, "{best} system calls per packet");
        } else if offload > 1 {
            assert!(best <= 0.25, "{best} system calls per packet");
        } else {
            eprintln!("SKIPPED: system calls per packet: this kernel cuts no batches (no UDP_SEGMENT)");
        }
    }
}
