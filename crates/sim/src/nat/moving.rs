//! Hosts that get another address inside their site, as the laboratory's hosts do, and boxes that forget.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::NatWorld;
use super::world::PORT;

impl NatWorld {
    /// A host gets another address of its site and loses the old one; its boxes stay. What it has handed to the network
    /// still leaves, what comes for the old address is lost. Its endpoint does not know before [`Self::notice_move`].
    pub fn roam_host(&mut self, id: usize) {
        let host = &mut self.hosts[id];
        let IpAddr::V4(ip) = host.addr.ip() else { return };
        let [a, b, c, d] = ip.octets();
        host.left = Some(host.addr.ip());
        // Far from what other hosts have.
        let next = if d >= 230 { d - 200 } else { d + 20 };
        host.addr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(a, b, c, next)), PORT);
    }

    /// The watcher of interfaces tells the endpoint.
    pub fn notice_move(&mut self, id: usize) {
        self.tell_node(id);
        let now = self.now;
        self.hosts[id].endpoint.network_changed(now);
    }
}
