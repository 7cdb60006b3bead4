//! Who may call us (spec/trust.md §5).
//!
//! A closure of the application has no place in a machine without IO, and its answer may take time. So the gate asks by
//! event: the first SYN or datagram of a peer without a verdict is kept, [`Event::Knock`] goes out, and what the
//! caller decides comes back by [`Endpoint::admit`]. Without an answer nothing is ever sent to the peer.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use pilotage_wire::NodeId;
use pilotage_wire::packet::{Header, Protocol};

use super::Endpoint;
use crate::event::Event;

/// The trust handshake: whoever is to be trusted must be able to ask (draft-01 facts §14).
const TRUST_PORT: u16 = 444;
/// Peers that wait for a verdict at a time.
pub(super) const KNOCKS_MAX: usize = 64;
/// Packets kept for one peer meanwhile.
pub(super) const HELD_PER_PEER: usize = 8;
/// Bytes of all packets kept, headers not counted.
pub(super) const HELD_BYTES: usize = 1 << 20;
/// A verdict that did not come within this is asked for again with the next packet.
const KNOCK_KEPT: Duration = Duration::from_secs(5);

/// The gate's state, and what waits before it.
#[derive(Debug, Default)]
pub(super) struct Gate {
    closed: bool,
    knocks: HashMap<NodeId, Knock>,
    held_bytes: usize,
}

#[derive(Debug)]
struct Knock {
    since: Instant,
    held: Vec<(Header, Vec<u8>)>,
}

/// What became of a packet at the gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Kept, and it is the first of its peer.
    Asked,
    Kept,
    Dropped,
}

impl Gate {
    fn hold(&mut self, now: Instant, node: NodeId, hdr: &Header, payload: &[u8]) -> Fate {
        if self.knocks.get(&node).is_some_and(|k| now.saturating_duration_since(k.since) >= KNOCK_KEPT) {
            self.take(node);
        }
        if let Some(knock) = self.knocks.get_mut(&node) {
            // A SYN that comes again while we think is the same SYN.
            if hdr.protocol == Protocol::Stream && knock.held.iter().any(|(other, _)| same_ports(other, hdr))
            {
                return Fate::Kept;
            }
            if knock.held.len() >= HELD_PER_PEER || self.held_bytes + payload.len() > HELD_BYTES {
                return Fate::Dropped;
            }
            self.held_bytes += payload.len();
            knock.held.push((*hdr, payload.to_vec()));
            return Fate::Kept;
        }
        if self.knocks.len() >= KNOCKS_MAX {
            let expired = |k: &Knock| now.saturating_duration_since(k.since) >= KNOCK_KEPT;
            let old: Vec<_> = self.knocks.iter().filter(|(_, k)| expired(k)).map(|(n, _)| *n).collect();
            old.into_iter().for_each(|n| drop(self.take(n)));
        }
        if self.knocks.len() >= KNOCKS_MAX || self.held_bytes + payload.len() > HELD_BYTES {
            return Fate::Dropped;
        }
        self.held_bytes += payload.len();
        self.knocks.insert(node, Knock { since: now, held: vec![(*hdr, payload.to_vec())] });
        Fate::Asked
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Bytes that wait, headers not counted.
    pub(super) fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    fn take(&mut self, node: NodeId) -> Vec<(Header, Vec<u8>)> {
        let held = self.knocks.remove(&node).map(|knock| knock.held).unwrap_or_default();
        self.held_bytes -= held.iter().map(|(_, payload)| payload.len()).sum::<usize>();
        held
    }
}

fn same_ports(a: &Header, b: &Header) -> bool {
    a.protocol == b.protocol && (a.src_port, a.dst_port) == (b.src_port, b.dst_port)
}

impl Endpoint {
    /// Closes or opens the gate, and forgets all verdicts. Behind a closed gate SYN and datagrams of a peer count only
    /// once [`Self::admit`] has let it in; the trust port (444) and echo requests are always served. Connections that
    /// are open stay open.
    pub fn set_gate(&mut self, closed: bool) {
        self.gate.closed = closed;
        for tunnel in self.tunnels.iter_mut().flatten() {
            tunnel.admitted_until = None;
        }
        let waiting: Vec<_> = self.gate.knocks.keys().copied().collect();
        for node in waiting {
            self.stats.drop_not_admitted += self.gate.take(node).len() as u64;
        }
    }

    /// Answers [`Event::Knock`]: lets the peer in until then, or turns it away (`None`) without a word. Also takes back
    /// an earlier verdict.
    pub fn admit(&mut self, now: Instant, node: NodeId, until: Option<Instant>) {
        let held = self.gate.take(node);
        let Some(&index) = self.by_node.get(&node) else {
            self.stats.drop_not_admitted += held.len() as u64;
            return;
        };
        if let Some(tunnel) = self.tunnel_mut(index) {
            tunnel.admitted_until = until;
        }
        self.judge_streams(index, until.is_some());
        if until.is_none() {
            self.stats.drop_not_admitted += held.len() as u64;
            return;
        }
        for (hdr, payload) in held {
            match hdr.protocol {
                Protocol::Datagram => self.on_datagram(index, &hdr, &payload),
                // A stream of S1 is no SYN, and waits where it is.
                _ if hdr.flags.is_empty() => {}
                _ => self.on_syn(now, index, &hdr),
            }
        }
        self.mark_dirty(index, now);
    }

    /// Ends all connections with a peer (RST) and takes back the verdict on it.
    pub fn dismiss(&mut self, now: Instant, node: NodeId) {
        self.admit(now, node, None);
        let Some(&index) = self.by_node.get(&node) else { return };
        if let Some((tunnel, _)) = split!(self, index, now) {
            let crate::tunnel::Tunnel { slots, path, .. } = tunnel;
            slots.for_each(|c| c.reset(path));
            slots.touch_all();
        }
        self.reset_streams(index, now);
        self.mark_dirty(index, now);
    }

    /// Whether a SYN or datagram may come in now. If that is not decided yet, it is kept and the caller is asked.
    pub(super) fn may_enter(&mut self, now: Instant, index: u32, hdr: &Header, payload: &[u8]) -> bool {
        if !self.gate.closed || hdr.dst_port == TRUST_PORT {
            return true;
        }
        let Some(tunnel) = self.tunnel(index) else { return false };
        if tunnel.admitted_until.is_some_and(|until| now < until) {
            return true;
        }
        let node = tunnel.node;
        if self.is_own(node) {
            return true;
        }
        match self.gate.hold(now, node, hdr, payload) {
            Fate::Asked => self.events.push_back(Event::Knock { peer: node }),
            Fate::Kept => {}
            Fate::Dropped => self.stats.drop_not_admitted += 1,
        }
        false
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)] // a base for virtual time
mod tests {
    use super::*;
    use pilotage_wire::Address;
    use pilotage_wire::packet::Flags;

    #[test]
    fn a_crowd_before_the_gate_is_bounded_and_goes_away() {
        let hdr = Header {
            flags: Flags::SYN,
            protocol: Protocol::Stream,
            src: Address::new(0, 1),
            dst: Address::new(0, 2),
            src_port: 1,
            dst_port: 2,
            seq: 0,
            ack: 0,
            window: 1,
        };
        let (mut gate, start) = (Gate::default(), Instant::now());
        let fates: Vec<_> =
            (0..KNOCKS_MAX as u32 + 9).map(|n| gate.hold(start, NodeId(n), &hdr, &[])).collect();
        assert!(fates[..KNOCKS_MAX].iter().all(|fate| *fate == Fate::Asked));
        assert!(fates[KNOCKS_MAX..].iter().all(|fate| *fate == Fate::Dropped));
        assert_eq!(gate.hold(start, NodeId(0), &hdr, &[]), Fate::Kept, "the same SYN again");
        assert_eq!(gate.knocks[&NodeId(0)].held.len(), 1);
        assert_eq!(gate.hold(start + KNOCK_KEPT, NodeId(999), &hdr, &[]), Fate::Asked);
        assert_eq!(gate.knocks.len(), 1);
    }
}
