//! Two nodes without a hub in two network namespaces, joined by a cable, find each other by name. Needs root on Linux.
#![cfg(target_os = "linux")]

mod common;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use common::{STEP, event, lines, wait};
use serde_json::Value;

/// Two namespaces and the cable; gone with the value, whatever happens.
struct Cable {
    ends: [String; 2],
}

fn ip(args: &[&str]) -> bool {
    Command::new("ip").args(args).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

impl Cable {
    /// `None` where this machine does not let us.
    fn lay() -> Option<Self> {
        let id = std::process::id();
        let cable = Self { ends: [format!("plan{id}a"), format!("plan{id}b")] };
        let [a, b] = &cable.ends;
        let (va, vb) = (format!("v{id}a"), format!("v{id}b"));
        let laid = ip(&["netns", "add", a])
            && ip(&["netns", "add", b])
            && ip(&["link", "add", &va, "netns", a, "type", "veth", "peer", "name", &vb, "netns", b]);
        let up = |ns: &str, link: &str, addr: &str| {
            ip(&["-n", ns, "addr", "add", addr, "dev", link])
                && ip(&["-n", ns, "link", "set", link, "up"])
                && ip(&["-n", ns, "link", "set", "lo", "up"])
        };
        let laid = laid && up(a, &va, "10.77.0.1/24") && up(b, &vb, "10.77.0.2/24");
        // A new link needs a moment before it is up.
        thread::sleep(Duration::from_secs(1));
        laid.then_some(cable)
    }

    fn pilotage(&self, end: usize, args: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.ends[end], env!("CARGO_BIN_EXE_pilotage")]).args(args);
        command.env("XDG_CONFIG_HOME", "/nonexistent").stdin(Stdio::null()).stdout(Stdio::piped());
        command
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        for end in &self.ends {
            ip(&["netns", "del", end]);
        }
    }
}

/// Killed when dropped.
struct Up(Child);

impl Drop for Up {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn nodes_on_one_network_find_each_other_without_a_hub() {
    let Some(cable) = Cable::lay() else {
        println!("SKIPPED: network namespaces need root");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let state = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (bob, alice) = (state("bob"), state("alice"));
    let mut up = Up(cable.pilotage(0, &["up", "--name", "bob", "--state", &bob, "--json"]).spawn().unwrap());
    let (say, said) = channel::<Value>();
    let output = up.0.stdout.take().unwrap();
    thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            let _ = serde_json::from_str(&line).map(|value| say.send(value));
        }
    });
    while said.recv_timeout(STEP).unwrap()["event"] != "ready" {}
    let args = ["ping", "bob", "--count", "5", "--timeout", "20s", "--state", &alice, "--json"];
    let mut ping = cable.pilotage(1, &args).spawn().unwrap();
    let status = wait(&mut ping, STEP).expect("in time");
    let output = ping.wait_with_output().unwrap();
    assert!(status.success(), "{output:?}");
    let told = lines(&output.stdout);
    let reply = event(&told, "reply");
    assert_eq!(reply["path"]["kind"], "direct");
    assert!(reply["path"]["remote"].as_str().unwrap().starts_with("10.77.0.1:"), "{reply}");
}
