//! A hub that signs with another key than before: whether that may be followed (spec/registry2.md §6.5), and what to do if not.

use std::path::Path;

use pilotage_registry::book::client::{BookClient, BookError, Info};

use super::Context;
use super::record::explain;
use crate::error::CliError;

/// The node that answers is none of those whose keys are known. Fine if it belongs to a cluster of which some are known, and if
/// the only one that is known has handed over to its cluster; `known`: whether the keys were given, and the file where they are.
pub(super) fn changed(
    context: &Context,
    client: &mut BookClient,
    registry: &str,
    (given, file): (bool, &Path),
    info: &Info,
) -> Result<(), CliError> {
    if client.nodes().len() > 1 {
        return other_cluster(client, registry, (given, file));
    }
    let key = hex::encode(info.node);
    if given {
        return Err(CliError::failure(
            "record",
            format!("the hub at {registry} signs with another key than --registry-key says ({key})"),
            "ask its operator for the keys; a hub that became a cluster has one per hub: give each with --registry-key",
        ));
    }
    let mut nonce = [0; 32];
    getrandom::fill(&mut nonce).map_err(|error| {
        CliError::failure("record", format!("no random numbers: {error}"), "check the system's random source")
    })?;
    match client.follow(nonce) {
        Ok(true) => {
            let list: Vec<String> = client.nodes().iter().map(hex::encode).collect();
            context.output.note(format!(
                "the hub at {registry} has become a cluster, as its old key says, and its log goes on: trusting {} from now on",
                list.join(" ")
            ));
            Ok(())
        }
        Ok(false) => Err(CliError::failure(
            "record",
            format!(
                "the hub at {registry} signs with another key than before ({key}), and the old key does not say so"
            ),
            format!(
                "ask its operator whether that is the key of a new hub, or of a cluster begun from a backup; if so, remove {}",
                file.display()
            ),
        )),
        Err(error @ (BookError::Io { .. } | BookError::Refused { .. } | BookError::Behind)) => {
            Err(explain(&error))
        }
        Err(error) => Err(CliError::failure(
            "record",
            format!(
                "the hub at {registry} signs with another key than before ({key}), and is not believed to go on with the old one's log: {error}"
            ),
            format!(
                "ask its operator what became of the names granted last; only if they were lost on purpose, remove {}",
                file.display()
            ),
        )),
    }
}

/// Some of a cluster's keys are known. If none of them is among those that the hub names, it is of another cluster.
fn other_cluster(
    client: &mut BookClient,
    registry: &str,
    (given, file): (bool, &Path),
) -> Result<(), CliError> {
    let named = client.named().map_err(|error| explain(&error))?;
    let known = client.nodes();
    if named.iter().any(|key| known.contains(key)) {
        return Ok(());
    }
    let list: Vec<String> = named.iter().map(hex::encode).collect();
    let next = if given {
        "ask the operator for the keys of its hubs, and give those with --registry-key".to_owned()
    } else {
        format!(
            "a cluster that was begun from a backup has new keys, and none of the old ones is left to say so: compare them with what its operator says, then remove {}",
            file.display()
        )
    };
    let cause = format!(
        "the hub at {registry} is of another cluster than before: it names {}, and none of the {} keys that are known",
        list.join(" "),
        known.len()
    );
    Err(CliError::failure("record", cause, next))
}
