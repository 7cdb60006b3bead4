//! Whole packets through the stack: written, framed, sealed, carried, opened, reassembled, read, acknowledged.

use std::hint::black_box;
use std::time::{Duration, Instant};

use pilotage_proto::{Config, ConnectionId};

use super::List;
use crate::pair::{Bulk, Pair, Wire, fixed_size};

/// Bytes around a payload in a sealed datagram.
const OVERHEAD: usize = 70;
/// The same in S1.
const OVERHEAD_S1: usize = 60;
/// Virtual time of one turn: long enough that the pacer holds nothing back.
const TURN: Duration = Duration::from_micros(200);
/// Turns before the first that counts: windows, buffers and tables have their size then.
const WARM_UP: usize = 600;

pub(super) fn add(list: &mut List) {
    bulk(list, "stack/one stream, out and in/1382", 1_452, 1, 45);
    bulk_in(true, list, "stack/one stream in S1, out and in/1392", 1_452, 1, 45);
    bulk(list, "stack/100 streams, out and in/1382", 1_452, 100, 1);
    bulk(list, "stack/one stream, out and in/8882", 8_952, 1, 7);
    bulk(list, "stack/one stream, out and in/65437", 65_507, 1, 1);
    list.add("stack/request and reply/64", 1, 64, || {
        let (mut pair, ends) = connected(&fixed_size(1_452));
        for _ in 0..WARM_UP {
            converse(&mut pair, ends);
        }
        move || converse(&mut pair, ends)
    });
}

/// `packets` full packets for each of `streams` streams, and their acknowledgements; an operation is one data packet.
fn bulk(list: &mut List, name: &'static str, datagram: usize, streams: usize, packets: usize) {
    bulk_in(false, list, name, datagram, streams, packets);
}

fn bulk_in(s1: bool, list: &mut List, name: &'static str, datagram: usize, streams: usize, packets: usize) {
    let payload = datagram - if s1 { OVERHEAD_S1 } else { OVERHEAD };
    list.add(name, (streams * packets) as u64, payload as u64, move || {
        let config = fixed_size(datagram);
        let make = if s1 { Bulk::in_s1 } else { Bulk::new };
        let mut bulk = make(&config, Wire::default(), streams, packets * payload, Instant::now())
            .expect("connections in memory come to be");
        for _ in 0..WARM_UP {
            bulk.turn(TURN);
        }
        move || {
            black_box(bulk.turn(TURN));
        }
    });
}

fn connected(config: &Config) -> (Pair, (ConnectionId, ConnectionId)) {
    let mut pair = Pair::new(config, Wire::default(), Instant::now());
    let ends = pair.connect().expect("a connection in memory comes to be");
    pair.a.endpoint.set_nodelay(pair.now, ends.0, true);
    pair.b.endpoint.set_nodelay(pair.now, ends.1, true);
    (pair, ends)
}

/// 64 bytes there and 64 back.
fn converse(pair: &mut Pair, (ours, theirs): (ConnectionId, ConnectionId)) {
    let mut buf = [0; 64];
    let _ = black_box(pair.a.endpoint.write(pair.now, ours, &[1; 64]));
    pair.step(TURN);
    let _ = black_box(pair.b.endpoint.read(pair.now, theirs, &mut buf));
    let _ = black_box(pair.b.endpoint.write(pair.now, theirs, &buf));
    pair.step(TURN);
    let _ = black_box(pair.a.endpoint.read(pair.now, ours, &mut buf));
    pair.drain_events();
}
