//! How much a bulk transfer delays others: a ping through the same bottleneck, before and during.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pilotage_lab::{Lab, LabConfig, LinkConfig, Queue};

use super::options::{Options, Peer};
use super::process::Pair;
use super::runner::Sheet;
use super::side::{ENDLESS, Task};
use crate::Failure;
use crate::record::Record;

const ALL: [&str; 9] = [
    "pilotage-bbr",
    "pilotage-s1-bbr",
    "pilotage-cubic",
    "pilotage-newreno",
    "tcp-cubic",
    "tcp-bbr",
    "quinn-cubic",
    "quinn-bbr",
    "s2n-bbr",
];
const QUICK: [&str; 5] = ["pilotage-bbr", "pilotage-s1-bbr", "pilotage-cubic", "tcp-cubic", "tcp-bbr"];
/// Between two pings.
const GAP: Duration = Duration::from_millis(20);
/// Pings alone, then the transfer starts; its first seconds are counted apart.
const ALONE: Duration = Duration::from_millis(1_500);
const START: Duration = Duration::from_secs(3);

/// Runs all measurements that are wanted.
pub(super) fn run(options: &Options, sheet: &mut Sheet) -> Result<(), Failure> {
    for repeat in 1..=options.repeats() {
        for peer in options.chosen(&ALL, &QUICK) {
            sheet.measure("added-delay", peer, repeat, || once(options, peer, repeat));
        }
    }
    Ok(())
}

fn once(options: &Options, peer: Peer, repeat: u32) -> Result<Record, Failure> {
    // A queue of two round trips: enough room to do harm.
    let link =
        LinkConfig { queue: Queue::Bdp(200), ..LinkConfig::new(20_000_000, Duration::from_millis(20)) };
    let time = START + Duration::from_secs(if options.quick { 7 } else { 15 });
    let config = LabConfig { seed: u64::from(repeat), ..LabConfig::default() };
    let lab = Lab::pair(&link, &config)?;
    let pair = Pair::serve(&lab, peer, 0, options.real_time)?;
    let pings = Pings::new(&lab)?;
    let (times, received) = std::thread::scope(|scope| -> Result<_, Failure> {
        let running = Running(&pings);
        scope.spawn(|| pings.echo());
        scope.spawn(|| pings.ask());
        scope.spawn(|| pings.hear());
        std::thread::sleep(ALONE);
        let _client = pair.start(&lab, Task::Transfer { bytes: ENDLESS })?;
        std::thread::sleep(time);
        drop(running);
        Ok((pings.times(), pair.received()))
    })?;
    let part = |from: Duration, to: Duration| {
        let mut part: Vec<f64> = times
            .iter()
            .filter(|(at, _)| (from..to).contains(at))
            .map(|(_, rtt)| rtt.as_secs_f64() * 1e3)
            .collect();
        part.sort_by(f64::total_cmp);
        part
    };
    let at =
        |sorted: &[f64], share: f64| sorted.get(((sorted.len().max(1) - 1) as f64 * share) as usize).copied();
    let alone = at(&part(Duration::ZERO, ALONE), 0.5).ok_or("no ping came back")?;
    let first = part(ALONE, ALONE + START);
    let later = part(ALONE + START, ALONE + time);
    let mean = later.iter().sum::<f64>() / later.len().max(1) as f64;
    let bytes = received.last().map_or(0, |(_, bytes)| *bytes);
    let added = |value: Option<f64>| value.map_or(f64::NAN, |value| value - alone);
    Ok(Record::new("added-delay", peer.to_string(), repeat)
        .metric("alone_ms", alone)
        .metric("added_mean_ms", mean - alone)
        .metric("added_p50_ms", added(at(&later, 0.5)))
        .metric("added_p95_ms", added(at(&later, 0.95)))
        .metric("added_start_p95_ms", added(at(&first, 0.95)))
        .metric("goodput_mbps", bytes as f64 * 8.0 / time.as_secs_f64() / 1e6)
        .setting("link", link.to_string()))
}

/// Small UDP packets, one each [`GAP`], whether or not answers come.
struct Pings {
    near: UdpSocket,
    far: UdpSocket,
    to: SocketAddr,
    begun: Instant,
    over: AtomicBool,
    heard: Mutex<Vec<(Duration, Duration)>>,
}

/// Ends the threads of the pings, also when something fails.
struct Running<'a>(&'a Pings);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::Relaxed);
    }
}

impl Pings {
    fn new(lab: &Lab) -> Result<Self, Failure> {
        let bind = |index: usize| -> Result<UdpSocket, Failure> {
            let namespace = lab.namespace(index);
            let socket = namespace.run(|| UdpSocket::bind((namespace.address(), 0)))??;
            socket.set_read_timeout(Some(Duration::from_millis(100)))?;
            Ok(socket)
        };
        let (near, far) = (bind(0)?, bind(1)?);
        let to = far.local_addr()?;
        let heard = Mutex::new(Vec::new());
        Ok(Self { near, far, to, begun: Instant::now(), over: AtomicBool::new(false), heard })
    }

    fn echo(&self) {
        let mut buffer = [0; 64];
        while !self.over.load(Ordering::Relaxed) {
            if let Ok((len, from)) = self.far.recv_from(&mut buffer) {
                // A lost answer is a lost ping.
                let _ = self.far.send_to(&buffer[..len], from);
            }
        }
    }

    /// Each ping carries the time at which it was sent.
    fn ask(&self) {
        while !self.over.load(Ordering::Relaxed) {
            let now = self.begun.elapsed().as_nanos() as u64;
            let _ = self.near.send_to(&now.to_be_bytes(), self.to);
            std::thread::sleep(GAP);
        }
    }

    fn hear(&self) {
        let mut buffer = [0; 8];
        while !self.over.load(Ordering::Relaxed) {
            if self.near.recv(&mut buffer).is_ok_and(|len| len == 8) {
                let sent = Duration::from_nanos(u64::from_be_bytes(buffer));
                let rtt = self.begun.elapsed().saturating_sub(sent);
                self.heard.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((sent, rtt));
            }
        }
    }

    fn times(&self) -> Vec<(Duration, Duration)> {
        self.heard.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }
}
