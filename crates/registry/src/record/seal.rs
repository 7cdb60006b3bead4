//! Endpoints that only some can read: the boxes of field 6. `spec/registry2.md §2.5`.
//!
//! Pure: whoever seals brings the randomness.

use chacha20poly1305::aead::{Aead as _, KeyInit as _, Payload};
use chacha20poly1305::{Key, XChaCha20Poly1305, XNonce};
use pilotage_wire::NetworkId;
use pilotage_wire::record::{
    Endpoint, MAX_ENDPOINTS, Record, RecordError, Sealed, SealedFor, decode_endpoints, encode_endpoints,
};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

const NETWORK_CONTEXT: &str = "pilotage 2026 sealed endpoints network v1";
const PEER_CONTEXT: &str = "pilotage 2026 sealed endpoints peer v1";
const ID_CONTEXT: &str = "pilotage 2026 sealed endpoints key id v1";
const NONCE_LEN: usize = 24;

/// Names a network's key or a peer's prekey in a box, without giving it away.
#[must_use]
pub fn key_id(key: &[u8; 32]) -> [u8; 8] {
    let hash = blake3::derive_key(ID_CONTEXT, key);
    let mut id = [0; 8];
    id.copy_from_slice(&hash[..8]);
    id
}

/// What a box is bound to: it opens in records of this key and network only.
fn binding(key: &[u8; 32], network: NetworkId) -> Vec<u8> {
    [key.as_slice(), &network.0.to_be_bytes()].concat()
}

fn cipher(context: &str, material: &[u8]) -> XChaCha20Poly1305 {
    let key = Zeroizing::new(blake3::derive_key(context, material));
    XChaCha20Poly1305::new(&Key::from(*key))
}

/// Seals endpoints for everybody with the network's key. `nonce` must never be used twice with it: 24 random bytes.
///
/// # Errors
/// [`RecordError`] if there are too many endpoints, or the box gets too long.
pub fn seal_for_network(
    endpoints: &[Endpoint],
    record: &Record,
    network_key: &[u8; 32],
    nonce: [u8; NONCE_LEN],
) -> Result<Sealed, RecordError> {
    let cipher = cipher(NETWORK_CONTEXT, network_key);
    let bytes = seal(&cipher, nonce, nonce.to_vec(), endpoints, record)?;
    Ok(Sealed { whom: SealedFor::Network, key_id: key_id(network_key), bytes })
}

/// Seals endpoints for one peer, by its X25519 prekey. `secret`: 32 random bytes for this box alone.
///
/// # Errors
/// [`RecordError`] if there are too many endpoints, the box gets too long, or the prekey is none.
pub fn seal_for_peer(
    endpoints: &[Endpoint],
    record: &Record,
    prekey: &[u8; 32],
    secret: [u8; 32],
) -> Result<Sealed, RecordError> {
    let secret = StaticSecret::from(secret);
    let ephemeral = PublicKey::from(&secret).to_bytes();
    let cipher = agree(&secret, prekey, &ephemeral, prekey).ok_or(RecordError::Value("prekey"))?;
    // The key is good for one box: the nonce may be anything.
    let bytes = seal(&cipher, [0; NONCE_LEN], ephemeral.to_vec(), endpoints, record)?;
    Ok(Sealed { whom: SealedFor::Peer, key_id: key_id(prekey), bytes })
}

fn agree(
    secret: &StaticSecret,
    other: &[u8; 32],
    ephemeral: &[u8; 32],
    prekey: &[u8; 32],
) -> Option<XChaCha20Poly1305> {
    let shared = secret.diffie_hellman(&PublicKey::from(*other));
    let material = Zeroizing::new([shared.as_bytes().as_slice(), ephemeral, prekey].concat());
    shared.was_contributory().then(|| cipher(PEER_CONTEXT, &material))
}

fn seal(
    cipher: &XChaCha20Poly1305,
    nonce: [u8; NONCE_LEN],
    mut out: Vec<u8>,
    endpoints: &[Endpoint],
    record: &Record,
) -> Result<Vec<u8>, RecordError> {
    if endpoints.is_empty() || endpoints.len() > MAX_ENDPOINTS {
        return Err(RecordError::TooMany("endpoints", MAX_ENDPOINTS));
    }
    let aad = binding(&record.key, record.network);
    let msg = encode_endpoints(endpoints);
    let sealed = cipher.encrypt(&XNonce::from(nonce), Payload { msg: &msg, aad: &aad });
    out.extend(sealed.map_err(|_| RecordError::Value("sealed"))?);
    Ok(out)
}

/// Opens the first box for this network key that opens; `None` if there is none.
#[must_use]
pub fn open_for_network(record: &Record, network_key: &[u8; 32]) -> Option<Vec<Endpoint>> {
    let id = key_id(network_key);
    boxes(record, SealedFor::Network, id).find_map(|sealed| {
        let (nonce, rest) = sealed.bytes.split_first_chunk()?;
        open(&cipher(NETWORK_CONTEXT, network_key), *nonce, rest, record)
    })
}

/// Opens the first box for this prekey that opens; `None` if there is none.
#[must_use]
pub fn open_for_peer(record: &Record, prekey_secret: &StaticSecret) -> Option<Vec<Endpoint>> {
    let prekey = PublicKey::from(prekey_secret).to_bytes();
    boxes(record, SealedFor::Peer, key_id(&prekey)).find_map(|sealed| {
        let (ephemeral, rest) = sealed.bytes.split_first_chunk()?;
        open(&agree(prekey_secret, ephemeral, ephemeral, &prekey)?, [0; NONCE_LEN], rest, record)
    })
}

fn boxes(record: &Record, whom: SealedFor, key_id: [u8; 8]) -> impl Iterator<Item = &Sealed> {
    record.sealed.iter().filter(move |sealed| sealed.whom == whom && sealed.key_id == key_id)
}

fn open(
    cipher: &XChaCha20Poly1305,
    nonce: [u8; NONCE_LEN],
    msg: &[u8],
    record: &Record,
) -> Option<Vec<Endpoint>> {
    let aad = binding(&record.key, record.network);
    let bytes = cipher.decrypt(&XNonce::from(nonce), Payload { msg, aad: &aad }).ok()?;
    decode_endpoints(&bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use pilotage_wire::NodeId;

    fn record() -> Record {
        Record::new(NetworkId(3), NodeId(77), 0, [5; 32], 1, 1)
    }

    fn endpoints() -> Vec<Endpoint> {
        vec!["192.0.2.1:4000".parse().unwrap(), "[2001:db8::7]:9".parse().unwrap()]
    }

    #[test]
    fn boxes_open_for_whom_they_were_sealed_and_nowhere_else() {
        let mut record = record();
        let peer = StaticSecret::from([9; 32]);
        let prekey = PublicKey::from(&peer).to_bytes();
        record.sealed = vec![
            seal_for_network(&endpoints(), &record, &[1; 32], [7; 24]).unwrap(),
            seal_for_peer(&endpoints()[..1], &record, &prekey, [8; 32]).unwrap(),
        ];
        assert_eq!(open_for_network(&record, &[1; 32]), Some(endpoints()));
        assert_eq!(open_for_peer(&record, &peer), Some(endpoints()[..1].to_vec()));
        assert_eq!(open_for_network(&record, &[2; 32]), None);
        assert_eq!(open_for_peer(&record, &StaticSecret::from([10; 32])), None);
        // Lifted into somebody else's record, or another network, they stay closed.
        let moved =
            [Record { key: [6; 32], ..record.clone() }, Record { network: NetworkId(4), ..record.clone() }];
        for other in moved {
            assert_eq!((open_for_network(&other, &[1; 32]), open_for_peer(&other, &peer)), (None, None));
        }
        for at in 0..2 {
            for byte in 0..record.sealed[at].bytes.len() {
                let mut altered = record.clone();
                altered.sealed[at].bytes[byte] ^= 1;
                let opened = [open_for_network(&altered, &[1; 32]), open_for_peer(&altered, &peer)];
                assert_eq!(opened[at], None, "byte {byte} of box {at}");
            }
        }
        assert!(Record::decode(&record.encode().unwrap()).is_ok());
    }

    #[test]
    fn what_cannot_be_sealed_is_refused() {
        let many = vec![endpoints()[0]; MAX_ENDPOINTS + 1];
        assert!(seal_for_network(&many, &record(), &[1; 32], [0; 24]).is_err());
        assert!(seal_for_network(&[], &record(), &[1; 32], [0; 24]).is_err());
        // A prekey of small order gives a secret that everybody knows.
        assert!(seal_for_peer(&endpoints(), &record(), &[0; 32], [8; 32]).is_err());
    }
}
