//! The addresses of our interfaces, and what follows when they change or the host slept.
//!
//! Linux tells of changes; then a look follows within some milliseconds, before a sender whose acknowledgements went to the
//! old address has stopped. Elsewhere, and where that cannot be had, they are looked at five times a second.

#[cfg(target_os = "linux")]
mod netlink;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crate::events::NodeEvent;
use crate::hub::Hub;
use crate::shared::{Phase, Shared};

/// How often to look where nobody tells, and to see whether the node still lives.
const EVERY: Duration = Duration::from_millis(200);
/// How often to look although nothing was told.
const ANYWAY: Duration = Duration::from_secs(1);
/// Nobody: addresses for which routes are asked for, and to which nothing is sent (RFC 5737, RFC 3849).
const SOMEWHERE: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))];
/// The running clock went on so much further than the monotonic one, which stands still while the host sleeps.
const SLEPT: Duration = Duration::from_secs(5);
/// Most addresses that are told.
pub(crate) const MAX_ADDRESSES: usize = 16;

/// Starts the thread. It ends within a fifth of a second of the node. A node bound to the loopback has nothing to watch.
pub(crate) fn spawn(weak: Weak<Shared>, hub: Option<Arc<Hub>>, local: SocketAddr) -> std::io::Result<()> {
    if local.ip().is_loopback() {
        return Ok(());
    }
    let run = move || {
        let mut watch = Watch::new(local);
        let teller = Teller::new();
        loop {
            let (seen, clocks) = (Seen::now(local), Clocks::now());
            let Some(shared) = weak.upgrade() else { return };
            let (news, slept) = watch.look(seen, clocks);
            if !slept.is_zero() {
                shared.lock().endpoint.slept(slept);
            }
            if news != News::None && !tell(&shared, watch.candidates.clone(), news) {
                return;
            }
            if let Some(hub) = hub.as_ref().filter(|_| !matches!(news, News::None | News::First)) {
                hub.forget_connections();
            }
            drop(shared);
            teller.wait(&clocks, &weak);
        }
    };
    std::thread::Builder::new().name("pilotage-ifwatch".into()).spawn(run).map(drop)
}

/// Who says when to look again.
struct Teller {
    #[cfg(target_os = "linux")]
    changes: Option<netlink::Changes>,
}

impl Teller {
    fn new() -> Self {
        Self {
            #[cfg(target_os = "linux")]
            changes: netlink::Changes::listen()
                .inspect_err(|error| tracing::debug!(%error, "nobody tells of changed addresses"))
                .ok(),
        }
    }

    /// Waits until there is a reason to look again, or the node is gone.
    fn wait(&self, looked: &Clocks, shared: &Weak<Shared>) {
        #[cfg(target_os = "linux")]
        if let Some(changes) = &self.changes {
            while shared.strong_count() > 0 && !changes.wait(EVERY) {
                let now = Clocks::now();
                let rested = now.monotonic.saturating_duration_since(looked.monotonic) >= ANYWAY;
                if rested || !now.slept_since(looked).is_zero() {
                    return;
                }
            }
            return;
        }
        let _ = (looked, shared);
        std::thread::sleep(EVERY);
    }
}

/// What is seen of the network at one time.
#[derive(Debug, Clone)]
struct Seen {
    /// `None` if they could not be read.
    addresses: Option<Vec<IpAddr>>,
    /// From where datagrams to the world leave, by both versions of IP: another default route is another network, also
    /// if all addresses stay.
    sources: [Option<IpAddr>; 2],
}

impl Seen {
    fn now(local: SocketAddr) -> Self {
        let sources = if local.ip().is_unspecified() { SOMEWHERE.map(source_towards) } else { [None; 2] };
        Self { addresses: own_addresses(), sources }
    }
}

/// The address that the host would send from. A connected UDP socket tells it; nothing is sent.
fn source_towards(to: IpAddr) -> Option<IpAddr> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect((to, 9)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// What a look found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum News {
    None,
    /// The first look.
    First,
    /// Addresses came or went.
    Changed,
    /// The host slept: NATs and peers may have forgotten us.
    Woke,
}

#[derive(Debug, Clone, Copy)]
struct Clocks {
    monotonic: Instant,
    running: Duration,
}

impl Clocks {
    fn now() -> Self {
        Self { monotonic: Instant::now(), running: running() }
    }

    /// How long the host slept since; nothing if it was too short to tell.
    fn slept_since(&self, before: &Self) -> Duration {
        let awake = self.monotonic.saturating_duration_since(before.monotonic);
        let slept = self.running.saturating_sub(before.running).saturating_sub(awake);
        if slept > SLEPT { slept } else { Duration::ZERO }
    }
}

/// A clock that goes on while the host sleeps. Linux has one that nobody can set.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn running() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(time.tv_sec.try_into().unwrap_or(0), time.tv_nsec.try_into().unwrap_or(0))
}

/// Elsewhere it is the wall clock: who sets it forward is believed to have slept.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn running() -> Duration {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default()
}

struct Watch {
    local: SocketAddr,
    candidates: Vec<SocketAddr>,
    sources: [Option<IpAddr>; 2],
    last: Option<Clocks>,
}

impl Watch {
    fn new(local: SocketAddr) -> Self {
        Self { local, candidates: Vec::new(), sources: [None; 2], last: None }
    }

    /// Addresses that could not be read are not known, and nothing changes. With how long the host slept.
    fn look(&mut self, seen: Seen, clocks: Clocks) -> (News, Duration) {
        let last = self.last.replace(clocks);
        let slept = last.map(|last| clocks.slept_since(&last)).unwrap_or_default();
        let candidates = seen.addresses.map(|addresses| candidates(addresses, self.local));
        let mut changed = candidates.as_ref().is_some_and(|candidates| *candidates != self.candidates);
        if candidates.is_some() {
            changed |= std::mem::replace(&mut self.sources, seen.sources) != seen.sources;
        }
        if let Some(candidates) = candidates {
            self.candidates = candidates;
        }
        let news = match last {
            None => News::First,
            Some(_) if changed => News::Changed,
            Some(_) if !slept.is_zero() => News::Woke,
            Some(_) => News::None,
        };
        (news, slept)
    }
}

fn own_addresses() -> Option<Vec<IpAddr>> {
    match if_addrs::get_if_addrs() {
        Ok(found) => Some(found.iter().filter(|one| one.is_oper_up()).map(|one| one.ip()).collect()),
        Err(error) => {
            tracing::debug!(%error, "the addresses of our interfaces are not known");
            None
        }
    }
}

/// Where others in our networks can reach the socket, in an order that does not change by itself.
fn candidates(addresses: Vec<IpAddr>, local: SocketAddr) -> Vec<SocketAddr> {
    let bound = local.ip();
    let usable = |ip: &IpAddr| {
        let family = ip.is_ipv4() || local.is_ipv6();
        let link_local = match ip {
            IpAddr::V4(ip) => ip.is_link_local(),
            // It would need a zone, which means nothing to others.
            IpAddr::V6(ip) => ip.is_unicast_link_local(),
        };
        family && !ip.is_loopback() && !ip.is_unspecified() && !ip.is_multicast() && !link_local
    };
    let mut found: Vec<IpAddr> = match bound.is_unspecified() {
        true => addresses.into_iter().filter(usable).collect(),
        // While the address is away nobody reaches us.
        false => addresses.into_iter().filter(|ip| *ip == bound.to_canonical()).collect(),
    };
    found.sort_unstable();
    found.dedup();
    found.truncate(MAX_ADDRESSES);
    found.into_iter().map(|ip| SocketAddr::new(ip, local.port())).collect()
}

/// Tells the node; false once it is closed.
fn tell(shared: &Shared, candidates: Vec<SocketAddr>, news: News) -> bool {
    let mut core = shared.lock();
    if core.phase == Phase::Closed {
        return false;
    }
    core.candidates = candidates.clone();
    shared.tell_candidates(&mut core);
    if news != News::First {
        core.endpoint.network_changed(Instant::now());
    }
    shared.finish(core);
    if news == News::First {
        return true;
    }
    if let Some(carrier) = &shared.carrier {
        carrier.network_changed();
    }
    tracing::info!(?candidates, ?news, "the network changed");
    shared.events.send(NodeEvent::NetworkChanged { addresses: candidates, woke: news == News::Woke });
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ips(text: &[&str]) -> Vec<IpAddr> {
        text.iter().map(|one| one.parse().expect("address")).collect()
    }

    fn shown(addresses: &[&str], local: &str) -> Vec<String> {
        let local = local.parse().expect("address");
        candidates(ips(addresses), local).iter().map(SocketAddr::to_string).collect()
    }

    #[test]
    fn addresses_that_others_can_use() {
        let all = ["127.0.0.1", "192.0.2.1", "10.0.0.1", "169.254.1.1", "::1", "fe80::1", "2001:db8::1"];
        assert_eq!(shown(&all, "0.0.0.0:9"), ["10.0.0.1:9", "192.0.2.1:9"]);
        assert_eq!(shown(&all, "[::]:9"), ["10.0.0.1:9", "192.0.2.1:9", "[2001:db8::1]:9"]);
        assert_eq!(shown(&all, "10.0.0.1:9"), ["10.0.0.1:9"]);
        assert!(shown(&all, "10.0.0.2:9").is_empty());
        let many: Vec<String> = (0..100).map(|n| format!("10.0.0.{n}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(shown(&many, "0.0.0.0:9").len(), MAX_ADDRESSES);
    }

    #[test]
    fn changes_and_sleep_are_noticed() {
        let mut watch = Watch::new("0.0.0.0:9".parse().expect("address"));
        let start = Clocks::now();
        let seconds = Duration::from_secs;
        let at = |mono, running| Clocks {
            monotonic: start.monotonic + seconds(mono),
            running: start.running + seconds(running),
        };
        let awake = Duration::ZERO;
        let seen = |addresses: Option<&[&str]>, source: Option<&str>| Seen {
            addresses: addresses.map(ips),
            sources: [source.map(|ip| ip.parse().expect("address")), None],
        };
        let one = |ip| seen(Some(&[ip]), Some(ip));
        assert_eq!(watch.look(one("10.0.0.1"), start), (News::First, awake));
        assert_eq!(watch.look(one("10.0.0.1"), at(1, 1)), (News::None, awake));
        assert_eq!(watch.look(seen(None, None), at(2, 2)), (News::None, awake), "not known is not gone");
        assert_eq!(watch.look(one("10.0.0.2"), at(3, 3)), (News::Changed, awake));
        assert_eq!(watch.look(one("10.0.0.2"), at(4, 3600)), (News::Woke, seconds(3596)));
        assert_eq!(watch.look(one("10.0.0.2"), at(5, 10)), (News::None, awake), "the clock was set back");
        assert_eq!(
            watch.look(seen(Some(&["10.0.0.2"]), None), at(6, 11)),
            (News::Changed, awake),
            "no route"
        );
        assert_eq!(watch.look(one("10.0.0.2"), at(7, 111)), (News::Changed, seconds(99)), "both");
        assert_eq!(watch.look(seen(Some(&[]), None), at(8, 112)), (News::Changed, awake));
    }
}
