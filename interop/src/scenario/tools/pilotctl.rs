//! Who we are, whom we reach, and streams.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{LIMIT, SOON, Stage, holds, number, numbers, text};
use crate::Failure;
use crate::driver::Driver;
use crate::process::run_any;
use crate::scenario::require;

/// Fields of `info` that the tools read as numbers.
const COUNTS: [&str; 10] = [
    "uptime_secs",
    "connections",
    "ports",
    "peers",
    "encrypted_peers",
    "authenticated_peers",
    "bytes_sent",
    "bytes_recv",
    "pkts_sent",
    "pkts_recv",
];

/// The same of an entry of its list of connections.
const CONNECTION: [&str; 17] = [
    "local_port",
    "remote_port",
    "cong_win",
    "in_flight",
    "srtt_ms",
    "unacked",
    "ooo_buf",
    "peer_recv_win",
    "recv_win",
    "bytes_sent",
    "bytes_recv",
    "segs_sent",
    "segs_recv",
    "retransmits",
    "fast_retx",
    "sack_recv",
    "dup_acks",
];

/// What daemons say about themselves, and the registry about them.
pub(super) fn identity(s: &Stage<'_>) -> Result<(), Failure> {
    let (a, b) = (number(&s.a)?, number(&s.b)?);
    let own = json!({
        "node_id": a, "address": s.a.address, "hostname": "anode", "encrypt": true, "identity": true,
        "peers": 0, "connections": 0,
    });
    let info = s.says(&s.a, &["info"], &own)?;
    numbers("info", &info, &COUNTS)?;
    require(info["ports"].as_u64() >= Some(4), || format!("info: ports is {}", info["ports"]))?;
    let key = |info: &Value| info["public_key"].as_str().map(str::to_owned).unwrap_or_default();
    require(key(&info).len() == 44, || format!("info: public_key is {}", info["public_key"]))?;
    let other = s.ok(&s.b, &["info"])?;
    require(key(&other).len() == 44 && key(&other) != key(&info), || "info: equal keys".into())?;

    let health = s.says(&s.a, &["health"], &json!({ "status": "ok", "connections": 0, "peers": 0 }))?;
    numbers("health", &health, &["uptime_seconds", "bytes_sent", "bytes_recv"])?;
    let status = json!({ "responsive": true, "running": true, "node_id": a, "hostname": "anode" });
    s.says(&s.a, &["daemon", "status"], &status)?;
    let check = s.ends(&s.a, &["daemon", "status", "--check"], &[])?;
    require(check.status.success(), || format!("daemon status --check: {}", check.status))?;

    let known = json!({ "node_id": b, "public_key": key(&other), "hostname": "bnode", "public": true });
    s.says(&s.a, &["lookup", &b.to_string()], &known)?;
    s.refused(&s.a, &["lookup", "4294967290"], "connection_failed")?;
    let found = json!({ "hostname": "bnode", "node_id": b, "address": s.b.address, "public": true });
    s.says(&s.a, &["find", "bnode"], &found)?;
    s.refused(&s.a, &["find", "nobody"], "not_found")?;
    // Requests of the command line's own, without a node's key: a hub of ours takes none of them.
    if s.ours() {
        s.refused(&s.a, &["rotate-key", &b.to_string(), "bnode@example.test"], "connection_failed")?;
        s.says(&s.a, &["lookup", &b.to_string()], &known)?;
    }
    s.refused(&s.a, &["broadcast", "1", "hello"], "unavailable")?;
    for_people(s, a)
}

/// The forms for people read the same answers.
fn for_people(s: &Stage<'_>, a: u32) -> Result<(), Failure> {
    let number = a.to_string();
    let forms: [(&str, &[&str]); 5] = [
        ("info", &["Node ID:", &number, &s.a.address, "anode", "Encryption:  enabled", "persistent"]),
        ("health", &["Status:      ok", "Connections: 0"]),
        ("peers", &["no peers"]),
        ("connections", &["no active connections"]),
        ("trust", &["no trusted peers"]),
    ];
    for (word, parts) in forms {
        let mut command = s.programs.pilotctl_for_people(&s.a.folder, &s.hub)?;
        s.answers.set(s.answers.get() + 1);
        let ended = run_any(command.arg(word), &[], LIMIT)?;
        let said = text(&ended.out);
        let missing = parts.iter().find(|part| !said.contains(**part));
        require(ended.status.success() && missing.is_none(), || {
            format!("{word}: {} without {missing:?}: {said} {}", ended.status, text(&ended.err))
        })?;
    }
    Ok(())
}

/// Ping, traceroute, benchmark, one exchange, and what is to be seen of them.
pub(super) fn reach(s: &Stage<'_>) -> Result<(), Failure> {
    let (address, b) = (s.b.address.as_str(), number(&s.b)?);
    let pings = json!({ "target": address, "timeout": false, "results": [{ "bytes": 6 }, { "bytes": 6 }] });
    let pinged = s.says(&s.a, &["ping", address, "--count", "2"], &pings)?;
    for result in pinged["results"].as_array().into_iter().flatten() {
        numbers("ping", result, &["seq", "rtt_ms"])?;
    }
    let one = json!({ "target": address, "results": [{ "seq": 0, "bytes": 6, "error": null }] });
    for target in ["bnode", &b.to_string()] {
        s.says(&s.a, &["ping", target, "--count", "1"], &one)?;
    }
    s.says(&s.b, &["ping", "bnode", "--count", "1"], &one)?;
    s.refused(&s.a, &["ping", "nobody"], "not_found")?;
    let samples = json!({ "bytes": 7, "error": null });
    let traced = json!({ "target": address, "rtt_samples": [samples, samples, samples] });
    let traced = s.says(&s.a, &["traceroute", address], &traced)?;
    numbers("traceroute", &traced, &["setup_ms"])?;
    let moved = json!({ "target": address, "sent_bytes": 1 << 20, "recv_bytes": 1 << 20 });
    let moved = s.says(&s.a, &["bench", address, "1", "--timeout", "50s"], &moved)?;
    numbers("bench", &moved, &["send_duration_ms", "total_duration_ms", "send_mbps", "total_mbps"])?;

    let echoed = json!({ "target": address, "port": 7, "sent": "hello", "response": "hello" });
    s.says(&s.a, &["connect", "bnode", "7", "--message", "hello"], &echoed)?;
    let piped = s.ends(&s.a, &["connect", address, "7"], b"two\nlines\n")?;
    let piped = super::data("connect", &piped.out, piped.status.success(), &piped.err)?;
    holds("connect", &piped, &json!({ "sent": "two\nlines", "response": "two\nlines" }))?;
    s.refused(&s.a, &["connect", address, "4999", "--message", "x"], "connection_failed")?;

    let peer = json!({ "node_id": b, "encrypted": true, "authenticated": true });
    let peers = s.says(&s.a, &["peers"], &json!({ "total": 1, "peers": [peer] }))?;
    let endpoint = peers["peers"][0]["endpoint"].as_str().unwrap_or_default().to_owned();
    require(endpoint.starts_with("127.0.0.1:"), || format!("peers: endpoint {endpoint:?}"))?;
    s.says(&s.a, &["peers", "--search", &endpoint], &json!({ "total": 1 }))?;
    s.says(&s.a, &["peers", "--search", "no such peer"], &json!({ "total": 0 }))?;
    let counted = json!({ "peers": 1, "encrypted_peers": 1, "authenticated_peers": 1 });
    let info = s.says(&s.a, &["info"], &counted)?;
    let enough = ["bytes_sent", "bytes_recv"].iter().all(|field| info[*field].as_u64() > Some(1 << 20));
    require(enough, || format!("info after 1 MiB each way: {info}"))
}

/// Streams that a client of the socket takes, the list of connections, and datagrams.
pub(super) fn streams(s: &Stage<'_>) -> Result<(), Failure> {
    let address = s.b.address.as_str();
    let ports = s.ok(&s.b, &["info"])?["ports"].as_u64().unwrap_or_default();
    let recv = s.begin(&s.b, &["recv", "5000", "--count", "2", "--timeout", "40s"])?;
    s.until(&s.b, &["info"], &json!({ "ports": ports + 1 }))?;
    let message = s.refused(&s.b, &["recv", "5000"], "connection_failed")?;
    require(message.contains("already bound"), || message)?;
    for word in ["first", "second"] {
        let sent = json!({ "target": address, "port": 5000, "sent": word, "response": "" });
        s.says(&s.a, &["send", "bnode", "5000", "--data", word], &sent)?;
    }
    let message =
        |seq: u32, word: &str| json!({ "seq": seq, "port": 5000, "data": word, "bytes": word.len() });
    let messages = [message(0, "first"), message(1, "second")];
    recv.ends_with(&json!({ "timeout": false, "messages": messages }))?;
    s.until(&s.b, &["info"], &json!({ "ports": ports }))?;
    s.says(&s.b, &["recv", "5001", "--timeout", "1s"], &json!({ "timeout": true, "messages": null }))?;
    connections(s)?;
    datagrams(s)
}

/// A connection is listed while it is there, and ends when somebody says so.
fn connections(s: &Stage<'_>) -> Result<(), Failure> {
    s.none_listed(&s.a)?;
    let waiting = s.begin(&s.a, &["subscribe", "bnode", "news", "--count", "1", "--timeout", "40s"])?;
    let open = json!({ "remote_addr": s.b.address, "remote_port": 1002, "state": "ESTABLISHED" });
    let entry = s.listed(&s.a, &open)?;
    numbers("connections", &entry, &CONNECTION)?;
    let id = entry["id"].to_string();
    s.says(&s.a, &["disconnect", &id], &json!({ "conn_id": entry["id"] }))?;
    waiting.fails_with("recv")?;
    s.none_listed(&s.a)?;
    s.says(&s.a, &["disconnect", "99"], &json!({ "conn_id": 99 }))?;
    // Connections of a service of the daemon are listed and ended, too.
    let waiting = s.begin(&s.a, &["subscribe", "bnode", "news", "--count", "1", "--timeout", "40s"])?;
    let open = json!({ "remote_addr": s.a.address, "local_port": 1002, "state": "ESTABLISHED" });
    let id = s.listed(&s.b, &open)?["id"].to_string();
    s.ok(&s.b, &["disconnect", &id])?;
    waiting.fails_with("recv")
}

/// `listen` prints datagrams. No command sends one, so a driver does.
fn datagrams(s: &Stage<'_>) -> Result<(), Failure> {
    s.says(&s.b, &["listen", "6000", "--count", "1", "--timeout", "1s"], &json!({ "timeout": true }))?;
    let mut listening = s.begin(&s.b, &["listen", "6000", "--count", "1", "--timeout", "40s"])?;
    let mut driver = Driver::open(&s.a.folder.join("pilot.sock"))?;
    let deadline = Instant::now() + SOON;
    while !listening.process.has_ended()? {
        require(Instant::now() < deadline, || "no datagram arrived".into())?;
        driver.datagram(&s.b.address, 6001, b"to another port")?;
        driver.datagram(&s.b.address, 6000, b"datagram")?;
        std::thread::sleep(Duration::from_millis(300));
    }
    let message = json!({ "src_addr": s.a.address, "data": "datagram", "bytes": 8 });
    listening.ends_with(&json!({ "timeout": false, "messages": [message] }))
}
