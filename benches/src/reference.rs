//! The Go reference as a black box: its own programs on loopback, as its documentation starts them.
//!
//! Its daemons have no library that could run our works, so it takes part in one: its own `bench` command, 1 MiB to the
//! echo service of another daemon and back. The programs `rendezvous`, `daemon` and `pilotctl` are looked for in the folder
//! `PILOT_REF_BIN`; without it the subject is skipped, loudly.

use std::fs::File;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Failure;
use crate::measure::{pin_to_core, process_cpu_time, unpin};
use crate::work::{Outcome, Work, echo};

/// The variable that names the folder of its programs.
pub const FOLDER: &str = "PILOT_REF_BIN";
/// How long its programs may take to be ready.
const START_WAIT: Duration = Duration::from_secs(20);
/// What its `bench` may take. With its usual socket buffers it needs some seconds.
const BENCH_WAIT: &str = "90s";

/// The folder, if there is one.
pub fn folder() -> Option<PathBuf> {
    std::env::var_os(FOLDER).filter(|folder| !folder.is_empty()).map(PathBuf::from)
}

/// A process that ends with its owner.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended already: then there is nothing to stop.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Where everything of one run is.
struct Stage<'a> {
    programs: PathBuf,
    scratch: &'a Path,
    registry: SocketAddr,
    beacon: SocketAddr,
}

/// Runs its `bench` between two fresh daemons, one on each core.
pub fn run(
    work: Work,
    cores: (usize, usize),
    scratch: &Path,
    free: impl Fn() -> Result<SocketAddr, Failure>,
) -> Result<Outcome, Failure> {
    if work != Work::EchoMib {
        return Err("the reference takes part in `echo-1mib` only".into());
    }
    let programs = folder().ok_or_else(|| format!("{FOLDER} is not set"))?;
    let stage = Stage { programs, scratch, registry: free()?, beacon: free()? };
    let _hub = stage.hub()?;
    let server = stage.daemon("server", cores.0, free()?)?;
    let client = stage.daemon("client", cores.1, free()?)?;
    // Once beforehand, so that the tunnel is up, as for everybody.
    stage.pilotctl("client", &["ping", "server", "--count", "1"])?;
    let cpu = || -> Result<Duration, Failure> {
        Ok(process_cpu_time(server.0.id())? + process_cpu_time(client.0.id())?)
    };
    let before = cpu()?;
    let said = stage.pilotctl("client", &["bench", "server", "1", "--timeout", BENCH_WAIT])?;
    let used = cpu()?.saturating_sub(before);
    let said: serde_json::Value = serde_json::from_str(&said)?;
    let data = said.get("data").unwrap_or(&said);
    if data["recv_bytes"].as_u64() != Some(echo::SIZE as u64) {
        return Err(format!("reference: bench says {said}").into());
    }
    let milliseconds = data["total_duration_ms"].as_f64().ok_or("reference: bench without a duration")?;
    Ok(echo::outcome(milliseconds / 1e3, used.as_secs_f64()))
}

impl Stage<'_> {
    fn command(&self, program: &str, home: &str) -> Result<Command, Failure> {
        let home = self.scratch.join(home);
        std::fs::create_dir_all(&home)?;
        let mut command = Command::new(self.programs.join(program));
        command.env("HOME", &home).current_dir(&home).stdin(Stdio::null());
        Ok(command)
    }

    fn start(&self, mut command: Command, home: &str) -> Result<Daemon, Failure> {
        let log = File::create(self.scratch.join(home).join("log"))?;
        command.stdout(log.try_clone()?).stderr(log);
        Ok(Daemon(command.spawn().map_err(|e| format!("reference: {e}"))?))
    }

    fn hub(&self) -> Result<Daemon, Failure> {
        let mut command = self.command("rendezvous", "hub")?;
        command.args([
            "-registry-addr",
            &self.registry.to_string(),
            "-beacon-addr",
            &self.beacon.to_string(),
        ]);
        command.args(["-admin-token", "bench", "-store", "store.json"]);
        let hub = self.start(command, "hub")?;
        wait("its registry does not listen", || TcpStream::connect(self.registry).is_ok())?;
        Ok(hub)
    }

    fn daemon(&self, name: &str, core: usize, listen: SocketAddr) -> Result<Daemon, Failure> {
        let mut command = self.command("daemon", name)?;
        command.args(["-registry", &self.registry.to_string(), "-beacon", &self.beacon.to_string()]);
        command.args(["-listen", &listen.to_string(), "-hostname", name, "-public"]);
        command.args(["-email", &format!("{name}@example.test"), "-socket", "pilot.sock"]);
        command.args(["-identity", "identity.json"]);
        // Children inherit the cores of their parent.
        pin_to_core(core)?;
        let started = self.start(command, name);
        unpin()?;
        let daemon = started?;
        wait("a daemon does not answer", || self.pilotctl(name, &["info"]).is_ok())?;
        Ok(daemon)
    }

    /// What its command line tool says as JSON about the daemon of this name.
    fn pilotctl(&self, name: &str, arguments: &[&str]) -> Result<String, Failure> {
        let mut command = self.command("pilotctl", name)?;
        command.env("PILOT_SOCKET", self.scratch.join(name).join("pilot.sock"));
        command.env("PILOT_REGISTRY", self.registry.to_string()).env("PILOT_ADMIN_TOKEN", "bench");
        let out = command.arg("--json").args(arguments).output()?;
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        if out.status.success() {
            return Ok(text);
        }
        let error = String::from_utf8_lossy(&out.stderr).into_owned();
        Err(format!("reference: pilotctl {}: {text}{error}", arguments.join(" ")).into())
    }
}

fn wait(problem: &str, mut done: impl FnMut() -> bool) -> Result<(), Failure> {
    let deadline = Instant::now() + START_WAIT;
    while Instant::now() < deadline {
        if done() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Err(format!("reference: {problem} after {START_WAIT:?}").into())
}
