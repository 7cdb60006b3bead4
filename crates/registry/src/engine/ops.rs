//! Single nodes: heartbeat, questions about them, what they say about themselves; and beacons.

use super::auth::{check_not_ended, check_signature};
use super::register::observed;
use super::{ConnState, Context, Engine, Proof, Refusal, Unsigned};
use pilotage_fault as fault;
use pilotage_wire::registry as wire;
use pilotage_wire::registry::{Base64, Beacon, Reply, Request, normalize_tags};
use pilotage_wire::{Address, NodeId};
use std::time::Instant;

/// Longest "host:port" of a beacon, bytes.
const MAX_BEACON_ADDR: usize = 260;
/// How long before the end of a key its node is warned. Seconds.
const EXPIRY_WARNING: u64 = 7 * 86_400;

impl Engine {
    /// spec/registry.md §7.1.
    pub(super) fn heartbeat(
        &mut self,
        ctx: &Context<'_>,
        conn: &mut ConnState,
        request: &wire::Heartbeat,
    ) -> Result<Reply, Refusal> {
        let id = request.node_id;
        let node = self.acting(conn, id)?;
        let message = match &request.listen_addr {
            None => wire::heartbeat_string(id),
            Some(addr) => wire::heartbeat_addr_string(id, addr),
        };
        check_signature(id, &node.record, &message, request.signature.as_ref())?;
        check_not_ended(ctx, id, &node.record)?;
        if self.config.unsigned == Unsigned::UntilSigned {
            self.settle(ctx, conn, id)?;
            let record = &self.registered(id)?.record;
            if record.proof < Proof::Fresh && !self.comes_from(ctx, id) {
                return Err(Refusal::Elsewhere(id));
            }
        }
        let mut record = self.registered(id)?.record.clone();
        // The string can be replayed from elsewhere, so it may change the port at most, and only of a node that has
        // never given a fresh proof.
        if let Some(addr) = &request.listen_addr
            && record.proof != Proof::Fresh
            && let Some(endpoint) = observed(ctx.source, addr)
            && record.endpoint.is_some_and(|old| old.ip() == endpoint.ip())
        {
            record.endpoint = Some(endpoint);
        }
        let ends = record.profile.key_expires;
        let key_expiry_warning = ends.is_some_and(|end| end.saturating_sub(ctx.unix) <= EXPIRY_WARNING);
        self.store(ctx.now, id, record)?;
        Ok(Reply::Heartbeat { time: ctx.unix, key_expiry_warning })
    }

    /// spec/registry.md §7.2: identity is public, the endpoint only for public nodes on line.
    pub(super) fn lookup(&self, ctx: &Context<'_>, request: &wire::Lookup) -> Result<Reply, Refusal> {
        let id = request.node_id;
        let node = self.registered(id).map_err(|_| Refusal::NotVisible(id))?;
        let record = &node.record;
        let shown = record.public && self.is_online(node, ctx.now);
        let mut networks = vec![0];
        networks.extend(self.networks().filter(|(_, network)| network.role(id).is_some()).map(|(id, _)| id));
        Ok(Reply::Lookup(wire::NodeInfo {
            node_id: id,
            address: address(id),
            networks,
            public_key: Some(Base64(record.public_key)),
            public: record.public,
            polo_score: record.profile.polo_score,
            hostname: record.hostname.as_deref().map(str::to_owned),
            tags: record.profile.tags.iter().map(ToString::to_string).collect(),
            task_exec: record.profile.task_exec,
            real_addr: record.endpoint.filter(|_| shown).map(|addr| addr.to_string()),
        }))
    }

    /// spec/registry.md §7.3.
    pub(super) fn resolve(
        &mut self,
        ctx: &Context<'_>,
        conn: &mut ConnState,
        request: &Request,
        resolve: &wire::Resolve,
    ) -> Result<Reply, Refusal> {
        let (id, requester) = (resolve.node_id, resolve.requester_id);
        // An unknown requester and a wrong signature look the same.
        self.authorize(ctx, conn, request).map_err(|refusal| match refusal {
            Refusal::NotRegistered(_) => Refusal::Signature(requester),
            refusal => refusal,
        })?;
        let hidden = Refusal::NotVisible(id);
        let node = self.registered(id).map_err(|_| hidden.clone())?;
        if !self.may_locate(ctx, requester, id) {
            return Err(hidden);
        }
        let endpoint = node.record.endpoint.ok_or(hidden)?;
        // Its last heartbeats may have been lost.
        if !self.is_online(node, ctx.now) || fault::point!("registry.engine.peer_silent") {
            return Err(Refusal::Offline(id, self.config.presence.as_secs()));
        }
        let found = wire::Resolved {
            node_id: id,
            real_addr: endpoint.to_string(),
            lan_addrs: node.record.lan_addrs.iter().map(ToString::to_string).collect(),
            key_age_days: ctx.unix.saturating_sub(node.record.key_since()) / 86_400,
        };
        self.note_call(requester, id, ctx.now);
        Ok(Reply::Resolved(found))
    }

    /// spec/registry.md §7.3: public, or itself, or trusted by it, or in a network with it. A node that has signed nothing
    /// is told to nobody.
    pub(super) fn may_locate(&self, ctx: &Context<'_>, requester: NodeId, id: NodeId) -> bool {
        let Some(node) = self.table.get(id) else { return false };
        node.durable && (node.record.public || requester == id || self.may_know(ctx, requester, id))
    }

    /// `id` trusts `requester`, or they have a network in common.
    pub(super) fn may_know(&self, ctx: &Context<'_>, requester: NodeId, id: NodeId) -> bool {
        let common =
            |network: &super::Network| network.role(id).is_some() && network.role(requester).is_some();
        self.consents(id, requester, ctx.now) || self.networks().any(|(_, network)| common(network))
    }

    /// spec/registry.md §7.4. `requester_id` is not signed: for a private node it counts only from the requester's own
    /// network address, except for the node's own name.
    pub(super) fn resolve_hostname(
        &self,
        ctx: &Context<'_>,
        request: &wire::ResolveHostname,
    ) -> Result<Reply, Refusal> {
        let own = self.config.own_name.as_ref().filter(|own| own.is(&request.hostname));
        let id = own.map_or_else(|| self.table.by_name(&request.hostname), |own| own.node());
        let id = id.ok_or(Refusal::NameNotVisible)?;
        let node = self.registered(id).map_err(|_| Refusal::NameNotVisible)?;
        let may = |requester: NodeId| {
            requester == id || (self.comes_from(ctx, requester) && self.may_know(ctx, requester, id))
        };
        if !node.record.public && !request.requester_id.is_some_and(may) {
            return Err(Refusal::NameNotVisible);
        }
        Ok(Reply::Hostname(wire::HostnameInfo {
            node_id: id,
            address: address(id),
            public: node.record.public,
            hostname: request.hostname.clone(),
        }))
    }

    /// Where two nodes are, for one of them that may know it of the other.
    pub(super) fn punch(
        &mut self,
        ctx: &Context<'_>,
        conn: &mut ConnState,
        request: &Request,
        punch: &wire::Punch,
    ) -> Result<Reply, Refusal> {
        let requester = punch.requester_id;
        self.authorize(ctx, conn, request).map_err(|refusal| match refusal {
            Refusal::NotRegistered(_) => Refusal::Signature(requester),
            refusal => refusal,
        })?;
        let (a, b) = (punch.node_a, punch.node_b);
        if requester != a && requester != b {
            return Err(Refusal::BadArgument("punch: the requester must be one of the two nodes"));
        }
        let place = |id: NodeId| {
            let node = self.registered(id).ok().filter(|_| self.may_locate(ctx, requester, id));
            let node = node.ok_or(Refusal::NotVisible(id))?;
            if !self.is_online(node, ctx.now) {
                return Err(Refusal::Offline(id, self.config.presence.as_secs()));
            }
            node.record.endpoint.map(|addr| addr.to_string()).ok_or(Refusal::NotVisible(id))
        };
        let (node_a_addr, node_b_addr) = (place(a)?, place(b)?);
        Ok(Reply::Punch(wire::PunchAddresses { node_a: a, node_a_addr, node_b: b, node_b_addr }))
    }

    /// spec/registry.md §6.
    pub(super) fn set_hostname(
        &mut self,
        ctx: &Context<'_>,
        conn: &mut ConnState,
        request: &Request,
        wanted: &wire::SetHostname,
    ) -> Result<Reply, Refusal> {
        let id = self.authorize(ctx, conn, request)?;
        let name = &wanted.hostname;
        let mut record = self.registered(id)?.record.clone();
        record.hostname = if name.is_empty() {
            None
        } else {
            self.check_name(ctx, id, name, record.proof)?;
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
        request: &Request,
        wanted: &wire::SetVisibility,
    ) -> Result<Reply, Refusal> {
        let id = self.authorize(ctx, conn, request)?;
        let mut record = self.registered(id)?.record.clone();
        record.public = wanted.public;
        self.store(ctx.now, id, record)?;
        let visibility = if wanted.public { "public" } else { "private" };
        Ok(Reply::SetVisibility { node_id: id, visibility: visibility.to_owned() })
    }

    /// spec/registry.md §6.4.
    pub(super) fn set_tags(
        &mut self,
        ctx: &Context<'_>,
        conn: &mut ConnState,
        request: &Request,
        wanted: &wire::SetTags,
    ) -> Result<Reply, Refusal> {
        let id = self.authorize(ctx, conn, request)?;
        let tags = normalize_tags(&wanted.tags)?;
        let mut record = self.registered(id)?.record.clone();
        record.profile.tags = tags.iter().map(|tag| tag.as_str().into()).collect();
        self.store(ctx.now, id, record)?;
        Ok(Reply::SetTags { node_id: id, tags })
    }

    /// Whether the node takes tasks.
    pub(super) fn set_task_exec(
        &mut self,
        ctx: &Context<'_>,
        conn: &mut ConnState,
        request: &Request,
        wanted: &wire::SetTaskExec,
    ) -> Result<Reply, Refusal> {
        let id = self.authorize(ctx, conn, request)?;
        let mut record = self.registered(id)?.record.clone();
        record.profile.task_exec = wanted.enabled;
        self.store(ctx.now, id, record)?;
        Ok(Reply::SetTaskExec { node_id: id, task_exec: wanted.enabled })
    }

    /// spec/registry.md §7.6: name and endpoints go, the address stays with the key.
    pub(super) fn deregister(
        &mut self,
        ctx: &Context<'_>,
        conn: &mut ConnState,
        request: &Request,
    ) -> Result<Reply, Refusal> {
        let id = self.authorize(ctx, conn, request)?;
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
}

pub(super) fn address(id: NodeId) -> String {
    Address::new(0, id.0).to_string()
}
