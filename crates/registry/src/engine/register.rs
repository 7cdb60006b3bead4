//! `register`: who gets which id, and what a registration without proof is worth (spec/registry.md §5).

#[cfg(not(feature = "fuzzing"))]
use super::auth::verifies;
use super::auth::{check_not_ended, usable_key};
use super::table::Node;
#[cfg(feature = "fuzzing")]
use super::toy::{VerifyingKey, verifies};
use super::{ConnState, Context, Engine, MAX_LAN_ADDRS, Profile, Proof, Record, Refusal, Unsigned};
#[cfg(not(feature = "fuzzing"))]
use ed25519_dalek::VerifyingKey;
use pilotage_fault as fault;
use pilotage_wire::addressing::node_ids;
use pilotage_wire::registry as wire;
use pilotage_wire::registry::{Base64, Reply};
use pilotage_wire::{Address, NodeId};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

/// A registration without proof of a known key. It takes effect when the key signs something on the same connection.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) id: NodeId,
    endpoint: SocketAddr,
    lan_addrs: Vec<SocketAddr>,
    hostname: Option<Box<str>>,
    at: Instant,
}

/// What a registration asks for, checked.
struct Wish {
    public_key: [u8; 32],
    endpoint: SocketAddr,
    lan_addrs: Vec<SocketAddr>,
}

impl Engine {
    /// spec/registry.md §5.
    pub(super) fn register(
        &mut self,
        ctx: &Context<'_>,
        conn: &mut ConnState,
        request: &wire::Register,
    ) -> Result<Reply, Refusal> {
        let key = usable_key(&request.public_key)?;
        let wish = Wish {
            public_key: request.public_key.0,
            endpoint: observed(ctx.source, &request.listen_addr).ok_or(Refusal::BadListenAddr)?,
            lan_addrs: parse_lan_addrs(&request.lan_addrs),
        };
        let proof = self.check_registration(ctx, conn, request, &key)?;
        if proof == Proof::None && self.config.unsigned == Unsigned::UntilSigned {
            return self.register_unsigned(ctx, conn, request, wish);
        }
        let known = self.table.by_key(&wish.public_key);
        let (id, mut record) = match known.and_then(|id| self.table.get(id).map(|node| (id, node))) {
            Some((id, node)) => {
                check_not_ended(ctx, id, &node.record)?;
                self.check_may_move(ctx, node, proof, wish.endpoint)?;
                (id, node.record.clone())
            }
            None => self.new_record(ctx, wish.public_key, proof)?,
        };
        record.proof = record.proof.max(proof);
        record.endpoint = Some(wish.endpoint);
        record.lan_addrs = wish.lan_addrs;
        if let Some(public) = request.public
            && (proof == Proof::Fresh || known.is_none())
        {
            record.public = public;
        }
        let mut hostname_error = None;
        if let Some(name) = request.hostname.as_deref().filter(|name| !name.is_empty()) {
            // A bad name does not stop the registration (the reference's behaviour, spec/registry.md §6.3).
            match self.check_name(ctx, id, name, record.proof) {
                Ok(()) => record.hostname = Some(name.into()),
                Err(refusal) => hostname_error = Some(refusal.to_string()),
            }
        }
        let hostname = record.hostname.as_deref().map(str::to_owned);
        self.store(ctx.now, id, record)?;
        Ok(registered(id, request, wish.endpoint, hostname, hostname_error))
    }

    /// spec/registry.md §5.3.2: nothing of what is known changes before the key has signed something.
    fn register_unsigned(
        &mut self,
        ctx: &Context<'_>,
        conn: &mut ConnState,
        request: &wire::Register,
        wish: Wish,
    ) -> Result<Reply, Refusal> {
        let known = self.table.by_key(&wish.public_key);
        let (id, mut record) = match known.and_then(|id| self.table.get(id).map(|node| (id, node))) {
            Some((id, node)) => {
                check_not_ended(ctx, id, &node.record)?;
                (id, node.record.clone())
            }
            None => {
                self.make_room(ctx)?;
                self.new_record(ctx, wish.public_key, Proof::None)?
            }
        };
        let (mut name, mut hostname_error) = (None, None);
        if let Some(wanted) = request.hostname.as_deref().filter(|name| !name.is_empty()) {
            match self.check_name(ctx, id, wanted, record.proof) {
                Ok(()) => name = Some(Box::from(wanted)),
                Err(refusal) => hostname_error = Some(refusal.to_string()),
            }
        }
        let hostname = name.as_deref().or(record.hostname.as_deref()).map(str::to_owned);
        let endpoint = wish.endpoint;
        if known.is_none() {
            record.endpoint = Some(endpoint);
            record.lan_addrs = wish.lan_addrs;
            record.hostname = name;
            self.table.put_unconfirmed(id, record, ctx.now);
        } else if record.endpoint != Some(endpoint) || record.lan_addrs != wish.lan_addrs || name.is_some() {
            conn.pending = Some(Arc::new(Pending {
                id,
                endpoint,
                lan_addrs: wish.lan_addrs,
                hostname: name,
                at: ctx.now,
            }));
        }
        Ok(registered(id, request, endpoint, hostname, hostname_error))
    }

    /// The key of `id` has signed something on this connection: what it asked for there takes effect, and a node that
    /// was only in memory becomes durable.
    pub(super) fn settle(
        &mut self,
        ctx: &Context<'_>,
        conn: &mut ConnState,
        id: NodeId,
    ) -> Result<(), Refusal> {
        if self.config.unsigned != Unsigned::UntilSigned {
            return Ok(());
        }
        let Some(node) = self.table.get(id) else { return Ok(()) };
        let life = self.config.presence;
        let fits = |pending: &&Arc<Pending>| {
            pending.id == id && ctx.now.duration_since(pending.at) < life && node.record.proof != Proof::Fresh
        };
        let pending = conn.pending.as_ref().filter(fits).cloned();
        if pending.is_none() && node.record.proof != Proof::None {
            return Ok(());
        }
        let mut record = node.record.clone();
        if let Some(pending) = &pending {
            // Whoever recorded a signature can send it from elsewhere: it does not move a node that is there.
            if record.proof > Proof::None {
                self.check_may_move(ctx, node, Proof::Replayable, pending.endpoint)?;
            }
            record.endpoint = Some(pending.endpoint);
            record.lan_addrs.clone_from(&pending.lan_addrs);
        }
        record.proof = record.proof.max(Proof::Replayable);
        if let Some(name) = pending.as_ref().and_then(|pending| pending.hostname.clone())
            && self.check_name(ctx, id, &name, record.proof).is_ok()
        {
            record.hostname = Some(name);
        }
        self.store(ctx.now, id, record)?;
        conn.pending = None;
        Ok(())
    }

    /// Room for one more node that has signed nothing: those that were silent too long go first.
    fn make_room(&mut self, ctx: &Context<'_>) -> Result<(), Refusal> {
        let horizon = ctx.now.checked_sub(self.config.presence);
        while self.table.unconfirmed() >= self.config.max_unconfirmed {
            if !self.table.forget_unconfirmed(horizon) {
                return Err(Refusal::TooMany(
                    "too many nodes have registered here without signing anything; retry in a minute, or register with proof of possession",
                ));
            }
        }
        Ok(())
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
        // spec/registry.md §5.3: a key that gave a fresh proof once never moves on less.
        if on_record == Proof::Fresh {
            return Err(Refusal::ProofNeeded);
        }
        if self.config.unsigned == Unsigned::Refused {
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
        if proof < on_record && self.config.unsigned == Unsigned::Trusted {
            return Err(Refusal::ProofNeeded);
        }
        Ok(proof)
    }

    /// Without a fresh proof, a node that is on line stays at its IP address (reference defect A10).
    fn check_may_move(
        &self,
        ctx: &Context<'_>,
        node: &Node,
        proof: Proof,
        endpoint: SocketAddr,
    ) -> Result<(), Refusal> {
        let moves = node.record.endpoint.is_some_and(|old| old.ip() != endpoint.ip());
        let weak = match self.config.unsigned {
            Unsigned::Trusted => proof == Proof::None,
            _ => proof < Proof::Fresh && node.record.proof > Proof::None,
        };
        if weak && moves && self.is_online(node, ctx.now) {
            return Err(Refusal::OnlineElsewhere(self.config.presence.as_secs()));
        }
        Ok(())
    }

    /// A record under the first free id of a new key (spec/addressing.md: the next salt on collision).
    fn new_record(
        &mut self,
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
            profile: Profile::default(),
        };
        self.oldest = Some(self.oldest.map_or(ctx.unix, |oldest| oldest.min(ctx.unix)));
        Ok((id, record))
    }

    /// May `id`, which has shown `proof`, have this name? The name of a node that has signed nothing goes to the first
    /// that has, and to everybody when the node was silent too long.
    pub(super) fn check_name(
        &self,
        ctx: &Context<'_>,
        id: NodeId,
        name: &str,
        proof: Proof,
    ) -> Result<(), Refusal> {
        wire::check_hostname(name)?;
        if self.config.own_name.as_ref().is_some_and(|own| own.is(name)) {
            return Err(Refusal::NameTaken);
        }
        let holder = self.table.by_name(name).filter(|holder| *holder != id);
        match holder.and_then(|holder| self.table.get(holder)) {
            Some(node) if node.durable || (proof == Proof::None && self.is_online(node, ctx.now)) => {
                Err(Refusal::NameTaken)
            }
            _ => Ok(()),
        }
    }
}

fn registered(
    id: NodeId,
    request: &wire::Register,
    endpoint: SocketAddr,
    hostname: Option<String>,
    hostname_error: Option<String>,
) -> Reply {
    Reply::Registered(wire::Registered {
        node_id: id,
        address: Address::new(0, id.0).to_string(),
        network_id: 0,
        public_key: Base64(request.public_key.0),
        observed_addr: endpoint.to_string(),
        protocol_version: wire::PROTOCOL_VERSION,
        hostname: hostname.filter(|_| hostname_error.is_none()),
        hostname_error,
    })
}

/// spec/registry.md §5.6: the host is the TCP source, only the port is the node's word.
pub(super) fn observed(source: IpAddr, listen_addr: &str) -> Option<SocketAddr> {
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
