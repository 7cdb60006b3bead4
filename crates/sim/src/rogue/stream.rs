//! The numbers of one connection between a rogue and the endpoint.

use pilotage_proto::ConnectionId;
use pilotage_wire::packet::{Flags, Header};
use pilotage_wire::sack;

/// One connection, seen from the rogue. It keeps no state but the numbers: what is sent when is the test's affair.
#[derive(Debug, Clone)]
pub struct RogueStream {
    id: ConnectionId,
    template: Header,
    /// Our first sequence number.
    pub isn: u32,
    /// The endpoint's first sequence number.
    pub peer_isn: u32,
    /// How much of the endpoint's stream the next packet acknowledges.
    pub acked: u64,
    /// Window field of the next packet, in units of 4,096 bytes.
    pub window: u16,
}

impl RogueStream {
    pub(super) fn new(id: ConnectionId, template: Header, isn: u32, peer_isn: u32) -> Self {
        Self { id, template, isn, peer_isn, acked: 0, window: template.window }
    }

    /// The endpoint's name for the connection.
    pub fn at_target(&self) -> ConnectionId {
        self.id
    }

    /// Our port and the endpoint's.
    pub fn ports(&self) -> (u16, u16) {
        (self.template.src_port, self.template.dst_port)
    }

    /// A header with these flags for the stream offset `at` of ours.
    pub fn segment(&self, flags: Flags, at: u64) -> Header {
        let mut header = self.template;
        header.flags = flags;
        header.seq = self.isn.wrapping_add(1).wrapping_add(at as u32);
        header.ack = self.peer_isn.wrapping_add(1).wrapping_add(self.acked as u32);
        header.window = self.window;
        header
    }

    /// A data segment that begins at `at`.
    pub fn data(&self, at: u64) -> Header {
        self.segment(Flags::ACK, at)
    }

    /// An acknowledgement of `acked` bytes, sent at our offset `at`.
    pub fn ack(&mut self, at: u64, acked: u64) -> Header {
        self.acked = acked;
        self.segment(Flags::ACK, at)
    }

    /// The payload of an acknowledgement that claims these ranges of the endpoint's stream.
    pub fn sack(&self, blocks: &[(u64, u64)]) -> Vec<u8> {
        let base = self.peer_isn.wrapping_add(1);
        let wire: Vec<_> =
            blocks.iter().map(|&(l, r)| (base.wrapping_add(l as u32), base.wrapping_add(r as u32))).collect();
        let mut payload = vec![0; sack::MAX_LEN];
        let len = sack::encode(&wire, &mut payload);
        payload.truncate(len);
        payload
    }

    /// Where in the endpoint's stream a packet of it begins.
    pub fn offset_of(&self, header: &Header) -> u64 {
        u64::from(header.seq.wrapping_sub(self.peer_isn.wrapping_add(1)))
    }

    /// Whether a packet of the endpoint belongs to this connection.
    pub fn owns(&self, header: &Header) -> bool {
        (header.dst_port, header.src_port) == self.ports()
    }
}
