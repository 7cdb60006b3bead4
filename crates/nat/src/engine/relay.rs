//! Relaying, here and to the nodes of other beacons. `spec/nat.md §4`, §9.

use std::net::SocketAddr;
use std::time::Instant;

use pilotage_fault as fault;
use pilotage_wire::NodeId;
use pilotage_wire::beacon::{Message, TAG_LEN};

use super::{BeaconEngine, Dropped, Out, Port};

/// Where a frame goes.
enum Way {
    /// To a node that is registered here, at this place of the table.
    Here(u32),
    /// To another beacon.
    There(usize),
}

impl BeaconEngine {
    /// `spec/nat.md §4`.
    pub(super) fn relay(
        &mut self,
        now: Instant,
        from: SocketAddr,
        src: NodeId,
        dst: NodeId,
        frame: &[u8],
        out: Out<'_>,
    ) {
        if !is_tunnel_frame(frame) {
            self.stats.malformed += 1;
            return;
        }
        let Some(sender) = self.refresh(now, from, src) else { return };
        let way = match self.way(now, from, sender, src, dst, frame.len() as u64) {
            Ok(way) => way,
            Err(dropped) => return self.count_dropped(dropped),
        };
        self.stats.relays += 1;
        match way {
            Way::Here(receiver) => self.deliver(receiver, src, frame, out),
            Way::There(peer) => {
                let proven = self.table.get(sender).is_some_and(|known| known.is_proven());
                let Some((to, tag)) = self.peers.carriage(peer, proven, src, dst, frame) else { return };
                self.stats.handed_over += 1;
                let carry = peers_message(proven, src, dst, &tag, frame);
                self.send(Port::Main, to, &carry, out);
            }
        }
    }

    /// A frame that another beacon hands over.
    #[allow(clippy::too_many_arguments, reason = "the parts of one message")]
    pub(super) fn carried(
        &mut self,
        now: Instant,
        from: SocketAddr,
        proven: bool,
        (src, dst): (NodeId, NodeId),
        tag: &[u8; TAG_LEN],
        frame: &[u8],
        out: Out<'_>,
    ) {
        if !is_tunnel_frame(frame) {
            self.stats.malformed += 1;
            return;
        }
        if !self.peers.is_carriage(now, from, (proven, src, dst), tag, frame) {
            self.stats.bad_beacon += 1;
            return;
        }
        // Only to nodes that are here: a frame is never handed on twice.
        match self.receiver(now, None, (src, proven), dst, frame.len() as u64) {
            Ok(receiver) => {
                self.stats.carried += 1;
                self.deliver(receiver, src, frame, out);
            }
            Err(dropped) => self.count_dropped(dropped),
        }
    }

    fn deliver(&mut self, receiver: u32, src: NodeId, frame: &[u8], out: Out<'_>) {
        let Some(known) = self.table.get(receiver) else { return };
        let message = match known.extended {
            true => Message::DeliverEx { src, dst: known.node, frame },
            false => Message::Deliver { src, frame },
        };
        let address = known.address;
        self.send(Port::Main, address, &message, out);
    }

    /// Where to send a frame, with its bytes taken from every budget or from none.
    fn way(
        &mut self,
        now: Instant,
        from: SocketAddr,
        sender: u32,
        src: NodeId,
        dst: NodeId,
        bytes: u64,
    ) -> Result<Way, Dropped> {
        let Some(known) = self.table.get_mut(sender) else { return Err(Dropped::Unreachable) };
        let (per_node, per_prefix) = (self.config.relay_bytes_per_node, self.config.relay_bytes_per_prefix);
        let (slot, proven) = (known.prefix_slot, known.is_proven());
        known.note_addressed(now, dst);
        let room = known.relayed_from.has(now, per_node, bytes)
            && self.relay_prefixes.bucket(slot).has(now, per_prefix, bytes);
        let way = match self.live_or_elsewhere(now, dst)? {
            Way::There(_) if !room || !self.relay_bytes.has(now, self.config.relay_bytes_total, bytes) => {
                return Err(Dropped::OverBudget);
            }
            Way::There(peer) => {
                self.relay_bytes.charge(bytes);
                Way::There(peer)
            }
            Way::Here(_) => {
                let sender = room.then_some(from).ok_or(from);
                Way::Here(self.receiver(now, Some(sender), (src, proven), dst, bytes)?)
            }
        };
        if let Some(known) = self.table.get_mut(sender) {
            known.relayed_from.charge(bytes);
        }
        self.relay_prefixes.bucket(slot).charge(bytes);
        Ok(way)
    }

    fn live_or_elsewhere(&mut self, now: Instant, dst: NodeId) -> Result<Way, Dropped> {
        if let Some(place) = self.table.find(dst)
            && self.table.get(place).is_some_and(|known| known.is_live(now, self.config.registration_ttl))
        {
            return Ok(Way::Here(place));
        }
        self.peers.whose(now, dst).map(Way::There).ok_or(Dropped::Unreachable)
    }

    /// The place of the node to deliver to, with the bytes taken from its budget and that of the beacon. `from` is the
    /// sender's address, as an error where its own budget is used up; none for a node of another beacon.
    fn receiver(
        &mut self,
        now: Instant,
        from: Option<Result<SocketAddr, SocketAddr>>,
        (src, proven): (NodeId, bool),
        dst: NodeId,
        bytes: u64,
    ) -> Result<u32, Dropped> {
        let ttl = self.config.registration_ttl;
        let place = self.table.find(dst).ok_or(Dropped::Unreachable)?;
        let receiver =
            self.table.get_mut(place).filter(|node| node.is_live(now, ttl)).ok_or(Dropped::Unreachable)?;
        // A frame must not come back to where it came from, under whatever id.
        if from.is_some_and(|(Ok(from) | Err(from))| receiver.address == from) {
            return Err(Dropped::Unreachable);
        }
        if !receiver.accepts(now, src, proven) {
            return Err(Dropped::NotPermitted);
        }
        if matches!(from, Some(Err(_)))
            || fault::point!("nat.beacon.relay_exhausted")
            || !receiver.relayed_to.has(now, self.config.relay_bytes_per_node, bytes)
            || !self.relay_bytes.has(now, self.config.relay_bytes_total, bytes)
        {
            return Err(Dropped::OverBudget);
        }
        receiver.relayed_to.charge(bytes);
        self.relay_bytes.charge(bytes);
        Ok(place)
    }
}

/// Only tunnel frames: a beacon message inside another one serves no honest node.
fn is_tunnel_frame(frame: &[u8]) -> bool {
    frame.first().is_some_and(|&byte| byte >= 0x10)
}

fn peers_message<'a>(
    proven: bool,
    src: NodeId,
    dst: NodeId,
    tag: &'a [u8; TAG_LEN],
    frame: &'a [u8],
) -> Message<'a> {
    Message::Extension(pilotage_wire::beacon::Extension::Carry { proven, src, dst, tag, frame })
}
