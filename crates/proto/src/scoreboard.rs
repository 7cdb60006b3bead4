//! What was sent and not yet acknowledged: selective acknowledgements, loss detection, bytes in flight.
//!
//! RACK-TLP (RFC 8985) on the SACK information of RFC 6675, one [`Scoreboard`] per connection. Normative
//! text: `spec/recovery.md` sections 3 and 4. Offsets are stream offsets: 0 is the first byte, and a FIN
//! occupies one offset after the last byte.
//!
//! # How the cost per acknowledgement is kept down
//!
//! * Segments live in a `VecDeque` in offset order. A cumulative acknowledgement pops from its front: no
//!   search, no allocation. That is the whole of the straight path.
//! * A SACK block finds its first segment by binary search. Blocks are repeated in every acknowledgement and
//!   grow, so a SACKed segment remembers how far the next one that is *not* SACKed is away at least; the
//!   distances are lengthened as they are followed (path compression as in union-find). A block costs
//!   O(newly acknowledged) plus an amortised logarithm however often it is repeated.
//! * RACK needs segments in order of transmission. For segments sent once this *is* the offset order, so one
//!   cursor walks over them and never turns back. Retransmissions go into a queue of their own, in order of
//!   retransmission. Both walks stop at the first segment that is not yet overdue: each segment is passed
//!   once per transmission, however many acknowledgements come.
//! * Lost segments are in a binary heap by offset. The heap and the retransmission queue name segments by
//!   their *end* (a partial acknowledgement moves a start, never an end) and may hold stale entries, which
//!   are dropped when they reach the front. Only lossy connections ever touch either.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::ops::Range;
use std::time::{Duration, Instant};

use crate::rtt::RttEstimator;

#[cfg(feature = "fuzzing")]
#[path = "scoreboard/tests/model.rs"]
pub(crate) mod model;
mod overdue;
mod rack;
#[cfg(test)]
mod tests;

use rack::Rack;

/// Segments sent and not yet acknowledged, in offset order.
#[derive(Debug, Default)]
pub struct Scoreboard {
    /// Contiguous and in offset order: from `una` to `nxt`.
    segments: VecDeque<Segment>,
    /// How many segments were ever popped: `scan` minus this is an index.
    popped: u64,
    /// Every segment before this one is acknowledged, lost or was retransmitted (see the module text).
    scan: u64,
    /// Retransmissions and probes in order of sending; may hold stale entries.
    resent: VecDeque<Resent>,
    /// Ends of lost segments, lowest first; its top is never stale.
    lost: BinaryHeap<Reverse<u64>>,
    lost_segments: usize,
    sacked_segments: usize,
    una: u64,
    nxt: u64,
    in_flight: u64,
    last_sent: Option<Instant>,
    deadline: Option<Instant>,
    /// `nxt` when the present recovery began; recovery ends when `una` reaches it.
    recovery_end: Option<u64>,
    /// See [`Scoreboard::set_reported_end`].
    reported_end: Option<u64>,
    rack: Rack,
}

/// A segment as the sender must know it to send it again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentRef {
    /// Stream offsets, the FIN's own included.
    pub range: Range<u64>,
    /// Whether the last offset of the range is a FIN.
    pub fin: bool,
    /// How often it was sent so far.
    pub transmissions: u32,
}

/// What an acknowledgement changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AckOutcome {
    /// Bytes now known to be delivered that were not before, cumulatively or selectively. Each byte of the
    /// stream (and the FIN) is reported once in the life of a connection.
    pub acked_bytes: u64,
    /// How far the cumulative acknowledgement moved.
    pub cumulative_bytes: u64,
    /// Whether the cumulative acknowledgement moved.
    pub advanced: bool,
    /// The sample that was fed to the estimator.
    pub rtt_sample: Option<Duration>,
    /// When the most recently sent of the newly delivered segments was sent.
    pub newest_acked_sent: Option<Instant>,
    /// Whether that segment was sent while the application, not the network, was the limit.
    pub acked_app_limited: bool,
    /// Bytes newly taken for lost.
    pub lost_bytes: u64,
    /// When the most recently sent of them was sent.
    pub newest_lost_sent: Option<Instant>,
    /// The FIN is acknowledged cumulatively, and so is everything before it.
    pub fin_acked: bool,
    /// It acknowledges what was never sent. Nothing was done (RFC 9293 section 3.10.7.4).
    pub invalid: bool,
    /// Bytes that had been taken for lost although the original was delivered (or is on its way): acknowledged
    /// before they were sent again, or sooner after it than any round trip can be.
    pub spurious_bytes: u64,
}

/// What loss detection found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Losses {
    /// Bytes newly taken for lost.
    pub bytes: u64,
    /// When the most recently sent of them was sent.
    pub newest_sent: Option<Instant>,
}

/// Most segments that should be outstanding at once; see [`Scoreboard::is_full`].
pub const MAX_SEGMENTS: usize = 1 << 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    InFlight,
    Lost,
    Sacked,
}

#[derive(Debug, Clone)]
struct Segment {
    start: u64,
    end: u64,
    /// Last transmission.
    sent: Instant,
    transmissions: u32,
    /// For SACKed segments: at least this many segments from here on are SACKed (at least 1).
    run: u32,
    state: State,
    fin: bool,
    app_limited: bool,
    /// Was taken for lost at some time.
    was_lost: bool,
    /// Its bytes were already reported as acknowledged (matters only after reneging).
    counted: bool,
}

#[derive(Debug, Clone, Copy)]
struct Resent {
    end: u64,
    sent: Instant,
    transmissions: u32,
}

/// What one acknowledgement newly delivered, collected segment by segment.
#[derive(Default)]
struct Tally {
    outcome: AckOutcome,
    /// Send time of the newest segment that may give a round-trip sample (Karn).
    sample: Option<Instant>,
    /// A retransmitted segment was acknowledged cumulatively: what it uncovered may have been delivered long
    /// ago, so such segments give no sample either.
    uncovered: bool,
    /// Newest segment that may move RACK on.
    rack: Option<(Instant, u64)>,
}

impl Segment {
    fn len(&self) -> u64 {
        self.end - self.start
    }

    fn to_ref(&self) -> SegmentRef {
        SegmentRef { range: self.start..self.end, fin: self.fin, transmissions: self.transmissions }
    }
}

impl Scoreboard {
    /// An empty scoreboard at offset 0. Allocates nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Records that new data was sent. `range` continues where the last one ended; with `fin` its last offset
    /// is the FIN. `app_limited`: the application had no more to send, or the peer's window was the limit.
    pub fn on_sent(&mut self, now: Instant, range: Range<u64>, fin: bool, app_limited: bool) {
        debug_assert_eq!(range.start, self.nxt, "new data must be contiguous");
        if range.end <= self.nxt {
            return;
        }
        let segment = Segment {
            start: self.nxt,
            end: range.end,
            sent: now,
            transmissions: 1,
            run: 0,
            state: State::InFlight,
            fin,
            app_limited,
            was_lost: false,
            counted: false,
        };
        self.nxt = segment.end;
        self.in_flight += segment.len();
        self.last_sent = Some(now);
        self.segments.push_back(segment);
    }

    /// Takes an acknowledgement: `cumulative` is the next offset that the peer expects, `blocks` its SACK
    /// blocks (start, exclusive end). Blocks not wholly inside `(una, nxt]` are ignored. Feeds `rtt` with at most
    /// one sample and runs loss detection.
    pub fn on_ack(
        &mut self,
        now: Instant,
        cumulative: u64,
        blocks: &[(u64, u64)],
        rtt: &mut RttEstimator,
    ) -> AckOutcome {
        // R4.1
        if cumulative > self.nxt {
            return AckOutcome { invalid: true, ..AckOutcome::default() };
        }
        let mut tally = Tally::default();
        let fack = self.rack.fack;
        if cumulative > self.una {
            self.acknowledge_up_to(now, cumulative, rtt.min(), &mut tally);
        }
        for &(start, end) in blocks {
            self.acknowledge_block(now, start, end, rtt.min(), fack, &mut tally);
        }
        if tally.outcome.newest_acked_sent.is_none() && !tally.outcome.advanced {
            // Old news. Loss detection has its own timer.
            return tally.outcome;
        }
        if let Some(sent) = tally.sample {
            let sample = now.saturating_duration_since(sent);
            rtt.update(sample);
            tally.outcome.rtt_sample = Some(sample);
        }
        if let Some((sent, end)) = tally.rack {
            self.rack.advance(now, sent, end);
        }
        if tally.outcome.spurious_bytes > 0 {
            self.rack.on_spurious_loss(self.una, self.nxt);
        }
        if self.recovery_end.is_some_and(|end| self.una >= end) {
            self.recovery_end = None;
            self.rack.on_recovery_end();
        }
        let losses = self.detect_losses(now, rtt);
        AckOutcome { lost_bytes: losses.bytes, newest_lost_sent: losses.newest_sent, ..tally.outcome }
    }

    /// (R4.17) The peer tells what arrived only up to `end`: its SACK blocks are used up. Segments that begin there or later are
    /// not taken for lost until it tells more, or the retransmission timer fires. `None`: it tells everything.
    pub fn set_reported_end(&mut self, end: Option<u64>) {
        self.reported_end = end;
    }

    /// Marks what is overdue as lost (RFC 8985 section 6.2 step 5). Call when [`loss_deadline`](Self::loss_deadline)
    /// has passed; `on_ack` does it by itself.
    pub fn detect_losses(&mut self, now: Instant, rtt: &RttEstimator) -> Losses {
        self.deadline = None;
        let mut losses = Losses::default();
        if let Some(newest) = self.rack.newest
            && !self.is_quiet(newest)
        {
            let hasty = self.recovery_end.is_some() || self.sacked_segments >= DUP_THRESH;
            let patience = self.rack.rtt + self.rack.reorder_window(rtt, hasty);
            self.scan_originals(now, newest, patience, &mut losses);
            self.scan_resent(now, newest, patience, &mut losses);
        }
        if !self.lost.is_empty() {
            self.drop_stale_lost();
        }
        losses
    }

    /// When the next segment becomes overdue if no acknowledgement comes.
    pub fn loss_deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// (R4.11) The retransmission timeout fired: takes everything not SACKed for lost (RFC 6675 section 5.1). If the peer
    /// has gone back on its SACKs, these too (RFC 2018 section 8).
    pub fn on_rto(&mut self, _now: Instant) -> Losses {
        let mut losses = Losses::default();
        // R4.5: the peer SACKed what it expects next and still does not acknowledge it: it threw the data away.
        let reneged = self.segments.front().is_some_and(|s| s.state == State::Sacked);
        self.lost.clear();
        self.resent.clear();
        for segment in &mut self.segments {
            match segment.state {
                State::InFlight => {
                    losses.bytes += segment.len();
                    losses.newest_sent = losses.newest_sent.max(Some(segment.sent));
                    self.in_flight -= segment.len();
                }
                State::Sacked if reneged => self.sacked_segments -= 1,
                State::Sacked => continue,
                State::Lost => {
                    self.lost.push(Reverse(segment.end));
                    continue;
                }
            }
            segment.state = State::Lost;
            segment.was_lost = true;
            self.lost_segments += 1;
            self.lost.push(Reverse(segment.end));
        }
        self.scan = self.popped + self.segments.len() as u64;
        self.deadline = None;
        if !self.segments.is_empty() {
            self.recovery_end = Some(self.nxt);
        }
        losses
    }

    /// The lost segment with the lowest offset.
    pub fn next_lost(&self) -> Option<SegmentRef> {
        let Reverse(end) = self.lost.peek()?;
        self.find_by_end(*end).map(|i| self.segments[i].to_ref())
    }

    /// The segment that starts at `start` was sent again after a loss and is in flight once more.
    /// Ignored if there is no such segment or it was SACKed meanwhile.
    pub fn on_retransmitted(&mut self, now: Instant, start: u64) {
        self.sent_again(now, start);
    }

    /// The segment to send again as a tail loss probe when there is no new data: the last one in flight
    /// (RFC 8985 section 7.3).
    pub fn probe_candidate(&self) -> Option<SegmentRef> {
        self.segments.iter().rev().find(|s| s.state == State::InFlight).map(Segment::to_ref)
    }

    /// The segment that starts at `start` was sent again as a probe. Bytes in flight do not change.
    pub fn on_probe(&mut self, now: Instant, start: u64) {
        self.sent_again(now, start);
    }

    /// Cuts the segment that starts at `start` in two at `at`, so that each part can be sent in a datagram of
    /// its own after the path MTU fell. Both parts keep the history. Ignored where it makes no sense. O(n).
    pub fn split(&mut self, start: u64, at: u64) {
        let Some(index) = self.find_by_start(start) else { return };
        let segment = &mut self.segments[index];
        // The tail may be a lone FIN, the head may not: `at <= end - 1` holds for both.
        if at <= segment.start || at >= segment.end || segment.state == State::Sacked {
            return;
        }
        let tail = Segment { start: at, ..segment.clone() };
        segment.end = at;
        segment.fin = false;
        // The entries that name the old end now mean the tail.
        if segment.state == State::Lost {
            self.lost_segments += 1;
            self.lost.push(Reverse(at));
        } else if segment.transmissions > 1 {
            let head = Resent { end: at, sent: segment.sent, transmissions: segment.transmissions };
            let place =
                self.resent.iter().position(|r| r.end == tail.end && r.transmissions == tail.transmissions);
            self.resent.insert(place.unwrap_or(self.resent.len()), head);
        }
        // A cursor behind this place stays at its segment.
        self.scan += u64::from(self.popped + (index as u64) < self.scan);
        self.segments.insert(index + 1, tail);
    }

    /// Bytes sent and neither acknowledged, SACKed nor taken for lost ("pipe" of RFC 6675).
    pub fn in_flight(&self) -> u64 {
        self.in_flight
    }

    /// The first offset that is not cumulatively acknowledged.
    pub fn una(&self) -> u64 {
        self.una
    }

    /// The first offset that was never sent.
    pub fn nxt(&self) -> u64 {
        self.nxt
    }

    /// Whether everything sent is acknowledged.
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// Whether a segment waits to be sent again.
    pub fn has_lost(&self) -> bool {
        self.lost_segments > 0
    }

    /// When anything was last sent.
    pub fn last_sent(&self) -> Option<Instant> {
        self.last_sent
    }

    /// Number of segments not cumulatively acknowledged.
    pub fn len(&self) -> usize {
        self.segments.len()
    }

    /// Whether [`MAX_SEGMENTS`] are outstanding: send no new data then. (Retransmission still works, and
    /// nothing breaks beyond; memory does grow by 48 bytes per segment.)
    pub fn is_full(&self) -> bool {
        self.segments.len() >= MAX_SEGMENTS
    }

    /// Whether losses are being repaired: from the first loss until all that was outstanding then is acknowledged.
    pub fn in_recovery(&self) -> bool {
        self.recovery_end.is_some()
    }

    /// What is outstanding will never be acknowledged: it is neither in flight nor lost from now on.
    pub fn abandon(&mut self) {
        *self = Self { una: self.nxt, nxt: self.nxt, ..Self::default() };
    }

    /// Gives memory back if nothing is outstanding. For connections that fell idle.
    pub fn release(&mut self) {
        if self.segments.is_empty() {
            self.segments = VecDeque::new();
            self.resent = VecDeque::new();
            self.lost = BinaryHeap::new();
        }
    }

    fn acknowledge_up_to(&mut self, now: Instant, cumulative: u64, min_rtt: Duration, tally: &mut Tally) {
        tally.outcome.advanced = true;
        tally.outcome.cumulative_bytes = cumulative - self.una;
        let fack = self.rack.fack;
        while let Some(front) = self.segments.front_mut() {
            if front.end > cumulative {
                // R4.4: the peer took only the beginning (its window was short of the rest).
                if front.start < cumulative {
                    let taken = cumulative - front.start;
                    front.start = cumulative;
                    tally.outcome.acked_bytes += if front.counted { 0 } else { taken };
                    tally.newest(front);
                    if front.state == State::InFlight {
                        self.in_flight -= taken;
                    }
                }
                break;
            }
            let Some(segment) = self.segments.pop_front() else { break };
            self.popped += 1;
            tally.outcome.fin_acked |= segment.fin;
            match segment.state {
                State::Sacked => {
                    self.sacked_segments -= 1;
                    continue;
                }
                State::InFlight => self.in_flight -= segment.len(),
                State::Lost => self.lost_segments -= 1,
            }
            tally.uncovered |= segment.transmissions > 1;
            tally.delivered(now, &segment, min_rtt);
            self.rack.on_delivered(&segment, fack);
        }
        // R2.3
        if tally.uncovered {
            tally.sample = None;
        }
        self.una = cumulative;
        self.scan = self.scan.max(self.popped);
    }

    fn acknowledge_block(
        &mut self,
        now: Instant,
        start: u64,
        end: u64,
        min_rtt: Duration,
        fack: u64,
        tally: &mut Tally,
    ) {
        // R4.2. A block at or below `una` is a stale or a duplicate report (D-SACK).
        if start >= end || start <= self.una || end > self.nxt {
            return;
        }
        let first = self.segments.partition_point(|s| s.start < start);
        let mut index = self.skip_sacked(first);
        while let Some(segment) = self.segments.get_mut(index) {
            if segment.end > end {
                break;
            }
            match segment.state {
                State::InFlight => self.in_flight -= segment.len(),
                State::Lost => self.lost_segments -= 1,
                State::Sacked => {}
            }
            tally.delivered(now, segment, min_rtt);
            self.rack.on_delivered(segment, fack);
            segment.state = State::Sacked;
            segment.counted = true;
            segment.run = 1;
            self.sacked_segments += 1;
            index = self.skip_sacked(index + 1);
        }
    }

    /// First index at or after `from` that is not SACKed.
    fn skip_sacked(&mut self, from: usize) -> usize {
        let mut to = from;
        while let Some(segment) = self.segments.get(to) {
            if segment.state != State::Sacked {
                break;
            }
            to += segment.run as usize;
        }
        // Path compression: whoever passes here next makes one step.
        let mut at = from;
        while at < to {
            let segment = &mut self.segments[at];
            let step = segment.run as usize;
            segment.run = u32::try_from(to - at).unwrap_or(segment.run);
            at += step;
        }
        to
    }

    /// Whether nothing can be overdue because everything in flight was sent after the newest that was delivered:
    /// the usual case.
    fn is_quiet(&self, newest: (Instant, u64)) -> bool {
        let next = self.segments.get((self.scan - self.popped) as usize);
        self.resent.is_empty()
            && next.is_none_or(|s| {
                s.state == State::InFlight && s.transmissions == 1 && (s.sent, s.end) >= newest
            })
    }

    /// Walks over the segments that were sent once, from where the last walk stopped.
    fn scan_originals(
        &mut self,
        now: Instant,
        newest: (Instant, u64),
        patience: Duration,
        losses: &mut Losses,
    ) {
        let mut index = (self.scan - self.popped) as usize;
        while let Some(segment) = self.segments.get_mut(index) {
            if segment.state == State::InFlight && segment.transmissions == 1 {
                let untold = self.reported_end.is_some_and(|end| segment.start >= end);
                if untold || !overdue(segment, now, newest, patience, &mut self.deadline) {
                    break;
                }
                self.mark_lost(index, losses);
            }
            index += 1;
        }
        self.scan = self.popped + index as u64;
    }

    /// Walks over the retransmissions in order of sending.
    fn scan_resent(&mut self, now: Instant, newest: (Instant, u64), patience: Duration, losses: &mut Losses) {
        while let Some(&resent) = self.resent.front() {
            if let Some(index) = self.find_by_end(resent.end) {
                let segment = &self.segments[index];
                if segment.state == State::InFlight && segment.transmissions == resent.transmissions {
                    if !overdue(segment, now, newest, patience, &mut self.deadline) {
                        return;
                    }
                    self.mark_lost(index, losses);
                }
            }
            self.resent.pop_front();
        }
    }

    fn mark_lost(&mut self, index: usize, losses: &mut Losses) {
        let segment = &mut self.segments[index];
        segment.state = State::Lost;
        segment.was_lost = true;
        losses.bytes += segment.len();
        losses.newest_sent = losses.newest_sent.max(Some(segment.sent));
        self.in_flight -= segment.len();
        self.lost_segments += 1;
        self.lost.push(Reverse(segment.end));
        self.recovery_end.get_or_insert(self.nxt);
    }

    fn sent_again(&mut self, now: Instant, start: u64) {
        let Some(index) = self.find_by_start(start) else { return };
        let segment = &mut self.segments[index];
        match segment.state {
            State::Sacked => return,
            State::Lost => {
                segment.state = State::InFlight;
                self.in_flight += segment.len();
                self.lost_segments -= 1;
            }
            State::InFlight => {}
        }
        segment.sent = now;
        segment.transmissions = segment.transmissions.saturating_add(1);
        self.last_sent = Some(now);
        self.resent.push_back(Resent { end: segment.end, sent: now, transmissions: segment.transmissions });
        // Stale entries behind a live front: at most as many as there are segments, whoever drives us.
        if self.resent.len() > 2 * self.segments.len() + 64 {
            let mut resent = std::mem::take(&mut self.resent);
            resent.retain(|r| {
                self.find_by_end(r.end).is_some_and(|i| {
                    let s = &self.segments[i];
                    s.state == State::InFlight && s.transmissions == r.transmissions
                })
            });
            self.resent = resent;
        }
        self.drop_stale_lost();
    }

    /// Keeps the top of the heap valid, and its size within twice the number of lost segments.
    fn drop_stale_lost(&mut self) {
        if self.lost_segments == 0 {
            self.lost.clear();
            return;
        }
        while let Some(&Reverse(end)) = self.lost.peek() {
            if self.find_by_end(end).is_some_and(|i| self.segments[i].state == State::Lost) {
                break;
            }
            self.lost.pop();
        }
        if self.lost.len() > 2 * self.segments.len() + 64 {
            self.lost.clear();
            self.lost.extend(self.segments.iter().filter(|s| s.state == State::Lost).map(|s| Reverse(s.end)));
        }
    }

    fn find_by_start(&self, start: u64) -> Option<usize> {
        let index = self.segments.partition_point(|s| s.start < start);
        self.segments.get(index).filter(|s| s.start == start).map(|_| index)
    }

    fn find_by_end(&self, end: u64) -> Option<usize> {
        let index = self.segments.partition_point(|s| s.end < end);
        self.segments.get(index).filter(|s| s.end == end).map(|_| index)
    }
}

/// R4.6, RFC 8985 section 6.2 step 5 for one segment: sent before the newest delivered one, and the patience is over.
/// Otherwise notes in `deadline` when it will be.
fn overdue(
    segment: &Segment,
    now: Instant,
    newest: (Instant, u64),
    patience: Duration,
    deadline: &mut Option<Instant>,
) -> bool {
    if (segment.sent, segment.end) >= newest {
        return false;
    }
    if now.saturating_duration_since(segment.sent) >= patience {
        return true;
    }
    let due = segment.sent.checked_add(patience);
    *deadline = match (*deadline, due) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    };
    false
}

impl Tally {
    fn delivered(&mut self, now: Instant, segment: &Segment, min_rtt: Duration) {
        if !segment.counted {
            self.outcome.acked_bytes += segment.len();
        }
        self.newest(segment);
        // R4.7: sooner after a retransmission than any round trip, so it is the original that arrived
        // (RFC 8985 section 6.2 step 2).
        let too_soon = segment.transmissions > 1 && now.saturating_duration_since(segment.sent) < min_rtt;
        if !segment.counted && (segment.state == State::Lost || (too_soon && segment.was_lost)) {
            self.outcome.spurious_bytes += segment.len();
        }
        // R2.2
        if segment.transmissions == 1 {
            self.sample = self.sample.max(Some(segment.sent));
        }
        if !too_soon {
            self.rack = self.rack.max(Some((segment.sent, segment.end)));
        }
    }

    fn newest(&mut self, segment: &Segment) {
        if self.outcome.newest_acked_sent.is_none_or(|sent| segment.sent >= sent) {
            self.outcome.newest_acked_sent = Some(segment.sent);
            self.outcome.acked_app_limited = segment.app_limited;
        }
    }
}

/// RFC 5681's duplicate threshold, which RFC 8985 uses for haste before any reordering was seen.
const DUP_THRESH: usize = 3;
