//! Tests of claims without a disk.

use super::merkle::MerkleLog;
use super::*;
use ct_merkle::mem_backed_tree::MemoryBackedTree;
use ed25519_dalek::SigningKey;
use pilotage_wire::{NetworkId, NodeId};
use proptest::prelude::*;
use sha2::Sha256;

const NOW: u64 = 1_900_000_000;
const BITS: u8 = 4;

pub(super) fn agent(number: u8) -> SigningKey {
    SigningKey::from_bytes(&[number; 32])
}

fn name(text: &str) -> Subject {
    Subject::Hostname { network: NetworkId(0), name: text.into() }
}

pub(super) fn claim(who: u8, what: Subject, seq: u64, expires: u64) -> Claim {
    Claim::new(what, [0; 32], seq, expires as u32).sign(BITS, &agent(who), None)
}

fn one(claims: &mut Claims, time: u64, claim: &Claim) -> Outcome {
    let applied = claims.apply(&Batch { time, claims: vec![claim.clone()] });
    assert_eq!(applied.outcomes.len(), 1);
    applied.outcomes[0].clone()
}

fn taken_by(outcome: &Outcome) -> [u8; 32] {
    match outcome {
        Outcome::TakenBy { agent_id, .. } => *agent_id,
        other => panic!("{other:?}"),
    }
}

fn id(who: u8) -> [u8; 32] {
    pilotage_wire::addressing::agent_id(agent(who).verifying_key().as_bytes())
}

fn is_granted(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Granted { .. })
}

#[test]
fn the_first_holds_renews_and_gives_back() {
    let mut claims = Claims::new(Limits::default());
    let end = NOW + 10 * DAY;
    let first = claim(1, name("alpha"), 5, end);
    let Outcome::Granted { index } = one(&mut claims, NOW, &first) else { panic!() };
    assert_eq!(one(&mut claims, NOW + 1, &first), Outcome::Granted { index }, "idempotent");
    assert_eq!(taken_by(&one(&mut claims, NOW, &claim(2, name("alpha"), 9, end))), id(1));
    // An older one of the holder's changes nothing.
    assert_eq!(one(&mut claims, NOW, &claim(1, name("alpha"), 4, end + 9)), Outcome::Granted { index });
    let renewed = claim(1, name("alpha"), 6, end + DAY);
    assert!(is_granted(&one(&mut claims, NOW + 2, &renewed)));
    assert_eq!(claims.holder(&name("alpha")).unwrap().until, end + DAY);
    let release = claim(1, name("alpha"), 7, 0);
    assert!(is_granted(&one(&mut claims, NOW + 3, &release)));
    assert!(is_granted(&one(&mut claims, NOW + 4, &release)), "idempotent");
    // A replay of what came before the release does not bring the name back.
    assert_eq!(one(&mut claims, NOW + 4, &renewed), Outcome::Bad(Bad::Stale));
    assert_eq!(taken_by(&one(&mut claims, NOW + 5, &claim(2, name("alpha"), 1, NOW + DAY))), id(1));
    // The old holder may come back in the quarantine, with something new.
    assert!(is_granted(&one(&mut claims, NOW + 6, &claim(1, name("alpha"), 8, NOW + 2 * DAY))));
}

#[test]
fn leases_end_and_quarantine_follows() {
    let mut claims = Claims::new(Limits::default());
    let end = NOW + HOSTNAME_LEASE;
    assert!(is_granted(&one(&mut claims, NOW, &claim(1, name("beta"), 1, end))));
    let other = |time: u64, seq| claim(2, name("beta"), seq, time + DAY);
    let late = end + QUARANTINE - 1;
    assert_eq!(taken_by(&one(&mut claims, late, &other(late, 1))), id(1));
    // Time does not go back, whatever a clock says.
    assert_eq!(taken_by(&one(&mut claims, 5, &other(late, 2))), id(1));
    assert_eq!(claims.time(), late);
    assert!(is_granted(&one(&mut claims, late + 1, &other(late, 3))));
    assert_eq!(claims.holder(&name("beta")).unwrap().claim.agent_id(), id(2));
    // What the first one signed can be replayed now: it has expired.
    assert_eq!(taken_by(&one(&mut claims, late + 2, &claim(1, name("beta"), 1, end))), id(2));
}

#[test]
fn a_replay_never_outlives_the_quarantine() {
    let mut claims = Claims::new(Limits::default());
    let first = claim(1, name("gamma"), 1, NOW + HOSTNAME_LEASE);
    assert!(is_granted(&one(&mut claims, NOW, &first)));
    assert!(is_granted(&one(&mut claims, NOW + 1, &claim(1, name("gamma"), 2, 0))));
    let hold = claims.holder(&name("gamma")).unwrap().hold;
    assert!(hold >= NOW + HOSTNAME_LEASE, "the name must not come free while an old claim is still good");
    assert!(claims.holder(&name("gamma")).is_some_and(|held| held.until == NOW + 1));
    assert_eq!(one(&mut claims, hold, &first), Outcome::Bad(Bad::Expired));
    assert!(claims.holder(&name("gamma")).is_none());
}

#[test]
fn terms_are_bounded() {
    let mut claims = Claims::new(Limits::default());
    let most = NOW + HOSTNAME_LEASE + CLOCK_SLACK;
    assert_eq!(one(&mut claims, NOW, &claim(1, name("d"), 1, most + 1)), Outcome::Bad(Bad::TooLong));
    assert_eq!(one(&mut claims, NOW, &claim(1, name("d"), 1, NOW)), Outcome::Bad(Bad::Expired));
    assert_eq!(one(&mut claims, NOW, &claim(1, name("d"), 1, 0)), Outcome::Bad(Bad::NotHolder));
    assert!(is_granted(&one(&mut claims, NOW, &claim(1, name("d"), 1, most))));
}

#[test]
fn a_transfer_needs_the_holder() {
    let mut claims = Claims::new(Limits::default());
    let key = agent(1).verifying_key().to_bytes();
    let end = (NOW + DAY) as u32;
    let address = Claim::address(NetworkId(3), key, 0, 1, end).unwrap().sign(BITS, &agent(1), None);
    let what = address.subject.clone();
    let hand_over = |from: u8, to: u8, seq| {
        Claim::new(what.clone(), [0; 32], seq, end).sign(BITS, &agent(to), Some(&agent(from)))
    };
    assert_eq!(one(&mut claims, NOW, &hand_over(1, 2, 2)), Outcome::Bad(Bad::NotHolder), "nobody holds it");
    assert!(is_granted(&one(&mut claims, NOW, &address)));
    assert_eq!(taken_by(&one(&mut claims, NOW, &hand_over(3, 2, 2))), id(1));
    let handed = hand_over(1, 2, 2);
    assert_eq!(check(&handed, BITS), Ok(()));
    assert!(is_granted(&one(&mut claims, NOW, &handed)));
    assert!(is_granted(&one(&mut claims, NOW, &handed)), "idempotent");
    // The old key has nothing to say any more, not even with an old claim.
    assert_eq!(taken_by(&one(&mut claims, NOW, &address)), id(2));
    assert_eq!(taken_by(&one(&mut claims, NOW, &hand_over(1, 4, 9))), id(2));
    // The new one renews although the node id is not derived from its key.
    assert!(is_granted(&one(&mut claims, NOW, &claim(2, what, 3, NOW + 2 * DAY))));
}

#[test]
fn an_address_belongs_to_a_key_that_derives_it() {
    let mut claims = Claims::new(Limits::default());
    let wrong = claim(1, Subject::Address { network: NetworkId(0), node: NodeId(99_999) }, 1, NOW + DAY);
    assert_eq!(one(&mut claims, NOW, &wrong), Outcome::Bad(Bad::NotDerived));
}

#[test]
fn bounds_hold() {
    let mut claims = Claims::new(Limits { claims: 5, per_agent: 3 });
    let get = |claims: &mut Claims, who, text: &str| one(claims, NOW, &claim(who, name(text), 1, NOW + DAY));
    for text in ["a", "b", "c"] {
        assert!(is_granted(&get(&mut claims, 1, text)));
    }
    assert_eq!(get(&mut claims, 1, "d"), Outcome::Bad(Bad::Quota(3)));
    assert!(is_granted(&get(&mut claims, 2, "d")) && is_granted(&get(&mut claims, 2, "e")));
    assert_eq!(get(&mut claims, 3, "f"), Outcome::Bad(Bad::Full));
    // What has ended makes room, once a day.
    let later = NOW + DAY + QUARANTINE + DAY;
    let applied = claims.apply(&Batch { time: later, claims: vec![claim(1, name("g"), 1, later + DAY)] });
    assert!(is_granted(&applied.outcomes[0]));
    assert_eq!((applied.removed.len(), claims.len()), (5, 1));
    assert_eq!(
        Batch::decode(&[&[0; 8][..], &1_025u16.to_be_bytes()].concat()),
        Err(ClaimError::Value("count"))
    );
}

#[test]
fn signatures_and_work_are_checked() {
    let good = claim(1, name("work"), 1, NOW);
    assert_eq!(check(&good, BITS), Ok(()));
    assert!(matches!(check(&good, 40), Err(Bad::Work { need: 40, .. })));
    let mut weak = good.clone();
    weak.key = [0; 32];
    solve_pow(&mut weak, BITS);
    let mut self_transfer = good.clone();
    self_transfer.transfer = Some(Transfer { from: good.key, signature: good.signature });
    assert_eq!(check(&self_transfer, 0), Err(Bad::Transfer));
    let mut many: Vec<Claim> = (0..100).map(|seq| claim(1, name("work"), seq, NOW)).collect();
    many[70].seq += 1;
    many[71] = weak;
    for threads in [1, 3] {
        let results = check_all(&many, 0, threads);
        let single: Vec<_> = many.iter().map(|claim| check(claim, 0)).collect();
        assert_eq!(results.iter().filter(|result| result.is_err()).count(), 2);
        for (at, (batch, single)) in results.iter().zip(single).enumerate() {
            assert_eq!(batch.is_ok(), single.is_ok(), "claim {at}");
        }
    }
    assert!(check_all(&[], BITS, 4).is_empty());
}

#[test]
fn any_altered_bit_is_refused() {
    let key = agent(1).verifying_key().to_bytes();
    let plain = Claim::address(NetworkId(1), key, 3, 7, NOW as u32).unwrap().sign(BITS, &agent(1), None);
    let handed = Claim::new(name("bit"), key, 7, NOW as u32).sign(BITS, &agent(2), Some(&agent(1)));
    for good in [plain, handed] {
        let bytes = good.encode();
        assert_eq!(Claim::decode(&bytes).unwrap(), good);
        for bit in 0..bytes.len() * 8 {
            let mut altered = bytes.clone();
            altered[bit / 8] ^= 1 << (bit % 8);
            if let Ok(claim) = Claim::decode(&altered) {
                assert!(check(&claim, 0).is_err(), "bit {bit}");
            }
        }
    }
}

#[test]
fn merkle_logs_are_those_of_rfc_6962() {
    let mut ours = MerkleLog::default();
    let mut theirs = MemoryBackedTree::<Sha256, Vec<u8>>::new();
    let mut heads = vec![];
    for size in 1..=70u64 {
        let leaf = size.to_be_bytes().to_vec();
        ours.push(merkle::leaf_hash(&leaf));
        theirs.push(leaf);
        assert_eq!(ours.root(size).unwrap(), theirs.root().as_bytes()[..]);
        for index in 0..size {
            let proof = theirs.prove_inclusion(index as usize);
            assert_eq!(ours.inclusion(index, size).unwrap().concat(), proof.as_bytes(), "{index} of {size}");
        }
        for old in 1..size {
            let proof = theirs.prove_consistency((size - old) as usize);
            assert_eq!(ours.consistency(old, size).unwrap().concat(), proof.as_bytes(), "{old} of {size}");
        }
        heads.push(TreeHead { partition: 0, size, root: ours.root(size).unwrap(), time: 0 });
    }
    // Older sizes are remembered; what is cut off is gone.
    for head in &heads {
        assert_eq!(ours.root(head.size).unwrap(), head.root);
    }
    ours.truncate(37);
    assert_eq!((ours.len(), ours.root(37).unwrap()), (37, heads[36].root));
    assert!(ours.root(38).is_none() && ours.inclusion(3, 38).is_none() && ours.consistency(1, 38).is_none());
    ours.push(merkle::leaf_hash(&38u64.to_be_bytes()));
    assert_eq!(ours.root(38).unwrap(), heads[37].root);
}

/// The log of the readers follows that of the writer, which may take back what it could not store.
#[cfg(feature = "store")]
#[test]
fn a_log_that_follows_another_becomes_the_same() {
    let leaf = |number: u64| merkle::leaf_hash(&number.to_be_bytes());
    let (mut writer, mut reader) = (MerkleLog::default(), MerkleLog::default());
    // Groups that end within a chunk of 64, at its end and behind it; some of them are taken back and replaced.
    for (round, group) in [1, 2, 60, 1, 1, 63, 64, 65, 128, 300, 7].into_iter().enumerate() {
        let base = writer.len();
        (0..group + 70).for_each(|number| writer.push(leaf(1 << 40 | number)));
        let seen = reader.clone();
        writer.truncate(base);
        assert_eq!((&writer, &reader), (&seen, &seen), "round {round}: what was taken back is still there");
        (base..base + group).for_each(|number| writer.push(leaf(number)));
        reader.follow(&writer);
        let mut fresh = MerkleLog::default();
        (0..base + group).for_each(|number| fresh.push(leaf(number)));
        assert_eq!((&reader, &writer), (&fresh, &fresh), "round {round}");
        assert!(reader.leaves().copied().eq((0..base + group).map(leaf)));
        assert_eq!((reader.leaf(base), reader.leaf(base + group)), (Some(&leaf(base)), None));
        let root = reader.root(reader.len()).unwrap();
        let head = TreeHead { partition: 0, size: reader.len(), root, time: 0 };
        let proof = Proof(reader.inclusion(base, reader.len()).unwrap());
        assert_eq!(verify_inclusion(&head, &base.to_be_bytes(), base, &proof), Ok(()));
    }
}

#[test]
fn wrong_proofs_prove_nothing() {
    let mut log = MerkleLog::default();
    for leaf in 0..11u8 {
        log.push(merkle::leaf_hash(&[leaf]));
    }
    let head = |size| TreeHead { partition: 0, size, root: log.root(size).unwrap(), time: 0 };
    let proof = Proof(log.inclusion(6, 11).unwrap());
    assert_eq!(verify_inclusion(&head(11), &[6], 6, &proof), Ok(()));
    for (head, leaf, index) in [(head(11), 7, 6), (head(11), 6, 7), (head(10), 6, 6), (head(11), 6, 11)] {
        assert_eq!(verify_inclusion(&head, &[leaf], index, &proof), Err(ProofError::NotIncluded));
    }
    let huge = TreeHead { size: u64::MAX, ..head(11) };
    assert!(verify_inclusion(&huge, &[6], u64::MAX - 1, &proof).is_err());
    for at in 0..proof.0.len() {
        let mut wrong = proof.clone();
        wrong.0[at][5] ^= 1;
        assert!(verify_inclusion(&head(11), &[6], 6, &wrong).is_err());
        wrong.0.remove(at);
        assert!(verify_inclusion(&head(11), &[6], 6, &wrong).is_err());
    }
    let consistent = Proof(log.consistency(5, 11).unwrap());
    assert_eq!(verify_consistency(&head(5), &head(11), &consistent), Ok(()));
    assert_eq!(verify_consistency(&head(6), &head(11), &consistent), Err(ProofError::Rewritten));
    assert_eq!(verify_consistency(&head(11), &head(5), &consistent), Err(ProofError::Rewritten));
    let split = TreeHead { root: [1; 32], ..head(11) };
    assert_eq!(verify_consistency(&head(11), &split, &Proof::default()), Err(ProofError::Rewritten));
}

#[test]
fn heads_are_believed_by_the_nodes_that_signed_them() {
    let head = TreeHead { partition: 3, size: 7, root: [4; 32], time: 9 };
    assert_eq!(TreeHead::decode(&head.encode()), Some(head));
    let nodes: Vec<[u8; 32]> = (1..=3).map(|node| agent(node).verifying_key().to_bytes()).collect();
    let mut signed = SignedHead {
        head,
        signatures: vec![head.sign(&agent(1)), head.sign(&agent(1)), head.sign(&agent(9))],
    };
    assert_eq!(signed.signed_by(&nodes), 1);
    signed.signatures[1] = head.sign(&agent(3));
    assert_eq!(signed.signed_by(&nodes), 2);
    let bytes = [signed.encode(), vec![1, 2]].concat();
    assert_eq!(SignedHead::decode(&bytes), Some((signed.clone(), &[1, 2][..])));
    signed.head.size += 1;
    assert_eq!(signed.signed_by(&nodes), 0);
}

#[derive(Debug, Clone)]
struct Step {
    who: u8,
    from: Option<u8>,
    name: u8,
    seq: u64,
    days: u64,
    release: bool,
    wait_days: u64,
}

fn steps() -> impl Strategy<Value = Vec<Vec<Step>>> {
    let step = (
        1u8..4,
        prop::option::weighted(0.2, 1u8..4),
        0u8..4,
        0u64..6,
        1u64..40,
        prop::bool::weighted(0.2),
        prop_oneof![3 => Just(0u64), 1 => 0u64..70],
    )
        .prop_map(|(who, from, name, seq, days, release, wait_days)| Step {
            who,
            from: from.filter(|from| *from != who && !release),
            name,
            seq,
            days,
            release,
            wait_days,
        });
    prop::collection::vec(prop::collection::vec(step, 0..5), 1..12)
}

fn batches(steps: &[Vec<Step>]) -> Vec<Batch> {
    let mut time = NOW;
    let batch = |steps: &Vec<Step>| {
        time += steps.iter().map(|step| step.wait_days * DAY).sum::<u64>();
        let claim = |step: &Step| {
            let expires = if step.release { 0 } else { time + step.days * DAY };
            Claim::new(name(&format!("n{}", step.name)), [0; 32], step.seq, expires as u32).sign(
                0,
                &agent(step.who),
                step.from.map(agent).as_ref(),
            )
        };
        Batch { time, claims: steps.iter().map(claim).collect() }
    };
    steps.iter().map(batch).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// The same log gives the same state, also over a snapshot in the middle, and a batch taken back leaves no trace.
    #[test]
    fn the_log_decides(steps in steps(), cut: prop::sample::Index) {
        let batches = batches(&steps);
        let cut = cut.index(batches.len());
        let (mut a, mut b) = (Claims::new(Limits { claims: 3, per_agent: 2 }), Claims::new(Limits { claims: 3, per_agent: 2 }));
        for (at, batch) in batches.iter().enumerate() {
            prop_assert_eq!(&Batch::decode(&batch.encode()).unwrap(), batch);
            if at == cut {
                let snapshot = b.snapshot();
                b = Claims::new(Limits { claims: 3, per_agent: 2 });
                b.install(&snapshot).unwrap();
                prop_assert_eq!(b.snapshot(), snapshot);
            }
            let before = a.snapshot();
            let tried = a.apply(batch);
            a.undo(tried);
            prop_assert_eq!(a.snapshot(), before);
            let (first, second) = (a.apply(batch), b.apply(batch));
            prop_assert_eq!(first.outcomes, second.outcomes);
            prop_assert_eq!(&first.granted, &second.granted);
            prop_assert_eq!(a.snapshot(), b.snapshot());
            for granted in first.granted {
                let partition = granted.claim.subject.partition();
                let head = a.head(partition);
                let proof = a.prove(partition, granted.index, head.size).unwrap();
                prop_assert_eq!(verify_inclusion(&head, &granted.claim.encode(), granted.index, &proof), Ok(()));
            }
        }
    }

    /// Nobody gets a thing that another one holds, by an independent account of the grants.
    #[test]
    fn no_double_grant(steps in steps()) {
        let mut claims = Claims::new(Limits::default());
        let mut holds: std::collections::HashMap<SubjectKey, ([u8; 32], u64)> = Default::default();
        for batch in batches(&steps) {
            let applied = claims.apply(&batch);
            for granted in applied.granted {
                let claim = &granted.claim;
                if let Some((holder, until)) = holds.get(&claim.subject.key()) {
                    let consent = claim.transfer.is_some_and(|transfer| transfer.from == *holder);
                    prop_assert!(*holder == claim.key || consent || *until + QUARANTINE <= claims.time());
                }
                let until = if claim.is_release() { claims.time() } else { u64::from(claim.expires) };
                holds.insert(claim.subject.key(), (claim.key, until));
            }
        }
    }

    #[test]
    fn damaged_snapshots_are_refused(steps in steps(), at: prop::sample::Index, bits in 1u8.., cut: prop::sample::Index) {
        let mut claims = Claims::new(Limits::default());
        for batch in batches(&steps) {
            claims.apply(&batch);
        }
        let good = claims.snapshot();
        let mut other = Claims::new(Limits::default());
        let mut bad = good.clone();
        bad[at.index(good.len())] ^= bits;
        prop_assert!(other.install(&bad).is_err());
        prop_assert!(other.install(&good[..cut.index(good.len())]).is_err());
        prop_assert!(other.is_empty());
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        if let Ok(claim) = Claim::decode(&bytes) {
            prop_assert_eq!(claim.encode(), bytes.clone());
        }
        let _ = Batch::decode(&bytes);
        let _ = SignedHead::decode(&bytes);
        let _ = Claims::new(Limits::default()).install(&bytes);
    }
}
