//! A port of the router, from responders on the loopback that speak NAT-PMP or UPnP.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use pilotage::{MappingProtocol, Node, NodeEvent};

/// Answers as a router at 203.0.113.9 that has port 5000 for everybody; says what was asked.
fn router() -> (SocketAddr, Receiver<Vec<u8>>) {
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

/// Answers as a router at 203.0.113.9 that refuses NAT-PMP and maps ports by UPnP; says the SOAP actions that it was asked for.
fn upnp_router() -> (SocketAddr, Receiver<String>) {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("socket");
    let at = socket.local_addr().expect("address");
    let listener = TcpListener::bind("127.0.0.1:0").expect("listener");
    let location = format!("http://{}/root.xml", listener.local_addr().expect("address"));
    let (say, asked) = channel();
    thread::spawn(move || {
        let mut buf = [0; 1100];
        while let Ok((len, from)) = socket.recv_from(&mut buf) {
            let reply = match &buf[..len] {
                [2, ..] => vec![0, 0x80, 0, 1, 0, 0, 0, 1],
                [0, 0] => vec![0, 0x80, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0],
                text if text.starts_with(b"M-SEARCH * HTTP/1.1\r\n") => {
                    format!("HTTP/1.1 200 OK\r\nLocation: {location}\r\n\r\n").into_bytes()
                }
                _ => continue,
            };
            let _ = socket.send_to(&reply, from);
        }
    });
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            if let Some(action) = serve(stream)
                && say.send(action).is_err()
            {
                return;
            }
        }
    });
    (at, asked)
}

/// One request, with an answer that comes in pieces; the action that it asked for.
fn serve(mut stream: TcpStream) -> Option<String> {
    let mut request = Vec::new();
    let mut buf = [0; 4_096];
    while !request.ends_with(b"\r\n\r\n") && !request.ends_with(b"Envelope>\r\n") {
        match stream.read(&mut buf).ok()? {
            0 => return None,
            len => request.extend_from_slice(&buf[..len]),
        }
    }
    let request = String::from_utf8(request).ok()?;
    let action = request.split("WANIPConnection:1#").nth(1).and_then(|rest| rest.split('"').next());
    let body = match action {
        None => {
            "<root xmlns=\"urn:schemas-upnp-org:device-1-0\"><device><serviceList><service>\
             <serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType>\
             <controlURL>/ctl/IPConn</controlURL></service></serviceList></device></root>"
        }
        Some("GetExternalIPAddress") => "<r><NewExternalIPAddress>203.0.113.9</NewExternalIPAddress></r>",
        Some(_) => "<r/>",
    };
    let head = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n", body.len());
    for piece in [head.as_str(), body, "\r\n0\r\n\r\n"] {
        stream.write_all(piece.as_bytes()).ok()?;
        thread::sleep(Duration::from_millis(5));
    }
    action.map(str::to_owned)
}

#[test]
fn where_only_upnp_is_spoken_that_is_used() {
    let (at, asked) = upnp_router();
    let bind = "127.0.0.1:0".parse().expect("address");
    let node = Node::builder().bind(bind).port_mapping_at(at).start().expect("node");
    let deadline = Instant::now() + Duration::from_secs(20);
    while node.port_mapping().is_none() {
        assert!(Instant::now() < deadline, "no mapping");
        thread::sleep(Duration::from_millis(20));
    }
    let mapping = node.port_mapping().expect("mapping");
    assert_eq!(mapping.external, SocketAddr::from(([203, 0, 113, 9], node.local_addr().port())));
    assert_eq!(mapping.protocol, MappingProtocol::Upnp);
    node.close();
    let actions: Vec<_> = std::iter::from_fn(|| asked.recv_timeout(Duration::from_secs(2)).ok()).collect();
    assert_eq!(actions, ["GetExternalIPAddress", "AddPortMapping", "DeletePortMapping"]);
}
