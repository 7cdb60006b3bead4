//! The choice of how tunnels are protected.

use std::path::PathBuf;
use std::str::FromStr;

use clap::ValueEnum;
use pilotage::{NetworkId, PostQuantum, SecureMode};
use serde::{Deserialize, Serialize};

use crate::error::CliError;

/// Which protection tunnels get (`spec/secure.md`, section 12).
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Protection {
    /// The draft's, hardened, with everybody
    Draft,
    /// S1 with those who speak it; those who once did are not spoken to otherwise
    Auto,
    /// S1 only: peers of the draft are not reached
    S1,
}

impl From<Protection> for SecureMode {
    fn from(choice: Protection) -> Self {
        match choice {
            Protection::Draft => Self::Draft,
            Protection::Auto => Self::Auto,
            Protection::S1 => Self::S1,
        }
    }
}

/// Whether sessions of S1 get a secret by ML-KEM-768, too (`spec/secure.md`, section 9.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Upgrade {
    /// No
    Off,
    /// With peers that do it, too
    On,
    /// Or no session; needs --secure-mode s1
    Require,
}

impl From<Upgrade> for PostQuantum {
    fn from(choice: Upgrade) -> Self {
        match choice {
            Upgrade::Off => Self::Off,
            Upgrade::On => Self::On,
            Upgrade::Require => Self::Require,
        }
    }
}

/// Largest file of a secret that is read, bytes.
const MAX_SECRET_FILE: u64 = 1_024;

/// `NUMBER=FILE`: where the secret of a network is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NetworkSecret {
    network: NetworkId,
    file: PathBuf,
}

impl FromStr for NetworkSecret {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (number, file) = text.split_once('=').ok_or("expected NUMBER=FILE")?;
        let network = number.parse().map_err(|_| format!("{number:?} is no network: expected 0 to 65535"))?;
        if file.is_empty() {
            return Err("no file: expected NUMBER=FILE".into());
        }
        Ok(Self { network: NetworkId(network), file: file.into() })
    }
}

impl NetworkSecret {
    /// Reads the file: 64 hex digits, and space around them.
    pub(crate) fn read(&self) -> Result<(NetworkId, [u8; 32]), CliError> {
        use std::io::Read;

        let hint = "write 64 hex digits into it, the same at all nodes of the network: openssl rand -hex 32";
        let explain = |reason: String| {
            CliError::failure("network secret", format!("{}: {reason}", self.file.display()), hint)
        };
        let file = std::fs::File::open(&self.file).map_err(|error| explain(error.to_string()))?;
        let mut text = String::new();
        file.take(MAX_SECRET_FILE).read_to_string(&mut text).map_err(|error| explain(error.to_string()))?;
        let mut secret = [0; 32];
        hex::decode_to_slice(text.trim(), &mut secret).map_err(|_| explain("no 64 hex digits".into()))?;
        Ok((self.network, secret))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_of_networks_are_read_from_files() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("secret");
        let given = |text: &str| {
            std::fs::write(&path, text).expect("written");
            format!("7={}", path.display()).parse::<NetworkSecret>().expect("a place").read().ok()
        };
        assert_eq!(given(&format!(" {}\n", "0a".repeat(32))), Some((NetworkId(7), [10; 32])));
        for bad in ["", "0a", &"0a".repeat(33), &"xy".repeat(32)] {
            assert_eq!(given(bad), None, "{bad:?}");
        }
        for bad in ["7", "7=", "=x", "65536=x", "-1=x"] {
            assert!(bad.parse::<NetworkSecret>().is_err(), "{bad:?}");
        }
    }
}
