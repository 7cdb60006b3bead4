//! `pilotage trust`: asks the running node of the state directory (its other half is in `up`).

use std::io;
use std::sync::Arc;
use std::time::Duration;

use pilotage::{Address, Node, NodeId, Peer};
use pilotage_services::trust::{Delivery, Trust, TrustError, TrustEvent};
use serde_json::{Value, json};

use super::Context;
use crate::args::{TrustAction, UpArgs};
use crate::control;
use crate::error::{CliError, Exit};

/// A request may have to try the peer, then the registry.
const TIME: Duration = Duration::from_secs(40);

pub(crate) fn run(context: &Context, action: &TrustAction) -> Result<(), CliError> {
    let state = &context.settings.state;
    let reply = control::request_with(state, &request(action), TIME).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => CliError::failure(
            "trust",
            format!("no node is running in {}", state.display()),
            "start one with `pilotage up`, or name its directory with --state DIR",
        ),
        _ => CliError::failure(
            "trust",
            format!("{}: {error}", control::path(state).display()),
            "check that the node in this directory is yours and answers",
        ),
    })?;
    if let Some(error) = reply["error"].as_str() {
        let next = reply["next"].as_str().unwrap_or("use the same version for `up` and `trust`");
        let exit = if reply["unreachable"] == true { Exit::Unreachable } else { Exit::Failure };
        return Err(CliError::new(exit, "trust", error, next));
    }
    context.output.result(text(&reply), &reply);
    Ok(())
}

/// What is sent to the running node.
fn request(action: &TrustAction) -> Value {
    let (name, peer, words) = match action {
        TrustAction::Request { peer, why } => ("request", Some(peer), why.as_str()),
        TrustAction::Approve { peer } => ("approve", Some(peer), ""),
        TrustAction::Reject { peer, reason } => ("reject", Some(peer), reason.as_str()),
        TrustAction::Revoke { peer } => ("revoke", Some(peer), ""),
        TrustAction::List => ("list", None, ""),
        TrustAction::Pending => ("pending", None, ""),
    };
    json!({ "cmd": "trust", "action": name, "peer": peer, "text": words })
}

// ------------------------------------------------------------------ in the running node

/// Serves trust for `up`. A private node at a registry of the reference answers only whom it trusts, as daemons there do.
pub(crate) fn serve(context: &Context, args: &UpArgs, node: &Node) -> Result<Trust, CliError> {
    let output = context.output.clone();
    let observer = Arc::new(move |event| {
        let (text, value) = describe(&event);
        output.note(text);
        output.event(&value);
    });
    let dir = (!args.node.ephemeral).then_some(context.settings.state.as_path());
    let trust = Trust::open_observed(dir, node, observer).map_err(|error| {
        CliError::failure("trust", error, "correct or remove the file, or use another state directory")
    })?;
    let private_abroad = node.hub_status().is_some_and(|hub| hub.registered && hub.foreign && !hub.public);
    if private_abroad || args.guard {
        trust.guard();
    }
    Ok(trust)
}

/// Answers what [`run`] asked.
pub(crate) fn reply(node: &Node, trust: &Trust, request: &Value) -> Value {
    let action = request["action"].as_str().unwrap_or_default();
    let words = request["text"].as_str().unwrap_or_default();
    match action {
        "list" => {
            let trusted = trust.trusted().into_iter().map(|entry| {
                json!({
                    "node": Address::new(0, entry.node.0).to_string(),
                    "node_id": entry.node.0,
                    "public_key": hex::encode(entry.public_key),
                    "approved_at": entry.approved_at,
                    "mutual": entry.mutual,
                    "network": entry.network,
                })
            });
            json!({ "event": "trusted", "trusted": trusted.collect::<Vec<_>>() })
        }
        "pending" => pending(trust),
        "request" | "approve" | "reject" | "revoke" => {
            let peer = request["peer"].as_str().unwrap_or_default();
            let target = match target(node, peer) {
                Ok(target) => target,
                Err((error, next)) => return json!({ "error": error, "next": next }),
            };
            let done = match action {
                "request" => trust.request(target, words).map(Some),
                "approve" => trust.approve(target).map(|()| None),
                "reject" => trust.reject(target, words).map(|()| None),
                _ => trust.revoke(target).map(|()| None),
            };
            match done {
                Ok(delivery) => json!({
                    "event": "trust",
                    "action": action,
                    "node": Address::new(0, target.0).to_string(),
                    "node_id": target.0,
                    "delivery": delivery.map(delivery_name),
                }),
                Err(error) => failure(&error),
            }
        }
        other => json!({ "error": format!("unknown action {other:?}") }),
    }
}

fn pending(trust: &Trust) -> Value {
    let pending = trust.pending().into_iter().map(|entry| {
        json!({
            "node": Address::new(0, entry.node.0).to_string(),
            "node_id": entry.node.0,
            "public_key": entry.public_key.map(hex::encode),
            "justification": entry.justification,
            "received_at": entry.received_at,
        })
    });
    let outgoing = trust.outgoing().into_iter().map(|entry| {
        json!({
            "node": Address::new(0, entry.node.0).to_string(),
            "node_id": entry.node.0,
            "justification": entry.justification,
            "sent_at": entry.sent_at,
        })
    });
    json!({
        "event": "pending",
        "pending": pending.collect::<Vec<_>>(),
        "outgoing": outgoing.collect::<Vec<_>>(),
    })
}

/// The node that is meant: a number, an address or a name; else what is wrong, and what to do.
fn target(node: &Node, peer: &str) -> Result<NodeId, (String, String)> {
    if !peer.is_empty() && peer.bytes().all(|b| b.is_ascii_digit()) {
        let number = peer.parse().map_err(|_| {
            (format!("{peer} is no node number"), "give a number from 1 to 4294967294".to_owned())
        })?;
        return Ok(NodeId(number));
    }
    match peer.parse::<Peer>() {
        Ok(Peer::Address(address) | Peer::At(address, _)) => Ok(address.node),
        Ok(name) => match node.resolve(&name) {
            Ok(found) => Ok(found.address.node),
            Err(failure) => Err((failure.cause.to_string(), failure.hint)),
        },
        Err(error) => Err((error.to_string(), "give a name, an address or a node number".to_owned())),
    }
}

fn delivery_name(delivery: Delivery) -> &'static str {
    match delivery {
        Delivery::Direct => "direct",
        Delivery::Relayed => "relayed",
        Delivery::Agreed => "agreed",
    }
}

fn failure(error: &TrustError) -> Value {
    let unreachable = matches!(error, TrustError::NotDelivered { .. });
    let next = match error {
        TrustError::NotDelivered { .. } => {
            "check that the node is registered with the same hub, then ask again"
        }
        TrustError::Refused(_) => "see `pilotage trust list` and `pilotage trust pending`",
        TrustError::TooLong => "shorten the text",
        _ => "see the cause",
    };
    json!({ "error": error.to_string(), "next": next, "unreachable": unreachable })
}

fn describe(event: &TrustEvent) -> (String, Value) {
    let told = |node: &NodeId, what: &str, name: &str| {
        let node = Address::new(0, node.0).to_string();
        (format!("trust: {node} {what}"), json!({ "event": name, "node": node }))
    };
    match event {
        TrustEvent::Requested(pending) => {
            let (mut text, mut value) = told(&pending.node, "asks for trust", "trust_requested");
            if !pending.justification.is_empty() {
                text.push_str(&format!(": {:?}", pending.justification));
            }
            text.push_str(&format!("; `pilotage trust approve {0}` or reject {0}", pending.node.0));
            value["justification"] = json!(pending.justification);
            (text, value)
        }
        TrustEvent::Agreed(node) => told(node, "is trusted", "trust_agreed"),
        TrustEvent::Rejected(node) => told(node, "turned our request down", "trust_rejected"),
        TrustEvent::Revoked(node) => told(node, "trusts us no more, and we it", "trust_revoked"),
        TrustEvent::Refused { node, reason } => {
            let (text, mut value) = told(node, "sent what does not count", "trust_refused");
            value["reason"] = json!(reason);
            (format!("{text}: {reason}"), value)
        }
        _ => ("trust: something happened".into(), json!({ "event": "trust" })),
    }
}

/// The reply for people. Read from the JSON, so that both always agree.
fn text(reply: &Value) -> String {
    let rows = |list: &Value, what: &str, row: &dyn Fn(&Value) -> String| {
        let list = list.as_array().map(Vec::as_slice).unwrap_or_default();
        let mut lines = vec![format!("{what}: {}", list.len())];
        lines.extend(list.iter().map(|entry| {
            let node = entry["node"].as_str().unwrap_or("-");
            format!("  {node}  (node {})  {}", entry["node_id"], row(entry))
        }));
        lines.join("\n")
    };
    let words = |entry: &Value| format!("{:?}", entry["justification"].as_str().unwrap_or_default());
    match reply["event"].as_str() {
        Some("trusted") => rows(&reply["trusted"], "trusted nodes", &|entry| {
            let how = match (entry["network"].as_u64(), entry["mutual"] == true) {
                (Some(network), _) if network > 0 => format!("by network {network}"),
                (_, true) => "mutual".to_owned(),
                _ => "approved here".to_owned(),
            };
            format!("{how}  key {}", entry["public_key"].as_str().unwrap_or("-"))
        }),
        Some("pending") => format!(
            "{}\n{}",
            rows(&reply["pending"], "requests that wait for us", &words),
            rows(&reply["outgoing"], "requests that wait for others", &words),
        ),
        _ => {
            let node = reply["node"].as_str().unwrap_or("-");
            match (reply["action"].as_str().unwrap_or_default(), reply["delivery"].as_str()) {
                ("request", Some("direct")) => format!("asked {node}"),
                ("request", Some("relayed")) => format!("asked {node} through the registry"),
                ("request", _) => format!("{node} is trusted: it had asked before"),
                ("approve", _) => format!("{node} is trusted"),
                ("reject", _) => format!("{node} is turned down"),
                _ => format!("{node} is trusted no more"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_survives_any_reply() {
        for reply in [json!(null), json!({}), json!([]), json!({ "event": "pending", "pending": [{}, 1] })] {
            text(&reply);
        }
        let reply = json!({ "event": "trusted", "trusted": [{ "node": "0:0000.0000.0007", "node_id": 7, "network": 3 }] });
        assert!(text(&reply).contains("0:0000.0000.0007  (node 7)  by network 3"));
    }

    #[test]
    fn requests_say_what_was_typed() {
        let action = TrustAction::Reject { peer: "bob".into(), reason: "no".into() };
        assert_eq!(
            request(&action),
            json!({ "cmd": "trust", "action": "reject", "peer": "bob", "text": "no" })
        );
    }
}
