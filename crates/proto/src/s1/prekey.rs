//! Prekeys: the X25519 keys of a node, signed by its identity (spec/secure.md §5.2).
//!
//! They live in the memory of one process only. That, and nothing finer, is what makes replays of initiations across a
//! restart or at a second replica fail: whoever would have to recognise them does not have the key to read them.

use pilotage_wire::s1::payload::PrekeyCertificate;
use rand_core::CryptoRng;
use zeroize::Zeroize;

use super::Refusal;
use super::dh::DhKey;
use crate::crypto::{Identity, verify};

/// Longest life of a prekey, seconds.
pub const LIFE: u64 = 7 * 24 * 3_600;
/// Prekeys of a node that are good at one time.
pub const LIVE_MAX: usize = 2;
/// What two clocks may differ when a certificate ends, seconds.
const SLACK: u64 = 3_600;

/// Names a prekey in PILI.
pub fn prekey_id(prekey: &[u8; 32]) -> [u8; 8] {
    let hash = blake3::derive_key("pilotage 2026 prekey-id", prekey);
    let mut id = [0; 8];
    id.copy_from_slice(&hash[..8]);
    id
}

/// A prekey of our own.
#[derive(Debug, Clone)]
pub struct Prekey {
    pub(crate) key: DhKey,
    pub(crate) id: [u8; 8],
    pub(crate) certificate: PrekeyCertificate,
}

impl Prekey {
    /// Makes and signs a prekey that is good for [`LIFE`] from `unix_s` on.
    pub fn new(identity: &Identity, mut secret: [u8; 32], seq: u64, caps: u64, unix_s: u64) -> Self {
        let key = DhKey::from_bytes(secret);
        secret.zeroize();
        let not_after = u32::try_from(unix_s + LIFE).unwrap_or(u32::MAX);
        let mut certificate = PrekeyCertificate { not_after, seq, caps, signature: [0; 64] };
        let public = key.public();
        certificate.signature = identity.sign(&certificate.signed(&identity.public_key(), &public));
        Self { id: prekey_id(&public), key, certificate }
    }

    /// The public key.
    pub fn public(&self) -> [u8; 32] {
        self.key.public()
    }

    /// Its certificate.
    pub fn certificate(&self) -> &PrekeyCertificate {
        &self.certificate
    }
}

/// Our prekeys: the newest is used and told, the one before it is still answered.
#[derive(Debug)]
pub(crate) struct Prekeys {
    live: Vec<Prekey>,
    made_s: u64,
}

impl Prekeys {
    pub(crate) fn new(first: Prekey, unix_s: u64) -> Self {
        Self { live: vec![first], made_s: unix_s }
    }

    pub(crate) fn newest(&self) -> &Prekey {
        &self.live[self.live.len() - 1]
    }

    pub(crate) fn find(&self, id: &[u8; 8]) -> Option<&Prekey> {
        self.live.iter().find(|prekey| prekey.id == *id)
    }

    /// Whether half of the newest one's life is over.
    pub(crate) fn is_due(&self, unix_s: u64) -> bool {
        unix_s.saturating_sub(self.made_s) >= LIFE / 2
    }

    pub(crate) fn rotate(&mut self, identity: &Identity, caps: u64, unix_s: u64, rng: &mut dyn CryptoRng) {
        let mut secret = [0; 32];
        rng.fill_bytes(&mut secret);
        let seq = (self.newest().certificate.seq + 1).max(unix_s.saturating_mul(1_000));
        self.live.push(Prekey::new(identity, secret, seq, caps, unix_s));
        secret.zeroize();
        self.made_s = unix_s;
        if self.live.len() > LIVE_MAX {
            self.live.remove(0);
        }
    }
}

/// What we know of a peer: its identity and a prekey of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerPrekey {
    /// Its Ed25519 key.
    pub identity: [u8; 32],
    /// Its X25519 key.
    pub prekey: [u8; 32],
    /// What the identity says about the prekey.
    pub certificate: PrekeyCertificate,
}

impl PeerPrekey {
    /// Whether the identity signed the prekey and its time has not passed.
    ///
    /// # Errors
    ///
    /// [`Refusal::Certificate`] or [`Refusal::Expired`].
    pub fn check(&self, unix_ms: u64) -> Result<(), Refusal> {
        self.check_time(unix_ms)?;
        let signed = self.certificate.signed(&self.identity, &self.prekey);
        if verify(&self.identity, &signed, &self.certificate.signature) {
            Ok(())
        } else {
            Err(Refusal::Certificate)
        }
    }

    /// Whether the certificate is not over, give or take an hour.
    pub(crate) fn check_time(&self, unix_ms: u64) -> Result<(), Refusal> {
        let over = u64::from(self.certificate.not_after) + SLACK < unix_ms / 1_000;
        if over { Err(Refusal::Expired) } else { Ok(()) }
    }

    /// Names the whole of it, for caches of verified ones.
    pub(crate) fn fingerprint(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key("pilotage 2026 verified prekey");
        hasher.update(&self.identity).update(&self.prekey).update(&self.certificate.to_bytes());
        *hasher.finalize().as_bytes()
    }
}
