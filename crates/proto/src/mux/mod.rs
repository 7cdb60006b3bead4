//! The frame layer of S1: streams, acknowledgements, flow control (spec/secure.md §11).
//!
//! # Contract
//!
//! One [`Mux`] belongs to a tunnel, and outlives its sessions. In: [`Mux::on_packet`] takes the frames of an opened packet;
//! the application's calls are in `api`. Out: [`Mux::poll`] writes the frames of the next packet, and after it was sealed
//! [`Mux::commit`] says under which number it left. Time: [`Mux::deadline`], [`Mux::on_timeout`]. Everything that may be sent, and
//! how fast, is asked of the [`Path`], which the connections of the draft share.
//!
//! | file | what |
//! |---|---|
//! | `sent` | packets under way, losses |
//! | `received` | packets that came, acknowledgements |
//! | `send_stream`, `recv_stream`, `stream` | the halves of a stream, the table of streams |
//! | `flow` | windows |
//! | `input` | frames in |
//! | `packing` | frames out |
//! | `timers` | probes, silence, what is given up |
//! | `api` | the application's calls |
//!
//! # Lives
//!
//! Both sides name what they know of streams and limits by a random number, their *life*, in every packet of a session until one
//! was acknowledged, together with the peer's as they know it (LIFE). Another number than before says that the other side has
//! forgotten everything: its streams are over. What is meant for a former life of ours is left alone (§11.2). So streams
//! survive sessions, and are never mixed up with those of a former process.

mod api;
mod flow;
mod input;
mod packing;
mod ranges;
mod received;
mod recv_stream;
mod send_stream;
mod sent;
mod stream;
#[cfg(test)]
mod tests;
mod timers;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use pilotage_wire::s1::payload::TransportParameters;

use crate::config::Config;
use crate::connection::Failure;
use crate::tunnel::path::Path;

pub(crate) use api::NewStream;
pub(crate) use packing::Polled;
pub(crate) use received::ACK_DELAY;
pub(crate) use stream::Stream;
pub(crate) use timers::Due;

use flow::Flow;
use ranges::RangeSet;
use received::Received;
use sent::Sent;
use stream::Streams;

/// Codes of CLOSE, RESET_STREAM and STOP_SENDING (spec/secure.md §11.8).
pub(crate) const NO_ERROR: u64 = 0;
pub(crate) const MALFORMED: u64 = 1;
pub(crate) const REFUSED: u64 = 2;
pub(crate) const FLOW_CONTROL: u64 = 3;
pub(crate) const FINAL_SIZE: u64 = 4;
pub(crate) const ACKNOWLEDGEMENT: u64 = 5;

/// What one stream, and all together, may send at first; and what the windows of all together may grow to. That of one
/// grows to [`Config::recv_buffer`].
const STREAM_WINDOW: u64 = 512 << 10;
const TUNNEL_WINDOW: u64 = 2 << 20;
const TUNNEL_WINDOW_MAX: u64 = 64 << 20;
/// Sessions whose life is remembered.
const LIVES_MAX: usize = 4;

/// What a call may use besides the layer itself.
pub(crate) struct Cx<'a> {
    pub(crate) now: Instant,
    pub(crate) path: &'a mut Path,
    pub(crate) cfg: &'a Config,
}

/// The session that packets leave under.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Under {
    /// [`crate::s1::Session::id`].
    pub(crate) session: u32,
    /// The index that its packets name.
    pub(crate) index: u32,
    /// Packets that it has sealed.
    pub(crate) sealed: u64,
    /// The session before it, and the packets that it sealed in all.
    pub(crate) former: Option<(u32, u64)>,
}

/// An opened packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PacketIn {
    /// The session that opened it, and the index that it named.
    pub(crate) session: u32,
    pub(crate) index: u32,
    pub(crate) number: u64,
    /// Packets that the session in use has sealed.
    pub(crate) sealed: u64,
}

/// The parameters that we tell (§5.5), by what we are configured to hold.
pub(crate) fn parameters(cfg: &Config) -> TransportParameters {
    TransportParameters {
        max_datagram: u16::MAX,
        idle: 0,
        ack_delay: (ACK_DELAY.as_micros() / 100) as u16,
        streams: cfg.max_connections_per_peer.min(usize::from(u16::MAX)) as u16,
        tunnel_window: (tunnel_window(cfg) >> 10) as u32,
        stream_window: (stream_window(cfg) >> 10) as u32,
    }
}

fn stream_window(cfg: &Config) -> u64 {
    STREAM_WINDOW.min(cfg.recv_buffer as u64).max(1_024) & !1_023
}

fn tunnel_window(cfg: &Config) -> u64 {
    TUNNEL_WINDOW.min(4 * cfg.recv_buffer as u64).max(1_024) & !1_023
}

/// All streams with one peer.
#[derive(Debug)]
pub(crate) struct Mux {
    /// Our life, and whether the peer knows it in the session that sends.
    life: u64,
    life_began: Instant,
    life_told: bool,
    /// The peer's, and which it told in which session, the newest last; and whether it knew ours then.
    peer_life: Option<u64>,
    /// Streams were sent to a life that we never heard of, in a session before this: nothing more until it is known who hears us.
    held: bool,
    lives: Vec<(u32, u64, bool)>,
    /// Bit 0 of the numbers of our streams.
    side: u64,
    /// Streams that we opened, and how many we may.
    opened: u64,
    open_max: u64,
    /// Streams of the peer that were ever opened, how many of them are over, and how many we told it that it may open.
    peer_opened: RangeSet,
    peer_over: u64,
    peer_told: u64,
    /// Streams of the peer that may be open at a time.
    concurrent: u64,
    /// What a stream of ours may send at first.
    stream_max: u64,
    /// What the peer said in its last handshake.
    told: Option<TransportParameters>,
    pub(crate) streams: Streams,
    flow: Flow,
    sent: Sent,
    received: Received,
    max_data_due: bool,
    max_streams_due: bool,
    ping_due: bool,
    /// Packets that leave whatever the window says, after a probe timeout.
    probes: u8,
    /// Probe timeouts since anything was acknowledged.
    backoff: u32,
    /// When the last packet left that wants an acknowledgement.
    eliciting_at: Option<Instant>,
    /// Since when nothing was acknowledged although something is under way.
    stalled_at: Option<Instant>,
    heard: Option<Instant>,
    peer_ack_delay: Duration,
    /// When the peer was last asked for an acknowledgement of our acknowledgements.
    asked_at: Option<Instant>,
    /// Incoming streams that the endpoint has not seen.
    fresh: VecDeque<u32>,
    /// The last packet of a repair began with what was never sent.
    fresh_first: bool,
    /// Who has its turn.
    turn: packing::Turn,
    /// Streams that open without data, and when they do so at the latest; and streams that are given up some time.
    opens: VecDeque<(Instant, u32)>,
    lingers: VecDeque<(Instant, u32, crate::event::ConnectionId)>,
    /// The session that sends, as last seen.
    under: Option<Under>,
}

impl Mux {
    /// No streams. `smaller`: our identity is the smaller one. `life` is random; at `began` at the latest every other that we had
    /// with this peer was over.
    pub(crate) fn new(smaller: bool, life: u64, began: Instant, cfg: &Config) -> Self {
        Self {
            life,
            life_began: began,
            life_told: false,
            peer_life: None,
            held: false,
            lives: Vec::new(),
            side: u64::from(!smaller),
            opened: 0,
            open_max: 0,
            peer_opened: RangeSet::default(),
            peer_over: 0,
            peer_told: u64::from(parameters(cfg).streams),
            concurrent: u64::from(parameters(cfg).streams),
            stream_max: 0,
            told: None,
            streams: Streams::default(),
            flow: Flow::new(tunnel_window(cfg), TUNNEL_WINDOW_MAX),
            sent: Sent::default(),
            received: Received::default(),
            max_data_due: false,
            max_streams_due: false,
            ping_due: false,
            probes: 0,
            backoff: 0,
            eliciting_at: None,
            stalled_at: None,
            heard: None,
            peer_ack_delay: ACK_DELAY,
            asked_at: None,
            fresh: VecDeque::new(),
            fresh_first: false,
            turn: packing::Turn::default(),
            opens: VecDeque::new(),
            lingers: VecDeque::new(),
            under: None,
        }
    }

    /// Packets leave under another session from now on. `told` is what the peer said in its handshake; `speak`: it is to
    /// hear of our life although we have nothing to say.
    pub(crate) fn on_session(&mut self, under: Under, told: &TransportParameters, speak: bool) {
        self.enter(under);
        self.told = Some(*told);
        self.take_limits();
        self.peer_ack_delay = Duration::from_micros(100 * u64::from(told.ack_delay));
        self.held = self.peer_life.is_none() && self.streams.iter().any(|s| s.first_sent.is_some());
        self.ping_due |= speak || self.held;
        let max = self.stream_max;
        for slot in self.streams.slots() {
            if let Some(stream) = self.streams.get_mut(slot) {
                stream.send.max = stream.send.max.max(max);
            }
            self.streams.mark(slot);
        }
        self.streams.unpark();
    }

    /// The first limits are those of the handshake; a later handshake of the same life only adds.
    fn take_limits(&mut self) {
        let Some(told) = self.told else { return };
        self.open_max = self.open_max.max(u64::from(told.streams));
        self.stream_max = self.stream_max.max(u64::from(told.stream_window) << 10);
        self.flow.max = self.flow.max.max(u64::from(told.tunnel_window) << 10);
    }

    /// Which session sends, before anything of it is read or written.
    pub(crate) fn enter(&mut self, under: Under) {
        let before = self.under.replace(under);
        if before.is_some_and(|b| (b.session, b.index) == (under.session, under.index)) {
            return;
        }
        // What that one sealed is not always known; then an acknowledgement is not held against it.
        let former = under.former.filter(|(session, _)| before.is_some_and(|b| b.session == *session));
        let sealed = former.map_or(u64::MAX, |(_, sealed)| sealed);
        if self.sent.on_session(under.session, under.index, sealed) {
            self.life_told = false;
        }
    }

    /// The peer, or we, have forgotten everything about the streams: they end.
    pub(crate) fn end(&mut self, failure: Failure, cx: &mut Cx<'_>) {
        self.end_but(failure, &[], cx);
    }

    fn end_but(&mut self, failure: Failure, spared: &[u32], cx: &mut Cx<'_>) {
        for slot in self.streams.slots() {
            if !spared.contains(&slot) {
                self.fail(slot, failure);
            }
        }
        self.streams.clear_rounds();
        spared.iter().for_each(|slot| self.streams.mark(*slot));
        cx.path.in_flight = cx.path.in_flight.saturating_sub(self.sent.forget());
    }

    /// As [`Self::end`], and what follows has nothing to do with what was.
    pub(crate) fn end_life(&mut self, failure: Failure, cx: &mut Cx<'_>) {
        self.end_life_but(failure, &[], cx);
    }

    /// As [`Self::end_life`], but for some streams of which nothing left.
    fn end_life_but(&mut self, failure: Failure, spared: &[u32], cx: &mut Cx<'_>) {
        self.end_but(failure, spared, cx);
        // Another one than before is all that it has to be.
        self.life = self.life.wrapping_add(1).max(1);
        self.life_began = cx.now;
        self.forget_peer(cx.cfg);
        (self.peer_life, self.under, self.told) = (None, None, None);
        self.held = false;
        self.lives.clear();
        self.ping_due = false;
    }

    /// Counts, limits and numbers begin anew.
    fn forget_peer(&mut self, cfg: &Config) {
        self.life_told = false;
        for slot in self.streams.slots() {
            self.streams.set_number(slot, None);
        }
        (self.opened, self.peer_over) = (0, 0);
        self.peer_opened.clear();
        self.peer_told = u64::from(parameters(cfg).streams);
        self.flow = Flow::new(tunnel_window(cfg), TUNNEL_WINDOW_MAX);
        (self.open_max, self.stream_max) = (0, 0);
        self.take_limits();
        (self.max_data_due, self.max_streams_due) = (false, false);
        (self.backoff, self.probes) = (0, 0);
        (self.eliciting_at, self.stalled_at) = (None, None);
    }

    /// One stream is over without the peer's doing, or with it: nothing more is sent of it.
    fn fail(&mut self, slot: u32, failure: Failure) {
        let Some(stream) = self.streams.get_mut(slot) else { return };
        if stream.failure.is_none() && !stream.is_ended() {
            stream.failure = Some(failure);
            stream.notify.readable = true;
            stream.notify.writable = true;
        }
        stream.send.reset = send_stream::Ending::Done;
        stream.recv.stop = send_stream::Ending::Done;
        stream.recv.max_due = false;
        self.settle_end(slot);
    }

    /// Tells the application once that both directions are over.
    fn settle_end(&mut self, slot: u32) {
        if let Some(stream) = self.streams.get_mut(slot)
            && stream.is_ended()
            && !std::mem::replace(&mut stream.closed_told, true)
        {
            stream.notify.closed = true;
        }
        self.streams.touch(slot);
    }

    // ------------------------------------------------------------------ what the tunnel asks

    /// Something is to be sent now that waits for no window.
    pub(crate) fn says_something_now(&self, now: Instant) -> bool {
        self.says_something() || self.received.deadline().is_some_and(|t| t <= now)
    }

    /// Something is to be sent for which a handshake is worth while.
    pub(crate) fn has_work(&self) -> bool {
        self.says_something() || self.has_data()
    }

    fn says_something(&self) -> bool {
        self.max_data_due
            || self.max_streams_due
            || self.ping_due
            || self.probes > 0
            || (!self.held && !self.streams.control.is_empty())
    }

    /// Data of streams is to be sent.
    pub(crate) fn has_data(&self) -> bool {
        !self.held && (!self.streams.ready.is_empty() || !self.streams.urgent.is_empty())
    }

    /// Something of ours waits for an answer.
    pub(crate) fn awaits_peer(&self) -> bool {
        self.sent.is_waiting()
    }

    /// Something that was lost is being sent again.
    pub(crate) fn is_repairing(&self) -> bool {
        self.backoff > 0 || !self.streams.urgent.is_empty()
    }

    /// Since when nothing was acknowledged although something is under way.
    pub(crate) fn stalled_for(&self, now: Instant) -> Duration {
        self.stalled_at.map_or(Duration::ZERO, |t| now.saturating_duration_since(t))
    }

    pub(crate) fn is_backed_off(&self) -> bool {
        self.backoff > 0
    }

    /// The next incoming stream that the endpoint has not seen.
    pub(crate) fn take_fresh(&mut self) -> Option<u32> {
        self.fresh.pop_front()
    }

    /// What must hold after every packet and call.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn check(&self, path: &Path) {
        assert_eq!(self.sent.counted(), self.sent.in_flight);
        assert_eq!(path.in_flight, self.sent.in_flight, "nobody else uses the path");
        assert!(self.flow.sent <= self.flow.max, "more was sent than the peer allows");
        assert!(self.flow.received <= self.flow.window.told);
        assert!(self.flow.read <= self.flow.received, "more was read than came");
        assert!(self.opened <= self.open_max);
        assert!(self.streams.iter().all(|s| s.send.buf.next() <= s.send.max || s.number.is_none()));
        let held: usize = self.streams.iter().filter(|s| s.is_of_this_life()).map(Stream::held).sum();
        assert!(held as u64 <= self.flow.window.told - self.flow.read, "{held} bytes held");
        let incoming = self.streams.iter().filter(|s| s.incoming && s.number.is_some()).count() as u64;
        assert!(incoming <= self.peer_told, "{incoming} streams of the peer");
        let (packets, items) = self.sent.held();
        assert!(packets <= sent::PACKETS_MAX && items <= 64 * sent::PACKETS_MAX);
    }

    /// Gives back memory that only streams in use need.
    pub(crate) fn release(&mut self) {
        if self.streams.len() == 0 && !self.sent.is_waiting() {
            self.opens = VecDeque::new();
            self.lingers = VecDeque::new();
            self.fresh = VecDeque::new();
        }
    }
}
