//! Frames in (spec/secure.md §11.2 to §11.5).

use std::time::{Duration, Instant};

use pilotage_wire::s1::ack::Ack;
use pilotage_wire::s1::frames::{Frame, Frames};
use pilotage_wire::s1::stream::Stream as Piece;
use pilotage_wire::{Address, SocketAddress};

use super::recv_stream::RecvHalf;
use super::send_stream::{Ending, SendHalf};
use super::sent::Item;
use super::stream::Stream;
use super::{
    ACKNOWLEDGEMENT, Cx, FLOW_CONTROL, LIVES_MAX, MALFORMED, Mux, NO_ERROR, PacketIn, REFUSED, stream_window,
};
use crate::config::Config;
use crate::congestion::{AckEvent, Controller};
use crate::connection::{Failure, Notify};
use crate::event::{ConnectError, ConnectionId, ConnectionStats};
use crate::send_buffer::SendBuffer;
use crate::tunnel::path::Path;

/// Whether what left at `first` can only have arrived in the life that now says to be of this age. It arrived a way later, and
/// that word took a way to come: a round trip in all, which the lowest one is not more than. Clocks run apart by less than
/// one part in 1,024.
fn arrived_within(age: Duration, first: Instant, cx: &Cx<'_>) -> bool {
    let ago = cx.now.saturating_duration_since(first);
    ago + ago / 1_024 <= age + cx.path.rtt.min()
}

/// Whether a stream may be opened at a life of this age: nobody can have acted on it before. Nobody acts on one that has asked nothing.
fn may_open_again(stream: &Stream, age: Duration, cx: &Cx<'_>) -> bool {
    let silent = stream.send.buf.end() == 0 && !stream.send.fin_queued;
    silent || stream.first_sent.is_none_or(|first| arrived_within(age, first, cx))
}

/// What was in a packet for others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Rest {
    /// There are frames that are none of this layer's.
    pub(crate) others: bool,
    /// Data of a stream came.
    pub(crate) data: bool,
}

/// Bit 1 of a stream's number: only the opener sends.
const ONE_WAY: u64 = 2;

impl Mux {
    /// Takes the frames of a packet, which [`Frames::check`] has looked through. An error is the code with which the session
    /// ends.
    pub(crate) fn on_packet(
        &mut self,
        packet: &PacketIn,
        frames: &[u8],
        (local, remote): (Address, Address),
        cx: &mut Cx<'_>,
    ) -> Result<Rest, u64> {
        let (mut rest, mut eliciting, mut taken, mut bare) = (Rest::default(), false, true, false);
        let known = |(s, life, knew): &(u32, u64, bool)| {
            *s == packet.session && *knew && self.peer_life == Some(*life)
        };
        let mut known = self.lives.iter().any(known);
        for frame in Frames::new(frames).flatten() {
            eliciting |= frame.is_eliciting();
            match frame {
                Frame::Life { own, peer, age } => {
                    known = self.on_life(packet.session, (own, age), peer, cx)?;
                    taken &= known;
                }
                Frame::Legacy { .. }
                | Frame::Datagram { .. }
                | Frame::PathChallenge(_)
                | Frame::PathResponse(_)
                | Frame::NewIndex { .. }
                | Frame::RetireIndex(_)
                | Frame::Close { .. }
                | Frame::Record(_)
                | Frame::Rekey
                | Frame::Upgrade(_) => rest.others = true,
                // Of a former life, or of one that we know nothing of yet: as if it had been lost.
                _ if !known => taken = false,
                Frame::Stream(piece) => {
                    rest.data |= !piece.data.is_empty();
                    bare |= piece.data.is_empty() && piece.ports.is_some();
                    taken &= self.on_piece(&piece, (local, remote), cx)?;
                }
                frame => self.on_control(packet, &frame, cx)?,
            }
        }
        self.heard = Some(cx.now);
        if taken {
            let from = (packet.session, packet.index);
            self.received.on_packet(from, packet.number, eliciting, cx.now);
            if bare {
                // Somebody waits to hear that the stream is there.
                self.received.hurry(cx.now);
            }
        }
        Ok(rest)
    }

    /// A packet without frames of this layer came.
    pub(crate) fn on_other_packet(&mut self, packet: &PacketIn, cx: &Cx<'_>) {
        self.received.on_packet((packet.session, packet.index), packet.number, false, cx.now);
    }

    /// Which life the peer speaks of in a session, and to which of ours. `false` if one of them is a former one.
    fn on_life(
        &mut self,
        session: u32,
        (own, age): (u64, u32),
        peer: u64,
        cx: &mut Cx<'_>,
    ) -> Result<bool, u64> {
        let knows_us = peer == 0 || peer == self.life;
        if !knows_us {
            // It will not be acknowledged; that it learns who we are is what it waits for.
            self.ping_due = true;
        }
        if let Some((_, known, knew)) = self.lives.iter_mut().find(|(s, ..)| *s == session) {
            if *known != own {
                return Err(MALFORMED);
            }
            *knew |= knows_us;
            return Ok(knows_us && self.peer_life == Some(own));
        }
        if self.lives.len() >= LIVES_MAX {
            self.lives.remove(0);
        }
        self.lives.push((session, own, knows_us));
        let age = Duration::from_millis(age.into());
        let held = std::mem::take(&mut self.held);
        match self.peer_life.replace(own) {
            Some(old) if old != own => self.on_reborn(age, cx),
            None if held => self.on_known(age, cx),
            _ => {}
        }
        Ok(knows_us)
    }

    /// Who hears us in this session is known, and has kept streams for `age`. Those that another may have had are over.
    fn on_known(&mut self, age: Duration, cx: &Cx<'_>) {
        for slot in self.streams.slots() {
            if self.streams.get(slot).is_some_and(|stream| !may_open_again(stream, age, cx)) {
                self.reset(slot);
            }
            self.streams.mark(slot);
        }
    }

    /// The peer has forgotten all streams, `age` ago or before. Those whose opening can only have arrived after that, where it
    /// meant nothing any more, are opened again; the others are over: what they asked for may have been done.
    fn on_reborn(&mut self, age: Duration, cx: &mut Cx<'_>) {
        cx.path.in_flight = cx.path.in_flight.saturating_sub(self.sent.forget());
        self.forget_peer(cx.cfg);
        for slot in self.streams.slots() {
            let Some(stream) = self.streams.get_mut(slot) else { continue };
            let late = may_open_again(stream, age, cx);
            let untouched = stream.send.is_untouched() && stream.recv.highest == 0;
            if stream.incoming || !late || !untouched || stream.failure.is_some() {
                self.fail(slot, Failure::Reset);
                continue;
            }
            stream.send.restart();
            stream.send.max = self.stream_max;
            let sent = stream.send.buf.next();
            self.flow.sent += sent;
            self.streams.mark(slot);
            if sent > self.stream_max || self.flow.sent > self.flow.max {
                self.flow.sent -= sent;
                self.fail(slot, Failure::Reset); // more than the new process takes at first
            }
        }
    }

    // ------------------------------------------------------------------ streams

    /// Whether a stream is one of ours by its number, and which of its kind.
    fn is_ours(&self, number: u64) -> bool {
        number & 1 == self.side
    }

    /// A piece of a stream. `Ok(false)` if it was not stored.
    fn on_piece(
        &mut self,
        piece: &Piece<'_>,
        ends: (Address, Address),
        cx: &mut Cx<'_>,
    ) -> Result<bool, u64> {
        let slot = match self.streams.find(piece.id) {
            Some(slot) => slot,
            None => match self.open(piece, ends, cx.cfg)? {
                Some(slot) => slot,
                None => return Ok(true),
            },
        };
        let Some(stream) = self.streams.get_mut(slot) else { return Ok(true) };
        let had = stream.recv.asm.readable() > 0;
        let growth = stream.recv.check(piece.offset + piece.data.len() as u64, piece.fin)?;
        if growth > 0 && !self.flow.on_growth(growth) {
            return Err(FLOW_CONTROL);
        }
        let taken = stream.recv.on_piece(piece.offset, piece.data, piece.fin);
        stream.stats.segments_received += 1;
        stream.notify.readable |= taken.readable;
        if taken.dropped > 0 {
            stream.recv.max_due |= stream.recv.wants_window();
            self.on_read(taken.dropped);
        }
        if taken.readable || taken.dropped > 0 || piece.fin || !had {
            self.settle_end(slot);
            self.streams.mark(slot);
        }
        Ok(!taken.refused)
    }

    /// A frame for a stream that is not there: opens it, if it says between which ports.
    fn open(
        &mut self,
        piece: &Piece<'_>,
        (local, remote): (Address, Address),
        cfg: &Config,
    ) -> Result<Option<u32>, u64> {
        if self.is_over(piece.id)? {
            return Ok(None);
        }
        let Some((source, destination)) = piece.ports else { return Err(MALFORMED) };
        let count = piece.id >> 2;
        self.peer_opened.insert(count..count + 1);
        let mut send = SendHalf::new(SendBuffer::new(cfg.send_buffer), false);
        send.max = self.stream_max;
        let slot = self.streams.insert(Box::new(Stream {
            id: ConnectionId { index: u32::MAX, generation: 0 },
            local: SocketAddress { address: local, port: destination },
            remote: SocketAddress { address: remote, port: source },
            number: Some(piece.id),
            incoming: true,
            announced: false,
            gated: true,
            detached: false,
            notify: Notify::default(),
            queued: Notify::default(),
            closed_told: false,
            lists: super::stream::Lists::default(),
            counted_unread: 0,
            send,
            recv: RecvHalf::new(stream_window(cfg), cfg.recv_buffer),
            failure: None,
            first_sent: None,
            stats: ConnectionStats::default(),
        }));
        self.fresh.push_back(slot);
        self.streams.mark(slot);
        Ok(Some(slot))
    }

    /// Whether a stream that is not there was there before. An error if it never was and must not be opened by this frame.
    fn is_over(&self, number: u64) -> Result<bool, u64> {
        let count = number >> 2;
        if self.is_ours(number) {
            return if count < self.opened && number & ONE_WAY == 0 { Ok(true) } else { Err(MALFORMED) };
        }
        // We let nobody open streams in which only one side sends.
        if number & ONE_WAY != 0 || count >= self.peer_told {
            return Err(FLOW_CONTROL);
        }
        Ok(self.peer_opened.contains(count))
    }

    /// RESET_STREAM.
    fn on_reset(&mut self, number: u64, code: u64, size: u64, cfg: &Config) -> Result<(), u64> {
        let Some(slot) = self.streams.find(number) else {
            if !self.is_over(number)? {
                // Its opening was lost, and will not come.
                if size > stream_window(cfg) || !self.flow.on_growth(size) {
                    return Err(FLOW_CONTROL);
                }
                self.peer_opened.insert(number >> 2..(number >> 2) + 1);
                self.on_peer_stream_over();
                self.on_read(size);
            }
            return Ok(());
        };
        let Some(stream) = self.streams.get_mut(slot) else { return Ok(()) };
        let (growth, dropped) = stream.recv.on_reset(code, size)?;
        stream.notify.readable = true;
        if growth > 0 && !self.flow.on_growth(growth) {
            return Err(FLOW_CONTROL);
        }
        if stream.send.opening || stream.recv.asm.next() == 0 {
            stream.send.opening = false;
            if code == REFUSED && !stream.incoming {
                stream.failure.get_or_insert(Failure::Connect(ConnectError::Refused));
                stream.notify.writable = true;
            }
        }
        self.on_read(dropped);
        self.settle_end(slot);
        Ok(())
    }

    /// STOP_SENDING: what we have still to send is wanted by nobody.
    fn on_stop(&mut self, number: u64, code: u64) -> Result<(), u64> {
        let Some(slot) = self.streams.find(number) else { return self.is_over(number).map(drop) };
        let Some(stream) = self.streams.get_mut(slot) else { return Ok(()) };
        if stream.send.reset == Ending::None && !stream.send.is_over() {
            stream.send.reset = Ending::Due(code);
            stream.notify.writable = true;
        }
        self.settle_end(slot);
        self.streams.mark(slot);
        Ok(())
    }

    /// Bytes of a stream were read, or thrown away.
    pub(super) fn on_read(&mut self, bytes: u64) {
        self.flow.read += bytes;
        self.max_data_due |= self.flow.window.is_due(self.flow.read);
    }

    /// A stream of the peer is over: it may open another.
    pub(super) fn on_peer_stream_over(&mut self) {
        self.peer_over += 1;
        self.max_streams_due |=
            self.peer_over + self.concurrent >= self.peer_told + (self.concurrent / 4).max(1);
    }

    // ------------------------------------------------------------------ everything else

    fn on_control(&mut self, packet: &PacketIn, frame: &Frame<'_>, cx: &mut Cx<'_>) -> Result<(), u64> {
        match *frame {
            Frame::Ack(ack) => self.on_ack(packet, &ack, cx)?,
            Frame::AckFrequency { seq, packets, delay_us, reordering } => {
                self.received.on_frequency(seq, packets, delay_us, reordering);
            }
            Frame::ImmediateAck => self.received.hurry(cx.now),
            Frame::ResetStream { stream, code, final_size } => {
                self.on_reset(stream, code, final_size, cx.cfg)?;
            }
            Frame::StopSending { stream, code } => self.on_stop(stream, code)?,
            Frame::MaxData(max) if max > self.flow.max => {
                self.flow.max = max;
                self.streams.unpark();
            }
            Frame::MaxStreamData { stream, max } => match self.streams.find(stream) {
                Some(slot) => {
                    if let Some(stream) = self.streams.get_mut(slot) {
                        stream.send.max = stream.send.max.max(max);
                    }
                    self.streams.mark(slot);
                }
                None => drop(self.is_over(stream)?),
            },
            Frame::MaxStreams(max) if max > self.open_max => {
                self.open_max = max;
                self.streams.unpark();
            }
            _ => {}
        }
        Ok(())
    }

    fn on_ack(&mut self, packet: &PacketIn, ack: &Ack<'_>, cx: &mut Cx<'_>) -> Result<(), u64> {
        let about = (packet.session, ack.index);
        let sealed = packet.sealed;
        let outcome = self.sent.on_ack(cx.now, about, ack.largest(), ack.ranges(), sealed);
        let outcome = outcome.ok_or(ACKNOWLEDGEMENT)?;
        let Some((newest_sent, app_limited)) = outcome.newest else { return Ok(()) };
        (self.backoff, self.probes) = (0, 0);
        self.stalled_at = self.sent.is_waiting().then_some(cx.now);
        if let Some(sample) = outcome.sample {
            let held = Duration::from_micros(ack.delay.min(1 << 40) * 8).min(self.peer_ack_delay);
            let least = if cx.path.rtt.has_sample() { cx.path.rtt.min() } else { sample };
            cx.path.rtt.update(if sample >= least + held { sample - held } else { sample });
        }
        let in_flight_before = cx.path.in_flight;
        self.sync_in_flight(outcome.in_flight_before, cx.path);
        if outcome.bytes > 0 {
            let event = AckEvent { bytes: outcome.bytes, newest_sent, app_limited, in_flight_before };
            cx.path.controller.on_ack(cx.now, &event, &cx.path.rtt);
            let prefix = cx.path.prefix();
            cx.path.mtu.on_acked(outcome.largest_size + prefix);
        }
        if outcome.spurious > 0 {
            cx.path.controller.on_spurious_bytes(outcome.spurious);
        }
        self.take_acked();
        self.detect_losses(cx);
        Ok(())
    }

    /// Keeps the path's count equal to the sum over all that share it.
    pub(super) fn sync_in_flight(&mut self, before: u64, path: &mut Path) {
        path.in_flight = (path.in_flight + self.sent.in_flight).saturating_sub(before);
    }

    fn take_acked(&mut self) {
        let mut acked = std::mem::take(&mut self.sent.acked);
        for item in acked.drain(..) {
            match item {
                Item::Stream { slot, number, offset, len, fin } => {
                    let Some(stream) = self.streams.of_item(slot, number) else { continue };
                    // Somebody may wait for the peer to have taken the stream.
                    let opened = stream.send.opening;
                    stream.notify.writable |= opened;
                    if !stream.send.on_acked(offset, u64::from(len), fin) && !opened {
                        continue;
                    }
                    if stream.send.write_blocked && stream.send.buf.has_worthy_room() {
                        stream.send.write_blocked = false;
                        stream.notify.writable = true;
                    }
                    stream.notify.writable |= stream.send.is_flushed();
                    self.settle_end(slot);
                }
                Item::Reset { slot, number } => {
                    if let Some(stream) = self.streams.of_item(slot, number) {
                        stream.send.reset = Ending::Done;
                        self.settle_end(slot);
                    }
                }
                Item::Stop { slot, number } => {
                    if let Some(stream) = self.streams.of_item(slot, number) {
                        stream.recv.stop = Ending::Done;
                        self.settle_end(slot);
                    }
                }
                Item::Ack { session, largest } => self.received.on_ack_acked(session, largest),
                Item::Life { session } => {
                    self.life_told |= self.under.is_some_and(|under| under.session == session);
                }
                Item::MaxData | Item::MaxStreams | Item::MaxStreamData { .. } => {}
            }
        }
        self.sent.acked = acked;
    }

    /// What was lost is due again.
    pub(super) fn take_lost(&mut self) {
        let mut lost = std::mem::take(&mut self.sent.lost);
        for item in lost.drain(..) {
            match item {
                Item::Stream { slot, number, offset, len, fin } => {
                    if let Some(stream) = self.streams.of_item(slot, number) {
                        stream.send.on_lost(offset, u64::from(len), fin);
                        self.streams.mark(slot);
                    }
                }
                Item::MaxStreamData { slot, number } => {
                    if let Some(stream) = self.streams.of_item(slot, number) {
                        stream.recv.max_due |=
                            stream.recv.final_size.is_none() && stream.recv.reset.is_none();
                        self.streams.mark(slot);
                    }
                }
                Item::Reset { slot, number } => {
                    if let Some(stream) = self.streams.of_item(slot, number) {
                        stream.send.reset.lose();
                        self.streams.mark(slot);
                    }
                }
                Item::Stop { slot, number } => {
                    if let Some(stream) = self.streams.of_item(slot, number) {
                        stream.recv.stop.lose();
                        self.streams.mark(slot);
                    }
                }
                Item::MaxData => self.max_data_due = true,
                Item::MaxStreams => self.max_streams_due = true,
                // Goes with every packet until it is known.
                Item::Life { .. } | Item::Ack { .. } => {}
            }
        }
        self.sent.lost = lost;
    }

    pub(super) fn detect_losses(&mut self, cx: &mut Cx<'_>) {
        let before = self.sent.in_flight;
        let lost = self.sent.detect(cx.now, &cx.path.rtt);
        self.sync_in_flight(before, cx.path);
        if let Some(newest) = lost.newest.filter(|newest| lost.bytes > 0 && cx.path.is_blamed(*newest)) {
            cx.path.controller.on_loss(cx.now, newest, lost.bytes, cx.path.in_flight);
            let prefix = cx.path.prefix();
            cx.path.mtu.on_lost(cx.now, lost.largest_size + prefix);
            cx.path.update_mss();
        }
        self.take_lost();
    }

    /// Refuses a stream of the peer: nothing listens, or it must not call.
    pub(crate) fn refuse(&mut self, slot: u32, code: u64) {
        let Some(stream) = self.streams.get_mut(slot) else { return };
        stream.failure.get_or_insert(Failure::Reset);
        if stream.send.reset == Ending::None {
            stream.send.reset = Ending::Due(code);
        }
        if !stream.recv.is_over() && stream.recv.stop == Ending::None {
            stream.recv.stop = Ending::Due(code);
        }
        stream.notify.readable = true;
        stream.notify.writable = true;
        let (counted, dropped) = (stream.is_of_this_life(), stream.recv.discard());
        if counted {
            self.on_read(dropped);
        }
        self.settle_end(slot);
        self.streams.mark(slot);
    }

    /// The application gives both directions up.
    pub(crate) fn reset(&mut self, slot: u32) {
        let Some(stream) = self.streams.get_mut(slot) else { return };
        if stream.is_ended() {
            return;
        }
        if stream.number.is_none() {
            self.fail(slot, Failure::Reset);
            return;
        }
        self.refuse(slot, NO_ERROR);
    }
}
