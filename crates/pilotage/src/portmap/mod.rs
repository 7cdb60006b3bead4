//! A port of the router for our socket: drives [`Mapper`] and, where it gets none, [`Igd`](pilotage_nat::portmap::igd::Igd) over real sockets
//! (`spec/reach.md §5`).

mod upnp;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use pilotage_nat::portmap::{MAX_MESSAGE, Mapper, Mapping};

use self::upnp::Upnp;
use crate::events::NodeEvent;
use crate::shared::{Phase, Shared};

/// How often to look whether the node still lives, and whether there is another router.
const TICK: Duration = Duration::from_millis(500);
const LOOK: Duration = Duration::from_secs(5);

/// How to find the router.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Router {
    /// The default gateway of this host.
    Gateway,
    /// This one; the port is for tests.
    At(SocketAddr),
}

/// The mapping as the thread knows it.
#[derive(Debug, Default)]
pub(crate) struct PortMapping {
    mapping: Mutex<Option<Mapping>>,
    stop: AtomicBool,
    ended: AtomicBool,
}

impl PortMapping {
    pub(crate) fn current(&self) -> Option<Mapping> {
        *self.mapping.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the port back, and waits a moment for that.
    pub(crate) fn close(&self) {
        self.stop.store(true, Ordering::Release);
        let end = Instant::now() + TICK + Duration::from_millis(200);
        while self.current().is_some() && !self.ended.load(Ordering::Acquire) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Starts the thread.
pub(crate) fn spawn(
    shared: Weak<Shared>,
    port: u16,
    router: Router,
    nonce: [u8; 12],
) -> std::io::Result<Arc<PortMapping>> {
    let told = Arc::<PortMapping>::default();
    let kept = told.clone();
    let run = move || {
        while !kept.stop.load(Ordering::Acquire) && shared.strong_count() > 0 {
            let Some((at, socket, client)) = reach(router) else {
                std::thread::sleep(TICK);
                continue;
            };
            let turn = Turn { at, socket, router, client, port, nonce };
            turn.serve(&shared, &kept);
        }
        kept.ended.store(true, Ordering::Release);
    };
    std::thread::Builder::new().name("pilotage-portmap".into()).spawn(run)?;
    Ok(told)
}

/// The router, a socket to it, and our address on the way there.
fn reach(router: Router) -> Option<(SocketAddr, UdpSocket, IpAddr)> {
    let at = match router {
        Router::At(at) => at,
        Router::Gateway => SocketAddr::new(gateway()?.into(), pilotage_nat::portmap::ROUTER_PORT),
    };
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect(at).ok()?;
    let client = socket.local_addr().ok()?.ip();
    Some((at, socket, client))
}

/// What is known while one router is spoken to.
struct Turn {
    at: SocketAddr,
    socket: UdpSocket,
    router: Router,
    client: IpAddr,
    port: u16,
    nonce: [u8; 12],
}

impl Turn {
    /// Speaks with the router until the node ends or the network is another one.
    fn serve(&self, shared: &Weak<Shared>, kept: &PortMapping) {
        let mut mapper = Mapper::new(self.at.ip(), self.client, self.port, self.nonce, Instant::now());
        let mut upnp: Option<Upnp> = None;
        let mut looked = Instant::now();
        loop {
            let stop = kept.stop.load(Ordering::Acquire) || shared.strong_count() == 0;
            if stop {
                mapper.release();
            }
            self.send(&mut mapper);
            if upnp.is_none() && mapper.has_given_up() && !stop {
                upnp = self.upnp();
            }
            let mut mapping = mapper.mapping();
            if let Some(client) = &mut upnp {
                // One port is enough: the older protocol gives its own back.
                client.turn(stop || mapping.is_some());
                mapping = mapping.or(client.mapping());
            }
            upnp = upnp.filter(|client| !client.is_done());
            tell(mapping, shared, kept);
            if stop {
                return;
            }
            if looked.elapsed() >= LOOK {
                looked = Instant::now();
                if !self.is_still_there() {
                    return tell(None, shared, kept);
                }
            }
            let due = [mapper.poll_timeout(), upnp.as_ref().and_then(Upnp::timeout)];
            let due = due.into_iter().flatten().min();
            self.receive(&mut mapper, due);
        }
    }

    fn upnp(&self) -> Option<Upnp> {
        let IpAddr::V4(client) = self.client.to_canonical() else { return None };
        let router = match self.router {
            Router::At(at) => at,
            Router::Gateway => SocketAddr::new(self.at.ip(), pilotage_nat::portmap::igd::SSDP_PORT),
        };
        let [a, b, ..] = self.nonce;
        Upnp::new(router, client, self.port, u16::from_be_bytes([a, b])).ok()
    }

    fn is_still_there(&self) -> bool {
        reach(self.router).is_some_and(|(now_at, _, client)| now_at == self.at && self.client == client)
    }

    fn send(&self, mapper: &mut Mapper) {
        let mut buf = [0; MAX_MESSAGE];
        while let Some(len) = mapper.poll_transmit(Instant::now(), &mut buf) {
            if let Err(error) = self.socket.send(&buf[..len]) {
                tracing::debug!(%error, at = %self.at, "the router cannot be asked for a port");
            }
        }
    }

    /// One answer, or none by the time that something else is due.
    fn receive(&self, mapper: &mut Mapper, due: Option<Instant>) {
        let due = due.map_or(TICK, |at| at.saturating_duration_since(Instant::now()));
        let wait = due.clamp(Duration::from_millis(1), TICK);
        let mut answer = [0; 1100];
        if self.socket.set_read_timeout(Some(wait)).is_err() {
            std::thread::sleep(wait);
        } else if let Ok(len) = self.socket.recv(&mut answer) {
            // The socket is connected: only the router's datagrams come.
            mapper.handle(Instant::now(), mapper.router(), &answer[..len]);
        } else if due > wait {
            // Nothing came, or the router's host said that nobody listens: no reason to spin.
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn tell(mapping: Option<Mapping>, shared: &Weak<Shared>, kept: &PortMapping) {
    let before =
        std::mem::replace(&mut *kept.mapping.lock().unwrap_or_else(PoisonError::into_inner), mapping);
    let external = |mapping: Option<Mapping>| mapping.map(|mapping| mapping.external);
    if external(before) == external(mapping) {
        return;
    }
    let Some(shared) = shared.upgrade() else { return };
    let mut core = shared.lock();
    if core.phase == Phase::Closed {
        return;
    }
    core.mapped = external(mapping);
    shared.tell_candidates(&mut core);
    shared.finish(core);
    shared.events.send(NodeEvent::PortMapped { external: external(mapping) });
}

/// The default gateway. (Linux tells it in a file; elsewhere it is not found, and nothing is mapped.)
fn gateway() -> Option<Ipv4Addr> {
    if cfg!(target_os = "linux") {
        parse_routes(&std::fs::read_to_string("/proc/net/route").ok()?)
    } else {
        None
    }
}

/// The gateway with the lowest metric in `/proc/net/route`: hex numbers in the host's byte order.
fn parse_routes(text: &str) -> Option<Ipv4Addr> {
    let hex = |word: &str| u32::from_str_radix(word, 16).ok();
    let routes = text.lines().skip(1).take(4_096).filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().take(8).collect();
        let [_, destination, gateway, flags, _, _, metric, mask] = words[..] else { return None };
        let (destination, gateway, flags, mask) = (hex(destination)?, hex(gateway)?, hex(flags)?, hex(mask)?);
        // Up, and by way of a gateway.
        let default = destination == 0 && mask == 0 && flags & 3 == 3 && gateway != 0;
        default.then_some((metric.parse::<u32>().ok()?, Ipv4Addr::from(gateway.to_ne_bytes())))
    });
    routes.min_by_key(|(metric, _)| *metric).map(|(_, gateway)| gateway)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn the_gateway_of_linux() {
        let head = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n";
        let routes = "eth0\t00000000\t0101A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
                      eth1\t00000000\t0100000A\t0003\t0\t0\t50\t00000000\t0\t0\t0\n\
                      eth2\t0000A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\nnonsense\n";
        assert_eq!(parse_routes(&format!("{head}{routes}")), Some(Ipv4Addr::new(10, 0, 0, 1)));
        assert_eq!(parse_routes(head), None);
        assert_eq!(parse_routes(""), None);
    }
}
