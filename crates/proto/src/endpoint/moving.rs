//! A registry calls us something else (spec/trust.md §6.1).

use std::time::Instant;

use pilotage_wire::Address;

use super::Endpoint;
use crate::connection::Connection;

impl Endpoint {
    /// Takes another address although tunnels exist. They end with everything in them, and without a word to the peers,
    /// who know us by the old address; what was introduced has to be introduced again.
    ///
    /// Only for a registry that has forgotten who we were: from now on nobody is reached under the old address.
    pub fn replace_local_address(&mut self, now: Instant, address: Address) {
        if address == self.local {
            return;
        }
        for index in 0..self.tunnels.len() as u32 {
            self.drop_tunnel(now, index);
        }
        self.by_node.clear();
        self.lookups.clear();
        self.set_gate(self.gate.is_closed());
        self.local = address;
        if let Some(secure) = &mut self.secure {
            secure.set_address(address);
            secure.lives_since = now;
        }
        self.beacon.set_node(address.node, now);
    }

    fn drop_tunnel(&mut self, now: Instant, index: u32) {
        self.drop_streams(index, now);
        let Some((tunnel, _)) = split!(self, index, now) else { return };
        let crate::tunnel::Tunnel { slots, path, .. } = tunnel;
        slots.for_each(|c| c.reset(path));
        slots.touch_all();
        // Tells the owners of the connections.
        self.settle(index, now);
        let Some(tunnel) = self.tunnel_mut(index) else { return };
        let ids: Vec<_> = tunnel.slots.iter().map(|c: &Connection| c.id).collect();
        for id in ids {
            if let Some((index, slot)) = self.place(id) {
                self.forget(index, slot, now);
            }
        }
        if let Some(mut tunnel) = self.tunnels[index as usize].take() {
            tunnel.close_s1(&mut self.secure);
            self.timers.remove(&mut tunnel.registered);
        }
        self.free_tunnels.push(index);
    }
}
