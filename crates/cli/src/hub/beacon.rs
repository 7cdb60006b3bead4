//! `pilotage beacon`, and what the beacon of a hub has in common with it.

use std::io::Read;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::time::Duration;

use pilotage::beacon::{BeaconConfig, BeaconHandle, BeaconOptions, BeaconServer, BeaconSnapshot, Rate};
use serde_json::{Value, json};

use crate::args::{BeaconArgs, BeaconSharing, parse_key};
use crate::cmd::{Context, stop_with_stdin};
use crate::error::CliError;

/// Most other beacons.
const MAX_OTHERS: usize = 16;

pub(crate) fn run(context: &Context, args: &BeaconArgs) -> Result<(), CliError> {
    if args.exit_with_stdin {
        stop_with_stdin(context);
    }
    let listen = SocketAddr::new(args.listen, args.port);
    let options = options(listen, args.require_proof, &args.sharing)?;
    let mut server = bind(options, "choose another port with --port, or stop the other program")?;
    let local = server.local_addr();
    let value = json!({
        "event": "ready",
        "beacon": local.to_string(),
        "second_port": server.second_port(),
        "others": args.sharing.other_beacon,
        "pid": std::process::id(),
    });
    let host = if local.ip().is_unspecified() { "HOST".to_owned() } else { super::url_host(local) };
    let text = format!(
        "beacon    {local} (UDP)\nnodes use --beacon {host}:{}\nready; Ctrl-C ends the beacon",
        local.port()
    );
    context.output.result(text, &value);
    report(context, args.sharing.stats, server.handle())?;
    server.run(context.stop.flag()).map_err(|error| {
        CliError::failure("beacon", error.to_string(), "start it again; nodes register by themselves")
    })?;
    let snapshot = server.handle().snapshot();
    context.output.note(text_of(&snapshot));
    context.output.note("beacon stopped");
    Ok(())
}

pub(super) fn bind(options: BeaconOptions, next: &'static str) -> Result<BeaconServer, CliError> {
    let listen = options.listen;
    BeaconServer::bind(options)
        .map_err(|error| CliError::failure("beacon", format!("UDP {listen}: {error}"), next))
}

pub(super) fn options(
    listen: SocketAddr,
    require_proof: bool,
    sharing: &BeaconSharing,
) -> Result<BeaconOptions, CliError> {
    let burst = |per_second: u64| Rate { per_second, burst: (per_second / 8).max(1 << 20) };
    let usual = BeaconConfig::default();
    let per_prefix = usual.relay_bytes_per_prefix.per_second.max(sharing.relay_limit_per_node);
    let config = BeaconConfig {
        require_proof,
        names: sharing.public_addr.clone(),
        peers: others(&sharing.other_beacon)?,
        peer_key: sharing.beacon_key_file.as_deref().map(read_key).transpose()?,
        relay_bytes_total: burst(sharing.relay_limit),
        relay_bytes_per_node: burst(sharing.relay_limit_per_node),
        relay_bytes_per_prefix: burst(per_prefix),
        ..usual
    };
    Ok(BeaconOptions { listen, second_port: Some(sharing.second_port), config })
}

fn others(names: &[String]) -> Result<Vec<SocketAddr>, CliError> {
    if names.len() > MAX_OTHERS {
        let cause = format!("{} were named, at most {MAX_OTHERS} can be", names.len());
        return Err(CliError::usage("other beacons", cause, "name fewer"));
    }
    let resolve = |name: &String| {
        let found = name.to_socket_addrs().map_err(|error| error.to_string());
        found.and_then(|mut all| all.next().ok_or_else(|| "no address".to_owned())).map_err(|cause| {
            CliError::failure("other beacon", format!("{name}: {cause}"), "give it as HOST:PORT")
        })
    };
    names.iter().map(resolve).collect()
}

fn read_key(path: &Path) -> Result<[u8; 32], CliError> {
    let mut text = String::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(1_024).read_to_string(&mut text));
    let failed = |cause: String| {
        CliError::failure(
            "beacon key",
            format!("{}: {cause}", path.display()),
            "make one with `openssl rand -hex 32`, readable by you only, and copy it to the other beacons",
        )
    };
    read.map_err(|error| failed(error.to_string()))?;
    parse_key(text.trim()).map_err(failed)
}

/// Prints the counters now and then.
pub(super) fn report(context: &Context, every: Option<u32>, handle: BeaconHandle) -> Result<(), CliError> {
    let Some(every) = every.filter(|every| *every > 0) else { return Ok(()) };
    let (output, stop) = (context.output.clone(), context.stop.clone());
    super::spawn("beacon-stats", move || {
        loop {
            for _ in 0..every.saturating_mul(10) {
                if stop.requested() {
                    return;
                }
                std::thread::sleep(Duration::from_millis(100));
            }
            let snapshot = handle.snapshot();
            output.result(text_of(&snapshot), &json_of(&snapshot));
        }
    })
}

fn text_of(snapshot: &BeaconSnapshot) -> String {
    let stats = &snapshot.stats;
    format!(
        "nodes {} ({} proven), {} elsewhere; relayed {}, introduced {}; refused {}",
        stats.registered,
        stats.proven,
        stats.remote,
        stats.relays + stats.carried,
        stats.punches,
        stats.proofs_refused + stats.not_registered + stats.not_permitted + stats.over_budget,
    )
}

pub(super) fn json_of(snapshot: &BeaconSnapshot) -> Value {
    let stats = &snapshot.stats;
    let beacons: Vec<Value> = snapshot
        .beacons
        .iter()
        .map(|(address, heard)| {
            json!({ "address": address.to_string(), "heard_ms": heard.map(|heard| heard.as_millis() as u64) })
        })
        .collect();
    json!({
        "event": "beacon",
        "registered": stats.registered,
        "proven": stats.proven,
        "remote": stats.remote,
        "datagrams_in": stats.datagrams_in,
        "bytes_in": stats.bytes_in,
        "datagrams_out": stats.datagrams_out,
        "bytes_out": stats.bytes_out,
        "unsent": snapshot.unsent,
        "unpaid": stats.unpaid,
        "table_full": stats.table_full,
        "takeovers_refused": stats.takeovers_refused,
        "displaced": stats.displaced,
        "discovers": stats.discovers,
        "hellos": stats.hellos,
        "proofs": stats.proofs,
        "proofs_refused": stats.proofs_refused,
        "probes": stats.probes,
        "punches": stats.punches,
        "relays": stats.relays,
        "handed_over": stats.handed_over,
        "carried": stats.carried,
        "syncs": stats.syncs,
        "malformed": stats.malformed,
        "not_for_beacons": stats.not_for_beacons,
        "bad_source": stats.bad_source,
        "over_budget": stats.over_budget,
        "not_registered": stats.not_registered,
        "unreachable": stats.unreachable,
        "not_permitted": stats.not_permitted,
        "bad_beacon": stats.bad_beacon,
        "beacons": beacons,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_options_say_what_the_flags_said() {
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("key");
        std::fs::write(&key, format!("{}\n", "ab".repeat(32))).unwrap();
        let sharing = BeaconSharing {
            other_beacon: vec!["127.0.0.1:9101".into()],
            beacon_key_file: Some(key.clone()),
            relay_limit: 1 << 30,
            relay_limit_per_node: 1 << 29,
            ..BeaconSharing::default()
        };
        let listen = "127.0.0.1:9001".parse().unwrap();
        let config = options(listen, true, &sharing).unwrap().config;
        assert_eq!(config.peers, ["127.0.0.1:9101".parse().unwrap()]);
        assert_eq!((config.peer_key, config.require_proof), (Some([0xAB; 32]), true));
        assert_eq!(config.relay_bytes_total, Rate { per_second: 1 << 30, burst: 1 << 27 });
        assert!(config.relay_bytes_per_prefix.per_second >= 1 << 29);
        std::fs::write(&key, "abc").unwrap();
        assert!(options(listen, true, &sharing).is_err());
        let many = BeaconSharing { other_beacon: vec!["127.0.0.1:1".into(); 17], ..BeaconSharing::default() };
        assert!(options(listen, false, &many).is_err());
    }
}
