//! `find` and `call` between real processes (spec/discovery.md §10).

mod common;

use std::process::Stdio;
use std::time::Duration;

use common::{Running, STEP, event, lines, run, text};

/// A provider of `finance.fx.rate` in a process of its own, and how it is reached.
fn provider(dir: &std::path::Path, name: &str, more: &[&str]) -> (Running, String) {
    let skills = dir.join(format!("{name}.toml"));
    let state = dir.join(name);
    let content = format!(
        "summary = 'Exchange rates of {name}'\nagent_card = 'card.json'\n[[skill]]\ntag = 'finance.fx.rate'\nidempotent = true\nrun = ['sh', '-c', 'read pair; echo {name} $pair 1.08']\n"
    );
    std::fs::write(&skills, content).unwrap();
    let card = r#"{"name":"Rates","description":"d","skills":[{"id":"finance.fx.rate","pilotage:idempotent":true}]}"#;
    std::fs::write(dir.join("card.json"), card).unwrap();
    let (state, skills) = (state.to_str().unwrap().to_owned(), skills.to_str().unwrap().to_owned());
    let mut args =
        vec!["--json", "--state", &state, "up", "--no-lan", "--bind", "127.0.0.1:0", "--skills", &skills];
    args.extend(more);
    let node = Running::start_with(&args, Stdio::null(), false);
    let ready = node.expect("ready", STEP);
    assert!(ready["services"].as_array().unwrap().iter().any(|port| port == 1013), "{ready}");
    let word = |key: &str| ready[key].as_str().unwrap().to_owned();
    let peer = format!("{}@{}", word("address"), word("listen"));
    (node, peer)
}

#[test]
fn who_can_do_it_is_found_called_and_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let (mut one, first) = provider(dir.path(), "one", &[]);
    let (_two, second) = provider(dir.path(), "two", &[]);
    let state = dir.path().join("asker");
    let state = state.to_str().unwrap();
    let asked = ["--ask", &first, "--ask", &second, "--wait", "20s"];
    let asker = |json: bool, command: &'static str, more: &[&str]| {
        let mut args =
            vec!["--state", state, command, "--no-lan", "--bind", "127.0.0.1:0", "--connect-timeout", "2s"];
        if json {
            args.push("--json");
        }
        args.extend(asked);
        args.extend(more);
        run(&args)
    };
    let found = asker(true, "find", &["cap:finance.fx", "exchange rates of one"]);
    assert!(found.status.success(), "{}", text(&found.stderr));
    let all = lines(&found.stdout);
    let hits = event(&all, "found")["found"].as_array().unwrap();
    assert_eq!((hits.len(), hits[0]["peer"].as_str()), (2, Some(first.as_str())));
    assert_eq!(hits[0]["skills"][0]["idempotent"], true);
    let explained =
        text(&asker(false, "find", &["cap:finance.fx", "rates", "--explain", "--describe"]).stdout);
    for part in
        ["match", "liveness", "evidence", "a case of finance.fx", "asked 2 node(s)", "\"name\": \"Rates\""]
    {
        assert!(explained.contains(part), "{part}: {explained}");
    }
    let what = ["cap:finance.fx.rate", "exchange rates of one", "--data", "EUR/USD"];
    let called = asker(false, "call", &what);
    assert_eq!(text(&called.stdout), "one EUR/USD 1.08\n", "{}", text(&called.stderr));
    one.kill();
    let called = asker(true, "call", &what);
    assert!(called.status.success(), "{}", text(&called.stdout));
    let all = lines(&called.stdout);
    assert_eq!(event(&all, "served")["text"], "two EUR/USD 1.08\n");
    // What went wrong is known and shown: whoever is gone, and why.
    let nobody = asker(true, "find", &["cap:weather"]);
    assert_eq!(nobody.status.code(), Some(3));
    let all = lines(&nobody.stdout);
    assert!(event(&all, "error")["cause"].as_str().unwrap().contains("2 node(s) were asked"), "{all:#?}");
    assert!(std::path::Path::new(state).join("evidence.json").exists());
}

#[test]
fn an_index_keeps_what_is_announced() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("index");
    let args = [
        "--json",
        "--state",
        state.to_str().unwrap(),
        "up",
        "--no-lan",
        "--bind",
        "127.0.0.1:0",
        "--index",
        "10",
    ];
    let index = Running::start_with(&args, Stdio::null(), false);
    let ready = index.expect("ready", STEP);
    let at = format!("{}@{}", ready["address"].as_str().unwrap(), ready["listen"].as_str().unwrap());
    let (node, peer) = provider(dir.path(), "three", &["--announce", &at]);
    node.expect("announced", Duration::from_secs(60));
    let call = ["call", "--no-lan", "--ephemeral", "--bind", "127.0.0.1:0", "--ask", &at, "--wait", "20s"];
    let called = run(&[&call[..], &["cap:finance.fx", "--data", "x"]].concat());
    assert_eq!(text(&called.stdout), "three x 1.08\n", "{}", text(&called.stderr));
    assert!(text(&called.stderr).contains(&peer), "{}", text(&called.stderr));
}

#[test]
fn mistakes_are_named_before_anything_is_started() {
    for (args, word) in [
        (&["find", "cap:a b"][..], "cap:a b"),
        (&["call", "words"], "one capability"),
        (&["call", "cap:a", "cap:b"], "one capability"),
        (&["up", "--skills", "/nonexistent/skills.toml"], "/nonexistent/skills.toml"),
        (&["up", "--skill", "A b"], "A b"),
        (&["up", "--announce", "bob"], "nothing to announce"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().to_str().unwrap().to_owned();
        let output = run(&[&["--state", &state][..], args].concat());
        let said = text(&output.stderr);
        assert!(
            !output.status.success() && said.contains(word) && said.contains("next:"),
            "{args:?}: {said}"
        );
    }
}

#[test]
fn the_members_of_a_network_are_asked_without_being_named() {
    let lab = common::Lab::new();
    let skills = lab.path("skills.toml");
    std::fs::write(&skills, "summary = 'rain'\n[[skill]]\ntag = 'weather.radar'\nrun = ['cat']\n").unwrap();
    let member = lab.start("member", &["up", "--name", "member", "--skills", skills.to_str().unwrap()]);
    member.expect("ready", STEP);
    let (_asker, _) = lab.up("asker");
    let network = |node: &str, action: &[&str]| {
        let state = lab.path(node);
        let own = ["--state", state.to_str().unwrap(), "--registry", &lab.registry, "--json", "network"];
        let output = run(&[&own[..], action].concat());
        assert!(output.status.success(), "{action:?}: {} {}", text(&output.stdout), text(&output.stderr));
    };
    network("member", &["create", "sky", "--admin-token", common::ADMIN_TOKEN]);
    network("asker", &["join", "sky"]);
    // Through the node that runs: it has no tunnel with the member yet.
    let found = lab.run("asker", &["find", "cap:weather", "--network", "sky", "--wait", "20s"], b"");
    assert!(found.status.success(), "{} {}", text(&found.stdout), text(&found.stderr));
    let hits = event(&lines(&found.stdout), "found")["found"].clone();
    assert_eq!((hits.as_array().unwrap().len(), &hits[0]["summary"]), (1, &"rain".into()));
    // Now it knows the member, and need not be told the network. What may do harm twice asks first.
    let called = lab.run("asker", &["call", "cap:weather.radar", "--data", "x", "--wait", "20s"], b"");
    assert_eq!(event(&lines(&called.stdout), "served")["text"], "x", "{}", text(&called.stdout));
}

#[test]
fn the_hub_keeps_an_index_and_leads_to_groups_that_agents_join_by_themselves() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let hub = [
        "hub",
        "--json",
        "--listen",
        "127.0.0.1",
        "--registry-port",
        "0",
        "--state",
        &path("hub"),
        "--index",
    ];
    let hub = Running::start(&hub);
    let ready = hub.expect("ready", STEP);
    assert!(ready["index"].is_string(), "{ready}");
    let word = |key: &str| ready[key].as_str().unwrap().to_owned();
    let (registry, beacon) = (word("registry"), word("beacon"));
    let own = |name: &str, args: &[&str]| {
        let own =
            ["--registry", &registry, "--beacon", &beacon, "--bind", "127.0.0.1:0", "--no-lan", "--json"];
        let all: Vec<String> = args.iter().chain(&own).map(|arg| (*arg).to_owned()).collect();
        [all, vec!["--state".to_owned(), path(name)]].concat()
    };
    let start = |name: &str, args: &[&str]| {
        let args = own(name, args);
        Running::start(&args.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let ask = |args: &[&str]| {
        let args = own("asker", args);
        lines(&run(&args.iter().map(String::as_str).collect::<Vec<_>>()).stdout)
    };
    // Somebody keeps the index of a group, and an agent comes that has the interest.
    let keeper = start("keeper", &["up", "--index", "10", "--group", "finance.fx"]);
    keeper.expect("announced", STEP);
    let skills = ["--skill", "finance.fx.rate", "--summary", "rates of the euro"];
    let agent = start("agent", &[&["up"], &skills[..]].concat());
    for _ in 0..2 {
        agent.expect("announced", STEP);
    }
    // Who asks knows the hub only.
    let found = ask(&["find", "cap:finance.fx", "euro rates", "--wait", "30s"]);
    let found = event(&found, "found").clone();
    assert_eq!(found["found"][0]["summary"], "rates of the euro", "{found}");
    assert!(found["groups"][0].as_str().unwrap().contains("has finance.fx"), "{found}");
    assert_eq!(found["asked"].as_array().unwrap().len(), 2, "the hub's index and the group's: {found}");
    // One who does not want to be found there is not.
    let silent = start("silent", &["up", "--skill", "weather.radar", "--no-announce"]);
    silent.expect("ready", STEP);
    let nobody = ask(&["find", "cap:weather", "--wait", "30s"]);
    assert!(nobody.iter().any(|line| line["event"] == "error"), "{nobody:?}");
}
