//! `pilotage hub`: registry (TCP) and beacon (UDP) in one process.

mod beacon;
mod options;

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, channel};
use std::thread;

use pilotage_registry::server::{Server, ServerConfig};
use pilotage_registry::tls::ServerTls;
use serde_json::json;

use self::beacon::BeaconServer;
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
    if args.exit_with_stdin {
        stop_with_stdin(context);
    }
    let store = store(context, args)?;
    let (registry_at, beacon_at) = addresses(args)?;
    let beacon = BeaconServer::bind(beacon_at).map_err(|error| {
        CliError::failure(
            "beacon",
            format!("UDP {beacon_at}: {error}"),
            "choose another port with --beacon-port, or stop the other program",
        )
    })?;
    let mut config = ServerConfig::new(registry_at, &store);
    options::apply(context, args, &mut config)?;
    let fingerprint = config.tls.as_ref().map(ServerTls::fingerprint_hex);
    let registry = Server::bind(config).map_err(|error| {
        // The text names the address or the file, and the way out behind a semicolon.
        let text = error.to_string();
        let (cause, next) = text.split_once("; ").unwrap_or((&text, "see --registry-port and --store"));
        CliError::failure("registry", cause, next)
    })?;
    let (registry_addr, beacon_addr) = (registry.local_addr(), beacon.local_addr());
    let handle = registry.handle();
    context.stop.on_request(move || handle.stop());
    let (ended, endings) = channel();
    serve_registry(registry, ended.clone())?;
    serve_beacon(context, beacon, ended)?;
    options::warn(context, args);
    ready(context, registry_addr, beacon_addr, &store, fingerprint.as_deref());
    // Both end after a signal; one that ends without it takes the hub down, loudly.
    for _ in 0..2 {
        let Ok(Ended { what, result }) = endings.recv() else { break };
        if !context.stop.requested() {
            let cause = result.err().unwrap_or_else(|| "ended by itself".into());
            return Err(CliError::failure(what, cause, "start the hub again; its store is intact"));
        }
    }
    context.output.note("hub stopped");
    Ok(())
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

fn ready(
    context: &Context,
    registry: SocketAddr,
    beacon: SocketAddr,
    store: &Path,
    fingerprint: Option<&str>,
) {
    let value = json!({
        "event": "ready",
        "registry": registry.to_string(),
        "beacon": beacon.to_string(),
        "store": store.display().to_string(),
        "tls_fingerprint": fingerprint,
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
    let over = if fingerprint.is_some() { "TCP, TLS" } else { "TCP" };
    let text = format!(
        "registry  {registry} ({over})\nbeacon    {beacon} (UDP)\nstore     {}\nnodes use {how}\nready; Ctrl-C ends the hub",
        store.display(),
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
            allow_unsigned: false,
            require_proof: false,
            admin_token_file: None,
            admin_token: None,
            tls: false,
            open_scores: false,
            allow_beacons: false,
            exit_with_stdin: false,
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
