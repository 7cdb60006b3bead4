//! Hub and nodes in a world: the `pilotage` program, as a user would run it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use pilotage_lab::Namespace;
use pilotage_lab::nat::{NatKind, World};
use serde_json::Value;

use crate::Failure;
use crate::program::{Program, ask};
use crate::stop;

/// How long a program may take until it is ready, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long a node may take to learn from its beacon how it is seen; then it goes on without.
const DISCOVERY: Duration = Duration::from_secs(4);
/// The registry's port, one that firewalls let through; the beacon's is one above.
pub(crate) const REGISTRY: u16 = 80;

/// What the program under test can do; older ones cannot.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Features {
    /// The hub takes the beacon's datagrams over WebSocket.
    pub(crate) wss: bool,
    /// There are beacons without a registry, and nodes know several.
    pub(crate) beacons: bool,
}

impl Features {
    /// By its help, once.
    fn of(binary: &Path) -> Self {
        static FEATURES: OnceLock<Features> = OnceLock::new();
        let says = |args: &[&str], word: &str| {
            let output = Command::new(binary).args(args).stdin(Stdio::null()).output();
            output.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains(word))
        };
        *FEATURES.get_or_init(|| Self {
            wss: says(&["hub", "--help"], "--wss"),
            beacons: says(&["beacon", "--help"], "--other-beacon"),
        })
    }
}

/// The program and where its states are.
#[derive(Debug, Clone)]
pub(crate) struct Stage<'a> {
    pub(crate) binary: &'a Path,
    pub(crate) folder: &'a Path,
    pub(crate) features: Features,
}

impl<'a> Stage<'a> {
    pub(crate) fn new(binary: &'a Path, folder: &'a Path) -> Self {
        Self { binary, folder, features: Features::of(binary) }
    }
}

impl Stage<'_> {
    fn state(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    /// A hub at one of the hub's addresses.
    pub(crate) fn hub(&self, world: &World, index: u8) -> Result<Program, Failure> {
        self.hub_with(world, index, &[])
    }

    /// The same with more options.
    pub(crate) fn hub_with(&self, world: &World, index: u8, options: &[&str]) -> Result<Program, Failure> {
        let listen = world.hub_address(NatKind::None, index).to_string();
        let name = format!("hub{index}");
        let state = self.state(&name);
        let port = REGISTRY.to_string();
        let mut args = vec!["hub", "--listen", &listen, "--registry-port", &port, "--state", &state];
        args.extend(["--json", "--exit-with-stdin"]);
        args.extend(options);
        let wss = format!("{listen}:443");
        if self.features.wss {
            args.extend(["--wss", &wss]);
        }
        let mut hub = Program::start(world.hub(), self.folder, &name, self.binary, &args, &[])?;
        hub.wait_for("ready", PATIENCE, |event| event["event"] == "ready")?;
        Ok(hub)
    }

    /// A beacon alone, at one of the hub's addresses, that knows another one.
    pub(crate) fn beacon(&self, world: &World, index: u8, other: u8, key: &Path) -> Result<Program, Failure> {
        let listen = world.hub_address(NatKind::None, index).to_string();
        let (name, port, key) =
            (format!("beacon{index}"), (REGISTRY + 1).to_string(), key.display().to_string());
        let (state, other) = (self.state(&name), beacon_address(world, other).to_string());
        let args = [
            "beacon",
            "--listen",
            &listen,
            "--port",
            &port,
            "--other-beacon",
            &other,
            "--beacon-key-file",
            &key,
            "--state",
            &state,
            "--json",
            "--exit-with-stdin",
        ];
        let mut beacon = Program::start(world.hub(), self.folder, &name, self.binary, &args, &[])?;
        beacon.wait_for("ready", PATIENCE, |event| event["event"] == "ready")?;
        Ok(beacon)
    }

    /// A node on a host, registered at the first hub.
    pub(crate) fn node(
        &self,
        world: &World,
        room: &Namespace,
        kind: NatKind,
        name: &str,
    ) -> Result<Node, Failure> {
        self.node_with(world, room, kind, name, &[])
    }

    /// The same with more options.
    pub(crate) fn node_with(
        &self,
        world: &World,
        room: &Namespace,
        kind: NatKind,
        name: &str,
        options: &[&str],
    ) -> Result<Node, Failure> {
        let state = self.folder.join(name);
        let hub = SocketAddr::new(world.hub_address(kind, 0), REGISTRY).to_string();
        let text = state.display().to_string();
        let mut args =
            vec!["up", "--state", &text, "--hub", &hub, "--name", name, "--json", "--exit-with-stdin"];
        args.extend(options);
        if kind == NatKind::Nat64 {
            args.extend(["--bind", "[::]:0"]);
        }
        let begun = Instant::now();
        let mut program = Program::start(room, self.folder, name, self.binary, &args, &[])?;
        let (_, ready) = program.wait_for("ready", PATIENCE, |event| event["event"] == "ready")?;
        let node =
            Node { program, state, begun, address: ready["address"].as_str().unwrap_or("").to_owned() };
        Ok(node)
    }

    /// What the node of this state directory says about its way to a peer.
    pub(crate) fn path(&self, state: &Path, peer: &str) -> Option<Way> {
        let status = ask(self.binary, &["status", "--state", &state.display().to_string(), "--json"]).ok()?;
        let peers = status["peers"].as_array()?.clone();
        let peer = peers
            .into_iter()
            .find(|one| one["address"].as_str().is_some_and(|text| text.starts_with(peer)))?;
        Way::read(&peer)
    }
}

/// Where a beacon at one of the hub's addresses is.
pub(crate) fn beacon_address(world: &World, index: u8) -> SocketAddr {
    SocketAddr::new(world.hub_address(NatKind::None, index), REGISTRY + 1)
}

/// A running `pilotage up`.
pub(crate) struct Node {
    pub(crate) program: Program,
    pub(crate) state: PathBuf,
    /// When it was started.
    pub(crate) begun: Instant,
    pub(crate) address: String,
}

impl Node {
    /// Waits until it is registered and knows how it is seen. Says how long that took from its start.
    pub(crate) fn settle(&mut self, stage: &Stage<'_>) -> Result<Duration, Failure> {
        let registered = |event: &Value| {
            event["event"] == "registered" || (event["event"] == "ready" && event["registered"] == true)
        };
        let (at, _) = self.program.wait_for("registration", PATIENCE, registered)?;
        let end = Instant::now() + DISCOVERY;
        while Instant::now() < end && self.status(stage)?["observed"].is_null() {
            stop::check()?;
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(at.duration_since(self.begun))
    }

    /// What it says about itself.
    pub(crate) fn status(&self, stage: &Stage<'_>) -> Result<Value, Failure> {
        ask(stage.binary, &["status", "--state", &self.state.display().to_string(), "--json"])
    }

    /// What it says about its way to a peer.
    pub(crate) fn path(&self, stage: &Stage<'_>, peer: &str) -> Option<Way> {
        stage.path(&self.state, peer)
    }
    /// How its way to a peer changed, with the times. Events name the node, without the network.
    pub(crate) fn paths(&self, peer: &str) -> Vec<(Instant, Way)> {
        let is_one = |event: &Value| {
            event["event"] == "path" && event["peer"].as_str().is_some_and(|text| peer.ends_with(text))
        };
        let events = self.program.events().into_iter().filter(|(_, event)| is_one(event));
        events.filter_map(|(at, event)| Some((at, Way::read(&event)?))).collect()
    }
}

/// A way to a peer, as the program names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Way {
    /// `direct` or `relay`.
    pub(crate) kind: String,
    /// The far end.
    pub(crate) remote: String,
    /// Why this way, if it says so.
    pub(crate) reason: Option<String>,
}

impl Way {
    /// From an object that has a `path`; the reason may stand beside it or in it.
    fn read(value: &Value) -> Option<Self> {
        let path = &value["path"];
        let reason = value["reason"].as_str().or_else(|| path["reason"].as_str());
        Some(Self {
            kind: path["kind"].as_str().or_else(|| path.as_str())?.to_owned(),
            remote: path["remote"].as_str().unwrap_or("").to_owned(),
            reason: reason.map(str::to_owned),
        })
    }

    pub(crate) fn is_direct(&self) -> bool {
        self.kind == "direct"
    }
}
