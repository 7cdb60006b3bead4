//! A port of the router, from a responder on the loopback that speaks NAT-PMP.

use std::net::UdpSocket;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use pilotage::{MappingProtocol, Node, NodeEvent};

/// Answers as a router at 203.0.113.9 that has port 5000 for everybody; says what was asked.
fn router() -> (std::net::SocketAddr, Receiver<Vec<u8>>) {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("socket");
    let at = socket.local_addr().expect("address");
    let (say, asked) = channel();
    thread::spawn(move || {
        let mut buf = [0; 1100];
        while let Ok((len, from)) = socket.recv_from(&mut buf) {
            let reply = match &buf[..len] {
                [2, ..] => vec![0, 0x80, 0, 1, 0, 0, 0, 1],
                [0, 0] => vec![0, 0x80, 0, 0, 0, 0, 0, 1, 203, 0, 113, 9],
                [0, 1, _, _, high, low, ..] => {
                    vec![0, 0x81, 0, 0, 0, 0, 0, 1, *high, *low, 0x13, 0x88, 0, 0, 0x0e, 0x10]
                }
                _ => continue,
            };
            let _ = socket.send_to(&reply, from);
            if say.send(buf[..len].to_vec()).is_err() {
                return;
            }
        }
    });
    (at, asked)
}

#[test]
fn a_port_is_mapped_and_given_back() {
    let (at, asked) = router();
    let bind = "127.0.0.1:0".parse().expect("address");
    let node = Node::builder().bind(bind).port_mapping_at(at).start().expect("node");
    let events = node.events();
    let deadline = Instant::now() + Duration::from_secs(20);
    while node.port_mapping().is_none() {
        assert!(Instant::now() < deadline, "no mapping");
        thread::sleep(Duration::from_millis(20));
    }
    let mapping = node.port_mapping().expect("mapping");
    assert_eq!(mapping.external, "203.0.113.9:5000".parse().expect("address"));
    assert_eq!(mapping.protocol, MappingProtocol::NatPmp);
    let port = node.local_addr().port();
    node.close();
    let told: Vec<_> = events.filter(|event| matches!(event, NodeEvent::PortMapped { .. })).collect();
    assert!(told.len() <= 2, "{told:?}");
    let requests: Vec<_> = std::iter::from_fn(|| asked.recv_timeout(Duration::from_secs(2)).ok()).collect();
    let farewell = [&[0, 1, 0, 0][..], &port.to_be_bytes(), &[0; 6]].concat();
    assert_eq!(requests.last(), Some(&farewell), "{requests:?}");
}
