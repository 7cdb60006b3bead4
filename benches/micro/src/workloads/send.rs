//! Per sent segment: the scoreboard without loss, with loss and with a hostile peer; and the table of timers.

use std::hint::black_box;
use std::time::{Duration, Instant};

use pilotage_proto::rtt::RttEstimator;
use pilotage_proto::scoreboard::Scoreboard;
use pilotage_proto::timer_table::{Registered, TimerTable};

use super::{List, MANY};

const SEGMENT: u64 = 1_382;
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

pub(super) fn add(list: &mut List) {
    for per_ack in [1, 2, 32] {
        list.add(
            format!("scoreboard/no loss, segments per acknowledgement/{per_ack}"),
            per_ack,
            0,
            move || {
                let mut flow = Flow::new();
                move || {
                    (0..per_ack).for_each(|_| flow.send());
                    let una = flow.board.una() + per_ack * SEGMENT;
                    black_box(flow.board.on_ack(flow.now, una, &[], &mut flow.rtt));
                }
            },
        );
    }
    with_loss(list);
    timers(list);
}

fn with_loss(list: &mut List) {
    // One of a hundred is lost; every other segment makes an acknowledgement with a growing block.
    list.add("scoreboard/1 % loss, 50 acknowledgements per 100", 100, 0, || {
        let mut flow = Flow::new();
        move || {
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
            black_box(flow.board.on_ack(flow.now, una + SEGMENT * 100, &[], &mut flow.rtt));
        }
    });
    // Every acknowledgement repeats a block over up to 30,000 segments, with one new one.
    list.add("scoreboard/a gap that is never filled", 1, 0, || {
        let (mut flow, mut at) = (Flow::new(), WINDOW);
        move || {
            flow.send();
            let una = flow.board.una();
            at += 1;
            black_box(flow.board.on_ack(flow.now, una, &[(una + SEGMENT, SEGMENT * at)], &mut flow.rtt));
            // Begin anew before memory becomes the subject.
            if flow.board.len() > 30_000 {
                flow.board.on_ack(flow.now, flow.board.nxt(), &[], &mut flow.rtt);
            }
        }
    });
}

/// A table of so many timers, a millisecond apart, and what their owners know of them.
fn table(size: u32) -> (TimerTable<u32>, Vec<Option<Registered>>, Instant) {
    let (mut table, mut owners, start) = (TimerTable::default(), vec![None; size as usize], Instant::now());
    for (key, owner) in (0..).zip(&mut owners) {
        table.register(owner, Some(start + Duration::from_millis(u64::from(key) + 1)), key);
    }
    (table, owners, start)
}

fn timers(list: &mut List) {
    for size in [1_u32, 100, 10_000] {
        list.add(format!("timers/a later deadline, of/{size}"), MANY, 0, move || {
            let (mut table, mut owners, start) = table(size);
            let late = start + Duration::from_secs(3_600);
            move || {
                for key in (0..MANY as u32).map(|i| i * 151 % size) {
                    table.register(&mut owners[key as usize], black_box(Some(late)), key);
                }
            }
        });
        list.add(format!("timers/the first fires and is set anew, of/{size}"), MANY, 0, move || {
            let (mut table, mut owners, mut now) = table(size);
            let round = Duration::from_millis(u64::from(size));
            move || {
                for _ in 0..MANY {
                    now += Duration::from_millis(1);
                    while let Some(key) = table.pop_due(now) {
                        owners[key as usize] = None;
                        table.register(&mut owners[key as usize], Some(now + round), key);
                    }
                }
            }
        });
    }
}
