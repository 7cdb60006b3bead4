//! Datagrams: to every client, and from each. `spec/ipc.md §5`.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use pilotage::{Address, DatagramTap, NodeId, SocketAddress};
use pilotage_wire::ipc::Reply;
use serde_json::json;

use crate::server::Shared;

/// How often the thread looks whether the server is gone.
const STOP_POLL: Duration = Duration::from_millis(500);

/// Most members of a network that one broadcast goes to.
const MAX_MEMBERS: usize = 4_096;

/// Gives every datagram to every client until the server is gone.
pub(crate) fn run(tap: &Arc<DatagramTap>, shared: &Weak<Shared>) {
    loop {
        let received = tap.recv_timeout(STOP_POLL);
        let Some(shared) = shared.upgrade() else { return };
        if shared.is_stopping() {
            return;
        }
        match received {
            Ok(Some((port, datagram))) => {
                let reply = Reply::RecvFrom { from: datagram.from, port, data: &datagram.data };
                let dropped = shared.outboxes().iter().filter(|outbox| !outbox.try_push(&reply)).count();
                shared.counters.dropped_datagrams.fetch_add(dropped as u64, Ordering::Relaxed);
                let (from, size) = (datagram.from.address.to_string(), datagram.data.len());
                shared.webhook.post(
                    "data.datagram",
                    json!({ "src_addr": from, "src_port": datagram.from.port, "dst_port": port, "size": size }),
                );
            }
            Ok(None) => {}
            // The node was closed.
            Err(_) => return,
        }
    }
}

/// Sends one datagram, or one to every member of a network. `idempotent`: it may be delivered twice.
pub(crate) fn send(
    shared: &Shared,
    port: u16,
    to: SocketAddress,
    (data, idempotent): (&[u8], bool),
) -> Result<(), String> {
    let tap = shared.tap.as_ref().ok_or("sendto: another program of this process takes the datagrams")?;
    let send_from = |to| match idempotent {
        true => tap.send_idempotent_from(port, to, data),
        false => tap.send_from(port, to, data),
    };
    if !to.address.is_broadcast() {
        return send_from(to).map_err(|error| format!("sendto {to}: {error}"));
    }
    let network = to.address.network;
    if network.0 == 0 {
        return Err("sendto: the backbone (network 0) takes no broadcasts".into());
    }
    let members = members(shared, network.0)?;
    if !members.contains(&shared.node.address().node) {
        return Err(format!("sendto: this node is no member of network {}", network.0));
    }
    let mut failures = Vec::new();
    for node in members.into_iter().filter(|node| *node != shared.node.address().node) {
        let to = SocketAddress { address: Address { network, node }, port: to.port };
        if let Err(error) = send_from(to) {
            failures.push(format!("{to}: {error}"));
        }
    }
    match failures.first() {
        None => Ok(()),
        Some(first) => Err(format!("sendto: {} members not reached, the first: {first}", failures.len())),
    }
}

fn members(shared: &Shared, network: u16) -> Result<Vec<NodeId>, String> {
    let request = json!({ "type": "list_nodes", "network_id": network });
    let reply = shared.registry.call(request, None).map_err(|error| format!("sendto: {error}"))?;
    let nodes = reply["nodes"].as_array().map(Vec::as_slice).unwrap_or_default();
    let id = |node: &serde_json::Value| node["node_id"].as_u64().and_then(|id| u32::try_from(id).ok());
    Ok(nodes.iter().filter_map(id).map(NodeId).take(MAX_MEMBERS).collect())
}
