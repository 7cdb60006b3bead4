//! Records and claims as a user meets them: a hub, and commands that publish and find.

mod common;

use common::{Lab, event, lines};
use serde_json::Value;

fn good(lab: &Lab, node: &str, args: &[&str]) -> Vec<Value> {
    let output = lab.run_tool(node, args);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {output:?}");
    lines(&output.stdout)
}

#[test]
fn an_agent_publishes_and_is_found() {
    let mut lab = Lab::new();
    for node in ["ann", "bob"] {
        assert!(lab.run_tool(node, &["id", "new"]).status.success());
    }
    let publish = [
        "record",
        "publish",
        "--hostname",
        "fx",
        "--tag",
        "finance.fx",
        "--summary",
        "Rates.",
        "--endpoint",
        "192.0.2.1:4000",
    ];
    let published = good(&lab, "ann", &publish);
    let published = event(&published, "published");
    let address = published["address"].as_str().unwrap();
    let fingerprint = published["fingerprint"].as_str().unwrap();
    for who in ["fx", address, fingerprint] {
        let shown = good(&lab, "bob", &["record", "show", who]);
        let shown = event(&shown, "record");
        assert_eq!(shown["address"], address);
        assert_eq!(shown["tags"][0], "finance.fx");
        assert_eq!(shown["summary"], "Rates.");
        assert_eq!(shown["log_size"].is_u64(), who != fingerprint);
    }
    let resolved = good(&lab, "bob", &["resolve", "fx"]);
    assert_eq!(event(&resolved, "resolved")["address"], address);
    // The name is taken; the same agent may publish again.
    let output = lab.run_tool("bob", &["record", "publish", "--hostname", "fx"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(event(&lines(&output.stdout), "error")["cause"].as_str().unwrap().contains("another agent"));
    good(&lab, "ann", &publish);
    // The hub forgets nothing, and what bob remembers of its log still fits.
    lab.restart_hub();
    assert_eq!(event(&good(&lab, "bob", &["resolve", "fx"]), "resolved")["address"], address);
    let output = lab.run_tool("bob", &["resolve", "nobody"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    // A key that is not the hub's is not believed.
    let key = "01".repeat(32);
    let output = lab.run_tool("bob", &["resolve", "fx", "--registry-key", &key]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    good(&lab, "ann", &["record", "publish", "--gone"]);
    assert_eq!(event(&good(&lab, "bob", &["record", "show", "fx"]), "record")["gone"], true);
}
