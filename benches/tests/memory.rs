//! What an idle connection and an idle tunnel hold, in bytes of heap.

use std::alloc::System;
use std::time::{Duration, Instant};

use pilotage_benches::pair::{Host, PORT, Pair, fixed_size};
use pilotage_proto::Config;
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Bytes that are allocated now.
fn live() -> usize {
    let stats = ALLOCATOR.stats();
    stats.bytes_allocated - stats.bytes_deallocated
}

#[test]
fn idle() {
    let n: usize = std::env::var("N").map_or(1000, |n| n.parse().unwrap());
    let now = Instant::now();
    let config = Config {
        max_connections_per_peer: 20_000,
        max_connections: 65_536,
        ..fixed_size(1_452)
    };
    let mut pair = Pair::new(&config, Default::default(), now);
    let first = pair.connect().expect("connection");
    let before = live();
    let t = Instant::now();
    for _ in 0..n {
        pair.connect().expect("connection");
    }
    let after = live();
    println!("per connection, both ends: {} bytes; {:?}", (after - before) / n, t.elapsed());
    let Pair { a, b, .. } = pair;
    drop(a);
    println!("per connection, b: {}", live() as isize);
    drop(b);

    let mut server = Host::new(1 << 23, config.clone(), now);
    let base = live();
    let _ = server.endpoint.listen(PORT);
    let mut at = now;
    let mut trail = Vec::new();
    for i in 0..n {
        let client = Host::new(1 + i as u32, fixed_size(1_452), at);
        let mut pair = Pair::of(client, server, Default::default(), at);
        pair.connect();
        at = pair.now + Duration::from_millis(6);
        server = pair.b;
        if i % 100 == 0 { trail.push(live() - base); }
    }
    println!("per tunnel with connection: {} {}", (live() - base) / n, server.endpoint.memory().connections);
    let _ = first;
}
