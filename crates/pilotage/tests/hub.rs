//! Nodes that meet through a hub: our registry on TCP and the beacon engine on UDP, in this process.

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use common::{SECOND, builder, identity, within};
use pilotage::{ConnectFailure, FailureCause, HubError, NodeBuilder, NodeEvent, Peer, Stage, StartError};
use pilotage_nat::{BeaconConfig, BeaconEngine};
use pilotage_registry::client::Client;
use pilotage_registry::server::{Server, ServerConfig, ServerHandle};

struct Hub {
    registry: SocketAddr,
    beacon: SocketAddr,
    handle: ServerHandle,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    store: tempfile::TempDir,
}

impl Hub {
    fn start() -> Self {
        Self::start_at("127.0.0.1:0".parse().expect("address"), tempfile::tempdir().expect("directory"))
    }

    fn start_at(listen: SocketAddr, store: tempfile::TempDir) -> Self {
        let server =
            Server::bind(ServerConfig::new(listen, store.path().join("registry.redb"))).expect("registry");
        let (registry, handle) = (server.local_addr(), server.handle());
        let socket = UdpSocket::bind("127.0.0.1:0").expect("beacon");
        let beacon = socket.local_addr().expect("address");
        let stop = Arc::new(AtomicBool::new(false));
        let threads = vec![
            std::thread::spawn(move || server.run().expect("registry runs")),
            std::thread::spawn({
                let stop = stop.clone();
                move || serve_beacon(&socket, &stop)
            }),
        ];
        Self { registry, beacon, handle, stop, threads, store }
    }

    fn node(&self, seed: u8, name: &str) -> NodeBuilder {
        builder()
            .identity(identity(seed))
            .registry(self.registry.to_string())
            .beacon(self.beacon.to_string())
            .name(name)
    }

    fn halt(self) -> tempfile::TempDir {
        self.stop.store(true, Ordering::SeqCst);
        self.handle.stop();
        for thread in self.threads {
            thread.join().expect("hub thread");
        }
        self.store
    }
}

fn serve_beacon(socket: &UdpSocket, stop: &AtomicBool) {
    let mut engine = BeaconEngine::new(BeaconConfig::default(), 7);
    socket.set_read_timeout(Some(Duration::from_millis(20))).expect("timeout");
    let (mut buffer, mut answers) = (vec![0; 65_536], Vec::new());
    while !stop.load(Ordering::SeqCst) {
        if let Ok((len, from)) = socket.recv_from(&mut buffer) {
            engine.handle_datagram(Instant::now(), from, &buffer[..len], &mut |to, bytes| {
                answers.push((to, bytes.to_vec()));
            });
        }
        for (to, bytes) in answers.drain(..) {
            let _ = socket.send_to(&bytes, to);
        }
        engine.handle_timeout(Instant::now());
    }
}

fn name(text: &str) -> Peer {
    text.parse().expect("name")
}

fn hub_error(failure: &ConnectFailure) -> &HubError {
    match &failure.cause {
        FailureCause::Hub(error) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn nodes_find_each_other_by_name() {
    within(60 * SECOND, || {
        let hub = Hub::start();
        let alice = hub.node(1, "alice").start().expect("alice");
        let bob = hub.node(2, "bob").start().expect("bob");
        assert_eq!(bob.name().as_deref(), Some("bob"));
        assert_eq!(bob.observed_addr(), Some(bob.local_addr()));
        let status = bob.hub_status().expect("a hub");
        assert!(status.registered && status.last_error.is_none(), "{status:?}");
        assert_eq!((status.registry, status.beacon), (Some(hub.registry.to_string()), Some(hub.beacon)));

        let found = alice.resolve(&name("bob")).expect("resolve");
        assert_eq!(found.address, bob.address());
        assert_eq!(found.key, Some(bob.public_key()));
        assert_eq!(found.endpoint, Some(bob.local_addr()));

        let listener = bob.listen(7).expect("listen");
        let mut near = alice.connect(name("bob"), 7).expect("connect");
        let mut far = listener.accept_timeout(5 * SECOND).expect("accept").expect("a stream");
        assert_eq!(far.peer().address, alice.address());
        near.write_all(b"hello bob").expect("write");
        let mut got = [0; 9];
        far.read_exact(&mut got).expect("read");
        assert_eq!(&got, b"hello bob");
        let reply = alice.ping(name("bob"), 5 * SECOND).expect("ping");
        assert_eq!(reply.address, bob.address());

        let failure = alice.connect(name("carol"), 7).expect_err("nobody");
        assert_eq!(failure.stage, Stage::Resolve);
        assert!(matches!(hub_error(&failure), HubError::NotFound { .. }), "{failure}");
        hub.halt();
    });
}

#[test]
fn a_name_that_is_taken_is_refused_at_the_start() {
    within(60 * SECOND, || {
        let hub = Hub::start();
        let _alice = hub.node(1, "alice").start().expect("alice");
        let error = hub.node(2, "alice").start().expect_err("taken");
        assert!(matches!(&error, StartError::Name { name, .. } if name == "alice"), "{error}");
        let tolerant = hub.node(2, "alice").hub_required(false).start().expect("starts without the name");
        assert_eq!(tolerant.name(), None);
        assert!(tolerant.hub_status().expect("hub").last_error.is_some());
        hub.halt();
    });
}

fn restart_bob(at_the_same_port: bool) {
    let hub = Hub::start();
    let alice = hub.node(1, "alice").start().expect("alice");
    let bob = hub.node(2, "bob").start().expect("bob");
    let (address, local) = (bob.address(), bob.local_addr());
    let listener = bob.listen(7).expect("listen");
    alice.connect(name("bob"), 7).expect("connect");
    drop((bob, listener));
    let again = hub.node(2, "bob");
    let again = if at_the_same_port { again.bind(local) } else { again };
    let bob = again.start().expect("bob again");
    assert_eq!(bob.address(), address);
    let _listener = bob.listen(7).expect("listen");
    let start = Instant::now();
    alice.connect(name("bob"), 7).expect("found again");
    assert!(start.elapsed() < 10 * SECOND);
    hub.halt();
}

#[test]
fn a_restarted_node_is_found_under_the_same_name_and_address() {
    within(60 * SECOND, || restart_bob(true));
}

#[test]
fn a_node_restarted_at_another_port_is_found_through_the_hub() {
    within(60 * SECOND, || restart_bob(false));
}

#[test]
fn without_its_hub_a_node_goes_on_with_the_peers_it_knows() {
    within(60 * SECOND, || {
        let hub = Hub::start();
        let alice = hub.node(1, "alice").start().expect("alice");
        let bob = hub.node(2, "bob").start().expect("bob");
        let _listener = bob.listen(7).expect("listen");
        let _first = alice.connect(name("bob"), 7).expect("connect");
        hub.halt();

        alice.connect(bob.address(), 7).expect("the tunnel needs no hub");
        let start = Instant::now();
        let failure = alice.connect(name("bob"), 7).expect_err("names need the hub");
        assert!(start.elapsed() < 15 * SECOND);
        assert_eq!(failure.stage, Stage::Resolve);
        assert!(hub_error(&failure).is_unreachable(), "{failure}");
    });
}

#[test]
fn a_node_that_need_not_have_its_hub_registers_once_it_is_there() {
    within(60 * SECOND, || {
        // A port that is free now, for a hub that comes later.
        let hub = Hub::start();
        let (registry, beacon) = (hub.registry, hub.beacon);
        let store = hub.halt();
        let node = builder()
            .identity(identity(1))
            .registry(registry.to_string())
            .beacon(beacon.to_string())
            .hub_required(false)
            .name("alice")
            .start()
            .expect("starts without");
        let events = node.events();
        assert!(!node.hub_status().expect("hub").registered);
        let hub = Hub::start_at(registry, store);
        let registered = std::iter::from_fn(|| events.recv_timeout(20 * SECOND))
            .any(|event| matches!(event, NodeEvent::Registered { address } if address == node.address()));
        assert!(registered);
        assert_eq!(node.name().as_deref(), Some("alice"));
        hub.halt();
    });
}

/// A hub that comes back from an older backup has forgotten some of its nodes.
#[test]
fn a_node_notices_at_its_next_question_that_the_hub_has_forgotten_it() {
    within(60 * SECOND, || {
        let hub = Hub::start();
        let bob = hub.node(2, "bob").start().expect("bob");
        let registry = hub.registry;
        let store = hub.halt();
        let backup = tempfile::tempdir().expect("directory");
        let file = "registry.redb";
        std::fs::copy(store.path().join(file), backup.path().join(file)).expect("backup");
        let hub = Hub::start_at(registry, store);
        let alice = hub.node(1, "alice").start().expect("alice");
        hub.halt();
        let hub = Hub::start_at(registry, backup);
        let events = alice.events();
        let (asker, to) = (alice.clone(), bob.address());
        // Whether it succeeds does not matter.
        let asking = std::thread::spawn(move || drop(asker.connect(to, 7)));
        let start = Instant::now();
        let again = std::iter::from_fn(|| events.recv_timeout(10 * SECOND))
            .any(|event| matches!(event, NodeEvent::Registered { .. }));
        assert!(again && start.elapsed() < 10 * SECOND, "{:?}", start.elapsed());
        asking.join().expect("returns");
        hub.halt();
    });
}

#[test]
fn strangers_are_checked_with_the_hub() {
    within(60 * SECOND, || {
        let hub = Hub::start();
        let bob = hub.node(2, "bob").start().expect("bob");
        let listener = bob.listen(7).expect("listen");
        // Not registered, so its key must derive its address, as it does.
        let stranger = builder().start().expect("stranger");
        stranger.connect(Peer::At(bob.address(), bob.local_addr()), 7).expect("connect");
        assert!(listener.accept_timeout(5 * SECOND).expect("accept").is_some());
        hub.halt();
        // Now nobody can vouch for a stranger.
        let events = bob.events();
        let impatient =
            pilotage::ProtoConfig { connect_timeout: 3 * SECOND, ..pilotage::ProtoConfig::default() };
        let stranger = builder().config(impatient).start().expect("stranger");
        stranger.connect(Peer::At(bob.address(), bob.local_addr()), 7).expect_err("refused");
        let refused = std::iter::from_fn(|| events.recv_timeout(SECOND)).any(
            |event| matches!(event, NodeEvent::PeerRefused { node, .. } if node == stranger.address().node),
        );
        assert!(refused);
    });
}

/// Waits until the registry knows the node under this name and visibility.
fn wait_until_known(hub: &Hub, node: pilotage::NodeId, name: Option<&str>, public: bool) {
    let deadline = Instant::now() + 30 * SECOND;
    loop {
        let mut client = Client::connect(&hub.registry.to_string(), 5 * SECOND).expect("registry");
        let known = client.lookup(node).map(|found| (found.hostname, found.public));
        let wanted = (name.map(str::to_owned), public);
        if known.as_ref().is_ok_and(|known| *known == wanted) {
            return;
        }
        assert!(Instant::now() < deadline, "{known:?} instead of {wanted:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn name_and_visibility_that_were_set_last_outlive_the_hub() {
    within(90 * SECOND, || {
        let mut hub = Hub::start();
        let bob = hub.node(1, "bob").keepalive(SECOND).start().expect("bob");
        let node = bob.address().node;
        let set = |kind: &str, field: &str, value: serde_json::Value| {
            let request = serde_json::json!({ "type": kind, "node_id": node.0, field: value });
            bob.registry_call(request, Some(&format!("{kind}:{}", node.0)))
        };
        wait_until_known(&hub, node, Some("bob"), true);
        set("set_hostname", "hostname", "robert".into()).expect("a name");
        set("set_visibility", "public", false.into()).expect("private");
        assert_eq!(bob.name().as_deref(), Some("robert"));
        assert_eq!(bob.hub_status().map(|hub| hub.public), Some(false));
        set("set_hostname", "hostname", "-no name-".into())
            .expect_err("a name that is refused changes nothing");
        // With its state, and without: whatever the hub remembers, the node says it again.
        for forgetful in [false, true] {
            let (at, store) = (hub.registry, hub.halt());
            let store = if forgetful { tempfile::tempdir().expect("directory") } else { store };
            hub = Hub::start_at(at, store);
            let events = bob.events();
            while !matches!(events.recv().expect("events"), NodeEvent::Registered { .. }) {}
            wait_until_known(&hub, node, Some("robert"), false);
        }
        // An older state that still has a name that was given up since.
        set("set_hostname", "hostname", "".into()).expect("no name");
        set("set_visibility", "public", true.into()).expect("public");
        let mut old = Client::connect(&hub.registry.to_string(), 5 * SECOND).expect("registry");
        let key = identity(1);
        old.set_hostname(node, "stale", &|message| key.sign(message)).expect("a name again");
        let (at, store) = (hub.registry, hub.halt());
        hub = Hub::start_at(at, store);
        wait_until_known(&hub, node, None, true);
        assert_eq!(bob.name(), None);
        hub.halt();
    });
}

#[test]
fn a_node_that_left_stays_away_until_it_is_to_be_known_again() {
    within(60 * SECOND, || {
        let hub = Hub::start();
        let bob = hub.node(1, "bob").keepalive(SECOND / 4).start().expect("bob");
        let alice = hub.node(2, "alice").start().expect("alice");
        let node = bob.address().node;
        let call = |kind: &str, request: serde_json::Value| {
            bob.registry_call(request, Some(&format!("{kind}:{}", node.0))).expect("taken")
        };
        alice.resolve(&name("bob")).expect("there");
        call("deregister", serde_json::json!({ "type": "deregister", "node_id": node.0 }));
        assert!(!bob.hub_status().expect("hub").registered);
        // Several heartbeats long.
        std::thread::sleep(2 * SECOND);
        alice.resolve(&name("bob")).expect_err("left");
        assert!(!bob.hub_status().expect("hub").registered);
        let named = serde_json::json!({ "type": "set_hostname", "node_id": node.0, "hostname": "bobby" });
        call("set_hostname", named);
        let deadline = Instant::now() + 20 * SECOND;
        while alice.resolve(&name("bobby")).is_err() {
            assert!(Instant::now() < deadline, "it did not come back");
            std::thread::sleep(Duration::from_millis(50));
        }
        assert!(bob.hub_status().expect("hub").registered);
        hub.halt();
    });
}
