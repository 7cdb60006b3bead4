//! In-tunnel echo (protocol 0x03, port 0): ping, key confirmation, MTU probes (spec/tunnel.md §7).

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use pilotage_fault as fault;
use pilotage_wire::packet::{Flags, HEADER_LEN, Header, Protocol};

use super::{OVERHEAD, Route, Tunnel, TunnelCx};
use crate::congestion::Controller;
use crate::connection::Connection;
use crate::event::Event;

/// Port of the echo (draft "Control").
pub(super) const ECHO_PORT: u16 = 0;
/// Source port of our requests: never 0, because two reference peers answer each other for ever then
/// (draft-01 facts §8).
const REQUEST_PORT: u16 = 49_152;
/// Source port of requests that carry a token in their sequence number and no payload (rule C16): the shortest packet
/// that every peer answers, because a stranger may be sent no more than came from it.
const TOKEN_PORT: u16 = 49_153;
/// Padding of a token to a candidate of a Pilotage peer: what another token to us costs, headers of IPv4 and UDP
/// included. So the peer may answer ours and ask for its own, although our address has proven nothing to it yet.
pub(super) const TOKEN_PAD: usize = OVERHEAD + 28;
/// Echo requests of one peer that wait for our answer.
const REPLIES_MAX: usize = 64;
/// Our own requests that wait for an answer.
pub(crate) const PINGS_MAX: usize = 256;
/// A request without an answer is forgotten after this long.
const PING_KEPT: Duration = Duration::from_secs(60);
/// Largest echo that is answered: more would make us a load amplifier for the reverse path.
const ECHO_MAX: usize = 65_507 - OVERHEAD;
/// Payload of a request: marker and token. A Pilotage peer answers a probe with just these.
const TOKEN_LEN: usize = 16;
const PING_MARK: [u8; 8] = *b"PLTGping";
const PROBE_MARK: [u8; 8] = *b"PLTGprob";
/// Token of the echo that confirms new keys.
const CONFIRM_TOKEN: u64 = 0;
/// Echo requests under a candidate, 250 ms apart at first.
const CONFIRM_TRIES: u32 = 6;

/// One echo request of ours.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PendingPing {
    pub(crate) token: u64,
    /// When it left; `None` while it waits for keys.
    pub(crate) sent: Option<Instant>,
}

/// A datagram-size probe under way.
#[derive(Debug)]
pub(crate) struct MtuProbe {
    token: u64,
    size: usize,
    sent: bool,
}

/// Answers owed and confirmations due.
#[derive(Debug, Default)]
pub(crate) struct ControlQueue {
    replies: VecDeque<(Header, Vec<u8>)>,
    /// Answers that go back by the way on which the request came (RFC 9000 §8.2.2).
    token_answers: VecDeque<(Route, Header)>,
    /// Headers without payload: resets and answers for closed connections.
    pub(crate) bare: VecDeque<Header>,
    /// When to show the peer its new keys.
    pub(crate) confirm_at: Option<Instant>,
    pub(crate) confirm_tries: u32,
    confirm_now: bool,
    /// An answer that nobody asked for is to be sent, for the credit that it gives us.
    credit_now: bool,
}

impl ControlQueue {
    pub(crate) fn has_work(&self) -> bool {
        self.waiting() > 0 || !self.bare.is_empty() || self.credit_now
    }

    /// Packets that wait.
    pub(crate) fn queued(&self) -> usize {
        self.waiting() + self.bare.len()
    }

    /// Answers that wait.
    fn waiting(&self) -> usize {
        self.replies.len() + self.token_answers.len()
    }

    pub(crate) fn confirm_due(&self) -> bool {
        self.confirm_now
    }

    pub(crate) fn clear(&mut self) {
        self.replies.clear();
        self.token_answers.clear();
        self.bare.clear();
        self.confirm_at = None;
        self.confirm_now = false;
    }

    /// Sends a packet that needs no answer.
    pub(crate) fn give_credit(&mut self) {
        self.credit_now = true;
    }

    /// Queues a payload-free packet; dropped at the bound, since each is only a courtesy.
    pub(crate) fn push_bare(&mut self, hdr: Header) {
        if self.bare.len() < REPLIES_MAX && !fault::point!("proto.control.courtesies_full") {
            self.bare.push_back(hdr);
        }
    }
}

/// A control packet to write.
pub(super) enum ControlOut {
    Packet { len: usize },
    TooLong,
    Nothing,
}

impl Tunnel {
    /// Takes an echo request of the application.
    pub(crate) fn queue_ping(&mut self, token: u64) -> bool {
        if self.pings.len() >= PINGS_MAX {
            self.pings.pop_front();
        }
        self.pings.push_back(PendingPing { token, sent: None });
        true
    }

    /// A control packet of the peer.
    pub(crate) fn on_control(&mut self, hdr: &Header, payload: &[u8], cx: &mut TunnelCx<'_>) {
        if hdr.flags.contains(Flags::ACK) {
            if fault::point!("proto.control.lose_answer") {
                return;
            }
            if hdr.dst_port == TOKEN_PORT {
                self.on_token(hdr.seq, cx);
                return;
            }
            if hdr.dst_port == super::offer::OFFER_PORT {
                self.on_offer(payload, cx);
                return;
            }
            self.on_echo_answer(payload, cx);
            return;
        }
        // Never answer a request from port 0, and only the echo port exists (draft-01 facts §8).
        let echo = hdr.dst_port == ECHO_PORT && hdr.src_port != 0;
        if hdr.src_port == TOKEN_PORT {
            self.proof_given();
        }
        let full = fault::point!("proto.control.answers_full");
        if !echo || full || payload.len() > ECHO_MAX || self.control.waiting() >= REPLIES_MAX {
            cx.stats.drop_segment += 1;
            return;
        }
        let answer = Header {
            flags: Flags::ACK,
            protocol: Protocol::Control,
            src: hdr.dst,
            dst: hdr.src,
            src_port: ECHO_PORT,
            dst_port: hdr.src_port,
            seq: hdr.seq,
            ack: hdr.seq.wrapping_add(1),
            window: 0,
        };
        // Only the one-way size of a probe matters; the short answer spares the reverse path.
        let short = payload.starts_with(&PROBE_MARK) && payload.len() > TOKEN_LEN;
        let body = if short { &payload[..TOKEN_LEN] } else { payload };
        // A token may be padded, which pays for our answer and for a question of ours (spec/nat.md §10.3).
        if hdr.src_port == TOKEN_PORT
            && body.len() <= TOKEN_PAD
            && let Some(route) = self.arrived
        {
            self.control.token_answers.push_back((route, answer));
            return;
        }
        self.control.replies.push_back((answer, body.to_vec()));
    }

    /// The local interface refused a datagram for its size.
    pub(crate) fn on_too_big(&mut self, size: usize) {
        self.mtu_probe = self.mtu_probe.take().filter(|p| p.size < size);
        self.path.mtu.on_too_big(size);
        self.path.update_mss();
    }

    fn on_echo_answer(&mut self, payload: &[u8], cx: &mut TunnelCx<'_>) {
        let Some(token) = token_of(payload) else { return };
        if payload.starts_with(&PROBE_MARK) {
            if self.mtu_probe.as_ref().is_some_and(|p| p.token == token && p.sent)
                && let Some(probe) = self.mtu_probe.take()
            {
                self.path.mtu.on_probe_acked(probe.size, cx.now);
                self.path.update_mss();
            }
            return;
        }
        let Some(i) = self.pings.iter().position(|p| p.token == token && p.sent.is_some()) else { return };
        if let Some(PendingPing { sent: Some(sent), .. }) = self.pings.remove(i) {
            let rtt = cx.now.saturating_duration_since(sent);
            self.path.rtt.update(rtt);
            cx.events.push_back(Event::Pong { peer: self.address, token, rtt });
        }
    }

    pub(super) fn on_control_timeout(&mut self, cx: &mut TunnelCx<'_>) {
        while self
            .pings
            .front()
            .is_some_and(|p| p.sent.is_some_and(|t| cx.now.saturating_duration_since(t) > PING_KEPT))
        {
            self.pings.pop_front();
        }
        if self.control.confirm_at.is_some_and(|t| t <= cx.now) {
            self.control.confirm_now = true;
            self.candidates.iter_mut().for_each(|c| c.show = true);
            self.control.confirm_tries += 1;
            let tries = self.control.confirm_tries;
            let wait = Duration::from_millis(250) * (1 << tries.min(4));
            self.control.confirm_at = (tries < CONFIRM_TRIES).then(|| cx.now + wait);
        }
        if self.path.mtu.timeout().is_some_and(|t| t <= cx.now) {
            self.path.mtu.handle_timeout(cx.now);
            self.mtu_probe = None;
            self.path.update_mss();
        }
    }

    /// Begins an MTU probe where there is traffic and a new size to try (RFC 8899; spec/recovery.md, MTU).
    pub(super) fn maybe_probe_mtu(&mut self, cx: &mut TunnelCx<'_>) {
        const TRAFFIC: u64 = 16 * 1024;
        if self.mtu_probe.is_some() || self.path.mtu.is_complete() || self.path.bytes_sent < TRAFFIC {
            return;
        }
        if !self.confirmed() {
            return;
        }
        self.path.mtu.set_rtt(self.path.rtt.smoothed());
        // No larger than the window, and not while data is being repaired: the probe would take its place in the queue.
        let window = usize::try_from(self.path.controller.window()).unwrap_or(usize::MAX);
        if self.slots.any(Connection::is_repairing) || self.mux.as_ref().is_some_and(|m| m.is_repairing()) {
            return;
        }
        if let Some(size) = self.path.mtu.poll_probe_within(cx.now, window.saturating_add(OVERHEAD)) {
            let token = u64::from_be_bytes(random8(cx));
            self.mtu_probe = Some(MtuProbe { token, size, sent: false });
        }
    }

    /// Writes the next control packet, if any, with at most `limit` bytes of payload.
    pub(super) fn poll_control(
        &mut self,
        limit: usize,
        space: &mut [u8],
        cx: &mut TunnelCx<'_>,
    ) -> ControlOut {
        if self.control.confirm_now {
            if limit < TOKEN_LEN {
                return ControlOut::TooLong;
            }
            self.control.confirm_now = false;
            if fault::point!("proto.control.lose_confirmation") {
                return ControlOut::Nothing;
            }
            if self.keyed() && !self.confirmed() {
                return self.write_confirmation(space, cx);
            }
            self.control.confirm_at = None;
        }
        if std::mem::take(&mut self.control.credit_now) {
            return self.write_credit(space, cx);
        }
        if let Some(hdr) = self.control.bare.pop_front() {
            return encoded(&hdr, 0, space);
        }
        if let Some(offer) = self.poll_offer(limit, space, cx) {
            return offer;
        }
        if let Some((hdr, body)) = self.control.replies.front() {
            if body.len() > limit.max(self.path.mss()) {
                self.control.replies.pop_front(); // larger than our way back carries
                return ControlOut::Nothing;
            }
            if body.len() > limit {
                return ControlOut::TooLong;
            }
            let out = match space.get_mut(HEADER_LEN..HEADER_LEN + body.len()) {
                Some(target) => {
                    target.copy_from_slice(body);
                    encoded(hdr, body.len(), space)
                }
                None => ControlOut::Nothing,
            };
            self.control.replies.pop_front();
            return out;
        }
        if let Some(i) = self.pings.iter().position(|p| p.sent.is_none()) {
            if limit < TOKEN_LEN {
                return ControlOut::TooLong;
            }
            self.pings[i].sent = Some(cx.now);
            let token = self.pings[i].token;
            return self.write_echo(&PING_MARK, token, TOKEN_LEN, space, cx);
        }
        ControlOut::Nothing
    }

    /// A probe is to leave as soon as no data may.
    pub(super) fn probe_waits(&self) -> bool {
        self.mtu_probe.as_ref().is_some_and(|p| !p.sent) && self.path.route.is_some_and(|r| self.trusts(r))
    }

    /// The probe that is to leave now, as (datagram size, packet length): it is a batch of its own.
    pub(super) fn poll_probe(&mut self, space: &mut [u8], cx: &mut TunnelCx<'_>) -> Option<usize> {
        let prefix = self.path.prefix();
        let probe = self.mtu_probe.as_mut().filter(|p| !p.sent)?;
        probe.sent = true;
        let (token, len) = (probe.token, probe.size.checked_sub(self.path.overhead + prefix)?);
        match self.write_echo(&PROBE_MARK, token, len.max(TOKEN_LEN), space, cx) {
            ControlOut::Packet { len } => Some(len),
            _ => None,
        }
    }

    /// An echo request whose answer nobody waits for: that it opens at the peer is what counts.
    pub(super) fn write_confirmation(&self, space: &mut [u8], cx: &TunnelCx<'_>) -> ControlOut {
        self.write_echo(&PING_MARK, CONFIRM_TOKEN, TOKEN_LEN, space, cx)
    }

    /// An answer without a question: peers ignore it, and may send us as many bytes (rule C16).
    fn write_credit(&self, space: &mut [u8], cx: &TunnelCx<'_>) -> ControlOut {
        let hdr = Header {
            flags: Flags::ACK,
            protocol: Protocol::Control,
            src: cx.local,
            dst: self.address,
            src_port: ECHO_PORT,
            dst_port: REQUEST_PORT,
            seq: 0,
            ack: 0,
            window: 0,
        };
        encoded(&hdr, 0, space)
    }

    /// The next answer to a request for our token, with the way that it takes.
    pub(super) fn next_token_answer(&mut self) -> Option<(Route, Header)> {
        self.control.token_answers.pop_front()
    }

    /// A packet without payload.
    pub(super) fn write_bare(hdr: &Header, space: &mut [u8]) -> ControlOut {
        encoded(hdr, 0, space)
    }

    /// A request for the token of an address.
    pub(super) fn write_token(
        &self,
        token: u32,
        pad: usize,
        space: &mut [u8],
        cx: &TunnelCx<'_>,
    ) -> ControlOut {
        let Some(payload) = space.get_mut(HEADER_LEN..HEADER_LEN + pad) else { return ControlOut::Nothing };
        payload.fill(0);
        let hdr = Header {
            flags: Flags::EMPTY,
            protocol: Protocol::Control,
            src: cx.local,
            dst: self.address,
            src_port: TOKEN_PORT,
            dst_port: ECHO_PORT,
            seq: token,
            ack: 0,
            window: 0,
        };
        encoded(&hdr, pad, space)
    }

    fn write_echo(
        &self,
        mark: &[u8; 8],
        token: u64,
        len: usize,
        space: &mut [u8],
        cx: &TunnelCx<'_>,
    ) -> ControlOut {
        let Some(payload) = space.get_mut(HEADER_LEN..HEADER_LEN + len) else { return ControlOut::Nothing };
        payload.fill(0);
        payload[..8].copy_from_slice(mark);
        payload[8..TOKEN_LEN].copy_from_slice(&token.to_be_bytes());
        let hdr = Header {
            flags: Flags::EMPTY,
            protocol: Protocol::Control,
            src: cx.local,
            dst: self.address,
            src_port: REQUEST_PORT,
            dst_port: ECHO_PORT,
            seq: token as u32,
            ack: 0,
            window: 0,
        };
        encoded(&hdr, len, space)
    }
}

pub(super) fn encoded(hdr: &Header, payload_len: usize, space: &mut [u8]) -> ControlOut {
    match hdr.encode(space, payload_len) {
        Ok(len) => ControlOut::Packet { len },
        Err(_) => ControlOut::Nothing,
    }
}

fn token_of(payload: &[u8]) -> Option<u64> {
    if !payload.starts_with(&PING_MARK) && !payload.starts_with(&PROBE_MARK) {
        return None;
    }
    payload.get(8..TOKEN_LEN)?.try_into().ok().map(u64::from_be_bytes)
}

fn random8(cx: &mut TunnelCx<'_>) -> [u8; 8] {
    use rand_core::Rng;
    let mut bytes = [0u8; 8];
    cx.rng.fill_bytes(&mut bytes);
    bytes
}
