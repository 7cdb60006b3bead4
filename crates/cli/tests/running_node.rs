//! Commands that work through the node that runs in their state directory, the gateway, and the local socket.
#![cfg(unix)]

mod common;

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use common::{Lab, Running, STEP, data, event, lines};
use pilotage_services::bench::DatagramMessage;
use serde_json::Value;

const SECOND: Duration = Duration::from_secs(1);

/// A hub and two running nodes.
fn lab() -> (Lab, Running, Value, Running, Value) {
    let lab = Lab::new();
    let (alice, alice_ready) = lab.up("alice");
    let (bob, bob_ready) = lab.up("bob");
    (lab, alice, alice_ready, bob, bob_ready)
}

fn listen(lab: &Lab, node: &str, port: &str) -> Running {
    let args = lab.args(node, &["listen", port]);
    let listener =
        Running::start_with(&args.iter().map(String::as_str).collect::<Vec<_>>(), Stdio::piped(), true);
    let ready = listener.expect("ready", STEP);
    assert_eq!(ready["port"].to_string(), port);
    listener
}

fn connect(lab: &Lab, node: &str, peer: &str, port: &str) -> Running {
    let args = lab.args(node, &["connect", peer, port]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let connector = Running::start_with(&args, Stdio::piped(), true);
    connector.expect("connected", STEP);
    connector
}

/// The hub's beacon asks the hub's registry whose an id is. It does when a node proves its key, at the start: before the node
/// has registered the first time, but not the second.
#[test]
fn a_node_that_the_registry_knows_is_confirmed_by_the_beacon() {
    let lab = Lab::new();
    let (mut alice, _) = lab.up("alice");
    alice.kill();
    let (_alice, _) = lab.up("alice");
    let deadline = std::time::Instant::now() + STEP;
    loop {
        let state = lab.path("alice");
        let output = common::run(&["status", "--json", "--state", state.to_str().expect("UTF-8")]);
        let status = lines(&output.stdout).pop().expect("a line");
        let proof = status["hub"]["beacons"][0]["proof"].clone();
        if proof == "confirmed" {
            break;
        }
        assert!(proof.is_null() && std::time::Instant::now() < deadline, "{status}");
        thread::sleep(SECOND / 10);
    }
}

#[test]
fn ping_send_and_bench_go_through_the_running_node() {
    let (lab, alice, alice_ready, bob, bob_ready) = lab();
    // Under one identity, which only one process at a time can have: so it was the running one.
    let output = lab.run("alice", &["ping", "bob", "--count", "2", "--interval", "10ms"], b"");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let replies = lines(&output.stdout);
    assert_eq!(replies.iter().filter(|line| line["event"] == "reply").count(), 2);
    let reply = event(&replies, "reply");
    assert_eq!(reply["path"]["remote"], bob_ready["listen"]);
    assert!(reply["rtt_us"].as_u64().unwrap() > 0);

    let file = lab.path("notes");
    fs::write(&file, data(5_000_001)).unwrap();
    let output = lab.run("alice", &["send", "bob", file.to_str().unwrap()], b"");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let sent = lines(&output.stdout);
    let sent = event(&sent, "sent");
    assert_eq!((&sent["verified"], &sent["bytes"]), (&true.into(), &5_000_001.into()));
    assert_eq!(sent["path"]["kind"], "direct");
    assert!(sent["stats"]["bytes_acked"].as_u64().unwrap() > 5_000_000, "{sent}");
    let received = bob.expect("received", STEP);
    assert_eq!(received["peer"], alice_ready["address"]);
    assert_eq!(fs::read(lab.path("bob").join("inbox/notes")).unwrap(), data(5_000_001));

    let args = ["bench", "bob", "--size", "1MiB", "--round-trips", "20", "--datagrams", "0"];
    let output = lab.run("alice", &args, b"");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(event(&lines(&output.stdout), "bench")["rtt_us"]["count"], 20);
    drop(alice);
}

/// The benchmark service answers datagrams. A node that was started again knows its peer's prekey: what may come twice leaves with its first
/// packet.
#[test]
fn a_datagram_and_its_answer_go_through_the_running_node() {
    let (lab, mut alice, _, _bob, bob_ready) = lab();
    let question = |run| DatagramMessage::Query { run }.encode();
    let send = |run: u32, more: &[&str]| {
        let output =
            lab.run("alice", &[&["datagram", "bob", "1011", "--wait", "20s"], more].concat(), &question(run));
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let all = lines(&output.stdout);
        assert_eq!(event(&all, "sent")["bytes"], question(run).len());
        let answer = event(&all, "answer");
        assert_eq!((&answer["peer"], &answer["port"]), (&bob_ready["address"], &1011.into()));
        assert!(answer["rtt_us"].as_u64().unwrap() > 0);
        let data = BASE64.decode(answer["data"].as_str().unwrap()).unwrap();
        let report = DatagramMessage::decode(&data).expect("a report");
        assert_eq!(report, DatagramMessage::Report { run, datagrams: 0, bytes: 0 });
    };
    let status = || -> Value {
        let output = lab.run_tool("alice", &["status"]);
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
    };
    send(1, &[]);
    // There is a session: nothing is early.
    send(2, &["--idempotent"]);
    assert_eq!(status()["counters"]["early_sent"], 0);
    // What is learned in S1 is kept.
    let deadline = std::time::Instant::now() + STEP;
    while status()["peers"][0]["mode"] != "s1" {
        assert!(std::time::Instant::now() < deadline, "{}", status());
        thread::sleep(SECOND / 10);
    }
    alice.signal("-TERM");
    alice.wait(STEP);
    let (_alice, _) = lab.up("alice");
    send(3, &["--idempotent"]);
    assert_eq!(status()["counters"]["early_sent"], 1);
    // Without --wait it is done when there is a session that carries it.
    let output = lab.run("alice", &["datagram", "bob", "9", "hello"], b"");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(event(&lines(&output.stdout), "sent")["idempotent"], false);
    // Nobody answers at that port; and what no path carries is refused.
    let output = lab.run("alice", &["datagram", "bob", "9", "hello", "--wait", "200ms"], b"");
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let output = lab.run("alice", &["datagram", "bob", "9", "-"], &[7; 5_000]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("send at most so many"), "{output:?}");
}

#[test]
fn connect_and_listen_through_two_running_nodes_end_their_directions_separately() {
    let (lab, _alice, alice_ready, _bob, _) = lab();
    let mut listener = listen(&lab, "bob", "5000");
    let mut connector = connect(&lab, "alice", "bob", "5000");
    let connected = listener.expect("connected", STEP);
    let from = connected["peer"].as_str().unwrap();
    assert!(from.starts_with(alice_ready["address"].as_str().unwrap()), "{from}");
    let there = data(3_000_000);
    let mut input = connector.child.stdin.take().unwrap();
    let bytes = there.clone();
    let writer = thread::spawn(move || input.write_all(&bytes).unwrap());
    let mut output = listener.child.stdout.take().unwrap();
    let mut got = vec![0; there.len()];
    output.read_exact(&mut got).unwrap();
    assert!(got == there);
    writer.join().unwrap();
    listener.expect("peer_finished", STEP);
    // The other direction is still open.
    let mut back = listener.child.stdin.take().unwrap();
    back.write_all(b"late answer").unwrap();
    drop(back);
    let mut text = String::new();
    connector.child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "late answer");
    assert_eq!(listener.wait(STEP).code(), Some(0));
    assert_eq!(connector.wait(STEP).code(), Some(0));
}

#[test]
fn recv_through_a_running_node_that_takes_no_files() {
    let lab = Lab::new();
    let bob = lab.start("bob", &["up", "--name", "bob", "--no-files"]);
    bob.expect("ready", STEP);
    let (_alice, _) = lab.up("alice");
    let dir = lab.path("here");
    fs::create_dir(&dir).unwrap();
    let mut receiver = lab.start("bob", &["recv", "--dir", dir.to_str().unwrap()]);
    receiver.expect("ready", STEP);
    let output = lab.run("alice", &["send", "bob", "-", "--as", "pipe.bin"], &data(700_000));
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(receiver.expect("received", STEP)["bytes"], 700_000);
    assert_eq!(receiver.wait(STEP).code(), Some(0));
    assert_eq!(fs::read(dir.join("pipe.bin")).unwrap(), data(700_000));
    // Where the node takes files itself, the error says so.
    let output = lab.run("alice", &["recv", "--dir", dir.to_str().unwrap()], b"");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(event(&lines(&output.stdout), "error")["next"].as_str().unwrap().contains("--no-files"));
}

#[test]
fn failures_are_the_same_as_without_a_running_node() {
    let (lab, _alice, _, _bob, _) = lab();
    for args in
        [&["connect", "bob", "9"][..], &["connect", "nobody", "7"], &["ping", "nobody", "--count", "1"]]
    {
        let code_and_error = |output: std::process::Output| {
            let all = [lines(&output.stdout), lines(&output.stderr)].concat();
            (output.status.code(), event(&all, "error").clone())
        };
        let through = code_and_error(lab.run("alice", args, b""));
        let own = code_and_error(lab.run("carol", args, b""));
        assert_eq!(through, own, "{args:?}");
        assert_eq!(through.0, Some(3));
    }
}

/// Whoever dies leaves the other side with an error, not with an end; the node goes on.
#[test]
fn killed_processes_leave_errors_and_nothing_else() {
    let (lab, mut alice, _, _bob, _) = lab();
    let mut listener = listen(&lab, "bob", "5000");
    let mut connector = connect(&lab, "alice", "bob", "5000");
    connector.child.stdin.as_mut().unwrap().write_all(b"x").unwrap();
    let mut byte = [0; 1];
    listener.child.stdout.as_mut().unwrap().read_exact(&mut byte).unwrap();
    connector.kill();
    assert_eq!(listener.expect("error", STEP)["stage"], "receive");
    assert_eq!(listener.wait(STEP).code(), Some(3));
    // The port is free again, and the nodes work.
    let mut listener = listen(&lab, "bob", "5000");
    let mut connector = connect(&lab, "alice", "bob", "5000");
    listener.expect("connected", STEP);
    alice.kill();
    let error = connector.expect("error", STEP);
    assert!(error["cause"].as_str().unwrap().contains("ended"), "{error}");
    assert_eq!(connector.wait(STEP).code(), Some(1));
    listener.kill();
    // Without the running node the command starts one of its own.
    let output = lab.run("alice", &["ping", "bob", "--count", "1"], b"");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}

fn local(ready: &Value, what: &str) -> String {
    ready[what]["local"][0].as_str().unwrap().to_owned()
}

/// A TCP server that sends back what it read, once that has ended.
fn echo_at_end() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let local = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut bytes = Vec::new();
            let _ = stream.read_to_end(&mut bytes);
            let _ = stream.write_all(&bytes);
        }
    });
    local
}

fn ask(to: &str, question: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(20 * SECOND)).unwrap();
    stream.write_all(question).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    answer
}

#[test]
fn the_gateway_joins_tcp_programs_over_nodes() {
    // Through the running nodes, and with nodes of the commands' own.
    for running in [true, false] {
        let lab = Lab::new();
        let nodes = running.then(|| (lab.up("alice"), lab.up("bob")));
        let target = echo_at_end();
        let args = ["serve", "8080", &target, "--allow", "alice", "--name", "bob"];
        if !running {
            // Its address must be known to be allowed.
            lab.up("alice");
        }
        let mut serve = lab.start("bob", &args);
        serve.expect("ready", STEP);
        let mut forward = lab.start("alice", &["forward", "127.0.0.1:0", "bob:8080"]);
        let at = local(&forward.expect("ready", STEP), "forward");
        assert!(ask(&at, &data(1_000_000)) == data(1_000_000));
        let opened = forward.expect("opened", STEP);
        assert_eq!(opened["to"], "bob port 8080");
        let closed = forward.expect("closed", STEP);
        assert_eq!((&closed["sent"], &closed["received"]), (&1_000_000.into(), &1_000_000.into()));
        assert_eq!(closed["error"], Value::Null);
        assert_eq!(serve.expect("closed", STEP)["sent"], 1_000_000);
        // Somebody else gets nothing.
        let mut stranger = lab.start("carol", &["forward", "127.0.0.1:0", "bob:8080"]);
        let at = local(&stranger.expect("ready", STEP), "forward");
        assert_eq!(ask(&at, b"hello?"), b"");
        assert!(serve.expect("refused", STEP)["reason"].as_str().unwrap().contains("allow list"));
        for command in [&mut serve, &mut forward, &mut stranger] {
            command.signal("-INT");
            assert_eq!(command.wait(STEP).code(), Some(0), "clean end");
        }
        drop(nodes);
    }
}

#[test]
fn socks5_reaches_peers_by_name() {
    let (lab, _alice, _, _bob, _) = lab();
    let login = lab.path("login");
    fs::write(&login, "ann:secret\n").unwrap();
    let args = ["socks5", "127.0.0.1:0", "--password-file", login.to_str().unwrap()];
    let proxy = lab.start("alice", &args);
    let mut stream = TcpStream::connect(local(&proxy.expect("ready", STEP), "socks5")).unwrap();
    stream.set_read_timeout(Some(20 * SECOND)).unwrap();
    stream.write_all(b"\x05\x01\x02\x01\x03ann\x06secret\x05\x01\x00\x03\x09bob.pilot\x00\x07hello").unwrap();
    let mut answer = [0; 2 + 2 + 10 + 5];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer, *b"\x05\x02\x01\x00\x05\x00\x00\x01\0\0\0\0\0\0hello");
    let output = lab.run("carol", &["socks5", "0.0.0.0:0"], b"");
    assert_eq!(output.status.code(), Some(2), "open to all: {output:?}");
}

#[test]
fn aliases_stand_for_peers() {
    let (lab, _alice, _, _bob, _) = lab();
    let args = ["gateway", "--map", "bob=127.4.78.1", "--ports", "7"];
    // Port 7 takes root.
    let gateway = lab.start("alice", &args);
    let ready = gateway.expect_one(&["ready", "error"], STEP);
    if ready["event"] == "error" {
        assert!(ready["next"].as_str().unwrap().contains("root"), "{ready}");
        return;
    }
    assert_eq!(ask("127.4.78.1:7", b"hello"), b"hello");
    assert_eq!(gateway.expect("closed", STEP)["received"], 5);
}

#[test]
fn up_serves_the_local_socket_where_it_is_told_to() {
    let lab = Lab::new();
    let socket = lab.path("run").join("pilot.sock");
    let path = socket.to_str().unwrap();
    let mut up = lab.start("alice", &["up", "--ipc", path]);
    assert_eq!(up.expect("ready", STEP)["ipc"], path);
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&socket), mode(socket.parent().unwrap())), (0o600, 0o700));
    let mut driver = UnixStream::connect(&socket).unwrap();
    driver.set_read_timeout(Some(10 * SECOND)).unwrap();
    driver.write_all(&[0, 0, 0, 1, 0x21]).unwrap();
    let mut head = [0; 5];
    driver.read_exact(&mut head).unwrap();
    assert_eq!(head[4], 0x22, "health");
    let mut body = vec![0; u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize - 1];
    driver.read_exact(&mut body).unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&body).unwrap()["status"], "ok");
    up.signal("-TERM");
    assert_eq!(up.wait(STEP).code(), Some(0));
    assert!(!socket.exists());
    // A folder that others may enter.
    let open = lab.path("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o755)).unwrap();
    let output = lab.run("alice", &["up", "--ipc", open.join("s").to_str().unwrap()], b"");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(event(&lines(&output.stdout), "error")["next"].as_str().unwrap().contains("chmod 700"));
}
