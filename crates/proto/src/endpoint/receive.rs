//! Datagrams in: beacon messages, key exchange, sealed and plain frames (spec/tunnel.md §2).

use std::net::SocketAddr;
use std::time::Instant;

use pilotage_nat::ClientEvent;
use pilotage_wire::NodeId;
use pilotage_wire::beacon::Message;
use pilotage_wire::frame::{self, Frame, PILS_HEADER_LEN, Pila};
use pilotage_wire::packet::Packet;

use super::Endpoint;
use super::peers::Held;
use crate::transmit::RecvMeta;
use crate::tunnel::{ExchangeFate, Inner, OpenError, Route, Tunnel};

/// First bytes below this are beacon messages (draft-01 facts §4).
const BEACON_TYPES: u8 = 0x10;

impl Endpoint {
    /// Takes one received datagram; sealed frames are opened in place.
    pub fn handle_datagram(&mut self, now: Instant, meta: &RecvMeta, data: &mut [u8]) {
        self.stats.datagrams_received += 1;
        self.stats.bytes_received += data.len() as u64;
        match data.first() {
            None => self.stats.drop_malformed += 1,
            Some(&first) if first < BEACON_TYPES => self.on_beacon(now, meta.remote, data),
            Some(_) => self.on_frame(now, Route::Direct(meta.remote), data),
        }
    }

    fn on_beacon(&mut self, now: Instant, from: SocketAddr, data: &mut [u8]) {
        let Ok(message) = Message::decode(data) else {
            self.stats.drop_malformed += 1;
            return;
        };
        let before = self.beacon.observed();
        let event = self.beacon.handle(from, &message, now);
        self.follow_beacon(now);
        match event {
            ClientEvent::Observed(_) => {
                self.on_observed();
                if before.is_some() && self.beacon.observed() != before {
                    self.on_mapping_changed(now);
                }
            }
            ClientEvent::Punch(to) => self.punches.push_back_bounded(self.towards(to)),
            ClientEvent::Relayed { frame, src } => {
                // What the beacon says about the sender does not count: the frame has a sender id of its own.
                if let Some(inner) = data.get_mut(frame) {
                    // Whichever beacon it came by: for tunnels there is one relay, the primary.
                    let route = Route::Relay(self.beacon_addr.unwrap_or(from));
                    // An S1 frame names nobody: for answers without state the beacon's word on the sender has to do.
                    if self.secure.is_some() && pilotage_wire::s1::Kind::of(inner).is_some() {
                        self.on_s1(now, route, Some(src), inner);
                    } else {
                        self.on_frame(now, route, inner);
                    }
                }
            }
            ClientEvent::Ignored => self.stats.drop_beacon += 1,
        }
    }

    fn on_frame(&mut self, now: Instant, route: Route, data: &mut [u8]) {
        // The sealed frame is the hot case and needs the bytes mutable.
        if let Some((sender, nonce, ciphertext)) = frame::split_pils_mut(data) {
            self.on_pils(now, route, sender, &nonce, ciphertext);
            return;
        }
        match frame::decode(data) {
            Ok(Frame::Pila(pila)) => self.on_pila(now, route, &pila),
            Ok(Frame::Pilk { sender, x25519 }) => self.on_pilk(now, route, sender, x25519),
            Ok(Frame::Pilt { packet }) => self.on_pilt(now, route, packet),
            Ok(Frame::Pilp) => {} // opened a NAT mapping by coming here; nothing to read (draft-01 facts §4)
            Ok(Frame::Pils { .. }) | Err(_) => self.on_s1(now, route, None, data),
        }
    }

    fn on_pils(
        &mut self,
        now: Instant,
        route: Route,
        sender: NodeId,
        nonce: &[u8; 12],
        ciphertext: &mut [u8],
    ) {
        if self.is_own(sender) {
            // What we send ourselves goes through no socket: a frame of ours reflected, or a clash of ids.
            self.stats.drop_unauthentic += 1;
            return;
        }
        let Some(&index) = self.by_node.get(&sender) else {
            self.stats.drop_no_session += 1;
            let len = PILS_HEADER_LEN + ciphertext.len();
            self.request_lookup(now, sender, [0; 32], route, Held::Nothing, len);
            return;
        };
        let Some((tunnel, mut cx)) = split!(self, index, now) else { return };
        tunnel.on_received(route, PILS_HEADER_LEN + ciphertext.len(), now);
        if tunnel.current.is_none() && !tunnel.reads_draft() {
            cx.stats.drop_no_session += 1;
            tunnel.on_frame_without_keys(route, &mut cx);
            self.mark_dirty(index, now);
            return;
        }
        let len = PILS_HEADER_LEN + ciphertext.len();
        let inner = match tunnel.open(sender, nonce, ciphertext, route, &mut cx) {
            Ok(plain) => {
                tunnel.addresses.earn(len);
                tunnel.on_packet(plain, &mut cx)
            }
            Err(OpenError::Replay) => {
                cx.stats.drop_replay += 1;
                return;
            }
            Err(OpenError::Unauthentic) => {
                cx.stats.drop_unauthentic += 1;
                tunnel.on_unopened(route, &mut cx);
                self.mark_dirty(index, now);
                return;
            }
        };
        tunnel.blocked = false;
        self.on_inner(now, index, inner);
        self.mark_dirty(index, now);
    }

    /// Rule C6: plaintext counts only from a peer that the operator allowed it for, and from where we send to.
    fn on_pilt(&mut self, now: Instant, route: Route, packet: &[u8]) {
        let Ok(decoded) = Packet::decode(packet) else {
            self.stats.drop_malformed += 1;
            return;
        };
        let index = self.by_node.get(&decoded.header.src.node).copied();
        let allowed = !self.is_own(decoded.header.src.node)
            && index.is_some_and(|i| {
                self.tunnel(i).is_some_and(|t| {
                    t.policy.allow_plaintext && t.allows_draft() && t.introduced == Some(route.remote())
                })
            });
        let (Some(index), true) = (index, allowed) else {
            self.stats.drop_not_allowed += 1;
            return;
        };
        self.on_plain(now, index, packet);
    }

    pub(super) fn on_plain(&mut self, now: Instant, index: u32, packet: &[u8]) {
        let Some((tunnel, mut cx)) = split!(self, index, now) else { return };
        let inner = tunnel.on_packet(packet, &mut cx);
        self.on_inner(now, index, inner);
        self.mark_dirty(index, now);
    }

    pub(super) fn on_inner(&mut self, now: Instant, index: u32, inner: Inner<'_>) {
        match inner {
            Inner::Done => {}
            Inner::Connection(slot) => {
                if let Some(tunnel) = self.tunnel_mut(index) {
                    tunnel.on_segment(slot);
                    tunnel.slots.touch(slot);
                }
            }
            Inner::Syn(hdr) => {
                if self.may_enter(now, index, &hdr, &[]) {
                    self.on_syn(now, index, &hdr);
                }
            }
            Inner::Datagram(hdr, payload) => {
                if self.may_enter(now, index, &hdr, payload) {
                    self.on_datagram(index, &hdr, payload);
                }
            }
        }
    }

    fn on_pila(&mut self, now: Instant, route: Route, pila: &Pila<'_>) {
        let known = self.by_node.get(&pila.sender).copied();
        let expected = known.and_then(|i| self.tunnel(i)).is_some_and(|t| is_expected(t, route));
        if !self.exchange_limiter.allow(route.remote(), now, expected) {
            self.stats.drop_rate_limited += 1;
            return;
        }
        if pila.sender == self.local.node {
            self.stats.drop_bad_key_exchange += 1; // our own frame reflected, or a clash of ids
            return;
        }
        let len = frame::PILA_LEN + pila.trailer.len();
        let keyed = known.and_then(|i| self.tunnel(i)).is_some_and(|t| t.key.is_some());
        let Some(index) = known.filter(|_| keyed) else {
            let mut stored = vec![0; frame::PILA_LEN + pila.trailer.len().min(64)];
            let copy = Pila { trailer: &pila.trailer[..pila.trailer.len().min(64)], ..*pila };
            if frame::encode_pila(&copy, &mut stored).is_ok() {
                self.request_lookup(now, pila.sender, pila.ed25519, route, Held::Pila(stored), len);
            }
            return;
        };
        let Some((tunnel, mut cx)) = split!(self, index, now) else { return };
        tunnel.on_received(route, len, now);
        let fate = tunnel.on_pila(pila, route, &mut cx);
        self.count_fate(fate);
        self.mark_dirty(index, now);
    }

    fn on_pilk(&mut self, now: Instant, route: Route, sender: NodeId, x25519: [u8; 32]) {
        if !self.exchange_limiter.allow(route.remote(), now, false) {
            self.stats.drop_rate_limited += 1;
            return;
        }
        let known = self.by_node.get(&sender).filter(|_| !self.is_own(sender));
        let Some(&index) = known else {
            self.stats.drop_not_allowed += 1;
            return;
        };
        let Some((tunnel, mut cx)) = split!(self, index, now) else { return };
        tunnel.on_received(route, frame::PILK_LEN, now);
        let fate = tunnel.on_pilk(x25519, route, &mut cx);
        self.count_fate(fate);
        self.mark_dirty(index, now);
    }

    pub(super) fn count_fate(&mut self, fate: ExchangeFate) {
        match fate {
            ExchangeFate::Accepted => {}
            ExchangeFate::BadKey | ExchangeFate::BadSignature => self.stats.drop_bad_key_exchange += 1,
            ExchangeFate::NotAllowed => self.stats.drop_not_allowed += 1,
        }
    }
}

/// The frame comes from where we send to, so it is likely the answer that we wait for.
fn is_expected(tunnel: &Tunnel, route: Route) -> bool {
    tunnel.path.route == Some(route) || tunnel.introduced == Some(route.remote())
}
