//! A client against routers of all kinds.

use super::*;
use crate::clock_start;
use proptest::prelude::*;

const ROUTER: &str = "192.168.1.1:1900";
const SEC: Duration = Duration::from_secs(1);

/// What a router does.
#[derive(Clone)]
struct Router {
    /// Whether it hears searches for itself, and for all.
    hears: [bool; 2],
    address: &'static str,
    /// External ports that others have.
    taken: Vec<u16>,
    only_permanent: bool,
    /// It has vanished.
    gone: bool,
    mapped: Vec<(u16, u32)>,
    calls: Vec<String>,
}

impl Default for Router {
    fn default() -> Self {
        Self {
            hears: [true; 2],
            address: "203.0.113.9",
            taken: Vec::new(),
            only_permanent: false,
            gone: false,
            mapped: Vec::new(),
            calls: Vec::new(),
        }
    }
}

fn ok(body: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

fn fault(code: u16) -> Vec<u8> {
    format!("HTTP/1.1 500 Internal Server Error\r\n\r\n<s:Envelope xmlns:s=\"s\"><s:Fault><detail><UPnPError><errorCode>{code}</errorCode></UPnPError></detail></s:Fault></s:Envelope>").into_bytes()
}

impl Router {
    fn serve(&mut self, request: &[u8]) -> Option<Vec<u8>> {
        if self.gone {
            return None;
        }
        let text = String::from_utf8(request.to_vec()).expect("text");
        let value = |name: &str| {
            let begin = text.find(&format!("<{name}>")).expect("an argument") + name.len() + 2;
            text[begin..].split('<').next().expect("a value").to_owned()
        };
        if text.starts_with("GET /root.xml HTTP/1.1\r\nHost: 192.168.1.1:5000\r\n") {
            self.calls.push("describe".into());
            return Some(ok(
                "<root><service><serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType>\
                            <controlURL>/ctl</controlURL></service></root>",
            ));
        }
        assert!(text.starts_with("POST /ctl HTTP/1.1\r\n"), "{text}");
        let action = text
            .split("WANIPConnection:1#")
            .nth(1)
            .and_then(|rest| rest.split('"').next())
            .expect("an action");
        self.calls.push(action.to_owned());
        Some(match action {
            "GetExternalIPAddress" => {
                ok(&format!("<r><NewExternalIPAddress>{}</NewExternalIPAddress></r>", self.address))
            }
            "AddPortMapping" => {
                let (port, lease): (u16, u32) =
                    (value("NewExternalPort").parse().unwrap(), value("NewLeaseDuration").parse().unwrap());
                assert_eq!(
                    (value("NewInternalPort"), value("NewInternalClient")),
                    ("4000".into(), "192.168.1.7".into())
                );
                if self.taken.contains(&port) {
                    return Some(fault(718));
                }
                if self.only_permanent && lease != 0 {
                    return Some(fault(725));
                }
                self.mapped.push((port, lease));
                ok("<r/>")
            }
            "DeletePortMapping" => {
                let port: u16 = value("NewExternalPort").parse().unwrap();
                self.mapped.retain(|(mapped, _)| *mapped != port);
                ok("<r/>")
            }
            other => panic!("{other}"),
        })
    }
}

fn client(now: Instant) -> Igd {
    Igd::new(ROUTER.parse().unwrap(), Ipv4Addr::new(192, 168, 1, 7), 4000, 77, now)
}

/// Lets time pass.
fn run(igd: &mut Igd, router: &mut Router, now: &mut Instant, time: Duration) {
    let (end, mut sent) = (*now + time, 0);
    while *now < end {
        while let Some(out) = igd.poll(*now) {
            sent += 1;
            assert!(sent < 1_000, "it never rests");
            match out {
                Outgoing::Datagram { to, .. } => {
                    if !router.gone && router.hears[usize::from(to == SSDP_GROUP)] {
                        let reply = b"HTTP/1.1 200 OK\r\nLOCATION: http://192.168.1.1:5000/root.xml\r\n\r\n";
                        igd.handle_datagram(ROUTER.parse().unwrap(), reply);
                    }
                }
                Outgoing::Request { bytes, .. } => {
                    let answer = router.serve(&bytes);
                    igd.handle_answer(*now, answer.as_deref());
                }
            }
        }
        *now = igd.poll_timeout().unwrap_or(end).clamp(*now + Duration::from_millis(1), end);
    }
}

#[test]
fn a_port_is_mapped_renewed_and_given_back() {
    for hears in [[true, false], [false, true], [true, true]] {
        let mut now = clock_start();
        let (mut igd, mut router) = (client(now), Router { hears, ..Router::default() });
        run(&mut igd, &mut router, &mut now, SEC);
        let mapping = igd.mapping().expect("a mapping");
        assert_eq!(
            (mapping.external, mapping.protocol),
            ("203.0.113.9:4000".parse().unwrap(), Protocol::Upnp)
        );
        assert_eq!(router.calls, ["describe", "GetExternalIPAddress", "AddPortMapping"], "{hears:?}");
        assert_eq!(router.mapped, [(4000, 7_200)]);
        run(&mut igd, &mut router, &mut now, 3_700 * SEC);
        assert_eq!(router.calls[3..], ["GetExternalIPAddress", "AddPortMapping"], "renewed at half");
        igd.release();
        run(&mut igd, &mut router, &mut now, 20_000 * SEC);
        assert_eq!((router.calls.len(), router.mapped.len(), igd.mapping()), (6, 0, None));
        assert!(igd.is_released() && igd.poll_timeout().is_none());
    }
}

#[test]
fn taken_ports_and_leases_for_good() {
    let mut now = clock_start();
    let (mut igd, mut router) =
        (client(now), Router { taken: vec![4000], only_permanent: true, ..Router::default() });
    run(&mut igd, &mut router, &mut now, SEC);
    let port = igd.mapping().expect("a mapping").external.port();
    assert!(port >= 0x8000 && router.mapped == [(port, 0)], "{:?}", router.mapped);
    run(&mut igd, &mut router, &mut now, 4_000 * SEC);
    assert_eq!(igd.mapping().expect("renewed").external.port(), port, "the same again");
    // Nothing is left: three are tried, then it rests for ten minutes.
    let mut now = clock_start();
    let (mut igd, mut router) =
        (client(now), Router { taken: (0..=u16::MAX).collect(), ..Router::default() });
    run(&mut igd, &mut router, &mut now, 599 * SEC);
    assert_eq!((igd.mapping(), igd.refused(), router.calls.len()), (None, Some(718), 5));
}

#[test]
fn who_is_silent_or_has_no_address_is_asked_again_later() {
    for (mut router, calls) in [
        (Router { gone: true, ..Router::default() }, 0),
        (Router { hears: [false; 2], ..Router::default() }, 0),
        (Router { address: "", ..Router::default() }, 2),
        (Router { address: "0.0.0.0", ..Router::default() }, 2),
        (Router { address: "2001:db8::1", ..Router::default() }, 2),
    ] {
        let mut now = clock_start();
        let mut igd = client(now);
        run(&mut igd, &mut router, &mut now, 590 * SEC);
        assert_eq!((igd.mapping(), router.calls.len()), (None, calls));
        let later = Router::default();
        (router.gone, router.hears, router.address) = (false, later.hears, later.address);
        run(&mut igd, &mut router, &mut now, 30 * SEC);
        assert!(igd.mapping().is_some());
        // One that vanishes loses the mapping when its time is over, not before.
        router.gone = true;
        run(&mut igd, &mut router, &mut now, 7_000 * SEC);
        assert!(igd.mapping().is_some());
        run(&mut igd, &mut router, &mut now, 200 * SEC);
        assert!(igd.mapping().is_none());
    }
}

#[test]
fn nobody_but_the_router_is_believed_or_asked() {
    let now = clock_start();
    let mut igd = client(now);
    while igd.poll(now).is_some() {}
    let reply = |host: &str| format!("HTTP/1.1 200 OK\r\nLOCATION: http://{host}:5000/root.xml\r\n\r\n");
    igd.handle_datagram("192.168.1.66:1900".parse().unwrap(), reply("192.168.1.66").as_bytes());
    igd.handle_datagram("192.168.1.66:1900".parse().unwrap(), reply("192.168.1.1").as_bytes());
    igd.handle_datagram(ROUTER.parse().unwrap(), reply("192.168.1.66").as_bytes());
    assert_eq!(igd.poll(now), None);
    igd.handle_answer(now, Some(&ok("<r/>")));
    igd.handle_datagram("[::ffff:192.168.1.1]:40000".parse().unwrap(), reply("192.168.1.1").as_bytes());
    let Some(Outgoing::Request { to, .. }) = igd.poll(now) else { panic!("the router is asked") };
    assert_eq!(to, "192.168.1.1:5000".parse().unwrap());
    let away = "<root><service><serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType>\
                <controlURL>http://192.168.1.66/ctl</controlURL></service></root>";
    igd.handle_answer(now, Some(&ok(away)));
    assert_eq!(igd.poll(now), None, "not where its description leads");
}

proptest! {
    #[test]
    fn whatever_comes_it_rests_in_between(answers in proptest::collection::vec(proptest::option::of("(HTTP/1.1 (200|500) X\r\n\r\n)?[ -~]{0,80}"), 0..40)) {
        let mut now = clock_start();
        let mut igd = client(now);
        let (mut sent, mut answers) = (0, answers.into_iter());
        for _ in 0..200 {
            while let Some(out) = igd.poll(now) {
                sent += 1;
                match out {
                    Outgoing::Datagram { .. } => {
                        let reply = b"HTTP/1.1 200 OK\r\nLOCATION: http://192.168.1.1:5000/r\r\n\r\n";
                        igd.handle_datagram(ROUTER.parse().unwrap(), reply);
                    }
                    Outgoing::Request { .. } => {
                        let answer = answers.next().flatten();
                        igd.handle_answer(now, answer.as_deref().map(str::as_bytes));
                    }
                }
            }
            now += 10 * SEC;
        }
        // 2,000 s: at most one round in ten minutes, of five requests and three searches each.
        prop_assert!(sent <= 4 * 12, "{}", sent);
    }
}
