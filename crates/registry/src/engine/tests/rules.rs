//! One test per rule of spec/registry.md.

use super::*;
use std::collections::HashSet;

fn other() -> IpAddr {
    IpAddr::from([198, 51, 100, 7])
}

/// §5.6, §5.7
#[test]
fn the_address_is_derived_from_the_key_and_the_host_is_the_source() {
    let mut harness = Harness::open();
    let done = harness
        .register_from(other(), &key(1), |r| {
            r.lan_addrs = vec!["192.168.0.1:4001".into(), "nonsense".into(), "1.2.3.4:0".into()];
            r.public = Some(true);
        })
        .unwrap();
    let public = key(1).verifying_key().to_bytes();
    let expected = pilotage_wire::addressing::node_ids(&public).next().unwrap().1;
    assert_eq!(done.node_id, expected);
    assert_eq!(done.observed_addr, "198.51.100.7:4001");
    let found = harness.resolve(&key(1), expected, expected).unwrap();
    assert_eq!(found.real_addr, "198.51.100.7:4001");
    assert_eq!(found.lan_addrs, ["192.168.0.1:4001"]);
    for bad in ["", "4001", "host:", "host:0", "host:65536", "host:x"] {
        let refused = harness.register_from(HOME, &key(2), |r| r.listen_addr = bad.into());
        assert_eq!(refused, Err(Refusal::BadListenAddr), "{bad:?}");
    }
}

/// §5.7: when the first id is taken, the next salt is used, and the same key gets the same id again.
#[test]
fn a_collision_takes_the_next_salt() {
    let mut harness = Harness::open();
    let public = key(1).verifying_key().to_bytes();
    let ids: Vec<_> = pilotage_wire::addressing::node_ids(&public).take(2).collect();
    // A foreign key sits on the first id. (Finding such a key takes 2³² tries, so the record is put there.)
    let squatter = Record {
        public_key: key(9).verifying_key().to_bytes(),
        salt: 0,
        proof: Proof::Fresh,
        public: false,
        hostname: None,
        endpoint: Some(([127, 0, 0, 1], 1).into()),
        lan_addrs: vec![],
        created: 0,
        profile: Profile::default(),
    };
    harness.engine.table.load(ids[0].1, squatter, harness.now).unwrap();
    assert_eq!(harness.register(&key(1)), ids[1].1);
    assert_eq!(harness.engine.record(ids[1].1).unwrap().salt, ids[1].0);
    assert_eq!(harness.register(&key(1)), ids[1].1);
}

/// §4.2: a proof is good on its connection, once, in time, for its arguments.
#[test]
fn a_proof_cannot_be_replayed_moved_or_altered() {
    let mut harness = Harness::open();
    let mut conn = ConnState::default();
    let nonce = harness.challenge(&mut conn);
    let mut request = plain(&key(1), 4001);
    request.hostname = Some("alice".into());
    request.lan_addrs = vec!["10.0.0.1:1".into()];
    request.proof = Some(sign(&key(1), &wire::register_proof(&nonce, &request)));
    let good = Request::Register(request.clone());

    // Another connection, with and without a challenge of its own.
    let mut stranger = ConnState::default();
    let no_challenge = Some(Refusal::NoChallenge(60));
    assert_eq!(harness.apply_on(&mut stranger, HOME, &good).refused, no_challenge);
    harness.challenge(&mut stranger);
    assert_eq!(harness.apply_on(&mut stranger, HOME, &good).refused, Some(Refusal::BadProof));
    // Each argument altered. The attempt spends the challenge, so each gets the same connection state again.
    let alterations: [fn(&mut Register); 6] = [
        |r| r.listen_addr = "10.9.8.7:4002".into(),
        |r| r.public_key = Base64(key(2).verifying_key().to_bytes()),
        |r| r.hostname = Some("mallory".into()),
        |r| r.hostname = None,
        |r| r.public = Some(true),
        |r| r.lan_addrs = vec![],
    ];
    for alter in alterations {
        let (mut state, mut request) = (conn.clone(), request.clone());
        alter(&mut request);
        let outcome = harness.apply_on(&mut state, HOME, &Request::Register(request));
        assert_eq!(outcome.refused, Some(Refusal::BadProof));
        assert_eq!(harness.apply_on(&mut state, HOME, &good).refused, no_challenge, "spent");
    }
    // Too late.
    let mut late = conn.clone();
    harness.now += Duration::from_secs(60);
    assert_eq!(harness.apply_on(&mut late, HOME, &good).refused, no_challenge);
    harness.now -= Duration::from_secs(60);
    // In time; then never again.
    assert_eq!(harness.apply_on(&mut conn, HOME, &good).refused, None);
    assert_eq!(harness.apply_on(&mut conn, HOME, &good).refused, no_challenge);
    // A newer challenge replaces the older one.
    harness.challenge(&mut conn);
    harness.challenge(&mut conn);
    assert_eq!(harness.apply_on(&mut conn, HOME, &good).refused, Some(Refusal::BadProof));
}

/// §5.3 (reference defects A1, A9, A10).
#[test]
fn a_proved_key_never_moves_without_a_fresh_proof() {
    let mut harness = Harness::lenient();
    harness.register(&key(1));
    let mut request = plain(&key(1), 6666);
    let register = |h: &mut Harness, r: &Register| h.ask(&Request::Register(r.clone()));
    assert_eq!(register(&mut harness, &request), Err(Refusal::ProofNeeded));
    let text = wire::register_string(&request.listen_addr, &request.public_key);
    request.signature = Some(sign(&key(1), text.as_bytes()));
    assert_eq!(register(&mut harness, &request), Err(Refusal::ProofNeeded));
    // Not even after years of silence.
    harness.now += Duration::from_secs(1_000_000);
    assert_eq!(register(&mut harness, &request), Err(Refusal::ProofNeeded));
    // From elsewhere with a proof: of course.
    let done = harness.register_from(other(), &key(1), |_| {}).unwrap();
    assert_eq!(done.observed_addr, "198.51.100.7:4001");
}

/// §5.3: the levels below, where everybody is trusted.
#[test]
fn unsigned_registration_is_a_switch_and_protects_those_on_line() {
    let request = Request::Register(plain(&key(1), 4001));
    assert_eq!(Harness::strict().ask(&request), Err(Refusal::UnsignedDisabled));

    let mut harness = Harness::lenient();
    let mut conn = ConnState::default();
    harness.ask(&request).unwrap();
    // Same host, other port: a restart.
    harness.ask(&Request::Register(plain(&key(1), 4002))).unwrap();
    // Another host while the node is on line: refused. After three minutes of silence: allowed.
    let elsewhere = Refusal::OnlineElsewhere(180);
    assert_eq!(harness.apply_on(&mut conn, other(), &request).refused, Some(elsewhere));
    harness.now += Duration::from_secs(180);
    assert_eq!(harness.apply_on(&mut conn, other(), &request).refused, None);
    harness.engine.commit();
    // One step up: from now on the signature is needed.
    let mut signed = plain(&key(1), 4001);
    signed.signature = Some(Base64([1; 64]));
    let bad = harness.ask(&Request::Register(signed.clone()));
    assert_eq!(bad, Err(Refusal::BadRegisterSignature));
    let text = wire::register_string(&signed.listen_addr, &signed.public_key);
    signed.signature = Some(sign(&key(1), text.as_bytes()));
    harness.ask(&Request::Register(signed)).unwrap();
    assert_eq!(harness.ask(&request), Err(Refusal::ProofNeeded));
    // The last step.
    harness.register(&key(1));
    assert_eq!(harness.engine.nodes(), 1);
}

#[test]
fn weak_and_malformed_keys_are_refused() {
    let mut harness = Harness::lenient();
    let mut identity = [0; 32];
    identity[0] = 1;
    for bad in [[0; 32], identity, [0xFF; 32]] {
        let mut request = plain(&key(1), 1);
        request.public_key = Base64(bad);
        assert_eq!(harness.ask(&Request::Register(request)), Err(Refusal::BadKey), "{bad:?}");
    }
}

/// §6
#[test]
fn a_name_has_one_owner() {
    let mut harness = Harness::open();
    let alice = harness.register_public(&key(1), "alice");
    let done = harness.register_from(HOME, &key(2), |r| r.hostname = Some("alice".into())).unwrap();
    assert_eq!(done.hostname, None);
    assert!(done.hostname_error.unwrap().contains("taken"));
    let find = |h: &mut Harness, name: &str| {
        h.ask(&Request::ResolveHostname(wire::ResolveHostname { hostname: name.into(), requester_id: None }))
    };
    // Offline for a year, the name is still hers.
    harness.now += Duration::from_secs(31_536_000);
    let done = harness.register_from(HOME, &key(2), |r| r.hostname = Some("alice".into())).unwrap();
    assert!(done.hostname_error.is_some());
    let Ok(Reply::Hostname(info)) = find(&mut harness, "alice") else { panic!("known") };
    assert_eq!(info.node_id, alice);
    // A new name frees the old one.
    assert_eq!(harness.register_public(&key(1), "alicia"), alice);
    assert_eq!(find(&mut harness, "alice"), Err(Refusal::NameNotVisible));
    let bob = harness.register_public(&key(2), "alice");
    let Ok(Reply::Hostname(info)) = find(&mut harness, "alice") else { panic!("known") };
    assert_eq!(info.node_id, bob);
    // Registering without a name keeps it.
    let done = harness.register_from(HOME, &key(2), |_| {}).unwrap();
    assert_eq!(done.hostname.as_deref(), Some("alice"));
}

fn set_name(harness: &mut Harness, key: &SigningKey, node: NodeId, name: &str) -> Result<Reply, Refusal> {
    let mut conn = ConnState::default();
    let nonce = harness.challenge(&mut conn);
    let request = Request::SetHostname(wire::SetHostname {
        node_id: node,
        hostname: name.into(),
        signature: None,
        proof: Some(sign(key, &wire::set_hostname_proof(&nonce, node, name))),
    });
    let outcome = harness.apply_on(&mut conn, HOME, &request);
    harness.engine.commit();
    outcome.refused.map_or(Ok(outcome.reply), Err)
}

/// §5.5: for a proved key the replayable strings of the reference are worth nothing.
#[test]
fn changes_of_a_proved_node_need_a_fresh_proof() {
    let mut harness = Harness::open();
    let id = harness.register_public(&key(1), "one");
    let signature = |text: String| Some(sign(&key(1), text.as_bytes()));
    let replayable = [
        Request::SetHostname(wire::SetHostname {
            node_id: id,
            hostname: "two".into(),
            signature: signature(wire::set_hostname_string(id)),
            proof: None,
        }),
        Request::SetVisibility(wire::SetVisibility {
            node_id: id,
            public: false,
            signature: signature(wire::set_visibility_string(id)),
            proof: None,
        }),
        Request::Deregister(wire::Deregister {
            node_id: id,
            signature: signature(wire::deregister_string(id)),
            proof: None,
        }),
    ];
    for request in &replayable {
        assert_eq!(harness.ask(request), Err(Refusal::ProofNeeded));
    }
    assert!(set_name(&mut harness, &key(1), id, "two").is_ok());
    assert_eq!(set_name(&mut harness, &key(2), id, "three"), Err(Refusal::BadProof));
    assert_eq!(set_name(&mut harness, &key(1), NodeId(77), "x"), Err(Refusal::NotRegistered(NodeId(77))));
    assert!(matches!(set_name(&mut harness, &key(1), id, "-"), Err(Refusal::Hostname(_))));
    assert!(set_name(&mut harness, &key(1), id, "").is_ok());
    assert_eq!(harness.engine.names(), 0);
}

/// §7.3: for a stranger, a private node, an unknown id and one that left are the same.
#[test]
fn private_nodes_are_found_by_nobody_else() {
    let mut harness = Harness::open();
    let me = harness.register(&key(1));
    let private = harness.register_from(HOME, &key(2), |r| r.hostname = Some("hidden".into()));
    let private = private.unwrap().node_id;
    assert!(harness.resolve(&key(2), private, private).is_ok());
    assert_eq!(harness.resolve(&key(1), me, private), Err(Refusal::NotVisible(private)));
    assert_eq!(harness.resolve(&key(1), me, NodeId(4242)), Err(Refusal::NotVisible(NodeId(4242))));
    let find = |h: &mut Harness, name: &str, requester_id| {
        let hostname = name.to_owned();
        h.ask(&Request::ResolveHostname(wire::ResolveHostname { hostname, requester_id }))
    };
    let unknown = find(&mut harness, "nobody", Some(me));
    assert_eq!(find(&mut harness, "hidden", Some(me)), unknown);
    assert_eq!(find(&mut harness, "hidden", None), unknown);
    assert!(find(&mut harness, "hidden", Some(private)).is_ok());
    // lookup tells the key, which the tunnel needs, and never where the node is.
    let info = harness.ask(&Request::Lookup(wire::Lookup { node_id: private }));
    let Ok(Reply::Lookup(info)) = info else { panic!("{info:?}") };
    assert_eq!(info.real_addr, None);
    assert_eq!(info.public_key, Some(Base64(key(2).verifying_key().to_bytes())));
    // Who asks must be who signs.
    assert_eq!(harness.resolve(&key(2), me, me), Err(Refusal::Signature(me)));
    assert_eq!(harness.resolve(&key(1), NodeId(99), me), Err(Refusal::Signature(NodeId(99))));
}

/// §7.1
#[test]
fn presence_ends_after_three_minutes_and_the_identity_stays() {
    let mut harness = Harness::open();
    let id = harness.register_public(&key(1), "one");
    let me = harness.register(&key(2));
    harness.now += Duration::from_secs(179);
    assert!(harness.heartbeat(&key(2), me).is_ok());
    assert!(harness.resolve(&key(2), me, id).is_ok());
    harness.now += Duration::from_secs(1);
    assert_eq!(harness.resolve(&key(2), me, id), Err(Refusal::Offline(id, 180)));
    let lookup = harness.ask(&Request::Lookup(wire::Lookup { node_id: id }));
    let Ok(Reply::Lookup(info)) = lookup else { panic!("{lookup:?}") };
    assert_eq!((info.real_addr, info.hostname.as_deref()), (None, Some("one")));
    assert_eq!(harness.heartbeat(&key(2), id), Err(Refusal::Signature(id)));
    assert!(harness.heartbeat(&key(1), id).is_ok());
    assert!(harness.resolve(&key(2), me, id).is_ok());
    assert_eq!(harness.heartbeat(&key(1), NodeId(77)), Err(Refusal::NotRegistered(NodeId(77))));
}

/// §7.1: an address in a heartbeat.
#[test]
fn a_replayed_heartbeat_moves_nobody() {
    let mut harness = Harness::lenient();
    let proved = harness.register_from(HOME, &key(1), |_| {}).unwrap().node_id;
    let Ok(Reply::Registered(legacy)) = harness.ask(&Request::Register(plain(&key(2), 4001))) else {
        panic!("registered")
    };
    let beat = |k: u8, node: NodeId, addr: &str| {
        Request::Heartbeat(wire::Heartbeat {
            node_id: node,
            listen_addr: Some(addr.into()),
            signature: Some(sign(&key(k), wire::heartbeat_addr_string(node, addr).as_bytes())),
        })
    };
    let at = |h: &Harness, id| h.engine.record(id).unwrap().endpoint.unwrap().to_string();
    harness.ask(&beat(1, proved, "x:5000")).unwrap();
    assert_eq!(at(&harness, proved), "127.0.0.1:4001");
    harness.ask(&beat(2, legacy.node_id, "x:5000")).unwrap();
    assert_eq!(at(&harness, legacy.node_id), "127.0.0.1:5000");
    let outcome = harness.apply_on(&mut ConnState::default(), other(), &beat(2, legacy.node_id, "x:6000"));
    assert_eq!(outcome.refused, None);
    assert_eq!(at(&harness, legacy.node_id), "127.0.0.1:5000");
}

/// §7.6
#[test]
fn who_leaves_keeps_the_address() {
    let mut harness = Harness::open();
    let id = harness.register_public(&key(1), "one");
    let me = harness.register(&key(2));
    let mut conn = ConnState::default();
    let nonce = harness.challenge(&mut conn);
    let request = Request::Deregister(wire::Deregister {
        node_id: id,
        signature: None,
        proof: Some(sign(&key(1), &wire::deregister_proof(&nonce, id))),
    });
    assert_eq!(harness.apply_on(&mut conn, HOME, &request).reply, Reply::Deregistered);
    harness.engine.commit();
    assert_eq!(harness.resolve(&key(2), me, id), Err(Refusal::NotVisible(id)));
    assert_eq!(harness.heartbeat(&key(1), id), Err(Refusal::NotRegistered(id)));
    assert!(harness.ask(&Request::Lookup(wire::Lookup { node_id: id })).is_err());
    // The name is free, the address is not.
    assert_eq!(
        harness.register_from(HOME, &key(2), |r| r.hostname = Some("one".into())).unwrap().hostname_error,
        None
    );
    assert_eq!(harness.register(&key(1)), id);
}

/// §9.2
#[test]
fn the_node_table_is_bounded() {
    let config = Config { max_nodes: 3, rates: RateLimits::UNLIMITED, ..Config::default() };
    let mut harness = Harness::new(config);
    let ids: HashSet<NodeId> = (1..=3).map(|n| harness.register(&key(n))).collect();
    assert_eq!(ids.len(), 3);
    assert_eq!(harness.register_from(HOME, &key(4), |_| {}), Err(Refusal::Full(3)));
    // Those inside are not affected.
    assert!(ids.contains(&harness.register(&key(1))));
}

/// §9.1: the limit for new keys does not hold for known ones.
#[test]
fn known_keys_are_exempt_from_the_registration_limit() {
    let rates = RateLimits { register: 2, ..RateLimits::UNLIMITED };
    let mut harness = Harness::new(Config { rates, ..Config::default() });
    harness.register(&key(1));
    harness.register(&key(2));
    let refused = harness.register_from(HOME, &key(3), |_| {});
    assert!(matches!(refused, Err(Refusal::RateLimited { .. })), "{refused:?}");
    for _ in 0..20 {
        harness.register(&key(1));
    }
    assert!(harness.register_from(other(), &key(3), |_| {}).is_ok());
}

/// §7.7
#[test]
fn beacons_are_listed_by_the_operator_or_expire() {
    let own = Beacon { id: 1, addr: "192.0.2.1:9001".into() };
    let announce = |id: u32, addr: &str| {
        Request::BeaconRegister(wire::BeaconRegister { beacon_id: id, addr: addr.into() })
    };
    let list = |h: &mut Harness| match h.ask(&Request::BeaconList) {
        Ok(Reply::BeaconList { beacons }) => beacons,
        other => panic!("{other:?}"),
    };
    let mut closed = Harness::new(Config { beacons: vec![own.clone()], ..Config::default() });
    assert!(closed.ask(&announce(2, "a:1")).is_err());
    assert_eq!(list(&mut closed), [own]);

    let mut open = Harness::lenient();
    for id in 0..64 {
        open.ask(&announce(id, "a:1")).unwrap();
    }
    assert!(open.ask(&announce(64, "a:1")).is_err(), "table bound");
    open.ask(&announce(63, "b:2")).unwrap();
    for bad in ["", "a", "a:0", "a:b", &format!("{}:1", "a".repeat(300))] {
        assert!(open.ask(&announce(1, bad)).is_err(), "{bad}");
    }
    assert_eq!(list(&mut open).len(), 64);
    open.now += Duration::from_secs(60);
    assert!(list(&mut open).is_empty());
}

/// §8.3
#[test]
fn read_only_refuses_changes_and_serves_the_rest() {
    let mut harness = Harness::open();
    let id = harness.register_public(&key(1), "one");
    let reason = "hub's disk is full: nothing was stored; free space in /hub";
    harness.engine.set_read_only(Some(reason.into()));
    let refused = harness.register_from(HOME, &key(2), |_| {});
    assert_eq!(refused, Err(Refusal::ReadOnly(reason.into())));
    assert_eq!(refused.unwrap_err().to_string(), reason);
    assert!(set_name(&mut harness, &key(1), id, "two").is_err());
    assert!(harness.heartbeat(&key(1), id).is_ok());
    assert!(harness.resolve(&key(1), id, id).is_ok());
    // A node that comes back unchanged needs no disk.
    let again = harness.register_from(HOME, &key(1), |r| {
        r.hostname = Some("one".into());
        r.public = Some(true);
    });
    assert_eq!(again.unwrap().node_id, id);
    harness.engine.set_read_only(None);
    harness.register(&key(2));
}

#[test]
fn no_random_numbers_is_an_error_with_a_code() {
    let mut harness = Harness::open();
    let context = Context { now: harness.now, unix: 0, source: HOME.into(), random: &|| None };
    let outcome = harness.engine.apply(&context, &mut ConnState::default(), &Request::Challenge);
    assert!(matches!(outcome.reply, Reply::Error { code: Some(code), .. } if code == CODE_RETRY));
}

/// Records that contradict each other are refused at start.
#[test]
fn contradicting_records_are_refused() {
    let mut harness = Harness::open();
    let a = harness.register_public(&key(1), "one");
    let b = harness.register_public(&key(2), "two");
    let record = |id| harness.engine.record(id).unwrap().clone();
    let start = |records: Vec<(NodeId, Record)>| {
        Engine::new(Config::default(), records, Instant::now()).map(|engine| engine.nodes())
    };
    assert_eq!(start(vec![(a, record(a)), (b, record(b))]), Ok(2));
    assert_eq!(start(vec![(a, record(a)), (b, record(a))]), Err(RecordError::DuplicateKey(a, b)));
    let mut thief = record(b);
    thief.hostname = Some("one".into());
    assert_eq!(start(vec![(a, record(a)), (b, thief)]), Err(RecordError::DuplicateName(a, b)));
}
