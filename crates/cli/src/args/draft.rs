//! The commands for the services of draft-01.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use pilotage::{Address, Peer};
use pilotage_services::task::TaskId;

use super::{MainlineArgs, NodeArgs, RegistryKeys};

/// Services of `up` that can be left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ServiceName {
    /// Port 7
    Echo,
    /// Port 1001
    Messages,
    /// Port 1002
    Events,
    /// Port 1003
    Tasks,
    /// Port 1011
    Bench,
    /// Port 1012
    Report,
}

/// `message`
#[derive(Debug, Args)]
pub(crate) struct MessageArgs {
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    /// To whom
    pub(crate) peer: Peer,
    /// What; - = standard input
    #[arg(required_unless_present = "binary")]
    pub(crate) text: Option<String>,
    /// The text is JSON, and sent as such
    #[arg(long)]
    pub(crate) json_payload: bool,
    /// Send the bytes of this file instead (16 MiB at most); - = standard input
    #[arg(long, value_name = "FILE", conflicts_with_all = ["text", "json_payload"])]
    pub(crate) binary: Option<PathBuf>,
}

/// `inbox`
#[derive(Debug, Args)]
pub(crate) struct InboxArgs {
    /// Directory of the inbox [default: inbox in the state directory]
    #[arg(long, value_name = "DIR")]
    pub(crate) inbox: Option<PathBuf>,
    /// Only so many of the latest; 0 = all
    #[arg(short, long, value_name = "N", default_value_t = 0)]
    pub(crate) count: usize,
}

/// `subscribe`
#[derive(Debug, Args)]
pub(crate) struct SubscribeArgs {
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    /// At whom
    pub(crate) peer: Peer,
    /// Which topic; * = all
    pub(crate) topic: String,
    /// How many events; 0 = until Ctrl-C
    #[arg(short, long, value_name = "N", default_value_t = 0)]
    pub(crate) count: u64,
}

/// `publish`
#[derive(Debug, Args)]
pub(crate) struct PublishArgs {
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    /// At whom
    pub(crate) peer: Peer,
    /// On which topic
    pub(crate) topic: String,
    /// What; - = standard input
    pub(crate) data: String,
}

/// `resolve`
#[derive(Debug, Args)]
pub(crate) struct ResolveArgs {
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    /// Which name, address, long fingerprint or key; with --services, which NETWORK:PORT
    #[arg(value_name = "NAME")]
    pub(crate) wanted: String,
    /// Whose nameserver to ask; without it the hub is asked, and its answer verified
    #[arg(long, value_name = "PEER")]
    pub(crate) via: Option<Peer>,
    /// It is the name of a network
    #[arg(long, requires = "via")]
    pub(crate) network: bool,
    /// Ask who offers a port in a network
    #[arg(long, conflicts_with = "network", requires = "via")]
    pub(crate) services: bool,
    #[command(flatten)]
    pub(crate) keys: RegistryKeys,
    #[command(flatten)]
    pub(crate) mainline: MainlineArgs,
}

/// `announce`
#[derive(Debug, Args)]
pub(crate) struct AnnounceArgs {
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    /// Which name
    #[arg(value_name = "NAME")]
    pub(crate) wanted: String,
    /// At whose nameserver
    #[arg(long, value_name = "PEER")]
    pub(crate) via: Peer,
    /// Our address, where it is not the one that this node has in the backbone
    #[arg(long)]
    pub(crate) address: Option<Address>,
    /// Name this network instead of our address; with --port, the network of the service
    #[arg(long, value_name = "NUMBER")]
    pub(crate) network: Option<u16>,
    /// Offer this port under the name
    #[arg(long)]
    pub(crate) port: Option<u16>,
}

/// `task`
#[derive(Debug, Args)]
pub(crate) struct TaskArgs {
    #[command(subcommand)]
    pub(crate) action: TaskAction,
}

/// `task …`
#[derive(Debug, Subcommand)]
pub(crate) enum TaskAction {
    /// Ask a peer to do something
    Submit {
        #[command(flatten)]
        node: Box<NodeArgs>,
        /// Whom
        peer: Peer,
        /// What
        description: String,
    },
    /// List tasks, the oldest first
    List {
        /// Only those that others submitted
        #[arg(long, conflicts_with = "submitted")]
        received: bool,
        /// Only those that were submitted here
        #[arg(long)]
        submitted: bool,
    },
    /// Take a received task on (within a minute)
    Accept(TaskChoice),
    /// Refuse a received task
    Decline(TaskChoice),
    /// Begin an accepted task, or the one that waits longest
    Execute {
        #[command(flatten)]
        node: Box<NodeArgs>,
        /// Which
        id: Option<TaskId>,
    },
    /// Send the results of a received task, or show those of any task
    Results {
        #[command(flatten)]
        node: Box<NodeArgs>,
        /// Which
        id: TaskId,
        /// Send this text
        #[arg(long, conflicts_with = "file")]
        text: Option<String>,
        /// Send this file (12 MiB at most)
        #[arg(long)]
        file: Option<PathBuf>,
    },
    /// Give a task up
    Cancel(TaskChoice),
}

/// One task and why.
#[derive(Debug, Args)]
pub(crate) struct TaskChoice {
    #[command(flatten)]
    pub(crate) node: Box<NodeArgs>,
    /// Which
    pub(crate) id: TaskId,
    /// What the other side reads
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub(crate) why: String,
}
