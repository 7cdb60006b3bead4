//! Arguments about the way to others: how to be found, and how to look into it.

use std::time::Duration;

use clap::Args;
use pilotage::Peer;

use super::NodeArgs;
use crate::units::parse_duration;

/// How a node is found besides by its hub.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct ReachArgs {
    /// Announce this node on the local network and find others there (DNS-SD) [default without a hub]
    #[arg(long, env = "PILOTAGE_LAN")]
    pub(crate) lan: bool,
    /// Do not
    #[arg(long, conflicts_with = "lan")]
    pub(crate) no_lan: bool,
    /// Do not ask the router for a port (PCP, NAT-PMP, UPnP) [default: ask, where there is a hub]
    #[arg(long, env = "PILOTAGE_NO_PORT_MAPPING")]
    pub(crate) no_port_mapping: bool,
    /// Let the hub relay to this node only for nodes that proved their key to it; daemons of the reference cannot
    #[arg(long, env = "PILOTAGE_PROVEN_ONLY")]
    pub(crate) proven_only: bool,
}

/// `trace`
#[derive(Debug, Args)]
pub(crate) struct TraceArgs {
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    /// Whom
    pub(crate) peer: Peer,
    /// How long to wait for the first answer
    #[arg(short, long, value_name = "TIME", default_value = "10s", value_parser = parse_duration)]
    pub(crate) timeout: Duration,
    /// How long to wait for a direct path behind it
    #[arg(short, long, value_name = "TIME", default_value = "5s", value_parser = parse_duration)]
    pub(crate) wait: Duration,
}

/// `doctor`
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    /// Look at the way to this peer, too
    pub(crate) peer: Option<Peer>,
}
