//! Messages that came lately: none counts twice, and nobody sends many.

use std::collections::{HashMap, HashSet, VecDeque};

use pilotage_wire::NodeId;

use super::message::Kind;

/// Seconds for which a message is remembered; its timestamp is believed for less.
pub(super) const KEPT: u64 = 600;
/// Messages of one node in that time.
pub(super) const MAX_PER_NODE: usize = 32;
/// Messages remembered; beyond it the oldest is forgotten.
pub(super) const MAX_KEPT: usize = 4_096;

/// Seconds that a timestamp may lie back, and ahead (draft-01 facts §14).
const WINDOW: (i64, i64) = (300, 30);

/// Why a message does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Stale {
    #[error("its time is {0} s off: check the clocks")]
    Time(i64),
    #[error("it came before")]
    Seen,
    #[error("too many messages of this node")]
    TooMany,
}

/// The memory.
#[derive(Debug, Default)]
pub(super) struct Replays {
    order: VecDeque<(u64, NodeId, [u8; 32])>,
    seen: HashSet<[u8; 32]>,
    per_node: HashMap<NodeId, usize>,
}

impl Replays {
    /// Takes note of a message of `node`, whose source is certain. `now` and `timestamp` are seconds since 1970.
    pub(super) fn note(&mut self, now: u64, node: NodeId, timestamp: i64, bytes: &[u8]) -> Result<(), Stale> {
        let ahead = timestamp.saturating_sub(i64::try_from(now).unwrap_or(i64::MAX));
        if ahead < -WINDOW.0 || ahead > WINDOW.1 {
            return Err(Stale::Time(ahead));
        }
        while self.order.front().is_some_and(|(at, ..)| now.saturating_sub(*at) >= KEPT) {
            self.forget_oldest();
        }
        let digest = *blake3::hash(bytes).as_bytes();
        if self.seen.contains(&digest) {
            return Err(Stale::Seen);
        }
        if self.per_node.get(&node).is_some_and(|count| *count >= MAX_PER_NODE) {
            return Err(Stale::TooMany);
        }
        if self.order.len() >= MAX_KEPT {
            self.forget_oldest();
        }
        self.order.push_back((now, node, digest));
        self.seen.insert(digest);
        *self.per_node.entry(node).or_default() += 1;
        Ok(())
    }

    fn forget_oldest(&mut self) {
        let Some((_, node, digest)) = self.order.pop_front() else { return };
        self.seen.remove(&digest);
        if let Some(count) = self.per_node.get_mut(&node) {
            *count -= 1;
            if *count == 0 {
                self.per_node.remove(&node);
            }
        }
    }
}

/// The times in our own messages: two of a kind to one node never have the same, or the second would be taken for the
/// first again.
#[derive(Debug, Default)]
pub(super) struct Stamps(HashMap<(NodeId, Kind), i64>);

impl Stamps {
    /// The time for a message, in seconds since 1970: now, or a little later. What lies in the past is forgotten.
    pub(super) fn next(&mut self, now: u64, to: NodeId, kind: Kind) -> i64 {
        let now = i64::try_from(now).unwrap_or(i64::MAX);
        self.0.retain(|_, last| *last >= now);
        let at = self.0.get(&(to, kind)).map_or(now, |last| last.saturating_add(1));
        self.0.insert((to, kind), at);
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_messages_within_a_second_differ_in_their_time() {
        let (mut stamps, at) = (Stamps::default(), NOW as i64);
        let (one, two) = (NodeId(1), NodeId(2));
        assert_eq!(stamps.next(NOW, one, Kind::Accept), at);
        assert_eq!(stamps.next(NOW, one, Kind::Accept), at + 1);
        assert_eq!(stamps.next(NOW, two, Kind::Accept), at);
        assert_eq!(stamps.next(NOW, one, Kind::Revoke), at);
        assert_eq!(stamps.next(NOW + 1, one, Kind::Accept), at + 2);
        assert_eq!(stamps.0.len(), 1, "what is past is forgotten");
        assert_eq!(stamps.next(NOW + 9, one, Kind::Accept), at + 9);
    }

    const NOW: u64 = 1_800_000_000;

    #[test]
    fn a_message_counts_once_and_in_time() {
        let mut replays = Replays::default();
        let at = NOW as i64;
        assert_eq!(replays.note(NOW, NodeId(1), at, b"a"), Ok(()));
        assert_eq!(replays.note(NOW + KEPT - 1, NodeId(1), at + 500, b"a"), Err(Stale::Seen));
        assert_eq!(
            replays.note(NOW + KEPT, NodeId(1), at + 500, b"a"),
            Ok(()),
            "forgotten, and so too old by now"
        );
        assert_eq!(replays.note(NOW, NodeId(1), at - 301, b"b"), Err(Stale::Time(-301)));
        assert_eq!(replays.note(NOW, NodeId(1), at + 31, b"b"), Err(Stale::Time(31)));
        for extreme in [i64::MIN, i64::MAX] {
            assert!(matches!(replays.note(NOW, NodeId(1), extreme, b"b"), Err(Stale::Time(_))));
        }
        for edge in [at - 300, at + 30] {
            assert_eq!(replays.note(NOW, NodeId(1), edge, &edge.to_be_bytes()), Ok(()));
        }
    }

    #[test]
    fn nobody_fills_the_memory() {
        let mut replays = Replays::default();
        let fates: Vec<_> = (0..MAX_PER_NODE as u32 + 1)
            .map(|n| replays.note(NOW, NodeId(1), NOW as i64, &n.to_be_bytes()))
            .collect();
        assert_eq!(fates.last(), Some(&Err(Stale::TooMany)));
        assert_eq!(replays.note(NOW, NodeId(2), NOW as i64, b"another"), Ok(()));
        for n in 0..MAX_KEPT as u32 + 9 {
            let _ = replays.note(NOW, NodeId(100 + n), NOW as i64, &(1_000_000 + n).to_be_bytes());
        }
        assert_eq!(replays.order.len(), MAX_KEPT);
        assert_eq!(replays.seen.len(), MAX_KEPT);
        assert_eq!(replays.per_node.values().sum::<usize>(), MAX_KEPT);
    }
}
