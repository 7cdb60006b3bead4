//! How we see the asker, port 1012 (spec/reach.md §2.7): one line of JSON, then the end.
//!
//! It tells nothing that the asker could not find out from its own packets, but for whether UDP is blocked, an address is
//! translated or a port mapped here. `pilotage doctor PEER` puts it beside its own view.

use std::io::{self, Read};
use std::net::SocketAddr;
use std::time::SystemTime;

use pilotage::{Node, PathKind, Stream};
use serde::{Deserialize, Serialize};

use crate::clock::unix_millis;
use crate::duplex::{Duplex, Io};

/// The port that serves it.
pub const PORT: u16 = 1012;

/// Longest line, in bytes.
pub const MAX_LINE: usize = 2_048;

/// What a node sees of the one that asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// `direct`, `relay` or `none`.
    pub path: String,
    /// Where it sends to.
    pub remote: Option<SocketAddr>,
    /// Why it is this path: small letters, digits and `-`.
    pub reason: String,
    /// Smoothed round-trip time, in microseconds.
    pub rtt_us: u64,
    /// Largest UDP payload known to pass from there to here.
    pub datagram_size: u64,
    /// UDP does not reach its beacon.
    pub udp_blocked: bool,
    /// The beacon sees it at another address than it has; `None` if that is not known.
    pub translated: Option<bool>,
    /// A port of its router leads to it.
    pub mapped: bool,
    /// Its clock, in milliseconds since 1970.
    pub unix_ms: u64,
}

impl View {
    /// What `node` sees of the peer of `stream`.
    #[must_use]
    pub fn of(node: &Node, stream: &Stream) -> Self {
        let status = stream.path_status();
        let path = status.and_then(|status| status.path);
        let kind = path.map_or("none", |path| if path.kind == PathKind::Relay { "relay" } else { "direct" });
        let own = node.interface_addresses();
        Self {
            path: kind.into(),
            remote: path.map(|path| path.remote),
            reason: status.map_or("idle", |status| status.reason).into(),
            rtt_us: path.map_or(0, |path| u64::try_from(path.rtt.as_micros()).unwrap_or(u64::MAX)),
            datagram_size: path.map_or(0, |path| path.datagram_size as u64),
            udp_blocked: node.carriage().is_some_and(|carriage| carriage.carried),
            translated: node.observed_addr().map(|seen| seen != node.local_addr() && !own.contains(&seen)),
            mapped: node.port_mapping().is_some(),
            unix_ms: unix_millis(SystemTime::now()),
        }
    }

    /// Reads a line; `None` for what no node of ours says. What is accepted may be shown to people as it is.
    #[must_use]
    pub fn parse(line: &[u8]) -> Option<Self> {
        let view: Self = serde_json::from_slice(line).ok()?;
        let code = |text: &str| {
            let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
            (1..=64).contains(&text.len()) && text.bytes().all(good)
        };
        (code(&view.path) && code(&view.reason)).then_some(view)
    }
}

/// Tells the peer of a stream how it is seen.
///
/// # Errors
/// When the stream fails.
pub fn serve(node: &Node, stream: &Stream) -> io::Result<()> {
    let mut line = serde_json::to_vec(&View::of(node, stream))?;
    line.push(b'\n');
    io::Write::write_all(&mut Io(stream), &line)?;
    Duplex::finish(stream)
}

/// Reads what the other side tells.
///
/// # Errors
/// When the stream fails, or says something else (`InvalidData`).
pub fn ask<D: Duplex + ?Sized>(stream: &D) -> io::Result<View> {
    stream.finish()?;
    let mut line = Vec::new();
    Io(stream).take(MAX_LINE as u64).read_to_end(&mut line)?;
    View::parse(&line).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "report: not understood"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_survive_and_nonsense_does_not() {
        let view = View {
            path: "relay".into(),
            remote: Some("192.0.2.1:9".parse().unwrap()),
            reason: "relay-no-answer".into(),
            rtt_us: 7,
            datagram_size: 1_200,
            udp_blocked: true,
            translated: None,
            mapped: false,
            unix_ms: 8,
        };
        let line = serde_json::to_string(&view).unwrap();
        assert!(line.len() < MAX_LINE);
        assert_eq!(View::parse(line.as_bytes()), Some(view));
        for bad in
            ["", "{}", "[]", &line.replace("relay-no-answer", "a\\u001b[31m"), &line.replace(":7,", ":-7,")]
        {
            assert_eq!(View::parse(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn two_nodes_tell_each_other() {
        let bind = "127.0.0.1:0".parse().unwrap();
        let (server, client) =
            (Node::builder().bind(bind).start().unwrap(), Node::builder().bind(bind).start().unwrap());
        let listener = server.listen(PORT).unwrap();
        let peer = pilotage::Peer::At(server.address(), server.local_addr());
        let stream = client.connect(peer, PORT).unwrap();
        let incoming = listener.accept().unwrap();
        serve(&server, &incoming).unwrap();
        let view = ask(&stream).unwrap();
        assert_eq!((view.path.as_str(), view.remote), ("direct", Some(client.local_addr())));
    }
}
