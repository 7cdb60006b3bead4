//! What is done between implementations. One file for each family; all of them check what arrived, and that
//! what the scenario is about really happened on the wire.
//!
//! The set and the figures follow the QUIC interop runner, re-made for this protocol.

pub(crate) mod cross;
mod foreign;
mod handshake;
pub(crate) mod hub;
mod lab;
mod measure;
mod meeting;
mod migration;
mod modes;
mod netns;
mod services;
mod tools;
mod transfer;

use std::borrow::Cow;
use std::net::SocketAddr;
use std::time::Duration;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::Failure;
use crate::process::Scratch;
use crate::proxy::link::Impairment;
use crate::proxy::{Change, Rebinding, Setup};
use crate::subject::{Kind, Programs};
use lab::Lab;

const MIB: usize = 1 << 20;

/// One thing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Scenario {
    /// By a hub, no impairment: three pings, all answered
    Ping,
    /// By a hub, no impairment: a short text to port 7 comes back unchanged
    Echo,
    /// By a hub, no impairment: 1 MiB, as a file between Pilotage nodes, else through the echo port
    HubTransfer,
    /// One connection over 15 ms each way
    Handshake,
    /// 2, 3 and 5 MiB one after another in one tunnel
    Transfer,
    /// 1 MiB over 750 ms each way
    LongRtt,
    /// 2,000 small streams in one tunnel
    Multiplexing,
    /// 10 MiB over a link that works 5 s and is dead 2 s
    Blackhole,
    /// 5 MiB with new keys each second
    KeyUpdate,
    /// No more bytes to an unproven address than came from it
    AmplificationLimit,
    /// 50 fresh nodes connect at 30 % loss each way, bursts of up to 3
    HandshakeLoss,
    /// 2 MiB at 2 % loss each way, bursts of up to 3
    TransferLoss,
    /// 50 fresh nodes connect at 30 % corruption each way, bursts of up to 3
    HandshakeCorruption,
    /// 2 MiB at 2 % corruption each way, bursts of up to 3
    TransferCorruption,
    /// 2 MiB over IPv6
    Ipv6,
    /// 10 MiB each way while the client's port changes after 1 s and then every 5 s
    RebindPort,
    /// 10 MiB each way while the client's address changes after 1 s and then every 5 s
    RebindAddr,
    /// 10 MiB while the path narrows from 1,500 to 1,280 bytes without a word
    MtuDrop,
    /// 10 MiB at 10 Mbit/s, 15 ms one way, 25 packets of queue
    Goodput,
    /// 25 MiB against a kernel TCP flow (CUBIC) on the same link
    CrossTraffic,
    /// Nodes of the draft only, of S1 only and of both with each other; either one restarted; nobody goes back to the draft
    SecureModes,
    /// With the reference: 64 MiB from client to server (4 MiB between reference nodes)
    StreamUp,
    /// With the reference: 64 MiB from server to client (4 MiB between reference nodes)
    StreamDown,
    /// With the reference: 64 MiB from client to server at 1 % loss and 50 ms of round trip (2 MiB if the reference sends)
    StreamLoss1,
    /// With the reference: the same from server to client
    StreamLoss1Down,
    /// With the reference: 64 MiB from client to server at 5 % loss and 50 ms of round trip (256 KiB if the reference sends)
    StreamLoss5,
    /// With the reference: the same from server to client, at 5 %
    StreamLoss5Down,
    /// With the reference: an echo before and after the server is restarted with its identity
    RestartServer,
    /// With the reference: an echo before and after the client is restarted with its identity
    RestartClient,
    /// With the reference: a stream without a word for 180 s, then an echo on it
    Idle,
    /// With the reference: both dial each other at the same moment
    Simultaneous,
    /// With the reference: five echo connections, then silence, and none is held any more
    Close,
    /// With the reference: 64 MiB (16 from the reference, 4 between reference nodes) to a reader that reads nothing for 4 s
    SlowReader,
    /// With the reference: 20 datagrams of 1,000 bytes from client to server, then 20 back
    Datagrams,
    /// With the reference: a file of 256 KiB by the data exchange on port 1001
    File,
    /// With the reference: a line to port 1000
    Stdio,
    /// With the reference: data exchange on port 1001 (text, JSON, binary)
    Messages,
    /// With the reference: an event to a subscriber by the server's port 1002
    Events,
    /// With the reference: a task submitted on port 1003
    Tasks,
    /// With the reference: trust asked for on port 444 and given, then revoked
    Trust,
    /// With the reference: a private node answers nobody; asked by way of the registry it gives trust, then it answers
    Private,
    /// The reference's command line on two daemons (of the server's kind): every command that concerns a running one
    Pilotctl,
    /// The reference's Python SDK on two daemons (of the server's kind): every call that it offers
    PythonSdk,
    /// The same with its Node SDK
    NodeSdk,
}

/// Sizes, links and times of a scenario.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Plan {
    /// From the client to the server.
    pub(crate) up: Impairment,
    pub(crate) down: Impairment,
    pub(crate) rebinding: Option<Rebinding>,
    /// For so long only the first datagram of a client passes.
    pub(crate) gate_ms: Option<u32>,
    /// Bytes of each file.
    pub(crate) files: Vec<usize>,
    /// Fresh nodes that connect.
    pub(crate) connections: usize,
    pub(crate) limit_s: u64,
    pub(crate) seed: u64,
}

/// What a scenario that passed has to say.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Passed {
    /// What was measured, with its unit.
    pub(crate) figure: Option<(f64, Cow<'static, str>)>,
    pub(crate) reason: String,
    /// Packets per second after the end, where they were counted.
    pub(crate) quiet: Option<f64>,
}

impl Passed {
    pub(crate) fn because(reason: impl Into<String>) -> Self {
        Self { figure: None, reason: reason.into(), quiet: None }
    }

    pub(crate) fn quiet(self, packets_per_second: f64) -> Self {
        Self { quiet: Some(packets_per_second), ..self }
    }

    pub(crate) fn with_figure(self, value: f64, unit: &'static str) -> Self {
        Self { figure: Some((value, unit.into())), ..self }
    }
}

/// How a scenario that did not fail ended.
#[derive(Debug, Clone)]
pub(crate) enum Outcome {
    Passed(Passed),
    /// It cannot run here.
    Skipped(String),
}

impl Scenario {
    /// All of them.
    pub(crate) fn all() -> &'static [Scenario] {
        Scenario::value_variants()
    }

    /// Whether it runs in every combination of hub, client and server, without a proxy.
    pub(crate) fn is_by_hub(self) -> bool {
        matches!(self, Self::Ping | Self::Echo | Self::HubTransfer)
    }

    /// Whether it is about ours and the reference.
    pub(crate) fn is_foreign(self) -> bool {
        self >= Self::StreamUp
    }

    /// Whether it is a list of commands for a service.
    pub(crate) fn is_service(self) -> bool {
        self >= Self::Stdio && !self.is_tool()
    }

    /// Whether tools of the reference drive two daemons of one kind.
    pub(crate) fn is_tool(self) -> bool {
        matches!(self, Self::Pilotctl | Self::PythonSdk | Self::NodeSdk)
    }

    /// Whether many runs at a time do not disturb each other.
    pub(crate) fn mostly_waits(self) -> bool {
        matches!(self, Self::Idle | Self::Close | Self::Trust | Self::Private)
    }

    /// What is measured must be no less than this many times the reference's figure with itself, if ours (`true`) or the
    /// reference sends.
    pub(crate) fn factor(self, ours_sends: bool) -> Option<f64> {
        match self {
            Self::StreamUp | Self::StreamDown => Some(1.0),
            Self::StreamLoss1 | Self::StreamLoss1Down => Some(if ours_sends { 5.0 } else { 1.0 }),
            Self::StreamLoss5 | Self::StreamLoss5Down => Some(1.0),
            _ => None,
        }
    }

    /// Whether the server sends.
    pub(crate) fn is_down(self) -> bool {
        matches!(self, Self::StreamDown | Self::StreamLoss1Down | Self::StreamLoss5Down)
    }

    /// Begins early, because it takes long.
    pub(crate) fn weight(self) -> u8 {
        match self {
            Self::CrossTraffic => 3,
            Self::HandshakeLoss
            | Self::HandshakeCorruption
            | Self::RebindPort
            | Self::RebindAddr
            | Self::SecureModes => 2,
            Self::Blackhole | Self::MtuDrop | Self::Goodput | Self::LongRtt => 1,
            Self::Idle | Self::Close | Self::Private => 4,
            Self::Pilotctl | Self::PythonSdk | Self::NodeSdk => 3,
            _ => 0,
        }
    }

    pub(crate) fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// One line for people.
    pub(crate) fn describe(self) -> String {
        let value = self.to_possible_value();
        value.and_then(|value| value.get_help().map(ToString::to_string)).unwrap_or_default()
    }

    /// What is done; `quick` is the subset for ordinary CI.
    pub(crate) fn plan(self, seed: u64, quick: bool) -> Plan {
        let link = |link: Impairment, files: &[usize]| Plan {
            up: link,
            down: link,
            rebinding: None,
            gate_ms: None,
            files: files.to_vec(),
            connections: 1,
            limit_s: 60,
            seed,
        };
        let plain = Impairment::LINK;
        let ten = [10 * MIB];
        let connections = if quick { 20 } else { 50 };
        let rebinding = |change| Some(Rebinding { change, first_ms: 1000, every_ms: 5000 });
        match self {
            Self::Ping | Self::Echo | Self::Handshake | Self::SecureModes => link(plain, &[]),
            Self::HubTransfer => link(plain, &[MIB]),
            Self::Transfer => link(plain, &[2 * MIB, 3 * MIB, 5 * MIB]),
            Self::LongRtt => Plan { limit_s: 300, ..link(Impairment { delay_ms: 750, ..plain }, &[MIB]) },
            Self::Multiplexing => link(plain, &[32; 2000]),
            Self::Blackhole => link(Impairment { blackhole: Some((5000, 2000)), ..plain }, &ten),
            Self::KeyUpdate => link(plain, &[5 * MIB]),
            Self::AmplificationLimit => Plan { gate_ms: Some(5000), ..link(plain, &[]) },
            Self::HandshakeLoss => Plan { connections, limit_s: 300, ..link(Impairment::losing(30, 3), &[]) },
            Self::TransferLoss => link(Impairment::losing(2, 3), &[2 * MIB]),
            Self::HandshakeCorruption => {
                Plan { connections, limit_s: 300, ..link(Impairment::corrupting(30, 3), &[]) }
            }
            Self::TransferCorruption => link(Impairment::corrupting(2, 3), &[2 * MIB]),
            Self::Ipv6 => link(plain, &[2 * MIB]),
            Self::RebindPort => Plan { rebinding: rebinding(Change::Port), ..link(plain, &ten) },
            Self::RebindAddr => Plan { rebinding: rebinding(Change::Address), ..link(plain, &ten) },
            Self::MtuDrop => {
                let narrows = Impairment { mtu_later: Some((3000, 1280)), ..plain };
                Plan { down: plain, ..link(narrows, &ten) }
            }
            Self::Goodput => link(plain, &ten),
            Self::StreamUp | Self::StreamDown => {
                Plan { limit_s: 600, ..link(Impairment::NONE, &[64 * MIB, 64 * MIB, 4 * MIB]) }
            }
            Self::StreamLoss1 | Self::StreamLoss1Down => {
                Plan { limit_s: 600, ..link(Impairment::far_losing(1), &[64 * MIB, 2 * MIB, 2 * MIB]) }
            }
            Self::StreamLoss5 | Self::StreamLoss5Down => {
                Plan { limit_s: 900, ..link(Impairment::far_losing(5), &[64 * MIB, MIB / 4, MIB / 4]) }
            }
            Self::SlowReader => {
                Plan { limit_s: 120, ..link(Impairment::NONE, &[64 * MIB, 16 * MIB, 4 * MIB]) }
            }
            Self::File => link(Impairment::NONE, &[MIB / 4]),
            Self::Idle | Self::Pilotctl | Self::PythonSdk | Self::NodeSdk => {
                Plan { limit_s: 300, ..link(Impairment::NONE, &[]) }
            }
            Self::RestartServer
            | Self::RestartClient
            | Self::Simultaneous
            | Self::Close
            | Self::Datagrams
            | Self::Stdio
            | Self::Messages
            | Self::Events
            | Self::Tasks
            | Self::Trust
            | Self::Private => link(Impairment::NONE, &[]),
            Self::CrossTraffic => {
                Plan { limit_s: 120, ..link(plain, &[if quick { 10 * MIB } else { 25 * MIB }]) }
            }
        }
    }

    /// Runs one that goes through the proxy.
    pub(crate) fn run(
        self,
        kinds: (Kind, Kind),
        plan: &Plan,
        programs: &Programs,
        scratch: &Scratch,
    ) -> Result<Outcome, Failure> {
        let lab = Lab { programs, scratch, plan };
        if self.is_foreign() {
            return self.run_foreign(&lab, kinds);
        }
        match kinds {
            (Kind::Pilotage, Kind::Pilotage) => {}
            (Kind::Reference, _) => {
                return Ok(Outcome::Skipped(
                    "the reference's command line takes no UDP address of a peer, so nothing leads it through \
                     the proxy"
                        .into(),
                ));
            }
            (_, Kind::Reference) => {
                return Ok(Outcome::Skipped(
                    "no adaptor yet: a reference server knows only the nodes of its hub, whose record of it does \
                     not lead through the proxy"
                        .into(),
                ));
            }
        }
        match self {
            Self::Ping | Self::Echo | Self::HubTransfer => Err("this scenario needs a hub".into()),
            Self::Handshake => handshake::plain(&lab),
            Self::HandshakeLoss | Self::HandshakeCorruption => handshake::crowd(&lab),
            Self::AmplificationLimit => handshake::amplification(&lab),
            Self::Transfer => transfer::plain(&lab),
            Self::LongRtt => transfer::long_rtt(&lab),
            Self::Multiplexing => transfer::multiplexing(&lab),
            Self::Blackhole => transfer::blackhole(&lab),
            Self::KeyUpdate => transfer::key_update(&lab),
            Self::TransferLoss | Self::TransferCorruption => transfer::faulty(&lab),
            Self::Ipv6 => transfer::ipv6(&lab),
            Self::MtuDrop => transfer::mtu_drop(&lab),
            Self::RebindPort | Self::RebindAddr => migration::rebind(&lab),
            Self::SecureModes => modes::mixed(&lab),
            Self::Goodput => measure::goodput(&lab),
            Self::CrossTraffic => return cross::traffic(&lab),
            _ => Err("this scenario needs the reference".into()),
        }
        .map(Outcome::Passed)
    }

    fn run_foreign(self, lab: &Lab<'_>, kinds: (Kind, Kind)) -> Result<Outcome, Failure> {
        if self.is_service() {
            return services::play(self, lab, kinds);
        }
        match self {
            Self::Pilotctl => return tools::pilotctl(lab, kinds.1),
            Self::PythonSdk => return tools::python(lab, kinds.1),
            Self::NodeSdk => return tools::node(lab, kinds.1),
            Self::StreamUp | Self::StreamLoss1 | Self::StreamLoss5 => foreign::stream(lab, kinds, false),
            Self::StreamDown | Self::StreamLoss1Down | Self::StreamLoss5Down => {
                foreign::stream(lab, kinds, true)
            }
            Self::RestartServer => foreign::restart(lab, kinds, true),
            Self::RestartClient => foreign::restart(lab, kinds, false),
            Self::Idle => foreign::idle(lab, kinds),
            Self::Simultaneous => foreign::simultaneous(lab, kinds),
            Self::Close => foreign::close(lab, kinds),
            Self::SlowReader => foreign::slow_reader(lab, kinds),
            Self::Datagrams => return foreign::datagrams(lab, kinds),
            Self::File => foreign::file(lab, kinds),
            _ => Err("this scenario is not about the reference".into()),
        }
        .map(Outcome::Passed)
    }
}

impl Plan {
    pub(crate) fn limit(&self) -> Duration {
        Duration::from_secs(self.limit_s)
    }

    /// The proxy in front of this server.
    pub(crate) fn setup(&self, server: SocketAddr) -> Setup {
        Setup {
            server,
            up: self.up,
            down: self.down,
            seed: self.seed,
            rebinding: self.rebinding,
            gate: self.gate_ms.map(|ms| Duration::from_millis(u64::from(ms))),
            wire: None,
        }
    }

    /// In one line, for the table.
    pub(crate) fn describe(&self) -> String {
        let one = |link: &Impairment| {
            let mut text = format!("{} ms", link.delay_ms);
            if let Some(rate) = link.rate_bps {
                text += &format!(", {} Mbit/s, queue {}", rate / 1_000_000, link.queue);
            }
            text += &format!(", MTU {}", link.mtu);
            if let Some((at, mtu)) = link.mtu_later {
                text += &format!(" then {mtu} from {} s on", at / 1000);
            }
            for (name, bursts) in [("loss", link.loss), ("corruption", link.corruption)] {
                if let Some(bursts) = bursts {
                    text += &format!(", {name} {} % burst {}", bursts.percent, bursts.longest);
                }
            }
            if let Some((on, off)) = link.blackhole {
                text += &format!(", {} s on {} s off", on / 1000, off / 1000);
            }
            text
        };
        let (up, down) = (one(&self.up), one(&self.down));
        if up == down { up } else { format!("there: {up}; back: {down}") }
    }
}

/// Bytes that belong to a seed.
pub(crate) fn content(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(b"interop").update(&seed.to_be_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// An error unless the condition holds.
pub(crate) fn require(condition: bool, otherwise: impl FnOnce() -> String) -> Result<(), Failure> {
    if condition { Ok(()) } else { Err(otherwise().into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_has_a_name_a_text_and_a_plan() {
        for scenario in Scenario::all() {
            assert!(!scenario.name().is_empty() && !scenario.describe().is_empty(), "{scenario:?}");
            let (full, quick) = (scenario.plan(1, false), scenario.plan(1, true));
            assert!(full.files.iter().sum::<usize>() >= quick.files.iter().sum());
            assert!(full.limit_s >= 60 && full.describe().contains("MTU"));
        }
    }

    #[test]
    fn content_follows_its_seed() {
        assert_eq!(content(100, 1), content(200, 1)[..100]);
        assert_ne!(content(100, 1), content(100, 2));
    }
}
