//! Arguments of `pilotage record`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

/// `record`
#[derive(Debug, Args)]
pub(crate) struct RecordArgs {
    #[command(subcommand)]
    pub(crate) action: RecordAction,
}

/// `record …`
#[derive(Debug, Subcommand)]
pub(crate) enum RecordAction {
    /// Find an agent's record at the hub and verify it
    Show(RecordShowArgs),
    /// Find who holds a hostname or an address, and verify the claim; there need not be a record
    Holder(RecordShowArgs),
    /// Claim this agent's address (and a hostname) at the hub, and publish its record there
    Publish(RecordPublishArgs),
    /// Hold the logs that hubs of one registry show against each other, against what they have shown before, and against what others have
    /// saved: one that shows different logs to different people is convicted (exit code 4)
    Heads(RecordHeadsArgs),
}

/// `record heads`
#[derive(Debug, Args)]
pub(crate) struct RecordHeadsArgs {
    /// Hubs to ask, each with its registry's port [default: the configured one]
    #[arg(value_name = "HOST[:PORT]")]
    pub(crate) hub: Vec<String>,
    /// What somebody has saved with --save; may be given several times
    #[arg(long, value_name = "FILE")]
    pub(crate) file: Vec<PathBuf>,
    /// Write the heads and the keys that signed them into a file, for others to compare with
    #[arg(long, value_name = "FILE")]
    pub(crate) save: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) keys: RegistryKeys,
}

/// Which keys sign the hub's log.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct RegistryKeys {
    /// Key of the hub's node that signs its log, 64 hex digits, as the hub prints it when it starts; may be given several
    /// times for a cluster, of which a majority has to sign. Without it the keys that the hub shows are believed and remembered
    #[arg(long, value_name = "KEY", value_parser = parse_key)]
    pub(crate) registry_key: Vec<[u8; 32]>,
}

/// The public DHT. The options are there in every build, so that a build without it can say so.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct MainlineArgs {
    /// Use the Mainline DHT, which everybody can read: `up --records` keeps this node's record there if the node is not private,
    /// and agents whose keys are known are looked up there last of all. Needs a build with the feature `mainline`
    #[arg(long, env = "PILOTAGE_MAINLINE")]
    pub(crate) mainline: bool,
    /// Node of the DHT to begin with; may be given several times [default: the well-known ones]
    #[arg(long, value_name = "HOST:PORT", requires = "mainline")]
    pub(crate) mainline_bootstrap: Vec<String>,
}

/// `record show`
#[derive(Debug, Args)]
pub(crate) struct RecordShowArgs {
    /// Whose: a hostname, an address (0:0000.1A2B.3C4D), a long fingerprint (pb1…), or a key (64 hex digits)
    #[arg(value_name = "WHO")]
    pub(crate) who: String,
    /// In which network
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    pub(crate) network: u16,
    #[command(flatten)]
    pub(crate) keys: RegistryKeys,
    #[command(flatten)]
    pub(crate) mainline: MainlineArgs,
}

/// `record publish`
#[derive(Debug, Args)]
pub(crate) struct RecordPublishArgs {
    /// Hostname to claim as well
    #[arg(long, value_name = "NAME")]
    pub(crate) hostname: Option<String>,
    /// In which network
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    pub(crate) network: u16,
    /// What the agent can do, such as finance.fx.history; may be given several times
    #[arg(long, value_name = "TAG")]
    pub(crate) tag: Vec<String>,
    /// One or two sentences about the agent, at most 200 bytes
    #[arg(long, value_name = "TEXT")]
    pub(crate) summary: Option<String>,
    /// Where the agent listens; may be given several times. Everybody can see it
    #[arg(long, value_name = "IP:PORT")]
    pub(crate) endpoint: Vec<SocketAddr>,
    /// Relay over which the agent can be reached; may be given several times
    #[arg(long, value_name = "IP:PORT")]
    pub(crate) relay: Vec<SocketAddr>,
    /// BLAKE3 of the agent's full descriptor, 64 hex digits
    #[arg(long, value_name = "HASH", value_parser = parse_key)]
    pub(crate) descriptor: Option<[u8; 32]>,
    /// Least that a peer has to speak: 0 anything, 1 encryption of the draft, 2 secure mode
    #[arg(long, value_name = "LEVEL", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=2))]
    pub(crate) min_sec: u8,
    /// Not to be found by a search
    #[arg(long)]
    pub(crate) private: bool,
    /// Hours for which the record is good if no newer one comes
    #[arg(long, value_name = "HOURS", default_value_t = 24, value_parser = clap::value_parser!(u32).range(1..=720))]
    pub(crate) hours: u32,
    /// Say that the agent is gone for good
    #[arg(long, conflicts_with_all = ["hostname", "tag", "summary", "endpoint", "relay", "descriptor"])]
    pub(crate) gone: bool,
    #[command(flatten)]
    pub(crate) keys: RegistryKeys,
}

/// `up --records`
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Record options")]
pub(crate) struct RecordsArgs {
    /// Publish this agent's record at the registry's nodes, keep it there, and remember the records of agents that are met:
    /// they are found again when no hub answers
    #[arg(long, env = "PILOTAGE_RECORDS")]
    pub(crate) records: bool,
    /// Time between two refreshes of the record
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = crate::units::parse_duration, requires = "records")]
    pub(crate) record_refresh: Duration,
    /// Neither answer friends who look for records nor ask them (port 1016)
    #[arg(long, requires = "records")]
    pub(crate) no_friends: bool,
    #[command(flatten)]
    pub(crate) keys: RegistryKeys,
    #[command(flatten)]
    pub(crate) mainline: MainlineArgs,
}

/// `watch`
#[derive(Debug, Args)]
pub(crate) struct WatchArgs {
    /// Whose record: a hostname, an address (0:0000.1A2B.3C4D), or a long fingerprint (pb1…)
    #[arg(value_name = "WHO", required_unless_present = "all")]
    pub(crate) who: Option<String>,
    /// All records that are not private
    #[arg(long, conflicts_with = "who")]
    pub(crate) all: bool,
    /// Go on from a position that an earlier watch printed, instead of beginning with what there is
    #[arg(long, value_name = "HISTORY:REVISION", value_parser = parse_position)]
    pub(crate) from: Option<(u64, u64)>,
    /// End after so many records
    #[arg(long, value_name = "NUMBER")]
    pub(crate) count: Option<u64>,
    #[command(flatten)]
    pub(crate) keys: RegistryKeys,
}

fn parse_position(text: &str) -> Result<(u64, u64), String> {
    let wrong = || "HISTORY:REVISION is needed, as `watch` prints it".to_owned();
    let (history, revision) = text.split_once(':').ok_or_else(wrong)?;
    let history = u64::from_str_radix(history, 16).map_err(|_| wrong())?;
    Ok((history, revision.parse().map_err(|_| wrong())?))
}

fn parse_key(text: &str) -> Result<[u8; 32], String> {
    let mut key = [0; 32];
    hex::decode_to_slice(text, &mut key).map_err(|_| "64 hex digits are needed".to_owned())?;
    Ok(key)
}
