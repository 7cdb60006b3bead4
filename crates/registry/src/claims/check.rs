//! What can be said about a claim without any state. `spec/registry2.md §3.2`.

use super::{Claim, SubjectError};
use crate::points::usable;
use ed25519_dalek::{Signature, VerifyingKey, verify_batch};

/// Signatures verified together. A wrong one costs the others of its group a second look.
const GROUP: usize = 128;

/// Why a claim can never hold as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Bad {
    /// Nobody may claim that.
    #[error("{0}")]
    Subject(SubjectError),
    /// Too little proof of work.
    #[error("the claim's proof of work has {have} bits, this registry asks for {need}; compute it again")]
    Work {
        /// Leading zero bits found.
        have: u8,
        /// Leading zero bits asked for.
        need: u8,
    },
    /// The key is no Ed25519 key, or a weak one.
    #[error("the claim's key is not a usable Ed25519 key")]
    Key,
    /// The agent's signature, or the old holder's, is wrong.
    #[error("the claim's signature is wrong: it was altered, or signed by another key")]
    Signature,
    /// The old holder's key is the new one.
    #[error("a transfer needs two different keys")]
    Transfer,
    /// Its end has passed.
    #[error("the claim has expired; sign a new one (is this machine's clock right?)")]
    Expired,
    /// It asks for more than the longest lease.
    #[error(
        "the claim asks for too long a lease; sign one that ends earlier (is this machine's clock right?)"
    )]
    TooLong,
    /// The holder has signed something newer.
    #[error("the holder has signed a newer claim since")]
    Stale,
    /// Gives back or passes on what the signer does not hold.
    #[error("the signer does not hold this")]
    NotHolder,
    /// The node id does not follow from key and salt.
    #[error("the node id does not follow from the key and the salt")]
    NotDerived,
    /// The agent holds too many.
    #[error("this agent holds {0} claims already, which is the most; give one back first")]
    Quota(u16),
    /// The registry holds too many.
    #[error("this registry is full")]
    Full,
}

/// Checks form, proof of work and signatures of one claim; strict rules for signatures.
///
/// # Errors
/// The first thing that is wrong.
pub fn check(claim: &Claim, pow_bits: u8) -> Result<(), Bad> {
    check_cheap(claim, pow_bits)?;
    let signed = claim.signed();
    for (key, signature) in signatures(claim) {
        let key = VerifyingKey::from_bytes(key).map_err(|_| Bad::Key)?;
        key.verify_strict(&signed, &Signature::from_bytes(signature)).map_err(|_| Bad::Signature)?;
    }
    Ok(())
}

/// As [`check`] for each claim, on `threads` threads (at least one), signatures in batches.
///
/// A batch accepts some signatures that [`check`] refuses (RFC 8032 leaves them open); only the owner of a key can make
/// such a one, and clients, who use the strict rules, then do not believe his claim. Weak keys are refused by both.
#[must_use]
pub fn check_all(claims: &[Claim], pow_bits: u8, threads: usize) -> Vec<Result<(), Bad>> {
    let share = claims.len().div_ceil(threads.max(1)).max(GROUP);
    let one = |claims: &[Claim]| check_with(claims, pow_bits, &mut usable);
    if claims.len() <= share {
        return one(claims);
    }
    std::thread::scope(|scope| {
        let workers: Vec<_> =
            claims.chunks(share).map(|part| (part, scope.spawn(move || one(part)))).collect();
        // A worker cannot panic; if it did, its claims are looked at here.
        workers.into_iter().flat_map(|(part, worker)| worker.join().unwrap_or_else(|_| one(part))).collect()
    })
}

/// As [`check_all`] on this thread, with keys that were read before.
pub(crate) fn check_with(
    claims: &[Claim],
    pow_bits: u8,
    read: &mut impl FnMut(&[u8; 32]) -> Option<VerifyingKey>,
) -> Vec<Result<(), Bad>> {
    claims.chunks(GROUP).flat_map(|group| check_group(group, pow_bits, read)).collect()
}

fn check_group(
    group: &[Claim],
    pow_bits: u8,
    read: &mut impl FnMut(&[u8; 32]) -> Option<VerifyingKey>,
) -> Vec<Result<(), Bad>> {
    let mut results: Vec<_> = group.iter().map(|claim| check_cheap(claim, pow_bits)).collect();
    let good = |results: &[Result<(), Bad>]| -> Vec<usize> {
        (0..group.len()).filter(|&at| results[at].is_ok()).collect()
    };
    let candidates = good(&results);
    let bodies: Vec<Vec<u8>> = candidates.iter().map(|&at| group[at].signed()).collect();
    let (mut keys, mut messages, mut proofs) = (Vec::new(), Vec::new(), Vec::new());
    for (&at, body) in candidates.iter().zip(&bodies) {
        for (key, signature) in signatures(&group[at]) {
            match read(key) {
                Some(key) => {
                    keys.push(key);
                    messages.push(body.as_slice());
                    proofs.push(Signature::from_bytes(signature));
                }
                None => results[at] = Err(Bad::Key),
            }
        }
    }
    if verify_batch(&messages, &proofs, &keys).is_err() {
        for at in good(&results) {
            results[at] = check(&group[at], pow_bits);
        }
    }
    results
}

fn signatures(claim: &Claim) -> impl Iterator<Item = (&[u8; 32], &[u8; 64])> {
    let old = claim.transfer.as_ref().map(|transfer| (&transfer.from, &transfer.signature));
    std::iter::once((&claim.key, &claim.signature)).chain(old)
}

fn check_cheap(claim: &Claim, pow_bits: u8) -> Result<(), Bad> {
    claim.subject.check().map_err(Bad::Subject)?;
    if claim.transfer.is_some_and(|transfer| transfer.from == claim.key) {
        return Err(Bad::Transfer);
    }
    let have = claim.pow_bits();
    if have < u32::from(pow_bits) {
        return Err(Bad::Work { have: have as u8, need: pow_bits });
    }
    Ok(())
}
