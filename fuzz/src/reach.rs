//! What a hub's URL, a user's proxy variables, a proxy and a router say.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use pilotage_nat::portmap::igd::{self, Igd, Outgoing};
use pilotage_nat::portmap::{MAX_MESSAGE, Mapper, Reply};

/// The usual path, which the URL's module takes from its crate.
pub(crate) const PATH: &str = "/pilotage/beacon";

#[allow(dead_code, unreachable_pub, reason = "the crate itself uses the rest")]
#[path = "../../crates/carriage/src/proxy.rs"]
mod proxy;
#[allow(dead_code, unreachable_pub, reason = "the crate itself uses the rest")]
#[path = "../../crates/carriage/src/url.rs"]
mod url;

/// URLs, proxy variables and answers of proxies: what was understood can be written into a request without ending a line.
pub(crate) fn text(data: &[u8]) {
    let _ = proxy::connect_reply(data);
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(url) = text.parse::<url::WssUrl>() {
        let shown = url.to_string();
        assert!(!shown.chars().any(char::is_control) && url.port != 0);
        assert_eq!(shown.parse(), Ok(url));
    }
    if let Some(proxy) = proxy::Proxy::parse(text) {
        assert!(proxy.port != 0 && !proxy.host.is_empty());
        assert!(!proxy.host.chars().any(|c| c.is_control() || c.is_whitespace()));
    }
    let (list, host) = text.split_once('\n').unwrap_or((text, "hub.example"));
    let variables = |name: &str| match name {
        "ALL_PROXY" => Some("p:1".to_owned()),
        "NO_PROXY" => Some(list.to_owned()),
        _ => None,
    };
    let chosen = proxy::Proxy::from_environment(host, 443, variables);
    assert!(chosen.is_ok(), "the exceptions of a proxy are never an error");
}

/// Answers of a router: nothing panics, nobody but the router is believed, and it is not asked without end.
pub(crate) fn portmap(base: Instant, data: &[u8]) {
    let _ = Reply::decode(data);
    let router = SocketAddr::from(([192, 168, 1, 1], 5351));
    let stranger = SocketAddr::from(([192, 168, 1, 2], 5351));
    let mut mapper = Mapper::new(router.ip(), [192, 168, 1, 7].into(), 4000, [7; 12], base);
    let (mut now, mut sent) = (base, 0);
    for piece in data.chunks(61).take(64) {
        let mut buf = [0; MAX_MESSAGE];
        while mapper.poll_transmit(now, &mut buf).is_some() {
            sent += 1;
            assert!(sent < 1_000);
        }
        // The first byte says how: from whom, and how much later.
        let (how, message) = piece.split_first().map_or((0, piece), |(how, rest)| (*how, rest));
        let before = mapper.mapping();
        mapper.handle(now, if how & 1 == 0 { router } else { stranger }, message);
        assert!(how & 1 == 0 || mapper.mapping() == before, "a stranger was believed");
        if let Some(mapping) = mapper.mapping() {
            assert!(mapping.external.port() != 0 && !mapping.external.ip().is_unspecified());
            assert!(mapping.until <= now + Duration::from_secs(86_400));
        }
        now += Duration::from_millis(u64::from(how) * 97);
    }
    mapper.release();
    let mut buf = [0; MAX_MESSAGE];
    let farewell = std::iter::from_fn(|| mapper.poll_transmit(now, &mut buf)).take(9).count();
    assert!(farewell <= 1 && mapper.poll_timeout().is_none());
}

/// Texts of a UPnP router, one after the other, parted by zeros: nothing panics, nobody but the router is asked or believed, and it is not
/// asked without end.
pub(crate) fn igd(base: Instant, data: &[u8]) {
    let router = SocketAddr::from(([192, 168, 1, 1], igd::SSDP_PORT));
    let mut client = Igd::new(router, [192, 168, 1, 7].into(), 4000, 7, base);
    let (mut now, mut sent) = (base, 0);
    for piece in data.split(|byte| *byte == 0).take(32) {
        let _ = igd::is_complete(piece);
        let mut asked = false;
        while let Some(out) = client.poll(now) {
            sent += 1;
            assert!(sent < 1_000);
            match out {
                Outgoing::Datagram { to, .. } => assert!(to == router || to == igd::SSDP_GROUP),
                Outgoing::Request { to, bytes } => {
                    assert_eq!(to.ip(), router.ip(), "somebody else is asked");
                    let lines = bytes.split(|byte| *byte == b'\n').take_while(|line| line.len() > 1).count();
                    assert!(lines == 3 || lines == 6, "a text of the router became a header");
                    asked = true;
                    client.handle_answer(now, Some(piece));
                    break;
                }
            }
        }
        client.handle_datagram(SocketAddr::from(([192, 168, 1, 2], 1900)), piece);
        assert!(asked || client.mapping().is_none() || sent > 3);
        client.handle_datagram(router, piece);
        if let Some(mapping) = client.mapping() {
            assert!(mapping.external.port() != 0 && !mapping.external.ip().is_unspecified());
        }
        if let Some(due) = client.poll_timeout() {
            now = now.max(due);
        }
    }
    client.release();
    while let Some(out) = client.poll(now) {
        sent += 1;
        assert!(sent < 1_010);
        if matches!(out, Outgoing::Request { .. }) {
            client.handle_answer(now, None);
        }
    }
    assert!(client.is_released() && client.mapping().is_none());
}
