//! The connection's timers (RFC 6298, RFC 8985 §7, RFC 9293 §3.8): a fixed table, one reason each.

use std::time::{Duration, Instant};

use pilotage_fault as fault;

use super::{Connection, Cx, Dialect, Failure, State};
use crate::config::Config;
use crate::event::ConnectError;
use crate::rtt::{RtoClamp, RttEstimator};
use crate::tunnel::order::Order;
use crate::tunnel::path::Path;

/// How long a dropped connection may wait for the peer to end its direction.
pub(super) const DETACHED_LINGER: Duration = Duration::from_secs(60);
/// How long bytes may be missing after a reference peer closed (it does not retransmit then).
pub(super) const TRUNCATE_AFTER: Duration = Duration::from_secs(3);
/// How long an acknowledgement may follow a reference peer's FIN: it delays them by 40 ms.
pub(super) const LAST_ACK: Duration = Duration::from_millis(100);
/// No FIN to a reference peer sooner after it connected: it looks at its state every 10 ms, and one that it never saw
/// established it goes on dialling.
const FIN_AFTER_DIAL: Duration = Duration::from_millis(40);
/// How long a reference peer must be silent before FIN ends its direction too, while the application still reads.
const FIN_AFTER_SILENCE: Duration = Duration::from_secs(5);
/// Shortest tail-loss probe time-out: below it the scheduler of a busy machine looks like loss.
const TLP_MIN: Duration = Duration::from_millis(5);
/// Segments sent on a retransmission timeout whatever the window says (RFC 9002 §6.2.4: one or two): with heavy
/// random loss, one alone is lost so often that the back-off runs away.
const RTO_SEGMENTS: u8 = 2;
/// Longest time that Nagle's algorithm holds a small segment back (draft "Nagle").
pub(super) const NAGLE_MAX: Duration = Duration::from_millis(40);
/// Added to the time for connecting, so that a failed key exchange is reported as such.
pub(super) const HANDSHAKE_MARGIN: Duration = Duration::from_millis(100);
/// How long the RST or last ACK of a connection that is over may wait, from the last sign of life on.
const LAST_WORD: Duration = Duration::from_secs(10);
/// Longest wait between two SYN.
const SYN_MAX: Duration = Duration::from_secs(1);
/// A connection on which something came within this time has acknowledgements under way.
const RECENT: Duration = Duration::from_secs(1);
/// Bound of the back-off exponent: the clamp is reached long before.
const BACKOFF_MAX: u32 = 10;

/// Deadlines that are set by events; the retransmission timer is computed from the scoreboard.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    /// Give up the handshake.
    pub(super) handshake: Option<Instant>,
    /// Repeat SYN or SYN-ACK.
    pub(super) syn: Option<Instant>,
    /// Acknowledge a single segment.
    pub(super) delayed_ack: Option<Instant>,
    /// Stop holding a small segment back.
    pub(super) nagle: Option<Instant>,
    /// Probe a closed window.
    pub(super) persist: Option<Instant>,
    /// Send a keepalive, or give up an idle connection.
    pub(super) idle: Option<Instant>,
    /// Give up a connection that no application holds.
    pub(super) linger: Option<Instant>,
    /// A reference peer acknowledges nothing more after this.
    pub(super) last_ack: Option<Instant>,
    /// FIN to a reference peer waits until it has noticed that it is connected, and has nothing more to say.
    pub(super) fin_hold: Option<Instant>,
}

impl Timers {
    /// SYN retransmission: every 1 s without a measured RTT (RFC 6298 §2.1); sooner at first where the RTT is known. That
    /// it does not double further lets handshakes succeed where nearly half of all datagrams are lost.
    ///
    /// The wait differs by up to a quarter from one connection (`isn`) and try to the next: many that began at the same
    /// moment, after an outage, would else meet in the same short queue each second.
    pub(super) fn arm_syn(&mut self, now: Instant, transmissions: u32, isn: u32, rtt: &RttEstimator) {
        let base = if rtt.has_sample() { rtt.rto(&RtoClamp::default()) } else { Duration::from_secs(1) };
        let wait = (base * (1 << transmissions.saturating_sub(1).min(3))).min(SYN_MAX);
        let spread = wait / 1_024 * (isn.wrapping_add(transmissions).wrapping_mul(0x9E37_79B1) >> 24);
        // The first wait is never shorter than the RFC's.
        self.syn = Some(now + if transmissions <= 1 { wait + spread } else { wait - spread });
    }

    pub(super) fn arm_idle(&mut self, now: Instant, cfg: &Config) {
        self.idle = Some(now + cfg.keepalive);
    }

    fn earliest(&self) -> Option<Instant> {
        let waits = [self.handshake, self.syn, self.delayed_ack, self.nagle, self.persist];
        let ends = [self.idle, self.linger, self.last_ack, self.fin_hold];
        waits.into_iter().chain(ends).flatten().min()
    }
}

impl Connection {
    /// The next time at which something is due. May be early, never late.
    pub(crate) fn deadline(&self, path: &Path, cfg: &Config) -> Option<Instant> {
        if matches!(self.state, State::Done | State::Failed(_)) {
            return self.last_word_deadline();
        }
        [
            self.timers.earliest(),
            self.retransmit_deadline(path, cfg),
            self.board.loss_deadline(),
            self.look_deadline(path),
            self.truncate_at,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Until when the last word of a connection that is over may wait to be sent. Where nothing can leave (no keys, or an
    /// address that has proven nothing), it would hold the connection's place for ever.
    fn last_word_deadline(&self) -> Option<Instant> {
        let pending = self.rst_pending || self.ack_pending;
        let alive = self.last_received.max(self.rto_base).max(self.progress_at);
        pending.then(|| alive + LAST_WORD)
    }

    /// When the retransmission timer fires: as a probe first, then as a timeout (RFC 8985 §7.2).
    fn retransmit_deadline(&self, path: &Path, cfg: &Config) -> Option<Instant> {
        if self.board.is_empty() || self.peer_ended {
            return None;
        }
        let rtt = &path.rtt;
        if self.probe_possible() {
            return Some(self.rto_base + self.probe_timeout(path));
        }
        let rto = rtt.rto(&RtoClamp::default()) * (1 << self.backoff.min(BACKOFF_MAX));
        // The draft's clamp is 10 s; waiting longer than this would leave too few tries before giving up.
        Some(self.rto_base + rto.min(RtoClamp::default().max).min(cfg.user_timeout / 8))
    }

    fn probe_possible(&self) -> bool {
        !self.tail.out && !self.tail.wanted && self.backoff == 0 && !self.board.has_lost()
    }

    fn probe_timeout(&self, path: &Path) -> Duration {
        let (rtt, clamp) = (&path.rtt, RtoClamp::default());
        if !rtt.has_sample() {
            return clamp.initial;
        }
        let delayed = if self.board.len() <= 1 { path.order.ack_delay() } else { Duration::ZERO };
        (rtt.smoothed() * 2 + delayed).max(TLP_MIN).min(rtt.rto(&clamp) + delayed)
    }

    /// Retransmissions go unanswered: the tunnel may have lost its peer (rule C9).
    pub(crate) fn suspects_silence(&self) -> bool {
        self.backoff > 0 || self.syn_transmissions > 1 && self.state == State::SynSent
    }

    /// The retransmission timer has fired without anything new acknowledged since.
    pub(crate) fn is_backed_off(&self) -> bool {
        self.state == State::Established && self.backoff > 0
    }

    /// The peer has moved: what was sent to its old address is taken for lost, without blaming the new path.
    pub(crate) fn on_old_path_gone(&mut self, now: Instant, path: &mut Path) {
        if self.state == State::Established && now.saturating_duration_since(self.last_received) < RECENT {
            // What was acknowledged to the old address is lost as well, and the peer may be waiting for it.
            self.ack_pending = true;
        }
        if self.state != State::Established || self.board.is_empty() {
            return;
        }
        self.board.on_rto(now);
        self.sync_in_flight(path);
        self.rto_base = now;
        self.backoff = 0;
        self.tail.wanted = false;
        self.tail.out = false;
    }

    /// The peer may have moved: what is under way is sent again if it is not more than `most` bytes. How many it is.
    pub(crate) fn repeat_all(&mut self, now: Instant, path: &mut Path, most: u64) -> u64 {
        let bytes = self.board.in_flight();
        if bytes == 0 || bytes > most {
            return 0;
        }
        self.on_old_path_gone(now, path);
        bytes
    }

    /// Our own address has changed. Acknowledgements sent to the old one are lost, and a sender that waits for them has stopped:
    /// with `probe`, a segment leaves at once whatever the window says, and the peer hears where we are.
    pub(crate) fn on_moved(&mut self, now: Instant, probe: bool) {
        if self.state != State::Established {
            return;
        }
        if now.saturating_duration_since(self.last_received) < RECENT {
            self.ack_pending = true;
        }
        if !self.board.is_empty() && !self.peer_ended {
            self.rto_base = now;
            self.backoff = 0;
            self.tail.out = false;
            self.tail.wanted = probe;
        }
    }

    /// Whether the peer waits for an acknowledgement.
    pub(crate) fn owes_ack(&self) -> bool {
        self.state == State::Established
            && (self.ack_pending || self.timers.delayed_ack.is_some() || self.recv.has_holes())
    }

    /// Segments are lost, or the retransmission timer has fired without anything new acknowledged since.
    pub(crate) fn is_repairing(&self) -> bool {
        self.state == State::Established && (self.backoff > 0 || self.board.has_lost())
    }

    /// Something is to be sent again.
    pub(crate) fn has_lost(&self) -> bool {
        self.state == State::Established && !self.peer_ended && self.board.has_lost()
    }

    /// Something of ours waits for an answer of the peer.
    pub(crate) fn awaits_peer(&self) -> bool {
        match self.state {
            State::SynSent | State::SynReceived => true,
            State::Established => !self.board.is_empty() && !self.peer_ended,
            State::Done | State::Failed(_) => false,
        }
    }

    /// Does what is due at `cx.now`; being called early is harmless.
    pub(crate) fn on_timeout(&mut self, cx: &mut Cx<'_>) {
        let now = cx.now;
        if matches!(self.state, State::Done | State::Failed(_)) {
            if self.last_word_deadline().is_some_and(|t| t <= now) {
                self.rst_pending = false;
                self.ack_pending = false;
            }
            return;
        }
        if self.state == State::Established && fault::point!("proto.timers.early_keepalive") {
            self.keepalive_pending = true;
        }
        if due(&mut self.timers.handshake, now) {
            // The dialler may believe that it is connected: tell it.
            self.rst_pending = self.incoming;
            // Without a SYN sent there were no keys yet.
            let unsent = self.syn_transmissions == 0;
            let error = if unsent { ConnectError::HandshakeTimeout } else { ConnectError::Timeout };
            self.fail(Failure::Connect(error), cx.path);
            return;
        }
        if due(&mut self.timers.linger, now) {
            self.rst_pending = true;
            self.fail(Failure::TimedOut, cx.path);
            return;
        }
        if self.truncate_at.is_some_and(|t| t <= now) {
            self.on_truncate_timeout(cx.path);
            return;
        }
        if due(&mut self.timers.last_ack, now) {
            self.give_up_unacknowledged(cx.path);
        }
        // Looked at when FIN is due.
        due(&mut self.timers.fin_hold, now);
        if due(&mut self.timers.syn, now) {
            self.syn_pending = true;
            // A reference dialler sends its ACK only once, and ignores what asks for it again but data.
            self.keepalive_pending = self.state == State::SynReceived && cx.dialect == Dialect::Draft;
        }
        if due(&mut self.timers.delayed_ack, now) {
            self.on_delayed_ack(cx);
        }
        if due(&mut self.timers.nagle, now) {
            self.nagle_over = true;
        }
        if self.board.loss_deadline().is_some_and(|t| t <= now) {
            self.on_reordering_timeout(cx);
        }
        if self.look_deadline(cx.path).is_some_and(|t| t <= now) {
            self.look_at_path(cx);
        }
        if self.retransmit_deadline(cx.path, cx.cfg).is_some_and(|t| t <= now) {
            self.on_retransmit_timeout(cx);
        }
        if due(&mut self.timers.persist, now) {
            self.window_probe = true;
        }
        if due(&mut self.timers.idle, now) {
            self.on_idle(cx);
        }
    }

    /// RFC 8985 §6.2 step 5: the reordering window of some segment has passed.
    fn on_reordering_timeout(&mut self, cx: &mut Cx<'_>) {
        self.board.set_reordering(cx.path.order.reordering());
        let lost = self.board.detect_losses(cx.now, &cx.path.rtt);
        self.sync_in_flight(cx.path);
        if let (true, Some(sent)) = (lost.bytes > 0, lost.newest_sent) {
            cx.path.on_lost(cx.now, sent, lost.bytes);
        }
    }

    /// When to see whether the path has delivered anything that was sent after our oldest segment (R4.18), or after our SYN.
    fn look_deadline(&self, path: &Path) -> Option<Instant> {
        let (sent, prompt) = self.oldest_unanswered()?;
        if !path.order.is_known() {
            return None;
        }
        let due = path.order.due(sent, self.looks.repairs, prompt, &path.rtt);
        due.or_else(|| path.order.first_look(sent, &path.rtt).max(self.looks.again))
    }

    /// When the oldest segment was sent that may turn out to be lost, and whether the peer answers it at once.
    fn oldest_unanswered(&self) -> Option<(Instant, bool)> {
        match self.state {
            // Only the first: who answers none may have no room for us (spec/stream.md §2.2).
            State::SynSent | State::SynReceived if self.syn_transmissions == 1 && !self.syn_pending => {
                Some((self.syn_first_sent?, true))
            }
            // A window probe is not taken, which says nothing about the path.
            State::Established if !self.peer_ended && self.window_edge >= self.board.nxt() => {
                Some((self.board.oldest_in_flight()?, false))
            }
            _ => None,
        }
    }

    /// R4.18: takes for lost what the path should have delivered before something else that it did deliver.
    fn look_at_path(&mut self, cx: &mut Cx<'_>) {
        let Some((sent, prompt)) = self.oldest_unanswered() else { return };
        let (order, rtt, now) = (&cx.path.order, &cx.path.rtt, cx.now);
        if self.state != State::Established {
            match order.due(sent, 0, prompt, rtt).is_some_and(|t| t <= now) {
                true => self.syn_pending = true,
                false => self.looks.again = Some(Order::next_look(sent, now)),
            }
            return;
        }
        let repairs = self.looks.repairs;
        let overdue = |sent| order.due(sent, repairs, prompt, rtt).is_some_and(|t| t <= now);
        let lost = self.board.detect_overdue(overdue);
        self.sync_in_flight(cx.path);
        let Some(newest_sent) = lost.newest_sent else {
            self.looks.again = Some(Order::next_look(sent, now));
            return;
        };
        self.looks.repairs = self.looks.repairs.saturating_add(1);
        self.rto_base = now;
        self.tail.wanted = false;
        cx.path.order.on_repair(now, &cx.path.rtt);
        cx.path.on_lost(now, newest_sent, lost.bytes);
    }

    fn on_retransmit_timeout(&mut self, cx: &mut Cx<'_>) {
        // A peer that we hear is given more time than one that is silent.
        let stalled = cx.now.saturating_duration_since(self.progress_at);
        let silent = cx.now.saturating_duration_since(self.last_received);
        let limit = cx.cfg.user_timeout;
        if (stalled >= limit && silent >= limit) || stalled >= limit * 4 {
            self.rst_pending = true;
            self.fail(Failure::TimedOut, cx.path);
            return;
        }
        if self.probe_possible() && !fault::point!("proto.timers.no_tail_probe") {
            self.tail.wanted = true;
            return;
        }
        self.stats.timeouts += 1;
        self.tail.wanted = false;
        self.tail.out = true; // no probe again before something new is acknowledged
        self.backoff = (self.backoff + 1).min(BACKOFF_MAX);
        self.rto_base = cx.now;
        self.rto_credit = RTO_SEGMENTS;
        let in_flight = cx.path.in_flight;
        let lost = self.board.on_rto(cx.now);
        self.sync_in_flight(cx.path);
        // An unanswered window probe says nothing about the path.
        let probing_window = self.window_edge < self.board.nxt();
        if !probing_window {
            cx.path.on_rto(cx.now, in_flight, lost.bytes);
        }
    }

    /// RFC 9293 §3.8.6.1: the persist timer runs while the peer's window keeps data back and nothing is under way.
    pub(crate) fn arm_persist(&mut self, cx: &Cx<'_>) {
        let closed = self.window_edge <= self.send.next() || self.window_segments == 0;
        let waiting = self.state == State::Established && self.send.unsent() > 0 && self.board.is_empty();
        if closed && waiting && !self.window_probe {
            if self.timers.persist.is_none() {
                let clamp = RtoClamp::default();
                let wait = cx.path.rtt.rto(&clamp) * (1 << self.backoff.min(BACKOFF_MAX));
                self.timers.persist = Some(cx.now + wait.min(clamp.max));
                self.progress_at = cx.now;
            }
        } else if !closed {
            self.timers.persist = None;
        }
    }

    /// Draft: keepalive after 30 s of silence, close after 120 s. Counted from what the peer sent. A Pilotage
    /// peer answers keepalives, so its silence is taken for its end sooner.
    fn on_idle(&mut self, cx: &mut Cx<'_>) {
        let silent = cx.now.saturating_duration_since(self.last_received);
        let (limit, again) = match cx.dialect {
            Dialect::Pilotage => {
                let limit = cx.cfg.keepalive + cx.cfg.user_timeout;
                (limit.min(cx.cfg.idle_timeout), cx.cfg.user_timeout / 3)
            }
            Dialect::Draft => (cx.cfg.idle_timeout, cx.cfg.keepalive),
        };
        if silent >= limit {
            self.rst_pending = cx.dialect == Dialect::Pilotage;
            self.fail(Failure::TimedOut, cx.path);
            return;
        }
        // The accepting side waits a little longer, so that one keepalive and its answer serve both.
        let patience = if self.incoming { cx.cfg.keepalive * 5 / 4 } else { cx.cfg.keepalive };
        if silent >= patience {
            self.release();
            cx.path.release();
            self.keepalive_pending = true;
            self.timers.idle = Some(cx.now + again);
        } else {
            // Comes by about as often as the keepalive would, in a connection that is in use too.
            self.recv.trim();
            self.send.trim();
            self.timers.idle = Some(self.last_received + patience);
        }
    }

    /// Gives back all memory that holds nothing.
    fn release(&mut self) {
        self.recv.release();
        self.send.release();
        self.board.release();
        if self.sacks_kept.is_empty() {
            self.sacks_kept = Vec::new();
        }
    }

    /// Until when FIN has to wait: it would end a reference peer's direction, too.
    pub(super) fn fin_waits_until(&self) -> Instant {
        let dialled = self.established_at + FIN_AFTER_DIAL;
        match (self.detached, self.incoming) {
            (false, _) => dialled.max(self.last_received + FIN_AFTER_SILENCE),
            (true, true) => dialled,
            (true, false) => self.established_at,
        }
    }

    /// A reference peer has ended both directions: what it did not acknowledge until now, it never will.
    fn give_up_unacknowledged(&mut self, path: &mut Path) {
        self.board.abandon();
        self.sync_in_flight(path);
    }

    /// The peer is a new process that knows nothing of this connection, and must not hear of it.
    pub(crate) fn on_peer_reborn(&mut self, path: &mut Path) {
        if self.state != State::SynSent {
            self.fail(Failure::Reset, path);
            self.rst_pending = false;
        }
    }

    /// The peer brought new keys: it may be a new process that knows nothing of us. Ask.
    pub(crate) fn probe_liveness(&mut self) {
        if self.state == State::Established && !self.peer_ended {
            self.keepalive_pending = true;
        }
    }
}

/// Takes a deadline that has come.
fn due(deadline: &mut Option<Instant>, now: Instant) -> bool {
    if deadline.is_some_and(|t| t <= now) {
        *deadline = None;
        return true;
    }
    false
}
