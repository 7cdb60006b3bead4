//! The services of draft-01 as a user has them: several processes, a hub, real files.

mod common;

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use common::{Lab, Running, STEP, data, event, lines};
use serde_json::Value;

/// Runs a command of a node to its end, which must be a good one.
fn good(lab: &Lab, node: &str, args: &[&str]) -> Vec<Value> {
    let output = lab.run(node, args, b"");
    assert_eq!(output.status.code(), Some(0), "{args:?}: {output:?}");
    lines(&output.stdout)
}

/// A command that needs no node of its own.
fn local(lab: &Lab, node: &str, args: &[&str]) -> Vec<Value> {
    let state = lab.path(node);
    let args = [args, &["--json", "--state", state.to_str().unwrap()]].concat();
    let output = common::run(&args);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {output:?}");
    lines(&output.stdout)
}

/// A task as a command printed it.
fn task(lines: &[Value]) -> &Value {
    event(lines, "task")
}

fn until_state(lab: &Lab, node: &str, id: &str, state: &str) -> Value {
    let deadline = Instant::now() + STEP;
    loop {
        let tasks = local(lab, node, &["task", "list"]);
        let task = tasks.iter().find(|task| task["id"] == id).expect("the task is listed");
        if task["state"] == state {
            return task.clone();
        }
        assert!(Instant::now() < deadline, "still {task}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn messages_come_into_the_inbox() {
    let lab = Lab::new();
    let (bob, ready) = lab.up("bob");
    let ports: Vec<_> = ready["services"].as_array().unwrap().iter().map(|p| p.as_u64().unwrap()).collect();
    assert_eq!(ports, [7, 1001, 1002, 1003, 1010, 1011, 1012]);
    good(&lab, "alice", &["message", "bob", "hello \u{1b}[31mbob"]);
    assert_eq!(bob.expect("message", STEP)["kind"], "TEXT");
    good(&lab, "alice", &["message", "bob", "{\"a\": 1}", "--json-payload"]);
    let file = lab.path("some.bin");
    std::fs::write(&file, data(500_000)).unwrap();
    good(&lab, "alice", &["message", "bob", "--binary", file.to_str().unwrap()]);
    let sent = good(&lab, "alice", &["send", "--draft", "bob", file.to_str().unwrap()]);
    assert_eq!(event(&sent, "sent")["protocol"], "data exchange");
    let sent = good(&lab, "alice", &["send", "bob", file.to_str().unwrap(), "--as", "ours.bin"]);
    assert_eq!(event(&sent, "sent")["verified"], true);
    let items = local(&lab, "bob", &["inbox"]);
    let kinds: Vec<_> = items.iter().map(|item| item["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["TEXT", "JSON", "BINARY", "FILE", "FILE"]);
    assert_eq!(items[0]["text"], "hello \u{1b}[31mbob");
    assert_eq!(items[1]["text"], "{\"a\": 1}");
    let path = items[3]["path"].as_str().unwrap();
    assert!(path.ends_with("/some.bin"), "{path}");
    assert_eq!(std::fs::read(path).unwrap(), data(500_000));
    assert_eq!(local(&lab, "bob", &["inbox", "--count", "1"]).len(), 1);
    // For people nothing of a stranger's text reaches the terminal as it is.
    let state = lab.path("bob");
    let shown = common::run(&["inbox", "--state", state.to_str().unwrap()]);
    assert!(common::text(&shown.stdout).contains("hello"));
    assert!(!shown.stdout.contains(&0x1b));
    let output = lab.run("alice", &["message", "bob", "{", "--json-payload"], b"");
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}

#[test]
fn subscribers_hear_publishers() {
    let lab = Lab::new();
    let (_bob, _) = lab.up("bob");
    let mut all = lab.start("carol", &["subscribe", "bob", "*", "--count", "3"]);
    let mut news = lab.start("dave", &["subscribe", "bob", "news", "--count", "2"]);
    for subscriber in [&all, &news] {
        subscriber.expect("subscribed", STEP);
    }
    // Acknowledged is not read yet: give the broker a moment.
    std::thread::sleep(Duration::from_millis(500));
    good(&lab, "alice", &["publish", "bob", "news", "one"]);
    good(&lab, "alice", &["publish", "bob", "weather", "rain"]);
    let output = lab.run("alice", &["publish", "bob", "news", "-"], b"\xff\x00");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(news.expect("published", STEP)["data"], "one");
    assert_eq!(news.expect("published", STEP)["base64"], "/wA=");
    for topic in ["news", "weather", "news"] {
        assert_eq!(all.expect("published", STEP)["topic"], topic);
    }
    assert_eq!(all.wait(STEP).code(), Some(0));
    assert_eq!(news.wait(STEP).code(), Some(0));
}

#[test]
fn names_of_a_nameserver_that_was_asked_for() {
    let lab = Lab::new();
    let bob = lab.start("bob", &["up", "--name", "bob", "--nameserver"]);
    bob.expect("ready", STEP);
    let registered = good(&lab, "alice", &["announce", "web", "--via", "bob"]);
    assert_eq!(event(&registered, "registered")["seconds"], 300);
    good(&lab, "alice", &["announce", "web", "--via", "bob", "--port", "80", "--network", "7"]);
    let resolved = good(&lab, "carol", &["resolve", "web", "--via", "bob"]);
    let address = event(&resolved, "resolved")["address"].as_str().unwrap().to_owned();
    let id = local(&lab, "alice", &["id", "show"]);
    assert!(id.iter().any(|line| line["address"] == address), "{id:?} {address}");
    let services = good(&lab, "carol", &["resolve", "7:80", "--services", "--via", "bob"]);
    assert_eq!(event(&services, "resolved")["services"][0]["address"], address);
    let output = lab.run("carol", &["announce", "web2", "--via", "bob", "--address", &address], b"");
    assert_eq!(output.status.code(), Some(1), "somebody else's address: {output:?}");
    let output = lab.run("carol", &["resolve", "nobody", "--via", "bob"], b"");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(event(&lines(&output.stdout), "error")["cause"].as_str().unwrap().contains("not found"));
}

#[test]
fn a_task_between_two_nodes_survives_kill_9() {
    let lab = Lab::new();
    let (mut alice, _) = lab.up("alice");
    let (mut bob, _) = lab.up("bob");
    // Both nodes run: the commands go to them.
    let submitted = local(&lab, "alice", &["task", "submit", "bob", "count the stars"]);
    let id = task(&submitted)["id"].as_str().unwrap().to_owned();
    assert_eq!(bob.expect("task", STEP)["id"], id.as_str());
    let accepted = local(&lab, "bob", &["task", "accept", &id, "--why", "tonight"]);
    assert_eq!(task(&accepted)["state"], "ACCEPTED");
    let known = until_state(&lab, "alice", &id, "ACCEPTED");
    assert_eq!(known["justification"], "tonight");
    for node in [&mut alice, &mut bob] {
        node.kill();
    }
    let (_alice, _) = lab.up("alice");
    let (_bob, _) = lab.up("bob");
    local(&lab, "bob", &["task", "execute"]);
    let file = lab.path("stars.csv");
    std::fs::write(&file, b"many\n").unwrap();
    local(&lab, "bob", &["task", "results", &id, "--file", file.to_str().unwrap()]);
    let done = until_state(&lab, "alice", &id, "SUCCEEDED");
    assert_eq!(done["result"]["name"], "stars.csv");
    let results = local(&lab, "alice", &["task", "results", &id]);
    let path = task(&results)["result_path"].as_str().unwrap();
    assert_eq!(std::fs::read(Path::new(path)).unwrap(), b"many\n");
    // What is final stays so, and says why.
    let state = lab.path("bob");
    let refused = common::run(&["task", "cancel", &id, "--json", "--state", state.to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    // Declined, with a reason; and refused where nobody serves.
    let submitted = local(&lab, "alice", &["task", "submit", "bob", "again"]);
    let id = task(&submitted)["id"].as_str().unwrap().to_owned();
    local(&lab, "bob", &["task", "decline", &id, "--why", "clouds"]);
    assert_eq!(until_state(&lab, "alice", &id, "DECLINED")["justification"], "clouds");
}

#[test]
fn tasks_work_without_a_running_node_too() {
    let lab = Lab::new();
    let (_bob, _) = lab.up("bob");
    let submitted = good(&lab, "alice", &["task", "submit", "bob", "do it"]);
    let id = task(&submitted)["id"].as_str().unwrap().to_owned();
    let cancelled = good(&lab, "alice", &["task", "cancel", &id, "--why", "no longer"]);
    assert_eq!(task(&cancelled)["state"], "CANCELLED");
    assert_eq!(until_state(&lab, "bob", &id, "CANCELLED")["justification"], "no longer");
}

#[test]
fn services_can_be_left_out() {
    let lab = Lab::new();
    let args = ["up", "--name", "bob", "--without", "messages", "--without", "tasks", "--without", "events"];
    let bob = lab.start("bob", &args);
    let ready = bob.expect("ready", STEP);
    assert_eq!(ready["services"], serde_json::json!([7, 1010, 1011, 1012]));
    let output = lab.run("alice", &["message", "bob", "hi"], b"");
    assert_eq!(output.status.code(), Some(3), "{output:?}");
}

#[test]
fn connect_and_listen_meet_on_the_port_of_standard_io() {
    let lab = Lab::new();
    let args = lab.args("bob", &["listen", "--name", "bob"]);
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let mut listener = Running::start_with(&args, Stdio::null(), true);
    assert_eq!(listener.expect("ready", STEP)["port"], 1000);
    let output = lab.run("alice", &["connect", "bob"], b"by default");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(listener.wait(STEP).code(), Some(0));
}
