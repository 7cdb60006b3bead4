//! One side of a run: a child process, and what happens in it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::Failure;
use crate::control::{self, Left};
use crate::measure::pin_to_core;
use crate::settings::{Options, Role};
use crate::subject::Subject;
use crate::transport::{Announce, Setup};
use crate::work::{self, Work};

/// How long one side may take in all before it is stopped.
const RUN_LIMIT: Duration = Duration::from_secs(120);

/// Addresses of one run.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    /// Of the server, TCP and UDP.
    pub server: SocketAddr,
    /// Of the client, UDP.
    pub client: SocketAddr,
    /// Of the control connection, TCP.
    pub control: SocketAddr,
}

/// Runs as one side of one subject. The client prints its measurements as one line of JSON.
pub fn run(options: &Options, role: Role) -> Result<(), Failure> {
    let [subject] = options.only[..] else { return Err("one side runs exactly one subject".into()) };
    let [work] = options.work[..] else { return Err("one side runs exactly one work".into()) };
    let control = options.control_addr.ok_or("--control-addr is missing")?;
    let setup = Setup {
        subject,
        api: work.api(options),
        server: options.server_addr.ok_or("--server-addr is missing")?,
        client: options.client_addr.ok_or("--client-addr is missing")?,
        scratch: options.scratch.clone().ok_or("--scratch is missing")?,
        congestion: options.congestion,
        many_streams: work.many_streams(options),
    };
    let (server_core, client_core) = options.cores_of(work);
    match role {
        Role::Server => {
            pin_to_core(server_core)?;
            serve(work, options, setup, control)
        }
        Role::Client => {
            pin_to_core(client_core)?;
            let outcome = work::drive(work, options, &setup, control)?;
            println!("{}", serde_json::to_string(&outcome)?);
            Ok(())
        }
    }
}

/// The work is served by a thread of its own; this one answers the control connection and ends the process.
fn serve(work: Work, options: &Options, setup: Setup, control: SocketAddr) -> Result<(), Failure> {
    let listener = TcpListener::bind(control)?;
    let left = Left::default();
    let (announce, ready) = mpsc::channel();
    let (failed, failure) = mpsc::channel();
    let (options, given) = (options.clone(), left.clone());
    std::thread::spawn(move || {
        if let Err(error) = work::serve(work, &options, &setup, Announce(Some(announce)), &given) {
            eprintln!("transfer: server: {error}");
            // Nobody waits for it any more once the server was ready.
            let _ = failed.send(error);
        }
    });
    if ready.recv().is_err() {
        return Err(failure.recv().unwrap_or_else(|_| "the server did not get ready".into()));
    }
    let mut out = std::io::stdout().lock();
    out.write_all(b"ready\n")?;
    out.flush()?;
    control::answer(&listener, &left)
}

/// One child process and its standard output.
#[derive(Debug)]
pub struct Side {
    child: Child,
    lines: mpsc::Receiver<String>,
    deadline: Instant,
}

impl Side {
    /// Starts one side.
    pub fn start(
        options: &Options,
        work: Work,
        subject: Subject,
        role: Role,
        addresses: Addresses,
        scratch: &Path,
    ) -> Result<Self, Failure> {
        let cores = options.cores.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let mut command = Command::new(std::env::current_exe()?);
        if let Some(api) = options.api {
            command.args(["--api", api.name()]);
        }
        let mut child = command
            .args(["--role", if role == Role::Server { "server" } else { "client" }])
            .args(["--only", subject.name(), "--work", work.name(), "--cores", &cores])
            .args(["--size", &options.size.to_string()])
            .args(["--round-trips", &options.round_trips.to_string()])
            .args(["--fetches", &options.fetches.to_string()])
            .args(["--contacts", &options.contacts.to_string()])
            .args(["--idle", &options.idle.to_string()])
            .args(["--seed", &options.seed.to_string()])
            .args(["--congestion", options.congestion.name()])
            .args(["--server-addr", &addresses.server.to_string()])
            .args(["--client-addr", &addresses.client.to_string()])
            .args(["--control-addr", &addresses.control.to_string()])
            .arg("--scratch")
            .arg(scratch)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = child.stdout.take().ok_or("the child has no standard output")?;
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || read_lines(stdout, &sender));
        Ok(Self { child, lines, deadline: Instant::now() + RUN_LIMIT })
    }

    /// The next line of its standard output.
    pub fn line(&mut self) -> Result<String, Failure> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        self.lines.recv_timeout(left).map_err(|e| match e {
            mpsc::RecvTimeoutError::Timeout => "took too long and was stopped".into(),
            mpsc::RecvTimeoutError::Disconnected => "ended early (its message is above)".into(),
        })
    }

    /// Waits for the end, so that its CPU time counts as ours.
    pub fn wait(&mut self) -> Result<(), Failure> {
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

fn read_lines(stdout: impl Read, sender: &mpsc::Sender<String>) {
    for line in BufReader::new(stdout).lines() {
        let Ok(line) = line else { return };
        if sender.send(line).is_err() {
            return;
        }
    }
}
