//! The Mainline DHT, as a user meets it: a DHT of five nodes on 127.0.0.1, and no hub.

mod common;

use std::time::{Duration, Instant};

use common::{Lab, Running, STEP, event, lines};
use mainline::Testnet;
use serde_json::Value;

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

fn status(lab: &Lab, node: &str) -> Value {
    let output = lab.run_tool(node, &["status"]);
    event(&lines(&output.stdout), "status").clone()
}

fn up(lab: &Lab, net: &Testnet, name: &str, more: &[&str]) -> Running {
    let mut args = vec!["up", "--name", name, "--records", "--record-refresh", "2s", "--mainline"];
    net.bootstrap.iter().for_each(|node| args.extend(["--mainline-bootstrap", node]));
    args.extend(more);
    let node = lab.start(name, &args);
    node.expect("ready", STEP);
    node
}

fn published(lab: &Lab) -> Option<Value> {
    let directory = status(lab, "ann")["records"]["directory"].clone();
    (directory["published"].as_u64() >= Some(1)).then_some(directory)
}

fn pings(lab: &Lab, node: &str, peer: &str) -> bool {
    lab.run_tool(node, &["ping", peer, "--count", "1", "--timeout", "3s"]).status.code() == Some(0)
}

fn resolve(lab: &Lab, net: &Testnet, node: &str, who: &str) -> (Option<i32>, Vec<Value>) {
    let mut args = vec!["resolve", who, "--mainline"];
    net.bootstrap.iter().for_each(|node| args.extend(["--mainline-bootstrap", node]));
    let output = lab.run_tool(node, &args);
    (output.status.code(), lines(&output.stdout))
}

#[test]
fn who_moved_while_no_hub_answers_is_found_on_the_dht() {
    let net = Testnet::builder(5).build().unwrap();
    let mut lab = Lab::new();
    let mut ann = up(&lab, &net, "ann", &[]);
    let mut bob = up(&lab, &net, "bob", &["--private"]);
    let directory = until("the record is not on the DHT", || published(&lab));
    assert_eq!(directory["name"], "mainline");
    assert!(directory["stored_at"].as_u64() >= Some(1), "{directory}");
    let key = status(&lab, "ann")["public_key"].as_str().unwrap().to_owned();
    until("bob does not reach ann", || pings(&lab, "bob", "ann").then_some(()));
    let known = || status(&lab, "bob")["records"]["remembered"].as_u64().filter(|known| *known >= 1);
    until("ann is not remembered", known);
    // All hubs die, and ann comes back at another port; bob has what was on disk.
    lab.hub.kill();
    ann.kill();
    bob.kill();
    let _bob = up(&lab, &net, "bob", &["--private"]);
    let _ann = up(&lab, &net, "ann", &[]);
    let listen = status(&lab, "ann")["listen"].as_str().unwrap().to_owned();
    until("the record is not on the DHT again", || published(&lab));
    until("bob does not reach ann any more", || pings(&lab, "bob", "ann").then_some(()));
    let of_bob = status(&lab, "bob")["records"]["directory"].clone();
    assert_eq!((&of_bob["published"], of_bob["found"].as_u64()), (&Value::from(0), Some(1)), "{of_bob}");
    // A stranger who has nothing but the key.
    let (code, found) = resolve(&lab, &net, "dora", &key);
    assert_eq!(code, Some(0), "{found:?}");
    let found = event(&found, "resolved");
    assert_eq!(found["source"], "mainline");
    assert_eq!(found["public_key"], key.as_str());
    assert!(found["endpoints"].to_string().contains(&listen), "{found}");
    // And one who has only the name, or asks for what is not there.
    assert_ne!(resolve(&lab, &net, "emil", "ann").0, Some(0));
    assert_ne!(resolve(&lab, &net, "emil", &"ab".repeat(32)).0, Some(0));
    // Without the option nobody is asked.
    assert_ne!(lab.run_tool("emil", &["resolve", &key]).status.code(), Some(0));
}

#[test]
fn it_is_used_with_records_only() {
    let lab = Lab::new();
    let output = lab.run_tool("ann", &["up", "--mainline"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(
        common::text(&output.stdout).contains("--records")
            || common::text(&output.stderr).contains("--records")
    );
}
