//! A hub as one node of a registry cluster.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pilotage_cluster::claims::RaftLog;
use pilotage_cluster::{ClusterConfig, ClusterError, FILE, Machine, Start, Status, parse_id};
use pilotage_registry::claims::Limits;
use serde_json::{Value, json};

use super::backup::{Agreed, Origin};
use super::begin;
use crate::args::ClusterArgs;
use crate::cmd::{Context, create_private_dir};
use crate::error::CliError;

/// How long a claim waits for a majority: less than clients wait for the hub.
const PATIENCE: Duration = Duration::from_secs(6);
/// Bytes of a token that we make.
const TOKEN: usize = 32;

/// Starts the node, if the arguments want one. Consensus runs as long as somebody holds the log. Claims need `pow_bits` bits of work.
pub(super) fn start(
    context: &Context,
    args: &ClusterArgs,
    pow_bits: u8,
) -> Result<Option<Arc<RaftLog>>, CliError> {
    let folder = folder(context);
    let Some(bind) = args.cluster else {
        if folder.join(FILE).exists() || begin::waits(&folder) {
            // Alone it would grant names that the cluster has granted to others.
            return Err(CliError::failure(
                "cluster",
                format!("this hub is a node of a cluster ({})", folder.display()),
                "give its port with --cluster IP:PORT, or name another directory with --state DIR",
            ));
        }
        return Ok(None);
    };
    create_private_dir(&folder).map_err(|error| {
        CliError::failure(
            "cluster",
            format!("{}: {error}", folder.display()),
            "name another one with --state DIR",
        )
    })?;
    let joins = !args.join.is_empty();
    let start = start_of(args, &folder)?;
    let mut config = ClusterConfig::new(&folder, bind, start);
    config.advertise = args.cluster_advertise;
    config.weight = args.cluster_weight;
    config.token = Some(token(args, &folder, joins)?);
    if joins {
        context.output.note(format!("cluster: asking {}", args.join.join(", ")));
    }
    let log = RaftLog::start(config, Limits::default(), pow_bits).map_err(|error| explain(&error))?;
    begin::done(&folder).map_err(|error| in_folder(&folder, &error))?;
    let log = Arc::new(log.with_patience(PATIENCE));
    let status = log.cluster().status();
    context.output.note(format!("cluster {}, node {}, port {bind}", status.cluster, status.id));
    Ok(Some(log))
}

/// What to do if this hub belongs to no cluster yet.
fn start_of(args: &ClusterArgs, folder: &Path) -> Result<Start, CliError> {
    match begin::read(folder).map_err(|error| in_folder(folder, &error))? {
        Some(_) if !args.join.is_empty() => Err(CliError::usage(
            "cluster",
            format!("a state waits in {} that a new cluster begins with", folder.display()),
            "start without --join; or join with another --state DIR",
        )),
        Some(state) => Ok(Start::FoundWith(state)),
        None if args.join.is_empty() => Ok(Start::Found),
        None => Ok(Start::Join(args.join.clone())),
    }
}

fn in_folder(folder: &Path, error: &io::Error) -> CliError {
    CliError::failure(
        "cluster",
        format!("{}: {error}", folder.display()),
        "nothing has begun; see the chapter on new clusters in spec/hub.md",
    )
}

/// Which cluster this is, and the state that it has agreed upon; whether that is all that was acknowledged anywhere before.
pub(super) fn agreed(log: &RaftLog) -> (Agreed, bool) {
    let caught_up = log.cluster().barrier(PATIENCE).is_ok();
    let status = log.cluster().status();
    let members = status.members.into_iter().map(|member| (member.key, member.endpoint)).collect();
    let origin = Some(Origin { id: status.cluster, members });
    (Agreed { origin, state: log.cluster().read(Machine::snapshot) }, caught_up)
}

pub(super) fn folder(context: &Context) -> PathBuf {
    context.settings.state.join("cluster")
}

/// The secret: from a file; the first hub makes one.
fn token(args: &ClusterArgs, folder: &Path, joins: bool) -> Result<Vec<u8>, CliError> {
    let path = args.cluster_token_file.clone().unwrap_or_else(|| folder.join("token"));
    let failure = |error: io::Error| {
        let next = "copy the file cluster/token of the hub that you join, and name it with --cluster-token-file FILE";
        CliError::failure("cluster", format!("token file {}: {error}", path.display()), next)
    };
    match std::fs::read(&path) {
        Ok(bytes) => Ok(bytes.trim_ascii().to_vec()),
        Err(error) if error.kind() == io::ErrorKind::NotFound && !joins => {
            let mut secret = [0; TOKEN];
            getrandom::fill(&mut secret).map_err(|error| failure(io::Error::other(error.to_string())))?;
            let text = hex::encode(secret);
            write_private(&path, &format!("{text}\n")).map_err(failure)?;
            Ok(text.into_bytes())
        }
        Err(error) => Err(failure(error)),
    }
}

fn write_private(path: &Path, text: &str) -> io::Result<()> {
    use std::io::Write as _;
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn explain(error: &ClusterError) -> CliError {
    let text = error.to_string();
    let (cause, next) = text.rsplit_once("; ").unwrap_or((&text, "see `pilotage hub --help`"));
    CliError::failure("cluster", cause, next)
}

/// Takes a member out of the cluster.
pub(super) fn remove(log: &RaftLog, request: &Value) -> Value {
    match request["id"].as_str().and_then(parse_id) {
        Some(id) => match log.cluster().remove(id) {
            Ok(()) => json!({ "event": "removed", "id": request["id"] }),
            Err(error) => json!({ "error": error.to_string() }),
        },
        None => json!({ "error": "an id has 16 hex digits" }),
    }
}

/// For people.
pub(super) fn text(status: &Status) -> String {
    let mut lines = vec![
        format!("cluster   {}", status.cluster),
        format!("node      {} ({})", status.id, status.role),
        format!("leader    {}", status.leader.as_deref().unwrap_or("none: no new claims; look-ups go on")),
        format!("term      {}", status.term),
        format!(
            "log       {} written, {} applied, {} in the snapshot, {} purged",
            status.last_log, status.applied, status.snapshot, status.purged
        ),
    ];
    if status.changing {
        lines.push("voters    come or go at this moment".into());
    }
    if let Some(fault) = &status.fault {
        lines.push(format!("stopped   {fault}"));
    }
    for member in &status.members {
        let kind = if member.voter { "voter" } else { "learner" };
        let lag =
            member.matched.map(|matched| format!(", {} behind", status.last_log.saturating_sub(matched)));
        lines.push(format!(
            "member    {} {} {kind}, weight {}{}",
            member.id,
            member.endpoint,
            member.weight,
            lag.unwrap_or_default()
        ));
    }
    lines.join("\n")
}
