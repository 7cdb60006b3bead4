//! Commands that others answer: registry, trust list, webhook (spec/ipc.md §6, §7).
#![cfg(unix)]

mod common;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use common::{Got, SECOND, daemon, pair, within};
use pilotage::{Address, NodeId, SocketAddress};
use pilotage_daemon::{Options, PendingTrust, RegistryCalls, TrustCalls, TrustedPeer};
use pilotage_wire::NetworkId;
use pilotage_wire::ipc::{HandshakeRequest, NetworkRequest, Request};
use serde_json::{Value, json};

type Calls = Mutex<Vec<(Value, Option<String>)>>;

/// Answers everything with what it was asked, except a name that it does not know.
#[derive(Default)]
struct Registry {
    calls: Calls,
    members: Mutex<Vec<u32>>,
}

impl RegistryCalls for Registry {
    fn call(&self, request: Value, signed: Option<&str>) -> Result<Value, String> {
        self.calls.lock().unwrap().push((request.clone(), signed.map(str::to_owned)));
        if request["hostname"] == "nobody" {
            return Err("hostname \"nobody\" not found".into());
        }
        let nodes: Vec<_> = self.members.lock().unwrap().iter().map(|id| json!({ "node_id": id })).collect();
        Ok(json!({ "type": format!("{}_ok", request["type"].as_str().unwrap()), "nodes": nodes }))
    }
}

#[derive(Default)]
struct Trust(Mutex<Vec<String>>);

impl Trust {
    fn note(&self, text: String) -> Result<(), String> {
        self.0.lock().unwrap().push(text);
        Ok(())
    }
}

impl TrustCalls for Trust {
    fn request(&self, node: NodeId, justification: &str) -> Result<(), String> {
        self.note(format!("request {node} {justification}"))
    }
    fn approve(&self, node: NodeId) -> Result<(), String> {
        self.note(format!("approve {node}"))
    }
    fn reject(&self, node: NodeId, reason: &str) -> Result<(), String> {
        self.note(format!("reject {node} {reason}"))
    }
    fn revoke(&self, node: NodeId) -> Result<(), String> {
        Err(format!("node {} was not trusted", node.0))
    }
    fn pending(&self) -> Vec<PendingTrust> {
        let justification = "why".into();
        vec![PendingTrust { node: NodeId(5), public_key: None, justification, received_at: 1_795_273_310 }]
    }
    fn trusted(&self) -> Vec<TrustedPeer> {
        let public_key = Some([0; 32]);
        vec![TrustedPeer { node: NodeId(6), public_key, approved_at: 9, mutual: true, network: 0 }]
    }
}

#[test]
fn registry_commands_are_asked_and_signed_as_the_reference_does() {
    within(30 * SECOND, || {
        let registry = Arc::new(Registry::default());
        let a = daemon(Options { registry: Some(registry.clone()), ..Options::default() });
        let me = a.address().node.0;
        let mut driver = a.driver();
        let mut check = |request: Request<'_>, reply: u8, asked: Value, signed: Option<String>| {
            let kind = asked["type"].as_str().unwrap().to_owned();
            let got = driver.ask(&request);
            let Got::Json(command, body) = got else { panic!("{kind}: {got:?}") };
            assert_eq!((command, &body["type"]), (reply, &json!(format!("{kind}_ok"))));
            assert_eq!(registry.calls.lock().unwrap().pop(), Some((asked, signed)));
        };
        let own = |name: &str| Some(format!("{name}:{me}"));
        check(
            Request::ResolveHostname("bob"),
            0x12,
            json!({ "type": "resolve_hostname", "hostname": "bob", "requester_id": me }),
            None,
        );
        let asked = json!({ "type": "set_hostname", "node_id": me, "hostname": "me" });
        check(Request::SetHostname("me"), 0x14, asked, own("set_hostname"));
        let asked = json!({ "type": "set_visibility", "node_id": me, "public": true });
        check(Request::SetVisibility { public: true }, 0x16, asked, own("set_visibility"));
        check(Request::Deregister, 0x18, json!({ "type": "deregister", "node_id": me }), own("deregister"));
        let asked = json!({ "type": "set_tags", "node_id": me, "tags": ["web", "gpu"] });
        check(Request::SetTags("[\"web\",\"gpu\"]"), 0x1A, asked, own("set_tags"));
        let asked = json!({ "type": "set_task_exec", "node_id": me, "enabled": false });
        check(Request::SetTaskExec { enabled: false }, 0x1E, asked, own("set_task_exec"));
        let mut network = |request, asked, signed| check(Request::Network(request), 0x20, asked, signed);
        network(NetworkRequest::List, json!({ "type": "list_networks" }), None);
        network(
            NetworkRequest::Join { network: 3, token: "t" },
            json!({ "type": "join_network", "node_id": me, "network_id": 3, "token": "t", "inviter_id": 0 }),
            Some(format!("join_network:{me}:3")),
        );
        let asked = json!({ "type": "leave_network", "node_id": me, "network_id": 3 });
        network(NetworkRequest::Leave { network: 3 }, asked, Some(format!("leave_network:{me}:3")));
        network(
            NetworkRequest::Members { network: 3 },
            json!({ "type": "list_nodes", "network_id": 3 }),
            None,
        );
        network(
            NetworkRequest::Invite { network: 3, node: NodeId(9) },
            json!({ "type": "invite_to_network", "network_id": 3, "inviter_id": me, "target_node_id": 9 }),
            Some(format!("invite:{me}:3:9")),
        );
        let asked = json!({ "type": "poll_invites", "node_id": me });
        network(NetworkRequest::PollInvites, asked, own("poll_invites"));
        network(
            NetworkRequest::Respond { network: 3, accept: true },
            json!({ "type": "respond_invite", "node_id": me, "network_id": 3, "accept": true }),
            Some(format!("respond_invite:{me}:3")),
        );
        assert_eq!(
            driver.ask(&Request::ResolveHostname("nobody")),
            Got::Error("resolve_hostname: hostname \"nobody\" not found".into())
        );
        let Got::Error(text) = driver.ask(&Request::SetTags("[\"a\",\"b\",\"c\",\"d\"]")) else {
            panic!("set")
        };
        assert!(text.contains("at most 3"), "{text}");
    });
}

#[test]
fn handshakes_go_to_the_trust_list() {
    within(30 * SECOND, || {
        let trust = Arc::new(Trust::default());
        let a = daemon(Options { trust: Some(trust.clone()), ..Options::default() });
        let mut driver = a.driver();
        let node = NodeId(2);
        for (request, status) in [
            (HandshakeRequest::Send { node, justification: "why" }, "sent"),
            (HandshakeRequest::Approve { node }, "approved"),
            (HandshakeRequest::Reject { node, reason: "no" }, "rejected"),
        ] {
            assert_eq!(
                driver.ask(&Request::Handshake(request)),
                Got::Json(0x10, json!({ "node_id": 2, "status": status }))
            );
        }
        let called = trust.0.lock().unwrap().clone();
        assert_eq!(called.len(), 3, "{called:?}");
        assert_eq!(
            driver.ask(&Request::Handshake(HandshakeRequest::Revoke { node })),
            Got::Error("handshake revoke: node 2 was not trusted".into())
        );
        let pending = json!({
            "pending": [{ "node_id": 5, "public_key": "", "justification": "why", "received_at": 1_795_273_310 }],
        });
        assert_eq!(driver.ask(&Request::Handshake(HandshakeRequest::Pending)), Got::Json(0x10, pending));
        let Got::Json(0x10, trusted) = driver.ask(&Request::Handshake(HandshakeRequest::Trusted)) else {
            panic!("no list")
        };
        let entry = &trusted["trusted"][0];
        assert_eq!(entry["public_key"], "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=");
        assert_eq!((&entry["mutual"], &entry["approved_at"]), (&json!(true), &json!(9)));
        let Got::Json(_, info) = driver.ask(&Request::Info) else { panic!("no info") };
        assert_eq!(info["handshake_pending_count"], 1);
        let without = daemon(Options::default());
        let Got::Error(text) = without.driver().ask(&Request::Handshake(HandshakeRequest::Pending)) else {
            panic!("a list without a list")
        };
        assert!(text.contains("no trust list"), "{text}");
    });
}

#[test]
fn a_broadcast_goes_to_every_member_of_the_network() {
    within(30 * SECOND, || {
        let registry = Arc::new(Registry::default());
        let (a, b) = pair(Options { registry: Some(registry.clone()), ..Options::default() });
        let (mut sender, mut receiver) = (a.driver(), b.driver());
        let Got::Json(..) = receiver.ask(&Request::Health) else { panic!("admitted") };
        let to = |network| {
            let address = Address { network: NetworkId(network), node: NodeId(u32::MAX) };
            SocketAddress::new(address, 7000)
        };
        let Got::Error(text) = sender.ask(&Request::SendTo { to: to(0), data: b"x" }) else { panic!("sent") };
        assert!(text.contains("backbone"), "{text}");
        *registry.members.lock().unwrap() = vec![b.address().node.0];
        let Got::Error(text) = sender.ask(&Request::SendTo { to: to(3), data: b"x" }) else { panic!("sent") };
        assert!(text.contains("no member"), "{text}");
        *registry.members.lock().unwrap() = vec![a.address().node.0, b.address().node.0];
        sender.put(&Request::SendTo { to: to(3), data: b"to all" });
        let Got::RecvFrom { from, port, data } = receiver.get() else { panic!("no datagram") };
        assert_eq!((from.address.node, port, data.as_slice()), (a.address().node, 7000, &b"to all"[..]));
    });
}

#[test]
fn events_are_posted_to_the_webhook() {
    within(30 * SECOND, || {
        let a = daemon(Options { trust: Some(Arc::new(Trust::default())), ..Options::default() });
        let hook = TcpListener::bind("127.0.0.1:0").expect("listen");
        let url = format!("http://{}/events", hook.local_addr().expect("address"));
        let mut driver = a.driver();
        assert_eq!(driver.ask(&Request::SetWebhook(&url)), Got::Json(0x1C, json!({ "webhook": url })));
        let node = NodeId(2);
        driver.ask(&Request::Handshake(HandshakeRequest::Approve { node }));
        let (mut stream, _) = hook.accept().expect("a post");
        stream.set_read_timeout(Some(5 * SECOND)).expect("timeout");
        let mut text = String::new();
        let mut buf = [0; 1024];
        while !text.ends_with("Z\"}") {
            let len = stream.read(&mut buf).expect("request");
            assert!(len > 0, "{text}");
            text.push_str(std::str::from_utf8(&buf[..len]).expect("text"));
        }
        stream.write_all(b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n").expect("answer");
        assert!(text.starts_with("POST /events HTTP/1.1\r\n"), "{text}");
        let body: Value = serde_json::from_str(text.split("\r\n\r\n").nth(1).expect("body")).expect("JSON");
        assert_eq!((&body["event"], &body["event_id"]), (&json!("handshake.approved"), &json!(1)));
        assert_eq!(body["node_id"], a.address().node.0);
        assert_eq!(body["data"], json!({ "peer_node_id": 2 }));
        assert_eq!(driver.ask(&Request::SetWebhook("")), Got::Json(0x1C, json!({ "webhook": "" })));
        let Got::Error(text) = driver.ask(&Request::SetWebhook("https://example.test/")) else {
            panic!("taken")
        };
        assert!(text.contains("https"), "{text}");
    });
}
