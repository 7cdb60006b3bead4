//! What a flood of forged initiations does to a node in S1 (spec/secure.md §10): to a flow that is up, to those who would
//! like a session, to its memory. Everything over real sockets of the loopback.
//!
//! ```text
//! cargo run --release -p pilotage --example flood -- [--seconds N] [--rate N] [--flow MB_PER_S] [--kinds a,b] [--json]
//! ```
//!
//! The node under attack is a process of its own, kept on core 0 where `taskset` is there; everything else runs on the others.
//! Kinds: `wrong` (nobody told the attacker the public key), `one` (right `mac1`, all from one address), `forged` (right
//! `mac1`, each from another address of 127.0.0.0/8). The figures of a flood stand beside those of the same load without one.
//!
//! `wait` says for which part of the time a thread of the node was ready to run and something else had its core, `dropped` what the queue of its
//! socket had no room for. Exit status: 1 if a goal of the specification is missed; 2 if the flood did not reach its rate or the node did not
//! have its core (then the figures tell about the machine); 3 if nothing could be measured.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pilotage::{Address, Identity, Node, Peer, SecureMode, Stream};
use pilotage_proto::s1::prekey_id;
use pilotage_wire::s1::handshake::{Flags, NewPrekey, initiation_header};
use quinn_udp::{Transmit, UdpSockRef, UdpSocketState};
use serde_json::{Value, json};

/// Bytes of an initiation without early data.
const PILI: usize = 304;
/// Different forged initiations, sent in turn.
const POOL: usize = 8_192;
/// Workers that make handshakes.
const CALLERS: u32 = 8;
/// Pause of a worker between two of them.
const PAUSE: Duration = Duration::from_millis(100);
/// A flow loses at most this part, of those who call at most that, memory grows by at most so many bytes beyond what the tunnels of those take
/// who called.
const GOALS: (f64, f64, u64) = (0.10, 0.001, 16 << 20);
/// Part of the time that others may have the node's core for the figures to say something about the node. (Its own threads wait for one another a
/// little.)
const WAIT_MAX: f64 = 0.10;
/// The flood lasts so long before it is measured, seconds: tables and allocators reach their size first.
const WARM: u64 = 7;
/// What went wrong and what to do.
type Fault = String;

fn number(name: &str, default: u64) -> u64 {
    let mut args = std::env::args();
    args.find(|arg| arg == name).and_then(|_| args.next()?.parse().ok()).unwrap_or(default)
}

// ---------------------------------------------------------------------- the node under attack

/// Serves streams: the first byte says what is wanted. Answers each line of the standard input with its figures.
fn serve() {
    let node = Node::builder()
        .identity(Identity::from_seed([77; 32]))
        .bind("127.0.0.1:0".parse().expect("address"))
        .secure_mode(SecureMode::S1)
        .start()
        .expect("starts");
    let listener = node.listen(7).expect("free");
    let sunk = Arc::new(AtomicU64::new(0));
    let count = sunk.clone();
    std::thread::spawn(move || {
        while let Ok(mut stream) = listener.accept() {
            let count = count.clone();
            std::thread::spawn(move || {
                let mut buf = vec![0; 1 << 16];
                let mut sink = false;
                while let Ok(n @ 1..) = stream.read(&mut buf) {
                    sink |= buf[0] == b's';
                    if sink {
                        count.fetch_add(n as u64, Ordering::Relaxed);
                    } else if stream.write_all(&buf[..n]).is_err() {
                        return;
                    }
                }
            });
        }
    });
    println!("{}", json!({ "at": node.local_addr().to_string(), "address": node.address().to_string() }));
    for line in std::io::stdin().lines() {
        if line.is_err() {
            break;
        }
        let endpoint = node.stats().endpoint;
        println!(
            "{}",
            json!({
                "sunk": sunk.load(Ordering::Relaxed), "rss": resident(), "cpu": ticks(), "received": endpoint.datagrams_received,
                "sent": endpoint.datagrams_sent, "handshakes": endpoint.handshakes, "waited": waited(),
                "dropped": dropped(node.local_addr().port()),
                "refused": endpoint.drop_bad_key_exchange + endpoint.drop_rate_limited + endpoint.drop_replay,
            })
        );
    }
}

/// Memory of this process, bytes.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    text.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4_096
}

/// How long the thread that waited longest was ready to run and did not, seconds. The threads of the node share one core: those that wait for one
/// another do not count twice.
fn waited() -> f64 {
    let of = |task: std::fs::DirEntry| {
        let text = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        text.split(' ').nth(1).and_then(|nanos| nanos.parse::<u64>().ok()).unwrap_or(0)
    };
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    tasks.map(of).max().unwrap_or(0) as f64 / 1e9
}

/// Datagrams that found the queue of the UDP socket with this port full.
fn dropped(port: u16) -> u64 {
    let text = std::fs::read_to_string("/proc/net/udp").unwrap_or_default();
    let port = format!(":{port:04X}");
    let mut lines =
        text.lines().filter(|line| line.split_whitespace().nth(1).is_some_and(|at| at.ends_with(&port)));
    lines.next().and_then(|line| line.split_whitespace().last()?.parse().ok()).unwrap_or(0)
}

/// Time of this process on the CPU, in hundredths of a second.
fn ticks() -> u64 {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after = text.rsplit(") ").next().unwrap_or_default().to_owned();
    after.split(' ').skip(11).take(2).filter_map(|word| word.parse::<u64>().ok()).sum()
}

/// What callers need to know.
#[derive(Clone)]
struct Target {
    address: Address,
    at: SocketAddr,
    key: [u8; 32],
}

impl Target {
    /// A stream to it from a node that nobody knows.
    fn call(&self, from: Ipv4Addr) -> Result<(Node, Stream), String> {
        let node = Node::builder()
            .identity(Identity::from_seed(fresh()))
            .bind(SocketAddr::new(from.into(), 0))
            .secure_mode(SecureMode::S1)
            .peer(self.address, self.at, Some(self.key))
            .start()
            .map_err(|error| error.to_string())?;
        let stream = node.open(Peer::At(self.address, self.at), 7).map_err(|error| error.to_string())?;
        Ok((node, stream))
    }
}

struct Victim {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    target: Target,
}

impl Victim {
    fn start() -> Result<Self, Fault> {
        let fault = |error: std::io::Error| format!("the node under attack does not start: {error}");
        let own = std::env::current_exe().map_err(fault)?;
        let pinned = Command::new("taskset").arg("-V").stdout(Stdio::null()).status().is_ok();
        let mut command = Command::new(if pinned { "taskset".into() } else { own.clone().into_os_string() });
        if pinned {
            command.args(["-c", "0"]).arg(own);
        }
        let mut child =
            command.arg("serve").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(fault)?;
        let input = child.stdin.take().expect("a pipe");
        let output = BufReader::new(child.stdout.take().expect("a pipe"));
        let address = Address::new(0, 0);
        let key = Identity::from_seed([77; 32]).public_key();
        let target = Target { address, at: SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0), key };
        let mut this = Self { child, input, output, target };
        let said = this.line()?;
        let text = |name: &str| said[name].as_str().unwrap_or_default().to_owned();
        this.target.at = text("at").parse().expect("an address");
        this.target.address = text("address").parse().expect("an address");
        Ok(this)
    }

    fn line(&mut self) -> Result<Value, Fault> {
        let mut line = String::new();
        let read = self.output.read_line(&mut line);
        let answer = read.ok().and_then(|_| serde_json::from_str(&line).ok());
        answer.ok_or_else(|| "the node under attack does not answer: what it wrote last says why".to_owned())
    }

    fn ask(&mut self) -> Result<Value, Fault> {
        // If it is gone, its silence says so.
        let _ = self.input.write_all(b"\n");
        self.line()
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn fresh() -> [u8; 32] {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).expect("random bytes");
    seed
}

// ---------------------------------------------------------------------- who attacks

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Wrong,
    One,
    Forged,
}

/// Initiations as anybody can make them who knows the public key, for the prekey in use, with nonsense in them.
fn forge(target: &Target, kind: Kind) -> Result<Vec<[u8; PILI]>, Fault> {
    let mac = blake3::derive_key("pilotage 2026 mac1", &target.key);
    let mut seed = blake3::Hasher::new_keyed(&fresh()).finalize_xof();
    let mut make = |id: &[u8; 8], right: bool| {
        let mut pili = [0; PILI];
        seed.fill(&mut pili[..PILI - 16]);
        let sender = u32::from_be_bytes([pili[8], pili[9], pili[10], pili[11]]) | 1;
        pili[..20].copy_from_slice(&initiation_header(Flags::default(), sender, id));
        if right {
            let tag = blake3::keyed_hash(&mac, &pili[..PILI - 32]);
            pili[PILI - 32..PILI - 16].copy_from_slice(&tag.as_bytes()[..16]);
        }
        pili
    };
    // Anybody may ask for the prekey.
    let socket = UdpSocket::bind("127.0.0.1:0").expect("bind");
    socket.set_read_timeout(Some(Duration::from_secs(1))).expect("timeout");
    let mut buf = [0; 1_500];
    let told = (0..10).find_map(|_| {
        socket.send_to(&make(&[9; 8], true), target.at).ok()?;
        let (len, _) = socket.recv_from(&mut buf).ok()?;
        NewPrekey::decode(&buf[..len]).ok()
    });
    let told = told.ok_or_else(|| before_the_flood("the prekey was not told in ten tries"))?;
    let id = prekey_id(&told.prekey);
    Ok((0..POOL).map(|_| make(&id, kind != Kind::Wrong)).collect())
}

/// There is no flood yet, so it is not to blame.
fn before_the_flood(what: &str) -> Fault {
    format!(
        "before the flood: {what}. The node had no core to itself, or the loopback is filtered: stop what else runs on this machine and try again"
    )
}

/// Sends `rate` a second until told to stop; returns how many left.
fn attack(at: SocketAddr, kind: Kind, pool: &[[u8; PILI]], rate: u64, stop: &AtomicBool) -> u64 {
    let socket = UdpSocket::bind("0.0.0.0:0").expect("bind");
    let raw = socket2::SockRef::from(&socket);
    let _ = raw.set_send_buffer_size(8 << 20);
    // What comes back is of no use to an attacker.
    let _ = raw.set_recv_buffer_size(4_096);
    let state = UdpSocketState::new(UdpSockRef::from(&socket)).expect("socket");
    let (begun, mut sent, mut random) = (Instant::now(), 0u64, 0x9E37_79B9_7F4A_7C15u64);
    while !stop.load(Ordering::Relaxed) {
        let due = (begun.elapsed().as_micros() as u64).saturating_mul(rate) / 1_000_000;
        // What could not be sent in time is not made up for in one burst.
        sent = sent.max(due.saturating_sub(rate / 50));
        if sent >= due {
            std::thread::sleep(Duration::from_micros(200));
            continue;
        }
        for _ in sent..due {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let [a, b, c, ..] = random.to_le_bytes();
            // 127.32.0.0 and above: those who really call have lower ones.
            let from = IpAddr::V4(Ipv4Addr::new(127, 32 + a % 192, b, c));
            let transmit = Transmit {
                destination: at,
                ecn: None,
                contents: &pool[(random >> 32) as usize % pool.len()],
                segment_size: None,
                src_ip: (kind == Kind::Forged).then_some(from),
            };
            let _ = state.try_send(UdpSockRef::from(&socket), &transmit);
        }
        sent = due;
    }
    sent
}

// ---------------------------------------------------------------------- who uses the node

/// A stream that is written at a steady pace.
fn flow(target: &Target, megabytes: u64, stop: &Arc<AtomicBool>) -> Result<JoinHandle<()>, Fault> {
    let stop = stop.clone();
    let call = target.call(Ipv4Addr::new(127, 0, 0, 2));
    let (node, mut stream) = call.map_err(|error| before_the_flood(&format!("a flow failed ({error})")))?;
    Ok(std::thread::spawn(move || {
        let _node = node;
        let chunk = vec![b's'; 1 << 14];
        let (mut sent, begun) = (0u64, Instant::now());
        while !stop.load(Ordering::Relaxed) {
            let due = begun.elapsed().as_micros() as u64 * megabytes;
            if sent >= due {
                std::thread::sleep(Duration::from_millis(1));
            } else if stream.write_all(&chunk).is_ok() {
                // What was not taken within 200 ms is lost to the flow.
                sent = (sent + chunk.len() as u64).max(due.saturating_sub(megabytes * 200_000));
            } else {
                return;
            }
        }
    }))
}

/// One byte there and back on a stream that is up, again and again. Milliseconds.
fn echo(target: &Target, stop: &Arc<AtomicBool>) -> Result<JoinHandle<Vec<f64>>, Fault> {
    let stop = stop.clone();
    let call = target.call(Ipv4Addr::new(127, 0, 0, 3));
    let (node, mut stream) = call.map_err(|error| before_the_flood(&format!("an echo failed ({error})")))?;
    Ok(std::thread::spawn(move || {
        let _node = node;
        let mut times = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            let begun = Instant::now();
            let done = stream.write_all(b"e").and_then(|()| stream.read_exact(&mut [0])).is_ok();
            times.push(if done { begun.elapsed().as_secs_f64() * 1e3 } else { f64::INFINITY });
            if !done {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        times
    }))
}

/// Nodes that nobody knows, each of which wants a session, sends a byte and gets it back. Milliseconds; infinite where it
/// failed.
fn callers(target: &Target, worker: u32, stop: &Arc<AtomicBool>) -> JoinHandle<(Vec<f64>, Vec<Fault>)> {
    let (target, stop) = (target.clone(), stop.clone());
    std::thread::spawn(move || {
        let (mut times, mut errors) = (Vec::new(), Vec::new());
        while !stop.load(Ordering::Relaxed) {
            let n = times.len() as u32 * CALLERS + worker;
            // Each from an address of its own: the node works for one address twenty times a second at most.
            let from = Ipv4Addr::new(127, 1 + (n >> 16) as u8 % 30, (n >> 8) as u8, n as u8);
            let begun = Instant::now();
            let done = target.call(from).and_then(|(node, mut stream)| {
                let round = stream.write_all(b"e").and_then(|()| stream.read_exact(&mut [0]));
                round.map(|()| node).map_err(|error| error.to_string())
            });
            match done {
                Ok(node) => {
                    times.push(begun.elapsed().as_secs_f64() * 1e3);
                    node.close();
                }
                Err(error) => {
                    times.push(f64::INFINITY);
                    errors.push(error);
                }
            }
            std::thread::sleep(PAUSE);
        }
        (times, errors)
    })
}

fn quantile(times: &mut [f64], part: f64) -> Option<f64> {
    times.sort_by(f64::total_cmp);
    let at = ((times.len() as f64 * part) as usize).min(times.len().checked_sub(1)?);
    times.get(at).copied().filter(|time| time.is_finite())
}

// ---------------------------------------------------------------------- a run

struct Plan {
    seconds: u64,
    rate: u64,
    flow: u64,
}

/// The load of honest nodes for a while, with a flood beside it or without.
fn run(plan: &Plan, name: &str, kind: Option<Kind>) -> Result<Value, Fault> {
    let mut victim = Victim::start()?;
    let target = victim.target.clone();
    let stop = Arc::new(AtomicBool::new(false));
    let flowing = flow(&target, plan.flow, &stop)?;
    let echoing = echo(&target, &stop)?;
    let calling: Vec<_> = (0..CALLERS).map(|worker| callers(&target, worker, &stop)).collect();
    let pool = kind.map(|kind| forge(&target, kind)).transpose()?;
    std::thread::sleep(Duration::from_secs(2));
    let attacking = kind.zip(pool).map(|(kind, pool)| {
        let (stop, rate) = (stop.clone(), plan.rate);
        std::thread::spawn(move || attack(target.at, kind, &pool, rate, &stop))
    });
    std::thread::sleep(Duration::from_secs(WARM));
    let (before, begun) = (victim.ask()?, Instant::now());
    std::thread::sleep(Duration::from_secs(plan.seconds));
    let (after, took) = (victim.ask()?, begun.elapsed().as_secs_f64());
    stop.store(true, Ordering::Relaxed);
    let sent = attacking.map_or(0, |thread| thread.join().expect("the attacker"));
    let mut echoes = echoing.join().expect("the echo");
    let ended = calling.into_iter().map(|thread| thread.join().expect("a caller"));
    let (calls, errors): (Vec<_>, Vec<_>) = ended.unzip();
    let (mut calls, mut errors) = (calls.concat(), errors.concat());
    flowing.join().expect("the flow");
    let failed = errors.len();
    errors.sort();
    errors.dedup();
    let of = |row: &Value, name: &str| row[name].as_f64().unwrap_or(0.0);
    let grown = |name: &str| (of(&after, name) - of(&before, name)).max(0.0);
    Ok(json!({
        "flood": name, "seconds": took, "forged_per_s": sent as f64 / (took + WARM as f64),
        "received_per_s": grown("received") / took, "answers_per_s": grown("sent") / took,
        "dropped_per_s": grown("dropped") / took, "cpu": grown("cpu") / 100.0 / took, "waited": grown("waited") / took,
        "flow_mb_per_s": grown("sunk") / 1e6 / took,
        "echo_ms_p50": quantile(&mut echoes, 0.5), "echo_ms_p99": quantile(&mut echoes, 0.99), "echoes": echoes.len(),
        "calls": calls.len(), "calls_failed": failed, "call_errors": errors, "call_ms_p50": quantile(&mut calls, 0.5),
        "call_ms_p99": quantile(&mut calls, 0.99), "call_ms_max": quantile(&mut calls, 1.0),
        "rss_before": before["rss"], "rss_after": after["rss"],
    }))
}

/// What attacks and calls must not take the core of the node under attack.
fn keep_off_core_0() {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if cores > 1 {
        let list = format!("1-{}", cores - 1);
        let mut command = Command::new("taskset");
        let pinned =
            command.args(["-p", "-c", &list, &std::process::id().to_string()]).stdout(Stdio::null()).status();
        if !pinned.is_ok_and(|status| status.success()) {
            eprintln!("without `taskset` the node under attack shares its core: the figures are too low");
        }
    }
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if args.get(1).is_some_and(|arg| arg == "serve") {
        return serve();
    }
    keep_off_core_0();
    let as_json = args.iter().any(|arg| arg == "--json");
    let status = match measure(&args) {
        Ok(report) => {
            let (rows, is) =
                (report["rows"].as_array().cloned().unwrap_or_default(), |name: &str| report[name] == true);
            if as_json {
                println!("{report}");
            } else {
                table(&rows);
            }
            for error in rows.iter().filter_map(|row| row["call_errors"].as_array()).flatten() {
                eprintln!("a call failed: {}", error.as_str().unwrap_or_default());
            }
            if !is("core_free") {
                eprintln!(
                    "other processes had the core of the node: its figures are too low. Stop them and try again"
                );
            }
            match (is("rate_reached") && is("core_free"), is("goals_met")) {
                (false, _) => 2,
                (true, met) => i32::from(!met),
            }
        }
        Err(fault) => {
            if as_json {
                println!("{}", json!({ "error": fault }));
            }
            eprintln!("{fault}");
            3
        }
    };
    std::process::exit(status);
}

/// The load without a flood, then with each kind.
fn measure(args: &[String]) -> Result<Value, Fault> {
    let plan = Plan {
        seconds: number("--seconds", 20),
        rate: number("--rate", 200_000),
        flow: number("--flow", 10),
    };
    let wanted = args.iter().position(|arg| arg == "--kinds").and_then(|at| args.get(at + 1)).cloned();
    let kinds = [("wrong", Kind::Wrong), ("one", Kind::One), ("forged", Kind::Forged)];
    let kinds = kinds
        .iter()
        .filter(|(name, _)| wanted.as_ref().is_none_or(|wanted| wanted.split(',').any(|word| word == *name)));
    let of = |row: &Value, name: &str| row[name].as_f64().unwrap_or(f64::NAN);
    let growth = |row: &Value| of(row, "rss_after") - of(row, "rss_before");
    let answered = |row: &Value| of(row, "calls") - of(row, "calls_failed");
    let quiet = run(&plan, "none", None)?;
    // Each call comes from a node of its own, whose tunnel stays: without a flood that is all that grows.
    let tunnel = growth(&quiet) / answered(&quiet).max(1.0);
    let (mut missed, mut slow, mut free) = (false, false, of(&quiet, "waited") <= WAIT_MAX);
    let mut rows = vec![quiet];
    for (name, kind) in kinds {
        let mut row = run(&plan, name, Some(*kind))?;
        let lost = 1.0 - of(&row, "flow_mb_per_s") / of(&rows[0], "flow_mb_per_s");
        let failed = of(&row, "calls_failed") / of(&row, "calls");
        let grown = (growth(&row) - tunnel * answered(&row)).max(0.0);
        let met = [lost <= GOALS.0, failed <= GOALS.1, grown <= GOALS.2 as f64];
        missed |= met.contains(&false);
        slow |= of(&row, "forged_per_s") < 0.95 * plan.rate as f64;
        free &= of(&row, "waited") <= WAIT_MAX;
        row["flow_lost"] = json!(lost);
        row["calls_ok"] = json!(1.0 - failed);
        row["grown_bytes"] = json!(grown);
        row["met"] = json!({ "flow": met[0], "calls": met[1], "memory": met[2] });
        rows.push(row);
    }
    Ok(
        json!({ "rows": rows, "tunnel_bytes": tunnel, "goals_met": !missed, "rate_reached": !slow, "core_free": free }),
    )
}

fn table(rows: &[Value]) {
    println!(
        "flood    forged/s  seen/s dropped/s answers/s  CPU  wait  flow MB/s  lost    echo p50/p99 ms   calls ok          p50/p99/max ms         memory +kB"
    );
    for row in rows {
        let of = |name: &str| row[name].as_f64().unwrap_or(f64::NAN);
        let grown = of("rss_after") - of("rss_before");
        println!(
            "{:<8} {:>8.0} {:>7.0} {:>9.0} {:>9.0} {:>3.0} % {:>3.0} % {:>8.2} {:>5.1} %  {:>7.2} {:>7.2}  {:>5} of {:<5} {:>7.1} {:>7.1} {:>8.1} {:>10.0}",
            row["flood"].as_str().unwrap_or_default(),
            of("forged_per_s"),
            of("received_per_s"),
            of("dropped_per_s"),
            of("answers_per_s"),
            100.0 * of("cpu"),
            100.0 * of("waited"),
            of("flow_mb_per_s"),
            100.0 * row["flow_lost"].as_f64().unwrap_or(0.0),
            of("echo_ms_p50"),
            of("echo_ms_p99"),
            of("calls") - of("calls_failed"),
            row["calls"],
            of("call_ms_p50"),
            of("call_ms_p99"),
            of("call_ms_max"),
            grown / 1e3,
        );
    }
}
