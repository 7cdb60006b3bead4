//! `pilotage hub backup` and `pilotage hub restore`: the hub's databases in one file.
//!
//! ```text
//! 8 "PLTGHUB1" | the databases, one behind the other | the list, JSON | u32 length of the list | 32 BLAKE3 of all before
//! ```
//!
//! Of a hub of a cluster the state that the cluster has agreed upon goes in as well (`cluster`), as a snapshot and not as this node's file: a
//! file that comes back with an old vote could vote twice. What becomes of it: `begin`.
//!
//! A running hub makes the copy itself: its writers stand still while the file is copied (`pilotage_registry::store::Still`), so
//! each copy is what a crash at that moment would have left. What is restored is verified: the hash, then every checksum
//! and Merkle head by opening the databases, before anything gets its name.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pilotage_cluster::claims::ClaimsMachine;
use pilotage_registry::claims::local::{LocalConfig, LocalLog};
use pilotage_registry::store::{Still, Store};
use serde::{Deserialize, Serialize};

const MAGIC: &[u8; 8] = b"PLTGHUB1";
/// Longest list, in bytes: a cluster of 64 members is in it.
const MAX_LIST: u64 = 16_384;
/// Name of the state that a cluster has agreed upon.
pub(super) const CLUSTER: &str = "cluster";
/// Length of the list and hash.
const TAIL: u64 = 4 + 32;

/// A database of the hub.
#[derive(Debug, Clone)]
pub(super) struct Part {
    /// `registry` or `claims`.
    pub(super) name: &'static str,
    pub(super) path: PathBuf,
    pub(super) still: Still,
}

/// Which cluster a state comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Origin {
    /// Its id.
    pub(super) id: String,
    /// Its members: keys and cluster ports.
    pub(super) members: Vec<(String, String)>,
}

/// A state that a cluster has agreed upon, or shall begin with.
#[derive(Debug, Clone)]
pub(super) struct Agreed {
    pub(super) origin: Option<Origin>,
    pub(super) state: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    name: String,
    bytes: u64,
}

/// What a backup holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct List {
    version: String,
    /// Unix seconds.
    pub(super) made: u64,
    entries: Vec<Entry>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) cluster: Option<Origin>,
}

impl List {
    pub(super) fn sizes(&self) -> impl Iterator<Item = (&str, u64)> {
        self.entries.iter().map(|entry| (entry.name.as_str(), entry.bytes))
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.entries.iter().any(|entry| entry.name == name)
    }
}

/// What was copied or restored.
#[derive(Debug)]
pub(super) struct Summary {
    pub(super) bytes: u64,
    pub(super) made: u64,
    pub(super) nodes: Option<usize>,
    pub(super) claims: Option<usize>,
}

pub(super) fn invalid(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text.to_owned())
}

/// A path beside another one.
pub(super) fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}

/// A new file that only its owner can read: private endpoints and keys are inside.
fn create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).read(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

/// Makes a backup of databases that are open, and of what `agreed` then gives; it gets its name only when it is complete and on the disk.
/// The state of a cluster comes last: each record that is copied belongs to a claim that is in it.
pub(super) fn write(
    parts: &[Part],
    agreed: impl FnOnce() -> Option<Agreed>,
    to: &Path,
    now: u64,
) -> io::Result<Summary> {
    let part = beside(to, ".part");
    let result = write_part(parts, agreed, &part, now).and_then(|summary| {
        fs::rename(&part, to)?;
        sync_folder(to)?;
        Ok(summary)
    });
    if result.is_err() {
        let _ = fs::remove_file(&part);
    }
    result
}

/// A new name survives a crash only if the folder is on the disk.
fn sync_folder(file: &Path) -> io::Result<()> {
    let folder = file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    #[cfg(unix)]
    File::open(folder)?.sync_all()?;
    let _ = folder;
    Ok(())
}

fn write_part(
    parts: &[Part],
    agreed: impl FnOnce() -> Option<Agreed>,
    to: &Path,
    now: u64,
) -> io::Result<Summary> {
    let mut file = create(to)?;
    file.write_all(MAGIC)?;
    let version = env!("CARGO_PKG_VERSION").into();
    let mut list = List { version, made: now, entries: Vec::new(), cluster: None };
    for part in parts {
        let mut from = File::open(&part.path)?;
        let held = part.still.hold();
        let bytes = io::copy(&mut from, &mut file)?;
        drop(held);
        list.entries.push(Entry { name: part.name.to_owned(), bytes });
    }
    if let Some(Agreed { origin, state }) = agreed() {
        file.write_all(&state)?;
        list.entries.push(Entry { name: CLUSTER.to_owned(), bytes: state.len() as u64 });
        list.cluster = origin;
    }
    let text = serde_json::to_vec(&list)?;
    file.write_all(&text)?;
    file.write_all(&(text.len() as u32).to_be_bytes())?;
    let bytes = file.stream_position()?;
    let hash = hash(&mut file, bytes)?;
    file.write_all(&hash)?;
    file.sync_all()?;
    Ok(Summary { bytes: bytes + 32, made: now, nodes: None, claims: None })
}

/// The hash of the first bytes; leaves the file behind them.
fn hash(file: &mut File, bytes: u64) -> io::Result<[u8; 32]> {
    file.seek(SeekFrom::Start(0))?;
    let mut hasher = blake3::Hasher::new();
    io::copy(&mut file.take(bytes), &mut hasher)?;
    Ok(*hasher.finalize().as_bytes())
}

/// Reads the list of a backup, after the hash of the whole was held against its bytes.
fn verified(file: &mut File) -> io::Result<List> {
    let length = file.metadata()?.len();
    let signed =
        length.checked_sub(32).filter(|signed| *signed >= 8 + 4).ok_or_else(|| invalid("it is too short"))?;
    let mut magic = [0; 8];
    file.read_exact(&mut magic)?;
    if magic != *MAGIC {
        return Err(invalid("it is no backup of a hub"));
    }
    let hash = hash(file, signed)?;
    let mut told = [0; 32];
    file.read_exact(&mut told)?;
    if told != hash {
        return Err(invalid("its content is not what was written (the hash is another one)"));
    }
    file.seek(SeekFrom::Start(length - TAIL))?;
    let mut count = [0; 4];
    file.read_exact(&mut count)?;
    let count = u64::from(u32::from_be_bytes(count));
    let start = (length - TAIL).checked_sub(count).filter(|_| count <= MAX_LIST);
    file.seek(SeekFrom::Start(start.ok_or_else(|| invalid("its list is too long"))?))?;
    let mut text = Vec::new();
    Read::take(&mut *file, count).read_to_end(&mut text)?;
    let list: List = serde_json::from_slice(&text)?;
    let sum = list.entries.iter().try_fold(8 + count + TAIL, |sum, entry| sum.checked_add(entry.bytes));
    if sum != Some(length) {
        return Err(invalid("its list does not fit its length"));
    }
    Ok(list)
}

/// A backup whose hash is right: its list, and the file at its first database.
pub(super) fn open(from: &Path) -> io::Result<(List, File)> {
    let mut file = File::open(from)?;
    let list = verified(&mut file)?;
    file.seek(SeekFrom::Start(MAGIC.len() as u64))?;
    Ok((list, file))
}

/// Copies the next database into a file of its own; `bytes` are what the list says.
pub(super) fn copy_out(file: &mut File, to: &Path, bytes: u64) -> io::Result<()> {
    let mut copy = create(to)?;
    if io::copy(&mut Read::take(&mut *file, bytes), &mut copy)? != bytes {
        return Err(invalid("it ends too early"));
    }
    copy.sync_all()
}

/// The database of this name, in memory: a cluster's state.
pub(super) fn read_entry(from: &Path, name: &str) -> io::Result<(List, Vec<u8>)> {
    let (list, mut file) = open(from)?;
    for entry in &list.entries {
        if entry.name == name {
            let mut bytes = Vec::new();
            Read::take(&mut file, entry.bytes).read_to_end(&mut bytes)?;
            return Ok((list, bytes));
        }
        let next = i64::try_from(entry.bytes).map_err(|_| invalid("its list is wrong"))?;
        file.seek(SeekFrom::Current(next))?;
    }
    Err(invalid("it holds no state of a cluster"))
}

/// Puts the databases of a backup where a hub will look for them. The hub must not run; what is there is kept with
/// `.before` behind its name if `force` says so, and otherwise refused.
pub(super) fn restore(from: &Path, targets: &[(&'static str, PathBuf)], force: bool) -> io::Result<Summary> {
    let (list, mut file) = open(from)?;
    if list.has(CLUSTER) {
        // As a hub that stands alone it would grant names that the others grant, too.
        return Err(invalid(
            "it is of a node of a cluster: if others of it run, join them with an empty state directory (`hub --cluster --join`); if all is lost, --new-cluster begins another one with it",
        ));
    }
    let mut places = Vec::new();
    for entry in &list.entries {
        let target = targets.iter().find(|(name, _)| *name == entry.name);
        let (name, path) =
            target.ok_or_else(|| invalid("it holds a database that this version does not know"))?;
        free(path, force)?;
        places.push((*name, path.clone(), beside(path, ".restored"), entry.bytes));
    }
    let result = place(&mut file, &places, &list, from);
    if result.is_err() {
        places.iter().for_each(|(_, _, part, _)| drop(fs::remove_file(part)));
    }
    result
}

/// What a database holds, after all its checksums, and what it holds against each other, were checked.
fn count(name: &str, path: &Path, summary: &mut Summary) -> io::Result<()> {
    let broken = |error: pilotage_registry::store::StoreError| invalid(&error.to_string());
    match name {
        "registry" => summary.nodes = Some(Store::open(path).map_err(broken)?.1.len()),
        _ => {
            let config = LocalConfig::new(Arc::new(|| 0), [0; 32]);
            summary.claims = Some(LocalLog::open(path, config).map_err(broken)?.claims());
        }
    }
    Ok(())
}

/// As [`count`], of a cluster's state.
pub(super) fn count_agreed(state: &[u8], summary: &mut Summary) -> io::Result<()> {
    let (claims, nodes) = ClaimsMachine::count(state).map_err(|error| invalid(&error))?;
    (summary.claims, summary.nodes) = (Some(claims), Some(nodes));
    Ok(())
}

fn place(
    file: &mut File,
    places: &[(&'static str, PathBuf, PathBuf, u64)],
    list: &List,
    from: &Path,
) -> io::Result<Summary> {
    let mut summary = Summary { bytes: from.metadata()?.len(), made: list.made, nodes: None, claims: None };
    for (name, _, part, bytes) in places {
        copy_out(file, part, *bytes)?;
        count(name, part, &mut summary)?;
    }
    for (_, path, part, _) in places {
        give_name(part, path)?;
    }
    Ok(summary)
}

/// Gives a new file its name; what had it before is kept.
pub(super) fn give_name(part: &Path, path: &Path) -> io::Result<()> {
    if path.exists() {
        fs::rename(path, beside(path, ".before"))?;
    }
    fs::rename(part, path)?;
    sync_folder(path)
}

/// Whether a database may get this name.
pub(super) fn free(path: &Path, force: bool) -> io::Result<()> {
    if !path.try_exists()? {
        if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
            crate::cmd::create_private_dir(dir)?;
        }
        return Ok(());
    }
    if !force {
        let text = format!("{} is there already; --force keeps it as {0}.before", path.display());
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
    }
    match File::open(path)?.try_lock() {
        Ok(()) => Ok(()),
        Err(_) => Err(io::Error::other(format!("{} is in use: end the hub first", path.display()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(dir: &Path) -> (Vec<Part>, LocalLog) {
        let (registry, claims) = (dir.join("r.redb"), dir.join("c.redb"));
        let (store, _) = Store::open(&registry).unwrap();
        let log = LocalLog::open(&claims, LocalConfig::new(Arc::new(|| 5), [7; 32])).unwrap();
        let parts = vec![
            Part { name: "registry", path: registry, still: store.still() },
            Part { name: "claims", path: claims, still: log.still() },
        ];
        (parts, log)
    }

    #[test]
    fn what_was_written_comes_back_and_what_was_changed_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let (parts, log) = parts(dir.path());
        let file = dir.path().join("hub.backup");
        let written = write(&parts, || None, &file, 99).unwrap();
        assert_eq!(fs::metadata(&file).unwrap().len(), written.bytes);
        let targets = |name: &str| {
            let dir = dir.path().join(name);
            vec![("registry", dir.join("r.redb")), ("claims", dir.join("c.redb"))]
        };
        let there = targets("new");
        let restored = restore(&file, &there, false).unwrap();
        assert_eq!((restored.made, restored.nodes, restored.claims), (99, Some(0), Some(0)));
        let again = LocalLog::open(&there[1].1, LocalConfig::new(Arc::new(|| 5), [8; 32])).unwrap();
        assert_eq!(again.node_key(), log.node_key(), "the key that signs heads is in it");
        drop(again);
        let refused = restore(&file, &there, false).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists);
        restore(&file, &there, true).unwrap();
        assert!(beside(&there[0].1, ".before").exists());
        let good = fs::read(&file).unwrap();
        for at in [0, 9, good.len() / 2, good.len() - 40, good.len() - 1] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&file, &bad).unwrap();
            assert!(restore(&file, &targets("bad"), false).is_err(), "{at}");
        }
        for length in [0, 7, 40, good.len() - 1] {
            fs::write(&file, &good[..length]).unwrap();
            assert!(restore(&file, &targets("bad"), false).is_err(), "{length}");
        }
        let left = fs::read_dir(dir.path().join("bad")).map_or(0, |all| all.count());
        assert_eq!(left, 0, "nothing half done is left");
    }

    #[test]
    fn a_database_in_use_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (parts, _log) = parts(dir.path());
        let (_store, _) = Store::open(&dir.path().join("busy.redb")).unwrap();
        let file = dir.path().join("hub.backup");
        write(&parts, || None, &file, 1).unwrap();
        let targets = [("registry", dir.path().join("busy.redb")), ("claims", dir.path().join("free.redb"))];
        let refused = restore(&file, &targets, true).unwrap_err();
        assert!(refused.to_string().contains("in use"), "{refused}");
    }
}
