//! Many sockets on the hard side (spec/nat.md §10.5): when they are wanted, and where they should send.
//!
//! The peer guesses ports of our NAT. With one mapping towards it one port of 64,512 is right; with hundreds of mappings
//! some guess soon hits one (the birthday problem). The mappings are made by sockets of the node's driver, which the agent
//! only asks for: whichever is hit becomes an address of the peer ([`crate::side`]) and is tried like any other.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::candidate::CandidateKind;
use super::pairs::Source;
use super::report::{PathEventKind, Way};
use super::{Agent, Locals, PROBE_AFTER, PROBE_AGAIN, PathPolicy, Use};

/// Extra sockets for one peer.
pub const FAN_SOCKETS: u32 = 256;
/// How long they are kept if none is hit: a little longer than a run of guesses.
pub const FAN_TIME: Duration = Duration::from_secs(13);

impl Agent {
    /// When extra sockets are wanted, if they are: the mirror image of [`Agent::probe_at`].
    pub(super) fn fan_at(&self, used: Use, locals: &Locals) -> Option<Instant> {
        let direct = matches!(self.way, Some(Way::Direct(_)));
        let hard = locals.mapping.is_hard() && !self.peer_mapping.is_hard();
        if direct || !hard || !used.pilotage || !self.has_offer() || self.policy == PathPolicy::RelayOnly {
            return None;
        }
        self.easy_address()?;
        let begin = self.round? + PROBE_AFTER;
        Some(self.fanned.map_or(begin, |t| begin.max(t + PROBE_AGAIN)))
    }

    pub(super) fn begin_fan(&mut self, now: Instant, used: Use, locals: &Locals) {
        if self.fan_at(used, locals).is_none_or(|t| t > now) {
            return;
        }
        self.fan = self.easy_address();
        self.fanned = Some(now);
        if let Some(addr) = self.fan {
            self.log.note(now, PathEventKind::Probing(addr));
        }
    }

    /// Takes the wish for extra sockets that send to this address of the peer. At most one in five minutes.
    pub fn take_fan(&mut self) -> Option<SocketAddr> {
        self.fan.take()
    }

    /// Where the peer's easy NAT is. Hard NATs are those of IPv4.
    fn easy_address(&self) -> Option<SocketAddr> {
        let seen =
            |kind| move |p: &&super::Pair| p.kind == kind && p.source == Source::Offered && p.addr.is_ipv4();
        let mut pairs = self.pairs.iter().filter(seen(CandidateKind::Reflexive));
        pairs.next().map(|p| p.addr)
    }
}
