//! What a running hub tells its operator: `hub status`, metrics, and the data of the web page.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use pilotage::beacon::BeaconHandle;
use pilotage_cluster::claims::RaftLog;
use pilotage_cluster::{FILE, Status};
use pilotage_registry::book::shelf::Shelf;
use pilotage_registry::server::ServerHandle;
use serde_json::{Value, json};

use super::backup::{self, Part};
use super::begin::{self, Files};
use super::index::Index;
use super::{beacon, cluster, map};
use crate::args::{HubAction, HubFiles};
use crate::cmd::{Context, create_private_dir};
use crate::control;
use crate::error::CliError;

/// Longest wait for a change of members.
const CHANGE: Duration = Duration::from_secs(15);
/// Longest wait for a backup.
const BACKUP: Duration = Duration::from_secs(600);

/// The parts of a running hub, as far as they can be asked.
pub(super) struct Hub {
    pub(super) begun: Instant,
    pub(super) registry: ServerHandle,
    pub(super) beacon: BeaconHandle,
    pub(super) shelf: Arc<dyn Shelf>,
    pub(super) parts: Vec<Part>,
    pub(super) index: Option<Index>,
    pub(super) cluster: Option<Arc<RaftLog>>,
}

#[allow(clippy::disallowed_methods, reason = "the hub says when a backup was made")]
fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

impl Hub {
    /// All that is known, one JSON object. The fields of the cluster stand at the top, as they did before there were others.
    pub(super) fn status(&self) -> Value {
        let stats = self.registry.stats();
        let mut value = match &self.cluster {
            Some(log) => serde_json::to_value(log.cluster().status()).unwrap_or_default(),
            None => json!({ "cluster": null }),
        };
        let stores = self.parts.iter().map(|part| {
            let bytes = std::fs::metadata(&part.path).map(|data| data.len()).ok();
            json!({ "name": part.name, "file": part.path.display().to_string(), "bytes": bytes })
        });
        value["event"] = "hub_status".into();
        value["hub"] = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "pid": std::process::id(),
            "uptime_s": self.begun.elapsed().as_secs(),
            "registry": {
                "nodes": stats.nodes, "names": stats.names, "connections": stats.connections,
                "accepted": stats.accepted, "turned_away": stats.turned_away, "cut": stats.cut,
                "requests": stats.requests, "errors": stats.errors, "commits": stats.commits,
                "store_failures": stats.store_failures, "read_only": stats.read_only,
                "shared": stats.shared,
            },
            "claims": {
                "claims": self.shelf.log().claims(), "records": self.shelf.records().ok(),
                "pow_bits": self.shelf.log().pow_bits(),
            },
            "beacon": beacon::json_of(&self.beacon.snapshot()),
            "index": self.index.as_ref().map(|index| json!({
                "address": index.node.address().to_string(),
                "agents": index.host.known(), "groups": index.host.groups(),
            })),
            "stores": stores.collect::<Vec<_>>(),
        });
        value
    }

    /// The same as Prometheus reads it.
    pub(super) fn metrics(&self) -> String {
        metrics(&self.status())
    }

    fn answer(&self, request: &Value) -> Value {
        match request["cmd"].as_str() {
            Some("status") => self.status(),
            Some("backup") => {
                let to = PathBuf::from(request["to"].as_str().unwrap_or_default());
                let mut caught_up = true;
                let agreed = || {
                    let (agreed, newest) = cluster::agreed(self.cluster.as_deref()?);
                    caught_up = newest;
                    Some(agreed)
                };
                match backup::write(&self.parts, agreed, &to, unix_time()) {
                    Ok(summary) => json!({
                        "event": "backup", "file": to.display().to_string(), "bytes": summary.bytes,
                        "cluster": self.cluster.as_ref().map(|log| log.cluster().status().cluster),
                        "caught_up": caught_up,
                    }),
                    Err(error) => json!({ "error": format!("{}: {error}", to.display()) }),
                }
            }
            Some("remove") => match &self.cluster {
                Some(log) => cluster::remove(log, request),
                None => json!({ "error": "this hub is of no cluster" }),
            },
            _ => json!({ "error": "unknown request" }),
        }
    }
}

fn folder(context: &Context) -> PathBuf {
    context.settings.state.join("hub")
}

/// Answers `hub status` and the like for as long as the value lives. Without it the hub works all the same.
pub(super) fn control(context: &Context, hub: &Arc<Hub>) -> Option<control::Server> {
    let (folder, hub) = (folder(context), hub.clone());
    let answer = move |request: &Value| control::Reply::Line(hub.answer(request));
    let served = create_private_dir(&folder).and_then(|()| control::Server::start(&folder, answer));
    served
        .map_err(|error| {
            context.output.note(format!("note: `pilotage hub status` will not work here: {error}"))
        })
        .ok()
}

/// `pilotage hub status`, `remove`, `backup` and `restore`.
pub(super) fn run(context: &Context, action: &HubAction) -> Result<(), CliError> {
    match action {
        HubAction::Status => {
            let reply = ask(context, &json!({ "cmd": "status" }), Duration::ZERO)?;
            context.output.result(text(&reply), &reply);
        }
        HubAction::Remove { id } => {
            let reply = ask(context, &json!({ "cmd": "remove", "id": id }), CHANGE)?;
            context.output.result("removed", &reply);
        }
        // Asks no hub.
        HubAction::Map(args) => map::write(context, args)?,
        HubAction::Backup { file } => {
            // The hub may have been started in another directory.
            let to = std::path::absolute(file).unwrap_or_else(|_| file.clone());
            let reply = ask(context, &json!({ "cmd": "backup", "to": to.to_str() }), BACKUP)?;
            let behind = match reply["caught_up"].as_bool() {
                Some(false) => "; no majority answers: what other hubs took last may be missing",
                _ => "",
            };
            let words = format!(
                "{} ({} bytes): keep it secret, keys are inside{behind}",
                to.display(),
                reply["bytes"]
            );
            context.output.result(words, &reply);
        }
        HubAction::Restore { file, force, new_cluster, files } => {
            restore(context, file, files, (*force, *new_cluster))?;
        }
        HubAction::ToCluster { files } => to_cluster(context, files)?,
    }
    Ok(())
}

fn ask(context: &Context, request: &Value, patience: Duration) -> Result<Value, CliError> {
    let folder = folder(context);
    let reply = control::request_with(&folder, request, patience).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => CliError::failure(
            "hub",
            format!("no hub is running in {}", context.settings.state.display()),
            "start one with `pilotage hub` (or `pilotage hub --cluster IP:PORT`), or name its directory with --state DIR",
        ),
        _ => CliError::failure(
            "hub",
            format!("{}: {error}", control::path(&folder).display()),
            "check that the hub in this directory is yours and answers",
        ),
    })?;
    match reply["error"].as_str() {
        Some(error) => {
            Err(CliError::failure("hub", error, "see `pilotage hub status` and `pilotage hub --help`"))
        }
        None => Ok(reply),
    }
}

fn files(context: &Context, args: &HubFiles) -> Files {
    let registry = args.store.clone().unwrap_or_else(|| context.settings.state.join("registry.redb"));
    let claims = args.claims_store.clone().unwrap_or_else(|| registry.with_extension("claims.redb"));
    Files { registry, claims, cluster: cluster::folder(context) }
}

fn restore(
    context: &Context,
    file: &Path,
    args: &HubFiles,
    (force, new_cluster): (bool, bool),
) -> Result<(), CliError> {
    let files = files(context, args);
    if !new_cluster && (files.cluster.join(FILE).exists() || begin::waits(&files.cluster)) {
        return Err(CliError::failure(
            "restore",
            format!("{} is of a node of a cluster", context.settings.state.display()),
            "restore into another --state DIR, or begin another cluster with --new-cluster",
        ));
    }
    let result = if new_cluster {
        begin::restore(file, &files, force)
    } else {
        backup::restore(
            file,
            &[("registry", files.registry.clone()), ("claims", files.claims.clone())],
            force,
        )
    };
    let summary = result.map_err(|error| {
        let cause = format!("{}: {error}", file.display());
        CliError::failure("restore", cause, "end the hub first; see `pilotage hub restore --help`")
    })?;
    let (nodes, claims) = (summary.nodes.unwrap_or(0), summary.claims.unwrap_or(0));
    let value = json!({
        "event": "restored", "bytes": summary.bytes, "made": summary.made, "nodes": nodes, "claims": claims,
        "new_cluster": new_cluster,
    });
    let (into, next) = match new_cluster {
        true => (&files.cluster, "start the hub with --cluster IP:PORT: a new cluster begins with them"),
        false => (&files.registry, "start the hub"),
    };
    let words = format!("restored {nodes} nodes and {claims} claims into {}; {next}", into.display());
    context.output.result(words, &value);
    Ok(())
}

fn to_cluster(context: &Context, args: &HubFiles) -> Result<(), CliError> {
    let files = files(context, args);
    let summary = begin::take_over(&files, unix_time()).map_err(|error| {
        let cause = format!("{}: {error}", context.settings.state.display());
        CliError::failure(
            "to-cluster",
            cause,
            "end the hub first; the same command again finishes what has begun",
        )
    })?;
    let (nodes, claims) = (summary.nodes.unwrap_or(0), summary.claims.unwrap_or(0));
    let value = json!({ "event": "to_cluster", "nodes": nodes, "claims": claims });
    let words = format!(
        "{nodes} nodes and {claims} claims wait in {}; start the hub with --cluster IP:PORT: the cluster begins with them",
        files.cluster.display()
    );
    context.output.result(words, &value);
    Ok(())
}

/// For people.
fn text(value: &Value) -> String {
    let hub = &value["hub"];
    let number = |value: &Value| value.as_u64().map_or("-".to_owned(), |number| number.to_string());
    let (registry, beacon, index) = (&hub["registry"], &hub["beacon"], &hub["index"]);
    let mut lines = vec![
        format!(
            "hub       version {}, process {}, up {} s",
            hub["version"].as_str().unwrap_or("?"),
            number(&hub["pid"]),
            number(&hub["uptime_s"])
        ),
        format!(
            "registry  {} nodes, {} names{}; {} connections; {} requests, {} refused{}",
            number(&registry["nodes"]),
            number(&registry["names"]),
            if registry["shared"] == true { " of the cluster" } else { "" },
            number(&registry["connections"]),
            number(&registry["requests"]),
            number(&registry["errors"]),
            match (registry["read_only"] == true, registry["shared"] == true) {
                (false, _) => "",
                (true, false) => "; READ-ONLY: its store cannot be written",
                (true, true) => "; READ-ONLY: no majority of the cluster",
            }
        ),
        format!(
            "claims    {}, {} records",
            number(&hub["claims"]["claims"]),
            number(&hub["claims"]["records"])
        ),
        format!("beacon    {} nodes, {} relayed", number(&beacon["registered"]), number(&beacon["relays"])),
    ];
    match index.as_object() {
        Some(_) => lines.push(format!(
            "index     {} agents, {} holders of groups, at {}",
            number(&index["agents"]),
            number(&index["groups"]),
            index["address"].as_str().unwrap_or("?")
        )),
        None => lines.push("index     none (`pilotage hub --index` keeps one)".into()),
    }
    for store in hub["stores"].as_array().into_iter().flatten() {
        lines.push(format!(
            "store     {} {} bytes",
            store["file"].as_str().unwrap_or("?"),
            number(&store["bytes"])
        ));
    }
    if let Ok(status) = serde_json::from_value::<Status>(value.clone()) {
        lines.push(cluster::text(&status));
    }
    lines.join("\n")
}

/// What only rises.
const COUNTERS: &[&str] = &[
    "accepted",
    "turned_away",
    "cut",
    "requests",
    "errors",
    "commits",
    "store_failures",
    "datagrams_in",
    "bytes_in",
    "datagrams_out",
    "bytes_out",
    "unsent",
    "unpaid",
    "table_full",
    "takeovers_refused",
    "displaced",
    "discovers",
    "hellos",
    "proofs",
    "proofs_refused",
    "probes",
    "punches",
    "relays",
    "handed_over",
    "carried",
    "syncs",
    "malformed",
    "not_for_beacons",
    "bad_source",
    "over_budget",
    "not_registered",
    "unreachable",
    "not_permitted",
    "bad_beacon",
];

/// Every number of a status, each with its type; names are `pilotage_hub_` and the way to it.
fn metrics(status: &Value) -> String {
    let mut out = String::from("# TYPE pilotage_hub_up gauge\npilotage_hub_up 1\n");
    let mut row = |name: String, key: &str, value: f64| {
        let counter = COUNTERS.contains(&key);
        let (ending, kind) = if counter { ("_total", "counter") } else { ("", "gauge") };
        out.push_str(&format!("# TYPE {name}{ending} {kind}\n{name}{ending} {value}\n"));
    };
    let number =
        |value: &Value| value.as_f64().or_else(|| value.as_bool().map(|yes| f64::from(u8::from(yes))));
    let hub = &status["hub"];
    if let Some(uptime) = number(&hub["uptime_s"]) {
        row("pilotage_hub_uptime_seconds".into(), "uptime", uptime);
    }
    for part in ["registry", "claims", "beacon", "index"] {
        for (key, value) in hub[part].as_object().into_iter().flatten() {
            if let Some(value) = number(value) {
                row(format!("pilotage_hub_{part}_{key}"), key, value);
            }
        }
    }
    for store in hub["stores"].as_array().into_iter().flatten() {
        if let (Some(name), Some(bytes)) = (store["name"].as_str(), number(&store["bytes"])) {
            row(format!("pilotage_hub_store_{name}_bytes"), "bytes", bytes);
        }
    }
    if status["cluster"].is_string() {
        for key in ["term", "last_log", "applied", "snapshot", "purged"] {
            if let Some(value) = number(&status[key]) {
                row(format!("pilotage_hub_cluster_{key}"), key, value);
            }
        }
        row("pilotage_hub_cluster_has_leader".into(), "", f64::from(u8::from(status["leader"].is_string())));
        let members = status["members"].as_array().map_or(0, Vec::len);
        row("pilotage_hub_cluster_members".into(), "", members as f64);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> Value {
        json!({
            "cluster": "c1", "term": 3, "leader": null, "members": [{}, {}],
            "hub": {
                "version": "1", "pid": 7, "uptime_s": 5,
                "registry": { "nodes": 2, "requests": 9, "read_only": true },
                "claims": { "claims": 1, "records": null },
                "beacon": { "registered": 1, "relays": 4, "event": "beacon", "beacons": [] },
                "index": null, "stores": [{ "name": "claims", "file": "/x", "bytes": 100 }],
            },
        })
    }

    #[test]
    fn numbers_have_names_and_types() {
        let text = metrics(&status());
        for line in [
            "pilotage_hub_up 1",
            "pilotage_hub_registry_nodes 2",
            "# TYPE pilotage_hub_registry_requests_total counter",
            "pilotage_hub_registry_requests_total 9",
            "pilotage_hub_registry_read_only 1",
            "pilotage_hub_beacon_relays_total 4",
            "pilotage_hub_store_claims_bytes 100",
            "pilotage_hub_cluster_has_leader 0",
            "pilotage_hub_cluster_members 2",
        ] {
            assert!(text.lines().any(|other| other == line), "{line}: {text}");
        }
        let good = |line: &str| line.starts_with("# TYPE ") || line.split(' ').count() == 2;
        assert!(text.lines().all(good) && !text.contains("records"), "{text}");
    }

    #[test]
    fn people_read_it_too() {
        let words = text(&status());
        assert!(
            words.contains("READ-ONLY") && words.contains("--index") && words.contains("2 nodes"),
            "{words}"
        );
    }
}
