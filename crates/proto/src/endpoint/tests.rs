//! What only somebody inside a tunnel can try: sealed packets of the tester's own making.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use pilotage_wire::SocketAddress;
use pilotage_wire::frame::PILS_HEADER_LEN;
use pilotage_wire::packet::{Flags, HEADER_LEN, Header, Protocol};

use super::*;
use crate::config::{PeerConfig, PeerPolicy};
use crate::transmit::RecvMeta;

mod api;
mod behind;
mod faults;
mod gate;
mod keys;
mod moving;
mod own;
mod peers;

struct Two {
    now: Instant,
    hosts: [(Endpoint, SocketAddr); 2],
}

fn two() -> Two {
    two_that(|_, _| {})
}

/// `prepare` is shown each of the two before it knows the other.
#[allow(clippy::disallowed_methods)] // a base for virtual time
fn two_that(prepare: impl Fn(&mut Endpoint, Instant)) -> Two {
    let now = Instant::now();
    let addresses = [Address::new(0, 0x100), Address::new(0, 0x200)];
    let sockets: [SocketAddr; 2] = [([192, 0, 2, 1], 1).into(), ([192, 0, 2, 2], 2).into()];
    let keys = [1u8, 2].map(|i| Identity::from_seed([i; 32]));
    let publics = [keys[0].public_key(), keys[1].public_key()];
    let mut seed = 0;
    let mut hosts = keys.map(|key| {
        seed += 1;
        let i = seed as usize - 1;
        (Endpoint::new(Config::default(), key, addresses[i], [seed; 32], now), sockets[i])
    });
    for i in 0..2 {
        prepare(&mut hosts[i].0, now);
        let peer = PeerConfig {
            address: addresses[1 - i],
            key: Some(publics[1 - i]),
            endpoint: Some(sockets[1 - i]),
            policy: PeerPolicy::default(),
            prekey: None,
        };
        hosts[i].0.add_peer(now, peer).expect("fresh");
    }
    Two { now, hosts }
}

impl Two {
    /// Carries datagrams both ways until nothing is sent any more.
    fn settle(&mut self) {
        let mut buf = TransmitBuf::new(8);
        for _ in 0..50 {
            let mut quiet = true;
            for i in 0..2 {
                while let Some(t) = self.hosts[i].0.poll_transmit(self.now, &mut buf) {
                    quiet = false;
                    let segment = t.segment_size.unwrap_or(t.size);
                    for datagram in buf.bytes(t.size).chunks(segment) {
                        let meta = RecvMeta { remote: self.hosts[i].1, local_ip: None };
                        self.hosts[1 - i].0.handle_datagram(self.now, &meta, &mut datagram.to_vec());
                    }
                }
            }
            if quiet {
                return;
            }
            self.now += Duration::from_millis(5);
        }
    }

    fn connected() -> Self {
        let mut two = two();
        let peer = two.hosts[1].0.local_address();
        two.hosts[0].0.ping(two.now, peer).expect("known");
        two.settle();
        assert!(two.hosts[1].0.peers()[0].established);
        two
    }

    /// Has the second endpoint receive a packet that the first one sealed; `twist` may spoil the bytes before sealing.
    fn deliver(&mut self, hdr: Header, payload: &[u8], twist: impl FnOnce(&mut [u8])) {
        let node = self.hosts[0].0.local_address().node;
        let mut buf = vec![0; PILS_HEADER_LEN + HEADER_LEN + payload.len() + 16];
        buf[PILS_HEADER_LEN + HEADER_LEN..][..payload.len()].copy_from_slice(payload);
        let len = hdr.encode(&mut buf[PILS_HEADER_LEN..], payload.len()).expect("fits");
        twist(&mut buf[PILS_HEADER_LEN..][..len]);
        let tunnel = self.hosts[0].0.tunnel_mut(0).expect("tunnel");
        let sealed = tunnel.current.as_mut().expect("keys").seal(node, &mut buf, len).expect("fits");
        let meta = RecvMeta { remote: self.hosts[0].1, local_ip: None };
        self.hosts[1].0.handle_datagram(self.now, &meta, &mut buf[..sealed]);
    }

    fn header(&self, protocol: Protocol, flags: Flags) -> Header {
        Header {
            flags,
            protocol,
            src: self.hosts[0].0.local_address(),
            dst: self.hosts[1].0.local_address(),
            src_port: 50_000,
            dst_port: 80,
            seq: 1,
            ack: 0,
            window: 10,
        }
    }
}

#[test]
fn inner_source_and_destination_must_belong_to_the_tunnel() {
    let mut two = Two::connected();
    two.hosts[1].0.bind_datagram(80).expect("free");
    let good = two.header(Protocol::Datagram, Flags::EMPTY);
    two.deliver(Header { src: Address::new(0, 0x999), ..good }, b"as somebody else", |_| {});
    two.deliver(Header { dst: Address::new(0, 0x999), ..good }, b"for somebody else", |_| {});
    assert_eq!(two.hosts[1].0.stats().drop_misaddressed, 2);
    assert_eq!(two.hosts[1].0.recv_datagram(80), None);
    two.deliver(good, b"as myself", |_| {});
    assert_eq!(two.hosts[1].0.recv_datagram(80).map(|d| d.data), Some(b"as myself".to_vec()));
}

#[test]
fn a_packet_of_another_version_is_dropped_and_counted() {
    let mut two = Two::connected();
    two.hosts[1].0.bind_datagram(80).expect("free");
    let hdr = two.header(Protocol::Datagram, Flags::EMPTY);
    let before = two.hosts[1].0.stats().drop_malformed;
    two.deliver(hdr, b"later version", |packet| packet[0] = 0x20);
    assert_eq!(two.hosts[1].0.stats().drop_malformed, before + 1);
    assert_eq!(two.hosts[1].0.recv_datagram(80), None);
}

#[test]
fn stray_segments_are_reset_and_stray_resets_are_not_answered() {
    let mut two = Two::connected();
    let sent = two.hosts[1].0.stats().datagrams_sent;
    let data = two.header(Protocol::Stream, Flags::ACK);
    two.deliver(data, b"out of nowhere", |_| {});
    two.settle();
    assert_eq!(two.hosts[1].0.stats().datagrams_sent, sent + 1, "one RST");
    let rst = two.header(Protocol::Stream, Flags::RST);
    two.deliver(rst, b"", |_| {});
    two.settle();
    assert_eq!(two.hosts[1].0.stats().datagrams_sent, sent + 1, "none for a RST");
}

#[test]
fn an_echo_answer_or_a_request_from_port_zero_is_never_answered() {
    let mut two = Two::connected();
    let sent = two.hosts[1].0.stats().datagrams_sent;
    for (flags, src_port) in [(Flags::ACK, 50_000), (Flags::EMPTY, 0), (Flags::ACK, 0)] {
        let hdr = Header { dst_port: 0, src_port, ..two.header(Protocol::Control, flags) };
        two.deliver(hdr, b"0123456789abcdef", |_| {});
        two.settle();
    }
    assert_eq!(two.hosts[1].0.stats().datagrams_sent, sent);
    let hdr = Header { dst_port: 0, ..two.header(Protocol::Control, Flags::EMPTY) };
    two.deliver(hdr, b"0123456789abcdef", |_| {});
    two.settle();
    assert_eq!(two.hosts[1].0.stats().datagrams_sent, sent + 1);
}

#[test]
fn connections_stop_at_the_bound_and_say_so() {
    let mut two = Two::connected();
    two.hosts[1].0.cfg.max_connections_per_peer = 20;
    two.hosts[1].0.listen(80).expect("free");
    for port in 50_000..50_100 {
        let hdr = Header { src_port: port, ..two.header(Protocol::Stream, Flags::SYN) };
        two.deliver(hdr, b"", |_| {});
    }
    assert_eq!(two.hosts[1].0.open_connections, 20);
    assert_eq!(two.hosts[1].0.stats().refused, 80);
}

#[test]
fn strangers_wait_for_a_look_up_in_a_bounded_queue() {
    let mut two = two();
    let stranger = Identity::from_seed([9; 32]);
    for node in 0..500u32 {
        let node = NodeId(0x8000 + node);
        let x25519 = [3; 32];
        let signature = stranger.sign(&pilotage_wire::frame::pila_signed_message(node, &x25519));
        let pila =
            frame::Pila { sender: node, x25519, ed25519: stranger.public_key(), signature, trailer: &[] };
        let mut bytes = vec![0; 136];
        frame::encode_pila(&pila, &mut bytes).expect("fits");
        let from = SocketAddr::from(([198, 51, (node.0 >> 8) as u8, node.0 as u8], 1));
        two.hosts[1].0.handle_datagram(two.now, &RecvMeta { remote: from, local_ip: None }, &mut bytes);
    }
    assert_eq!(two.hosts[1].0.lookups.len(), 64);
    let asked = std::iter::from_fn(|| two.hosts[1].0.poll_event())
        .filter(|e| matches!(e, Event::LookupPeer { .. }))
        .count();
    assert_eq!(asked, 64);
    assert!(two.hosts[1].0.stats().drop_rate_limited >= 436);
}

#[test]
fn late_fins_are_answered_four_times_within_time_wait() {
    let mut two = Two::connected();
    two.hosts[1].0.listen(80).expect("free");
    let to = SocketAddress { address: two.hosts[1].0.local_address(), port: 80 };
    let dialled = two.hosts[0].0.connect(two.now, to).expect("room");
    two.settle();
    let (accepted, from) = two.hosts[1].0.accept(80).expect("connected");
    for (host, id) in [(0, dialled), (1, accepted)] {
        two.hosts[host].0.close(two.now, id);
        two.settle();
    }
    assert_eq!(two.hosts[1].0.open_connections, 0);
    let answers = |two: &mut Two, flags: Flags| {
        let sent = two.hosts[1].0.stats().datagrams_sent;
        for _ in 0..10 {
            let hdr = Header { src_port: from.port, ..two.header(Protocol::Stream, flags) };
            two.deliver(hdr, b"", |_| {});
            two.settle();
        }
        two.hosts[1].0.stats().datagrams_sent - sent
    };
    two.now += Duration::from_secs(9);
    two.hosts[1].0.handle_timeout(two.now);
    assert_eq!(answers(&mut two, Flags::ACK), 0, "other late segments");
    assert_eq!(answers(&mut two, Flags::FIN | Flags::ACK), 4);
    two.now += Duration::from_secs(2);
    two.hosts[1].0.handle_timeout(two.now);
    assert_eq!(answers(&mut two, Flags::FIN | Flags::ACK), 10, "forgotten: reset like any stray segment");
}

mod never_panics {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        #[test]
        fn on_any_datagram(bytes in proptest::collection::vec(any::<u8>(), 0..300), kind in 0usize..8) {
            let mut two = Two::connected();
            let prefix = ["", "PILT", "PILS", "PILK", "PILA", "PILP", "\x06", "\x04"][kind].as_bytes();
            let mut data = [prefix, &bytes].concat();
            let meta = RecvMeta { remote: two.hosts[0].1, local_ip: None };
            two.hosts[1].0.handle_datagram(two.now, &meta, &mut data);
            two.settle();
        }

        #[test]
        fn on_any_sealed_packet(
            flags in 0u8..16,
            protocol in 1u8..4,
            ports in any::<(u16, u16)>(),
            numbers in any::<(u32, u32, u16)>(),
            payload in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let mut two = Two::connected();
            two.hosts[1].0.listen(80).expect("free");
            let syn = two.header(Protocol::Stream, Flags::SYN);
            two.deliver(syn, b"", |_| {});
            two.settle();
            let protocol = Protocol::try_from(protocol).expect("1 to 3");
            let flags = Flags::from_bits_truncate(flags);
            let mut hdr = Header { seq: numbers.0, ack: numbers.1, window: numbers.2, ..two.header(protocol, flags) };
            two.deliver(hdr, &payload, |_| {});
            two.settle();
            (hdr.src_port, hdr.dst_port) = ports;
            two.deliver(hdr, &payload, |_| {});
            two.settle();
        }
    }
}
