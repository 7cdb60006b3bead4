//! What keeps a flood of initiations cheap: bounded tables, rates per source, the measure of load, the register of early
//! data (spec/secure.md §6, §10).

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::cookie::Source;

/// Entries of the tables by source and by initiator.
pub const TABLE_MAX: usize = 65_536;
/// Initiations of one source that are worked on in a row.
const BURST: u32 = 5;
/// Then one in this time: 20 a second.
const INTERVAL: Duration = Duration::from_millis(50);
/// PILCs to one source in a row, and more in each [`INTERVAL`].
const COOKIE_BURST: u32 = 100;
/// PILCs in one second to whoever asks; beyond, only to who asks again.
pub const COOKIES_AT_ONCE: u32 = 10_000;
/// Classes of sources that are told apart then: 2 MiB for each of two periods.
const RETURNING_BITS: usize = 1 << 24;
/// A source is remembered for one to two periods. No shorter than the longest wait of a caller between two tries
/// ([`super::association::RETRY_LONGEST`]): else one whose first tries were lost in the queue of the socket would be new each time.
const RETURNING_PERIOD: Duration = super::association::RETRY_LONGEST;
/// What is answered without being known is counted by this.
const SECOND: Duration = Duration::from_secs(1);
/// Initiations with a right `mac1` in one second beyond which cookies are asked for.
pub const BUSY_RATE: u32 = 500;
/// Unconfirmed sessions beyond which cookies are asked for.
pub const BUSY_UNCONFIRMED: usize = 512;
/// Initiations with early data that one half of the register holds.
pub const STRIKES_MAX: usize = 65_536;
/// Time that one half of the register covers.
const STRIKES_PERIOD: Duration = Duration::from_secs(20);

/// A map with a bound. A newcomer replaces any entry, chosen at random: nobody can fill it against others.
#[derive(Debug)]
pub(crate) struct Table<K, V> {
    entries: Vec<(K, V)>,
    places: HashMap<K, usize>,
    max: usize,
}

impl<K: Copy + Eq + Hash, V> Table<K, V> {
    pub(crate) fn new(max: usize) -> Self {
        Self { entries: Vec::new(), places: HashMap::new(), max: max.max(1) }
    }

    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        self.places.get(key).map(|at| &self.entries[*at].1)
    }

    /// The value of a key, made if it was not there. `random` chooses who makes room.
    pub(crate) fn entry(&mut self, key: K, random: u32, make: impl FnOnce() -> V) -> &mut V {
        let at = match self.places.get(&key) {
            Some(at) => *at,
            None if self.entries.len() < self.max => {
                self.entries.push((key, make()));
                self.entries.len() - 1
            }
            None => {
                let at = random as usize % self.entries.len();
                let (old, _) = std::mem::replace(&mut self.entries[at], (key, make()));
                self.places.remove(&old);
                at
            }
        };
        self.places.insert(key, at);
        &mut self.entries[at].1
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        assert_eq!(self.entries.len(), self.places.len());
        self.entries.len()
    }
}

/// What counts as one source: an IPv4 address, an IPv6 /64, a node behind a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Prefix {
    V4([u8; 4]),
    V6([u8; 8]),
    Relayed(u32),
}

impl Prefix {
    fn of(source: &Source) -> Self {
        match (source.relayed, source.addr.ip()) {
            (Some(node), _) => Self::Relayed(node.0),
            (None, IpAddr::V4(ip)) => Self::V4(ip.octets()),
            (None, IpAddr::V6(ip)) => {
                let mut prefix = [0; 8];
                prefix.copy_from_slice(&ip.octets()[..8]);
                Self::V6(prefix)
            }
        }
    }
}

#[derive(Debug)]
struct Bucket {
    left: u32,
    refilled: Instant,
}

impl Bucket {
    /// `burst` at most, and `each` more after every interval.
    fn take(&mut self, now: Instant, (burst, each): (u32, u32)) -> bool {
        let more = now.saturating_duration_since(self.refilled).as_millis() / INTERVAL.as_millis();
        if more > 0 {
            let more = more.min(u128::from(burst)) as u32;
            self.left = (self.left + more * each).min(burst);
            // What is left of an interval counts towards the next, unless the bucket is full.
            self.refilled = if self.left == burst { now } else { self.refilled + INTERVAL * more };
        }
        let taken = self.left > 0;
        self.left -= u32::from(taken);
        taken
    }
}

/// How often each source may make us work.
#[derive(Debug)]
pub(crate) struct Rates {
    buckets: Table<Prefix, Bucket>,
    rate: (u32, u32),
}

impl Rates {
    /// Five in a row, then 20 a second.
    pub(crate) fn new() -> Self {
        Self { buckets: Table::new(TABLE_MAX), rate: (BURST, 1) }
    }

    /// For answers that cost little: a hundred in a row, then 2,000 a second.
    pub(crate) fn of_cookies() -> Self {
        Self { buckets: Table::new(TABLE_MAX), rate: (COOKIE_BURST, COOKIE_BURST) }
    }

    pub(crate) fn take(&mut self, source: &Source, random: u32, now: Instant) -> bool {
        let rate = self.rate;
        let fresh = || Bucket { left: rate.0, refilled: now };
        self.buckets.entry(Prefix::of(source), random, fresh).take(now, rate)
    }
}

/// Who asks again under a great flood. An answer costs three times what it costs to throw a frame away; most forged frames are from
/// addresses that never come back, and whoever really calls comes back after half a second at first, after five at last.
#[derive(Debug)]
pub(crate) struct Returning {
    /// One bit for each of [`RETURNING_BITS`] classes of sources, of this period and of the one before. Empty until needed.
    halves: [Vec<u64>; 2],
    turned: Instant,
    /// Answers left of this second to whoever asks.
    left: u32,
    second: Instant,
}

impl Returning {
    pub(crate) fn new(now: Instant) -> Self {
        Self { halves: Default::default(), turned: now, left: COOKIES_AT_ONCE, second: now }
    }

    /// A great flood is on: nobody is answered without having asked before.
    pub(crate) fn is_full(&mut self, now: Instant) -> bool {
        self.turn(now);
        self.left == 0
    }

    /// Whether to answer. `class` is a keyed hash of the source: nobody else can tell which sources share one.
    pub(crate) fn admits(&mut self, class: u64, now: Instant) -> bool {
        self.turn(now);
        let free = self.left > 0;
        self.left = self.left.saturating_sub(1);
        if self.halves[0].is_empty() {
            if free {
                return true;
            }
            self.halves = [(); 2].map(|()| vec![0; RETURNING_BITS / 64]);
        }
        // Noted also if it is answered anyway: it comes back with its cookie when none are left.
        let at = (class % RETURNING_BITS as u64) as usize;
        let (word, bit) = (at / 64, 1 << (at % 64));
        let known = self.halves.iter().any(|half| half[word] & bit != 0);
        self.halves[0][word] |= bit;
        free || known
    }

    fn turn(&mut self, now: Instant) {
        if now.saturating_duration_since(self.second) >= SECOND {
            (self.second, self.left) = (now, COOKIES_AT_ONCE);
        }
        let since = now.saturating_duration_since(self.turned);
        if since >= RETURNING_PERIOD {
            self.halves.swap(0, 1);
            self.halves[0].fill(0);
            if since >= 2 * RETURNING_PERIOD {
                self.halves[1].fill(0);
            }
            self.turned = now;
        }
    }
}

/// Whether initiations come faster than they can be answered.
#[derive(Debug)]
pub(crate) struct Load {
    second: Instant,
    count: u32,
    busy_until: Option<Instant>,
}

impl Load {
    pub(crate) fn new(now: Instant) -> Self {
        Self { second: now, count: 0, busy_until: None }
    }

    /// An initiation with a right `mac1` came.
    pub(crate) fn on_initiation(&mut self, now: Instant) {
        if now.saturating_duration_since(self.second) >= Duration::from_secs(1) {
            self.second = now;
            self.count = 0;
        }
        self.count = self.count.saturating_add(1);
        if self.count > BUSY_RATE {
            self.strain(now);
        }
    }

    /// Whatever else shows that there is too much to do. Lasts a second.
    pub(crate) fn strain(&mut self, now: Instant) {
        self.busy_until = Some(now + Duration::from_secs(1));
    }

    pub(crate) fn is_busy(&self, now: Instant) -> bool {
        self.busy_until.is_some_and(|until| now < until)
    }
}

/// Initiations whose early data was taken in the last 20 to 40 seconds.
#[derive(Debug)]
pub(crate) struct Strikes {
    halves: [HashSet<[u8; 16]>; 2],
    turned: Instant,
}

impl Strikes {
    pub(crate) fn new(now: Instant) -> Self {
        Self { halves: Default::default(), turned: now }
    }

    /// Whether this is the first time; if it cannot be told, it is not.
    pub(crate) fn strike(&mut self, id: [u8; 16], now: Instant) -> bool {
        let since = now.saturating_duration_since(self.turned);
        if since >= STRIKES_PERIOD {
            let old = std::mem::take(&mut self.halves[0]);
            self.halves[1] = if since < 2 * STRIKES_PERIOD { old } else { HashSet::new() };
            self.turned = now;
        }
        let known = self.halves.iter().any(|half| half.contains(&id));
        if known || self.halves[0].len() >= STRIKES_MAX {
            return false;
        }
        self.halves[0].insert(id)
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use pilotage_wire::NodeId;

    use super::*;

    fn source(ip: [u8; 4]) -> Source {
        Source { addr: (ip, 9).into(), relayed: None }
    }

    #[test]
    fn a_full_table_replaces_and_never_refuses() {
        let mut table = Table::new(100);
        for key in 0..10_000u32 {
            assert_eq!(*table.entry(key, key.wrapping_mul(2_654_435_761), || key), key);
            assert_eq!(table.len(), 100.min(key as usize + 1));
            assert_eq!(table.get(&key), Some(&key));
        }
    }

    #[test]
    fn a_source_is_worked_for_five_times_and_then_twenty_times_a_second() {
        let start = Instant::now();
        let mut rates = Rates::new();
        let at = |ms| start + Duration::from_millis(ms);
        let taken = |rates: &mut Rates, s: &Source, now| (0..100).filter(|_| rates.take(s, 0, now)).count();
        let one = source([192, 0, 2, 1]);
        assert_eq!(taken(&mut rates, &one, at(0)), 5);
        assert_eq!(taken(&mut rates, &one, at(49)), 0);
        assert_eq!(taken(&mut rates, &one, at(50)), 1);
        let second: usize = (60..1_060).map(|ms| usize::from(rates.take(&one, 0, at(ms)))).sum();
        assert_eq!(second, 20);
        assert_eq!(taken(&mut rates, &one, at(60_000)), 5);
        // Another port is the same source, another address or a node behind a relay is not.
        let port = Source { addr: ([192, 0, 2, 1], 10).into(), ..one };
        assert_eq!(taken(&mut rates, &port, at(60_000)), 0);
        assert_eq!(taken(&mut rates, &source([192, 0, 2, 2]), at(60_000)), 5);
        let relayed = Source { relayed: Some(NodeId(7)), ..one };
        assert_eq!(taken(&mut rates, &relayed, at(60_000)), 5);
        let v6 = |last| Source { addr: ([0x2001, 0xdb8, 0, 0, 0, 0, 0, last], 9).into(), relayed: None };
        assert_eq!(taken(&mut rates, &v6(1), at(60_000)), 5);
        assert_eq!(taken(&mut rates, &v6(2), at(60_000)), 0, "the same /64");
    }

    #[test]
    fn beyond_ten_thousand_a_second_only_those_who_return_are_answered() {
        let start = Instant::now();
        let mut returning = Returning::new(start);
        let at = |ms| start + Duration::from_millis(ms);
        let class = |n: u64| n.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 20;
        let first = (0..200_000).filter(|n| returning.admits(class(*n), at(0))).count();
        let (least, most) = (COOKIES_AT_ONCE as usize, COOKIES_AT_ONCE as usize + 5_000);
        assert!((least..most).contains(&first), "{first}: of the rest few share a class");
        assert_eq!((100_000..110_000).filter(|n| returning.admits(class(*n), at(600))).count(), 10_000);
        let later = (300_000..310_000).filter(|n| returning.admits(class(*n), at(1_000))).count();
        assert_eq!(later, 10_000, "the first of the next second");
        assert_eq!(
            (300_000..310_000).filter(|n| returning.admits(class(*n), at(1_100))).count(),
            10_000,
            "and noted"
        );
        // Known for the longest wait of a caller at least, and forgotten after two.
        assert_eq!((0..10_000).filter(|n| returning.admits(class(n + 500_000), at(4_990))).count(), 10_000);
        assert_eq!((190_000..200_000).filter(|n| returning.admits(class(*n), at(4_999))).count(), 10_000);
        assert_eq!((180_000..190_000).filter(|n| returning.admits(class(*n), at(5_000))).count(), 10_000);
        assert_eq!((0..10_000).filter(|n| returning.admits(class(n + 600_000), at(14_900))).count(), 10_000);
        assert_eq!((180_000..190_000).filter(|n| returning.admits(class(*n), at(14_990))).count(), 10_000);
        let known = (110_000..120_000).filter(|n| returning.admits(class(*n), at(14_995))).count();
        assert!(known < 500, "{known}");
        assert_eq!(returning.halves.iter().map(Vec::len).sum::<usize>(), 2 * RETURNING_BITS / 64);
    }

    /// Whenever the halves turn: who asked is known five seconds later, as often as it takes.
    #[test]
    fn who_waits_as_long_as_a_caller_does_is_still_known() {
        let start = Instant::now();
        for phase in (0..RETURNING_PERIOD.as_millis() as u64).step_by(250) {
            let mut returning = Returning::new(start);
            let at = |ms| start + Duration::from_millis(ms);
            let spend = |returning: &mut Returning, ms: u64| {
                for n in 0..u64::from(COOKIES_AT_ONCE) {
                    returning.admits((n + ms) << 8, at(ms));
                }
            };
            spend(&mut returning, phase);
            assert!(!returning.admits(7, at(phase)));
            for n in 1..5 {
                let later = phase + n * RETURNING_PERIOD.as_millis() as u64 - 1;
                spend(&mut returning, later);
                assert!(returning.is_full(at(later)) && returning.admits(7, at(later)), "{phase} {n}");
            }
        }
    }

    #[test]
    fn sources_beyond_the_bound_take_no_more_memory() {
        let now = Instant::now();
        let mut rates = Rates::new();
        for n in 0..TABLE_MAX as u32 + 5_000 {
            assert!(rates.take(&source(n.to_be_bytes()), n.wrapping_mul(2_654_435_761), now));
        }
        assert_eq!(rates.buckets.len(), TABLE_MAX);
    }

    #[test]
    fn the_register_is_full_and_then_refuses() {
        let start = Instant::now();
        let mut strikes = Strikes::new(start);
        let id = |n: usize| (n as u128).to_be_bytes();
        for n in 0..STRIKES_MAX {
            assert!(strikes.strike(id(n), start));
        }
        assert!(!strikes.strike(id(STRIKES_MAX), start), "full");
        // What was struck is known for twenty seconds at least, whenever the halves turn.
        let mut strikes = Strikes::new(start);
        for ms in (0..100_000u64).step_by(250) {
            let now = start + Duration::from_millis(ms);
            assert!(strikes.strike(id(ms as usize), now));
            for back in (0..=20_000u64.min(ms)).step_by(250) {
                assert!(!strikes.strike(id((ms - back) as usize), now), "{back} ms after");
            }
        }
        assert!(strikes.halves.iter().map(HashSet::len).sum::<usize>() <= 161);
    }

    #[test]
    fn load_is_a_matter_of_the_last_second() {
        let start = Instant::now();
        let mut load = Load::new(start);
        (0..BUSY_RATE).for_each(|_| load.on_initiation(start));
        assert!(!load.is_busy(start));
        load.on_initiation(start);
        assert!(load.is_busy(start) && load.is_busy(start + Duration::from_millis(999)));
        assert!(!load.is_busy(start + Duration::from_secs(1)));
    }
}
