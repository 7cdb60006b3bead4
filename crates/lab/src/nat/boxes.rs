//! Namespaces as hosts and as NAT boxes of the kernel: addresses, routes, nftables.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Stdio};

use super::kind::NatKind;
use crate::LabError;
use crate::device::INSIDE;
use crate::namespace::Namespace;

/// The box's end of the network behind it.
const LAN: &str = "lan0";
/// A host's device, where a box of the kernel is its gateway.
const HOST: &str = "eth0";
/// The address of a home's box on the inside.
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 1);
/// Between the boxes of `double`: the shared part of carriers (RFC 6598).
const CARRIER: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 1);
const CUSTOMER: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 2);

/// The lab's device is the way out, with these addresses.
pub(crate) fn attach(room: &Namespace, addresses: &[IpAddr]) -> Result<(), LabError> {
    let mut script = String::from("link set lo up\n");
    for address in addresses {
        let _ = writeln!(script, "addr add {} dev {INSIDE}{}", single(*address), nodad(*address));
    }
    let _ = writeln!(script, "link set {INSIDE} mtu 1500 up");
    script += &default_routes(addresses.iter().any(IpAddr::is_ipv4), addresses.iter().any(IpAddr::is_ipv6));
    batch(room, &script)
}

/// The default route out of the lab's device.
fn default_routes(v4: bool, v6: bool) -> String {
    let mut script = String::new();
    if v4 {
        let _ = writeln!(script, "route replace default dev {INSIDE}");
    }
    if v6 {
        let _ = writeln!(script, "route replace ::/0 dev {INSIDE}");
    }
    script
}

/// Host, one or two boxes, and the lab's device, joined.
pub(crate) fn chain(
    kind: NatKind,
    host: &Namespace,
    address: IpAddr,
    rooms: &[Namespace],
    public: Ipv4Addr,
) -> Result<(), LabError> {
    let join = |outer: &Namespace, name: &str, inner: &Namespace, peer: &str| {
        format!(
            "link add name {name} netns {} type veth peer name {peer} netns {}\n",
            outer.name(),
            inner.name()
        )
    };
    batch(&rooms[0], &join(&rooms[0], LAN, host, HOST))?;
    batch(
        host,
        &format!(
            "link set lo up\naddr add {address}/24 dev {HOST}\nlink set {HOST} up\nroute add default via {GATEWAY}\n"
        ),
    )?;
    let inner = format!("link set lo up\naddr add {GATEWAY}/24 dev {LAN}\nlink set {LAN} up\n");
    batch(&rooms[0], &inner)?;
    let last = &rooms[rooms.len() - 1];
    if rooms.len() == 2 {
        batch(last, &join(last, LAN, &rooms[0], "wan0"))?;
        batch(last, &format!("addr add {CARRIER}/30 dev {LAN}\nlink set {LAN} up\n"))?;
        batch(
            &rooms[0],
            &format!("addr add {CUSTOMER}/30 dev wan0\nlink set wan0 up\nroute add default via {CARRIER}\n"),
        )?;
        nft(rooms[0].name(), &rules(NatKind::PortRestricted, "wan0", public, address))?;
    }
    attach(last, &[public.into()])?;
    nft(last.name(), &rules(kind, INSIDE, public, address))
}

/// What the kernel is told.
fn rules(kind: NatKind, out: &str, public: Ipv4Addr, host: IpAddr) -> String {
    let (mut before, mut after, mut passing) = (String::new(), String::new(), String::new());
    match kind {
        NatKind::OneToOne => {
            let _ = writeln!(before, "ip daddr {public} dnat to {host}");
            let _ = writeln!(after, "ip saddr {host} snat to {public}");
            passing += "accept\n";
        }
        NatKind::SymmetricRandom => {
            let _ = writeln!(after, "oifname \"{out}\" masquerade random,fully-random");
        }
        _ => {
            let _ = writeln!(after, "oifname \"{out}\" masquerade");
        }
    }
    passing += match kind {
        NatKind::UdpBlocked => "iifname \"lan0\" tcp dport { 80, 443 } accept\n",
        _ => "iifname \"lan0\" accept\n",
    };
    if kind == NatKind::Mapped {
        before += "dnat to udp dport map @udp_mapped\n";
        passing += "ct status dnat accept\n";
    }
    let maps = match kind {
        NatKind::Mapped => "map udp_mapped {\ntype inet_service : ipv4_addr . inet_service\n}\n",
        _ => "",
    };
    // What nobody inside has asked for is dropped and leaves no trace, as home routers do: otherwise it would take the
    // port that the host is about to use.
    format!(
        "table ip lab {{\n{maps}\
         chain before {{\ntype nat hook prerouting priority dstnat\n{before}}}\n\
         chain after {{\ntype nat hook postrouting priority srcnat\n{after}}}\n\
         chain passing {{\ntype filter hook forward priority filter; policy drop;\n\
         ct state established,related accept\n{passing}}}\n\
         chain arriving {{\ntype filter hook input priority filter; policy accept;\n\
         iifname \"{out}\" ct state new drop\n}}\n}}\n"
    )
}

/// Makes a box of the kernel forget its connections: those that are masqueraded go when the device goes down.
pub(crate) fn forget(room: &Namespace) -> Result<(), LabError> {
    let out = if room.run(|| std::path::Path::new("/proc/sys/net/ipv4/conf/wan0").exists())? {
        "wan0"
    } else {
        INSIDE
    };
    let route = match out {
        "wan0" => format!("route replace default via {CARRIER}\n"),
        _ => default_routes(true, false),
    };
    batch(room, &format!("link set {out} down\nlink set {out} up\n{route}"))
}

/// One more address of a public host, with its route.
pub(crate) fn add(host: &Namespace, address: IpAddr) -> Result<(), LabError> {
    let routes = default_routes(address.is_ipv4(), address.is_ipv6());
    batch(host, &format!("addr add {} dev {INSIDE}{}\n{routes}", single(address), nodad(address)))
}

/// One address less, and no route of its version.
pub(crate) fn remove(host: &Namespace, address: IpAddr) -> Result<(), LabError> {
    let route = if address.is_ipv4() { "default" } else { "::/0" };
    batch(host, &format!("route del {route} dev {INSIDE}\naddr del {} dev {INSIDE}\n", single(address)))
}

/// An address that is a network of its own.
fn single(address: IpAddr) -> String {
    format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 })
}

/// Nobody else is there who could have the address: it need not be asked for.
fn nodad(address: IpAddr) -> &'static str {
    if address.is_ipv6() { " nodad" } else { "" }
}

/// One address out, another in.
pub(crate) fn exchange(host: &Namespace, old: IpAddr, new: IpAddr, direct: bool) -> Result<(), LabError> {
    if direct {
        let routes = default_routes(new.is_ipv4(), new.is_ipv6());
        let (old, add) = (single(old), single(new));
        return batch(
            host,
            &format!("addr del {old} dev {INSIDE}\naddr add {add} dev {INSIDE}{}\n{routes}", nodad(new)),
        );
    }
    let route = format!("route replace default via {GATEWAY}\n");
    batch(host, &format!("addr del {old}/24 dev {HOST}\naddr add {new}/24 dev {HOST}\n{route}"))
}

/// Runs lines of `ip` in a namespace.
fn batch(room: &Namespace, script: &str) -> Result<(), LabError> {
    let mut command = Command::new("ip");
    command.args(["-n", room.name(), "-batch", "-"]);
    feed(command, script, &format!("ip in {}", room.name()))
}

/// Loads rules into a namespace.
pub(crate) fn nft(room: &str, rules: &str) -> Result<(), LabError> {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", room, "nft", "-f", "-"]);
    feed(command, rules, &format!("nft in {room}"))
}

/// Gives a program its input and fails with what it said.
fn feed(mut command: Command, input: &str, stage: &str) -> Result<(), LabError> {
    let failed = |error: std::io::Error| LabError::failed(stage, error);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).map_err(failed)?;
    }
    let output = child.wait_with_output().map_err(failed)?;
    if output.status.success() {
        return Ok(());
    }
    Err(LabError::failed(stage, format!("{}\n{input}", String::from_utf8_lossy(&output.stderr).trim())))
}
