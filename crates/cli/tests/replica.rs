//! Records at several hubs, and without any, as a user meets them.

mod common;

use std::path::Path;
use std::time::{Duration, Instant};

use common::{Lab, Running, STEP, event, lines};
use pilotage_registry::placement::SignedMap;
use pilotage_wire::addressing::Fingerprint;
use serde_json::{Value, json};

fn good(lab: &Lab, node: &str, args: &[&str]) -> Vec<Value> {
    let output = lab.run_tool(node, args);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {output:?}");
    lines(&output.stdout)
}

/// Asks until it is so.
fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + STEP;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn up(lab: &Lab, name: &str) -> Running {
    let node = lab.start(name, &["up", "--name", name, "--records", "--record-refresh", "2s"]);
    node.expect("ready", STEP);
    node
}

fn records(lab: &Lab, node: &str) -> Value {
    event(&good(lab, node, &["status"]), "status")["records"].clone()
}

/// `ping` by way of the `up` that runs in the directory.
fn pings(lab: &Lab, node: &str, peer: &str) -> bool {
    let output = lab.run_tool(node, &["ping", peer, "--count", "1"]);
    output.status.code() == Some(0)
}

#[test]
fn agents_that_met_reach_each_other_when_every_hub_is_dead() {
    let mut lab = Lab::new();
    let mut ann = up(&lab, "ann");
    let _bob = up(&lab, "bob");
    let _carol = up(&lab, "carol");
    for node in ["ann", "bob", "carol"] {
        let stored = || Some(records(&lab, node)).filter(|status| status["stored_at"] == 1);
        let status = until("the record is not published", stored);
        assert_eq!(status["last_error"], Value::Null, "{status}");
    }
    // The hub says when bob was last heard of.
    let resolved = until("no heartbeat arrives", || {
        let resolved = good(&lab, "ann", &["resolve", "bob"]);
        Some(event(&resolved, "resolved").clone()).filter(|found| found["seen_seconds_ago"].is_u64())
    });
    assert_eq!(resolved["evidence"], json!([]));
    until("ann does not reach bob", || pings(&lab, "ann", "bob").then_some(()));
    until("carol does not reach ann", || pings(&lab, "carol", "ann").then_some(()));
    for (node, count) in [("ann", 2), ("bob", 1), ("carol", 1)] {
        let known =
            || Some(records(&lab, node)).filter(|status| status["remembered"].as_u64() >= Some(count));
        until("nobody is remembered", known);
    }
    lab.hub.kill();
    // A friend knows bob, whom carol has never met; and bob asks the friend who carol is.
    until("carol does not reach bob", || pings(&lab, "carol", "bob").then_some(()));
    assert!(records(&lab, "ann")["friends_answered"].as_u64() >= Some(1));
    assert!(!pings(&lab, "carol", "nobody"));
    // After a restart there is nothing but what was on disk.
    ann.kill();
    let _ann = up(&lab, "ann");
    until("ann does not reach bob any more", || pings(&lab, "ann", "bob").then_some(()));
    // The tool finds him too, and says where from.
    let resolved = good(&lab, "ann", &["resolve", "bob"]);
    assert_eq!(event(&resolved, "resolved")["source"], "remembered");
}

#[test]
fn changes_are_watched_and_a_watch_goes_on() {
    let lab = Lab::new();
    for node in ["ann", "bob"] {
        assert!(lab.run_tool(node, &["id", "new"]).status.success());
    }
    good(&lab, "ann", &["record", "publish", "--hostname", "fx", "--summary", "One."]);
    let watch = good(&lab, "bob", &["watch", "fx", "--count", "1"]);
    let first = event(&watch, "changed");
    assert_eq!(first["summary"], "One.");
    let position = first["position"].as_str().unwrap().to_owned();
    good(&lab, "ann", &["record", "publish", "--hostname", "fx", "--summary", "Two."]);
    let watch = good(&lab, "bob", &["watch", "--all", "--count", "1", "--from", &position]);
    assert_eq!(event(&watch, "changed")["summary"], "Two.");
    assert!(!watch.iter().any(|line| line["event"] == "resync"), "{watch:?}");
    let watch = good(&lab, "bob", &["watch", "--all", "--count", "1", "--from", "1:7"]);
    assert_eq!(watch[0]["event"], "resync", "another history: {watch:?}");
    let wrong = lab.run_tool("bob", &["watch", "--from", "1:7"]);
    assert_eq!(wrong.status.code(), Some(2));
}

/// Hubs without a cluster, and what each says of itself: key and address.
fn hubs_of_one_map(dir: &Path, map: &str) -> Vec<(Running, String, String)> {
    let start = |hub: &str| {
        let state = dir.join(hub).to_str().unwrap().to_owned();
        let at = ["--listen", "127.0.0.1", "--registry-port", "0", "--state", &state, "--map", map];
        let running = Running::start(&[&["hub", "--json"][..], &at[..]].concat());
        let ready = running.expect("ready", STEP);
        let word = |key: &str| ready[key].as_str().unwrap().to_owned();
        (running, word("registry_key"), word("registry"))
    };
    ["h1", "h2", "h3"].map(start).into()
}

#[test]
fn three_hubs_hold_a_record_and_the_map_is_made_by_a_command() {
    let dir = tempfile::tempdir().unwrap();
    let map = dir.path().join("map");
    let state = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let mut hubs = hubs_of_one_map(dir.path(), map.to_str().unwrap());
    let nodes: Vec<String> = hubs.iter().map(|(_, key, at)| format!("{key}@{at}")).collect();
    let operator = state("op");
    assert!(common::run(&["id", "new", "--state", &operator]).status.success());
    let out = map.to_str().unwrap();
    let mut make = vec!["hub", "map", "--json", "--operator", "--state", &operator, "--out", out];
    nodes.iter().for_each(|node| make.extend(["--node", node]));
    let made = common::run(&make);
    assert!(made.status.success(), "{made:?}");
    let agent = state("ann");
    let registry = hubs[0].2.clone();
    let at = ["up", "--json", "--state", &agent, "--registry", &registry, "--bind", "127.0.0.1:0"];
    let ann = Running::start(&[&at[..], &["--name", "ann", "--records", "--record-refresh", "1s"]].concat());
    ann.expect("ready", STEP);
    let status = || {
        let output = common::run(&["status", "--json", "--state", &agent]);
        let found = lines(&output.stdout);
        Some(event(&found, "status")["records"]["stored_at"].clone()).filter(|stored| *stored == 3)
    };
    until("the record is not at three hubs", status);
    // The hub of the names dies: the fingerprint is enough to find the record at the others.
    let asker = state("bob");
    let resolve = |who: &str| {
        let output = common::run(&["resolve", who, "--json", "--state", &asker, "--registry", &registry]);
        (output.status.code(), lines(&output.stdout))
    };
    let (code, found) = resolve("ann");
    assert_eq!(code, Some(0), "{found:?}");
    let fingerprint = event(&found, "resolved")["fingerprint"].as_str().unwrap().to_owned();
    hubs[0].0.kill();
    // Two are asked, in the order of the agent's key; the third one only in the place of one that is silent.
    let silent = asked_first(&map, &fingerprint).contains(&hubs[0].1);
    for who in [fingerprint.as_str(), "ann"] {
        let (code, found) = resolve(who);
        assert_eq!(code, Some(0), "{found:?}");
        let found = event(&found, "resolved");
        let asked = (&found["nodes_answered"], &found["nodes_silent"]);
        assert_eq!(asked, (&json!(2), &json!(u8::from(silent))), "{found}");
    }
}

/// Keys of the two nodes of a map that are asked first for an agent's record.
fn asked_first(map: &Path, fingerprint: &str) -> Vec<String> {
    let map = SignedMap::decode(&std::fs::read(map).unwrap()).unwrap().map;
    let Ok(Fingerprint::Long(id)) = fingerprint.parse() else { panic!("{fingerprint}") };
    map.ranked(&id).into_iter().take(2).map(|node| hex::encode(node.key)).collect()
}
