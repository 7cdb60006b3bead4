//! Filling one batch: which packets, in which order, sealed in place (design: one buffer, no copy after the seal).
//!
//! A batch is a run of equally long datagrams of which the last may be shorter, so that one
//! segmentation-offload send takes it. The first datagram decides the size; a packet that would be
//! longer waits for the next batch.

use std::time::Instant;

use pilotage_fault as fault;
use pilotage_nat::agent::{Check, Locals};
use pilotage_wire::beacon;
use pilotage_wire::frame::{self, PILS_HEADER_LEN, TAG_LEN};
use pilotage_wire::packet::{Flags, HEADER_LEN, Header, Protocol};

use super::control::{ControlOut, TOKEN_PAD};
use super::mux::Turn;
use super::{DatagramOut, OVERHEAD, Route, Tunnel, TunnelCx};
use crate::connection::SegmentOut;
use crate::transmit::{Transmit, TransmitBuf};

/// Datagram boundaries of the batch being filled.
struct Batch {
    used: usize,
    /// Size of every datagram but the last; 0 before the first.
    segment: usize,
    count: usize,
    max_count: usize,
    /// Largest datagram of this path.
    full: usize,
}

impl Batch {
    /// Largest datagram that may follow, or `None` if the batch is complete.
    fn limit(&self) -> Option<usize> {
        let size = if self.count == 0 { self.full } else { self.segment };
        let fits = self.count < self.max_count && self.used + size <= TransmitBuf::CAPACITY;
        fits.then_some(size)
    }

    /// Counts a datagram; `false` if it ends the batch.
    fn push(&mut self, len: usize) -> bool {
        if self.count == 0 {
            self.segment = len;
        }
        self.used += len;
        self.count += 1;
        len == self.segment
    }
}

/// What the next packet of the tunnel is.
enum Next {
    /// Length of the unsealed packet.
    Packet {
        len: usize,
    },
    TooLong,
    Nothing,
}

impl Tunnel {
    /// Fills `buf` with the next batch.
    pub(crate) fn poll_transmit(&mut self, buf: &mut TransmitBuf, cx: &mut TunnelCx<'_>) -> Option<Transmit> {
        self.answer_early(cx);
        if let Some(frame) = self.exchange.next_frame() {
            return self.emit_frame(frame.route, &frame.bytes, buf, cx);
        }
        if !self.can_send() {
            if self.has_work() && !self.awaits_confirmation(cx.now) {
                self.want_keys(cx);
                if let Some(frame) = self.exchange.next_frame() {
                    return self.emit_frame(frame.route, &frame.bytes, buf, cx);
                }
            }
            return None;
        }
        if !self.early.is_empty() {
            self.early_to_queue(cx);
        }
        let route = self.path.route.or(self.relay_for(cx.relay))?;
        self.path.route = Some(route);
        self.sync_way(cx.now);
        match self.current {
            Some(_) => self.rekey_if_due(cx),
            None => {
                if !self.keep_s1(cx) {
                    return None;
                }
            }
        }
        if let Some(transmit) = self.show_candidate(buf, cx) {
            return Some(transmit);
        }
        // Only what brings the new keys into use may still leave then.
        if self.is_exhausted(cx.cfg.rekey_after_frames) && !self.control.confirm_due() {
            return None;
        }
        if let Some(transmit) = self.emit_about_ways(buf, cx) {
            return Some(transmit);
        }
        let mut batch = self.fill_batch(route, buf, cx);
        if batch.is_none()
            && let Some(known) = self.instead_of(route)
        {
            batch = self.fill_batch(known, buf, cx);
        }
        if let Some(transmit) = &batch {
            self.keep_copy(transmit, buf);
        }
        // Behind the data, which a large probe could otherwise push out of a short queue. In a transfer that never pauses
        // every acknowledgement brings new data to send, so the end of that is the time for it.
        if self.trusts(route) && (batch.is_none() || !self.wants_poll(cx.now, cx.locals)) {
            self.maybe_probe_mtu(cx);
            return batch.or_else(|| self.emit_probe(route, buf, cx));
        }
        batch
    }

    /// What proves ways, or asks for proof: confirmations, answered tokens, tokens, offers and checks.
    fn emit_about_ways(&mut self, buf: &mut TransmitBuf, cx: &mut TunnelCx<'_>) -> Option<Transmit> {
        if let Some(other) = self.try_route.take()
            && let Some(transmit) =
                self.emit_control_on(other, None, buf, cx, |t, space, cx| t.write_confirmation(space, cx))
        {
            return Some(transmit);
        }
        while let Some((route, hdr)) = self.next_token_answer() {
            let sent =
                self.emit_control_on(route, None, buf, cx, |_, space, _| Self::write_bare(&hdr, space));
            if sent.is_some() {
                return sent;
            }
        }
        if let Some(transmit) = self.emit_token(buf, cx) {
            return Some(transmit);
        }
        if let Some(transmit) = self.emit_ack_copy(buf, cx) {
            return Some(transmit);
        }
        if let Some(transmit) = self.emit_copy(buf) {
            return Some(transmit);
        }
        if std::mem::take(&mut self.signal)
            && let Some(relay) = self.relay_for(cx.relay)
            && let Some(transmit) =
                self.emit_control_on(relay, None, buf, cx, |t, space, cx| t.write_offer(space, cx))
        {
            return Some(transmit);
        }
        while let Some(check) = self.poll_check(cx) {
            let sent = self.emit_check(check, buf, cx);
            if sent.is_some() {
                return sent;
            }
        }
        None
    }

    /// A stranger that may not be sent what is next keeps nothing from the address that the caller gave (rule C16): the first
    /// key exchange frame of the peer may have been a copy that somebody sent from elsewhere.
    fn instead_of(&self, route: Route) -> Option<Route> {
        let known = Route::Direct(self.introduced?);
        if !self.permits(known) {
            return None;
        }
        (matches!(route, Route::Direct(_)) && !self.trusts(route) && known != route).then_some(known)
    }

    fn fill_batch(&mut self, route: Route, buf: &mut TransmitBuf, cx: &mut TunnelCx<'_>) -> Option<Transmit> {
        let mut batch = Batch {
            used: 0,
            segment: 0,
            count: 0,
            max_count: if fault::point!("proto.transmit.single") { 1 } else { buf.max_segments() },
            full: self.path.datagram_size(),
        };
        if let (Route::Direct(addr), false) = (route, self.trusts(route)) {
            self.addresses.refill(cx.now);
            batch.max_count = 1;
            batch.full = batch.full.min(self.addresses.allowance_for_data(addr));
        }
        let prefix = self.path.prefix();
        let overhead = self.path.overhead;
        let body = prefix + self.head_len();
        while let Some(size) = batch.limit() {
            if size <= overhead + prefix {
                break;
            }
            let space = &mut buf.data_mut()[batch.used..];
            let limit = size - overhead - prefix;
            let total = match self.next_packet(limit, space.get_mut(body..)?, cx) {
                Next::Packet { len } => self.seal(route, len, None, space, cx),
                Next::TooLong => None,
                Next::Nothing => match self.poll_streams(route, (size, batch.full), space, cx) {
                    Turn::Datagram(total) => Some(total),
                    Turn::Over => None,
                },
            };
            let Some(total) = total else { break };
            if !batch.push(total) {
                break;
            }
        }
        // The connection in front has had its share of this batch.
        self.slots.rotate();
        if batch.count > 0 && !self.pay(route, batch.used) {
            debug_assert!(false, "the allowance was looked at");
            return None;
        }
        if batch.count > 0 && self.path.route == Some(route) {
            self.on_data_sent(cx.now);
        }
        (batch.count > 0).then(|| Transmit {
            destination: route.remote(),
            size: batch.used,
            segment_size: (batch.count > 1).then_some(batch.segment),
        })
    }

    /// The next packet in order of urgency: control, datagrams, connections in turn.
    fn next_packet(&mut self, limit: usize, space: &mut [u8], cx: &mut TunnelCx<'_>) -> Next {
        match self.poll_control(limit, space, cx) {
            ControlOut::Packet { len } => return Next::Packet { len },
            ControlOut::TooLong => return Next::TooLong,
            ControlOut::Nothing => {}
        }
        if !self.has_own_streams()
            && let Some(next) = self.poll_datagram(limit, space, cx)
        {
            return next;
        }
        if self.blocked {
            return Next::Nothing;
        }
        if let Some(slot) = self.slots.front_urgent() {
            match self.poll_connection(slot, limit, space, cx) {
                SegmentOut::Packet(len) => return Next::Packet { len },
                SegmentOut::TooLong => return Next::TooLong,
                // Others may have acknowledgements to send.
                SegmentOut::Idle | SegmentOut::PathBlocked => {}
            }
        }
        let mut blocked = 0;
        while let Some(slot) = self.slots.front_ready() {
            let out = match self.waits_for_streams(slot, cx.now) {
                true => SegmentOut::PathBlocked,
                false => self.poll_connection(slot, limit, space, cx),
            };
            match out {
                SegmentOut::Packet(len) => return Next::Packet { len },
                SegmentOut::TooLong => return Next::TooLong,
                SegmentOut::Idle => self.slots.drop_front(),
                SegmentOut::PathBlocked => {
                    blocked += 1;
                    if blocked >= self.slots.ready_len() {
                        self.blocked = true;
                        return Next::Nothing;
                    }
                    self.slots.rotate();
                }
            }
        }
        Next::Nothing
    }

    fn poll_connection(
        &mut self,
        slot: u32,
        limit: usize,
        space: &mut [u8],
        cx: &TunnelCx<'_>,
    ) -> SegmentOut {
        let out = self.with_connection(slot, cx.cfg, cx.now, |c, ccx| {
            let out = c.poll_segment(ccx, limit, space);
            if out == SegmentOut::Idle {
                c.arm_persist(ccx);
            }
            out
        });
        self.slots.touch(slot);
        if std::mem::take(&mut self.path.ack_left) {
            self.slots.release_held();
        }
        out.unwrap_or(SegmentOut::Idle)
    }

    fn poll_datagram(&mut self, limit: usize, space: &mut [u8], cx: &TunnelCx<'_>) -> Option<Next> {
        let len = self.datagrams.front()?.data.len();
        if len > limit {
            if len > self.path.mss() {
                self.datagrams.pop_front(); // the path shrank since it was queued
                return None;
            }
            return Some(Next::TooLong);
        }
        let datagram = self.datagrams.pop_front()?;
        Self::write_datagram(&datagram, space, cx).map(|len| Next::Packet { len })
    }

    /// A datagram as a packet of the draft; its length.
    pub(super) fn write_datagram(
        datagram: &DatagramOut,
        space: &mut [u8],
        cx: &TunnelCx<'_>,
    ) -> Option<usize> {
        let len = datagram.data.len();
        space.get_mut(HEADER_LEN..HEADER_LEN + len)?.copy_from_slice(&datagram.data);
        let hdr = Header {
            flags: Flags::EMPTY,
            protocol: Protocol::Datagram,
            src: cx.local,
            dst: datagram.to,
            src_port: datagram.from_port,
            dst_port: datagram.to_port,
            seq: 0,
            ack: 0,
            window: 0,
        };
        hdr.encode(space, len).ok()
    }

    // ------------------------------------------------------------------ frames around packets

    /// Turns the packet at `space[prefix + 20..]` into a frame. Returns the datagram's length.
    fn seal(
        &mut self,
        route: Route,
        len: usize,
        candidate: Option<usize>,
        space: &mut [u8],
        cx: &TunnelCx<'_>,
    ) -> Option<usize> {
        let prefix = self.write_prefix(route, space, cx)?;
        let session = match candidate {
            Some(i) => self.candidates.get_mut(i).map(|c| &mut c.session),
            None => self.current.as_mut(),
        };
        let frame = space.get_mut(prefix..)?;
        let sealed = match session {
            Some(session) => session.seal(cx.local.node, frame, len)?,
            None => self.seal_without_draft(frame, len, cx.now)?,
        };
        Some(prefix + sealed)
    }

    /// Without keys of the draft: S1, or in clear.
    fn seal_without_draft(&mut self, frame: &mut [u8], len: usize, now: Instant) -> Option<usize> {
        if self.in_s1() {
            return self.seal_s1(frame, len, now);
        }
        if self.allows_draft() { seal_plaintext(frame, len) } else { None }
    }

    pub(super) fn write_prefix(&self, route: Route, space: &mut [u8], cx: &TunnelCx<'_>) -> Option<usize> {
        match route {
            Route::Direct(_) => Some(0),
            Route::Relay(_) => {
                beacon::Message::Relay { src: cx.local.node, dst: self.node, frame: &[] }.encode(space).ok()
            }
        }
    }

    fn emit_frame(
        &mut self,
        route: Route,
        bytes: &[u8],
        buf: &mut TransmitBuf,
        cx: &TunnelCx<'_>,
    ) -> Option<Transmit> {
        let space = buf.data_mut();
        let prefix = self.write_prefix(route, space, cx)?;
        space.get_mut(prefix..prefix + bytes.len())?.copy_from_slice(bytes);
        Some(Transmit { destination: route.remote(), size: prefix + bytes.len(), segment_size: None })
    }

    fn emit_probe(&mut self, route: Route, buf: &mut TransmitBuf, cx: &mut TunnelCx<'_>) -> Option<Transmit> {
        let prefix = self.path.prefix();
        let len = self.poll_probe(buf.data_mut().get_mut(prefix + self.head_len()..)?, cx)?;
        let size = self.seal(route, len, None, buf.data_mut(), cx)?;
        Some(Transmit { destination: route.remote(), size, segment_size: None })
    }

    /// One control packet by a route of its own: the first frame under new keys, which goes where their key
    /// exchange frame came from, or an echo request that tries another route.
    fn emit_control_on(
        &mut self,
        route: Route,
        candidate: Option<usize>,
        buf: &mut TransmitBuf,
        cx: &mut TunnelCx<'_>,
        write: impl FnOnce(&mut Self, &mut [u8], &mut TunnelCx<'_>) -> ControlOut,
    ) -> Option<Transmit> {
        if !self.permits(route) {
            return None;
        }
        let head = if candidate.is_some() { PILS_HEADER_LEN } else { self.head_len() };
        let space = buf.data_mut().get_mut(route.prefix() + head..)?;
        let ControlOut::Packet { len } = write(self, space, cx) else { return None };
        if !self.pay(route, len + OVERHEAD - HEADER_LEN + route.prefix()) {
            return None;
        }
        let size = self.seal(route, len, candidate, buf.data_mut(), cx)?;
        Some(Transmit { destination: route.remote(), size, segment_size: None })
    }

    /// Shows the peer the next of the keys that wait for that, where their key exchange frame came from (rule C2).
    fn show_candidate(&mut self, buf: &mut TransmitBuf, cx: &mut TunnelCx<'_>) -> Option<Transmit> {
        while let Some(i) = self.candidates.iter().position(|c| c.show) {
            let candidate = &mut self.candidates[i];
            candidate.show = false;
            let route = candidate.route;
            if let Some(transmit) =
                self.emit_control_on(route, Some(i), buf, cx, |t, space, cx| t.write_confirmation(space, cx))
            {
                return Some(transmit);
            }
        }
        None
    }

    /// Tells what has come, and what is missing, to where the peer may have moved.
    fn emit_ack_copy(&mut self, buf: &mut TransmitBuf, cx: &mut TunnelCx<'_>) -> Option<Transmit> {
        let slot = self.ack_copy.take()?;
        let route = self.newest_route?;
        let Route::Direct(addr) = route else { return None };
        let limit = self.addresses.allowance_for_data(addr).checked_sub(OVERHEAD)?;
        self.emit_control_on(route, None, buf, cx, |t, space, cx| {
            let out = t.with_connection(slot, cx.cfg, cx.now, |c, ccx| c.copy_of_ack(ccx, limit, space));
            match out {
                Some(SegmentOut::Packet(len)) => ControlOut::Packet { len },
                _ => ControlOut::Nothing,
            }
        })
    }

    /// Asks an unproven address for its token (rule C16).
    fn emit_token(&mut self, buf: &mut TransmitBuf, cx: &mut TunnelCx<'_>) -> Option<Transmit> {
        let addr = self.ask_token.take()?;
        let route = Route::Direct(addr);
        if self.trusts(route) {
            return None;
        }
        if self.addresses.allowance(addr) < OVERHEAD {
            self.addresses.postpone(addr, cx.now);
            return None;
        }
        let random = rand_core::Rng::next_u32(cx.rng);
        let token = self.addresses.token(addr, cx.now, random)?;
        self.repeat_for_move(cx.now);
        self.emit_control_on(route, None, buf, cx, |t, space, cx| t.write_token(token, 0, space, cx))
    }

    /// Sends what the agent asks for: a token to an address of the peer, or what only opens a mapping.
    fn emit_check(&mut self, check: Check, buf: &mut TransmitBuf, cx: &mut TunnelCx<'_>) -> Option<Transmit> {
        match check {
            Check::Token(addr) => {
                self.agent.on_check_sent(cx.now, addr);
                let route = Route::Direct(addr);
                let allowed = match self.trusts(route) {
                    // Our address is new to the peer, which then has to ask as well as to answer.
                    true if self.has_just_moved(cx.now) => OVERHEAD + TOKEN_PAD,
                    true => OVERHEAD,
                    false => self.addresses.allowance(addr),
                };
                if allowed < OVERHEAD {
                    return None;
                }
                let padded = allowed >= OVERHEAD + TOKEN_PAD && self.agent.has_offer();
                let pad = if padded { TOKEN_PAD } else { 0 };
                let token = self.addresses.token(addr, cx.now, rand_core::Rng::next_u32(cx.rng))?;
                self.emit_control_on(route, None, buf, cx, |t, space, cx| {
                    t.write_token(token, pad, space, cx)
                })
            }
            Check::Punch(addr) => {
                // Paid by the budget of the run (spec/nat.md §10.5).
                let size = frame::encode_pilp(buf.data_mut()).ok()?;
                Some(Transmit { destination: addr, size, segment_size: None })
            }
        }
    }

    /// Whether the endpoint should poll this tunnel.
    pub(crate) fn wants_poll(&self, now: Instant, locals: &Locals) -> bool {
        let paced = self.path.paced_until.is_some_and(|t| t > now);
        if self.exchange.has_frame() || self.answers_early(now) {
            return true;
        }
        self.can_send()
            && (self.control.has_work()
                || self.try_route.is_some()
                || self.signal
                || self.ack_copy.is_some()
                || self.follow.is_due()
                || self.ask_token.is_some()
                || self.control.confirm_due()
                || self.candidates.iter().any(|c| c.show)
                || self.probe_waits()
                || self.check_waits(now, locals)
                || !self.datagrams.is_empty()
                || !self.early.is_empty()
                || self.pings.iter().any(|p| p.sent.is_none())
                || (self.slots.any_ready() && !self.blocked && !paced)
                || self.streams_want(now, paced))
    }
}

/// Without keys, where the operator allowed it for this peer (rule C6): `PILT` and the packet.
fn seal_plaintext(frame: &mut [u8], len: usize) -> Option<usize> {
    frame.copy_within(PILS_HEADER_LEN..PILS_HEADER_LEN + len, frame::MAGIC_LEN);
    frame::encode_pilt_header(frame).ok()?;
    debug_assert!(frame::MAGIC_LEN + len < PILS_HEADER_LEN + len + TAG_LEN);
    Some(frame::MAGIC_LEN + len)
}
