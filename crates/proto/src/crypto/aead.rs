//! Packet protection: AES-256-GCM in place (NIST SP 800-38D), by two independent implementations.
//!
//! The default is aws-lc (assembler, several times faster); RustCrypto serves targets without a C
//! compiler. Both are compiled together, so that a test can hold them against each other.

use std::fmt;

use aes_gcm::aead::{AeadInOut, KeyInit};

/// Bytes of a key.
pub const KEY_LEN: usize = 32;
/// Bytes of a nonce: 4 of prefix, 8 of counter in a PILS frame.
pub const NONCE_LEN: usize = 12;
/// Bytes of the tag at the end of a sealed buffer.
pub const TAG_LEN: usize = 16;

/// Authenticated encryption of single packets under one key.
pub trait PacketAead {
    /// Encrypts all but the last [`TAG_LEN`] bytes of `buf` and writes the tag into those.
    ///
    /// The caller must never pass the same nonce twice for one key.
    ///
    /// # Panics
    /// If `buf` is shorter than [`TAG_LEN`]: a mistake of the caller, who lays the buffer out.
    fn seal_in_place(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], buf: &mut [u8]);

    /// Checks and decrypts `buf` (ciphertext and tag) and returns the plaintext, which lies at its
    /// start. `None`: not sealed by the holder of the key under this nonce and `aad`, or too short.
    ///
    /// After `None` the content of `buf` is **unspecified** (one implementation wipes it). To try
    /// a second key use [`open_to`](Self::open_to).
    fn open_in_place<'a>(
        &self,
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        buf: &'a mut [u8],
    ) -> Option<&'a mut [u8]>;

    /// Like [`open_in_place`](Self::open_in_place), but leaves the sealed bytes as they are and
    /// writes the plaintext to the start of `out`, of which it returns the length.
    ///
    /// Costs a copy. Meant for the rare frame that may belong to either of two sessions (rule C2).
    /// `None` also if `out` is shorter than the plaintext. After `None` the content of `out` is
    /// unspecified, but never unauthenticated plaintext that a caller may use.
    fn open_to(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], sealed: &[u8], out: &mut [u8]) -> Option<usize> {
        let out = out.get_mut(..sealed.len().checked_sub(TAG_LEN)?)?;
        self.open_detached(nonce, aad, sealed, out).then_some(out.len())
    }

    #[doc(hidden)]
    /// `out` is exactly [`TAG_LEN`] bytes shorter than `sealed`.
    fn open_detached(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], sealed: &[u8], out: &mut [u8]) -> bool;
}

/// The AES-256-GCM that this build uses for sessions.
#[cfg(feature = "aws-lc-rs")]
pub type Aes256Gcm = AwsLcAes256Gcm;
/// The AES-256-GCM that this build uses for sessions.
#[cfg(not(feature = "aws-lc-rs"))]
pub type Aes256Gcm = RustCryptoAes256Gcm;
/// The packet protection of a tunnel session.
#[cfg(not(feature = "fuzzing"))]
pub type SessionAead = Aes256Gcm;

/// AES-256-GCM by aws-lc.
#[cfg(feature = "aws-lc-rs")]
pub struct AwsLcAes256Gcm {
    key: aws_lc_rs::aead::LessSafeKey,
}

#[cfg(feature = "aws-lc-rs")]
impl AwsLcAes256Gcm {
    /// Expands a key.
    pub fn new(key: &[u8; KEY_LEN]) -> Self {
        use aws_lc_rs::aead::{AES_256_GCM, LessSafeKey, UnboundKey};
        let key = UnboundKey::new(&AES_256_GCM, key).expect("an AES-256 key is any 32 bytes");
        Self { key: LessSafeKey::new(key) }
    }
}

#[cfg(feature = "aws-lc-rs")]
impl PacketAead for AwsLcAes256Gcm {
    #[inline]
    fn seal_in_place(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], buf: &mut [u8]) {
        use aws_lc_rs::aead::{Aad, Nonce};
        let (plaintext, tag_out) = split_tag_mut(buf);
        let tag = self
            .key
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(*nonce), Aad::from(aad), plaintext)
            .expect("GCM seals anything below 64 GiB (SP 800-38D section 5.2.1.1)");
        tag_out.copy_from_slice(tag.as_ref());
    }

    #[inline]
    fn open_in_place<'a>(
        &self,
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        buf: &'a mut [u8],
    ) -> Option<&'a mut [u8]> {
        use aws_lc_rs::aead::{Aad, Nonce};
        self.key.open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(aad), buf).ok()
    }

    fn open_detached(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], sealed: &[u8], out: &mut [u8]) -> bool {
        use aws_lc_rs::aead::{Aad, Nonce};
        let (ciphertext, tag) = sealed.split_at(out.len());
        let nonce = Nonce::assume_unique_for_key(*nonce);
        self.key.open_separate_gather(nonce, Aad::from(aad), ciphertext, tag, out).is_ok()
    }
}

#[cfg(feature = "aws-lc-rs")]
impl fmt::Debug for AwsLcAes256Gcm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AwsLcAes256Gcm(..)")
    }
}

/// AES-256-GCM by RustCrypto.
pub struct RustCryptoAes256Gcm {
    // Boxed: the expanded key is about 1 KiB, and sessions move between table slots.
    cipher: Box<aes_gcm::Aes256Gcm>,
}

impl RustCryptoAes256Gcm {
    /// Expands a key.
    pub fn new(key: &[u8; KEY_LEN]) -> Self {
        Self { cipher: Box::new(aes_gcm::Aes256Gcm::new(key.into())) }
    }
}

impl PacketAead for RustCryptoAes256Gcm {
    fn seal_in_place(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], buf: &mut [u8]) {
        let (plaintext, tag_out) = split_tag_mut(buf);
        let tag = self
            .cipher
            .encrypt_inout_detached(nonce.into(), aad, plaintext.into())
            .expect("GCM seals anything below 64 GiB (SP 800-38D section 5.2.1.1)");
        tag_out.copy_from_slice(&tag);
    }

    fn open_in_place<'a>(
        &self,
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        buf: &'a mut [u8],
    ) -> Option<&'a mut [u8]> {
        let (ciphertext, tag) = buf.split_last_chunk_mut::<TAG_LEN>()?;
        let tag = aes_gcm::Tag::from(*tag);
        self.cipher.decrypt_inout_detached(nonce.into(), aad, (&mut *ciphertext).into(), &tag).ok()?;
        Some(ciphertext)
    }

    fn open_detached(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], sealed: &[u8], out: &mut [u8]) -> bool {
        let Some((ciphertext, tag)) = sealed.split_last_chunk::<TAG_LEN>() else {
            return false;
        };
        out.copy_from_slice(ciphertext);
        let tag = aes_gcm::Tag::from(*tag);
        self.cipher.decrypt_inout_detached(nonce.into(), aad, out.into(), &tag).is_ok()
    }
}

impl fmt::Debug for RustCryptoAes256Gcm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RustCryptoAes256Gcm(..)")
    }
}

fn split_tag_mut(buf: &mut [u8]) -> (&mut [u8], &mut [u8; TAG_LEN]) {
    buf.split_last_chunk_mut::<TAG_LEN>().expect("the caller leaves room for the tag")
}
