//! Daemons of the reference behind the NATs: with each other, and with our nodes, by our hub.
//!
//! They run only where `PILOT_REF_BIN` names the folder of their programs.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use pilotage_lab::Namespace;
use pilotage_lab::nat::{NatKind, World, WorldConfig};
use serde_json::Value;

use crate::Failure;
use crate::echo::Echo;
use crate::pair::millis;
use crate::party::{REGISTRY, Stage};
use crate::program::Program;
use crate::scenario::Seen;
use crate::stop;

/// How long a daemon may take until it answers its tool.
const READY: Duration = Duration::from_secs(20);
/// How long its tool may take to connect.
const CONNECT: Duration = Duration::from_secs(40);
/// Where our node hears it in the meantime.
const TICK: Duration = Duration::from_millis(50);
const TEXT: &str = "hello from behind a NAT";

/// Who dials whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Roles {
    ReferenceToOurs,
    OursToReference,
    ReferenceToReference,
}

impl Roles {
    pub(crate) const ALL: [Self; 3] =
        [Self::ReferenceToOurs, Self::OursToReference, Self::ReferenceToReference];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::ReferenceToOurs => "reference dials ours",
            Self::OursToReference => "ours dials reference",
            Self::ReferenceToReference => "reference dials reference",
        }
    }
}

/// Pairs that the reference must manage: one of each sort.
pub(crate) const PAIRS: [(NatKind, NatKind); 5] = [
    (NatKind::PortRestricted, NatKind::None),
    (NatKind::PortRestricted, NatKind::FullCone),
    (NatKind::Restricted, NatKind::Double),
    (NatKind::SymmetricRandom, NatKind::PortRestricted),
    (NatKind::SymmetricRandom, NatKind::SymmetricSequential),
];

/// The reference's programs.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    folder: PathBuf,
}

impl Programs {
    /// Looks where `PILOT_REF_BIN` points. `None`: it points nowhere.
    pub(crate) fn find() -> Option<Self> {
        let folder = PathBuf::from(std::env::var_os("PILOT_REF_BIN")?);
        let complete = ["daemon", "pilotctl"].iter().all(|name| folder.join(name).is_file());
        complete.then_some(Self { folder })
    }

    /// Runs its tool to the end, in JSON.
    fn tool(&self, room: &Namespace, state: &Path, registry: &str, words: &[&str]) -> Result<Value, Failure> {
        let mut command = room.command(self.folder.join("pilotctl"));
        command.arg("--json").args(words).env("HOME", state).env("PILOT_SOCKET", state.join("pilot.sock"));
        command.env("PILOT_REGISTRY", registry).stdin(Stdio::null());
        let output = command.output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            let errors = String::from_utf8_lossy(&output.stderr);
            return Err(format!("pilotctl: {} {}", text.trim(), errors.trim()).into());
        }
        Ok(serde_json::from_str(text.trim()).unwrap_or(Value::String(text.into_owned())))
    }
}

/// A daemon that answers its tool. It is killed when this is dropped.
struct Daemon<'a> {
    program: Program,
    programs: &'a Programs,
    state: PathBuf,
    registry: String,
    room: &'a Namespace,
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        self.program.kill();
    }
}

impl<'a> Daemon<'a> {
    fn start(
        programs: &'a Programs,
        folder: &Path,
        world: &'a World,
        side: usize,
        name: &str,
    ) -> Result<Self, Failure> {
        let state = folder.join(name);
        std::fs::create_dir_all(&state)?;
        let hub = world.hub_address(NatKind::None, 0);
        let (registry, beacon) = (format!("{hub}:{REGISTRY}"), format!("{hub}:{}", REGISTRY + 1));
        let path = |file: &str| state.join(file).display().to_string();
        let (socket, identity, email) =
            (path("pilot.sock"), path("identity.json"), format!("{name}@example.test"));
        let args = [
            "-registry",
            &registry,
            "-beacon",
            &beacon,
            "-listen",
            "0.0.0.0:4000",
            "-hostname",
            name,
            "-public",
            "-email",
            &email,
            "-socket",
            &socket,
            "-identity",
            &identity,
        ];
        let home: [(&str, &OsStr); 1] = [("HOME", state.as_os_str())];
        let room = world.side(side).host();
        let program = Program::start(room, folder, name, &programs.folder.join("daemon"), &args, &home)?;
        let daemon = Self { program, programs, state, registry, room };
        let end = Instant::now() + READY;
        while let Err(error) = daemon.tool(&["info"]) {
            stop::check()?;
            if Instant::now() >= end {
                return Err(format!(
                    "the reference daemon {name} is not ready: {error}; {}",
                    daemon.program.complaint()
                )
                .into());
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(daemon)
    }

    fn tool(&self, words: &[&str]) -> Result<Value, Failure> {
        self.programs.tool(self.room, &self.state, &self.registry, words)
    }

    /// Sends a text to the peer's echo service. Says how long it took.
    fn echo(&self, peer: &str) -> Result<Duration, Failure> {
        let begun = Instant::now();
        let timeout = format!("{}s", CONNECT.as_secs());
        let reply = self.tool(&["connect", peer, "7", "--message", TEXT, "--timeout", &timeout])?;
        if reply.to_string().matches(TEXT).count() < 2 {
            return Err(format!("the echo did not come back: {reply}").into());
        }
        Ok(begun.elapsed())
    }
}

/// One run.
pub(crate) fn run(
    programs: &Programs,
    binary: &Path,
    folder: &Path,
    roles: Roles,
    (from, to): (NatKind, NatKind),
) -> Result<Seen, Failure> {
    let world = World::new(&[from, to], &WorldConfig::default())?;
    let stage = Stage::new(binary, folder);
    let _hub = stage.hub_with(&world, 0, &["--allow-unsigned"])?;
    let text = match roles {
        Roles::ReferenceToReference => {
            let _bob = Daemon::start(programs, folder, &world, 1, "bob")?;
            let alice = Daemon::start(programs, folder, &world, 0, "alice")?;
            format!("echo after {} ms", millis(alice.echo("bob")?))
        }
        Roles::ReferenceToOurs => {
            let mut bob = stage.node(&world, world.side(1).host(), to, "bob")?;
            let alice = Daemon::start(programs, folder, &world, 0, "alice")?;
            bob.settle(&stage)?;
            let time = alice.echo("bob")?;
            let path = bob.status(&stage)?["peers"][0]["path"]["kind"].as_str().unwrap_or("none").to_owned();
            format!("echo after {} ms, our node's path: {path}", millis(time))
        }
        Roles::OursToReference => {
            let _bob = Daemon::start(programs, folder, &world, 1, "bob")?;
            let mut alice = stage.node(&world, world.side(0).host(), from, "alice")?;
            alice.settle(&stage)?;
            let mut echo = Echo::dial(binary, world.side(0).host(), &alice.state, "bob", TICK, folder)?;
            let time = echo.wait(CONNECT)?;
            std::thread::sleep(Duration::from_secs(3));
            let path =
                alice.status(&stage)?["peers"][0]["path"]["kind"].as_str().unwrap_or("none").to_owned();
            let outcome = echo.finish();
            let text = format!(
                "first byte after {} ms, path after 3 s: {path}, {} numbers lost",
                millis(time),
                outcome.lost
            );
            return Ok(Seen::new(text, Some(outcome.lost == 0)));
        }
    };
    Ok(Seen::new(text, Some(true)))
}
