//! Who trusts whom.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::{Stage, number};
use crate::Failure;
use crate::scenario::require;
use crate::subject::Node;

/// A time that tells nothing may be off by so much, in seconds.
const LATELY: u64 = 600;

/// Asked, refused, asked again, granted, used, and taken back.
pub(super) fn play(s: &Stage<'_>) -> Result<(), Failure> {
    let (a, b) = (number(&s.a)?, number(&s.b)?);
    let nobody = json!({ "pending": [] });
    s.says(&s.b, &["pending"], &nobody)?;
    s.says(&s.a, &["trust"], &json!({ "trusted": [] }))?;
    // The reference approves and revokes what is not there without a word, and tells the other side less.
    if s.ours() {
        s.refused(&s.b, &["approve", &a.to_string()], "connection_failed")?;
    }
    s.refused(&s.a, &["handshake", "nobody", "x"], "not_found")?;

    s.says(&s.a, &["handshake", "bnode", "we met"], &json!({ "node_id": b, "status": "sent" }))?;
    let asks = json!({ "node_id": a, "justification": "we met", "public_key": key(s, &s.a)? });
    let pending = s.until(&s.b, &["pending"], &json!({ "pending": [asks] }))?;
    recent("pending", &pending["pending"][0]["received_at"])?;
    s.says(&s.b, &["info"], &json!({ "handshake_pending_count": 1 }))?;
    s.says(&s.b, &["reject", &a.to_string(), "no"], &json!({ "node_id": a, "status": "rejected" }))?;
    s.says(&s.b, &["pending"], &nobody)?;
    s.says(&s.a, &["trust"], &json!({ "trusted": [] }))?;

    // The same by address and by number.
    s.says(&s.a, &["handshake", &s.b.address, "please"], &json!({ "node_id": b, "status": "sent" }))?;
    let asks = json!({ "node_id": a, "justification": "please" });
    s.until(&s.b, &["pending"], &json!({ "pending": [asks] }))?;
    s.says(&s.b, &["approve", &a.to_string()], &json!({ "node_id": a, "status": "approved" }))?;
    s.says(&s.b, &["pending"], &nobody)?;
    // Who grants knows that it was asked; who asked and was granted knows that both agree.
    for (whose, other, id, mutual) in [(&s.a, &s.b, b, true), (&s.b, &s.a, a, false)] {
        let peer = json!({ "node_id": id, "mutual": mutual, "network": 0, "public_key": key(s, other)? });
        let trusted = s.until(whose, &["trust"], &json!({ "trusted": [peer] }))?;
        recent("trust", &trusted["trusted"][0]["approved_at"])?;
    }

    // A private node is found by those whom it trusts.
    s.ok(&s.a, &["set-private"])?;
    if s.ours() {
        // A daemon of the reference does not say who asks.
        s.says(&s.b, &["find", "anode"], &json!({ "node_id": a, "public": false }))?;
    }
    s.says(&s.a, &["untrust", &b.to_string()], &json!({ "node_id": b }))?;
    s.says(&s.a, &["trust"], &json!({ "trusted": [] }))?;
    if s.ours() {
        s.until(&s.b, &["trust"], &json!({ "trusted": [] }))?;
        s.refused(&s.a, &["untrust", &b.to_string()], "connection_failed")?;
    }
    s.refused(&s.b, &["find", "anode"], "not_found")?;
    s.ok(&s.a, &["set-public"])?;
    if !s.ours() {
        return Ok(());
    }

    // Both ask: that is an agreement.
    s.ok(&s.a, &["handshake", &b.to_string(), "again"])?;
    s.until(&s.b, &["pending"], &json!({ "pending": [{ "node_id": a, "justification": "again" }] }))?;
    s.ok(&s.b, &["handshake", &a.to_string(), "me too"])?;
    for (whose, id) in [(&s.a, b), (&s.b, a)] {
        s.until(whose, &["trust"], &json!({ "trusted": [{ "node_id": id, "mutual": true }] }))?;
    }
    Ok(())
}

fn key(s: &Stage<'_>, node: &Node) -> Result<Value, Failure> {
    Ok(s.ok(node, &["info"])?["public_key"].take())
}

fn recent(what: &str, time: &Value) -> Result<(), Failure> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let fits = time.as_u64().is_some_and(|time| time.abs_diff(now) < LATELY);
    require(fits, || format!("{what}: time {time}, now it is {now}"))
}
