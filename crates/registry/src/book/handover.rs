//! The word of a registry that was one node and has become a cluster: the old key names the new ones. `spec/registry2.md §6.5`.

use crate::claims::MAX_HEAD_SIGNATURES;
use ed25519_dalek::{Signature, VerifyingKey};

const CONTEXT: &[u8] = b"pilotage-handover-v1\0";

/// The keys of the nodes that sign heads from now on, signed by the key that did so before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handover {
    /// Ascending, none twice, at least one.
    pub nodes: Vec<[u8; 32]>,
    /// Ed25519 of the key before, over [`Handover::signed`].
    pub signature: [u8; 64],
}

impl Handover {
    /// Has it signed for who asked with this number.
    #[must_use]
    pub fn new(
        from: &[u8; 32],
        nonce: &[u8; 32],
        mut nodes: Vec<[u8; 32]>,
        sign: impl FnOnce(&[u8]) -> [u8; 64],
    ) -> Self {
        nodes.sort_unstable();
        nodes.dedup();
        nodes.truncate(MAX_HEAD_SIGNATURES);
        let signature = sign(&Self::signed(from, nonce, &nodes));
        Self { nodes, signature }
    }

    /// What is signed: who asks made the number, so that nothing of before can be shown to it.
    #[must_use]
    pub fn signed(from: &[u8; 32], nonce: &[u8; 32], nodes: &[[u8; 32]]) -> Vec<u8> {
        [CONTEXT, from, nonce, &[nodes.len() as u8], nodes.as_flattened()].concat()
    }

    /// Whether this is the word of that key, for who asked with this number.
    #[must_use]
    pub fn verify(&self, from: &[u8; 32], nonce: &[u8; 32]) -> bool {
        let sorted = self.nodes.is_sorted_by(|one, other| one < other);
        if !sorted || self.nodes.is_empty() || self.nodes.len() > MAX_HEAD_SIGNATURES {
            return false;
        }
        let message = Self::signed(from, nonce, &self.nodes);
        let key = VerifyingKey::from_bytes(from).ok().filter(|key| !key.is_weak());
        key.is_some_and(|key| key.verify_strict(&message, &Signature::from_bytes(&self.signature)).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ed25519_dalek::{Signer as _, SigningKey};

    #[test]
    fn only_the_old_key_hands_over_and_only_to_who_asked() {
        let (old, other) = (SigningKey::from_bytes(&[1; 32]), SigningKey::from_bytes(&[2; 32]));
        let from = old.verifying_key().to_bytes();
        let sign = |key: &SigningKey, nodes: &[[u8; 32]]| {
            let key = key.clone();
            Handover::new(&from, &[5; 32], nodes.to_vec(), |message| key.sign(message).to_bytes())
        };
        let good = sign(&old, &[[9; 32], [8; 32], [9; 32]]);
        assert_eq!(good.nodes, [[8; 32], [9; 32]]);
        assert!(good.verify(&from, &[5; 32]));
        assert!(!good.verify(&from, &[6; 32]), "to somebody else, or long ago");
        assert!(!good.verify(&other.verifying_key().to_bytes(), &[5; 32]));
        assert!(!sign(&other, &[[9; 32]]).verify(&from, &[5; 32]));
        assert!(!sign(&old, &[]).verify(&from, &[5; 32]), "to nobody");
        for change in [
            |handover: &mut Handover| handover.nodes[0][0] ^= 1,
            |handover: &mut Handover| handover.nodes.swap(0, 1),
            |handover: &mut Handover| handover.nodes.push([10; 32]),
            |handover: &mut Handover| handover.nodes.truncate(1),
            |handover: &mut Handover| handover.signature[7] ^= 1,
        ] {
            let mut bad = good.clone();
            change(&mut bad);
            assert!(!bad.verify(&from, &[5; 32]), "{bad:?}");
        }
        let many: Vec<[u8; 32]> = (0..20).map(|number| [number; 32]).collect();
        assert_eq!(sign(&old, &many).nodes.len(), MAX_HEAD_SIGNATURES);
    }
}
