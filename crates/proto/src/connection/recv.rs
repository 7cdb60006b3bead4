//! The receiving half: segments in, acknowledgements owed (spec/stream.md §3, §5, §6).

use std::time::Duration;

use pilotage_fault as fault;
use pilotage_wire::packet::{Flags, Header};
use pilotage_wire::sack;

use super::{Connection, Cx, Dialect, Failure, State, WINDOW_UNIT, timers, unwrap_offset};
use crate::config::OWN_ACK_DELAY;
use crate::congestion::{AckEvent, Controller};
use crate::event::ConnectError;
use crate::tunnel::path::Path;

/// Unread bytes that a connection may hold while the endpoint is short of memory.
const SQUEEZED_UNREAD: usize = 64 * 1024;
/// How long a reference peer may take to write down that it sent a segment (`Connection::ripen`).
pub(super) const RIPENING: Duration = Duration::from_millis(3);
/// By how many segments the window in a reference peer's data may be too large.
const WINDOW_AGED: u64 = 256;
/// A segment of so many bytes is part of a transfer, not a message that is answered.
const FULL_SEGMENT: usize = 1_000;
/// What a reference peer sends at most before it hears an acknowledgement: ten segments of 4,096 bytes.
const FIRST_FLIGHT: u32 = 40_960;
/// Bytes after a loss for which a reference peer gets no more segments than it can hold beyond a hole.
const CAREFUL: u64 = 4 << 20;
/// SACK acknowledgements kept for one batch.
const SACKS_KEPT: usize = 64;

/// What became of a segment, for the endpoint's counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SegmentFate {
    Accepted,
    /// Outside of what this connection can mean: dropped.
    Dropped,
    /// Belongs to an earlier connection on the same ports, which the peer still has: to be answered with RST.
    Refused,
}

impl Connection {
    /// Takes one segment that the tunnel has authenticated.
    pub(crate) fn on_segment(&mut self, hdr: &Header, payload: &[u8], cx: &mut Cx<'_>) -> SegmentFate {
        if fault::point!("proto.recv.lose_segment") {
            return SegmentFate::Dropped;
        }
        self.last_received = cx.now;
        tracing::trace!(
            port = self.local.port,
            flags = hdr.flags.bits(),
            seq = hdr.seq.wrapping_sub(self.peer_isn),
            ack = hdr.ack.wrapping_sub(self.isn),
            len = payload.len(),
            "segment in"
        );
        match self.state {
            State::Failed(_) => return SegmentFate::Dropped,
            State::Done => return self.on_late_segment(hdr),
            _ => {}
        }
        if hdr.flags.contains(Flags::RST) {
            return self.on_rst(hdr, cx);
        }
        if hdr.flags.contains(Flags::SYN) {
            return self.on_syn(hdr, cx);
        }
        if self.state == State::SynSent {
            // Nothing means anything before the peer's ISN is known, but it may show what stands in our way
            // (RFC 9293 §3.10.7.3).
            let foreign = hdr.flags.contains(Flags::ACK) && hdr.ack != self.isn.wrapping_add(1);
            return if foreign { SegmentFate::Refused } else { SegmentFate::Dropped };
        }
        // Draft "Data transfer": every data segment carries ACK; a reference FIN carries none.
        let accepted =
            if hdr.flags.contains(Flags::ACK) { self.on_ack(hdr, payload, cx) } else { Acked::Plain };
        match accepted {
            Acked::Invalid => return SegmentFate::Dropped,
            Acked::Sack => return SegmentFate::Accepted,
            Acked::Plain => {}
        }
        if !payload.is_empty() && hdr.flags.contains(Flags::ACK) {
            self.on_data(hdr, payload, cx);
        }
        if hdr.flags.contains(Flags::FIN) {
            self.on_fin(hdr, payload.len(), cx);
        } else if payload.is_empty() {
            self.on_bare_ack(hdr, cx);
        }
        self.maybe_done();
        SegmentFate::Accepted
    }

    // ------------------------------------------------------------------ handshake and teardown

    fn on_syn(&mut self, hdr: &Header, cx: &mut Cx<'_>) -> SegmentFate {
        match self.state {
            State::SynSent if hdr.flags.contains(Flags::ACK) => {
                if hdr.ack != self.isn.wrapping_add(1) {
                    return SegmentFate::Refused; // half open at the peer since an earlier life of ours
                }
                self.peer_isn = self.isn_of(hdr, cx.dialect);
                if let (1, Some(sent)) = (self.syn_transmissions, self.syn_first_sent) {
                    cx.path.rtt.update(cx.now.saturating_duration_since(sent)); // Karn: only if sent once
                }
                self.take_window(hdr, 0, 0, cx.dialect);
                self.ack_pending = true;
                self.establish(cx);
                SegmentFate::Accepted
            }
            // The SYN was repeated, so our answer may have been lost.
            State::SynReceived if hdr.seq == self.peer_isn => {
                self.syn_pending = true;
                SegmentFate::Accepted
            }
            // A repeated SYN-ACK says that our last ACK was lost (spec/stream.md §3.4).
            State::Established if hdr.seq == self.peer_isn => {
                self.ack_pending = true;
                SegmentFate::Accepted
            }
            // Another ISN: we may remember a connection that the peer has forgotten. It answers what we send with RST, if
            // so (RFC 5961 §4.2), and its next SYN finds the ports free.
            State::SynReceived => {
                self.syn_pending = true;
                SegmentFate::Dropped
            }
            State::Established => {
                self.ack_pending = true;
                SegmentFate::Dropped
            }
            _ => SegmentFate::Dropped,
        }
    }

    /// spec/stream.md §3.3b: a reference acceptor answers a repeated SYN with the number before its next byte. If it has
    /// sent data by then, that is not its ISN, which is always 0; taken for it, the first bytes would be missing.
    fn isn_of(&self, syn_ack: &Header, dialect: Dialect) -> u32 {
        let repeated = self.syn_transmissions > 1;
        if dialect == Dialect::Draft && repeated && syn_ack.seq <= FIRST_FLIGHT { 0 } else { syn_ack.seq }
    }

    fn establish(&mut self, cx: &Cx<'_>) {
        self.state = State::Established;
        self.syn_pending = false;
        self.keepalive_pending = false;
        self.timers.handshake = None;
        self.timers.syn = None;
        self.backoff = 0;
        self.progress_at = cx.now;
        self.rto_base = cx.now;
        self.notify.connected = true;
        self.notify.writable = true;
        self.established_at = cx.now;
        self.timers.arm_idle(cx.now, cx.cfg);
    }

    /// RFC 5961 §3.2: a reset counts only where it can belong to this connection. Reference peers
    /// send it with zero numbers, which inside an authenticated tunnel is believed from them.
    fn on_rst(&mut self, hdr: &Header, cx: &mut Cx<'_>) -> SegmentFate {
        if self.state == State::SynSent {
            let ours = hdr.ack == self.isn.wrapping_add(1);
            let zero = hdr.ack == 0 && cx.dialect == Dialect::Draft;
            if !ours && !zero {
                return SegmentFate::Dropped;
            }
            self.fail(Failure::Connect(ConnectError::Refused), cx.path);
            return SegmentFate::Accepted;
        }
        let zero = hdr.seq == 0 && hdr.ack == 0 && cx.dialect == Dialect::Draft;
        let near = self.ack_number();
        let in_window = unwrap_offset(hdr.seq, near, self.recv.next())
            .is_some_and(|o| o >= self.recv.next() && o <= self.recv.window_end());
        if !zero && !in_window {
            self.ack_pending = true; // challenge acknowledgement
            return SegmentFate::Dropped;
        }
        self.fail(Failure::Reset, cx.path);
        SegmentFate::Accepted
    }

    fn on_fin(&mut self, hdr: &Header, payload_len: usize, cx: &mut Cx<'_>) {
        let near = self.peer_isn.wrapping_add(1).wrapping_add(self.recv.next() as u32);
        let at = unwrap_offset(hdr.seq, near, self.recv.next()).map(|o| o + payload_len as u64);
        // Rule C12: any FIN is answered by a bare acknowledgement, never by a FIN.
        self.ack_pending = true;
        let Some(at) = at else { return };
        if self.peer_fin.is_none() && at >= self.recv.next() && at <= self.recv.window_end() {
            self.peer_fin = Some(at);
            if cx.dialect == Dialect::Draft && at > self.recv.next() {
                self.truncate_at = Some(cx.now + timers::TRUNCATE_AFTER);
            }
        }
        self.check_fin_reached(cx);
    }

    /// The end of the stream counts once everything below it has arrived (ordered FIN).
    fn check_fin_reached(&mut self, cx: &mut Cx<'_>) {
        if self.peer_fin_reached || self.peer_fin != Some(self.recv.next()) {
            return;
        }
        self.peer_fin_reached = true;
        self.truncate_at = None;
        self.ack_pending = true;
        self.notify.readable = true;
        if cx.dialect == Dialect::Draft {
            // A reference FIN ends both directions: what we still hold will never be read there, and nothing that we
            // send is answered but FIN, not even that if its application is gone. Only a delayed acknowledgement may follow.
            self.fin_queued = true;
            self.peer_ended = true;
            self.backoff = 0;
            self.tail.wanted = false;
            self.timers.fin_hold = None;
            if !self.send.is_empty() && !self.fin_sent {
                self.timers.last_ack = Some(cx.now + timers::LAST_ACK);
                self.notify.writable = true;
            }
        }
    }

    /// Answers to a connection that is over on our side: only FIN deserves one (rule C12).
    fn on_late_segment(&mut self, hdr: &Header) -> SegmentFate {
        if hdr.flags.contains(Flags::FIN) && !hdr.flags.contains(Flags::RST) {
            self.ack_pending = true;
            return SegmentFate::Accepted;
        }
        SegmentFate::Dropped
    }

    // ------------------------------------------------------------------ acknowledgements of ours

    fn on_ack(&mut self, hdr: &Header, payload: &[u8], cx: &mut Cx<'_>) -> Acked {
        let una = self.board.una();
        let Some(ack) = unwrap_offset(hdr.ack, self.seq_of(una), una) else { return Acked::Invalid };
        if ack > self.board.nxt() {
            self.ack_pending = true; // RFC 9293 §3.10.7.4: acknowledges what was never sent
            return Acked::Invalid;
        }
        if self.state == State::SynReceived {
            self.establish(cx);
        }
        let sack = self.sack_of(payload, ack, cx.dialect);
        let was_closed = self.window_edge < self.board.nxt();
        let data = if sack.is_some() { 0 } else { payload.len() };
        self.take_window(hdr, ack, data, cx.dialect);
        if was_closed {
            self.on_answer_while_closed(cx);
        }
        if cx.dialect == Dialect::Draft && data == 0 {
            // Without SACK, nothing beyond `ack` has arrived.
            self.board.set_reported_end(sack.as_ref().and_then(|sack| sack.told_up_to));
        }
        if ack > una || sack.is_some() {
            let newest = self.board.newest_delivered();
            self.on_progress(ack, sack.as_ref().map_or(&[], SackIn::blocks), cx);
            if cx.dialect == Dialect::Pilotage
                && let Some(sent) = self.board.newest_delivered().filter(|sent| newest != Some(*sent))
            {
                let bare = data == 0 && !hdr.flags.contains(Flags::FIN);
                cx.path.order.on_delivered(cx.now, sent, bare);
            }
        }
        if sack.is_some() { Acked::Sack } else { Acked::Plain }
    }

    /// SACK travels as payload (spec/stream.md §5.5). A Pilotage peer never sends data of that form, so it is SACK
    /// whatever it says; from a reference peer only if every block lies in what was sent to it.
    fn sack_of(&mut self, payload: &[u8], ack: u64, dialect: Dialect) -> Option<SackIn> {
        let blocks = sack::decode(payload)?;
        let mut told = SackIn::default();
        let strict = dialect == Dialect::Draft;
        if !strict && fault::point!("proto.recv.lose_sack") {
            return Some(told);
        }
        let (near, nxt) = (self.seq_of(ack), self.board.nxt());
        let mut stale = sack::Blocks::EMPTY;
        for &(left, right) in blocks.as_slice() {
            let range = unwrap_offset(left, near, ack).zip(unwrap_offset(right, near, ack));
            match range {
                Some((l, r)) if l < r && l >= ack && r <= nxt => told.push(l, r),
                _ if !strict => {} // acknowledged meanwhile, or nonsense: it says nothing
                // A piece of a segment that it also got whole it reports for ever, until its numbers look like the future.
                Some((l, r)) if self.quirks.was_split && l < r && r <= ack => _ = stale.push(left, right),
                _ if self.quirks.stale_blocks.contains(&(left, right)) => _ = stale.push(left, right),
                _ => return None,
            }
        }
        if strict {
            self.quirks.stale_blocks = stale;
            let all = blocks.len() == sack::MAX_BLOCKS;
            told.told_up_to = all.then(|| told.blocks().iter().fold(ack + 1, |end, &(_, r)| end.max(r)));
        }
        Some(told)
    }

    fn on_progress(&mut self, ack: u64, blocks: &[(u64, u64)], cx: &mut Cx<'_>) {
        let in_flight_before = cx.path.in_flight;
        self.board.set_reordering(cx.path.order.reordering());
        let outcome = self.board.on_ack(cx.now, ack, blocks, &mut cx.path.rtt);
        if outcome.invalid {
            return;
        }
        self.sync_in_flight(cx.path);
        if outcome.acked_bytes > 0 {
            if let Some(newest_sent) = outcome.newest_acked_sent {
                let event = AckEvent {
                    bytes: outcome.acked_bytes,
                    newest_sent,
                    app_limited: outcome.acked_app_limited,
                    in_flight_before,
                };
                cx.path.controller.on_ack(cx.now, &event, &cx.path.rtt);
            }
            cx.path.on_delivered(outcome.acked_bytes);
            self.progress_at = cx.now;
            self.rto_base = cx.now;
            self.backoff = 0;
            self.looks.repairs = 0;
            if self.board.una() >= self.tail.end {
                self.tail.out = false;
            }
        }
        if outcome.spurious_bytes > 0 {
            cx.path.controller.on_spurious_bytes(outcome.spurious_bytes);
            cx.path.order.on_spurious(cx.now, &cx.path.rtt);
        }
        if outcome.lost_bytes > 0
            && let Some(sent) = outcome.newest_lost_sent
        {
            cx.path.on_lost(cx.now, sent, outcome.lost_bytes);
            cx.path.order.on_repair(cx.now, &cx.path.rtt);
            self.quirks.careful_until = self.board.nxt() + CAREFUL;
        }
        if outcome.advanced {
            let data_acked = ack.min(self.send.end());
            self.send.on_acked(data_acked);
            if outcome.fin_acked {
                self.fin_acked = true;
            }
            self.notify_of_room();
            if self.send.is_empty() {
                self.timers.last_ack = None;
            }
            if self.is_flushed() {
                self.notify.writable = true;
            }
        }
        if self.board.is_empty() {
            self.tail.out = false;
        }
    }

    /// An acknowledgement came while our window probe is outstanding: the peer lives, its application just does
    /// not read (RFC 9293 §3.8.6.1). Once the window opens, the probe is repeated at once.
    fn on_answer_while_closed(&mut self, cx: &mut Cx<'_>) {
        self.progress_at = cx.now;
        if self.window_edge >= self.board.nxt() && !self.board.is_empty() {
            self.board.on_rto(cx.now);
            self.sync_in_flight(cx.path);
            self.backoff = 0;
        }
    }

    /// Wakes a blocked writer once there is room worth it.
    pub(super) fn notify_of_room(&mut self) {
        if self.write_blocked && self.send.has_worthy_room() {
            self.write_blocked = false;
            self.notify.writable = true;
        }
    }

    /// Takes the advertised window (spec/stream.md §4): units of 4,096 bytes; for reference peers also a segment count.
    /// `data`: bytes of data that came with it.
    pub(super) fn take_window(&mut self, hdr: &Header, ack: u64, data: usize, dialect: Dialect) {
        let window = u64::from(hdr.window);
        let news = ack > self.board.una();
        match dialect {
            // spec/stream.md §4.4: it writes the window into data some time before it sends them, so that it may be filled since.
            Dialect::Draft if data > 0 => {
                let safe = window.saturating_sub(WINDOW_AGED);
                self.window_segments = if news { safe } else { safe.min(self.window_segments) };
                self.window_edge = self.window_edge.max(ack + safe * WINDOW_UNIT);
            }
            // Rule C13: it sends 0 with keepalives and FIN; the edge that was granted stays. Where it acknowledges
            // something its queue is full, and one segment more would hold up all that it hears from us.
            Dialect::Draft if window == 0 => {
                if news && !hdr.flags.contains(Flags::FIN) {
                    self.window_segments = 0;
                }
            }
            Dialect::Draft => {
                self.window_edge = self.window_edge.max(ack + window * WINDOW_UNIT);
                self.window_segments = window;
            }
            Dialect::Pilotage => {
                self.window_edge = self.window_edge.max(ack + window * WINDOW_UNIT);
                self.window_segments = u64::MAX;
            }
        }
    }

    // ------------------------------------------------------------------ data

    fn on_data(&mut self, hdr: &Header, payload: &[u8], cx: &mut Cx<'_>) {
        self.stats.segments_received += 1;
        let near = self.peer_isn.wrapping_add(1).wrapping_add(self.recv.next() as u32);
        let Some(offset) = unwrap_offset(hdr.seq, near, self.recv.next()) else {
            self.note_duplicate();
            return;
        };
        if self.detached && self.is_flushed() {
            // Nobody will read this: tell the peer instead of swallowing it for ever.
            self.rst_pending = true;
            self.fail(Failure::Reset, cx.path);
            return;
        }
        if self.peer_fin.is_some_and(|fin| offset + payload.len() as u64 > fin) {
            self.ack_pending = true; // bytes beyond the end of the stream
            return;
        }
        let squeezed = cx.path.squeezed || fault::point!("proto.recv.out_of_memory");
        if squeezed && !self.fits_when_squeezed(offset, payload.len()) {
            self.ack_pending = true; // out of memory for slow readers: the sender will repeat it
            return;
        }
        let had_unread = self.recv.readable() > 0;
        let inserted = self.recv.insert(offset, payload);
        if inserted.duplicate {
            let owed = self.ack_pending;
            self.note_duplicate();
            if cx.dialect == Dialect::Draft && self.sacks_kept.len() < SACKS_KEPT {
                // It may never see that this was acknowledged (`announce`), and ends the connection after eight tries; what
                // is in a SACK block it repeats no more (RFC 2883 reports duplicates so).
                self.sacks_kept.push(([(offset, offset + payload.len() as u64); sack::MAX_BLOCKS], 1));
                self.ack_pending = owed;
            }
            return;
        }
        if inserted.refused {
            self.ack_pending = true;
            return;
        }
        if inserted.out_of_order || self.hole_announced {
            // RFC 5681 §4.2: at once while data is missing and when a hole is filled.
            self.ack_pending = true;
            if inserted.out_of_order && !self.hole_announced && cx.dialect == Dialect::Draft {
                self.bare_duplicates = 3; // rule C14: reference senders count only payload-free duplicates
            }
            self.hole_announced = inserted.out_of_order;
            self.ripe = self.recv.next();
            self.ripening = None;
            self.keep_sack_if_full();
        } else {
            self.owe_ack(payload.len(), cx);
        }
        if inserted.advanced {
            if self.detached {
                self.discard_unread();
            } else if !had_unread || self.recv.window() < WINDOW_UNIT as usize {
                self.notify.readable = true;
            }
            self.check_fin_reached(cx);
        }
    }

    /// A segment of `len` bytes came in order: every second one is acknowledged, a single one after a while.
    fn owe_ack(&mut self, len: usize, cx: &mut Cx<'_>) {
        self.unacked_segments += 1;
        let mut wait = cx.cfg.delayed_ack;
        match cx.dialect {
            Dialect::Draft => _ = self.ripening.get_or_insert((self.recv.next(), cx.now + RIPENING)),
            Dialect::Pilotage => {
                wait = wait.min(OWN_ACK_DELAY);
                // A sender whose window is a few segments of as many connections must not wait for each (RFC 9000 §13.2.2).
                if len >= FULL_SEGMENT && cx.path.is_second_full() {
                    self.ack_pending = true;
                    return;
                }
            }
        }
        if self.unacked_segments >= 2 {
            if cx.dialect == Dialect::Pilotage {
                self.ack_pending = true;
                return;
            }
            wait = RIPENING;
        }
        let until = cx.now + wait;
        self.timers.delayed_ack = Some(self.timers.delayed_ack.map_or(until, |set| set.min(until)));
    }

    /// Up to where a reference peer may be told now that its bytes arrived.
    ///
    /// It sends a segment first and writes down afterwards that it did. An acknowledgement that comes in between is wasted:
    /// if nothing follows, it repeats the segment eight times, takes our answers for duplicates, and resets the connection.
    /// So what arrived is announced a little later. While bytes are missing more must come, and nothing is held back.
    pub(super) fn ripen(&mut self, cx: &Cx<'_>) {
        let next = self.recv.next();
        if cx.dialect == Dialect::Pilotage || self.recv.has_holes() || self.peer_fin_reached {
            self.ripe = next;
            self.ripening = None;
        } else if let Some((offset, _)) = self.ripening.filter(|(_, at)| *at <= cx.now) {
            self.ripe = self.ripe.max(offset);
            self.ripening = (next > offset).then_some((next, cx.now + RIPENING));
        }
    }

    /// The acknowledgement number for a packet that leaves now.
    pub(super) fn announce(&mut self, cx: &Cx<'_>) -> u32 {
        self.ripen(cx);
        self.told = self.ripe;
        let held_back = self.recv.next() - self.ripe;
        self.ack_number().wrapping_sub(held_back as u32)
    }

    /// A single segment has waited long enough for its acknowledgement.
    pub(super) fn on_delayed_ack(&mut self, cx: &Cx<'_>) {
        self.ripen(cx);
        if cx.dialect == Dialect::Pilotage || self.ripe > self.told {
            self.ack_pending = true;
        } else {
            self.timers.delayed_ack = self.ripening.map(|(_, at)| at);
        }
    }

    /// An acknowledgement waits for a second segment, or for data to ride on.
    pub(crate) fn holds_ack(&self) -> bool {
        self.timers.delayed_ack.is_some() && !self.ack_pending
    }

    /// Another connection's acknowledgement leaves, and so does this one (spec/stream.md §5.2b).
    pub(crate) fn release_ack(&mut self) {
        self.ack_pending |= self.holds_ack();
    }

    /// While the endpoint is short of memory: little is unread, and no larger buffer is needed.
    fn fits_when_squeezed(&self, offset: u64, len: usize) -> bool {
        let needed = self.recv.allocated_with(offset, len);
        self.recv.held() <= SQUEEZED_UNREAD && needed <= self.recv.allocated().max(2 * SQUEEZED_UNREAD)
    }

    /// One acknowledgement carries four blocks. If one batch of datagrams brings more, they are kept for several.
    fn keep_sack_if_full(&mut self) {
        if self.recv.unreported() < sack::MAX_BLOCKS || self.sacks_kept.len() >= SACKS_KEPT {
            return;
        }
        let mut blocks = [(0, 0); sack::MAX_BLOCKS];
        let count = self.recv.sack_blocks(&mut blocks);
        self.recv.mark_reported();
        self.sacks_kept.push((blocks, count));
    }

    fn note_duplicate(&mut self) {
        self.stats.duplicates_received += 1;
        self.ack_pending = true;
    }

    /// A segment without payload and FIN: keepalive probes want an answer.
    fn on_bare_ack(&mut self, hdr: &Header, cx: &Cx<'_>) {
        let expected = self.ack_number();
        // RFC 9293 §3.8.4: a number below what we expect asks whether we live.
        let probe = hdr.seq != expected && (hdr.seq.wrapping_sub(expected) as i32) < 0;
        // draft-01 facts §6.5: a reference keepalive carries window 0 and is otherwise never answered.
        let draft_keepalive = cx.dialect == Dialect::Draft && hdr.window == 0;
        if probe || draft_keepalive {
            self.ack_pending = true;
        }
    }

    pub(super) fn discard_unread(&mut self) {
        let mut sink = [0u8; 4096];
        while self.recv.read(&mut sink) > 0 {}
    }

    // ------------------------------------------------------------------ the window that we advertise

    /// The window field for now, and the edge that it promises.
    pub(super) fn advertise(&mut self, cx: &Cx<'_>) -> u16 {
        let dialect = cx.dialect;
        let mut window = self.recv.window() as u64;
        let still = fault::point!("proto.recv.window_stands");
        if still || cx.path.squeezed && self.recv.held() > SQUEEZED_UNREAD {
            window = self.advertised_edge.saturating_sub(self.recv.next()).min(window);
        }
        let units = (window / WINDOW_UNIT).min(u64::from(u16::MAX));
        // A reference peer takes 0 for "no limit" (draft-01 facts §6.2).
        let units = if dialect == Dialect::Draft { units.max(1) } else { units };
        self.advertised_edge = self.advertised_edge.max(self.recv.next() + units * WINDOW_UNIT);
        units as u16
    }

    /// After reading: tells the peer of new room once that is a good part of the buffer (RFC 9293 §3.8.6.2.2).
    pub(super) fn maybe_update_window(&mut self, cx: &Cx<'_>) {
        if self.state != State::Established || self.peer_fin.is_some() {
            return;
        }
        let edge = self.recv.next() + self.recv.window() as u64 / WINDOW_UNIT * WINDOW_UNIT;
        let gained = edge.saturating_sub(self.advertised_edge);
        let left = self.advertised_edge.saturating_sub(self.recv.next());
        let quarter = cx.cfg.recv_buffer as u64 / 4;
        if gained >= quarter.max(WINDOW_UNIT) || (gained > 0 && left < WINDOW_UNIT) {
            self.ack_pending = true;
        }
    }

    /// Rule for reference peers that closed over a hole: the missing bytes will not come.
    pub(super) fn on_truncate_timeout(&mut self, path: &mut Path) {
        self.truncate_at = None;
        if !self.peer_fin_reached {
            self.rst_pending = true;
            self.fail(Failure::Truncated, path);
        }
    }
}

/// What the acknowledgement part of a segment was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Acked {
    /// Nothing special: payload is data.
    Plain,
    /// The payload was SACK information.
    Sack,
    /// Acknowledges what was never sent.
    Invalid,
}

/// What a SACK payload told.
#[derive(Debug, Clone, Copy, Default)]
struct SackIn {
    blocks: [(u64, u64); sack::MAX_BLOCKS],
    count: usize,
    /// Beyond this offset more may have arrived than the payload had room for.
    told_up_to: Option<u64>,
}

impl SackIn {
    fn push(&mut self, left: u64, right: u64) {
        if let Some(slot) = self.blocks.get_mut(self.count) {
            *slot = (left, right);
            self.count += 1;
        }
    }

    fn blocks(&self) -> &[(u64, u64)] {
        self.blocks.get(..self.count).unwrap_or(&[])
    }
}
