//! `pilotage hub map`: the map of the registry's nodes.

use std::fs;

use pilotage_registry::placement::{Map, MapNode, SignedMap};
use serde_json::json;

use crate::args::MapArgs;
use crate::cmd::{Context, read_identity};
use crate::error::CliError;

pub(super) fn write(context: &Context, args: &MapArgs) -> Result<(), CliError> {
    let identity = if args.operator { Some(read_identity(&context.settings.state)?) } else { None };
    let mut nodes: Vec<MapNode> =
        args.node.iter().map(|(key, at)| MapNode { key: *key, weight: 1, endpoints: vec![*at] }).collect();
    nodes.sort_by_key(|node| node.key);
    let operators: Vec<[u8; 32]> = identity.iter().map(|identity| identity.public_key()).collect();
    let map = Map { epoch: args.epoch, replicas: args.replicas, nodes, operators };
    map.check().map_err(|error| CliError::usage("map", error, "give each hub once, at most 64"))?;
    let signatures =
        identity.iter().map(|us| map.sign_with(us.public_key(), |bytes| us.sign(bytes))).collect();
    let signed = SignedMap { map, signatures };
    // Hubs that look at the file see all of it or none.
    let part = args.out.with_extension("new");
    fs::write(&part, signed.encode()).and_then(|()| fs::rename(&part, &args.out)).map_err(|error| {
        CliError::failure(
            "map",
            format!("{}: {error}", args.out.display()),
            "name another file with --out FILE",
        )
    })?;
    let value = json!({
        "event": "map",
        "file": args.out.display().to_string(),
        "epoch": signed.map.epoch,
        "replicas": signed.map.replicas,
        "nodes": signed.map.nodes.iter().map(|node| hex::encode(node.key)).collect::<Vec<_>>(),
    });
    let text = format!(
        "{}: {} nodes, epoch {}; name it with --map at each hub, which sign it",
        args.out.display(),
        signed.map.nodes.len(),
        signed.map.epoch
    );
    context.output.result(text, &value);
    Ok(())
}
