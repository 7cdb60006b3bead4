//! What the daemon says about itself: the keys that the reference's tools read (draft-01 facts §20).

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use pilotage::{ConnectionId, ConnectionInfo, ConnectionState, TunnelInfo};
use serde_json::{Value, json};

use crate::connections::FOREIGN;
use crate::server::Shared;

/// Most connections and peers that a report lists: a message holds 1 MiB, and an entry takes at most 700 bytes.
const MAX_LISTED: usize = 1_000;

/// The number that a connection of the node's own services goes by.
pub(crate) fn foreign_number(id: ConnectionId) -> u32 {
    FOREIGN | (id.number() & !FOREIGN)
}

pub(crate) fn health(shared: &Shared) -> Value {
    let stats = shared.node.stats();
    let established = shared.node.peers().iter().filter(|peer| peer.established).count();
    json!({
        "status": "ok",
        "uptime_seconds": stats.uptime.as_secs(),
        "connections": stats.connections,
        "peers": established,
        "bytes_sent": stats.endpoint.bytes_sent,
        "bytes_recv": stats.endpoint.bytes_received,
    })
}

pub(crate) fn info(shared: &Shared) -> Value {
    let node = &shared.node;
    let stats = node.stats();
    let peers = node.peers();
    let connections = node.connections();
    let numbers = shared.connections.numbers();
    let open = |info: &&ConnectionInfo| info.state == ConnectionState::Established;
    let listed = connections.iter().take(MAX_LISTED).map(|info| {
        let number = numbers.get(&info.id).copied().unwrap_or_else(|| foreign_number(info.id));
        connection(number, info)
    });
    let pending = shared.trust.as_ref().map_or(0, |trust| trust.pending().len());
    let endpoint = &stats.endpoint;
    json!({
        "node_id": node.address().node.0,
        "address": node.address().to_string(),
        "hostname": node.name().unwrap_or_default(),
        "uptime_secs": stats.uptime.as_secs(),
        "connections": connections.iter().filter(open).count(),
        "ports": node.listening_ports().len(),
        "peers": peers.len(),
        "encrypted_peers": peers.iter().filter(|peer| peer.established).count(),
        "authenticated_peers": peers.iter().filter(|peer| peer.authenticated).count(),
        "encrypt": true,
        "identity": true,
        "public_key": STANDARD.encode(node.public_key()),
        // Ours has no e-mail address.
        "email": "",
        "bytes_sent": endpoint.bytes_sent,
        "bytes_recv": endpoint.bytes_received,
        "pkts_sent": endpoint.datagrams_sent,
        "pkts_recv": endpoint.datagrams_received,
        "tunnel_encryption_success": endpoint.handshakes,
        "tunnel_encryption_failure": endpoint.drop_unauthentic + endpoint.drop_bad_key_exchange,
        "handshake_pending_count": pending,
        "peer_list": peers.iter().take(MAX_LISTED).map(peer).collect::<Vec<_>>(),
        "conn_list": listed.collect::<Vec<_>>(),
    })
}

fn peer(peer: &TunnelInfo) -> Value {
    json!({
        "node_id": peer.peer.node.0,
        "endpoint": peer.path.map(|path| path.remote.to_string()).unwrap_or_default(),
        "encrypted": peer.established,
        "authenticated": peer.authenticated,
    })
}

fn connection(number: u32, info: &ConnectionInfo) -> Value {
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let (rtt, variance) = info.rtt.unwrap_or_default();
    let stats = &info.stats;
    json!({
        "id": number,
        "local_port": info.local.port,
        "remote_addr": info.remote.address.to_string(),
        "remote_port": info.remote.port,
        "state": state(info.state),
        "cong_win": info.congestion_window,
        "ssthresh": info.slow_start_threshold.unwrap_or(u64::from(u32::MAX)),
        "in_flight": info.in_flight,
        "srtt_ms": millis(rtt),
        "rttvar_ms": millis(variance),
        "unacked": info.unacknowledged,
        "ooo_buf": info.out_of_order,
        "peer_recv_win": info.peer_window,
        "recv_win": info.own_window,
        "in_recovery": info.recovering,
        "bytes_sent": stats.bytes_acked + info.unacknowledged as u64,
        "bytes_recv": stats.bytes_received,
        "segs_sent": stats.segments_sent,
        "segs_recv": stats.segments_received,
        "retransmits": stats.segments_retransmitted,
        "fast_retx": stats.segments_retransmitted.saturating_sub(stats.timeouts),
        "sack_recv": 0,
        "sack_sent": 0,
        "dup_acks": stats.duplicates_received,
    })
}

fn state(state: ConnectionState) -> &'static str {
    match state {
        ConnectionState::SynSent => "SYN_SENT",
        ConnectionState::SynReceived => "SYN_RECV",
        ConnectionState::Established => "ESTABLISHED",
        ConnectionState::FinWait => "FIN_WAIT",
        ConnectionState::CloseWait => "CLOSE_WAIT",
        _ => "CLOSED",
    }
}
