//! Claims: who was first. The only part of the registry that needs one order; everything else is signed by its owner.
//! `spec/registry2.md §3`.
//!
//! * [`Claim`]: an agent asks for an address, a hostname, a network id or a network name, signed by its key.
//! * [`Claims`]: the deterministic, sans-IO state machine. The same batches in the same order give the same outcomes, the
//!   same Merkle logs and the same snapshot bytes on every machine. Time is what the log says ([`Batch::time`]).
//! * [`ClaimLog`]: whatever orders the batches: one process with one redb file (`local::LocalLog`, feature
//!   `store`), or a consensus group.
//!
//! # Who checks what
//! [`check`] and [`check_all`] look at a claim alone: its form, proof of work, signatures. They are expensive and need no
//! state, so they run **before** a claim is ordered, on as many threads as there are, and what fails never reaches the
//! log. [`Claims::apply`] decides what depends on the state and on time, and verifies no signature. An implementation of
//! [`ClaimLog::propose`] MUST run [`check_all`] first; what it reads back from its own log it may trust.
//!
//! # Partitions
//! The first four bits of BLAKE3 of the claimed thing are its partition ([`Subject::partition`]): 16 Merkle logs, each with
//! indices of its own, so that one can move to another consensus group later without a change to data or proofs.

mod check;
mod claim;
#[cfg(feature = "store")]
pub mod local;
mod machine;
mod merkle;
#[cfg(test)]
mod tests;

#[cfg(feature = "server")]
pub(crate) use check::check_with;
pub use check::{Bad, check, check_all};
pub use claim::{
    CLAIM_MAX, Claim, ClaimError, Kind, MAX_NAME, Subject, SubjectError, SubjectKey, Transfer, solve_pow,
};
pub use machine::{Applied, Claims, Granted, Limits, SnapshotError, key_of};
pub use merkle::{
    HeadSignature, MAX_HEAD_SIGNATURES, Proof, ProofError, SignedHead, TreeHead, verify_consistency,
    verify_inclusion,
};

/// Number of partitions, each with its own Merkle log.
pub const PARTITIONS: usize = 16;
/// Most claims of one batch in a log that nodes share. A proposer cuts longer lists.
pub const MAX_BATCH: usize = 1_024;
/// Longest lease of an address, a network id or a network name: 90 days. Seconds.
pub const LEASE: u64 = 90 * DAY;
/// Longest lease of a hostname: 30 days. Seconds.
pub const HOSTNAME_LEASE: u64 = 30 * DAY;
/// After the end of a lease nobody else gets the name for so long: 30 days. Seconds.
pub const QUARANTINE: u64 = 30 * DAY;
/// How far the clock of who signs may be ahead of the log's time: 1 day. Seconds.
pub const CLOCK_SLACK: u64 = DAY;
const DAY: u64 = 86_400;

/// What a log orders: some claims and the time at which they are decided.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Batch {
    /// Unix time in seconds, by the clock of who proposed the batch. [`Claims`] never goes back: an earlier time than that
    /// of the batch before counts as that one's.
    pub time: u64,
    /// At most [`MAX_BATCH`] where nodes share the log, each passed by [`check`].
    pub claims: Vec<Claim>,
}

impl Batch {
    /// As it lies in a log: time (8), count (2), then each claim behind its length (2). Big-endian.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(10 + self.claims.len() * 160);
        out.extend(self.time.to_be_bytes());
        out.extend((self.claims.len() as u16).to_be_bytes());
        for claim in &self.claims {
            let bytes = claim.encode();
            out.extend((bytes.len() as u16).to_be_bytes());
            out.extend(bytes);
        }
        out
    }

    /// Reads what [`Batch::encode`] wrote, and nothing else.
    ///
    /// # Errors
    /// [`ClaimError`] if the bytes are not a batch.
    pub fn decode(bytes: &[u8]) -> Result<Self, ClaimError> {
        let (time, rest) = bytes.split_first_chunk::<8>().ok_or(ClaimError::Truncated)?;
        let (count, mut rest) = rest.split_first_chunk::<2>().ok_or(ClaimError::Truncated)?;
        let count = usize::from(u16::from_be_bytes(*count));
        if count > MAX_BATCH {
            return Err(ClaimError::Value("count"));
        }
        let mut claims = Vec::with_capacity(count);
        for _ in 0..count {
            let (len, tail) = rest.split_first_chunk::<2>().ok_or(ClaimError::Truncated)?;
            let len = usize::from(u16::from_be_bytes(*len));
            let (claim, tail) = tail.split_at_checked(len).ok_or(ClaimError::Truncated)?;
            claims.push(Claim::decode(claim)?);
            rest = tail;
        }
        if rest.is_empty() {
            Ok(Self { time: u64::from_be_bytes(*time), claims })
        } else {
            Err(ClaimError::TooLong)
        }
    }
}

/// What became of a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It holds. The same claim again gets the same answer and changes nothing.
    Granted {
        /// Leaf of the partition's Merkle log.
        index: u64,
    },
    /// Somebody else was first, or the thing is still in quarantine after somebody else.
    TakenBy {
        /// The holder (`spec/addressing.md §2`).
        agent_id: [u8; 32],
        /// Leaf of the holder's claim.
        index: u64,
    },
    /// It can never hold as it is.
    Bad(Bad),
}

/// Why a log did not do what it was asked. Nothing is said about claims whose outcomes were not returned: they may or may
/// not be in the log. Proposing them again is safe: a claim is idempotent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// No majority, no leader, or a full disk: nothing new can be claimed now; reading goes on.
    #[error("registry takes no new claims now ({reason}); look-ups go on, try again later")]
    Unavailable {
        /// What is missing.
        reason: String,
    },
    /// This process may not propose; another one does.
    #[error("this registry node is not the leader{}; ask there", .leader.as_deref().map(|at| format!(": {at} is")).unwrap_or_default())]
    NotLeader {
        /// Where the leader listens, if known.
        leader: Option<String>,
    },
    /// Too much waits already.
    #[error("registry is busy: too many claims wait; try again in a moment")]
    Busy,
    /// The claims asked for are older than what this node has kept.
    #[error(
        "this registry node holds claims of partition {partition} from {first} on only; ask another node"
    )]
    Compacted {
        /// The partition.
        partition: u8,
        /// First leaf that it can still read.
        first: u64,
    },
    /// The snapshot is not one.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// Too few nodes of a cluster sign the newest head.
    #[error(
        "only {have} of the registry's {nodes} nodes sign its log now, {need} are needed; older claims are still proven, try again or ask another hub"
    )]
    NoQuorum {
        /// Nodes that have signed.
        have: usize,
        /// Signatures that are needed.
        need: usize,
        /// Nodes that may sign.
        nodes: usize,
    },
    /// The store.
    #[error("{0}")]
    Store(String),
}

/// Called once, when claims are decided and the outcomes durable, or when that failed. Must not block.
pub type Decided = Box<dyn FnOnce(Result<Vec<Outcome>, LogError>) + Send>;
/// Called once, with a head that enough nodes have signed. Must not block.
pub type Signed = Box<dyn FnOnce(Result<SignedHead, LogError>) + Send>;
/// Called once, when the node has caught up or could not. Must not block.
pub type CaughtUp = Box<dyn FnOnce() + Send>;

/// Whatever brings claims into one order and keeps them. All methods may be called from several threads. Blocking are only
/// [`ClaimLog::propose`], [`ClaimLog::snapshot`] and [`ClaimLog::install`]; those that take a function return at once and
/// call it later, on any thread or before they return.
pub trait ClaimLog: std::fmt::Debug + Send + Sync {
    /// Checks the claims, orders those that pass, and returns when their outcomes are durable (in a cluster: committed by
    /// a majority). One outcome per claim, in the same order. Callers may pass more than [`MAX_BATCH`]; several callers
    /// at once share a commit.
    ///
    /// # Errors
    /// [`LogError`]; the claims may be proposed again.
    fn propose(&self, claims: Vec<Claim>) -> Result<Vec<Outcome>, LogError>;

    /// As [`ClaimLog::propose`] without waiting, for at most [`MAX_BATCH`] claims that have passed [`check_all`]. What it
    /// says to be granted is seen by this node's readers then.
    ///
    /// # Errors
    /// [`LogError::Busy`] if too much waits, or the log is closed; the function is not called then.
    fn submit_claims(&self, claims: Vec<Claim>, decided: Decided) -> Result<(), LogError>;

    /// Granted claims of a partition from leaf `from` on, at most `limit`, in order. Empty at the end.
    ///
    /// # Errors
    /// [`LogError::Compacted`], or the store fails.
    fn read(&self, partition: u8, from: u64, limit: usize) -> Result<Vec<Granted>, LogError>;

    /// The claim that holds a subject now (its lease may have ended: see [`Granted::until`]).
    ///
    /// # Errors
    /// [`LogError`] if the store fails.
    fn holder(&self, subject: &Subject) -> Result<Option<Granted>, LogError>;

    /// Size and root of a partition's Merkle log, with the time of the last batch.
    fn head(&self, partition: u8) -> TreeHead;

    /// Proof that a leaf is in the tree of the given size.
    ///
    /// # Errors
    /// [`LogError`] if there is no such leaf or size.
    fn prove(&self, partition: u8, index: u64, size: u64) -> Result<Proof, LogError>;

    /// Proof that the first `old` leaves are the start of the first `size`; `None` if there are not so many.
    fn prove_consistency(&self, partition: u8, old: u64, size: u64) -> Option<Proof>;

    /// A head that covers leaf `index` and is signed by enough nodes, if there is one at hand.
    fn ready_head(&self, partition: u8, index: u64) -> Option<SignedHead>;

    /// The newest head of a partition, signed by enough nodes: by the one, or by a majority of [`ClaimLog::signers`].
    fn newest_head(&self, partition: u8, signed: Signed);

    /// Calls when this node has seen everything that was granted anywhere before, or after a while if that cannot be known.
    /// False if it has anyway, or too many wait already; the function is not called then.
    fn catch_up(&self, then: CaughtUp) -> bool;

    /// Key of this node, one of [`ClaimLog::signers`] unless it only listens.
    fn node_key(&self) -> [u8; 32];

    /// Keys of the nodes of which a majority signs heads, ascending.
    fn signers(&self) -> Vec<[u8; 32]>;

    /// Leading zero bits that a claim's proof of work needs here.
    fn pow_bits(&self) -> u8;

    /// Things claimed.
    fn claims(&self) -> usize;

    /// The whole state ([`Claims::snapshot`]).
    ///
    /// # Errors
    /// [`LogError`] if the store fails.
    fn snapshot(&self) -> Result<Vec<u8>, LogError>;

    /// Replaces the whole state ([`Claims::install`]), durably.
    ///
    /// # Errors
    /// [`LogError`]; the old state stays.
    fn install(&self, snapshot: &[u8]) -> Result<(), LogError>;
}
