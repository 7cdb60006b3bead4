//! The names that a server knows. Pure: time comes in as an argument.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use pilotage_wire::{Address, NetworkId, NodeId};

use super::wire::{MAX_PROVIDERS, Provider, Reply, Request};

/// How long a record lives after it was registered the last time.
pub const LIFE: Duration = Duration::from_secs(300);

/// Records at a time.
pub const MAX_RECORDS: usize = 4096;

/// Records of one node at a time.
pub const MAX_PER_NODE: usize = 64;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Address(String),
    Network(String),
    Service { network: NetworkId, port: u16, name: String, node: NodeId },
}

#[derive(Debug, Clone, Copy)]
enum Value {
    Address(Address),
    Network(NetworkId),
}

#[derive(Debug)]
struct Record {
    value: Value,
    /// Who registered it; nobody else changes it while it lives.
    owner: NodeId,
    until: Instant,
}

/// All records.
#[derive(Debug, Default)]
pub struct Table {
    records: BTreeMap<Key, Record>,
}

impl Table {
    /// Answers a request that comes from `peer`, the address that the tunnel proved.
    pub fn answer(&mut self, peer: Address, request: &Request, now: Instant) -> Reply {
        self.records.retain(|_, record| record.until > now);
        match request {
            Request::QueryAddress(name) => match self.value(Key::Address(name.clone())) {
                Some(Value::Address(address)) => Reply::Address { name: name.clone(), address },
                _ => not_found(name),
            },
            Request::QueryNetwork(name) => match self.value(Key::Network(name.clone())) {
                Some(Value::Network(network)) => Reply::Network { name: name.clone(), network },
                _ => not_found(name),
            },
            Request::QueryService { network, port } => Reply::Services(self.providers(*network, *port)),
            Request::RegisterAddress { name, address } => {
                self.register_own(peer, Key::Address(name.clone()), *address, now)
            }
            Request::RegisterNetwork { name, network } => {
                self.register(peer.node, Key::Network(name.clone()), Value::Network(*network), now)
            }
            Request::RegisterService { provider, network } => {
                let key = Key::Service {
                    network: *network,
                    port: provider.port,
                    name: provider.name.clone(),
                    node: provider.address.node,
                };
                self.register_own(peer, key, provider.address, now)
            }
        }
    }

    /// Records now, those included that have ended since the last request.
    #[must_use]
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Only the node that is named may register an address.
    fn register_own(&mut self, peer: Address, key: Key, address: Address, now: Instant) -> Reply {
        if address.node != peer.node {
            return Reply::Error("an address can only be registered by the node that has it".into());
        }
        self.register(peer.node, key, Value::Address(address), now)
    }

    fn register(&mut self, owner: NodeId, key: Key, value: Value, now: Instant) -> Reply {
        match self.records.get(&key) {
            Some(record) if record.owner != owner => {
                return Reply::Error("the name is taken".into());
            }
            Some(_) => {}
            None if self.records.len() >= MAX_RECORDS => {
                return Reply::Error("the nameserver is full".into());
            }
            None if self.records.values().filter(|record| record.owner == owner).count() >= MAX_PER_NODE => {
                return Reply::Error("a node can have 64 records".into());
            }
            None => {}
        }
        self.records.insert(key, Record { value, owner, until: now + LIFE });
        Reply::Ok
    }

    fn value(&self, key: Key) -> Option<Value> {
        self.records.get(&key).map(|record| record.value)
    }

    fn providers(&self, network: NetworkId, port: u16) -> Vec<Provider> {
        let begin = Key::Service { network, port, name: String::new(), node: NodeId(0) };
        let those = self.records.range(begin..).map_while(|(key, record)| match (key, record.value) {
            (Key::Service { network: n, port: p, name, .. }, Value::Address(address))
                if (*n, *p) == (network, port) =>
            {
                Some(Provider { name: name.clone(), address, port })
            }
            _ => None,
        });
        those.take(MAX_PROVIDERS).collect()
    }
}

fn not_found(name: &str) -> Reply {
    Reply::Error(format!("name {name:?} not found"))
}
