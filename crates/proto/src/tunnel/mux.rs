//! The streams of S1 in a tunnel (spec/secure.md §11, §12.6): who speaks them, and how their packets leave.

use std::time::Duration;

use pilotage_wire::s1::data::{HEADER_LEN, OVERHEAD};

use super::{Route, Tunnel, TunnelCx};
use crate::connection::{Connection, Failure};
use crate::event::ConnectError;
use crate::mux::{self, Due, Mux, PacketIn, Polled, Under};
use crate::s1::Opened;

/// Probes are quicker than a retransmission timer may be: silence for less than its shortest is not suspect.
const SUSPECT: Duration = Duration::from_millis(200);

/// What became of the streams' turn.
pub(super) enum Turn {
    /// A datagram of so many bytes was sealed.
    Datagram(usize),
    /// Nothing leaves in this batch any more.
    Over,
}

impl Tunnel {
    /// New connections with this peer are streams of S1. What was last agreed counts until the next handshake.
    pub(crate) fn has_own_streams(&self) -> bool {
        self.own_streams && self.current.is_none() && self.mux.is_some()
    }

    /// One can be opened now, in the session that there is.
    pub(crate) fn may_open_stream(&self) -> bool {
        self.has_own_streams() && self.in_s1()
    }

    /// Connections and streams that are not forgotten yet.
    pub(crate) fn open_count(&self) -> usize {
        self.slots.len() + self.mux.as_ref().map_or(0, |mux| mux.streams.len())
    }

    /// Something of ours waits for an answer of the peer.
    pub(super) fn awaits_peer(&self) -> bool {
        self.slots.any(Connection::awaits_peer) || self.mux.as_ref().is_some_and(|mux| mux.awaits_peer())
    }

    /// Runs `f` on the streams together with what they may touch.
    pub(crate) fn with_mux<R>(
        &mut self,
        cx: &TunnelCx<'_>,
        f: impl FnOnce(&mut Mux, &mut mux::Cx<'_>) -> R,
    ) -> Option<R> {
        let mux = self.mux.as_deref_mut()?;
        Some(f(mux, &mut mux::Cx { now: cx.now, path: &mut self.path, cfg: cx.cfg }))
    }

    /// The session that sends, as the streams see it.
    fn under(&self) -> Option<Under> {
        let assoc = &self.secure.as_ref()?.assoc;
        let session = assoc.current()?;
        let former = assoc.previous().map(|s| (s.id(), s.sealed()));
        Some(Under { session: session.id(), index: session.remote_index(), sealed: session.sealed(), former })
    }

    /// A session has begun: whether streams are spoken in it depends on both sides.
    pub(super) fn begin_streams(&mut self, initiator: bool, cx: &mut TunnelCx<'_>) {
        let Some(under) = self.under() else { return };
        let Some(told) = self.secure.as_ref().and_then(|s| s.assoc.current()).map(|s| *s.transport()) else {
            return;
        };
        let Some(secure) = cx.secure.as_deref_mut() else { return };
        self.own_streams = secure.streams && told.streams > 0;
        if !self.own_streams {
            self.end_streams(Failure::Reset, cx);
            return;
        }
        if self.mux.is_none() {
            let smaller = self.key.is_some_and(|key| cx.identity.public_key() < key);
            let life = secure.draw();
            self.mux = Some(Box::new(Mux::new(smaller, life, secure.lives_since, cx.cfg)));
        }
        self.with_mux(cx, |mux, _| mux.on_session(under, &told, initiator));
        self.convert = true;
    }

    /// The streams are over, by the word of one side; others that follow have nothing to do with them.
    pub(super) fn end_streams(&mut self, failure: Failure, cx: &TunnelCx<'_>) {
        self.with_mux(cx, |mux, mcx| mux.end_life(failure, mcx));
    }

    /// One side closes: the streams are over.
    pub(crate) fn close_streams(&mut self, cx: &TunnelCx<'_>) {
        self.end_streams(Failure::Reset, cx);
    }

    /// The tunnel failed.
    pub(super) fn fail_streams(&mut self, error: ConnectError, cx: &TunnelCx<'_>) {
        self.end_streams(Failure::Connect(error), cx);
    }

    /// Takes the frames of a packet; an error is the code with which the session ends. `None` if no streams are spoken.
    pub(crate) fn on_stream_frames(
        &mut self,
        opened: &Opened,
        frames: &[u8],
        cx: &TunnelCx<'_>,
    ) -> Option<Result<bool, u64>> {
        let packet = self.packet_in(opened)?;
        let ends = (cx.local, self.address);
        let out = self.with_mux(cx, |mux, mcx| mux.on_packet(&packet, frames, ends, mcx))?;
        Some(out.map(|rest| {
            if rest.data {
                self.lull = Some(cx.now);
            }
            rest.others
        }))
    }

    /// A packet that holds a packet of the draft and nothing else.
    pub(crate) fn on_legacy_packet(&mut self, opened: &Opened, cx: &TunnelCx<'_>) {
        if self.mux.is_some()
            && let Some(packet) = self.packet_in(opened)
        {
            self.with_mux(cx, |mux, mcx| mux.on_other_packet(&packet, mcx));
        }
    }

    fn packet_in(&mut self, opened: &Opened) -> Option<PacketIn> {
        if !self.own_streams {
            return None;
        }
        let (session, index, number) = (opened.session, opened.index, u64::from(opened.number));
        let under = self.under();
        if let Some(under) = under
            && let Some(mux) = &mut self.mux
        {
            mux.enter(under);
        }
        Some(PacketIn { session, index, number, sealed: under.map_or(0, |u| u.sealed) })
    }

    /// The next packet of the streams, sealed, at the start of `space`.
    pub(super) fn poll_streams(
        &mut self,
        route: Route,
        (size, full): (usize, usize),
        space: &mut [u8],
        cx: &TunnelCx<'_>,
    ) -> Turn {
        let prefix = route.prefix();
        let around = prefix + OVERHEAD;
        let (Some(under), true) = (self.under(), self.has_own_streams()) else { return Turn::Over };
        let (Some(limit), Some(full)) = (size.checked_sub(around), full.checked_sub(around)) else {
            return Turn::Over;
        };
        let Self { mux, path, datagrams, .. } = self;
        let Some(mux) = mux.as_deref_mut() else { return Turn::Over };
        let Some(body) = space.get_mut(prefix + HEADER_LEN..) else { return Turn::Over };
        mux.enter(under);
        let mut mcx = mux::Cx { now: cx.now, path, cfg: cx.cfg };
        let (len, eliciting, counted) = match mux.poll((limit, full), datagrams, body, &mut mcx) {
            Polled::Packet { len, eliciting, counted } => (len, eliciting, counted),
            Polled::Blocked => {
                self.blocked = true;
                return Turn::Over;
            }
            Polled::TooLong | Polled::Nothing => return Turn::Over,
        };
        let sealed = self.write_prefix(route, space, cx).and_then(|prefix| {
            let assoc = &mut self.secure.as_mut()?.assoc;
            assoc.seal(space.get_mut(prefix..)?, len, cx.now).ok()
        });
        let mux = self.mux.as_deref_mut();
        match (sealed, mux) {
            (Some((total, number)), Some(mux)) => {
                let mut mcx = mux::Cx { now: cx.now, path: &mut self.path, cfg: cx.cfg };
                let size = if counted { total } else { 0 };
                mux.commit(u64::from(number), size, eliciting, &mut mcx);
                Turn::Datagram(prefix + total)
            }
            (None, Some(mux)) => {
                mux.abort();
                Turn::Over
            }
            _ => Turn::Over,
        }
    }

    /// Whether the streams should be polled.
    pub(super) fn streams_want(&self, now: std::time::Instant, paced: bool) -> bool {
        self.has_own_streams()
            && self
                .mux
                .as_ref()
                .is_some_and(|mux| mux.says_something_now(now) || (mux.has_data() && !self.blocked && !paced))
    }

    /// Does what is due.
    pub(super) fn on_streams_timeout(&mut self, cx: &mut TunnelCx<'_>) {
        if self.mux.is_none() {
            return;
        }
        let out = self.with_mux(cx, |mux, mcx| {
            let due = mux.deadline(mcx.now, (mcx.path, mcx.cfg)).is_some_and(|t| t <= mcx.now);
            if due { mux.on_timeout(mcx) } else { Due::Nothing }
        });
        if out == Some(Due::GaveUp) {
            self.end_s1(cx);
        }
        self.blocked = false;
        let stalled = self.mux.as_ref().map_or(Duration::ZERO, |mux| mux.stalled_for(cx.now));
        if out == Some(Due::Probe) && stalled >= SUSPECT {
            if stalled >= self.path.silence_bound().min(super::exchange::REVIVE_MAX) {
                self.suspect_silence(cx);
            }
            self.doubt_way(cx.now);
        }
    }
}
