//! A kernel TCP flow over the proxy's emulated link.
//!
//! Two network namespaces hold one end of the flow each. Between them lies a VXLAN, whose datagrams go through
//! the proxy as packets of a [`Wire`]: so the kernel's TCP sees the loss, queue and delay of the link. Needs
//! root and `ip`. The link counts the inner IP packets, so both kinds of traffic pay for the same bytes.

use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::Failure;
use crate::process::{Background, run};
use crate::proxy::Wire;

/// VXLAN and Ethernet headers in front of the inner IP packet.
const WRAPPING: usize = 8 + 14;
const VXLAN_PORT: u16 = 4789;
/// The flow's ends inside the VXLAN.
const SOURCE_IP: &str = "10.231.77.1";
const SINK_IP: &str = "10.231.77.2";
const SINK_PORT: u16 = 5001;

/// One namespace and its underlay.
struct Side {
    name: String,
    /// Our end of the veth, and the namespace's.
    ours: String,
    theirs: String,
}

/// Both namespaces; removed on drop.
pub(super) struct Namespaces {
    sides: [Side; 2],
}

impl Namespaces {
    /// Makes them. The outer error is a failure, the inner one says why it cannot be done here.
    pub(super) fn make() -> Result<Result<Self, String>, Failure> {
        // An address block for tests of network devices (RFC 2544), a different part for each process.
        let number = std::process::id() % 16_000;
        let side = |index: u32, letter| {
            let net = number * 8 + index * 4;
            let ip = |host| format!("198.{}.{}.{}", 18 + (net >> 16), (net >> 8) & 255, (net & 255) + host);
            Side { name: format!("plt{number}{letter}"), ours: ip(1), theirs: ip(2) }
        };
        let made = Self { sides: [side(0, 'a'), side(1, 'b')] };
        for (side, inner) in made.sides.iter().zip([SOURCE_IP, SINK_IP]) {
            if let Err(error) = side.make(inner) {
                return Ok(Err(format!("no network namespace with VXLAN: {error}")));
            }
        }
        Ok(Ok(made))
    }

    /// The flow's way through the proxy.
    pub(super) fn wire(&self) -> Result<Wire, Failure> {
        let bind = |side: &Side| UdpSocket::bind((side.ours.as_str(), VXLAN_PORT));
        let peer = |side: &Side| format!("{}:{VXLAN_PORT}", side.theirs).parse::<SocketAddr>();
        let [near, far] = &self.sides;
        Ok(Wire {
            near: bind(near)?,
            far: bind(far)?,
            near_peer: peer(near)?,
            far_peer: peer(far)?,
            overhead: WRAPPING,
            mend,
        })
    }

    /// Starts the flow: this program again, in both namespaces.
    pub(super) fn start_flow(&self, folder: &Path) -> Result<Flow, Failure> {
        let sink_at = format!("{SINK_IP}:{SINK_PORT}");
        let [near, far] = &self.sides;
        let mut sink = Background::start(&mut far.program(&["tcp-sink", &sink_at])?, &folder.join("sink"))?;
        let log = folder.join("sink");
        sink.wait_until("TCP sink", || std::fs::metadata(&log).is_ok_and(|data| data.len() > 0))?;
        let source =
            Background::start(&mut near.program(&["tcp-source", &sink_at])?, &folder.join("source"))?;
        Ok(Flow { sink, source })
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for side in &self.sides {
            // What was never made cannot be removed.
            let _ = ip(&["netns", "del", &side.name]);
        }
    }
}

impl Side {
    fn make(&self, inner: &str) -> Result<(), Failure> {
        let (ns, theirs) = (self.name.as_str(), self.theirs.as_str());
        let id = ["id", "77", "local", theirs, "remote", &self.ours, "dstport", "4789"];
        ip(&["netns", "add", ns])?;
        ip(&[
            "link", "add", ns, "mtu", "1600", "type", "veth", "peer", "name", "eth0", "mtu", "1600", "netns",
            ns,
        ])?;
        ip(&["addr", "add", &format!("{}/30", self.ours), "dev", ns])?;
        ip(&["link", "set", ns, "up"])?;
        ip(&["-n", ns, "link", "set", "lo", "up"])?;
        ip(&["-n", ns, "addr", "add", &format!("{theirs}/30"), "dev", "eth0"])?;
        ip(&["-n", ns, "link", "set", "eth0", "up"])?;
        ip(&[&["-n", ns, "link", "add", "vx0", "type", "vxlan"], &id[..], &["dev", "eth0"]].concat())?;
        // One segment for each datagram: the link has to see single packets.
        ip(&["-n", ns, "link", "set", "vx0", "mtu", "1500", "gso_max_segs", "1", "up"])?;
        ip(&["-n", ns, "addr", "add", &format!("{inner}/24"), "dev", "vx0"])
    }

    fn program(&self, args: &[&str]) -> Result<Command, Failure> {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(std::env::current_exe()?).args(args);
        Ok(command)
    }
}

fn ip(args: &[&str]) -> Result<(), Failure> {
    let outcome = run(Command::new("ip").args(args), &[], Duration::from_secs(10));
    outcome.map(drop).map_err(|error| format!("ip {}: {error}", args.join(" ")).into())
}

/// A running TCP flow.
pub(super) struct Flow {
    sink: Background,
    source: Background,
}

impl Flow {
    /// Bytes that arrived and were right; an error if one was wrong or an end has died.
    pub(super) fn delivered(&self) -> Result<u64, Failure> {
        let text = self.sink.output();
        let last = text.lines().last().unwrap_or_default();
        last.parse().map_err(|_| format!("TCP: {last} {}", self.source.output().trim()).into())
    }
}

/// Completes the TCP checksum of the packet inside: the kernel leaves it to the hardware, of which there is none.
fn mend(datagram: &mut [u8]) {
    let Some(ip) = datagram.get_mut(WRAPPING..).filter(|ip| ip.len() >= 20 && ip[0] >> 4 == 4 && ip[9] == 6)
    else {
        return;
    };
    let header = usize::from(ip[0] & 15) * 4;
    let total = usize::from(u16::from_be_bytes([ip[2], ip[3]]));
    let mut pseudo = Vec::with_capacity(total);
    pseudo.extend_from_slice(&ip[12..20]);
    let Some(tcp) = ip.get_mut(header..total).filter(|tcp| tcp.len() >= 20) else { return };
    tcp[16..18].fill(0);
    pseudo.extend_from_slice(&[0, 6]);
    pseudo.extend_from_slice(&(tcp.len() as u16).to_be_bytes());
    pseudo.extend_from_slice(tcp);
    let sum = checksum(&pseudo);
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());
}

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mended_packet_has_a_checksum_that_verifies() {
        let mut packet = vec![0; WRAPPING];
        packet.extend_from_slice(&[0x45, 0, 0, 43, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        packet.extend_from_slice(&[
            0x1f, 0x90, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 1, 0, 9, 9, 0, 0, 1, 2, 3,
        ]);
        mend(&mut packet);
        let ip = &packet[WRAPPING..];
        let all = [&ip[12..20], &[0, 6, 0, 23], &ip[20..]].concat();
        assert_eq!(checksum(&all), 0);
        assert_ne!(ip[36..38], [9, 9]);
        for len in 0..packet.len() {
            mend(&mut packet[..len].to_vec());
        }
    }
}
