//! Who may do what: signatures, proofs, tokens, and the rules about keys.

use super::limits::Class;
use super::table::Node;
#[cfg(feature = "fuzzing")]
use super::toy::{VerifyingKey, is_canonical, verifies, verifying_key};
use super::{ConnState, Context, Engine, Proof, Record, Refusal, Role, Row, RowKey, Secret};
#[cfg(not(feature = "fuzzing"))]
use ed25519_dalek::VerifyingKey;
use pilotage_fault as fault;
use pilotage_wire::NodeId;
use pilotage_wire::registry::{Base64, Reply, Request, Signature};
use std::time::Instant;

impl Engine {
    /// spec/registry.md §4.1.
    pub(super) fn challenge(&self, ctx: &Context<'_>, conn: &mut ConnState) -> Result<Reply, Refusal> {
        let nonce = (ctx.random)()
            .filter(|_| !fault::point!("registry.engine.no_random"))
            .ok_or(Refusal::NoRandom)?;
        conn.challenge = Some((nonce, ctx.now));
        Ok(Reply::Challenge { nonce: Base64(nonce) })
    }

    /// Which node acts with this request, if its signature or proof is right: a proof always does; the reference's
    /// replayable string only for nodes that have never given a fresh proof, and for questions (spec/registry.md §5.5).
    /// A registration that waited for that on this connection takes effect.
    pub(super) fn authorize(
        &mut self,
        ctx: &Context<'_>,
        conn: &mut ConnState,
        request: &Request,
    ) -> Result<NodeId, Refusal> {
        let credentials = request.credentials().ok_or(Refusal::NoActor)?;
        let id = credentials.actor.ok_or(Refusal::NoActor)?;
        let record = &self.acting(conn, id)?.record;
        // A key that has ended can still be changed.
        if !matches!(request, Request::RotateKey(_)) {
            check_not_ended(ctx, id, record)?;
        }
        let Some(proof) = credentials.proof else {
            let question = matches!(request, Request::Resolve(_) | Request::Punch(_));
            if record.proof == Proof::Fresh && !question {
                return Err(Refusal::ProofNeeded);
            }
            let text =
                request.signed_string().ok_or(Refusal::TokenNeeded(", or a proof by the node's key"))?;
            check_signature(id, record, &text, credentials.signature)?;
            // What waits may go on waiting: its own next heartbeat says why.
            let _ = self.settle(ctx, conn, id);
            return Ok(id);
        };
        let nonce = self.take_challenge(ctx, conn)?;
        let message = request.proof_message(&nonce).ok_or(Refusal::BadProof)?;
        let key = verifying_key(&record.public_key)?;
        if !verifies(&key, &message, proof) {
            return Err(Refusal::BadProof);
        }
        if let Request::RotateKey(rotation) = request {
            let new = usable_key(&rotation.new_public_key)?;
            if !rotation.new_proof.as_ref().is_some_and(|proof| verifies(&new, &message, proof)) {
                return Err(Refusal::BadProof);
            }
        }
        let _ = self.settle(ctx, conn, id);
        Ok(id)
    }

    /// As [`Engine::authorize`], for what an admin or a member with a role may do. `None`: an admin token does it.
    pub(super) fn govern(
        &mut self,
        ctx: &Context<'_>,
        conn: &mut ConnState,
        request: &Request,
        network: u16,
        needed: Role,
    ) -> Result<Option<NodeId>, Refusal> {
        self.network(network)?;
        let token = request.credentials().and_then(|credentials| credentials.admin_token);
        if self.is_admin(ctx, token, Some(network))? {
            return Ok(None);
        }
        let actor = self.authorize(ctx, conn, request)?;
        match self.network(network)?.role(actor) {
            Some(role) if role >= needed => Ok(Some(actor)),
            _ => Err(Refusal::Role { network, needed: needed.text() }),
        }
    }

    /// True for the hub's token, and for the network's own. An empty token is none; a wrong one is an error, and is
    /// counted (spec/registry.md §9.1).
    pub(super) fn is_admin(
        &mut self,
        ctx: &Context<'_>,
        token: Option<&str>,
        network: Option<u16>,
    ) -> Result<bool, Refusal> {
        let Some(token) = token.filter(|token| !token.is_empty()) else { return Ok(false) };
        let of_network = network.and_then(|id| self.network(id).ok()).and_then(|network| network.admin);
        let secrets = [self.config.admin_token, of_network];
        self.check_token(ctx, secrets.into_iter().flatten(), token).map(|()| true)
    }

    /// Is `token` one of the secrets?
    pub(super) fn check_token(
        &mut self,
        ctx: &Context<'_>,
        secrets: impl IntoIterator<Item = Secret>,
        token: &str,
    ) -> Result<(), Refusal> {
        self.limiter.check(ctx.now, ctx.source, Class::Guess)?;
        if secrets.into_iter().any(|secret| secret.matches(token)) {
            return Ok(());
        }
        self.limiter.charge(ctx.now, ctx.source, Class::Guess)?;
        Err(Refusal::BadToken)
    }

    /// A node that may act on this connection: registered, or about to be.
    pub(super) fn acting(&self, conn: &ConnState, id: NodeId) -> Result<&Node, Refusal> {
        let waits = conn.pending.as_ref().is_some_and(|pending| pending.id == id);
        let node = self.table.get(id).filter(|node| waits || node.record.endpoint.is_some());
        node.ok_or(Refusal::NotRegistered(id))
    }

    /// A node that exists and has not deregistered.
    pub(super) fn registered(&self, id: NodeId) -> Result<&Node, Refusal> {
        self.table.get(id).filter(|node| node.record.endpoint.is_some()).ok_or(Refusal::NotRegistered(id))
    }

    pub(super) fn is_online(&self, node: &Node, now: Instant) -> bool {
        node.last_seen.is_some_and(|seen| now.duration_since(seen) < self.config.presence)
    }

    /// True if the request comes from the network address of that node. It replaces no signature: it keeps strangers from
    /// asking what the reference's unsigned questions tell (spec/registry.md §7.8).
    pub(super) fn comes_from(&self, ctx: &Context<'_>, id: NodeId) -> bool {
        let endpoint = self.table.get(id).and_then(|node| node.record.endpoint);
        endpoint.is_some_and(|endpoint| endpoint.ip() == ctx.source.to_canonical())
    }

    /// A challenge is good for one attempt (spec/registry.md §4.2).
    pub(super) fn take_challenge(
        &self,
        ctx: &Context<'_>,
        conn: &mut ConnState,
    ) -> Result<[u8; 32], Refusal> {
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
    pub(super) fn store(&mut self, now: Instant, id: NodeId, record: Record) -> Result<(), Refusal> {
        let last_seen = record.endpoint.is_some().then_some(now);
        let durable = match self.table.get(id) {
            Some(node) if node.durable && node.record == record => {
                if last_seen.is_some() {
                    self.saw(id, now);
                }
                return Ok(());
            }
            node => node.is_some_and(|node| node.durable),
        };
        self.check_writable()?;
        if !durable && self.table.len() >= self.config.max_nodes {
            return Err(Refusal::Full(self.table.len()));
        }
        self.table.put(id, record, last_seen);
        Ok(())
    }

    /// Stages a row.
    pub(super) fn put_row(&mut self, key: RowKey, row: Row) -> Result<(), Refusal> {
        if self.rows.get(&key) == Some(&row) {
            return Ok(());
        }
        self.check_writable()?;
        self.rows.put(key, row);
        Ok(())
    }

    /// Stages the removal of a row; true if there was one.
    pub(super) fn remove_row(&mut self, key: RowKey) -> Result<bool, Refusal> {
        if self.rows.get(&key).is_none() {
            return Ok(false);
        }
        self.check_writable()?;
        Ok(self.rows.remove(key))
    }

    pub(super) fn check_writable(&self) -> Result<(), Refusal> {
        self.read_only.as_ref().map_or(Ok(()), |reason| Err(Refusal::ReadOnly(reason.clone())))
    }
}

pub(super) fn check_not_ended(ctx: &Context<'_>, id: NodeId, record: &Record) -> Result<(), Refusal> {
    match record.profile.key_expires {
        Some(end) if ctx.unix >= end => Err(Refusal::KeyExpired(id)),
        _ => Ok(()),
    }
}

/// One point, one encoding: otherwise a key would have several addresses.
pub(super) fn usable_key(public_key: &Base64<32>) -> Result<VerifyingKey, Refusal> {
    let key = verifying_key(&public_key.0)?;
    if is_canonical(&key, &public_key.0) { Ok(key) } else { Err(Refusal::BadKey) }
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
pub(super) fn verifies(key: &VerifyingKey, message: &[u8], signature: &Signature) -> bool {
    let signature = ed25519_dalek::Signature::from_bytes(&signature.0);
    key.verify_strict(message, &signature).is_ok()
}

pub(super) fn check_signature(
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
