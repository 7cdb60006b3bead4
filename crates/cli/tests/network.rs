//! Hub and nodes as separate processes: what a user does with them.

mod common;

use std::io::{Read, Write};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use common::{Lab, Running, STEP, data, event, lines, only, run_for};
use serde_json::Value;

#[test]
fn demo_moves_a_file_and_reports_everything() {
    let tmp = tempfile::tempdir().unwrap();
    let args = ["demo", "--size", "8MiB", "--round-trips", "200", "--datagrams", "200", "--json"];
    let mut command = common::pilotage(&args);
    let output = command.env("TMPDIR", tmp.path()).stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let lines = lines(&output.stdout);
    assert_eq!(lines.len(), 1, "one object: {lines:#?}");
    let report = &lines[0];
    assert_eq!(report["verified"], true);
    assert_eq!(report["bytes"], 8 << 20);
    for key in ["goodput_bps", "handshake_us"] {
        assert!(report[key].as_u64().is_some_and(|value| value > 0), "{key}: {report:#}");
    }
    assert!(report["rtt_us"]["p50"].as_u64() <= report["rtt_us"]["p99"].as_u64());
    assert_eq!(report["rtt_us"]["count"], 200);
    assert!(report["retransmitted_segments"].is_u64());
    assert_eq!(report["path"], "direct");
    assert_eq!(report["datagrams"]["sent"], 200);
    assert!(report["datagrams"]["received"].as_u64().unwrap() > 0);
    for node in report["nodes"].as_array().unwrap() {
        assert!(node["address"].as_str().unwrap().starts_with("0:0000."));
        assert!(node["fingerprint"].as_str().unwrap().starts_with("pa1"));
    }
    assert_ne!(report["nodes"][0]["address"], report["nodes"][1]["address"]);
    assert!(only(tmp.path(), &[]), "the work directory is gone");
}

#[test]
fn demo_with_a_file_and_with_an_empty_one() {
    let dir = tempfile::tempdir().unwrap();
    for len in [0, 3_000_001] {
        let file = dir.path().join("file name.bin");
        std::fs::write(&file, data(len)).unwrap();
        let args =
            ["demo", "--file", file.to_str().unwrap(), "--round-trips", "10", "--datagrams", "10", "--json"];
        let output = run_for(&args, b"", STEP);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let report = &lines(&output.stdout)[0];
        assert_eq!(report["blake3"], blake3_hex(&data(len)));
        assert_eq!(report["bytes"], len);
    }
}

fn blake3_hex(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

#[test]
fn demo_ends_its_children_on_ctrl_c() {
    let tmp = tempfile::tempdir().unwrap();
    let mut command = common::pilotage(&["demo", "--size", "2GiB", "--json"]);
    let mut child = command
        .env("TMPDIR", tmp.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // Long enough that children run on any machine that is not hopelessly busy.
    let deadline = Instant::now() + Duration::from_secs(20);
    while children_of(child.id()).is_empty() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_millis(300));
    let children = children_of(child.id());
    let pid = child.id().to_string();
    std::process::Command::new("kill").args(["-INT", &pid]).status().unwrap();
    let status = common::wait(&mut child, Duration::from_secs(10)).expect("ends after Ctrl-C");
    assert_eq!(status.code(), Some(130));
    for pid in children {
        assert!(!Path::new(&format!("/proc/{pid}")).exists(), "child {pid} survived");
    }
    assert!(only(tmp.path(), &[]), "the work directory is gone");
}

#[test]
fn demo_children_end_when_the_parent_is_killed() {
    let tmp = tempfile::tempdir().unwrap();
    let mut command = common::pilotage(&["demo", "--size", "1MiB", "--round-trips", "4000000000", "--json"]);
    let mut child = command
        .env("TMPDIR", tmp.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while children_of(child.id()).len() < 3 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    let children = children_of(child.id());
    assert_eq!(children.len(), 3, "hub, A and B run");
    child.kill().unwrap();
    child.wait().unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while children.iter().any(|pid| is_alive(*pid)) {
        assert!(Instant::now() < deadline, "orphans: {children:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Direct children that are still processes, from /proc.
fn children_of(pid: u32) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(child) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if parent_of(child).is_some_and(|(parent, _)| parent == pid) {
            found.push(child);
        }
    }
    found
}

fn is_alive(pid: u32) -> bool {
    parent_of(pid).is_some_and(|(_, state)| state != 'Z')
}

fn parent_of(pid: u32) -> Option<(u32, char)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut rest = stat.rsplit(") ").next()?.split(' ');
    let state = rest.next()?.chars().next()?;
    Some((rest.next()?.parse().ok()?, state))
}

#[test]
fn ping_by_name_and_by_address() {
    let lab = Lab::new();
    let (_bob, ready) = lab.up("bob");
    let address = ready["address"].as_str().unwrap();
    let direct = format!("{address}@{}", ready["listen"].as_str().unwrap());
    for peer in ["bob", address, &direct] {
        let output = lab.run("alice", &["ping", peer, "-c", "2", "-i", "10ms"], b"");
        assert_eq!(output.status.code(), Some(0), "{peer}: {output:?}");
        let lines = lines(&output.stdout);
        assert_eq!(event(&lines, "summary")["answered"], 2, "{peer}");
        assert!(event(&lines, "reply")["rtt_us"].as_u64().unwrap() > 0);
    }
    let output = lab.run("alice", &["ping", "nobody", "-c", "1"], b"");
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let lines = lines(&output.stdout);
    assert_eq!(event(&lines, "error")["stage"], "resolve");
}

#[test]
fn a_silent_peer_is_given_up_in_bounded_time() {
    let dir = tempfile::tempdir().unwrap();
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let peer = format!("0:0000.ABCD.1234@{}", silent.local_addr().unwrap());
    let state = dir.path().to_str().unwrap();
    let begin = Instant::now();
    let output = common::run(&["ping", &peer, "-c", "1", "-t", "2s", "--json", "--state", state]);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert!(begin.elapsed() < Duration::from_secs(20));
}

#[test]
fn a_node_takes_files_and_echoes() {
    let lab = Lab::new();
    let (bob, ready) = lab.up("bob");
    let inbox = ready["inbox"].as_str().unwrap();
    let file = lab.path("report.bin");
    std::fs::write(&file, data(2_000_000)).unwrap();
    let output = lab.run("alice", &["send", "bob", file.to_str().unwrap()], b"");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let sent = lines(&output.stdout);
    let received = bob.expect("received", STEP);
    assert_eq!(event(&sent, "sent")["blake3"], received["blake3"]);
    assert_eq!(std::fs::read(Path::new(inbox).join("report.bin")).unwrap(), data(2_000_000));
    // A second time it is refused, and the file stays.
    let output = lab.run("alice", &["send", "bob", file.to_str().unwrap()], b"");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let refused = lines(&output.stdout);
    assert!(event(&refused, "error")["cause"].as_str().unwrap().contains("exists"));
    assert!(only(Path::new(inbox), &["report.bin"]));
    // Echo by `connect`, with the end of our input ending the exchange.
    let output = lab.run("alice", &["connect", "bob", "7"], &data(300_000));
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(output.stdout, data(300_000));
    let output = lab.run("alice", &["connect", "bob", "8"], b"");
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let output = lab.run(
        "alice",
        &["bench", "bob", "--size", "1MiB", "--round-trips", "20", "--datagrams", "20"],
        b"",
    );
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let bench = lines(&output.stdout);
    let bench = event(&bench, "bench");
    assert!(bench["upload"]["bps"].as_u64().unwrap() > 0 && bench["download"]["bps"].as_u64().unwrap() > 0);
    assert_eq!(bench["rtt_us"]["count"], 20);
    assert_eq!(bench["datagrams"]["sent"], 20);
}

#[test]
fn several_files_go_in_one_tunnel_and_the_first_failure_ends_it() {
    let lab = Lab::new();
    let (bob, ready) = lab.up("bob");
    let inbox = Path::new(ready["inbox"].as_str().unwrap());
    let names: Vec<String> = (0..20).map(|n| format!("part-{n}")).collect();
    let paths: Vec<_> = names.iter().map(|name| lab.path(name)).collect();
    for (n, path) in paths.iter().enumerate() {
        std::fs::write(path, data(n * 1000)).unwrap();
    }
    // S1 from the start: a session of the draft that is replaced on the way would be a second handshake.
    let mut args = vec!["send", "bob", "--parallel", "5", "--secure-mode", "s1", "--connect-timeout", "20s"];
    args.extend(paths.iter().map(|path| path.to_str().unwrap()));
    let output = lab.run("alice", &args, b"");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(lines(&output.stdout).iter().filter(|line| line["event"] == "sent").count(), 20);
    for (n, name) in names.iter().enumerate() {
        assert_eq!(std::fs::read(inbox.join(name)).unwrap(), data(n * 1000), "{name}");
    }
    assert_eq!(local(&lab, "bob", &["status"])["counters"]["handshakes"], 1);
    // They are there already: one refusal is reported with its name, the rest is left alone.
    let output = lab.run("alice", &args, b"");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let cause = event(&lines(&output.stdout), "error")["cause"].as_str().unwrap().to_owned();
    assert!(cause.contains("part-") && cause.contains("exists"), "{cause}");
    for bad in [&["send", "bob", paths[0].to_str().unwrap(), "/nonexistent"][..], &["send", "bob"]] {
        assert_ne!(lab.run("alice", bad, b"").status.code(), Some(0));
    }
    drop(bob);
}

#[test]
fn send_and_recv_through_pipes() {
    let lab = Lab::new();
    let args = lab.args("bob", &["recv", "--name", "bob", "-o", "-"]);
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let mut bob = Running::start_with(&args, Stdio::null(), true);
    let mut stdout = bob.child.stdout.take().unwrap();
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        stdout.read_to_end(&mut bytes).unwrap();
        bytes
    });
    bob.expect("ready", STEP);
    let output = lab.run("alice", &["send", "bob", "-", "--as", "pipe"], &data(1_500_000));
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(bob.wait(STEP).code(), Some(0));
    assert_eq!(reader.join().unwrap(), data(1_500_000));
}

#[test]
fn recv_stores_under_a_chosen_name() {
    let lab = Lab::new();
    let target = lab.path("chosen");
    let mut bob = lab.start("bob", &["recv", "--name", "bob", "-o", target.to_str().unwrap()]);
    bob.expect("ready", STEP);
    let output = lab.run("alice", &["send", "bob", "-"], b"hello");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(bob.expect("received", STEP)["verified"], true);
    assert_eq!(bob.wait(STEP).code(), Some(0));
    assert_eq!(std::fs::read(target).unwrap(), b"hello");
}

/// `listen` on node `name`, ready.
fn listen(lab: &Lab, name: &str) -> Running {
    let args = lab.args(name, &["listen", "5000", "--name", name]);
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let listener = Running::start_with(&args, Stdio::piped(), true);
    listener.expect("ready", STEP);
    listener
}

#[test]
fn half_close_works_in_both_orders() {
    let lab = Lab::new();
    for connector_ends_first in [true, false] {
        let mut listener = listen(&lab, "bob");
        let args = lab.args("alice", &["connect", "bob", "5000"]);
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        let mut connector = Running::start_with(&args, Stdio::piped(), true);
        connector.expect("connected", STEP);
        listener.expect("connected", STEP);
        let (first, second) = if connector_ends_first {
            (&mut connector, &mut listener)
        } else {
            (&mut listener, &mut connector)
        };
        // The first ends its direction; everything arrives, then the end.
        let mut input = first.child.stdin.take().unwrap();
        input.write_all(&data(200_000)).unwrap();
        drop(input);
        let mut bytes = vec![0; 200_000];
        let mut second_out = second.child.stdout.take().unwrap();
        second_out.read_exact(&mut bytes).unwrap();
        assert_eq!(bytes, data(200_000));
        second.expect("peer_finished", STEP);
        // The second still sends, and its end ends both.
        let mut input = second.child.stdin.take().unwrap();
        input.write_all(&data(300_000)).unwrap();
        drop(input);
        let mut bytes = Vec::new();
        first.child.stdout.take().unwrap().read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, data(300_000));
        bytes.clear();
        second_out.read_to_end(&mut bytes).unwrap();
        assert!(bytes.is_empty());
        assert_eq!(first.wait(STEP).code(), Some(0));
        assert_eq!(second.wait(STEP).code(), Some(0));
    }
}

#[test]
fn ctrl_c_ends_every_command_promptly() {
    let lab = Lab::new();
    let (bob, _) = lab.up("bob");
    let inbox = lab.path("inbox");
    std::fs::create_dir(&inbox).unwrap();
    let cases: [(&[&str], i32); 5] = [
        (&["up"], 0),
        (&["recv", "--dir", inbox.to_str().unwrap()], 130),
        (&["listen", "5000"], 130),
        (&["ping", "bob", "-c", "0"], 130),
        (&["bench", "bob", "--size", "100GiB"], 130),
    ];
    for (args, code) in cases {
        let args = lab.args("carol", args);
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        let on_stderr = args[0] == "listen";
        let mut running = Running::start_with(&args, Stdio::piped(), on_stderr);
        if matches!(args[0], "ping") {
            running.expect("reply", STEP);
        } else if matches!(args[0], "bench") {
            std::thread::sleep(Duration::from_secs(2));
        } else {
            running.expect("ready", STEP);
        }
        let begin = Instant::now();
        running.signal("-INT");
        let status = running.wait(Duration::from_secs(10));
        assert_eq!(status.code(), Some(code), "{}", args[0]);
        assert!(begin.elapsed() < Duration::from_secs(7), "{}", args[0]);
    }
    drop(bob);
    let mut hub = lab.hub;
    hub.signal("-TERM");
    assert_eq!(hub.wait(Duration::from_secs(10)).code(), Some(0));
}

#[test]
fn an_interrupted_transfer_leaves_nothing_behind() {
    let lab = Lab::new();
    let (bob, ready) = lab.up("bob");
    let mut alice = endless_sender(&lab);
    alice.expect("progress", STEP);
    alice.signal("-INT");
    assert_eq!(alice.wait(Duration::from_secs(10)).code(), Some(130));
    bob.expect("failed", Duration::from_secs(90));
    assert!(only(Path::new(ready["inbox"].as_str().unwrap()), &[]));
}

/// A sender whose input never ends.
fn endless_sender(lab: &Lab) -> Running {
    let args = lab.args("alice", &["send", "bob", "/dev/zero"]);
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    Running::start_with(&args, Stdio::null(), false)
}

#[test]
fn kill_9_of_the_receiver_is_reported_and_it_returns_under_its_address() {
    let lab = Lab::new();
    let (mut bob, ready) = lab.up("bob");
    let mut alice = endless_sender(&lab);
    alice.expect("progress", STEP);
    bob.kill();
    let begin = Instant::now();
    let error = alice.expect("error", Duration::from_secs(120));
    assert_eq!(error["exit_code"], 3, "{error}");
    assert_eq!(alice.wait(Duration::from_secs(10)).code(), Some(3));
    println!("noticed after {:?}", begin.elapsed());
    let (_bob, again) = lab.up("bob");
    assert_eq!(again["address"], ready["address"]);
    reachable(&lab, "bob");
}

#[test]
fn kill_9_of_the_sender_is_reported_and_it_returns_under_its_address() {
    let lab = Lab::new();
    let (bob, ready) = lab.up("bob");
    let mut alice = endless_sender(&lab);
    alice.expect("progress", STEP);
    let before = identity(&lab, "alice");
    alice.kill();
    let (alice, again) = lab.up("alice");
    assert_eq!(again["address"], before["address"]);
    // Bob keeps running; somebody else reaches both.
    for peer in ["alice", "bob"] {
        reachable(&lab, peer);
    }
    drop(alice);
    // Once the new Alice talks to Bob, his keepalive finds out that she knows nothing of the stream.
    let alice = lab.start("alice", &["ping", "bob", "-c", "0"]);
    alice.expect("reply", STEP);
    let failed = bob.expect("failed", Duration::from_secs(60));
    assert!(failed["cause"].as_str().is_some_and(|cause| !cause.is_empty()));
    assert!(only(Path::new(ready["inbox"].as_str().unwrap()), &[]), "no partial file");
}

#[test]
#[ignore = "takes about a minute: keepalive, then the time for its answers"]
fn kill_9_of_the_sender_is_reported_even_if_it_never_returns() {
    let lab = Lab::new();
    let (bob, ready) = lab.up("bob");
    let mut alice = endless_sender(&lab);
    alice.expect("progress", STEP);
    alice.kill();
    let failed = bob.expect("failed", Duration::from_secs(150));
    assert!(failed["cause"].as_str().is_some_and(|cause| !cause.is_empty()));
    assert!(only(Path::new(ready["inbox"].as_str().unwrap()), &[]), "no partial file");
}

fn identity(lab: &Lab, node: &str) -> Value {
    local(lab, node, &["id", "show"])
}

/// The result of a command that starts no node.
fn local(lab: &Lab, node: &str, args: &[&str]) -> Value {
    let state = lab.path(node);
    let output = common::run(&[args, &["--json", "--state", state.to_str().unwrap()]].concat());
    assert!(output.status.success(), "{output:?}");
    lines(&output.stdout).remove(0)
}

/// A fresh node reaches this one, perhaps after a moment.
fn reachable(lab: &Lab, peer: &str) {
    let output = lab.run("eve", &["ping", peer, "-c", "10", "-i", "200ms", "-t", "3s"], b"");
    assert_eq!(output.status.code(), Some(0), "{peer}: {output:?}");
}

#[test]
fn a_transfer_survives_kill_9_of_the_hub_and_the_hub_remembers() {
    let mut lab = Lab::new();
    let (bob, ready) = lab.up("bob");
    let file = lab.path("big.bin");
    std::fs::write(&file, data(64 << 20)).unwrap();
    let alice = lab.start("alice", &["send", "bob", file.to_str().unwrap()]);
    alice.expect_one(&["progress", "sent"], STEP);
    lab.hub.kill();
    // Established tunnels need no hub.
    bob.expect("received", Duration::from_secs(120));
    // A new look-up does, and says so.
    let output = lab.run("carol", &["ping", "bob", "-c", "1"], b"");
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    drop(alice);
    lab.restart_hub();
    // Bob was registered before the kill: nothing acknowledged is lost.
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let output = lab.run("carol", &["ping", "bob", "-c", "1"], b"");
        if output.status.success() {
            break;
        }
        assert!(Instant::now() < deadline, "{output:?}");
        std::thread::sleep(Duration::from_millis(500));
    }
    let status = local(&lab, "bob", &["status"]);
    assert_eq!(status["address"], ready["address"]);
}

#[test]
fn a_full_disk_is_reported_on_both_sides() {
    let lab = Lab::new();
    let small = lab.path("small");
    std::fs::create_dir(&small).unwrap();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=1m", "tmpfs", small.to_str().unwrap()])
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !mounted {
        eprintln!("SKIPPED: needs the right to mount a tmpfs");
        return;
    }
    let unmount = Unmount(small.clone());
    let bob = lab.start("bob", &["up", "--name", "bob", "--inbox", small.to_str().unwrap()]);
    bob.expect("ready", STEP);
    let output = lab.run("alice", &["send", "bob", "-", "--as", "x"], &data(20_000_000));
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let sent = lines(&output.stdout);
    assert!(event(&sent, "error")["cause"].as_str().unwrap().contains("space"), "{sent:?}");
    assert!(bob.expect("failed", STEP)["cause"].as_str().unwrap().contains("space"));
    assert!(only(&small, &[]));
    drop(bob);
    drop(unmount);
}

struct Unmount(std::path::PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_truncated_source_is_reported_on_both_sides() {
    let lab = Lab::new();
    let (bob, ready) = lab.up("bob");
    let file = lab.path("shrinking.bin");
    let source = std::fs::File::create(&file).unwrap();
    source.set_len(8 << 30).unwrap();
    let mut alice = lab.start("alice", &["send", "bob", file.to_str().unwrap()]);
    alice.expect("progress", STEP);
    source.set_len(0).unwrap();
    let error = alice.expect("error", STEP);
    assert!(error["cause"].as_str().unwrap().contains("announced"), "{error}");
    assert_eq!(alice.wait(STEP).code(), Some(1));
    assert!(bob.expect("failed", STEP)["cause"].as_str().unwrap().contains("announced"));
    assert!(only(Path::new(ready["inbox"].as_str().unwrap()), &[]));
    // A file of /proc says that it is empty and is not.
    let output = lab.run("alice", &["send", "bob", "/proc/cpuinfo"], b"");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}
