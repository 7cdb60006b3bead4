//! Registration with proof of a key, without state for those who have not proved one. `spec/nat.md §7`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use pilotage_fault as fault;
use pilotage_wire::NodeId;
use pilotage_wire::addressing::{derive_node_id, is_reserved};
use pilotage_wire::beacon::{COOKIE_LEN, Extension, MAX_PROOF_TEXT, Message, Rank, Refusal, proof_text};

use super::table::{Proof, Registration};
use super::{Arrival, BeaconEngine, Out, Port, SWEEP_STEP_WHEN_FULL, wire_size};
use crate::scope::{Scope, canonical};

/// Makes and checks cookies: the time of the challenge, and a code over it and over who asked from where.
#[derive(Debug)]
pub(super) struct Cookies {
    key: [u8; 32],
    seed: u64,
    /// What stamps are counted from: the first time that was seen.
    start: Option<Instant>,
}

impl Cookies {
    pub(super) fn new(secret: &[u8; 32]) -> Self {
        let hash = blake3::keyed_hash(secret, b"beacon seed");
        let [a, b, c, d, e, f, g, h, ..] = *hash.as_bytes();
        let seed = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
        Self { key: *blake3::keyed_hash(secret, b"beacon cookie").as_bytes(), seed, start: None }
    }

    /// For the tables.
    pub(super) fn seed(&self) -> u64 {
        self.seed
    }

    /// Milliseconds since the start, and one: a stamp is never 0.
    fn stamp(&mut self, now: Instant) -> u64 {
        let start = *self.start.get_or_insert(now);
        now.saturating_duration_since(start).as_millis() as u64 + 1
    }

    fn bake(&mut self, now: Instant, from: SocketAddr, node: NodeId, nonce: u64) -> [u8; COOKIE_LEN] {
        let stamp = self.stamp(now);
        self.cookie(stamp, from, node, nonce)
    }

    fn cookie(&self, stamp: u64, from: SocketAddr, node: NodeId, nonce: u64) -> [u8; COOKIE_LEN] {
        let mut text = [0; 8 + 18 + 4 + 8];
        text[..8].copy_from_slice(&stamp.to_be_bytes());
        let ip = match from.ip().to_canonical() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        text[8..24].copy_from_slice(&ip.octets());
        text[24..26].copy_from_slice(&from.port().to_be_bytes());
        text[26..30].copy_from_slice(&node.0.to_be_bytes());
        text[30..].copy_from_slice(&nonce.to_be_bytes());
        let code = blake3::keyed_hash(&self.key, &text);
        let mut cookie = [0; COOKIE_LEN];
        cookie[..8].copy_from_slice(&stamp.to_be_bytes());
        cookie[8..].copy_from_slice(&code.as_bytes()[..16]);
        cookie
    }

    /// The stamp of a cookie of ours that has not run out.
    fn check(
        &mut self,
        now: Instant,
        from: SocketAddr,
        node: NodeId,
        nonce: u64,
        cookie: &[u8; COOKIE_LEN],
    ) -> Option<u64> {
        let [a, b, c, d, e, f, g, h, ..] = *cookie;
        let stamp = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
        let good = self.cookie(stamp, from, node, nonce);
        // The time that a comparison takes tells nothing of use: no second guess at the same code helps.
        let age = self.stamp(now).checked_sub(stamp)?;
        let fresh = age <= COOKIE_LIFE.as_millis() as u64 && !fault::point!("nat.beacon.cookie_too_old");
        (blake3::Hash::from(pad(&good)) == blake3::Hash::from(pad(cookie)) && fresh).then_some(stamp)
    }
}

/// To 32 bytes, whose comparison takes constant time.
fn pad(cookie: &[u8; COOKIE_LEN]) -> [u8; 32] {
    let mut padded = [0; 32];
    padded[..COOKIE_LEN].copy_from_slice(cookie);
    padded
}

impl BeaconEngine {
    pub(super) fn hello(
        &mut self,
        now: Instant,
        from: SocketAddr,
        node: NodeId,
        (nonce, renew): (u64, bool),
        len: usize,
        out: Out<'_>,
    ) {
        if !self.within_budget(now, from) {
            return;
        }
        self.stats.hellos += 1;
        let mut credit = wire_size(from, len);
        let rank = self.proven_at(now, from, node).filter(|_| !renew);
        if rank.is_some() {
            credit += self.savings(node).map_or(0, std::mem::take);
        }
        if !fault::point!("nat.beacon.lose_challenge") {
            let cookie;
            let answer = match rank {
                Some(rank) => self.registered(nonce, rank, from),
                None => {
                    cookie = self.cookies.bake(now, from, node, nonce);
                    Extension::Challenge { nonce, cookie: &cookie, addr: from }
                }
            };
            self.send_paid(Port::Main, from, &Message::Extension(answer), &mut credit, out);
        }
        if rank.is_some() {
            self.save(node, credit);
        }
    }

    /// The rank of a node that is registered with a proof at this address, which then counts as a sign of life.
    fn proven_at(&mut self, now: Instant, from: SocketAddr, node: NodeId) -> Option<Rank> {
        let (ttl, proof_ttl) = (self.config.registration_ttl, self.config.proof_ttl);
        let known = self.table.node_mut(node).filter(|known| known.address == from)?;
        let proof = known.proof.as_deref()?;
        let fresh = now.saturating_duration_since(proof.at) < proof_ttl;
        let rank = proof.rank;
        if !fresh || !known.is_live(now, ttl) {
            return None;
        }
        known.seen = now;
        Some(rank)
    }

    fn registered(&self, nonce: u64, rank: Rank, addr: SocketAddr) -> Extension<'static> {
        let lifetime = u16::try_from(self.config.registration_ttl.as_secs()).unwrap_or(u16::MAX);
        Extension::Registered { nonce, rank, lifetime, other_port: self.config.ports[1], addr }
    }

    pub(super) fn prove(
        &mut self,
        now: Instant,
        arrival: &Arrival,
        data: &[u8],
        prove: &Extension<'_>,
        out: Out<'_>,
    ) {
        let Extension::Prove { node, nonce, cookie, .. } = *prove else { return };
        let from = arrival.from;
        if !self.within_budget(now, from) {
            return;
        }
        let stamp = self.cookies.check(now, from, node, nonce, cookie);
        // Only who holds a cookie, and so receives what is sent to this address, may make the beacon compute.
        let may_check = stamp.is_none()
            || self.proof_prefixes.take(now, self.config.proofs_per_prefix, from)
                && self.proofs.take(now, self.config.proofs_total, 1);
        if !may_check {
            self.stats.over_budget += 1;
            return;
        }
        let bound = stamp
            .ok_or(Refusal::BadProof)
            .and_then(|stamp| self.claim(now, arrival, data, prove, stamp))
            .and_then(|claim| self.bind(now, from, node, claim));
        let answer = match bound {
            Ok(rank) => {
                self.stats.proofs += 1;
                self.registered(nonce, rank, from)
            }
            Err(reason) => {
                self.stats.proofs_refused += 1;
                Extension::Refused { nonce, reason, addr: from }
            }
        };
        let mut credit = wire_size(from, data.len());
        if !fault::point!("nat.beacon.lose_registered") {
            self.send_paid(Port::Main, from, &Message::Extension(answer), &mut credit, out);
        }
    }

    /// What the proof proves.
    fn claim(
        &self,
        now: Instant,
        arrival: &Arrival,
        data: &[u8],
        prove: &Extension<'_>,
        stamp: u64,
    ) -> Result<Proof, Refusal> {
        let Extension::Prove { node, salt, key, beacon, accept, permitted, signature, .. } = *prove else {
            return Err(Refusal::BadProof);
        };
        if node == NodeId::UNREGISTERED || node == NodeId::BROADCAST || !self.is_our_name(beacon, arrival.to)
        {
            return Err(Refusal::BadProof);
        }
        // Bytes after the message are legal and not signed.
        let message = data.get(..prove.encoded_len()).ok_or(Refusal::BadProof)?;
        let mut text = [0; MAX_PROOF_TEXT];
        let len = proof_text(message, arrival.from, &mut text).ok_or(Refusal::BadProof)?;
        let verify = self.config.verify.ok_or(Refusal::BadProof)?;
        if !verify(key, &text[..len], signature) {
            return Err(Refusal::BadProof);
        }
        let rank = match self.key_source.as_ref().and_then(|source| source(node)) {
            Some(owner) if owner == *key => Rank::Confirmed,
            Some(_) => return Err(Refusal::OtherKey),
            None if !is_reserved(node) && derive_node_id(key, salt) == Some(node) => Rank::Derived,
            None => Rank::Claimed,
        };
        let mut permitted: Vec<NodeId> = permitted.iter().collect();
        permitted.sort_unstable();
        let permitted = permitted.into_boxed_slice();
        Ok(Proof { key: *key, rank, stamp, at: now, accept, permitted, addressed: Vec::new() })
    }

    /// Whether the node that proved something meant us: else another beacon could pass our challenge on to it.
    fn is_our_name(&self, meant: SocketAddr, to: Option<SocketAddr>) -> bool {
        let same = |ours: SocketAddr| canonical(ours) == canonical(meant) || embeds(meant, ours);
        if to.is_some_and(same) || self.config.names.iter().copied().any(same) {
            return true;
        }
        // Without a name we may be known by one that some NAT gave us, unless our own address reaches as far.
        self.config.names.is_empty() && to.is_none_or(|to| Scope::of(to.ip()) < Scope::of(meant.ip()))
    }

    /// Binds `node` to `from` for who proved a key.
    fn bind(&mut self, now: Instant, from: SocketAddr, node: NodeId, claim: Proof) -> Result<Rank, Refusal> {
        let ttl = self.config.registration_ttl;
        let slot = self.prefixes.slot(from);
        let rank = claim.rank;
        let mut extended = false;
        let mut budgets_of = None;
        if let Some(known) = self.table.node_mut(node) {
            extended = known.extended;
            let live = known.is_live(now, ttl);
            match known.proof.as_deref_mut().filter(|_| live) {
                // A proof that overtook a later one, or was recorded, moves nothing back.
                Some(held)
                    if held.key == claim.key
                        && (claim.stamp < held.stamp
                            || claim.stamp == held.stamp && known.address != from) =>
                {
                    return Err(Refusal::BadProof);
                }
                Some(held) if held.key != claim.key && claim.rank <= held.rank => {
                    self.stats.takeovers_refused += 1;
                    return Err(Refusal::OtherKey);
                }
                _ => {}
            }
        }
        let known = self.table.find(node).and_then(|place| self.table.get(place));
        let counted = known.is_some_and(|known| known.is_proven() && known.prefix_slot == slot);
        if known.is_none() && self.table.len() >= self.config.max_nodes {
            self.table.sweep(now, ttl, SWEEP_STEP_WHEN_FULL);
        }
        let full = !counted && self.table.count_of_prefix(true, slot) >= self.config.max_nodes_per_prefix
            || self.table.find(node).is_none() && self.table.len() >= self.config.max_nodes;
        if full || fault::point!("nat.beacon.no_room_for_proof") {
            self.stats.table_full += 1;
            return Err(Refusal::Full);
        }
        if let Some(old) = self.table.remove(node) {
            self.stats.displaced += u64::from(!old.is_proven() && old.address != from);
            budgets_of = Some(old);
        }
        let mut fresh = Registration::new(node, now, from, slot);
        if let Some(old) = &budgets_of {
            fresh = fresh.with_budgets_of(old);
        }
        // Whom the same key spoke to may go on answering.
        let addressed = budgets_of.and_then(|old| old.proof).filter(|old| old.key == claim.key);
        let addressed = addressed.map(|old| old.addressed).unwrap_or_default();
        let proof = Some(Box::new(Proof { addressed, ..claim }));
        self.insert(now, Registration { extended, proof, ..fresh });
        Ok(rank)
    }
}

/// Whether `meant` is the address of NAT64 (RFC 6052, 64:ff9b::/96) for `ours`.
fn embeds(meant: SocketAddr, ours: SocketAddr) -> bool {
    let (IpAddr::V6(meant_ip), IpAddr::V4(ours_ip)) = (meant.ip(), ours.ip().to_canonical()) else {
        return false;
    };
    let [a, b, c, d, e, f, g, h] = meant_ip.segments();
    let [w, x] = [g, h].map(u16::to_be_bytes);
    [a, b, c, d, e, f] == [0x64, 0xFF9B, 0, 0, 0, 0]
        && Ipv4Addr::new(w[0], w[1], x[0], x[1]) == ours_ip
        && meant.port() == ours.port()
}

/// How long a challenge can be answered.
const COOKIE_LIFE: Duration = Duration::from_secs(10);
