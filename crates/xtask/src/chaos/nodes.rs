//! The three processes.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::checker::Finals;
use super::clients::{self, text};
use crate::Failure;

/// Nodes of the cluster.
const COUNT: usize = 3;
/// How long to wait for anything that is asked of a node.
const PATIENCE: Duration = Duration::from_secs(10);

/// One of them.
struct Node {
    child: Option<Child>,
    bind: SocketAddr,
    control: SocketAddr,
}

/// All of them, with their folders.
pub(super) struct Nodes {
    binary: PathBuf,
    folder: PathBuf,
    snapshot_every: u64,
    nodes: Vec<Node>,
}

impl Nodes {
    pub(super) fn start(binary: &Path, snapshot_every: u64) -> Result<Self, Failure> {
        let folder = std::env::temp_dir().join(format!("registry-chaos-{}", std::process::id()));
        // What an earlier scenario left.
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder)?;
        let mut nodes = Vec::new();
        for _ in 0..COUNT {
            nodes.push(Node { child: None, bind: free_port()?, control: free_port()? });
        }
        let mut all = Self { binary: binary.to_owned(), folder, snapshot_every, nodes };
        for index in 0..COUNT {
            all.revive(index)?;
            all.wait_until_up(index)?;
        }
        Ok(all)
    }

    pub(super) fn count(&self) -> usize {
        self.nodes.len()
    }

    pub(super) fn controls(&self) -> Vec<SocketAddr> {
        self.nodes.iter().map(|node| node.control).collect()
    }

    pub(super) fn bind(&self, index: usize) -> SocketAddr {
        self.nodes[index].bind
    }

    /// Starts a node that does not run.
    pub(super) fn revive(&mut self, index: usize) -> Result<(), Failure> {
        if self.nodes[index].child.is_some() {
            return Ok(());
        }
        let log = File::options().create(true).append(true).open(self.folder.join(format!("{index}.log")))?;
        let node = &self.nodes[index];
        let mut command = Command::new(&self.binary);
        command.arg("--folder").arg(self.folder.join(index.to_string()));
        command.args(["--bind", &node.bind.to_string(), "--control", &node.control.to_string()]);
        command.args(["--snapshot-every", &self.snapshot_every.to_string()]);
        if index > 0 {
            command.args(["--join", &self.nodes[0].bind.to_string()]);
        }
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().map_err(|e| format!("cannot start {}: {e}", self.binary.display()))?;
        self.nodes[index].child = Some(child);
        Ok(())
    }

    fn wait_until_up(&self, index: usize) -> Result<(), Failure> {
        let deadline = Instant::now() + Duration::from_secs(40);
        while self.ask(index, &json!({ "op": "status" })).is_none() {
            if Instant::now() > deadline {
                return Err(format!("node {index} does not answer; see {}", self.folder.display()).into());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    pub(super) fn wait_for_voters(&self, voters: usize, patience: Duration) -> Result<(), Failure> {
        let deadline = Instant::now() + patience;
        loop {
            let statuses: Vec<Value> = (0..self.count())
                .map(|index| self.ask(index, &json!({ "op": "status" })).unwrap_or_default())
                .collect();
            // All must know it, and the change must be over: else who is hit first may be the only one who can decide.
            let votes = |status: &Value| {
                let members = status["members"].as_array().map_or(&[][..], Vec::as_slice);
                members.iter().filter(|member| member["voter"].as_bool() == Some(true)).count()
            };
            if statuses.iter().all(|status| status["changing"] == false && votes(status) == voters) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!("not {voters} voters: {statuses:?}").into());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// kill -9.
    pub(super) fn kill(&mut self, index: usize) -> Result<(), Failure> {
        if let Some(mut child) = self.nodes[index].child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// SIGSTOP or SIGCONT.
    pub(super) fn signal(&self, index: usize, signal: &str) -> Result<(), Failure> {
        let Some(child) = &self.nodes[index].child else { return Ok(()) };
        let sent = Command::new("kill").args([signal, &child.id().to_string()]).status()?;
        if sent.success() { Ok(()) } else { Err(format!("kill {signal} failed").into()) }
    }

    /// Whoever leads, according to a majority.
    pub(super) fn leader(&self) -> Option<usize> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            for index in 0..self.count() {
                let status = self.ask(index, &json!({ "op": "status" })).unwrap_or_default();
                // An old leader that nobody hears any more also believes that it leads.
                if status["role"] == "leader" && status["quorum_ms"].as_u64().is_some_and(|age| age < 1_000) {
                    return Some(index);
                }
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        None
    }

    /// From now on `index` sends nothing to the others in the list.
    pub(super) fn cut(&self, index: usize, others: &[usize]) -> Result<(), Failure> {
        let endpoints: Vec<String> = others.iter().map(|&other| self.bind(other).to_string()).collect();
        self.tell(index, &json!({ "op": "cut", "endpoints": endpoints }))
    }

    /// A fault, or its end.
    pub(super) fn tell(&self, index: usize, order: &Value) -> Result<(), Failure> {
        self.ask(index, order).map(drop).ok_or_else(|| format!("node {index} does not take the fault").into())
    }

    pub(super) fn ask(&self, index: usize, question: &Value) -> Option<Value> {
        clients::Nodes::new(&[self.nodes[index].control], 0).ask(question, PATIENCE)
    }

    /// Who holds what, on every node, after everything was applied there.
    pub(super) fn final_state(&self, names: &[u64]) -> Result<Finals, Failure> {
        let mut finals = Vec::new();
        for node in &self.nodes {
            let mut client = clients::Nodes::new(&[node.control], 0);
            let mut held = BTreeMap::new();
            let mut fresh = true;
            for &name in names {
                let deadline = Instant::now() + Duration::from_secs(60);
                let question = json!({ "op": "get", "name": text(name), "fresh": fresh });
                let reply = loop {
                    match client.ask(&question, PATIENCE) {
                        Some(reply) => break reply,
                        None if Instant::now() > deadline => {
                            return Err(format!("the node at {} does not come back", node.control).into());
                        }
                        None => std::thread::sleep(Duration::from_millis(100)),
                    }
                };
                // The first one waited for everything before it.
                fresh = false;
                held.insert(name, reply["holder"].as_u64());
            }
            finals.push(held);
        }
        Ok(finals)
    }

    /// Whether all states become the same, byte by byte.
    pub(super) fn agree(&self, patience: Duration) -> Result<bool, Failure> {
        let deadline = Instant::now() + patience;
        loop {
            let roots: Vec<Value> = (0..self.count())
                .map(|index| self.ask(index, &json!({ "op": "root" })).unwrap_or_default())
                .collect();
            if roots.windows(2).all(|pair| pair[0] == pair[1] && !pair[0].is_null()) {
                return Ok(true);
            }
            if Instant::now() > deadline {
                return Ok(false);
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    pub(super) fn stop(&mut self, keep: bool) {
        for index in 0..self.count() {
            let _ = self.signal(index, "-CONT");
            let _ = self.kill(index);
        }
        if keep {
            eprintln!("folders and logs: {}", self.folder.display());
        } else {
            let _ = std::fs::remove_dir_all(&self.folder);
        }
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            if let Some(mut child) = node.child.take() {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}

/// A port of loopback that is free for UDP and TCP.
fn free_port() -> Result<SocketAddr, Failure> {
    for _ in 0..50 {
        let udp = UdpSocket::bind("127.0.0.1:0")?;
        let at = udp.local_addr()?;
        if TcpListener::bind(at).is_ok() {
            return Ok(at);
        }
    }
    Err("no free port on loopback".into())
}
