//! Node A of the demo: finds B by name, sends the file, measures, and tells the parent as JSON lines.

use std::time::{Duration, Instant};

use pilotage::{EventReceiver, NodeEvent, PathInfo};
use pilotage_services::{bench, file};
use serde_json::{Value, json};

use crate::args::DemoSenderArgs;
use crate::cmd::bench::{datagrams, round_trips};
use crate::cmd::ping::{micros, path_json, path_kind};
use crate::cmd::send::{explain, goodput, open, stats_json};
use crate::cmd::{Context, stop_with_stdin};
use crate::error::CliError;
use crate::node;
use crate::progress::Progress;

/// Bytes of a request and of a reply.
const MESSAGE: u32 = 64;

/// Bytes of a datagram of the burst.
const DATAGRAM: usize = 1000;

/// How long the event of the key exchange may lag behind the connection.
const EVENT_TIMEOUT: Duration = Duration::from_secs(1);

pub(crate) fn run(context: &Context, args: &DemoSenderArgs) -> Result<(), CliError> {
    if args.exit_with_stdin {
        stop_with_stdin(context);
    }
    let output = &context.output;
    let (source, options) = open(&args.file, None)?;
    let node = node::start(context, &args.node)?;
    let mut ready = node::describe(&node);
    ready["event"] = "ready".into();
    output.event(&ready);

    let events = node.events();
    let begin = Instant::now();
    let stream = node.connect(&args.peer, file::PORT)?;
    let connect = begin.elapsed();
    let handshake = handshake_time(&events).unwrap_or(connect);
    output.event(&json!({
        "event": "connected",
        "peer": stream.peer().address.to_string(),
        "connect_us": micros(connect),
        "handshake_us": micros(handshake),
    }));

    let mut progress = Progress::bytes(output, "send", options.size);
    let mut on_progress = |bytes| {
        if progress.is_due() {
            output.event(&json!({ "event": "progress", "bytes": bytes }));
        }
    };
    let sent = file::send(&stream, source, &options, &mut on_progress).map_err(|error| explain(&error))?;
    output.event(&json!({
        "event": "sent",
        "bytes": sent.bytes,
        "blake3": hex::encode(sent.hash),
        "elapsed_us": micros(sent.elapsed),
        "goodput_bps": goodput(&sent) as u64,
        "stats": stats_json(&stream.stats()),
        "path": path(stream.path().as_ref()),
    }));
    drop(stream);

    let stream = node.connect(&args.peer, bench::PORT)?;
    let times = round_trips(context, &stream, args.round_trips, MESSAGE)?;
    output.event(&json!({ "event": "round_trips", "rtt_us": times.to_json() }));
    drop(stream);

    let count = datagrams(context, &node, &args.peer, args.datagrams, DATAGRAM)?;
    output.event(&json!({ "event": "datagrams", "datagrams": count.to_json() }));
    node.close();
    Ok(())
}

/// The time that the key exchange took, as the node reports it.
fn handshake_time(events: &EventReceiver) -> Option<Duration> {
    let deadline = Instant::now() + EVENT_TIMEOUT;
    while let Some(left) = deadline.checked_duration_since(Instant::now()) {
        match events.recv_timeout(left)? {
            NodeEvent::TunnelUp { handshake, .. } if !handshake.is_zero() => return Some(handshake),
            NodeEvent::TunnelUp { .. } => return None,
            _ => {}
        }
    }
    None
}

fn path(path: Option<&PathInfo>) -> Value {
    json!({
        "kind": path.map(|path| path_kind(path.kind)),
        "detail": path.map(path_json),
    })
}
