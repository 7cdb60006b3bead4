//! What scenarios are made of: a server process, a proxy, a client process, and the comparison of what arrived.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Plan, content, require};
use crate::Failure;
use crate::process::{Background, Scratch, json_lines, run};
use crate::proxy::{Proxy, Seen, Setup};
use crate::subject::Programs;

/// Port of `listen` in downloads.
const DOWNLOAD_PORT: &str = "5000";
/// What keeps a client from other addresses of this host.
const ON_LOOPBACK: [&str; 2] = ["--bind", "127.0.0.1:0"];

/// Where one scenario happens.
pub(crate) struct Lab<'a> {
    pub(crate) programs: &'a Programs,
    pub(crate) scratch: &'a Scratch,
    pub(crate) plan: &'a Plan,
}

/// A server process.
pub(crate) struct Server {
    pub(crate) address: String,
    pub(crate) endpoint: SocketAddr,
    /// Its public key, as text.
    pub(crate) key: String,
    folder: PathBuf,
    process: Background,
}

impl Server {
    /// How a client names it, by way of the proxy.
    pub(crate) fn by(&self, proxy: &Proxy) -> String {
        format!("{}@{}", self.address, proxy.address())
    }

    /// Whether a stored file is this one; an error says how it differs.
    pub(crate) fn has_stored(&self, name: &str, expected: &[u8]) -> Result<(), Failure> {
        let path = self.folder.join("inbox").join(name);
        let bytes = std::fs::read(&path).map_err(|error| format!("the receiver's {name}: {error}"))?;
        compare(name, &bytes, expected)
    }

    /// What the process has printed.
    pub(crate) fn output(&self) -> String {
        self.process.output()
    }
}

/// A transfer that arrived unchanged.
pub(crate) struct Moved {
    pub(crate) seen: Seen,
    /// The client's own words.
    pub(crate) events: Vec<Value>,
    pub(crate) server: Server,
    pub(crate) bytes: usize,
}

impl Moved {
    /// Payload bits per second from the client's first datagram to the last of the server, in Mbit/s.
    pub(crate) fn goodput(&self) -> f64 {
        self.bytes as f64 * 8.0 / self.seen.lasted.as_secs_f64().max(1e-3) / 1e6
    }

    /// Sum of a counter of the client's connections.
    pub(crate) fn counter(&self, name: &str) -> u64 {
        self.events.iter().filter_map(|event| event["stats"][name].as_u64()).sum()
    }
}

impl Lab<'_> {
    /// A node with echo, file and benchmark services, bound to this address.
    pub(crate) fn serve(&self, name: &str, bind: &str) -> Result<Server, Failure> {
        self.serve_with(name, bind, &[])
    }

    /// The same with more options.
    pub(crate) fn serve_with(&self, name: &str, bind: &str, options: &[&str]) -> Result<Server, Failure> {
        let folder = self.scratch.folder(name)?;
        let mut command = self.programs.pilotage_alone("up", &folder);
        command.args(["--json", "--bind", bind]).args(options);
        let process = Background::start(&mut command, &folder.join("log"))?;
        ready(process, folder)
    }

    /// A node that offers bytes to whoever connects.
    pub(crate) fn offer(&self, name: &str, bytes: &[u8]) -> Result<Server, Failure> {
        let folder = self.scratch.folder(name)?;
        let source = folder.join("source.bin");
        std::fs::write(&source, bytes)?;
        let mut command = self.programs.pilotage_alone("listen", &folder);
        command.args(["--json", "--no-lan", "--bind", "127.0.0.1:0", DOWNLOAD_PORT]);
        let input = Stdio::from(std::fs::File::open(&source)?);
        let process = Background::start_with(&mut command, input, &folder.join("log"))?;
        ready(process, folder)
    }

    /// The proxy that the plan describes.
    pub(crate) fn setup(&self, server: &Server) -> Setup {
        self.plan.setup(server.endpoint)
    }

    /// A client's command in a folder of its own.
    pub(crate) fn client(&self, command: &str, name: &str) -> Result<Command, Failure> {
        let mut command = self.programs.pilotage_alone(command, &self.scratch.folder(name)?);
        // Neither by the LAN nor by addresses of this host it is to find the server without the proxy.
        command.args(["--json", "--no-lan", "--connect-timeout", "60s"]);
        Ok(command)
    }

    /// Sends the plan's files from a client to a server on loopback.
    pub(crate) fn upload(&self, extra: &[&str]) -> Result<Moved, Failure> {
        let server = self.serve("server", "127.0.0.1:0")?;
        self.upload_to(server, extra)
    }

    /// Sends the plan's files and compares what was stored.
    pub(crate) fn upload_to(&self, server: Server, extra: &[&str]) -> Result<Moved, Failure> {
        let proxy = Proxy::start(self.setup(&server))?;
        let output = self.send(&server, &proxy, extra)?;
        let seen = proxy.seen();
        let bytes = self.plan.files.iter().sum();
        no_strangers(&seen)?;
        Ok(Moved { seen, events: json_lines(&String::from_utf8_lossy(&output)), server, bytes })
    }

    /// Runs the client of an upload.
    pub(crate) fn send(&self, server: &Server, proxy: &Proxy, extra: &[&str]) -> Result<Vec<u8>, Failure> {
        let folder = self.scratch.folder("files")?;
        let files = self.make_files(&folder)?;
        let mut command = self.client("send", "client")?;
        if !extra.contains(&"--bind") {
            command.args(ON_LOOPBACK);
        }
        command.args(extra).arg(server.by(proxy)).args(files.iter().map(|(path, _)| path));
        let output = run(&mut command, &[], self.plan.limit())?;
        for (path, bytes) in &files {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            server.has_stored(&name, bytes)?;
        }
        Ok(output)
    }

    /// Fetches the bytes of the first file from a server and compares them.
    pub(crate) fn download(&self) -> Result<Moved, Failure> {
        let expected = content(self.plan.files.first().copied().unwrap_or_default(), self.plan.seed);
        let server = self.offer("source", &expected)?;
        let proxy = Proxy::start(self.setup(&server))?;
        let mut command = self.client("connect", "sink")?;
        command.args(ON_LOOPBACK).args([&server.by(&proxy), DOWNLOAD_PORT]);
        let received = run(&mut command, &[], self.plan.limit())?;
        compare("the download", &received, &expected)?;
        let seen = proxy.seen();
        no_strangers(&seen)?;
        Ok(Moved { seen, events: Vec::new(), server, bytes: expected.len() })
    }

    fn make_files(&self, folder: &Path) -> Result<Vec<(PathBuf, Vec<u8>)>, Failure> {
        let make = |(number, len): (usize, &usize)| {
            let path = folder.join(format!("file-{number}.bin"));
            let bytes = content(*len, self.plan.seed.wrapping_mul(10_000) + number as u64);
            std::fs::write(&path, &bytes)?;
            Ok((path, bytes))
        };
        self.plan.files.iter().enumerate().map(make).collect()
    }

    /// One fresh node connects to the echo service and gets `bytes` back.
    pub(crate) fn echo(&self, server: &Server, proxy: &Proxy, bytes: &[u8]) -> Result<Duration, Failure> {
        let mut command = self.client("connect", "clients")?;
        command.args(ON_LOOPBACK).args(["--ephemeral", &server.by(proxy), "7"]);
        let started = Instant::now();
        let back = run(&mut command, bytes, self.plan.limit().min(Duration::from_secs(120)))?;
        compare("the echo", &back, bytes)?;
        Ok(started.elapsed())
    }
}

fn ready(mut process: Background, folder: PathBuf) -> Result<Server, Failure> {
    let line = process.wait_for_event("ready")?;
    let word = |key: &str| line[key].as_str().map(str::to_owned).ok_or(format!("ready without {key}"));
    let key = line["public_key"].as_str().unwrap_or_default().to_owned();
    Ok(Server { address: word("address")?, endpoint: word("listen")?.parse()?, key, folder, process })
}

/// An error that says where two contents differ first.
pub(super) fn compare(what: &str, got: &[u8], expected: &[u8]) -> Result<(), Failure> {
    require(blake3::hash(got) == blake3::hash(expected), || {
        let same = got.iter().zip(expected).take_while(|(a, b)| a == b).count();
        format!("{what}: {} bytes sent, {} arrived, the first {same} equal", expected.len(), got.len())
    })
}

/// Everything that a subject sent was an authenticated key exchange or sealed.
pub(super) fn no_strangers(seen: &Seen) -> Result<(), Failure> {
    for (whose, sights) in [("client", &seen.up.sights), ("server", &seen.down.sights)] {
        require(sights.other == 0, || {
            format!(
                "{} datagrams of the {whose} were neither PILA nor PILS, the first began {:02x?} ({} clients)",
                sights.other, sights.first_other, seen.clients
            )
        })?;
    }
    Ok(())
}
