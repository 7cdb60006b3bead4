//! Links over real sockets on loopback: datagrams both ways, proxies, and peers that mean no good.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use pilotage_carriage::{
    DialError, Dialed, Dialer, Evidence, Limits, Link, LinkError, Proxy, ProxyError, Server, Side, Trust,
    WssUrl, fingerprint, is_virtual,
};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

const WAIT: Duration = Duration::from_secs(10);

fn certificate() -> (Arc<ServerConfig>, [u8; 32]) {
    let key = rcgen::KeyPair::generate().unwrap();
    let der = rcgen::CertificateParams::new(vec![]).unwrap().self_signed(&key).unwrap().der().to_vec();
    let pin = fingerprint(&der);
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![CertificateDer::from(der)], key)
        .unwrap();
    (Arc::new(config), pin)
}

struct Hub {
    addr: SocketAddr,
    side: Side,
    pin: [u8; 32],
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Hub {
    fn start(limits: Limits) -> Self {
        let (config, pin) = certificate();
        let (mut server, side) = Server::bind("127.0.0.1:0".parse().unwrap(), config, limits).unwrap();
        let addr = server.local_addr();
        let stop = Arc::new(AtomicBool::new(false));
        let flag = stop.clone();
        let thread = Some(thread::spawn(move || server.run(&flag).unwrap()));
        Self { addr, side, pin, stop, thread }
    }

    fn dialer(&self) -> Dialer {
        Dialer {
            url: WssUrl { port: self.addr.port(), ..WssUrl::of_host("127.0.0.1").unwrap() },
            trust: Trust::Pinned(vec![self.pin]),
            proxy: None,
            timeout: WAIT,
        }
    }

    fn dial(&self) -> Link {
        self.dialer().dial().unwrap().link
    }

    fn take(&self) -> (SocketAddr, Vec<u8>) {
        until(|| self.side.take())
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || thread::panicking());
    }
}

fn until<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + WAIT;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "not in time");
        thread::sleep(Duration::from_millis(1));
    }
}

fn receive(link: &mut Link) -> Vec<u8> {
    until(|| {
        link.flush().unwrap();
        link.receive().unwrap().map(|data| data.to_vec())
    })
}

fn end_of(link: &mut Link) -> LinkError {
    until(|| {
        let _ = link.flush();
        link.receive().err()
    })
}

#[test]
fn a_message_is_a_datagram_both_ways() {
    let hub = Hub::start(Limits::default());
    let (mut a, mut b) = (hub.dial(), hub.dial());
    for (link, text) in [(&mut a, &b"from a"[..]), (&mut b, b"from b")] {
        assert!(link.send(text).unwrap());
        assert!(link.flush().unwrap());
    }
    let mut came = [hub.take(), hub.take()];
    came.sort_by_key(|(_, data)| data.clone());
    let [(at_a, from_a), (at_b, from_b)] = came;
    assert_eq!((from_a.as_slice(), from_b.as_slice()), (&b"from a"[..], &b"from b"[..]));
    assert!(is_virtual(at_a) && is_virtual(at_b) && at_a != at_b && at_a.ip() == at_b.ip());
    assert!(hub.side.send(at_a, b"to a") && hub.side.send(at_b, b"to b"));
    assert_eq!((receive(&mut a), receive(&mut b)), (b"to a".to_vec(), b"to b".to_vec()));
    assert!(!hub.side.send("127.0.0.1:9".parse().unwrap(), b"x"), "that is for the UDP socket");
    // The end of a link is noticed, and nothing is kept for it.
    a.close();
    until(|| (hub.side.stats().open == 1).then_some(()));
    assert!(hub.side.send(at_a, b"to nobody"));
}

#[test]
fn no_punches_through_links() {
    let hub = Hub::start(Limits::default());
    let mut link = hub.dial();
    for data in [&[3, 0, 0, 0, 1, 0, 0, 0, 2][..], b"\x01\0\0\0\x01"] {
        assert!(link.send(data).unwrap());
    }
    link.flush().unwrap();
    let (at, data) = hub.take();
    assert_eq!(data[0], 1, "the punch request was dropped");
    assert!(hub.side.send(at, &[4, 4, 192, 0, 2, 1, 0, 9]), "a punch command for a link goes nowhere");
    let mut to_link = vec![4, 16];
    let std::net::IpAddr::V6(ip) = at.ip() else { panic!("no IPv6") };
    to_link.extend_from_slice(&ip.octets());
    to_link.extend_from_slice(&at.port().to_be_bytes());
    assert!(
        hub.side.send("[2001:db8::1]:9".parse().unwrap(), &to_link),
        "nor does one that points to a link"
    );
    assert!(hub.side.send(at, b"\x02behind"));
    assert_eq!(receive(&mut link), b"\x02behind");
    assert_eq!(hub.side.stats().drop_strange, 1);
}

#[test]
fn who_the_hub_is() {
    let hub = Hub::start(Limits::default());
    let Dialed { evidence, fingerprint, clock_ahead_ms, .. } =
        Dialer { trust: Trust::FirstUse(None), ..hub.dialer() }.dial().unwrap();
    assert_eq!((evidence, fingerprint), (Evidence::Certificate(hub.pin), hub.pin));
    assert!(clock_ahead_ms.is_some_and(|ahead| ahead.abs() < 5_000), "{clock_ahead_ms:?}");
    let again = Dialer { trust: Trust::FirstUse(Some(evidence)), ..hub.dialer() };
    again.dial().unwrap();
    for trust in [Trust::Pinned(vec![[7; 32]]), Trust::FirstUse(Some(Evidence::Certificate([7; 32])))] {
        let error = Dialer { trust, ..hub.dialer() }.dial().unwrap_err();
        assert!(matches!(&error, DialError::Tls { detail, .. } if detail.contains("fingerprint")), "{error}");
    }
    let mut elsewhere = hub.dialer();
    elsewhere.url.path = "/other".into();
    let error = elsewhere.dial().unwrap_err();
    assert!(matches!(&error, DialError::WebSocket { detail, .. } if detail.contains("404")), "{error}");
}

#[test]
fn nobody_answers() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = listener.local_addr().unwrap();
    let url = WssUrl { port: silent.port(), ..WssUrl::of_host("127.0.0.1").unwrap() };
    let dialer =
        Dialer { url, trust: Trust::FirstUse(None), proxy: None, timeout: Duration::from_millis(300) };
    let start = Instant::now();
    assert!(matches!(dialer.dial(), Err(DialError::WebSocket { .. })));
    let proxy = Proxy::parse(&silent.to_string());
    assert!(Dialer { proxy, ..dialer.clone() }.dial().is_err());
    assert!(start.elapsed() < Duration::from_secs(5));
    drop(listener);
    assert!(matches!(dialer.dial(), Err(DialError::Connect { .. })));
}

/// A proxy that wants this authorization, and forwards one connection.
fn proxy(authorization: &'static str, hub: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) > 0 {
                head.push(byte[0]);
            }
            let head = String::from_utf8(head).unwrap();
            if !head.starts_with(&format!("CONNECT {hub} HTTP/1.1\r\n")) || !head.contains(authorization) {
                let _ = stream.write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n");
                continue;
            }
            stream.write_all(b"HTTP/1.1 200 Connection established\r\nVia: test\r\n\r\n").unwrap();
            let onward = TcpStream::connect(hub).unwrap();
            let (mut up, mut down) = (stream.try_clone().unwrap(), onward.try_clone().unwrap());
            let (mut stream, mut onward) = (stream, onward);
            thread::spawn(move || std::io::copy(&mut stream, &mut onward));
            thread::spawn(move || std::io::copy(&mut down, &mut up));
        }
    });
    addr
}

#[test]
fn through_a_proxy() {
    let hub = Hub::start(Limits::default());
    let at = proxy("Proxy-Authorization: Basic dTpw", hub.addr);
    let with = |text: String| Dialer { proxy: Some(Proxy::parse(&text).unwrap()), ..hub.dialer() };
    let mut link = with(format!("http://u:p@{at}")).dial().unwrap().link;
    assert!(link.send(b"\x10hello").unwrap() && link.flush().unwrap());
    let (from, data) = hub.take();
    assert_eq!(data, b"\x10hello");
    hub.side.send(from, b"\x11back");
    assert_eq!(receive(&mut link), b"\x11back");
    let error = with(format!("http://{at}")).dial().unwrap_err();
    assert!(matches!(error, DialError::Proxy { source: ProxyError::Refused { status: 407 }, .. }), "{error}");
}

#[test]
fn garbage_silence_and_crowds_do_no_harm() {
    let limits = Limits {
        connections: 8,
        connections_per_source: 6,
        handshake: Duration::from_millis(500),
        idle: Duration::from_millis(1500),
        ..Limits::default()
    };
    let hub = Hub::start(limits);
    let mut good = hub.dial();
    let mut noise = TcpStream::connect(hub.addr).unwrap();
    let _ = noise.write_all(&[0x16; 4_000]);
    let silent: Vec<_> = (0..12).map(|_| TcpStream::connect(hub.addr).unwrap()).collect();
    until(|| (hub.side.stats().refused >= 7).then_some(()));
    // The silent ones lose their places, and the good one works all the while.
    until(|| {
        good.send(b"\x10alive").unwrap();
        good.flush().unwrap();
        while hub.side.take().is_some() {}
        thread::sleep(Duration::from_millis(50));
        (hub.side.stats().idle >= 4).then_some(())
    });
    drop(silent);
    let mut second = hub.dial();
    assert!(second.send(b"\x10two").unwrap() && second.flush().unwrap());
    until(|| hub.side.take().filter(|(_, data)| data == b"\x10two"));
    // A link that says nothing for long enough ends.
    end_of(&mut second);
    assert!(hub.side.stats().open <= 1);
}

#[test]
fn budgets_and_queues_are_bounded() {
    let limits = Limits { datagrams_per_second: 50, queue: 8, inbox: 20, ..Limits::default() };
    let hub = Hub::start(limits);
    let mut link = hub.dial();
    for number in 0..200_u16 {
        assert!(link.send(&number.to_be_bytes()).unwrap());
    }
    until(|| link.flush().unwrap().then_some(()));
    until(|| (hub.side.stats().drop_budget >= 140).then_some(()));
    let stats = hub.side.stats();
    assert!(stats.drop_queue >= 25 && stats.datagrams_in == 20, "{stats:?}");
    let (at, first) = hub.take();
    assert_eq!(first, [0, 0]);
    // Nobody reads: what waits for the link has a bound, in datagrams and in bytes.
    for _ in 0..50_000 {
        assert!(hub.side.send(at, &[0x10; 1400]));
    }
    assert!(hub.side.stats().drop_queue > 10_000, "{:?}", hub.side.stats());
    assert_eq!(receive(&mut link), [0x10; 1400]);
}

#[test]
fn strange_messages_are_counted_and_long_ones_end_the_link() {
    let hub = Hub::start(Limits::default());
    let mut link = hub.dial();
    assert!(!link.send(&[0x10; 20_000]).unwrap(), "too long to be carried");
    link.ping().unwrap();
    link.send(b"\x10").unwrap();
    link.flush().unwrap();
    assert_eq!(hub.take().1, b"\x10");
    let mut raw = raw_client(&hub);
    raw.send(tungstenite_text("hello")).unwrap();
    until(|| (hub.side.stats().drop_strange == 1).then_some(()));
    // The hub may end the link before all of it is written.
    let _ = raw.send(vec![0x10; 100_000].into());
    let end = Instant::now() + WAIT;
    while raw.read().is_ok() {
        assert!(Instant::now() < end);
    }
    until(|| (hub.side.stats().open == 1).then_some(()));
}

fn tungstenite_text(text: &str) -> tungstenite::Message {
    tungstenite::Message::Text(text.into())
}

/// A client of the library itself, which may say what ours never says.
fn raw_client(hub: &Hub) -> tungstenite::WebSocket<rustls::StreamOwned<rustls::ClientConnection, TcpStream>> {
    #[derive(Debug)]
    struct Anybody;
    use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
    impl ServerCertVerifier for Anybody {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &rustls::pki_types::ServerName<'_>,
            _: &[u8],
            _: rustls::pki_types::UnixTime,
        ) -> Result<ServerCertVerified, rustls::Error> {
            Ok(ServerCertVerified::assertion())
        }
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &rustls::DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            Ok(HandshakeSignatureValid::assertion())
        }
        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &rustls::DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            Ok(HandshakeSignatureValid::assertion())
        }
        fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
            aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
        }
    }
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_no_client_auth();
    let session = rustls::ClientConnection::new(Arc::new(config), "hub".try_into().unwrap()).unwrap();
    let stream = TcpStream::connect(hub.addr).unwrap();
    stream.set_read_timeout(Some(WAIT)).unwrap();
    let url = format!("wss://127.0.0.1:{}{}", hub.addr.port(), pilotage_carriage::PATH);
    let request = tungstenite::client::ClientRequestBuilder::new(url.parse().unwrap())
        .with_sub_protocol(pilotage_carriage::SUBPROTOCOL);
    tungstenite::client::client(request, rustls::StreamOwned::new(session, stream)).unwrap().0
}

#[test]
fn both_ends_may_write_much_at_once() {
    let hub = Hub::start(Limits { inbox: 100_000, ..Limits::default() });
    let mut link = hub.dial();
    link.send(b"\x10").unwrap();
    link.flush().unwrap();
    let (at, _) = hub.take();
    let stop = Arc::new(AtomicBool::new(false));
    let (side, flag) = (hub.side.clone(), stop.clone());
    let flood = thread::spawn(move || {
        while !flag.load(Ordering::Relaxed) {
            side.send(at, &[0x11; 1400]);
        }
    });
    // We write without reading until nothing more is taken, then go on reading: it must flow again.
    let mut sent = 0;
    while link.send(&[0x10; 1400]).unwrap() && sent < 20_000 {
        sent += 1;
    }
    let (mut came, end) = (0, Instant::now() + WAIT);
    while came < 2_000 {
        link.flush().unwrap();
        while link.receive().unwrap().is_some() {
            came += 1;
        }
        assert!(Instant::now() < end, "stuck after {came}");
    }
    stop.store(true, Ordering::Relaxed);
    flood.join().unwrap();
}
