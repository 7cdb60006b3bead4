//! Signatures of records (PREC). `spec/registry2.md §2`.
//!
//! The bytes are [`pilotage_wire::record`]'s; here they are signed and verified. Pure: no clock, no sockets.

mod seal;

use crate::points::usable;
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey, verify_batch};
use pilotage_wire::record::{Prekey, Record, RecordError, Rotation, Tombstone, signed};
use pilotage_wire::s1::payload::PrekeyCertificate;

pub use pilotage_wire::record::{MAX_RECORD, Rank};
pub use seal::{key_id, open_for_network, open_for_peer, seal_for_network, seal_for_peer};

/// How far the clock of who signs may be ahead of ours: 1 day. Seconds.
pub const CLOCK_SLACK: u64 = 86_400;
/// Records verified together.
const GROUP: usize = 128;

/// Why a record is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unbelievable {
    /// Its bytes.
    #[error(transparent)]
    Form(#[from] RecordError),
    /// Its key is none, or a weak one.
    #[error("the record's key is not a usable Ed25519 key")]
    Key,
    /// Its signature is wrong.
    #[error("the record's signature is wrong: it was altered, or its key did not sign it")]
    Signature,
    /// The consent of the key before is wrong.
    #[error("the record says that it follows another key, whose signature is wrong")]
    Rotation,
    /// The certificate of a prekey is wrong.
    #[error("the record holds a prekey that its key did not sign")]
    Prekey,
    /// Its time is over.
    #[error("the record has expired; the agent has not renewed it (is this machine's clock right?)")]
    Expired,
    /// It comes from the future.
    #[error("the record was made more than a day from now; is this machine's clock right?")]
    Future,
}

/// Signs a record: fills in [`Record::key`], the consent of `previous` if the key has changed, and the signature. Gives
/// its bytes.
///
/// # Errors
/// [`RecordError`] if the record cannot be written.
pub fn sign(
    record: &mut Record,
    key: &SigningKey,
    previous: Option<&SigningKey>,
) -> Result<Vec<u8>, RecordError> {
    record.key = key.verifying_key().to_bytes();
    record.rotation = previous.map(|previous| Rotation {
        previous: previous.verifying_key().to_bytes(),
        signature: previous.sign(&record.rotation_signed()).to_bytes(),
    });
    record.signature = key.sign(&record.signed()?).to_bytes();
    record.encode()
}

/// As [`sign`], where the key is somebody else's to use (no change of the key).
///
/// # Errors
/// [`RecordError`] if the record cannot be written.
pub fn sign_with(
    record: &mut Record,
    key: [u8; 32],
    sign: impl Fn(&[u8]) -> [u8; 64],
) -> Result<Vec<u8>, RecordError> {
    record.key = key;
    record.signature = sign(&record.signed()?);
    record.encode()
}

/// A prekey with the identity's certificate.
#[must_use]
pub fn certify(identity: &SigningKey, prekey: [u8; 32], not_after: u32, seq: u64, caps: u64) -> Prekey {
    let mut certificate = PrekeyCertificate { not_after, seq, caps, signature: [0; 64] };
    let key = identity.verifying_key().to_bytes();
    certificate.signature = identity.sign(&certificate.signed(&key, &prekey)).to_bytes();
    Prekey { key: prekey, certificate }
}

/// Reads a record and verifies all its signatures by the strict rules.
///
/// # Errors
/// [`Unbelievable`], whatever is wrong first.
pub fn verify(bytes: &[u8]) -> Result<Record, Unbelievable> {
    let record = Record::decode(bytes)?;
    verify_one(&record.key, &signed(bytes), &record.signature, Unbelievable::Signature)?;
    verify_parts(&record)?;
    Ok(record)
}

/// As [`verify`] for many, with the signatures in batches: see
/// [`claims::check_all`](crate::claims::check_all) for what that means.
#[must_use]
pub fn verify_all(records: &[&[u8]], threads: usize) -> Vec<Result<Record, Unbelievable>> {
    let share = records.len().div_ceil(threads.max(1)).max(GROUP);
    let one = |records: &[&[u8]]| verify_with(records, &mut usable);
    if records.len() <= share {
        return one(records);
    }
    std::thread::scope(|scope| {
        let workers: Vec<_> =
            records.chunks(share).map(|part| (part, scope.spawn(move || one(part)))).collect();
        workers.into_iter().flat_map(|(part, worker)| worker.join().unwrap_or_else(|_| one(part))).collect()
    })
}

/// As [`verify_all`] on this thread, with keys that were read before.
pub(crate) fn verify_with(
    records: &[&[u8]],
    read: &mut impl FnMut(&[u8; 32]) -> Option<VerifyingKey>,
) -> Vec<Result<Record, Unbelievable>> {
    records.chunks(GROUP).flat_map(|group| verify_group(group, read)).collect()
}

fn verify_group(
    group: &[&[u8]],
    read: &mut impl FnMut(&[u8; 32]) -> Option<VerifyingKey>,
) -> Vec<Result<Record, Unbelievable>> {
    let mut results: Vec<Result<Record, Unbelievable>> =
        group.iter().map(|bytes| Ok(Record::decode(bytes)?)).collect();
    let mut batch = Batch::default();
    for (result, bytes) in results.iter_mut().zip(group) {
        let Ok(record) = result else { continue };
        if !batch.add(record, bytes, read) {
            *result = Err(Unbelievable::Key);
        }
    }
    if batch.verify() {
        return results;
    }
    // Somebody's is wrong, or a key is: one by one says whose, and what.
    group.iter().map(|bytes| verify(bytes)).collect()
}

/// All signatures of several records.
#[derive(Default)]
struct Batch {
    messages: Vec<Vec<u8>>,
    proofs: Vec<Signature>,
    keys: Vec<VerifyingKey>,
}

impl Batch {
    /// False if a key is none.
    fn add(
        &mut self,
        record: &Record,
        bytes: &[u8],
        read: &mut impl FnMut(&[u8; 32]) -> Option<VerifyingKey>,
    ) -> bool {
        let mut good = self.push(read(&record.key), signed(bytes), &record.signature);
        if let Some(rotation) = &record.rotation {
            good &= self.push(read(&rotation.previous), record.rotation_signed(), &rotation.signature);
        }
        for prekey in &record.prekeys {
            let message = prekey.certificate.signed(&record.key, &prekey.key).to_vec();
            good &= self.push(read(&record.key), message, &prekey.certificate.signature);
        }
        good
    }

    fn push(&mut self, key: Option<VerifyingKey>, message: Vec<u8>, signature: &[u8; 64]) -> bool {
        let Some(key) = key else { return false };
        self.messages.push(message);
        self.proofs.push(Signature::from_bytes(signature));
        self.keys.push(key);
        true
    }

    fn verify(&self) -> bool {
        let messages: Vec<&[u8]> = self.messages.iter().map(Vec::as_slice).collect();
        verify_batch(&messages, &self.proofs, &self.keys).is_ok()
    }
}

fn verify_parts(record: &Record) -> Result<(), Unbelievable> {
    if let Some(rotation) = &record.rotation {
        let message = record.rotation_signed();
        verify_one(&rotation.previous, &message, &rotation.signature, Unbelievable::Rotation)?;
    }
    for prekey in &record.prekeys {
        let message = prekey.certificate.signed(&record.key, &prekey.key);
        verify_one(&record.key, &message, &prekey.certificate.signature, Unbelievable::Prekey)?;
    }
    Ok(())
}

fn verify_one(
    key: &[u8; 32],
    message: &[u8],
    signature: &[u8; 64],
    wrong: Unbelievable,
) -> Result<(), Unbelievable> {
    let key = usable(key).ok_or(Unbelievable::Key)?;
    key.verify_strict(message, &Signature::from_bytes(signature)).map_err(|_| wrong)
}

/// Whether a record may be used at `now` (Unix seconds).
///
/// # Errors
/// [`Unbelievable::Expired`] or [`Unbelievable::Future`].
pub fn check_time(record: &Record, now: u64) -> Result<(), Unbelievable> {
    if record.expires() < now {
        return Err(Unbelievable::Expired);
    }
    if u64::from(record.issued) > now.saturating_add(CLOCK_SLACK) {
        Err(Unbelievable::Future)
    } else {
        Ok(())
    }
}

/// Whether `new` takes the place of `old`, both of one key and network: the higher rank, but nothing follows the word that
/// the key is known to others.
#[must_use]
pub fn replaces(old: &Record, old_rank: Rank, new_rank: Rank) -> bool {
    old.tombstone != Some(Tombstone::Compromised) && new_rank > old_rank
}
