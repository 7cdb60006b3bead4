//! `pilotage status`: what the running node of the state directory says about itself.

use std::io;
use std::sync::atomic::Ordering;
use std::time::Duration;

use pilotage::{BeaconStatus, CarriageStatus, EndpointStats, LanPeer, NatBehaviour, Node, Suite, TunnelInfo};
use pilotage_services::server::Counters;
use serde_json::{Value, json};

use super::Context;
use super::ping::{micros, path_json};
use crate::control;
use crate::error::CliError;
use crate::node;
use crate::units::{format_bytes, format_duration};

pub(crate) fn run(context: &Context) -> Result<(), CliError> {
    let state = &context.settings.state;
    let reply = control::request(state, "status").map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => CliError::failure(
            "status",
            format!("no node is running in {}", state.display()),
            "start one with `pilotage up`, or name its directory with --state DIR",
        ),
        _ => CliError::failure(
            "status",
            format!("{}: {error}", control::path(state).display()),
            "check that the node in this directory is yours and answers",
        ),
    })?;
    if let Some(error) = reply["error"].as_str() {
        return Err(CliError::failure("status", error, "use the same version for `up` and `status`"));
    }
    context.output.result(text(&reply), &reply);
    Ok(())
}

/// The reply to `status`.
pub(crate) fn reply(node: &Node, counters: &Counters) -> Value {
    let stats = node.stats();
    let mut reply = node::describe(node);
    reply["event"] = "status".into();
    reply["uptime_us"] = micros(stats.uptime).into();
    reply["hub"] = hub_json(node);
    reply["nat"] = node.nat_behaviour().as_ref().map_or(Value::Null, nat_json);
    reply["peers"] = node.peers().iter().map(|peer| peer_json(node, peer)).collect();
    reply["lan"] = node.lan_peers().iter().map(lan_json).collect();
    reply["port_mapping"] = node.port_mapping().map_or(
        Value::Null,
        |mapping| json!({ "external": mapping.external.to_string(), "protocol": mapping.protocol.as_str() }),
    );
    reply["counters"] = counters_json(&stats.endpoint);
    reply["services"] = json!({
        "streams": counters.streams.load(Ordering::Relaxed),
        "refused": counters.refused.load(Ordering::Relaxed),
        "files": counters.files.load(Ordering::Relaxed),
        "messages": counters.messages.load(Ordering::Relaxed),
    });
    reply
}

fn hub_json(node: &Node) -> Value {
    node.hub_status().map_or(Value::Null, |hub| {
        json!({
            "registry": hub.registry,
            "beacon": hub.beacon.map(|addr| addr.to_string()),
            "beacons": hub.beacons.iter().map(beacon_json).collect::<Vec<_>>(),
            "registered": hub.registered,
            "carriage": node.carriage().map(|carriage| carriage_json(&carriage)),
            "foreign": hub.foreign,
            "public": hub.public,
            "last_error": hub.last_error,
            "last_heartbeat_us": hub.last_heartbeat.map(micros),
        })
    })
}

fn beacon_json(beacon: &BeaconStatus) -> Value {
    json!({
        "address": beacon.address.to_string(),
        "primary": beacon.primary,
        "answers": beacon.answers,
        "observed": beacon.observed.map(|addr| addr.to_string()),
        "proof": beacon.rank.map(|rank| rank.as_str()),
        "refused": beacon.refused.map(|reason| reason.as_str()),
    })
}

fn nat_json(nat: &NatBehaviour) -> Value {
    json!({
        "mapping": nat.mapping.as_str(),
        "compared_addresses": nat.compared_addresses,
        "filtering": nat.filtering.map(|filtering| filtering.as_str()),
        "hairpin": nat.hairpin,
        "preserves_port": nat.preserves_port,
    })
}

fn lan_json(peer: &LanPeer) -> Value {
    let endpoints: Vec<_> = peer.endpoints.iter().map(ToString::to_string).collect();
    json!({
        "address": peer.address.to_string(),
        "name": peer.name,
        "fingerprint": peer.fingerprint,
        "endpoints": endpoints,
    })
}

/// How the beacon is reached.
pub(crate) fn carriage_json(carriage: &CarriageStatus) -> Value {
    json!({
        "url": carriage.url,
        "carried": carriage.carried,
        "in_doubt": carriage.in_doubt,
        "since_us": carriage.since.map(micros),
        "links": carriage.links,
        "fingerprint": carriage.fingerprint.map(hex::encode),
        "last_error": carriage.last_error,
        "datagrams_sent": carriage.datagrams_sent,
        "datagrams_received": carriage.datagrams_received,
        "dropped": carriage.dropped,
    })
}

fn peer_json(node: &Node, peer: &TunnelInfo) -> Value {
    let status = node.path(peer.peer.node);
    json!({
        "address": peer.peer.to_string(),
        "key": peer.key.map(hex::encode),
        "established": peer.established,
        "authenticated": peer.authenticated,
        "pilotage": peer.pilotage,
        "frames_sealed": peer.frames_sealed,
        "mode": peer.established.then(|| peer.mode.name()),
        "least_mode": peer.least_mode.name(),
        "suite": peer.suite.map(Suite::name),
        "key_age_us": peer.keys_since.map(|since| micros(since.elapsed())),
        "key_phase": peer.phase,
        "post_quantum": peer.post_quantum,
        "connections": peer.connections,
        "path": peer.path.as_ref().map(path_json),
        "reason": status.map(|status| status.reason),
        "path_age_us": status.and_then(|status| status.age).map(micros),
    })
}

fn counters_json(stats: &EndpointStats) -> Value {
    json!({
        "datagrams_received": stats.datagrams_received,
        "datagrams_sent": stats.datagrams_sent,
        "bytes_received": stats.bytes_received,
        "bytes_sent": stats.bytes_sent,
        "handshakes": stats.handshakes,
        "refused": stats.refused,
        "drop_malformed": stats.drop_malformed,
        "drop_not_allowed": stats.drop_not_allowed,
        "drop_unauthentic": stats.drop_unauthentic,
        "drop_replay": stats.drop_replay,
        "drop_no_session": stats.drop_no_session,
        "drop_misaddressed": stats.drop_misaddressed,
        "drop_rate_limited": stats.drop_rate_limited,
        "drop_bad_key_exchange": stats.drop_bad_key_exchange,
        "drop_beacon": stats.drop_beacon,
        "drop_datagram_queue": stats.drop_datagram_queue,
        "drop_segment": stats.drop_segment,
        "drop_not_admitted": stats.drop_not_admitted,
        "early_sent": stats.early_sent,
        "early_accepted": stats.early_accepted,
        "early_repeated": stats.early_repeated,
        "early_taken": stats.early_taken,
    })
}

/// The reply for people. Read from the JSON, so that both always agree.
fn text(reply: &Value) -> String {
    let word = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let count = |value: &Value| value.as_u64().unwrap_or(0);
    let time = |value: &Value| format_duration(Duration::from_micros(count(value)));
    let mut lines = vec![
        format!("address      {}", word(&reply["address"])),
        format!("fingerprint  {}", word(&reply["fingerprint"])),
        format!("name         {}", word(&reply["name"])),
        format!("listening    {} (UDP), process {}", word(&reply["listen"]), count(&reply["pid"])),
        format!("up           {}", time(&reply["uptime_us"])),
        hub_text(&reply["hub"]),
    ];
    let counters = &reply["counters"];
    lines.push(format!(
        "traffic      {} in, {} out, {} key exchanges",
        format_bytes(count(&counters["bytes_received"])),
        format_bytes(count(&counters["bytes_sent"])),
        count(&counters["handshakes"]),
    ));
    let drops: Vec<_> = counters
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(key, value)| key.starts_with("drop_") && count(value) > 0)
        .map(|(key, value)| format!("{} {value}", key.trim_start_matches("drop_")))
        .collect();
    lines
        .push(format!("dropped      {}", if drops.is_empty() { "nothing".into() } else { drops.join(", ") }));
    let services = &reply["services"];
    lines.push(format!(
        "services     {} streams served, {} files received",
        count(&services["streams"]),
        count(&services["files"]),
    ));
    let peers = reply["peers"].as_array().map(Vec::as_slice).unwrap_or_default();
    if let Some(external) = reply["port_mapping"]["external"].as_str() {
        lines.push(format!(
            "router       {external} leads to us ({})",
            word(&reply["port_mapping"]["protocol"])
        ));
    }
    let lan = reply["lan"].as_array().map(Vec::as_slice).unwrap_or_default();
    for peer in lan {
        lines.push(format!(
            "on the LAN   {}  {}  {}",
            word(&peer["address"]),
            word(&peer["name"]),
            word(&peer["endpoints"][0])
        ));
    }
    lines.push(format!("peers        {}", peers.len()));
    for peer in peers {
        let path = &peer["path"];
        lines.push(format!(
            "  {}  {}  {}  {} {}  {}  rtt {}  for {}  {} connections",
            word(&peer["address"]),
            if peer["established"] == true { "up" } else { "down" },
            protection_text(peer),
            word(&path["kind"]),
            word(&path["remote"]),
            word(&peer["reason"]),
            time(&path["rtt_us"]),
            time(&peer["path_age_us"]),
            count(&peer["connections"]),
        ));
    }
    lines.join("\n")
}

/// `draft`, or `s1 aes-256-gcm keys 12 s phase 0`, or with the post-quantum upgrade `s1 aes-256-gcm ml-kem-768 keys 12 s phase 1`.
fn protection_text(peer: &Value) -> String {
    let Some(mode) = peer["mode"].as_str() else { return "-".into() };
    let Some(suite) = peer["suite"].as_str() else { return mode.into() };
    let age = Duration::from_micros(peer["key_age_us"].as_u64().unwrap_or(0));
    let phase = peer["key_phase"].as_u64().unwrap_or(0);
    let upgraded = if peer["post_quantum"] == true { " ml-kem-768" } else { "" };
    format!("{mode} {suite}{upgraded} keys {} phase {phase}", format_duration(age))
}

fn hub_text(hub: &Value) -> String {
    if hub.is_null() {
        return "hub          none configured".into();
    }
    let state = if hub["registered"] == true { "registered" } else { "NOT registered" };
    let mut text = format!("hub          {} {state}", hub["registry"].as_str().unwrap_or("-"));
    if hub["carriage"]["carried"] == true {
        text.push_str(&format!(
            "; UDP is blocked, beacon by {}",
            hub["carriage"]["url"].as_str().unwrap_or("-")
        ));
    }
    if let Some(error) = hub["last_error"].as_str() {
        text.push_str(&format!(" ({error})"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_survives_any_reply() {
        for reply in
            [json!(null), json!({}), json!([]), json!({ "peers": [{}, 1], "counters": { "drop_x": 3 } })]
        {
            assert!(text(&reply).contains("address"));
        }
        assert!(text(&json!({ "counters": { "drop_replay": 3 } })).contains("replay 3"));
    }
}
