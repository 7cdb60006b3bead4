//! Peers as IP addresses of this machine: `10.4.0.1:80` leads to port 80 of the peer that has this address
//! (draft-01 facts §19). Addresses outside 127.0.0.0/8 must be added to the loopback interface, which takes root.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::sync::Arc;

use pilotage::Peer;

use super::forward::listen;
use super::sessions::{Running, Sessions};
use super::{Dialer, Limits, Observer};

/// Most pairs of address and port of one gateway.
pub const MAX_LISTENERS: usize = 1_024;

/// One peer and the address that stands for it. Text form `PEER=IP`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// The peer.
    pub peer: Peer,
    /// Its address on this machine.
    pub ip: IpAddr,
}

impl FromStr for Mapping {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (peer, ip) = text.rsplit_once('=').ok_or("expected PEER=IP, as in bob=10.4.0.1")?;
        let peer = peer.parse().map_err(|error: pilotage::PeerParseError| error.to_string())?;
        let ip: IpAddr = ip.parse().map_err(|_| format!("{ip:?} is no IP address"))?;
        if ip.is_unspecified() || ip.is_multicast() {
            return Err(format!("{ip} stands for no single host"));
        }
        Ok(Self { peer, ip })
    }
}

/// Addresses that we added to the loopback interface; taken away again when dropped.
#[derive(Debug, Default)]
struct Added(Vec<IpAddr>);

impl Drop for Added {
    fn drop(&mut self) {
        for ip in &self.0 {
            if let Err(error) = change("del", *ip) {
                tracing::warn!(%ip, %error, "the address stays on the loopback interface");
            }
        }
    }
}

/// A gateway of aliases at work. Dropping it stops it and takes the addresses away again that it added.
#[derive(Debug)]
pub struct Aliases {
    running: Running,
    added: Added,
}

impl Aliases {
    /// The TCP addresses that it listens on.
    pub fn local_addrs(&self) -> &[SocketAddr] {
        self.running.local_addrs()
    }

    /// Addresses that it added to the loopback interface.
    pub fn added(&self) -> &[IpAddr] {
        &self.added.0
    }
}

/// Listens on every port of every mapped address and leads each to the same port of its peer.
///
/// # Errors
/// An address cannot be added (not root, no `ip` command) or listened on; nothing is left behind then.
pub fn aliases(
    dialer: Arc<dyn Dialer>,
    mappings: &[Mapping],
    ports: &[u16],
    limits: Limits,
    observer: Observer,
) -> io::Result<Aliases> {
    if mappings.len().saturating_mul(ports.len()) > MAX_LISTENERS {
        let text = format!("more than {MAX_LISTENERS} pairs of address and port");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let sessions = Sessions::new(limits, observer);
    let running = Running { sessions: sessions.clone(), local: Vec::new() };
    let mut all = Aliases { running, added: Added::default() };
    for mapping in mappings {
        for port in ports {
            let at = SocketAddr::new(mapping.ip, *port);
            let listener = match TcpListener::bind(at) {
                Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {
                    change("add", mapping.ip)?;
                    all.added.0.push(mapping.ip);
                    TcpListener::bind(at)
                }
                other => other,
            };
            let listener =
                listener.map_err(|error| io::Error::new(error.kind(), format!("{at}: {error}")))?;
            let local = listen(listener, &sessions, dialer.clone(), mapping.peer.clone(), *port)?;
            all.running.local.push(local);
        }
    }
    Ok(all)
}

/// `ip address add|del IP/32 dev lo`, as the reference's gateway does.
fn change(what: &str, ip: IpAddr) -> io::Result<()> {
    let prefix = if ip.is_ipv4() { 32 } else { 128 };
    let run = Command::new("ip")
        .args(["address", what, &format!("{ip}/{prefix}"), "dev", "lo"])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| io::Error::new(error.kind(), format!("the ip command: {error}")))?;
    if run.status.success() {
        return Ok(());
    }
    let said: String =
        String::from_utf8_lossy(&run.stderr).chars().filter(|c| !c.is_control()).take(200).collect();
    Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("{ip} on the loopback interface: {said}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings() {
        let mapping: Mapping = "bob=10.4.0.1".parse().expect("name");
        assert_eq!((mapping.peer.to_string().as_str(), mapping.ip), ("bob", [10, 4, 0, 1].into()));
        let mapping: Mapping = "0:0000.ABCD.1234@127.0.0.1:9=127.4.0.1".parse().expect("endpoint");
        assert!(matches!(mapping.peer, Peer::At(..)));
        for bad in ["bob", "bob=", "=10.4.0.1", "bob=0.0.0.0", "bob=224.0.0.1", "bob=ten"] {
            assert!(bad.parse::<Mapping>().is_err(), "{bad}");
        }
    }
}
