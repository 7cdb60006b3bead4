//! The implementations under test, each driven by its own command line.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::Failure;
use crate::driver::Driver;
use crate::process::{Background, accepts, free_address, run};

/// Which implementation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// This repository.
    Pilotage,
    /// The Go programs published with the draft.
    Reference,
}

/// Where the programs are.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    pilotage: PathBuf,
    reference: Option<PathBuf>,
    /// Folder of the reference's Python package.
    pub(crate) python: Option<PathBuf>,
    /// Folder of its Node package.
    pub(crate) node: Option<PathBuf>,
    /// The reference signs no registration: our hub has to be told to take that.
    hub_switch: bool,
    /// Names of the commands of ours.
    commands: Vec<String>,
    /// Our node offers the reference's local socket.
    pub(crate) local_socket: bool,
}

/// The hub's option that lets nodes register without proof of possession.
const HUB_SWITCH: &str = "--allow-unsigned";
/// The option of `up` that names a socket for the reference's drivers.
const LOCAL_SOCKET: &str = "--ipc";

/// A running registry and beacon, or how nodes see one.
#[derive(Debug)]
pub(crate) struct Hub {
    pub(crate) registry: SocketAddr,
    /// None: nodes are told of no beacon.
    pub(crate) beacon: Option<SocketAddr>,
    process: Option<Background>,
}

/// Of every hub that is started here.
pub(crate) const ADMIN_TOKEN: &str = "interop-runner";

impl Hub {
    /// The same hub by another address of its registry, and without a beacon.
    pub(crate) fn seen_at(&self, registry: SocketAddr) -> Self {
        Self { registry, beacon: None, process: None }
    }

    /// Ends its process.
    pub(crate) fn stop(&mut self) {
        self.process = None;
    }
}

/// One node: its state folder, its name, and its process where the implementation has one.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) kind: Kind,
    pub(crate) folder: PathBuf,
    pub(crate) name: &'static str,
    /// As text, where it is known.
    pub(crate) address: String,
    process: Option<Background>,
}

impl Node {
    /// Memory of its process in KiB, where it has one and the system tells.
    pub(crate) fn memory_kb(&self) -> Option<u64> {
        let path = format!("/proc/{}/status", self.process.as_ref()?.id());
        let text = std::fs::read_to_string(path).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.split_whitespace().next()?.parse().ok()
    }

    /// Ends its process.
    pub(crate) fn stop(&mut self) {
        self.process = None;
    }

    /// What its process has printed.
    pub(crate) fn output(&self) -> String {
        self.process.as_ref().map(Background::output).unwrap_or_default()
    }
}

impl Programs {
    /// Finds or builds the programs.
    pub(crate) fn find(
        pilotage: Option<&Path>,
        reference: Option<&Path>,
        python: Option<&Path>,
        node: Option<&Path>,
    ) -> Result<Self, Failure> {
        let packages = [
            ("PILOT_REF_PYTHON", python, "pilotprotocol/__init__.py"),
            ("PILOT_REF_NODE", node, "dist/index.js"),
        ];
        for (variable, folder, file) in packages {
            if let Some(folder) = folder.filter(|folder| !folder.join(file).is_file()) {
                return Err(format!("{variable}: {} has no {file}", folder.display()).into());
            }
        }
        if let Some(folder) = reference {
            for name in ["rendezvous", "daemon", "pilotctl"] {
                if !folder.join(name).is_file() {
                    return Err(format!("PILOT_REF_BIN: {} has no program `{name}`", folder.display()).into());
                }
            }
        }
        let pilotage = match pilotage {
            Some(path) if path.is_file() => path.to_path_buf(),
            Some(path) => return Err(format!("PILOTAGE_BIN: {} is no file", path.display()).into()),
            None => build_pilotage()?,
        };
        let help = run(Command::new(&pilotage).args(["hub", "--help"]), &[], Duration::from_secs(10))?;
        let hub_switch = String::from_utf8_lossy(&help).contains(HUB_SWITCH);
        let help = run(Command::new(&pilotage).arg("--help"), &[], Duration::from_secs(10))?;
        let commands = String::from_utf8_lossy(&help)
            .lines()
            .skip_while(|line| *line != "Commands:")
            .skip(1)
            .map_while(|line| line.strip_prefix("  ")?.split_whitespace().next().map(str::to_owned))
            .collect();
        let help = run(Command::new(&pilotage).args(["up", "--help"]), &[], Duration::from_secs(10))?;
        let local_socket = String::from_utf8_lossy(&help).contains(LOCAL_SOCKET);
        let reference = reference.map(Path::to_path_buf);
        let [python, node] = [python, node].map(|folder| folder.map(Path::to_path_buf));
        Ok(Self { pilotage, reference, python, node, hub_switch, commands, local_socket })
    }

    /// The pilotage program.
    pub(crate) fn pilotage_path(&self) -> &Path {
        &self.pilotage
    }

    /// Whether the program under test has this command.
    pub(crate) fn has_command(&self, name: &str) -> bool {
        self.commands.iter().any(|command| command == name)
    }

    /// Why a case with these parts cannot run here, if so.
    pub(crate) fn obstacle(&self, hub: Kind, nodes: [Kind; 2]) -> Option<&'static str> {
        let reference_node = nodes.contains(&Kind::Reference);
        if (reference_node || hub == Kind::Reference) && self.reference.is_none() {
            return Some("set PILOT_REF_BIN to the folder of the reference's programs");
        }
        (hub == Kind::Pilotage && reference_node && !self.hub_switch)
            .then_some("this pilotage hub has no option to take the reference's unsigned registrations")
    }

    /// Starts a hub and waits until its registry accepts connections.
    pub(crate) fn start_hub(&self, kind: Kind, folder: &Path) -> Result<Hub, Failure> {
        self.start_hub_at(kind, folder, free_address()?, free_address()?)
    }

    /// The same at these addresses.
    pub(crate) fn start_hub_at(
        &self,
        kind: Kind,
        folder: &Path,
        registry: SocketAddr,
        beacon: SocketAddr,
    ) -> Result<Hub, Failure> {
        let mut command = match kind {
            Kind::Pilotage => {
                let mut command = Command::new(&self.pilotage);
                command.args(["hub", "--listen", "127.0.0.1", "--state"]).arg(folder);
                command.args(["--registry-port", &registry.port().to_string()]);
                command.args(["--beacon-port", &beacon.port().to_string()]);
                command.args(self.hub_switch.then_some(HUB_SWITCH));
                command.env("PILOTAGE_ADMIN_TOKEN", ADMIN_TOKEN);
                command
            }
            Kind::Reference => {
                let mut command = self.reference_program("rendezvous", folder)?;
                command.args(["-registry-addr", &registry.to_string(), "-beacon-addr", &beacon.to_string()]);
                command.args(["-admin-token", ADMIN_TOKEN, "-store"]).arg(folder.join("store.json"));
                command
            }
        };
        let mut process = Background::start(&mut command, &folder.join("log"))?;
        process.wait_until("hub", || accepts(registry))?;
        Ok(Hub { registry, beacon: Some(beacon), process: Some(process) })
    }

    /// Starts a node that answers, and waits until it is registered.
    pub(crate) fn start_responder(
        &self,
        kind: Kind,
        folder: PathBuf,
        name: &'static str,
        hub: &Hub,
    ) -> Result<Node, Failure> {
        let process = match kind {
            Kind::Pilotage => {
                let mut command = self.pilotage("up", &folder, hub);
                // At a hub of the reference a node is private unless it says otherwise.
                command.args(["--bind", "127.0.0.1:0", "--name", name, "--public"]);
                let mut process = Background::start(&mut command, &folder.join("log"))?;
                let mut status = Command::new(&self.pilotage);
                status.args(["status", "--json", "--state"]).arg(&folder);
                process.wait_until("responder", || is_registered(&mut status))?;
                process
            }
            Kind::Reference => self.start_daemon(&folder, name, free_address()?, hub, false)?,
        };
        Ok(Node { kind, folder, name, address: String::new(), process: Some(process) })
    }

    /// Prepares a node that begins. Pilotage commands are nodes of their own; the reference needs its daemon.
    pub(crate) fn start_initiator(
        &self,
        kind: Kind,
        folder: PathBuf,
        name: &'static str,
        hub: &Hub,
    ) -> Result<Node, Failure> {
        let process = match kind {
            Kind::Pilotage => None,
            Kind::Reference => Some(self.start_daemon(&folder, name, free_address()?, hub, false)?),
        };
        Ok(Node { kind, folder, name, address: String::new(), process })
    }

    /// Starts a reference daemon at this UDP address.
    pub(crate) fn start_daemon_at(
        &self,
        folder: PathBuf,
        name: &'static str,
        endpoint: SocketAddr,
        hub: &Hub,
        private: bool,
    ) -> Result<Node, Failure> {
        let process = self.start_daemon(&folder, name, endpoint, hub, private)?;
        let info = Driver::open(&folder.join("pilot.sock"))?.info()?;
        let address = info["address"].as_str().ok_or("info without address")?.to_owned();
        Ok(Node { kind: Kind::Reference, folder, name, address, process: Some(process) })
    }

    /// Starts `pilotage up` at this UDP address.
    pub(crate) fn start_up_at(
        &self,
        folder: PathBuf,
        name: &'static str,
        endpoint: SocketAddr,
        hub: &Hub,
        private: bool,
    ) -> Result<Node, Failure> {
        // At a hub of ours a node is public unless it says otherwise.
        let options: &[&str] = if private { &["--private", "--guard"] } else { &[] };
        self.start_up_with(folder, name, endpoint, hub, options)
    }

    /// The same with more options.
    pub(crate) fn start_up_with(
        &self,
        folder: PathBuf,
        name: &'static str,
        endpoint: SocketAddr,
        hub: &Hub,
        options: &[&str],
    ) -> Result<Node, Failure> {
        let mut command = self.pilotage("up", &folder, hub);
        command.args(["--json", "--bind", &endpoint.to_string(), "--name", name]).args(options);
        if self.local_socket {
            command.arg(LOCAL_SOCKET).arg(folder.join("pilot.sock"));
        }
        let mut process = Background::start(&mut command, &folder.join("log"))?;
        let ready = process.wait_for_event("ready")?;
        let mut status = Command::new(&self.pilotage);
        status.args(["status", "--json", "--state"]).arg(&folder);
        process.wait_until("responder", || is_registered(&mut status))?;
        let address = ready["address"].as_str().ok_or("ready without address")?.to_owned();
        Ok(Node { kind: Kind::Pilotage, folder, name, address, process: Some(process) })
    }

    /// Makes the identity of a Pilotage node without starting it.
    pub(crate) fn place_for(&self, folder: PathBuf, name: &'static str) -> Result<Node, Failure> {
        let mut command = Command::new(&self.pilotage);
        command.args(["id", "new", "--json", "--state"]).arg(&folder);
        let text = run(&mut command, &[], Duration::from_secs(10))?;
        let value: serde_json::Value = serde_json::from_slice(&text)?;
        let address = find_key(&value, "address").and_then(serde_json::Value::as_str);
        let address = address.ok_or("id new without address")?.to_owned();
        Ok(Node { kind: Kind::Pilotage, folder, name, address, process: None })
    }

    /// A pilotage command on this state folder and hub.
    pub(crate) fn pilotage(&self, command: &str, folder: &Path, hub: &Hub) -> Command {
        let mut process = self.pilotage_alone(command, folder);
        process.args(["--registry", &hub.registry.to_string()]);
        if let Some(beacon) = hub.beacon {
            process.args(["--beacon", &beacon.to_string()]);
        }
        process
    }

    /// A pilotage command on this state folder, without a hub and free of the settings of whoever runs this.
    pub(crate) fn pilotage_alone(&self, command: &str, folder: &Path) -> Command {
        let mut process = Command::new(&self.pilotage);
        for (name, _) in
            std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PILOTAGE_"))
        {
            process.env_remove(name);
        }
        process.env_remove("RUST_LOG").env("XDG_CONFIG_HOME", folder);
        process.arg(command).arg("--state").arg(folder);
        process
    }

    /// A pilotctl command on the daemon of this folder.
    pub(crate) fn pilotctl(&self, folder: &Path, hub: &Hub) -> Result<Command, Failure> {
        let mut command = self.pilotctl_for_people(folder, hub)?;
        command.arg("--json");
        Ok(command)
    }

    /// The same without `--json`.
    pub(crate) fn pilotctl_for_people(&self, folder: &Path, hub: &Hub) -> Result<Command, Failure> {
        let mut command = self.reference_program("pilotctl", folder)?;
        command
            .env("PILOT_SOCKET", folder.join("pilot.sock"))
            .env("PILOT_REGISTRY", hub.registry.to_string())
            .env("PILOT_ADMIN_TOKEN", ADMIN_TOKEN);
        Ok(command)
    }

    fn start_daemon(
        &self,
        folder: &Path,
        name: &str,
        endpoint: SocketAddr,
        hub: &Hub,
        private: bool,
    ) -> Result<Background, Failure> {
        // A socket that an earlier process left behind would answer nobody.
        let _ = std::fs::remove_file(folder.join("pilot.sock"));
        let mut command = self.reference_program("daemon", folder)?;
        // Without these its defaults are public addresses.
        let beacon = hub.beacon.map(|beacon| beacon.to_string()).unwrap_or_default();
        command.args(["-registry", &hub.registry.to_string(), "-beacon", &beacon]);
        command.args(["-listen", &endpoint.to_string(), "-hostname", name]);
        if !private {
            command.arg("-public");
        }
        command.args(["-email", &format!("{name}@example.test")]);
        command.arg("-socket").arg(folder.join("pilot.sock"));
        command.arg("-identity").arg(folder.join("identity.json"));
        let mut process = Background::start(&mut command, &folder.join("log"))?;
        let mut info = self.pilotctl(folder, hub)?;
        info.arg("info");
        process.wait_until("reference daemon", || run(&mut info, &[], Duration::from_secs(5)).is_ok())?;
        Ok(process)
    }

    fn reference_program(&self, name: &str, folder: &Path) -> Result<Command, Failure> {
        let programs = self.reference.as_ref().ok_or("PILOT_REF_BIN is not set")?;
        let mut command = Command::new(programs.join(name));
        command.env("HOME", folder);
        Ok(command)
    }
}

/// Whether `status --json` says that the node is registered with its hub.
fn is_registered(status: &mut Command) -> bool {
    let Ok(text) = run(status, &[], Duration::from_secs(5)) else { return false };
    let Ok(value) = serde_json::from_slice::<serde_json::Value>(&text) else { return false };
    find_key(&value, "registered").and_then(serde_json::Value::as_bool).unwrap_or(false)
}

/// The first value of this key, at any depth.
fn find_key<'a>(value: &'a serde_json::Value, key: &str) -> Option<&'a serde_json::Value> {
    match value {
        serde_json::Value::Object(map) => {
            map.get(key).or_else(|| map.values().find_map(|inner| find_key(inner, key)))
        }
        serde_json::Value::Array(list) => list.iter().find_map(|inner| find_key(inner, key)),
        _ => None,
    }
}

fn build_pilotage() -> Result<PathBuf, Failure> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.args(["build", "--release", "--package", "pilotage-cli", "--message-format", "json"]);
    build.current_dir(env!("CARGO_MANIFEST_DIR"));
    let messages = run(&mut build, &[], Duration::from_secs(1200))?;
    String::from_utf8_lossy(&messages)
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == "pilotage")
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .ok_or_else(|| "building pilotage: cargo named no program".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registration_is_found_at_any_depth() {
        let value = serde_json::json!({"node": {"hubs": [{"registered": true}]}});
        assert_eq!(find_key(&value, "registered").and_then(serde_json::Value::as_bool), Some(true));
        assert!(find_key(&value, "beacon").is_none());
    }

    #[test]
    fn a_reference_folder_without_its_programs_is_refused() {
        let folder = tempfile::tempdir().expect("folder");
        let error = Programs::find(None, Some(folder.path()), None, None).expect_err("empty folder");
        assert!(error.to_string().contains("rendezvous"), "{error}");
        let error = Programs::find(None, None, Some(folder.path()), None).expect_err("empty folder");
        assert!(error.to_string().contains("pilotprotocol"), "{error}");
        let error = Programs::find(None, None, None, Some(folder.path())).expect_err("empty folder");
        assert!(error.to_string().contains("dist/index.js"), "{error}");
    }
}
