//! One function per operation, in the order in which a node meets them.

use super::table::Node;
#[cfg(feature = "fuzzing")]
use super::toy::{VerifyingKey, is_canonical, verifies, verifying_key};
use super::{ConnState, Context, Engine, MAX_LAN_ADDRS, Proof, Record, Refusal};
#[cfg(not(feature = "fuzzing"))]
use ed25519_dalek::VerifyingKey;
use pilotage_fault as fault;
use pilotage_wire::addressing::node_ids;
use pilotage_wire::registry as wire;
use pilotage_wire::registry::{Base64, Beacon, Reply, Signature};
use pilotage_wire::{Address, NodeId};
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

/// Longest "host:port" of a beacon, bytes.
const MAX_BEACON_ADDR: usize = 260;

impl Engine {
    /// spec/registry.md §4.1.
    pub(super) fn challenge(&self, ctx: &Context<'_>, conn: &mut ConnState) -> Result<Reply, Refusal> {
        let nonce = (ctx.random)()
            .filter(|_| !fault::point!("registry.engine.no_random"))
            .ok_or(Refusal::NoRandom)?;
        conn.challenge = Some((nonce, ctx.now));
        Ok(Reply::Challenge { nonce: Base64(nonce) })
    }

    /// spec/registry.md §5.
    pub(super) fn register(
        &mut self,
        ctx: &Context<'_>,
        conn: &mut ConnState,
        request: &wire::Register,
    ) -> Result<Reply, Refusal> {
        let public_key = request.public_key.0;
        let key = verifying_key(&public_key)?;
        // One point, one encoding: otherwise a key would have several addresses.
        if !is_canonical(&key, &public_key) {
            return Err(Refusal::BadKey);
        }
        let endpoint = observed(ctx.source, &request.listen_addr).ok_or(Refusal::BadListenAddr)?;
        let proof = self.check_registration(ctx, conn, request, &key)?;
        let known = self.table.by_key(&public_key);
        let (id, mut record) = match known.and_then(|id| self.table.get(id).map(|node| (id, node))) {
            Some((id, node)) => {
                self.check_may_move(ctx, node, proof, endpoint)?;
                (id, node.record.clone())
            }
            None => self.new_record(ctx, public_key, proof)?,
        };
        record.proof = record.proof.max(proof);
        record.endpoint = Some(endpoint);
        record.lan_addrs = parse_lan_addrs(&request.lan_addrs);
        if let Some(public) = request.public
            && (proof == Proof::Fresh || known.is_none())
        {
            record.public = public;
        }
        let mut hostname_error = None;
        if let Some(name) = request.hostname.as_deref().filter(|name| !name.is_empty()) {
            // A bad name does not stop the registration (the reference's behaviour, spec/registry.md §6.3).
            match self.check_name(id, name) {
                Ok(()) => record.hostname = Some(name.into()),
                Err(refusal) => hostname_error = Some(refusal.to_string()),
            }
        }
        let hostname = record.hostname.as_deref().map(str::to_owned);
        self.store(ctx.now, id, record)?;
        Ok(Reply::Registered(wire::Registered {
            node_id: id,
            address: address(id),
            network_id: 0,
            public_key: Base64(public_key),
            observed_addr: endpoint.to_string(),
            protocol_version: wire::PROTOCOL_VERSION,
            hostname: hostname.filter(|_| hostname_error.is_none()),
            hostname_error,
        }))
    }

    /// How strongly a registration is proved. Spends the challenge, whatever the result.
    fn check_registration(
        &self,
        ctx: &Context<'_>,
        conn: &mut ConnState,
        request: &wire::Register,
        key: &VerifyingKey,
    ) -> Result<Proof, Refusal> {
        if let Some(proof) = &request.proof {
            let nonce = self.take_challenge(ctx, conn)?;
            let message = wire::register_proof(&nonce, request);
            return if verifies(key, &message, proof) { Ok(Proof::Fresh) } else { Err(Refusal::BadProof) };
        }
        let on_record = self
            .table
            .by_key(&request.public_key.0)
            .and_then(|id| self.table.get(id))
            .map_or(Proof::None, |node| node.record.proof);
        // spec/registry.md §5.3: a key that gave a better proof once never moves on a worse one.
        if on_record == Proof::Fresh {
            return Err(Refusal::ProofNeeded);
        }
        if !self.config.allow_unsigned {
            return Err(Refusal::UnsignedDisabled);
        }
        let proof = match &request.signature {
            None => Proof::None,
            Some(signature) => {
                let message = wire::register_string(&request.listen_addr, &request.public_key);
                if !verifies(key, message.as_bytes(), signature) {
                    return Err(Refusal::BadRegisterSignature);
                }
                Proof::Replayable
            }
        };
        if proof < on_record {
            return Err(Refusal::ProofNeeded);
        }
        Ok(proof)
    }

    /// Without any proof, a node that is on line stays at its IP address (reference defect A10).
    fn check_may_move(
        &self,
        ctx: &Context<'_>,
        node: &Node,
        proof: Proof,
        endpoint: SocketAddr,
    ) -> Result<(), Refusal> {
        let moves = node.record.endpoint.is_some_and(|old| old.ip() != endpoint.ip());
        if proof == Proof::None && moves && self.is_online(node, ctx.now) {
            return Err(Refusal::OnlineElsewhere(self.config.presence.as_secs()));
        }
        Ok(())
    }

    /// A record under the first free id of a new key (spec/addressing.md: the next salt on collision).
    fn new_record(
        &self,
        ctx: &Context<'_>,
        public_key: [u8; 32],
        proof: Proof,
    ) -> Result<(NodeId, Record), Refusal> {
        let full = Refusal::Full(self.table.len());
        if self.table.len() >= self.config.max_nodes || fault::point!("registry.engine.table_full") {
            return Err(full);
        }
        let (salt, id) = node_ids(&public_key).find(|(_, id)| self.table.get(*id).is_none()).ok_or(full)?;
        let record = Record {
            public_key,
            salt,
            proof,
            public: false,
            hostname: None,
            endpoint: None,
            lan_addrs: Vec::new(),
            created: ctx.unix,
        };
        Ok((id, record))
    }

    /// spec/registry.md §7.1.
    pub(super) fn heartbeat(
        &mut self,
        ctx: &Context<'_>,
        request: &wire::Heartbeat,
    ) -> Result<Reply, Refusal> {
        let id = request.node_id;
        let node = self.registered(id)?;
        let message = match &request.listen_addr {
            None => wire::heartbeat_string(id),
            Some(addr) => wire::heartbeat_addr_string(id, addr),
        };
        check_signature(id, &node.record, &message, request.signature.as_ref())?;
        let mut record = node.record.clone();
        // The string can be replayed from elsewhere, so it may change the port at most, and only of a node that has
        // never given a fresh proof.
        if let Some(addr) = &request.listen_addr
            && record.proof != Proof::Fresh
            && let Some(endpoint) = observed(ctx.source, addr)
            && record.endpoint.is_some_and(|old| old.ip() == endpoint.ip())
        {
            record.endpoint = Some(endpoint);
        }
        self.store(ctx.now, id, record)?;
        Ok(Reply::Heartbeat { time: ctx.unix })
    }

    /// spec/registry.md §7.2: identity is public, the endpoint only for public nodes on line.
    pub(super) fn lookup(&self, ctx: &Context<'_>, request: &wire::Lookup) -> Result<Reply, Refusal> {
        let id = request.node_id;
        let node = self.registered(id).map_err(|_| Refusal::NotVisible(id))?;
        let record = &node.record;
        let shown = record.public && self.is_online(node, ctx.now);
        Ok(Reply::Lookup(wire::NodeInfo {
            node_id: id,
            address: address(id),
            networks: vec![0],
            public_key: Some(Base64(record.public_key)),
            public: record.public,
            polo_score: 0,
            hostname: record.hostname.as_deref().map(str::to_owned),
            real_addr: record.endpoint.filter(|_| shown).map(|addr| addr.to_string()),
        }))
    }

    /// spec/registry.md §7.3.
    pub(super) fn resolve(&self, ctx: &Context<'_>, request: &wire::Resolve) -> Result<Reply, Refusal> {
        let (id, requester) = (request.node_id, request.requester_id);
        // An unknown requester and a wrong signature look the same.
        let asking = self.registered(requester).map_err(|_| Refusal::Signature(requester))?;
        let message = wire::resolve_string(requester, id);
        check_signature(requester, &asking.record, &message, request.signature.as_ref())?;
        let hidden = Refusal::NotVisible(id);
        let node = self.registered(id).map_err(|_| hidden.clone())?;
        if !node.record.public && id != requester {
            return Err(hidden);
        }
        let endpoint = node.record.endpoint.ok_or(hidden)?;
        // Its last heartbeats may have been lost.
        if !self.is_online(node, ctx.now) || fault::point!("registry.engine.peer_silent") {
            return Err(Refusal::Offline(id, self.config.presence.as_secs()));
        }
        Ok(Reply::Resolved(wire::Resolved {
            node_id: id,
            real_addr: endpoint.to_string(),
            lan_addrs: node.record.lan_addrs.iter().map(ToString::to_string).collect(),
            key_age_days: ctx.unix.saturating_sub(node.record.created) / 86_400,
        }))
    }

    /// spec/registry.md §7.4. `requester_id` is not signed, so it opens nothing but the node's own name.
    pub(super) fn resolve_hostname(&self, request: &wire::ResolveHostname) -> Result<Reply, Refusal> {
        let id = self.table.by_name(&request.hostname).ok_or(Refusal::NameNotVisible)?;
        let node = self.registered(id).map_err(|_| Refusal::NameNotVisible)?;
        if !node.record.public && request.requester_id != Some(id) {
            return Err(Refusal::NameNotVisible);
        }
        Ok(Reply::Hostname(wire::HostnameInfo {
            node_id: id,
            address: address(id),
            public: node.record.public,
            hostname: request.hostname.clone(),
        }))
    }

    /// spec/registry.md §6.
    pub(super) fn set_hostname(
        &mut self,
        ctx: &Context<'_>,
        conn: &mut ConnState,
        request: &wire::SetHostname,
    ) -> Result<Reply, Refusal> {
        let id = request.node_id;
        let name = &request.hostname;
        self.authorize(
            ctx,
            conn,
            id,
            request.proof.as_ref(),
            request.signature.as_ref(),
            Action {
                proof: &|nonce| wire::set_hostname_proof(nonce, id, name),
                string: wire::set_hostname_string(id),
            },
        )?;
        let mut record = self.registered(id)?.record.clone();
        record.hostname = if name.is_empty() {
            None
        } else {
            self.check_name(id, name)?;
            Some(name.as_str().into())
        };
        self.store(ctx.now, id, record)?;
        Ok(Reply::SetHostname { node_id: id, hostname: name.clone() })
    }

    /// spec/registry.md §7.5.
    pub(super) fn set_visibility(
        &mut self,
        ctx: &Context<'_>,
        conn: &mut ConnState,
        request: &wire::SetVisibility,
    ) -> Result<Reply, Refusal> {
        let (id, public) = (request.node_id, request.public);
        self.authorize(
            ctx,
            conn,
            id,
            request.proof.as_ref(),
            request.signature.as_ref(),
            Action {
                proof: &|nonce| wire::set_visibility_proof(nonce, id, public),
                string: wire::set_visibility_string(id),
            },
        )?;
        let mut record = self.registered(id)?.record.clone();
        record.public = public;
        self.store(ctx.now, id, record)?;
        let visibility = if public { "public" } else { "private" };
        Ok(Reply::SetVisibility { node_id: id, visibility: visibility.to_owned() })
    }

    /// spec/registry.md §7.6: name and endpoints go, the address stays with the key.
    pub(super) fn deregister(
        &mut self,
        ctx: &Context<'_>,
        conn: &mut ConnState,
        request: &wire::Deregister,
    ) -> Result<Reply, Refusal> {
        let id = request.node_id;
        self.authorize(
            ctx,
            conn,
            id,
            request.proof.as_ref(),
            request.signature.as_ref(),
            Action { proof: &|nonce| wire::deregister_proof(nonce, id), string: wire::deregister_string(id) },
        )?;
        let mut record = self.registered(id)?.record.clone();
        record.hostname = None;
        record.endpoint = None;
        record.lan_addrs = Vec::new();
        record.public = false;
        self.store(ctx.now, id, record)?;
        Ok(Reply::Deregistered)
    }

    /// spec/registry.md §7.7.
    pub(super) fn beacon_register(
        &mut self,
        ctx: &Context<'_>,
        request: &wire::BeaconRegister,
    ) -> Result<Reply, Refusal> {
        if !self.config.allow_beacon_register {
            return Err(Refusal::Beacon("switched off here; the operator lists the beacons"));
        }
        let port = request.addr.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
        if port.is_none_or(|port| port == 0) || request.addr.len() > MAX_BEACON_ADDR {
            return Err(Refusal::Beacon("refused: addr must be \"host:port\""));
        }
        self.expire_beacons(ctx.now);
        let entry = Beacon { id: request.beacon_id, addr: request.addr.clone() };
        match self.beacons.iter().position(|(beacon, _)| beacon.id == entry.id) {
            Some(at) => self.beacons[at] = (entry, ctx.now),
            None if self.beacons.len() < self.config.max_beacons => {
                self.beacons.push((entry, ctx.now));
            }
            None => return Err(Refusal::Beacon("refused: the table is full")),
        }
        Ok(Reply::BeaconRegistered { beacon_id: request.beacon_id })
    }

    pub(super) fn beacon_list(&mut self, ctx: &Context<'_>) -> Reply {
        self.expire_beacons(ctx.now);
        let announced = self.beacons.iter().map(|(beacon, _)| beacon);
        Reply::BeaconList { beacons: self.config.beacons.iter().chain(announced).cloned().collect() }
    }

    fn expire_beacons(&mut self, now: Instant) {
        let life = self.config.beacon_life;
        // Their announcements came late.
        if fault::point!("registry.engine.beacons_expire") {
            self.beacons.clear();
        }
        self.beacons.retain(|(_, seen)| now.duration_since(*seen) < life);
    }

    /// A node that exists and has not deregistered.
    fn registered(&self, id: NodeId) -> Result<&Node, Refusal> {
        self.table.get(id).filter(|node| node.record.endpoint.is_some()).ok_or(Refusal::NotRegistered(id))
    }

    fn is_online(&self, node: &Node, now: Instant) -> bool {
        node.last_seen.is_some_and(|seen| now.duration_since(seen) < self.config.presence)
    }

    fn check_name(&self, id: NodeId, name: &str) -> Result<(), Refusal> {
        wire::check_hostname(name)?;
        match self.table.by_name(name) {
            Some(owner) if owner != id => Err(Refusal::NameTaken),
            _ => Ok(()),
        }
    }

    /// May this connection act for `id`? A fresh proof always does; the reference's replayable string only for nodes
    /// that have never given a fresh proof (spec/registry.md §5.5).
    fn authorize(
        &self,
        ctx: &Context<'_>,
        conn: &mut ConnState,
        id: NodeId,
        proof: Option<&Signature>,
        signature: Option<&Signature>,
        action: Action<'_>,
    ) -> Result<(), Refusal> {
        let record = &self.registered(id)?.record;
        let Some(proof) = proof else {
            if record.proof == Proof::Fresh {
                return Err(Refusal::ProofNeeded);
            }
            return check_signature(id, record, &action.string, signature);
        };
        let nonce = self.take_challenge(ctx, conn)?;
        let key = verifying_key(&record.public_key)?;
        if verifies(&key, &(action.proof)(&nonce), proof) { Ok(()) } else { Err(Refusal::BadProof) }
    }

    /// A challenge is good for one attempt (spec/registry.md §4.2).
    fn take_challenge(&self, ctx: &Context<'_>, conn: &mut ConnState) -> Result<[u8; 32], Refusal> {
        let life = self.config.challenge_life;
        match conn.challenge.take() {
            Some((nonce, issued))
                if ctx.now.duration_since(issued) < life
                    && !fault::point!("registry.engine.challenge_expired") =>
            {
                Ok(nonce)
            }
            _ => Err(Refusal::NoChallenge(life.as_secs())),
        }
    }

    /// Makes `record` the state of `id` and notes the sign of life; stages a write only if something changed.
    fn store(&mut self, now: Instant, id: NodeId, record: Record) -> Result<(), Refusal> {
        let last_seen = record.endpoint.is_some().then_some(now);
        if self.table.get(id).is_some_and(|node| node.record == record) {
            if last_seen.is_some() {
                self.table.touch(id, now);
            }
            return Ok(());
        }
        if let Some(reason) = &self.read_only {
            return Err(Refusal::ReadOnly(reason.clone()));
        }
        self.table.put(id, Node { record, last_seen });
        Ok(())
    }
}

/// The two messages that may authorise an operation.
struct Action<'a> {
    proof: &'a dyn Fn(&[u8; 32]) -> Vec<u8>,
    string: String,
}

fn address(id: NodeId) -> String {
    Address::new(0, id.0).to_string()
}

/// spec/registry.md §5.6: the host is the TCP source, only the port is the node's word.
fn observed(source: IpAddr, listen_addr: &str) -> Option<SocketAddr> {
    let port: u16 = listen_addr.rsplit_once(':')?.1.parse().ok()?;
    (port != 0).then(|| SocketAddr::new(source.to_canonical(), port))
}

/// Entries that are no "ip:port" are dropped: LAN addresses are a hint, not worth failing a registration.
fn parse_lan_addrs(addrs: &[String]) -> Vec<SocketAddr> {
    addrs
        .iter()
        .filter_map(|addr| addr.parse::<SocketAddr>().ok())
        .filter(|addr| addr.port() != 0)
        .take(MAX_LAN_ADDRS)
        // Flow label and zone mean nothing to another host and are not stored.
        .map(|addr| SocketAddr::new(addr.ip(), addr.port()))
        .collect()
}

/// Small-order keys would verify signatures that nobody made.
#[cfg(not(feature = "fuzzing"))]
fn verifying_key(public_key: &[u8; 32]) -> Result<VerifyingKey, Refusal> {
    VerifyingKey::from_bytes(public_key).ok().filter(|key| !key.is_weak()).ok_or(Refusal::BadKey)
}

#[cfg(not(feature = "fuzzing"))]
fn is_canonical(key: &VerifyingKey, public_key: &[u8; 32]) -> bool {
    key.to_edwards().compress().to_bytes() == *public_key
}

#[cfg(not(feature = "fuzzing"))]
fn verifies(key: &VerifyingKey, message: &[u8], signature: &Signature) -> bool {
    let signature = ed25519_dalek::Signature::from_bytes(&signature.0);
    key.verify_strict(message, &signature).is_ok()
}

fn check_signature(
    id: NodeId,
    record: &Record,
    message: &str,
    signature: Option<&Signature>,
) -> Result<(), Refusal> {
    let key = verifying_key(&record.public_key)?;
    match signature {
        Some(signature) if verifies(&key, message.as_bytes(), signature) => Ok(()),
        _ => Err(Refusal::Signature(id)),
    }
}
