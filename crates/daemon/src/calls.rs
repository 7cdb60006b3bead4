//! Commands that the registry or the trust list answers. `spec/ipc.md §6`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use pilotage::NodeId;
use pilotage_wire::ipc::{HandshakeRequest, JsonKind, NetworkRequest, Request};
use serde_json::{Value, json};

use crate::server::Shared;

/// Most tags that a node takes through its daemon (draft-01 facts §10).
const MAX_TAGS: usize = 3;

/// Hostname, visibility, tags, tasks, deregister, resolve: the registry's reply, as it is.
pub(crate) fn registry(shared: &Shared, request: Request<'_>) -> Result<(JsonKind, Value), String> {
    let me = shared.node.address().node.0;
    let (kind, name, mut body, signed) = match request {
        Request::ResolveHostname(name) => {
            let body = json!({ "hostname": name, "requester_id": me });
            (JsonKind::ResolveHostname, "resolve_hostname", body, false)
        }
        Request::SetHostname(name) => {
            (JsonKind::SetHostname, "set_hostname", json!({ "node_id": me, "hostname": name }), true)
        }
        Request::SetVisibility { public } => {
            (JsonKind::SetVisibility, "set_visibility", json!({ "node_id": me, "public": public }), true)
        }
        Request::Deregister => (JsonKind::Deregister, "deregister", json!({ "node_id": me }), true),
        Request::SetTags(text) => {
            (JsonKind::SetTags, "set_tags", json!({ "node_id": me, "tags": tags(text)? }), true)
        }
        Request::SetTaskExec { enabled } => {
            (JsonKind::SetTaskExec, "set_task_exec", json!({ "node_id": me, "enabled": enabled }), true)
        }
        _ => return Err("no command of the registry".into()),
    };
    body["type"] = name.into();
    let signed = signed.then(|| format!("{name}:{me}"));
    let reply = shared.registry.call(body, signed.as_deref()).map_err(|error| format!("{name}: {error}"))?;
    Ok((kind, reply))
}

fn tags(text: &str) -> Result<Vec<String>, String> {
    let tags: Vec<String> =
        serde_json::from_str(text).map_err(|error| format!("set_tags: no JSON list of texts: {error}"))?;
    match tags.len() {
        0..=MAX_TAGS => Ok(tags),
        many => Err(format!("set_tags: {many} tags, at most {MAX_TAGS} are allowed")),
    }
}

/// Networks: the registry's reply, as it is.
pub(crate) fn network(shared: &Shared, request: NetworkRequest<'_>) -> Result<Value, String> {
    let me = shared.node.address().node.0;
    let (what, body, signed) = match request {
        NetworkRequest::List => ("list", json!({ "type": "list_networks" }), None),
        NetworkRequest::Join { network, token } => (
            "join",
            json!({
                "type": "join_network", "node_id": me, "network_id": network, "token": token, "inviter_id": 0,
            }),
            Some(format!("join_network:{me}:{network}")),
        ),
        NetworkRequest::Leave { network } => (
            "leave",
            json!({ "type": "leave_network", "node_id": me, "network_id": network }),
            Some(format!("leave_network:{me}:{network}")),
        ),
        NetworkRequest::Members { network } => {
            ("members", json!({ "type": "list_nodes", "network_id": network }), None)
        }
        NetworkRequest::Invite { network, node } => (
            "invite",
            json!({
                "type": "invite_to_network", "network_id": network, "inviter_id": me, "target_node_id": node.0,
            }),
            Some(format!("invite:{me}:{network}:{}", node.0)),
        ),
        NetworkRequest::PollInvites => (
            "poll invites",
            json!({ "type": "poll_invites", "node_id": me }),
            Some(format!("poll_invites:{me}")),
        ),
        NetworkRequest::Respond { network, accept } => (
            "respond invite",
            json!({ "type": "respond_invite", "node_id": me, "network_id": network, "accept": accept }),
            Some(format!("respond_invite:{me}:{network}")),
        ),
    };
    shared.registry.call(body, signed.as_deref()).map_err(|error| format!("network {what}: {error}"))
}

/// Trust.
pub(crate) fn handshake(shared: &Shared, request: HandshakeRequest<'_>) -> Result<Value, String> {
    let trust = shared.trust.as_ref().ok_or("handshake: this daemon keeps no trust list")?;
    let done = |node: NodeId, status: &str| json!({ "node_id": node.0, "status": status });
    Ok(match request {
        HandshakeRequest::Send { node, justification } => {
            trust.request(node, justification).map_err(|error| format!("handshake: {error}"))?;
            shared.webhook.post("handshake.sent", json!({ "peer_node_id": node.0 }));
            done(node, "sent")
        }
        HandshakeRequest::Approve { node } => {
            trust.approve(node).map_err(|error| format!("handshake approve: {error}"))?;
            shared.webhook.post("handshake.approved", json!({ "peer_node_id": node.0 }));
            done(node, "approved")
        }
        HandshakeRequest::Reject { node, reason } => {
            trust.reject(node, reason).map_err(|error| format!("handshake reject: {error}"))?;
            shared.webhook.post("handshake.rejected", json!({ "peer_node_id": node.0 }));
            done(node, "rejected")
        }
        HandshakeRequest::Revoke { node } => {
            trust.revoke(node).map_err(|error| format!("handshake revoke: {error}"))?;
            shared.webhook.post("trust.revoked", json!({ "peer_node_id": node.0 }));
            done(node, "revoked")
        }
        HandshakeRequest::Pending => {
            let pending = trust.pending().into_iter().map(|entry| {
                json!({
                    "node_id": entry.node.0,
                    "public_key": key_text(entry.public_key),
                    "justification": entry.justification,
                    "received_at": entry.received_at,
                })
            });
            json!({ "pending": pending.collect::<Vec<_>>() })
        }
        HandshakeRequest::Trusted => {
            let trusted = trust.trusted().into_iter().map(|entry| {
                json!({
                    "node_id": entry.node.0,
                    "public_key": key_text(entry.public_key),
                    "approved_at": entry.approved_at,
                    "mutual": entry.mutual,
                    "network": entry.network,
                })
            });
            json!({ "trusted": trusted.collect::<Vec<_>>() })
        }
    })
}

/// Keys are base64, an unknown one empty.
fn key_text(key: Option<[u8; 32]>) -> String {
    key.map(|key| STANDARD.encode(key)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_tags_at_most() {
        assert_eq!(tags("[]"), Ok(Vec::new()));
        assert_eq!(tags(r#"["a","b","c"]"#).map(|tags| tags.len()), Ok(3));
        for wrong in [r#"["a","b","c","d"]"#, "", "{}", "[1]", "\"a\""] {
            assert!(tags(wrong).is_err(), "{wrong}");
        }
    }
}
