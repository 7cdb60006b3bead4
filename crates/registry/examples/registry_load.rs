//! Measures a registry on loopback: durable registrations, heartbeats, lookups and resolves per second.
//!
//! `cargo run --release -p pilotage-registry --example registry_load -- [clients] [nodes per client]`

#![allow(clippy::disallowed_methods, reason = "a measurement reads the clock")]

use ed25519_dalek::{Signer as _, SigningKey};
use pilotage_registry::client::{Client, Registration};
use pilotage_registry::engine::RateLimits;
use pilotage_registry::server::{Server, ServerConfig};
use pilotage_wire::NodeId;
use std::time::{Duration, Instant};

struct Load {
    client: Client,
    nodes: Vec<(NodeId, SigningKey)>,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let clients: u32 = args.next().map_or(Ok(32), |arg| arg.parse())?;
    let per_client: u32 = args.next().map_or(Ok(200), |arg| arg.parse())?;
    let dir = std::env::temp_dir().join(format!("registry-load-{}", std::process::id()));
    let mut config = ServerConfig::new(([127, 0, 0, 1], 0).into(), dir.join("hub.redb"));
    config.engine.rates = RateLimits::UNLIMITED;
    let server = Server::bind(config)?;
    let (addr, handle) = (server.local_addr().to_string(), server.handle());
    let thread = std::thread::spawn(move || server.run());
    let mut loads = Vec::new();
    for client in 0..clients {
        let mut nodes = Vec::new();
        for node in 0..per_client {
            let mut seed = [1; 32];
            seed[..8].copy_from_slice(&(u64::from(client) << 32 | u64::from(node)).to_be_bytes());
            nodes.push((NodeId(0), SigningKey::from_bytes(&seed)));
        }
        loads.push(Load { client: Client::connect(&addr, Duration::from_secs(30))?, nodes });
    }
    println!("{clients} clients, {per_client} nodes each, one request at a time per client");
    measure("register (challenge + proof, durable)", &mut loads, |client, node, key| {
        let wanted = Registration {
            public_key: key.verifying_key().to_bytes(),
            listen_addr: ":4000".into(),
            lan_addrs: vec![],
            hostname: None,
            public: true,
            public_abroad: true,
            owner: None,
        };
        let done = client.register(&wanted, &|message| key.sign(message).to_bytes());
        *node = done.expect("registered").address.node;
    });
    measure("heartbeat (signed)", &mut loads, |client, node, key| {
        client.heartbeat(*node, &|message| key.sign(message).to_bytes()).expect("alive");
    });
    measure("lookup", &mut loads, |client, node, _| {
        client.lookup(*node).expect("known");
    });
    measure("resolve (signed)", &mut loads, |client, node, key| {
        client.resolve(*node, *node, &|message| key.sign(message).to_bytes()).expect("found");
    });
    let stats = handle.stats();
    println!("{} requests, {} commits, {} nodes", stats.requests, stats.commits, stats.nodes);
    drop(loads);
    handle.stop();
    thread.join().expect("server thread")?;
    std::fs::remove_dir_all(dir)?;
    Ok(())
}

fn measure(what: &str, loads: &mut [Load], operation: impl Fn(&mut Client, &mut NodeId, &SigningKey) + Sync) {
    let started = Instant::now();
    let mut times: Vec<Duration> = std::thread::scope(|scope| {
        let workers: Vec<_> = loads
            .iter_mut()
            .map(|load| {
                let operation = &operation;
                scope.spawn(move || {
                    let mut times = Vec::with_capacity(load.nodes.len());
                    for (node, key) in &mut load.nodes {
                        let started = Instant::now();
                        operation(&mut load.client, node, key);
                        times.push(started.elapsed());
                    }
                    times
                })
            })
            .collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("worker")).collect()
    });
    let elapsed = started.elapsed();
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)].as_micros();
    println!(
        "{what:38} {:9.0}/s   p50 {:6} us   p99 {:6} us   max {:6} us",
        times.len() as f64 / elapsed.as_secs_f64(),
        at(50),
        at(99),
        at(100)
    );
}
