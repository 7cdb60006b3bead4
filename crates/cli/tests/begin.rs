//! How clusters begin with what is there: with a hub that stood alone, and with a backup of a cluster that is lost. Real processes.

mod common;

use std::path::{Path, PathBuf};
use std::process::Output;
use std::thread;
use std::time::{Duration, Instant};

use common::free::free;
use common::{ADMIN_TOKEN, Running, STEP, event, lines, run, text};
use pilotage_registry::client::Client;
use serde_json::{Value, json};

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn dir(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Arguments of a hub in the directory of this name.
    fn args(&self, name: &str, more: &[&str]) -> Vec<String> {
        let dir = self.dir(name);
        let own = ["hub", "--json", "--listen", "127.0.0.1", "--registry-port", "0", "--pow-bits", "4"];
        let more = [&["--admin-token", ADMIN_TOKEN, "--state", dir.to_str().unwrap()], more].concat();
        own.iter().chain(&more).map(|arg| (*arg).to_owned()).collect()
    }

    fn hub(&self, name: &str, more: &[&str]) -> (Running, Value) {
        let args = self.args(name, more);
        let hub = Running::start(&args.iter().map(String::as_str).collect::<Vec<_>>());
        let ready = hub.expect("ready", STEP);
        (hub, ready)
    }

    /// A hub that does not start, and what it says.
    fn no_hub(&self, name: &str, more: &[&str]) -> String {
        let args = self.args(name, more);
        let output = run(&args.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(!output.status.success());
        text(&output.stdout)
    }

    /// `hub ACTION` on the directory of this name.
    fn action(&self, name: &str, action: &[&str]) -> Output {
        let dir = self.dir(name);
        run(&[&["hub"], action, &["--json", "--state", dir.to_str().unwrap()]].concat())
    }

    fn done(&self, name: &str, action: &[&str]) -> Value {
        let output = self.action(name, action);
        assert!(output.status.success(), "{action:?}: {}", text(&output.stdout));
        lines(&output.stdout).remove(0)
    }

    fn refused(&self, name: &str, action: &[&str]) -> String {
        let output = self.action(name, action);
        assert!(!output.status.success(), "{action:?}: {}", text(&output.stdout));
        text(&output.stdout)
    }

    fn agent(&self, agent: &str, registry: &str, args: &[&str]) -> Output {
        let dir = self.dir(agent);
        if !dir.exists() {
            assert!(run(&["id", "new", "--state", dir.to_str().unwrap()]).status.success());
        }
        run(&[args, &["--json", "--state", dir.to_str().unwrap(), "--registry", registry]].concat())
    }

    /// As [`Place::agent`] until it works: a node may just have been elected.
    fn agent_at_last(&self, agent: &str, registry: &str, args: &[&str]) -> Vec<Value> {
        let deadline = Instant::now() + STEP;
        loop {
            let output = self.agent(agent, registry, args);
            if output.status.success() {
                return lines(&output.stdout);
            }
            assert!(Instant::now() < deadline, "{args:?}: {}", text(&output.stdout));
            thread::sleep(Duration::from_millis(200));
        }
    }

    /// Who holds the name, as somebody sees it who has never asked before.
    fn holder(&self, stranger: &str, registry: &str, name: &str) -> Value {
        let said = self.agent_at_last(stranger, registry, &["record", "holder", name]);
        event(&said, "holder")["fingerprint"].clone()
    }

    /// The name is not to be had.
    fn is_taken(&self, stranger: &str, registry: &str, name: &str) {
        let deadline = Instant::now() + STEP;
        loop {
            let output = self.agent(stranger, registry, &["record", "publish", "--hostname", name]);
            assert!(!output.status.success(), "{}", text(&output.stdout));
            if text(&output.stdout).contains("belongs to another agent") {
                return;
            }
            assert!(Instant::now() < deadline, "{}", text(&output.stdout));
            thread::sleep(Duration::from_millis(200));
        }
    }

    /// A node that registers, and its id.
    fn node(&self, name: &str, ready: &Value) -> u64 {
        let (registry, beacon) = (ready["registry"].as_str().unwrap(), ready["beacon"].as_str().unwrap());
        let dir = self.dir(name);
        let at = ["--registry", registry, "--beacon", beacon, "--bind", "127.0.0.1:0", "--no-lan"];
        let up = ["up", "--json", "--state", dir.to_str().unwrap(), "--name", name];
        Running::start(&[&up[..], &at].concat()).expect("ready", STEP);
        let nodes = json!({ "type": "list_nodes", "network_id": 0, "admin_token": ADMIN_TOKEN });
        let nodes = ask(registry, nodes)["nodes"].as_array().unwrap().clone();
        nodes.iter().find(|node| node["hostname"] == name).unwrap()["node_id"].as_u64().unwrap()
    }
}

fn ask(registry: &str, request: Value) -> Value {
    Client::connect(registry, STEP).unwrap().call_json(request, None).unwrap()
}

fn at(ready: &Value) -> &str {
    ready["registry"].as_str().unwrap()
}

fn join<'a>(bind: &'a str, host: &'a str, token: &'a Path) -> [&'a str; 6] {
    ["--cluster", bind, "--join", host, "--cluster-token-file", token.to_str().unwrap()]
}

/// Everything that a lone hub has granted belongs to the same owners in the cluster that begins with it.
fn is_all_there(place: &Place, who: &str, ready: &Value, (holder, bob): (&Value, u64)) {
    let registry = at(ready);
    assert_eq!(place.holder(&format!("{who}-1"), registry, "fx"), *holder);
    place.is_taken(&format!("{who}-2"), registry, "fx");
    let found = ask(registry, json!({ "type": "lookup", "node_id": bob }));
    assert_eq!(found["hostname"], "bob", "{found}");
    let networks = ask(registry, json!({ "type": "list_networks" }));
    assert!(
        networks["networks"].as_array().unwrap().iter().any(|one| one["name"] == "harbour"),
        "{networks}"
    );
}

/// Where it was published the record is still there, not only the name.
fn has_record(place: &Place, who: &str, ready: &Value) {
    let shown = place.agent_at_last(who, at(ready), &["record", "show", "fx"]);
    assert_eq!(shown[0]["hostname"], "fx", "{shown:?}");
}

#[test]
fn a_hub_takes_what_it_has_granted_into_a_cluster() {
    let place = Place::new();
    let (mut lone, ready) = place.hub("hub", &[]);
    let registry = at(&ready);
    place.agent_at_last("ann", registry, &["record", "publish", "--hostname", "fx"]);
    let holder = place.holder("eve", registry, "fx");
    let bob = place.node("bob", &ready);
    let network = json!({
        "type": "create_network", "node_id": bob, "name": "harbour", "join_rule": "open", "admin_token": ADMIN_TOKEN,
    });
    ask(registry, network);
    let file = place.dir("lone.backup");
    place.done("hub", &["backup", file.to_str().unwrap()]);
    // Not while it runs.
    assert!(place.refused("hub", &["to-cluster"]).contains("in use"));
    let claims = place.done("hub", &["status"])["hub"]["claims"]["claims"].clone();
    lone.kill();
    let taken = place.done("hub", &["to-cluster"]);
    assert_eq!((&taken["nodes"], &taken["claims"]), (&json!(1), &claims), "{taken}");
    // Given twice it finishes what is finished, and loses nothing.
    assert_eq!(place.done("hub", &["to-cluster"]), taken);
    assert!(place.no_hub("hub", &[]).contains("node of a cluster"), "alone it starts no more");
    let (bind, host) = (free().to_string(), free().to_string());
    let token = place.dir("hub").join("cluster/token");
    let nowhere = place.dir("nothing");
    std::fs::write(&nowhere, "a token of sixteen bytes").unwrap();
    let joins = place.no_hub("hub", &join(&bind, &host, &nowhere));
    assert!(joins.contains("without --join"), "{joins}");
    let (first, begun) = place.hub("hub", &["--cluster", &bind]);
    assert_ne!(begun["registry_key"], ready["registry_key"], "no key signs for a hub and for a cluster");
    let status = place.done("hub", &["status"]);
    assert_eq!(
        (&status["hub"]["registry"]["nodes"], &status["hub"]["claims"]["claims"]),
        (&json!(1), &claims)
    );
    is_all_there(&place, "first", &begun, (&holder, bob));
    has_record(&place, "first-3", &begun);
    follows_the_key_that_handed_over(&place, &begun, &ready);
    // Who was told the lone hub's key believes the cluster only when told to.
    let key = |ready: &Value| ready["registry_key"].as_str().unwrap().to_owned();
    let by =
        |key: &str| place.agent("first-4", at(&begun), &["record", "holder", "fx", "--registry-key", key]);
    let refused = by(&key(&ready));
    assert!(!refused.status.success() && text(&refused.stdout).contains("another key"), "{refused:?}");
    assert!(text(&refused.stdout).contains("one per hub"), "{refused:?}");
    assert!(by(&key(&begun)).status.success());
    let (_second, joined) = place.hub("second", &join(&host, &bind, &token));
    is_all_there(&place, "second", &joined, (&holder, bob));
    drop(first);
    let (_first, again) = place.hub("hub", &["--cluster", &bind]);
    assert_eq!(place.done("hub", &["status"])["cluster"], status["cluster"], "it begins once");
    is_all_there(&place, "again", &again, (&holder, bob));
    assert!(place.refused("hub", &["to-cluster"]).contains("already"));
    // A backup of the lone hub is as good.
    let restored = place.done("other", &["restore", file.to_str().unwrap(), "--new-cluster"]);
    assert_eq!((&restored["nodes"], &restored["claims"]), (&json!(1), &claims), "{restored}");
    assert!(place.no_hub("other", &[]).contains("node of a cluster"));
    let (_other, other) = place.hub("other", &["--cluster", &free().to_string()]);
    is_all_there(&place, "other", &other, (&holder, bob));
    has_record(&place, "other-3", &other);
    assert_ne!(place.done("other", &["status"])["cluster"], status["cluster"]);
}

/// The file where somebody keeps what a hub at this address has shown.
fn heads_of(place: &Place, who: &str, ready: &Value) -> PathBuf {
    place.dir(who).join(format!("registry-{}.heads", at(ready).replace(':', "_")))
}

/// Eve has asked the lone hub before. Its address is another one now, as in all of these tests, so that what she remembers is
/// brought there.
fn follows_the_key_that_handed_over(place: &Place, begun: &Value, ready: &Value) {
    let old = std::fs::read(heads_of(place, "eve", ready)).unwrap();
    assert!(old.len() > 32, "a key, and heads");
    let key = |ready: &Value| ready["registry_key"].as_str().unwrap().to_owned();
    let here = heads_of(place, "eve", begun);
    std::fs::write(&here, &old).unwrap();
    let shown = place.agent_at_last("eve", at(begun), &["record", "holder", "fx"]);
    assert_eq!(event(&shown, "holder")["signed_by"], 1);
    let now = std::fs::read(&here).unwrap();
    assert!(now.len() > 32 && now[..32] == hex(&key(begun)), "the cluster's key takes the old one's place");
    // A node that keeps its record follows as well.
    let (dir, registry) = (place.dir("dan"), at(begun));
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("registry-nodes"), &old[..32]).unwrap();
    let up =
        ["up", "--json", "--state", dir.to_str().unwrap(), "--registry", registry, "--bind", "127.0.0.1:0"];
    let node = Running::start(&[&up[..], &["--no-lan", "--records", "--record-refresh", "1s"]].concat());
    node.expect("ready", STEP);
    let deadline = Instant::now() + STEP;
    loop {
        let output = run(&["status", "--json", "--state", dir.to_str().unwrap()]);
        let records = event(&lines(&output.stdout), "status")["records"].clone();
        if records["stored_at"] == 1 && records["last_error"].is_null() {
            break;
        }
        assert!(Instant::now() < deadline, "{records}");
        thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(std::fs::read(dir.join("registry-nodes")).unwrap(), hex(&key(begun)));
    // Who knows another key than the old one is not led anywhere.
    let stranger = heads_of(place, "mallory", begun);
    let _ = place.agent("mallory", at(begun), &["id"]);
    std::fs::write(&stranger, [&[7; 32], &old[32..]].concat()).unwrap();
    let refused = place.agent("mallory", at(begun), &["record", "holder", "fx"]);
    let said = text(&refused.stdout);
    assert!(!refused.status.success() && said.contains("does not say so"), "{refused:?}");
    assert!(said.contains(stranger.to_str().unwrap()), "what to do: {said}");
    // Nor is one who has asked another cluster.
    let cluster = [b"PRGK\x01\x03".as_slice(), &[7; 32], &[8; 32], &[9; 32]].concat();
    std::fs::write(&stranger, cluster).unwrap();
    let refused = place.agent("mallory", at(begun), &["record", "holder", "fx"]);
    let said = text(&refused.stdout);
    assert!(!refused.status.success() && said.contains("another cluster"), "{refused:?}");
    assert!(said.contains(&key(begun)) && said.contains("operator"), "{said}");
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

#[test]
fn a_lost_cluster_comes_back_from_a_backup_under_another_id() {
    let place = Place::new();
    let (bind, second_bind) = (free().to_string(), free().to_string());
    let (mut first, _) = place.hub("first", &["--cluster", &bind]);
    let token = place.dir("first").join("cluster/token");
    let (mut second, ready) = place.hub("second", &join(&second_bind, &bind, &token));
    let registry = at(&ready);
    place.agent_at_last("ann", registry, &["record", "publish", "--hostname", "fx"]);
    let holder = place.holder("eve", registry, "fx");
    let bob = place.node("bob", &ready);
    let network = json!({
        "type": "create_network", "node_id": bob, "name": "harbour", "join_rule": "open", "admin_token": ADMIN_TOKEN,
    });
    ask(registry, network);
    // While it runs, at a member that does not even lead.
    let file = place.dir("cluster.backup");
    let file = file.to_str().unwrap();
    let made = place.done("second", &["backup", file]);
    let old = place.done("second", &["status"])["cluster"].clone();
    assert_eq!((&made["cluster"], &made["caught_up"]), (&old, &json!(true)), "{made}");
    // A hub that stands alone is not made of it, nor a second cluster beside the first.
    assert!(place.refused("new", &["restore", file]).contains("--new-cluster"));
    let refused = place.refused("new", &["restore", file, "--new-cluster"]);
    assert!(refused.contains("runs: both would grant"), "{refused}");
    first.kill();
    let refused = place.refused("new", &["restore", file, "--new-cluster"]);
    assert!(refused.contains(&second_bind), "the other one still does: {refused}");
    second.kill();
    assert!(!place.dir("new").join("cluster").exists(), "nothing was changed");
    let restored = place.done("new", &["restore", file, "--new-cluster"]);
    assert_eq!(restored["nodes"], 1, "{restored}");
    assert!(place.no_hub("new", &[]).contains("node of a cluster"));
    // One that comes back in time is noticed.
    let (mut back, _) = place.hub("first", &["--cluster", &bind]);
    let new_bind = free().to_string();
    let refused = place.no_hub("new", &["--cluster", &new_bind]);
    assert!(refused.contains("runs: both would grant"), "{refused}");
    back.kill();
    let (_new, begun) = place.hub("new", &["--cluster", &new_bind]);
    assert_ne!(place.done("new", &["status"])["cluster"], old);
    is_all_there(&place, "new", &begun, (&holder, bob));
    has_record(&place, "new-3", &begun);
    // Over the files of a node of the old cluster, which are kept; its keys are not used again.
    let refused = place.refused("second", &["restore", file, "--new-cluster"]);
    assert!(refused.contains("--force"), "{refused}");
    place.done("second", &["restore", file, "--new-cluster", "--force"]);
    assert!(place.dir("second").join("cluster.before/cluster.redb").exists());
    let (_other, other) = place.hub("second", &["--cluster", &second_bind]);
    assert_ne!(other["registry_key"], ready["registry_key"]);
    // A byte of it is wrong.
    let mut bytes = std::fs::read(file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(file, bytes).unwrap();
    let refused = place.refused("bad", &["restore", file, "--new-cluster"]);
    assert!(refused.contains("hash") && !place.dir("bad").join("cluster").exists(), "{refused}");
}
