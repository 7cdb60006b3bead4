//! Arguments of `pilotage network`.

use clap::{Args, Subcommand, ValueEnum};
use pilotage::Peer;

/// `network`
#[derive(Debug, Args)]
pub(crate) struct NetworkArgs {
    /// The hub's or the network's admin token: acts without being a member
    #[arg(long, global = true, value_name = "TOKEN", env = "PILOTAGE_ADMIN_TOKEN", hide_env_values = true)]
    pub(crate) admin_token: Option<String>,
    /// This node's id, if no node runs and the hub is not of our kind
    #[arg(long, global = true, value_name = "ID", env = "PILOTAGE_NODE_ID")]
    pub(crate) node_id: Option<u32>,
    #[command(subcommand)]
    pub(crate) action: NetworkAction,
}

/// What to do with networks. NETWORK is a number or a name.
#[derive(Debug, Subcommand)]
pub(crate) enum NetworkAction {
    /// Make a network (needs the hub's admin token); this node owns it
    Create {
        /// Name: a-z, 0-9 and -
        name: String,
        /// Who may enter
        #[arg(long, value_enum, default_value_t = JoinRule::Open)]
        rule: JoinRule,
        /// Token that lets others enter, for --rule token
        #[arg(long, value_name = "TOKEN", required_if_eq("rule", "token"))]
        token: Option<String>,
        /// Admin token for this network alone
        #[arg(long, value_name = "TOKEN")]
        network_admin_token: Option<String>,
    },
    /// Enter a network
    Join {
        /// Which
        network: String,
        /// Its token
        #[arg(long, value_name = "TOKEN")]
        token: Option<String>,
    },
    /// Leave a network
    Leave {
        /// Which
        network: String,
    },
    /// Show all networks
    List,
    /// Show the members of a network
    Members {
        /// Which
        network: String,
    },
    /// Invite a node to a network
    Invite {
        /// Which
        network: String,
        /// Whom
        peer: Peer,
    },
    /// Show the invitations of this node
    Invites,
    /// Take an invitation
    Accept {
        /// To which
        network: String,
    },
    /// Decline an invitation
    Decline {
        /// To which
        network: String,
    },
    /// Show or change the policy of a network
    Policy {
        /// Which
        network: String,
        /// Most members; 0 = as many as the hub allows
        #[arg(long, value_name = "N")]
        max_members: Option<u32>,
        /// Ports that members may call, such as 7,80
        #[arg(long, value_name = "PORTS", value_delimiter = ',')]
        allowed_ports: Option<Vec<u16>>,
        /// What it is for
        #[arg(long, value_name = "TEXT")]
        description: Option<String>,
    },
    /// Remove a member
    Kick {
        /// Of which
        network: String,
        /// Whom
        peer: Peer,
    },
    /// Make a member an admin
    Promote {
        /// Of which
        network: String,
        /// Whom
        peer: Peer,
    },
    /// Make an admin a member
    Demote {
        /// Of which
        network: String,
        /// Whom
        peer: Peer,
    },
    /// Give a network to another member
    Transfer {
        /// Which
        network: String,
        /// To whom
        peer: Peer,
    },
    /// Change the name of a network
    Rename {
        /// Which
        network: String,
        /// The new name
        name: String,
    },
    /// End a network
    Delete {
        /// Which
        network: String,
    },
}

/// Who may enter a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum JoinRule {
    /// Everybody
    Open,
    /// Who knows the token, or is invited
    Token,
    /// Who is invited
    Invite,
}
