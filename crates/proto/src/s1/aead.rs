//! Packet suites of S1: AES-256-GCM and ChaCha20-Poly1305 (RFC 8439), and the header masks that go with them
//! (RFC 9001 §5.4.3 and §5.4.4).

use std::fmt;

use pilotage_wire::s1::data::SAMPLE_LEN;
use pilotage_wire::s1::payload::SuiteList;

use crate::crypto::{Aes256Gcm, KEY_LEN, NONCE_LEN, PacketAead, TAG_LEN};

/// How packets are sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Suite {
    /// AES-256-GCM (NIST SP 800-38D): three times faster where the CPU has instructions for it.
    Aes256Gcm,
    /// ChaCha20-Poly1305 (RFC 8439): the faster one everywhere else, and without secret-dependent table look-ups.
    ChaCha20Poly1305,
}

impl Suite {
    /// The number on the wire.
    pub fn id(self) -> u8 {
        match self {
            Self::Aes256Gcm => 1,
            Self::ChaCha20Poly1305 => 2,
        }
    }

    /// Its name, as others write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Aes256Gcm => "aes-256-gcm",
            Self::ChaCha20Poly1305 => "chacha20-poly1305",
        }
    }

    /// The suite of a number.
    pub fn from_id(id: u8) -> Option<Self> {
        [Self::Aes256Gcm, Self::ChaCha20Poly1305].into_iter().find(|suite| suite.id() == id)
    }

    /// What a side offers: both, the one first that its CPU does well.
    pub fn offer(has_aes: bool) -> SuiteList {
        let ids = if has_aes { [1, 2] } else { [2, 1] };
        SuiteList::new(&ids).expect("two different ids")
    }

    /// Whether this CPU has instructions for AES and for the multiplication of GCM.
    pub fn cpu_has_aes() -> bool {
        #[cfg(any(target_arch = "x86_64", target_arch = "x86"))]
        let has = is_x86_feature_detected!("aes") && is_x86_feature_detected!("pclmulqdq");
        #[cfg(target_arch = "aarch64")]
        let has = std::arch::is_aarch64_feature_detected!("aes");
        #[cfg(not(any(target_arch = "x86_64", target_arch = "x86", target_arch = "aarch64")))]
        let has = false;
        has
    }

    /// What the responder chooses: the suite whose worse place in the two lists is best, and of two such the later
    /// number. So AES if both have it first, ChaCha20 if one of them lacks AES instructions.
    pub fn choose(ours: &SuiteList, theirs: &SuiteList) -> Option<Self> {
        let place = |list: &SuiteList, id| list.ids().iter().position(|other| *other == id);
        let both = ours.ids().iter().filter_map(|&id| {
            let worse = place(ours, id)?.max(place(theirs, id)?);
            Some((worse, std::cmp::Reverse(id), Self::from_id(id)?))
        });
        both.min_by_key(|(worse, id, _)| (*worse, *id)).map(|(_, _, suite)| suite)
    }

    /// Failed openings of one session after which it ends (RFC 9001 §6.6).
    pub(crate) fn forgery_limit(self) -> u64 {
        match self {
            Self::Aes256Gcm => 1 << 52,
            Self::ChaCha20Poly1305 => 1 << 36,
        }
    }
}

/// ChaCha20-Poly1305 by aws-lc where it is built, else by RustCrypto.
pub struct ChaCha20Poly1305 {
    #[cfg(feature = "aws-lc-rs")]
    key: aws_lc_rs::aead::LessSafeKey,
    #[cfg(not(feature = "aws-lc-rs"))]
    key: RustCryptoChaCha20Poly1305,
}

impl ChaCha20Poly1305 {
    /// Takes a key.
    pub fn new(key: &[u8; KEY_LEN]) -> Self {
        #[cfg(feature = "aws-lc-rs")]
        let key = {
            use aws_lc_rs::aead::{CHACHA20_POLY1305, LessSafeKey, UnboundKey};
            let key = UnboundKey::new(&CHACHA20_POLY1305, key).expect("a ChaCha20 key is any 32 bytes");
            LessSafeKey::new(key)
        };
        #[cfg(not(feature = "aws-lc-rs"))]
        let key = RustCryptoChaCha20Poly1305::new(key);
        Self { key }
    }
}

#[cfg(not(feature = "aws-lc-rs"))]
impl PacketAead for ChaCha20Poly1305 {
    fn seal_in_place(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], buf: &mut [u8]) {
        self.key.seal_in_place(nonce, aad, buf);
    }

    fn open_in_place<'a>(
        &self,
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        buf: &'a mut [u8],
    ) -> Option<&'a mut [u8]> {
        self.key.open_in_place(nonce, aad, buf)
    }

    fn open_detached(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], sealed: &[u8], out: &mut [u8]) -> bool {
        self.key.open_detached(nonce, aad, sealed, out)
    }
}

#[cfg(feature = "aws-lc-rs")]
impl PacketAead for ChaCha20Poly1305 {
    #[inline]
    fn seal_in_place(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], buf: &mut [u8]) {
        use aws_lc_rs::aead::{Aad, Nonce};
        let (plain, tag_out) =
            buf.split_last_chunk_mut::<TAG_LEN>().expect("the caller leaves room for the tag");
        let tag = self
            .key
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(*nonce), Aad::from(aad), plain)
            .expect("the cipher seals anything below 256 GiB (RFC 8439 section 2.8)");
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

/// ChaCha20-Poly1305 by RustCrypto.
pub struct RustCryptoChaCha20Poly1305 {
    cipher: chacha20poly1305::ChaCha20Poly1305,
}

impl RustCryptoChaCha20Poly1305 {
    /// Takes a key.
    pub fn new(key: &[u8; KEY_LEN]) -> Self {
        use chacha20poly1305::aead::KeyInit;
        Self { cipher: chacha20poly1305::ChaCha20Poly1305::new(key.into()) }
    }
}

impl PacketAead for RustCryptoChaCha20Poly1305 {
    fn seal_in_place(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], buf: &mut [u8]) {
        use chacha20poly1305::aead::AeadInOut;
        let (plain, tag_out) =
            buf.split_last_chunk_mut::<TAG_LEN>().expect("the caller leaves room for the tag");
        let tag = self
            .cipher
            .encrypt_inout_detached(nonce.into(), aad, plain.into())
            .expect("the cipher seals anything below 256 GiB (RFC 8439 section 2.8)");
        tag_out.copy_from_slice(&tag);
    }

    fn open_in_place<'a>(
        &self,
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        buf: &'a mut [u8],
    ) -> Option<&'a mut [u8]> {
        use chacha20poly1305::aead::AeadInOut;
        let (ciphertext, tag) = buf.split_last_chunk_mut::<TAG_LEN>()?;
        let tag = (*tag).into();
        self.cipher.decrypt_inout_detached(nonce.into(), aad, (&mut *ciphertext).into(), &tag).ok()?;
        Some(ciphertext)
    }

    fn open_detached(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], sealed: &[u8], out: &mut [u8]) -> bool {
        use chacha20poly1305::aead::AeadInOut;
        let Some((ciphertext, tag)) = sealed.split_last_chunk::<TAG_LEN>() else {
            return false;
        };
        out.copy_from_slice(ciphertext);
        let tag = (*tag).into();
        self.cipher.decrypt_inout_detached(nonce.into(), aad, out.into(), &tag).is_ok()
    }
}

/// The key of one phase of one direction.
pub(crate) enum PacketKey {
    Aes(Aes256Gcm),
    ChaCha(ChaCha20Poly1305),
}

impl PacketKey {
    pub(crate) fn new(suite: Suite, key: &[u8; KEY_LEN]) -> Self {
        match suite {
            Suite::Aes256Gcm => Self::Aes(Aes256Gcm::new(key)),
            Suite::ChaCha20Poly1305 => Self::ChaCha(ChaCha20Poly1305::new(key)),
        }
    }

    #[inline]
    pub(crate) fn seal(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], buf: &mut [u8]) {
        match self {
            Self::Aes(key) => key.seal_in_place(nonce, aad, buf),
            Self::ChaCha(key) => key.seal_in_place(nonce, aad, buf),
        }
    }

    #[inline]
    pub(crate) fn open(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], buf: &mut [u8]) -> Option<usize> {
        match self {
            Self::Aes(key) => key.open_in_place(nonce, aad, buf).map(|plain| plain.len()),
            Self::ChaCha(key) => key.open_in_place(nonce, aad, buf).map(|plain| plain.len()),
        }
    }
}

/// Makes the masks of headers.
pub(crate) enum HeaderKey {
    #[cfg(feature = "aws-lc-rs")]
    AwsLc(Box<aws_lc_rs::aead::quic::HeaderProtectionKey>),
    #[cfg_attr(feature = "aws-lc-rs", allow(dead_code, reason = "a test holds both against each other"))]
    Aes(Box<aes_gcm::aes::Aes256>),
    #[cfg_attr(feature = "aws-lc-rs", allow(dead_code, reason = "a test holds both against each other"))]
    ChaCha(zeroize::Zeroizing<[u8; KEY_LEN]>),
}

impl HeaderKey {
    /// By aws-lc where it is built.
    pub(crate) fn new(suite: Suite, key: &[u8; KEY_LEN]) -> Self {
        #[cfg(feature = "aws-lc-rs")]
        {
            use aws_lc_rs::aead::quic::{AES_256, CHACHA20, HeaderProtectionKey};
            let algorithm = match suite {
                Suite::Aes256Gcm => &AES_256,
                Suite::ChaCha20Poly1305 => &CHACHA20,
            };
            Self::AwsLc(Box::new(HeaderProtectionKey::new(algorithm, key).expect("both take 32 bytes")))
        }
        #[cfg(not(feature = "aws-lc-rs"))]
        Self::by_rust_crypto(suite, key)
    }

    #[cfg(any(all(test, not(feature = "fuzzing")), not(feature = "aws-lc-rs")))]
    pub(crate) fn by_rust_crypto(suite: Suite, key: &[u8; KEY_LEN]) -> Self {
        use aes_gcm::aes::cipher::KeyInit;
        match suite {
            Suite::Aes256Gcm => Self::Aes(Box::new(aes_gcm::aes::Aes256::new(key.into()))),
            Suite::ChaCha20Poly1305 => Self::ChaCha(zeroize::Zeroizing::new(*key)),
        }
    }

    /// The mask of a sample.
    #[inline]
    pub(crate) fn mask(&self, sample: &[u8; SAMPLE_LEN]) -> [u8; 5] {
        match self {
            #[cfg(feature = "aws-lc-rs")]
            Self::AwsLc(key) => key.new_mask(sample).expect("a sample of 16 bytes"),
            Self::Aes(key) => {
                use aes_gcm::aes::cipher::BlockCipherEncrypt;
                let mut block = (*sample).into();
                key.encrypt_block(&mut block);
                [block[0], block[1], block[2], block[3], block[4]]
            }
            Self::ChaCha(key) => {
                use chacha20::cipher::{KeyIvInit, StreamCipher, StreamCipherSeek};
                let [c0, c1, c2, c3, nonce @ ..] = *sample;
                let mut cipher = chacha20::ChaCha20::new((&**key).into(), (&nonce).into());
                cipher.seek(u64::from(u32::from_le_bytes([c0, c1, c2, c3])) * 64);
                let mut mask = [0; 5];
                cipher.apply_keystream(&mut mask);
                mask
            }
        }
    }
}

macro_rules! hides_keys {
    ($($name:ident),*) => {
        $(impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(..)"))
            }
        })*
    };
}
hides_keys!(ChaCha20Poly1305, RustCryptoChaCha20Poly1305, PacketKey, HeaderKey);
