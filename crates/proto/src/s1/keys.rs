//! From the end of the handshake to packet keys (spec/secure.md §7).
//!
//! ```text
//! master     = HKDF-Extract(salt = handshake hash, ikm = Split's two keys)
//! exporter   = Expand(master, "pilotage s1 exporter" ‖ suite)
//! traffic_0  = Expand(master, "pilotage s1 traffic" ‖ suite ‖ direction)      direction 0: from the initiator
//! header key = Expand(traffic_0, "pilotage s1 header")
//! key_n, iv_n = Expand(traffic_n, "pilotage s1 key"), Expand(traffic_n, "pilotage s1 iv")
//! traffic_n+1 = Expand(traffic_n, "pilotage s1 update")
//! ```

use std::fmt;

use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::{Zeroize, Zeroizing};

use super::aead::{HeaderKey, PacketKey, Suite};
use super::noise::Split;
use crate::crypto::{NONCE_LEN, burn};

/// 32 secret bytes, wiped on drop and never printed.
///
/// They stay where they were written: moving a `Secret` leaves no copy behind on the stack.
#[derive(Clone)]
pub struct Secret(pub(crate) Box<[u8; 32]>);

impl Secret {
    /// Takes the bytes; the caller wipes its own copy.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(Box::new(bytes))
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl zeroize::ZeroizeOnDrop for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// HKDF-Expand with SHA-256.
#[inline(never)]
fn expand(secret: &[u8; 32], info: &[&[u8]], out: &mut [u8]) {
    expand_only(secret, info, out);
    burn();
}

/// In a frame of its own, which [`burn`] reaches.
#[inline(never)]
fn expand_only(secret: &[u8; 32], info: &[&[u8]], out: &mut [u8]) {
    let hkdf = Hkdf::<Sha256>::from_prk(secret).expect("32 bytes are as long as the hash");
    hkdf.expand_multi_info(info, out).expect("at most 8,160 bytes (RFC 5869 section 2.3)");
}

fn expand_secret(secret: &[u8; 32], info: &[&[u8]]) -> Secret {
    let mut out = Secret::new([0; 32]);
    expand(secret, info, out.0.as_mut());
    out
}

/// The master secret, in a frame of its own as well.
#[inline(never)]
fn extract(split: &Split, master: &mut [u8; 32]) {
    let mut input = Zeroizing::new([0; 64]);
    input[..32].copy_from_slice(&split.to_responder);
    input[32..].copy_from_slice(&split.to_initiator);
    let (mut prk, _) = Hkdf::<Sha256>::extract(Some(&split.hash), input.as_ref());
    master.copy_from_slice(&prk);
    prk.as_mut_slice().zeroize();
}

/// What a session starts with.
pub(crate) struct Schedule {
    pub(crate) exporter: Secret,
    pub(crate) from_initiator: Secret,
    pub(crate) from_responder: Secret,
}

impl Schedule {
    pub(crate) fn new(split: &Split, suite: Suite) -> Self {
        let mut master = Secret::new([0; 32]);
        extract(split, &mut master.0);
        burn();
        let suite = [suite.id()];
        let traffic =
            |direction: u8| expand_secret(&master.0, &[b"pilotage s1 traffic", &suite, &[direction]]);
        Self {
            exporter: expand_secret(&master.0, &[b"pilotage s1 exporter", &suite]),
            from_initiator: traffic(0),
            from_responder: traffic(1),
        }
    }
}

/// The header key of a direction.
pub(crate) fn header_key(traffic_0: &Secret, suite: Suite) -> HeaderKey {
    HeaderKey::new(suite, &expand_secret(&traffic_0.0, &[b"pilotage s1 header"]).0)
}

/// Keying material for another protocol: `exporter` is a session's.
pub(crate) fn export(exporter: &Secret, label: &[u8], context: &[u8], out: &mut [u8]) -> bool {
    let Ok(len) = u8::try_from(label.len()) else {
        return false;
    };
    // RFC 5869 section 2.3.
    let fits = out.len() <= 255 * 32;
    if fits {
        expand(exporter.as_bytes(), &[&[len], label, context], out);
    }
    fits
}

/// What an upgrade adds: the secret of ML-KEM and the hash of what was exchanged for it, mixed with what the present phase gives. In a frame of
/// its own as well.
#[inline(never)]
fn mix(next: &[u8; 32], secret: &[u8; 32], transcript: &[u8; 32], out: &mut [u8; 32]) {
    let mut input = Zeroizing::new([0; 64]);
    input[..32].copy_from_slice(secret);
    input[32..].copy_from_slice(transcript);
    let (mut prk, hkdf) = Hkdf::<Sha256>::extract(Some(next), input.as_ref());
    hkdf.expand(b"pilotage s1 post-quantum", out).expect("32 bytes");
    prk.as_mut_slice().zeroize();
}

/// One phase of one direction.
#[derive(Debug)]
pub(crate) struct Phase {
    traffic: Secret,
    key: PacketKey,
    iv: [u8; NONCE_LEN],
    #[cfg(debug_assertions)]
    name: u128,
}

impl Phase {
    pub(crate) fn new(traffic: Secret, suite: Suite) -> Self {
        let key = expand_secret(&traffic.0, &[b"pilotage s1 key"]);
        let mut iv = [0; NONCE_LEN];
        expand(&traffic.0, &[b"pilotage s1 iv"], &mut iv);
        Self {
            key: PacketKey::new(suite, &key.0),
            iv,
            #[cfg(debug_assertions)]
            name: crate::audit::name(&key.0),
            traffic,
        }
    }

    /// The phase after this one. One way: from its secret nobody finds back.
    pub(crate) fn next(&self, suite: Suite) -> Self {
        Self::new(expand_secret(&self.traffic.0, &[b"pilotage s1 update"]), suite)
    }

    /// The phase after this one, with what an upgrade adds.
    pub(crate) fn upgraded(&self, suite: Suite, secret: &Secret, transcript: &[u8; 32]) -> Self {
        let next = expand_secret(&self.traffic.0, &[b"pilotage s1 update"]);
        let mut out = Secret::new([0; 32]);
        mix(&next.0, &secret.0, transcript, &mut out.0);
        burn();
        Self::new(out, suite)
    }

    fn nonce(&self, number: u64) -> [u8; NONCE_LEN] {
        let mut nonce = self.iv;
        for (byte, number) in nonce[4..].iter_mut().zip(number.to_be_bytes()) {
            *byte ^= number;
        }
        nonce
    }

    #[inline]
    pub(crate) fn seal(&self, number: u64, aad: &[u8], buf: &mut [u8]) {
        let nonce = self.nonce(number);
        #[cfg(debug_assertions)]
        {
            let mut prefix = [0; 4];
            prefix.copy_from_slice(&nonce[..4]);
            crate::audit::note(crate::audit::Sealed { key: self.name, prefix, counter: number });
        }
        self.key.seal(&nonce, aad, buf);
    }

    #[inline]
    pub(crate) fn open(&self, number: u64, aad: &[u8], buf: &mut [u8]) -> Option<usize> {
        self.key.open(&self.nonce(number), aad, buf)
    }

    /// What the packet key was made of.
    #[cfg(all(test, not(feature = "fuzzing")))]
    pub(crate) fn key_bytes(&self) -> Secret {
        expand_secret(&self.traffic.0, &[b"pilotage s1 key"])
    }

    #[cfg(all(test, not(feature = "fuzzing")))]
    pub(crate) fn parts(&self) -> (&[u8; 32], &[u8; NONCE_LEN]) {
        (&self.traffic.0, &self.iv)
    }
}
