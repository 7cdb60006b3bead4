//! A scoreboard without any index: all segments and all bytes are looked at for everything.
//!
//! Used by the tests, and by the fuzz target `scoreboard`.

use super::*;

#[derive(Debug, Clone)]
pub(crate) enum Op {
    Send {
        len: u64,
        app_limited: bool,
    },
    /// Cumulative position and blocks, in thousandths of what is outstanding (a little beyond is possible). With
    /// `whole`, all are moved to segment boundaries.
    Ack {
        cumulative: u64,
        blocks: Vec<(u64, u64)>,
        whole: bool,
    },
    Wait {
        us: u64,
    },
    Retransmit {
        count: usize,
    },
    Probe,
    Rto,
    Timer,
    /// Another connection shows that what was sent longer ago than this is lost.
    Overdue {
        ago_us: u64,
    },
    Split {
        segment: u64,
        at: u64,
    },
    /// The peer tells what arrived up to here only, in thousandths of what is outstanding; beyond them, it tells all.
    Told {
        up_to: u64,
    },
}

#[derive(Default)]
struct Model {
    segments: Vec<Segment>,
    /// Per byte of the stream: reported as acknowledged?
    counted: Vec<bool>,
    una: u64,
    recovery_end: Option<u64>,
    deadline: Option<Instant>,
    reported_end: Option<u64>,
    rack: Rack,
}

impl Model {
    fn nxt(&self) -> u64 {
        self.counted.len() as u64
    }

    fn in_flight(&self) -> u64 {
        self.segments.iter().filter(|s| s.state == State::InFlight).map(Segment::len).sum()
    }

    fn count(&mut self, start: u64, end: u64) -> u64 {
        let mut new = 0;
        for byte in &mut self.counted[start as usize..end as usize] {
            new += u64::from(!std::mem::replace(byte, true));
        }
        new
    }

    fn ack(
        &mut self,
        now: Instant,
        cumulative: u64,
        blocks: &[(u64, u64)],
        rtt: &mut RttEstimator,
    ) -> AckOutcome {
        if cumulative > self.nxt() {
            return AckOutcome { invalid: true, ..AckOutcome::default() };
        }
        let (mut out, mut tally) = (AckOutcome::default(), Tally::default());
        let (fack, min_rtt, una) = (self.rack.fack, rtt.min(), self.una);
        if cumulative > una {
            out.advanced = true;
            out.cumulative_bytes = cumulative - una;
            self.una = cumulative;
        }
        self.deliver(now, blocks, (fack, min_rtt), &mut out, &mut tally);
        let una = self.una;
        // Partial acknowledgement of the first that is left.
        self.segments.retain(|s| s.end > una);
        if let Some(first) = self.segments.first_mut().filter(|s| s.start < una) {
            tally.newest(first);
            let start = std::mem::replace(&mut first.start, una);
            out.acked_bytes += self.count(start, una);
        }
        out.newest_acked_sent = tally.outcome.newest_acked_sent;
        out.acked_app_limited = tally.outcome.acked_app_limited;
        if out.newest_acked_sent.is_none() && !out.advanced {
            return out;
        }
        if let Some(sent) = tally.sample {
            rtt.update(now - sent);
            out.rtt_sample = Some(now - sent);
        }
        if let Some((sent, end)) = tally.rack {
            self.rack.advance(now, sent, end);
        }
        if out.spurious_bytes > 0 {
            self.rack.on_spurious_loss(self.una, self.nxt());
        }
        if self.recovery_end.is_some_and(|end| self.una >= end) {
            self.recovery_end = None;
            self.rack.on_recovery_end();
        }
        let losses = self.detect(now, rtt);
        AckOutcome { lost_bytes: losses.bytes, newest_lost_sent: losses.newest_sent, ..out }
    }

    /// What the acknowledgement newly covers: marks it, counts its bytes, collects samples.
    fn deliver(
        &mut self,
        now: Instant,
        blocks: &[(u64, u64)],
        (fack, min_rtt): (u64, Duration),
        out: &mut AckOutcome,
        tally: &mut Tally,
    ) {
        let una = self.una;
        let valid = |&(s, e): &(u64, u64)| s < e && s > una && e <= self.counted.len() as u64;
        let blocks: Vec<_> = blocks.iter().filter(|b| valid(b)).collect();
        let mut delivered: Vec<(Segment, bool)> = Vec::new();
        for segment in &mut self.segments {
            let gone = segment.end <= una;
            let sacked = blocks.iter().any(|(s, e)| *s <= segment.start && segment.end <= *e);
            if gone {
                out.fin_acked |= segment.fin;
            }
            if segment.state != State::Sacked && (gone || sacked) {
                delivered.push((segment.clone(), gone));
                segment.state = State::Sacked;
            }
        }
        let uncovered = delivered.iter().any(|(s, gone)| *gone && s.transmissions > 1);
        for (segment, gone) in delivered {
            let new = self.count(segment.start, segment.end);
            out.acked_bytes += new;
            let elapsed = now - segment.sent;
            let too_soon = segment.transmissions > 1 && elapsed < min_rtt;
            if new > 0 && (segment.state == State::Lost || (too_soon && segment.was_lost)) {
                out.spurious_bytes += segment.len();
            }
            tally.newest(&segment);
            if segment.transmissions == 1 && !(gone && uncovered) {
                tally.sample = tally.sample.max(Some(segment.sent));
            }
            if !too_soon {
                tally.rack = tally.rack.max(Some((segment.sent, segment.end)));
            }
            self.rack.on_delivered(&segment, fack);
        }
    }

    fn detect(&mut self, now: Instant, rtt: &RttEstimator) -> Losses {
        self.deadline = None;
        let mut losses = Losses::default();
        let Some(newest) = self.rack.newest else { return losses };
        let sacked = self.segments.iter().filter(|s| s.state == State::Sacked).count();
        let patience =
            self.rack.rtt + self.rack.reorder_window(rtt, self.recovery_end.is_some() || sacked >= 3);
        let nxt = self.nxt();
        for segment in &mut self.segments {
            if segment.state != State::InFlight || (segment.sent, segment.end) >= newest {
                continue;
            }
            if segment.transmissions == 1 && self.reported_end.is_some_and(|end| segment.start >= end) {
                continue;
            }
            if segment.sent + patience <= now {
                segment.state = State::Lost;
                segment.was_lost = true;
                losses.bytes += segment.len();
                losses.newest_sent = losses.newest_sent.max(Some(segment.sent));
                self.recovery_end.get_or_insert(nxt);
            } else {
                let due = segment.sent + patience;
                self.deadline = Some(self.deadline.map_or(due, |d| d.min(due)));
            }
        }
        losses
    }

    fn overdue(&mut self, before: Instant) -> Losses {
        let mut losses = Losses::default();
        let nxt = self.nxt();
        for segment in self.segments.iter_mut().filter(|s| s.state == State::InFlight && s.sent < before) {
            segment.state = State::Lost;
            segment.was_lost = true;
            losses.bytes += segment.len();
            losses.newest_sent = losses.newest_sent.max(Some(segment.sent));
            self.recovery_end.get_or_insert(nxt);
        }
        losses
    }

    fn rto(&mut self) -> Losses {
        let mut losses = Losses::default();
        let reneged = self.segments.first().is_some_and(|s| s.state == State::Sacked);
        for segment in &mut self.segments {
            if segment.state == State::InFlight {
                losses.bytes += segment.len();
                losses.newest_sent = losses.newest_sent.max(Some(segment.sent));
            }
            if segment.state == State::InFlight || (segment.state == State::Sacked && reneged) {
                segment.state = State::Lost;
                segment.was_lost = true;
            }
        }
        self.deadline = None;
        if !self.segments.is_empty() {
            self.recovery_end = Some(self.nxt());
        }
        losses
    }

    fn send_again(&mut self, now: Instant, start: u64) {
        let segment = self.segments.iter_mut().find(|s| s.start == start).expect("a segment begins there");
        segment.state = State::InFlight;
        segment.sent = now;
        segment.transmissions += 1;
    }

    fn find(&self, state: State) -> impl DoubleEndedIterator<Item = SegmentRef> {
        self.segments.iter().filter(move |s| s.state == state).map(Segment::to_ref)
    }
}

/// The scoreboard and the model, kept in step.
pub(crate) struct Pair {
    board: Scoreboard,
    board_rtt: RttEstimator,
    model: Model,
    model_rtt: RttEstimator,
    now: Instant,
    acked: u64,
}

impl Pair {
    pub(crate) fn new(now: Instant) -> Self {
        let rtt = RttEstimator::new(Duration::from_millis(100));
        Self {
            board: Scoreboard::new(),
            board_rtt: rtt.clone(),
            model: Model::default(),
            model_rtt: rtt,
            now,
            acked: 0,
        }
    }

    pub(crate) fn apply(&mut self, op: Op) {
        // No two events at one time: RACK's order is by time first.
        self.now += Duration::from_nanos(100);
        match op {
            Op::Send { len, app_limited } => self.send(len, app_limited),
            Op::Ack { cumulative, blocks, whole } => {
                let cumulative = self.place(cumulative, whole);
                let blocks: Vec<_> =
                    blocks.iter().map(|&(a, b)| (self.place(a, whole), self.place(b, whole))).collect();
                self.ack(cumulative, &blocks);
            }
            Op::Wait { us } => self.now += Duration::from_micros(us),
            Op::Retransmit { count } => self.retransmit(count),
            Op::Probe => {
                let candidate = self.board.probe_candidate();
                assert_eq!(candidate, self.model.find(State::InFlight).next_back());
                if let Some(segment) = candidate {
                    self.board.on_probe(self.now, segment.range.start);
                    self.model.send_again(self.now, segment.range.start);
                }
            }
            Op::Rto => assert_eq!(self.board.on_rto(self.now), self.model.rto()),
            Op::Timer => {
                let losses = self.board.detect_losses(self.now, &self.board_rtt);
                assert_eq!(losses, self.model.detect(self.now, &self.model_rtt));
            }
            Op::Overdue { ago_us } => {
                let before = self.now.checked_sub(Duration::from_micros(ago_us)).unwrap_or(self.now);
                let losses = self.board.detect_overdue(|sent| sent < before);
                assert_eq!(losses, self.model.overdue(before));
            }
            Op::Split { segment, at } => self.split(segment, at),
            Op::Told { up_to } => {
                self.model.reported_end = (up_to < 1_000).then(|| self.place(up_to, false));
                self.board.set_reported_end(self.model.reported_end);
            }
        }
        self.check();
    }

    /// Acknowledges everything: the counts must come out even.
    pub(crate) fn finish(mut self) {
        self.now += Duration::from_millis(1);
        self.ack(self.model.nxt(), &[]);
        self.check();
        assert!(self.board.is_empty() && !self.board.has_lost());
        assert_eq!((self.board.in_flight(), self.acked), (0, self.model.nxt()));
        self.board.release();
    }

    fn place(&self, thousandth: u64, whole: bool) -> u64 {
        let span = self.model.nxt() - self.model.una;
        let at = self.model.una + span * thousandth / 1000;
        if !whole {
            return at;
        }
        self.model
            .segments
            .iter()
            .rev()
            .map(|s| s.start)
            .find(|s| *s <= at)
            .filter(|_| thousandth < 1000)
            .unwrap_or(at)
    }

    fn send(&mut self, len: u64, app_limited: bool) {
        let (start, end) = (self.model.nxt(), self.model.nxt() + len);
        self.board.on_sent(self.now, start..end, false, app_limited);
        self.model.counted.resize(end as usize, false);
        self.model.segments.push(Segment {
            start,
            end,
            sent: self.now,
            transmissions: 1,
            run: 0,
            state: State::InFlight,
            fin: false,
            app_limited,
            was_lost: false,
            counted: false,
        });
    }

    fn ack(&mut self, cumulative: u64, blocks: &[(u64, u64)]) {
        let outcome = self.board.on_ack(self.now, cumulative, blocks, &mut self.board_rtt);
        let expected = self.model.ack(self.now, cumulative, blocks, &mut self.model_rtt);
        assert_eq!(outcome, expected);
        self.acked += outcome.acked_bytes;
    }

    fn retransmit(&mut self, count: usize) {
        for _ in 0..count {
            self.now += Duration::from_nanos(100);
            let lost = self.board.next_lost();
            assert_eq!(lost, self.model.find(State::Lost).next());
            let Some(segment) = lost else { return };
            self.board.on_retransmitted(self.now, segment.range.start);
            self.model.send_again(self.now, segment.range.start);
        }
    }

    fn split(&mut self, segment: u64, at: u64) {
        let count = self.model.segments.len() as u64;
        if count == 0 {
            return;
        }
        let index = (count * segment / 1000) as usize;
        let old = self.model.segments[index].clone();
        let at = old.start + old.len() * at / 1000;
        self.board.split(old.start, at);
        if at > old.start && old.state != State::Sacked {
            self.model.segments[index].end = at;
            self.model.segments.insert(index + 1, Segment { start: at, ..old });
        }
    }

    fn check(&self) {
        let (board, model) = (&self.board, &self.model);
        assert_eq!(board.in_flight(), model.in_flight());
        assert_eq!((board.una(), board.nxt(), board.len()), (model.una, model.nxt(), model.segments.len()));
        assert_eq!(board.next_lost(), model.find(State::Lost).next());
        assert_eq!(board.has_lost(), board.next_lost().is_some());
        assert_eq!(board.loss_deadline(), model.deadline);
        assert_eq!(board.in_recovery(), model.recovery_end.is_some());
        assert_eq!(board.oldest_sent(), model.segments.first().map(|s| s.sent));
        // May be early, never late.
        let oldest = model.segments.iter().filter(|s| s.state == State::InFlight).map(|s| s.sent).min();
        assert!(oldest.is_none() || board.oldest_in_flight().is_some_and(|sent| Some(sent) <= oldest));
        // A segment has one state: nothing is lost and SACKed, and what is neither is in flight.
        for (a, b) in board.segments.iter().zip(&model.segments) {
            assert_eq!(
                (a.start, a.end, a.state, a.transmissions),
                (b.start, b.end, b.state, b.transmissions)
            );
        }
    }
}
