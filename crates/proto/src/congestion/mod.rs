//! Congestion control of one *path*, shared by all connections that run over it.
//!
//! # Contract
//!
//! One [`AnyController`] and one [`Pacer`](pacer::Pacer) per path. Every connection has its own
//! [`Scoreboard`](crate::scoreboard::Scoreboard); what these find out comes here as events, with `in_flight` always
//! being the sum over all connections of the path, in stream bytes. As scoreboards have no sequence numbers in
//! common, rounds and recovery episodes are told apart by *send times*, as in RFC 9002.
//!
//! Per acknowledgement: [`on_ack`](Controller::on_ack) with what was delivered, then
//! [`on_spurious_bytes`](Controller::on_spurious_bytes) and [`on_loss`](Controller::on_loss) where there is something
//! to tell. Before sending: [`send_allowance`](Controller::send_allowance), then the pacer. After sending:
//! [`on_sent`](Controller::on_sent), for retransmissions and probes too.
//!
//! Normative text: `spec/recovery.md` sections 5 to 7.

use std::time::{Duration, Instant};

use crate::rtt::RttEstimator;

mod bbr;
mod cubic;
mod delivery;
mod episode;
mod hystart;
mod newreno;
pub mod pacer;
mod prr;
#[cfg(test)]
mod tests;

pub use bbr::Bbr;
pub use cubic::Cubic;
pub use newreno::NewReno;

/// Which congestion controller a path uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ControllerKind {
    /// AIMD as in the draft (RFC 5681, RFC 6582, RFC 3465).
    NewReno,
    /// RFC 9438.
    Cubic,
    /// The default. By a model of the path (after draft-ietf-ccwg-bbr): what is lost at random hardly slows it down.
    #[default]
    Bbr,
}

/// Data was newly delivered, cumulatively or selectively.
#[derive(Debug, Clone, Copy)]
pub struct AckEvent {
    /// Bytes newly delivered.
    pub bytes: u64,
    /// When the most recently sent of them was sent.
    pub newest_sent: Instant,
    /// Whether that one was sent while the application or the peer's window was the limit.
    pub app_limited: bool,
    /// Bytes in flight on the path before this acknowledgement.
    pub in_flight_before: u64,
}

/// A congestion control algorithm. Units are bytes of stream data.
pub trait Controller {
    /// `bytes` were sent; `in_flight` is what is in flight on the path now, these included.
    fn on_sent(&mut self, now: Instant, bytes: u64, in_flight: u64);

    /// Data was newly delivered. `rtt` already has the sample of this acknowledgement, if there was one.
    fn on_ack(&mut self, now: Instant, ack: &AckEvent, rtt: &RttEstimator);

    /// `lost_bytes` were taken for lost; the most recently sent of them was sent at `newest_lost_sent`. Begins a
    /// recovery episode, with one reduction, only if that was after the present episode began. `in_flight`
    /// no longer counts the lost bytes.
    fn on_loss(&mut self, now: Instant, newest_lost_sent: Instant, lost_bytes: u64, in_flight: u64);

    /// The retransmission timer fired. `in_flight` is what was in flight just before (it is taken for lost now).
    fn on_rto(&mut self, now: Instant, in_flight: u64);

    /// `bytes` that were taken for lost turned out to be delivered. When all losses of an episode did, its
    /// reduction is taken back (in the spirit of the Eifel response, RFC 4015).
    fn on_spurious_bytes(&mut self, bytes: u64);

    /// Takes the reduction of the present episode back at once. For a caller that knows all its losses to be
    /// spurious; else use [`on_spurious_bytes`](Self::on_spurious_bytes). Works once per episode.
    fn on_spurious_loss(&mut self);

    /// The congestion window, in bytes.
    fn window(&self) -> u64;

    /// Bytes that may be sent now (in recovery by PRR, RFC 6937), before pacing and the peer's window.
    fn send_allowance(&self, in_flight: u64) -> u64;

    /// The slow start threshold, in bytes; `None` before the first loss.
    fn ssthresh(&self) -> Option<u64>;

    /// Whether PRR governs sending, for the loss of the last round trip.
    fn in_recovery(&self) -> bool;

    /// Whether segments that are sent again wait for the pacer too. Where PRR bounds them they need not.
    fn paces_retransmissions(&self) -> bool {
        false
    }

    /// The segment size of the path changed. The window is raised where it would hold less than the initial window
    /// (before any loss) or two segments (after); it is never lowered.
    fn set_mss(&mut self, mss: u64);

    /// Gives memory back. Only while nothing is in flight.
    fn release(&mut self) {}

    /// The pace, in bytes per second: twice the window per round trip in slow start, else 1.25 times. `None` before
    /// the first round-trip sample.
    fn pacing_rate(&self, rtt: &RttEstimator) -> Option<u64>;
}

/// The window to start with: ten segments, but more than about 15 kB only where two segments are more
/// (RFC 6928 section 2, RFC 9002 section 7.2).
pub fn initial_window(mss: u64) -> u64 {
    (10 * mss).min(14_720.max(2 * mss))
}

/// One of the algorithms, dispatched without a heap allocation.
#[derive(Debug, Clone)]
pub enum AnyController {
    /// See [`NewReno`].
    NewReno(NewReno),
    /// See [`Cubic`].
    Cubic(Cubic),
    /// See [`Bbr`].
    Bbr(Box<Bbr>),
}

impl AnyController {
    /// A controller in slow start. All sizes in bytes; see [`fn@initial_window`] for a good one. The window never
    /// exceeds `max_window` (or two segments, where that is more).
    pub fn new(kind: ControllerKind, mss: u64, initial_window: u64, max_window: u64) -> Self {
        match kind {
            ControllerKind::NewReno => Self::NewReno(NewReno::new(mss, initial_window, max_window)),
            ControllerKind::Cubic => Self::Cubic(Cubic::new(mss, initial_window, max_window)),
            ControllerKind::Bbr => Self::Bbr(Box::new(Bbr::new(mss, initial_window, max_window))),
        }
    }
}

macro_rules! dispatch {
    ($self:ident, $inner:ident => $call:expr) => {
        match $self {
            AnyController::NewReno($inner) => $call,
            AnyController::Cubic($inner) => $call,
            AnyController::Bbr($inner) => $call,
        }
    };
}

impl Controller for AnyController {
    fn on_sent(&mut self, now: Instant, bytes: u64, in_flight: u64) {
        dispatch!(self, c => c.on_sent(now, bytes, in_flight))
    }

    fn on_ack(&mut self, now: Instant, ack: &AckEvent, rtt: &RttEstimator) {
        dispatch!(self, c => c.on_ack(now, ack, rtt))
    }

    fn on_loss(&mut self, now: Instant, newest_lost_sent: Instant, lost_bytes: u64, in_flight: u64) {
        dispatch!(self, c => c.on_loss(now, newest_lost_sent, lost_bytes, in_flight))
    }

    fn on_rto(&mut self, now: Instant, in_flight: u64) {
        dispatch!(self, c => c.on_rto(now, in_flight))
    }

    fn on_spurious_bytes(&mut self, bytes: u64) {
        dispatch!(self, c => c.on_spurious_bytes(bytes))
    }

    fn on_spurious_loss(&mut self) {
        dispatch!(self, c => c.on_spurious_loss())
    }

    fn window(&self) -> u64 {
        dispatch!(self, c => c.window())
    }

    fn send_allowance(&self, in_flight: u64) -> u64 {
        dispatch!(self, c => c.send_allowance(in_flight))
    }

    fn ssthresh(&self) -> Option<u64> {
        dispatch!(self, c => c.ssthresh())
    }

    fn in_recovery(&self) -> bool {
        dispatch!(self, c => c.in_recovery())
    }

    fn paces_retransmissions(&self) -> bool {
        dispatch!(self, c => c.paces_retransmissions())
    }

    fn set_mss(&mut self, mss: u64) {
        dispatch!(self, c => c.set_mss(mss))
    }

    fn release(&mut self) {
        dispatch!(self, c => c.release())
    }

    fn pacing_rate(&self, rtt: &RttEstimator) -> Option<u64> {
        dispatch!(self, c => c.pacing_rate(rtt))
    }
}

/// `window` per `smoothed` round trip, in bytes per second, times `numerator / 4`.
fn rate(window: u64, smoothed: Duration, numerator: u64) -> u64 {
    let nanos = smoothed.as_nanos().max(1);
    let rate = u128::from(window) * u128::from(numerator) * 250_000_000 / nanos;
    u64::try_from(rate).unwrap_or(u64::MAX)
}
