//! Random operations, batches, lost batches and restarts against a model of a few lines.
//!
//! Checked after every step: an address and a name have one owner, an acknowledged change is there (also after a
//! restart from the committed records), a lost batch left no trace.

use super::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const NAMES: [&str; 4] = ["ann", "bob", "cid", "dee"];

#[derive(Debug, Clone)]
enum Step {
    /// Key, name, public, port, with proof or plain.
    Register(u8, Option<usize>, bool, u16, bool),
    /// Key that signs, key whose node is meant, name or none.
    SetName(u8, u8, Option<usize>),
    /// Key that signs, key whose node is meant.
    Deregister(u8, u8),
    /// Key that signs, key whose node trusts, key whose node is trusted.
    Trust(u8, u8, u8),
    /// Who ends trust with whom.
    Revoke(u8, u8),
    /// Who enters or leaves the network.
    Join(u8),
    Leave(u8),
    Wait(u16),
    Commit,
    LoseBatch,
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let key = || 1u8..6;
    let name = || proptest::option::of(0usize..NAMES.len());
    let step = prop_oneof![
        6 => (key(), name(), any::<bool>(), 1u16..4, proptest::bool::weighted(0.7))
            .prop_map(|(k, n, v, p, s)| Step::Register(k, n, v, p, s)),
        4 => (key(), key(), name()).prop_map(|(k, o, n)| Step::SetName(k, o, n)),
        2 => (key(), key()).prop_map(|(k, o)| Step::Deregister(k, o)),
        4 => (key(), key(), key()).prop_map(|(k, a, b)| Step::Trust(k, a, b)),
        2 => (key(), key()).prop_map(|(a, b)| Step::Revoke(a, b)),
        3 => key().prop_map(Step::Join),
        2 => key().prop_map(Step::Leave),
        1 => (0u16..200).prop_map(Step::Wait),
        4 => Just(Step::Commit),
        1 => Just(Step::LoseBatch),
        1 => Just(Step::Restart),
    ];
    proptest::collection::vec(step, 1..80)
}

/// What the acknowledged requests say.
#[derive(Debug, Clone, Default, PartialEq)]
struct Model {
    /// Key → node, name, port (`None` after deregistration), ever proved.
    nodes: BTreeMap<u8, (NodeId, Option<String>, Option<u16>, bool)>,
    /// Who trusts whom.
    trust: BTreeSet<(NodeId, NodeId)>,
    /// Members of network 1 beside its owner; `None`: there is no such network yet.
    members: Option<BTreeSet<NodeId>>,
}

impl Model {
    fn owner(&self, name: &str) -> Option<u8> {
        self.nodes.iter().find(|(_, node)| node.1.as_deref() == Some(name)).map(|(key, _)| *key)
    }
}

struct World {
    harness: Harness,
    /// As the engine should be.
    model: Model,
    /// As the disk is.
    durable: Model,
    disk: BTreeMap<NodeId, Record>,
    rows: BTreeMap<RowKey, Row>,
}

impl World {
    fn request(&mut self, key_number: u8, build: impl FnOnce(&[u8; 32]) -> Request) -> Outcome {
        let _ = key_number;
        let mut conn = ConnState::default();
        let nonce = self.harness.challenge(&mut conn);
        self.harness.apply_on(&mut conn, HOME, &build(&nonce))
    }

    fn register(&mut self, k: u8, name: Option<usize>, public: bool, port: u16, proved: bool) {
        let name = name.map(|n| NAMES[n]);
        let outcome = self.request(k, |nonce| {
            let mut request = plain(&key(k), port);
            request.hostname = name.map(str::to_owned);
            request.public = Some(public);
            request.proof = proved.then(|| sign(&key(k), &wire::register_proof(nonce, &request)));
            Request::Register(request)
        });
        let was_proved = self.model.nodes.get(&k).is_some_and(|node| node.3);
        if was_proved && !proved {
            assert_eq!(outcome.refused, Some(Refusal::ProofNeeded));
            return;
        }
        let Reply::Registered(done) = outcome.reply else { panic!("{outcome:?}") };
        let taken = name.and_then(|name| self.model.owner(name)).is_some_and(|owner| owner != k);
        assert_eq!(done.hostname_error.is_some(), taken);
        let node = self.model.nodes.entry(k).or_insert((done.node_id, None, None, false));
        assert_eq!(node.0, done.node_id, "a key keeps its address");
        if let Some(name) = name.filter(|_| !taken) {
            node.1 = Some(name.to_owned());
        }
        (node.2, node.3) = (Some(port), node.3 | proved);
    }

    fn set_name(&mut self, signer: u8, owner: u8, name: Option<usize>) {
        let Some((id, _, port, _)) = self.model.nodes.get(&owner).cloned() else { return };
        let name = name.map_or("", |n| NAMES[n]);
        let outcome = self.request(signer, |nonce| {
            Request::SetHostname(wire::SetHostname {
                node_id: id,
                hostname: name.into(),
                signature: None,
                proof: Some(sign(&key(signer), &wire::set_hostname_proof(nonce, id, name))),
            })
        });
        let taken = self.model.owner(name).is_some_and(|other| other != owner);
        let expected = match () {
            () if port.is_none() => Some(Refusal::NotRegistered(id)),
            () if signer != owner => Some(Refusal::BadProof),
            () if taken => Some(Refusal::NameTaken),
            () => None,
        };
        assert_eq!(outcome.refused, expected);
        if expected.is_none() {
            let name = (!name.is_empty()).then(|| name.to_owned());
            self.model.nodes.get_mut(&owner).unwrap().1 = name;
        }
    }

    fn deregister(&mut self, signer: u8, owner: u8) {
        let Some((id, _, port, proved)) = self.model.nodes.get(&owner).cloned() else { return };
        let outcome = self.request(signer, |nonce| {
            Request::Deregister(wire::Deregister {
                node_id: id,
                signature: None,
                proof: Some(sign(&key(signer), &wire::deregister_proof(nonce, id))),
            })
        });
        if port.is_none() {
            assert_eq!(outcome.refused, Some(Refusal::NotRegistered(id)));
        } else if signer != owner {
            assert_eq!(outcome.refused, Some(Refusal::BadProof));
        } else {
            assert_eq!(outcome.reply, Reply::Deregistered);
            self.model.nodes.insert(owner, (id, None, None, proved));
        }
    }

    /// Signs with a proof; whether the engine agreed.
    fn act(&mut self, signer: u8, mut request: Request) -> bool {
        let mut conn = ConnState::default();
        let nonce = self.harness.challenge(&mut conn);
        let proof = request.proof_message(&nonce).map(|message| sign(&key(signer), &message));
        match &mut request {
            Request::ReportTrust(r) | Request::RevokeTrust(r) => r.proof = proof,
            Request::JoinNetwork(r) => r.proof = proof,
            Request::LeaveNetwork(r) => r.proof = proof,
            other => panic!("{other:?}"),
        }
        let outcome = self.harness.apply_on(&mut conn, HOME, &request);
        assert!(outcome.refused.is_none() || !outcome.wrote, "{outcome:?}");
        outcome.refused.is_none()
    }

    fn present(&self, key: u8) -> Option<NodeId> {
        self.model.nodes.get(&key).filter(|node| node.2.is_some()).map(|node| node.0)
    }

    fn trust(&mut self, signer: u8, from: u8, to: u8) {
        let Some((peer_id, ..)) = self.model.nodes.get(&to).cloned() else { return };
        let Some((node_id, ..)) = self.model.nodes.get(&from).cloned() else { return };
        let pair = wire::TrustPair { node_id, peer_id, signature: None, proof: None };
        let done = self.act(signer, Request::ReportTrust(pair));
        assert_eq!(done, signer == from && from != to && self.present(from).is_some());
        if done {
            self.model.trust.insert((node_id, peer_id));
        }
    }

    fn revoke(&mut self, from: u8, to: u8) {
        let Some((peer_id, ..)) = self.model.nodes.get(&to).cloned() else { return };
        let Some(node_id) = self.present(from) else { return };
        let pair = wire::TrustPair { node_id, peer_id, signature: None, proof: None };
        let done = self.act(from, Request::RevokeTrust(pair));
        let (one, other) =
            (self.model.trust.remove(&(node_id, peer_id)), self.model.trust.remove(&(peer_id, node_id)));
        assert_eq!(done, one || other);
    }

    /// The first node to come makes the network and owns it.
    fn join(&mut self, k: u8) {
        let Some(node_id) = self.present(k) else { return };
        if self.model.members.is_none() {
            let request = format!(
                r#"{{"type":"create_network","node_id":{},"name":"lab","admin_token":"operator"}}"#,
                node_id.0
            );
            let request = Request::parse(request.as_bytes()).unwrap();
            let outcome = self.harness.apply_on(&mut ConnState::default(), HOME, &request);
            assert_eq!(outcome.refused, None);
            self.model.members = Some(BTreeSet::from([node_id]));
            return;
        }
        let request = format!(r#"{{"type":"join_network","node_id":{},"network_id":1}}"#, node_id.0);
        assert!(self.act(k, Request::parse(request.as_bytes()).unwrap()));
        self.model.members.as_mut().unwrap().insert(node_id);
    }

    fn leave(&mut self, k: u8) {
        let Some(node_id) = self.present(k) else { return };
        let request = format!(r#"{{"type":"leave_network","node_id":{},"network_id":1}}"#, node_id.0);
        let done = self.act(k, Request::parse(request.as_bytes()).unwrap());
        // The owner stays; so the set never becomes empty.
        let owner = self.harness.engine.network(1).ok().and_then(|network| {
            network.members.iter().find(|(_, role)| *role == Role::Owner).map(|(id, _)| *id)
        });
        let expected = owner != Some(node_id)
            && self.model.members.as_mut().is_some_and(|members| members.contains(&node_id));
        assert_eq!(done, expected);
        if done {
            self.model.members.as_mut().unwrap().remove(&node_id);
        }
    }

    fn commit(&mut self) {
        let staged = self.harness.engine.staged();
        self.disk.extend(staged.map(|(id, record)| (id, record.clone())));
        for (key, row) in self.harness.engine.staged_rows() {
            // As stored.
            let key = RowKey::decode(&key.encode()).unwrap();
            match row {
                Some(row) => {
                    let mut bytes = Vec::new();
                    row.encode(&mut bytes);
                    self.rows.insert(key, Row::decode(&key, &bytes).unwrap());
                }
                None => drop(self.rows.remove(&key)),
            }
        }
        self.harness.engine.commit();
        self.durable = self.model.clone();
    }

    fn restart(&mut self) {
        let config = self.harness.engine.config.clone();
        self.harness.engine = Engine::new(config, self.disk.clone(), self.harness.now).unwrap();
        self.harness.engine.load_rows(self.rows.clone());
        self.model = self.durable.clone();
    }

    fn check(&self) {
        let engine = &self.harness.engine;
        engine.table.assert_consistent();
        engine.rows.assert_consistent();
        let ids: Vec<NodeId> = self.model.nodes.values().map(|node| node.0).collect();
        for a in &ids {
            for b in ids.iter().filter(|b| *b != a) {
                assert_eq!(engine.consents(*a, *b, self.harness.now), self.model.trust.contains(&(*a, *b)));
            }
        }
        let members = engine.network(1).ok().map(|n| n.members.iter().map(|(id, _)| *id).collect());
        assert_eq!(members, self.model.members);
        assert_eq!(engine.nodes(), self.model.nodes.len());
        for (k, (id, name, port, proved)) in &self.model.nodes {
            let record = engine.record(*id).expect("known");
            assert_eq!(record.public_key, key(*k).verifying_key().to_bytes());
            assert_eq!(record.hostname.as_deref(), name.as_deref());
            assert_eq!(record.endpoint.map(|addr| addr.port()), *port);
            assert_eq!(record.proof == Proof::Fresh, *proved);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn engine_agrees_with_the_model(steps in steps()) {
        let mut world = World {
            harness: Harness::lenient(),
            model: Model::default(),
            durable: Model::default(),
            disk: BTreeMap::new(),
            rows: BTreeMap::new(),
        };
        world.harness.engine.config.admin_token = Some(Secret::new("operator"));
        for step in steps {
            match step {
                Step::Register(k, name, public, port, proved) => world.register(k, name, public, port, proved),
                Step::SetName(signer, owner, name) => world.set_name(signer, owner, name),
                Step::Deregister(signer, owner) => world.deregister(signer, owner),
                Step::Trust(signer, from, to) => world.trust(signer, from, to),
                Step::Revoke(from, to) => world.revoke(from, to),
                Step::Join(k) => world.join(k),
                Step::Leave(k) => world.leave(k),
                Step::Wait(seconds) => world.harness.now += Duration::from_secs(seconds.into()),
                Step::Commit => world.commit(),
                Step::LoseBatch => {
                    world.harness.engine.rollback();
                    world.model = world.durable.clone();
                }
                Step::Restart => world.restart(),
            }
            world.check();
        }
    }
}
