//! The path agent of one peer, sans-IO: which of its addresses are tried, when, and which one is used (spec/nat.md §10).
//!
//! The agent knows candidates and pairs, priorities, pacing, consent, scores and reasons. It knows nothing of keys:
//! its owner, the tunnel, sends the checks that [`Agent::poll_check`] asks for as sealed tokens, says which of them
//! came back ([`Agent::on_answer`]), and follows [`Way`]s that calls return. What an address may be sent before it has
//! proven itself is the tunnel's rule C16 (spec/tunnel.md §6); the agent never overrides it.
//!
//! A node has one UDP socket for all peers, so a local candidate is nothing that one can choose to send from: all local
//! candidates have that socket as their base, and pairs that differ in them only are one (RFC 8445 §6.1.2.4). A pair
//! is therefore an address of the peer.

mod candidate;
#[cfg(any(test, feature = "fuzzing"))]
mod exercise;
mod fan;
mod message;
mod nat64;
mod offers;
mod pairs;
mod probe;
mod report;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

pub use candidate::{CANDIDATES_MAX, Candidate, CandidateKind, pair_priority};
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub use exercise::exercise;
pub use fan::{FAN_SOCKETS, FAN_TIME};
pub use message::{NatMapping, OFFER_MARK, OFFER_MAX, Offer};
pub use report::{PairReport, PairState, PathEvent, PathEventKind, PathReason, PathReport, Way};

pub use nat64::Nat64;
use offers::Offers;
use pairs::{Pair, Source, Told};
use probe::PortProbe;
use report::Log;

/// Pairs of one peer.
pub(crate) const PAIRS_MAX: usize = 24;
/// Between two checks to different addresses (RFC 8445 §14.2 asks for 5 ms at least).
const PACE: Duration = Duration::from_millis(20);
/// Between two checks of a way that works, shortened by up to a fifth. Below the 30 s after which consent ends
/// (RFC 7675 §5.1) and after which careless NATs forget.
const CONSENT_EVERY: Duration = Duration::from_secs(25);
/// Wait for the answer to such a check before the next.
const CONSENT_AGAIN: Duration = Duration::from_secs(1);
/// So many of them in a row without an answer end the consent.
const CONSENT_TRIES: u32 = 5;
/// A way that was proven this long ago may be fallen back to.
const FRESH: Duration = Duration::from_secs(60);
/// When everything failed, everything is tried again after this long, then twice as long, up to [`ROUND_MAX`].
const ROUND_FIRST: Duration = Duration::from_secs(60);
const ROUND_MAX: Duration = Duration::from_secs(600);
/// Ports of a hard NAT are guessed only if the ordinary checks have not answered within this time.
const PROBE_AFTER: Duration = Duration::from_millis(500);
/// Shortest time between the beginnings of two runs.
const PROBE_AGAIN: Duration = Duration::from_secs(300);

/// What the operator wants for a peer, or for all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum PathPolicy {
    /// Relay at once, direct as soon as it works.
    #[default]
    Auto,
    /// Never by a relay.
    DirectOnly,
    /// Never directly: the peer does not learn our address from us.
    RelayOnly,
}

impl PathPolicy {
    /// Whether datagrams may take this way.
    pub fn permits(self, way: Way) -> bool {
        match way {
            Way::Direct(_) => self != Self::RelayOnly,
            Way::Relay => self != Self::DirectOnly,
        }
    }
}

/// What a node knows of itself: the same for all its peers.
#[derive(Debug, Clone, Default)]
pub struct Locals {
    /// Our candidates, best first, at most [`CANDIDATES_MAX`].
    pub candidates: Vec<Candidate>,
    /// Our NAT.
    pub mapping: NatMapping,
    /// Addresses that no candidate may name: our beacons.
    pub forbidden: Vec<SocketAddr>,
    /// Changes whenever the other fields do.
    pub version: u32,
    /// No UDP leaves this host.
    pub udp_blocked: bool,
    /// We reach IPv4 by a NAT64 only: how its addresses begin (RFC 6052, a prefix of 96 bits).
    pub nat64: Option<Nat64>,
}

/// How the tunnel stands.
#[derive(Debug, Clone, Copy, Default)]
pub struct Use {
    /// There are keys.
    pub keys: bool,
    /// Something is open or waits: without it nothing is sent.
    pub in_use: bool,
    /// The peer is a Pilotage peer.
    pub pilotage: bool,
    /// There is a relay.
    pub relay: bool,
}

/// What to send to an address that may be one of the peer's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// A sealed token, whose answer proves the address.
    Token(SocketAddr),
    /// The shortest frame there is, to open a mapping.
    Punch(SocketAddr),
}

/// The ways to one peer.
#[derive(Debug)]
pub struct Agent {
    /// Our side chooses between direct ways that both work; the other follows.
    controlling: bool,
    policy: PathPolicy,
    pairs: Vec<Pair>,
    way: Option<Way>,
    offers: Offers,
    peer_mapping: NatMapping,
    /// What the peer last named, also what we cannot try now: with another address of our own we may.
    theirs: Vec<Candidate>,
    /// The version of what we know of ourselves with which those were last looked at.
    seen_locals: u32,
    /// When the next check may leave.
    pace: Option<Instant>,
    /// When the present round of checks began.
    round: Option<Instant>,
    /// When the next begins if none of this one answers.
    round_at: Option<Instant>,
    round_wait: Duration,
    probe: Option<PortProbe>,
    probed: Option<Instant>,
    probes_spent: bool,
    /// Extra sockets are wanted that send there.
    fan: Option<SocketAddr>,
    fanned: Option<Instant>,
    /// The way in use does not answer where it should: until when it may.
    doubt: Option<Instant>,
    /// Frames of the peer do not end the doubt, only an answer does.
    strict: bool,
    /// A direct way has died and no other was found since.
    lost: bool,
    /// Our NAT is hard and the peer guesses our port: it needs checks of ours to see that it was right.
    keen: bool,
    /// No UDP leaves this host, as last told.
    blocked: bool,
    seed: u32,
    log: Log,
}

impl Agent {
    /// `controlling`: exactly one side should be; `seed` spreads timers and probes, and is no secret.
    pub fn new(controlling: bool, policy: PathPolicy, seed: u32, now: Instant) -> Self {
        Self {
            controlling,
            policy,
            pairs: Vec::new(),
            way: None,
            offers: Offers::new(now),
            peer_mapping: NatMapping::Unknown,
            theirs: Vec::new(),
            seen_locals: 0,
            pace: None,
            round: None,
            round_at: None,
            round_wait: ROUND_FIRST,
            probe: None,
            probed: None,
            probes_spent: false,
            fan: None,
            fanned: None,
            doubt: None,
            strict: false,
            lost: false,
            keen: false,
            blocked: false,
            seed,
            log: Log::default(),
        }
    }

    /// What the operator wants.
    pub fn policy(&self) -> PathPolicy {
        self.policy
    }

    /// Changes what the operator wants; the owner leaves a way that is not permitted any more.
    pub fn set_policy(&mut self, policy: PathPolicy, now: Instant) {
        if self.policy != policy {
            self.policy = policy;
            self.offers.renew();
            self.begin_round(now);
        }
    }

    // ------------------------------------------------------------------ what becomes known

    /// The application names addresses of the peer. At most [`CANDIDATES_MAX`] of a call count.
    pub fn add_remote(&mut self, now: Instant, candidates: &[Candidate], locals: &Locals) {
        for candidate in candidates.iter().take(CANDIDATES_MAX) {
            self.name(*candidate, Source::Named, now, locals);
        }
    }

    /// The application names the address at which the peer is registered.
    pub fn introduce(&mut self, now: Instant, addr: SocketAddr) {
        self.insert(Candidate { addr, kind: CandidateKind::Reflexive }, Source::Introduced, now);
    }

    /// A message of the peer with its candidates, authentic and not replayed. Returns whether it was news.
    pub fn on_offer(&mut self, now: Instant, offer: &Offer, locals: &Locals) -> bool {
        if !self.offers.on_offer(offer) {
            return false;
        }
        self.peer_mapping = offer.mapping;
        self.log.note(now, PathEventKind::GotOffer(offer.candidates.len() as u8));
        // What the peer does not name any more is not tried any longer, unless it works.
        let named = |pair: &Pair| offer.candidates.iter().any(|c| c.addr == pair.addr);
        let way = self.way;
        self.pairs.retain(|p| {
            p.source != Source::Offered
                || named(p)
                || p.state == PairState::Valid
                || way == Some(Way::Direct(p.addr))
        });
        for pair in self.pairs.iter_mut().filter(|p| p.told == Told::Now) {
            pair.told = Told::Before;
        }
        self.theirs = offer.candidates.iter().take(CANDIDATES_MAX).copied().collect();
        self.name_theirs(now, locals);
        self.begin_round(now);
        true
    }

    fn name_theirs(&mut self, now: Instant, locals: &Locals) {
        self.seen_locals = locals.version;
        for candidate in self.theirs.clone() {
            if candidate.kind != CandidateKind::Relayed {
                self.name(candidate, Source::Offered, now, locals);
            }
        }
    }

    /// An authentic frame came straight from this address.
    pub fn on_heard(&mut self, now: Instant, addr: SocketAddr) {
        match self.find(addr) {
            Some(pair) => {
                if pair.state == PairState::Failed {
                    pair.restart(now);
                }
            }
            None => {
                self.insert(Candidate { addr, kind: CandidateKind::PeerReflexive }, Source::Heard, now);
            }
        }
    }

    /// Whether this address is one that the application or the peer has named.
    pub fn knows(&self, addr: SocketAddr) -> bool {
        self.pairs.iter().any(|p| p.addr == addr && p.source != Source::Heard)
    }

    /// Whether the peer has sent an offer, so that it knows what checks are.
    pub fn has_offer(&self) -> bool {
        self.offers.has_theirs()
    }

    /// The addresses to begin a key exchange with, best first, besides the introduced one.
    pub fn first_addresses(&self, most: usize) -> impl Iterator<Item = SocketAddr> + '_ {
        self.pairs.iter().filter(|p| p.source == Source::Named).map(|p| p.addr).take(most)
    }

    /// A check was answered from this address, after this time if that is known. Returns a way to change to.
    pub fn on_answer(&mut self, now: Instant, addr: SocketAddr, rtt: Option<Duration>) -> Option<Way> {
        if self.find(addr).is_none() {
            self.insert(Candidate { addr, kind: CandidateKind::PeerReflexive }, Source::Heard, now);
        }
        let jitter = self.jitter(CONSENT_EVERY / 5);
        let pair = self.find(addr)?;
        let news = pair.state != PairState::Valid;
        pair.on_answer(now, rtt, now + CONSENT_EVERY - jitter);
        if news {
            self.log.note(now, PathEventKind::Answered(addr));
        }
        if self.probe.as_ref().is_some_and(|p| p.is_about(addr)) {
            self.end_probe(now);
        }
        if self.way == Some(Way::Direct(addr)) {
            self.doubt = None;
            self.lost = false;
            return None;
        }
        let better = match self.way {
            None | Some(Way::Relay) => true,
            Some(Way::Direct(old)) => self.is_better(addr, old),
        };
        (better && self.policy.permits(Way::Direct(addr))).then_some(Way::Direct(addr))
    }

    /// Packets take this way from now on.
    pub fn on_way(&mut self, now: Instant, way: Way) {
        if self.way == Some(way) {
            return;
        }
        if let Some(Way::Direct(old)) = self.way
            && let Some(pair) = self.find(old)
            && pair.state == PairState::Valid
        {
            // Perhaps the peer is no longer there. It is no way to fall back to before it has answered once more.
            pair.last_ok = None;
            pair.next = Some(now);
        }
        self.way = Some(way);
        self.doubt = None;
        self.log.note(now, PathEventKind::Selected(way));
        match way {
            Way::Direct(addr) => {
                if self.find(addr).is_none() {
                    self.insert(Candidate { addr, kind: CandidateKind::PeerReflexive }, Source::Heard, now);
                }
                if self.find(addr).is_some_and(|p| p.state == PairState::Valid) {
                    self.lost = false;
                    self.probes_spent = false;
                    self.round_wait = ROUND_FIRST;
                    self.end_probe(now);
                }
            }
            Way::Relay => self.begin_round(now),
        }
    }

    /// An authentic frame came by the way in use.
    pub fn on_alive(&mut self) {
        if !self.strict {
            self.doubt = None;
        }
    }

    /// The way in use should have brought something by now. It is asked, and given up at `until` unless something comes;
    /// if `strict`, unless the question is answered.
    pub fn doubt(&mut self, now: Instant, until: Instant, strict: bool) {
        if self.doubt.is_some() {
            self.strict |= strict;
            return;
        }
        self.doubt = Some(until);
        self.strict = strict;
        if let Some(Way::Direct(addr)) = self.way
            && let Some(pair) = self.find(addr)
        {
            pair.next = Some(now);
        }
    }

    /// There is another sign that the way in use is dead: it is given up at `until` if that is sooner.
    pub fn hasten(&mut self, until: Instant) {
        self.doubt = self.doubt.map(|t| t.min(until));
    }

    /// Whether the way in use was asked in vain for as long as [`Self::doubt`] gave it.
    pub fn is_dead(&self, now: Instant) -> bool {
        self.doubt.is_some_and(|t| t <= now)
    }

    /// Whether the way in use is being asked.
    pub fn is_doubted(&self) -> bool {
        self.doubt.is_some()
    }

    /// Whether there is another way than the one in use that is known to work, or may.
    pub fn has_other(&self, relay: bool) -> bool {
        let relay = relay && self.policy != PathPolicy::DirectOnly && self.way != Some(Way::Relay);
        relay
            || self.pairs.iter().any(|p| p.state == PairState::Valid && self.way != Some(Way::Direct(p.addr)))
    }

    /// Whether a way was found dead and has not answered since: frames of the peer may still come by it.
    pub fn is_given_up(&self, way: Way) -> bool {
        let Way::Direct(addr) = way else { return false };
        self.pairs.iter().any(|p| p.addr == addr && p.dead)
    }

    /// Whether packets stay on a way although the peer's newest came by another: we choose, both are known to work, and
    /// the new one is one of several at which the peer said that it is. An address that it never named is where it has
    /// moved to, and so is any if it no longer names the one in use.
    pub fn stays(&self, old: Way, new: Way) -> bool {
        let (Way::Direct(old), Way::Direct(new)) = (old, new) else { return false };
        let valid = |addr| {
            let works = |p: &Pair| p.state == PairState::Valid && p.told != Told::Before;
            self.pairs.iter().any(|p| p.addr == addr && works(p))
        };
        self.controlling && self.doubt.is_none() && valid(old) && valid(new) && self.knows(new)
    }

    /// The way in use is dead. Returns another, if there is any; without one nothing changes.
    pub fn on_dead(&mut self, now: Instant, relay: bool) -> Option<Way> {
        self.doubt = None;
        let old = self.way?;
        let fresh = |p: &&Pair| {
            p.state == PairState::Valid
                && old != Way::Direct(p.addr)
                && p.last_ok.is_some_and(|t| now.saturating_duration_since(t) < FRESH)
        };
        let direct = self.pairs.iter().filter(fresh).min_by_key(|p| p.cost()).map(|p| Way::Direct(p.addr));
        let relay = (relay && old != Way::Relay).then_some(Way::Relay);
        let other = [direct, relay].into_iter().flatten().find(|way| self.policy.permits(*way))?;
        self.log.note(now, PathEventKind::Dead(old));
        if let Way::Direct(addr) = old {
            self.lost = true;
            if let Some(pair) = self.find(addr) {
                pair.fail();
                pair.dead = true;
            }
        }
        self.offers.renew();
        self.begin_round(now);
        Some(other)
    }

    /// The host has moved to another network, or one of its addresses is gone: everything is asked again.
    pub fn on_network_changed(&mut self, now: Instant) {
        self.log.note(now, PathEventKind::NetworkChanged);
        // Silence until now was ours: what was sent to us went to where we no longer are.
        self.doubt = None;
        self.probed = None;
        self.fanned = None;
        for pair in &mut self.pairs {
            if pair.state == PairState::Valid {
                pair.next = Some(now);
            } else {
                pair.restart(now);
            }
        }
        self.offers.renew();
        self.begin_round(now);
    }

    /// Notes that a key exchange began, that keys came by a way, or that the application is asked for an address.
    pub fn note(&mut self, now: Instant, what: PathEventKind) {
        if what == PathEventKind::Begun {
            self.begin_round(now);
        }
        self.log.note(now, what);
    }

    // ------------------------------------------------------------------ what is to be sent

    /// The next check that is due. The caller says with [`Self::on_check_sent`] that a token has left.
    pub fn poll_check(&mut self, now: Instant, used: Use, locals: &Locals) -> Option<Check> {
        self.blocked = locals.udp_blocked;
        self.keen = locals.mapping.is_hard() && !self.peer_mapping.is_hard();
        if !self.is_awake(used) {
            return None;
        }
        if self.seen_locals != locals.version {
            self.name_theirs(now, locals);
        }
        if self.round_at.is_some_and(|t| t <= now) {
            self.round_wait = (self.round_wait * 2).min(ROUND_MAX);
            self.begin_round(now);
        }
        self.begin_probe(now, used, locals);
        self.begin_fan(now, used, locals);
        if let Some(probe) = &mut self.probe {
            if let Some(addr) = probe.poll(now) {
                return Some(Check::Punch(addr));
            }
            if probe.is_over() {
                self.probes_spent = true;
                self.end_probe(now);
            }
        }
        if self.pace.is_some_and(|t| t > now) {
            return None;
        }
        let due = self.next_pair(used).filter(|(at, _)| *at <= now)?;
        self.pace = Some(now + PACE);
        Some(Check::Token(self.pairs[due.1].addr))
    }

    /// Whether [`Self::poll_check`] has something.
    pub fn check_due(&self, now: Instant, used: Use, locals: &Locals) -> bool {
        self.is_awake(used) && self.check_deadline(used, locals).is_some_and(|t| t <= now)
    }

    fn check_deadline(&self, used: Use, locals: &Locals) -> Option<Instant> {
        let check = self.next_pair(used).map(|(at, _)| self.pace.map_or(at, |p| p.max(at)));
        let probe = self.probe.as_ref().map(|p| p.next);
        let begin = [self.probe_at(used, locals), self.fan_at(used, locals), self.round_at];
        [check, probe].into_iter().chain(begin).flatten().min()
    }

    /// A token has left for this address, or could not for want of credit: either way it was its turn.
    pub fn on_check_sent(&mut self, now: Instant, addr: SocketAddr) {
        let (keen, doubt) = (self.keen, self.doubt.filter(|_| self.way == Some(Way::Direct(addr))));
        let Some(pair) = self.find(addr) else { return };
        let first = pair.state == PairState::Waiting;
        let ended = pair.on_sent(now, keen);
        if let Some(until) = doubt {
            // One lost datagram is not the end.
            pair.next = Some(now + (until.saturating_duration_since(now) / 2).max(PACE));
        }
        if first {
            self.log.note(now, PathEventKind::Check(addr));
        }
        if ended {
            self.log.note(now, PathEventKind::NoAnswer(addr));
            if self.way == Some(Way::Direct(addr)) && self.doubt.is_none() {
                self.doubt = Some(now + CONSENT_AGAIN);
                self.strict = true;
            }
            self.plan_round(now);
        }
    }

    /// Whether our candidates are to be told to the peer now.
    pub fn offer_due(&self, now: Instant, used: Use, locals: &Locals) -> bool {
        self.offers.due(now, used, locals, self.policy)
    }

    /// Writes the message with our candidates, and counts it as sent.
    pub fn write_offer(&mut self, now: Instant, locals: &Locals, buf: &mut [u8]) -> Option<usize> {
        let hidden = self.policy == PathPolicy::RelayOnly;
        let candidates = if hidden { Vec::new() } else { locals.candidates.clone() };
        let lost = self.lost && self.way == Some(Way::Relay);
        let count = candidates.len().min(CANDIDATES_MAX) as u8;
        let offer = self.offers.next(now, locals, candidates, lost);
        let len = offer.encode(buf)?;
        self.log.note(now, PathEventKind::Offered(count));
        Some(len)
    }

    /// When [`Self::poll_check`] or [`Self::offer_due`] has something. May be early, never late.
    pub fn deadline(&self, used: Use, locals: &Locals) -> Option<Instant> {
        let offer = self.offers.deadline(used, locals, self.policy);
        let check = if self.is_awake(used) { self.check_deadline(used, locals) } else { None };
        [offer, check].into_iter().flatten().min()
    }

    /// When the way in use is dead if nothing ends the doubt.
    pub fn doubt_deadline(&self) -> Option<Instant> {
        self.doubt
    }

    // ------------------------------------------------------------------ what is told

    /// Why the way is what it is.
    pub fn reason(&self, used: Use, locals: &Locals) -> PathReason {
        match self.way {
            Some(Way::Direct(addr)) => match self.pairs.iter().find(|p| p.addr == addr) {
                Some(p) if p.source == Source::Introduced => PathReason::DirectIntroduced,
                Some(p) => PathReason::direct(p.kind),
                None => PathReason::DirectPeerReflexive,
            },
            Some(Way::Relay) | None => self.reason_not_direct(used, locals),
        }
    }

    fn reason_not_direct(&self, used: Use, locals: &Locals) -> PathReason {
        let both_hard = self.peer_mapping.is_hard() && locals.mapping.is_hard();
        let trying = self.probe.is_some() || self.pairs.iter().any(|p| p.is_tried_early());
        match self.policy {
            PathPolicy::RelayOnly => return PathReason::RelayPolicy,
            PathPolicy::DirectOnly if !trying && self.round.is_some() => {
                return PathReason::DirectOnlyNoAnswer;
            }
            _ => {}
        }
        if self.way.is_none() {
            return if used.relay || self.round.is_none() { PathReason::Idle } else { PathReason::NoRelay };
        }
        if locals.udp_blocked {
            PathReason::UdpBlocked
        } else if trying && self.lost {
            PathReason::RelayPathLost
        } else if trying {
            PathReason::RelayWhilePunching
        } else if self.pairs.is_empty() {
            PathReason::RelayNoCandidates
        } else if both_hard {
            PathReason::RelayHardNatBoth
        } else if self.probes_spent {
            PathReason::RelayProbesSpent
        } else {
            PathReason::RelayNoAnswer
        }
    }

    /// All that is known. `rtt` is that of the way in use.
    pub fn report(&self, rtt: Option<Duration>, used: Use, locals: &Locals) -> PathReport {
        PathReport {
            selected: self.way,
            reason: self.reason(used, locals),
            rtt,
            pairs: self.pairs.iter().map(|p| p.report(self.controlling)).collect(),
            log: self.log.lines(),
            peer_mapping: self.peer_mapping,
            own_mapping: locals.mapping,
        }
    }
}

#[cfg(test)]
mod tests;
