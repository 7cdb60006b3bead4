//! Whether heads that were shown to different people, or at different times, are of one log. `spec/registry2.md §6.4`.
//!
//! A registry that lies shows each of its logs to other people, and keeps each of them consistent by itself. So nobody notices who looks at
//! one of them alone: heads have to be brought together. Two of one size with different roots convict whoever signed both. Of different
//! sizes the longer one has to continue the shorter one, which a hub has to prove; none can if the log was rewritten.

use super::client::{BookClient, BookError};
use crate::claims::{Proof, ProofError, SignedHead, verify_consistency};

/// How often a log that grows while it is asked about is asked again.
const TRIES: usize = 8;

/// Who can prove that a log goes on.
pub trait Prover {
    /// The newest head of a partition, with the proof that it continues the first `from` leaves.
    ///
    /// # Errors
    /// [`ProofError::Rewritten`] if there are not so many leaves; [`BookError`] if there is no answer.
    fn head(&mut self, partition: u8, from: u64) -> Result<(SignedHead, Proof), BookError>;
}

impl Prover for BookClient {
    fn head(&mut self, partition: u8, from: u64) -> Result<(SignedHead, Proof), BookError> {
        Self::head(self, partition, from)
    }
}

/// What became of a comparison.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// All are of one log.
    Consistent,
    /// Two logs of one size: whoever has signed both lies ([`signed_both`]). Anybody can check it.
    Fork(Box<(SignedHead, SignedHead)>),
    /// The first one was shown; who signed the second one cannot prove that it continues it, or has a shorter log now.
    Rewritten(Box<(SignedHead, SignedHead)>),
    /// Nobody who was asked has a log as long as the longest that was shown: hubs of a cluster may lag. Ask again, or others.
    Behind,
}

/// Keys that have signed both heads.
#[must_use]
pub fn signed_both(pair: &(SignedHead, SignedHead), keys: &[[u8; 32]]) -> Vec<[u8; 32]> {
    let by = |head: &SignedHead, key: &[u8; 32]| head.signed_by(std::slice::from_ref(key)) > 0;
    keys.iter().filter(|key| by(&pair.0, key) && by(&pair.1, key)).copied().collect()
}

/// Compares heads of one partition, each of which has to be signed by a majority of `keys`. Those who prove are asked one after the other
/// until one says enough.
///
/// # Errors
/// [`BookError::Unsigned`] for a head without that majority, [`BookError::Mismatch`] for one of another partition, or why the last one did not answer.
pub fn compare(
    heads: &[SignedHead],
    keys: &[[u8; 32]],
    provers: &mut [&mut dyn Prover],
) -> Result<Verdict, BookError> {
    let mut heads: Vec<&SignedHead> = heads.iter().collect();
    for head in &heads {
        trusted(head, keys)?;
        if head.head.partition != heads[0].head.partition {
            return Err(BookError::Mismatch("partition"));
        }
    }
    // Longest first; an empty log is the start of every other.
    heads.retain(|head| head.head.size > 0);
    heads.sort_by_key(|head| std::cmp::Reverse(head.head.size));
    for pair in heads.windows(2) {
        if pair[0].head.size == pair[1].head.size && pair[0].head.root != pair[1].head.root {
            return Ok(Verdict::Fork(Box::new((pair[0].clone(), pair[1].clone()))));
        }
    }
    heads.dedup_by_key(|head| head.head.size);
    if heads.is_empty() {
        return Ok(Verdict::Consistent);
    }
    let (mut failed, mut behind) = (None, heads.len() > 1);
    for prover in provers {
        match ask(&heads, keys, *prover) {
            Ok(Verdict::Behind) => behind = true,
            Ok(verdict) => return Ok(verdict),
            Err(error) => failed = Some(error),
        }
    }
    match failed {
        Some(error) => Err(error),
        None if behind => Ok(Verdict::Behind),
        None => Ok(Verdict::Consistent),
    }
}

fn trusted(head: &SignedHead, keys: &[[u8; 32]]) -> Result<(), BookError> {
    if head.signed_by(keys) < keys.len() / 2 + 1 { Err(BookError::Unsigned) } else { Ok(()) }
}

/// `heads` are of different sizes, the longest one first.
fn ask(heads: &[&SignedHead], keys: &[[u8; 32]], prover: &mut dyn Prover) -> Result<Verdict, BookError> {
    let (partition, longest) = (heads[0].head.partition, heads[0].head.size);
    'again: for _ in 0..TRIES {
        let mut newest: Option<SignedHead> = None;
        for old in heads {
            let (new, proof) = match prover.head(partition, old.head.size) {
                Ok(answer) => answer,
                Err(BookError::Proof(ProofError::Rewritten)) => {
                    let (shorter, _) = prover.head(partition, 0)?;
                    trusted(&shorter, keys)?;
                    if shorter.head.size >= longest {
                        // It has grown in between.
                        continue 'again;
                    }
                    // One node has all that it has signed; one of several may lag.
                    let pair = || Box::new(((*old).clone(), shorter.clone()));
                    return Ok(if keys.len() == 1 { Verdict::Rewritten(pair()) } else { Verdict::Behind });
                }
                Err(error) => return Err(error),
            };
            trusted(&new, keys)?;
            let pair = || Box::new(((*old).clone(), new.clone()));
            if new.head.size == old.head.size && new.head.root != old.head.root {
                return Ok(Verdict::Fork(pair()));
            }
            if verify_consistency(&old.head, &new.head, &proof).is_err() {
                return Ok(Verdict::Rewritten(pair()));
            }
            // All have to be the start of one and the same head.
            match &newest {
                Some(known) if known.head.size != new.head.size => continue 'again,
                Some(known) if known.head.root != new.head.root => {
                    return Ok(Verdict::Fork(Box::new((known.clone(), new))));
                }
                _ => newest = Some(new),
            }
        }
        return Ok(Verdict::Consistent);
    }
    Err(BookError::Behind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::claims::{Batch, Claim, Claims, Limits, Subject};
    use ed25519_dalek::SigningKey;
    use pilotage_wire::NetworkId;

    fn key(n: u8) -> SigningKey {
        SigningKey::from_bytes(&[n; 32])
    }

    fn keys(count: u8) -> Vec<[u8; 32]> {
        (1..=count).map(|n| key(n).verifying_key().to_bytes()).collect()
    }

    /// Names of partition 0, by an agent of this number.
    fn names(agent: u8, count: usize) -> Vec<Claim> {
        let agent = key(agent);
        let subject = |n: u32| Subject::Hostname { network: NetworkId(0), name: format!("n{n}") };
        let mine = (0..).map(subject).filter(|subject| subject.partition() == 0).take(count);
        mine.map(|subject| {
            Claim::new(subject, agent.verifying_key().to_bytes(), 1, 9_000).sign(0, &agent, None)
        })
        .collect()
    }

    /// A hub whose log has one name after the other, signed by these nodes.
    struct Hub(Claims, u8);

    impl Hub {
        fn new(claims: Vec<Claim>, signers: u8) -> Self {
            let mut log = Claims::new(Limits::default());
            log.apply(&Batch { time: 5, claims });
            Self(log, signers)
        }

        fn shown(&self) -> SignedHead {
            let head = self.0.head(0);
            SignedHead { head, signatures: (1..=self.1).map(|n| head.sign(&key(n))).collect() }
        }
    }

    impl Prover for Hub {
        fn head(&mut self, partition: u8, from: u64) -> Result<(SignedHead, Proof), BookError> {
            let size = self.0.head(partition).size;
            let proof = match from {
                0 => Some(Proof::default()),
                from => self.0.prove_consistency(partition, from, size),
            };
            proof.map(|proof| (self.shown(), proof)).ok_or(BookError::Proof(ProofError::Rewritten))
        }
    }

    fn verdict(heads: &[SignedHead], nodes: u8, hubs: &mut [&mut dyn Prover]) -> Verdict {
        compare(heads, &keys(nodes), hubs).unwrap()
    }

    #[test]
    fn heads_of_one_log_are_consistent_in_any_order() {
        let logs: Vec<SignedHead> =
            [0, 1, 3, 6].into_iter().map(|count| Hub::new(names(7, count), 1).shown()).collect();
        let mut hub = Hub::new(names(7, 9), 1);
        assert_eq!(verdict(&logs, 1, &mut [&mut hub]), Verdict::Consistent);
        let turned: Vec<SignedHead> = logs.iter().rev().cloned().collect();
        assert_eq!(verdict(&turned, 1, &mut [&mut hub]), Verdict::Consistent);
        assert_eq!(verdict(&[], 1, &mut []), Verdict::Consistent);
        assert_eq!(verdict(&logs[..1], 1, &mut []), Verdict::Consistent);
        // Nobody proves that they belong together.
        assert_eq!(verdict(&logs, 1, &mut []), Verdict::Behind);
    }

    #[test]
    fn two_logs_of_one_size_convict_who_signed_both() {
        let (honest, liar) = (Hub::new(names(7, 3), 2), Hub::new(names(8, 3), 2));
        let heads = [honest.shown(), liar.shown()];
        let Verdict::Fork(pair) = verdict(&heads, 2, &mut []) else { panic!("a fork") };
        assert_eq!(signed_both(&pair, &keys(3)), keys(2), "the third one has signed neither");
        // Also if one of them is what the hub shows only now.
        let mut now = Hub::new(names(8, 3), 2);
        assert!(matches!(verdict(&heads[..1], 2, &mut [&mut now]), Verdict::Fork(_)));
    }

    #[test]
    fn a_log_that_does_not_continue_what_was_shown_was_rewritten() {
        let shown = Hub::new(names(7, 3), 1).shown();
        for count in [4, 9] {
            let mut now = Hub::new(names(8, count), 1);
            let found = verdict(std::slice::from_ref(&shown), 1, &mut [&mut now]);
            assert_eq!(found, Verdict::Rewritten(Box::new((shown.clone(), now.shown()))), "{count}");
        }
        // A node that stands alone has no excuse for a shorter log; one of three lags, and the next one may know.
        let mut short = Hub::new(names(7, 2), 1);
        assert!(matches!(verdict(std::slice::from_ref(&shown), 1, &mut [&mut short]), Verdict::Rewritten(_)));
        let shown = Hub::new(names(7, 3), 2).shown();
        let (mut short, mut long) = (Hub::new(names(7, 2), 2), Hub::new(names(7, 5), 3));
        assert_eq!(verdict(std::slice::from_ref(&shown), 3, &mut [&mut short]), Verdict::Behind);
        assert_eq!(verdict(&[shown], 3, &mut [&mut short, &mut long]), Verdict::Consistent);
    }

    #[test]
    fn what_no_majority_has_signed_counts_for_nothing() {
        let head = Hub::new(names(7, 3), 1).shown();
        assert!(matches!(compare(std::slice::from_ref(&head), &keys(2), &mut []), Err(BookError::Unsigned)));
        let mut changed = Hub::new(names(7, 3), 2).shown();
        changed.head.root[0] ^= 1;
        assert!(matches!(compare(&[changed], &keys(2), &mut []), Err(BookError::Unsigned)));
        // Nor does what a hub says with too few signatures.
        let shown = Hub::new(names(7, 3), 2).shown();
        let mut alone = Hub::new(names(8, 9), 1);
        assert!(matches!(compare(&[shown], &keys(2), &mut [&mut alone]), Err(BookError::Unsigned)));
    }
}
