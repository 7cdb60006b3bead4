//! `pilotage trace`: what happens on the way to a peer, step by step, with times.
//!
//! The steps are found in the process of the node that makes them: our own, or the one that runs in the state directory.

use std::time::{Duration, Instant};

use pilotage::{Node, NodeEvent, Peer};
use serde_json::{Value, json};

use super::Context;
use super::ping::{micros, path_json};
use crate::args::TraceArgs;
use crate::error::{CliError, Exit};
use crate::session;
use crate::units::format_duration;

/// Steps that are told at most: a path that changes all the time has made its point by then.
const MAX_STEPS: usize = 64;

pub(crate) fn run(context: &Context, args: &TraceArgs) -> Result<(), CliError> {
    session::check_peer(context, &args.node, &args.peer)?;
    let node = session::open(context, &args.node)?;
    let report = node.trace(&args.peer, args.timeout, args.wait);
    node.close();
    let report = report?;
    for step in report["steps"].as_array().into_iter().flatten() {
        context.output.result(step_text(step), step);
    }
    let result = &report["result"];
    context.output.result(result_text(&args.peer, result), result);
    match &report["error"] {
        Value::Null => Ok(()),
        error => Err(CliError { exit: Exit::Unreachable, ..CliError::from_json(error) }),
    }
}

/// Steps as they are found.
struct Steps {
    start: Instant,
    steps: Vec<Value>,
}

impl Steps {
    fn add(&mut self, step: &str, detail: String, more: Value) {
        if self.steps.len() < MAX_STEPS {
            let mut value = json!({
                "event": "step", "step": step, "at_us": micros(self.start.elapsed()), "detail": detail,
            });
            if let (Some(value), Value::Object(more)) = (value.as_object_mut(), more) {
                value.extend(more);
            }
            self.steps.push(value);
        }
    }

    fn event(&mut self, event: &NodeEvent, node: &Node, peer: pilotage::NodeId) {
        match event {
            NodeEvent::TunnelUp { peer: who, handshake } if *who == peer => {
                let by = if handshake.is_zero() { "begun by the peer" } else { "begun by us" };
                let took = format_duration(*handshake);
                let more = json!({ "handshake_us": micros(*handshake) });
                self.add("handshake", format!("keys agreed, {by}, took {took}"), more);
            }
            NodeEvent::PathChanged { peer: who, path } if *who == peer => {
                let reason = node.path(peer).map(|status| status.reason);
                let step = super::ping::path_kind(path.kind);
                let more = json!({ "path": path_json(path), "reason": reason });
                self.add(step, format!("{} ({})", path.remote, reason.unwrap_or("-")), more);
            }
            NodeEvent::PeerRefused { node: who, reason } if *who == peer => {
                self.add("refused", reason.clone(), Value::Null);
            }
            NodeEvent::CarriageChanged { carried } => {
                let text =
                    if *carried { "UDP is blocked: through the hub's WebSocket" } else { "by UDP again" };
                self.add("carriage", text.into(), json!({ "carried": carried }));
            }
            _ => {}
        }
    }
}

/// Goes the way to a peer: look-up, key exchange, first answer, direct path. `wait`: how long to wait for a direct path
/// behind the first answer.
pub(crate) fn examine(node: &Node, peer: &Peer, timeout: Duration, wait: Duration) -> Value {
    let events = node.events();
    let mut steps = Steps { start: Instant::now(), steps: Vec::new() };
    if let Some(carriage) = node.carriage().filter(|carriage| carriage.carried) {
        steps.add("carriage", format!("UDP is blocked: through {}", carriage.url), Value::Null);
    }
    let found = match node.resolve(peer) {
        Ok(found) => found,
        Err(error) => return report(steps, None, Some(&error.into())),
    };
    let at = found.endpoint.map_or("not told, by the relay only".to_owned(), |at| at.to_string());
    let key = if found.key.is_some() { "key known" } else { "key not known" };
    let source = found.source.as_str();
    let more = json!({
        "address": found.address.to_string(),
        "endpoint": found.endpoint.map(|at| at.to_string()),
        "source": source,
    });
    steps.add("lookup", format!("{} at {at}, {key}, told by: {source}", found.address), more);
    let id = found.address.node;
    if let Some(status) = node.path(id).filter(|status| status.established) {
        let age = status.age.map_or("-".to_owned(), format_duration);
        steps.add("tunnel", format!("is up already, path {} for {age}", status.reason), Value::Null);
    }
    let answer = node.ping(peer, timeout);
    // What happened meanwhile, with the times of the queue's end: close enough, as the ping itself took longest.
    while let Some(event) = events.try_recv() {
        steps.event(&event, node, id);
    }
    let reply = match answer {
        Ok(reply) => reply,
        Err(error) => return report(steps, node.path(id), Some(&error.into())),
    };
    let more = json!({ "rtt_us": micros(reply.rtt), "attempts": reply.attempts });
    steps.add(
        "first-answer",
        format!("rtt {}, request {}", format_duration(reply.rtt), reply.attempts),
        more,
    );
    let end = Instant::now() + wait;
    while !node.path(id).is_some_and(|status| status.is_direct()) {
        let left = end.saturating_duration_since(Instant::now());
        match events.recv_timeout(left) {
            Some(event) => steps.event(&event, node, id),
            None => break,
        }
    }
    report(steps, node.path(id), None)
}

fn report(steps: Steps, status: Option<pilotage::PathStatus>, error: Option<&CliError>) -> Value {
    let path = status.and_then(|status| status.path);
    json!({
        "steps": steps.steps,
        "result": {
            "event": "trace",
            "took_us": micros(steps.start.elapsed()),
            "path": path.as_ref().map(path_json),
            "reason": status.map(|status| status.reason),
            "established": status.is_some_and(|status| status.established),
        },
        "error": error.map(CliError::to_json),
    })
}

fn step_text(step: &Value) -> String {
    let at = Duration::from_micros(step["at_us"].as_u64().unwrap_or_default());
    let word = |key: &str| step[key].as_str().unwrap_or("-").to_owned();
    format!("{:>10}  {:<13} {}", format_duration(at), word("step"), word("detail"))
}

fn result_text(peer: &Peer, result: &Value) -> String {
    let path = &result["path"];
    match path["kind"].as_str() {
        Some(kind) => format!(
            "{peer}: {kind} {}, reason {}, rtt {}, datagrams of {} bytes",
            path["remote"].as_str().unwrap_or("-"),
            result["reason"].as_str().unwrap_or("-"),
            format_duration(Duration::from_micros(path["rtt_us"].as_u64().unwrap_or_default())),
            path["datagram_size"].as_u64().unwrap_or_default(),
        ),
        None => format!("{peer}: no path, reason {}", result["reason"].as_str().unwrap_or("-")),
    }
}
