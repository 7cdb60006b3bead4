//! Frames out: which, in which order, how many in one packet (spec/secure.md §11.9).
//!
//! LIFE until it is known, acknowledgements, limits and ends, datagrams, what was lost, and then the streams in turn: each batch, and
//! within a batch every [`TURN`] bytes, begin with another one, so that none waits for another's bytes. Data is copied once, from the stream's buffer into
//! the packet, where it is sealed.

use std::collections::VecDeque;
use std::time::Instant;

use pilotage_wire::s1::frames::Frame;
use pilotage_wire::s1::stream::Stream as Piece;

use super::send_stream::{Chunk, Ending};
use super::sent::Item;
use super::stream::Round;
use super::{Cx, Mux};
use crate::congestion::Controller;
use crate::tunnel::DatagramOut;

/// Room without which no further piece is begun: a head, and some bytes worth it.
const PIECE_MIN: usize = 48;
/// Frames of a packet that wants an acknowledgement: PILX answers 43 bytes and more.
const SHORTEST: usize = 43 - pilotage_wire::s1::data::OVERHEAD;
/// Room for a frame about a stream or a limit.
const CONTROL_MIN: usize = 32;

/// So many bytes leave one after the other of a stream, within a batch. A hundred streams that each had a packet in each batch would
/// cost both ends a hundred places in memory and as many wake-ups. On slow links batches are small, and turns with them.
pub(super) const TURN: usize = 16 << 10;

/// The stream that begins the packets, of those with data.
#[derive(Debug, Default)]
pub(super) struct Turn {
    slot: Option<u32>,
    /// The packets of a batch are written at one time.
    batch: Option<Instant>,
    bytes: usize,
}

/// What [`Mux::poll`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Polled {
    /// So many bytes of frames were written; whether they want an acknowledgement, and whether they count as in flight.
    Packet { len: usize, eliciting: bool, counted: bool },
    /// There is more than the room given: ask again with a fresh batch.
    TooLong,
    /// Data waits for the congestion window or the pacer of the path.
    Blocked,
    /// Nothing to send.
    Nothing,
}

/// The packet that is being written.
struct Out<'a> {
    buf: &'a mut [u8],
    at: usize,
    eliciting: bool,
    /// There is something in it that waited for the congestion window, or that a probe has to show.
    counted: bool,
    /// The last frame reaches to the end.
    closed: bool,
}

impl Out<'_> {
    fn room(&self) -> usize {
        if self.closed { 0 } else { self.buf.len() - self.at }
    }

    fn put(&mut self, frame: &Frame<'_>) -> bool {
        let Ok(len) = frame.encode(&mut self.buf[self.at..]) else { return false };
        self.at += len;
        self.eliciting |= frame.is_eliciting();
        true
    }
}

impl Mux {
    /// Writes the frames of the next packet to the start of `out`: at most `limit` bytes, where a packet of a fresh batch would
    /// have `full`.
    pub(crate) fn poll(
        &mut self,
        (limit, full): (usize, usize),
        datagrams: &mut VecDeque<DatagramOut>,
        out: &mut [u8],
        cx: &mut Cx<'_>,
    ) -> Polled {
        let Some(under) = self.under else { return Polled::Nothing };
        let ack = self.received.deadline().is_some_and(|t| t <= cx.now);
        let says = ack || self.says_something() || !datagrams.is_empty();
        let data = self.has_data();
        if !says && !data {
            return Polled::Nothing;
        }
        let may = data && self.may_send_data(limit as u64, cx);
        if !says && !may {
            return Polled::Blocked;
        }
        if limit < full {
            return Polled::TooLong;
        }
        let Some(buf) = out.get_mut(..limit) else { return Polled::Nothing };
        let mut out = Out { buf, at: 0, eliciting: false, counted: false, closed: false };
        let age = cx.now.saturating_duration_since(self.life_began).as_millis();
        let age = u32::try_from(age).unwrap_or(u32::MAX);
        let life = Frame::Life { own: self.life, peer: self.peer_life.unwrap_or(0), age };
        if !self.life_told && out.put(&life) {
            self.sent.stage(Item::Life { session: under.session });
        }
        self.put_acks(&mut out, under.session, cx);
        self.put_control(&mut out, cx);
        self.put_datagrams(&mut out, datagrams);
        if may {
            self.put_data(&mut out, cx);
        }
        if (self.ping_due || self.probes > 0) && !out.eliciting && out.room() > 0 {
            out.put(&Frame::Ping);
        }
        self.ping_due &= !out.eliciting;
        // A shorter datagram is not answered by who has forgotten the session (§6.8).
        if out.eliciting && out.at < SHORTEST && !out.closed {
            out.put(&Frame::Padding(SHORTEST - out.at));
        }
        match out.at {
            0 if data && !may => Polled::Blocked,
            0 => Polled::Nothing,
            len => Polled::Packet { len, eliciting: out.eliciting, counted: out.counted },
        }
    }

    /// What was written left in a packet of that number, as a datagram of `size` bytes, or of 0 if it does not count as in flight.
    pub(crate) fn commit(&mut self, number: u64, size: usize, eliciting: bool, cx: &mut Cx<'_>) {
        let room = cx.path.controller.send_allowance(cx.path.in_flight) > size as u64;
        let app_limited = room && !self.has_data();
        self.sent.commit(cx.now, number, size, eliciting, app_limited);
        if eliciting {
            if size > 0 {
                cx.path.in_flight += size as u64;
                cx.path.on_sent(cx.now, size as u64);
            }
            self.eliciting_at = Some(cx.now);
            self.stalled_at.get_or_insert(cx.now);
            self.probes = self.probes.saturating_sub(1);
        }
        if self.sent.has_lost_items() {
            self.take_lost();
        }
    }

    /// What was written could not be sealed.
    pub(crate) fn abort(&mut self) {
        self.sent.abort();
        self.take_lost();
    }

    fn may_send_data(&mut self, len: u64, cx: &mut Cx<'_>) -> bool {
        if !self.sent.has_room() {
            return false;
        }
        let again = self.streams.front(Round::Urgent).is_some();
        if self.probes > 0 || (again && cx.path.in_flight == 0) {
            return true;
        }
        if again && !cx.path.controller.paces_retransmissions() {
            return cx.path.controller.send_allowance(cx.path.in_flight) >= len;
        }
        cx.path.may_send(cx.now, len)
    }

    fn put_acks(&mut self, out: &mut Out<'_>, session: u32, cx: &Cx<'_>) {
        if !self.received.has_news() {
            return;
        }
        let Self { received, sent, .. } = self;
        let room = &mut out.buf[out.at..];
        let told = |session, largest| sent.stage(Item::Ack { session, largest });
        out.at += received.write(session, cx.now, room, told);
        let lately = |t: Instant| cx.now.saturating_duration_since(t) < cx.path.rtt.smoothed();
        if self.received.is_long() && !self.asked_at.is_some_and(lately) && out.room() > 0 {
            self.asked_at = Some(cx.now);
            out.put(&Frame::Ping);
        }
    }

    fn put_control(&mut self, out: &mut Out<'_>, cx: &Cx<'_>) {
        let (rtt, squeezed) = (cx.path.rtt.smoothed(), cx.path.squeezed);
        if self.max_data_due && out.room() >= CONTROL_MIN {
            self.max_data_due = false;
            let told = self.flow.window.tell(self.flow.read, cx.now, rtt, squeezed);
            if out.put(&Frame::MaxData(told)) {
                self.sent.stage(Item::MaxData);
            }
        }
        if self.max_streams_due && out.room() >= CONTROL_MIN {
            self.max_streams_due = false;
            self.peer_told = self.peer_told.max(self.peer_over + self.concurrent);
            if out.put(&Frame::MaxStreams(self.peer_told)) {
                self.sent.stage(Item::MaxStreams);
            }
        }
        while !self.held
            && out.room() >= 3 * CONTROL_MIN
            && let Some(slot) = self.streams.front(Round::Control)
        {
            self.put_about(slot, out, cx);
            self.streams.drop_front(Round::Control);
            self.streams.mark(slot);
        }
    }

    /// Limits and ends of one stream: at most three frames.
    fn put_about(&mut self, slot: u32, out: &mut Out<'_>, cx: &Cx<'_>) {
        let Self { streams, sent, .. } = self;
        let Some(stream) = streams.get_mut(slot) else { return };
        let Some(number) = stream.number else {
            // The peer does not know the stream: there is nothing to tell it.
            stream.recv.max_due = false;
            for ending in [&mut stream.send.reset, &mut stream.recv.stop] {
                if ending.is_open() {
                    *ending = Ending::Done;
                }
            }
            self.settle_end(slot);
            return;
        };
        if let Ending::Due(code) = stream.send.reset {
            let frame = Frame::ResetStream { stream: number, code, final_size: stream.send.buf.next() };
            if out.put(&frame) {
                stream.send.reset = Ending::Sent(code);
                sent.stage(Item::Reset { slot, number });
            }
        }
        if let Ending::Due(code) = stream.recv.stop
            && out.put(&Frame::StopSending { stream: number, code })
        {
            stream.recv.stop = Ending::Sent(code);
            sent.stage(Item::Stop { slot, number });
        }
        if stream.recv.max_due {
            let max = stream.recv.tell(cx.now, cx.path.rtt.smoothed(), cx.path.squeezed);
            if out.put(&Frame::MaxStreamData { stream: number, max }) {
                sent.stage(Item::MaxStreamData { slot, number });
            }
        }
    }

    fn put_datagrams(&mut self, out: &mut Out<'_>, datagrams: &mut VecDeque<DatagramOut>) {
        while let Some(next) = datagrams.front() {
            let frame = Frame::Datagram {
                source: next.from_port,
                destination: next.to_port,
                data: &next.data,
                to_end: false,
            };
            // If it does not fit alone, the path shrank since it was queued.
            if !out.put(&frame) && out.at > 0 {
                return; // in the next packet
            }
            datagrams.pop_front();
        }
    }

    // ------------------------------------------------------------------ data

    fn put_data(&mut self, out: &mut Out<'_>, cx: &mut Cx<'_>) {
        if self.turn.batch != Some(cx.now) {
            self.end_turn();
            self.turn.batch = Some(cx.now);
        }
        if self.streams.front(Round::Urgent).is_some() {
            self.fresh_first = !self.fresh_first;
            if self.fresh_first {
                self.put_fresh(out, cx);
            }
        }
        while out.room() >= PIECE_MIN
            && let Some(slot) = self.streams.front(Round::Urgent)
        {
            if !self.put_piece(slot, out, cx) || self.streams.get(slot).is_some_and(|s| s.send.has_lost()) {
                break;
            }
            self.streams.drop_front(Round::Urgent);
        }
        while out.room() >= PIECE_MIN
            && let Some(slot) = self.streams.front(Round::Ready)
        {
            if !self.put_piece(slot, out, cx) {
                self.streams.park_front();
            } else if !self.streams.get(slot).is_some_and(|s| s.send.wants_to_send()) {
                self.streams.drop_front(Round::Ready);
            } else if out.room() >= PIECE_MIN {
                // More is wanted than is allowed, or the end alone is left.
                self.streams.rotate(Round::Ready);
            }
        }
        self.streams.rotate(Round::Urgent);
        let front = self.streams.front(Round::Ready);
        if front != self.turn.slot {
            self.turn = Turn { slot: front, bytes: 0, ..self.turn };
        }
        self.turn.bytes += out.at;
        if self.turn.bytes >= TURN {
            self.end_turn();
        }
    }

    /// Another stream begins the next packet.
    fn end_turn(&mut self) {
        let had = self.turn.slot.take();
        self.turn.bytes = 0;
        if had.is_some() && self.streams.front(Round::Ready) == had {
            self.streams.rotate(Round::Ready);
        }
    }

    /// Every second packet of a repair begins with a piece of a stream that misses nothing, which would else wait until all that
    /// was lost of others has left.
    fn put_fresh(&mut self, out: &mut Out<'_>, cx: &mut Cx<'_>) {
        // A stream with a long header may leave no room for what is missing.
        let Some(slot) = self.streams.front(Round::Ready).filter(|_| out.room() >= PIECE_MIN) else { return };
        let repairs = |s: &super::Stream| s.send.has_lost();
        if !self.streams.get(slot).is_some_and(repairs) && !self.put_piece(slot, out, cx) {
            self.streams.park_front();
        } else if !self.streams.get(slot).is_some_and(|s| s.send.wants_to_send()) {
            self.streams.drop_front(Round::Ready);
        } else {
            self.streams.rotate(Round::Ready);
        }
    }

    /// One piece of a stream. `false` if nothing may leave of it.
    fn put_piece(&mut self, slot: u32, out: &mut Out<'_>, cx: &mut Cx<'_>) -> bool {
        let credit = self.flow.credit();
        let may_open = self.opened < self.open_max;
        let Some(stream) = self.streams.get(slot) else { return false };
        let Some(number) = stream.number.or(may_open.then_some(self.opened << 2 | self.side)) else {
            return false;
        };
        let ports = stream.send.opening.then_some((stream.local.port, stream.remote.port));
        let start = stream.send.next_offset();
        let head = Piece { id: number, ports, offset: start, fin: false, data: &[], to_end: true };
        let room = out.room() - head.head_len(0);
        let Some(chunk) = stream.send.next(room, credit) else { return false };
        let len = (chunk.range.end - chunk.range.start) as usize;
        let with_len = Piece { fin: chunk.fin, to_end: false, ..head };
        let to_end = with_len.head_len(len) + len > out.room();
        let piece = Piece { to_end, ..with_len };
        let Ok(head_len) = piece.encode_head(len, &mut out.buf[out.at..]) else { return false };
        let from = out.at + head_len;
        stream.send.buf.copy_to(chunk.range.clone(), &mut out.buf[from..from + len]);
        out.at = from + len;
        out.eliciting = true;
        out.counted = true;
        out.closed = to_end;
        if self.streams.get(slot).is_some_and(|s| s.number.is_none()) {
            self.opened += 1;
            self.streams.set_number(slot, Some(number));
        }
        self.account_sent(slot, number, &chunk, cx);
        true
    }

    fn account_sent(&mut self, slot: u32, number: u64, chunk: &Chunk, cx: &Cx<'_>) {
        self.flow.sent += chunk.fresh;
        let Some(stream) = self.streams.get_mut(slot) else { return };
        stream.first_sent.get_or_insert(cx.now);
        stream.send.on_sent(chunk);
        stream.stats.segments_sent += 1;
        let len = chunk.range.end - chunk.range.start;
        if len > 0 && chunk.fresh == 0 {
            stream.stats.segments_retransmitted += 1;
        }
        if stream.send.write_blocked && stream.send.buf.has_worthy_room() {
            stream.send.write_blocked = false;
            stream.notify.writable = true;
            self.streams.touch(slot);
        }
        let (offset, len) = (chunk.range.start, len as u32);
        self.sent.stage(Item::Stream { slot, number, offset, len, fin: chunk.fin });
    }
}
