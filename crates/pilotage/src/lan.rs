//! Nodes on the same local network, by DNS-SD over multicast DNS (RFC 6762, RFC 6763; `spec/reach.md §4`).
//!
//! A node says: service `_pilotage._udp`, its port, its addresses, and in the TXT record its Pilot address, the
//! fingerprint of its key and, if it has one, its name. Nothing of that is secret and nothing of it is believed: it tells
//! where to knock. Who is there is proved by the key exchange of the tunnel, against a pin or the node id, which derives
//! from the key.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mdns_sd::{IfKind, ResolvedService, ServiceDaemon, ServiceEvent, ServiceInfo};
use pilotage_wire::{Address, NodeId};

/// The service, as RFC 6763 names it.
const SERVICE: &str = "_pilotage._udp.local.";
/// Most nodes that are remembered; further ones are not.
const MAX_FOUND: usize = 1_024;
/// Most addresses of one node.
const MAX_ENDPOINTS: usize = 8;
/// How long somebody waits for a node that has not been heard of.
pub(crate) const PATIENCE: Duration = Duration::from_secs(4);
/// How often the library looks for interfaces that came or went, in seconds.
const IP_CHECK: u32 = 2;
/// How long to wait for the farewell to be sent.
const FAREWELL: Duration = Duration::from_millis(300);

/// A node that says it is on this network. Only its key exchange proves that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LanPeer {
    /// The address that it claims.
    pub address: Address,
    /// The name that it claims.
    pub name: Option<String>,
    /// The fingerprint that it claims, `pa1…`.
    pub fingerprint: Option<String>,
    /// Where it says to be, IPv4 first.
    pub endpoints: Vec<SocketAddr>,
}

/// Why a name leads to nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotFound {
    Nobody,
    /// Several nodes claim the name, and nothing tells which of them is meant.
    Ambiguous,
}

#[derive(Debug, Default)]
struct Table {
    /// By the service's full name.
    found: Mutex<HashMap<String, LanPeer>>,
    changed: Condvar,
}

/// Announces a node and listens for others, until dropped.
pub(crate) struct Lan {
    daemon: ServiceDaemon,
    fullname: String,
    table: Arc<Table>,
    started: Instant,
}

impl std::fmt::Debug for Lan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lan").field("fullname", &self.fullname).finish_non_exhaustive()
    }
}

impl Lan {
    /// `port`: 0 for the port of multicast DNS; others are for tests.
    pub(crate) fn start(
        address: Address,
        fingerprint: &str,
        name: Option<&str>,
        local: SocketAddr,
        port: u16,
    ) -> Result<Self, String> {
        let text = |error: mdns_sd::Error| error.to_string();
        let daemon = match port {
            0 => ServiceDaemon::new(),
            port => ServiceDaemon::new_with_port(port),
        };
        let daemon = daemon.map_err(text)?;
        let (loopback, local_ip) = (local.ip().is_loopback(), local.ip().to_canonical());
        // Nobody else is on our loopback, and what is said on other interfaces is not for a node that only has that one.
        let unwanted: Vec<IfKind> = match (loopback, local_ip.is_unspecified()) {
            (false, true) => vec![IfKind::LoopbackV4, IfKind::LoopbackV6],
            _ => vec![IfKind::All],
        };
        daemon.disable_interface(unwanted).map_err(text)?;
        if !local_ip.is_unspecified() {
            daemon.enable_interface(IfKind::Addr(local_ip)).map_err(text)?;
        }
        daemon.set_ip_check_interval(IP_CHECK).map_err(text)?;
        let service = service(address, fingerprint, name, local)?;
        let fullname = service.get_fullname().to_owned();
        let events = daemon.browse(SERVICE).map_err(text)?;
        daemon.register(service).map_err(text)?;
        let table = Arc::<Table>::default();
        let (kept, own) = (table.clone(), fullname.clone());
        let listen = move || {
            // Ends with the daemon, which drops the other side.
            while let Ok(event) = events.recv() {
                kept.take(&event, &own);
            }
        };
        std::thread::Builder::new()
            .name("pilotage-lan".into())
            .spawn(listen)
            .map_err(|error| error.to_string())?;
        Ok(Self { daemon, fullname, table, started: Instant::now() })
    }

    /// The node with this id; waits for it while others may not have answered yet.
    pub(crate) fn by_node(&self, node: NodeId) -> Option<LanPeer> {
        self.wait(|found| {
            let peer = found.values().find(|peer| peer.address.node == node);
            peer.map(|peer| Ok(peer.clone())).ok_or(NotFound::Nobody)?
        })
        .ok()
    }

    /// The node with this name.
    pub(crate) fn by_name(&self, name: &str) -> Result<LanPeer, NotFound> {
        self.wait(|found| pick(found.values().filter(|peer| peer.name.as_deref() == Some(name))))
    }

    pub(crate) fn all(&self) -> Vec<LanPeer> {
        let mut all: Vec<_> = self.table.lock().values().cloned().collect();
        all.sort_by_key(|peer| peer.address.node.0);
        all
    }

    /// Says farewell. What it holds ends with it.
    pub(crate) fn close(&self) {
        if let Ok(done) = self.daemon.unregister(&self.fullname) {
            let _ = done.recv_timeout(FAREWELL);
        }
        let _ = self.daemon.shutdown();
    }

    fn wait(
        &self,
        look: impl Fn(&HashMap<String, LanPeer>) -> Result<LanPeer, NotFound>,
    ) -> Result<LanPeer, NotFound> {
        // Whoever is there has answered by now: only just after the start it is worth to wait.
        let deadline = (self.started + PATIENCE).max(Instant::now() + PATIENCE / 4);
        let mut found = self.table.lock();
        loop {
            let looked = look(&found);
            let left = deadline.saturating_duration_since(Instant::now());
            if looked != Err(NotFound::Nobody) || left.is_zero() {
                return looked;
            }
            found = self.table.changed.wait_timeout(found, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        let _ = self.daemon.shutdown();
    }
}

impl Table {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, LanPeer>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, event: &ServiceEvent, own: &str) {
        match event {
            ServiceEvent::ServiceResolved(service) if service.get_fullname() != own => {
                let peer = interpret(service);
                let mut found = self.lock();
                match peer {
                    Some(peer) if found.len() < MAX_FOUND || found.contains_key(service.get_fullname()) => {
                        found.insert(service.get_fullname().to_owned(), peer);
                    }
                    Some(_) => return,
                    None => drop(found.remove(service.get_fullname())),
                }
                drop(found);
                self.changed.notify_all();
            }
            ServiceEvent::ServiceRemoved(_, fullname) => drop(self.lock().remove(fullname)),
            _ => {}
        }
    }
}

/// What we say of ourselves.
fn service(
    address: Address,
    fingerprint: &str,
    name: Option<&str>,
    local: SocketAddr,
) -> Result<ServiceInfo, String> {
    let mut properties = vec![("v", "1"), ("k", fingerprint)];
    let claimed = address.to_string();
    properties.push(("a", &claimed));
    if let Some(name) = name {
        properties.push(("n", name));
    }
    // One name per node and process: two processes with one identity are each reached where they are.
    let instance = format!("{:08x}-{}", address.node.0, local.port());
    let host = format!("pilotage-{instance}.local.");
    let fixed =
        if local.ip().is_unspecified() { String::new() } else { local.ip().to_canonical().to_string() };
    let service =
        ServiceInfo::new(SERVICE, &instance, &host, fixed.as_str(), local.port(), properties.as_slice());
    let service = service.map_err(|error| error.to_string())?;
    Ok(if local.ip().is_unspecified() { service.enable_addr_auto() } else { service })
}

/// What another one says of itself; `None` if it does not make sense.
fn interpret(service: &ResolvedService) -> Option<LanPeer> {
    let text = |key: &str| service.get_property_val_str(key);
    let ips = service.get_addresses().iter().map(mdns_sd::ScopedIp::to_ip_addr);
    claim(text("a")?, text("n"), text("k"), ips, service.get_port())
}

fn claim(
    address: &str,
    name: Option<&str>,
    fingerprint: Option<&str>,
    ips: impl Iterator<Item = IpAddr>,
    port: u16,
) -> Option<LanPeer> {
    let address: Address = address.parse().ok()?;
    // It must be one that could have been typed.
    let name = name.filter(|name| matches!(name.parse(), Ok(crate::Peer::Name(parsed)) if parsed == *name));
    let plain = |text: &&str| text.len() <= 64 && text.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let usable = |ip: &IpAddr| match ip {
        IpAddr::V4(ip) => !ip.is_unspecified() && !ip.is_multicast() && !ip.is_broadcast(),
        // A link-local address needs a zone, which a Pilot endpoint does not have.
        IpAddr::V6(ip) => !ip.is_unspecified() && !ip.is_multicast() && !ip.is_unicast_link_local(),
    };
    let mut ips: Vec<IpAddr> = ips.filter(usable).collect();
    ips.sort_unstable();
    ips.dedup();
    ips.truncate(MAX_ENDPOINTS);
    (port != 0 && !ips.is_empty()).then(|| LanPeer {
        address,
        name: name.map(str::to_owned),
        fingerprint: fingerprint.filter(plain).map(str::to_owned),
        endpoints: ips.into_iter().map(|ip| SocketAddr::new(ip, port)).collect(),
    })
}

/// The one node among those with a name. The same node twice is one node.
fn pick<'a>(claims: impl Iterator<Item = &'a LanPeer>) -> Result<LanPeer, NotFound> {
    let mut chosen: Option<&LanPeer> = None;
    for claim in claims {
        match chosen {
            Some(other) if other.address != claim.address => return Err(NotFound::Ambiguous),
            _ => chosen = Some(claim),
        }
    }
    chosen.cloned().ok_or(NotFound::Nobody)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ips(text: &[&str]) -> Vec<IpAddr> {
        text.iter().map(|one| one.parse().expect("address")).collect()
    }

    #[test]
    fn claims_that_make_no_sense_are_dropped() {
        let all = ips(&["10.0.0.1", "fe80::1", "224.0.0.1", "2001:db8::1", "10.0.0.1", "0.0.0.0"]);
        let peer = claim("0:0000.ABCD.1234", Some("bob"), Some("pa1abc"), all.into_iter(), 9).expect("good");
        assert_eq!(peer.endpoints.len(), 2);
        assert_eq!((peer.name.as_deref(), peer.fingerprint.as_deref()), (Some("bob"), Some("pa1abc")));
        let one = || ips(&["10.0.0.1"]).into_iter();
        assert!(claim("bob", None, None, one(), 9).is_none());
        assert!(claim("0:0000.ABCD.1234", None, None, one(), 0).is_none());
        assert!(claim("0:0000.ABCD.1234", None, None, ips(&["fe80::1"]).into_iter(), 9).is_none());
        let odd = claim("0:0000.ABCD.1234", Some("Not A Name\n"), Some("x y"), one(), 9).expect("good");
        assert_eq!((odd.name, odd.fingerprint), (None, None));
        let many: Vec<IpAddr> = (1..99).map(|last| IpAddr::from([10, 0, 0, last])).collect();
        let peer = claim("0:0000.ABCD.1234", None, None, many.into_iter(), 9).expect("good");
        assert_eq!(peer.endpoints.len(), MAX_ENDPOINTS);
    }

    #[test]
    fn a_name_that_two_nodes_claim_leads_nowhere() {
        let peer = |node: u32| LanPeer {
            address: Address::new(0, node),
            name: Some("bob".into()),
            fingerprint: None,
            endpoints: Vec::new(),
        };
        assert_eq!(pick([].iter()), Err(NotFound::Nobody));
        assert_eq!(pick([peer(99), peer(99)].iter()), Ok(peer(99)));
        assert_eq!(pick([peer(99), peer(98)].iter()), Err(NotFound::Ambiguous));
    }

    #[test]
    fn the_table_is_bounded() {
        let table = Table::default();
        {
            let mut found = table.lock();
            for node in 0..MAX_FOUND as u32 {
                let peer = LanPeer {
                    address: Address::new(0, node),
                    name: None,
                    fingerprint: None,
                    endpoints: Vec::new(),
                };
                found.insert(node.to_string(), peer);
            }
        }
        let local = "10.0.0.1:9".parse().expect("address");
        let info = service(Address::new(0, 77), "pa1x", Some("bob"), local).expect("service");
        let event = ServiceEvent::ServiceResolved(Box::new(info.as_resolved_service()));
        table.take(&event, "");
        assert_eq!(table.lock().len(), MAX_FOUND);
        table.take(&ServiceEvent::ServiceRemoved(SERVICE.into(), "1".into()), "");
        table.take(&event, "");
        let found = table.lock();
        let peer = found.values().find(|peer| peer.name.as_deref() == Some("bob")).expect("found");
        assert_eq!((peer.address, peer.endpoints.as_slice()), (Address::new(0, 77), &[local][..]));
    }
}
