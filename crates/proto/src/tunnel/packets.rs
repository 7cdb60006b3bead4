//! Sealed frames in, packets to connections (spec/tunnel.md §4, §6).

use pilotage_fault as fault;
use pilotage_wire::NodeId;
use pilotage_wire::packet::{Flags, Header, Packet, Protocol};

use super::{OpenError, Route, Session, Tunnel, TunnelCx};
use crate::connection::{DIALECT_MARK, Dialect, SegmentFate};

/// What a packet wants from the endpoint, which alone knows the listeners and ports.
#[derive(Debug)]
pub(crate) enum Inner<'a> {
    /// Dealt with; the connection in this slot may have something to tell or to send.
    Connection(u32),
    /// Dealt with inside the tunnel.
    Done,
    /// A connection attempt.
    Syn(Header),
    /// A datagram for a local port.
    Datagram(Header, &'a [u8]),
}

impl Tunnel {
    /// Opens a sealed frame of this peer in place, with whichever of the keys fits.
    ///
    /// Returns the packet's bytes. Rules C3 (path), C7 (window after tag), C2 (candidate).
    pub(crate) fn open<'a>(
        &mut self,
        sender: NodeId,
        nonce: &[u8; 12],
        ciphertext: &'a mut [u8],
        route: Route,
        cx: &mut TunnelCx<'_>,
    ) -> Result<&'a mut [u8], OpenError> {
        let prefix = [nonce[0], nonce[1], nonce[2], nonce[3]];
        let which = self.session_for(prefix, sender, nonce, ciphertext);
        let session = match which {
            Which::Current => self.current.as_mut(),
            Which::Candidate(i) => self.candidates.get_mut(i).map(|c| &mut c.session),
            Which::Previous => self.previous.as_mut().map(|(s, _)| s),
        };
        let Some(session) = session else { return Err(OpenError::Unauthentic) };
        let (plain, highest) = session.open(sender, nonce, ciphertext)?;
        // Rule C4 comes first. The derived key does not name the two sides: a third party that signed the peer's
        // X25519 key as its own can show us frames that we were never meant to get. They prove nothing.
        if !is_between(self.node, cx.local.node, plain) {
            return Ok(plain);
        }
        session.confirmed = true;
        if fault::point!("proto.tunnel.lose_opened_frame") {
            return Err(OpenError::Replay); // its counter is used up, as if it had come twice and the first been lost
        }
        self.last_valid = Some(cx.now);
        self.revive_at = None;
        if which != Which::Previous {
            self.last_current = Some(cx.now);
        }
        self.arrived = Some(route);
        if let Which::Candidate(i) = which {
            self.promote_candidate(i, cx);
        }
        if which != Which::Previous {
            self.on_authentic(route, cx.now);
            if highest {
                self.on_valid_route(route, cx);
            }
        }
        Ok(plain)
    }

    /// Chooses the key. A prefix that was seen names its session; for a new prefix with several keys at
    /// hand a copy is tried, because opening destroys what does not verify.
    fn session_for(&mut self, prefix: [u8; 4], sender: NodeId, nonce: &[u8; 12], ciphertext: &[u8]) -> Which {
        let known = |s: Option<&Session>| s.is_some_and(|s| s.knows_prefix(prefix));
        if known(self.current.as_ref()) || (self.candidates.is_empty() && self.previous.is_none()) {
            return Which::Current;
        }
        if let Some(i) = self.candidates.iter().position(|c| c.session.knows_prefix(prefix)) {
            return Which::Candidate(i);
        }
        if known(self.previous.as_ref().map(|(s, _)| s)) {
            return Which::Previous;
        }
        let newest_first = (0..self.candidates.len()).rev().map(Which::Candidate);
        for which in newest_first.chain([Which::Current]) {
            let session = match which {
                Which::Candidate(i) => self.candidates.get(i).map(|c| &c.session),
                _ => self.current.as_ref(),
            };
            if let Some(session) = session {
                self.trial.clear();
                self.trial.extend_from_slice(ciphertext);
                if session.would_open(sender, nonce, &mut self.trial) {
                    return which;
                }
            }
        }
        Which::Previous
    }

    /// Takes one authenticated packet. Rule C4: it must come from this peer and be meant for us.
    pub(crate) fn on_packet<'a>(&mut self, bytes: &'a [u8], cx: &mut TunnelCx<'_>) -> Inner<'a> {
        let packet = match Packet::decode(bytes) {
            Ok(p) => p,
            Err(_) => {
                cx.stats.drop_malformed += 1;
                return Inner::Done;
            }
        };
        let hdr = packet.header;
        if hdr.src.node != self.node || hdr.dst.node != cx.local.node {
            cx.stats.drop_misaddressed += 1;
            return Inner::Done;
        }
        match hdr.protocol {
            Protocol::Stream => self.on_stream(&hdr, packet.payload, cx),
            Protocol::Datagram => Inner::Datagram(hdr, packet.payload),
            Protocol::Control => {
                self.on_control(&hdr, packet.payload, cx);
                Inner::Done
            }
        }
    }

    fn on_stream<'a>(&mut self, hdr: &Header, payload: &'a [u8], cx: &mut TunnelCx<'_>) -> Inner<'a> {
        let ports = (hdr.dst_port, hdr.src_port);
        if !payload.is_empty() {
            self.lull = Some(cx.now);
        }
        if hdr.flags.contains(Flags::SYN | Flags::ACK) {
            self.learn_dialect(payload == DIALECT_MARK);
        }
        let mut found = self.slots.find(ports);
        if let Some(slot) = found.filter(|s| self.slots.get(*s).is_some_and(|c| c.gives_way_to(hdr))) {
            self.slots.release_ports(slot);
            found = None;
        }
        let Some(slot) = found else {
            return self.on_stray_segment(hdr, payload, cx);
        };
        let (cfg, now) = (cx.cfg, cx.now);
        let fate = self.with_connection(slot, cfg, now, |c, ccx| c.on_segment(hdr, payload, ccx));
        if self.dialect == Dialect::Pilotage {
            self.slots.note_held(slot);
        }
        match fate {
            Some(SegmentFate::Accepted) => {}
            Some(SegmentFate::Refused) => self.refuse(hdr, payload.len()),
            Some(SegmentFate::Dropped) | None => cx.stats.drop_segment += 1,
        }
        Inner::Connection(slot)
    }

    /// A segment of no connection: a SYN, a leftover of a closed one, or something to reset.
    fn on_stray_segment<'a>(&mut self, hdr: &Header, payload: &[u8], cx: &mut TunnelCx<'_>) -> Inner<'a> {
        let ports = (hdr.dst_port, hdr.src_port);
        if hdr.flags.contains(Flags::RST) {
            return Inner::Done;
        }
        if hdr.flags.contains(Flags::SYN) && !hdr.flags.contains(Flags::ACK) {
            self.learn_dialect(payload == DIALECT_MARK);
            return Inner::Syn(*hdr);
        }
        if self.slots.is_time_wait(ports) {
            if hdr.flags.contains(Flags::FIN)
                && let Some(Some(entry)) = self.slots.answer_time_wait(ports)
            {
                // Rule C12: a bare acknowledgement, a bounded number of times.
                let mut answer = reply_header(hdr, Flags::ACK);
                answer.seq = entry.seq;
                answer.ack = entry.ack;
                answer.window = 1;
                self.control.push_bare(answer);
                self.slots.release_held();
            }
            return Inner::Done;
        }
        cx.stats.drop_segment += 1;
        if self.dialect == Dialect::Draft && hdr.flags.contains(Flags::FIN) {
            return Inner::Done; // a reference peer answers everything about FIN: end it here
        }
        self.refuse(hdr, payload.len());
        Inner::Done
    }

    /// What the handshake of a connection says about the peer is sealed, so it is believed, unlike the unsigned mark of
    /// the key exchange frame (spec/tunnel.md §3.4).
    fn learn_dialect(&mut self, marked: bool) {
        self.dialect_shown = true;
        self.dialect = if marked { Dialect::Pilotage } else { Dialect::Draft };
    }

    /// Answers a segment with RST (RFC 9293 §3.10.7.1).
    pub(crate) fn refuse(&mut self, hdr: &Header, payload_len: usize) {
        let mut answer = reply_header(hdr, Flags::RST | Flags::ACK);
        if hdr.flags.contains(Flags::ACK) {
            answer.seq = hdr.ack;
        }
        let counted = u32::from(hdr.flags.contains(Flags::SYN)) + u32::from(hdr.flags.contains(Flags::FIN));
        answer.ack = hdr.seq.wrapping_add(payload_len as u32).wrapping_add(counted);
        self.control.push_bare(answer);
    }
}

/// Whether a packet says that it goes from `peer` to `local`. What does not decode does not.
fn is_between(peer: NodeId, local: NodeId, plain: &[u8]) -> bool {
    Packet::decode_trusted(plain).is_ok_and(|p| p.header.src.node == peer && p.header.dst.node == local)
}

fn reply_header(hdr: &Header, flags: Flags) -> Header {
    Header {
        flags,
        protocol: Protocol::Stream,
        src: hdr.dst,
        dst: hdr.src,
        src_port: hdr.dst_port,
        dst_port: hdr.src_port,
        seq: 0,
        ack: 0,
        window: 0,
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Which {
    Current,
    Candidate(usize),
    Previous,
}
