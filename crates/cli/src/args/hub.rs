//! Arguments of `pilotage hub` and `pilotage beacon`.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::Args;

use super::{ClusterArgs, HubAction};
use crate::units::parse_size;

/// `hub`
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct HubArgs {
    #[command(subcommand)]
    pub(crate) action: Option<HubAction>,
    /// IP address to listen on, for both
    #[arg(long, value_name = "IP", default_value = "0.0.0.0")]
    pub(crate) listen: IpAddr,
    /// TCP port of the registry; 0 = any
    #[arg(long, value_name = "PORT", default_value_t = 9000)]
    pub(crate) registry_port: u16,
    /// UDP port of the beacon; 0 = any [default: registry port + 1]
    #[arg(long, value_name = "PORT")]
    pub(crate) beacon_port: Option<u16>,
    /// Database of the registry [default: registry.redb in the state directory]
    #[arg(long, value_name = "FILE")]
    pub(crate) store: Option<PathBuf>,
    /// Database of records and claims [default: beside the registry's, ending in .claims.redb]
    #[arg(long, value_name = "FILE")]
    pub(crate) claims_store: Option<PathBuf>,
    /// Database of records held for others [default: beside the registry's, ending in .replicas.redb]
    #[arg(long, value_name = "FILE")]
    pub(crate) replica_store: Option<PathBuf>,
    /// File with the map of the registry's nodes, as `pilotage hub map` makes it; it may come and change while the hub runs
    #[arg(long, value_name = "FILE", env = "PILOTAGE_HUB_MAP")]
    pub(crate) map: Option<PathBuf>,
    /// Seconds between heartbeats of agents
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub(crate) heartbeat: u32,
    /// Zero bits that the proof of work of a claim needs: each costs who claims twice as much
    #[arg(long, value_name = "BITS", default_value_t = 16, value_parser = clap::value_parser!(u8).range(0..=28))]
    pub(crate) pow_bits: u8,
    /// Believe registrations without proof at once instead of when the key signs something: for networks you trust only
    #[arg(long)]
    pub(crate) allow_unsigned: bool,
    /// Register only with proof of possession, at registry and beacon: reference daemons stay out
    #[arg(long, conflicts_with = "allow_unsigned")]
    pub(crate) require_proof: bool,
    #[command(flatten)]
    pub(crate) sharing: BeaconSharing,
    /// File with the admin token, which makes networks and does what else only an operator may
    #[arg(long, value_name = "FILE", conflicts_with = "admin_token")]
    pub(crate) admin_token_file: Option<PathBuf>,
    /// The admin token itself; others on this machine can see it on the command line
    #[arg(long, value_name = "TOKEN", env = "PILOTAGE_ADMIN_TOKEN", hide_env_values = true)]
    pub(crate) admin_token: Option<String>,
    /// Speak TLS on the registry's port, with a certificate made once and kept in the state directory
    #[arg(long)]
    pub(crate) tls: bool,
    /// Take the beacon's datagrams over WebSocket and TLS as well, for nodes whose network blocks UDP; nodes look at port 443
    #[arg(long, value_name = "IP:PORT", env = "PILOTAGE_WSS")]
    pub(crate) wss: Option<SocketAddr>,
    /// Certificate chain for --wss, PEM [default: one made once and kept in the state directory]
    #[arg(long, value_name = "FILE", requires_all = ["wss", "tls_key"])]
    pub(crate) tls_cert: Option<PathBuf>,
    /// Key that goes with --tls-cert, PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub(crate) tls_key: Option<PathBuf>,
    /// Let everybody change scores, as reference daemons do; for networks you trust only
    #[arg(long)]
    pub(crate) open_scores: bool,
    /// Let everybody announce a beacon, as reference beacons do; for networks you trust only
    #[arg(long)]
    pub(crate) allow_beacons: bool,
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
    /// Keep an index of what agents can do, at most so many: `up --skills` announces there, `find` asks there first
    #[arg(long, value_name = "AGENTS", num_args = 0..=1, default_missing_value = "200000")]
    pub(crate) index: Option<usize>,
    /// Serve a read-only page about agents, networks and the cluster; on a loopback address only
    #[arg(long, value_name = "IP:PORT", env = "PILOTAGE_WEB")]
    pub(crate) web: Option<SocketAddr>,
    /// Serve counters for Prometheus under /metrics; on a loopback address only
    #[arg(long, value_name = "IP:PORT", env = "PILOTAGE_METRICS")]
    pub(crate) metrics: Option<SocketAddr>,
    /// Let --web and --metrics listen where others reach them: they ask nobody who they are
    #[arg(long)]
    pub(crate) http_anywhere: bool,
    /// End when standard input ends (for a parent process)
    #[arg(long)]
    pub(crate) exit_with_stdin: bool,
}

/// What a beacon is, in a hub or alone.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct BeaconSharing {
    /// Second UDP port of the beacon, by which nodes find out how their NATs behave; 0 = any
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    pub(crate) second_port: u16,
    /// Address under which nodes know the beacon, if a NAT stands before it; may be given several times
    #[arg(long, value_name = "IP:PORT")]
    pub(crate) public_addr: Vec<SocketAddr>,
    /// Another beacon that has the same key: nodes of both reach each other; may be given several times
    #[arg(long, value_name = "HOST:PORT", requires = "beacon_key_file")]
    pub(crate) other_beacon: Vec<String>,
    /// File with the key that the beacons share: 64 hex digits, such as `openssl rand -hex 32` makes
    #[arg(long, value_name = "FILE")]
    pub(crate) beacon_key_file: Option<PathBuf>,
    /// Most that is relayed in all, in bytes per second
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = parse_size)]
    pub(crate) relay_limit: u64,
    /// Most that is relayed from one node and to one node, in bytes per second
    #[arg(long, value_name = "SIZE", default_value = "32MiB", value_parser = parse_size)]
    pub(crate) relay_limit_per_node: u64,
    /// Print the beacon's counters each so many seconds
    #[arg(long, value_name = "SECONDS")]
    pub(crate) stats: Option<u32>,
}

/// `beacon`
#[derive(Debug, Args)]
pub(crate) struct BeaconArgs {
    /// IP address to listen on
    #[arg(long, value_name = "IP", default_value = "0.0.0.0")]
    pub(crate) listen: IpAddr,
    /// UDP port; 0 = any
    #[arg(long, value_name = "PORT", default_value_t = 9001)]
    pub(crate) port: u16,
    /// Register only nodes that prove their key: reference daemons stay out
    #[arg(long)]
    pub(crate) require_proof: bool,
    #[command(flatten)]
    pub(crate) sharing: BeaconSharing,
    /// End when standard input ends (for a parent process)
    #[arg(long)]
    pub(crate) exit_with_stdin: bool,
}
