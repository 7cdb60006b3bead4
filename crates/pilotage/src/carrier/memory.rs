//! `hub-wss.json`: which certificate a hub showed the first time.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use pilotage_carriage::Evidence;

use crate::state::{read_bounded, write_atomically};

/// Hubs that are remembered; beyond it new ones are not.
const MAX_HUBS: usize = 64;

/// What is known of hubs, in memory and, if there is a state directory, in its file.
#[derive(Debug, Default)]
pub(crate) struct EvidenceMemory {
    path: Option<PathBuf>,
    known: Mutex<BTreeMap<String, Evidence>>,
}

impl EvidenceMemory {
    /// Reads the file, if there is one.
    pub(crate) fn open(path: PathBuf) -> Result<Self, String> {
        let known = match read_bounded(&path) {
            Ok(text) => parse(&text)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(error.to_string()),
        };
        Ok(Self { path: Some(path), known: Mutex::new(known) })
    }

    pub(crate) fn get(&self, hub: &str) -> Option<Evidence> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).get(hub).copied()
    }

    /// Remembers what a hub showed. A failure to write is logged.
    pub(crate) fn keep(&self, hub: &str, evidence: Evidence) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.get(hub) == Some(&evidence) || (known.len() >= MAX_HUBS && !known.contains_key(hub)) {
            return;
        }
        known.insert(hub.to_owned(), evidence);
        let stored: BTreeMap<&str, String> =
            known.iter().map(|(hub, one)| (hub.as_str(), text(*one))).collect();
        if let Some(path) = &self.path
            && let Err(error) = serde_json::to_vec_pretty(&stored)
                .map_err(io::Error::from)
                .and_then(|json| write_atomically(path, &json))
        {
            tracing::warn!(path = %path.display(), %error, "the hub's certificate is not remembered");
        }
    }
}

fn text(evidence: Evidence) -> String {
    match evidence {
        Evidence::Certificate(pin) => hex::encode(pin),
        Evidence::Authority => "authority".into(),
    }
}

/// The content of the file; the error says what is wrong with it.
fn parse(text: &str) -> Result<BTreeMap<String, Evidence>, String> {
    let stored: BTreeMap<String, String> = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let evidence = |hub: &str, value: &str| {
        let mut pin = [0; 32];
        match value {
            "authority" => Ok(Evidence::Authority),
            hex => match hex::decode_to_slice(hex, &mut pin) {
                Ok(()) => Ok(Evidence::Certificate(pin)),
                Err(_) => Err(format!("{hub}: neither 64 hex digits nor \"authority\"")),
            },
        }
    };
    stored.iter().take(MAX_HUBS).map(|(hub, value)| Ok((hub.clone(), evidence(hub, value)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hubs_are_remembered() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("hub-wss.json");
        let memory = EvidenceMemory::open(path.clone()).expect("none yet");
        memory.keep("wss://a", Evidence::Certificate([3; 32]));
        memory.keep("wss://b", Evidence::Authority);
        for number in 0..MAX_HUBS {
            memory.keep(&format!("wss://{number}"), Evidence::Authority);
        }
        let again = EvidenceMemory::open(path.clone()).expect("readable");
        assert_eq!(again.get("wss://a"), Some(Evidence::Certificate([3; 32])));
        assert_eq!(again.get("wss://b"), Some(Evidence::Authority));
        assert_eq!(again.known.lock().expect("known").len(), MAX_HUBS);
        std::fs::write(&path, r#"{"wss://a": "12"}"#).expect("write");
        assert!(EvidenceMemory::open(path).is_err_and(|error| error.contains("wss://a")));
    }
}
