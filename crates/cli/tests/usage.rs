//! What needs no peer: command line, configuration, identities, errors.

mod common;

use common::{Lab, Running, STEP, event, lines, run, run_for, text};
use serde_json::Value;

fn error_of(args: &[&str], exit: i32) -> Value {
    let output = run(&[args, &["--json"]].concat());
    assert_eq!(output.status.code(), Some(exit), "{args:?}: {output:?}");
    let lines = lines(&output.stdout);
    let error = event(&lines, "error").clone();
    for part in ["stage", "cause", "next"] {
        assert!(error[part].as_str().is_some_and(|text| !text.is_empty()), "{error}");
    }
    assert_eq!(error["exit_code"], exit);
    error
}

#[test]
fn help_documents_exit_codes_and_every_command_has_help() {
    let help = run(&["--help"]);
    assert!(help.status.success());
    let help = text(&help.stdout);
    assert!(help.contains("Exit codes") && help.contains("130"));
    for command in [
        "hub",
        "up",
        "id",
        "status",
        "ping",
        "trace",
        "doctor",
        "send",
        "recv",
        "listen",
        "connect",
        "bench",
        "decode",
        "demo",
        "message",
        "inbox",
        "subscribe",
        "publish",
        "task",
        "resolve",
        "record",
        "announce",
        "config",
        "completions",
    ] {
        assert!(help.contains(command), "{command}");
        let own = run(&[command, "--help"]);
        assert!(own.status.success(), "{command}");
        assert!(text(&own.stdout).contains("--json"), "{command}");
    }
    assert!(!help.contains("demo-sender"));
}

#[test]
fn wrong_command_lines_exit_with_2() {
    for args in [
        &["ping"][..],
        &["nonsense"],
        &["demo", "--size", "1XB"],
        &["listen", "0"],
        &["connect", "b", "70000"],
    ] {
        assert_eq!(run(args).status.code(), Some(2), "{args:?}");
        error_of(args, 2);
    }
    let output = run(&["ping", "Not A Name"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn errors_name_stage_cause_and_next_step() {
    let output = run(&["status", "--state", "/nonexistent/x"]);
    assert_eq!(output.status.code(), Some(1));
    let text = text(&output.stderr);
    assert!(text.starts_with("error: status: no node is running"), "{text}");
    assert!(text.contains("\n  next: "), "{text}");
}

#[test]
fn a_name_without_a_hub_is_explained() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().to_str().unwrap();
    let error = error_of(&["ping", "bob", "--no-lan", "--state", state], 2);
    assert!(error["next"].as_str().unwrap().contains("--hub"), "{error}");
    // On the loopback there is no local network to look at, unless that is wanted.
    error_of(&["ping", "bob", "--bind", "127.0.0.1:0", "--state", state], 2);
    // Otherwise it is looked for on this network, where nobody has such a name.
    let error =
        error_of(&["ping", "nobody-of-that-name", "--count", "1", "--timeout", "1s", "--state", state], 3);
    assert_eq!(error["stage"], "resolve");
}

#[test]
fn settings_come_from_flag_then_environment_then_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("c.toml");
    std::fs::write(&file, "hub = 'from-file'\nstate = '/from/file'\n").unwrap();
    let config = |env: Option<&str>, flag: Option<&str>| {
        let mut command = common::pilotage(&["config", "--json", "--config", file.to_str().unwrap()]);
        if let Some(env) = env {
            command.env("PILOTAGE_HUB", env);
        }
        if let Some(flag) = flag {
            command.args(["--hub", flag]);
        }
        lines(&command.output().unwrap().stdout)[0]["settings"]["hub"]["value"].as_str().unwrap().to_owned()
    };
    assert_eq!(config(None, None), "from-file");
    assert_eq!(config(Some("from-env"), None), "from-env");
    assert_eq!(config(Some("from-env"), Some("from-flag")), "from-flag");
    std::fs::write(&file, "hubb = 'x'\n").unwrap();
    let error = error_of(&["config", "--config", file.to_str().unwrap()], 2);
    assert!(error["cause"].as_str().unwrap().contains("hubb"), "{error}");
}

#[test]
fn identities_are_made_shown_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("s");
    let state = state.to_str().unwrap();
    error_of(&["id", "show", "--state", state], 1);
    let made = &lines(&run(&["id", "new", "--json", "--state", state]).stdout)[0];
    let shown = &lines(&run(&["id", "show", "--json", "--state", state]).stdout)[0];
    for key in ["address", "fingerprint", "fingerprint_long", "public_key"] {
        assert!(made[key].is_string());
        assert_eq!(made[key], shown[key]);
    }
    assert!(shown["fingerprint"].as_str().unwrap().starts_with("pa1"));
    let refused = error_of(&["id", "new", "--state", state], 1);
    assert!(refused["next"].as_str().unwrap().contains("--force"));
    let other = &lines(&run(&["id", "new", "--force", "--json", "--state", state]).stdout)[0];
    assert_ne!(other["public_key"], made["public_key"]);
    assert!(std::path::Path::new(state).join("identity.json.1").exists());
}

#[test]
fn an_unreadable_identity_is_reported_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().to_str().unwrap();
    let file = dir.path().join("identity.json");
    for garbage in ["", "garbage", "{}", "{\"private_key\":\"AAAA\",\"public_key\":\"AAAA\"}"] {
        std::fs::write(&file, garbage).unwrap();
        let error = error_of(&["up", "--state", state], 1);
        assert!(error["cause"].is_string(), "{error}");
        error_of(&["id", "show", "--state", state], 1);
        assert_eq!(std::fs::read_to_string(&file).unwrap(), garbage);
    }
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    error_of(&["up", "--state", state], 1);
}

#[test]
fn a_state_directory_in_use_names_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().to_str().unwrap();
    let args = ["--state", state, "--json", "--bind", "127.0.0.1:0"];
    let up = Running::start(&[&["up"][..], &args].concat());
    up.expect("ready", STEP);
    // Other commands go through the running node.
    let output = run(&[&["up"][..], &args].concat());
    assert_eq!(output.status.code(), Some(1));
    let lines = lines(&output.stdout);
    let error = event(&lines, "error");
    assert!(error["cause"].as_str().unwrap().contains(&up.child.id().to_string()), "{error}");
    assert!(error["next"].as_str().unwrap().contains("--ephemeral"), "{error}");
}

#[test]
fn status_shows_the_running_node() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().to_str().unwrap();
    let mut up = Running::start(&["up", "--state", state, "--json", "--bind", "127.0.0.1:0"]);
    let ready = up.expect("ready", STEP);
    let status = lines(&run(&["status", "--json", "--state", state]).stdout);
    assert_eq!(status[0]["address"], ready["address"]);
    assert_eq!(status[0]["pid"], up.child.id());
    assert!(status[0]["counters"]["datagrams_received"].is_u64());
    assert!(text(&run(&["status", "--state", state]).stdout).contains("fingerprint"));
    up.signal("-INT");
    assert_eq!(up.wait(STEP).code(), Some(0));
    error_of(&["status", "--state", state], 1);
    assert!(!dir.path().join("control.sock").exists());
}

#[test]
fn ports_in_use_are_reported() {
    let lab = Lab::new();
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().to_str().unwrap();
    let port = |addr: &str| addr.rsplit(':').next().unwrap().to_owned();
    let hub = ["hub", "--listen", "127.0.0.1", "--state", state];
    let registry = port(&lab.registry);
    let error = error_of(&[&hub[..], &["--registry-port", &registry, "--beacon-port", "0"]].concat(), 1);
    assert_eq!(error["stage"], "registry", "{error}");
    let beacon = port(&lab.beacon);
    let error = error_of(&[&hub[..], &["--registry-port", "0", "--beacon-port", &beacon]].concat(), 1);
    assert_eq!(error["stage"], "beacon", "{error}");
    let error = error_of(&["up", "--state", state, "--bind", &lab.beacon], 1);
    assert!(error["stage"].as_str().unwrap().contains("bind"), "{error}");
}

#[test]
fn a_store_in_use_or_damaged_is_reported() {
    let lab = Lab::new();
    let store = lab.path("hub").join("registry.redb");
    let hub = ["hub", "--listen", "127.0.0.1", "--registry-port", "0", "--store"];
    error_of(&[&hub[..], &[store.to_str().unwrap()]].concat(), 1);
    let garbage = lab.path("garbage.redb");
    std::fs::write(&garbage, vec![7; 100_000]).unwrap();
    error_of(&[&hub[..], &[garbage.to_str().unwrap()]].concat(), 1);
    error_of(&[&hub[..], &["/dev/full"]].concat(), 1);
}

#[test]
fn a_wrong_hub_address_is_reported_in_bounded_time() {
    let dir = tempfile::tempdir().unwrap();
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let args = ["ping", "bob", "--state", dir.path().to_str().unwrap(), "--json", "--hub", &port.to_string()];
    let output = run(&args);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let lines = lines(&output.stdout);
    assert!(event(&lines, "error")["cause"].as_str().unwrap().contains(&port.to_string()));
    let output = run(&["up", "--state", dir.path().to_str().unwrap(), "--hub", "host.invalid:1"]);
    assert!(matches!(output.status.code(), Some(2 | 3)), "{output:?}");
}

#[test]
fn files_that_cannot_be_sent_are_reported_before_anything_starts() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().to_str().unwrap();
    let peer = "0:0000.ABCD.1234@127.0.0.1:9";
    error_of(&["send", peer, "/nonexistent", "--state", dir], 1);
    let error = error_of(&["send", peer, dir, "--state", dir], 1);
    assert!(error["next"].as_str().unwrap().contains("tar"), "{error}");
    error_of(&["send", peer, "/etc/hostname", "--as", "../x", "--state", dir], 2);
}

#[test]
fn completions_are_printed() {
    for shell in ["bash", "zsh", "fish"] {
        let output = run(&["completions", shell]);
        assert!(output.status.success() && text(&output.stdout).contains("pilotage"), "{shell}");
    }
}

#[test]
fn a_closed_output_is_no_panic() {
    let mut child = common::pilotage(&["--help"]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert!(common::wait(&mut child, STEP).is_some());
    let line = "50494c50\n".repeat(20_000);
    let mut command = common::pilotage(&["decode", "-"]);
    command
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    let mut stdin = child.stdin.take().unwrap();
    let _ = std::io::Write::write_all(&mut stdin, line.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert!(!text(&output.stderr).contains("panicked"), "{output:?}");
}

#[test]
fn decode_of_the_vectors() {
    let path = format!("{}/../../spec/vectors/packets.json", env!("CARGO_MANIFEST_DIR"));
    let vectors: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let mut input = String::new();
    let mut expected = Vec::new();
    for case in vectors["cases"].as_array().unwrap() {
        if case["protocol"].as_u64().is_some_and(|number| (1..=3).contains(&number))
            && let Some(hex) = case["pilt_frame_hex"].as_str()
        {
            input.push_str(hex);
            input.push('\n');
            expected.push(case["seq"].clone());
        }
    }
    let output = run_for(&["decode", "--json"], input.as_bytes(), STEP);
    assert!(output.status.success(), "{output:?}");
    let found: Vec<_> = lines(&output.stdout)
        .into_iter()
        .filter(|line| line["event"] == "datagram")
        .map(|line| line["packet"]["seq"].clone())
        .collect();
    assert_eq!(found, expected);
    let readable = run_for(&["decode"], input.as_bytes(), STEP);
    assert!(text(&readable.stdout).contains("0:0000.0000.0001:49152"));
}

#[test]
fn decode_of_addresses_and_of_nonsense() {
    let output = run(&["decode", "0:0000.ABCD.1234", "--json"]);
    assert_eq!(lines(&output.stdout)[0]["bytes"], "0000abcd1234");
    // The draft's own example, which no implementation accepts.
    let error = error_of(&["decode", "1:00A3.F291.0004"], 2);
    assert!(error["cause"].as_str().unwrap().contains("network"), "{error}");
    error_of(&["decode", "zz"], 2);
    error_of(&["decode", "50494c53"], 1);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("noise");
    std::fs::write(&file, common::data(5000)).unwrap();
    error_of(&["decode", file.to_str().unwrap()], 1);
    // A capture that is cut off in its header.
    std::fs::write(&file, [0xD4, 0xC3, 0xB2, 0xA1, 2, 0]).unwrap();
    error_of(&["decode", file.to_str().unwrap()], 1);
}

#[cfg(not(feature = "mainline"))]
#[test]
fn a_build_without_the_dht_says_so_and_how_to_get_one() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().to_str().unwrap();
    let error = error_of(&["resolve", &"ab".repeat(32), "--mainline", "--state", state], 2);
    assert!(error["next"].as_str().unwrap().contains("--features mainline"), "{error}");
}
