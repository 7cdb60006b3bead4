//! Keys that change and end, and scores (spec/registry.md §13).

use super::auth::usable_key;
use super::ops::address;
use super::{ConnState, Context, Engine, Refusal};
use pilotage_wire::NodeId;
use pilotage_wire::registry as wire;
use pilotage_wire::registry::{Reply, Request, parse_rfc3339, rfc3339};

/// Scores stay within this, both ways: every JSON reader has such numbers exactly.
const MAX_SCORE: i64 = 1_000_000_000;

impl Engine {
    /// The id stays; it is still derived from the first key.
    pub(super) fn rotate_key(
        &mut self,
        ctx: &Context<'_>,
        conn: &mut ConnState,
        request: &Request,
        rotation: &wire::RotateKey,
    ) -> Result<Reply, Refusal> {
        let id = self.authorize(ctx, conn, request)?;
        usable_key(&rotation.new_public_key)?;
        let new = rotation.new_public_key.0;
        // A node that has signed nothing gives way; its own key is no new one.
        let holder = self.table.by_key(&new).and_then(|holder| self.table.get(holder));
        if holder.is_some_and(|node| node.durable) {
            return Err(Refusal::KeyTaken);
        }
        let mut record = self.registered(id)?.record.clone();
        let first = *record.first_key();
        record.public_key = new;
        record.profile.first_key = (first != new).then_some(first);
        record.profile.rotations = record.profile.rotations.saturating_add(1);
        record.profile.key_since = ctx.unix;
        record.profile.key_expires = None;
        self.store(ctx.now, id, record)?;
        let public_key = rotation.new_public_key;
        Ok(Reply::KeyRotated { node_id: id, address: address(id), public_key })
    }

    /// After that time the key does nothing but change itself.
    pub(super) fn set_key_expiry(
        &mut self,
        ctx: &Context<'_>,
        conn: &mut ConnState,
        request: &Request,
        wanted: &wire::SetKeyExpiry,
    ) -> Result<Reply, Refusal> {
        let id = self.authorize(ctx, conn, request)?;
        let end = match wanted.expires_at.as_str() {
            "never" => None,
            text => Some(parse_rfc3339(text).filter(|end| *end > ctx.unix).ok_or(Refusal::BadExpiry)?),
        };
        let mut record = self.registered(id)?.record.clone();
        record.profile.key_expires = end;
        self.store(ctx.now, id, record)?;
        Ok(Reply::KeyExpirySet { node_id: id, expires_at: end.map_or_else(|| "never".to_owned(), rfc3339) })
    }

    pub(super) fn key_info(&self, ctx: &Context<'_>, id: NodeId) -> Result<Reply, Refusal> {
        let record = &self.registered(id).map_err(|_| Refusal::NotVisible(id))?.record;
        Ok(Reply::KeyInfo(wire::KeyInfo {
            node_id: id,
            created_at: rfc3339(record.key_since()),
            key_age_days: ctx.unix.saturating_sub(record.key_since()) / 86_400,
            rotate_count: record.profile.rotations,
            expires_at: record.profile.key_expires.map(rfc3339),
        }))
    }

    pub(super) fn polo_score(&self, id: NodeId) -> Result<Reply, Refusal> {
        self.score(id).map(Reply::PoloScore)
    }

    pub(super) fn update_polo_score(
        &mut self,
        ctx: &Context<'_>,
        request: &Request,
        update: &wire::UpdatePoloScore,
    ) -> Result<Reply, Refusal> {
        let id = update.node_id;
        let old = self.score(id)?.polo_score;
        self.write_score(ctx, request, id, old.saturating_add(update.delta))?;
        self.score(id).map(Reply::PoloScoreUpdated)
    }

    pub(super) fn set_polo_score(
        &mut self,
        ctx: &Context<'_>,
        request: &Request,
        update: &wire::SetPoloScore,
    ) -> Result<Reply, Refusal> {
        self.score(update.node_id)?;
        self.write_score(ctx, request, update.node_id, update.polo_score)?;
        self.score(update.node_id).map(Reply::PoloScoreSet)
    }

    fn score(&self, id: NodeId) -> Result<wire::PoloScore, Refusal> {
        let record = &self.registered(id).map_err(|_| Refusal::NotVisible(id))?.record;
        let polo_score = record.profile.polo_score;
        Ok(wire::PoloScore { node_id: id, address: address(id), polo_score })
    }

    /// The reference signs nothing here, so an operator does it, unless everybody may (reference defect A8).
    fn write_score(
        &mut self,
        ctx: &Context<'_>,
        request: &Request,
        id: NodeId,
        score: i64,
    ) -> Result<(), Refusal> {
        let token = request.credentials().and_then(|credentials| credentials.admin_token);
        if !self.is_admin(ctx, token, None)? && !self.config.open_scores {
            return Err(Refusal::TokenNeeded(", or a hub with --open-scores"));
        }
        let node = self.registered(id)?;
        if !node.durable {
            return Err(Refusal::NotRegistered(id));
        }
        let (mut record, last_seen) = (node.record.clone(), node.last_seen);
        record.profile.polo_score = score.clamp(-MAX_SCORE, MAX_SCORE);
        if record != node.record {
            self.check_writable()?;
            // Others act here: no sign of life.
            self.table.put(id, record, last_seen);
        }
        Ok(())
    }
}
