//! What a node keeps between runs: its identity, the keys it has pinned, and a lock on both.
//!
//! * `identity.json`: the key pair, in the reference's format.
//! * `peers.json`: the peers whose keys are pinned; rewritten whole and atomically.
//! * `addresses.json`: the address that each registry gave us, so that it is ours from the first moment of the next
//!   run; rewritten whole and atomically.
//! * `account.json`: the owner text that was last given, in the reference's format.
//! * `device.json`: the secret of this device for S1, where that is on.
//! * `lock`: held while a node runs, with its process id inside.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use pilotage_proto::crypto::Identity;
use pilotage_proto::s1::PeerPrekey;
use pilotage_proto::{PathKind, TunnelInfo};
use pilotage_wire::NodeId;

use crate::carrier::EvidenceMemory;
use crate::error::StartError;

mod format;
mod known;

pub(crate) use format::Pin;
use format::parse_identity;
pub(crate) use known::AddressMemory;

use crate::lookup::certifies_itself;

/// Most pinned peers; beyond it the longest unseen is forgotten, those that only called us first.
pub const MAX_PINS: usize = 10_000;

/// Largest state file that is read, in bytes: [`MAX_PINS`] entries need a quarter of it.
const MAX_FILE: u64 = 16 << 20;

/// A state directory that this process has locked. The lock ends with the value.
#[derive(Debug)]
pub(crate) struct StateDir {
    path: PathBuf,
    _lock: File,
}

impl StateDir {
    /// Makes the directory if needed and locks it.
    pub(crate) fn open(path: &Path) -> Result<Self, StartError> {
        fs::create_dir_all(path).map_err(|error| {
            state_error(path, &error, "choose a directory that this user may create and write")
        })?;
        let file = path.join("lock");
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&file)
            .map_err(|error| state_error(&file, &error, "choose a directory that this user may write"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                // Only for the message; the content may be anything.
                let _ = Read::by_ref(&mut lock).take(16).read_to_string(&mut text);
                let pid = text.trim().parse().unwrap_or(0);
                return Err(StartError::StateInUse { directory: path.to_owned(), pid });
            }
            Err(TryLockError::Error(error)) => {
                return Err(state_error(&file, &error, "use a file system that supports locks"));
            }
        }
        let written = lock.set_len(0).and_then(|()| write!(lock, "{}", std::process::id()));
        written.map_err(|error| state_error(&file, &error, "free some disk space"))?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// The identity in `identity.json`; `fresh` is stored if there is none yet.
    pub(crate) fn identity(
        &self,
        fresh: impl FnOnce() -> io::Result<Identity>,
    ) -> Result<Identity, StartError> {
        let path = self.path.join("identity.json");
        match read_bounded(&path) {
            Ok(text) => parse_identity(&text).map_err(|reason| StartError::State {
                path,
                reason,
                hint: "restore the file from a backup; removing it gives the node a new address",
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let identity = fresh()?;
                self.store_identity(&identity)?;
                Ok(identity)
            }
            Err(error) => Err(state_error(&path, &error, "make the file readable for this user")),
        }
    }

    /// The secret of this device in `device.json`; `fresh` is stored if there is none yet. It is never to be copied to another one.
    pub(crate) fn device(
        &self,
        fresh: impl FnOnce() -> io::Result<[u8; 32]>,
    ) -> Result<[u8; 32], StartError> {
        let path = self.path.join("device.json");
        match read_bounded(&path) {
            Ok(text) => format::parse_device(&text).map_err(|reason| StartError::State {
                path,
                reason,
                hint: "remove the file: another secret is made",
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let secret = fresh()?;
                let written = format::device_json(&secret).map_err(io::Error::from);
                written.and_then(|json| write_atomically(&path, &json)).map_err(|error| {
                    state_error(&path, &error, "make the directory writable and free some disk space")
                })?;
                Ok(secret)
            }
            Err(error) => Err(state_error(&path, &error, "make the file readable for this user")),
        }
    }

    /// Writes `identity.json`, readable by this user only.
    pub(crate) fn store_identity(&self, identity: &Identity) -> Result<(), StartError> {
        let path = self.path.join("identity.json");
        format::identity_json(identity)
            .map_err(io::Error::from)
            .and_then(|json| write_atomically(&path, &json))
            .map_err(|error| {
                state_error(&path, &error, "make the directory writable and free some disk space")
            })
    }

    /// Where the addresses are kept that registries give to `key`.
    pub(crate) fn addresses(&self, key: [u8; 32]) -> Result<AddressMemory, StartError> {
        let path = self.path.join("addresses.json");
        AddressMemory::open(path.clone(), key).map_err(|reason| StartError::State {
            path,
            reason,
            hint: "correct the file, or remove it: the registries know our addresses",
        })
    }

    /// Which certificates hubs showed at their WebSockets.
    pub(crate) fn evidence(&self) -> Result<EvidenceMemory, StartError> {
        let path = self.path.join("hub-wss.json");
        EvidenceMemory::open(path.clone()).map_err(|reason| StartError::State {
            path,
            reason,
            hint: "correct the file, or remove it to take the hub's certificate of the next time",
        })
    }

    /// The owner text: the one given, which is kept, or the one kept before.
    pub(crate) fn owner(&self, given: Option<&str>) -> Result<Option<String>, StartError> {
        known::owner(&self.path.join("account.json"), given)
    }

    /// The pins in `peers.json` that count at this registry (`HOST:PORT`).
    pub(crate) fn peers(&self, registry: Option<&str>) -> Result<PeerBook, StartError> {
        let path = self.path.join("peers.json");
        let registry = registry.map(str::to_owned);
        let mut book = PeerBook { path: Some(path.clone()), registry, ..PeerBook::default() };
        let text = match read_bounded(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(book),
            Err(error) => return Err(state_error(&path, &error, "make the file readable for this user")),
        };
        book.load(&text).map_err(|reason| StartError::State {
            path,
            reason,
            hint: "correct the file, or remove it to pin all peers anew",
        })?;
        Ok(book)
    }
}

/// The pinned peers, in memory and, if there is a state directory, in `peers.json`.
#[derive(Debug, Default)]
pub(crate) struct PeerBook {
    pins: HashMap<NodeId, Pin>,
    /// Pins of ids that other registries assigned: kept, not used.
    elsewhere: Vec<Pin>,
    /// Our registry.
    registry: Option<String>,
    path: Option<PathBuf>,
    dirty: bool,
}

impl PeerBook {
    pub(crate) fn get(&self, node: NodeId) -> Option<&Pin> {
        self.pins.get(&node)
    }

    /// Where an operator finds the pins, for messages.
    pub(crate) fn location(&self) -> PathBuf {
        self.path.clone().unwrap_or_else(|| PathBuf::from("the memory of this process"))
    }

    /// Learns from an established tunnel; true if there is something new to save.
    pub(crate) fn on_tunnel_up(&mut self, info: &TunnelInfo, called: bool) -> bool {
        let Some(key) = info.key.filter(|_| info.authenticated) else {
            return false;
        };
        let direct = info.path.filter(|path| path.kind == PathKind::Direct).map(|path| path.remote);
        let old = self.pins.get(&info.peer.node);
        if old.is_some_and(|old| old.key != key) {
            // The core refuses such a tunnel; a pin is never replaced behind the operator's back.
            return false;
        }
        let pin = Pin {
            address: info.peer,
            key,
            endpoint: direct.or(old.and_then(|old| old.endpoint)),
            called: called || old.is_some_and(|old| old.called),
            last_seen: unix_seconds(),
            prekey: old.and_then(|old| old.prekey),
            registry: self.registry.clone().filter(|_| !certifies_itself(info.peer.node, &key)),
        };
        self.insert(pin);
        self.path.is_some()
    }

    /// A pinned peer speaks S1 with us: that is remembered, with its prekey. True if there is something new to save.
    pub(crate) fn on_secured(&mut self, node: NodeId, prekey: PeerPrekey) -> bool {
        let Some(pin) = self.pins.get_mut(&node).filter(|pin| pin.key == prekey.identity) else {
            return false;
        };
        if pin.prekey == Some(prekey) {
            return false;
        }
        pin.prekey = Some(prekey);
        self.dirty = true;
        self.path.is_some()
    }

    /// Pins or updates a peer, forgetting another one at the bound.
    pub(crate) fn insert(&mut self, pin: Pin) {
        if self.pins.len() >= MAX_PINS && !self.pins.contains_key(&pin.address.node) {
            // Peers that merely called us go first, so that callers cannot push out our own contacts.
            let oldest = self.pins.values().min_by_key(|pin| (pin.called, pin.last_seen));
            if let Some(node) = oldest.map(|pin| pin.address.node) {
                self.pins.remove(&node);
            }
        }
        self.pins.insert(pin.address.node, pin);
        self.dirty = true;
    }

    /// The file and its new content, if anything changed since the last call.
    pub(crate) fn take_unsaved(&mut self) -> Option<(PathBuf, Vec<u8>)> {
        let path = self.path.clone().filter(|_| self.dirty)?;
        let mut pins: Vec<&Pin> = self.pins.values().chain(&self.elsewhere).collect();
        pins.sort_by_key(|pin| (&pin.registry, pin.address.node));
        let json = format::peers_json(pins).ok()?;
        self.dirty = false;
        Some((path, json))
    }

    /// The node is closed: nothing is written any more.
    pub(crate) fn detach(&mut self) {
        self.path = None;
    }

    /// A save failed: it is due again.
    pub(crate) fn mark_unsaved(&mut self) {
        self.dirty = true;
    }

    fn load(&mut self, text: &str) -> Result<(), String> {
        for pin in format::parse_peers(text)? {
            match &pin.registry {
                Some(registry) if Some(registry) != self.registry.as_ref() => {
                    if self.elsewhere.len() < MAX_PINS {
                        self.elsewhere.push(pin);
                    }
                }
                _ => self.insert(pin),
            }
        }
        self.dirty = false;
        Ok(())
    }
}

pub(crate) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

pub(crate) fn read_bounded(path: &Path) -> io::Result<String> {
    let file = File::open(path)?;
    if file.metadata()?.len() > MAX_FILE {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "larger than any file this program writes"));
    }
    let mut text = String::new();
    file.take(MAX_FILE).read_to_string(&mut text)?;
    Ok(text)
}

/// Replaces a file so that a crash leaves the old or the new content, never a mixture.
pub(crate) fn write_atomically(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("json.tmp");
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let written = options.open(&temporary).and_then(|mut file| {
        file.write_all(content)?;
        file.sync_all()
    });
    let result = written.and_then(|()| fs::rename(&temporary, path));
    if result.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    result
}

fn state_error(path: &Path, error: &io::Error, hint: &'static str) -> StartError {
    StartError::State { path: path.to_owned(), reason: error.to_string(), hint }
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use pilotage_wire::Address;

    use super::format::private_key;
    use super::*;

    fn identity() -> Identity {
        Identity::from_seed([7; 32])
    }

    fn pin(node: u32, called: bool, last_seen: u64) -> Pin {
        Pin {
            address: Address::new(0, node),
            key: [node as u8; 32],
            endpoint: None,
            called,
            last_seen,
            prekey: None,
            registry: None,
        }
    }

    #[test]
    fn an_identity_is_made_once_and_read_again() {
        let dir = tempfile::tempdir().expect("directory");
        let state = StateDir::open(dir.path()).expect("open");
        let first = state.identity(|| Ok(identity())).expect("made");
        let again = state.identity(|| panic!("must be read")).expect("read");
        assert_eq!(first.public_key(), again.public_key());
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = fs::metadata(dir.path().join("identity.json")).expect("file").permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
    }

    #[test]
    fn damaged_identities_are_explained() {
        let dir = tempfile::tempdir().expect("directory");
        let state = StateDir::open(dir.path()).expect("open");
        let other = STANDARD.encode(Identity::from_seed([8; 32]).public_key());
        let key = STANDARD.encode(private_key(&identity()));
        for (text, expected) in [
            ("".to_owned(), "EOF"),
            ("{}".to_owned(), "private_key"),
            (format!(r#"{{"private_key":"AAAA","public_key":"{other}"}}"#), "3 bytes instead of 64"),
            (format!(r#"{{"private_key":"{key}","public_key":"{other}"}}"#), "does not belong"),
            (format!(r#"{{"private_key":"{key}","public_key":"%"}}"#), "public_key"),
        ] {
            fs::write(dir.path().join("identity.json"), &text).expect("write");
            let error = state.identity(|| panic!("must not be replaced")).expect_err("damaged").to_string();
            assert!(error.contains(expected) && error.contains("identity.json"), "{text}: {error}");
        }
    }

    #[test]
    fn a_second_opener_is_told_who_holds_the_directory() {
        let dir = tempfile::tempdir().expect("directory");
        let held = StateDir::open(dir.path()).expect("open");
        match StateDir::open(dir.path()) {
            Err(StartError::StateInUse { pid, .. }) => assert_eq!(pid, std::process::id()),
            other => panic!("{other:?}"),
        }
        drop(held);
        StateDir::open(dir.path()).expect("free again");
    }

    #[test]
    fn pins_survive_a_round_trip() {
        let dir = tempfile::tempdir().expect("directory");
        let state = StateDir::open(dir.path()).expect("open");
        let mut book = state.peers(None).expect("empty");
        assert!(book.take_unsaved().is_none(), "nothing to save yet");
        let pinned = Pin { endpoint: Some("127.0.0.1:9".parse().expect("address")), ..pin(77, true, 5) };
        book.insert(pinned.clone());
        let (path, json) = book.take_unsaved().expect("unsaved");
        write_atomically(&path, &json).expect("write");
        assert!(book.take_unsaved().is_none(), "saved");
        assert_eq!(state.peers(None).expect("read").get(NodeId(77)), Some(&pinned));
    }

    #[test]
    fn an_id_that_another_registry_assigned_means_another_node() {
        let dir = tempfile::tempdir().expect("directory");
        let state = StateDir::open(dir.path()).expect("open");
        let mut book = state.peers(Some("a:1")).expect("empty");
        let pinned = Pin { registry: Some("a:1".into()), ..pin(2, true, 5) };
        book.insert(pinned.clone());
        let (path, json) = book.take_unsaved().expect("unsaved");
        write_atomically(&path, &json).expect("write");
        let mut other = state.peers(Some("b:1")).expect("read");
        assert_eq!(other.get(NodeId(2)), None);
        other.insert(Pin { key: [9; 32], registry: Some("b:1".into()), ..pin(2, true, 6) });
        let (path, json) = other.take_unsaved().expect("unsaved");
        write_atomically(&path, &json).expect("write");
        assert_eq!(state.peers(Some("a:1")).expect("read").get(NodeId(2)), Some(&pinned), "not lost");
    }

    #[test]
    fn damaged_pins_are_refused_not_ignored() {
        let dir = tempfile::tempdir().expect("directory");
        let state = StateDir::open(dir.path()).expect("open");
        for text in
            ["x", r#"{"version":2,"peers":[]}"#, r#"{"version":1,"peers":[{"address":"?","key":""}]}"#]
        {
            fs::write(dir.path().join("peers.json"), text).expect("write");
            assert!(matches!(state.peers(None), Err(StartError::State { .. })), "{text}");
        }
    }

    #[test]
    fn at_the_bound_callers_are_forgotten_before_contacts() {
        let mut book = PeerBook::default();
        book.insert(pin(1_000_000, true, 0));
        for node in 0..MAX_PINS as u32 + 5 {
            book.insert(pin(node, false, u64::from(node) + 1));
        }
        assert_eq!(book.pins.len(), MAX_PINS);
        assert!(book.get(NodeId(1_000_000)).is_some(), "our own contact stays, though oldest");
        assert!(book.get(NodeId(0)).is_none() && book.get(NodeId(MAX_PINS as u32 + 4)).is_some());
    }
}
