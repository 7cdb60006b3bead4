//! How a node is started, and why it may not be.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use openraft::{Config, SnapshotPolicy};
use pilotage::Identity;

use crate::faults::Faults;
use crate::store::StoreError;

/// Shortest token, bytes.
const MIN_TOKEN: usize = 16;

/// What to do in a folder that belongs to no cluster yet. One that does goes on, whatever this says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// Begin a new cluster with this node alone.
    Found,
    /// As [`Start::Found`], with a state to begin with: what [`Machine::snapshot`](crate::Machine::snapshot) wrote, at most
    /// [`MAX_SNAPSHOT`](crate::MAX_SNAPSHOT) bytes. The cluster is another one than that which the state comes from, if it comes
    /// from one: that one must grant nothing any more.
    FoundWith(Arc<Vec<u8>>),
    /// Ask these hosts (`HOST:PORT` of their cluster ports), one after the other.
    Join(Vec<String>),
    /// There must be a cluster.
    Resume,
}

/// How quickly a dead leader is noticed. A network with longer ways needs longer times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Between two heartbeats; also the longest wait for the answer to one.
    pub heartbeat: Duration,
    /// Silence after which the first member asks to be elected. At least four heartbeats.
    pub election: Duration,
    /// Each further member waits so much longer, so that two do not ask at once and split the votes.
    pub stagger: Duration,
}

#[cfg(test)]
impl Timing {
    /// For tests: a machine on which everything takes a second now and then elects nobody by mistake.
    pub(crate) const SLOW: Self = Self {
        heartbeat: Duration::from_millis(300),
        election: Duration::from_millis(2_500),
        stagger: Duration::from_millis(700),
    };
}

impl Default for Timing {
    /// The first member asks 0.5 s after the leader's last sign of life, the second 0.12 s later, and so on.
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(100),
            election: Duration::from_millis(500),
            stagger: Duration::from_millis(120),
        }
    }
}

/// Everything a node needs.
#[derive(Debug, Clone)]
pub struct ClusterConfig {
    /// Its folder: key and file.
    pub folder: PathBuf,
    /// Its key, if it is not the folder's.
    pub identity: Option<Identity>,
    /// Its cluster port (UDP; with a token also TCP, for who wants to join).
    pub bind: SocketAddr,
    /// What the others shall use, if not `bind`.
    pub advertise: Option<SocketAddr>,
    /// Its share of records. 1 to 1,000.
    pub weight: u16,
    /// What to do in an empty folder.
    pub start: Start,
    /// The secret that lets nodes in, at least 16 bytes. Without it nobody is admitted.
    pub token: Option<Vec<u8>>,
    /// How quick.
    pub timing: Timing,
    /// Entries between two snapshots.
    pub snapshot_every: u64,
    /// How long to try to join.
    pub join_patience: Duration,
    /// Nothing is lost on purpose unless a test says so.
    pub faults: Faults,
}

impl ClusterConfig {
    /// Defaults for a folder and a port.
    #[must_use]
    pub fn new(folder: impl Into<PathBuf>, bind: SocketAddr, start: Start) -> Self {
        Self {
            folder: folder.into(),
            identity: None,
            bind,
            advertise: None,
            weight: 1,
            start,
            token: None,
            timing: Timing::default(),
            snapshot_every: 5_000,
            join_patience: Duration::from_secs(30),
            faults: Faults::default(),
        }
    }

    pub(super) fn endpoint(&self) -> SocketAddr {
        self.advertise.unwrap_or(self.bind)
    }

    pub(super) fn check(&self) -> Result<(), ClusterError> {
        let at = self.endpoint();
        if at.ip().is_unspecified() || at.port() == 0 {
            return Err(ClusterError::Endpoint(at));
        }
        if !(1..=1_000).contains(&self.weight) {
            return Err(ClusterError::Weight(self.weight));
        }
        match &self.token {
            Some(token) if token.len() < MIN_TOKEN => Err(ClusterError::Token(token.len())),
            None if matches!(self.start, Start::Join(_)) => Err(ClusterError::NoToken),
            _ => Ok(()),
        }
    }

    /// The same on all nodes; when to ask for an election is not openraft's business (`watch`).
    pub(super) fn raft(&self) -> Result<Config, ClusterError> {
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        // While it has heard a leader within this a voter refuses: over when the first member asks, even if the voter has
        // heard one heartbeat more. Also the longest wait for a vote.
        let lease = millis(self.timing.election * 7 / 10);
        Config {
            cluster_name: "pilotage".into(),
            enable_elect: false,
            heartbeat_interval: millis(self.timing.heartbeat),
            election_timeout_min: lease,
            election_timeout_max: lease + 10,
            install_snapshot_timeout: 10_000,
            max_payload_entries: 64,
            replication_lag_threshold: self.snapshot_every * 2,
            snapshot_policy: SnapshotPolicy::LogsSinceLast(self.snapshot_every),
            snapshot_max_chunk_size: 512 << 10,
            max_in_snapshot_log_to_keep: self.snapshot_every.min(1_000),
            ..Config::default()
        }
        .validate()
        .map_err(|error| ClusterError::System(error.to_string()))
    }
}

/// Why a node does not run, or a change was not made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClusterError {
    /// Others could not reach that.
    #[error(
        "{0} is no address that other nodes can use; give the cluster port an IP address and a port, or say what to advertise"
    )]
    Endpoint(SocketAddr),
    /// Out of range.
    #[error("weight {0} is not between 1 and 1000")]
    Weight(u16),
    /// Too easy to guess.
    #[error("a cluster token of {0} bytes is too short; use 16 or more random ones")]
    Token(usize),
    /// Joining needs a token.
    #[error("joining a cluster needs its token; copy the token file from the node that you join")]
    NoToken,
    /// Nothing to go on with.
    #[error("{0} belongs to no cluster yet; found one or join one")]
    NoCluster(PathBuf),
    /// The file.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The state in the file, or consensus itself.
    #[error("consensus does not run on this node: {0}")]
    State(String),
    /// Socket, threads.
    #[error("cluster node cannot start: {0}")]
    System(String),
    /// Nobody let us in.
    #[error("cannot join: {0}")]
    Join(String),
    /// A change of members.
    #[error("{0}")]
    Change(String),
}
