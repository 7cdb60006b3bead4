//! `pilotage ping`: round-trip times by the control protocol (port 0).

use std::thread;
use std::time::{Duration, Instant};

use pilotage::{PathInfo, PathKind};
use serde_json::{Value, json};

use super::Context;
use crate::args::PingArgs;
use crate::error::{CliError, Exit};
use crate::node;
use crate::session::{self, Pong, Session};
use crate::units::format_duration;

/// How long an answer is waited for.
const ANSWER: Duration = Duration::from_secs(5);
/// How long a direct path is waited for, and how long between two pings.
const UNTIL_DIRECT: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(200);

pub(crate) fn run(context: &Context, args: &PingArgs) -> Result<(), CliError> {
    session::check_peer(context, &args.node, &args.peer)?;
    let node = session::open(context, &args.node)?;
    if args.until_direct {
        let result = until_direct(context, args, &node);
        node.close();
        return result;
    }
    let timeout = args.timeout.unwrap_or(ANSWER);
    let mut times = Vec::new();
    let mut sent = 0;
    let mut last_error = None;
    while !context.stop.requested() && (args.count == 0 || sent < args.count) {
        if sent > 0 {
            pause(context, args.interval);
            if context.stop.requested() {
                break;
            }
        }
        sent += 1;
        match node.ping(&args.peer, timeout) {
            Ok(reply) => {
                times.push(reply.rtt);
                tell(context, args, sent, &reply);
            }
            Err(error) => {
                if context.stop.requested() {
                    break;
                }
                context.output.result(
                    format!("{}: seq={sent} {}: {}", args.peer, error.stage, error.cause),
                    &json!({
                        "event": "lost",
                        "peer": args.peer.to_string(),
                        "seq": sent,
                        "stage": error.stage,
                        "cause": error.cause,
                    }),
                );
                last_error = Some(error);
            }
        }
    }
    let interrupted = context.stop.requested();
    summary(context, args, sent, &mut times);
    node.close();
    match last_error {
        _ if interrupted => Err(CliError::interrupted()),
        Some(error) if times.is_empty() => Err(CliError { exit: Exit::Unreachable, ..error }),
        _ => Ok(()),
    }
}

fn tell(context: &Context, args: &PingArgs, seq: u64, reply: &Pong) {
    let via = reply.path.as_ref().map(|path| format!(" {}", path_text(path))).unwrap_or_default();
    let why = reply.reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
    context.output.result(
        format!("{}: seq={seq} time={}{via}{why}", args.peer, format_duration(reply.rtt)),
        &json!({
            "event": "reply",
            "peer": args.peer.to_string(),
            "seq": seq,
            "rtt_us": micros(reply.rtt),
            "path": reply.path.as_ref().map(path_json),
            "reason": reply.reason,
        }),
    );
}

/// Pings until the path is direct; the last path tells why it is not.
fn until_direct(context: &Context, args: &PingArgs, node: &Session) -> Result<(), CliError> {
    let start = Instant::now();
    let end = start + args.timeout.unwrap_or(UNTIL_DIRECT);
    let (mut seq, mut last, mut error) = (0, None, None);
    while !context.stop.requested() && (seq == 0 || Instant::now() < end) {
        seq += 1;
        match node.ping(&args.peer, end.saturating_duration_since(Instant::now()).max(PAUSE)) {
            Ok(reply) => {
                tell(context, args, seq, &reply);
                if reply.path.as_ref().is_some_and(|path| path.kind == PathKind::Direct) {
                    let took = start.elapsed();
                    let value = json!({
                        "event": "direct", "peer": args.peer.to_string(), "took_us": micros(took),
                        "path": reply.path.as_ref().map(path_json), "reason": reply.reason,
                    });
                    context.output.result(format!("direct after {}", format_duration(took)), &value);
                    return Ok(());
                }
                last = reply.reason;
            }
            Err(failure) => error = Some(failure),
        }
        pause(context, PAUSE);
    }
    match (context.stop.requested(), last, error) {
        (true, ..) => Err(CliError::interrupted()),
        (_, None, Some(error)) => Err(CliError { exit: Exit::Unreachable, ..error }),
        (_, reason, _) => {
            let cause = format!("still by the relay: {}", reason.as_deref().unwrap_or("no reason is known"));
            Err(CliError::failure(
                "direct path",
                cause,
                "see `pilotage doctor PEER`, or wait longer with --timeout",
            ))
        }
    }
}

fn summary(context: &Context, args: &PingArgs, sent: u64, times: &mut [Duration]) {
    times.sort_unstable();
    let (min, max) = (times.first().copied(), times.last().copied());
    let mean = u32::try_from(times.len()).ok().filter(|n| *n > 0).map(|n| times.iter().sum::<Duration>() / n);
    let mut text = format!("{sent} sent, {} answered", times.len());
    if let (Some(min), Some(mean), Some(max)) = (min, mean, max) {
        text.push_str(&format!(
            ", min/mean/max {} / {} / {}",
            format_duration(min),
            format_duration(mean),
            format_duration(max)
        ));
    }
    let value = json!({
        "event": "summary",
        "peer": args.peer.to_string(),
        "sent": sent,
        "answered": times.len(),
        "rtt_us": { "min": min.map(micros), "mean": mean.map(micros), "max": max.map(micros) },
    });
    context.output.result(text, &value);
}

fn pause(context: &Context, interval: Duration) {
    let end = Instant::now() + interval;
    node::wait_for_stop(context, || {
        let left = end.saturating_duration_since(Instant::now());
        thread::sleep(left.min(Duration::from_millis(20)));
        left.is_zero()
    });
}

pub(crate) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// `direct 127.0.0.1:4000`.
pub(crate) fn path_text(path: &PathInfo) -> String {
    format!("{} {}", path_kind(path.kind), path.remote)
}

pub(crate) fn path_kind(kind: PathKind) -> &'static str {
    match kind {
        PathKind::Direct => "direct",
        PathKind::Relay => "relay",
    }
}

pub(crate) fn path_json(path: &PathInfo) -> Value {
    json!({
        "kind": path_kind(path.kind),
        "remote": path.remote.to_string(),
        "rtt_us": micros(path.rtt),
        "min_rtt_us": micros(path.min_rtt),
        "datagram_size": path.datagram_size,
        "congestion_window": path.congestion_window,
        "in_flight": path.in_flight,
    })
}
