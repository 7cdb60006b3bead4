//! Which packets came, and when that is said (spec/secure.md §11.4).

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use pilotage_wire::s1::ack::{ACK_RANGES_MAX, encode_ack};

/// Sessions of which packets are acknowledged: the one in use, the one before, and one that begins.
const SPACES_MAX: usize = 3;
/// Ranges told at a time. Older ones were told before, each often.
const RANGES_TOLD: usize = 32;
/// From so many ranges on the peer is asked now and then to show which acknowledgements it has.
const RANGES_MANY: usize = 8;
/// How long an acknowledgement waits for another packet or something to ride on.
pub(crate) const ACK_DELAY: Duration = Duration::from_millis(5);
/// Longest delay that ACK_FREQUENCY may ask for.
const DELAY_MAX: Duration = Duration::from_secs(1);

/// When acknowledgements are due: the first values are ours, ACK_FREQUENCY changes them.
#[derive(Debug, Clone, Copy)]
struct Policy {
    seq: Option<u64>,
    /// Packets that may wait.
    packets: u64,
    delay: Duration,
    reordering: u64,
}

/// Packets of one session.
#[derive(Debug)]
struct Space {
    session: u32,
    /// The index that its packets named last.
    index: u32,
    /// Lowest and highest number, ascending.
    ranges: VecDeque<(u64, u64)>,
    largest_at: Instant,
    /// Packets that want an acknowledgement and have none.
    pending: u64,
    ack_at: Option<Instant>,
}

/// The receive side of all sessions.
#[derive(Debug)]
pub(crate) struct Received {
    spaces: Vec<Space>,
    policy: Policy,
}

impl Default for Received {
    fn default() -> Self {
        let policy = Policy { seq: None, packets: 1, delay: ACK_DELAY, reordering: 1 };
        Self { spaces: Vec::new(), policy }
    }
}

impl Received {
    /// A packet came, and all that it holds has been taken.
    pub(crate) fn on_packet(
        &mut self,
        (session, index): (u32, u32),
        number: u64,
        eliciting: bool,
        now: Instant,
    ) {
        let policy = self.policy;
        let space = self.space(session, index, now);
        space.index = index;
        let largest = space.ranges.back().map(|r| r.1);
        space.insert(number);
        if largest.is_none_or(|l| number > l) {
            space.largest_at = now;
        }
        if !eliciting {
            return;
        }
        space.pending += 1;
        let jumped = largest.is_some_and(|l| number > l && number - l > policy.reordering);
        let late = largest.is_some_and(|l| number < l);
        let disorder = policy.reordering > 0 && (jumped || late);
        if space.pending > policy.packets || disorder {
            space.ack_at = Some(now);
        } else {
            space.ack_at.get_or_insert(now + policy.delay);
        }
    }

    fn space(&mut self, session: u32, index: u32, now: Instant) -> &mut Space {
        if let Some(at) = self.spaces.iter().position(|s| s.session == session) {
            return &mut self.spaces[at];
        }
        if self.spaces.len() >= SPACES_MAX {
            self.spaces.remove(0);
        }
        let (ranges, largest_at) = (VecDeque::new(), now);
        self.spaces.push(Space { session, index, ranges, largest_at, pending: 0, ack_at: None });
        let last = self.spaces.len() - 1;
        &mut self.spaces[last]
    }

    /// ACK_FREQUENCY.
    pub(crate) fn on_frequency(&mut self, seq: u64, packets: u64, delay_us: u64, reordering: u64) {
        if self.policy.seq.is_none_or(|old| seq > old) {
            let delay = Duration::from_micros(delay_us).min(DELAY_MAX);
            self.policy = Policy { seq: Some(seq), packets, delay, reordering };
        }
    }

    /// IMMEDIATE_ACK.
    pub(crate) fn hurry(&mut self, now: Instant) {
        if let Some(space) = self.spaces.last_mut() {
            space.pending += 1;
            space.ack_at = Some(now);
        }
    }

    /// Nothing that can be said waits any more.
    pub(crate) fn say_all(&mut self, now: Instant) {
        for space in self.spaces.iter_mut().filter(|s| s.pending > 0) {
            space.ack_at = Some(now);
        }
    }

    /// What was acknowledged last is acknowledged once more, if anything came since `fresh`.
    pub(crate) fn repeat(&mut self, fresh: Instant, now: Instant) {
        if let Some(space) = self.spaces.last_mut().filter(|s| s.largest_at >= fresh) {
            space.pending += 1;
            space.ack_at = Some(now);
        }
    }

    /// When an acknowledgement is due.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.spaces.iter().filter_map(|s| s.ack_at).min()
    }

    /// Something can be said that was not said.
    pub(crate) fn has_news(&self) -> bool {
        self.spaces.iter().any(|s| s.pending > 0)
    }

    /// So many ranges are remembered that the peer should be asked which it knows of.
    pub(crate) fn is_long(&self) -> bool {
        self.spaces.iter().any(|s| s.ranges.len() > RANGES_MANY)
    }

    /// Writes what is new, for a packet of the session `current`. Returns the bytes; calls `told` with session and highest
    /// number of each acknowledgement. What does not fit waits.
    pub(crate) fn write(
        &mut self,
        current: u32,
        now: Instant,
        out: &mut [u8],
        mut told: impl FnMut(u32, u64),
    ) -> usize {
        let mut at = 0;
        for space in self.spaces.iter_mut().filter(|s| s.pending > 0) {
            let index = (space.session != current).then_some(space.index);
            let delay = now.saturating_duration_since(space.largest_at).as_micros() as u64 / 8;
            let ranges = space.ranges.iter().rev().take(RANGES_TOLD).map(|(low, high)| *low..=*high);
            let Some(room) = out.get_mut(at..) else { break };
            let Ok(len) = encode_ack(index, delay, ranges, room) else { continue };
            at += len;
            space.pending = 0;
            space.ack_at = None;
            told(space.session, space.ranges.back().map_or(0, |r| r.1));
        }
        at
    }

    /// The peer has an acknowledgement of everything up to a number: that need not be said again.
    pub(crate) fn on_ack_acked(&mut self, session: u32, largest: u64) {
        let Some(space) = self.spaces.iter_mut().find(|s| s.session == session) else { return };
        while space.ranges.len() > 1 && space.ranges.front().is_some_and(|r| r.1 <= largest) {
            space.ranges.pop_front();
        }
    }
}

impl Space {
    fn insert(&mut self, number: u64) {
        // In order, nearly always.
        let at = match self.ranges.back() {
            Some(last) if number <= last.1 => self.ranges.partition_point(|r| r.1 < number),
            _ => self.ranges.len(),
        };
        if self.ranges.get(at).is_some_and(|r| r.0 <= number) {
            return;
        }
        let below = at > 0 && self.ranges[at - 1].1 + 1 == number;
        let above = self.ranges.get(at).is_some_and(|r| r.0 == number + 1);
        match (below, above) {
            (true, true) => {
                self.ranges[at - 1].1 = self.ranges[at].1;
                self.ranges.remove(at);
            }
            (true, false) => self.ranges[at - 1].1 = number,
            (false, true) => self.ranges[at].0 = number,
            (false, false) => {
                self.ranges.insert(at, (number, number));
                if self.ranges.len() > ACK_RANGES_MAX {
                    self.ranges.pop_front();
                }
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)] // a base for virtual time
mod tests {
    use super::*;
    use pilotage_wire::s1::frames::{Frame, Frames};
    use proptest::prelude::*;

    type Told = Vec<(Option<u32>, Vec<(u64, u64)>)>;

    fn told(received: &mut Received, current: u32, now: Instant) -> Told {
        let mut buf = [0; 1_200];
        let len = received.write(current, now, &mut buf, |_, _| {});
        let of = |frame| match frame {
            Frame::Ack(ack) => (ack.index, ack.ranges().map(|r| (*r.start(), *r.end())).collect()),
            other => panic!("{other:?}"),
        };
        Frames::new(&buf[..len]).map(|frame| of(frame.expect("our own"))).collect()
    }

    #[test]
    fn the_second_packet_is_acknowledged_or_the_first_after_a_while() {
        let now = Instant::now();
        let mut received = Received::default();
        received.on_packet((1, 11), 0, true, now);
        assert_eq!(received.deadline(), Some(now + ACK_DELAY));
        received.on_packet((1, 11), 1, true, now);
        assert_eq!(received.deadline(), Some(now));
        assert_eq!(told(&mut received, 1, now), [(None, vec![(0, 1)])]);
        assert!(received.deadline().is_none() && !received.has_news());
        received.on_packet((1, 11), 2, false, now);
        assert!(received.deadline().is_none(), "what wants none gets none");
    }

    #[test]
    fn disorder_is_told_at_once_unless_the_peer_says_otherwise() {
        let now = Instant::now();
        let mut received = Received::default();
        received.on_packet((1, 11), 0, true, now);
        told(&mut received, 1, now);
        received.on_packet((1, 11), 2, true, now);
        assert_eq!(received.deadline(), Some(now));
        assert_eq!(told(&mut received, 1, now), [(None, vec![(2, 2), (0, 0)])]);
        received.on_packet((1, 11), 1, true, now);
        assert_eq!(received.deadline(), Some(now), "the gap is filled");
        told(&mut received, 1, now);
        received.on_frequency(5, 9, 20_000, 0);
        received.on_frequency(5, 1, 0, 1);
        received.on_packet((1, 11), 9, true, now);
        assert_eq!(received.deadline(), Some(now + Duration::from_millis(20)));
        (10..18).for_each(|n| received.on_packet((1, 11), n, true, now));
        assert_eq!(received.deadline(), Some(now + Duration::from_millis(20)));
        received.on_packet((1, 11), 18, true, now);
        assert_eq!(received.deadline(), Some(now), "the tenth");
        received.hurry(now);
        assert_eq!(received.deadline(), Some(now));
    }

    #[test]
    fn packets_of_another_session_are_named_by_their_index() {
        let now = Instant::now();
        let mut received = Received::default();
        received.on_packet((1, 11), 7, true, now);
        received.on_packet((2, 22), 0, true, now);
        assert_eq!(told(&mut received, 2, now), [(Some(11), vec![(7, 7)]), (None, vec![(0, 0)])]);
        for session in 3..9 {
            received.on_packet((session, session), 0, true, now);
        }
        assert_eq!(received.spaces.len(), SPACES_MAX);
    }

    #[test]
    fn what_the_peer_knows_is_not_kept_and_all_is_bounded() {
        let now = Instant::now();
        let mut received = Received::default();
        (0..10_000).for_each(|n| received.on_packet((1, 11), n * 2, true, now));
        assert_eq!(received.spaces[0].ranges.len(), ACK_RANGES_MAX);
        assert!(received.is_long());
        assert_eq!(told(&mut received, 1, now)[0].1.len(), RANGES_TOLD);
        received.on_ack_acked(1, 19_990);
        assert!(received.spaces[0].ranges.len() < 6);
    }

    proptest! {
        #[test]
        fn ranges_are_those_of_the_numbers(numbers in prop::collection::vec(0u64..120, 1..100)) {
            let now = Instant::now();
            let mut received = Received::default();
            for number in &numbers {
                received.on_packet((1, 11), *number, true, now);
            }
            let mut wanted = numbers.clone();
            wanted.sort_unstable();
            wanted.dedup();
            let kept: Vec<u64> = received.spaces[0].ranges.iter().flat_map(|(a, b)| *a..=*b).collect();
            prop_assert_eq!(kept, wanted);
        }
    }
}
