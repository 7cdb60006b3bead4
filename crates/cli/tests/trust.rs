//! `pilotage trust` and what survives of it when the node is killed.

mod common;

use std::time::{Duration, Instant};

use common::{Lab, STEP, event, lines, run_for};
use serde_json::Value;

/// The command at the node's state directory.
fn run(lab: &Lab, node: &str, args: &[&str]) -> std::process::Output {
    let state = lab.path(node);
    run_for(&[&["--json", "--state", state.to_str().unwrap(), "trust"], args].concat(), b"", STEP)
}

/// The last line of a command that must succeed.
fn trust(lab: &Lab, node: &str, args: &[&str]) -> Value {
    let output = run(lab, node, args);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {output:?}");
    lines(&output.stdout).pop().unwrap()
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + STEP;
    while !done() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn trust_is_asked_for_given_kept_and_taken_back() {
    let lab = Lab::new();
    let (_alice, _) = lab.up("alice");
    let (mut bob, ready) = lab.up("bob");
    assert_eq!(ready["public"], true, "the default at our own hub");
    let asked = trust(&lab, "alice", &["request", "bob", "--why", "let us talk"]);
    assert_eq!((&asked["delivery"], &asked["node"]), (&Value::from("direct"), &ready["address"]));
    let told = bob.expect("trust_requested", STEP);
    assert_eq!(told["justification"], "let us talk");
    let waiting = trust(&lab, "bob", &["pending"]);
    let number = waiting["pending"][0]["node_id"].to_string();
    trust(&lab, "bob", &["approve", &number]);
    bob.kill();
    let (bob, _) = lab.up("bob");
    assert_eq!(trust(&lab, "bob", &["list"])["trusted"][0]["node_id"].to_string(), number, "kept");
    let trusted = |node: &str| trust(&lab, node, &["list"])["trusted"].as_array().unwrap().len();
    // The approval may have died with its process: whoever asks again is told again.
    if trusted("alice") == 0 {
        trust(&lab, "alice", &["request", "bob"]);
        wait_for("alice hears of it", || trusted("alice") == 1);
    }
    trust(&lab, "alice", &["revoke", "bob"]);
    wait_for("bob hears of it", || trusted("bob") == 0);
    drop(bob);
}

#[test]
fn mistakes_are_explained() {
    let lab = Lab::new();
    let output = run(&lab, "alice", &["list"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let reported = lines(&output.stdout);
    assert!(event(&reported, "error")["next"].as_str().unwrap().contains("pilotage up"));
    let (_alice, _) = lab.up("alice");
    for (args, expected) in [
        (&["approve", "5"][..], "no request"),
        (&["revoke", "0:0000.0000.0005"], "not trusted"),
        (&["request", "alice"], "this node itself"),
        (&["request", "nobody"], "nobody"),
        (&["approve", "99999999999"], "no node number"),
    ] {
        let output = run(&lab, "alice", args);
        assert_ne!(output.status.code(), Some(0), "{args:?}");
        let reported = lines(&output.stdout);
        let cause = event(&reported, "error")["cause"].as_str().unwrap();
        assert!(cause.contains(expected), "{args:?}: {cause}");
    }
}
