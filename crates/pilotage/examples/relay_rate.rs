//! How much one beacon relays in one thread: frames of 1,200 bytes from one node to another over loopback.
//!
//! ```text
//! cargo run --release -p pilotage --example relay_rate -- [--seconds N] [--flows N] [--single]
//! ```
//!
//! Sender and receiver run on other threads. With `--single` each datagram costs the senders a system call, as from many
//! nodes; otherwise they send in batches, as Pilotage's nodes do. The beacon's own time on the CPU is told as well: on a
//! machine that does other things, or has too few cores for three busy threads, it is the better figure.

use std::io::IoSliceMut;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pilotage::beacon::{BeaconConfig, BeaconOptions, BeaconServer, Rate};
use pilotage_wire::NodeId;
use pilotage_wire::beacon::Message;
use quinn_udp::{BATCH_SIZE, RecvMeta, Transmit, UdpSockRef, UdpSocketState};

/// UDP payload of the relay messages, in bytes.
const DATAGRAM: usize = 1_200;
/// Datagrams of one batch.
const BATCH: usize = 48;
/// Datagrams under way at most, of one flow.
const WINDOW: u64 = 1_024;

struct Node {
    socket: UdpSocket,
    state: UdpSocketState,
}

impl Node {
    fn new(beacon: SocketAddr, id: u32) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("bind");
        let raw = socket2::SockRef::from(&socket);
        let _ = raw.set_recv_buffer_size(8 << 20).and(raw.set_send_buffer_size(8 << 20));
        socket.set_read_timeout(Some(Duration::from_secs(5))).expect("timeout");
        let mut buf = [0; 64];
        let len = Message::Discover { node: NodeId(id) }.encode(&mut buf).expect("fits");
        socket.send_to(&buf[..len], beacon).expect("send");
        socket.recv_from(&mut buf).expect("the beacon answers");
        let state = UdpSocketState::new(UdpSockRef::from(&socket)).expect("socket");
        Self { socket, state }
    }

    /// Sends until told to stop, never more than the window ahead of what arrived.
    fn send(
        &self,
        beacon: SocketAddr,
        ids: (u32, u32),
        single: bool,
        arrived: &AtomicU64,
        stop: &AtomicBool,
    ) {
        let frame = [&b"PILS"[..], &[0x55; DATAGRAM - 9 - 4]].concat();
        let relay = Message::Relay { src: NodeId(ids.0), dst: NodeId(ids.1), frame: &frame };
        let mut one = [0; DATAGRAM];
        relay.encode(&mut one).expect("fits");
        let count = if single { 1 } else { BATCH.min(self.state.max_gso_segments()) };
        let batch = one.repeat(count);
        let mut sent = 0u64;
        let mut waiting = Instant::now();
        while !stop.load(Ordering::Relaxed) {
            let done = arrived.load(Ordering::Relaxed);
            if sent >= done + WINDOW {
                // Some were lost on the way: do not wait for them.
                if waiting.elapsed() > Duration::from_millis(50) {
                    sent = done;
                }
                std::thread::yield_now();
                continue;
            }
            waiting = Instant::now();
            let transmit = Transmit {
                destination: beacon,
                ecn: None,
                contents: &batch,
                segment_size: (count > 1).then_some(DATAGRAM),
                src_ip: None,
            };
            if self.state.try_send(UdpSockRef::from(&self.socket), &transmit).is_ok() {
                sent += count as u64;
            }
        }
    }

    fn receive(&self, arrived: &AtomicU64, stop: &AtomicBool) {
        self.socket.set_read_timeout(Some(Duration::from_millis(50))).expect("timeout");
        let mut data = vec![0; BATCH_SIZE << 16];
        let mut meta = [RecvMeta::default(); BATCH_SIZE];
        while !stop.load(Ordering::Relaxed) {
            let mut chunks = data.chunks_exact_mut(1 << 16);
            let mut slots: [IoSliceMut<'_>; BATCH_SIZE] =
                std::array::from_fn(|_| IoSliceMut::new(chunks.next().unwrap_or_default()));
            match self.state.recv(UdpSockRef::from(&self.socket), &mut slots, &mut meta) {
                Ok(filled) => {
                    let count: usize =
                        meta[..filled].iter().map(|meta| meta.len.div_ceil(meta.stride.max(1))).sum();
                    arrived.fetch_add(count as u64, Ordering::Relaxed);
                }
                Err(_) => std::thread::yield_now(),
            }
        }
    }
}

/// Time of this thread on the CPU, as Linux tells it.
fn cpu_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    Duration::from_nanos(text.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0))
}

fn number(name: &str, default: u32) -> u32 {
    let mut args = std::env::args();
    args.find(|arg| arg == name).and_then(|_| args.next()?.parse().ok()).unwrap_or(default)
}

fn main() {
    let (seconds, flows) = (number("--seconds", 5), number("--flows", 1));
    let single = std::env::args().any(|arg| arg == "--single");
    let unlimited = Rate { per_second: 1 << 40, burst: 1 << 40 };
    let config = BeaconConfig {
        relay_bytes_per_node: unlimited,
        relay_bytes_per_prefix: unlimited,
        relay_bytes_total: unlimited,
        ..BeaconConfig::default()
    };
    let listen = "127.0.0.1:0".parse().expect("address");
    let mut server =
        BeaconServer::bind(BeaconOptions { config, ..BeaconOptions::new(listen) }).expect("bind");
    let (beacon, handle) = (server.local_addr(), server.handle());
    let stop = Arc::new(AtomicBool::new(false));
    let serving = std::thread::spawn({
        let stop = stop.clone();
        move || {
            let before = cpu_time();
            server.run(&stop).expect("serves");
            cpu_time() - before
        }
    });
    let arrived: Vec<Arc<AtomicU64>> = (0..flows).map(|_| Arc::default()).collect();
    let mut threads = Vec::new();
    for (flow, arrived) in arrived.iter().enumerate() {
        let ids = (100 + 2 * flow as u32, 101 + 2 * flow as u32);
        let (sender, receiver) = (Node::new(beacon, ids.0), Node::new(beacon, ids.1));
        let (count, flag) = (arrived.clone(), stop.clone());
        threads.push(std::thread::spawn(move || receiver.receive(&count, &flag)));
        let (count, flag) = (arrived.clone(), stop.clone());
        threads.push(std::thread::spawn(move || sender.send(beacon, ids, single, &count, &flag)));
    }
    let start = Instant::now();
    std::thread::sleep(Duration::from_secs(seconds.into()));
    let total: u64 = arrived.iter().map(|count| count.load(Ordering::Relaxed)).sum();
    let elapsed = start.elapsed();
    stop.store(true, Ordering::Relaxed);
    for thread in threads {
        thread.join().expect("node");
    }
    let cpu = serving.join().expect("beacon");
    let snapshot = handle.snapshot();
    let relays = snapshot.stats.relays.max(1);
    println!(
        "{:.0} packets/s of {DATAGRAM} bytes arrived; the beacon relayed {relays} ({} unsent) in {:.2} s of CPU: \
         {:.0} ns each, {:.0} packets per second of one core",
        total as f64 / elapsed.as_secs_f64(),
        snapshot.unsent,
        cpu.as_secs_f64(),
        cpu.as_nanos() as f64 / relays as f64,
        relays as f64 / cpu.as_secs_f64().max(1e-9),
    );
}
