//! The way to a peer: route, RTT, MTU, congestion and pacing, shared by all connections of the tunnel.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::config::Config;
use crate::congestion::pacer::Pacer;
use crate::congestion::{AnyController, Controller, initial_window};
use crate::event::{PathInfo, PathKind};
use crate::mtud::MtuDiscovery;
use crate::rtt::{RtoClamp, RttEstimator};
use crate::tunnel::OVERHEAD;
use crate::tunnel::order::Order;

/// Bytes that the relay puts before a frame: type, sender, destination (spec/nat.md, relay).
pub(crate) const RELAY_PREFIX: usize = 9;
/// Congestion window bound, far above any path that 32-bit sequence numbers can fill.
const MAX_WINDOW: u64 = 1 << 30;
/// Largest datagram tried through a relay: its own path is unknown to us.
const RELAY_DATAGRAM: usize = 1_200;

/// A host learns of a change of its address at most so long afterwards (where nobody tells it looks five times a second).
const TOLD_WITHIN: Duration = Duration::from_millis(300);
/// One change is often told as two: an address went, another one came.
const ONE_CHANGE: Duration = Duration::from_millis(100);
/// At most one change excuses losses in this time, so that a host whose addresses never rest goes on to heed congestion.
const EXCUSED_EVERY: Duration = Duration::from_millis(800);

/// Where frames for the peer are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    /// Straight to the peer.
    Direct(SocketAddr),
    /// Through the relay at this address.
    Relay(SocketAddr),
}

impl Route {
    pub(crate) fn remote(self) -> SocketAddr {
        match self {
            Self::Direct(a) | Self::Relay(a) => a,
        }
    }

    /// Bytes that stand before a tunnel frame on this route.
    pub(crate) fn prefix(self) -> usize {
        if matches!(self, Self::Relay(_)) { RELAY_PREFIX } else { 0 }
    }

    pub(crate) fn kind(self) -> PathKind {
        match self {
            Self::Direct(_) => PathKind::Direct,
            Self::Relay(_) => PathKind::Relay,
        }
    }
}

/// A change of our own address: when the host first told of it, and when last.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moved {
    began: Instant,
    told: Instant,
}

/// State of the path in use.
#[derive(Debug)]
pub(crate) struct Path {
    pub(crate) route: Option<Route>,
    pub(crate) rtt: RttEstimator,
    pub(crate) controller: AnyController,
    pub(crate) pacer: Pacer,
    pub(crate) mtu: MtuDiscovery,
    /// Bytes of all connections that are neither acknowledged nor known to be lost.
    pub(crate) in_flight: u64,
    /// What all connections together know about the order of delivery.
    pub(crate) order: Order,
    /// A bare acknowledgement has left: what other connections hold back follows (spec/stream.md §5.2b).
    pub(crate) ack_left: bool,
    /// A full-sized segment has come, of whatever connection, that none of them has been asked to acknowledge.
    full_unacked: bool,
    /// When the pacer allows the next data, if it held some back.
    pub(crate) paced_until: Option<Instant>,
    /// When the last valid frame came on the direct route.
    pub(crate) direct_heard: Option<Instant>,
    /// The last change of our own address that excuses losses.
    pub(crate) moved: Option<Moved>,
    /// Payload bytes sent since the path began; MTU probing starts only where there is traffic.
    pub(crate) bytes_sent: u64,
    /// The endpoint holds more unread bytes than it should: take and promise no more.
    pub(crate) squeezed: bool,
    /// Bytes around a payload in a datagram, prefix excluded.
    pub(crate) overhead: usize,
    /// The segment size that controller and pacer know.
    known_mss: u64,
}

impl Path {
    pub(crate) fn new(route: Option<Route>, cfg: &Config) -> Self {
        let relayed = matches!(route, Some(Route::Relay(_)));
        let max = if relayed { RELAY_DATAGRAM } else { cfg.max_datagram_size };
        let base = cfg.initial_datagram_size.min(max);
        let mtu = MtuDiscovery::new(base, max, cfg.mtu_discovery && !relayed);
        let mss = (base - OVERHEAD) as u64;
        Self {
            route,
            rtt: RttEstimator::new(RtoClamp::default().initial),
            controller: AnyController::new(cfg.congestion, mss, initial_window(mss), MAX_WINDOW),
            pacer: Pacer::new(mss),
            mtu,
            in_flight: 0,
            order: Order::default(),
            ack_left: false,
            full_unacked: false,
            paced_until: None,
            direct_heard: None,
            moved: None,
            bytes_sent: 0,
            squeezed: false,
            overhead: OVERHEAD,
            known_mss: mss,
        }
    }

    /// Largest UDP payload to send now.
    pub(crate) fn datagram_size(&self) -> usize {
        self.mtu.current()
    }

    /// Bytes that stand before the tunnel frame.
    pub(crate) fn prefix(&self) -> usize {
        self.route.map_or(0, Route::prefix)
    }

    /// Largest payload of one packet now.
    pub(crate) fn mss(&self) -> usize {
        self.datagram_size() - self.overhead - self.prefix()
    }

    /// Whether `len` bytes of new data may leave now by congestion window and pacer.
    pub(crate) fn may_send(&mut self, now: Instant, len: u64) -> bool {
        if self.in_flight > 0 && self.controller.send_allowance(self.in_flight) < len {
            return false;
        }
        match self.pacer.allow(now, len, self.controller.pacing_rate(&self.rtt)) {
            Ok(()) => true,
            Err(at) => {
                self.paced_until = Some(at);
                false
            }
        }
    }

    /// Counts a full-sized segment that came in order; true for every second one of all connections.
    pub(crate) fn is_second_full(&mut self) -> bool {
        self.full_unacked = !self.full_unacked;
        !self.full_unacked
    }

    /// `bytes` left; they are part of `in_flight` already.
    pub(crate) fn on_sent(&mut self, now: Instant, bytes: u64) {
        self.bytes_sent += bytes;
        self.controller.on_sent(now, bytes, self.in_flight);
        self.pacer.on_sent(now, bytes);
    }

    /// `bytes` were acknowledged: at least one full-sized segment was among them if there are so many.
    pub(crate) fn on_delivered(&mut self, bytes: u64) {
        let size = self.size_of(bytes);
        self.mtu.on_acked(size);
    }

    /// Our own address has changed.
    pub(crate) fn on_moved(&mut self, now: Instant) {
        self.moved = match self.moved {
            Some(Moved { began, .. }) if now.saturating_duration_since(began) < ONE_CHANGE => {
                Some(Moved { began, told: now })
            }
            Some(before) if now.saturating_duration_since(before.began) < EXCUSED_EVERY => Some(before),
            _ => Some(Moved { began: now, told: now }),
        };
    }

    /// Whether the loss of what left at `sent` says something about the path (spec/recovery.md R5.8a). A host that changes its
    /// address has none for a moment, and the network never saw what left then.
    pub(crate) fn is_blamed(&self, sent: Instant) -> bool {
        self.moved.is_none_or(|moved| sent > moved.told || sent + TOLD_WITHIN < moved.began)
    }

    /// `bytes` in segments sent up to `sent` were lost.
    pub(crate) fn on_lost(&mut self, now: Instant, sent: Instant, bytes: u64) {
        if !self.is_blamed(sent) {
            return;
        }
        self.controller.on_loss(now, sent, bytes, self.in_flight);
        let size = self.size_of(bytes);
        self.mtu.on_lost(now, size);
        self.update_mss();
    }

    /// A connection's retransmission timer fired with `in_flight` bytes of the path outstanding, of which `lost` are
    /// taken for lost.
    pub(crate) fn on_rto(&mut self, now: Instant, in_flight: u64, lost: u64) {
        self.controller.on_rto(now, in_flight);
        if self.size_of(lost) > self.mtu.base() {
            self.mtu.on_rto();
            self.update_mss();
        }
    }

    /// Size of the largest datagram that carried so many payload bytes.
    fn size_of(&self, bytes: u64) -> usize {
        let payload = usize::try_from(bytes).unwrap_or(usize::MAX).min(self.mss());
        payload + self.overhead + self.prefix()
    }

    /// Frames of another mode leave from now on.
    pub(crate) fn set_overhead(&mut self, overhead: usize) {
        self.overhead = overhead;
        self.update_mss();
    }

    /// After the MTU may have changed.
    pub(crate) fn update_mss(&mut self) {
        let mss = self.mss() as u64;
        if mss != self.known_mss {
            self.known_mss = mss;
            self.controller.set_mss(mss);
            self.pacer.set_mss(mss);
        }
    }

    /// Gives back memory that only a path in use needs. Nothing may be in flight, else it is left alone.
    pub(crate) fn release(&mut self) {
        if self.in_flight == 0 {
            self.controller.release();
        }
    }

    /// Time to wait for a valid frame before the peer is asked for new keys (rule C9): twice the RTO.
    pub(crate) fn silence_bound(&self) -> Duration {
        self.rtt.rto(&RtoClamp::default()) * 2
    }

    pub(crate) fn info(&self) -> Option<PathInfo> {
        let route = self.route?;
        Some(PathInfo {
            kind: route.kind(),
            remote: pilotage_nat::side::real(route.remote()),
            rtt: if self.rtt.has_sample() { self.rtt.smoothed() } else { Duration::ZERO },
            min_rtt: if self.rtt.has_sample() { self.rtt.min() } else { Duration::ZERO },
            datagram_size: self.datagram_size(),
            congestion_window: self.controller.window(),
            in_flight: self.in_flight,
        })
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::*;

    #[test]
    fn a_change_of_our_address_excuses_what_left_around_it_and_many_do_not_excuse_everything() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut path = Path::new(None, &Config::default());
        assert!(path.is_blamed(at(5_000)));
        path.on_moved(at(5_000));
        path.on_moved(at(5_020));
        for (sent, blamed) in [(4_600, true), (4_701, false), (5_010, false), (5_020, false), (5_021, true)] {
            assert_eq!(path.is_blamed(at(sent)), blamed, "{sent}");
        }
        // Addresses that come and go all the time; a loss is noticed a tenth of a second later.
        let mut blamed = 0;
        for ms in 6_000..16_000 {
            if ms % 50 == 0 {
                path.on_moved(at(ms));
            }
            blamed += u32::from(path.is_blamed(at(ms - 100)));
        }
        assert!(blamed > 5_000, "{blamed} of 10,000");
    }
}
