//! Where two implementations meet: a hub, a client and a server, with a proxy in front of the server that emulates the
//! link and counts. Registries name the server by that proxy (see [`crate::lens`]); there is no beacon, so nothing
//! leads around it.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::lab::Lab;
use super::{Passed, require};
use crate::Failure;
use crate::lens::Lens;
use crate::process::{Background, free_address, run};
use crate::proxy::{Proxy, Seen};
use crate::subject::{Hub, Kind, Node, Programs};

/// Packets per second that may pass after everything was closed: keepalives and probes of the path.
const QUIET_PPS: f64 = 10.0;
/// How long the last words may take before that is looked at. (A reference peer's delayed and repeated ones included.)
const LAST_WORDS: Duration = Duration::from_millis(1_500);
/// How long it is looked at.
const LOOK: Duration = Duration::from_secs(2);
/// How much memory a reference daemon may hold more after a scenario: its pools grow with what passed.
const MAX_GROWTH_KB: u64 = 64 * 1024;
/// How long a node may take to get ready or to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// Everything that runs in one scenario.
pub(crate) struct Meeting<'a> {
    pub(crate) lab: &'a Lab<'a>,
    pub(crate) proxy: Proxy,
    pub(crate) client: Node,
    pub(crate) server: Node,
    /// UDP address of the server itself.
    endpoint: SocketAddr,
    /// The hub as nodes see it: its registry is the lens.
    hub: Hub,
    memory: [Option<u64>; 2],
    _lens: Lens,
    _hub: Hub,
}

/// How a server serves. A reference daemon runs in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// A Pilotage server's place is prepared, for commands that are nodes of their own.
    Command,
    /// It offers its services to everybody.
    Node,
    /// It answers only whom it trusts.
    PrivateNode,
}

/// What was seen after everything was closed.
#[derive(Debug)]
pub(crate) struct Unharmed {
    packets_per_second: f64,
    text: String,
}

impl Unharmed {
    /// A scenario that passed and left it quiet.
    pub(crate) fn passed(self, reason: impl std::fmt::Display) -> Passed {
        Passed::because(format!("{reason}{}", self.text)).quiet(self.packets_per_second)
    }
}

impl std::fmt::Display for Unharmed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.0} packets/s after the end{}", self.packets_per_second, self.text)
    }
}

/// One end of a pipe: a process that joins a stream to its input and output.
pub(crate) struct PipeEnd {
    process: Background,
    pub(crate) output: PathBuf,
}

/// What moved through a pipe.
pub(crate) struct Piped {
    /// From the start of the dialling process to the last byte.
    pub(crate) took: Duration,
    pub(crate) bytes: usize,
    pub(crate) seen: Seen,
}

impl Piped {
    pub(crate) fn mbytes_per_second(&self) -> f64 {
        self.bytes as f64 / self.took.as_secs_f64().max(1e-3) / 1e6
    }
}

impl<'a> Meeting<'a> {
    /// Starts a hub of ours and both nodes.
    pub(crate) fn start(lab: &'a Lab<'a>, kinds: (Kind, Kind), place: Place) -> Result<Self, Failure> {
        let programs = lab.programs;
        let real = programs.start_hub(Kind::Pilotage, &lab.scratch.folder("hub")?)?;
        let endpoint = free_address()?;
        let proxy = Proxy::start(lab.plan.setup(endpoint))?;
        let lens = Lens::start(real.registry, endpoint, proxy.address())?;
        let hub = real.seen_at(lens.address());
        let server = start_node(programs, kinds.1, lab.scratch.folder("b")?, "bnode", endpoint, &hub, place)?;
        let (folder, own) = (lab.scratch.folder("a")?, free_address()?);
        let client = start_node(programs, kinds.0, folder, "anode", own, &hub, Place::Command)?;
        let memory = [server.memory_kb(), client.memory_kb()];
        Ok(Self { lab, proxy, client, server, endpoint, hub, memory, _lens: lens, _hub: real })
    }

    /// What [`Self::fill_in`] knows.
    pub(crate) const NAMES: [&'static str; 5] =
        ["{server}", "{client}", "{endpoint}", "{server-number}", "{client-number}"];

    /// Replaces the names of nodes.
    pub(crate) fn fill_in(&self, word: &str) -> String {
        let number = |node: &Node| {
            let digits: String =
                node.address.chars().skip_while(|c| *c != '.').filter(|c| *c != '.').collect();
            u32::from_str_radix(&digits, 16).map_or_else(|_| node.address.clone(), |n| n.to_string())
        };
        let values = [
            self.server.address.clone(),
            self.client.address.clone(),
            self.endpoint.to_string(),
            number(&self.server),
            number(&self.client),
        ];
        Self::NAMES.iter().zip(values).fold(word.to_owned(), |text, (name, value)| text.replace(name, &value))
    }

    /// A Pilotage client that runs its services, too.
    pub(crate) fn client_up(&mut self) -> Result<(), Failure> {
        if self.client.kind == Kind::Pilotage {
            let (folder, programs) = (self.client.folder.clone(), self.lab.programs);
            self.client = programs.start_up_at(folder, "anode", free_address()?, &self.hub, false)?;
        }
        Ok(())
    }

    /// Ends the server's process and starts it again with its state.
    pub(crate) fn restart_server(&mut self) -> Result<(), Failure> {
        self.server.stop();
        let folder = self.server.folder.clone();
        let (programs, kind) = (self.lab.programs, self.server.kind);
        self.server = start_node(programs, kind, folder, "bnode", self.endpoint, &self.hub, Place::Node)?;
        self.memory[0] = self.server.memory_kb();
        Ok(())
    }

    /// The same with the client, if it is a daemon. (Pilotage commands are new processes each time.)
    pub(crate) fn restart_client(&mut self) -> Result<(), Failure> {
        if self.client.kind == Kind::Pilotage {
            return Ok(());
        }
        self.client.stop();
        let (folder, programs) = (self.client.folder.clone(), self.lab.programs);
        let (kind, own) = (self.client.kind, free_address()?);
        self.client = start_node(programs, kind, folder, "anode", own, &self.hub, Place::Command)?;
        self.memory[1] = self.client.memory_kb();
        Ok(())
    }

    /// A command of the client's implementation, on its state and this hub.
    pub(crate) fn client_command(&self, words: &[&str]) -> Result<Command, Failure> {
        self.command_of(&self.client, words)
    }

    /// The same of either node.
    pub(crate) fn command_of(&self, node: &Node, words: &[&str]) -> Result<Command, Failure> {
        let programs = self.lab.programs;
        Ok(match (node.kind, words.split_first()) {
            (Kind::Pilotage, Some((first, rest))) => {
                let mut command = programs.pilotage(first, &node.folder, &self.hub);
                command.args(rest);
                command
            }
            _ => {
                let mut command = programs.pilotctl(&node.folder, &self.hub)?;
                command.args(words);
                command
            }
        })
    }

    /// Runs a command of the client to its end and returns its output.
    pub(crate) fn client_runs(&self, words: &[&str], input: &[u8]) -> Result<Vec<u8>, Failure> {
        run(&mut self.client_command(words)?, input, self.lab.plan.limit())
    }

    /// A short text to the server's echo service and back.
    pub(crate) fn echo(&self) -> Result<Duration, Failure> {
        let started = Instant::now();
        match self.client.kind {
            Kind::Pilotage => return self.echo_of_ours(),
            Kind::Reference => {
                let words = ["connect", &self.server.address, "7", "--message", "hello", "--timeout", "30s"];
                let back = self.client_runs(&words, &[])?;
                let text = String::from_utf8_lossy(&back);
                require(text.contains("\"response\":\"hello\""), || format!("echo: {text}"))?;
            }
        }
        Ok(started.elapsed())
    }

    /// Ours ends only when a reference server was silent for a while (it has no half-close): that is no part of the echo.
    fn echo_of_ours(&self) -> Result<Duration, Failure> {
        let started = Instant::now();
        let words = ["connect", "--connect-timeout", "60s", self.server.name, "7"];
        let folder = &self.client.folder;
        let (output, log) = (folder.join("echo.out"), folder.join("echo.log"));
        let mut command = self.client_command(&words)?;
        let mut process = Background::start_split(&mut command, Stdio::piped(), &output, &log)?;
        let mut input = process.take_input().ok_or("no input")?;
        // A process that ended early says why below.
        let _ = std::io::Write::write_all(&mut input, b"hello\n");
        let back = || std::fs::read(&output).unwrap_or_default();
        while back().len() < 6 && !process.has_ended()? && started.elapsed() < self.lab.plan.limit() {
            std::thread::sleep(Duration::from_millis(2));
        }
        let took = started.elapsed();
        drop(input);
        process.ends_well("the echo", PATIENCE)?;
        require(back() == b"hello\n", || format!("{} bytes of echo instead of 6", back().len()))?;
        Ok(took)
    }

    /// The server waits for a connection to `port` and joins it to `input` and a file.
    /// With `close` it ends the stream behind its input.
    pub(crate) fn listen(&self, port: &str, input: Stdio, close: bool) -> Result<PipeEnd, Failure> {
        let output = self.server.folder.join("pipe.out");
        let mut command = self.listener(port, close)?;
        let process = Background::start_split(&mut command, input, &output, &self.pipe_log())?;
        self.listening(process, output)
    }

    /// The same with an output that nobody reads at first.
    pub(crate) fn listen_unread(&self, port: &str) -> Result<PipeEnd, Failure> {
        let process = Background::start_unread(&mut self.listener(port, false)?, &self.pipe_log())?;
        self.listening(process, PathBuf::new())
    }

    fn listener(&self, port: &str, close: bool) -> Result<Command, Failure> {
        let node = &self.server;
        match node.kind {
            Kind::Pilotage => {
                let bind = self.endpoint.to_string();
                self.command_of(node, &["listen", "--json", "--bind", &bind, "--name", node.name, port])
            }
            Kind::Reference => {
                let words = ["listen", port, "--close"];
                self.driver(node, if close { &words } else { &words[..2] })
            }
        }
    }

    fn pipe_log(&self) -> PathBuf {
        self.server.folder.join("pipe.log")
    }

    fn listening(&self, mut process: Background, output: PathBuf) -> Result<PipeEnd, Failure> {
        match self.server.kind {
            Kind::Pilotage => drop(process.wait_for_event("ready")?),
            Kind::Reference => {
                let log = self.pipe_log();
                process.wait_until("listener", || has_line(&log, "listening"))?;
            }
        }
        Ok(PipeEnd { process, output })
    }

    /// The client connects to `port` of the server and joins the stream to `input` and a file. With `close` it ends the
    /// stream behind its input.
    pub(crate) fn connect(&self, port: &str, input: Stdio, close: bool) -> Result<PipeEnd, Failure> {
        let node = &self.client;
        let mut command = match node.kind {
            Kind::Pilotage => {
                let words = ["connect", "--json", "--connect-timeout", "60s", self.server.name, port];
                self.command_of(node, &words)?
            }
            Kind::Reference => {
                let words = ["connect", &self.server.address, port, "--close"];
                self.driver(node, if close { &words } else { &words[..3] })?
            }
        };
        let (output, log) = (node.folder.join("pipe.out"), node.folder.join("pipe.log"));
        Ok(PipeEnd { process: Background::start_split(&mut command, input, &output, &log)?, output })
    }

    /// A client of a reference daemon's socket, as a process.
    pub(crate) fn driver(&self, node: &Node, words: &[&str]) -> Result<Command, Failure> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("driver").arg(node.folder.join("pilot.sock")).args(words);
        Ok(command)
    }

    /// Moves `bytes` from the client to the server, or back with `down`, through a stream that is closed behind them,
    /// and compares what arrived.
    pub(crate) fn pipe(&self, bytes: &[u8], down: bool) -> Result<Piped, Failure> {
        let source = self.lab.scratch.folder("files")?.join("source.bin");
        std::fs::write(&source, bytes)?;
        let file = || File::open(&source).map(Stdio::from);
        let (there, back) = if down { (Stdio::null(), file()?) } else { (file()?, Stdio::null()) };
        let mut server = self.listen("5000", back, down)?;
        let started = Instant::now();
        let mut client = self.connect("5000", there, !down)?;
        let output = if down { client.output.clone() } else { server.output.clone() };
        let deadline = started + self.lab.plan.limit();
        let took = loop {
            let len = std::fs::metadata(&output).map_or(0, |meta| meta.len());
            if len >= bytes.len() as u64 {
                break started.elapsed();
            }
            let early = client.process.has_ended()? || server.process.has_ended()?;
            if early || Instant::now() >= deadline {
                std::thread::sleep(Duration::from_millis(200));
                let len = std::fs::metadata(&output).map_or(0, |meta| meta.len());
                if len < bytes.len() as u64 {
                    let why = if early { "a process ended" } else { "the time is over" };
                    let words = [client.process.output(), server.process.output()].join(" | ");
                    let last: String = words.replace('\n', " ").chars().rev().take(300).collect();
                    let last: String = last.chars().rev().collect();
                    return Err(format!("{len} of {} bytes, then {why}: {last}", bytes.len()).into());
                }
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        client.process.ends_well("the client", PATIENCE)?;
        server.process.ends_well("the server", PATIENCE)?;
        let arrived = std::fs::read(&output)?;
        require(arrived == bytes, || {
            let same = arrived.iter().zip(bytes).take_while(|(a, b)| a == b).count();
            format!("{} bytes sent, {} arrived, the first {same} equal", bytes.len(), arrived.len())
        })?;
        Ok(Piped { took, bytes: bytes.len(), seen: self.proxy.seen() })
    }

    /// After everything was closed nothing more passes, and no daemon has grown without bound.
    pub(crate) fn is_unharmed(&self) -> Result<Unharmed, Failure> {
        std::thread::sleep(LAST_WORDS);
        let count = || {
            let seen = self.proxy.seen();
            seen.up.counts.offered + seen.down.counts.offered
        };
        let before = count();
        std::thread::sleep(LOOK);
        let rate = (count() - before) as f64 / LOOK.as_secs_f64();
        if (self.client.kind, self.server.kind) == (Kind::Reference, Kind::Reference) {
            return Ok(Unharmed { packets_per_second: rate, text: String::new() });
        }
        require(rate <= QUIET_PPS, || format!("{rate:.0} packets/s after the end"))?;
        let mut most = 0;
        for (node, before) in [&self.server, &self.client].into_iter().zip(self.memory) {
            if let (Some(before), Some(now)) = (before, node.memory_kb()) {
                most = most.max(now.saturating_sub(before));
            }
        }
        require(most <= MAX_GROWTH_KB, || format!("a daemon holds {most} KiB more than before"))?;
        Ok(Unharmed { packets_per_second: rate, text: format!("; daemons grew by {most} KiB") })
    }
}

impl PipeEnd {
    pub(crate) fn process(&mut self) -> &mut Background {
        &mut self.process
    }
}

fn has_line(log: &Path, line: &str) -> bool {
    std::fs::read_to_string(log).is_ok_and(|text| text.lines().any(|l| l == line))
}

fn start_node(
    programs: &Programs,
    kind: Kind,
    folder: PathBuf,
    name: &'static str,
    endpoint: SocketAddr,
    hub: &Hub,
    place: Place,
) -> Result<Node, Failure> {
    let private = place == Place::PrivateNode;
    match kind {
        Kind::Reference => programs.start_daemon_at(folder, name, endpoint, hub, private),
        Kind::Pilotage if place == Place::Command => programs.place_for(folder, name),
        Kind::Pilotage => programs.start_up_at(folder, name, endpoint, hub, private),
    }
}
