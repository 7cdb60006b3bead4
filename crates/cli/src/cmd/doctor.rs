//! `pilotage doctor`: what is right and wrong with this node's way to others; each finding with cause and next step.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant, SystemTime};

use pilotage::{Node, NodeId, Peer};
use pilotage_services::report;
use pilotage_wire::beacon::Message;
use serde_json::{Value, json};

use super::Context;
use super::ping::micros;
use super::trace;
use crate::args::DoctorArgs;
use crate::error::CliError;
use crate::session;
use crate::units::format_duration;

/// How long each question to the beacon waits for its answer, and how many there are.
const BEACON_WAIT: Duration = Duration::from_millis(700);
const BEACON_TRIES: u32 = 3;
/// A clock that is wrong by more makes certificates and signatures look wrong.
const CLOCK: i64 = 60_000;
/// How long the first answer of a peer, and then a direct path, is waited for.
const PEER_WAIT: Duration = Duration::from_secs(10);
const DIRECT_WAIT: Duration = Duration::from_secs(5);
/// How long the peer's view is waited for.
const REPORT_WAIT: Duration = Duration::from_secs(5);
/// What a path begins with before larger datagrams are tried; less points to a tunnel in between.
const SMALL_DATAGRAM: u64 = 1_200;

pub(crate) fn run(context: &Context, args: &DoctorArgs) -> Result<(), CliError> {
    if let Some(peer) = &args.peer {
        session::check_peer(context, &args.node, peer)?;
    }
    let node = session::open(context, &args.node)?;
    let findings = node.doctor(args.peer.as_ref());
    node.close();
    let findings = findings?;
    let findings = findings["findings"].as_array().cloned().unwrap_or_default();
    for finding in &findings {
        context.output.result(text(finding), finding);
    }
    let count = |state: &str| findings.iter().filter(|one| one["state"] == state).count();
    let (failed, warned) = (count("fail"), count("warn"));
    let value = json!({ "event": "doctor", "failed": failed, "warned": warned, "checks": findings.len() });
    context.output.result(format!("{} checks, {failed} failed, {warned} warnings", findings.len()), &value);
    match findings.iter().find(|one| one["state"] == "fail") {
        None => Ok(()),
        Some(first) => {
            let word = |key: &str| first[key].as_str().unwrap_or("-").to_owned();
            Err(CliError::failure(word("check"), word("cause"), word("next")))
        }
    }
}

/// Findings as they come.
#[derive(Default)]
struct Findings(Vec<Value>);

impl Findings {
    fn ok(&mut self, check: &str, found: impl Into<String>, more: Value) {
        self.add(check, "ok", found.into(), "", "", more);
    }

    fn add(&mut self, check: &str, state: &str, found: String, cause: &str, next: &str, more: Value) {
        let optional = |text: &str| if text.is_empty() { Value::Null } else { text.into() };
        self.0.push(json!({
            "event": "finding",
            "check": check,
            "state": state,
            "found": found,
            "cause": optional(cause),
            "next": optional(next),
            "data": more,
        }));
    }
}

/// Runs in the process of the node.
pub(crate) fn examine(node: &Node, peer: Option<&Peer>) -> Value {
    let mut findings = Findings::default();
    addresses(node, &mut findings);
    hub(node, &mut findings);
    let udp = beacon(node, &mut findings);
    nat(node, &mut findings);
    websocket(node, udp, &mut findings);
    if let Some(peer) = peer
        && way_to(node, peer, &mut findings)
    {
        peers_view(node, peer, &mut findings);
    }
    json!({ "findings": findings.0 })
}

fn addresses(node: &Node, findings: &mut Findings) {
    let own: Vec<String> = node.interface_addresses().iter().map(SocketAddr::to_string).collect();
    let local = node.local_addr();
    let data = json!({ "listen": local.to_string(), "interfaces": own });
    if own.is_empty() && !local.ip().is_loopback() {
        let cause = "no interface has an address that others could use";
        findings.add(
            "addresses",
            "fail",
            local.to_string(),
            cause,
            "connect this machine to a network",
            data,
        );
    } else if own.is_empty() {
        findings.ok("addresses", format!("{local}, this machine only"), data);
    } else {
        findings.ok("addresses", own.join(", "), data);
    }
}

fn hub(node: &Node, findings: &mut Findings) {
    let Some(registry) = node.hub_status().and_then(|hub| hub.registry) else {
        let next = "name one with --hub HOST, or find peers as ADDRESS@IP:PORT";
        findings.add("hub", "warn", "none".into(), "no hub is configured", next, Value::Null);
        return;
    };
    let start = Instant::now();
    let asked = node.registry_call(json!({ "type": "lookup", "node_id": node.address().node.0 }), None);
    let took = start.elapsed();
    let data = json!({ "registry": registry, "rtt_us": micros(took) });
    match asked {
        Err(error) if error.is_unreachable() => {
            let next = "start the hub, correct its address, or let TCP to it through the firewall";
            findings.add("hub", "fail", registry, &error.to_string(), next, data);
        }
        Err(error) => {
            let next = "wait for the next registration, at most 30 s; else see why the hub refuses";
            findings.add("hub", "warn", registry, &error.to_string(), next, data);
        }
        Ok(_) => findings.ok("hub", format!("{registry} answers in {}", format_duration(took)), data),
    }
}

/// Whether the beacon answers by UDP; `None` without one.
fn beacon(node: &Node, findings: &mut Findings) -> Option<bool> {
    let beacon = node.hub_status().and_then(|hub| hub.beacon)?;
    match ask_beacon(beacon) {
        Ok(Some(rtt)) => {
            let data = json!({ "beacon": beacon.to_string(), "rtt_us": micros(rtt), "udp_blocked": false });
            findings.ok("beacon", format!("{beacon} answers by UDP in {}", format_duration(rtt)), data);
            Some(true)
        }
        answer => {
            let cause = match answer {
                Err(error) => format!("UDP cannot be sent: {error}"),
                _ => "no answer by UDP: a firewall drops it, or no beacon runs there".to_owned(),
            };
            let carried = node.carriage().is_some_and(|carriage| carriage.carried);
            let state = if carried { "warn" } else { "fail" };
            let next = "let UDP to this address through the firewall, or give the hub a WebSocket (pilotage hub --wss)";
            let data = json!({ "beacon": beacon.to_string(), "rtt_us": null, "udp_blocked": true });
            findings.add("beacon", state, beacon.to_string(), &cause, next, data);
            Some(false)
        }
    }
}

/// The round-trip time of a discover without an id, from a socket of its own: nothing is registered by that.
fn ask_beacon(beacon: SocketAddr) -> std::io::Result<Option<Duration>> {
    let socket = UdpSocket::bind(if beacon.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
    socket.connect(beacon)?;
    socket.set_read_timeout(Some(BEACON_WAIT))?;
    let mut buf = [0; 64];
    // Padded as the longest answer, so that a beacon may answer that never sends more than it got.
    let len = Message::Discover { node: NodeId::UNREGISTERED }.encode(&mut buf).unwrap_or(0).max(20);
    for _ in 0..BEACON_TRIES {
        let start = Instant::now();
        socket.send(&buf[..len])?;
        let mut answer = [0; 128];
        match socket.recv(&mut answer) {
            Ok(len) if matches!(Message::decode(&answer[..len]), Ok(Message::DiscoverReply { .. })) => {
                return Ok(Some(start.elapsed()));
            }
            _ => {}
        }
    }
    Ok(None)
}

fn nat(node: &Node, findings: &mut Findings) {
    let Some(observed) = node.observed_addr() else {
        if node.hub_status().is_some_and(|hub| hub.beacon.is_some()) {
            let cause = "the beacon has not told our address";
            let next = "see the finding about the beacon";
            findings.add("nat", "warn", "not known".into(), cause, next, Value::Null);
        }
        return;
    };
    let own = node.interface_addresses();
    let kind = if own.contains(&observed) || observed == node.local_addr() {
        "none"
    } else if own.iter().any(|one| one.ip() == observed.ip()) {
        "port-only"
    } else {
        "address"
    };
    let data = json!({ "observed": observed.to_string(), "translation": kind });
    let found = match kind {
        "none" => format!("none: the beacon sees {observed}, as we do"),
        _ => format!("yes: the beacon sees {observed}"),
    };
    findings.ok("nat", found, data);
}

fn websocket(node: &Node, udp: Option<bool>, findings: &mut Findings) {
    let Some(carriage) = node.carriage() else { return };
    let data = |more: Value| json!({ "url": carriage.url, "carried": carriage.carried, "probe": more });
    match node.try_hub_wss() {
        None => {}
        Some(Ok(probe)) => {
            let more = json!({
                "took_us": micros(probe.took),
                "fingerprint": hex::encode(probe.fingerprint),
                "clock_ahead_ms": probe.clock_ahead_ms,
            });
            let used = if carriage.carried { ", in use" } else { "" };
            let found = format!("{} opens in {}{used}", carriage.url, format_duration(probe.took));
            findings.ok("websocket", found, data(more));
            if let Some(ahead) = probe.clock_ahead_ms {
                clock(ahead, findings);
            }
        }
        Some(Err(cause)) => {
            // Without UDP it is the only way; with UDP it is a reserve that the operator may not have wanted.
            let state = if udp == Some(false) { "fail" } else { "warn" };
            let next = "start the hub with --wss 0.0.0.0:443, name another URL with --hub-wss, or turn it off with --hub-wss off";
            findings.add("websocket", state, carriage.url.clone(), &cause, next, data(Value::Null));
        }
    }
}

fn clock(ahead: i64, findings: &mut Findings) {
    let data = json!({ "hub_ahead_ms": ahead });
    let found = format!("the hub is {ahead} ms ahead of us");
    if ahead.abs() <= CLOCK {
        findings.ok("clock", found, data);
    } else {
        let cause = "this machine's clock and the hub's differ by more than a minute";
        findings.add("clock", "warn", found, cause, "set the clock (NTP) on the machine that is wrong", data);
    }
}

/// Whether the peer answered.
fn way_to(node: &Node, peer: &Peer, findings: &mut Findings) -> bool {
    let report = trace::examine(node, peer, PEER_WAIT, DIRECT_WAIT);
    let (result, error) = (&report["result"], &report["error"]);
    let word = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    if !error.is_null() {
        let found = format!("{peer}: {}", word(&error["stage"]));
        findings.add("peer", "fail", found, &word(&error["cause"]), &word(&error["next"]), report.clone());
        return false;
    }
    let (path, reason) = (&result["path"], word(&result["reason"]));
    let rtt = format_duration(Duration::from_micros(path["rtt_us"].as_u64().unwrap_or_default()));
    let found = format!("{peer}: {} {}, rtt {rtt}", word(&path["kind"]), word(&path["remote"]));
    if path["kind"] == "relay" {
        let (cause, next) = relay_advice(&reason);
        findings.add("peer", "warn", found, &format!("{reason}: {cause}"), next, report.clone());
    } else {
        findings.ok("peer", format!("{found}, {reason}"), report.clone());
    }
    let size = path["datagram_size"].as_u64().unwrap_or_default();
    let data = json!({ "datagram_size": size });
    if size >= SMALL_DATAGRAM {
        findings.ok("mtu", format!("datagrams of {size} bytes pass"), data);
    } else {
        let cause = "larger datagrams were lost on the way so far";
        let next = "look for a tunnel or VPN in between; transfers work, with more packets";
        findings.add("mtu", "warn", format!("{size} bytes"), cause, next, data);
    }
    true
}

/// What the peer sees of us: the other half of the picture.
fn peers_view(node: &Node, peer: &Peer, findings: &mut Findings) {
    let asked = node.connect(peer, report::PORT).map_err(|error| error.to_string()).and_then(|stream| {
        let patience = stream.set_read_timeout(Some(REPORT_WAIT)).map_err(|error| error.to_string());
        patience.and_then(|()| report::ask(&stream).map_err(|error| error.to_string()))
    });
    let view = match asked {
        Ok(view) => view,
        Err(cause) => {
            let next = "it needs `pilotage up` of this version there, without --without report";
            return findings.add("peer-view", "warn", "not told".into(), &cause, next, Value::Null);
        }
    };
    let ahead = i64::try_from(view.unix_ms).unwrap_or(i64::MAX).saturating_sub(unix_millis());
    let at = view.remote.map_or("-".to_owned(), |at| at.to_string());
    let mut found = format!(
        "it reaches us by {} {at}, {}, rtt {}, datagrams of {} bytes, clock {ahead} ms ahead",
        view.path,
        view.reason,
        format_duration(Duration::from_micros(view.rtt_us)),
        view.datagram_size,
    );
    match view.translated {
        Some(true) => found.push_str(", behind a NAT"),
        Some(false) => found.push_str(", no NAT"),
        None => {}
    }
    if view.mapped {
        found.push_str(", port mapped");
    }
    let mut data = json!(view);
    data["clock_ahead_ms"] = ahead.into();
    if view.udp_blocked {
        let cause = "UDP does not leave the peer's network";
        findings.add("peer-view", "warn", found, cause, "let UDP through the firewall there", data);
    } else {
        findings.ok("peer-view", found, data);
    }
}

fn unix_millis() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

fn relay_advice(reason: &str) -> (&'static str, &'static str) {
    match reason {
        "udp-blocked" => ("UDP does not leave this network", "let UDP through the firewall"),
        "relay-while-punching" => ("direct ways are still being tried", "ask again in a few seconds"),
        "relay-hard-nat-both" => (
            "both routers choose ports that nobody can foretell",
            "turn on port mapping (UPnP, NAT-PMP or PCP) at one of them, or forward a UDP port",
        ),
        "relay-policy" => ("the operator wants it so", "change the policy, if that is not wanted"),
        "relay-no-candidates" => {
            ("no address of the peer is known", "start the peer with --public, or trust it")
        }
        _ => (
            "no direct way answered",
            "check the firewalls of both sides for UDP, or forward a UDP port to one of them",
        ),
    }
}

fn text(finding: &Value) -> String {
    let word = |key: &str| finding[key].as_str().unwrap_or("-").to_owned();
    let mut line = format!("{:<5} {:<10} {}", word("state"), word("check"), word("found"));
    if finding["cause"].is_string() {
        line.push_str(&format!("\n      cause: {}\n      next:  {}", word("cause"), word("next")));
    }
    line
}
