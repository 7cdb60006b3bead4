//! The state machine of the common registry.

use super::*;
use crate::engine::{JoinRule, Network, Profile, Proof, Role};
use pilotage_wire::addressing::node_ids;
use proptest::prelude::*;

fn key_of(n: u8) -> [u8; 32] {
    [n; 32]
}

fn id_of(n: u8) -> NodeId {
    node_ids(&key_of(n)).next().unwrap().1
}

/// The record of the node whose first key is `n`.
fn record(n: u8, name: Option<&str>, port: u16) -> Record {
    Record {
        public_key: key_of(n),
        salt: node_ids(&key_of(n)).next().unwrap().0,
        proof: Proof::Fresh,
        public: true,
        hostname: name.map(Into::into),
        endpoint: Some(([192, 0, 2, n], port).into()),
        lan_addrs: Vec::new(),
        created: 7,
        profile: Profile::default(),
    }
}

fn network(name: &str) -> Value {
    Value::Row(Row::Network(Box::new(Network {
        name: name.into(),
        rule: JoinRule::Open,
        token: None,
        admin: None,
        enterprise: false,
        created: 1,
        members: vec![(id_of(1), Role::Owner)],
        max_members: 0,
        allowed_ports: Vec::new(),
        description: "".into(),
    })))
}

fn node(record: Record) -> Value {
    Value::Node(Box::new(record))
}

/// Writes decided upon what `state` has now.
fn upon(state: &State, writes: &[(Key, Option<Value>)]) -> Transaction {
    let now = state.changes(u64::MAX).values;
    let old = |key: &Key| {
        let (_, value) = now.iter().find(|(other, _)| other == key)?;
        value.as_ref().map(|value| print(&value.encode()))
    };
    Transaction {
        checks: writes.iter().map(|(key, _)| (key.encode(), old(key))).collect(),
        writes: writes.iter().map(|(key, value)| (key.encode(), value.as_ref().map(Value::encode))).collect(),
    }
}

struct Log(State, u64);

impl Log {
    fn new() -> Self {
        Self(State::new(Bounds::default()), 0)
    }

    fn apply(&mut self, transactions: Vec<Transaction>) -> Vec<Verdict> {
        self.1 += 1;
        let batch = Batch { proposer: 1, number: self.1, transactions };
        decode_verdicts(&self.0.apply(&batch.encode())).unwrap()
    }

    fn write(&mut self, key: Key, value: Option<Value>) -> Verdict {
        let transaction = upon(&self.0, &[(key, value)]);
        self.apply(vec![transaction])[0]
    }

    fn value(&self, key: Key) -> Option<Value> {
        self.0
            .changes(u64::MAX)
            .values
            .into_iter()
            .find(|(other, _)| *other == key)
            .and_then(|(_, value)| value)
    }
}

#[test]
fn of_two_that_were_decided_upon_the_same_the_first_holds() {
    let mut log = Log::new();
    let key = Key::Node(id_of(1));
    let first = upon(&log.0, &[(key, Some(node(record(1, Some("a"), 1))))]);
    let second = upon(&log.0, &[(key, Some(node(record(1, Some("b"), 2))))]);
    assert_eq!(log.apply(vec![first, second.clone()]), [Verdict::Applied, Verdict::Conflict]);
    assert_eq!(log.value(key), Some(node(record(1, Some("a"), 1))));
    // Decided again upon what is there now, it holds; the old name is free.
    assert_eq!(log.write(key, Some(node(record(1, Some("b"), 2)))), Verdict::Applied);
    assert_eq!(log.write(Key::Node(id_of(2)), Some(node(record(2, Some("a"), 1)))), Verdict::Applied);
    log.0.assert_consistent();
}

#[test]
fn keys_and_names_belong_to_one() {
    let mut log = Log::new();
    assert_eq!(log.write(Key::Node(id_of(1)), Some(node(record(1, Some("a"), 1)))), Verdict::Applied);
    assert_eq!(log.write(Key::Node(id_of(2)), Some(node(record(2, Some("a"), 1)))), Verdict::Conflict);
    // Another node comes to have the first one's key.
    let mut changed = record(3, None, 1);
    changed.profile.first_key = Some(key_of(3));
    changed.public_key = key_of(1);
    assert_eq!(log.write(Key::Node(id_of(3)), Some(node(changed))), Verdict::Conflict);
    // A record under an id that its key does not give.
    assert_eq!(log.write(Key::Node(id_of(4)), Some(node(record(5, None, 1)))), Verdict::Malformed);
    // An id stays with its key.
    assert_eq!(log.write(Key::Node(id_of(1)), None), Verdict::Malformed);
    let network_key = |id| Key::Row(RowKey::Network(id));
    assert_eq!(log.write(network_key(1), Some(network("n"))), Verdict::Applied);
    assert_eq!(log.write(network_key(2), Some(network("n"))), Verdict::Conflict);
    assert_eq!(log.write(network_key(1), Some(network("m"))), Verdict::Applied);
    assert_eq!(log.write(network_key(2), Some(network("n"))), Verdict::Applied);
    // Two in one transaction.
    let both = [(network_key(3), Some(network("x"))), (network_key(4), Some(network("x")))];
    let both = upon(&log.0, &both);
    assert_eq!(log.apply(vec![both]), [Verdict::Conflict]);
    log.0.assert_consistent();
}

#[test]
fn a_transaction_holds_as_a_whole_or_not_at_all() {
    let mut log = Log::new();
    assert_eq!(log.write(Key::Node(id_of(1)), Some(node(record(1, Some("a"), 1)))), Verdict::Applied);
    let before = log.0.changes(u64::MAX).values;
    let consent = Key::Row(RowKey::Consent(id_of(1), id_of(2)));
    let row = Some(Value::Row(Row::Consent { given: true }));
    let mut bad = upon(&log.0, &[(consent, row), (Key::Node(id_of(2)), Some(node(record(2, Some("a"), 1))))]);
    assert_eq!(log.apply(vec![bad.clone()]), [Verdict::Conflict]);
    // What is written must have been looked at.
    bad.writes.pop();
    bad.checks.remove(0);
    assert_eq!(log.apply(vec![bad]), [Verdict::Malformed]);
    // Only looked at, and changed since.
    let mut late = upon(&log.0, &[(consent, Some(Value::Row(Row::Consent { given: true })))]);
    late.checks.push((Key::Node(id_of(1)).encode(), None));
    assert_eq!(log.apply(vec![late]), [Verdict::Conflict]);
    assert_eq!(log.0.changes(u64::MAX).values, before);
}

/// Who lost the answer proposes again, and an old copy may come late.
#[test]
fn a_batch_is_applied_once_and_not_after_a_later_one() {
    let mut log = Log::new();
    let key = Key::Row(RowKey::NextNetwork);
    let next = |n| Some(Value::Row(Row::NextNetwork(n)));
    let batch = |state: &State, number, n| {
        let transactions = vec![upon(state, &[(key, next(n))])];
        Batch { proposer: 9, number, transactions }.encode()
    };
    let first = batch(&log.0, 1, 2);
    let answer = log.0.apply(&first);
    let before = log.0.snapshot();
    assert_eq!(log.0.apply(&first), answer);
    assert_eq!(log.0.snapshot(), before);
    // Given up, overtaken, and back to what it was decided upon.
    let lost = batch(&log.0, 2, 5);
    for (number, n) in [(3, 7), (4, 2)] {
        let other = batch(&log.0, number, n);
        assert_eq!(decode_verdicts(&log.0.apply(&other)).unwrap(), [Verdict::Applied]);
    }
    assert_eq!(decode_verdicts(&log.0.apply(&lost)).unwrap(), [Verdict::Conflict]);
    assert_eq!(log.value(key), next(2));
    // Not so many proposers that memory would grow.
    for proposer in 100..1_000 {
        log.0.apply(&Batch { proposer, number: 1, transactions: Vec::new() }.encode());
    }
    assert!(log.0.snapshot().len() < 20_000);
}

#[test]
fn a_full_state_takes_nothing_more_and_lets_what_is_there_change() {
    let mut log = Log(State::new(Bounds { nodes: 2, bytes: 1 << 20 }), 0);
    for n in [1, 2] {
        assert_eq!(log.write(Key::Node(id_of(n)), Some(node(record(n, None, 1)))), Verdict::Applied);
    }
    assert_eq!(log.write(Key::Node(id_of(3)), Some(node(record(3, None, 1)))), Verdict::Full);
    assert_eq!(log.write(Key::Node(id_of(1)), Some(node(record(1, None, 9)))), Verdict::Applied);
    let mut log = Log(State::new(Bounds { nodes: 9, bytes: 100 }), 0);
    assert_eq!(log.write(Key::Node(id_of(1)), Some(node(record(1, None, 1)))), Verdict::Applied);
    assert_eq!(log.write(Key::Node(id_of(2)), Some(node(record(2, None, 1)))), Verdict::Full);
    assert_eq!(log.write(Key::Node(id_of(1)), Some(node(record(1, None, 9)))), Verdict::Applied);
    log.0.assert_consistent();
}

#[test]
fn invitations_go_with_their_network() {
    let mut log = Log::new();
    let invite = |n, to| Key::Row(RowKey::Invite(id_of(n), to));
    let row = || Some(Value::Row(Row::Invite { inviter: id_of(1), at: 3 }));
    log.write(Key::Row(RowKey::Network(1)), Some(network("n")));
    for (n, to) in [(1, 1), (2, 1), (2, 2)] {
        assert_eq!(log.write(invite(n, to), row()), Verdict::Applied);
    }
    assert_eq!(log.write(Key::Row(RowKey::Network(1)), None), Verdict::Applied);
    assert_eq!(
        (log.value(invite(1, 1)), log.value(invite(2, 1)), log.value(invite(2, 2))),
        (None, None, row())
    );
    log.0.assert_consistent();
}

#[test]
fn changes_are_told_once_and_everything_to_those_far_behind() {
    let mut log = Log::new();
    let key = Key::Row(RowKey::NextNetwork);
    assert!(log.0.changes(0).values.is_empty());
    for n in [1, 2, 3] {
        log.write(key, Some(Value::Row(Row::NextNetwork(n))));
    }
    let changes = log.0.changes(1);
    assert_eq!((changes.revision, changes.whole), (3, false));
    assert_eq!(changes.values, [(key, Some(Value::Row(Row::NextNetwork(3))))]);
    assert!(log.0.changes(3).values.is_empty());
    // Of another process, or too old.
    assert!(log.0.changes(4).whole);
    log.write(Key::Row(RowKey::Network(1)), Some(network("n")));
    for n in 0..20_000_u16 {
        log.write(key, Some(Value::Row(Row::NextNetwork(n + 4))));
    }
    let all = log.0.changes(3);
    assert!(all.whole && all.values.len() == 2);
    // After a snapshot everybody reads everything.
    let at = all.revision;
    let snapshot = log.0.snapshot();
    log.0.install(&snapshot).unwrap();
    assert!(log.0.changes(at).whole && log.0.changes(at + 1).values.is_empty());
}

#[test]
fn a_damaged_snapshot_changes_nothing() {
    let mut log = Log::new();
    log.write(Key::Node(id_of(1)), Some(node(record(1, Some("a"), 1))));
    let good = log.0.snapshot();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1;
        assert_eq!(log.0.install(&bad), Err(InstallError));
        assert_eq!(log.0.install(&good[..at]), Err(InstallError));
    }
    // Intact, but it contradicts itself: one name, two nodes.
    let mut other = Log::new();
    other.write(Key::Node(id_of(2)), Some(node(record(2, Some("a"), 1))));
    let body = |snapshot: &[u8]| {
        snapshot[snapshot.len() - 32 - (4 + 5 + 4 + value_len())..snapshot.len() - 32].to_vec()
    };
    let mut both = good[..good.len() - 32].to_vec();
    let count = both.len() - body(&good).len() - 4;
    both[count..count + 4].copy_from_slice(&2_u32.to_be_bytes());
    both.extend(body(&other.0.snapshot()));
    let check = blake3::hash(&both);
    both.extend(check.as_bytes());
    assert_eq!(log.0.install(&both), Err(InstallError));
    assert_eq!(log.0.snapshot(), good);
}

fn value_len() -> usize {
    node(record(1, Some("a"), 1)).encode().len()
}

type Wish = (Key, Option<Value>);
/// Transactions, and upon how old a state they are decided.
type Step = (Vec<Vec<Wish>>, usize);

/// What a node may want: one of few nodes, names, pairs and networks, so that wishes meet.
fn wish() -> impl Strategy<Value = Wish> {
    let name = || prop_oneof![Just(None), "[ab]".prop_map(Some)];
    prop_oneof![
        (1_u8..5, name(), 1_u16..3).prop_map(|(n, name, port)| {
            (Key::Node(id_of(n)), Some(node(record(n, name.as_deref(), port))))
        }),
        (1_u8..4, 1_u8..4, proptest::option::of(any::<bool>())).prop_map(|(a, b, given)| {
            let key = Key::Row(RowKey::Consent(id_of(a), id_of(b)));
            (key, given.map(|given| Value::Row(Row::Consent { given })))
        }),
        (1_u16..4, proptest::option::of("[xy]"))
            .prop_map(|(id, name)| { (Key::Row(RowKey::Network(id)), name.map(|name| network(&name))) }),
        (1_u8..3, 1_u16..4, any::<bool>()).prop_map(|(n, to, there)| {
            let row = there.then(|| Value::Row(Row::Invite { inviter: id_of(1), at: 3 }));
            (Key::Row(RowKey::Invite(id_of(n), to)), row)
        }),
    ]
}

/// Batches of wishes, each decided upon the state that was so many batches ago.
fn history() -> impl Strategy<Value = Vec<Step>> {
    let transaction = proptest::collection::vec(wish(), 1..3);
    proptest::collection::vec((proptest::collection::vec(transaction, 1..4), 0_usize..3), 1..30)
}

proptest! {
    /// Same batches, same answers, same bytes; a node that begins with a snapshot goes on as the others do.
    #[test]
    fn all_nodes_come_to_the_same(history in history(), cut in 0_usize..30) {
        let mut states = vec![State::new(Bounds::default())];
        let mut log = Log::new();
        let mut other = State::new(Bounds::default());
        for (at, (wishes, ago)) in history.into_iter().enumerate() {
            let base = &states[states.len() - 1 - ago.min(states.len() - 1)];
            let transactions: Vec<Transaction> = wishes.iter().map(|wishes| upon(base, wishes)).collect();
            let batch = Batch { proposer: at as u64 % 3, number: at as u64 + 1, transactions };
            let bytes = batch.encode();
            prop_assert_eq!(Batch::decode(&bytes), Some(batch));
            fuzz_input(&[&[0], &bytes[..]].concat());
            fuzz_input(&[&[2], &log.0.snapshot()[..log.0.snapshot().len() - 32]].concat());
            let since = log.0.changes(u64::MAX).revision;
            let before: Vec<_> = log.0.changes(u64::MAX).values;
            let answer = log.0.apply(&bytes);
            prop_assert_eq!(other.apply(&bytes), answer);
            if at == cut {
                let snapshot = other.snapshot();
                other = State::new(Bounds::default());
                other.install(&snapshot).unwrap();
            }
            prop_assert_eq!(other.snapshot(), log.0.snapshot());
            log.0.assert_consistent();
            // The changes alone lead from the old values to the new ones.
            let mut values: std::collections::BTreeMap<_, _> = before.into_iter().collect();
            for (key, value) in log.0.changes(since).values {
                match value {
                    Some(value) => drop(values.insert(key, Some(value))),
                    None => drop(values.remove(&key)),
                }
            }
            let all: std::collections::BTreeMap<_, _> = log.0.changes(u64::MAX).values.into_iter().collect();
            prop_assert_eq!(values, all);
            let mut copy = State::new(Bounds::default());
            copy.install(&log.0.snapshot()).unwrap();
            states.push(copy);
        }
    }

    #[test]
    fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200), cut in 0_usize..40) {
        let mut state = State::new(Bounds::default());
        let marked = [&[MARK, VERSION][..], &bytes].concat();
        for bytes in [&bytes, &marked] {
            if let Some(batch) = Batch::decode(bytes) {
                prop_assert_eq!(Batch::decode(&batch.encode()), Some(batch));
            }
            state.apply(bytes);
            if let Some(notice) = Notice::decode(bytes) {
                prop_assert_eq!(Notice::decode(&notice.encode()), Some(notice));
            }
            let _ = (decode_verdicts(bytes), state.install(bytes), Key::decode(bytes));
        }
        for kind in 0..3 {
            fuzz_input(&[&[kind], &marked[..]].concat());
            fuzz_input(&[&[kind], &b"PRL1"[..], &bytes].concat());
            fuzz_input(&[&[kind], &bytes[..]].concat());
        }
        // Cut off or with something behind, a batch is none.
        let batch = Batch { proposer: 1, number: 2, transactions: vec![Transaction { checks: vec![(bytes, None)], writes: Vec::new() }] };
        let encoded = batch.encode();
        prop_assert_eq!(Batch::decode(&encoded[..encoded.len().saturating_sub(cut + 1)]), None);
        prop_assert_eq!(Batch::decode(&[&encoded[..], &[0]].concat()), None);
        prop_assert!(encoded.len() <= 40 + batch.transactions.iter().map(Transaction::size).sum::<usize>());
    }
}

#[test]
fn notices_and_batches_have_bounds() {
    let notice =
        |seen, calls| Notice { seen: vec![u32::MAX; seen], calls: vec![(u32::MAX, u32::MAX); calls] };
    let largest = notice(MAX_SEEN, MAX_CALLS);
    assert!(largest.encode().len() <= 300 << 10);
    assert_eq!(Notice::decode(&largest.encode()), Some(largest));
    assert_eq!(Notice::decode(&notice(MAX_SEEN + 1, 0).encode()), None);
    assert_eq!(Notice::decode(&notice(0, MAX_CALLS + 1).encode()), None);
    let batch = |n| Batch { proposer: 1, number: 1, transactions: vec![Transaction::default(); n] };
    assert!(Batch::decode(&batch(MAX_TRANSACTIONS).encode()).is_some());
    assert_eq!(Batch::decode(&batch(MAX_TRANSACTIONS + 1).encode()), None);
}
