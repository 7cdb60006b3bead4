//! `pilotage watch`: records as they change.

use pilotage_registry::book::client::BookError;
use pilotage_registry::book::message::Whose;
use pilotage_registry::replica::follow::{Change, Follower, Position};
use pilotage_registry::replica::owner_key;
use pilotage_wire::record::Record;
use pilotage_wire::{Address, NetworkId, addressing};
use serde_json::json;

use super::{Context, record};
use crate::args::WatchArgs;
use crate::error::CliError;

/// Longest pause between two tries.
const PAUSE: std::time::Duration = std::time::Duration::from_secs(2);

pub(crate) fn run(context: &Context, args: &WatchArgs) -> Result<(), CliError> {
    let (registry, agent) = record::whose(context, &args.keys, args.who.as_deref())?;
    let whose = agent.map_or(Whose::All, |id| Whose::Of(owner_key(&id, NetworkId(0))));
    let from = args.from.map(|(history, revision)| Position { history, revision });
    let mut follower = Follower::new(vec![registry], whose, from);
    context.output.note("watching; Ctrl-C ends it");
    // A question may wait for a minute: the end does not wait for it.
    let (send, changes) = std::sync::mpsc::sync_channel(64);
    let follow = move || {
        loop {
            let next = follower.next_change();
            let failed = next.is_err();
            if send.send((next, follower.position())).is_err() {
                return;
            }
            if failed {
                std::thread::sleep(PAUSE);
            }
        }
    };
    std::thread::Builder::new().name("watch".into()).spawn(follow).map_err(|error| {
        CliError::failure("watch", format!("no thread: {error}"), "check the limits of this process")
    })?;
    let (mut left, mut silent) = (args.count.unwrap_or(u64::MAX), false);
    while left > 0 && !context.stop.requested() {
        let Ok((next, position)) = changes.recv_timeout(std::time::Duration::from_millis(100)) else {
            continue;
        };
        match next {
            Ok(None) => silent = false,
            Ok(Some(change)) => {
                (left, silent) = (left - u64::from(matches!(change, Change::Record(..))), false);
                show(context, &change, position);
            }
            Err(error @ (BookError::Io { .. } | BookError::OtherProtocol { .. })) => {
                if !std::mem::replace(&mut silent, true) {
                    context.output.note(format!("{error}; trying again"));
                    context.output.event(&json!({ "event": "hub_lost", "reason": error.to_string() }));
                }
            }
            Err(error) => return Err(record::explain(&error)),
        }
    }
    Ok(())
}

fn show(context: &Context, change: &Change, position: Position) {
    let at = format!("{:x}:{}", position.history, position.revision);
    match change {
        Change::Resync => context.output.result(
            "everything follows again: the hub cannot go on from where this was",
            &json!({ "event": "resync", "position": at }),
        ),
        Change::Record(record, bytes) => {
            let mut value = record::record_json(record, bytes.len());
            value["event"] = "changed".into();
            value["position"] = at.into();
            context.output.result(text(record), &value);
        }
    }
}

fn text(record: &Record) -> String {
    let address = Address { network: record.network, node: record.node };
    let name = record.hostname.as_ref().map_or("-", |hostname| &hostname.name);
    let state = if record.tombstone.is_some() { "gone" } else { "changed" };
    format!("{address}  {name}  {state}  {}", addressing::fingerprint256(&record.key))
}
