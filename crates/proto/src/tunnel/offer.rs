//! The message in which Pilotage peers tell each other their candidates (spec/tunnel.md §7.6).

use pilotage_nat::agent::{OFFER_MARK, OFFER_MAX, Offer, PathPolicy};
use pilotage_wire::packet::{Flags, HEADER_LEN, Header, Protocol};

use super::control::{ControlOut, ECHO_PORT, encoded};
use super::{Tunnel, TunnelCx};
use crate::connection::Dialect;

/// Destination port of the message. It has the flag ACK, so nobody answers it (§7.1), reference peers included.
pub(super) const OFFER_PORT: u16 = 49_154;

impl Tunnel {
    /// Takes a control packet to the port of offers.
    pub(super) fn on_offer(&mut self, payload: &[u8], cx: &mut TunnelCx<'_>) {
        let Some(offer) = payload.starts_with(&OFFER_MARK).then(|| Offer::decode(payload)).flatten() else {
            cx.stats.drop_segment += 1;
            return;
        };
        if self.dialect != Dialect::Pilotage && !self.dialect_shown {
            // Nobody else speaks so, and what is sealed is believed.
            self.dialect = Dialect::Pilotage;
        }
        self.agent.on_offer(cx.now, &offer, cx.locals);
        // Said again, it counts again: a move of ours ends the doubt that the first made.
        if offer.lost && self.agent.policy() != PathPolicy::DirectOnly {
            // The peer has lost the direct way. Ours may work all the same; one question tells.
            self.doubt_way(cx.now);
        }
    }

    /// Writes our candidates, if they are due.
    pub(super) fn poll_offer(
        &mut self,
        limit: usize,
        space: &mut [u8],
        cx: &mut TunnelCx<'_>,
    ) -> Option<ControlOut> {
        let used = self.used();
        if !self.agent.offer_due(cx.now, used, cx.locals) {
            return None;
        }
        if limit < OFFER_MAX {
            // A stranger's credit may be too short for now; it is due until it fits.
            return (self.path.mss() >= OFFER_MAX).then_some(ControlOut::TooLong);
        }
        Some(self.write_offer(space, cx))
    }

    /// Writes our candidates.
    pub(super) fn write_offer(&mut self, space: &mut [u8], cx: &mut TunnelCx<'_>) -> ControlOut {
        let Some(body) = space.get_mut(HEADER_LEN..HEADER_LEN + OFFER_MAX) else {
            return ControlOut::Nothing;
        };
        let Some(len) = self.agent.write_offer(cx.now, cx.locals, body) else { return ControlOut::Nothing };
        let hdr = Header {
            flags: Flags::ACK,
            protocol: Protocol::Control,
            src: cx.local,
            dst: self.address,
            src_port: ECHO_PORT,
            dst_port: OFFER_PORT,
            seq: 0,
            ack: 0,
            window: 0,
        };
        encoded(&hdr, len, space)
    }
}
