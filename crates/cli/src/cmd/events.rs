//! `pilotage subscribe` and `publish`: the event stream of port 1002.

use std::path::Path;
use std::time::Duration;

use base64::Engine;
use pilotage_services::events::{self, Event, MAX_PAYLOAD, WireError};
use serde_json::{Value, json};

use super::Context;
use super::message::{printable, read_whole};
use crate::args::{PublishArgs, SubscribeArgs};
use crate::error::{CliError, Exit};
use crate::session;
use crate::units::format_bytes;

/// How long the peer may take to acknowledge a published event.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(30);

pub(crate) fn subscribe(context: &Context, args: &SubscribeArgs) -> Result<(), CliError> {
    session::check_peer(context, &args.node, &args.peer)?;
    let node = session::open(context, &args.node)?;
    let stream = node.connect(&args.peer, events::PORT)?;
    let peer = stream.peer().address.to_string();
    let subscription =
        events::subscribe(stream, args.topic.as_bytes()).map_err(|error| explain("subscribe", &error))?;
    // There is no answer to a subscription; once it is acknowledged the peer's node has it.
    let flushed = subscription.stream().wait_flushed(FLUSH_TIMEOUT);
    flushed.map_err(|error| CliError::stream("subscribe", &error))?;
    context.output.event(&json!({ "event": "subscribed", "peer": peer, "topic": args.topic }));
    context.output.note(format!("subscribed to {:?} at {peer}", args.topic));
    let mut count = 0;
    while args.count == 0 || count < args.count {
        match subscription.next_event() {
            Ok(Some(event)) => {
                count += 1;
                context.output.result(text(&event), &value(&event));
            }
            _ if context.stop.requested() => return Err(CliError::interrupted()),
            Ok(None) => {
                return Err(CliError::new(
                    Exit::Unreachable,
                    "receive",
                    "the peer ended the subscription",
                    "see its messages, then subscribe again",
                ));
            }
            Err(error) => return Err(explain("receive", &error)),
        }
    }
    drop(subscription);
    node.close();
    Ok(())
}

pub(crate) fn publish(context: &Context, args: &PublishArgs) -> Result<(), CliError> {
    session::check_peer(context, &args.node, &args.peer)?;
    let data = match args.data.as_str() {
        "-" => read_whole(Path::new("-"), MAX_PAYLOAD as u64)?,
        text => text.as_bytes().to_vec(),
    };
    let node = session::open(context, &args.node)?;
    let stream = node.connect(&args.peer, events::PORT)?;
    events::publish(&stream, args.topic.as_bytes(), &[&data]).map_err(|error| explain("publish", &error))?;
    stream.wait_flushed(FLUSH_TIMEOUT).map_err(|error| CliError::stream("publish", &error))?;
    let peer = stream.peer().address.to_string();
    context.output.result(
        format!("published {} on {:?} at {peer}", format_bytes(data.len() as u64), args.topic),
        &json!({ "event": "published", "peer": peer, "topic": args.topic, "bytes": data.len() }),
    );
    drop(stream);
    node.close();
    Ok(())
}

fn text(event: &Event) -> String {
    let topic = printable(&String::from_utf8_lossy(&event.topic));
    match std::str::from_utf8(&event.payload) {
        Ok(payload) => format!("{topic}: {}", printable(payload)),
        Err(_) => format!("{topic}: {} that are no text", format_bytes(event.payload.len() as u64)),
    }
}

fn value(event: &Event) -> Value {
    let topic = String::from_utf8_lossy(&event.topic);
    let (text, base64) = match std::str::from_utf8(&event.payload) {
        Ok(text) => (Some(text), None),
        Err(_) => (None, Some(base64::engine::general_purpose::STANDARD.encode(&event.payload))),
    };
    json!({ "event": "published", "topic": topic, "data": text, "base64": base64, "bytes": event.payload.len() })
}

fn explain(stage: &str, error: &WireError) -> CliError {
    match error {
        WireError::Io(error) => CliError::stream(stage, error),
        _ => CliError::failure(stage, error, "topics have 1024 bytes at most, events 16 MiB"),
    }
}
