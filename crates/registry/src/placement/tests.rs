use std::collections::{BTreeMap, BTreeSet};

use ed25519_dalek::SigningKey;
use proptest::prelude::*;

use super::*;

fn hash(kind: u8, number: u64) -> [u8; 32] {
    *blake3::Hasher::new().update(&[kind]).update(&number.to_be_bytes()).finalize().as_bytes()
}

fn signer(number: u64) -> SigningKey {
    SigningKey::from_bytes(&hash(0, number))
}

fn map(epoch: u64, weights: &[u16]) -> Map {
    let node = |(number, &weight): (usize, &u16)| MapNode {
        key: signer(number as u64).verifying_key().to_bytes(),
        weight,
        endpoints: vec![([192, 0, 2, number as u8 + 1], 1_014).into()],
    };
    let mut nodes: Vec<MapNode> = weights.iter().enumerate().map(node).collect();
    nodes.sort_by_key(|node| node.key);
    Map { epoch, replicas: 3, nodes, operators: Vec::new() }
}

fn signed(map: &Map, signers: impl IntoIterator<Item = u64>) -> SignedMap {
    let signatures = signers.into_iter().map(|number| map.sign(&signer(number))).collect();
    SignedMap { map: map.clone(), signatures }
}

fn keys(count: u64) -> impl Iterator<Item = [u8; 32]> {
    (0..count).map(|number| hash(1, number))
}

#[test]
fn shares_follow_the_weights() {
    let map = map(1, &[1, 1, 2, 4]);
    let mut first: BTreeMap<[u8; 32], u32> = BTreeMap::new();
    for key in keys(40_000) {
        *first.entry(map.ranked(&key)[0].key).or_default() += 1;
    }
    for node in &map.nodes {
        let share = f64::from(first[&node.key]) / 40_000.0;
        let fair = f64::from(node.weight) / 8.0;
        assert!((share - fair).abs() < 0.01, "weight {}: {share} instead of {fair}", node.weight);
    }
}

#[test]
fn a_new_node_takes_its_share_and_nothing_else_moves() {
    let (small, large) = (map(1, &[1; 8]), map(2, &[1; 9]));
    let new = signer(8).verifying_key().to_bytes();
    let (mut moved, mut total) = (0_u32, 0_u32);
    for key in keys(10_000) {
        let before: BTreeSet<_> = small.holders(&key, |_| true).iter().map(|node| node.key).collect();
        let after: BTreeSet<_> = large.holders(&key, |_| true).iter().map(|node| node.key).collect();
        let gained: Vec<_> = after.difference(&before).collect();
        assert!(gained.iter().all(|&&node| node == new), "a key moved between old nodes");
        moved += gained.len() as u32;
        total += 3;
    }
    let share = f64::from(moved) / f64::from(total);
    assert!((share - 1.0 / 9.0).abs() < 0.01, "{share} of the replicas moved");
}

/// `spec/cluster.md §7.4`: half of eight nodes die at once.
#[test]
fn half_of_eight_dead_leaves_most_keys_and_refreshes_bring_back_the_rest() {
    const KEYS: u64 = 4_000;
    const INTERVAL: u64 = 60_000;
    let map = map(1, &[1; 8]);
    let dead: BTreeSet<[u8; 32]> = map.nodes.iter().step_by(2).map(|node| node.key).collect();
    let mut stored: BTreeMap<[u8; 32], BTreeSet<[u8; 32]>> = BTreeMap::new();
    let mut agents: Vec<([u8; 32], Refresh)> = Vec::new();
    for (number, key) in keys(KEYS).enumerate() {
        for node in map.holders(&key, |_| true) {
            stored.entry(node.key).or_default().insert(key);
        }
        agents.push((key, Refresh::new(0, INTERVAL, number as u64)));
    }
    stored.retain(|node, _| !dead.contains(node));
    // Who asks goes down the key's order past those that do not answer, and no further than three live ones.
    let found = |stored: &BTreeMap<[u8; 32], BTreeSet<[u8; 32]>>| {
        let holds = |key: &[u8; 32]| {
            let asked = map.holders(key, |node| !dead.contains(node));
            asked.iter().any(|node| stored.get(&node.key).is_some_and(|held| held.contains(key)))
        };
        keys(KEYS).filter(holds).count() as f64 / KEYS as f64
    };
    let at_once = found(&stored);
    assert!(at_once >= 0.87, "{at_once} found at once");
    assert!(at_once < 1.0, "the test kills too little");
    for now in (0..=75_000).step_by(250) {
        for (key, refresh) in &mut agents {
            let Some(targets) = refresh.poll(now, &map, key) else { continue };
            let mut targets: Vec<[u8; 32]> = targets.iter().map(|node| node.key).collect();
            while let Some(node) = targets.pop() {
                if dead.contains(&node) {
                    let instead = refresh.failed(now, &map, key, &node).map(|node| node.key);
                    targets.extend(instead.filter(|instead| !targets.contains(instead)));
                } else {
                    refresh.succeeded(&node);
                    stored.entry(node).or_default().insert(*key);
                }
            }
        }
    }
    assert_eq!(found(&stored), 1.0, "all found after 75 s");
    for key in keys(KEYS) {
        let held = stored.values().filter(|held| held.contains(&key)).count();
        assert!(held >= 3, "a key has {held} replicas");
    }
}

#[test]
fn agents_that_start_together_refresh_apart() {
    let map = map(1, &[1; 3]);
    let mut slots = [0_u32; 60];
    for number in 0..6_000 {
        let mut refresh = Refresh::new(0, 60_000, number);
        slots[(refresh.due() / 1_000) as usize] += 1;
        let (key, at) = (hash(1, number), refresh.due());
        assert!(refresh.poll(at.saturating_sub(1), &map, &key).is_none() || at == 0);
        assert_eq!(refresh.poll(at, &map, &key).map(|nodes| nodes.len()), Some(3));
        assert!((54_000..=66_000).contains(&(refresh.due() - at)));
    }
    assert!(slots.iter().all(|&count| (50..200).contains(&count)), "{slots:?}");
}

#[test]
fn an_agent_remembers_a_bounded_number_of_failures() {
    let map = map(1, &[1; 4]);
    let (key, mut refresh) = (hash(1, 1), Refresh::new(0, 1_000, 1));
    for number in 0..1_000 {
        refresh.failed(0, &map, &key, &hash(7, number));
    }
    for node in &map.nodes {
        refresh.failed(0, &map, &key, &node.key);
    }
    assert_eq!(refresh.poll(1_000, &map, &key).map(|nodes| nodes.len()), Some(0), "all have failed");
    assert_eq!(refresh.poll(5_000, &map, &key).map(|nodes| nodes.len()), Some(3), "all get another chance");
}

#[test]
fn only_those_of_the_known_map_replace_it() {
    let first = map(1, &[1; 4]);
    let trusted = [signer(2).verifying_key().to_bytes()];
    assert!(MapKeeper::trust(signed(&first, [0, 1]), &trusted).is_err(), "no majority");
    assert!(MapKeeper::trust(signed(&first, [0, 1, 3]), &trusted).is_err(), "nobody we trust");
    let mut keeper = MapKeeper::trust(signed(&first, [0, 1, 2]), &trusted).expect("believed");
    let second = map(2, &[1; 6]);
    assert!(keeper.offer(signed(&second, [3, 4, 5])).is_err(), "new nodes vouch for themselves");
    assert!(keeper.offer(signed(&second, [0, 0, 0])).is_err(), "one signer thrice");
    let mut forged = signed(&second, [0, 1, 2]);
    forged.signatures[0].signature[5] ^= 1;
    assert!(keeper.offer(forged).is_err());
    assert_eq!(keeper.offer(signed(&second, [0, 1, 2])), Ok(true));
    assert_eq!(keeper.offer(signed(&second, [])), Ok(false), "the same again");
    let stale = keeper.offer(signed(&map(1, &[1; 4]), [0, 1, 2, 3]));
    assert_eq!(stale, Err(MapError::Stale { known: 2, offered: 1 }));
    assert!(
        keeper.offer(signed(&map(2, &[1; 5]), [0, 1, 2, 3, 4, 5])).is_err(),
        "another one of the same epoch"
    );
}

#[test]
fn an_operator_replaces_the_map_alone() {
    let mut first = map(1, &[1; 4]);
    first.operators = vec![signer(9).verifying_key().to_bytes()];
    let trusted = [signer(0).verifying_key().to_bytes()];
    let mut keeper = MapKeeper::trust(signed(&first, [0, 1, 2]), &trusted).expect("believed");
    let second = map(2, &[1; 2]);
    assert!(keeper.offer(signed(&second, [8])).is_err());
    assert_eq!(keeper.offer(signed(&second, [9])), Ok(true));
}

#[test]
fn old_holders_are_asked_while_a_map_is_young() {
    let trusted = [signer(0).verifying_key().to_bytes()];
    let mut keeper = MapKeeper::trust(signed(&map(1, &[1; 5]), [0, 1, 2]), &trusted).expect("believed");
    let before = keeper.current().clone();
    keeper.offer(signed(&map(2, &[1; 20]), [0, 1, 2])).expect("believed");
    for key in keys(200) {
        let sources: Vec<_> = keeper.sources(&key).iter().map(|node| node.key).collect();
        for node in before.holders(&key, |_| true) {
            let at = sources.iter().position(|source| *source == node.key);
            assert!(at.is_some_and(|at| at < 6), "an old holder is asked among the first six");
        }
        assert_eq!(sources.iter().collect::<BTreeSet<_>>().len(), 20, "each once");
    }
}

#[test]
fn a_map_has_one_form() {
    let good = signed(&map(7, &[1, 2, 3]), [0, 1]);
    let bytes = good.encode();
    assert_eq!(SignedMap::decode(&bytes), Ok(good.clone()));
    for at in 0..bytes.len() {
        assert!(SignedMap::decode(&bytes[..at]).is_err(), "cut at {at}");
    }
    let mut twice = good;
    let again = twice.map.nodes[0].clone();
    twice.map.nodes.insert(0, again);
    assert!(matches!(SignedMap::decode(&twice.encode()), Err(MapError::Content(_))));
    assert!(SignedMap::decode(&[1; 70_000]).is_err());
}

proptest! {
    #[test]
    fn no_bytes_break_the_parser(mut bytes: Vec<u8>, flip: u16) {
        let _ = SignedMap::decode(&bytes);
        bytes.insert(0, 1);
        let _ = SignedMap::decode(&bytes);
        let mut near = signed(&map(7, &[1, 2, 3]), [0]).encode();
        let at = usize::from(flip) % near.len();
        near[at] ^= 1 << (flip % 8);
        if let Ok(map) = SignedMap::decode(&near) {
            prop_assert_eq!(map.encode(), near);
        }
    }

    /// The order of the others never depends on a node that is not there.
    #[test]
    fn without_a_node_the_others_keep_their_order(
        weights in proptest::collection::vec(1_u16..=1_000, 2..20),
        number: u64,
        gone: proptest::sample::Index,
    ) {
        let all = map(1, &weights);
        let mut fewer = all.clone();
        let gone = fewer.nodes.remove(gone.index(weights.len())).key;
        let key = hash(2, number);
        let left: Vec<_> = all.ranked(&key).into_iter().filter(|node| node.key != gone).collect();
        prop_assert_eq!(left, fewer.ranked(&key));
    }

    /// More weight never loses a key.
    #[test]
    fn more_weight_only_gains(number: u64, weight in 1_u16..999) {
        let (light, heavy) = (map(1, &[weight, 50, 50]), map(1, &[weight + 1, 50, 50]));
        let node = signer(0).verifying_key().to_bytes();
        let key = hash(3, number);
        let place = |map: &Map| map.ranked(&key).iter().position(|other| other.key == node);
        prop_assert!(place(&heavy) <= place(&light));
    }
}
