//! Arguments of discovery by capability: `find`, `call`, and what `up` declares.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use pilotage::Peer;

use super::NodeArgs;
use crate::units::parse_duration;

/// What is looked for and who is asked.
#[derive(Debug, Args)]
pub(crate) struct WishArgs {
    /// Ask this node; may be repeated [default: all nodes that this one knows]
    #[arg(long = "ask", value_name = "PEER")]
    pub(crate) ask: Vec<Peer>,
    /// Ask the members of this network of the hub, too: number or name
    #[arg(long, value_name = "NETWORK")]
    pub(crate) network: Option<String>,
    /// How long answers are waited for
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = parse_duration)]
    pub(crate) wait: Duration,
    /// File with {"model": NAME, "values": [384 numbers]}: compare with agents' vectors of the same model
    #[arg(long, value_name = "FILE")]
    pub(crate) vector: Option<PathBuf>,
    /// Capabilities (cap:finance.fx) and words, in any order
    #[arg(required = true, value_name = "cap:TAG|WORDS")]
    pub(crate) what: Vec<String>,
}

/// `find`
#[derive(Debug, Args)]
pub(crate) struct FindArgs {
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    #[command(flatten)]
    pub(crate) wish: WishArgs,
    /// Most answers
    #[arg(short = 'n', long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub(crate) limit: u8,
    /// Show for each answer what it fits by, whether it is there and what speaks for it; and who was asked
    #[arg(long)]
    pub(crate) explain: bool,
    /// Fetch and show the descriptor (A2A agent card) of the best answer
    #[arg(long)]
    pub(crate) describe: bool,
}

/// `call`
#[derive(Debug, Args)]
pub(crate) struct CallArgs {
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    #[command(flatten)]
    pub(crate) wish: WishArgs,
    /// What the provider gets (4 MiB at most); - = standard input [default: nothing]
    #[arg(long, value_name = "TEXT")]
    pub(crate) data: Option<String>,
    /// The same from a file
    #[arg(long, value_name = "FILE", conflicts_with = "data")]
    pub(crate) data_file: Option<PathBuf>,
    /// Doing it twice does no harm: go to the next provider even if one may have begun
    #[arg(long)]
    pub(crate) idempotent: bool,
    /// Providers to try at most
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=8))]
    pub(crate) attempts: u8,
    /// How long one provider may take
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_duration)]
    pub(crate) time: Duration,
}

/// What `up` declares.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Skill options")]
pub(crate) struct SkillArgs {
    /// Declare the skills of this file (TOML) and serve calls of them
    #[arg(long, value_name = "FILE", env = "PILOTAGE_SKILLS")]
    pub(crate) skills: Option<PathBuf>,
    /// Declare a capability; with =HOST:PORT, lead its calls to that TCP service. May be repeated
    #[arg(long = "skill", value_name = "TAG[=HOST:PORT]", conflicts_with = "skills")]
    pub(crate) skill: Vec<String>,
    /// What people and searches read about them, 200 bytes at most
    #[arg(long, value_name = "TEXT", requires = "skill")]
    pub(crate) summary: Option<String>,
    /// Put the declaration into the index of this node; may be repeated
    #[arg(long, value_name = "PEER")]
    pub(crate) announce: Vec<Peer>,
    /// Do not put the declaration into the hub's index and into those of groups that fit
    #[arg(long)]
    pub(crate) no_announce: bool,
    /// Keep an index of what other nodes announce, at most so many
    #[arg(long, value_name = "AGENTS", num_args = 0..=1, default_missing_value = "200000")]
    pub(crate) index: Option<usize>,
    /// The index is that of the group of this interest: agents that have the tag or a special case of it join by themselves
    #[arg(long, value_name = "TAG", requires = "index")]
    pub(crate) group: Option<String>,
}
