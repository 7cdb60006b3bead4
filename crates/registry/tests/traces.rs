//! Recorded requests of reference daemons (spec/vectors/traces) at our registry, over a real socket: what they asked a
//! hub of ours is answered again, and with the fields of the reference's own replies.

#![cfg(all(feature = "server", not(feature = "fuzzing")))]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use pilotage_registry::server::{Server, ServerConfig};
use serde_json::Value;

const REFERENCE: &str = include_str!("../../../spec/vectors/traces/plain.json");
const HUB: &str = include_str!("../../../spec/vectors/traces/hub.json");

/// Requests with their replies, in order, with who asked.
fn calls(trace: &str) -> Vec<(String, Value, Value)> {
    let trace: Value = serde_json::from_str(trace).expect("JSON");
    let mut open: BTreeMap<(String, u64), Value> = BTreeMap::new();
    let mut calls = Vec::new();
    for event in trace["events"].as_array().expect("events") {
        let Some(who) = event["registry"].as_str() else { continue };
        let at = (who.to_owned(), event["connection"].as_u64().expect("number"));
        let message: Value = serde_json::from_str(event["text"].as_str().expect("text")).expect("JSON");
        if event["dir"] == "request" {
            open.insert(at, message);
        } else {
            let request = open.remove(&at).expect("a reply follows a request");
            calls.push((at.0, request, message));
        }
    }
    assert!(calls.len() >= 15);
    calls
}

fn ask(socket: &mut TcpStream, request: &Value) -> Value {
    let text = serde_json::to_vec(request).expect("JSON");
    socket.write_all(&(text.len() as u32).to_be_bytes()).expect("length");
    socket.write_all(&text).expect("request");
    let mut head = [0; 4];
    socket.read_exact(&mut head).expect("reply");
    let mut reply = vec![0; u32::from_be_bytes(head) as usize];
    socket.read_exact(&mut reply).expect("reply");
    serde_json::from_slice(&reply).expect("JSON")
}

fn fields(value: &Value) -> BTreeSet<String> {
    value.as_object().expect("object").keys().cloned().collect()
}

/// What the reference's replies of each type always carry.
fn reference_fields() -> BTreeMap<String, BTreeSet<String>> {
    let mut known: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (_, request, reply) in calls(REFERENCE) {
        if reply["type"] != "error" {
            let kind = request["type"].as_str().expect("type").to_owned();
            let now = fields(&reply);
            known.entry(kind).and_modify(|all| *all = &*all & &now).or_insert(now);
        }
    }
    known
}

fn with_server(test: impl FnOnce(SocketAddr)) {
    let folder = tempfile::tempdir().expect("folder");
    let mut config = ServerConfig::new(([127, 0, 0, 1], 0).into(), folder.path().join("registry.redb"));
    config.engine.unsigned = pilotage_registry::engine::Unsigned::Trusted;
    let server = Server::bind(config).expect("server");
    let (address, handle) = (server.local_addr(), server.handle());
    let thread = std::thread::spawn(move || server.run());
    test(address);
    handle.stop();
    thread.join().expect("no panic").expect("clean end");
}

#[test]
fn recorded_daemons_are_served_again_with_the_fields_of_the_reference() {
    let reference = reference_fields();
    assert!(reference.len() >= 8, "{:?}", reference.keys());
    with_server(|address| {
        let mut sockets: BTreeMap<String, TcpStream> = BTreeMap::new();
        let mut compared = BTreeSet::new();
        for (who, request, recorded) in calls(HUB) {
            let socket = sockets.entry(who).or_insert_with(|| {
                let socket = TcpStream::connect(address).expect("connect");
                socket.set_read_timeout(Some(Duration::from_secs(10))).expect("timeout");
                socket
            });
            let reply = ask(socket, &request);
            let kind = request["type"].as_str().expect("type");
            if recorded["type"] == "error" {
                // What was unknown when it was recorded may be served by now.
                continue;
            }
            assert_eq!(reply["type"], recorded["type"], "{request} gave {reply}");
            assert_eq!(reply["node_id"], recorded["node_id"], "the key gives the id");
            if let Some(wanted) = reference.get(kind) {
                let missing: Vec<_> = wanted.difference(&fields(&reply)).cloned().collect();
                assert!(missing.is_empty(), "{kind}: the reply lacks {missing:?}");
                compared.insert(kind.to_owned());
            }
        }
        for kind in ["register", "set_visibility", "set_hostname", "resolve", "resolve_hostname", "lookup"] {
            assert!(compared.contains(kind), "{kind}");
        }
    });
}

#[test]
fn every_request_of_the_reference_is_answered_and_none_ends_the_connection() {
    with_server(|address| {
        let mut socket = TcpStream::connect(address).expect("connect");
        socket.set_read_timeout(Some(Duration::from_secs(10))).expect("timeout");
        // Their ids and signatures belong to another registry: errors, but answers.
        for (_, request, _) in calls(REFERENCE) {
            let reply = ask(&mut socket, &request);
            assert!(reply["type"].is_string(), "{request} gave {reply}");
        }
    });
}
