//! Why a path is what it is, and what happened on the way there.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::candidate::CandidateKind;

/// Lines of the log; the oldest goes first.
const LOG_MAX: usize = 64;

/// Why the path is what it is. Every attempt ends in one of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum PathReason {
    /// Nothing was tried yet.
    #[default]
    Idle,
    /// Direct: an address of an interface of the peer answered.
    DirectHost,
    /// Direct: a port mapped by the peer's router answered.
    DirectMapped,
    /// Direct: the address that a beacon sees of the peer answered.
    DirectReflexive,
    /// Direct: the peer came from an address that it had not told.
    DirectPeerReflexive,
    /// Direct: the address that the application gave, before anything is proved.
    DirectIntroduced,
    /// By the relay, while direct ways are tried.
    RelayWhilePunching,
    /// By the relay: no direct way answered.
    RelayNoAnswer,
    /// By the relay: both sides are behind NATs whose ports nobody can foretell.
    RelayHardNatBoth,
    /// By the relay: the ports of a hard NAT were tried up to the budget.
    RelayProbesSpent,
    /// By the relay: the operator wants it so.
    RelayPolicy,
    /// By the relay: no address of the peer is known.
    RelayNoCandidates,
    /// By the relay: the direct way that was in use has died, others are tried.
    RelayPathLost,
    /// By the relay: no UDP leaves this host but to the hub, in another wrapping.
    UdpBlocked,
    /// No way: no direct one answered and there is no relay.
    NoRelay,
    /// No way: the operator wants none but direct ones, and none answered.
    DirectOnlyNoAnswer,
}

impl PathReason {
    /// The code, for people and for programs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::DirectHost => "direct-host",
            Self::DirectMapped => "direct-mapped",
            Self::DirectReflexive => "direct-reflexive",
            Self::DirectPeerReflexive => "direct-peer-reflexive",
            Self::DirectIntroduced => "direct-introduced",
            Self::RelayWhilePunching => "relay-while-punching",
            Self::RelayNoAnswer => "relay-no-answer",
            Self::RelayHardNatBoth => "relay-hard-nat-both",
            Self::RelayProbesSpent => "relay-probes-spent",
            Self::RelayPolicy => "relay-policy",
            Self::RelayNoCandidates => "relay-no-candidates",
            Self::RelayPathLost => "relay-path-lost",
            Self::UdpBlocked => "udp-blocked",
            Self::NoRelay => "no-relay",
            Self::DirectOnlyNoAnswer => "direct-only-no-answer",
        }
    }

    /// Whether datagrams go straight to the peer.
    pub fn is_direct(self) -> bool {
        matches!(
            self,
            Self::DirectHost
                | Self::DirectMapped
                | Self::DirectReflexive
                | Self::DirectPeerReflexive
                | Self::DirectIntroduced
        )
    }

    pub(super) fn direct(kind: CandidateKind) -> Self {
        match kind {
            CandidateKind::Host => Self::DirectHost,
            CandidateKind::Mapped => Self::DirectMapped,
            CandidateKind::Reflexive => Self::DirectReflexive,
            CandidateKind::PeerReflexive | CandidateKind::Relayed => Self::DirectPeerReflexive,
        }
    }
}

impl std::fmt::Display for PathReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Which way packets take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Straight to an address of the peer.
    Direct(SocketAddr),
    /// Through a relay.
    Relay,
}

/// Where a pair stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PairState {
    /// Not tried in this round.
    Waiting,
    /// Tried, without an answer so far.
    Checking,
    /// Answered, and used or ready to be used.
    Valid,
    /// Never answered, or no more.
    Failed,
}

impl PairState {
    /// The code, for people and for programs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Checking => "checking",
            Self::Valid => "valid",
            Self::Failed => "failed",
        }
    }
}

/// One address of the peer, and how it fared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PairReport {
    /// The address.
    pub addr: SocketAddr,
    /// How it was found.
    pub kind: CandidateKind,
    /// Where it stands.
    pub state: PairState,
    /// Checks sent to it in this round.
    pub checks: u32,
    /// Round-trip time of its last answer that tells one.
    pub rtt: Option<Duration>,
    /// The pair's priority (RFC 8445 §6.1.2.3).
    pub priority: u64,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum PathEventKind {
    /// A key exchange began.
    Begun,
    /// Keys are agreed; they came this way.
    Keys(Way),
    /// Our candidates were sent.
    Offered(u8),
    /// The peer's candidates came.
    GotOffer(u8),
    /// An address was tried for the first time in this round.
    Check(SocketAddr),
    /// An address answered.
    Answered(SocketAddr),
    /// An address did not answer.
    NoAnswer(SocketAddr),
    /// The ports of a hard NAT are tried, from this one on.
    Probing(SocketAddr),
    /// That has ended after so many probes.
    ProbesEnded(u32),
    /// The way in use changed.
    Selected(Way),
    /// The way in use is silent while it should not be.
    Dead(Way),
    /// The host has changed its network.
    NetworkChanged,
    /// The application is asked for a newer address of the peer.
    AddressWanted,
}

/// One line of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathEvent {
    /// When.
    pub at: Instant,
    /// What.
    pub what: PathEventKind,
}

/// All that is known of the ways to one peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathReport {
    /// The way in use.
    pub selected: Option<Way>,
    /// Why.
    pub reason: PathReason,
    /// Round-trip time of the way in use, once known.
    pub rtt: Option<Duration>,
    /// Addresses of the peer, best first.
    pub pairs: Vec<PairReport>,
    /// What happened, oldest first; at most 64 lines.
    pub log: Vec<PathEvent>,
    /// The peer's NAT, as it says.
    pub peer_mapping: super::NatMapping,
    /// Our NAT, as it was found out.
    pub own_mapping: super::NatMapping,
}

/// The bounded log.
#[derive(Debug, Default)]
pub(super) struct Log(VecDeque<PathEvent>);

impl Log {
    pub(super) fn note(&mut self, at: Instant, what: PathEventKind) {
        if self.0.len() >= LOG_MAX {
            self.0.pop_front();
        }
        self.0.push_back(PathEvent { at, what });
    }

    pub(super) fn lines(&self) -> Vec<PathEvent> {
        self.0.iter().copied().collect()
    }
}
