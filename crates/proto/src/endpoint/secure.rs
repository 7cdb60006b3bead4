//! Datagrams of S1: to which tunnel they go, and what becomes of the frames in them (spec/secure.md §12).

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use pilotage_wire::NodeId;
use pilotage_wire::beacon;
use pilotage_wire::packet::{Flags, Header, Protocol};
use pilotage_wire::s1::Kind;
use pilotage_wire::s1::data;
use pilotage_wire::s1::frames::{Frame, Frames, LEGACY};
use pilotage_wire::s1::handshake::Reset;

use super::Endpoint;
use super::peers::Held;
use crate::s1::{Incoming, OpenError, PeerPrekey, Refusal, Source, Verdict};
use crate::secure::{Mode, Secure, SecureConfig, SecureMode};
use crate::tunnel::{Brought, Inner, Route};

/// Codes of CLOSE.
const MALFORMED: u64 = 1;
const FLOW_CONTROL: u64 = 3;
const INDICES: u64 = 6;

impl Endpoint {
    /// Speaks S1 from now on, as `config.mode` says. `seed` are 32 bytes of the operating system's random source, others
    /// than those of [`Endpoint::new`]. Refused (`false`) once a peer was introduced, and for [`SecureMode::Draft`].
    pub fn enable_s1(&mut self, now: Instant, config: SecureConfig, seed: &[u8; 32]) -> bool {
        if !self.by_node.is_empty() || config.mode == SecureMode::Draft {
            return false;
        }
        let secure = Secure::new(config, self.identity.clone(), self.local, seed, &self.cfg, now);
        self.secure = Some(Box::new(secure));
        true
    }

    /// Our prekey with its certificate, to be told to others; `None` without S1.
    pub fn prekey(&self) -> Option<PeerPrekey> {
        self.secure.as_ref().map(|secure| secure.node.prekey())
    }

    /// Makes a new prekey if half of the present one's life is over. Whether it did: then the record is to be published
    /// again. To be called now and then, once an hour is enough.
    pub fn rotate_prekey(&mut self, now: Instant) -> bool {
        let Some(secure) = self.secure.as_deref_mut() else { return false };
        let (node, mut cx) = secure.parts(now);
        node.rotate_prekey(&mut cx)
    }

    /// The host slept so long, while the monotonic clock stood still. What S1 takes for the time of day is put forward:
    /// certificates and prekeys of ours and of peers have aged.
    pub fn slept(&mut self, slept: Duration) {
        if let Some(secure) = self.secure.as_deref_mut() {
            secure.slept(slept);
        }
    }

    /// Which modes we speak.
    pub fn secure_mode(&self) -> SecureMode {
        self.secure.as_ref().map_or(SecureMode::Draft, |secure| secure.mode)
    }

    /// The least mode that peers are spoken to in, if nothing more is known of them.
    pub(super) fn floor_of_all(&self, node: NodeId) -> Mode {
        if self.secure_mode() == SecureMode::S1 && !self.is_own(node) { Mode::S1 } else { Mode::Draft }
    }

    /// What a signed record of a peer demands (spec/secure.md §12.1): it is spoken to in no lesser mode from now on. Keys of the draft in
    /// use are given up then, and only open what is under way once S1 has replaced them. Whether the peer has this key: nothing changes if
    /// it has another one, is unknown, or is ourselves.
    pub fn demand_mode(&mut self, now: Instant, node: NodeId, key: &[u8; 32], least: Mode) -> bool {
        let index = self.by_node.get(&node).copied().filter(|_| !self.is_own(node));
        let Some((tunnel, mut cx)) = index.and_then(|index| split!(self, index, now)) else { return false };
        if tunnel.key != Some(*key) {
            return false;
        }
        tunnel.demand(least, &mut cx);
        let index = tunnel.index;
        self.mark_dirty(index, now);
        true
    }

    /// A datagram that is none of the draft's. `relayed` is whose it is, as the relay says.
    pub(super) fn on_s1(&mut self, now: Instant, route: Route, relayed: Option<NodeId>, datagram: &mut [u8]) {
        let kind = Kind::of(datagram);
        let (Some(kind), Some(secure)) = (kind, self.secure.as_deref_mut()) else {
            self.stats.drop_malformed += 1;
            return;
        };
        let source = Source { addr: route.remote(), relayed };
        match kind {
            Kind::Data => self.on_s1_data(now, route, &source, datagram),
            Kind::Initiation => {
                let (node, mut cx) = secure.parts(now);
                match node.handle_initiation(datagram, &source, &mut cx) {
                    Verdict::Refused(refusal) => self.count_refusal(refusal),
                    Verdict::Answer(answer) => self.answer(&source, answer),
                    Verdict::Incoming(incoming) => self.on_incoming(now, route, datagram.len(), incoming),
                }
            }
            Kind::Reset => {
                let index = Reset::decode(datagram).ok().and_then(|r| secure.remotes.get(&r.index).copied());
                let known = index.and_then(|index| split!(self, index, now).map(|parts| (index, parts)));
                let Some((index, (tunnel, mut cx))) = known else {
                    self.stats.drop_no_session += 1;
                    return;
                };
                if !tunnel.on_s1_reset(datagram, &mut cx) {
                    cx.stats.drop_unauthentic += 1;
                }
                self.mark_dirty(index, now);
            }
            Kind::Response | Kind::Cookie | Kind::NewPrekey => {
                let index = secure.node.route(datagram);
                let known = index.and_then(|index| split!(self, index, now).map(|parts| (index, parts)));
                let Some((index, (tunnel, mut cx))) = known else {
                    self.stats.drop_no_session += 1;
                    return;
                };
                tunnel.on_received(route, datagram.len(), now);
                let answered = tunnel.on_s1_answer(kind, datagram, route, &mut cx);
                if let Err(refusal) = answered {
                    self.count_refusal(refusal);
                }
                self.mark_dirty(index, now);
            }
        }
    }

    fn count_refusal(&mut self, refusal: Refusal) {
        let counter = match refusal {
            Refusal::Malformed(_) => &mut self.stats.drop_malformed,
            Refusal::Rate | Refusal::Full => &mut self.stats.drop_rate_limited,
            Refusal::Replay => &mut self.stats.drop_replay,
            Refusal::Unexpected => &mut self.stats.drop_no_session,
            _ => &mut self.stats.drop_bad_key_exchange,
        };
        *counter += 1;
    }

    /// Sends back to where something came from, without any state: shorter than what it answers.
    fn answer(&mut self, source: &Source, answer: Vec<u8>) {
        let bytes = match source.relayed {
            None => answer,
            Some(node) => {
                let relayed = beacon::Message::Relay { src: self.local.node, dst: node, frame: &answer };
                let mut bytes = vec![0; answer.len() + 16];
                let Ok(len) = relayed.encode(&mut bytes) else { return };
                bytes.truncate(len);
                bytes
            }
        };
        self.punches.push_datagram(source.addr, bytes);
    }

    /// Somebody who proved an identity would like a session with us. Whose node id it is we know, or have to ask.
    fn on_incoming(&mut self, now: Instant, route: Route, len: usize, incoming: Box<Incoming>) {
        let node = incoming.address().node;
        if self.is_own(node) {
            self.stats.drop_bad_key_exchange += 1;
            return;
        }
        let known = self.by_node.get(&node).copied();
        let key = known.and_then(|index| self.tunnel(index)).and_then(|tunnel| tunnel.key);
        match (known, key) {
            (Some(index), Some(key)) if key == *incoming.identity() => {
                self.take_incoming(now, index, route, len, incoming);
            }
            (_, Some(_)) => self.stats.drop_bad_key_exchange += 1,
            _ => {
                let presented = *incoming.identity();
                self.request_lookup(now, node, presented, route, Held::Initiation(incoming), len);
            }
        }
    }

    /// The identity is that of the tunnel's peer.
    pub(super) fn take_incoming(
        &mut self,
        now: Instant,
        index: u32,
        route: Route,
        len: usize,
        incoming: Box<Incoming>,
    ) {
        let Some((tunnel, mut cx)) = split!(self, index, now) else { return };
        if tunnel.key != Some(*incoming.identity()) {
            self.stats.drop_bad_key_exchange += 1;
            return;
        }
        tunnel.on_received(route, len, now);
        match tunnel.on_s1_incoming(*incoming, route, &mut cx) {
            Ok(Brought { displaced, early }) => {
                if let Some((slot, displaced)) = displaced
                    && let Some(tunnel) = self.tunnel_mut(slot)
                {
                    tunnel.drop_unconfirmed(displaced);
                }
                self.on_early(now, index, &early.unwrap_or_default());
            }
            Err(refusal) => self.count_refusal(refusal),
        }
        self.mark_dirty(index, now);
    }

    /// Early data that was taken: datagrams.
    fn on_early(&mut self, now: Instant, index: u32, frames: &[u8]) {
        for frame in Frames::new(frames).flatten() {
            if let Frame::Datagram { source, destination, data, .. } = frame
                && let Some(tunnel) = self.tunnel(index)
            {
                let hdr = datagram_header(tunnel.address, self.local, source, destination);
                self.stats.early_taken += 1;
                self.on_inner(now, index, Inner::Datagram(hdr, data));
            }
        }
    }

    // ------------------------------------------------------------------ data frames

    fn on_s1_data(&mut self, now: Instant, route: Route, source: &Source, datagram: &mut [u8]) {
        let Some(secure) = self.secure.as_deref_mut() else { return };
        let Some(index) = data::receiver(datagram).and_then(|index| secure.node.slot(index)) else {
            self.stats.drop_no_session += 1;
            let (node, mut cx) = secure.parts(now);
            if let Some(reset) = node.reset(datagram, source, &mut cx) {
                self.answer(source, reset);
            }
            return;
        };
        let Some((tunnel, mut cx)) = split!(self, index, now) else { return };
        tunnel.on_received(route, datagram.len(), now);
        let (opened, current) = match tunnel.open_s1(datagram, route, &mut cx) {
            Ok(opened) => opened,
            Err(error) => {
                let counter = match error {
                    OpenError::Replay => &mut self.stats.drop_replay,
                    OpenError::Malformed => &mut self.stats.drop_malformed,
                    OpenError::UnknownIndex | OpenError::Exhausted => &mut self.stats.drop_no_session,
                    OpenError::Unauthentic => &mut self.stats.drop_unauthentic,
                };
                *counter += 1;
                return;
            }
        };
        tunnel.addresses.earn(datagram.len());
        tunnel.blocked = false;
        let frames = &datagram[opened.start..opened.end];
        if let [LEGACY, packet @ ..] = frames
            && !packet.is_empty()
        {
            tunnel.on_legacy_packet(&opened, &cx);
            let inner = tunnel.on_packet(packet, &mut cx);
            self.on_inner(now, index, inner);
        } else if Frames::check(frames).is_err() {
            self.end_with(now, index, MALFORMED);
        } else {
            match tunnel.on_stream_frames(&opened, frames, &cx) {
                Some(Ok(false)) => {}
                Some(Err(code)) => self.end_with(now, index, code),
                Some(Ok(true)) => self.on_frames(now, index, route, frames, (current, true)),
                None => self.on_frames(now, index, route, frames, (current, false)),
            }
        }
        self.mark_dirty(index, now);
    }

    /// All that is neither one packet of the draft nor of the streams' layer. Malformed packets were looked for before
    /// (spec/secure.md §11.1). `streams`: those of the streams were taken.
    #[cold]
    fn on_frames(
        &mut self,
        now: Instant,
        index: u32,
        route: Route,
        frames: &[u8],
        (current, streams): (bool, bool),
    ) {
        for frame in Frames::new(frames).flatten() {
            match frame {
                Frame::Legacy { packet, .. } => {
                    let Some((tunnel, mut cx)) = split!(self, index, now) else { return };
                    let inner = tunnel.on_packet(packet, &mut cx);
                    self.on_inner(now, index, inner);
                }
                Frame::Datagram { source, destination, data, .. } => {
                    let Some(tunnel) = self.tunnel(index) else { return };
                    let hdr = datagram_header(tunnel.address, self.local, source, destination);
                    self.on_inner(now, index, Inner::Datagram(hdr, data));
                }
                Frame::Stream(_) if streams => {}
                // We announced no streams and no windows (§12.6).
                Frame::Stream(_) => {
                    self.end_with(now, index, FLOW_CONTROL);
                    return;
                }
                frame if current && !self.on_steering(now, index, route, &frame) => return,
                _ => {}
            }
        }
    }

    /// A frame about the session in use. `false` if that is over.
    fn on_steering(&mut self, now: Instant, index: u32, route: Route, frame: &Frame<'_>) -> bool {
        let Some((tunnel, mut cx)) = split!(self, index, now) else { return false };
        match *frame {
            Frame::NewIndex { seq, retire, index: remote, token }
                if !tunnel.on_new_index((seq, retire, remote), token, route, &mut cx) =>
            {
                self.end_with(now, index, INDICES);
                return false;
            }
            Frame::RetireIndex(seq) => tunnel.on_retire_index(seq, &mut cx),
            Frame::PathChallenge(data) => tunnel.queue_frame(route, &Frame::PathResponse(data), now),
            Frame::Upgrade(step) if !tunnel.on_upgrade(&step, route, &mut cx) => {
                self.end_with(now, index, MALFORMED);
                return false;
            }
            Frame::Rekey => tunnel.renew_s1(&mut cx),
            Frame::Close { .. } => {
                tunnel.close_streams(&cx);
                tunnel.end_s1(&mut cx);
                return false;
            }
            _ => {}
        }
        true
    }

    fn end_with(&mut self, now: Instant, index: u32, code: u64) {
        if let Some((tunnel, mut cx)) = split!(self, index, now) {
            tunnel.refuse_s1(code, &mut cx);
        }
    }
}

fn datagram_header(
    src: pilotage_wire::Address,
    dst: pilotage_wire::Address,
    src_port: u16,
    dst_port: u16,
) -> Header {
    Header {
        flags: Flags::EMPTY,
        protocol: Protocol::Datagram,
        src,
        dst,
        src_port,
        dst_port,
        seq: 0,
        ack: 0,
        window: 0,
    }
}

/// A datagram that belongs to no tunnel.
pub(super) type Loose = (SocketAddr, Vec<u8>);
