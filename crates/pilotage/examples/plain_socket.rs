//! The sans-IO core without the driver: two endpoints, two `std::net::UdpSocket`s, one thread.
use pilotage::{Address, Identity, PeerConfig, PeerPolicy, ProtoConfig, SocketAddress};
use pilotage_proto::{Endpoint, Event, RecvMeta, TransmitBuf};
use pilotage_wire::addressing::node_ids;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

struct Side {
    socket: UdpSocket,
    endpoint: Endpoint,
    key: [u8; 32],
}

impl Side {
    fn new(seed: u8) -> Result<Self, Box<dyn std::error::Error>> {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.set_read_timeout(Some(Duration::from_millis(1)))?;
        let identity = Identity::from_seed([seed; 32]);
        let key = identity.public_key();
        let node = node_ids(&key).next().ok_or("no id")?.1;
        // Never a constant in a real program: 32 bytes of the operating system's random source.
        let random = [seed + 100; 32];
        let address = Address::new(0, node.0);
        let endpoint = Endpoint::new(ProtoConfig::default(), identity, address, random, Instant::now());
        Ok(Self { socket, endpoint, key })
    }

    fn introduce(&mut self, other: &Self) -> Result<(), Box<dyn std::error::Error>> {
        let (address, endpoint) = (other.endpoint.local_address(), Some(other.socket.local_addr()?));
        let peer = PeerConfig {
            address,
            key: Some(other.key),
            endpoint,
            policy: PeerPolicy::default(),
            prekey: None,
        };
        Ok(self.endpoint.add_peer(Instant::now(), peer)?)
    }

    /// One turn: receive, run deadlines, send; what happened is the caller's to handle.
    fn turn(&mut self) -> std::io::Result<Vec<Event>> {
        let mut buffer = [0; 65_536];
        if let Ok((len, remote)) = self.socket.recv_from(&mut buffer) {
            let meta = RecvMeta { remote, local_ip: None };
            self.endpoint.handle_datagram(Instant::now(), &meta, &mut buffer[..len]);
        }
        let now = Instant::now();
        if self.endpoint.poll_timeout().is_some_and(|due| due <= now) {
            self.endpoint.handle_timeout(now);
        }
        let mut out = TransmitBuf::new(1); // one datagram at a time: no offload
        while let Some(transmit) = self.endpoint.poll_transmit(now, &mut out) {
            self.socket.send_to(out.bytes(transmit.size), transmit.destination)?;
        }
        Ok(std::iter::from_fn(|| self.endpoint.poll_event()).collect())
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (mut alice, mut bob) = (Side::new(1)?, Side::new(2)?);
    alice.introduce(&bob)?;
    bob.introduce(&alice)?;
    bob.endpoint.listen(7)?;
    let to = SocketAddress { address: bob.endpoint.local_address(), port: 7 };
    let stream = alice.endpoint.connect(Instant::now(), to)?;
    let (mut accepted, mut got) = (None, Vec::new());
    let end = Instant::now() + Duration::from_secs(10);
    while got != b"hello" && Instant::now() < end {
        for event in alice.turn()? {
            println!("alice: {event:?}");
            if event == Event::Connected(stream) {
                alice.endpoint.write(Instant::now(), stream, b"hello")?;
            }
        }
        for event in bob.turn()? {
            println!("bob:   {event:?}");
            accepted = accepted.or_else(|| bob.endpoint.accept(7).map(|(id, _)| id));
            let mut buffer = [0; 64];
            if let Some(Ok(len)) = accepted.map(|id| bob.endpoint.read(Instant::now(), id, &mut buffer)) {
                got.extend_from_slice(&buffer[..len]);
            }
        }
    }
    println!("bob read {:?}", String::from_utf8_lossy(&got));
    (got == b"hello").then_some(()).ok_or_else(|| "nothing arrived".into())
}
