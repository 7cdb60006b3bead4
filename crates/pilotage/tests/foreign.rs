//! Our node in the reference's network: a registry that assigns ids, knows no proofs and hides private nodes.

mod common;
#[path = "common/foreign.rs"]
mod foreign;

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{SECOND, builder, identity, within};
use foreign::Foreign;
use pilotage::{Address, HubError, NodeBuilder, NodeEvent, NodeId, Peer, Visibility};
use serde_json::{Value, json};

fn node(registry: &Foreign, seed: u8) -> NodeBuilder {
    builder().identity(identity(seed)).registry(registry.addr.to_string())
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + 20 * SECOND;
    while !done() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The requests of the vectors, in order, get replies with the same fields and mostly the same values.
#[test]
fn the_fake_answers_as_the_recorded_registry_did() {
    let text = std::fs::read_to_string("../../spec/vectors/registry.json").expect("vectors");
    let vectors: Value = serde_json::from_str(&text).expect("JSON");
    let mut world = foreign::World::default();
    let known = [
        "register",
        "heartbeat",
        "lookup",
        "resolve",
        "resolve_hostname",
        "request_handshake",
        "poll_handshakes",
        "respond_handshake",
        "check_trust",
        "report_trust",
        "revoke_trust",
        "set_visibility",
    ];
    let mut compared = 0;
    for case in vectors["cases"].as_array().expect("cases") {
        let request: Value =
            serde_json::from_str(case["request_json"].as_str().expect("text")).expect("JSON");
        let kind = request["type"].as_str().expect("type");
        if case["name"] == "set_visibility" {
            break; // what follows depends on types that the fake does not know
        }
        let hostname_refused = case["name"].as_str().is_some_and(|name| name.contains("bad hostname"));
        if !known.contains(&kind) || hostname_refused {
            continue;
        }
        let expected: Value =
            serde_json::from_str(case["response_json"].as_str().expect("text")).expect("JSON");
        let Ok(mut reply) = world.answer(&request, "127.0.0.1") else {
            assert_eq!(expected["type"], "error", "{}", case["name"]);
            continue;
        };
        let mut expected = expected;
        for list in ["requests", "responses"] {
            for value in [&mut reply, &mut expected] {
                for entry in value.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
                    entry["timestamp"] = 0.into();
                }
            }
        }
        for value in [&mut reply, &mut expected] {
            if value.get("time").is_some() {
                value["time"] = 0.into();
            }
        }
        assert_eq!(reply, expected, "{}", case["name"]);
        compared += 1;
    }
    assert!(compared >= 15, "{compared}");
}

#[test]
fn the_assigned_address_and_the_owner_are_kept_over_restarts() {
    within(60 * SECOND, || {
        let registry = Foreign::start();
        let dir = tempfile::tempdir().expect("directory");
        let start = || builder().registry(registry.addr.to_string()).state_dir(dir.path());
        let other = node(&registry, 9).start().expect("the first one");
        assert_eq!(other.address(), Address::new(0, 1));
        let node = start().owner("a@example.test").name("ann").keepalive(SECOND).start().expect("starts");
        let key = node.public_key();
        assert_eq!(node.address(), Address::new(0, 2));
        assert_eq!(node.name().as_deref(), Some("ann"));
        let status = node.hub_status().expect("a hub");
        assert!(status.registered && status.foreign && status.public);
        wait_until("a heartbeat", || registry.calls("heartbeat") >= 1);
        node.close();
        drop(node);
        // The registry is away: the node still knows what it is called there.
        let away = registry.addr;
        let entry = registry.world().nodes[&2].clone();
        assert_eq!(entry.owner.as_deref(), Some("a@example.test"));
        registry.world().refused.insert("register".into());
        let node = start().hub_required(false).start().expect("starts");
        assert_eq!((node.address(), node.public_key()), (Address::new(0, 2), key));
        assert!(!node.hub_status().expect("a hub").registered);
        registry.world().refused.clear();
        wait_until("registered at last", || node.hub_status().expect("a hub").registered);
        assert_eq!(registry.world().nodes[&2].owner.as_deref(), Some("a@example.test"), "remembered");
        drop(node);
        // Another registry knows nothing of that address.
        let elsewhere = Foreign::start();
        assert_ne!(elsewhere.addr, away);
        let node =
            builder().registry(elsewhere.addr.to_string()).state_dir(dir.path()).start().expect("starts");
        assert_eq!((node.address(), node.public_key()), (Address::new(0, 1), key));
    });
}

#[test]
fn visibility_is_what_is_usual_there_unless_it_was_said() {
    within(60 * SECOND, || {
        let registry = Foreign::start();
        let usual = node(&registry, 1).visibility(Visibility::Usual).start().expect("starts");
        let public = node(&registry, 2).public(true).start().expect("starts");
        let status = |node: &pilotage::Node| node.hub_status().expect("a hub").public;
        assert!(!status(&usual) && status(&public));
        assert!(!registry.world().nodes[&1].public && registry.world().nodes[&2].public);
        assert_eq!(
            registry.calls("set_visibility"),
            2,
            "said either way: the registry keeps what was said before"
        );
        // An id that derives from nothing is believed for the key that the registry names.
        let listener = public.listen(7).expect("listen");
        let mut near = usual.connect(Peer::Address(Address::new(0, 2)), 7).expect("connect");
        let mut far = listener.accept_timeout(5 * SECOND).expect("accept").expect("a stream");
        assert_eq!(far.peer().address, Address::new(0, 1));
        near.write_all(b"hi").expect("write");
        let mut got = [0; 2];
        far.read_exact(&mut got).expect("read");
        // Nobody else is believed under it.
        registry.world().nodes.get_mut(&2).expect("entry").key = "AAAA".into();
        let third = node(&registry, 3).start().expect("starts");
        let failure = third.connect(Peer::Address(Address::new(0, 2)), 7).expect_err("no key to believe");
        assert!(!failure.to_string().is_empty());
    });
}

#[test]
fn a_forgotten_node_registers_again() {
    within(60 * SECOND, || {
        let registry = Foreign::start();
        let node = node(&registry, 1).name("ann").keepalive(SECOND).start().expect("starts");
        let events = node.events();
        registry.world().nodes.get_mut(&1).expect("entry").gone = true;
        wait_until("registered again", || !registry.world().nodes[&1].gone);
        assert!(registry.world().nodes[&1].public, "said again");
        let mut names = Vec::new();
        while let Some(event) = events.recv_timeout(SECOND) {
            names.push(event);
            if matches!(names.last(), Some(NodeEvent::Registered { .. })) {
                break;
            }
        }
        assert!(names.iter().any(|event| matches!(event, NodeEvent::HubLost { .. })), "{names:?}");
        assert!(registry.calls("register") == 2, "{:?}", registry.world().calls);
    });
}

#[test]
fn a_registry_that_lost_its_memory_may_call_us_something_else() {
    within(60 * SECOND, || {
        let registry = Foreign::start();
        let (a, b) = (node(&registry, 1), node(&registry, 2));
        let a = a.keepalive(SECOND).start().expect("starts");
        let b = b.keepalive(SECOND).start().expect("starts");
        let listener = b.listen(7).expect("listen");
        let mut stream = a.connect(b.address(), 7).expect("connect");
        let events = a.events();
        registry.world().nodes.clear();
        registry.world().next = Some(20);
        // Whoever comes first is 20, the other one 2.
        wait_until("both are back", || registry.world().nodes.len() == 2);
        wait_until("a is somebody else", || a.address() != Address::new(0, 1));
        wait_until("old streams end", || stream.write_all(b"x").is_err());
        let told = std::iter::from_fn(|| events.try_recv());
        assert!(told.into_iter().any(|event| matches!(event, NodeEvent::AddressChanged { .. })));
        wait_until("a finds b under its new address", || a.connect(b.address(), 7).is_ok());
        drop(listener);
    });
}

#[test]
fn any_request_can_be_made_with_our_signature() {
    within(60 * SECOND, || {
        let registry = Foreign::start();
        let node = node(&registry, 1).start().expect("starts");
        let reply = node.registry_call(json!({ "type": "lookup", "node_id": 1 }), None).expect("known");
        assert_eq!(reply["public_key"].as_str().map(str::len), Some(44));
        let report = json!({ "type": "report_trust", "node_id": 1, "peer_id": 5 });
        assert!(
            matches!(node.registry_call(report.clone(), None), Err(HubError::Refused { .. })),
            "unsigned"
        );
        let done = node.registry_call(report, Some("report_trust:1:5")).expect("signed");
        assert_eq!(done["type"], "report_trust_ok");
        let alone = builder().start().expect("starts");
        assert_eq!(alone.registry_call(json!({}), None), Err(HubError::NotConfigured));
    });
}

#[test]
fn the_gate_lets_in_whom_the_closure_names_and_keeps_silent_towards_others() {
    within(60 * SECOND, || {
        let (friend, stranger, server) = (common::node(), common::node(), common::node());
        let listener = server.listen(7).expect("listen");
        let (allowed, asked) = (friend.address().node, Arc::new(AtomicUsize::new(0)));
        let (gate_asked, seen) = (asked.clone(), server.address());
        server.set_gate(Arc::new(move |node: NodeId| {
            assert_ne!(node, seen.node);
            gate_asked.fetch_add(1, Ordering::SeqCst);
            node == allowed
        }));
        let begun = Instant::now();
        friend.connect(common::at(&server), 7).expect("a friend");
        assert!(begun.elapsed() < SECOND, "its first SYN counts");
        assert!(listener.accept_timeout(SECOND).expect("accept").is_some());
        let impatient = pilotage::ProtoConfig { connect_timeout: 2 * SECOND, ..Default::default() };
        let stranger_ = builder().config(impatient).start().expect("starts");
        let failure = stranger_.connect(common::at(&server), 7).expect_err("a stranger");
        assert_eq!(failure.kind(), std::io::ErrorKind::TimedOut, "silence, not refusal: {failure}");
        assert!(server.stats().endpoint.drop_not_admitted >= 1);
        stranger.ping(common::at(&server), 5 * SECOND).expect("echo requests are open to all");
        friend.connect(common::at(&server), 7).expect("still");
        server.dismiss(allowed);
        server.open_gate();
        stranger.connect(common::at(&server), 7).expect("open to all");
        assert!(asked.load(Ordering::SeqCst) >= 2);
        let weak = Arc::downgrade(&asked);
        drop(asked);
        server.close();
        wait_until("the gate's thread ends with the node", || weak.upgrade().is_none());
    });
}

#[test]
fn what_the_registry_may_be_asked_is_not_used_up_by_refusals() {
    within(60 * SECOND, || {
        let registry = Foreign::start();
        let private = node(&registry, 1).public(false).start().expect("starts");
        let caller = node(&registry, 2).start().expect("starts");
        for _ in 0..5 {
            caller.resolve(&Peer::Address(private.address())).expect_err("private");
        }
        std::thread::sleep(4 * SECOND);
        assert_eq!(registry.calls("heartbeat"), 0, "a refusal is no news there");
    });
}
