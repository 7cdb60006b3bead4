//! How much key exchange work strangers can cause (rule C10).

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use pilotage_fault as fault;

/// Key exchange frames per second and source, and their burst (WireGuard's figures).
const SOURCE_RATE: f64 = 20.0;
const SOURCE_BURST: f64 = 5.0;
/// Key exchange frames per second in all.
const TOTAL_RATE: f64 = 200.0;
const TOTAL_BURST: f64 = 200.0;
/// Sources remembered. At the bound the table is cleared: that forgives sources, it never refuses all.
const SOURCES_MAX: usize = 4_096;

#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Bucket {
    fn take(&mut self, now: Instant, rate: f64, burst: f64) -> bool {
        let elapsed = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + elapsed * rate).min(burst);
        self.at = now;
        if self.tokens < 1.0 {
            return false;
        }
        self.tokens -= 1.0;
        true
    }
}

/// A source: the IPv4 address or the IPv6 /64. On loopback also the port, because there one address is
/// every process of the machine.
type Source = (u128, u16);

/// Token buckets per source and in all.
#[derive(Debug, Default)]
pub(super) struct ExchangeLimiter {
    sources: HashMap<Source, Bucket>,
    total: Option<Bucket>,
}

impl ExchangeLimiter {
    /// Whether a key exchange frame from this source may cost us a signature check now. A frame from where we
    /// expect one is not held back by what strangers sent.
    pub(super) fn allow(&mut self, from: SocketAddr, now: Instant, expected: bool) -> bool {
        if self.sources.len() >= SOURCES_MAX {
            self.sources.clear();
        }
        if fault::point!("proto.endpoint.exchange_limited") {
            return false;
        }
        let bucket = self.sources.entry(source(from)).or_insert(Bucket { tokens: SOURCE_BURST, at: now });
        if !bucket.take(now, SOURCE_RATE, SOURCE_BURST) {
            return false;
        }
        if expected {
            return true;
        }
        self.total.get_or_insert(Bucket { tokens: TOTAL_BURST, at: now }).take(now, TOTAL_RATE, TOTAL_BURST)
    }
}

fn source(from: SocketAddr) -> Source {
    let port = if from.ip().is_loopback() { from.port() } else { 0 };
    let address = match from.ip().to_canonical() {
        IpAddr::V4(a) => u128::from(u32::from(a)),
        IpAddr::V6(a) => u128::from(a) >> 64 << 64,
    };
    (address, port)
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)] // a base for virtual time
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_source_gets_its_burst_then_its_rate() {
        let mut limiter = ExchangeLimiter::default();
        let from: SocketAddr = "192.0.2.1:1".parse().expect("address");
        let start = Instant::now();
        let first = (0..100).filter(|_| limiter.allow(from, start, false)).count();
        assert_eq!(first, 5);
        assert!(limiter.allow(from, start + Duration::from_millis(51), false));
        assert!(!limiter.allow(from, start + Duration::from_millis(52), false));
    }

    #[test]
    fn all_sources_together_stay_below_the_total() {
        let mut limiter = ExchangeLimiter::default();
        let start = Instant::now();
        let allowed = (0..100_000u32)
            .filter(|i| limiter.allow(SocketAddr::new(IpAddr::V4((*i).into()), 9), start, false))
            .count();
        assert_eq!(allowed, 200);
        assert!(limiter.sources.len() <= SOURCES_MAX);
    }
}
