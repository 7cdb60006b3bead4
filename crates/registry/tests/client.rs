//! Client and server over real sockets, and the client against a registry of the reference's kind.

#![allow(clippy::disallowed_methods, reason = "tests on real sockets read the clock")]

use ed25519_dalek::{Signer as _, SigningKey};
use pilotage_registry::client::{Client, ClientError, ClientTls, Registration};
use pilotage_registry::engine::RateLimits;
use pilotage_registry::keys::Keys;
use pilotage_registry::server::{Server, ServerConfig, ServerHandle};
use pilotage_registry::tls::ServerTls;
use pilotage_wire::NodeId;
use pilotage_wire::addressing::node_ids;
use pilotage_wire::registry::next_frame;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const TIMEOUT: Duration = Duration::from_secs(5);

struct Hub(SocketAddr, ServerHandle, Option<JoinHandle<std::io::Result<()>>>, Keys);

impl Hub {
    fn start(listen: SocketAddr, store: &Path) -> Self {
        let mut config = ServerConfig::new(listen, store);
        config.engine.rates = RateLimits::UNLIMITED;
        Self::run(config)
    }

    fn run(config: ServerConfig) -> Self {
        let server = Server::bind(config).unwrap();
        let (addr, handle, keys) = (server.local_addr(), server.handle(), server.keys());
        Self(addr, handle, Some(std::thread::spawn(move || server.run())), keys)
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.1.stop();
        self.2.take().unwrap().join().expect("no panic").expect("clean end");
    }
}

fn any_port() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

fn registration(key: &SigningKey, name: &str, public: bool) -> Registration {
    Registration {
        public_key: key.verifying_key().to_bytes(),
        listen_addr: "0.0.0.0:4100".into(),
        lan_addrs: vec!["192.168.1.5:4100".into()],
        hostname: Some(name.into()),
        public,
        public_abroad: public,
        owner: None,
    }
}

#[test]
fn two_nodes_meet_through_the_registry() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::start(any_port(), &dir.path().join("hub.redb"));
    let (a, b) = (SigningKey::from_bytes(&[1; 32]), SigningKey::from_bytes(&[2; 32]));
    let sign_a = |message: &[u8]| a.sign(message).to_bytes();
    let sign_b = |message: &[u8]| b.sign(message).to_bytes();
    let mut client_a = Client::connect(&hub.0.to_string(), TIMEOUT).unwrap();
    let mut client_b = Client::connect(&hub.0.to_string(), TIMEOUT).unwrap();
    let alice = client_a.register(&registration(&a, "alice", false), &sign_a).unwrap();
    let bob = client_b.register(&registration(&b, "bob", true), &sign_b).unwrap();
    assert!(alice.proved && bob.proved);
    assert_eq!(alice.address.node, node_ids(a.verifying_key().as_bytes()).next().unwrap().1);
    assert_eq!((bob.observed_addr.as_str(), bob.hostname.as_deref()), ("127.0.0.1:4100", Some("bob")));

    // A finds B by name; B is public, A is not.
    let found = client_a.resolve_hostname("bob", Some(alice.address.node)).unwrap();
    assert_eq!((found.address, found.public), (bob.address, true));
    let whereabouts = client_a.resolve(found.node, alice.address.node, &sign_a).unwrap();
    assert_eq!(whereabouts.real_addr, "127.0.0.1:4100".parse().unwrap());
    assert_eq!(whereabouts.lan_addrs, ["192.168.1.5:4100".parse().unwrap()]);
    let who = client_a.lookup(found.node).unwrap();
    assert_eq!(who.public_key, Some(b.verifying_key().to_bytes()));
    let both = client_a.find(found.node, alice.address.node, &sign_a).unwrap();
    assert_eq!((both.info.unwrap(), both.place.unwrap()), (who, whereabouts));
    // A refusal of one question says nothing about the other.
    let both = client_b.find(alice.address.node, bob.address.node, &sign_b).unwrap();
    assert_eq!(both.info.unwrap().hostname.as_deref(), Some("alice"));
    let refused = both.place.unwrap_err();
    assert!(matches!(&refused, ClientError::Refused { request: "resolve", .. }), "{refused}");
    let both = client_a.find(NodeId(77), alice.address.node, &sign_a).unwrap();
    assert!(both.info.is_err() && both.place.is_err());
    let refused = client_b.resolve(alice.address.node, bob.address.node, &sign_b).unwrap_err();
    assert!(matches!(&refused, ClientError::Refused { request: "resolve", .. }), "{refused}");
    client_a.set_visibility(alice.address.node, true, &sign_a).unwrap();
    assert!(client_b.resolve(alice.address.node, bob.address.node, &sign_b).is_ok());

    // Names: taken, changed, given up.
    let again = client_a.register(&registration(&a, "bob", true), &sign_a).unwrap();
    assert!(again.hostname_error.is_some());
    client_a.set_hostname(alice.address.node, "alicia", &sign_a).unwrap();
    assert_eq!(client_b.lookup(alice.address.node).unwrap().hostname.as_deref(), Some("alicia"));
    assert!(client_a.set_hostname(alice.address.node, "mallory", &sign_b).is_err());
    assert!(client_a.heartbeat(alice.address.node, &sign_a).unwrap() > 1_700_000_000);
    client_a.deregister(alice.address.node, &sign_a).unwrap();
    let gone = client_a.heartbeat(alice.address.node, &sign_a).unwrap_err();
    assert!(!gone.is_transient(), "{gone}");
}

#[test]
fn a_restarted_hub_is_found_again_with_everything_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("hub.redb");
    let key = SigningKey::from_bytes(&[3; 32]);
    let sign = |message: &[u8]| key.sign(message).to_bytes();
    let hub = Hub::start(any_port(), &store);
    let addr = hub.0;
    let mut client = Client::connect(&addr.to_string(), TIMEOUT).unwrap();
    assert_eq!(hub.3.of(node_ids(key.verifying_key().as_bytes()).next().unwrap().1), None);
    let before = client.register(&registration(&key, "carol", true), &sign).unwrap();
    assert_eq!(
        hub.3.of(before.address.node),
        Some(key.verifying_key().to_bytes()),
        "what was acknowledged is known"
    );
    assert!(!client.is_renewed());
    drop(hub);
    // While it is away: a clear error at once, then a pause during which nothing is tried.
    let error = client.heartbeat(before.address.node, &sign).unwrap_err();
    assert!(error.is_transient() && error.to_string().contains(&addr.to_string()), "{error}");
    let started = Instant::now();
    let error = client.heartbeat(before.address.node, &sign).unwrap_err();
    // On a machine so busy that the pause is over already, it is tried again.
    let at_once = started.elapsed() < Duration::from_millis(300);
    assert!(matches!(error, ClientError::Unreachable { .. }) || !at_once, "{error}");
    let hub = Hub::start(addr, &store);
    let mut attempts = 0;
    while let Err(error) = client.heartbeat(before.address.node, &sign) {
        attempts += 1;
        assert!(error.is_transient() && attempts < 200, "{error}");
        std::thread::sleep(Duration::from_millis(25));
    }
    assert!(client.is_renewed(), "the keeper is told to register again");
    // No new registration was needed to be found.
    let found = client.resolve(before.address.node, before.address.node, &sign).unwrap();
    assert_eq!(found.real_addr.port(), 4100);
    // A connection that was cut while idle is replaced without a word, also between challenge and proof.
    drop(hub);
    let hub = Hub::start(addr, &store);
    client.set_hostname(before.address.node, "caroline", &sign).unwrap();
    drop(hub);
    let hub = Hub::start(addr, &store);
    assert_eq!(hub.3.of(before.address.node), Some(key.verifying_key().to_bytes()), "from the store");
    assert_eq!(client.lookup(before.address.node).unwrap().hostname.as_deref(), Some("caroline"));
    client.register(&registration(&key, "caroline", true), &sign).unwrap();
    assert!(!client.is_renewed());
}

/// A registry that knows only plain messages: answers from spec/vectors/registry.json.
fn reference_registry(replies: Vec<&'static str>) -> (SocketAddr, JoinHandle<Vec<serde_json::Value>>) {
    let listener = TcpListener::bind(any_port()).unwrap();
    let addr = listener.local_addr().unwrap();
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut requests = Vec::new();
        let mut input = Vec::new();
        for reply in replies {
            let json = loop {
                if let Some(json) = next_frame(&input).unwrap() {
                    break json.to_vec();
                }
                let mut chunk = [0; 4096];
                let n = stream.read(&mut chunk).unwrap();
                assert!(n > 0, "client left early");
                input.extend_from_slice(&chunk[..n]);
            };
            input.drain(..4 + json.len());
            requests.push(serde_json::from_slice(&json).unwrap());
            stream.write_all(&u32::try_from(reply.len()).unwrap().to_be_bytes()).unwrap();
            stream.write_all(reply.as_bytes()).unwrap();
        }
        requests
    });
    (addr, thread)
}

#[test]
fn a_reference_registry_gets_plain_messages_and_its_id_is_accepted() {
    let (addr, thread) = reference_registry(vec![
        r#"{"error":"request failed","type":"error"}"#,
        r#"{"address":"0:0000.0000.0002","hostname":"two","network_id":0,"node_id":2,"observed_addr":"127.0.0.1:4100","protocol_version":1,"public_key":"jNVV0ewD5ZpGXz4U0dL3+C+aph9zRFiFIT9N0MaOnFE=","type":"register_ok"}"#,
        r#"{"node_id":2,"type":"set_visibility_ok","visibility":"public"}"#,
        r#"{"hostname":"deux","node_id":2,"type":"set_hostname_ok"}"#,
        r#"{"type":"deregister_ok"}"#,
    ]);
    let key = SigningKey::from_bytes(&[2; 32]);
    let sign = |message: &[u8]| key.sign(message).to_bytes();
    let mut client = Client::connect(&addr.to_string(), TIMEOUT).unwrap();
    let done = client.register(&registration(&key, "two", true), &sign).unwrap();
    assert_eq!((done.address.node, done.proved), (NodeId(2), false));
    client.set_hostname(NodeId(2), "deux", &sign).unwrap();
    client.deregister(NodeId(2), &sign).unwrap();
    let requests = thread.join().unwrap();
    let kinds: Vec<_> = requests.iter().map(|request| request["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["challenge", "register", "set_visibility", "set_hostname", "deregister"]);
    assert!(requests.iter().all(|request| request.get("proof").is_none()));
    assert!(requests[1..].iter().all(|request| request["signature"].is_string()));
}

#[test]
fn two_questions_take_one_round_trip_and_a_dead_connection_is_replaced() {
    let listener = TcpListener::bind(any_port()).unwrap();
    let addr = listener.local_addr().unwrap();
    let server = std::thread::spawn(move || {
        // The first connection ends at once, as one that the network forgot.
        drop(listener.accept().unwrap());
        let (mut stream, _) = listener.accept().unwrap();
        let mut seen = Vec::new();
        let mut asked = 0;
        // Both questions before any answer: a client that waits in between would time out.
        while asked < 2 {
            let mut chunk = [0; 1024];
            let read = stream.read(&mut chunk).unwrap();
            seen.extend_from_slice(&chunk[..read]);
            asked = 0;
            let mut rest = &seen[..];
            while let Some(json) = next_frame(rest).unwrap() {
                asked += 1;
                rest = &rest[4 + json.len()..];
            }
        }
        for reply in [
            r#"{"type":"error","error":"no"}"#,
            r#"{"type":"resolve_ok","node_id":9,"real_addr":"1.2.3.4:5"}"#,
        ] {
            stream.write_all(&u32::try_from(reply.len()).unwrap().to_be_bytes()).unwrap();
            stream.write_all(reply.as_bytes()).unwrap();
        }
    });
    let mut client = Client::connect(&addr.to_string(), TIMEOUT).unwrap();
    let found = client.find(NodeId(9), NodeId(8), &|_| [0; 64]).unwrap();
    assert!(matches!(found.info, Err(ClientError::Refused { request: "lookup", .. })), "{:?}", found.info);
    assert_eq!(found.place.unwrap().real_addr, "1.2.3.4:5".parse().unwrap());
    server.join().unwrap();
}

#[test]
fn what_is_no_registry_is_reported_as_such() {
    // Nobody listens.
    let free = TcpListener::bind(any_port()).unwrap();
    let addr = free.local_addr().unwrap();
    drop(free);
    let error = Client::connect(&addr.to_string(), TIMEOUT).unwrap_err();
    assert!(matches!(error, ClientError::Connect { .. }), "{error}");
    let error = Client::connect("no port here", TIMEOUT).unwrap_err();
    assert!(matches!(error, ClientError::Resolve { .. }), "{error}");
    // Somebody who never answers.
    let mute = TcpListener::bind(any_port()).unwrap();
    let short = Duration::from_millis(200);
    let mut client = Client::connect(&mute.local_addr().unwrap().to_string(), short).unwrap();
    let started = Instant::now();
    let error = client.lookup(NodeId(1)).unwrap_err();
    assert!(matches!(error, ClientError::Timeout { request: "lookup", .. }), "{error}");
    assert!(started.elapsed() < Duration::from_secs(2));
    // A web server.
    let web = TcpListener::bind(any_port()).unwrap();
    let addr = web.local_addr().unwrap();
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = web.accept().unwrap();
        let _ = stream.read(&mut [0; 512]);
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    });
    let mut client = Client::connect(&addr.to_string(), TIMEOUT).unwrap();
    let error = client.lookup(NodeId(1)).unwrap_err();
    assert!(matches!(error, ClientError::Protocol { .. }), "{error}");
    thread.join().unwrap();
    // An answer to another question, and about another node.
    let (addr, thread) = reference_registry(vec![r#"{"type":"deregister_ok"}"#]);
    let mut client = Client::connect(&addr.to_string(), TIMEOUT).unwrap();
    assert!(matches!(client.lookup(NodeId(1)), Err(ClientError::Protocol { .. })));
    thread.join().unwrap();
}

/// spec/registry.md §1.3: nothing is said before the certificate is the pinned one.
#[test]
fn a_pinned_registry_is_spoken_to_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let tls = ServerTls::load_or_create(dir.path()).unwrap();
    let mut config = ServerConfig::new(any_port(), dir.path().join("hub.redb"));
    config.tls = Some(tls.clone());
    let hub = Hub::run(config);
    let addr = hub.0.to_string();
    let pinned = ClientTls::Pinned(tls.fingerprint());
    let key = SigningKey::from_bytes(&[4; 32]);
    let sign = |message: &[u8]| key.sign(message).to_bytes();
    let mut client = Client::connect_with(&addr, TIMEOUT, pinned).unwrap();
    let done = client.register(&registration(&key, "dora", true), &sign).unwrap();
    assert!(done.proved);
    // Many large requests before the first reply is read: more than one record, more than the output buffer.
    for _ in 0..50 {
        assert_eq!(client.lookup(done.address.node).unwrap().hostname.as_deref(), Some("dora"));
    }
    let wrong = Client::connect_with(&addr, TIMEOUT, ClientTls::Pinned([7; 32])).unwrap_err();
    assert!(matches!(&wrong, ClientError::Tls { .. }) && !wrong.is_transient(), "{wrong}");
    assert!(wrong.to_string().contains(&tls.fingerprint_hex()), "{wrong}");
    // Without TLS the hub hangs up.
    let mut plain = Client::connect(&addr, TIMEOUT).unwrap();
    assert!(plain.lookup(done.address.node).is_err());
    // And the other way round.
    let plain_hub = Hub::start(any_port(), &dir.path().join("plain.redb"));
    let error =
        Client::connect_with(&plain_hub.0.to_string(), Duration::from_millis(500), pinned).unwrap_err();
    assert!(matches!(error, ClientError::Tls { .. } | ClientError::Connect { .. }), "{error}");
    // The connection survives a restart of the hub, with the same certificate.
    drop(hub);
    let mut config = ServerConfig::new(addr.parse().unwrap(), dir.path().join("hub.redb"));
    config.tls = Some(ServerTls::load_or_create(dir.path()).unwrap());
    let _hub = Hub::run(config);
    assert_eq!(client.lookup(done.address.node).unwrap().hostname.as_deref(), Some("dora"));
}

/// `call_json`: our registry gets a proof where it takes one, a reference registry the plain signature.
#[test]
fn any_request_goes_through_as_json() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::start(any_port(), &dir.path().join("hub.redb"));
    let key = SigningKey::from_bytes(&[5; 32]);
    let sign = |message: &[u8]| key.sign(message).to_bytes();
    let mut client = Client::connect(&hub.0.to_string(), TIMEOUT).unwrap();
    let node = client.register(&registration(&key, "emil", false), &sign).unwrap().address.node;
    let request = serde_json::json!({"type": "set_visibility", "node_id": node.0, "public": true});
    let text = format!("set_visibility:{}", node.0);
    let reply = client.call_json(request.clone(), Some((&text, &sign))).unwrap();
    assert_eq!(
        reply,
        serde_json::json!({"type": "set_visibility_ok", "node_id": node.0, "visibility": "public"})
    );
    let error = client.call_json(request, None).unwrap_err();
    assert!(matches!(error, ClientError::Refused { request: "set_visibility", .. }), "{error}");
    let reply = client.call_json(serde_json::json!({"type": "beacon_list"}), None).unwrap();
    assert_eq!(reply["beacons"], serde_json::json!([]));
    let error = client.call_json(serde_json::json!({"type": "nonsense"}), None).unwrap_err();
    assert!(matches!(error, ClientError::Refused { .. }), "{error}");
    let long = "x".repeat(70_000);
    let error = client.call_json(serde_json::json!({"type": "lookup", "x": long}), None).unwrap_err();
    assert!(matches!(error, ClientError::TooLong { .. }), "{error}");

    let (addr, thread) = reference_registry(vec![
        r#"{"error":"request failed","type":"error"}"#,
        r#"{"node_id":2,"type":"set_visibility_ok","visibility":"public"}"#,
    ]);
    let mut client = Client::connect(&addr.to_string(), TIMEOUT).unwrap();
    let request = serde_json::json!({"type": "set_visibility", "node_id": 2, "public": true});
    client.call_json(request, Some(("set_visibility:2", &sign))).unwrap();
    let requests = thread.join().unwrap();
    assert_eq!(requests[0]["type"], "challenge");
    assert!(requests[1]["signature"].is_string() && requests[1].get("proof").is_none());
}
