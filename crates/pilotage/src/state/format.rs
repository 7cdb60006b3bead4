//! The files of a state directory as text (fuzz/ includes this file as it is).

use std::net::SocketAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use pilotage_proto::crypto::Identity;
use pilotage_proto::s1::PeerPrekey;
use pilotage_wire::Address;
use pilotage_wire::s1::payload::PrekeyCertificate;
use serde::{Deserialize, Serialize};

/// The reference's format: both as base64, the private key as seed and public key (64 bytes).
#[derive(Serialize, Deserialize)]
struct StoredIdentity {
    private_key: String,
    public_key: String,
}

/// Seed and public key, as the reference stores them.
pub(super) fn private_key(identity: &Identity) -> [u8; 64] {
    let mut bytes = [0; 64];
    bytes[..32].copy_from_slice(identity.seed());
    bytes[32..].copy_from_slice(&identity.public_key());
    bytes
}

/// The content of `identity.json`.
pub(super) fn identity_json(identity: &Identity) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec_pretty(&StoredIdentity {
        private_key: STANDARD.encode(private_key(identity)),
        public_key: STANDARD.encode(identity.public_key()),
    })
}

/// Reads `identity.json`; the error says what is wrong with it.
pub(super) fn parse_identity(text: &str) -> Result<Identity, String> {
    let stored: StoredIdentity = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let private =
        STANDARD.decode(stored.private_key.trim()).map_err(|error| format!("private_key: {error}"))?;
    let public = STANDARD.decode(stored.public_key.trim()).map_err(|error| format!("public_key: {error}"))?;
    let seed = match private.len() {
        32 | 64 => private.first_chunk::<32>().copied(),
        _ => None,
    };
    let seed = seed.ok_or_else(|| format!("private_key: {} bytes instead of 64", private.len()))?;
    let identity = Identity::from_seed(seed);
    if public != identity.public_key() {
        return Err("public_key does not belong to private_key".into());
    }
    Ok(identity)
}

/// What is remembered of one peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pin {
    pub(crate) address: Address,
    pub(crate) key: [u8; 32],
    /// Where it was last reached directly.
    pub(crate) endpoint: Option<SocketAddr>,
    /// Whether we ever called it (rather than it us).
    pub(crate) called: bool,
    /// Seconds since 1970.
    pub(crate) last_seen: u64,
    /// It speaks S1 with us, and this is its newest prekey that we know. Then it is never spoken to in less.
    pub(crate) prekey: Option<PeerPrekey>,
    /// The registry that assigned the id, where that does not derive from the key: elsewhere it means another node.
    pub(crate) registry: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct StoredPin {
    address: String,
    key: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    endpoint: Option<SocketAddr>,
    #[serde(default)]
    called: bool,
    #[serde(default)]
    last_seen: u64,
    /// Prekey and certificate (116 bytes) as hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    s1: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    registry: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct StoredBook {
    version: u32,
    peers: Vec<StoredPin>,
}

/// The content of `peers.json`.
pub(super) fn peers_json(pins: Vec<&Pin>) -> serde_json::Result<Vec<u8>> {
    let peers = pins.into_iter().map(|pin| StoredPin {
        address: pin.address.to_string(),
        key: hex::encode(pin.key),
        endpoint: pin.endpoint,
        called: pin.called,
        last_seen: pin.last_seen,
        s1: pin.prekey.as_ref().map(prekey_text),
        registry: pin.registry.clone(),
    });
    serde_json::to_vec_pretty(&StoredBook { version: 1, peers: peers.collect() })
}

/// Reads `peers.json`; the error says what is wrong with it.
pub(super) fn parse_peers(text: &str) -> Result<Vec<Pin>, String> {
    let stored: StoredBook = serde_json::from_str(text).map_err(|error| error.to_string())?;
    if stored.version != 1 {
        return Err(format!("format version {} is not known to this program", stored.version));
    }
    let pins = stored.peers.into_iter().map(|entry| {
        let address: Address =
            entry.address.parse().map_err(|error| format!("address {:?}: {error}", entry.address))?;
        let mut key = [0; 32];
        hex::decode_to_slice(&entry.key, &mut key).map_err(|error| format!("key of {address}: {error}"))?;
        let prekey = entry.s1.as_deref().map(|text| parse_prekey(key, text)).transpose();
        let prekey = prekey.map_err(|error| format!("s1 of {address}: {error}"))?;
        let StoredPin { endpoint, called, last_seen, registry, .. } = entry;
        Ok(Pin { address, key, endpoint, called, last_seen, prekey, registry })
    });
    pins.collect()
}

/// A prekey with its certificate as text.
fn prekey_text(prekey: &PeerPrekey) -> String {
    let mut bytes = prekey.prekey.to_vec();
    bytes.extend_from_slice(&prekey.certificate.to_bytes());
    hex::encode(bytes)
}

/// The same read; whether the certificate is good is seen when it is used.
fn parse_prekey(identity: [u8; 32], text: &str) -> Result<PeerPrekey, String> {
    let mut bytes = [0; 32 + 84];
    hex::decode_to_slice(text, &mut bytes).map_err(|error| error.to_string())?;
    let (prekey, certificate) = bytes.split_first_chunk::<32>().ok_or("too short")?;
    let certificate = certificate.first_chunk::<84>().ok_or("too short")?;
    Ok(PeerPrekey { identity, prekey: *prekey, certificate: PrekeyCertificate::from_bytes(certificate) })
}

#[derive(Serialize, Deserialize)]
struct StoredDevice {
    secret: String,
}

/// The content of `device.json`.
pub(super) fn device_json(secret: &[u8; 32]) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec_pretty(&StoredDevice { secret: STANDARD.encode(secret) })
}

/// Reads `device.json`; the error says what is wrong with it, but nothing of what is in it.
pub(super) fn parse_device(text: &str) -> Result<[u8; 32], String> {
    let stored: StoredDevice = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let secret = STANDARD.decode(stored.secret.trim()).map_err(|_| "secret: not base64".to_owned())?;
    <[u8; 32]>::try_from(secret).map_err(|secret| format!("secret: {} bytes instead of 32", secret.len()))
}

/// The address that a registry gave to one of our keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KnownAs {
    /// `HOST:PORT`, as configured.
    pub(crate) registry: String,
    pub(crate) key: [u8; 32],
    pub(crate) address: Address,
}

#[derive(Serialize, Deserialize)]
struct StoredAddress {
    registry: String,
    key: String,
    address: String,
}

#[derive(Serialize, Deserialize)]
struct StoredAddresses {
    version: u32,
    addresses: Vec<StoredAddress>,
}

/// The content of `addresses.json`.
pub(super) fn addresses_json(known: &[KnownAs]) -> serde_json::Result<Vec<u8>> {
    let addresses = known.iter().map(|known| StoredAddress {
        registry: known.registry.clone(),
        key: hex::encode(known.key),
        address: known.address.to_string(),
    });
    serde_json::to_vec_pretty(&StoredAddresses { version: 1, addresses: addresses.collect() })
}

/// Reads `addresses.json`; the error says what is wrong with it.
pub(super) fn parse_addresses(text: &str) -> Result<Vec<KnownAs>, String> {
    let stored: StoredAddresses = serde_json::from_str(text).map_err(|error| error.to_string())?;
    if stored.version != 1 {
        return Err(format!("format version {} is not known to this program", stored.version));
    }
    let known = stored.addresses.into_iter().map(|entry| {
        let address: Address =
            entry.address.parse().map_err(|error| format!("address {:?}: {error}", entry.address))?;
        let mut key = [0; 32];
        hex::decode_to_slice(&entry.key, &mut key).map_err(|error| format!("key of {address}: {error}"))?;
        Ok(KnownAs { registry: entry.registry, key, address })
    });
    known.collect()
}
