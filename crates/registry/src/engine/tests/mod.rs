//! The engine without IO: a small harness, then one file per subject.

mod model;
mod rules;
mod social;
mod unsigned;
mod vectors;

use super::*;
use ed25519_dalek::{Signer as _, SigningKey};
use pilotage_wire::registry::{self as wire, Base64, Register, Signature};
use std::cell::Cell;
use std::time::Duration;

pub(super) const HOME: [u8; 4] = [127, 0, 0, 1];

/// An engine with a virtual clock and one connection per caller.
pub(super) struct Harness {
    pub(super) engine: Engine,
    pub(super) now: Instant,
    pub(super) unix: u64,
    entropy: Cell<u64>,
}

impl Harness {
    pub(super) fn new(config: Config) -> Self {
        let now = Instant::now();
        let engine = Engine::new(config, [], now).unwrap();
        Self { engine, now, unix: 1_795_240_732, entropy: Cell::new(0) }
    }

    pub(super) fn open() -> Self {
        Self::new(Config { rates: RateLimits::UNLIMITED, ..Config::default() })
    }

    pub(super) fn strict() -> Self {
        let unsigned = Unsigned::Refused;
        Self::new(Config { rates: RateLimits::UNLIMITED, unsigned, ..Config::default() })
    }

    pub(super) fn lenient() -> Self {
        Self::new(Config {
            rates: RateLimits::UNLIMITED,
            unsigned: Unsigned::Trusted,
            allow_beacon_register: true,
            ..Config::default()
        })
    }

    pub(super) fn apply_on(
        &mut self,
        conn: &mut ConnState,
        source: impl Into<IpAddr>,
        request: &Request,
    ) -> Outcome {
        let random = || {
            self.entropy.set(self.entropy.get() + 1);
            let mut bytes = [0; 32];
            bytes[..8].copy_from_slice(&self.entropy.get().to_be_bytes());
            Some(bytes)
        };
        let context = Context { now: self.now, unix: self.unix, source: source.into(), random: &random };
        self.engine.apply(&context, conn, request)
    }

    /// A stand-alone request on a new connection, committed at once.
    pub(super) fn ask(&mut self, request: &Request) -> Result<Reply, Refusal> {
        let outcome = self.apply_on(&mut ConnState::default(), HOME, request);
        self.engine.commit();
        outcome.refused.map_or(Ok(outcome.reply), Err)
    }

    pub(super) fn challenge(&mut self, conn: &mut ConnState) -> [u8; 32] {
        match self.apply_on(conn, HOME, &Request::Challenge).reply {
            Reply::Challenge { nonce } => nonce.0,
            other => panic!("{other:?}"),
        }
    }

    /// Registers with proof from `source`.
    pub(super) fn register_from(
        &mut self,
        source: impl Into<IpAddr>,
        key: &SigningKey,
        change: impl FnOnce(&mut Register),
    ) -> Result<wire::Registered, Refusal> {
        let mut conn = ConnState::default();
        let nonce = self.challenge(&mut conn);
        let mut request = plain(key, 4001);
        change(&mut request);
        request.proof = Some(sign(key, &wire::register_proof(&nonce, &request)));
        let outcome = self.apply_on(&mut conn, source, &Request::Register(request));
        self.engine.commit();
        match (outcome.refused, outcome.reply) {
            (None, Reply::Registered(done)) => Ok(done),
            (Some(refusal), _) => Err(refusal),
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn register(&mut self, key: &SigningKey) -> NodeId {
        self.register_from(HOME, key, |_| {}).unwrap().node_id
    }

    pub(super) fn register_public(&mut self, key: &SigningKey, name: &str) -> NodeId {
        let done = self.register_from(HOME, key, |r| {
            r.hostname = Some(name.into());
            r.public = Some(true);
        });
        done.unwrap().node_id
    }

    pub(super) fn resolve(
        &mut self,
        key: &SigningKey,
        requester: NodeId,
        target: NodeId,
    ) -> Result<wire::Resolved, Refusal> {
        let signature = sign(key, wire::resolve_string(requester, target).as_bytes());
        let request = wire::Resolve { node_id: target, requester_id: requester, signature: Some(signature) };
        match self.ask(&Request::Resolve(request))? {
            Reply::Resolved(found) => Ok(found),
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn heartbeat(&mut self, key: &SigningKey, node: NodeId) -> Result<Reply, Refusal> {
        let signature = Some(sign(key, wire::heartbeat_string(node).as_bytes()));
        self.ask(&Request::Heartbeat(wire::Heartbeat { node_id: node, listen_addr: None, signature }))
    }
}

pub(super) fn key(n: u8) -> SigningKey {
    SigningKey::from_bytes(&[n; 32])
}

pub(super) fn sign(key: &SigningKey, message: &[u8]) -> Signature {
    Base64(key.sign(message).to_bytes())
}

pub(super) fn plain(key: &SigningKey, port: u16) -> Register {
    Register {
        listen_addr: format!("10.9.8.7:{port}"),
        public_key: Base64(key.verifying_key().to_bytes()),
        hostname: None,
        lan_addrs: vec![],
        public: None,
        signature: None,
        proof: None,
    }
}

/// Draft §19.3, spec/registry.md §5.5: every write needs the signature of the node that it concerns.
#[test]
fn a_write_without_the_nodes_signature_is_refused() {
    let mut harness = Harness::lenient();
    let Ok(Reply::Registered(legacy)) = harness.ask(&Request::Register(plain(&key(1), 4001))) else {
        panic!("registered")
    };
    let proved = harness.register_public(&key(2), "two");
    let before = (harness.engine.nodes(), harness.engine.names());
    for id in [legacy.node_id, proved, NodeId(4242)] {
        let foreign = |text: String| Some(sign(&key(3), text.as_bytes()));
        let strings = [wire::set_hostname_string(id), wire::set_visibility_string(id)];
        for (on_name, on_visibility, on_leaving) in [
            (None, None, None),
            (foreign(strings[0].clone()), foreign(strings[1].clone()), foreign(wire::deregister_string(id))),
            // The string of another operation.
            (foreign(strings[1].clone()), foreign(strings[0].clone()), foreign(strings[0].clone())),
        ] {
            let writes = [
                Request::SetHostname(wire::SetHostname {
                    node_id: id,
                    hostname: "mine".into(),
                    signature: on_name,
                    proof: None,
                }),
                Request::SetVisibility(wire::SetVisibility {
                    node_id: id,
                    public: true,
                    signature: on_visibility,
                    proof: None,
                }),
                Request::Deregister(wire::Deregister { node_id: id, signature: on_leaving, proof: None }),
            ];
            for write in &writes {
                let outcome = harness.apply_on(&mut ConnState::default(), HOME, write);
                assert!(outcome.refused.is_some() && !outcome.wrote, "{write:?}");
            }
        }
    }
    assert_eq!((harness.engine.nodes(), harness.engine.names()), before);
}
