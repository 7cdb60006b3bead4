//! Datagram packetization layer path MTU discovery (RFC 8899) for one path.
//!
//! Sizes are UDP payloads in bytes. Normative text: `spec/recovery.md` section 8.
//!
//! # Flow
//!
//! 1. One optimistic probe at the maximum. On loopback and inside machines it is acknowledged, and the search is
//!    over after one round trip.
//! 2. Else up the table of sizes (`SIZES`) that common links carry: one round trip per step.
//! 3. A size that fails three times (`MAX_PROBES`) bounds the search; between the largest that passed and the smallest that
//!    failed: what remains of the table, then bisection down to 20 bytes (`STEP`).
//! 4. Complete. After ten minutes (`RAISE_TIMER`) everything above the present size is tried again.
//! 5. A black hole (see [`on_lost`](MtuDiscovery::on_lost) and [`on_rto`](MtuDiscovery::on_rto)) falls back to the base
//!    size at once and begins anew.
//!
//! A probe counts as failed only if something else was acknowledged since it was sent: while a path is silent, silence
//! says nothing about sizes, and the probe is repeated with back-off.

use std::time::{Duration, Instant};

use pilotage_fault as fault;

/// Search for the largest datagram that a path carries.
#[derive(Debug, Clone)]
pub struct MtuDiscovery {
    base: usize,
    max: usize,
    enabled: bool,
    /// Known to pass.
    current: usize,
    /// Smallest size known to fail in this search; `max + 1` if none is.
    failed: usize,
    /// Whether the optimistic probe of this search was made.
    tried_max: bool,
    state: State,
    /// Time to wait for a probe's acknowledgement.
    probe_timeout: Duration,
    /// Consecutive loss events of datagrams above the base size without an acknowledgement of one as large.
    full_losses: u32,
    /// The smallest datagram of these.
    smallest_lost: usize,
    /// When the last of them was: several losses at one time are one event.
    last_full_loss: Option<Instant>,
    /// Consecutive retransmission timeouts without an acknowledgement of a full-sized datagram.
    timeouts: u32,
    /// Black holes since data last passed above the base size, or the raise timer fired.
    fallbacks: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The next size can be probed.
    Ready,
    /// This probe can be sent once more, if a time is given not before it.
    Repeat { probe: Probe, not_before: Option<Instant> },
    /// A probe is out.
    Probing(Probe),
    /// Searched up to the smallest failing size; anew at the given time, or never where there is nothing to find.
    Complete { raise_at: Option<Instant> },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Probe {
    size: usize,
    sent: Instant,
    /// The first try at the maximum: its failure proves nothing yet.
    optimistic: bool,
    /// Attempts that failed.
    failures: u32,
    /// Attempts that met a silent path.
    unheard: u32,
    /// Something was acknowledged since it was sent.
    path_alive: bool,
}

impl MtuDiscovery {
    /// `base` is believed without a probe and is never gone below; nothing above `max` is ever tried. If not `enabled`,
    /// the size stays at `base`.
    pub fn new(base: usize, max: usize, enabled: bool) -> Self {
        let max = max.max(base);
        Self {
            base,
            max,
            enabled,
            current: base,
            failed: max + 1,
            tried_max: false,
            state: if enabled && max > base { State::Ready } else { State::Complete { raise_at: None } },
            probe_timeout: DEFAULT_PROBE_TIMEOUT,
            full_losses: 0,
            smallest_lost: usize::MAX,
            last_full_loss: None,
            timeouts: 0,
            fallbacks: 0,
        }
    }

    /// The largest UDP payload known to pass, in bytes.
    pub fn current(&self) -> usize {
        self.current
    }

    /// Whether the search is over for now.
    pub fn is_complete(&self) -> bool {
        matches!(self.state, State::Complete { .. })
    }

    /// Derives the time to wait for a probe's acknowledgement from the smoothed round-trip time: three of them, between
    /// 50 ms and 30 s. Without it one second is used (RFC 8899 section 5.1.1).
    pub fn set_rtt(&mut self, smoothed: Duration) {
        self.probe_timeout = smoothed.saturating_mul(3).clamp(MIN_PROBE_TIMEOUT, MAX_PROBE_TIMEOUT);
    }

    /// The size of the probe to send now, if one is due. It counts as sent at `now`; at most one is out at a time.
    /// A probe must not be repeated by other means, and its loss is no sign of congestion.
    pub fn poll_probe(&mut self, now: Instant) -> Option<usize> {
        self.poll_probe_within(now, usize::MAX)
    }

    /// As [`Self::poll_probe`], with at most `limit` bytes: a probe larger than the congestion window would push out the
    /// data that the connection lives on (RFC 8899 section 4.1 point 9).
    pub fn poll_probe_within(&mut self, now: Instant, limit: usize) -> Option<usize> {
        let probe = match self.state {
            State::Ready => self.next_probe(now, limit)?,
            State::Repeat { probe, not_before }
                if probe.size <= limit && not_before.is_none_or(|at| now >= at) =>
            {
                Probe { sent: now, path_alive: false, ..probe }
            }
            State::Repeat { .. } | State::Probing(_) | State::Complete { .. } => return None,
        };
        self.state = State::Probing(probe);
        Some(probe.size)
    }

    /// A probe of `size` bytes was acknowledged, in time or late.
    pub fn on_probe_acked(&mut self, size: usize, _now: Instant) {
        if !self.enabled || size <= self.current || size > self.max || fault::point!("proto.mtud.lose_probe")
        {
            return;
        }
        self.current = size;
        self.reset_black_hole();
        if self.failed <= size {
            // It passes after all.
            self.failed = self.max + 1;
        }
        match self.state {
            State::Probing(probe) | State::Repeat { probe, .. } if probe.size > size => {}
            _ => self.state = State::Ready,
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) must be called.
    pub fn timeout(&self) -> Option<Instant> {
        match self.state {
            State::Ready => None,
            State::Repeat { not_before, .. } => not_before,
            State::Probing(probe) => probe.sent.checked_add(self.probe_timeout),
            State::Complete { raise_at } => raise_at,
        }
    }

    /// Handles the probe timer and the raise timer. Poll for a probe afterwards.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.timeout().is_none_or(|at| now < at) {
            return;
        }
        match self.state {
            State::Ready => {}
            // Due for as long as nobody polls; no timer runs meanwhile.
            State::Repeat { probe, .. } => self.state = State::Repeat { probe, not_before: None },
            State::Probing(_) => self.on_probe_timeout(now),
            State::Complete { .. } => {
                self.fallbacks = 0;
                self.restart();
            }
        }
    }

    /// The probe that is out was lost, by the timer or by any other means to know.
    pub fn on_probe_timeout(&mut self, now: Instant) {
        let State::Probing(mut probe) = self.state else { return };
        // R8.4
        if !probe.path_alive {
            probe.unheard = (probe.unheard + 1).min(MAX_BACKOFF);
            let wait = self.probe_timeout.saturating_mul(1 << probe.unheard);
            self.state = State::Repeat { probe, not_before: now.checked_add(wait) };
            return;
        }
        probe.failures += 1;
        self.state = if probe.optimistic {
            // Tried again in its turn.
            State::Ready
        } else if probe.failures >= MAX_PROBES {
            self.failed = self.failed.min(probe.size);
            State::Ready
        } else {
            State::Repeat { probe, not_before: None }
        };
    }

    /// The local stack (EMSGSIZE) or a validated ICMP message told that `size` bytes are too many.
    pub fn on_too_big(&mut self, size: usize) {
        if size <= self.base || size > self.max {
            return;
        }
        self.failed = self.failed.min(size);
        if self.current >= size {
            self.fall_back();
        }
        if let State::Probing(probe) | State::Repeat { probe, .. } = self.state
            && probe.size >= size
        {
            self.state = State::Ready;
        }
    }

    /// A datagram of `size` bytes (not a probe) is known to have arrived. To be called with the largest one that an
    /// acknowledgement covers.
    pub fn on_acked(&mut self, size: usize) {
        if let State::Probing(probe) = &mut self.state {
            probe.path_alive = true;
        }
        if size >= self.smallest_lost {
            self.reset_black_hole();
        }
        if size >= self.full_size() {
            self.reset_black_hole();
            if self.current > self.base {
                // Data passes at this size: what looked like a black hole was an outage.
                self.fallbacks = 0;
            }
        }
    }

    /// (R8.6) A datagram of `size` bytes (not a probe) was taken for lost because something sent later arrived. After
    /// [`BLACK_HOLE_LOSSES`] such events in a row for datagrams above the base size, without one as large that arrives,
    /// only smaller ones pass: the size falls back to the base. The current size does not matter, because the segment
    /// that is stuck may be one of a few that were cut smaller.
    pub fn on_lost(&mut self, now: Instant, size: usize) {
        if size <= self.base || self.current == self.base || self.last_full_loss == Some(now) {
            return;
        }
        self.smallest_lost = self.smallest_lost.min(size);
        self.last_full_loss = Some(now);
        self.full_losses += 1;
        if self.full_losses >= BLACK_HOLE_LOSSES {
            self.fall_back();
        }
    }

    /// (R8.6) The retransmission timer fired with datagrams above the base size in flight. After [`BLACK_HOLE_TIMEOUTS`] in a row the
    /// size falls back to the base (RFC 4821 section 7.7, "full-stop timeout"): when every datagram is full-sized, no
    /// smaller one can show that it would pass. If it was a mere outage, the next search mends it in some round
    /// trips.
    pub fn on_rto(&mut self) {
        if self.current == self.base {
            return;
        }
        self.timeouts += 1;
        if self.timeouts >= BLACK_HOLE_TIMEOUTS {
            self.fall_back();
        }
    }

    /// Datagrams down to somewhat less than the current size count as full: headers and segment sizes differ a little.
    fn full_size(&self) -> usize {
        (self.current - self.current / 8).max(self.base + 1).min(self.current)
    }

    fn fall_back(&mut self) {
        self.fallbacks += 1;
        if self.fallbacks >= MAX_FALLBACKS {
            // R8.7: probes of this size pass and data does not: stay below it until the raise timer.
            self.failed = self.failed.min(self.current);
        }
        self.current = self.base;
        self.reset_black_hole();
        // What failed before will hardly pass now that less does.
        let failed = self.failed;
        self.restart();
        self.failed = failed;
    }

    fn restart(&mut self) {
        self.failed = self.max + 1;
        self.tried_max = false;
        self.state = State::Ready;
    }

    fn reset_black_hole(&mut self) {
        self.full_losses = 0;
        self.smallest_lost = usize::MAX;
        self.last_full_loss = None;
        self.timeouts = 0;
    }

    /// The size that passes without having been probed.
    pub fn base(&self) -> usize {
        self.base
    }

    /// Chooses the next size, or completes the search (R8.3, R8.5).
    fn next_probe(&mut self, now: Instant, limit: usize) -> Option<Probe> {
        let mut optimistic = !self.tried_max && self.failed > self.max;
        self.tried_max |= self.max <= limit;
        optimistic &= self.tried_max;
        let size = if optimistic && self.current < self.max { Some(self.max) } else { self.next_size() };
        if size.is_some_and(|size| size > limit) {
            return None; // later, when the window has grown
        }
        let Some(size) = size else {
            // With nothing above to find there is nothing to try again.
            let raise_at = if self.current < self.max { now.checked_add(RAISE_TIMER) } else { None };
            self.state = State::Complete { raise_at };
            return None;
        };
        Some(Probe { size, sent: now, optimistic, failures: 0, unheard: 0, path_alive: false })
    }

    fn next_size(&self) -> Option<usize> {
        let open = |size: &usize| *size > self.current && *size < self.failed && *size <= self.max;
        let listed = SIZES.iter().copied().chain([self.max]).filter(open).min();
        let gap = self.failed - self.current;
        listed.or((gap > STEP && self.current < self.max).then_some(self.current + gap / 2))
    }
}

/// Sizes that common links carry: IPv6 minimum, tunnels, PPPoE and IPv6 on Ethernet, Ethernet, a full segment of the
/// reference (4,096 bytes and headers), jumbo frames, and what loopback interfaces carry.
const SIZES: [usize; 9] = [1280, 1372, 1452, 1472, 4166, 8952, 16_384, 32_768, 65_507];
/// Bisection ends when this little can be gained.
const STEP: usize = 20;
/// RFC 8899 section 5.1.2 (MAX_PROBES).
const MAX_PROBES: u32 = 3;
/// RFC 8899 section 5.1.1 (PMTU_RAISE_TIMER).
const RAISE_TIMER: Duration = Duration::from_secs(600);
/// RFC 8899 section 5.1.1 (PROBE_TIMER) without a round-trip time.
const DEFAULT_PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// Shorter ones would measure the scheduler.
const MIN_PROBE_TIMEOUT: Duration = Duration::from_millis(50);
const MAX_PROBE_TIMEOUT: Duration = Duration::from_secs(30);
/// On a silent path the wait doubles up to this many times.
const MAX_BACKOFF: u32 = 6;
/// Loss events in a row that make a black hole.
pub const BLACK_HOLE_LOSSES: u32 = 3;
/// Retransmission timeouts in a row that make a black hole.
pub const BLACK_HOLE_TIMEOUTS: u32 = 2;
/// Black holes, with no data passing in between, after which a size is not tried again before the raise timer.
const MAX_FALLBACKS: u32 = 3;

#[cfg(test)]
mod tests;
