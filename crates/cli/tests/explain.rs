//! `trace`, `doctor` and `ping --until-direct`, with a node of their own and through a running one.

mod common;

use common::{Lab, event, lines, text};

#[test]
fn every_step_to_a_peer_is_told() {
    let lab = Lab::new();
    let (_bob, _) = lab.up("bob");
    let output = lab.run("alice", &["trace", "bob", "--wait", "1s"], b"");
    assert!(output.status.success(), "{output:?}");
    let told = lines(&output.stdout);
    let steps: Vec<_> = told.iter().filter(|line| line["event"] == "step").collect();
    for step in ["lookup", "handshake", "first-answer"] {
        assert!(steps.iter().any(|line| line["step"] == step), "{step}: {told:#?}");
    }
    assert!(steps.windows(2).all(|pair| pair[0]["at_us"].as_u64() <= pair[1]["at_us"].as_u64()), "{told:#?}");
    let end = event(&told, "trace");
    assert!(end["reason"].as_str().is_some_and(|reason| reason.starts_with("direct")), "{end}");

    let output = lab.run("alice", &["trace", "carol"], b"");
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert_eq!(event(&lines(&output.stdout), "error")["stage"], "resolve");

    // Through a running node, which has the tunnel already the second time.
    let (_carol, _) = lab.up("carol");
    for _ in 0..2 {
        let output = lab.run("carol", &["trace", "bob", "--wait", "1s"], b"");
        assert!(output.status.success(), "{output:?}");
    }
    let output = lab.run("carol", &["trace", "bob", "--wait", "1s"], b"");
    assert!(text(&output.stdout).contains("\"tunnel\""), "{output:?}");
}

#[test]
fn ping_until_direct_ends_with_the_direct_path() {
    let lab = Lab::new();
    let (_bob, _) = lab.up("bob");
    let output = lab.run("alice", &["ping", "bob", "--until-direct", "--timeout", "20s"], b"");
    assert!(output.status.success(), "{output:?}");
    let told = lines(&output.stdout);
    assert_eq!(event(&told, "direct")["path"]["kind"], "direct");
    assert!(event(&told, "reply")["reason"].is_string());
}

#[test]
fn the_doctor_finds_what_is_wrong_and_what_to_do() {
    let mut lab = Lab::new();
    let (_bob, _) = lab.up("bob");
    let output = lab.run("alice", &["doctor", "bob"], b"");
    assert!(output.status.success(), "{output:?}");
    let told = lines(&output.stdout);
    for check in ["addresses", "hub", "beacon", "nat", "peer", "mtu", "peer-view"] {
        let finding = told.iter().find(|line| line["check"] == check);
        assert!(finding.is_some_and(|one| one["state"] == "ok"), "{check}: {told:#?}");
    }
    assert_eq!(event(&told, "doctor")["failed"], 0);

    // The hub is gone: the running node says so, with cause and next step.
    lab.hub.kill();
    let output = lab.run("bob", &["doctor"], b"");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let told = lines(&output.stdout);
    for check in ["hub", "beacon"] {
        let finding = told.iter().find(|line| line["check"] == check).unwrap();
        assert_eq!(finding["state"], "fail", "{finding}");
        assert!(finding["cause"].is_string() && finding["next"].is_string(), "{finding}");
    }
}
