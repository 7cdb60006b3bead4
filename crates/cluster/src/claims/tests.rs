use std::net::SocketAddr;
use std::time::Instant;

use ed25519_dalek::SigningKey;
use pilotage_registry::claims::{Bad, PARTITIONS, verify_inclusion};
use pilotage_wire::NetworkId;

use super::*;
use crate::free::free;
use crate::{Start, Timing};

/// Bits of work: enough to tell that they are checked.
const BITS: u8 = 4;

fn start(folder: &std::path::Path) -> RaftLog {
    let mut config = ClusterConfig::new(folder, free(), Start::Found);
    config.timing = Timing::SLOW;
    RaftLog::start(config, Limits::default(), BITS).expect("starts")
}

/// Three nodes; the first one founded the cluster.
fn three(folder: &std::path::Path) -> Vec<RaftLog> {
    let binds: Vec<SocketAddr> = (0..3).map(|_| free()).collect();
    let nodes: Vec<RaftLog> = (0..3)
        .map(|index| {
            let start = if index == 0 { Start::Found } else { Start::Join(vec![binds[0].to_string()]) };
            let mut config = ClusterConfig::new(folder.join(index.to_string()), binds[index], start);
            config.token = Some(b"the token of these tests".to_vec());
            config.join_patience = LONG;
            config.timing = Timing::SLOW;
            RaftLog::start(config, Limits::default(), BITS).expect("starts")
        })
        .collect();
    until("three voters", || {
        nodes.iter().all(|node| node.signers().len() == 3 && !node.cluster().status().changing)
    });
    nodes
}

/// Patience for everything: the machine may be busy.
const LONG: Duration = Duration::from_secs(180);

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !done() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The newest head, as a hub asks for it.
fn head(log: &RaftLog, partition: u8) -> Result<SignedHead, LogError> {
    let (tell, told) = mpsc::channel();
    log.newest_head(partition, Box::new(move |head| drop(tell.send(head))));
    told.recv_timeout(LONG).expect("called")
}

#[test]
fn heads_bear_the_signatures_of_a_majority() {
    let folder = tempfile::tempdir().expect("folder");
    let mut nodes = three(folder.path());
    let claim = claim("fx", 7, BITS);
    let partition = claim.subject.partition();
    let outcomes = nodes[1].propose(vec![claim.clone()]).expect("ordered");
    assert_eq!(outcomes, [Outcome::Granted { index: 0 }]);
    // Where it was granted it is seen at once, elsewhere after catching up.
    assert!(nodes[1].holder(&claim.subject).expect("reads").is_some());
    let (tell, told) = mpsc::channel();
    assert!(nodes[2].catch_up(Box::new(move || tell.send(()).expect("waits"))));
    told.recv_timeout(LONG).expect("called");
    assert!(nodes[2].holder(&claim.subject).expect("reads").is_some());
    let keys = nodes[0].signers();
    for node in &nodes {
        assert_eq!(node.signers(), keys);
        assert!(keys.contains(&node.node_key()));
        let head = head(node, partition).expect("signed");
        assert!(head.signed_by(&keys) >= 2, "{head:?}");
        let proof = node.prove(partition, 0, head.head.size).expect("in the tree");
        verify_inclusion(&head.head, &claim.encode(), 0, &proof).expect("proved");
        assert_eq!(node.ready_head(partition, 0), Some(head));
        assert_eq!(node.ready_head(partition, 1), None);
    }
    // Many ask at once: all are answered.
    let (tell, told) = mpsc::channel();
    for partition in (0..PARTITIONS as u8).cycle().take(200) {
        let tell = tell.clone();
        nodes[0].newest_head(partition, Box::new(move |head| tell.send(head.is_ok()).expect("waits")));
    }
    assert!((0..200).all(|_| told.recv_timeout(LONG).expect("called")));
    // Alone: what was signed is still there, nothing new is signed or granted, and the cause is named.
    let last = nodes.pop().expect("three").with_patience(Duration::from_millis(300));
    drop(nodes);
    assert!(head(&last, partition).is_ok());
    let other = (0..PARTITIONS as u8).find(|&other| other != partition).expect("sixteen");
    let error = head(&last, other).expect_err("no majority");
    assert!(matches!(error, LogError::NoQuorum { have: 1, need: 2, nodes: 3 }), "{error}");
    let error = last.propose(vec![self::claim("new", 8, BITS)]).expect_err("no majority");
    assert!(error.to_string().contains("no majority"), "{error}");
    assert!(last.holder(&claim.subject).expect("reads").is_some(), "look-ups go on");
}

#[test]
fn a_node_signs_only_heads_of_its_own_log() {
    let mut machine = ClaimsMachine::new(Limits::default());
    for number in 0..40_u64 {
        let claims = vec![claim(&format!("n{number}"), number, 0)];
        crate::Machine::apply(&mut machine, &Batch { time: 10 + number, claims }.encode());
    }
    let vouches = |head: &TreeHead| crate::Machine::vouches(&machine, &head.encode());
    let partition = claim("n0", 0, 0).subject.partition();
    let head = machine.claims().head(partition);
    assert_eq!(vouches(&head), Some(head.signed()), "the newest");
    let forged = [
        TreeHead { root: [7; 32], ..head },
        TreeHead { size: head.size + 1, ..head },
        TreeHead { size: head.size.saturating_sub(1), root: [8; 32], ..head },
        TreeHead { time: head.time + 1, ..head },
    ];
    assert!(forged.iter().all(|forged| vouches(forged).is_none()));
    assert!(crate::Machine::vouches(&machine, b"").is_none());
    assert!(
        crate::Machine::vouches(&machine, b"whatever somebody wants to have signed, 49 bytes long").is_none()
    );
}

fn claim(name: &str, agent: u64, bits: u8) -> Claim {
    let key = SigningKey::from_bytes(blake3::hash(&agent.to_be_bytes()).as_bytes());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("clock").as_secs();
    let expires = u32::try_from(now + 86_400).expect("until 2106");
    let subject = Subject::Hostname { network: NetworkId(0), name: name.into() };
    Claim::new(subject, key.verifying_key().to_bytes(), 1, expires).sign(bits, &key, None)
}

#[test]
fn of_a_thousand_racers_one_is_granted() {
    let folder = tempfile::tempdir().expect("folder");
    let log = start(folder.path());
    let claims: Vec<Claim> = (0..1_000).map(|agent| claim("fx", agent, BITS)).collect();
    let outcomes: Vec<Outcome> = std::thread::scope(|scope| {
        let log = &log;
        let racers: Vec<_> = claims
            .chunks(10)
            .map(|claims| scope.spawn(move || log.propose(claims.to_vec()).expect("ordered")))
            .collect();
        racers.into_iter().flat_map(|racer| racer.join().expect("racer")).collect()
    });
    assert_eq!(outcomes.len(), 1_000);
    let granted: Vec<usize> =
        (0..1_000).filter(|&at| matches!(outcomes[at], Outcome::Granted { .. })).collect();
    assert_eq!(granted.len(), 1, "exactly one");
    let winner = &claims[granted[0]];
    for (at, outcome) in outcomes.iter().enumerate() {
        match outcome {
            Outcome::Granted { .. } => assert_eq!(at, granted[0]),
            Outcome::TakenBy { agent_id, .. } => assert_eq!(*agent_id, winner.agent_id()),
            Outcome::Bad(bad) => panic!("{bad}"),
        }
    }
    assert_eq!(log.propose(vec![winner.clone()]).expect("ordered"), [outcomes[granted[0]].clone()], "again");
    // The winner can prove it.
    let held = log.holder_now(&winner.subject).expect("leads").expect("held");
    let partition = winner.subject.partition();
    let head = log.head(partition);
    let proof = log.prove(partition, held.index, head.size).expect("in the tree");
    verify_inclusion(&head, &winner.encode(), held.index, &proof).expect("proved");
    assert_eq!(log.read(partition, 0, 10).expect("kept"), [held]);
    drop(log);
    // Another process with the same file.
    let again = start(folder.path());
    assert_eq!(
        again.holder_now(&winner.subject).expect("leads").map(|held| held.claim),
        Some(winner.clone())
    );
}

#[test]
fn what_fails_its_checks_is_never_ordered_and_keeps_its_place() {
    let folder = tempfile::tempdir().expect("folder");
    let log = start(folder.path());
    let mut forged = claim("forged", 2, BITS);
    forged.signature[7] ^= 1;
    let lazy = (0..).map(|agent| claim("lazy", agent, 0)).find(|claim| claim.pow_bits() < u32::from(BITS));
    let before = log.cluster().status().last_log;
    let bad = log.propose(vec![forged.clone(), lazy.clone().expect("found")]).expect("checked");
    assert!(matches!(bad[..], [Outcome::Bad(Bad::Signature), Outcome::Bad(Bad::Work { .. })]), "{bad:?}");
    assert_eq!(log.cluster().status().last_log, before, "nothing was written");
    let mixed = vec![claim("one", 1, BITS), forged, claim("three", 3, BITS)];
    let outcomes = log.propose(mixed).expect("ordered");
    assert!(matches!(
        outcomes[..],
        [Outcome::Granted { .. }, Outcome::Bad(Bad::Signature), Outcome::Granted { .. }]
    ));
    let many: Vec<Claim> =
        (0..MAX_BATCH as u64 + 40).map(|agent| claim(&format!("n{agent}"), agent, BITS)).collect();
    assert!(
        log.propose(many).expect("ordered").iter().all(|outcome| matches!(outcome, Outcome::Granted { .. }))
    );
}

#[test]
fn old_leaves_are_left_to_their_owners() {
    let mut machine = ClaimsMachine::new(Limits { per_agent: u16::MAX, ..Limits::default() });
    let mut of_zero = Vec::new();
    let mut number = 0_u64;
    while of_zero.len() < KEPT_LEAVES + 10 {
        let claim = {
            let subject = Subject::Hostname { network: NetworkId(0), name: format!("n{number}") };
            Claim::new(subject, [(number % 250) as u8 + 1; 32], 1, 1_000)
        };
        number += 1;
        if claim.subject.partition() == 0 {
            of_zero.push(claim);
        }
    }
    for claims in of_zero.chunks(MAX_BATCH) {
        crate::Machine::apply(&mut machine, &Batch { time: 10, claims: claims.to_vec() }.encode());
    }
    assert_eq!(machine.claims().head(0).size, of_zero.len() as u64);
    assert!(matches!(machine.leaves(0, 9, 1), Err(LogError::Compacted { partition: 0, first: 10 })));
    assert_eq!(machine.leaves(0, 10, 3).expect("kept").len(), 3);
    assert!(machine.leaves(0, of_zero.len() as u64, 3).expect("the end").is_empty());
    assert!(machine.leaves(99, 0, 1).is_err());
    let snapshot = crate::Machine::snapshot(&machine);
    let mut other = ClaimsMachine::new(Limits { per_agent: u16::MAX, ..Limits::default() });
    crate::Machine::install(&mut other, &snapshot).expect("own bytes");
    assert_eq!(crate::Machine::snapshot(&other), snapshot);
    assert!(crate::Machine::install(&mut other, b"nonsense").is_err());
    assert_eq!(crate::Machine::snapshot(&other), snapshot, "the old state stays");
}

/// What one registry has granted alone a cluster takes over: nobody else gets it, and its log goes on.
#[test]
fn claims_of_one_registry_begin_a_cluster() {
    use pilotage_registry::claims::{Claims, verify_consistency};
    let folder = tempfile::tempdir().expect("folder");
    let time = SystemTime::now().duration_since(UNIX_EPOCH).expect("clock").as_secs();
    let mut alone = Claims::new(Limits::default());
    let old = claim("fx", 1, BITS);
    let granted = alone.apply(&Batch { time, claims: vec![old.clone()] });
    assert_eq!(granted.outcomes, [Outcome::Granted { index: 0 }]);
    let partition = old.subject.partition();
    let before = alone.head(partition);
    let state = ClaimsMachine::of_one_hub(&alone.snapshot(), &[]).expect("fits");
    assert_eq!(ClaimsMachine::count(&state), Ok((1, 0)));
    let start = Start::FoundWith(Arc::new(state));
    let mut config = ClusterConfig::new(folder.path().join("cluster"), free(), start);
    config.timing = Timing::SLOW;
    let log = RaftLog::start(config, Limits::default(), BITS).expect("starts");
    let thief = log.propose(vec![claim("fx", 2, BITS)]).expect("ordered");
    assert!(matches!(thief[..], [Outcome::TakenBy { index: 0, .. }]), "{thief:?}");
    assert_eq!(log.propose(vec![old]).expect("ordered"), [Outcome::Granted { index: 0 }]);
    // One more in that partition: the new head continues the old one.
    let more = (0..).map(|number| claim(&format!("n{number}"), 3, BITS));
    let next = more.into_iter().find(|claim| claim.subject.partition() == partition).expect("endless");
    assert_eq!(log.propose(vec![next]).expect("ordered"), [Outcome::Granted { index: 1 }]);
    let signed = head(&log, partition).expect("signed");
    let proof = log.prove_consistency(partition, 1, 2).expect("proof");
    verify_consistency(&before, &signed.head, &proof).expect("continues");
}
