//! Arguments of the gateway: `forward`, `serve`, `socks5`, `gateway`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use pilotage::Peer;

use super::NodeArgs;

/// Bounds of a gateway.
#[derive(Debug, Clone, Args)]
pub(crate) struct GatewayLimits {
    /// Connections at a time; further ones are refused
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub(crate) connections: u16,
}

/// A port of a peer: `PEER:PORT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PeerPort {
    pub(crate) peer: Peer,
    pub(crate) port: u16,
}

impl std::str::FromStr for PeerPort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (peer, port) = text.rsplit_once(':').ok_or("expected PEER:PORT, as in bob:80")?;
        let port = port.parse().ok().filter(|port| *port != 0);
        let port = port.ok_or("expected PEER:PORT with a port of 1 to 65535, as in bob:80")?;
        Ok(Self { peer: peer.parse().map_err(|error: pilotage::PeerParseError| error.to_string())?, port })
    }
}

/// `forward`
#[derive(Debug, Args)]
pub(crate) struct ForwardArgs {
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    #[command(flatten)]
    pub(crate) limits: GatewayLimits,
    /// TCP address to listen on; whoever reaches it speaks as this node
    #[arg(value_name = "IP:PORT")]
    pub(crate) local: SocketAddr,
    /// Where it leads
    #[arg(value_name = "PEER:PORT")]
    pub(crate) target: PeerPort,
}

/// `serve`
#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    #[command(flatten)]
    pub(crate) limits: GatewayLimits,
    /// Port of this node, 1 to 65535
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) port: u16,
    /// TCP target that it leads to
    #[arg(value_name = "HOST:PORT")]
    pub(crate) target: String,
    /// Who may use it; may be repeated [default: whoever can reach this node]
    #[arg(long, value_name = "PEER", num_args = 1..)]
    pub(crate) allow: Vec<Peer>,
}

/// `socks5`
#[derive(Debug, Args)]
pub(crate) struct Socks5Args {
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    #[command(flatten)]
    pub(crate) limits: GatewayLimits,
    /// TCP address to listen on: loopback, unless there is a password
    #[arg(value_name = "IP:PORT", default_value = "127.0.0.1:1080")]
    pub(crate) local: SocketAddr,
    /// File with NAME:PASSWORD that clients must show
    #[arg(long, value_name = "FILE")]
    pub(crate) password_file: Option<PathBuf>,
}

/// `gateway`
#[derive(Debug, Args)]
pub(crate) struct GatewayArgs {
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    #[command(flatten)]
    pub(crate) limits: GatewayLimits,
    /// A peer and the address that stands for it; may be repeated. Outside 127.0.0.0/8 it is added to lo, as root
    #[arg(long, value_name = "PEER=IP", required = true)]
    pub(crate) map: Vec<pilotage_services::gateway::alias::Mapping>,
    /// Ports to lead to the same ports of the peers
    #[arg(long, value_name = "PORT", value_delimiter = ',', default_value = "80,443,1000,1001,1002,7,8080,8443",
        value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) ports: Vec<u16>,
}
