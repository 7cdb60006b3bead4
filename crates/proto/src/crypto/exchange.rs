//! Key agreement of a tunnel: X25519 (RFC 7748), then HKDF-SHA256 (RFC 5869).
//!
//! The draft gives HKDF no salt and binds neither public keys nor roles, so both directions of a
//! session share one key. What keeps them apart is the nonce prefix of each side (rule C5).

use std::fmt;

use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::aead::SessionAead;
use super::{burn, x25519};

/// HKDF `info` of tunnel keys.
pub const INFO_TUNNEL: &[u8] = b"pilot-tunnel-v1";
/// HKDF `info` of the secure channel on stream port 443.
pub const INFO_SECURE: &[u8] = b"pilot-secure-v1";

/// An X25519 key pair for one session with one peer (rule C5). Wiped on drop.
pub struct EphemeralKey {
    secret: x25519::Key,
    public: [u8; 32],
}

impl EphemeralKey {
    /// The key pair of 32 random bytes; clamping is done here (RFC 7748 section 5).
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        let (secret, public) = x25519::Key::pair(&Zeroizing::new(bytes));
        Self { secret, public }
    }

    /// The public key, as PILA and PILK carry it.
    pub fn public(&self) -> [u8; 32] {
        self.public
    }

    /// The session key shared with the owner of `peer_public`, or `None` where the shared secret is
    /// all zero: the peer sent a point of small order (RFC 7748 section 6.1).
    pub fn tunnel_key(&self, peer_public: &[u8; 32]) -> Option<TunnelKey> {
        self.shared_key(peer_public, INFO_TUNNEL)
    }

    /// Like [`tunnel_key`](Self::tunnel_key), for another protocol that is told apart by `info`.
    pub fn shared_key(&self, peer_public: &[u8; 32], info: &[u8]) -> Option<TunnelKey> {
        let mut key = TunnelKey::empty();
        let agreed = self.agree_into(peer_public, info, &mut key.bytes);
        burn();
        agreed.then_some(key)
    }

    /// In a frame of its own, which [`burn`] reaches.
    #[inline(never)]
    fn agree_into(&self, peer_public: &[u8; 32], info: &[u8], out: &mut [u8; 32]) -> bool {
        self.secret.agree(peer_public, |shared| expand(shared, info, out)).is_some()
    }
}

impl fmt::Debug for EphemeralKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EphemeralKey").field("public", &self.public).finish_non_exhaustive()
    }
}

/// HKDF-SHA256 with an empty salt: 32 bytes of key from an X25519 shared secret.
pub fn derive(shared: &[u8; 32], info: &[u8]) -> TunnelKey {
    let mut key = TunnelKey::empty();
    expand(shared, info, &mut key.bytes);
    burn();
    key
}

/// The draft wants shared secret, PRK and key gone from memory (section 10.3). The array of the PRK does not wipe itself, and
/// the working space of the hash stays on the stack until [`burn`].
#[inline(never)]
fn expand(shared: &[u8; 32], info: &[u8], out: &mut [u8; 32]) {
    let (mut prk, hkdf) = Hkdf::<Sha256>::extract(None, shared);
    prk.as_mut_slice().zeroize();
    hkdf.expand(info, out).expect("HKDF-SHA256 gives up to 8,160 bytes (RFC 5869 section 2.3)");
}

/// A 256-bit symmetric key, wiped on drop and never printed. Moving it leaves no copy behind on the stack.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct TunnelKey {
    bytes: Box<[u8; 32]>,
}

impl TunnelKey {
    fn empty() -> Self {
        Self { bytes: Box::new([0; 32]) }
    }

    /// The key bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.bytes
    }

    /// The packet protection under this key.
    pub fn aead(&self) -> SessionAead {
        SessionAead::new(&self.bytes)
    }
}

impl fmt::Debug for TunnelKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TunnelKey(..)")
    }
}
