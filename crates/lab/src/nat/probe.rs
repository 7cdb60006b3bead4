//! What a host is behind, found out by plain sockets as RFC 5780 does: a server with two addresses and two ports, which
//! answers from where it is asked to.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::kind::Behaviour;
use super::mapper;
use super::table::{Allocation, Dependence};
use super::world::World;
use crate::LabError;

/// The server's two UDP ports, at each of its two addresses.
const PORTS: [u16; 2] = [3_478, 3_479];
/// A web port, and one that is none.
const TCP_PORTS: [u16; 2] = [443, 9_000];
/// A request is repeated this often: a busy machine may drop one.
const TRIES: u32 = 3;
/// Sockets whose outside ports show how these are chosen.
const SAMPLES: usize = 6;
/// Largest step from one outside port to the next that still looks like counting.
const STEP: u16 = 8;

/// The server; it ends when this is dropped.
#[derive(Debug)]
pub struct Server {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    /// Starts at the hub of a world, at its first two addresses.
    ///
    /// # Errors
    /// [`LabError::Failed`] if a port cannot be bound.
    pub fn start(world: &World) -> Result<Self, LabError> {
        let failed = |error: std::io::Error| LabError::failed("probe server", error);
        let address = |index| world.hub_address(super::NatKind::None, index);
        let ends =
            [(0, 0), (0, 1), (1, 0), (1, 1)].map(|(ip, port)| SocketAddr::new(address(ip), PORTS[port]));
        let bound = world.hub().run(|| {
            let udp: Vec<_> = ends.iter().map(UdpSocket::bind).collect::<Result<_, _>>()?;
            let tcp: Vec<_> = TCP_PORTS
                .iter()
                .map(|port| TcpListener::bind((address(0), *port)))
                .collect::<Result<_, _>>()?;
            Ok((udp, tcp))
        })?;
        let (udp, tcp): (Vec<UdpSocket>, Vec<TcpListener>) = bound.map_err(failed)?;
        let udp = Arc::new(udp);
        let mut server = Self { stop: Arc::default(), threads: Vec::new() };
        for index in 0..udp.len() {
            udp[index].set_read_timeout(Some(Duration::from_millis(50))).map_err(failed)?;
            let (udp, stop) = (udp.clone(), server.stop.clone());
            server.spawn(move || answer(&udp, index, &stop))?;
        }
        for listener in tcp {
            listener.set_nonblocking(true).map_err(failed)?;
            let stop = server.stop.clone();
            server.spawn(move || {
                while !stop.load(Ordering::Acquire) {
                    // The handshake is all that is asked for.
                    if listener.accept().is_err() {
                        std::thread::sleep(Duration::from_millis(10));
                    }
                }
            })?;
        }
        Ok(server)
    }

    fn spawn(&mut self, work: impl FnOnce() + Send + 'static) -> Result<(), LabError> {
        let thread = std::thread::Builder::new().name("probe".into()).spawn(work);
        self.threads.push(thread.map_err(|error| LabError::failed("thread", error))?);
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

/// A request: `nonce(4) from(1) [target ip(4) port(2)]`; `from` is the number of the socket that answers (255: the one
/// asked), and the answer goes to the target if there is one, else to the asker.
fn answer(sockets: &[UdpSocket], own: usize, stop: &AtomicBool) {
    let mut buffer = [0; 64];
    while !stop.load(Ordering::Acquire) {
        let Ok((len, from)) = sockets[own].recv_from(&mut buffer) else { continue };
        let (5.., SocketAddr::V4(seen)) = (len, from) else { continue };
        let socket = sockets.get(usize::from(buffer[4])).unwrap_or(&sockets[own]);
        let to = match buffer[5..len] {
            [a, b, c, d, high, low] => {
                SocketAddrV4::new(Ipv4Addr::new(a, b, c, d), u16::from_be_bytes([high, low]))
            }
            _ => seen,
        };
        let reply = [&buffer[..4], &seen.ip().octets(), &seen.port().to_be_bytes()].concat();
        // An answer that cannot be sent is one that does not come.
        let _ = socket.send_to(&reply, SocketAddr::V4(to));
    }
}

/// The asking side: one host.
struct Asker<'a> {
    world: &'a World,
    side: usize,
    patience: Duration,
}

impl Asker<'_> {
    /// The server's socket of this number.
    fn server(&self, number: u8) -> SocketAddr {
        let kind = self.world.side(self.side).kind();
        SocketAddr::new(self.world.hub_address(kind, number / 2), PORTS[usize::from(number % 2)])
    }

    fn socket(&self) -> Result<UdpSocket, LabError> {
        let any: IpAddr = match self.server(0) {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = self.world.side(self.side).host().run(|| UdpSocket::bind((any, 0)))?;
        socket.map_err(|error| LabError::failed("probe", error))
    }

    /// Asks the server's socket `to` for an answer from `from`. What it saw us as, if the answer came.
    fn ask(&self, socket: &UdpSocket, to: u8, from: u8) -> Result<Option<SocketAddrV4>, LabError> {
        let failed = |error: std::io::Error| LabError::failed("probe", error);
        static NONCE: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(1);
        for _ in 0..TRIES {
            let nonce = NONCE.fetch_add(1, Ordering::Relaxed).to_be_bytes();
            // Where nothing may leave the kernel says so at once, or later by an error on the socket.
            let _ = socket.send_to(&[&nonce[..], &[from]].concat(), self.server(to));
            let end = Instant::now() + self.patience;
            while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
                socket.set_read_timeout(Some(left)).map_err(failed)?;
                let mut reply = [0; 64];
                let Ok((10, _)) = socket.recv_from(&mut reply) else { continue };
                if reply[..4] == nonce {
                    let ip = Ipv4Addr::new(reply[4], reply[5], reply[6], reply[7]);
                    return Ok(Some(SocketAddrV4::new(ip, u16::from_be_bytes([reply[8], reply[9]]))));
                }
            }
        }
        Ok(None)
    }
}

/// What the host of this side is behind. A probe [`Server`] must run in the world.
///
/// # Errors
/// [`LabError::Failed`] if sockets cannot be made.
pub fn behaviour(world: &World, side: usize) -> Result<Behaviour, LabError> {
    let asker = Asker { world, side, patience: world.round_trip() + Duration::from_millis(150) };
    let socket = asker.socket()?;
    let mut found = Behaviour {
        udp: false,
        mapping: None,
        filtering: None,
        allocation: None,
        hairpin: None,
        hops: None,
        mappable: false,
    };
    let Some(first) = asker.ask(&socket, 0, 255)? else { return Ok(found) };
    found.udp = true;
    let is_public = world.side(side).kind() == super::NatKind::None;
    found.mapping = Some(mapping(&asker, &socket, first)?);
    found.filtering = Some(filtering(&asker)?);
    found.allocation = Some(allocation(&asker)?);
    found.hairpin = if is_public { None } else { Some(hairpin(&asker)?) };
    found.hops = hops(&asker)?;
    found.mappable = mappable(&asker)?;
    Ok(found)
}

fn mapping(asker: &Asker<'_>, socket: &UdpSocket, first: SocketAddrV4) -> Result<Dependence, LabError> {
    let other_port = asker.ask(socket, 1, 255)?;
    let other_address = asker.ask(socket, 2, 255)?;
    Ok(match (other_port == Some(first), other_address == Some(first)) {
        (true, true) => Dependence::EndpointIndependent,
        (true, false) => Dependence::AddressDependent,
        _ => Dependence::AddressAndPortDependent,
    })
}

/// Each question with a socket of its own: what it was answered must not open the way for the next.
fn filtering(asker: &Asker<'_>) -> Result<Dependence, LabError> {
    let heard = |from| -> Result<bool, LabError> {
        let socket = asker.socket()?;
        asker.ask(&socket, 0, 255)?;
        Ok(asker.ask(&socket, 0, from)?.is_some())
    };
    Ok(match (heard(3)?, heard(1)?) {
        (true, _) => Dependence::EndpointIndependent,
        (false, true) => Dependence::AddressDependent,
        _ => Dependence::AddressAndPortDependent,
    })
}

fn allocation(asker: &Asker<'_>) -> Result<Allocation, LabError> {
    let (mut kept, mut outside) = (0, Vec::new());
    for _ in 0..SAMPLES {
        let socket = asker.socket()?;
        let own = socket.local_addr().map_err(|error| LabError::failed("probe", error))?;
        let Some(seen) = asker.ask(&socket, 0, 255)? else { continue };
        kept += usize::from(seen.port() == own.port());
        outside.push(seen.port());
    }
    let counts = |pair: &[u16]| (1..=STEP).contains(&pair[1].wrapping_sub(pair[0]));
    Ok(if kept * 2 > outside.len() {
        Allocation::Preserve
    } else if outside.windows(2).filter(|pair| counts(pair)).count() * 2 > outside.len() {
        Allocation::Sequential
    } else {
        Allocation::Random
    })
}

/// One socket of the host sends to the outside end of another.
fn hairpin(asker: &Asker<'_>) -> Result<bool, LabError> {
    let failed = |error: std::io::Error| LabError::failed("probe", error);
    let (one, other) = (asker.socket()?, asker.socket()?);
    let (Some(one_seen), Some(other_seen)) = (asker.ask(&one, 0, 255)?, asker.ask(&other, 0, 255)?) else {
        return Ok(false);
    };
    let as_inside = |end: SocketAddrV4| match asker.server(0) {
        SocketAddr::V4(_) => SocketAddr::V4(end),
        SocketAddr::V6(_) => SocketAddr::new(super::translator::synthesize(*end.ip()).into(), end.port()),
    };
    let mut heard = false;
    for _ in 0..TRIES {
        // Both ways: a filter that depends on ports admits only what was sent to.
        let _ = one.send_to(b"hairpin", as_inside(other_seen));
        let _ = other.send_to(b"hairpin", as_inside(one_seen));
        for socket in [&one, &other] {
            socket.set_read_timeout(Some(Duration::from_millis(60))).map_err(failed)?;
            heard |= matches!(socket.recv_from(&mut [0; 64]), Ok((7, _)));
        }
    }
    Ok(heard)
}

/// Routers on the way: the fewest hops with which an answer still comes, less the one that reaches the server.
fn hops(asker: &Asker<'_>) -> Result<Option<u8>, LabError> {
    for hops in 1..=4_u8 {
        let socket = asker.socket()?;
        let reference = socket2::SockRef::from(&socket);
        let set = match asker.server(0) {
            SocketAddr::V4(_) => reference.set_ttl_v4(hops.into()),
            SocketAddr::V6(_) => reference.set_unicast_hops_v6(hops.into()),
        };
        set.map_err(|error| LabError::failed("probe", error))?;
        if asker.ask(&socket, 0, 255)?.is_some() {
            return Ok(Some(hops - 1));
        }
    }
    Ok(None)
}

/// Asks the gateway for a mapping by NAT-PMP, and has a stranger send to it.
fn mappable(asker: &Asker<'_>) -> Result<bool, LabError> {
    let failed = |error: std::io::Error| LabError::failed("probe", error);
    if !asker.server(0).is_ipv4() {
        return Ok(false);
    }
    let (socket, requests) = (asker.socket()?, asker.socket()?);
    let port = socket.local_addr().map_err(failed)?.port();
    let request = [&[0, 1, 0, 0][..], &port.to_be_bytes(), &[0, 0, 0, 0, 0, 60]].concat();
    requests.set_read_timeout(Some(asker.patience)).map_err(failed)?;
    let _ = requests.send_to(&request, (super::boxes::GATEWAY, mapper::PORT));
    let mut reply = [0; 64];
    let Ok((16, _)) = requests.recv_from(&mut reply) else { return Ok(false) };
    if reply[3] != 0 {
        return Ok(false);
    }
    // From another socket, so that nothing but the mapping opens the way; the server's fourth end sends.
    let target = [&asker.world.side(asker.side).public().octets()[..], &reply[10..12]].concat();
    socket.set_read_timeout(Some(asker.patience)).map_err(failed)?;
    for _ in 0..TRIES {
        let _ = requests.send_to(&[&[0, 0, 0, 0, 3][..], &target].concat(), asker.server(0));
        if socket.recv_from(&mut reply).is_ok() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Which of the server's TCP ports the host reaches: 443, and 9000.
///
/// # Errors
/// [`LabError::Failed`] if the host's namespace cannot be entered.
pub fn tcp(world: &World, side: usize) -> Result<BTreeSet<u16>, LabError> {
    let patience = world.round_trip() * 2 + Duration::from_millis(700);
    let server = world.hub_address(world.side(side).kind(), 0);
    world.side(side).host().run(|| {
        let reached =
            |port: &u16| TcpStream::connect_timeout(&SocketAddr::new(server, *port), patience).is_ok();
        TCP_PORTS.into_iter().filter(reached).collect()
    })
}

/// Whether the boxes of a side, rebooted, let in no more what they let in before. `None`: nothing was let in before.
///
/// # Errors
/// [`LabError::Failed`] if sockets cannot be made or the boxes not be rebooted.
pub fn forgets(world: &World, side: usize) -> Result<Option<bool>, LabError> {
    let failed = |error: std::io::Error| LabError::failed("probe", error);
    let asker = Asker { world, side, patience: world.round_trip() + Duration::from_millis(150) };
    let socket = asker.socket()?;
    let Some(seen) = asker.ask(&socket, 0, 255)? else { return Ok(None) };
    let knock = [&[0, 0, 0, 0, 0][..], &seen.ip().octets(), &seen.port().to_be_bytes()].concat();
    // Somebody else has the server send to our outside end, from the socket that we asked.
    let stranger = world.hub().run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))?.map_err(failed)?;
    let server = SocketAddr::new(world.hub_address(super::NatKind::None, 0), PORTS[0]);
    let heard = || -> Result<bool, LabError> {
        socket.set_read_timeout(Some(asker.patience)).map_err(failed)?;
        for _ in 0..TRIES {
            stranger.send_to(&knock, server).map_err(failed)?;
            if socket.recv_from(&mut [0; 64]).is_ok() {
                return Ok(true);
            }
        }
        Ok(false)
    };
    if !heard()? {
        return Ok(None);
    }
    world.reboot(side)?;
    Ok(Some(!heard()?))
}
