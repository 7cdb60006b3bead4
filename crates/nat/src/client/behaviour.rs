//! How our NAT behaves, in the terms of RFC 4787, found out as in RFC 5780. `spec/nat.md §8`.
//!
//! The order of the questions matters: the beacon's other port must not have been sent anything before it is asked to
//! speak first, or every filter would let it through.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use pilotage_fault as fault;

use crate::scope::canonical;

/// On what a NAT's decision depends besides the inner address. RFC 4787 §4.1 and §5.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dependence {
    /// On nothing else.
    EndpointIndependent,
    /// On the other side's IP address.
    AddressDependent,
    /// On its IP address and port.
    AddressAndPortDependent,
}

impl Dependence {
    /// As RFC 4787 writes it, in small letters.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::EndpointIndependent => "endpoint-independent",
            Self::AddressDependent => "address-dependent",
            Self::AddressAndPortDependent => "address-and-port-dependent",
        }
    }
}

/// What is known of the NAT between us and the beacons.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NatBehaviour {
    /// Whether different destinations see us at different addresses. With a single beacon, or several at one IP
    /// address, an address-dependent mapping cannot be told from an endpoint-independent one
    /// ([`Self::compared_addresses`]).
    pub mapping: Dependence,
    /// Whether the mapping was seen from two IP addresses.
    pub compared_addresses: bool,
    /// Who may send to our mapping. [`Dependence::AddressDependent`] stands for "this or less": a beacon has one
    /// address to ask from. `None` where the beacon has only one port.
    pub filtering: Option<Dependence>,
    /// Whether what we send to our own outer address comes back. `None` where we cannot send there: behind a NAT64 that
    /// address is of the other family.
    pub hairpin: Option<bool>,
    /// Whether the outer port is the inner one; `None` where our own is not known.
    pub preserves_port: Option<bool>,
}

/// What is being asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Our address at the beacon's first port.
    Main,
    /// Whether its other port reaches us unasked.
    Filter,
    /// Our address at its other port.
    Other,
    /// Whether we reach ourselves.
    Hairpin,
}

/// What to send for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Question {
    /// A probe to this address, to be answered from the other port or not.
    Probe { to: SocketAddr, from_other_port: bool, nonce: u64 },
    /// A message to ourselves.
    Hairpin { to: SocketAddr, nonce: u64 },
}

/// A discovery under way.
#[derive(Debug)]
struct Run {
    beacon: SocketAddr,
    step: Step,
    nonce: u64,
    sent: u32,
    due: Instant,
    other_port: u16,
    main: Option<SocketAddr>,
    other: Option<SocketAddr>,
    filtering: Option<Dependence>,
}

/// Discoveries of one node.
#[derive(Debug, Default)]
pub(super) struct Discovery {
    run: Option<Run>,
    found: Option<Found>,
    /// What was found before the last change of network, if it was one.
    before: Option<Found>,
    /// For which beacon and which of our addresses there is or was a run.
    done_for: Option<(SocketAddr, SocketAddr)>,
    began: Option<Instant>,
    /// More is known than when [`Self::take_news`] last asked.
    news: bool,
}

/// Results of a run, from which the behaviour follows together with what other beacons saw.
#[derive(Debug, Clone, Copy)]
struct Found {
    beacon: SocketAddr,
    main: SocketAddr,
    other: Option<SocketAddr>,
    filtering: Option<Dependence>,
    hairpin: Option<bool>,
}

impl Discovery {
    /// Forgets everything: the network is another one.
    pub(super) fn reset(&mut self) {
        *self = Self { before: self.found.or(self.before), ..Self::default() };
    }

    /// Begins, unless it was done for this beacon and address. At most once in [`PAUSE`].
    pub(super) fn begin(
        &mut self,
        now: Instant,
        beacon: SocketAddr,
        observed: SocketAddr,
        other_port: u16,
        nonce: u64,
    ) {
        let paused = self.began.is_some_and(|at| now.saturating_duration_since(at) < PAUSE);
        if self.run.is_some() || paused || self.done_for == Some((beacon, observed)) {
            return;
        }
        self.began = Some(now);
        self.done_for = Some((beacon, observed));
        self.run = Some(Run {
            beacon,
            step: Step::Main,
            nonce,
            sent: 0,
            due: now,
            other_port,
            main: None,
            other: None,
            filtering: None,
        });
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.run.as_ref().map(|run| run.due)
    }

    /// What to send now. `nonce` makes fresh numbers.
    pub(super) fn poll(&mut self, now: Instant, nonce: impl FnOnce() -> u64) -> Option<Question> {
        if self.run.as_ref().is_some_and(|run| run.due <= now && run.sent >= TRIES) {
            self.unanswered(now, nonce());
        }
        let run = self.run.as_mut().filter(|run| run.due <= now)?;
        run.sent += 1;
        run.due = now + AGAIN;
        let (to, nonce) = (run.beacon, run.nonce);
        let sibling = SocketAddr::new(to.ip(), run.other_port);
        Some(match run.step {
            Step::Main => Question::Probe { to, from_other_port: false, nonce },
            Step::Filter => Question::Probe { to, from_other_port: true, nonce },
            Step::Other => Question::Probe { to: sibling, from_other_port: false, nonce },
            Step::Hairpin => Question::Hairpin { to: run.main?, nonce },
        })
    }

    /// A probe was answered; whether it was ours.
    pub(super) fn on_reply(
        &mut self,
        now: Instant,
        from: SocketAddr,
        nonce: u64,
        other_port: u16,
        addr: SocketAddr,
        next: u64,
    ) -> bool {
        let Some(run) = self.run.as_mut().filter(|run| run.nonce == nonce) else { return false };
        let from = canonical(from);
        let main = canonical(run.beacon);
        let sibling = SocketAddr::new(main.ip(), run.other_port);
        let lost = fault::point!("nat.client.probe_lost");
        match run.step {
            _ if lost => return false,
            Step::Main if from == main => {
                run.main = Some(addr);
                run.other_port = other_port;
                let to = if other_port == 0 { Step::Hairpin } else { Step::Filter };
                run.go(now, to, next);
            }
            Step::Filter if from == sibling => {
                run.filtering = Some(Dependence::AddressDependent);
                run.go(now, Step::Other, next);
            }
            Step::Other if from == sibling => {
                run.other = Some(addr);
                run.go(now, Step::Hairpin, next);
                self.news = true;
            }
            _ => return false,
        }
        true
    }

    /// A message to ourselves has come back; whether it was ours.
    pub(super) fn on_hairpin(&mut self, nonce: u64) -> bool {
        let ours = self.run.as_ref().is_some_and(|run| run.step == Step::Hairpin && run.nonce == nonce);
        if ours {
            self.finish(true);
        }
        ours
    }

    /// The last try of a step went unanswered.
    fn unanswered(&mut self, now: Instant, next: u64) {
        let Some(run) = self.run.as_mut() else { return };
        match run.step {
            // The beacon is gone or does not know probes.
            Step::Main => {
                self.run = None;
                self.done_for = None;
            }
            Step::Filter => {
                run.filtering = Some(Dependence::AddressAndPortDependent);
                run.go(now, Step::Other, next);
            }
            // Something between us lets only the first port through: nothing is known of mapping by port.
            Step::Other => {
                run.filtering = None;
                run.go(now, Step::Hairpin, next);
                self.news = true;
            }
            Step::Hairpin => self.finish(false),
        }
    }

    fn finish(&mut self, hairpin: bool) {
        if let Some(Run { beacon, main: Some(main), other, filtering, .. }) = self.run.take() {
            // The same mapping as before has been let through to the other port then: that filter was seen already.
            let known = self.found.or(self.before).filter(|old| old.main == main && old.beacon == beacon);
            let filtering = known.map_or(filtering, |old| old.filtering.max(filtering));
            self.news = true;
            let same_family = canonical(beacon).is_ipv4() == canonical(main).is_ipv4();
            let hairpin = same_family.then_some(hairpin);
            self.found = Some(Found { beacon, main, other, filtering, hairpin });
        }
    }

    /// Whether something was found out since this was last asked.
    pub(super) fn take_news(&mut self) -> bool {
        std::mem::take(&mut self.news)
    }

    /// On what the mapping depends: known before the rest is, which takes a second more.
    pub(super) fn mapping(&self, seen: impl Iterator<Item = (SocketAddr, SocketAddr)>) -> Option<Dependence> {
        let early = |run: &Run| {
            let known = run.step == Step::Hairpin;
            let found = |main| Found {
                beacon: run.beacon,
                main,
                other: run.other,
                filtering: run.filtering,
                hairpin: None,
            };
            run.main.filter(|_| known).map(found)
        };
        let found = self.run.as_ref().and_then(early).or(self.found)?;
        Some(Self::compare(&found, seen).0)
    }

    /// What is known. `seen` are other beacons, and where they see us.
    pub(super) fn result(
        &self,
        seen: impl Iterator<Item = (SocketAddr, SocketAddr)>,
        local_port: Option<u16>,
    ) -> Option<NatBehaviour> {
        let found = self.found?;
        let (mapping, compared_addresses) = Self::compare(&found, seen);
        Some(NatBehaviour {
            mapping,
            compared_addresses,
            filtering: found.filtering,
            hairpin: found.hairpin,
            preserves_port: local_port.map(|port| port == found.main.port()),
        })
    }

    /// The mapping, and whether it was seen from two IP addresses.
    fn compare(found: &Found, seen: impl Iterator<Item = (SocketAddr, SocketAddr)>) -> (Dependence, bool) {
        let beacon = found.beacon.ip().to_canonical();
        // Same family, another address: what they see tells how mappings depend on addresses.
        let elsewhere: Vec<SocketAddr> = seen
            .filter(|(other, at)| {
                let ip = other.ip().to_canonical();
                ip != beacon && ip.is_ipv4() == beacon.is_ipv4() && at.is_ipv4() == found.main.is_ipv4()
            })
            .map(|(_, at)| at)
            .collect();
        let by_address = elsewhere.iter().any(|at| *at != found.main);
        let mapping = match found.other {
            Some(other) if other != found.main => Dependence::AddressAndPortDependent,
            Some(_) if by_address => Dependence::AddressDependent,
            // Which of the two it is was not seen: the worse one.
            None if by_address => Dependence::AddressAndPortDependent,
            _ => Dependence::EndpointIndependent,
        };
        (mapping, !elsewhere.is_empty())
    }
}

impl Run {
    fn go(&mut self, now: Instant, step: Step, nonce: u64) {
        (self.step, self.nonce, self.sent, self.due) = (step, nonce, 0, now);
    }
}

/// Tries of each question.
const TRIES: u32 = 3;
/// Between two tries.
const AGAIN: Duration = Duration::from_millis(400);
/// Between two discoveries, however often our address changes.
const PAUSE: Duration = Duration::from_secs(10);
