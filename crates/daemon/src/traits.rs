//! What the server needs of others: the registry, and the list of trusted nodes.

use pilotage::NodeId;
use serde_json::Value;

/// Asks the registry on behalf of our node.
pub trait RegistryCalls: Send + Sync {
    /// Sends one request; where `signed` is given, with our signature over that text. The reply comes back as it is.
    ///
    /// May block for some seconds.
    ///
    /// # Errors
    /// What went wrong, for the user: the registry's own text where it refused.
    fn call(&self, request: Value, signed: Option<&str>) -> Result<Value, String>;
}

/// A node without a registry.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoRegistry;

impl RegistryCalls for NoRegistry {
    fn call(&self, _request: Value, _signed: Option<&str>) -> Result<Value, String> {
        Err("this node has no registry; start it with --hub or --registry".into())
    }
}

/// Somebody who asked for trust.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingTrust {
    /// Who.
    pub node: NodeId,
    /// The key that it showed, if it did.
    pub public_key: Option<[u8; 32]>,
    /// Why we should.
    pub justification: String,
    /// When, in seconds since 1970.
    pub received_at: u64,
}

/// Somebody whom we trust.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustedPeer {
    /// Who.
    pub node: NodeId,
    /// Its key, if it is known.
    pub public_key: Option<[u8; 32]>,
    /// Since when, in seconds since 1970.
    pub approved_at: u64,
    /// Whether it is known to trust us.
    pub mutual: bool,
    /// The common network that the trust rests on; 0 if on a handshake.
    pub network: u16,
}

/// The list of trusted nodes. Errors are texts for the user.
pub trait TrustCalls: Send + Sync {
    /// Asks a node for trust.
    ///
    /// # Errors
    /// Why it could not be asked.
    fn request(&self, node: NodeId, justification: &str) -> Result<(), String>;
    /// Grants what a node asked for.
    ///
    /// # Errors
    /// Why not.
    fn approve(&self, node: NodeId) -> Result<(), String>;
    /// Refuses what a node asked for.
    ///
    /// # Errors
    /// Why not.
    fn reject(&self, node: NodeId, reason: &str) -> Result<(), String>;
    /// Trusts a node no longer.
    ///
    /// # Errors
    /// Why not.
    fn revoke(&self, node: NodeId) -> Result<(), String>;
    /// Who waits for an answer of ours.
    fn pending(&self) -> Vec<PendingTrust>;
    /// Whom we trust.
    fn trusted(&self) -> Vec<TrustedPeer>;
}
