//! The secure mode S1 of a node: what it needs, and what is remembered of peers (spec/secure.md §12).

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use pilotage_proto::s1::{Limits, PostQuantum, Secret};
use pilotage_proto::{Endpoint, Mode, PeerConfig, SecureConfig, SecureMode};
use pilotage_wire::NetworkId;

use crate::builder::random;
use crate::error::StartError;
use crate::state::{PeerBook, StateDir};

/// What the builder was told.
pub(crate) struct Wanted {
    pub(crate) mode: SecureMode,
    pub(crate) limits: Limits,
    pub(crate) streams: bool,
    pub(crate) early: bool,
    pub(crate) post_quantum: PostQuantum,
}

/// Whether the choices go together.
pub(crate) fn check(mode: SecureMode, post_quantum: PostQuantum) -> Result<(), StartError> {
    let reason = match post_quantum {
        PostQuantum::Off => return Ok(()),
        _ if !PostQuantum::BUILT => {
            "this program was built without it; use one with the feature post-quantum"
        }
        PostQuantum::Require if mode != SecureMode::S1 => {
            "tunnels of the draft have no such upgrade; choose the secure mode s1 as well"
        }
        _ => return Ok(()),
    };
    Err(StartError::PostQuantum { choice: post_quantum.name(), reason })
}

/// Switches S1 on, before the first peer is introduced.
pub(crate) fn enable(
    endpoint: &mut Endpoint,
    Wanted { mode, limits, streams, early, post_quantum }: Wanted,
    network_secrets: Vec<(NetworkId, Secret)>,
    state: Option<&StateDir>,
) -> Result<(), StartError> {
    if mode == SecureMode::Draft {
        return Ok(());
    }
    // Without a directory nobody can be told after a restart that we have forgotten him.
    let device = match state {
        Some(state) => state.device(random)?,
        None => random()?,
    };
    let unix_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
    let config = SecureConfig {
        limits,
        streams,
        early,
        post_quantum,
        network_secrets,
        ..SecureConfig::new(mode, unix_ms, device)
    };
    endpoint.enable_s1(Instant::now(), config, &random()?);
    Ok(())
}

/// Adds to what is known of a peer what was learned in earlier sessions. Whoever was ever spoken to in S1 is not spoken to
/// in less, unless the operator switches S1 off.
pub(crate) fn remembered(endpoint: &Endpoint, book: &PeerBook, mut peer: PeerConfig) -> PeerConfig {
    if endpoint.secure_mode() == SecureMode::Draft {
        return peer;
    }
    let pin = book.get(peer.address.node).filter(|pin| peer.key.is_none_or(|key| key == pin.key));
    if let Some(pin) = pin
        && let Some(known) = pin.prekey
    {
        peer.key = Some(pin.key);
        peer.policy.least = peer.policy.least.max(Mode::S1);
        let newer = peer.prekey.filter(|told| told.certificate.seq > known.certificate.seq);
        peer.prekey = Some(newer.unwrap_or(known));
    }
    peer
}
