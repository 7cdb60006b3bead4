//! The list of pairs: what is in it, in which order, what is due.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::candidate::{Candidate, CandidateKind, may_try, pair_priority};
use super::probe::PortProbe;
use super::report::{PairReport, PairState, PathEventKind, Way};
use super::{
    Agent, CONSENT_AGAIN, CONSENT_TRIES, Locals, PAIRS_MAX, PROBE_AFTER, PROBE_AGAIN, PathPolicy, Use,
};
use crate::scope::canonical;

/// First wait for the answer to a check; doubles.
const AGAIN_FIRST: Duration = Duration::from_millis(250);
const AGAIN_MAX: Duration = Duration::from_secs(30);
/// Checks of one round to an address that does not answer. The introduced one is tried for ever, every 30 s.
const TRIES_MAX: u32 = 12;
/// The same while the peer guesses our port.
const AGAIN_KEEN: Duration = Duration::from_millis(500);
const TRIES_KEEN: u32 = 48;
/// So many checks may go unanswered before an address is no longer taken for a likely one.
const TRIES_EARLY: u32 = 6;
/// Checks of a round to addresses better than the direct one in use.
const TRIES_BESIDE: u32 = 5;

/// Who told of an address. In the order of trust.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Source {
    /// Somebody sent an authentic frame from there.
    Heard,
    /// The peer.
    Offered,
    /// The application.
    Named,
    /// The application, as the address that the registry has.
    Introduced,
}

/// Whether the peer says that it is at an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    /// It never did.
    Never,
    /// In its newest offer.
    Now,
    /// In an earlier one: it has left.
    Before,
}

/// An address of the peer.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) addr: SocketAddr,
    pub(super) kind: CandidateKind,
    pub(super) source: Source,
    pub(super) told: Told,
    pub(super) state: PairState,
    priority: u32,
    tries: u32,
    /// Answers in a row; 0 after one was missing.
    answers: u32,
    pub(super) next: Option<Instant>,
    pub(super) rtt: Option<Duration>,
    pub(super) last_ok: Option<Instant>,
    /// It was in use and did not answer; no check was answered since.
    pub(super) dead: bool,
}

impl Pair {
    /// Whether the peer says that it is here, and no longer where it was: its NAT, or it, has another address now.
    fn follows(&self, old: &Self) -> bool {
        self.told == Told::Now && old.told == Told::Before
    }

    /// To be tried from the beginning.
    pub(super) fn restart(&mut self, now: Instant) {
        self.state = PairState::Waiting;
        self.tries = 0;
        self.next = Some(now);
    }

    pub(super) fn fail(&mut self) {
        self.state = PairState::Failed;
        self.answers = 0;
        self.next = None;
    }

    /// A check has left. Whether it was the last.
    pub(super) fn on_sent(&mut self, now: Instant, keen: bool) -> bool {
        self.tries = self.tries.saturating_add(1);
        if self.state == PairState::Valid {
            self.next = Some(now + CONSENT_AGAIN);
            if self.tries > CONSENT_TRIES {
                self.fail();
                return true;
            }
            return false;
        }
        self.state = PairState::Checking;
        let (longest, most) = if keen { (AGAIN_KEEN, TRIES_KEEN) } else { (AGAIN_MAX, TRIES_MAX) };
        let wait = (AGAIN_FIRST * (1 << (self.tries - 1).min(8))).min(longest);
        self.next = Some(now + wait);
        if self.tries >= most && self.source != Source::Introduced {
            self.fail();
            return true;
        }
        false
    }

    pub(super) fn on_answer(&mut self, now: Instant, rtt: Option<Duration>, next: Instant) {
        self.state = PairState::Valid;
        self.dead = false;
        self.tries = 0;
        self.answers = self.answers.saturating_add(1);
        self.next = Some(next);
        self.last_ok = Some(now);
        if let Some(rtt) = rtt {
            self.rtt = Some(self.rtt.map_or(rtt, |old| (old * 3 + rtt) / 4));
        }
    }

    /// What packets by this way cost: its round-trip time, a little more for IPv4 (RFC 8305 prefers IPv6 likewise).
    pub(super) fn cost(&self) -> Duration {
        let rtt = self.rtt.unwrap_or(Duration::from_millis(500));
        let v4 = self.addr.ip().to_canonical().is_ipv4();
        if v4 { rtt + rtt / 16 + Duration::from_micros(500) } else { rtt }
    }

    /// It was not tried often enough to say that it does not answer.
    pub(super) fn is_tried_early(&self) -> bool {
        matches!(self.state, PairState::Waiting | PairState::Checking) && self.tries < TRIES_EARLY
    }

    pub(super) fn report(&self, controlling: bool) -> PairReport {
        // All our candidates share one base, the socket, which counts as a host candidate.
        let own = Candidate { addr: self.addr, kind: CandidateKind::Host }.priority(0);
        let priority =
            if controlling { pair_priority(own, self.priority) } else { pair_priority(self.priority, own) };
        PairReport {
            addr: crate::side::real(self.addr),
            kind: self.kind,
            state: self.state,
            checks: self.tries,
            rtt: self.rtt,
            priority,
        }
    }
}

impl Agent {
    pub(super) fn find(&mut self, addr: SocketAddr) -> Option<&mut Pair> {
        self.pairs.iter_mut().find(|p| p.addr == addr)
    }

    /// Takes an address that was told, if it may be tried at all.
    pub(super) fn name(&mut self, candidate: Candidate, source: Source, now: Instant, locals: &Locals) {
        let addr = canonical(candidate.addr);
        if let Some((_, real)) = crate::side::split(addr) {
            // Only the driver knows extra sockets; and what is seen through one may be tried if it may be at all.
            let one_hop =
                Source::Named == source && may_try(real.into(), &locals.candidates, &locals.forbidden);
            if one_hop {
                self.insert(Candidate { addr, kind: candidate.kind }, source, now);
            }
            return;
        }
        let addr = locals.nat64.map_or(addr, |nat64| nat64.towards(addr));
        if may_try(addr, &locals.candidates, &locals.forbidden) {
            self.insert(Candidate { addr, kind: candidate.kind }, source, now);
        }
    }

    /// Adds a pair, or learns more about one. At the bound the worst of those that do not work makes room.
    pub(super) fn insert(&mut self, candidate: Candidate, source: Source, now: Instant) {
        let place = self.pairs.iter().filter(|p| p.source == source).count();
        let priority = candidate.priority(place);
        let told = if source == Source::Offered { Told::Now } else { Told::Never };
        if let Some(pair) = self.find(candidate.addr) {
            if told == Told::Now {
                pair.told = told;
            }
            if source > pair.source || (source == Source::Offered && pair.source != Source::Named) {
                // The peer knows best what its address is.
                pair.source = source;
                pair.kind = candidate.kind;
                pair.priority = priority;
            }
            if pair.state == PairState::Failed {
                pair.restart(now);
            }
            self.sort();
            return;
        }
        if self.pairs.len() >= PAIRS_MAX {
            let used = self.way;
            let worst = (0..self.pairs.len())
                .filter(|i| used != Some(Way::Direct(self.pairs[*i].addr)))
                .min_by_key(|i| {
                    let p = &self.pairs[*i];
                    (p.state == PairState::Valid, p.source, p.priority)
                });
            match worst {
                Some(i) => drop(self.pairs.remove(i)),
                None => return,
            }
        }
        self.pairs.push(Pair {
            addr: candidate.addr,
            kind: candidate.kind,
            source,
            told,
            state: PairState::Waiting,
            priority,
            tries: 0,
            answers: 0,
            next: Some(now),
            rtt: None,
            last_ok: None,
            dead: false,
        });
        self.sort();
    }

    fn sort(&mut self) {
        self.pairs.sort_by_key(|p| (std::cmp::Reverse(p.priority), p.addr));
    }

    /// Everything that does not work is tried from the beginning.
    pub(super) fn begin_round(&mut self, now: Instant) {
        self.round = Some(now);
        self.round_at = None;
        for pair in &mut self.pairs {
            if pair.state != PairState::Valid {
                pair.restart(now);
            }
        }
    }

    /// If nothing is left to try, everything is tried again later.
    pub(super) fn plan_round(&mut self, now: Instant) {
        let all_failed = self.pairs.iter().all(|p| p.state == PairState::Failed);
        if all_failed && !self.pairs.is_empty() && self.round_at.is_none() {
            self.round_at = Some(now + self.round_wait);
        }
    }

    /// Whether anything may be tried now.
    pub(super) fn is_awake(&self, used: Use) -> bool {
        used.keys && used.in_use && self.policy != PathPolicy::RelayOnly && !self.blocked
    }

    /// The pair whose turn is next, and when that is.
    pub(super) fn next_pair(&self, used: Use) -> Option<(Instant, usize)> {
        let current = match self.way {
            Some(Way::Direct(addr)) => self.pairs.iter().position(|p| p.addr == addr),
            _ => None,
        };
        // The list is in order of priority, so of those due at one time the best comes first.
        (0..self.pairs.len())
            .filter(|i| self.wants_check(*i, current, used))
            .filter_map(|i| Some((self.pairs[i].next?, i)))
            .min_by_key(|(at, i)| (*at, *i))
    }

    fn wants_check(&self, i: usize, current: Option<usize>, used: Use) -> bool {
        let pair = &self.pairs[i];
        let Some(current) = current else {
            return match self.way {
                // A way outside of the list is none that we judge.
                Some(Way::Direct(_)) => false,
                _ => pair.state != PairState::Failed,
            };
        };
        // A reference peer's direct way is left alone.
        if !used.pilotage {
            return false;
        }
        let works = self.pairs[current].state == PairState::Valid;
        match pair.state {
            PairState::Failed => false,
            // Where there is no other way, nothing follows from losing this one but what streams see themselves.
            PairState::Valid => used.relay || self.doubt.is_some(),
            // The way in use has not proven itself: rule C16 asks it for its token.
            _ if i == current => self.doubt.is_some(),
            // One that was found dead is asked as soon as frames come from it again ([`Agent::on_heard`]): the peer may be
            // nowhere else by now.
            _ if pair.dead => true,
            _ => {
                let current = &self.pairs[current];
                let wanted = pair.priority > current.priority || pair.follows(current);
                !works || (wanted && pair.tries < TRIES_BESIDE)
            }
        }
    }

    /// Whether a way that answers is so much better than the one in use that changing is worth it, and we choose.
    pub(super) fn is_better(&self, new: SocketAddr, old: SocketAddr) -> bool {
        let find = |addr| self.pairs.iter().find(|p| p.addr == addr);
        let Some(new) = find(new) else { return false };
        let Some(old) = find(old).filter(|p| p.state == PairState::Valid) else {
            // Nothing shows that the old one works; in doubt it is replaced.
            return self.doubt.is_some();
        };
        if new.follows(old) {
            return true;
        }
        let margin = Duration::from_millis(2);
        self.controlling && new.answers >= 2 && (new.cost() + margin) * 10 < old.cost() * 7
    }

    /// A number below `most`, different each time.
    pub(super) fn jitter(&mut self, most: Duration) -> Duration {
        self.seed = self.seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        most / 256 * (self.seed >> 24)
    }

    // ------------------------------------------------------------------ guessing ports

    /// When the guessing of ports begins, if it does.
    pub(super) fn probe_at(&self, used: Use, locals: &Locals) -> Option<Instant> {
        let direct = matches!(self.way, Some(Way::Direct(_)));
        let easy = !locals.mapping.is_hard();
        if self.probe.is_some() || direct || !easy || !self.peer_mapping.is_hard() || !used.pilotage {
            return None;
        }
        self.hard_address()?;
        let begin = self.round? + PROBE_AFTER;
        Some(self.probed.map_or(begin, |t| begin.max(t + PROBE_AGAIN)))
    }

    pub(super) fn begin_probe(&mut self, now: Instant, used: Use, locals: &Locals) {
        if self.probe_at(used, locals).is_none_or(|t| t > now) {
            return;
        }
        let Some(base) = self.hard_address() else { return };
        self.probed = Some(now);
        self.probes_spent = false;
        self.jitter(Duration::ZERO);
        self.probe = Some(PortProbe::new(base, self.seed >> 8, now));
        self.log.note(now, PathEventKind::Probing(base));
    }

    pub(super) fn end_probe(&mut self, now: Instant) {
        if let Some(probe) = self.probe.take() {
            self.log.note(now, PathEventKind::ProbesEnded(probe.sent));
        }
    }

    /// Where the peer's hard NAT is: of several ports that beacons saw, the highest was probably the last.
    fn hard_address(&self) -> Option<SocketAddr> {
        self.pairs
            .iter()
            .filter(|p| p.kind == CandidateKind::Reflexive && p.source == Source::Offered)
            .map(|p| p.addr)
            .max_by_key(|a| (a.is_ipv4(), a.port()))
    }
}
