//! The hub's own index of what agents can do: a node of the hub's network that keeps the cards which agents announce, and the
//! list of groups (`spec/discovery.md` §4 and §7).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use pilotage::Node;
use pilotage_registry::engine::OwnName;
use pilotage_services::find::{HUB_INDEX, Host};
use pilotage_services::server::{Services, Serving, serve};

use crate::args::HubArgs;
use crate::cmd::Context;
use crate::error::CliError;

/// The node and what it answers. Ends with the value.
pub(super) struct Index {
    pub(super) node: Node,
    pub(super) host: Host,
    _serving: Arc<Serving>,
}

/// How this process reaches a socket of its own.
pub(super) fn own(at: SocketAddr) -> SocketAddr {
    let ip = match at.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, at.port())
}

/// Starts it, if the arguments want one.
pub(super) fn start(
    context: &Context,
    args: &HubArgs,
    registry: SocketAddr,
    beacon: SocketAddr,
    pin: Option<[u8; 32]>,
    own_name: Option<&OwnName>,
) -> Result<Option<Index>, CliError> {
    let Some(most) = args.index else { return Ok(None) };
    let failed =
        |error: String| CliError::failure("index", error, "start the hub without --index, or correct that");
    let builder = Node::builder().state_dir(context.settings.state.join("index"));
    let builder = builder.bind(SocketAddr::new(args.listen, 0)).lan(false).port_mapping(false).no_hub_wss();
    let mut builder = builder.registry(own(registry).to_string()).beacon(own(beacon).to_string());
    if let Some(pin) = pin {
        builder = builder.registry_tls_pin(pin);
    }
    // In a cluster each hub's index has the name at its hub, and none that all hubs would have to agree on.
    let builder = if own_name.is_some() { builder } else { builder.name(HUB_INDEX) };
    let node = builder.public(true).start()?;
    if let Some(own) = own_name {
        own.set(node.address().node);
    }
    let closing = node.clone();
    context.stop.on_request(move || closing.close());
    let host = Host::new(None, Some(most)).map_err(|error| failed(error.to_string()))?;
    let services = Services { find: Some(host.clone()), ..Services::default() };
    let serving = serve(&node, &services, Arc::new(|_| {})).map_err(|error| failed(error.to_string()))?;
    Ok(Some(Index { node, host, _serving: Arc::new(serving) }))
}
