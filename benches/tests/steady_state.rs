//! Allocations in the steady state of a bulk stream.

use std::alloc::System;
use std::io::{Read, Write};
use std::time::{Duration, Instant};

use pilotage::{Node, Peer};
use pilotage_benches::pair::{Bulk, Wire, fixed_size};
use pilotage_proto::{Config, ControllerKind};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

fn run(name: &str, config: &Config, wire: Wire, streams: usize, step: Duration, chunk: usize) {
    let mut bulk = Bulk::new(config, wire, streams, chunk, Instant::now()).expect("connection");
    let turns = std::env::var("TURNS").map_or(20_000, |n| n.parse().unwrap());
    for _ in 0..turns {
        bulk.turn(step);
    }
    let mut region = Region::new(ALLOCATOR);
    for round in 0..3 {
        let before = bulk.delivered;
        let mut packets = 0;
        for _ in 0..turns {
            packets += bulk.turn(step);
        }
        let change = region.change_and_reset();
        println!("{name} round {round}: {packets} packets {} bytes: {} allocations {} reallocations {} deallocations, {} bytes",
            bulk.delivered - before, change.allocations, change.reallocations, change.deallocations, change.bytes_allocated);
    }
}

#[test]
fn bulk() {
    let us = Duration::from_micros;
    let ms = Duration::from_millis;
    let d = Wire::default();
    run("loopback", &fixed_size(1_452), d, 1, us(50), 128 << 10);
    run("100 streams", &fixed_size(1_452), d, 100, us(50), 16 << 10);
    run("1% loss", &fixed_size(1_452), Wire { delay: ms(10), lose_every: 101, swap_every: 0 }, 1, us(500), 128 << 10);
    run("5% loss", &fixed_size(1_452), Wire { delay: ms(10), lose_every: 19, swap_every: 0 }, 1, us(500), 128 << 10);
    run("reorder", &fixed_size(1_452), Wire { delay: ms(10), lose_every: 0, swap_every: 7 }, 1, us(500), 128 << 10);
    run("100 streams 1%", &fixed_size(1_452), Wire { delay: ms(10), lose_every: 101, swap_every: 0 }, 100, us(500), 16 << 10);
    for kind in [ControllerKind::NewReno, ControllerKind::Cubic] {
        let config = Config { congestion: kind, ..fixed_size(1_452) };
        run(&format!("{kind:?}"), &config,Wire { delay: ms(10), lose_every: 1001, swap_every: 0 }, 1, us(500), 128 << 10);
    }
    run("trickle", &fixed_size(1_452), ms(10).into(), 1, ms(60), 64);
    run("trickle 2", &fixed_size(1_452), d, 1, ms(1), 64);
}

#[test]
fn node() {
    for max in [1_452, 65_507] {
    let config = Config { max_datagram_size: max, ..Config::default() };
    let bind = "127.0.0.1:0".parse().unwrap();
    let server = Node::builder().bind(bind).config(config.clone()).recv_buffer_bytes(4 << 20).send_buffer_bytes(4 << 20).start().unwrap();
    let client = Node::builder().bind(bind).config(config).recv_buffer_bytes(4 << 20).send_buffer_bytes(4 << 20).start().unwrap();
    let listener = server.listen(7).unwrap();
    let peer = Peer::At(server.address(), server.local_addr());
    let mut out = client.connect(&peer, 7).unwrap();
    let mut into = listener.accept().unwrap();
    const SIZE: usize = 256 << 20;
    let writer = std::thread::spawn(move || {
        let chunk = vec![0x5A; 128 << 10];
        loop { if out.write_all(&chunk).is_err() { break; } }
    });
    let mut buf = vec![0; 256 << 10];
    let mut got = 0;
    while got < SIZE { got += into.read(&mut buf).unwrap(); }
    for round in 0..4 {
        let mut got = 0;
        let mut reads = 0;
        let (a0, b0) = (client.stats(), server.stats());
        let region = Region::new(ALLOCATOR);
        let t = Instant::now();
        while got < SIZE { got += into.read(&mut buf).unwrap(); reads += 1; }
        let change = region.change();
        let (a, b) = (client.stats(), server.stats());
        println!("node {max} round {round}: {:?} {} MB/s reads {reads}", change, SIZE as f64 / 1e6 / t.elapsed().as_secs_f64());
        println!("  client sent {} dgrams in {} calls; received {}; server sent {} in {} calls", a.endpoint.datagrams_sent - a0.endpoint.datagrams_sent, a.send_calls - a0.send_calls,
            a.endpoint.datagrams_received - a0.endpoint.datagrams_received, b.endpoint.datagrams_sent - b0.endpoint.datagrams_sent, b.send_calls - b0.send_calls);
    }
    drop(into); drop(listener); server.close(); client.close();
    let _ = writer.join();
    }
}
