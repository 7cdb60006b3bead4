//! Three hubs as processes that form a cluster, and what they say about it.

mod common;
#[path = "cluster/draft.rs"]
mod draft;

use std::net::SocketAddr;
use std::path::Path;
use std::process::Output;
use std::thread;
use std::time::{Duration, Instant};

use common::free::free;
use common::{Running, STEP, event, lines, run, run_for, text};
use serde_json::Value;

fn start(state: &Path, bind: SocketAddr, more: &[&str]) -> Running {
    let bind = bind.to_string();
    let state = state.to_str().unwrap();
    let mut args = vec!["hub", "--json", "--listen", "127.0.0.1", "--registry-port", "0", "--state", state];
    args.extend(["--cluster", &bind]);
    args.extend(more);
    let hub = Running::start(&args);
    hub.expect("ready", STEP);
    hub
}

fn status(state: &Path) -> Value {
    let output = run(&["hub", "status", "--json", "--state", state.to_str().unwrap()]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    lines(&output.stdout).remove(0)
}

/// None while a change is under way.
fn voters(status: &Value) -> usize {
    if status["changing"] != false {
        return 0;
    }
    status["members"].as_array().unwrap().iter().filter(|member| member["voter"] == true).count()
}

#[test]
fn three_hubs_form_a_cluster_and_say_so() {
    let folder = tempfile::tempdir().unwrap();
    let dir = |name: &str| folder.path().join(name);
    let at = free();
    let _first = start(&dir("a"), at, &[]);
    let token = dir("a").join("cluster/token");
    let (host, token) = (at.to_string(), token.to_str().unwrap().to_owned());
    let join = ["--join", &host, "--cluster-token-file", &token];
    let _second = start(&dir("b"), free(), &join);
    let third = start(&dir("c"), free(), &join);
    let deadline = Instant::now() + STEP;
    while voters(&status(&dir("a"))) < 3 {
        assert!(Instant::now() < deadline, "{}", status(&dir("a")));
        thread::sleep(Duration::from_millis(100));
    }
    let of_a = status(&dir("a"));
    assert_eq!(of_a["role"], "leader");
    assert_eq!(of_a["id"], of_a["leader"]);
    assert!(of_a["term"].as_u64().unwrap() >= 1 && of_a["last_log"].as_u64().unwrap() >= 3, "{of_a}");
    let id = status(&dir("c"))["id"].as_str().unwrap().to_owned();
    drop(third);
    let removed = run(&["hub", "remove", &id, "--state", dir("b").to_str().unwrap()]);
    assert!(removed.status.success(), "{}", text(&removed.stderr));
    let left = status(&dir("a"));
    assert!(left["members"].as_array().unwrap().iter().all(|member| member["id"] != id.as_str()), "{left}");
    let words = run(&["hub", "status", "--state", dir("b").to_str().unwrap()]);
    assert!(text(&words.stdout).contains("follower"), "{}", text(&words.stdout));
}

/// Three hubs, by names of their directories.
struct Hubs {
    folder: tempfile::TempDir,
    ports: Vec<SocketAddr>,
    running: Vec<Option<Running>>,
    registries: Vec<String>,
}

impl Hubs {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut hubs = Self { folder, ports: Vec::new(), running: Vec::new(), registries: Vec::new() };
        for index in 0..3 {
            hubs.ports.push(free());
            hubs.running.push(None);
            hubs.registries.push(String::new());
            hubs.start(index);
        }
        hubs.until("three voters", |hubs| {
            (0..3).all(|index| hubs.state(index).is_some_and(|status| voters(&status) == 3))
        });
        hubs
    }

    fn dir(&self, index: usize) -> std::path::PathBuf {
        self.folder.path().join(format!("hub{index}"))
    }

    fn start(&mut self, index: usize) {
        let (bind, dir) = (self.ports[index].to_string(), self.dir(index));
        let token = self.dir(0).join("cluster/token");
        let (token, host) = (token.to_str().unwrap().to_owned(), self.ports[0].to_string());
        let mut args =
            vec!["hub", "--json", "--listen", "127.0.0.1", "--registry-port", "0", "--pow-bits", "4"];
        args.extend(["--state", dir.to_str().unwrap(), "--cluster", &bind]);
        if index > 0 {
            args.extend(["--join", &host, "--cluster-token-file", &token]);
        }
        let hub = Running::start(&args);
        self.registries[index] = hub.expect("ready", STEP)["registry"].as_str().unwrap().to_owned();
        self.running[index] = Some(hub);
    }

    /// `None` while it does not run.
    fn state(&self, index: usize) -> Option<Value> {
        self.running[index].as_ref()?;
        let output = run(&["hub", "status", "--json", "--state", self.dir(index).to_str().unwrap()]);
        output.status.success().then(|| lines(&output.stdout).remove(0))
    }

    fn until(&self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + LONG;
        while !done(self) {
            let states: Vec<_> = (0..3).map(|index| self.state(index)).collect();
            assert!(Instant::now() < deadline, "never: {what}: {states:#?}");
            thread::sleep(Duration::from_millis(100));
        }
    }

    fn leader(&self) -> usize {
        let mut leader = None;
        self.until("a leader", |hubs| {
            leader = (0..3).find(|&index| hubs.state(index).is_some_and(|status| status["role"] == "leader"));
            leader.is_some()
        });
        leader.unwrap()
    }

    /// A command of an agent at a hub.
    fn agent(&self, agent: &str, hub: usize, args: &[&str]) -> Output {
        ask(&self.folder.path().join(agent), &self.registries[hub], args)
    }

    /// As [`Hubs::agent`] until it works: an election may be under way.
    fn agent_at_last(&self, agent: &str, hub: usize, args: &[&str]) -> Vec<Value> {
        let deadline = Instant::now() + LONG;
        loop {
            let output = self.agent(agent, hub, args);
            if output.status.success() {
                return lines(&output.stdout);
            }
            assert!(Instant::now() < deadline, "{args:?}: {} {}", text(&output.stdout), text(&output.stderr));
            thread::sleep(Duration::from_millis(200));
        }
    }
}

fn ask(state: &Path, registry: &str, args: &[&str]) -> Output {
    let mut all = args.to_vec();
    all.extend(["--json", "--state", state.to_str().unwrap(), "--registry", registry]);
    run_for(&all, b"", LONG)
}

/// Asks again until the answer is one of those that are waited for: a busy machine may give others before.
fn until_it_says(mut ask: impl FnMut() -> Output, said: impl Fn(&Output) -> bool) -> Output {
    let deadline = Instant::now() + LONG;
    loop {
        let output = ask();
        if said(&output) {
            return output;
        }
        assert!(Instant::now() < deadline, "{output:?}");
        thread::sleep(Duration::from_millis(100));
    }
}

/// Patience for what takes elections or several proofs of work: the machine may be busy.
const LONG: Duration = Duration::from_secs(120);

#[test]
fn a_name_claimed_at_one_hub_is_proven_at_all_and_outlives_the_leader() {
    let mut hubs = Hubs::new();
    for agent in ["ann", "bob", "eve"] {
        let state = hubs.folder.path().join(agent);
        assert!(run(&["id", "new", "--state", state.to_str().unwrap()]).status.success());
    }
    let publish = |name| ["record", "publish", "--hostname", name];
    let published = hubs.agent_at_last("ann", 1, &publish("fx"));
    let fingerprint = event(&published, "published")["fingerprint"].as_str().unwrap().to_owned();
    // The same agent asks all hubs: their heads have to fit each other.
    for hub in [0, 1, 2, 1, 0] {
        let held = hubs.agent_at_last("bob", hub, &["record", "holder", "fx"]);
        let held = event(&held, "holder");
        assert_eq!(held["fingerprint"], fingerprint.as_str());
        assert!(held["signed_by"].as_u64().unwrap() >= 2 && held["nodes"] == 3, "{held}");
    }
    // Each at another hub: one of them gets the name, the others are told that it is taken.
    let outcomes: Vec<Output> = thread::scope(|scope| {
        let race = |agent, hub: usize| {
            let (state, registry) = (hubs.folder.path().join(agent), hubs.registries[hub].clone());
            scope.spawn(move || {
                until_it_says(
                    || ask(&state, &registry, &publish("race")),
                    |output| {
                        output.status.success() || text(&output.stdout).contains("belongs to another agent")
                    },
                )
            })
        };
        let racers = [race("ann", 0), race("bob", 1), race("eve", 2)];
        racers.map(|racer| racer.join().unwrap()).into()
    });
    let won = outcomes.iter().filter(|output| output.status.success()).count();
    let told =
        outcomes.iter().filter(|output| text(&output.stdout).contains("belongs to another agent")).count();
    assert_eq!((won, told), (1, 2), "{outcomes:#?}");
    // kill -9 of who leads: the others grant and prove.
    let leader = hubs.leader();
    hubs.running[leader] = None;
    let other = (leader + 1) % 3;
    hubs.agent_at_last("eve", other, &publish("after"));
    let held = hubs.agent_at_last("bob", (leader + 2) % 3, &["record", "holder", "after"]);
    assert_eq!(event(&held, "holder")["signed_by"], 2);
    assert_eq!(
        event(&hubs.agent_at_last("bob", other, &["record", "holder", "fx"]), "holder")["fingerprint"],
        fingerprint.as_str()
    );
    // Alone, a hub grants nothing and says why; what it knows it still tells.
    let left = (leader + 2) % 3;
    hubs.running[other] = None;
    let refused = until_it_says(
        || hubs.agent("eve", left, &publish("alone")),
        |output| {
            assert!(!output.status.success());
            text(&output.stdout).contains("majority")
        },
    );
    assert!(text(&refused.stdout).contains("try again"), "{refused:?}");
    let known = hubs.agent("bob", left, &["record", "holder", "after"]);
    assert!(known.status.success(), "{}", text(&known.stdout));
    // All back: nothing is lost, and the name of nobody is free.
    hubs.start(leader);
    hubs.start(other);
    let held = hubs.agent_at_last("bob", leader, &["record", "holder", "after"]);
    assert_eq!(event(&held, "holder")["nodes"], 3);
    hubs.agent_at_last("eve", leader, &publish("alone"));
}

#[test]
fn a_hub_does_not_grant_alone_what_a_cluster_grants() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().to_str().unwrap();
    let (at, bind) =
        (["--state", state, "--registry-port", "0", "--listen", "127.0.0.1"], free().to_string());
    drop(start(folder.path(), free(), &[]));
    let alone = run(&[&["hub"][..], &at].concat());
    assert!(!alone.status.success());
    assert!(text(&alone.stderr).contains("node of a cluster"), "{}", text(&alone.stderr));
    // And the other way round.
    let other = tempfile::tempdir().unwrap();
    let state = other.path().to_str().unwrap();
    let at = ["--state", state, "--registry-port", "0", "--listen", "127.0.0.1", "--pow-bits", "4", "--json"];
    let hub = Running::start(&[&["hub"][..], &at].concat());
    let registry = hub.expect("ready", STEP)["registry"].as_str().unwrap().to_owned();
    let agent = other.path().join("agent");
    let agent = agent.to_str().unwrap();
    assert!(run(&["id", "new", "--state", agent]).status.success());
    assert!(run(&["record", "publish", "--state", agent, "--registry", &registry]).status.success());
    drop(hub);
    let refused = run(&[&["hub", "--cluster", &bind][..], &at].concat());
    assert!(!refused.status.success());
    assert!(text(&refused.stdout).contains("--claims-store"), "{}", text(&refused.stdout));
    // Nothing was founded: it goes on alone.
    Running::start(&[&["hub"][..], &at].concat()).expect("ready", STEP);
}

#[test]
fn what_is_missing_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().to_str().unwrap();
    let nobody = run(&["hub", "status", "--state", state]);
    assert!(!nobody.status.success());
    assert!(text(&nobody.stderr).contains("pilotage hub --cluster"), "{}", text(&nobody.stderr));
    let at = free().to_string();
    let no_token =
        run(&["hub", "--registry-port", "0", "--state", state, "--cluster", &at, "--join", "127.0.0.1:1"]);
    assert!(!no_token.status.success());
    assert!(text(&no_token.stderr).contains("--cluster-token-file"), "{}", text(&no_token.stderr));
    let no_port = run(&["hub", "--state", state, "--join", "127.0.0.1:1"]);
    assert!(text(&no_port.stderr).contains("--cluster"), "{}", text(&no_port.stderr));
}
