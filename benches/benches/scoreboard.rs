//! What bookkeeping costs per segment: without loss (the straight path), with loss, and with a hostile peer.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pilotage_proto::rtt::RttEstimator;
use pilotage_proto::scoreboard::Scoreboard;

const SEGMENT: u64 = 1400;
/// Segments in flight.
const WINDOW: u64 = 1000;
const ROUND_TRIP: Duration = Duration::from_millis(40);

struct Flow {
    board: Scoreboard,
    rtt: RttEstimator,
    now: Instant,
}

impl Flow {
    /// A window in flight, sent over one round trip.
    fn new() -> Self {
        let mut flow =
            Self { board: Scoreboard::new(), rtt: RttEstimator::new(ROUND_TRIP), now: Instant::now() };
        flow.rtt.update(ROUND_TRIP);
        (0..WINDOW).for_each(|_| flow.send());
        flow
    }

    fn send(&mut self) {
        let nxt = self.board.nxt();
        self.board.on_sent(self.now, nxt..nxt + SEGMENT, false, false);
        self.now += ROUND_TRIP / WINDOW as u32;
    }
}

fn no_loss(c: &mut Criterion) {
    let mut group = c.benchmark_group("scoreboard");
    for per_ack in [1, 2, 32] {
        let mut flow = Flow::new();
        group.throughput(Throughput::Elements(per_ack));
        group.bench_function(format!("no loss, {per_ack} segments per acknowledgement"), |b| {
            b.iter(|| {
                (0..per_ack).for_each(|_| flow.send());
                let una = flow.board.una() + per_ack * SEGMENT;
                black_box(flow.board.on_ack(flow.now, una, &[], &mut flow.rtt))
            });
        });
    }
    group.finish();
}

/// One segment of a hundred is lost; every other segment makes an acknowledgement with a growing block.
fn one_percent_loss(c: &mut Criterion) {
    let mut flow = Flow::new();
    let mut group = c.benchmark_group("scoreboard");
    group.throughput(Throughput::Elements(100));
    group.bench_function("1 % loss, 50 acknowledgements and a retransmission per 100 segments", |b| {
        b.iter(|| {
            let una = flow.board.una();
            for i in 1..=50 {
                flow.send();
                flow.send();
                let block = (una + SEGMENT, una + SEGMENT * i * 2);
                black_box(flow.board.on_ack(flow.now, una, &[block], &mut flow.rtt));
                while let Some(lost) = flow.board.next_lost() {
                    flow.board.on_retransmitted(flow.now, lost.range.start);
                }
            }
            black_box(flow.board.on_ack(flow.now, una + SEGMENT * 100, &[], &mut flow.rtt))
        });
    });
    group.finish();
}

/// Every acknowledgement repeats three blocks over a thousand segments, with one new segment each.
fn repeated_blocks(c: &mut Criterion) {
    let mut flow = Flow::new();
    let mut at = WINDOW;
    let mut group = c.benchmark_group("scoreboard");
    group.throughput(Throughput::Elements(1));
    group.bench_function("one gap is never filled, the block grows and grows", |b| {
        b.iter(|| {
            flow.send();
            let una = flow.board.una();
            at += 1;
            black_box(flow.board.on_ack(flow.now, una, &[(una + SEGMENT, SEGMENT * at)], &mut flow.rtt));
            // Begin anew before memory becomes the subject.
            if flow.board.len() > 30_000 {
                flow.board.on_ack(flow.now, flow.board.nxt(), &[], &mut flow.rtt);
            }
        });
    });
    group.finish();
}

criterion_group!(benches, no_loss, one_percent_loss, repeated_blocks);
criterion_main!(benches);
