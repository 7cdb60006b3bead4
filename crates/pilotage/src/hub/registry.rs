//! The registry client behind the [`Directory`] trait.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pilotage_proto::crypto::Identity;
use pilotage_registry::client::{Client, ClientError, ClientTls, Registration};
use pilotage_wire::{Address, NodeId};
use serde_json::Value;

use super::{Directory, Endpoints, Entry, Found, HubError, Opener, REQUEST_TIMEOUT, Register, Registered};

struct Connection {
    client: Client,
    identity: Identity,
    /// This registry has once checked a proof: nothing less on any later connection.
    proves: Arc<AtomicBool>,
}

/// Opens connections with the registry at `HOST:PORT`, over TLS if the certificate's SHA-256 is given.
pub(crate) fn opener(registry: String, identity: Identity, pin: Option<[u8; 32]>) -> Opener {
    let tls = pin.map_or(ClientTls::Plain, ClientTls::Pinned);
    let proves = Arc::new(AtomicBool::new(false));
    Box::new(move || {
        let mut client = Client::connect_with(&registry, REQUEST_TIMEOUT, tls).map_err(explain)?;
        if proves.load(Ordering::Relaxed) {
            client.require_proof();
        }
        Ok(Box::new(Connection { client, identity: identity.clone(), proves: proves.clone() }))
    })
}

impl Directory for Connection {
    fn register(&mut self, request: &Register) -> Result<Registered, HubError> {
        let registration = Registration {
            public_key: self.identity.public_key(),
            listen_addr: request.listen_addr.clone(),
            lan_addrs: request.lan_addrs.clone(),
            hostname: request.name.clone(),
            public: request.visibility.is_public(false),
            public_abroad: request.visibility.is_public(true),
            owner: request.owner.clone(),
        };
        let identity = &self.identity;
        let done = self.client.register(&registration, &|message| identity.sign(message)).map_err(explain)?;
        self.proves.fetch_or(done.proved, Ordering::Relaxed);
        Ok(Registered {
            address: done.address,
            name: done.hostname,
            name_error: done.hostname_error,
            foreign: !done.proved,
        })
    }

    fn heartbeat(&mut self, node: NodeId) -> Result<(), HubError> {
        let identity = &self.identity;
        self.client.heartbeat(node, &|message| identity.sign(message)).map_err(explain).map(drop)
    }

    fn is_renewed(&self) -> bool {
        self.client.is_renewed()
    }

    fn lookup(&mut self, node: NodeId) -> Result<Entry, HubError> {
        let found =
            self.client.lookup(node).map_err(|error| explain_missing(error, format!("node {node}")))?;
        Ok(Entry { key: found.public_key, name: found.hostname })
    }

    fn resolve(&mut self, node: NodeId, requester: NodeId) -> Result<Endpoints, HubError> {
        let identity = &self.identity;
        let found =
            self.client.resolve(node, requester, &|message| identity.sign(message)).map_err(explain)?;
        Ok(Endpoints { public: Some(found.real_addr), lan: found.lan_addrs })
    }

    fn set_patience(&mut self, time: Duration) {
        self.client.set_timeout(time);
    }

    fn find(&mut self, node: NodeId, requester: NodeId) -> Result<Found, HubError> {
        let identity = &self.identity;
        let found = self.client.find(node, requester, &|message| identity.sign(message)).map_err(explain)?;
        let entry = found.info.map(|info| Entry { key: info.public_key, name: info.hostname });
        let endpoints = found.place.map(|at| Endpoints { public: Some(at.real_addr), lan: at.lan_addrs });
        Ok(Found {
            entry: entry.map_err(|error| explain_missing(error, format!("node {node}"))),
            endpoints: endpoints.map_err(explain),
        })
    }

    fn resolve_name(&mut self, name: &str, requester: NodeId) -> Result<Address, HubError> {
        let found = self.client.resolve_hostname(name, Some(requester));
        found.map(|found| found.address).map_err(|error| explain_missing(error, format!("name {name:?}")))
    }

    fn call(&mut self, request: &Value, signed: Option<&str>) -> Result<Value, HubError> {
        let identity = &self.identity;
        let sign = |message: &[u8]| identity.sign(message);
        let signed = signed.map(|text| (text, &sign as &dyn Fn(&[u8]) -> [u8; 64]));
        self.client.call_json(request.clone(), signed).map_err(explain)
    }
}

fn explain(error: ClientError) -> HubError {
    match error {
        ClientError::Refused { request, reason } => {
            HubError::Refused { reason: format!("{request}: {reason}") }
        }
        error if error.is_transient() => HubError::Unreachable { reason: error.to_string() },
        error => HubError::Refused { reason: error.to_string() },
    }
}

/// A registry answers a question about a node or name that it does not know, or may not show, with a refusal.
fn explain_missing(error: ClientError, what: String) -> HubError {
    match error {
        ClientError::Refused { .. } => HubError::NotFound { what },
        error => explain(error),
    }
}
