//! Records in places that anybody can read and write, such as the Mainline DHT. `spec/replica.md §9`.
//!
//! Only what everybody may see goes there, and what comes from there is believed by the agent's own signature alone: who asks
//! has to know the whole key beforehand. No sockets, no clock.

use super::cache::{Known, follows};
use crate::record::{self, Unbelievable, check_time};
use pilotage_wire::NetworkId;
use pilotage_wire::record::Record;
use thiserror::Error;

/// A record that everybody may see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Public {
    record: Record,
    bytes: Vec<u8>,
}

/// Why a record is not shown to everybody.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NotPublic {
    /// It does not verify.
    #[error("the record is not to be believed: {0}")]
    Unbelievable(#[from] Unbelievable),
    /// The agent is private, or its endpoints are sealed for some.
    #[error("the agent is private")]
    Private,
}

impl Public {
    /// Looks whether a signed record may be shown to everybody.
    ///
    /// # Errors
    /// [`NotPublic`].
    pub fn new(bytes: &[u8]) -> Result<Self, NotPublic> {
        let record = record::verify(bytes)?;
        if is_private(&record) {
            return Err(NotPublic::Private);
        }
        Ok(Self { record, bytes: bytes.to_vec() })
    }

    /// Whose it is.
    #[must_use]
    pub fn key(&self) -> [u8; 32] {
        self.record.key
    }

    /// Of which network.
    #[must_use]
    pub fn network(&self) -> NetworkId {
        self.record.network
    }

    /// Its number (`spec/registry2.md §2.3`).
    #[must_use]
    pub fn seq(&self) -> u64 {
        self.record.seq
    }

    /// As it was signed, at most 900 bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

fn is_private(record: &Record) -> bool {
    record.private || !record.sealed.is_empty()
}

/// Why what was found is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Refused {
    /// Its signatures, its form or its time are wrong.
    #[error("the record is forged, damaged or expired")]
    Forged,
    /// A good record, but of another agent, network or address.
    #[error("the record is another agent's")]
    Other,
    /// It says that it is not for everybody.
    #[error("the record is a private agent's")]
    Private,
    /// A newer one is known.
    #[error("a newer record is known")]
    Older,
}

/// What was found so far, and how much was refused.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Taken.
    pub taken: u64,
    /// [`Refused::Forged`].
    pub forged: u64,
    /// [`Refused::Other`] and [`Refused::Private`].
    pub other: u64,
    /// [`Refused::Older`]; what is known already, byte for byte, does not count.
    pub older: u64,
}

impl Tally {
    /// Counts a refusal.
    pub fn refuse(&mut self, why: Refused) {
        match why {
            Refused::Forged => self.forged += 1,
            Refused::Other | Refused::Private => self.other += 1,
            Refused::Older => self.older += 1,
        }
    }

    /// All refusals.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.forged + self.other + self.older
    }
}

/// The best of what was found for a key: verified, and newer than what is known. `unix`: seconds.
pub fn best<'a>(
    key: &[u8; 32],
    network: NetworkId,
    found: impl IntoIterator<Item = &'a [u8]>,
    known: Option<&Known>,
    unix: u64,
    tally: &mut Tally,
) -> Option<Known> {
    let mut best: Option<Known> = None;
    for bytes in found {
        if known.is_some_and(|known| known.bytes == bytes)
            || best.as_ref().is_some_and(|best| best.bytes == bytes)
        {
            continue;
        }
        match accept(key, network, bytes, best.as_ref().or(known), unix) {
            Ok(record) => best = Some(record),
            Err(why) => tally.refuse(why),
        }
    }
    tally.taken += u64::from(best.is_some());
    best
}

/// Verifies one record that was found under a key.
///
/// # Errors
/// [`Refused`].
pub fn accept(
    key: &[u8; 32],
    network: NetworkId,
    bytes: &[u8],
    known: Option<&Known>,
    unix: u64,
) -> Result<Known, Refused> {
    let record = record::verify(bytes).map_err(|_| Refused::Forged)?;
    if record.key != *key || record.network != network {
        return Err(Refused::Other);
    }
    if is_private(&record) {
        return Err(Refused::Private);
    }
    check_time(&record, unix).map_err(|_| Refused::Forged)?;
    if known.is_some_and(|known| !follows(&known.record, &known.bytes, bytes)) {
        return Err(Refused::Older);
    }
    Ok(Known { record, bytes: bytes.to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ed25519_dalek::{Signer as _, SigningKey};
    use pilotage_wire::addressing::derive_node_id;
    use pilotage_wire::record::{Sealed, SealedFor, Tombstone};

    const NOW: u64 = 1_800_000_000;
    const NETWORK: NetworkId = NetworkId(0);

    fn key(number: u8) -> [u8; 32] {
        SigningKey::from_bytes(&[number; 32]).verifying_key().to_bytes()
    }

    fn record(number: u8, seq: u64, change: impl FnOnce(&mut Record)) -> Vec<u8> {
        let key = key(number);
        let mut record = Record::new(NETWORK, derive_node_id(&key, 0).unwrap(), 0, key, seq, NOW as u32);
        record.ttl = 3_600;
        change(&mut record);
        let signer = SigningKey::from_bytes(&[number; 32]);
        crate::record::sign_with(&mut record, key, |message| signer.sign(message).to_bytes()).unwrap()
    }

    fn known(bytes: &[u8]) -> Known {
        Known { record: crate::record::verify(bytes).unwrap(), bytes: bytes.to_vec() }
    }

    #[test]
    fn private_agents_are_not_shown() {
        let shown = Public::new(&record(1, 5, |_| {})).unwrap();
        assert_eq!((shown.key(), shown.network(), shown.seq()), (key(1), NETWORK, 5));
        assert_eq!(Public::new(&record(1, 5, |record| record.private = true)), Err(NotPublic::Private));
        let sealed = record(1, 5, |record| {
            record.sealed.push(Sealed { whom: SealedFor::Network, key_id: [1; 8], bytes: vec![1; 40] });
        });
        assert_eq!(Public::new(&sealed), Err(NotPublic::Private));
        let mut forged = record(1, 5, |_| {});
        *forged.last_mut().unwrap() ^= 1;
        assert!(matches!(Public::new(&forged), Err(NotPublic::Unbelievable(_))));
    }

    #[test]
    fn what_is_forged_old_or_anothers_is_refused_and_counted() {
        let (old, held, new) = (record(1, 4, |_| {}), record(1, 5, |_| {}), record(1, 6, |_| {}));
        let held = known(&held);
        let mut forged = new.clone();
        forged[60] ^= 1;
        let private = record(1, 9, |record| record.private = true);
        let elsewhere = record(1, 9, |record| record.network = NetworkId(7));
        let expired = record(1, 9, |record| record.issued -= 7_200);
        let cases: [(&[u8], Refused); 7] = [
            (&forged, Refused::Forged),
            (&expired, Refused::Forged),
            (b"", Refused::Forged),
            (&record(2, 9, |_| {}), Refused::Other),
            (&elsewhere, Refused::Other),
            (&private, Refused::Private),
            (&old, Refused::Older),
        ];
        for (bytes, why) in cases {
            assert_eq!(accept(&key(1), NETWORK, bytes, Some(&held), NOW), Err(why));
        }
        let mut tally = Tally::default();
        let all = cases.iter().map(|(bytes, _)| *bytes).chain([new.as_slice(), &old, &new, &held.bytes]);
        let best = best(&key(1), NETWORK, all, Some(&held), NOW, &mut tally).expect("the new one");
        assert_eq!(best.bytes, new);
        assert_eq!(tally, Tally { taken: 1, forged: 3, other: 3, older: 2 });
        assert_eq!(tally.refused(), 8);
    }

    #[test]
    fn nothing_follows_a_key_that_others_have() {
        let gone = known(&record(1, 5, |record| record.tombstone = Some(Tombstone::Compromised)));
        let next = record(1, 6, |_| {});
        assert_eq!(accept(&key(1), NETWORK, &next, Some(&gone), NOW), Err(Refused::Older));
        let mut tally = Tally::default();
        let none = best(&key(1), NETWORK, [next.as_slice()], Some(&gone), NOW, &mut tally);
        assert_eq!((none, tally.older, tally.taken), (None, 1, 0));
    }
}
