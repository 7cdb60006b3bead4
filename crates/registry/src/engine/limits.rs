//! Rate limits per source (spec/registry.md §9.1): the generic cell rate algorithm, one timestamp per class.

use super::{Config, RateLimits, Refusal};
use pilotage_fault as fault;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// The limits are per minute, and so is the burst.
const WINDOW: Duration = Duration::from_secs(60);
/// A full table is searched for idle sources at most this often.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// What a request counts as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    Challenge,
    Register,
    Update,
    Heartbeat,
    Lookup,
    Resolve,
    Beacon,
    Guess,
}

const CLASSES: usize = 8;

/// "Theoretical arrival time" per class: how far ahead of now the source has already used its share.
type Cells = [Option<Instant>; CLASSES];

#[derive(Debug)]
pub(super) struct Limiter {
    rates: RateLimits,
    sources: HashMap<IpAddr, Cells>,
    /// Shared by all sources that found the table full.
    overflow: Cells,
    max_sources: usize,
    swept: Option<Instant>,
}

impl Limiter {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            rates: config.rates,
            sources: HashMap::new(),
            overflow: [None; CLASSES],
            max_sources: config.max_sources,
            swept: None,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.sources.len()
    }

    /// Counts one request, or says when the next one is allowed.
    pub(super) fn charge(&mut self, now: Instant, source: IpAddr, class: Class) -> Result<(), Refusal> {
        let (limit, what) = self.limit(class);
        if limit == 0 {
            return Ok(());
        }
        // Others behind the same address have used it up.
        if fault::point!("registry.engine.limited") {
            return Err(Refusal::RateLimited { what, retry: Duration::from_secs(1) });
        }
        let interval = WINDOW / limit;
        let cell = &mut self.cells(now, prefix(source))[class as usize];
        let next = cell.map_or(now, |at| at.max(now)) + interval;
        let ahead = next - now;
        if ahead > WINDOW {
            return Err(Refusal::RateLimited { what, retry: ahead - WINDOW });
        }
        *cell = Some(next);
        Ok(())
    }

    /// What [`Limiter::charge`] would say, without counting.
    pub(super) fn check(&mut self, now: Instant, source: IpAddr, class: Class) -> Result<(), Refusal> {
        let (limit, what) = self.limit(class);
        if limit == 0 {
            return Ok(());
        }
        let cell = self.cells(now, prefix(source))[class as usize];
        let ahead = cell.map_or(now, |at| at.max(now)) + WINDOW / limit - now;
        if ahead > WINDOW {
            return Err(Refusal::RateLimited { what, retry: ahead - WINDOW });
        }
        Ok(())
    }

    fn limit(&self, class: Class) -> (u32, &'static str) {
        let rates = &self.rates;
        match class {
            Class::Challenge => (rates.challenge, "challenge"),
            Class::Register => (rates.register, "registration"),
            Class::Update => (rates.update, "update"),
            Class::Heartbeat => (rates.heartbeat, "heartbeat"),
            Class::Lookup => (rates.lookup, "lookup"),
            Class::Resolve => (rates.resolve, "resolve"),
            Class::Beacon => (rates.beacon, "beacon"),
            Class::Guess => (rates.guess, "wrong-token"),
        }
    }

    fn cells(&mut self, now: Instant, source: IpAddr) -> &mut Cells {
        if !self.sources.contains_key(&source) && self.sources.len() >= self.max_sources {
            let sweep = self.swept.is_none_or(|at| now.duration_since(at) >= SWEEP_INTERVAL);
            if sweep {
                self.swept = Some(now);
                // A cell in the past is the same as no cell.
                self.sources.retain(|_, cells| cells.iter().flatten().any(|at| *at > now));
            }
            if self.sources.len() >= self.max_sources {
                return &mut self.overflow;
            }
        }
        self.sources.entry(source).or_insert([None; CLASSES])
    }
}

/// One IPv6 host owns a whole /64, so that is what is counted.
fn prefix(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => {
            let bits = u128::from_be_bytes(v6.octets()) & !u128::from(u64::MAX);
            IpAddr::V6(Ipv6Addr::from(bits))
        }
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test needs some starting point in time")]
mod tests {
    use super::*;

    fn limiter(register: u32, max_sources: usize) -> Limiter {
        let config = Config {
            rates: RateLimits { register, ..RateLimits::UNLIMITED },
            max_sources,
            ..Config::default()
        };
        Limiter::new(&config)
    }

    fn ip(n: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, n])
    }

    #[test]
    fn a_minute_of_requests_at_once_then_at_the_rate() {
        let start = Instant::now();
        let mut limiter = limiter(10, 100);
        for _ in 0..10 {
            assert_eq!(limiter.charge(start, ip(1), Class::Register), Ok(()));
        }
        let refused = limiter.charge(start, ip(1), Class::Register);
        assert_eq!(
            refused,
            Err(Refusal::RateLimited { what: "registration", retry: Duration::from_secs(6) })
        );
        // Others, and other classes, are not concerned.
        assert_eq!(limiter.charge(start, ip(2), Class::Register), Ok(()));
        assert_eq!(limiter.charge(start, ip(1), Class::Lookup), Ok(()));
        // Refused requests do not count.
        for _ in 0..100 {
            assert!(limiter.charge(start, ip(1), Class::Register).is_err());
        }
        let later = start + Duration::from_secs(6);
        assert_eq!(limiter.charge(later, ip(1), Class::Register), Ok(()));
        assert!(limiter.charge(later, ip(1), Class::Register).is_err());
    }

    #[test]
    fn a_slash_64_is_one_source_and_mapped_v4_is_v4() {
        let now = Instant::now();
        let mut limiter = limiter(1, 100);
        let addr = |text: &str| text.parse::<IpAddr>().unwrap();
        assert!(limiter.charge(now, addr("2001:db8::1"), Class::Register).is_ok());
        assert!(limiter.charge(now, addr("2001:db8::ffff:2"), Class::Register).is_err());
        assert!(limiter.charge(now, addr("2001:db8:0:1::1"), Class::Register).is_ok());
        assert!(limiter.charge(now, addr("::ffff:192.0.2.1"), Class::Register).is_ok());
        assert!(limiter.charge(now, ip(1), Class::Register).is_err());
    }

    #[test]
    fn the_table_is_bounded_and_the_overflow_is_shared() {
        let start = Instant::now();
        let mut limiter = limiter(2, 3);
        for n in 0..3 {
            assert!(limiter.charge(start, ip(n), Class::Register).is_ok());
        }
        assert!(limiter.charge(start, ip(3), Class::Register).is_ok());
        assert!(limiter.charge(start, ip(4), Class::Register).is_ok());
        assert!(limiter.charge(start, ip(5), Class::Register).is_err(), "shared entry is used up");
        assert_eq!(limiter.len(), 3);
        // Idle sources make room.
        let later = start + Duration::from_secs(61);
        assert!(limiter.charge(later, ip(5), Class::Register).is_ok());
        assert_eq!(limiter.len(), 1);
    }
}
