//! What `up --ipc` serves with: the node's registry and its trust list behind the traits of the local socket.

use std::sync::Arc;

use pilotage::{Node, NodeId};
use pilotage_daemon::{IpcServer, NoRegistry, Options, PendingTrust, RegistryCalls, TrustCalls, TrustedPeer};
use pilotage_services::trust::Trust;
use serde_json::Value;

use super::Context;
use crate::args::UpArgs;
use crate::error::CliError;

struct Registry(Node);

impl RegistryCalls for Registry {
    fn call(&self, request: Value, signed: Option<&str>) -> Result<Value, String> {
        if self.0.hub_status().is_none() {
            return NoRegistry.call(request, signed);
        }
        self.0.registry_call(request, signed).map_err(|error| error.to_string())
    }
}

struct List(Trust);

impl TrustCalls for List {
    fn request(&self, node: NodeId, justification: &str) -> Result<(), String> {
        self.0.request(node, justification).map(drop).map_err(|error| error.to_string())
    }

    fn approve(&self, node: NodeId) -> Result<(), String> {
        self.0.approve(node).map_err(|error| error.to_string())
    }

    fn reject(&self, node: NodeId, reason: &str) -> Result<(), String> {
        self.0.reject(node, reason).map_err(|error| error.to_string())
    }

    fn revoke(&self, node: NodeId) -> Result<(), String> {
        self.0.revoke(node).map_err(|error| error.to_string())
    }

    fn pending(&self) -> Vec<PendingTrust> {
        let entries = self.0.pending().into_iter().map(|entry| PendingTrust {
            node: entry.node,
            public_key: entry.public_key,
            justification: entry.justification,
            received_at: entry.received_at,
        });
        entries.collect()
    }

    fn trusted(&self) -> Vec<TrustedPeer> {
        let entries = self.0.trusted().into_iter().map(|entry| TrustedPeer {
            node: entry.node,
            public_key: Some(entry.public_key),
            approved_at: entry.approved_at,
            mutual: entry.mutual,
            network: entry.network,
        });
        entries.collect()
    }
}

/// Somebody who asked for the socket relies on it: without it the node does not start.
pub(crate) fn serve(
    context: &Context,
    args: &UpArgs,
    node: &Node,
    trust: &Trust,
) -> Result<Option<IpcServer>, CliError> {
    let Some(path) = context.settings.ipc(args.ipc.as_deref()) else { return Ok(None) };
    let options = Options {
        registry: Some(Arc::new(Registry(node.clone()))),
        trust: Some(Arc::new(List(trust.clone()))),
        ..Options::default()
    };
    pilotage_daemon::serve(node, &path, options).map(Some).map_err(|error| {
        let text = error.to_string();
        let (cause, next) = text.split_once(" – next: ").unwrap_or((&text, "name another path with --ipc"));
        CliError::failure("local socket", cause, next)
    })
}
