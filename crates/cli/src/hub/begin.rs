//! How a cluster begins with what is there: the names and nodes of a hub that stood alone (`hub to-cluster`), or a backup (`hub restore
//! --new-cluster`). `spec/hub.md §2.6` and `§2.7`.
//!
//! Both leave a file, `cluster/beginning`: a backup with nothing but the state. Once it is there the hub does not start alone any more; the first
//! `hub --cluster` founds the cluster with it, under a new id and new keys, and renames it.
//!
//! # Order
//! First the beginning is on the disk, then the hub's own claims and nodes are taken out of its files. A crash in between leaves a hub that
//! does not start in either way until the command is given again, which only finishes.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use pilotage_cluster::claims::ClaimsMachine;
use pilotage_cluster::{FILE, key_at};
use pilotage_registry::claims::local::{LocalConfig, LocalLog};
use pilotage_registry::claims::{ClaimLog as _, Claims, Limits};
use pilotage_registry::ledger::{Key, Value};
use pilotage_registry::store::Store;
use pilotage_services::find::HUB_INDEX;

use super::backup::{self, Agreed, CLUSTER, Origin, Summary, beside, invalid};
use crate::cmd::create_private_dir;

/// The state that waits for its cluster.
const WAITS: &str = "beginning";
/// What it is called afterwards.
const USED: &str = "beginning.used";
/// Longest wait for a node of the old cluster to answer.
const PROBE: Duration = Duration::from_millis(1_500);

/// Files of a hub.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) registry: PathBuf,
    pub(super) claims: PathBuf,
    /// Folder of the cluster.
    pub(super) cluster: PathBuf,
}

/// Whether a cluster shall begin in this folder.
pub(super) fn waits(folder: &Path) -> bool {
    folder.join(WAITS).exists()
}

/// The state that waits in this folder, if there is one and its old cluster does not answer any more.
pub(super) fn read(folder: &Path) -> io::Result<Option<Arc<Vec<u8>>>> {
    if !waits(folder) {
        return Ok(None);
    }
    let (list, state) = backup::read_entry(&folder.join(WAITS), CLUSTER)?;
    let mut summary = Summary { bytes: 0, made: list.made, nodes: None, claims: None };
    backup::count_agreed(&state, &mut summary)?;
    if let Some(origin) = &list.cluster {
        is_gone(origin)?;
    }
    Ok(Some(Arc::new(state)))
}

/// The cluster has begun.
pub(super) fn done(folder: &Path) -> io::Result<()> {
    if waits(folder) { fs::rename(folder.join(WAITS), folder.join(USED)) } else { Ok(()) }
}

/// Two clusters would grant the same names: as far as that can be seen from here, none of the old one's nodes may run.
fn is_gone(origin: &Origin) -> io::Result<()> {
    let answers = |(key, at): &(String, String)| {
        let at: SocketAddr = at.parse().ok()?;
        let found = key_at(at, PROBE)?;
        (hex::encode(found) == *key).then_some(at)
    };
    let alive = thread::scope(|scope| {
        let asked: Vec<_> =
            origin.members.iter().map(|member| scope.spawn(move || answers(member))).collect();
        asked.into_iter().find_map(|asked| asked.join().ok().flatten())
    });
    match alive {
        Some(at) => Err(io::Error::other(format!(
            "the node at {at} of the old cluster {} runs: both would grant the same names; join it, or end all of its nodes for good",
            origin.id
        ))),
        None => Ok(()),
    }
}

/// `hub to-cluster`: makes what this hub has granted alone the beginning of a cluster. The hub must not run.
pub(super) fn take_over(files: &Files, now: u64) -> io::Result<Summary> {
    if files.cluster.join(FILE).exists() {
        return Err(invalid("this hub is a node of a cluster already"));
    }
    if !files.claims.exists() && !files.registry.exists() && !waits(&files.cluster) {
        return Err(invalid(
            "there is no registry of a hub; name its files with --state, --store, --claims-store",
        ));
    }
    let mut summary = Summary { bytes: 0, made: now, nodes: None, claims: None };
    if !waits(&files.cluster) {
        let state = own_state(&files.registry, &files.claims)?;
        backup::count_agreed(&state, &mut summary)?;
        put(files, Agreed { origin: None, state }, now)?;
    } else {
        let (_, state) = backup::read_entry(&files.cluster.join(WAITS), CLUSTER)?;
        backup::count_agreed(&state, &mut summary)?;
    }
    // From here on only what has begun is finished.
    if files.registry.exists() {
        backup::free(&files.registry, true)?;
        fs::rename(&files.registry, beside(&files.registry, ".before-cluster"))?;
    }
    if files.claims.exists() {
        let kept = beside(&files.claims, ".before-cluster");
        let log = log(&files.claims)?;
        if log.claims() > 0 {
            let part = beside(&kept, ".part");
            fs::copy(&files.claims, &part)?;
            fs::rename(part, kept)?;
        }
        keep_records_only(&log)?;
    }
    Ok(summary)
}

/// `hub restore --new-cluster`: makes a backup the beginning of a cluster. The hub must not run.
pub(super) fn restore(from: &Path, files: &Files, force: bool) -> io::Result<Summary> {
    let (list, mut file) = backup::open(from)?;
    if let Some(origin) = &list.cluster {
        is_gone(origin)?;
    }
    let old = files.cluster.join(FILE);
    for path in [&files.registry, &files.claims, &old] {
        backup::free(path, force)?;
    }
    if waits(&files.cluster) && !force {
        let text = format!("{} waits already; --force keeps it", files.cluster.join(WAITS).display());
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
    }
    let (registry, claims) = (beside(&files.registry, ".restored"), beside(&files.claims, ".restored"));
    let result = (|| {
        let mut state = None;
        for (name, bytes) in list.sizes() {
            match name {
                "registry" => backup::copy_out(&mut file, &registry, bytes)?,
                "claims" => backup::copy_out(&mut file, &claims, bytes)?,
                CLUSTER => state = Some(backup::read_entry(from, CLUSTER)?.1),
                _ => return Err(invalid("it holds a database that this version does not know")),
            }
        }
        let state = match state {
            Some(state) => state,
            None => own_state(&registry, &claims)?,
        };
        let mut summary =
            Summary { bytes: from.metadata()?.len(), made: list.made, nodes: None, claims: None };
        backup::count_agreed(&state, &mut summary)?;
        if claims.exists() {
            keep_records_only(&log(&claims)?)?;
        }
        // The keys of the old node have signed another history: the new one gets its own.
        if files.cluster.exists() {
            set_aside(&files.cluster)?;
        }
        put(files, Agreed { origin: list.cluster.clone(), state }, list.made)?;
        if files.registry.exists() {
            fs::rename(&files.registry, beside(&files.registry, ".before"))?;
        }
        if claims.exists() {
            backup::give_name(&claims, &files.claims)?;
        }
        Ok(summary)
    })();
    for part in [registry, claims] {
        let _ = fs::remove_file(part);
    }
    result
}

/// Under a name that nothing else has.
fn set_aside(folder: &Path) -> io::Result<()> {
    let free = (0..1_000).map(|number| match number {
        0 => beside(folder, ".before"),
        number => beside(folder, &format!(".before{number}")),
    });
    let to = free.into_iter().find(|path| !path.exists());
    fs::rename(folder, to.ok_or_else(|| invalid("too many old folders of clusters; remove some"))?)
}

fn put(files: &Files, agreed: Agreed, now: u64) -> io::Result<()> {
    create_private_dir(&files.cluster)?;
    backup::write(&[], || Some(agreed), &files.cluster.join(WAITS), now).map(drop)
}

fn log(path: &Path) -> io::Result<LocalLog> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|error| io::Error::other(error.to_string()))?;
    LocalLog::open(path, LocalConfig::new(Arc::new(|| 0), seed)).map_err(|error| invalid(&error.to_string()))
}

/// Who holds what is the cluster's business from now on.
fn keep_records_only(log: &LocalLog) -> io::Result<()> {
    if log.claims() == 0 {
        return Ok(());
    }
    let nothing = Claims::new(Limits::default()).snapshot();
    log.install(&nothing).map_err(|error| io::Error::other(error.to_string()))
}

/// What a hub has granted and registered alone, as a cluster's state.
fn own_state(registry: &Path, claims: &Path) -> io::Result<Vec<u8>> {
    let broken = |error: &dyn std::fmt::Display| invalid(&error.to_string());
    let mut values = Vec::new();
    if registry.exists() {
        let (store, records) = Store::open(registry).map_err(|error| broken(&error))?;
        for (id, mut record) in records {
            // In a cluster this name means the index of the hub that is asked (spec/cluster.md §10.11).
            if record.hostname.as_deref() == Some(HUB_INDEX) {
                record.hostname = None;
            }
            values.push((Key::Node(id), Value::Node(Box::new(record))));
        }
        let rows = store.rows().map_err(|error| broken(&error))?;
        values.extend(rows.into_iter().map(|(key, row)| (Key::Row(key), Value::Row(row))));
    }
    let claims = if claims.exists() {
        log(claims)?.snapshot().map_err(|error| broken(&error))?
    } else {
        Claims::new(Limits::default()).snapshot()
    };
    ClaimsMachine::of_one_hub(&claims, &values).map_err(|error| invalid(&error))
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::SigningKey;
    use pilotage_registry::claims::{Claim, Outcome, Subject};
    use pilotage_wire::NetworkId;

    use super::*;

    /// Files of a hub that has granted one name.
    fn lone(dir: &Path) -> Files {
        let at = |name| dir.join(name);
        let files = Files { registry: at("r.redb"), claims: at("c.redb"), cluster: at("cluster") };
        Store::open(&files.registry).unwrap();
        let config = LocalConfig { pow_bits: 0, ..LocalConfig::new(Arc::new(|| 5), [7; 32]) };
        let log = LocalLog::open(&files.claims, config).unwrap();
        let key = SigningKey::from_bytes(&[3; 32]);
        let subject = Subject::Hostname { network: NetworkId(0), name: "fx".into() };
        let claim = Claim::new(subject, key.verifying_key().to_bytes(), 1, 1_000).sign(0, &key, None);
        assert_eq!(log.propose(vec![claim]).unwrap(), [Outcome::Granted { index: 0 }]);
        files
    }

    fn claims(files: &Files) -> usize {
        log(&files.claims).unwrap().claims()
    }

    /// At each step of [`take_over`] a crash leaves something that the same command finishes, without losing the names or leaving
    /// them in two places.
    #[test]
    fn a_crash_in_between_loses_nothing() {
        for step in 0..4 {
            let dir = tempfile::tempdir().unwrap();
            let files = lone(dir.path());
            let state = own_state(&files.registry, &files.claims).unwrap();
            let kept = beside(&files.claims, ".before-cluster");
            if step > 0 {
                put(&files, Agreed { origin: None, state }, 1).unwrap();
            }
            if step > 1 {
                fs::rename(&files.registry, beside(&files.registry, ".before-cluster")).unwrap();
            }
            if step > 2 {
                fs::copy(&files.claims, &kept).unwrap();
                keep_records_only(&log(&files.claims).unwrap()).unwrap();
            }
            let summary = take_over(&files, 2).unwrap();
            assert_eq!((summary.claims, summary.nodes), (Some(1), Some(0)), "{step}");
            assert_eq!((claims(&files), log(&kept).unwrap().claims()), (0, 1), "{step}");
            assert!(!files.registry.exists());
            let state = read(&files.cluster).unwrap().unwrap();
            assert_eq!(ClaimsMachine::count(&state), Ok((1, 0)), "{step}");
            done(&files.cluster).unwrap();
            assert!(!waits(&files.cluster) && read(&files.cluster).unwrap().is_none());
        }
    }

    #[test]
    fn a_beginning_that_was_changed_begins_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let files = lone(dir.path());
        take_over(&files, 1).unwrap();
        let path = files.cluster.join(WAITS);
        let good = fs::read(&path).unwrap();
        for at in [0, 9, good.len() / 2, good.len() - 1] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&path, bad).unwrap();
            assert!(read(&files.cluster).is_err(), "{at}");
            assert!(take_over(&files, 2).is_err(), "{at}: and is not replaced by what is left");
        }
        fs::write(&path, &good[..good.len() / 2]).unwrap();
        assert!(read(&files.cluster).is_err());
    }

    #[test]
    fn nothing_is_no_hub() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name| dir.path().join(name);
        let files = Files { registry: at("r"), claims: at("c"), cluster: at("cluster") };
        assert!(take_over(&files, 1).unwrap_err().to_string().contains("no registry"));
        assert!(!waits(&files.cluster));
    }
}
