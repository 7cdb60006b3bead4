//! Networks: those that the operator makes by the registry, and what daemons do with them.

use serde_json::{Value, json};

use super::{Stage, number};
use crate::Failure;
use crate::scenario::require;

/// Open, with a token, by invitation; roles and policies.
pub(super) fn play(s: &Stage<'_>) -> Result<(), Failure> {
    open(s)?;
    token(s)?;
    invitation(s)
}

/// Makes a network of `anode` and gives its number.
fn create(s: &Stage<'_>, name: &str, options: &[&str]) -> Result<u64, Failure> {
    let owner = number(&s.a)?.to_string();
    let words = [&["network", "create", "--name", name, "--node-id", &owner], options].concat();
    let made = s.says(&s.a, &words, &json!({ "name": name }))?;
    made["network_id"].as_u64().ok_or_else(|| format!("network create: {made}").into())
}

fn open(s: &Stage<'_>) -> Result<(), Failure> {
    let (a, b) = (number(&s.a)?, number(&s.b)?);
    // Without a node nobody would own it.
    s.refused(&s.a, &["network", "create", "--name", "nobodys"], "connection_failed")?;
    let id = create(s, "lobby", &[])?;
    let net = id.to_string();
    let listed = list(s)?;
    let entry = listed.iter().find(|net| net["id"] == id);
    require(entry.is_some_and(|net| net["name"] == "lobby" && net["join_rule"] == "open"), || {
        format!("network list: {listed:?}")
    })?;
    members(s, &net, &[a])?;
    s.says(&s.b, &["network", "join", &net], &json!({ "network_id": id }))?;
    members(s, &net, &[a, b])?;
    s.refused(&s.b, &["network", "join", "4242"], "connection_failed")?;
    s.says(&s.b, &["network", "leave", &net], &json!({ "network_id": id }))?;
    members(s, &net, &[a])?;
    s.refused(&s.b, &["network", "leave", &net], "connection_failed")?;
    s.ok(&s.a, &["network", "rename", &net, "hall"])?;
    let listed = list(s)?;
    require(listed.iter().any(|net| net["id"] == id && net["name"] == "hall"), || format!("{listed:?}"))?;
    s.ok(&s.a, &["network", "delete", &net])?;
    let listed = list(s)?;
    require(!listed.iter().any(|net| net["id"] == id), || format!("network delete: {listed:?}"))
}

fn token(s: &Stage<'_>) -> Result<(), Failure> {
    let id = create(s, "club", &["--join-rule", "token", "--token", "sesame"])?.to_string();
    s.refused(&s.b, &["network", "join", &id], "connection_failed")?;
    s.refused(&s.b, &["network", "join", &id, "--token", "wrong"], "connection_failed")?;
    s.ok(&s.b, &["network", "join", &id, "--token", "sesame"])?;
    members(s, &id, &[number(&s.a)?, number(&s.b)?])?;
    s.ok(&s.b, &["network", "leave", &id]).map(drop)
}

fn invitation(s: &Stage<'_>) -> Result<(), Failure> {
    let (a, b) = (number(&s.a)?, number(&s.b)?);
    let (owner, guest) = (a.to_string(), b.to_string());
    let id = create(s, "guild", &["--join-rule", "invite", "--enterprise"])?;
    let net = id.to_string();
    members(s, &net, &[a])?;
    s.refused(&s.b, &["network", "join", &net], "connection_failed")?;
    s.says(&s.b, &["network", "invites"], &json!({ "invites": [] }))?;
    s.ok(&s.a, &["network", "invite", &net, &guest])?;
    let invited = json!({ "invites": [{ "network_id": id, "inviter_id": a }] });
    s.says(&s.b, &["network", "invites"], &invited)?;
    s.ok(&s.b, &["network", "reject", &net])?;
    s.says(&s.b, &["network", "invites"], &json!({ "invites": [] }))?;
    members(s, &net, &[a])?;
    s.refused(&s.b, &["network", "accept", &net], "connection_failed")?;
    s.ok(&s.a, &["network", "invite", &net, &guest])?;
    s.ok(&s.b, &["network", "accept", &net])?;
    members(s, &net, &[a, b])?;

    s.says(&s.a, &["network", "role", &net, &owner], &json!({ "role": "owner" }))?;
    for (change, role) in [("promote", "admin"), ("demote", "member")] {
        s.ok(&s.a, &["network", change, &net, &guest])?;
        s.says(&s.a, &["network", "role", &net, &guest], &json!({ "role": role }))?;
    }
    let rules = ["--max-members", "9", "--description", "for members", "--allowed-ports", "7,1001"];
    s.ok(&s.a, &[&["network", "policy", &net], &rules[..]].concat())?;
    let policy = json!({ "max_members": 9, "description": "for members", "allowed_ports": [7, 1001] });
    s.says(&s.b, &["network", "policy", &net], &policy)?;
    s.ok(&s.a, &["network", "kick", &net, &guest])?;
    members(s, &net, &[a])?;
    s.ok(&s.a, &["network", "delete", &net]).map(drop)
}

/// As a daemon sees them.
fn list(s: &Stage<'_>) -> Result<Vec<Value>, Failure> {
    let listed = s.ok(&s.a, &["network", "list"])?;
    listed["networks"].as_array().cloned().ok_or_else(|| format!("network list: {listed}").into())
}

/// Both daemons see these members, in any order.
fn members(s: &Stage<'_>, network: &str, wanted: &[u32]) -> Result<(), Failure> {
    for node in [&s.a, &s.b] {
        let listed = s.ok(node, &["network", "members", network])?;
        let nodes = listed["nodes"].as_array().map(Vec::as_slice).unwrap_or_default();
        let mut found: Vec<u64> = nodes.iter().filter_map(|node| node["node_id"].as_u64()).collect();
        let mut wanted: Vec<u64> = wanted.iter().map(|id| u64::from(*id)).collect();
        found.sort_unstable();
        wanted.sort_unstable();
        require(found == wanted, || format!("members of {network}: {listed} instead of {wanted:?}"))?;
    }
    Ok(())
}
