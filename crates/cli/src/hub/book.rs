//! Records and claims of a hub: the file, and the threads that serve it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use pilotage_registry::book::server::{Book, BookConfig, Former};
use pilotage_registry::book::shelf::{SharedShelf, Shelf};
use pilotage_registry::claims::ClaimLog;
use pilotage_registry::claims::local::{LocalConfig, LocalLog};
use pilotage_registry::replica::node::{Replica, ReplicaConfig};

use crate::args::HubArgs;
use crate::error::CliError;

/// What serves records and claims.
pub(super) struct Open {
    pub(super) book: Book,
    pub(super) store: PathBuf,
    /// What is kept here: records, and the claims unless a cluster has them.
    pub(super) log: Arc<LocalLog>,
    pub(super) shelf: Arc<dyn Shelf>,
    /// Key with which this hub signs the log.
    pub(super) key: [u8; 32],
    /// A cluster's claims are signed by a majority of its nodes.
    pub(super) cluster: bool,
}

/// A hub with claims of its own must not become a node of a cluster: asked before anything is founded or joined. `store` is
/// the file of the draft's registry.
pub(super) fn may_share(args: &HubArgs, store: &Path) -> Result<(), CliError> {
    let path = path(args, store);
    let claims = if path.exists() { file(args, &path, None)?.claims() } else { 0 };
    if claims == 0 {
        return Ok(());
    }
    Err(CliError::failure(
        "cluster",
        format!(
            "{} holds {claims} claims that this hub has granted alone, and a cluster that is there cannot take over",
            path.display()
        ),
        "begin a new cluster with them by `pilotage hub to-cluster`; or join with a new file, --claims-store FILE, and keep the old one: their owners claim again",
    ))
}

/// `at` is the address of the draft's registry; `claims` are the cluster's, if the hub belongs to one.
pub(super) fn open(
    args: &HubArgs,
    store: &Path,
    at: SocketAddr,
    claims: Option<Arc<dyn ClaimLog>>,
) -> Result<Open, CliError> {
    let path = path(args, store);
    let log = Arc::new(file(args, &path, claims.clone())?);
    let replica = replica(args, store, at, &log)?;
    let cluster = claims.is_some();
    // The key of this hub's own file signed heads while it was alone. Those who know it are told whose do now.
    let signer = log.clone();
    let sign = Arc::new(move |message: &[u8]| signer.sign(message));
    let former = cluster.then(|| Former { key: log.node_key(), sign });
    let config = BookConfig { replica: Some(replica), former, ..BookConfig::default() };
    let shelf: Arc<dyn Shelf> = match claims {
        Some(claims) => Arc::new(SharedShelf::new(claims, log.clone())),
        None => log.clone(),
    };
    let key = shelf.log().node_key();
    let book = Book::start(shelf.clone(), config).map_err(|error| {
        CliError::failure("registry", format!("no thread: {error}"), "check the limits of this process")
    })?;
    Ok(Open { book, log, shelf, store: path, key, cluster })
}

/// What keeps records for others, and takes heartbeats at the registry's port (UDP) if that is free.
fn replica(
    args: &HubArgs,
    store: &Path,
    at: SocketAddr,
    log: &Arc<LocalLog>,
) -> Result<Arc<Replica>, CliError> {
    let path = args.replica_store.clone().unwrap_or_else(|| store.with_extension("replicas.redb"));
    let mut seed = [0; 40];
    getrandom::fill(&mut seed).map_err(|error| {
        CliError::failure(
            "registry",
            format!("no random numbers: {error}"),
            "check the system's random source",
        )
    })?;
    let (node, signer) = (log.node_key(), log.clone());
    let sign = Arc::new(move |message: &[u8]| signer.sign(message));
    let mut config = ReplicaConfig::new(path, at, node, sign, Arc::new(unix_time));
    config.map = args.map.clone();
    config.heartbeat = args.heartbeat;
    let replica = Replica::start(config, &seed).map_err(|error| {
        let text = error.to_string();
        let (cause, next) = text.split_once("; ").unwrap_or((&text, "see --replica-store"));
        CliError::failure("registry", cause, next)
    })?;
    Ok(Arc::new(replica))
}

fn path(args: &HubArgs, store: &Path) -> PathBuf {
    args.claims_store.clone().unwrap_or_else(|| store.with_extension("claims.redb"))
}

fn file(args: &HubArgs, path: &Path, holders: Option<Arc<dyn ClaimLog>>) -> Result<LocalLog, CliError> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|error| {
        CliError::failure(
            "registry",
            format!("no random numbers: {error}"),
            "check the system's random source",
        )
    })?;
    let base = LocalConfig::new(Arc::new(unix_time), seed);
    let config = LocalConfig { pow_bits: args.pow_bits, holders, ..base };
    LocalLog::open(path, config).map_err(|error| {
        let text = error.to_string();
        let (cause, next) = text.split_once("; ").unwrap_or((&text, "see --claims-store"));
        CliError::failure("registry", cause, next)
    })
}

#[allow(clippy::disallowed_methods, reason = "the hub reads the clock for its registry")]
fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
