//! What the keeper asks the hub about peers: who they are, and where.

use std::net::SocketAddr;
use std::time::Instant;

use pilotage_proto::PeerConfig;
use pilotage_wire::{Address, NodeId};

use super::Keeper;
use crate::hub::{Entry, Hub, HubError};
use crate::lookup::{Lookup, Verdict, judge_by_hub};
use crate::resolve::choose;

impl Keeper {
    pub(super) fn look_up(&mut self, lookup: Lookup) {
        let Some(hub) = &self.hub else {
            return;
        };
        let (mut verdict, mut endpoint) = (Verdict::Ignore, None);
        if lookup.relayed && !hub.is_foreign() {
            // Where it is, too, in the same round trip.
            (verdict, endpoint) = self.find(hub, &lookup);
        } else if !hub.is_foreign() || self.strangers.take(Instant::now()) {
            verdict = self.judge(&lookup, hub.ask(|directory| directory.lookup(lookup.node)));
            if lookup.relayed && matches!(verdict, Verdict::Accept(_)) {
                endpoint = self.find_endpoint(hub, lookup.node);
            }
        }
        if let Some(shared) = self.shared.upgrade() {
            let mut core = shared.lock();
            shared.answer(&mut core, &lookup, &verdict, endpoint);
            shared.finish(core);
        }
    }

    /// What the hub says of a peer that came by the relay, and where that is.
    fn find(&self, hub: &Hub, lookup: &Lookup) -> (Verdict, Option<SocketAddr>) {
        let about = self.shared.upgrade().map(|shared| {
            let core = shared.lock();
            (core.endpoint.local_address().node, core.observed_address())
        });
        let Some((us, observed)) = about else { return (Verdict::Ignore, None) };
        match hub.ask(|directory| directory.find(lookup.node, us)) {
            Ok(found) => {
                let endpoint = found.endpoints.ok().and_then(|at| choose(&at, observed, &hub.lan()));
                let verdict = self.judge(lookup, found.entry);
                let endpoint = endpoint.filter(|_| matches!(verdict, Verdict::Accept(_)));
                (verdict, endpoint)
            }
            Err(error) => (self.judge(lookup, Err(error)), None),
        }
    }

    /// By the hub; where it does not answer, by the record of an agent that was met before.
    fn judge(&self, lookup: &Lookup, answer: Result<Entry, HubError>) -> Verdict {
        let silent = matches!(&answer, Err(error) if error.is_unreachable());
        let address = Address { node: lookup.node, ..Address::default() };
        let acquaintances = self.shared.upgrade().and_then(|shared| shared.acquaintances.get().cloned());
        let Some(acquaintances) = acquaintances else { return judge_by_hub(lookup, answer) };
        if silent {
            let known = acquaintances.caller(address).map(|known| known.key);
            let known = known.filter(|key| lookup.key.is_none() || lookup.key == Some(*key));
            return known.map_or_else(|| judge_by_hub(lookup, answer), Verdict::Accept);
        }
        let verdict = judge_by_hub(lookup, answer);
        if matches!(verdict, Verdict::Accept(_)) {
            acquaintances.met(address);
        }
        verdict
    }

    /// Where the hub sees a node; `None` if it does not say.
    fn find_endpoint(&self, hub: &Hub, node: NodeId) -> Option<SocketAddr> {
        let (us, observed) = self.shared.upgrade().map(|shared| {
            let core = shared.lock();
            (core.endpoint.local_address().node, core.observed_address())
        })?;
        let found = hub.ask(|directory| directory.resolve(node, us)).ok()?;
        choose(&found, observed, &hub.lan())
    }
}

impl Keeper {
    /// Tells the endpoint where the hub sees a peer now.
    pub(super) fn locate(&self, address: Address) {
        let Some(hub) = &self.hub else {
            return;
        };
        let Some((us, observed, tunnel)) = self.shared.upgrade().and_then(|shared| {
            let core = shared.lock();
            let tunnel = core.endpoint.peer(address.node)?;
            Some((core.endpoint.local_address().node, core.observed_address(), tunnel))
        }) else {
            return;
        };
        let found = match hub.ask(|directory| directory.resolve(address.node, us)) {
            Ok(found) => found,
            Err(error) => {
                if !error.is_unreachable() {
                    self.mailbox.doubt_hub();
                }
                return;
            }
        };
        let config = PeerConfig {
            address,
            key: tunnel.key,
            endpoint: choose(&found, observed, &hub.lan()),
            policy: self.policies.get(&address.node).copied().unwrap_or_default(),
            prekey: None,
        };
        if let Some(shared) = self.shared.upgrade() {
            let mut core = shared.lock();
            let config = crate::secure::remembered(&core.endpoint, &shared.book(), config);
            if let Err(error) = core.endpoint.add_peer(Instant::now(), config) {
                tracing::debug!(%error, %address, "peer not moved");
            }
            shared.finish(core);
        }
    }
}
