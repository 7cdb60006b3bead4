//! ML-KEM-768 (FIPS 203) for the upgrade of S1 (spec/secure.md §9.5). Randomness comes in; nothing here draws any.

use ml_kem::kem::{Decapsulate, KeyExport};
use ml_kem::ml_kem_768::{Ciphertext, DecapsulationKey, EncapsulationKey};
use zeroize::{Zeroize, Zeroizing};

use super::burn;
use crate::s1::Secret;

/// Bytes of an encapsulation key.
pub(crate) const KEY_LEN: usize = 1_184;
/// Bytes of a ciphertext.
pub(crate) const CIPHERTEXT_LEN: usize = 1_088;

/// One key pair, kept as its seed: 64 bytes instead of several thousand.
pub(crate) struct KeyPair(Box<Zeroizing<[u8; 64]>>);

impl std::fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyPair(..)")
    }
}

impl KeyPair {
    /// From 64 random bytes; the caller wipes its own copy.
    pub(crate) fn from_seed(seed: [u8; 64]) -> Self {
        Self(Box::new(Zeroizing::new(seed)))
    }

    /// What is sent.
    pub(crate) fn public(&self) -> Box<[u8; KEY_LEN]> {
        let mut out = Box::new([0; KEY_LEN]);
        export(&self.0, &mut out);
        burn();
        out
    }

    /// The secret in a ciphertext. There always is one: another than the sender's if the ciphertext was not made for this key.
    pub(crate) fn open(&self, ciphertext: &[u8; CIPHERTEXT_LEN]) -> Secret {
        let mut out = Secret::new([0; 32]);
        decapsulate(&self.0, ciphertext, &mut out.0);
        burn();
        out
    }
}

/// In frames of their own, which [`burn`] reaches.
#[inline(never)]
fn export(seed: &[u8; 64], out: &mut [u8; KEY_LEN]) {
    let mut seed = (*seed).into();
    out.copy_from_slice(&DecapsulationKey::from_seed(seed).encapsulation_key().to_bytes());
    seed.zeroize();
}

#[inline(never)]
fn decapsulate(seed: &[u8; 64], ciphertext: &[u8; CIPHERTEXT_LEN], out: &mut [u8; 32]) {
    let mut seed = (*seed).into();
    let mut shared = DecapsulationKey::from_seed(seed).decapsulate(&Ciphertext::from(*ciphertext));
    out.copy_from_slice(&shared);
    shared.zeroize();
    seed.zeroize();
}

/// A secret for the owner of a key, from 32 random bytes. `None` if it is no key (FIPS 203 §7.2).
pub(crate) fn encapsulate(
    key: &[u8; KEY_LEN],
    random: &[u8; 32],
) -> Option<(Box<[u8; CIPHERTEXT_LEN]>, Secret)> {
    let mut out = (Box::new([0; CIPHERTEXT_LEN]), Secret::new([0; 32]));
    let good = seal(key, random, &mut out.0, &mut out.1.0);
    burn();
    good.then_some(out)
}

#[inline(never)]
fn seal(
    key: &[u8; KEY_LEN],
    random: &[u8; 32],
    ciphertext: &mut [u8; CIPHERTEXT_LEN],
    out: &mut [u8; 32],
) -> bool {
    let Ok(key) = EncapsulationKey::new(&(*key).into()) else { return false };
    let (made, mut shared) = key.encapsulate_deterministic(&(*random).into());
    ciphertext.copy_from_slice(&made);
    out.copy_from_slice(&shared);
    shared.zeroize();
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_have_the_same_secret_and_others_do_not() {
        let pair = KeyPair::from_seed([7; 64]);
        let (ciphertext, secret) = encapsulate(&pair.public(), &[9; 32]).expect("a key");
        assert_eq!(pair.open(&ciphertext).as_bytes(), secret.as_bytes());
        assert_ne!(KeyPair::from_seed([8; 64]).open(&ciphertext).as_bytes(), secret.as_bytes());
        let mut changed = ciphertext.clone();
        changed[500] ^= 1;
        assert_ne!(pair.open(&changed).as_bytes(), secret.as_bytes());
        assert!(encapsulate(&[0xff; KEY_LEN], &[9; 32]).is_none(), "numbers beyond the modulus");
    }

    /// Another implementation of FIPS 203, on either side.
    #[cfg(feature = "aws-lc-rs")]
    #[test]
    fn aws_lc_agrees() {
        use aws_lc_rs::kem::{Ciphertext, DecapsulationKey, EncapsulationKey, ML_KEM_768};

        for n in 0..16 {
            let pair = KeyPair::from_seed([n; 64]);
            let theirs = EncapsulationKey::new(&ML_KEM_768, &pair.public()[..]).expect("a key");
            let (ciphertext, secret) = theirs.encapsulate().expect("a secret");
            let ciphertext = ciphertext.as_ref().try_into().expect("1,088 bytes");
            assert_eq!(pair.open(ciphertext).as_bytes(), secret.as_ref());

            let theirs = DecapsulationKey::generate(&ML_KEM_768).expect("a key");
            let key =
                theirs.encapsulation_key().and_then(|key| key.key_bytes().map(|key| key.as_ref().to_vec()));
            let key = key.expect("bytes").try_into().expect("1,184 bytes");
            let (ciphertext, secret) = encapsulate(&key, &[n; 32]).expect("a key");
            let opened = theirs.decapsulate(Ciphertext::from(&ciphertext[..])).expect("a secret");
            assert_eq!(opened.as_ref(), secret.as_bytes());
        }
    }
}
