//! One registry node as a process of its own, with a control port for `cargo xtask registry-chaos`: claims, look-ups,
//! status and lost frames as lines of JSON over TCP. A test tool: it signs for anybody.

use std::collections::HashMap;
use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ed25519_dalek::SigningKey;
use pilotage_cluster::claims::RaftLog;
use pilotage_cluster::{ClusterConfig, DiskFault, Faults, Start};
use pilotage_registry::claims::{Claim, ClaimLog as _, Limits, Outcome, Subject};
use pilotage_wire::{NetworkId, addressing};
use serde_json::{Value, json};

/// Claimants have numbers below this.
const OWNERS: u64 = 256;
/// Most control connections.
const CONNECTIONS: usize = 256;

struct Node {
    log: RaftLog,
    faults: Faults,
    /// Agent id → number of the claimant.
    owners: HashMap<[u8; 32], u64>,
    connections: AtomicUsize,
}

fn main() -> Result<(), Box<dyn Error>> {
    if std::env::var_os("PILOTAGE_LOG").is_some() {
        tracing_subscriber::fmt().with_max_level(tracing::Level::INFO).with_writer(std::io::stderr).init();
    }
    let mut options: HashMap<String, String> = HashMap::new();
    let mut words = std::env::args().skip(1);
    while let (Some(name), Some(value)) = (words.next(), words.next()) {
        options.insert(name, value);
    }
    let need = |name: &str| options.get(name).cloned().ok_or(format!("{name} VALUE is missing"));
    let start = match options.get("--join") {
        Some(hosts) => Start::Join(hosts.split(',').map(str::to_owned).collect()),
        None => Start::Found,
    };
    let mut config = ClusterConfig::new(need("--folder")?, need("--bind")?.parse()?, start);
    config.token = Some(b"a token for tests only".to_vec());
    if let Some(every) = options.get("--snapshot-every") {
        config.snapshot_every = every.parse()?;
    }
    let faults = config.faults.clone();
    let patience =
        Duration::from_millis(options.get("--patience-ms").map_or(Ok(5_000), |text| text.parse())?);
    let limits = Limits { per_agent: u16::MAX, ..Limits::default() };
    let control = TcpListener::bind(need("--control")?.parse::<SocketAddr>()?)?;
    let log = RaftLog::start(config, limits, 0)?.with_patience(patience);
    let owners =
        (0..OWNERS).map(|owner| (addressing::agent_id(&key(owner).verifying_key().to_bytes()), owner));
    let node = Arc::new(Node { log, faults, owners: owners.collect(), connections: AtomicUsize::new(0) });
    println!("{}", json!({ "ready": true, "id": node.log.cluster().status().id }));
    for stream in control.incoming() {
        let (stream, node) = (stream?, node.clone());
        if node.connections.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS {
            node.connections.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        std::thread::spawn(move || {
            let _ = serve(&node, &stream);
            node.connections.fetch_sub(1, Ordering::Relaxed);
        });
    }
    Ok(())
}

fn serve(node: &Node, stream: &TcpStream) -> Result<(), Box<dyn Error>> {
    stream.set_nodelay(true)?;
    let mut writer = stream;
    for line in BufReader::new(stream).lines() {
        let reply = match serde_json::from_str::<Value>(&line?) {
            Ok(question) => {
                answer(node, &question).unwrap_or_else(|error| json!({ "error": error.to_string() }))
            }
            Err(error) => json!({ "error": error.to_string() }),
        };
        writer.write_all(format!("{reply}\n").as_bytes())?;
    }
    Ok(())
}

fn answer(node: &Node, question: &Value) -> Result<Value, Box<dyn Error>> {
    let name = || -> Result<Subject, Box<dyn Error>> {
        let name = question["name"].as_str().ok_or("name")?.to_owned();
        Ok(Subject::Hostname { network: NetworkId(0), name })
    };
    match question["op"].as_str() {
        Some("claim") => {
            let key = key(question["owner"].as_u64().ok_or("owner")?);
            let expires = u32::try_from(question["expires"].as_u64().ok_or("expires")?)?;
            let claim = Claim::new(name()?, key.verifying_key().to_bytes(), 1, expires).sign(0, &key, None);
            let outcomes = node.log.propose(vec![claim])?;
            Ok(match outcomes.first() {
                Some(Outcome::Granted { index }) => json!({ "granted": index }),
                Some(Outcome::TakenBy { agent_id, .. }) => json!({ "taken": node.owners.get(agent_id) }),
                Some(Outcome::Bad(bad)) => json!({ "error": bad.to_string() }),
                None => json!({ "error": "no outcome" }),
            })
        }
        Some("get") => {
            let fresh = question["fresh"].as_bool().unwrap_or(false);
            let held = if fresh { node.log.holder_now(&name()?)? } else { node.log.holder(&name()?)? };
            Ok(json!({ "holder": held.and_then(|held| node.owners.get(&held.claim.agent_id()).copied()) }))
        }
        Some("status") => Ok(serde_json::to_value(node.log.cluster().status())?),
        Some("root") => {
            let snapshot = node.log.snapshot()?;
            Ok(json!({ "bytes": snapshot.len(), "hash": blake3::hash(&snapshot).to_hex().as_str() }))
        }
        Some("cut") => {
            let endpoints = question["endpoints"].as_array().ok_or("endpoints")?;
            let endpoints: Result<Vec<SocketAddr>, _> =
                endpoints.iter().map(|text| text.as_str().unwrap_or_default().parse()).collect();
            node.faults.cut(endpoints?);
            Ok(json!({ "ok": true }))
        }
        Some("disk") => {
            node.faults.disk(match question["fault"].as_str() {
                Some("full") => DiskFault::Full,
                Some("sync") => DiskFault::Sync,
                _ => DiskFault::None,
            });
            Ok(json!({ "ok": true }))
        }
        Some("clock") => {
            node.faults.clock(question["ahead"].as_i64().ok_or("ahead")?);
            Ok(json!({ "ok": true }))
        }
        Some("remove") => {
            let id = question["id"].as_str().and_then(pilotage_cluster::parse_id).ok_or("id")?;
            node.log.cluster().remove(id)?;
            Ok(json!({ "ok": true }))
        }
        _ => Err("unknown op".into()),
    }
}

fn key(owner: u64) -> SigningKey {
    SigningKey::from_bytes(blake3::hash(&owner.to_be_bytes()).as_bytes())
}
