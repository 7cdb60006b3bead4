//! The steady state of a stream costs no allocation, at either end, and each payload byte four copies in all
//! (spec/decisions/0006-memory-copies.md). Two endpoints in memory: exact, whatever the machine does besides.

use std::alloc::System;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use pilotage_micro::pair::{Bulk, Wire, fixed_size};
use pilotage_proto::{Config, ControllerKind};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// One at a time: the allocator counts for the whole process.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// A stream of bulk data, or several, and how long it runs.
struct Case {
    config: Config,
    wire: Wire,
    streams: usize,
    /// In a tunnel of S1.
    s1: bool,
    /// Bytes written to each stream in each turn.
    chunk: usize,
    /// Virtual time of a turn.
    step: Duration,
    /// Until buffers and tables have the size that the path asks for; and then so many again that are counted.
    turns: usize,
}

impl Default for Case {
    fn default() -> Self {
        Self {
            config: fixed_size(1_452),
            wire: Wire::default(),
            streams: 1,
            s1: false,
            chunk: 64 << 10,
            step: Duration::from_micros(50),
            turns: 1_000,
        }
    }
}

impl Case {
    /// Runs it and says how many packets were counted, and how many allocations of any kind there were meanwhile.
    fn allocations(self) -> (usize, usize) {
        let _alone = alone();
        let make = if self.s1 { Bulk::in_s1 } else { Bulk::new };
        let mut bulk = make(&self.config, self.wire, self.streams, self.chunk, Instant::now())
            .expect("connections in memory come to be");
        bulk.turns(self.turns, self.step);
        let before = bulk.delivered;
        let region = Region::new(ALLOCATOR);
        let packets = bulk.turns(self.turns, self.step);
        let change = region.change();
        assert!(bulk.delivered > before + self.turns as u64, "it carried something");
        println!("{packets} packets, {} payload bytes: {change:?}", bulk.delivered - before);
        (packets, change.allocations + change.reallocations)
    }

    fn allocates_nothing(self) {
        let (packets, allocations) = self.allocations();
        assert_eq!(allocations, 0, "in {packets} packets");
    }
}

#[test]
fn one_stream_without_delay() {
    Case::default().allocates_nothing();
}

#[test]
fn one_stream_in_s1() {
    Case { s1: true, ..Case::default() }.allocates_nothing();
}

#[test]
fn large_datagrams() {
    Case { config: fixed_size(65_507), ..Case::default() }.allocates_nothing();
}

#[test]
fn a_hundred_streams() {
    Case { streams: 100, chunk: 4 << 10, turns: 300, ..Case::default() }.allocates_nothing();
}

#[test]
fn a_path_with_delay_under_every_controller() {
    for congestion in [ControllerKind::Bbr, ControllerKind::Cubic, ControllerKind::NewReno] {
        // A receive buffer that bounds what is in flight: a window that still grows is no steady state.
        let config = Config { congestion, recv_buffer: 512 << 10, ..fixed_size(1_452) };
        let wire = Duration::from_millis(5).into();
        Case { config, wire, step: Duration::from_millis(1), turns: 4_000, ..Case::default() }
            .allocates_nothing();
    }
}

#[test]
fn loss_and_reordering() {
    let delay = Duration::from_millis(5);
    let config = || Config { recv_buffer: 512 << 10, ..fixed_size(1_452) };
    let step = Duration::from_millis(1);
    let wire = Wire { delay, lose_every: 101, swap_every: 0 };
    let (packets, allocations) =
        Case { config: config(), wire, step, turns: 6_000, ..Case::default() }.allocations();
    assert!(
        allocations * 10_000 <= packets,
        "tables of recovery grew {allocations} times in {packets} packets"
    );
    let wire = Wire { delay, lose_every: 0, swap_every: 7 };
    Case { config: config(), wire, step, turns: 4_000, ..Case::default() }.allocates_nothing();
}

#[test]
fn messages_now_and_then() {
    let wire = Duration::from_millis(5).into();
    Case { wire, chunk: 64, step: Duration::from_millis(60), ..Case::default() }.allocates_nothing();
}

/// Written into the send ring, from there into the slab, from the slab into the receive ring, from there to the reader:
/// nothing else touches payload, apart from sealing and opening in place.
#[test]
#[cfg(debug_assertions)]
fn each_payload_byte_is_copied_four_times() {
    use pilotage_proto::audit;
    let _alone = alone();
    for datagram in [1_452, 65_507] {
        let mut bulk = Bulk::new(&fixed_size(datagram), Wire::default(), 1, 64 << 10, Instant::now())
            .expect("a connection");
        let step = Duration::from_micros(50);
        bulk.turns(500, step);
        // The end of a run is where nothing is under way.
        let settle = |bulk: &mut Bulk| {
            for _ in 0..100 {
                bulk.drain(Duration::from_millis(10));
            }
        };
        settle(&mut bulk);
        let (delivered, copied) = (bulk.delivered, audit::copied());
        bulk.turns(500, step);
        settle(&mut bulk);
        let (delivered, copied) = (bulk.delivered - delivered, audit::copied() - copied);
        assert!(delivered > 1 << 20);
        println!("{datagram}-byte datagrams: {delivered} payload bytes, {copied} copied");
        // Besides: a ring that grows, and the last packet of a burst, which is sent again as a probe.
        let besides = copied.checked_sub(4 * delivered).expect("four times at least");
        assert!(besides <= delivered / 100, "{copied} copied of {delivered} delivered");
    }
}

#[test]
#[cfg(not(debug_assertions))]
fn each_payload_byte_is_copied_four_times() {
    eprintln!("SKIPPED: copies are counted with debug assertions only");
}
