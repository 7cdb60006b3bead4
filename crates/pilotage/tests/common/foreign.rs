//! A registry as the reference's, as far as a node can tell: ids 1, 2, 3 in the order of arrival, no challenges, private
//! nodes, trust pairs made by one side. Its replies have the fields of spec/vectors/registry.json, which a test compares.
#![allow(dead_code, reason = "each test file uses a part")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

#[derive(Debug, Clone, Default)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) owner: Option<String>,
    pub(crate) addr: String,
    pub(crate) lan: Vec<String>,
    pub(crate) hostname: Option<String>,
    pub(crate) public: bool,
    pub(crate) networks: Vec<u16>,
    /// Reaped: unknown until it registers again.
    pub(crate) gone: bool,
}

#[derive(Debug, Default)]
pub(crate) struct World {
    pub(crate) nodes: BTreeMap<u32, Entry>,
    pub(crate) pairs: BTreeSet<(u32, u32)>,
    requests: BTreeMap<u32, Vec<Value>>,
    responses: BTreeMap<u32, Vec<Value>>,
    /// How often each type was asked for.
    pub(crate) calls: BTreeMap<String, usize>,
    /// Types that are refused.
    pub(crate) refused: BTreeSet<String>,
    /// The id for the next unknown key, if it is not the next number.
    pub(crate) next: Option<u32>,
}

pub(crate) struct Foreign {
    pub(crate) addr: SocketAddr,
    world: Arc<Mutex<World>>,
    stop: Arc<AtomicBool>,
}

impl Drop for Foreign {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.addr);
    }
}

impl Foreign {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("port");
        let addr = listener.local_addr().expect("address");
        let (world, stop) = (Arc::<Mutex<World>>::default(), Arc::<AtomicBool>::default());
        let (shared, stopping) = (world.clone(), stop.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopping.load(Ordering::SeqCst) {
                    return;
                }
                let (world, stream) = (shared.clone(), stream.expect("connection"));
                let stopping = stopping.clone();
                std::thread::spawn(move || serve(&world, stream, &stopping));
            }
        });
        Self { addr, world, stop }
    }

    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().expect("world")
    }

    pub(crate) fn calls(&self, kind: &str) -> usize {
        self.world().calls.get(kind).copied().unwrap_or(0)
    }
}

fn serve(world: &Mutex<World>, mut stream: TcpStream, stop: &AtomicBool) {
    let _ = stream.set_read_timeout(Some(Duration::from_secs(60)));
    let from = stream.peer_addr().expect("peer").ip().to_string();
    let mut length = [0; 4];
    while stream.read_exact(&mut length).is_ok() && !stop.load(Ordering::SeqCst) {
        let mut json = vec![0; u32::from_be_bytes(length) as usize];
        if stream.read_exact(&mut json).is_err() {
            return;
        }
        let request: Value = serde_json::from_slice(&json).expect("JSON");
        let reply = world.lock().expect("world").answer(&request, &from);
        let reply = reply.unwrap_or_else(|error| json!({ "type": "error", "error": error })).to_string();
        let sent = stream.write_all(&(reply.len() as u32).to_be_bytes());
        if sent.and_then(|()| stream.write_all(reply.as_bytes())).is_err() {
            return;
        }
    }
}

fn number(value: &Value) -> u32 {
    value.as_u64().unwrap_or(0) as u32
}

fn address(node: u32) -> String {
    format!("0:0000.{:04X}.{:04X}", node >> 16, node & 0xFFFF)
}

fn pair(a: u32, b: u32) -> (u32, u32) {
    (a.min(b), a.max(b))
}

type Answer = Result<Value, &'static str>;

impl World {
    pub(crate) fn answer(&mut self, request: &Value, from: &str) -> Answer {
        let kind = request["type"].as_str().unwrap_or_default().to_owned();
        *self.calls.entry(kind.clone()).or_default() += 1;
        if self.refused.contains(&kind) {
            return Err("request failed");
        }
        let node = number(&request["node_id"]);
        let peer = number(&request["peer_id"]);
        match kind.as_str() {
            "register" => self.register(request, from),
            "heartbeat" => {
                self.signed(request, node, &format!("heartbeat:{node}"))?;
                Ok(json!({ "type": "heartbeat_ok", "time": 1_795_240_732 }))
            }
            "lookup" => self.lookup(node),
            "resolve" => self.resolve(request),
            "resolve_hostname" => {
                let name = request["hostname"].as_str();
                let found =
                    self.nodes.iter().find(|(_, entry)| entry.hostname.as_deref() == name && !entry.gone);
                let (node, entry) = found.ok_or("hostname not found")?;
                if !entry.public && !self.may_see(number(&request["requester_id"]), *node) {
                    return Err("hostname not found");
                }
                Ok(json!({ "type": "resolve_hostname_ok", "node_id": node, "address": address(*node),
                    "hostname": entry.hostname, "public": entry.public }))
            }
            "set_visibility" => {
                self.signed(request, node, &format!("set_visibility:{node}"))?;
                let public = request["public"] == Value::Bool(true);
                self.node(node)?.public = public;
                let word = if public { "public" } else { "private" };
                Ok(json!({ "type": "set_visibility_ok", "node_id": node, "visibility": word }))
            }
            "set_hostname" => {
                self.signed(request, node, &format!("set_hostname:{node}"))?;
                self.node(node)?.hostname = request["hostname"].as_str().map(str::to_owned);
                Ok(json!({ "type": "set_hostname_ok", "node_id": node, "hostname": request["hostname"] }))
            }
            "report_trust" => {
                self.signed(request, node, &format!("report_trust:{node}:{peer}"))?;
                self.pairs.insert(pair(node, peer));
                Ok(json!({ "type": "report_trust_ok" }))
            }
            "revoke_trust" => {
                self.signed(request, node, &format!("revoke_trust:{node}:{peer}"))?;
                match self.pairs.remove(&pair(node, peer)) {
                    true => Ok(json!({ "type": "revoke_trust_ok" })),
                    false => Err("no trust pair"),
                }
            }
            "check_trust" => Ok(json!({ "type": "check_trust_ok", "trusted": self.may_see(node, peer) })),
            "request_handshake" | "poll_handshakes" | "respond_handshake" => self.handshake(&kind, request),
            _ => Err("request failed"),
        }
    }

    fn register(&mut self, request: &Value, from: &str) -> Answer {
        let key = request["public_key"].as_str().ok_or("public_key required")?.to_owned();
        let known = self.nodes.iter().find(|(_, entry)| entry.key == key).map(|(node, _)| *node);
        let fresh = self.next.take().unwrap_or(self.nodes.len() as u32 + 1);
        let node = known.unwrap_or(fresh);
        let listen = request["listen_addr"].as_str().ok_or("listen_addr required")?;
        let port = listen.rsplit_once(':').ok_or("no port")?.1;
        let entry = self.nodes.entry(node).or_default();
        (entry.key, entry.addr, entry.gone) = (key, format!("{from}:{port}"), false);
        entry.owner = request["owner"].as_str().map(str::to_owned);
        let lan = request["lan_addrs"].as_array().cloned().unwrap_or_default();
        entry.lan = lan.iter().filter_map(|addr| addr.as_str().map(str::to_owned)).collect();
        if entry.networks.is_empty() {
            entry.networks.push(0);
        }
        let mut reply = json!({ "type": "register_ok", "node_id": node, "address": address(node), "network_id": 0,
            "public_key": entry.key, "observed_addr": entry.addr, "protocol_version": 1 });
        if let Some(name) = request["hostname"].as_str() {
            entry.hostname = Some(name.to_owned());
            reply["hostname"] = name.into();
        }
        Ok(reply)
    }

    fn lookup(&mut self, node: u32) -> Answer {
        let entry = self.node(node)?.clone();
        let mut reply = json!({ "type": "lookup_ok", "node_id": node, "address": address(node),
            "networks": entry.networks, "public_key": entry.key, "public": entry.public, "polo_score": 0 });
        if let Some(name) = &entry.hostname {
            reply["hostname"] = name.as_str().into();
        }
        if entry.public {
            reply["real_addr"] = entry.addr.as_str().into();
        }
        Ok(reply)
    }

    fn resolve(&mut self, request: &Value) -> Answer {
        let (node, requester) = (number(&request["node_id"]), number(&request["requester_id"]));
        self.signed(request, requester, &format!("resolve:{requester}:{node}"))?;
        let seen = self.may_see(requester, node);
        let entry = self.node(node)?.clone();
        if !entry.public && !seen {
            return Err("request failed");
        }
        let mut reply =
            json!({ "type": "resolve_ok", "node_id": node, "real_addr": entry.addr, "key_age_days": 0 });
        if !entry.lan.is_empty() {
            reply["lan_addrs"] = json!(entry.lan);
        }
        Ok(reply)
    }

    fn handshake(&mut self, kind: &str, request: &Value) -> Answer {
        match kind {
            "request_handshake" => {
                let (from, to) = (number(&request["from_node_id"]), number(&request["to_node_id"]));
                self.signed(request, from, &format!("handshake:{from}:{to}"))?;
                self.node(to)?;
                let waiting = self.requests.entry(to).or_default();
                if waiting.iter().any(|other| number(&other["from_node_id"]) == from) {
                    return Err("request failed");
                }
                waiting.push(json!({ "from_node_id": from, "justification": request["justification"],
                    "timestamp": 1_795_240_732 }));
                Ok(json!({ "type": "request_handshake_ok", "status": "delivered" }))
            }
            "poll_handshakes" => {
                let node = number(&request["node_id"]);
                self.signed(request, node, &format!("poll_handshakes:{node}"))?;
                let requests = self.requests.remove(&node).unwrap_or_default();
                let responses = self.responses.remove(&node).unwrap_or_default();
                Ok(json!({ "type": "poll_handshakes_ok", "requests": requests, "responses": responses }))
            }
            _ => {
                let (node, peer) = (number(&request["node_id"]), number(&request["peer_id"]));
                self.signed(request, node, &format!("respond:{node}:{peer}"))?;
                let accept = request["accept"] == Value::Bool(true);
                if accept {
                    self.pairs.insert(pair(node, peer));
                }
                let response = json!({ "from_node_id": node, "accept": accept, "timestamp": 1_795_240_732 });
                self.responses.entry(peer).or_default().push(response);
                Ok(json!({ "type": "respond_handshake_ok", "accept": accept, "peer_id": peer }))
            }
        }
    }

    fn node(&mut self, node: u32) -> Result<&mut Entry, &'static str> {
        self.nodes.get_mut(&node).filter(|entry| !entry.gone).ok_or("request failed")
    }

    fn may_see(&self, a: u32, b: u32) -> bool {
        let networks =
            |node| self.nodes.get(&node).map(|entry: &Entry| entry.networks.clone()).unwrap_or_default();
        let theirs = networks(b);
        self.pairs.contains(&pair(a, b)) || networks(a).iter().any(|net| *net != 0 && theirs.contains(net))
    }

    fn signed(&mut self, request: &Value, node: u32, text: &str) -> Result<(), &'static str> {
        let decode = |text: &str| STANDARD.decode(text).unwrap_or_default();
        let key = decode(&self.node(node)?.key);
        let signature = decode(request["signature"].as_str().unwrap_or_default());
        match (key.try_into(), signature.try_into()) {
            (Ok(key), Ok(signature)) if pilotage::verify(&key, text.as_bytes(), &signature) => Ok(()),
            _ => Err("request failed"),
        }
    }
}
