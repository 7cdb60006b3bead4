//! A model-based controller after BBR version 3 (draft-ietf-ccwg-bbr): it measures how fast the path delivers and how
//! short its round trip is, and keeps about that product in flight, instead of filling a queue until it overflows.
//!
//! Names are the draft's. What differs, and why (`spec/recovery.md` R5.12 to R5.20):
//!
//! * Loss counts as congestion only beyond a share that the path also loses without being pushed. Radio links and
//!   policed ones lose some per cent at any rate, which would halve the draft's rate again and again.
//! * The delivery rate is measured by send times, not per packet ([`DeliveryRate`]): many connections share a path.
//! * What several flows take from each other is evened out by a term that does not grow with the rate: a few segments more
//!   in the window.
//! * A round trip within a thirtieth of the shortest one confirms it, so that a path with a little jitter is not
//!   drained every five seconds only to see the same value again.

use std::time::{Duration, Instant};

use super::delivery::DeliveryRate;
use super::{AckEvent, Controller, initial_window, rate};
use crate::rtt::RttEstimator;

/// Where the controller is in its cycle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Doubles each round until the rate stops growing.
    Startup,
    /// Empties the queue that Startup made.
    Drain,
    /// A little below the rate, until what is in flight fits.
    Down,
    /// At the rate, for some seconds.
    Cruise,
    /// One round at the rate with the short-term bounds lifted.
    Refill,
    /// Above the rate: is there more?
    Up,
    /// Half of what fits, to see the path without our queue.
    ProbeRtt,
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Bbr {
    mss: u64,
    window: u64,
    max_window: u64,
    initial: u64,
    /// When the path carried its first bytes.
    began: Option<Instant>,
    phase: Phase,
    phase_since: Option<Instant>,
    delivery: DeliveryRate,
    /// The highest rate of this cycle and the one before, bytes per second.
    max_rate: [u64; 2],
    min_rtt: Option<Duration>,
    min_rtt_at: Option<Instant>,
    /// The shortest time to an answer while nothing but retransmissions was acknowledged, as after a change of the path.
    /// These give no round-trip sample (RFC 6298 §3), but without any measure a pipe would be filled without end.
    answer_time: Option<Duration>,
    /// Until when the round trip is probed, and where to go then.
    probe_rtt_until: Option<Instant>,
    /// The shortest round trip of this probe of it, and of the one before.
    probed: [Option<Duration>; 2],
    round: Round,
    /// Rounds without growth of the rate, and the rate that growth is measured against.
    full: FullPipe,
    /// Largest amount in flight that was safe, once it is known.
    inflight_hi: Option<u64>,
    /// Bounds after congestion, until the next probe.
    inflight_lo: Option<u64>,
    /// When to probe for bandwidth, and the rounds until then at the latest.
    probe_at: Option<Instant>,
    rounds_to_probe: u64,
    aggregation: Aggregation,
    /// Share of losses that the path has anyway.
    loss_floor: f64,
    /// The timer fired: the window grows from one segment again.
    after_rto: bool,
}

/// One round trip, told apart by what was delivered.
#[derive(Debug, Clone, Copy, Default)]
struct Round {
    ends_at: u64,
    began_at: u64,
    count: u64,
    lost: u64,
    /// The most that was in flight.
    peak: u64,
    min_rtt: Option<Duration>,
    limited: bool,
}

#[derive(Debug, Clone, Copy, Default)]
struct FullPipe {
    rate: u64,
    rounds: u32,
    reached: bool,
    /// It was loss that said so: the rate may not have been found yet.
    by_loss: bool,
    /// The rate at the end of the last round, and whether it grew in it.
    last: u64,
    growing: bool,
}

/// How much more than the rate is acknowledged at once: links and receivers collect acknowledgements.
#[derive(Debug, Clone, Default)]
struct Aggregation {
    since: Option<Instant>,
    bytes: u64,
    /// The most of the last ten rounds, in two halves.
    extra: [u64; 2],
    round: u64,
}

impl Bbr {
    /// See [`AnyController::new`](super::AnyController::new).
    pub fn new(mss: u64, initial_window: u64, max_window: u64) -> Self {
        let mss = mss.max(1);
        let max_window = max_window.max(MIN_SEGMENTS * mss);
        let window = initial_window.max(first_window(mss)).clamp(2 * mss, max_window);
        Self {
            mss,
            window,
            max_window,
            initial: window,
            began: None,
            phase: Phase::Startup,
            phase_since: None,
            delivery: DeliveryRate::default(),
            max_rate: [0; 2],
            min_rtt: None,
            min_rtt_at: None,
            answer_time: None,
            probe_rtt_until: None,
            probed: [None; 2],
            round: Round::default(),
            full: FullPipe::default(),
            inflight_hi: None,
            inflight_lo: None,
            probe_at: None,
            rounds_to_probe: 0,
            aggregation: Aggregation::default(),
            loss_floor: 0.0,
            after_rto: false,
        }
    }

    fn bandwidth(&self) -> u64 {
        self.max_rate[0].max(self.max_rate[1])
    }

    /// What fits into the path, times `gain`. Before anything was measured: the initial window.
    fn fits(&self, gain: f64) -> u64 {
        match self.min_rtt.or(self.answer_time) {
            Some(rtt) if self.bandwidth() > 0 => {
                (self.bandwidth() as f64 * rtt.max(HOST_DELAY).as_secs_f64() * gain) as u64
            }
            _ => (self.initial as f64 * gain) as u64,
        }
    }

    /// What is sent in one go at the pace of the path (draft §4.6.4).
    fn quantum(&self) -> u64 {
        let least = self.mss.max((2 * self.mss).min(QUANTUM_MAX));
        (self.bandwidth() / 1_000).clamp(least, QUANTUM_MAX.max(least))
    }

    fn pacing_gain(&self) -> f64 {
        match self.phase {
            Phase::Startup => STARTUP_GAIN,
            Phase::Drain => DRAIN_GAIN,
            Phase::Down => DOWN_GAIN,
            Phase::Up => UP_GAIN,
            Phase::Cruise | Phase::Refill | Phase::ProbeRtt => 1.0,
        }
    }

    fn window_gain(&self) -> f64 {
        match self.phase {
            Phase::ProbeRtt => PROBE_RTT_GAIN,
            Phase::Up => UP_WINDOW_GAIN,
            _ => WINDOW_GAIN,
        }
    }

    // ------------------------------------------------------------------ the model

    fn measure(&mut self, now: Instant, ack: &AckEvent, latest: Duration) -> bool {
        let shortest = self.min_rtt.unwrap_or(latest);
        let sample = self.delivery.on_ack(now, ack.newest_sent, ack.bytes, shortest);
        self.round.min_rtt = Some(self.round.min_rtt.map_or(latest, |m| m.min(latest)));
        self.round.limited |= ack.app_limited;
        let Some(sample) = sample else { return false };
        if !ack.app_limited || sample.rate >= self.bandwidth() {
            self.max_rate[1] = self.max_rate[1].max(sample.rate);
        }
        sample.delivered_then >= self.round.ends_at
    }

    fn update_min_rtt(&mut self, now: Instant, latest: Duration) {
        if self.phase == Phase::ProbeRtt && self.probe_rtt_until.is_some() {
            self.probed[1] = Some(self.probed[1].map_or(latest, |m| m.min(latest)));
        }
        let Some(shortest) = self.min_rtt else {
            (self.min_rtt, self.min_rtt_at) = (Some(latest), Some(now));
            return;
        };
        let age = self.min_rtt_at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        if latest <= shortest || age >= MIN_RTT_KEPT {
            (self.min_rtt, self.min_rtt_at) = (Some(latest), Some(now));
        } else if latest <= shortest + shortest / 32 {
            self.min_rtt_at = Some(now);
        } else if age >= PROBE_RTT_AFTER && self.phase != Phase::ProbeRtt && self.full.reached {
            self.enter(Phase::ProbeRtt, now);
        }
    }

    /// Whether the round trips of this round had a queue in them.
    fn is_queued(&self) -> bool {
        match (self.round.min_rtt, self.min_rtt) {
            (Some(round), Some(shortest)) => round > shortest + (shortest / 8).max(QUEUE_SEEN),
            _ => false,
        }
    }

    /// Whether this round lost more than a path may lose that is not overloaded. `true` only once per round.
    fn is_congested(&self) -> bool {
        let delivered = self.delivery.delivered().saturating_sub(self.round.began_at);
        let sent = (delivered + self.round.lost).max(1);
        let share = self.round.lost as f64 / sent as f64;
        let queued = self.is_queued();
        let allowed = LOSS_SHARE + 2.0 * self.loss_floor;
        self.round.lost > FEW_LOSSES * self.mss && (share > allowed && queued || share > LOSS_SHARE_ALWAYS)
    }

    fn end_round(&mut self, now: Instant) {
        let congested = self.is_congested();
        let delivered = self.delivery.delivered().saturating_sub(self.round.began_at).max(1);
        if matches!(self.phase, Phase::Down | Phase::Cruise) {
            let share = self.round.lost as f64 / (delivered + self.round.lost) as f64;
            self.loss_floor = (self.loss_floor * 0.75 + share * 0.25).min(LOSS_FLOOR_MAX);
        }
        // While probing finds more, it goes on.
        self.full.growing = self.bandwidth() as f64 > self.full.last as f64 * 1.05;
        self.full.last = self.bandwidth();
        if congested {
            self.yield_to_congestion(now);
        }
        if self.phase == Phase::Startup {
            self.check_full_pipe(congested);
        }
        let delivered = self.delivery.delivered();
        self.round = Round {
            began_at: delivered,
            ends_at: delivered,
            count: self.round.count + 1,
            ..Round::default()
        };
        self.rounds_to_probe = self.rounds_to_probe.saturating_sub(1);
    }

    /// Draft §4.5: bounded, once per round.
    fn yield_to_congestion(&mut self, now: Instant) {
        let fits = self.fits(1.0);
        match self.phase {
            Phase::Up | Phase::Startup | Phase::Refill => {
                // The most that was in flight is where the queue overflowed, or beyond.
                // While the rate is still being found it says nothing about that.
                let most = if self.phase == Phase::Startup { u64::MAX } else { self.fits(UP_GAIN) };
                let safe = self.round.peak.min(most).max((fits as f64 * BETA) as u64);
                self.inflight_hi = Some(safe.max(MIN_SEGMENTS * self.mss));
                if self.phase != Phase::Startup {
                    self.enter(Phase::Down, now);
                }
            }
            _ => {
                let before = self.inflight_lo.unwrap_or(self.window);
                let lower = (before as f64 * BETA) as u64;
                self.inflight_lo = Some(lower.max(MIN_SEGMENTS * self.mss));
            }
        }
    }

    /// Draft §4.3.1.2: the pipe is full when three rounds bring no quarter more.
    fn check_full_pipe(&mut self, congested: bool) {
        if congested {
            self.full.by_loss |= !self.full.reached;
            self.full.reached = true;
        }
        if self.round.limited {
            return;
        }
        if self.bandwidth() as f64 >= self.full.rate as f64 * 1.25 {
            self.full.rate = self.bandwidth();
            self.full.rounds = 0;
            return;
        }
        self.full.rounds += 1;
        self.full.reached |= self.full.rounds >= 3;
    }

    // ------------------------------------------------------------------ the cycle

    fn enter(&mut self, phase: Phase, now: Instant) {
        match phase {
            Phase::Down => {
                // A cycle in which nothing could be measured, as they are short inside one machine, says nothing.
                if self.phase == Phase::Up && self.max_rate[1] > 0 {
                    self.max_rate = [self.max_rate[1], 0];
                }
                // Two to three seconds; the fraction differs from cycle to cycle so that flows do not march in step.
                let spread = self.delivery.delivered().wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 54;
                self.probe_at = now.checked_add(PROBE_WAIT + Duration::from_millis(spread));
                self.rounds_to_probe = (self.fits(1.0) / self.mss).min(RENO_ROUNDS_MAX);
                // What was lost of the last round was not measured: in a short queue that is half of it.
                if std::mem::take(&mut self.full.by_loss) {
                    self.rounds_to_probe = PROBE_SOON;
                }
            }
            Phase::Refill => {
                self.inflight_lo = None;
                self.round.ends_at = self.delivery.delivered();
            }
            Phase::ProbeRtt => (self.probe_rtt_until, self.probed) = (None, [self.probed[1], None]),
            _ => {}
        }
        self.phase = phase;
        self.phase_since = Some(now);
    }

    fn advance(&mut self, now: Instant, acked: u64, in_flight: u64, round_over: bool) {
        let here = self.phase_since.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        let shortest = self.span();
        match self.phase {
            Phase::Startup if self.full.reached => self.enter(Phase::Drain, now),
            Phase::Startup => {}
            Phase::Drain if in_flight <= self.fits(1.0) + self.quantum() || here > shortest * 4 => {
                self.enter(Phase::Down, now);
            }
            Phase::Drain => {}
            Phase::Down | Phase::Cruise if self.is_time_to_probe(now) => self.enter(Phase::Refill, now),
            Phase::Down if in_flight <= self.with_headroom().max(self.quantum()) || here > shortest * 2 => {
                self.phase = Phase::Cruise;
            }
            Phase::Refill if round_over => {
                self.enter(Phase::Up, now);
            }
            Phase::Up => {
                // The window may end less than a segment above what is in flight.
                let limited = self.inflight_hi.is_some_and(|hi| in_flight + acked + self.mss > hi);
                let enough = limited || in_flight >= self.fits(UP_GAIN);
                if limited && let Some(hi) = self.inflight_hi {
                    // No loss so far at what was the limit: it may be higher.
                    self.inflight_hi = Some(hi.saturating_add(self.mss));
                }
                if round_over && here >= shortest && (enough || here > shortest * 3) && !self.full.growing {
                    self.enter(Phase::Down, now);
                }
            }
            Phase::ProbeRtt => self.probe_rtt(now, in_flight),
            Phase::Down | Phase::Cruise | Phase::Refill => {}
        }
    }

    /// The shortest time in which another pace shows: a round trip, but not less than timers tell apart, nor than some
    /// segments take. Inside one machine both are far longer than the round trip.
    fn span(&self) -> Duration {
        let segments =
            Duration::from_secs_f64(SPAN_SEGMENTS * self.mss as f64 / self.bandwidth().max(1) as f64);
        self.min_rtt.unwrap_or(Duration::ZERO).max(SPAN_MIN).max(segments.min(SPAN_MAX))
    }

    fn is_time_to_probe(&self, now: Instant) -> bool {
        self.probe_at.is_some_and(|at| now >= at) || self.rounds_to_probe == 0
    }

    fn probe_rtt(&mut self, now: Instant, in_flight: u64) {
        match self.probe_rtt_until {
            None if in_flight <= self.fits(PROBE_RTT_GAIN).max(MIN_SEGMENTS * self.mss) => {
                let round_trip = self.min_rtt.unwrap_or_default();
                self.probe_rtt_until = now.checked_add(PROBE_RTT_TIME.max(round_trip));
            }
            Some(until) if now >= until => {
                self.min_rtt_at = Some(now);
                if let [Some(before), Some(seen)] = self.probed {
                    // R5.19: the path has become longer. One probe alone may have seen the queue of others.
                    self.min_rtt = self.min_rtt.max(Some(before.min(seen)));
                }
                self.enter(Phase::Down, now);
                self.phase = Phase::Cruise;
            }
            _ => {}
        }
    }

    /// Room for others below what was safe (draft §4.3.3.6).
    fn with_headroom(&self) -> u64 {
        let fits = self.fits(1.0);
        self.inflight_hi.map_or(fits, |hi| fits.min((hi as f64 * HEADROOM) as u64))
    }

    /// R5.18: what each flow may have beyond what grows with its rate.
    fn even(&self) -> u64 {
        EVEN_SEGMENTS * self.mss.min(EVEN_SEGMENT_MAX)
    }

    fn update_window(&mut self, acked: u64) {
        let even = if self.full.reached { self.even() } else { 0 };
        let model = self.fits(self.window_gain()) + self.aggregation.most() + even;
        let target = model.max(3 * self.quantum()).max(MIN_SEGMENTS * self.mss);
        let target = if self.phase == Phase::ProbeRtt { self.fits(PROBE_RTT_GAIN) } else { target };
        if self.full.reached && !self.after_rto {
            self.window = target.min(self.window.saturating_add(acked));
        } else if self.window < target || self.delivery.delivered() < self.initial {
            self.window = self.window.saturating_add(acked);
        }
        self.after_rto &= self.window < target;
        let mut bound = self.max_window;
        match self.phase {
            Phase::Startup => {}
            Phase::Down | Phase::Cruise | Phase::Drain => {
                bound = bound.min(self.inflight_hi.map_or(u64::MAX, |hi| (hi as f64 * HEADROOM) as u64));
                bound = bound.min(self.inflight_lo.unwrap_or(u64::MAX));
            }
            Phase::Refill | Phase::Up | Phase::ProbeRtt => {
                bound = bound.min(self.inflight_hi.unwrap_or(u64::MAX));
            }
        }
        self.window = self.window.min(bound).clamp(self.floor(), self.max_window);
    }

    /// Fewer segments would only measure delayed acknowledgements.
    fn floor(&self) -> u64 {
        if self.after_rto { self.mss } else { MIN_SEGMENTS * self.mss }
    }
}

impl Aggregation {
    fn on_ack(&mut self, now: Instant, bytes: u64, bandwidth: u64, window: u64, round: u64) {
        if round >= self.round + 5 {
            self.round = round;
            self.extra = [self.extra[1], 0];
        }
        let since = *self.since.get_or_insert(now);
        let expected = bandwidth as f64 * now.saturating_duration_since(since).as_secs_f64();
        if self.bytes as f64 <= expected {
            (self.since, self.bytes) = (Some(now), bytes);
        } else {
            self.bytes += bytes;
        }
        let since = self.since.unwrap_or(now);
        let expected = bandwidth as f64 * now.saturating_duration_since(since).as_secs_f64();
        let extra = (self.bytes as f64 - expected).max(0.0) as u64;
        self.extra[1] = self.extra[1].max(extra.min(window));
    }

    fn most(&self) -> u64 {
        self.extra[0].max(self.extra[1])
    }
}

impl Controller for Bbr {
    fn on_sent(&mut self, now: Instant, bytes: u64, in_flight: u64) {
        self.began.get_or_insert(now);
        self.delivery.on_sent(now, in_flight <= bytes, self.min_rtt);
        self.round.peak = self.round.peak.max(in_flight);
    }

    fn on_ack(&mut self, now: Instant, ack: &AckEvent, rtt: &RttEstimator) {
        let latest = if rtt.has_sample() {
            rtt.latest()
        } else {
            let answer = now.saturating_duration_since(ack.newest_sent);
            *self.answer_time.insert(self.answer_time.map_or(answer, |shortest| shortest.min(answer)))
        };
        let round_over = self.measure(now, ack, latest);
        if rtt.has_sample() {
            self.update_min_rtt(now, latest);
        }
        if round_over {
            self.end_round(now);
        }
        let (bandwidth, round) = (self.bandwidth(), self.round.count);
        self.aggregation.on_ack(now, ack.bytes, bandwidth, self.window, round);
        let in_flight = ack.in_flight_before.saturating_sub(ack.bytes);
        self.advance(now, ack.bytes, in_flight, round_over);
        self.update_window(ack.bytes);
    }

    fn on_loss(&mut self, _now: Instant, newest_lost_sent: Instant, lost_bytes: u64, _in_flight: u64) {
        // What was sent before this path was there says nothing about it.
        if self.began.is_none_or(|began| newest_lost_sent < began) {
            return;
        }
        self.round.lost = self.round.lost.saturating_add(lost_bytes);
    }

    fn on_rto(&mut self, _now: Instant, in_flight: u64) {
        self.round.lost = self.round.lost.saturating_add(in_flight);
        self.after_rto = true;
        self.window = self.mss;
    }

    fn on_spurious_bytes(&mut self, bytes: u64) {
        self.round.lost = self.round.lost.saturating_sub(bytes);
    }

    fn on_spurious_loss(&mut self) {
        self.round.lost = 0;
    }

    fn window(&self) -> u64 {
        self.window
    }

    fn send_allowance(&self, in_flight: u64) -> u64 {
        self.window.saturating_sub(in_flight)
    }

    fn ssthresh(&self) -> Option<u64> {
        None
    }

    fn in_recovery(&self) -> bool {
        false
    }

    fn paces_retransmissions(&self) -> bool {
        true
    }

    fn release(&mut self) {
        self.delivery.release();
    }

    fn set_mss(&mut self, mss: u64) {
        self.mss = mss.max(1);
        self.max_window = self.max_window.max(MIN_SEGMENTS * self.mss);
        let floor = if self.full.reached || self.after_rto { self.floor() } else { first_window(self.mss) };
        self.initial = self.initial.max(first_window(self.mss).min(self.max_window));
        self.window = self.window.max(floor).min(self.max_window);
    }

    fn pacing_rate(&self, rtt: &RttEstimator) -> Option<u64> {
        let bandwidth = self.bandwidth();
        if !rtt.has_sample() && bandwidth == 0 {
            return None;
        }
        let gain = self.pacing_gain();
        let measured = (bandwidth as f64 * gain * PACING_MARGIN) as u64;
        if self.phase != Phase::Startup {
            return Some(measured.max(1));
        }
        // Until the pipe is full the window tells more than the first small samples.
        let round_trip = self.answer_time.filter(|_| !rtt.has_sample()).unwrap_or(rtt.smoothed());
        let by_window = rate(self.window.max(self.initial), round_trip, 8);
        Some(measured.max(by_window).max(1))
    }
}

/// R5.17: three times the usual first window, because it is spread over the round trip that the key exchange has measured.
/// Not more than 32 segments of Ethernet's size, or what is usual.
fn first_window(mss: u64) -> u64 {
    (FIRST_SEGMENTS * mss).min(FIRST_SEGMENTS * 1_472).max(initial_window(mss))
}

/// 4 ln 2: the pace at which each round doubles (draft §2.4).
const STARTUP_GAIN: f64 = 2.77;
const DRAIN_GAIN: f64 = 0.5;
const DOWN_GAIN: f64 = 0.9;
const UP_GAIN: f64 = 1.25;
const WINDOW_GAIN: f64 = 2.0;
const UP_WINDOW_GAIN: f64 = 2.25;
const PROBE_RTT_GAIN: f64 = 0.5;
/// Just below the rate, so that a queue goes away in time.
const PACING_MARGIN: f64 = 0.99;
const HEADROOM: f64 = 0.85;
const BETA: f64 = 0.7;
/// Loss that a path may have (draft: LossThresh), where a queue is seen as well.
const LOSS_SHARE: f64 = 0.02;
/// Loss that is too much whatever the round trips say: a policer, or a queue of a few packets.
const LOSS_SHARE_ALWAYS: f64 = 0.15;
/// No path is forgiven more than this.
const LOSS_FLOOR_MAX: f64 = 0.03;
/// Segments whose loss in one round says nothing.
const FEW_LOSSES: u64 = 2;
/// Growth of the round trip that is a queue and not a whim of the scheduler.
const QUEUE_SEEN: Duration = Duration::from_millis(2);
const MIN_RTT_KEPT: Duration = Duration::from_secs(10);
const PROBE_RTT_AFTER: Duration = Duration::from_secs(5);
const PROBE_RTT_TIME: Duration = Duration::from_millis(200);
const PROBE_WAIT: Duration = Duration::from_secs(2);
/// Rounds after which a flow of NewReno would have grown back (draft §4.3.3.5.1).
const RENO_ROUNDS_MAX: u64 = 63;
/// Rounds to the next probe where Startup was ended by loss.
const PROBE_SOON: u64 = 2;
/// See [`Bbr::even`]; a large datagram is not more than one of Ethernet's size.
const EVEN_SEGMENTS: u64 = 8;
const EVEN_SEGMENT_MAX: u64 = 1_472;
const MIN_SEGMENTS: u64 = 4;
const FIRST_SEGMENTS: u64 = 32;
/// One GSO batch.
const QUANTUM_MAX: u64 = 64 << 10;
/// What hosts need to wake up and answer, however short the wire is; the shortest round trip seen does not have it.
const HOST_DELAY: Duration = Duration::from_millis(1);
/// Bounds of [`Bbr::span`] where the round trip is shorter, and the segments that it covers.
const SPAN_MIN: Duration = Duration::from_millis(4);
const SPAN_MAX: Duration = Duration::from_millis(100);
const SPAN_SEGMENTS: f64 = 8.0;
