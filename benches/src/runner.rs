//! The parent: starts both sides of every contender, interleaved, and collects what they measured.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::exchange::{ClientResult, Payload, ServerResult};
use crate::measure::{LoadGuard, pin_to_core, wait_for_idle};
use crate::report::{Report, Run};
use crate::settings::{Options, Role, Subject, Verify};
use crate::{Failure, pilotage_peer, quic, tcp, tls};

/// How long one side may take in all before it is stopped.
const RUN_LIMIT: Duration = Duration::from_secs(180);
/// How often a run that foreign load spoiled is repeated.
const MAX_RETRIES: u32 = 2;

/// Lets the receiver tell the parent that it listens.
#[derive(Debug)]
pub struct Announce(());

impl Announce {
    /// Tells the parent that the sender may be started.
    pub fn ready(self) -> Result<(), Failure> {
        let mut out = std::io::stdout().lock();
        out.write_all(b"ready\n")?;
        out.flush()?;
        Ok(())
    }
}

/// Runs as one side of one contender and prints its measurements as one line of JSON.
pub fn run_side(options: &Options, role: Role) -> Result<(), Failure> {
    let [subject] = options.only[..] else { return Err("one side runs exactly one contender".into()) };
    let server_addr = options.server_addr.ok_or("--server-addr is missing")?;
    let client_addr = options.client_addr.ok_or("--client-addr is missing")?;
    let scratch = options.scratch.clone().ok_or("--scratch is missing")?;
    let core = match role {
        Role::Server => options.cores[0],
        Role::Client => *options.cores.last().unwrap_or(&0),
    };
    pin_to_core(core)?;
    let line = match role {
        Role::Server => {
            let result = side_server(options, subject, server_addr, client_addr, &scratch)?;
            serde_json::to_string(&result)?
        }
        Role::Client => {
            let payload = Payload::new(options.seed, options.size)?;
            let result = side_client(options, subject, server_addr, client_addr, &scratch, &payload)?;
            serde_json::to_string(&result)?
        }
    };
    println!("{line}");
    Ok(())
}

fn side_server(
    options: &Options,
    subject: Subject,
    addr: SocketAddr,
    client: SocketAddr,
    scratch: &Path,
) -> Result<ServerResult, Failure> {
    let announce = Announce(());
    match subject {
        Subject::Tcp => tcp::server(options, addr, announce),
        Subject::Tls => tls::server(options, addr, scratch, announce),
        Subject::Quinn | Subject::QuinnLarge => quic::server(options, subject, addr, scratch, announce),
        Subject::Pilotage | Subject::PilotageLarge => {
            pilotage_peer::server(options, subject, addr, client, announce)
        }
    }
}

fn side_client(
    options: &Options,
    subject: Subject,
    addr: SocketAddr,
    local: SocketAddr,
    scratch: &Path,
    payload: &Payload,
) -> Result<ClientResult, Failure> {
    match subject {
        Subject::Tcp => tcp::client(options, addr, payload),
        Subject::Tls => tls::client(options, addr, scratch, payload),
        Subject::Quinn | Subject::QuinnLarge => quic::client(options, subject, addr, scratch, payload),
        Subject::Pilotage | Subject::PilotageLarge => {
            pilotage_peer::client(options, subject, addr, local, payload)
        }
    }
}

/// Runs all contenders, interleaved, and returns the report.
pub fn run_all(options: &Options) -> Result<Report, Failure> {
    let subjects: Vec<Subject> =
        Subject::ALL.into_iter().filter(|s| options.only.is_empty() || options.only.contains(s)).collect();
    if options.boost {
        // Needs root and CONFIG_SCHED_AUTOGROUP; without it the run is only noisier.
        if let Err(error) = std::fs::write("/proc/self/autogroup", "-20") {
            eprintln!("transfer: --boost has no effect: {error}");
        }
    }
    let mut runs: BTreeMap<Subject, Vec<Run>> = BTreeMap::new();
    let mut failures = Vec::new();
    for repeat in 1..=options.repeats {
        for &subject in &subjects {
            eprintln!("transfer: repeat {repeat}/{}: {}", options.repeats, subject.name());
            match run_clean(options, subject) {
                Ok(run) => runs.entry(subject).or_default().push(run),
                Err(error) => {
                    eprintln!("transfer: {}: {error}", subject.name());
                    failures.push(format!("{} (repeat {repeat}): {error}", subject.name()));
                }
            }
        }
    }
    Ok(Report::new(options, &subjects, runs, failures))
}

/// Repeats a run that foreign load spoiled; returns the last one if none was clean (the report marks it).
fn run_clean(options: &Options, subject: Subject) -> Result<Run, Failure> {
    let mut attempt = 0;
    loop {
        wait_for_idle(options.foreign_limit, Duration::from_secs(options.idle_wait))?;
        let run = run_once(options, subject)?;
        let clean = run.foreign_percent.is_none_or(|foreign| foreign <= options.foreign_limit);
        if clean || attempt == MAX_RETRIES {
            return Ok(run);
        }
        attempt += 1;
        eprintln!(
            "transfer: {} again: others used {:.0} % of a core",
            subject.name(),
            run.foreign_percent.unwrap_or_default()
        );
    }
}

fn run_once(options: &Options, subject: Subject) -> Result<Run, Failure> {
    let scratch = Scratch::new()?;
    let guard = LoadGuard::start()?;
    let (server_addr, client_addr) = (free_address()?, free_address()?);
    let mut server = Side::start(options, subject, Role::Server, server_addr, client_addr, &scratch.0)?;
    if server.line()? != "ready" {
        return Err("receiver: did not get ready".into());
    }
    let mut client = Side::start(options, subject, Role::Client, server_addr, client_addr, &scratch.0)?;
    let sent: ClientResult = client.result().map_err(|e| format!("sender: {e}"))?;
    let received: ServerResult = server.result().map_err(|e| format!("receiver: {e}"))?;
    client.wait()?;
    server.wait()?;
    Ok(Run::new(options.size, sent, received, guard.foreign_percent()?))
}

/// A port that is free for TCP and UDP just now.
fn free_address() -> Result<SocketAddr, Failure> {
    for _ in 0..64 {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let addr = listener.local_addr()?;
        if UdpSocket::bind(addr).is_ok() {
            return Ok(addr);
        }
    }
    Err("no port is free for both TCP and UDP".into())
}

/// A folder that is removed in the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self, Failure> {
        let stamp = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_nanos();
        let path = std::env::temp_dir().join(format!("pilotage-transfer-{}-{stamp}", std::process::id()));
        std::fs::create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A leftover folder in the temporary directory harms nothing.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// One child process and its standard output.
struct Side {
    child: Child,
    lines: std::sync::mpsc::Receiver<String>,
    deadline: Instant,
}

impl Side {
    fn start(
        options: &Options,
        subject: Subject,
        role: Role,
        server: SocketAddr,
        client: SocketAddr,
        scratch: &Path,
    ) -> Result<Self, Failure> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["--role", if role == Role::Server { "server" } else { "client" }])
            .args(["--only", subject.name()])
            .args(["--size", &options.size.to_string()])
            .args(["--round-trips", &options.round_trips.to_string()])
            .args(["--seed", &options.seed.to_string()])
            .args(["--tcp-congestion", &options.tcp_congestion])
            .args(["--congestion", options.congestion.name()])
            .args(["--verify", if options.verify == Verify::After { "after" } else { "inline" }])
            .args(["--cores", &options.cores.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")])
            .args(["--server-addr", &server.to_string()])
            .args(["--client-addr", &client.to_string()])
            .arg("--scratch")
            .arg(scratch)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = child.stdout.take().ok_or("the child has no standard output")?;
        let (sender, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || read_lines(stdout, &sender));
        Ok(Self { child, lines, deadline: Instant::now() + RUN_LIMIT })
    }

    fn line(&mut self) -> Result<String, Failure> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        self.lines.recv_timeout(left).map_err(|e| match e {
            std::sync::mpsc::RecvTimeoutError::Timeout => "took too long and was stopped".into(),
            std::sync::mpsc::RecvTimeoutError::Disconnected => "ended early (its message is above)".into(),
        })
    }

    fn result<T: serde::de::DeserializeOwned>(&mut self) -> Result<T, Failure> {
        Ok(serde_json::from_str(&self.line()?)?)
    }

    /// Waits for the end, so that its CPU time counts as ours.
    fn wait(&mut self) -> Result<(), Failure> {
        while Instant::now() < self.deadline {
            if let Some(status) = self.child.try_wait()? {
                return if status.success() { Ok(()) } else { Err(format!("ended with {status}").into()) };
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Err("did not end in time".into())
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            // It may have ended in between: then there is nothing to stop.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn read_lines(stdout: impl Read, sender: &std::sync::mpsc::Sender<String>) {
    for line in BufReader::new(stdout).lines() {
        let Ok(line) = line else { return };
        if sender.send(line).is_err() {
            return;
        }
    }
}
