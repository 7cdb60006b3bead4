//! Arguments by which a hub is one node of a registry cluster.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand};

/// `hub --cluster …`
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct ClusterArgs {
    /// Be a node of a registry cluster that agrees on names, with this port (UDP, and TCP for who joins); without --join a
    /// new cluster begins, unless the state directory belongs to one
    #[arg(long, value_name = "IP:PORT", env = "PILOTAGE_CLUSTER")]
    pub(crate) cluster: Option<SocketAddr>,
    /// Join the cluster of this host (its --cluster port); may be given several times, one that answers is enough
    #[arg(long, value_name = "HOST:PORT", requires = "cluster")]
    pub(crate) join: Vec<String>,
    /// File with the secret that lets hubs join: the same on all [default: cluster/token in the state directory, made by
    /// the first hub]
    #[arg(long, value_name = "FILE", requires = "cluster")]
    pub(crate) cluster_token_file: Option<PathBuf>,
    /// Address of the cluster port for the other hubs, if they see another one
    #[arg(long, value_name = "IP:PORT", requires = "cluster")]
    pub(crate) cluster_advertise: Option<SocketAddr>,
    /// This hub's share of records, relative to the others'
    #[arg(long, value_name = "N", default_value_t = 1, requires = "cluster", value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) cluster_weight: u16,
}

/// What is asked of a running hub, or done with its databases.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum HubAction {
    /// Show nodes, requests, claims, stores, index and cluster of the hub that runs in the state directory
    Status,
    /// Remove a member from the cluster for good; it can come back only with an empty state directory
    Remove {
        /// Its id, as `hub status` shows it
        #[arg(value_name = "ID")]
        id: String,
    },
    /// Write the map of the registry's nodes, by which agents know where records are; copy it to the hubs' --map
    Map(MapArgs),
    /// Write the databases of the running hub into one file, as they are at one moment; keys are inside
    Backup {
        /// The file; one that is there is replaced when the new one is complete
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Verify a backup and put its databases where a hub of this state directory looks for them; the hub must not run
    Restore {
        /// What `hub backup` wrote
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Take the place of databases that are there; they are kept with .before behind their names
        #[arg(long)]
        force: bool,
        /// Begin a new cluster with it, whether it is of a cluster that is lost or of a hub that stood alone
        #[arg(long)]
        new_cluster: bool,
        #[command(flatten)]
        files: HubFiles,
    },
    /// Make this hub the first node of a new cluster, with all names, addresses and networks that it has granted; the hub must not run,
    /// and is started with --cluster afterwards
    ToCluster {
        #[command(flatten)]
        files: HubFiles,
    },
}

/// Where the databases of a hub that does not run are.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct HubFiles {
    /// Database of the registry, if the hub is started with --store
    #[arg(long, value_name = "FILE")]
    pub(crate) store: Option<PathBuf>,
    /// Database of records and claims, if the hub is started with --claims-store
    #[arg(long, value_name = "FILE")]
    pub(crate) claims_store: Option<PathBuf>,
}

/// `hub map`
#[derive(Debug, Clone, Args)]
pub(crate) struct MapArgs {
    /// A node: the key that the hub prints when it starts (registry_key), and its registry's address; once for each hub
    #[arg(long, value_name = "KEY@IP:PORT", required = true, value_parser = parse_node)]
    pub(crate) node: Vec<([u8; 32], SocketAddr)>,
    /// How many nodes hold each record
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=7))]
    pub(crate) replicas: u8,
    /// Has to grow with each change
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    pub(crate) epoch: u64,
    /// Sign with the identity of the state directory, and name it as an operator, who may replace the map alone
    #[arg(long)]
    pub(crate) operator: bool,
    /// The file to write
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
}

fn parse_node(text: &str) -> Result<([u8; 32], SocketAddr), String> {
    let wrong = || "KEY@IP:PORT is needed, the key with 64 hex digits".to_owned();
    let (key, at) = text.split_once('@').ok_or_else(wrong)?;
    let mut bytes = [0; 32];
    hex::decode_to_slice(key, &mut bytes).map_err(|_| wrong())?;
    Ok((bytes, at.parse().map_err(|_| wrong())?))
}
