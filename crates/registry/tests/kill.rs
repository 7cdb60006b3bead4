//! kill -9 of a hub process in the middle of registrations: nothing acknowledged is lost (spec/registry.md §8.1).
//!
//! The hub is this test binary started again with an environment variable.

use ed25519_dalek::{Signer as _, SigningKey};
use pilotage_registry::client::{Client, Registration};
use pilotage_registry::engine::RateLimits;
use pilotage_registry::server::{Server, ServerConfig};
use pilotage_registry::store::Store;
use pilotage_wire::NodeId;
use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

const STORE: &str = "PILOTAGE_TEST_HUB_STORE";
const ROUNDS: u32 = 6;
const CLIENTS: u32 = 4;

/// The child's part. Does nothing in an ordinary test run.
#[test]
fn hub_process() {
    let Ok(store) = std::env::var(STORE) else { return };
    let mut config = ServerConfig::new(([127, 0, 0, 1], 0).into(), store);
    config.engine.rates = RateLimits::UNLIMITED;
    let server = Server::bind(config).expect("bind");
    println!("\nlistening {}", server.local_addr());
    std::io::stdout().flush().unwrap();
    server.run().expect("run");
}

fn start_hub(store: &Path) -> (Child, String) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["hub_process", "--exact", "--nocapture", "--test-threads=1"])
        .env(STORE, store)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let addr = lines
        .by_ref()
        .map_while(Result::ok)
        .find_map(|line| line.split_once("listening ").map(|(_, addr)| addr.trim().to_owned()))
        .expect("the hub says where it listens");
    // Keeps the pipe open; the child prints nothing more.
    std::mem::forget(lines);
    (child, addr)
}

/// Number → node, port of the last acknowledged registration.
type Acknowledged = BTreeMap<u32, (NodeId, u16)>;

fn key(n: u32) -> SigningKey {
    let mut seed = [7; 32];
    seed[..4].copy_from_slice(&n.to_be_bytes());
    SigningKey::from_bytes(&seed)
}

/// Registers new nodes, and moves older ones, until the hub dies.
fn register_until_dead(addr: &str, round: u32, next: &AtomicU32, acknowledged: &Mutex<Acknowledged>) {
    let Ok(mut client) = Client::connect(addr, Duration::from_secs(5)) else { return };
    let port = u16::try_from(1_000 + round).unwrap();
    loop {
        let fresh = next.fetch_add(1, Ordering::Relaxed);
        for n in [fresh, fresh / 3] {
            let key = key(n);
            let wanted = Registration {
                public_key: key.verifying_key().to_bytes(),
                listen_addr: format!(":{port}"),
                lan_addrs: vec![],
                hostname: Some(format!("node-{n}")),
                public: true,
                public_abroad: true,
                owner: None,
            };
            match client.register(&wanted, &|message| key.sign(message).to_bytes()) {
                Ok(done) => {
                    assert_eq!(done.hostname_error, None);
                    acknowledged.lock().unwrap().insert(n, (done.address.node, port));
                }
                Err(_) => return,
            }
        }
    }
}

#[test]
fn kill_9_loses_nothing_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("hub.redb");
    let acknowledged = Mutex::new(Acknowledged::new());
    let next = AtomicU32::new(0);
    for round in 0..ROUNDS {
        let (mut child, addr) = start_hub(&store);
        std::thread::scope(|scope| {
            for _ in 0..CLIENTS {
                scope.spawn(|| register_until_dead(&addr, round, &next, &acknowledged));
            }
            std::thread::sleep(Duration::from_millis(150 + u64::from(round) * 37));
            // SIGKILL on Unix.
            child.kill().unwrap();
            child.wait().unwrap();
        });
        let known = acknowledged.lock().unwrap();
        let (store_handle, records) = Store::open(&store).unwrap();
        let records: BTreeMap<_, _> = records.into_iter().collect();
        for (n, (node, port)) in known.iter() {
            let record = records.get(node).unwrap_or_else(|| panic!("node {n} is lost in round {round}"));
            assert_eq!(record.public_key, key(*n).verifying_key().to_bytes());
            assert_eq!(record.hostname.as_deref(), Some(format!("node-{n}").as_str()));
            // A move that was under way may have been stored without being acknowledged.
            let found = record.endpoint.unwrap().port();
            assert!(found >= *port, "node {n} went back from {port} to {found} in round {round}");
        }
        drop(store_handle);
        println!("round {round}: {} acknowledged, {} on disk", known.len(), records.len());
    }
    let known = acknowledged.into_inner().unwrap();
    assert!(known.len() >= 20, "only {} registrations were made", known.len());
    // And over the wire.
    let (mut child, addr) = start_hub(&store);
    let mut client = Client::connect(&addr, Duration::from_secs(5)).unwrap();
    for (n, (node, _)) in &known {
        let found = client.resolve_hostname(&format!("node-{n}"), None).unwrap();
        assert_eq!(found.node, *node);
    }
    child.kill().unwrap();
    child.wait().unwrap();
}
