//! Starting the node that a command needs.

use std::thread;
use std::time::Duration;

use pilotage::{Node, Peer, ProtoConfig};
use serde_json::{Value, json};

use crate::args::NodeArgs;
use crate::cmd::Context;
use crate::error::CliError;

/// Starts a node with the settings in force. It is closed when the command is interrupted.
pub(crate) fn start(context: &Context, args: &NodeArgs) -> Result<Node, CliError> {
    start_with(context, args, true)
}

/// As [`start`]; with `hub_required` false also while the hub does not answer.
pub(crate) fn start_with(context: &Context, args: &NodeArgs, hub_required: bool) -> Result<Node, CliError> {
    let settings = &context.settings;
    let mut builder = Node::builder().visibility(settings.visibility(args)).hub_required(hub_required);
    builder = builder.lan(settings.lan(args)).port_mapping(settings.port_mapping(args));
    builder = builder.proven_only(args.reach.proven_only);
    if !args.ephemeral {
        builder = builder.state_dir(&settings.state);
    }
    if let Some(bind) = settings.bind(args) {
        builder = builder.bind(bind);
    }
    if let Some(hub) = &settings.hub {
        builder = builder.hub(hub);
    }
    if let Some(registry) = &settings.registry {
        builder = builder.registry(registry);
    }
    if let Some(pin) = settings.registry_tls_pin {
        builder = builder.registry_tls_pin(pin);
    }
    match settings.hub_wss.as_deref() {
        Some("off") => builder = builder.no_hub_wss(),
        Some(url) => builder = builder.hub_wss(url),
        None => {}
    }
    // The hub shows one certificate at both ports, unless it has a bought one.
    if let Some(pin) = settings.hub_wss_pin {
        builder = builder.hub_wss_pin(pin);
    }
    if let Some(owner) = settings.owner(args) {
        builder = builder.owner(owner);
    }
    if let Some(keepalive) = args.keepalive {
        builder = builder.keepalive(keepalive);
    }
    if !settings.beacons.is_empty() {
        builder = builder.beacons(&settings.beacons);
    }
    if let Some(name) = settings.name(args) {
        if !settings.has_hub() && !settings.lan(args) {
            context.output.note(format!("note: the name {name:?} is not claimed, as no hub is configured"));
        }
        builder = builder.name(name);
    }
    let mut config = ProtoConfig::default();
    config.connect_timeout = args.connect_timeout.unwrap_or(config.connect_timeout);
    config.rekey_after = args.rekey_after.unwrap_or(config.rekey_after);
    config.congestion = settings.congestion(args).into();
    builder = builder.config(config).secure_mode(settings.secure_mode(args).into());
    builder = builder.post_quantum(settings.post_quantum(args).into());
    for secret in settings.network_secrets(args)? {
        let (network, secret) = secret.read()?;
        builder = builder.network_secret(network, secret);
    }
    builder = builder.secure_streams(!args.no_secure_streams);
    for peer in &args.peers {
        builder = builder.peer(peer.address, peer.at, peer.key);
    }
    let node = builder.start()?;
    let closing = node.clone();
    context.stop.on_request(move || closing.close());
    Ok(node)
}

/// What a node says about itself in a ready line.
pub(crate) fn describe(node: &Node) -> Value {
    json!({
        "address": node.address().to_string(),
        "fingerprint": node.fingerprint(),
        "public_key": hex::encode(node.public_key()),
        "name": node.name(),
        "listen": node.local_addr().to_string(),
        "observed": node.observed_addr().map(|addr| addr.to_string()),
        "pid": std::process::id(),
    })
}

/// The same for people.
pub(crate) fn describe_text(about: &Value) -> String {
    let word = |key: &str| about[key].as_str().unwrap_or("-");
    let mut text = format!("address      {}\nfingerprint  {}", word("address"), word("fingerprint"));
    if about["name"].is_string() {
        text.push_str(&format!("\nname         {}", word("name")));
    }
    text.push_str(&format!("\nlistening    {} (UDP)", word("listen")));
    if about["observed"].is_string() {
        text.push_str(&format!("\nseen as      {}", word("observed")));
    }
    text
}

/// A name without a hub cannot work: say so before a socket is opened.
pub(crate) fn check_peer(context: &Context, args: &NodeArgs, peer: &Peer) -> Result<(), CliError> {
    match peer {
        Peer::Name(name) if !context.settings.has_hub() && !context.settings.lan(args) => {
            Err(CliError::usage(
                "resolve",
                format!("the name {name:?} cannot be looked up: no hub is configured"),
                "name a hub with --hub HOST, look on the local network with --lan, or give the peer as ADDRESS@IP:PORT",
            ))
        }
        _ => Ok(()),
    }
}

/// Waits until the command is asked to end; returns early when `done` says so.
pub(crate) fn wait_for_stop(context: &Context, mut done: impl FnMut() -> bool) {
    while !context.stop.requested() && !done() {
        thread::sleep(Duration::from_millis(50));
    }
}
