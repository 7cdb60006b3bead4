//! Datagrams that leave before there are keys (0-RTT), and answers to them (spec/secure.md §6.4, §12.10).
//!
//! A message that its sender marked as idempotent goes into the first PILI, if the peer's prekey is known and it is the message
//! that makes us ask for keys. Until it is known what became of it, it stays here: what the peer did not take, or never
//! said so, leaves like any other datagram once there are keys of whatever mode.

use std::collections::VecDeque;
use std::time::Instant;

use pilotage_wire::packet::HEADER_LEN;
use pilotage_wire::s1::data::OVERHEAD as S1_OVERHEAD;
use pilotage_wire::s1::frames::{Frame, Frames};
use pilotage_wire::s1::handshake::{EARLY_MAX, INITIATION_MAX};

use super::exchange::ExchangeFrame;
use super::secure::HEAD_LEN;
use super::{DATAGRAMS_OUT, DatagramOut, Route, Tunnel, TunnelCx};
use crate::event::EndpointStats;

/// Bytes of DATAGRAM around its data: type, two ports, a length of two bytes.
const AROUND: usize = 7;
/// Longest datagram that can leave in a PILI.
pub const EARLY_DATAGRAM_MAX: usize = EARLY_MAX - AROUND;

/// Idempotent datagrams that wait for keys.
#[derive(Debug, Default)]
pub(crate) struct EarlyOut {
    /// They went with a PILI of which nothing has been heard.
    sent: VecDeque<DatagramOut>,
    waiting: VecDeque<DatagramOut>,
}

impl EarlyOut {
    pub(super) fn is_empty(&self) -> bool {
        self.sent.is_empty() && self.waiting.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.sent.len() + self.waiting.len()
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// What fits into a PILI, as frames, padded to the full length: an observer learns no length, and the responder may answer
    /// as much at once (rule C16). Empty if nothing waits that fits.
    fn take_frames(&mut self) -> Vec<u8> {
        let mut frames = vec![0; EARLY_MAX];
        let mut used = 0;
        while let Some(next) =
            self.waiting.front().filter(|next| used + AROUND + next.data.len() <= EARLY_MAX)
        {
            let DatagramOut { from_port, to_port, data, .. } = next;
            let frame = Frame::Datagram { source: *from_port, destination: *to_port, data, to_end: false };
            let Ok(len) = frame.encode(&mut frames[used..]) else { break };
            used += len;
            self.sent.extend(self.waiting.pop_front());
        }
        // Zeros are PADDING.
        if used == 0 { Vec::new() } else { frames }
    }

    /// The PILI did not leave.
    fn take_back(&mut self) {
        while let Some(last) = self.sent.pop_back() {
            self.waiting.push_front(last);
        }
    }

    /// A PILR came. `accepted`: what it says about early data, if its PILI had any.
    pub(super) fn on_answer(&mut self, accepted: Option<bool>, stats: &mut EndpointStats) {
        if accepted == Some(true) {
            stats.early_accepted += self.sent.len() as u64;
            self.sent.clear();
        }
    }
}

/// What a peer's initiation brought.
#[derive(Debug, Default)]
pub(crate) struct Brought {
    /// An unconfirmed session that had to make room: the slot of its tunnel and its index.
    pub(crate) displaced: Option<(u32, u32)>,
    /// Early data that was taken: frames, of which the datagrams are to be delivered.
    pub(crate) early: Option<Vec<u8>>,
}

/// Whether a peer's early data is of the kind that we take: datagrams and nothing else.
pub(super) fn is_taken(frames: &[u8]) -> bool {
    let wanted = |frame: Frame<'_>| matches!(frame, Frame::Padding(_) | Frame::Ping | Frame::Datagram { .. });
    Frames::new(frames).all(|frame| frame.is_ok_and(wanted))
}

impl Tunnel {
    /// Takes an outgoing datagram that may be delivered twice; `false` if the queues are full.
    pub(crate) fn queue_early(&mut self, datagram: DatagramOut) -> bool {
        if self.can_send() || datagram.data.len() > EARLY_DATAGRAM_MAX {
            return self.queue_datagram(datagram);
        }
        if self.datagrams.len() + self.early.len() >= DATAGRAMS_OUT {
            return false;
        }
        self.early.waiting.push_back(datagram);
        true
    }

    /// The early data of a PILI that is about to be made; empty if there is to be none.
    pub(super) fn early_frames(&mut self, cx: &mut TunnelCx<'_>) -> Vec<u8> {
        let known = self.secure.as_ref().is_some_and(|s| s.assoc.knows_prekey());
        // What a former PILI took along is not sent early again: nobody knows yet what became of it.
        if !known || self.keyed() || !self.early.sent.is_empty() {
            return Vec::new();
        }
        let frames = self.early.take_frames();
        cx.stats.early_sent += self.early.sent.len() as u64;
        frames
    }

    /// The PILI with early data could not be made.
    pub(super) fn early_not_sent(&mut self, cx: &mut TunnelCx<'_>) {
        cx.stats.early_sent -= self.early.sent.len() as u64;
        self.early.take_back();
    }

    /// There are keys: what nobody has taken leaves as any datagram, before those that came after it.
    pub(super) fn early_to_queue(&mut self, cx: &mut TunnelCx<'_>) {
        cx.stats.early_repeated += self.early.sent.len() as u64;
        while let Some(last) = self.early.waiting.pop_back().or_else(|| self.early.sent.pop_back()) {
            self.datagrams.push_front(last);
        }
    }

    // ------------------------------------------------------------------ answers

    /// The peer's early data was taken, and its first packet under the keys is on its way: keys of our own are not asked for.
    pub(crate) fn awaits_confirmation(&self, now: Instant) -> bool {
        self.secure.as_ref().is_some_and(|s| s.assoc.may_answer_early(now))
    }

    /// Where the next datagram goes as an answer to early data, if it may leave now, and its length before it is sealed.
    fn early_answer(&self, now: Instant) -> Option<(Route, usize)> {
        if !self.awaits_confirmation(now) || !self.exchange.has_room() {
            return None;
        }
        let route = self.secure.as_ref()?.answer_to?;
        let len = HEADER_LEN + self.datagrams.front()?.data.len();
        let total = route.prefix() + S1_OVERHEAD + 1 + len;
        let most = match route {
            Route::Direct(addr) if !self.trusts(route) => self.addresses.allowance(addr),
            _ => INITIATION_MAX,
        };
        (self.permits(route) && total <= most.min(INITIATION_MAX)).then_some((route, len))
    }

    pub(super) fn answers_early(&self, now: Instant) -> bool {
        self.early_answer(now).is_some()
    }

    /// Datagrams to a peer whose early data was taken leave before it has confirmed the session, after PILR and by its way: the
    /// answer to an early question comes after one round trip. Each is a packet of the draft, which needs no acknowledgement.
    pub(super) fn answer_early(&mut self, cx: &mut TunnelCx<'_>) {
        while let Some((route, len)) = self.early_answer(cx.now) {
            let mut bytes = vec![0; S1_OVERHEAD + 1 + len];
            let Some(datagram) = self.datagrams.pop_front() else { return };
            if Self::write_datagram(&datagram, &mut bytes[HEAD_LEN..], cx).is_none() {
                continue;
            }
            let Some(total) = self.seal_s1_answer(&mut bytes, len, cx.now) else { return };
            bytes.truncate(total);
            if !self.pay(route, total + route.prefix()) {
                return;
            }
            self.exchange.push(ExchangeFrame { route, bytes });
        }
    }
}
