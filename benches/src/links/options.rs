//! What can be chosen: links, peers, works.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use pilotage_lab::{LinkConfig, Queue};

/// Compares transports over emulated links: goodput of cold transfers, 64 KB fetches, fairness, added delay.
/// Needs root and /dev/net/tun; without them it says so and exits with code 77.
#[derive(Debug, Clone, Parser)]
#[command(name = "links", version)]
pub struct Options {
    /// One repeat, the shorter transfers, and only the peers that matter most
    #[arg(long)]
    pub quick: bool,
    /// Only these works (comma-separated)
    #[arg(long, value_enum, value_delimiter = ',')]
    pub only: Vec<Work>,
    /// Only these peers, such as `pilotage-bbr,tcp-cubic` (comma-separated)
    #[arg(long, value_delimiter = ',')]
    pub peers: Vec<Peer>,
    /// Only these links (comma-separated)
    #[arg(long, value_enum, value_delimiter = ',')]
    pub links: Vec<LinkName>,
    /// A link of your own instead, such as `rate=50mbit,delay=10ms,loss=0.5%`
    #[arg(long)]
    pub link: Option<LinkConfig>,
    /// Bytes of a transfer over the link of your own
    #[arg(long, default_value = "10MB", value_parser = crate::settings::parse_size)]
    pub size: u64,
    /// Repeats of every run; they are interleaved [default: 3, with --quick 1]
    #[arg(long)]
    pub repeats: Option<u32>,
    /// Transfers that take longer are cut, and counted with what has arrived, in seconds
    #[arg(long, default_value_t = 20)]
    pub limit: u64,
    /// Parallel fetches
    #[arg(long, default_value_t = 20)]
    pub parallel: u32,
    /// Both ends get real-time priority (below the emulator's): for a machine that is busy with other work
    #[arg(long)]
    pub real_time: bool,
    /// Lines of JSON instead of tables
    #[arg(long)]
    pub json: bool,
    /// Internal: run as one side, as written by the parent
    #[arg(long, hide = true)]
    pub side: Option<String>,
    /// Internal: address of the server
    #[arg(long, hide = true)]
    pub server: Option<SocketAddr>,
    /// Internal: address of the client
    #[arg(long, hide = true)]
    pub client: Option<SocketAddr>,
    /// Internal: folder for the certificate
    #[arg(long, hide = true)]
    pub scratch: Option<PathBuf>,
}

/// A work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Work {
    /// Cold transfers
    Transfer,
    /// Cold transfers of four times the size
    Long,
    /// 64 KB fetches in parallel
    Fetch,
    /// Shares of flows that compete
    Fairness,
    /// Delay that a transfer adds to a ping
    Delay,
}

impl Options {
    /// Whether this work is wanted.
    pub(super) fn wants(&self, work: Work) -> bool {
        if self.only.is_empty() { !(self.quick && work == Work::Long) } else { self.only.contains(&work) }
    }

    /// How often everything is done.
    pub(super) fn repeats(&self) -> u32 {
        self.repeats.unwrap_or(if self.quick { 1 } else { 3 })
    }

    /// The peers of this run, of which `usual` is what `--quick` takes.
    pub(super) fn chosen(&self, all: &[&str], quick: &[&str]) -> Vec<Peer> {
        if !self.peers.is_empty() {
            return self.peers.clone();
        }
        let names = if self.quick { quick } else { all };
        names.iter().filter_map(|name| name.parse().ok()).collect()
    }

    /// The longest time of one transfer.
    pub(super) fn limit(&self) -> Duration {
        Duration::from_secs(self.limit.clamp(2, 600))
    }
}

/// The code that a peer runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// Ours, with the draft's encryption.
    Pilotage,
    /// Ours in the secure mode S1.
    PilotageS1,
    /// Kernel TCP.
    Tcp,
    /// TLS 1.3 over kernel TCP.
    Tls,
    /// quinn.
    Quinn,
    /// s2n-quic.
    S2n,
}

/// Congestion control.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Controller {
    /// AIMD.
    Newreno,
    /// RFC 9438.
    Cubic,
    /// By a model of the path.
    Bbr,
}

/// A transport with its congestion control: `pilotage-bbr`, `quinn-cubic`, `quinn-default-bbr`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Peer {
    /// Whose code.
    pub family: Family,
    /// Which controller.
    pub controller: Controller,
    /// Large windows and socket buffers; QUIC only.
    pub tuned: bool,
}

impl Family {
    /// Whether it is ours.
    pub(super) fn is_ours(self) -> bool {
        matches!(self, Self::Pilotage | Self::PilotageS1)
    }
}

const FAMILIES: [(&str, Family); 6] = [
    ("pilotage", Family::Pilotage),
    ("pilotage-s1", Family::PilotageS1),
    ("tcp", Family::Tcp),
    ("tls", Family::Tls),
    ("quinn", Family::Quinn),
    ("s2n", Family::S2n),
];
const CONTROLLERS: [(&str, Controller); 3] =
    [("newreno", Controller::Newreno), ("cubic", Controller::Cubic), ("bbr", Controller::Bbr)];

impl FromStr for Peer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let unknown = || {
            format!(
                "`{text}` is no peer: {{pilotage,pilotage-s1}}-{{newreno,cubic,bbr}}, {{tcp,tls,quinn,quinn-default,s2n,s2n-default}}-{{cubic,bbr}}"
            )
        };
        let (rest, controller) = text.rsplit_once('-').ok_or_else(unknown)?;
        let (family, tuned) = rest.strip_suffix("-default").map_or((rest, true), |family| (family, false));
        let family = FAMILIES.iter().find(|(name, _)| *name == family).ok_or_else(unknown)?.1;
        let controller = CONTROLLERS.iter().find(|(name, _)| *name == controller).ok_or_else(unknown)?.1;
        let quic = matches!(family, Family::Quinn | Family::S2n);
        if (controller == Controller::Newreno && !family.is_ours()) || (!tuned && !quic) {
            return Err(unknown());
        }
        Ok(Self { family, controller, tuned })
    }
}

impl Controller {
    /// As in names, and as the kernel calls it.
    pub(super) fn name(self) -> &'static str {
        CONTROLLERS.iter().find(|(_, c)| *c == self).map_or("", |(name, _)| name)
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = FAMILIES.iter().find(|(_, family)| *family == self.family).map_or("", |(name, _)| name);
        let default = if self.tuned { "" } else { "-default" };
        f.pad(&format!("{family}{default}-{}", self.controller.name()))
    }
}

/// A link of the comparison. Delays are round trips; loss and reordering are those of each direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum LinkName {
    /// 100 Mbit/s, 40 ms
    #[value(name = "100m-40ms")]
    Clean,
    /// 100 Mbit/s, 40 ms, 1 % loss
    #[value(name = "100m-40ms-1pct")]
    Lossy,
    /// 20 Mbit/s, 100 ms, 2 % loss
    #[value(name = "20m-100ms-2pct")]
    Radio,
    /// 500 Mbit/s, 10 ms, 0.1 % loss
    #[value(name = "500m-10ms-0.1pct")]
    Fast,
    /// 10 Mbit/s, 30 ms, a queue of six packets
    #[value(name = "10m-30ms-shallow")]
    Shallow,
    /// 100 Mbit/s, 40 ms, 5 % of the packets held back by 2 ms
    #[value(name = "100m-40ms-reorder5")]
    Reordering,
}

impl LinkName {
    /// As on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Its settings, for each direction.
    pub fn config(self) -> LinkConfig {
        let ms = Duration::from_millis;
        let wide = LinkConfig::new(100_000_000, ms(20));
        match self {
            Self::Clean => wide,
            Self::Lossy => wide.losing(0.01),
            Self::Radio => LinkConfig::new(20_000_000, ms(50)).losing(0.02),
            Self::Fast => LinkConfig::new(500_000_000, ms(5)).losing(0.001),
            Self::Shallow => LinkConfig { queue: Queue::Bytes(9_000), ..LinkConfig::new(10_000_000, ms(15)) },
            Self::Reordering => LinkConfig { reorder: 0.05, reorder_by: ms(2), ..wide },
        }
    }

    /// Bytes of a transfer.
    pub fn size(self) -> u64 {
        match self {
            Self::Clean | Self::Reordering => 20_000_000,
            Self::Lossy => 8_000_000,
            Self::Radio => 2_500_000,
            Self::Fast => 50_000_000,
            Self::Shallow => 4_000_000,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_read_and_written() {
        for name in
            ["pilotage-newreno", "pilotage-s1-bbr", "tcp-bbr", "tls-cubic", "quinn-default-bbr", "s2n-cubic"]
        {
            assert_eq!(name.parse::<Peer>().expect(name).to_string(), name);
        }
        for name in ["tcp-newreno", "tcp-default-bbr", "pilotage", "quinn-default", "noq-bbr"] {
            assert!(name.parse::<Peer>().is_err(), "{name}");
        }
    }

    #[test]
    fn the_links_are_those_of_the_table() {
        assert_eq!(LinkName::Shallow.config().to_string(), "rate=10mbit,delay=15ms,queue=9000b");
        assert_eq!(LinkName::Lossy.config().queue_bounds().0, 500_000);
        assert_eq!(LinkName::Fast.name(), "500m-10ms-0.1pct");
    }
}
