//! The server over real sockets with a store that fails.

use super::*;
use crate::engine::RateLimits;
use crate::store::faulty::{Fault, FaultyDisk};
use ed25519_dalek::{Signer as _, SigningKey};
use pilotage_wire::registry::{self as wire, Base64, Register, Request, next_frame};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::thread::JoinHandle;

struct Running {
    addr: SocketAddr,
    handle: ServerHandle,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Running {
    fn start(disk: &FaultyDisk, change: impl FnOnce(&mut ServerConfig)) -> Self {
        let mut config = ServerConfig::new(([127, 0, 0, 1], 0).into(), "unused");
        config.engine.rates = RateLimits::UNLIMITED;
        change(&mut config);
        let (store, records) = disk.open().unwrap();
        let server = Server::with_store(config, store, records).unwrap();
        let (addr, handle) = (server.local_addr(), server.handle());
        let thread = Some(std::thread::spawn(move || server.run()));
        Self { addr, handle, thread }
    }

    fn connect(&self) -> Peer {
        let stream = TcpStream::connect(self.addr).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        Peer { stream, input: Vec::new() }
    }

    /// The statistics once they satisfy `wanted`, or the last ones after 10 s.
    fn stats(&self, wanted: impl Fn(&ServerStats) -> bool) -> ServerStats {
        let mut stats = self.handle.stats();
        for _ in 0..1_000 {
            if wanted(&stats) {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
            stats = self.handle.stats();
        }
        stats
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.handle.stop();
        let result = self.thread.take().unwrap().join();
        if !std::thread::panicking() {
            result.expect("no panic").expect("clean end");
        }
    }
}

/// A raw client that can pipeline and misbehave.
struct Peer {
    stream: TcpStream,
    input: Vec<u8>,
}

impl Peer {
    fn send(&mut self, request: &Request) {
        let mut frame = Vec::new();
        request.encode(&mut frame).unwrap();
        self.stream.write_all(&frame).unwrap();
    }

    fn receive(&mut self) -> Option<Reply> {
        loop {
            if let Some(json) = next_frame(&self.input).unwrap() {
                let (reply, len) = (Reply::parse(json).unwrap(), json.len());
                self.input.drain(..wire::LENGTH_PREFIX + len);
                return Some(reply);
            }
            let mut chunk = [0; 4096];
            match self.stream.read(&mut chunk) {
                Ok(0) => return None,
                Ok(n) => self.input.extend_from_slice(&chunk[..n]),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn ask(&mut self, request: &Request) -> Reply {
        self.send(request);
        self.receive().expect("a reply")
    }

    fn nonce(&mut self) -> [u8; 32] {
        match self.ask(&Request::Challenge) {
            Reply::Challenge { nonce } => nonce.0,
            other => panic!("{other:?}"),
        }
    }
}

fn registration(n: u8, name: &str, nonce: &[u8; 32]) -> Request {
    let key = SigningKey::from_bytes(&[n; 32]);
    let mut request = Register {
        listen_addr: format!(":{}", 4_000 + u16::from(n)),
        public_key: Base64(key.verifying_key().to_bytes()),
        hostname: Some(name.into()),
        lan_addrs: vec![],
        public: Some(true),
        signature: None,
        proof: None,
    };
    let message = wire::register_proof(nonce, &request);
    request.proof = Some(Base64(key.sign(&message).to_bytes()));
    Request::Register(request)
}

fn by_name(name: &str) -> Request {
    Request::ResolveHostname(wire::ResolveHostname { hostname: name.into(), requester_id: None })
}

/// spec/registry.md §8.3, issue point "full disk for the hub".
#[test]
fn a_full_disk_refuses_registrations_serves_reads_and_heals() {
    let disk = FaultyDisk::default();
    let server = Running::start(&disk, |_| {});
    let mut peer = server.connect();
    let nonce = peer.nonce();
    assert!(matches!(peer.ask(&registration(1, "one", &nonce)), Reply::Registered(_)));

    disk.fail_after(0, Fault::Full);
    let nonce = peer.nonce();
    // The reads after it in the same batch must not see what was not stored.
    for request in [registration(2, "two", &nonce), by_name("two"), by_name("one")] {
        peer.send(&request);
    }
    let full = "hub's disk is full: nothing was stored; free space in /hub";
    assert_eq!(peer.receive(), Some(Reply::error(full)));
    assert!(matches!(peer.receive(), Some(Reply::Error { .. })));
    assert!(matches!(peer.receive(), Some(Reply::Hostname(_))));
    assert!(server.stats(|stats| stats.read_only).read_only);
    let nonce = peer.nonce();
    assert_eq!(peer.ask(&registration(2, "two", &nonce)), Reply::error(full));
    assert!(matches!(peer.ask(&by_name("one")), Reply::Hostname(_)));

    disk.heal();
    let stats = server.stats(|stats| !stats.read_only);
    assert!(!stats.read_only && stats.store_failures >= 1, "{stats:?}");
    let nonce = peer.nonce();
    assert!(matches!(peer.ask(&registration(2, "two", &nonce)), Reply::Registered(_)));
    drop(server);
    let (_, found) = disk.open().unwrap();
    assert_eq!(found.len(), 2);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let disk = FaultyDisk::default();
    let server = Running::start(&disk, |_| {});
    let mut peer = server.connect();
    let requests: u32 = 2_000;
    let mut bytes = Vec::new();
    for n in 0..requests {
        Request::Lookup(wire::Lookup { node_id: pilotage_wire::NodeId(n) }).encode(&mut bytes).unwrap();
    }
    peer.stream.write_all(&bytes).unwrap();
    peer.stream.shutdown(std::net::Shutdown::Write).unwrap();
    for n in 0..requests {
        let Some(Reply::Error { error, .. }) = peer.receive() else { panic!("reply {n}") };
        assert!(error.contains(&pilotage_wire::NodeId(n).to_string()), "{n}: {error}");
    }
    assert_eq!(peer.receive(), None, "closed after the last reply");
}

#[test]
fn bad_input_gets_an_error_and_does_no_harm() {
    let disk = FaultyDisk::default();
    let server = Running::start(&disk, |_| {});
    let frame = |json: &[u8]| [&u32::try_from(json.len()).unwrap().to_be_bytes(), json].concat();
    let mut peer = server.connect();
    let deep = "[".repeat(60_000);
    for json in [&b""[..], b"{", b"\xFF\xFE", b"{\"type\":\"punch\"}", deep.as_bytes()] {
        peer.stream.write_all(&frame(json)).unwrap();
        assert!(matches!(peer.receive(), Some(Reply::Error { .. })), "{json:?}");
    }
    // A byte at a time.
    for byte in frame(b"{\"type\":\"beacon_list\"}") {
        peer.stream.write_all(&[byte]).unwrap();
    }
    assert!(matches!(peer.receive(), Some(Reply::BeaconList { .. })));
    // Beyond an announced length that is too long, nothing can be understood.
    peer.stream.write_all(&[0, 1, 0, 1, b'x']).unwrap();
    assert!(matches!(peer.receive(), Some(Reply::Error { .. }) | None));
    assert_eq!(peer.receive(), None);
    // Not the protocol at all, on many connections; half of them never finish their message.
    for n in 0..50 {
        let mut stranger = server.connect();
        let _ = stranger.stream.write_all(b"GET / HTTP/1.1\r\n\r\n");
        let mut half = server.connect();
        half.stream.write_all(&frame(b"{\"type\":\"challenge\"}")[..n % 20]).unwrap();
    }
    assert!(matches!(server.connect().ask(&Request::BeaconList), Reply::BeaconList { .. }));
    let stats = server.stats(|stats| stats.connections == 0);
    assert_eq!(stats.connections, 0, "all closed connections are forgotten");
}

#[test]
fn connections_are_limited_in_all_and_per_source() {
    let disk = FaultyDisk::default();
    for (all, per_source, words) in [(3, 100, "too many connections;"), (100, 3, "your network address")] {
        let server = Running::start(&disk, |config| {
            (config.max_connections, config.max_connections_per_source) = (all, per_source);
        });
        let mut peers: Vec<Peer> = (0..3).map(|_| server.connect()).collect();
        for peer in &mut peers {
            peer.nonce();
        }
        let Some(Reply::Error { error, .. }) = server.connect().receive() else { panic!("turned away") };
        assert!(error.contains(words), "{error}");
        peers.pop();
        server.stats(|stats| stats.connections == 2);
        server.connect().nonce();
        let stats = server.stats(|stats| stats.turned_away == 1);
        assert_eq!((stats.turned_away, stats.accepted), (1, 4));
    }
}

#[test]
fn idle_connections_and_slow_readers_are_cut() {
    let disk = FaultyDisk::default();
    let server = Running::start(&disk, |config| {
        config.idle = Duration::from_secs(2);
        config.slow_reader = Duration::from_secs(1);
    });
    // Half a message does not count as activity.
    let mut idle = server.connect();
    idle.stream.write_all(&[0, 0]).unwrap();
    assert_eq!(idle.receive(), None);
    // One that asks and never reads: its output is bounded, and it is cut before it is idle.
    let mut slow = server.connect();
    slow.stream.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut bytes = Vec::new();
    for _ in 0..1_000 {
        by_name("nobody").encode(&mut bytes).unwrap();
    }
    let written = (0..2_000).take_while(|_| slow.stream.write_all(&bytes).is_ok()).count();
    assert!(written < 2_000, "the server stopped reading, then closed");
    let stats = server.stats(|stats| stats.connections == 0);
    assert_eq!((stats.cut, stats.connections), (2, 0));
    assert!(stats.requests < 2_000_000);
}

#[test]
fn what_cannot_be_bound_says_why() {
    let disk = FaultyDisk::default();
    let server = Running::start(&disk, |_| {});
    let dir = tempfile::tempdir().unwrap();
    let bind = |listen| {
        let config = ServerConfig::new(listen, dir.path().join("hub.redb"));
        Server::bind(config).map(|server| server.local_addr()).expect_err("cannot be bound")
    };
    let error = bind(server.addr);
    assert!(matches!(error, BindError::PortInUse(_)), "{error}");
    let error = bind(([192, 0, 2, 1], 0).into());
    assert!(matches!(error, BindError::NoSuchAddress(_)), "{error}");
    std::fs::write(dir.path().join("hub.redb"), b"not a database at all").unwrap();
    let error = bind(([127, 0, 0, 1], 0).into());
    assert!(matches!(error, BindError::Store(StoreError::Corrupted { .. })), "{error}");
}
