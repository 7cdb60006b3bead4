//! What an idle connection and an idle tunnel hold, in bytes of heap (spec/decisions/0006-memory-copies.md).
//!
//! Counted by the allocator, so the machine's load changes nothing. What the C library of the cryptography holds is not
//! in it (one key context per tunnel, below 1 KiB); `node_memory` looks at the whole process.

use std::alloc::System;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use pilotage_micro::pair::{Bulk, Host, Pair, Wire, fixed_size};
use pilotage_proto::{Config, ConnectionId};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Most bytes of an idle connection at each end.
const CONNECTION: usize = 4 << 10;
/// Most bytes of an idle tunnel at each end, one connection included.
const TUNNEL: usize = 16 << 10;
/// How many of each.
const COUNT: usize = 10_000;
/// What the tables of an endpoint may keep that its tunnels share: names and timers of 2,020 connections.
const SHARED: usize = 256 << 10;
/// The silence after which a connection gives back what it held (keepalive of the accepting side, and a little).
const IDLE: Duration = Duration::from_secs(40);

/// One at a time: the allocator counts for the whole process.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Bytes that are allocated now.
fn live() -> usize {
    let stats = ALLOCATOR.stats();
    stats.bytes_allocated.wrapping_sub(stats.bytes_deallocated)
}

fn config() -> Config {
    Config { max_connections_per_peer: 2 * COUNT, ..fixed_size(1_452) }
}

/// One message each way.
fn converse(pair: &mut Pair, (ours, theirs): (ConnectionId, ConnectionId)) {
    let mut buf = [0; 64];
    pair.a.endpoint.write(pair.now, ours, &[1; 64]).expect("room for a request");
    pair.step(Duration::from_millis(1));
    assert_eq!(pair.b.endpoint.read(pair.now, theirs, &mut buf), Ok(64));
    pair.b.endpoint.write(pair.now, theirs, &[2; 64]).expect("room for a reply");
    pair.step(Duration::from_millis(1));
    assert_eq!(pair.a.endpoint.read(pair.now, ours, &mut buf), Ok(64));
}

/// Lets time pass with nothing but what the hosts do of themselves.
fn rest(pair: &mut Pair, time: Duration) {
    let end = pair.now + time;
    while pair.now < end {
        pair.step(Duration::from_millis(500));
    }
    pair.drain_events();
}

/// Drops both hosts one after the other and says what each held.
fn share_of_each(pair: Pair) -> [usize; 2] {
    let all = live();
    let Pair { a, b, .. } = pair;
    drop(a);
    let without_a = live();
    drop(b);
    [all - without_a, without_a - live()]
}

fn bounded(what: &str, bytes: usize, count: usize, bound: usize) {
    let each = bytes / count;
    println!("{what}: {each} bytes each of {count} (bound {bound})");
    assert!(each <= bound, "{what}: {each} bytes each, more than {bound}");
}

#[test]
fn ten_thousand_connections_that_had_a_message_each_way() {
    let _alone = alone();
    let mut pair = Pair::new(&config(), Wire::default(), Instant::now());
    for _ in 0..COUNT {
        let connection = pair.connect().expect("a connection");
        converse(&mut pair, connection);
    }
    assert_eq!(pair.a.endpoint.memory().connections, COUNT);
    for (side, bytes) in ["dialler", "listener"].into_iter().zip(share_of_each(pair)) {
        bounded(&format!("connection, {side}"), bytes, COUNT, CONNECTION);
    }
}

#[test]
fn connections_that_had_much_to_carry_give_it_back_when_idle() {
    const STREAMS: usize = 50;
    let _alone = alone();
    // Every fiftieth datagram is lost, so that all tables of recovery are in use, too.
    let wire = Wire { delay: Duration::from_millis(5), lose_every: 50, swap_every: 0 };
    let mut bulk = Bulk::new(&config(), wire, STREAMS, 64 << 10, Instant::now()).expect("connections");
    for _ in 0..400 {
        bulk.turn(Duration::from_millis(1));
    }
    assert!(bulk.delivered > 1 << 20);
    let used = live();
    for _ in 0..20_000 {
        bulk.drain(Duration::from_millis(1));
    }
    rest(&mut bulk.pair, 2 * IDLE);
    assert_eq!(bulk.pair.b.endpoint.memory().connections, STREAMS);
    let Bulk { pair, .. } = bulk;
    println!("in use: {} KiB", used >> 10);
    for (side, bytes) in ["sender", "receiver"].into_iter().zip(share_of_each(pair)) {
        // The tunnel's own part, once.
        bounded(&format!("used connection, {side}"), bytes - TUNNEL.min(bytes), STREAMS, CONNECTION);
    }
}

#[test]
fn ten_thousand_tunnels_with_a_connection_that_had_a_message_each_way() {
    let _alone = alone();
    let mut now = Instant::now();
    let before = live();
    let mut server = Host::new(1 << 23, config(), now);
    for number in 1..=COUNT as u32 {
        let client = Host::new(number, config(), now);
        let mut pair = Pair::of(client, server, Wire::default(), now);
        let connection = pair.connect().expect("a connection");
        converse(&mut pair, connection);
        // Strangers may bring 200 key exchanges a second in all.
        now = pair.now + Duration::from_millis(6);
        server = pair.b;
    }
    let memory = server.endpoint.memory();
    assert_eq!((memory.peers, memory.connections), (COUNT, COUNT));
    bounded("tunnel, listener", live() - before, COUNT, TUNNEL);
    drop(server);
}

#[test]
fn a_tunnel_that_had_much_to_do_gives_its_tables_back() {
    let _alone = alone();
    let mut now = Instant::now();
    let base = {
        let pair = Pair::new(&config(), Wire::default(), now);
        share_of_each(pair)
    };
    let wire = Wire { delay: Duration::from_millis(5), lose_every: 50, swap_every: 0 };
    let mut bulk = Bulk::new(&config(), wire, 20, 256 << 10, now).expect("connections");
    for _ in 0..300 {
        bulk.turn(Duration::from_millis(1));
    }
    for _ in 0..10_000 {
        bulk.drain(Duration::from_millis(1));
    }
    bulk.pair.wire = Wire::default();
    let mut open: Vec<_> = bulk.streams.split_off(0);
    open.extend((0..2_000).map(|_| bulk.pair.connect().expect("a connection")));
    let Bulk { mut pair, .. } = bulk;
    now = pair.now;
    for (ours, theirs) in open {
        pair.a.endpoint.close(now, ours);
        pair.b.endpoint.close(now, theirs);
    }
    rest(&mut pair, IDLE);
    assert_eq!((pair.a.endpoint.memory().connections, pair.b.endpoint.memory().connections), (0, 0));
    for ((side, bytes), base) in ["dialler", "listener"].into_iter().zip(share_of_each(pair)).zip(base) {
        // The endpoint's own tables, which all tunnels share, keep the size that 2,020 connections gave them.
        println!("{side}: {bytes} bytes, {base} before anything was agreed");
        bounded(&format!("used tunnel, {side}"), bytes - base, 1, TUNNEL + SHARED);
    }
}
