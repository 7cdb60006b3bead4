//! Ed25519 keys as points. To find the point of a key takes a sixth of the check of a signature, and a claim and a record of one
//! agent come together.

use ed25519_dalek::VerifyingKey;

use crate::points::usable;

/// Points kept: a few groups of what is checked together. 230 kB.
const KEPT: usize = 1_024;

/// Points that were used lately, each in the place that its first bytes name. Who makes another key for the same place gains that
/// one of both is read again.
#[derive(Debug)]
pub(crate) struct Points {
    places: Vec<Option<VerifyingKey>>,
}

impl Default for Points {
    fn default() -> Self {
        Self { places: vec![None; KEPT] }
    }
}

impl Points {
    /// As [`usable`].
    pub(crate) fn get(&mut self, key: &[u8; 32]) -> Option<VerifyingKey> {
        let place = &mut self.places[usize::from(u16::from_le_bytes([key[0], key[1]])) % KEPT];
        match place {
            Some(known) if known.as_bytes() == key => Some(*known),
            _ => {
                let fresh = usable(key)?;
                *place = Some(fresh);
                Some(fresh)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ed25519_dalek::SigningKey;

    #[test]
    fn keys_are_those_that_were_asked_for_whatever_shares_their_place() {
        let mut keys = Points::default();
        let all: Vec<[u8; 32]> = (0..2_500_u32)
            .map(|n| {
                SigningKey::from_bytes(blake3::hash(&n.to_be_bytes()).as_bytes()).verifying_key().to_bytes()
            })
            .collect();
        for round in 0..2 {
            for key in &all {
                assert_eq!(keys.get(key).expect("a key").as_bytes(), key, "round {round}");
            }
        }
        assert_eq!(keys.places.len(), KEPT);
        // A point of small order, and no point at all, are never kept.
        let weak = {
            let mut bytes = [0; 32];
            bytes[0] = 1;
            bytes
        };
        let none = {
            let mut bytes = [0; 32];
            bytes[0] = 2;
            bytes
        };
        assert!(VerifyingKey::from_bytes(&none).is_err());
        for bad in [weak, none] {
            assert!(keys.get(&bad).is_none() && keys.get(&bad).is_none());
        }
    }
}
