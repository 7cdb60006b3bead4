//! Memory of what is open and silent: growth of resident memory of each process, divided by the number.
//!
//! What the harness itself keeps for each (a tokio task with a 64-byte buffer on the server's side while a stream is
//! open) is in the figure, for everybody alike. Kernel memory (TCP) is not.

use std::net::UdpSocket;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ::pilotage::Identity;
use pilotage_proto::{Endpoint, Event, RecvMeta, SecureConfig, TransmitBuf};

use super::Outcome;
use super::request::round_trip;
use crate::Failure;
use crate::control::Control;
use crate::measure::resident_bytes;
use crate::transport::exec::Exec;
use crate::transport::pilotage::{config, introduction, mode, server_peer};
use crate::transport::{Client, Job, Link, Setup, local_for};

/// Silence before memory is read, so that delayed acknowledgements are sent: the more there are, the longer.
fn silence(count: u32) -> Duration {
    Duration::from_millis(if count > 1_000 { 1_500 } else { 200 })
}

/// How long one tunnel may take.
const TUNNEL_WAIT: Duration = Duration::from_secs(5);
/// Bare peers that are still answered while others are made: some hundred milliseconds' worth.
const RECENT: usize = 500;
/// Made beforehand, so that what a process needs once is not counted.
const WARM_UP: u32 = 10;

/// Tunnels (QUIC: connections; TCP, TLS: connections with their stream), each used for one round trip.
#[derive(Debug)]
pub struct Tunnels {
    /// How many.
    pub count: u32,
    /// To the server's memory.
    pub control: Control,
}

impl Job for Tunnels {
    async fn run<C: Client>(mut self, client: C, _: Exec) -> Result<Outcome, Failure> {
        let mut kept = Vec::with_capacity((self.count + WARM_UP) as usize);
        let mut before = (0, 0);
        for number in 0..self.count + WARM_UP {
            if number == WARM_UP {
                before = (resident_bytes()?, self.control.resident_bytes()?);
            }
            let link = client.dial().await?;
            let mut stream = link.open().await?;
            round_trip(&mut stream, 1).await?;
            kept.push((link, stream));
        }
        settle(self.count).await;
        let outcome = growth(before, self.count, &mut self.control)?;
        self.control.quit()?;
        Ok(outcome)
    }
}

/// Connections (QUIC: streams) in one tunnel, each used for one round trip.
#[derive(Debug)]
pub struct Connections {
    /// How many.
    pub count: u32,
    /// To the server's memory.
    pub control: Control,
}

impl Job for Connections {
    async fn run<C: Client>(mut self, client: C, _: Exec) -> Result<Outcome, Failure> {
        let link = client.dial().await?;
        let mut kept = Vec::with_capacity((self.count + WARM_UP) as usize);
        let mut before = (0, 0);
        for number in 0..self.count {
            if number == WARM_UP {
                before = (resident_bytes()?, self.control.resident_bytes()?);
            }
            let mut stream = link.open().await?;
            round_trip(&mut stream, 1).await?;
            kept.push(stream);
        }
        settle(self.count).await;
        let outcome = growth(before, self.count.saturating_sub(WARM_UP).max(1), &mut self.control)?;
        self.control.quit()?;
        Ok(outcome)
    }
}

/// The transports' own tasks must run meanwhile.
async fn settle(count: u32) {
    if tokio::runtime::Handle::try_current().is_ok() {
        tokio::time::sleep(silence(count)).await;
    } else {
        std::thread::sleep(silence(count));
    }
}

fn growth(before: (u64, u64), count: u32, control: &mut Control) -> Result<Outcome, Failure> {
    let after = (resident_bytes()?, control.resident_bytes()?);
    let each = |before: u64, after: u64| after.saturating_sub(before) as f64 / f64::from(count);
    Ok(Outcome::default()
        .with("client_bytes_each", each(before.0, after.0))
        .with("server_bytes_each", each(before.1, after.1)))
}

/// Tunnels of as many different peers with one Pilotage node. The peers are bare cores (no threads) that go on answering
/// while the tunnels fall silent; only the server's memory is told.
pub fn pilotage_tunnels(setup: &Setup, count: u32, mut control: Control) -> Result<Outcome, Failure> {
    let mut peers = Vec::with_capacity((count + WARM_UP) as usize);
    let mut before = 0;
    let mut buffer = vec![0; 1 << 16];
    for number in 0..count + WARM_UP {
        if number == WARM_UP {
            before = control.resident_bytes()?;
        }
        let mut peer = BarePeer::new(setup, number)?;
        peer.wait_for_pong(setup)?;
        peer.socket.set_nonblocking(true)?;
        peers.push(peer);
        // Those that are not silent yet: the others have nothing to say.
        for peer in peers.iter_mut().rev().take(RECENT) {
            peer.turn(&mut buffer)?;
        }
    }
    let until = Instant::now() + silence(count);
    while Instant::now() < until {
        for peer in &mut peers {
            peer.turn(&mut buffer)?;
        }
    }
    let after = control.resident_bytes()?;
    control.quit()?;
    let each = after.saturating_sub(before) as f64 / f64::from(count);
    Ok(Outcome::default().with("server_bytes_each", each))
}

/// A peer without threads: one socket and the core.
struct BarePeer {
    endpoint: Endpoint,
    socket: UdpSocket,
    out: TransmitBuf,
}

impl BarePeer {
    fn new(setup: &Setup, number: u32) -> Result<Self, Failure> {
        let socket = UdpSocket::bind(local_for(setup.server))?;
        socket.set_read_timeout(Some(Duration::from_millis(20)))?;
        let mut seed = [7; 32];
        seed[..4].copy_from_slice(&number.to_be_bytes());
        let (own, _) = introduction(seed)?;
        // Random enough for a peer that lives for a minute on loopback.
        let mut endpoint = Endpoint::new(config(setup), Identity::from_seed(seed), own, seed, Instant::now());
        let unix_ms = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as u64;
        endpoint.enable_s1(Instant::now(), SecureConfig::new(mode(setup), unix_ms, seed), &seed);
        endpoint.add_peer(Instant::now(), server_peer(setup)?)?;
        Ok(Self { endpoint, socket, out: TransmitBuf::new(1) })
    }

    /// A ping goes through the tunnel, but makes no connection.
    fn wait_for_pong(&mut self, setup: &Setup) -> Result<(), Failure> {
        self.endpoint.ping(Instant::now(), server_peer(setup)?.address)?;
        let deadline = Instant::now() + TUNNEL_WAIT;
        let mut buffer = vec![0; 1 << 16];
        while Instant::now() < deadline {
            if self.turn(&mut buffer)? {
                return Ok(());
            }
        }
        Err("idle: a tunnel did not come up".into())
    }

    /// Sends what is due and takes at most one datagram. Whether a pong was among what it brought.
    fn turn(&mut self, buffer: &mut [u8]) -> Result<bool, Failure> {
        while let Some(transmit) = self.endpoint.poll_transmit(Instant::now(), &mut self.out) {
            self.socket.send_to(self.out.bytes(transmit.size), transmit.destination)?;
        }
        if let Ok((len, remote)) = self.socket.recv_from(buffer) {
            let meta = RecvMeta { remote, local_ip: None };
            self.endpoint.handle_datagram(Instant::now(), &meta, &mut buffer[..len]);
        }
        let now = Instant::now();
        if self.endpoint.poll_timeout().is_some_and(|due| due <= now) {
            self.endpoint.handle_timeout(now);
        }
        let mut pong = false;
        while let Some(event) = self.endpoint.poll_event() {
            pong |= matches!(event, Event::Pong { .. });
        }
        Ok(pong)
    }
}
