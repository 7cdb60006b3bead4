//! What registries know us as, and by which owner.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use pilotage_wire::Address;
use serde::{Deserialize, Serialize};

use super::format::{KnownAs, addresses_json, parse_addresses};
use super::{read_bounded, state_error, write_atomically};
use crate::error::StartError;

/// Registries whose address for us is remembered; the longest unused is forgotten.
const MAX_REGISTRIES: usize = 64;

/// Longest owner text that is read or sent, in bytes (an e-mail address has at most 254).
const MAX_OWNER: usize = 320;

/// `addresses.json`, for one of our keys.
#[derive(Debug)]
pub(crate) struct AddressMemory {
    path: PathBuf,
    key: [u8; 32],
    /// The one used last is the last.
    known: Mutex<Vec<KnownAs>>,
}

impl AddressMemory {
    pub(super) fn open(path: PathBuf, key: [u8; 32]) -> Result<Self, String> {
        let known = match read_bounded(&path) {
            Ok(text) => parse_addresses(&text)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error.to_string()),
        };
        Ok(Self { path, key, known: Mutex::new(known) })
    }

    /// What this registry last called us.
    pub(crate) fn at(&self, registry: &str) -> Option<Address> {
        let known = self.lock();
        known
            .iter()
            .find(|known| known.registry == registry && known.key == self.key)
            .map(|known| known.address)
    }

    /// Remembers what this registry calls us. A failure is logged: the registry still knows.
    pub(crate) fn keep(&self, registry: &str, address: Address) {
        let mut known = self.lock();
        let ours = |known: &KnownAs| known.registry == registry && known.key == self.key;
        if known.last().is_some_and(|last| ours(last) && last.address == address) {
            return;
        }
        known.retain(|known| !ours(known));
        if known.len() >= MAX_REGISTRIES {
            known.remove(0);
        }
        known.push(KnownAs { registry: registry.to_owned(), key: self.key, address });
        let written = addresses_json(&known).map_err(io::Error::from);
        if let Err(error) = written.and_then(|json| write_atomically(&self.path, &json)) {
            tracing::warn!(path = %self.path.display(), %error, "address not saved");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<KnownAs>> {
        self.known.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// `account.json`, as the reference writes it.
#[derive(Serialize, Deserialize)]
struct Account {
    email: String,
}

/// The owner text that was given, stored for the next run, or the stored one.
pub(super) fn owner(path: &Path, given: Option<&str>) -> Result<Option<String>, StartError> {
    let stored = match read_bounded(path) {
        Ok(text) => serde_json::from_str::<Account>(&text).ok().map(|account| account.email),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(state_error(path, &error, "make the file readable for this user")),
    };
    let Some(given) = given else {
        return Ok(stored.filter(|owner| is_usable(owner)));
    };
    if !is_usable(given) {
        return Err(StartError::State {
            path: path.to_owned(),
            reason: format!("{given:?} cannot be an owner"),
            hint: "give an e-mail address or another short text",
        });
    }
    if stored.as_deref() != Some(given) {
        let json = serde_json::to_vec_pretty(&Account { email: given.to_owned() }).map_err(io::Error::from);
        json.and_then(|json| write_atomically(path, &json)).map_err(|error| {
            state_error(path, &error, "make the directory writable and free some disk space")
        })?;
    }
    Ok(Some(given.to_owned()))
}

fn is_usable(owner: &str) -> bool {
    !owner.is_empty() && owner.len() <= MAX_OWNER && !owner.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_registry_has_its_own_address_for_each_key() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("addresses.json");
        let open = |key: u8| AddressMemory::open(path.clone(), [key; 32]).expect("readable");
        open(1).keep("a:1", Address::new(0, 1));
        open(1).keep("b:1", Address::new(0, 7));
        open(2).keep("a:1", Address::new(0, 2));
        assert_eq!(open(1).at("a:1"), Some(Address::new(0, 1)));
        assert_eq!(open(1).at("b:1"), Some(Address::new(0, 7)));
        assert_eq!(open(2).at("a:1"), Some(Address::new(0, 2)));
        assert_eq!(open(2).at("b:1"), None);
        open(1).keep("a:1", Address::new(0, 3));
        assert_eq!(open(1).at("a:1"), Some(Address::new(0, 3)));
        for n in 0..MAX_REGISTRIES {
            open(3).keep(&format!("{n}:1"), Address::new(0, 9));
        }
        assert_eq!(open(1).at("a:1"), None, "the longest unused is forgotten");
        assert_eq!(open(1).lock().len(), MAX_REGISTRIES);
        std::fs::write(&path, "x").expect("write");
        assert!(AddressMemory::open(path, [1; 32]).is_err(), "damaged files are not ignored");
    }

    #[test]
    fn the_owner_is_kept() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("account.json");
        assert_eq!(owner(&path, None).expect("none"), None);
        assert_eq!(owner(&path, Some("a@example.test")).expect("kept").as_deref(), Some("a@example.test"));
        assert_eq!(owner(&path, None).expect("read").as_deref(), Some("a@example.test"));
        for bad in ["", "a\nb", &"x".repeat(MAX_OWNER + 1)] {
            assert!(owner(&path, Some(bad)).is_err(), "{bad:?}");
        }
        std::fs::write(&path, "{").expect("write");
        assert_eq!(owner(&path, None).expect("damaged files hold nothing"), None);
    }
}
