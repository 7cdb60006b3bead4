//! The secure mode S1 (spec/secure.md): a Noise handshake between identities, and packets sealed under its keys.
//!
//! It stands beside the draft's tunnels and knows nothing of them; [`secure`](crate::secure) says which of the two is used.
//!
//! * [`Node`]: what one endpoint has once: identity, prekeys, the defence against floods, the table of indices.
//!   [`Node::handle_initiation`] judges a PILI; [`Node::accept`] answers it.
//! * [`Association`]: what one peer has: handshakes that we began, sessions, the rules which session sends.
//! * [`Session`]: the keys of one handshake.
//!
//! # Contract
//!
//! Sans-IO as the rest of the crate: time and randomness come in with [`Cx`], datagrams go out as return values. A
//! datagram that fails any check leaves no state behind that a peer could fill; every table has a bound.

mod aead;
mod association;
mod cookie;
mod dh;
mod initiation;
mod keys;
mod limit;
mod node;
mod noise;
mod prekey;
mod session;
mod upgrade;
mod window;

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod model;
#[cfg(all(test, not(feature = "fuzzing")))]
mod tests;

pub use aead::{ChaCha20Poly1305, RustCryptoChaCha20Poly1305, Suite};
pub use association::{Association, Begin, EarlyData, Timeout, Up};
pub use cookie::{COOKIE_LIFE, Source};
pub use dh::DhKey;
pub use keys::Secret;
pub use limit::{BUSY_RATE, BUSY_UNCONFIRMED, COOKIES_AT_ONCE, STRIKES_MAX, TABLE_MAX};
pub use node::{Accepted, INDICES_MAX, Incoming, Node, NodeConfig, UNCONFIRMED_MAX, Verdict};
pub use prekey::{LIFE, LIVE_MAX, PeerPrekey, Prekey, prekey_id};
pub use session::{Limits, OpenError, Opened, Role, SPARES_MAX, SealError, Session};
pub use upgrade::PostQuantum;

use std::time::Instant;

use rand_core::CryptoRng;

/// What a call may need from outside.
pub struct Cx<'a> {
    /// Monotonic time.
    pub now: Instant,
    /// Wall clock, Unix time in milliseconds. May be wrong; see spec/secure.md §6.4 for what hangs on it.
    pub unix_ms: u64,
    /// A cryptographic random source.
    pub rng: &'a mut dyn CryptoRng,
}

impl Cx<'_> {
    fn random<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        self.rng.fill_bytes(&mut out);
        out
    }
}

impl std::fmt::Debug for Cx<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cx").field("now", &self.now).field("unix_ms", &self.unix_ms).finish_non_exhaustive()
    }
}

/// Why a handshake datagram was dropped. To be counted, by reason; never to be told to its sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// Not the form of its kind.
    #[error("{0}")]
    Malformed(#[from] pilotage_wire::s1::Malformed),
    /// `mac1` is wrong: the sender does not know whom it talks to.
    #[error("s1: wrong mac1")]
    Mac,
    /// Too many from this source.
    #[error("s1: too many initiations from this source")]
    Rate,
    /// It uses a prekey that we do not have, and cannot be told a new one now.
    #[error("s1: unknown prekey")]
    UnknownPrekey,
    /// The sealed parts do not open.
    #[error("s1: the handshake does not verify")]
    Unauthentic,
    /// The identity did not sign the prekey.
    #[error("s1: the certificate does not verify")]
    Certificate,
    /// The certificate is over.
    #[error("s1: the certificate has expired")]
    Expired,
    /// Not newer than what came from this prekey before.
    #[error("s1: replayed")]
    Replay,
    /// It says that it is from ourselves.
    #[error("s1: our own identity")]
    Own,
    /// The two sides have no suite in common.
    #[error("s1: no common suite")]
    Suite,
    /// We demand the post-quantum upgrade, and the peer does not do it.
    #[error("s1: the peer does not do the post-quantum upgrade that this node demands")]
    PostQuantum,
    /// An answer to nothing that we sent.
    #[error("s1: answers nothing")]
    Unexpected,
    /// A bound is reached.
    #[error("s1: too many sessions")]
    Full,
}
