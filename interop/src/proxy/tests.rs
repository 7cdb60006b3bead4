//! The proxy between real sockets on loopback.

use std::time::Instant;

use super::link::{Bursts, Impairment};
use super::*;

const CLEAR: Impairment = Impairment { delay_ms: 0, rate_bps: None, ..Impairment::LINK };

struct Ends {
    proxy: Proxy,
    client: UdpSocket,
    server: UdpSocket,
}

fn socket() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("bind");
    socket.set_read_timeout(Some(Duration::from_secs(5))).expect("timeout");
    socket
}

fn ends(change: impl FnOnce(&mut Setup)) -> Ends {
    let (client, server) = (socket(), socket());
    let mut setup = Setup::both(server.local_addr().expect("address"), CLEAR, 7);
    change(&mut setup);
    let proxy = Proxy::start(setup).expect("proxy");
    client.connect(proxy.address()).expect("connect");
    Ends { proxy, client, server }
}

impl Ends {
    /// What the server receives next.
    fn arrives(&self) -> (Vec<u8>, SocketAddr) {
        let mut buffer = [0; 2000];
        let (len, from) = self.server.recv_from(&mut buffer).expect("datagram");
        (buffer[..len].to_vec(), from)
    }

    fn send(&self, bytes: &[u8]) {
        self.client.send(bytes).expect("send");
    }

    /// What arrives until nothing came for so long.
    fn count_arrivals(&self, silence: Duration) -> usize {
        self.server.set_read_timeout(Some(silence)).expect("timeout");
        let mut buffer = [0; 2000];
        std::iter::from_fn(|| self.server.recv_from(&mut buffer).ok()).count()
    }
}

#[test]
fn both_directions_are_delayed() {
    let ends = ends(|setup| (setup.up.delay_ms, setup.down.delay_ms) = (30, 20));
    let started = Instant::now();
    ends.send(b"ping");
    let (bytes, from) = ends.arrives();
    let there = started.elapsed();
    ends.server.send_to(&bytes, from).expect("send");
    let mut buffer = [0; 10];
    assert_eq!(ends.client.recv(&mut buffer).expect("answer"), 4);
    let back = started.elapsed();
    assert!(there >= Duration::from_millis(30) && back >= Duration::from_millis(50), "{there:?} {back:?}");
    std::thread::sleep(Duration::from_millis(60));
    ends.server.send_to(&bytes, from).expect("send");
    ends.client.recv(&mut buffer).expect("again");
    assert!(ends.proxy.wait(Duration::from_secs(5), |seen| seen.longest_pause >= Duration::from_millis(60)));
    let seen = ends.proxy.seen();
    assert_eq!((seen.up.counts.delivered, seen.down.counts.delivered, seen.clients), (1, 2, 1));
}

#[test]
fn the_rate_holds_and_the_queue_overflows() {
    let ends = ends(|setup| setup.up = Impairment { rate_bps: Some(4_000_000), queue: 25, ..CLEAR });
    let started = Instant::now();
    for _ in 0..60 {
        ends.send(&[0; 972]); // 1,000 bytes of IP: 2 ms each
    }
    for _ in 0..26 {
        ends.arrives();
    }
    let took = started.elapsed();
    assert!(took >= Duration::from_millis(50), "{took:?}");
    let counts = ends.proxy.seen().up.counts;
    assert!(counts.queue_full >= 20, "{counts:?}");
}

#[test]
fn loss_and_mtu_take_what_they_should() {
    let ends = ends(|setup| setup.up.loss = Some(Bursts { percent: 30, longest: 3 }));
    let mut arrived = 0;
    for _ in 0..20 {
        // Few enough at a time for the sockets' buffers.
        (0..50).for_each(|_| ends.send(&[3; 20]));
        arrived += ends.count_arrivals(Duration::from_millis(20));
    }
    ends.send(&[0; 1473]);
    arrived += ends.count_arrivals(Duration::from_millis(100));
    let counts = ends.proxy.seen().up.counts;
    assert_eq!((counts.offered, counts.delivered as usize, counts.too_large), (1001, arrived, 1));
    assert!((230..370).contains(&counts.lost), "{counts:?}");
    assert_eq!(counts.longest_loss, 3);
}

#[test]
fn a_rebound_client_has_another_source_and_the_old_one_is_dead() {
    for change in [Change::Port, Change::Address] {
        let ends = ends(|setup| setup.rebinding = Some(Rebinding { change, first_ms: 100, every_ms: 5000 }));
        ends.send(b"before");
        let (_, old) = ends.arrives();
        assert!(ends.proxy.wait(Duration::from_secs(5), |seen| seen.sources.len() == 2));
        ends.send(b"after");
        let (_, new) = ends.arrives();
        assert_eq!(old.port() == new.port(), change == Change::Address);
        assert_eq!(old.ip() == new.ip(), change == Change::Port);
        ends.server.send_to(b"old", old).expect("send");
        ends.server.send_to(b"new", new).expect("send");
        let mut buffer = [0; 10];
        assert_eq!(
            ends.client.recv(&mut buffer).map(|len| buffer[..len].to_vec()).ok(),
            Some(b"new".to_vec())
        );
        assert_eq!(ends.proxy.seen().sources, [old, new]);
    }
}

#[test]
fn a_gate_lets_one_datagram_pass_and_counts_the_answers() {
    let ends = ends(|setup| setup.gate = Some(Duration::from_millis(300)));
    (0..3).for_each(|_| ends.send(&[1; 100]));
    let (bytes, from) = ends.arrives();
    assert!(ends.proxy.wait(Duration::from_secs(5), |seen| seen.gated == 2));
    ends.server.send_to(&bytes, from).expect("send");
    ends.server.send_to(&[0; 30], from).expect("send");
    assert!(ends.proxy.wait(Duration::from_secs(5), |seen| seen.answers_at_gate == 2));
    let seen = ends.proxy.seen();
    assert_eq!((seen.excess_at_gate, seen.up.counts.delivered), (Some(30), 1));
    std::thread::sleep(Duration::from_millis(310));
    ends.send(b"later");
    assert_eq!(ends.arrives().0, b"later");
}
