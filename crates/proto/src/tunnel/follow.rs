//! What a peer is sent where it may have moved to, before its token came back (spec/tunnel.md §6, rule C16).
//!
//! The path stays where it is: the newest frame may be a copy that somebody sent from elsewhere. But if the peer has moved,
//! all that leaves by the way in use is lost for a round trip. So the address is sent the same datagrams, byte for byte, as
//! far as what came from there pays for them. They tell nobody more than their originals do, and who gets both throws one
//! away as a replay.

use std::net::SocketAddr;
use std::time::Instant;

use super::{Route, Tunnel};
use crate::transmit::{Transmit, TransmitBuf};

/// Datagrams that leave once more, at most one batch.
#[derive(Debug)]
pub(super) struct Copy {
    to: SocketAddr,
    bytes: Vec<u8>,
    segment: usize,
}

/// What one tunnel knows of that.
#[derive(Debug, Default)]
pub(super) struct Follow {
    /// What left by the way in use, and leaves once more.
    copy: Option<Copy>,
    /// An address that could not pay for all copies: it gets none.
    unpaid: Option<SocketAddr>,
    /// When something in flight was last repeated.
    repeated: Option<Instant>,
}

impl Follow {
    /// A copy waits.
    pub(super) fn is_due(&self) -> bool {
        self.copy.is_some()
    }

    /// The path is another one.
    pub(super) fn on_switch(&mut self) {
        self.unpaid = None;
    }
}

impl Tunnel {
    /// Where the peer may have moved to. Connections of the draft have acknowledgements of their own for that.
    fn suspected(&self) -> Option<SocketAddr> {
        let (Some(new @ Route::Direct(addr)), Some(Route::Direct(_))) = (self.newest_route, self.path.route)
        else {
            return None;
        };
        (self.has_own_streams() && !self.trusts(new) && self.permits(new)).then_some(addr)
    }

    /// A batch leaves by the way in use: as many of its datagrams as are paid for go to where the peer may be, too. Once one is not,
    /// none does any more: that a few of a transfer arrive would show the others as lost, and the path would be blamed.
    pub(super) fn keep_copy(&mut self, transmit: &Transmit, buf: &TransmitBuf) {
        let Some(to) =
            self.suspected().filter(|to| self.follow.copy.is_none() && self.follow.unpaid != Some(*to))
        else {
            return;
        };
        let segment = transmit.segment_size.unwrap_or(transmit.size).max(1);
        let mut size = 0;
        for datagram in buf.bytes(transmit.size).chunks(segment) {
            if !self.addresses.pay_for_copy(to, datagram.len()) {
                self.follow.unpaid = Some(to);
                break;
            }
            size += datagram.len();
        }
        if size > 0 {
            self.follow.copy = Some(Copy { to, bytes: buf.bytes(size).to_vec(), segment });
        }
    }

    /// The copy that waits.
    pub(super) fn emit_copy(&mut self, buf: &mut TransmitBuf) -> Option<Transmit> {
        let Copy { to, bytes, segment } = self.follow.copy.take()?;
        let size = bytes.len().min(segment * buf.max_segments());
        buf.data_mut().get_mut(..size)?.copy_from_slice(&bytes[..size]);
        Some(Transmit { destination: to, size, segment_size: (size > segment).then_some(segment) })
    }

    /// The peer may have moved, and is asked for its token: what was sent last went to where it no longer is. The oldest of
    /// it leaves at once, for both addresses; not twice in one round trip, however often somebody feigns a move.
    pub(super) fn repeat_for_move(&mut self, now: Instant) {
        let rtt = self.path.rtt.smoothed();
        if self.suspected().is_none()
            || self.follow.repeated.is_some_and(|t| now.saturating_duration_since(t) < rtt)
        {
            return;
        }
        self.follow.repeated = Some(now);
        let most = self.path.mss();
        let Self { slots, path, mux, .. } = self;
        let mut left = most as u64;
        slots.for_each(|c| left -= c.repeat_all(now, path, left));
        slots.touch_all();
        if let Some(mux) = mux {
            mux.repeat(most);
        }
        self.blocked = false;
    }
}
