//! A handshake that we began: PILI out, PILR in (spec/secure.md §4, §6.6).

use std::time::Instant;

use pilotage_wire::NetworkId;
use pilotage_wire::s1::handshake::{Flags, INITIATION_MAX, Response, initiation_header};
use pilotage_wire::s1::payload::{Observed, Payload1, Payload2};
use pilotage_wire::s1::{MAC_LEN, Malformed};
use zeroize::Zeroize;

use super::aead::Suite;
use super::cookie::{self, PublicKeys};
use super::dh::DhKey;
use super::keys::Secret;
use super::node::{Node, prologue};
use super::noise::Initiator;
use super::prekey::{PeerPrekey, prekey_id};
use super::session::{Parts, Role, Session};
use super::upgrade::PostQuantum;
use super::{Cx, Refusal};

/// One PILI and what completes it.
pub(super) struct Initiation {
    noise: Initiator,
    /// Our index.
    pub(super) index: u32,
    /// The network of our address in it.
    pub(super) network: NetworkId,
    /// The prekey that it used.
    pub(super) prekey: [u8; 32],
    /// It carries early data.
    pub(super) early: bool,
    /// It asks for the upgrade.
    upgrade: bool,
    datagram: Vec<u8>,
    /// It was sent again with a cookie.
    repeated: bool,
    /// When it was sent; `None` once it was sent again, since an answer does not tell to which (Karn).
    pub(super) sent: Option<Instant>,
}

impl std::fmt::Debug for Initiation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Initiation").field("index", &self.index).finish_non_exhaustive()
    }
}

/// What a PILR said.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) session: Session,
    pub(super) early_accepted: bool,
    pub(super) observed: Observed,
    pub(super) time_ms: u64,
    pub(super) record_seq: u64,
}

impl Initiation {
    /// Makes a PILI with a fresh ephemeral key. The caller sends [`Self::datagram`].
    pub(super) fn new(
        node: &mut Node,
        peer: &PeerPrekey,
        index: u32,
        flags: Flags,
        early: &[u8],
        cookie: Option<&[u8; 16]>,
        cx: &mut Cx<'_>,
    ) -> Option<Self> {
        let (time_ms, counter) = node.next_time(cx.unix_ms);
        let prekey = node.prekeys.newest();
        let payload = Payload1 {
            time_ms,
            counter,
            identity: node.identity_key,
            address: node.address,
            salt: node.salt,
            certificate: prekey.certificate,
            suites: node.suites,
            transport: node.transport,
        };
        let mut plain = payload.encode().to_vec();
        plain.extend_from_slice(early);
        let header = initiation_header(flags, index, &prekey_id(&peer.prekey));
        let mut datagram = Vec::with_capacity(INITIATION_MAX);
        datagram.extend_from_slice(&header);
        let mut secret = cx.random();
        let ephemeral = DhKey::from_bytes(secret);
        secret.zeroize();
        let prologue = prologue(&header, &peer.identity);
        let noise = Initiator::begin(&prologue, &peer.prekey, &prekey.key, ephemeral, &plain, &mut datagram);
        plain.zeroize();
        let mac1 = PublicKeys::of(&peer.identity).mac1(&datagram);
        datagram.extend_from_slice(&mac1);
        let mac2 = cookie.map_or([0; MAC_LEN], |cookie| cookie::mac2(cookie, &datagram));
        datagram.extend_from_slice(&mac2);
        Some(Self {
            noise: noise?,
            index,
            network: node.address.network,
            prekey: peer.prekey,
            early: !early.is_empty(),
            upgrade: flags.post_quantum,
            datagram,
            repeated: false,
            sent: Some(cx.now),
        })
    }

    pub(super) fn datagram(&self) -> &[u8] {
        &self.datagram
    }

    /// `mac1` of the PILI, which answers name.
    pub(super) fn mac1(&self) -> [u8; MAC_LEN] {
        let mut mac1 = [0; MAC_LEN];
        let end = self.datagram.len() - MAC_LEN;
        mac1.copy_from_slice(&self.datagram[end - MAC_LEN..end]);
        mac1
    }

    /// The same PILI with a cookie, once: it was not looked at the first time.
    pub(super) fn repeat(&mut self, cookie: &[u8; 16]) -> Option<Vec<u8>> {
        if std::mem::replace(&mut self.repeated, true) {
            return None;
        }
        self.sent = None;
        let before = self.datagram.len() - MAC_LEN;
        let mac2 = cookie::mac2(cookie, &self.datagram[..before]);
        self.datagram[before..].copy_from_slice(&mac2);
        Some(self.datagram.clone())
    }

    /// Reads the answer. Nothing changes if it is not genuine.
    pub(super) fn finish(
        &self,
        response: &Response<'_>,
        psk: &Secret,
        node: &Node,
        cx: &mut Cx<'_>,
    ) -> Result<Finished, Refusal> {
        let (payload, split) = self
            .noise
            .finish(response.ephemeral, response.sealed_payload, &psk.0)
            .ok_or(Refusal::Unauthentic)?;
        let payload = payload.first_chunk().ok_or(Refusal::Unauthentic)?;
        let payload = Payload2::decode(payload)?;
        // The header is not sealed; what it says must be what is.
        if payload.sender != response.sender
            || (payload.early_accepted, payload.post_quantum)
                != (response.early_accepted, response.post_quantum)
            || payload.early_accepted && !self.early
            || payload.post_quantum && !self.upgrade
        {
            return Err(Refusal::Unauthentic);
        }
        if node.post_quantum == PostQuantum::Require && !payload.post_quantum {
            return Err(Refusal::PostQuantum);
        }
        let offered = node.suites.ids().contains(&payload.suite);
        let suite = Suite::from_id(payload.suite).filter(|_| offered);
        let parts = Parts {
            suite: suite.ok_or(Refusal::Malformed(Malformed::Value("suite")))?,
            role: Role::Initiator,
            local: self.index,
            remote: payload.sender,
            reset_token: Some(payload.reset_token),
            transport: payload.transport,
            limits: node.limits,
        };
        let mut session = Session::new(&split, parts, cx.now);
        if payload.post_quantum {
            session.agree_on_upgrade(&mut |bytes| cx.rng.fill_bytes(bytes));
        }
        Ok(Finished {
            session,
            early_accepted: payload.early_accepted,
            observed: payload.observed,
            time_ms: payload.time_ms,
            record_seq: payload.record_seq,
        })
    }
}
