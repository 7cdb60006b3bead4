//! `pilotage hub`: registry (TCP) and beacon (UDP) in one process.

mod backup;
pub(crate) mod beacon;
mod begin;
mod book;
mod cluster;
mod http;
mod index;
mod map;
mod ops;
mod options;
mod pages;
mod web;
mod wss;

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Instant;

use pilotage::beacon::BeaconServer;
use pilotage_registry::claims::ClaimLog;
use pilotage_registry::engine::OwnName;
use pilotage_registry::server::{BindError, Server, ServerConfig};
use pilotage_registry::tls::ServerTls;
use pilotage_services::find::HUB_INDEX;
use serde_json::json;

use self::backup::Part;
use self::ops::Hub;
use crate::args::HubArgs;
use crate::cmd::{Context, create_private_dir, stop_with_stdin};
use crate::error::CliError;

/// How often a pair of neighbouring free ports is looked for before two unrelated ones are taken.
const PAIR_TRIES: usize = 32;

/// One of the two servers has ended.
struct Ended {
    what: &'static str,
    result: Result<(), String>,
}

pub(crate) fn run(context: &Context, args: &HubArgs) -> Result<(), CliError> {
    if let Some(action) = &args.action {
        return ops::run(context, action);
    }
    if args.exit_with_stdin {
        stop_with_stdin(context);
    }
    let store = store(context, args)?;
    let (registry_at, beacon_at) = addresses(args)?;
    let options = beacon::options(beacon_at, args.require_proof, &args.sharing)?;
    let beacon = beacon::bind(options, "choose another port with --beacon-port, or stop the other program")?;
    let mut config = ServerConfig::new(registry_at, &store);
    options::apply(context, args, &mut config)?;
    let own_name = args.cluster.cluster.map(|_| OwnName::new(HUB_INDEX));
    config.engine.own_name.clone_from(&own_name);
    let pages = pages::Open::listen(args, &mut config)?;
    let fingerprint = config.tls.as_ref().map(ServerTls::fingerprint_hex);
    let pin = config.tls.as_ref().map(ServerTls::fingerprint);
    let mut registry = bind_registry(config)?;
    if args.cluster.cluster.is_some() {
        book::may_share(args, &store)?;
        registry.may_share().map_err(|error| in_the_way(&error))?;
    }
    let cluster = cluster::start(context, &args.cluster, args.pow_bits)?;
    if let Some(log) = &cluster {
        registry.share(log.clone()).map_err(|error| in_the_way(&error))?;
    }
    let shared = cluster.clone().map(|log| log as Arc<dyn ClaimLog>);
    let book::Open { book, store: claims_store, key, cluster: agreed, log, shelf } =
        book::open(args, &store, registry.local_addr(), shared)?;
    let parts = vec![
        Part { name: "registry", path: store.clone(), still: registry.still() },
        Part { name: "claims", path: claims_store.clone(), still: log.still() },
    ];
    registry.serve_book(book);
    let (registry_addr, beacon_addr) = (registry.local_addr(), beacon.local_addr());
    let mut beacon = beacon;
    // Whose id is proved to the beacon, the registry knows.
    let keys = registry.keys();
    beacon.set_key_source(Arc::new(move |node| keys.of(node)));
    let wss = wss::open(context, args, &mut beacon)?;
    let handle = registry.handle();
    let registry_handle = handle.clone();
    context.stop.on_request(move || handle.stop());
    let (ended, endings) = channel();
    serve_registry(registry, ended.clone())?;
    let told = beacon.handle();
    serve_beacon(context, beacon, ended.clone())?;
    let wss = wss.map(|wss| wss.serve(context, ended)).transpose()?;
    options::warn(context, args);
    // All of it ends with the hub.
    let hub = Arc::new(Hub {
        begun: Instant::now(),
        registry: registry_handle,
        beacon: told.clone(),
        shelf,
        parts,
        index: index::start(context, args, registry_addr, beacon_addr, pin, own_name.as_ref())?,
        cluster,
    });
    let _control = ops::control(context, &hub);
    let pages = pages.serve(context, &hub, registry_addr, pin)?;
    let stores = [store.as_path(), claims_store.as_path()];
    let more =
        More { registry_key: &key, agreed, fingerprint: fingerprint.as_deref(), wss: wss.as_ref(), pages };
    ready(context, [registry_addr, beacon_addr], stores, &hub, &more);
    beacon::report(context, args.sharing.stats, told)?;
    wait(context, &endings, 2 + usize::from(wss.is_some()))
}

/// All servers end after a signal; one that ends without it takes the hub down, loudly.
fn wait(context: &Context, endings: &Receiver<Ended>, servers: usize) -> Result<(), CliError> {
    for _ in 0..servers {
        let Ok(Ended { what, result }) = endings.recv() else { break };
        if !context.stop.requested() {
            let cause = result.err().unwrap_or_else(|| "ended by itself".into());
            return Err(CliError::failure(what, cause, "start the hub again; its store is intact"));
        }
    }
    context.output.note("hub stopped");
    Ok(())
}

fn bind_registry(config: ServerConfig) -> Result<Server, CliError> {
    Server::bind(config).map_err(|error| in_the_way(&error))
}

fn in_the_way(error: &BindError) -> CliError {
    // The text names the address or the file, and the way out behind a semicolon.
    let text = error.to_string();
    let (cause, next) = text.split_once("; ").unwrap_or((&text, "see --registry-port and --store"));
    CliError::failure("registry", cause, next)
}

fn store(context: &Context, args: &HubArgs) -> Result<PathBuf, CliError> {
    let path = args.store.clone().unwrap_or_else(|| context.settings.state.join("registry.redb"));
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    create_private_dir(dir).map_err(|error| {
        CliError::failure(
            "store",
            format!("{}: {error}", dir.display()),
            "name another file with --store FILE",
        )
    })?;
    Ok(path)
}

/// Where to listen. Without explicit ports the beacon is one above the registry, so that nodes need
/// only `--hub HOST:PORT`; that holds for any free port (0) too.
fn addresses(args: &HubArgs) -> Result<(SocketAddr, SocketAddr), CliError> {
    let at = |port| SocketAddr::new(args.listen, port);
    match (args.registry_port, args.beacon_port) {
        (registry, Some(beacon)) => Ok((at(registry), at(beacon))),
        (0, None) => Ok(free_pair(args).unwrap_or((at(0), at(0)))),
        (registry, None) => {
            let beacon = registry.checked_add(1).ok_or_else(|| {
                CliError::usage("beacon", "there is no port above 65535", "give --beacon-port PORT")
            })?;
            Ok((at(registry), at(beacon)))
        }
    }
}

/// A free TCP port whose successor is a free UDP port. Another program may take them in between:
/// then binding fails and says so.
fn free_pair(args: &HubArgs) -> Option<(SocketAddr, SocketAddr)> {
    (0..PAIR_TRIES).find_map(|_| {
        let tcp = TcpListener::bind((args.listen, 0)).ok()?.local_addr().ok()?;
        let udp = SocketAddr::new(args.listen, tcp.port().checked_add(1)?);
        UdpSocket::bind(udp).ok().map(|_| (tcp, udp))
    })
}

fn serve_registry(registry: Server, ended: Sender<Ended>) -> Result<(), CliError> {
    spawn("registry", move || {
        let result = registry.run().map_err(|error| error.to_string());
        let _ = ended.send(Ended { what: "registry", result });
    })
}

fn serve_beacon(context: &Context, mut beacon: BeaconServer, ended: Sender<Ended>) -> Result<(), CliError> {
    let stop = context.stop.clone();
    spawn("beacon", move || {
        let result = beacon.run(stop.flag()).map_err(|error| error.to_string());
        let _ = ended.send(Ended { what: "beacon", result });
    })
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), CliError> {
    thread::Builder::new().name(name.into()).spawn(run).map(drop).map_err(|error| {
        CliError::failure("start", format!("no thread: {error}"), "check the limits of this process")
    })
}

/// What else is said of a hub that is ready.
struct More<'a> {
    registry_key: &'a [u8; 32],
    /// Claims are signed by the cluster's nodes, not by this hub alone.
    agreed: bool,
    fingerprint: Option<&'a str>,
    wss: Option<&'a wss::Open>,
    pages: pages::At,
}

fn ready(
    context: &Context,
    [registry, beacon]: [SocketAddr; 2],
    [store, claims_store]: [&Path; 2],
    hub: &Hub,
    more: &More<'_>,
) {
    let More { registry_key, agreed, fingerprint, wss, pages } = *more;
    let index = hub.index.as_ref().map(|index| index.node.address().to_string());
    let value = json!({
        "event": "ready",
        "registry": registry.to_string(),
        "beacon": beacon.to_string(),
        "store": store.display().to_string(),
        "claims_store": claims_store.display().to_string(),
        "registry_key": hex::encode(registry_key),
        "tls_fingerprint": fingerprint,
        "wss": wss.map(|wss| wss.addr.to_string()),
        "wss_fingerprint": wss.map(|wss| hex::encode(wss.fingerprint)),
        "index": index,
        "web": pages.web.map(|at| at.to_string()),
        "metrics": pages.metrics.map(|at| at.to_string()),
        "pid": std::process::id(),
    });
    let host = if registry.ip().is_unspecified() { "HOST".to_owned() } else { url_host(registry) };
    let paired = registry.port().checked_add(1) == Some(beacon.port());
    let how = if paired {
        format!("--hub {host}:{}", registry.port())
    } else {
        format!("--registry {host}:{} --beacon {host}:{}", registry.port(), beacon.port())
    };
    let how = fingerprint.map_or(how.clone(), |pin| format!("{how} --registry-tls-pin {pin}"));
    let websocket = wss.map_or(String::new(), |wss| {
        let own = wss.own_certificate.then(|| format!(", --hub-wss-pin {}", hex::encode(wss.fingerprint)));
        format!("\nwebsocket {} (TCP, TLS){}", wss.addr, own.unwrap_or_default())
    });
    let line =
        |what: &str, text: Option<String>| text.map_or(String::new(), |text| format!("\n{what}{text}"));
    let also = [
        line("index     ", index),
        line("web       ", pages.web.map(|at| format!("http://{at}/"))),
        line("metrics   ", pages.metrics.map(|at| format!("http://{at}/metrics"))),
    ]
    .concat();
    let over = if fingerprint.is_some() { "TCP, TLS" } else { "TCP" };
    let signed = if agreed { "agreed in the cluster, signed by its nodes, here by" } else { "signed by" };
    let text = format!(
        "registry  {registry} ({over})\nbeacon    {beacon} (UDP){websocket}\nstore     {}\nclaims    {}, {signed} {}{also}\nnodes use {how}\nready; Ctrl-C ends the hub",
        store.display(),
        claims_store.display(),
        hex::encode(registry_key),
    );
    context.output.result(text, &value);
}

fn url_host(addr: SocketAddr) -> String {
    match addr {
        SocketAddr::V4(addr) => addr.ip().to_string(),
        SocketAddr::V6(addr) => format!("[{}]", addr.ip()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(registry_port: u16, beacon_port: Option<u16>) -> HubArgs {
        HubArgs {
            listen: "127.0.0.1".parse().unwrap(),
            registry_port,
            beacon_port,
            store: None,
            claims_store: None,
            replica_store: None,
            map: None,
            heartbeat: 30,
            pow_bits: 16,
            allow_unsigned: false,
            require_proof: false,
            sharing: Default::default(),
            admin_token_file: None,
            admin_token: None,
            tls: false,
            open_scores: false,
            allow_beacons: false,
            wss: None,
            tls_cert: None,
            tls_key: None,
            exit_with_stdin: false,
            action: None,
            cluster: Default::default(),
            index: None,
            web: None,
            metrics: None,
            http_anywhere: false,
        }
    }

    #[test]
    fn the_beacon_is_next_to_the_registry() {
        let (registry, beacon) = addresses(&args(9000, None)).unwrap();
        assert_eq!((registry.port(), beacon.port()), (9000, 9001));
        let (registry, beacon) = addresses(&args(0, None)).unwrap();
        assert_eq!(beacon.port(), registry.port() + 1);
        assert!(addresses(&args(65535, None)).is_err());
        assert_eq!(addresses(&args(65535, Some(1))).unwrap().1.port(), 1);
    }
}
