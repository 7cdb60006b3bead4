//! The command line.

mod cluster;
mod congestion;
mod datagram;
mod draft;
mod explain;
mod find;
mod gateway;
mod hub;
mod network;
mod protection;
mod record;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use pilotage::Peer;

pub(crate) use self::cluster::{ClusterArgs, HubAction, HubFiles, MapArgs};
pub(crate) use self::congestion::Congestion;
pub(crate) use self::datagram::DatagramArgs;
pub(crate) use self::draft::{
    AnnounceArgs, InboxArgs, MessageArgs, PublishArgs, ResolveArgs, ServiceName, SubscribeArgs, TaskAction,
    TaskArgs,
};
pub(crate) use self::explain::{DoctorArgs, ReachArgs, TraceArgs};
pub(crate) use self::find::{CallArgs, FindArgs, SkillArgs, WishArgs};
pub(crate) use self::gateway::{ForwardArgs, GatewayArgs, GatewayLimits, ServeArgs, Socks5Args};
pub(crate) use self::hub::{BeaconArgs, BeaconSharing, HubArgs};
pub(crate) use self::network::{JoinRule, NetworkAction, NetworkArgs};
pub(crate) use self::protection::{NetworkSecret, Protection, Upgrade};
pub(crate) use self::record::{
    MainlineArgs, RecordAction, RecordArgs, RecordHeadsArgs, RecordPublishArgs, RecordShowArgs, RecordsArgs,
    RegistryKeys, WatchArgs,
};
use crate::units::{parse_duration, parse_size};

const ABOUT: &str = "Pilot Protocol network in one binary: hub, node and tools";

const AFTER_HELP: &str = "\
PEER is a name (bob), an address (0:0000.ABCD.1234), or address@ip:port, which needs no hub.

Settings come from the flag, else the environment variable, else the configuration file, else the
default. `pilotage config` shows what is in force and where it comes from.

Exit codes:
    0  success
    1  failure
    2  the command line or the configuration is wrong
    3  the peer or the hub could not be reached or stopped answering
    4  data arrived but failed verification
  130  interrupted by Ctrl-C, SIGTERM or SIGHUP (hub, up and the gateway commands end with 0: that is how they are stopped)";

/// Everything the user typed.
#[derive(Debug, Parser)]
#[command(name = "pilotage", version, about = ABOUT, after_help = AFTER_HELP, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// State directory: identity, pinned keys, control socket [default: ~/.local/state/pilotage]
    #[arg(long, global = true, value_name = "DIR", env = "PILOTAGE_STATE")]
    pub(crate) state: Option<PathBuf>,
    /// Configuration file [default: ~/.config/pilotage/config.toml, if it exists]
    #[arg(long, global = true, value_name = "FILE", env = "PILOTAGE_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    /// Hub: registry on PORT (9000 if left out), beacon on PORT+1
    #[arg(long, global = true, value_name = "HOST[:PORT]", env = "PILOTAGE_HUB")]
    pub(crate) hub: Option<String>,
    /// Registry (TCP), if it is not where --hub says
    #[arg(long, global = true, value_name = "HOST:PORT", env = "PILOTAGE_REGISTRY")]
    pub(crate) registry: Option<String>,
    /// Beacon (UDP), if it is not where --hub says; may be given several times, the first that answers relays
    #[arg(long, global = true, value_name = "HOST:PORT", env = "PILOTAGE_BEACON", value_delimiter = ',')]
    pub(crate) beacon: Vec<String>,
    /// The hub's WebSocket, used where UDP is blocked, or `off` [default: port 443 of --hub]
    #[arg(long, global = true, value_name = "wss://HOST[:PORT]", env = "PILOTAGE_HUB_WSS")]
    pub(crate) hub_wss: Option<String>,
    /// Take only the certificate with this SHA-256 there [default: what a browser takes, else that of the first time]
    #[arg(long, global = true, value_name = "HEX", env = "PILOTAGE_HUB_WSS_PIN", value_parser = parse_pin)]
    pub(crate) hub_wss_pin: Option<[u8; 32]>,
    /// Speak TLS with the registry, and only with the certificate that has this SHA-256 (64 hex digits)
    #[arg(long, global = true, value_name = "HEX", env = "PILOTAGE_REGISTRY_TLS_PIN", value_parser = parse_pin)]
    pub(crate) registry_tls_pin: Option<[u8; 32]>,
    /// Print results as JSON, one object per line
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Say less: no remarks, no progress
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
    /// Log more on standard error (-v info, -vv debug, -vvv trace)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    /// Log filter, such as pilotage=debug
    #[arg(long, global = true, value_name = "FILTER", env = "RUST_LOG")]
    pub(crate) log: Option<String>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a hub: registry (TCP) and beacon (UDP) in one process
    Hub(HubArgs),
    /// Run a beacon (UDP) alone: tells nodes their address, introduces them to each other and relays
    Beacon(BeaconArgs),
    /// Run a node in the foreground: echo, file inbox and benchmark services
    Up(UpArgs),
    /// Show or make the identity of a state directory
    Id(IdArgs),
    /// Show what the running node of the state directory does
    Status,
    /// Ask for trust, give it and take it back, at the running node of the state directory
    Trust(TrustArgs),
    /// Measure the round-trip time to a peer
    Ping(PingArgs),
    /// Show step by step how a peer is reached, with times
    Trace(TraceArgs),
    /// Look for what keeps this node from others: addresses, hub, UDP, NAT, clock, and the way to a peer
    Doctor(DoctorArgs),
    /// Send files, or standard input, to a peer
    Send(SendArgs),
    /// Receive files
    Recv(RecvArgs),
    /// Wait for one connection and join it to standard input and output
    Listen(ListenArgs),
    /// Connect to a port of a peer and join it to standard input and output
    Connect(ConnectArgs),
    /// Measure throughput, round trips and datagram loss to a peer
    Bench(BenchArgs),
    /// Send a text, JSON or bytes to a peer's inbox (port 1001)
    Message(MessageArgs),
    /// Send one datagram to a port of a peer, in the first packet of a handshake if it may be, and print the answer
    Datagram(DatagramArgs),
    /// List what came into the inbox
    Inbox(InboxArgs),
    /// Print the events of a topic at a peer as they come (port 1002)
    Subscribe(SubscribeArgs),
    /// Publish an event on a topic at a peer (port 1002)
    Publish(PublishArgs),
    /// Ask peers to do something, and do what they ask (port 1003)
    Task(TaskArgs),
    /// Find an agent at the hub, verified; with --via, look a name up at the nameserver of a peer (port 53)
    Resolve(ResolveArgs),
    /// Publish what this agent says about itself at the hub, and show what others say
    Record(RecordArgs),
    /// Print records as they change at the hub
    Watch(WatchArgs),
    /// Register a name at the nameserver of a peer, for five minutes (port 53)
    Announce(AnnounceArgs),
    /// Find agents by what they can do, and show why they are found (port 1013)
    Find(FindArgs),
    /// Have something done by whoever can do it, and by the next one if that fails (port 1014)
    Call(CallArgs),
    /// Make, enter, leave and look after networks of nodes
    Network(NetworkArgs),
    /// Show what is in packets: hex, a raw file, pcap or pcapng
    Decode(DecodeArgs),
    /// Show the whole stack at work: a hub and two nodes move a file on this machine
    Demo(DemoArgs),
    /// Show the settings in force and where each comes from
    Config,
    /// Print a completion script for a shell
    Completions(CompletionsArgs),
    /// Lead a local TCP port to a port of a peer
    Forward(ForwardArgs),
    /// Lead a port of this node to a TCP target
    Serve(ServeArgs),
    /// Run a SOCKS5 proxy whose clients reach peers by name
    Socks5(Socks5Args),
    /// Give peers IP addresses on this machine
    Gateway(GatewayArgs),
    /// Node A of the demo
    #[command(hide = true)]
    DemoSender(DemoSenderArgs),
}

/// How to start a node.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Node options")]
pub(crate) struct NodeArgs {
    /// Name to claim at the hub: a-z, 0-9 and -
    #[arg(long, visible_alias = "hostname", env = "PILOTAGE_NAME")]
    pub(crate) name: Option<String>,
    /// UDP address to bind [default: 0.0.0.0:0]
    #[arg(long, value_name = "IP:PORT", env = "PILOTAGE_BIND")]
    pub(crate) bind: Option<SocketAddr>,
    /// Use a throwaway identity instead of the one in the state directory
    #[arg(long)]
    pub(crate) ephemeral: bool,
    /// Do not let the hub tell others where this node is [default at a registry of the reference]
    #[arg(long)]
    pub(crate) private: bool,
    /// Let it tell everybody [default at a hub of Pilotage]
    #[arg(long, conflicts_with = "private")]
    pub(crate) public: bool,
    /// E-mail address for a registry of the reference; every node needs its own
    #[arg(long, visible_alias = "email", value_name = "TEXT", env = "PILOTAGE_OWNER")]
    pub(crate) owner: Option<String>,
    /// Time between heartbeats to the registry [default: 30s]
    #[arg(long, value_name = "TIME", env = "PILOTAGE_KEEPALIVE", value_parser = parse_keepalive)]
    pub(crate) keepalive: Option<Duration>,
    #[command(flatten)]
    pub(crate) reach: ReachArgs,
    /// Introduce a peer without a hub: ADDRESS@IP:PORT, optionally =KEY (64 hex digits)
    #[arg(long = "peer", value_name = "ADDRESS@IP:PORT[=KEY]")]
    pub(crate) peers: Vec<Introduction>,
    /// How long an attempt to connect may take [default: 15s]
    #[arg(long, value_name = "TIME", value_parser = parse_connect_timeout)]
    pub(crate) connect_timeout: Option<Duration>,
    /// Congestion control of what this node sends [default: bbr]
    #[arg(long, value_enum, value_name = "NAME", env = "PILOTAGE_CONGESTION")]
    pub(crate) congestion: Option<Congestion>,
    /// Protection of tunnels [default: auto]
    #[arg(long, value_enum, value_name = "MODE", env = "PILOTAGE_SECURE_MODE")]
    pub(crate) secure_mode: Option<Protection>,
    /// A second secret in sessions of S1, against recording now and quantum computers later [default: off]
    #[arg(long, value_enum, value_name = "CHOICE", env = "PILOTAGE_POST_QUANTUM")]
    pub(crate) post_quantum: Option<Upgrade>,
    /// Secret of a network, the same at all its nodes: sessions of S1 in it are for those who have it. The file holds 64 hex digits
    #[arg(
        long = "network-secret",
        value_name = "NUMBER=FILE",
        env = "PILOTAGE_NETWORK_SECRET",
        value_delimiter = ','
    )]
    pub(crate) network_secrets: Vec<NetworkSecret>,
    /// In S1, carry the draft's packets instead of its own streams
    #[arg(long, env = "PILOTAGE_NO_SECURE_STREAMS")]
    pub(crate) no_secure_streams: bool,
    /// Agree on new keys with a peer after this long [default: 1h]
    #[arg(long, value_name = "TIME", value_parser = parse_rekey_after)]
    pub(crate) rekey_after: Option<Duration>,
}

/// 1 s to 10 min: below, one lost packet decides; above, nobody waits.
fn parse_connect_timeout(text: &str) -> Result<Duration, String> {
    let time = parse_duration(text).map_err(|error| error.to_string())?;
    let allowed = Duration::from_secs(1)..=Duration::from_secs(600);
    if allowed.contains(&time) { Ok(time) } else { Err("expected 1s to 10m".into()) }
}

/// 1 s to 1 h: the protocol's own limit may be tightened, not widened (spec/tunnel.md C8).
fn parse_rekey_after(text: &str) -> Result<Duration, String> {
    let time = parse_duration(text).map_err(|error| error.to_string())?;
    let allowed = Duration::from_secs(1)..=Duration::from_secs(3600);
    if allowed.contains(&time) { Ok(time) } else { Err("expected 1s to 1h".into()) }
}

/// 1 s to 2 min: registries forget nodes after 3 min.
fn parse_keepalive(text: &str) -> Result<Duration, String> {
    let time = parse_duration(text).map_err(|error| error.to_string())?;
    let allowed = Duration::from_secs(1)..=Duration::from_secs(120);
    if allowed.contains(&time) { Ok(time) } else { Err("expected 1s to 2m".into()) }
}

/// As `openssl x509 -fingerprint -sha256` prints it, with or without the colons.
pub(crate) fn parse_pin(text: &str) -> Result<[u8; 32], String> {
    let mut pin = [0; 32];
    hex::decode_to_slice(text.replace(':', ""), &mut pin)
        .map_err(|_| "the SHA-256 of a certificate has 64 hex digits".to_owned())?;
    Ok(pin)
}

/// A statically introduced peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Introduction {
    pub(crate) address: pilotage::Address,
    pub(crate) at: SocketAddr,
    pub(crate) key: Option<[u8; 32]>,
}

impl std::str::FromStr for Introduction {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (peer, key) = match text.split_once('=') {
            Some((peer, key)) => (peer, Some(parse_key(key)?)),
            None => (text, None),
        };
        match peer.parse::<Peer>().map_err(|error| error.to_string())? {
            Peer::At(address, at) => Ok(Self { address, at, key }),
            _ => Err("expected ADDRESS@IP:PORT, optionally followed by =KEY".into()),
        }
    }
}

pub(crate) fn parse_key(text: &str) -> Result<[u8; 32], String> {
    let mut key = [0; 32];
    hex::decode_to_slice(text, &mut key).map_err(|_| "a key has 64 hex digits".to_owned())?;
    Ok(key)
}

/// `up`
#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    #[command(flatten)]
    pub(crate) skills: SkillArgs,
    #[command(flatten)]
    pub(crate) records: RecordsArgs,
    /// Directory for received files [default: inbox in the state directory]
    #[arg(long, value_name = "DIR")]
    pub(crate) inbox: Option<PathBuf>,
    /// How far others may fill that directory; each file counts 4 KiB at least
    #[arg(long, value_name = "SIZE", default_value = "64GiB", value_parser = parse_size)]
    pub(crate) inbox_limit: u64,
    /// Do not accept files
    #[arg(long, conflicts_with = "inbox")]
    pub(crate) no_files: bool,
    /// Replace files of the same name
    #[arg(long)]
    pub(crate) force: bool,
    /// Flush received files to the disk before confirming them
    #[arg(long)]
    pub(crate) fsync: bool,
    /// Answer only trusted nodes and those that share a network [a private node at a registry of the reference always does]
    #[arg(long)]
    pub(crate) guard: bool,
    /// Serve the local socket that pilotctl and Pilot drivers speak; its folder must be closed to others [default: none]
    #[arg(long, value_name = "PATH", env = "PILOTAGE_IPC")]
    pub(crate) ipc: Option<PathBuf>,
    /// Serve names to other nodes (port 53)
    #[arg(long, env = "PILOTAGE_NAMESERVER")]
    pub(crate) nameserver: bool,
    /// Do not serve this; may be repeated
    #[arg(long, value_enum, value_name = "SERVICE")]
    pub(crate) without: Vec<ServiceName>,
    /// Take tasks from nodes with a lower polo score than ours, too
    #[arg(long)]
    pub(crate) ignore_polo: bool,
    /// End when standard input ends (for a parent process)
    #[arg(long)]
    pub(crate) exit_with_stdin: bool,
}

/// `id`
#[derive(Debug, Args)]
pub(crate) struct IdArgs {
    #[command(subcommand)]
    pub(crate) action: IdAction,
}

/// `id …`
#[derive(Debug, Subcommand)]
pub(crate) enum IdAction {
    /// Show address, fingerprints and public key
    Show,
    /// Make a new identity
    New {
        /// Replace the identity that is there: its address is lost
        #[arg(long)]
        force: bool,
    },
}

/// `trust`
#[derive(Debug, Args)]
pub(crate) struct TrustArgs {
    #[command(subcommand)]
    pub(crate) action: TrustAction,
}

/// `trust …`
#[derive(Debug, Subcommand)]
pub(crate) enum TrustAction {
    /// Ask a node to trust this one; if it asked before, both are agreed
    Request {
        /// Name, address or node number
        peer: String,
        /// What the other operator reads
        #[arg(long, value_name = "TEXT", default_value = "")]
        why: String,
    },
    /// Trust a node that asked
    Approve {
        /// Name, address or node number
        peer: String,
    },
    /// Turn down a node that asked
    Reject {
        /// Name, address or node number
        peer: String,
        /// What the other operator reads
        #[arg(long, value_name = "TEXT", default_value = "")]
        reason: String,
    },
    /// Trust a node no more, or take a request back
    Revoke {
        /// Name, address or node number
        peer: String,
    },
    /// Show trusted nodes
    List,
    /// Show requests that wait: others' for our answer, ours for theirs
    Pending,
}

/// `ping`
#[derive(Debug, Args)]
pub(crate) struct PingArgs {
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    /// Whom
    pub(crate) peer: Peer,
    /// How often; 0 = until Ctrl-C
    #[arg(short, long, default_value_t = 4)]
    pub(crate) count: u64,
    /// Time between two
    #[arg(short, long, value_name = "TIME", default_value = "1s", value_parser = parse_duration)]
    pub(crate) interval: Duration,
    /// How long to wait for each answer, or with --until-direct in all [default: 5s, or 30s in all]
    #[arg(short, long, value_name = "TIME", value_parser = parse_duration)]
    pub(crate) timeout: Option<Duration>,
    /// Ping until the path is a direct one, and fail if it does not become one; --count and --interval do not count
    #[arg(long)]
    pub(crate) until_direct: bool,
}

/// `send`
#[derive(Debug, Args)]
pub(crate) struct SendArgs {
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    /// To whom
    pub(crate) peer: Peer,
    /// What; - = standard input
    #[arg(value_name = "FILE", required = true)]
    pub(crate) files: Vec<PathBuf>,
    /// Name for the receiver, where one file is sent [default: the file's own, or stdin]
    #[arg(long = "as", value_name = "NAME")]
    pub(crate) as_name: Option<String>,
    /// How many of several files are under way at a time, each in a stream of its own
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) parallel: u16,
    /// Use the data exchange of draft-01 (port 1001, 16 MiB at most) [default: only where the peer is no Pilotage node]
    #[arg(long)]
    pub(crate) draft: bool,
}

/// `recv`
#[derive(Debug, Args)]
pub(crate) struct RecvArgs {
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    /// Directory for the files
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub(crate) dir: PathBuf,
    /// Store the one file here whatever its name; - = standard output (before it is verified)
    #[arg(short, long, value_name = "FILE", conflicts_with = "dir")]
    pub(crate) output: Option<PathBuf>,
    /// How many files; 0 = until Ctrl-C
    #[arg(short, long, default_value_t = 1)]
    pub(crate) count: u64,
    /// Replace files that exist
    #[arg(long)]
    pub(crate) force: bool,
    /// Flush to the disk before confirming
    #[arg(long)]
    pub(crate) fsync: bool,
}

/// The port for joining standard input and output (draft-01 §8.1).
const STDIO_PORT: u16 = 1000;

/// `listen`
#[derive(Debug, Args)]
pub(crate) struct ListenArgs {
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    /// Port, 1 to 65535
    #[arg(default_value_t = STDIO_PORT, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) port: u16,
}

/// `connect`
#[derive(Debug, Args)]
pub(crate) struct ConnectArgs {
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    /// To whom
    pub(crate) peer: Peer,
    /// Port, 1 to 65535
    #[arg(default_value_t = STDIO_PORT, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) port: u16,
}

/// `bench`
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    /// With whom (it must run `pilotage up`)
    pub(crate) peer: Peer,
    /// Bytes each way; 0 = leave out
    #[arg(long, default_value = "64MiB", value_parser = parse_size)]
    pub(crate) size: u64,
    /// Request/reply round trips; 0 = leave out
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub(crate) round_trips: u32,
    /// Bytes of a request and of a reply
    #[arg(long, value_name = "SIZE", default_value = "64", value_parser = parse_size)]
    pub(crate) message: u64,
    /// Datagrams to send; 0 = leave out
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub(crate) datagrams: u32,
    /// Bytes of a datagram
    #[arg(long, value_name = "SIZE", default_value = "1000", value_parser = parse_size)]
    pub(crate) datagram_size: u64,
}

/// `decode`
#[derive(Debug, Args)]
pub(crate) struct DecodeArgs {
    /// Hex digits, a file (pcap, pcapng, raw or hex), or - for standard input
    pub(crate) input: Option<String>,
    /// How to read it
    #[arg(long, value_enum, default_value_t = InputKind::Auto)]
    pub(crate) input_type: InputKind,
    /// Session key (64 hex digits) to open PILS frames with; may be repeated
    #[arg(long, value_name = "HEX", value_parser = parse_key)]
    pub(crate) key: Vec<[u8; 32]>,
    /// Show also captured UDP datagrams that are not of the Pilot Protocol
    #[arg(long)]
    pub(crate) all: bool,
    /// Stop after this many datagrams
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<u64>,
}

/// Forms of input of `decode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum InputKind {
    /// Find out
    Auto,
    /// One datagram per line, as hex digits
    Hex,
    /// One datagram, as it is
    Raw,
    /// A capture file (pcap or pcapng)
    Pcap,
}

/// `demo`
#[derive(Debug, Clone, Args)]
pub(crate) struct DemoArgs {
    /// File to send [default: made on the spot from the seed]
    #[arg(long, value_name = "PATH", conflicts_with = "size")]
    pub(crate) file: Option<PathBuf>,
    /// Size of the file that is made
    #[arg(long, default_value = "256MiB", value_parser = parse_size)]
    pub(crate) size: u64,
    /// Seed of the file that is made
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Request/reply round trips of 64 bytes
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub(crate) round_trips: u32,
    /// Datagrams in the burst
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub(crate) datagrams: u32,
    /// Keep the state directories, the received file and the logs
    #[arg(long)]
    pub(crate) keep: bool,
}

/// `demo-sender`
#[derive(Debug, Args)]
pub(crate) struct DemoSenderArgs {
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    /// To whom
    pub(crate) peer: Peer,
    /// What
    pub(crate) file: PathBuf,
    #[arg(long)]
    pub(crate) round_trips: u32,
    #[arg(long)]
    pub(crate) datagrams: u32,
    /// End when standard input ends
    #[arg(long)]
    pub(crate) exit_with_stdin: bool,
}

/// `completions`
#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// For which shell
    #[arg(value_enum)]
    pub(crate) shell: clap_complete::Shell,
}

#[cfg(test)]
mod tests {
    use super::gateway::PeerPort;
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn introductions() {
        let text = "0:0000.ABCD.1234@127.0.0.1:4000";
        assert_eq!(text.parse::<Introduction>().unwrap().key, None);
        let key = format!("{text}={}", "ab".repeat(32));
        assert_eq!(key.parse::<Introduction>().unwrap().key, Some([0xab; 32]));
        for bad in ["bob", "0:0000.ABCD.1234", &format!("{text}=ab")] {
            assert!(bad.parse::<Introduction>().is_err(), "{bad}");
        }
    }

    #[test]
    fn ports_of_peers() {
        for (text, peer) in [
            ("bob:80", "bob"),
            ("0:0000.ABCD.1234:80", "0:0000.ABCD.1234"),
            ("0:0000.ABCD.1234@[::1]:4000:80", "0:0000.ABCD.1234@[::1]:4000"),
        ] {
            let parsed: PeerPort = text.parse().unwrap();
            assert_eq!((parsed.peer.to_string().as_str(), parsed.port), (peer, 80));
        }
        for bad in ["bob", "bob:", "bob:0", "bob:65536", ":80", "0:0000.ABCD.1234"] {
            assert!(bad.parse::<PeerPort>().is_err(), "{bad}");
        }
    }

    #[test]
    fn times_of_a_node_are_bounded() {
        assert_eq!(parse_rekey_after("2s"), Ok(Duration::from_secs(2)));
        assert_eq!(parse_connect_timeout("1m"), Ok(Duration::from_secs(60)));
        for bad in ["0", "10ms", "61m", "soon"] {
            assert!(parse_rekey_after(bad).is_err() && parse_connect_timeout(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn globals_work_on_both_sides_of_the_command() {
        for line in [&["pilotage", "--json", "status"][..], &["pilotage", "status", "--json"]] {
            assert!(Cli::try_parse_from(line).unwrap().global.json);
        }
    }
}
