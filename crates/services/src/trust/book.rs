//! Who trusts whom: the state and every decision, without IO and clock.
//!
//! A method says what is to be done in [`Act`]s, which the caller carries out once the new state is stored.

use std::collections::BTreeMap;

use pilotage_wire::NodeId;

use super::message::{Kind, cut};

/// Requests of others that wait for an answer (draft-01 facts §14).
pub const MAX_PENDING: usize = 256;
/// Own requests that wait for an answer.
pub const MAX_OUTGOING: usize = 256;
/// Trusted nodes.
pub const MAX_TRUSTED: usize = 10_000;

/// A node that we trust.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trusted {
    /// Which.
    pub node: NodeId,
    /// Its Ed25519 key: another key under this id is somebody else.
    pub public_key: [u8; 32],
    /// Since when, in seconds since 1970.
    pub approved_at: u64,
    /// Whether both sides have asked for it.
    pub mutual: bool,
    /// The network that both are in, if that was the reason; else 0.
    pub network: u16,
}

/// A request that waits for our answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    /// Who asks.
    pub node: NodeId,
    /// Its Ed25519 key; `None` if the registry relayed the request and could not name it.
    pub public_key: Option<[u8; 32]>,
    /// Why, in its words: at most 512 bytes.
    pub justification: String,
    /// When it came, in seconds since 1970.
    pub received_at: u64,
}

/// A request of ours that waits for an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// Whom we asked.
    pub node: NodeId,
    /// The key that it had then, if we knew one.
    pub public_key: Option<[u8; 32]>,
    /// Why.
    pub justification: String,
    /// When, in seconds since 1970.
    pub sent_at: u64,
    /// The peer said no. It may still say yes: its no to an earlier request may come late, by the registry.
    pub rejected: bool,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Act {
    /// Tell the peer, on port 444, if it can be reached.
    Tell { to: NodeId, kind: Kind, reason: String },
    /// Answer through the registry.
    Respond { to: NodeId, accept: bool },
    /// Have the registry note that we trust the peer.
    Report { with: NodeId },
    /// Have the registry forget that we did.
    Forget { with: NodeId },
    /// End all streams with it.
    Dismiss { node: NodeId },
}

/// Why nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// There is no request of this node.
    #[error("no request of this node waits for an answer")]
    NotPending,
    /// This node is not trusted.
    #[error("this node is not trusted")]
    NotTrusted,
    /// The node presents another key than the one that we know it by.
    #[error("it has another key than before")]
    OtherKey,
    /// An answer without a question: anybody could send it.
    #[error("it answers what we never asked, or what was answered before")]
    NotAsked,
    /// The list concerned is full.
    #[error("the list is full")]
    Full,
    /// The key of the node is not known, so there is nothing to trust.
    #[error("its key is not known")]
    NoKey,
    /// That is ourselves.
    #[error("that is this node itself")]
    Ourselves,
}

/// A request as it came in.
#[derive(Debug, Clone)]
pub(crate) struct Incoming {
    pub(crate) node: NodeId,
    pub(crate) key: Option<[u8; 32]>,
    pub(crate) justification: String,
    /// It came by the registry, and the answer has to go there, too.
    pub(crate) relayed: bool,
    /// A network other than the backbone that both are in.
    pub(crate) network: Option<u16>,
}

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It waits for the operator.
    Waits,
    /// Both sides trust each other.
    Trusted(Vec<Act>),
}

/// The state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Book {
    pub(crate) trusted: BTreeMap<NodeId, Trusted>,
    pub(crate) pending: BTreeMap<NodeId, Pending>,
    pub(crate) outgoing: BTreeMap<NodeId, Outgoing>,
}

impl Book {
    /// The key that we trust this node by.
    pub(crate) fn key_of(&self, node: NodeId) -> Option<[u8; 32]> {
        self.trusted.get(&node).map(|trusted| trusted.public_key)
    }

    /// Somebody asks to be trusted.
    pub(crate) fn on_request(&mut self, now: u64, incoming: Incoming) -> Result<Outcome, Refusal> {
        let Incoming { node, key, justification, relayed, network } = incoming;
        if let Some(known) = self.key_of(node) {
            // A relayed request names no key: then the one that the registry names now was asked for.
            return match key {
                Some(key) if key == known => Ok(Outcome::Trusted(agree(node, relayed))),
                Some(_) => Err(Refusal::OtherKey),
                None => Err(Refusal::NoKey),
            };
        }
        let asked = self.outgoing.get(&node).filter(|asked| !asked.rejected);
        if let (Some(key), Some(asked)) = (key, asked) {
            if asked.public_key.is_some_and(|expected| expected != key) {
                return Err(Refusal::OtherKey);
            }
            self.trust(now, node, key, true, 0)?;
            return Ok(Outcome::Trusted(agree(node, relayed)));
        }
        if let (Some(key), Some(network)) = (key, network) {
            self.trust(now, node, key, false, network)?;
            return Ok(Outcome::Trusted(agree(node, relayed)));
        }
        match self.pending.get(&node) {
            // Who asks again may say it better, but not in another's place.
            Some(old) if old.public_key.is_some() && key.is_some() && old.public_key != key => {
                return Err(Refusal::OtherKey);
            }
            None if self.pending.len() >= MAX_PENDING => return Err(Refusal::Full),
            _ => {}
        }
        let public_key = key.or(self.pending.get(&node).and_then(|old| old.public_key));
        let pending = Pending { node, public_key, justification: cut(justification), received_at: now };
        self.pending.insert(node, pending);
        Ok(Outcome::Waits)
    }

    /// Somebody says that it trusts us. Only who was asked may say so: the reference believes it of anybody.
    /// The acts, unless that was known.
    pub(crate) fn on_accept(
        &mut self,
        now: u64,
        node: NodeId,
        key: Option<[u8; 32]>,
    ) -> Result<Option<Vec<Act>>, Refusal> {
        if let Some(trusted) = self.trusted.get_mut(&node) {
            if key != Some(trusted.public_key) {
                return Err(Refusal::OtherKey);
            }
            trusted.mutual = true;
            self.outgoing.remove(&node);
            return Ok(None);
        }
        let asked = self.outgoing.get(&node).ok_or(Refusal::NotAsked)?;
        let key = key.ok_or(Refusal::NoKey)?;
        if asked.public_key.is_some_and(|expected| expected != key) {
            return Err(Refusal::OtherKey);
        }
        self.trust(now, node, key, true, 0)?;
        Ok(Some(vec![Act::Report { with: node }]))
    }

    /// Somebody does not want to trust us.
    pub(crate) fn on_reject(&mut self, node: NodeId) -> Result<(), Refusal> {
        let asked = self.outgoing.get_mut(&node).filter(|asked| !asked.rejected);
        asked.map(|asked| asked.rejected = true).ok_or(Refusal::NotAsked)
    }

    /// Somebody trusts us no more, and so we do not trust it either.
    pub(crate) fn on_revoke(&mut self, node: NodeId, key: [u8; 32]) -> Result<Vec<Act>, Refusal> {
        match self.key_of(node) {
            None => Err(Refusal::NotTrusted),
            Some(known) if known != key => Err(Refusal::OtherKey),
            Some(_) => {
                self.trusted.remove(&node);
                Ok(vec![Act::Dismiss { node }, Act::Forget { with: node }])
            }
        }
    }

    /// We ask somebody. True if it asked us before, so that both are agreed now.
    pub(crate) fn request(
        &mut self,
        now: u64,
        node: NodeId,
        key: Option<[u8; 32]>,
        justification: &str,
    ) -> Result<Option<Vec<Act>>, Refusal> {
        if self.pending.contains_key(&node) {
            let acts = self.approve(now, node, key)?;
            if let Some(trusted) = self.trusted.get_mut(&node) {
                trusted.mutual = true;
            }
            return Ok(Some(acts));
        }
        if self.trusted.contains_key(&node) {
            // The peer may have lost what it knew; it will answer.
            return Ok(None);
        }
        if self.outgoing.len() >= MAX_OUTGOING && !self.outgoing.contains_key(&node) {
            let rejected = self.outgoing.values().filter(|asked| asked.rejected);
            let oldest = rejected.min_by_key(|asked| asked.sent_at).map(|asked| asked.node);
            self.outgoing.remove(&oldest.ok_or(Refusal::Full)?);
        }
        let justification = justification.to_owned();
        let asked = Outgoing { node, public_key: key, justification, sent_at: now, rejected: false };
        self.outgoing.insert(node, asked);
        Ok(None)
    }

    /// The operator says yes. `key`: the registry's word, where the request came without.
    pub(crate) fn approve(
        &mut self,
        now: u64,
        node: NodeId,
        key: Option<[u8; 32]>,
    ) -> Result<Vec<Act>, Refusal> {
        let pending = self.pending.get(&node).ok_or(Refusal::NotPending)?;
        let key = pending.public_key.or(key).ok_or(Refusal::NoKey)?;
        self.trust(now, node, key, false, 0)?;
        Ok(agree(node, true))
    }

    /// The operator says no.
    pub(crate) fn reject(&mut self, node: NodeId, reason: &str) -> Result<Vec<Act>, Refusal> {
        self.pending.remove(&node).ok_or(Refusal::NotPending)?;
        let reason = reason.to_owned();
        Ok(vec![Act::Tell { to: node, kind: Kind::Reject, reason }, Act::Respond { to: node, accept: false }])
    }

    /// The operator says no more.
    pub(crate) fn revoke(&mut self, node: NodeId) -> Result<Vec<Act>, Refusal> {
        let asked = self.outgoing.remove(&node).is_some_and(|asked| !asked.rejected);
        if self.trusted.remove(&node).is_none() {
            return if asked { Ok(Vec::new()) } else { Err(Refusal::NotTrusted) };
        }
        let reason = "trust revoked".to_owned();
        Ok(vec![
            Act::Dismiss { node },
            Act::Forget { with: node },
            Act::Tell { to: node, kind: Kind::Revoke, reason },
        ])
    }

    /// What the registry has to be told after it may have forgotten us.
    pub(crate) fn reports(&self) -> Vec<Act> {
        self.trusted.keys().map(|node| Act::Report { with: *node }).collect()
    }

    fn trust(
        &mut self,
        now: u64,
        node: NodeId,
        public_key: [u8; 32],
        mutual: bool,
        network: u16,
    ) -> Result<(), Refusal> {
        if self.trusted.len() >= MAX_TRUSTED && !self.trusted.contains_key(&node) {
            return Err(Refusal::Full);
        }
        self.outgoing.remove(&node);
        self.pending.remove(&node);
        self.trusted.insert(node, Trusted { node, public_key, approved_at: now, mutual, network });
        Ok(())
    }
}

/// Tells a peer, and the registry, that we trust it.
fn agree(node: NodeId, relayed: bool) -> Vec<Act> {
    let mut acts = vec![Act::Report { with: node }];
    if relayed {
        acts.push(Act::Respond { to: node, accept: true });
    }
    acts.push(Act::Tell { to: node, kind: Kind::Accept, reason: String::new() });
    acts
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: [u8; 32] = [7; 32];
    const OTHER: [u8; 32] = [8; 32];
    const PEER: NodeId = NodeId(5);

    fn incoming(node: u32, key: Option<[u8; 32]>) -> Incoming {
        Incoming { node: NodeId(node), key, justification: "why".into(), relayed: false, network: None }
    }

    fn accept_of(acts: &[Act]) -> bool {
        acts.iter().any(|act| matches!(act, Act::Tell { kind: Kind::Accept, .. }))
    }

    #[test]
    fn a_request_waits_until_the_operator_answers() {
        let mut book = Book::default();
        assert_eq!(book.on_request(1, incoming(5, Some(KEY))), Ok(Outcome::Waits));
        assert_eq!(book.on_request(2, incoming(5, Some(KEY))), Ok(Outcome::Waits), "asked again");
        assert_eq!(book.on_request(2, incoming(5, Some(OTHER))), Err(Refusal::OtherKey));
        assert_eq!(book.pending.len(), 1);
        let acts = book.approve(3, PEER, None).expect("asked");
        assert!(accept_of(&acts) && acts.contains(&Act::Respond { to: PEER, accept: true }));
        assert!(acts.contains(&Act::Report { with: PEER }));
        assert_eq!(book.key_of(PEER), Some(KEY));
        assert_eq!(book.approve(3, PEER, None), Err(Refusal::NotPending));
        assert_eq!(book.on_request(4, incoming(6, Some(KEY))), Ok(Outcome::Waits));
        let acts = book.reject(NodeId(6), "no").expect("asked");
        assert!(acts.contains(&Act::Respond { to: NodeId(6), accept: false }));
        assert!(book.pending.is_empty() && book.key_of(NodeId(6)).is_none());
    }

    #[test]
    fn a_trusted_node_that_asks_again_is_told_again_but_only_with_its_key() {
        let mut book = Book::default();
        book.on_request(1, incoming(5, Some(KEY))).expect("waits");
        book.approve(1, PEER, None).expect("asked");
        let Ok(Outcome::Trusted(acts)) = book.on_request(2, incoming(5, Some(KEY))) else {
            panic!("trusted")
        };
        assert!(accept_of(&acts));
        assert_eq!(book.on_request(2, incoming(5, Some(OTHER))), Err(Refusal::OtherKey));
        assert_eq!(book.on_request(2, incoming(5, None)), Err(Refusal::NoKey));
        assert_eq!(book.on_revoke(PEER, OTHER), Err(Refusal::OtherKey));
    }

    #[test]
    fn both_asked_is_agreed_in_either_order() {
        let mut book = Book::default();
        assert_eq!(book.request(1, PEER, None, "hello"), Ok(None));
        let Ok(Outcome::Trusted(acts)) = book.on_request(2, incoming(5, Some(KEY))) else { panic!("agreed") };
        assert!(accept_of(&acts));
        assert!(book.trusted[&PEER].mutual && book.outgoing.is_empty());

        let mut book = Book::default();
        book.on_request(1, incoming(5, Some(KEY))).expect("waits");
        assert!(accept_of(&book.request(2, PEER, None, "hello").expect("agreed").expect("agreed")));
        assert!(book.trusted[&PEER].mutual && book.pending.is_empty());
    }

    #[test]
    fn an_answer_counts_only_if_we_asked_that_key() {
        let mut book = Book::default();
        assert_eq!(book.on_accept(1, PEER, Some(KEY)), Err(Refusal::NotAsked));
        book.request(1, PEER, Some(KEY), "hello").expect("noted");
        assert_eq!(book.on_accept(2, PEER, Some(OTHER)), Err(Refusal::OtherKey));
        assert_eq!(book.on_request(2, incoming(5, Some(OTHER))), Err(Refusal::OtherKey));
        assert_eq!(book.on_accept(2, PEER, None), Err(Refusal::NoKey));
        assert_eq!(book.on_accept(2, PEER, Some(KEY)), Ok(Some(vec![Act::Report { with: PEER }])));
        assert_eq!(book.on_accept(2, PEER, Some(KEY)), Ok(None), "the registry says it, too");
        assert!(book.trusted[&PEER].mutual);
        assert_eq!(book.on_accept(3, PEER, Some(OTHER)), Err(Refusal::OtherKey));
        assert_eq!(book.on_reject(PEER), Err(Refusal::NotAsked), "too late to say no");
        assert_eq!(book.key_of(PEER), Some(KEY));
    }

    #[test]
    fn a_common_network_is_reason_enough() {
        let mut book = Book::default();
        let request = Incoming { network: Some(3), ..incoming(5, Some(KEY)) };
        assert!(matches!(book.on_request(1, request), Ok(Outcome::Trusted(_))));
        assert_eq!((book.trusted[&PEER].network, book.trusted[&PEER].mutual), (3, false));
        let unknown = Incoming { network: Some(3), ..incoming(6, None) };
        assert_eq!(book.on_request(1, unknown), Ok(Outcome::Waits), "but not for a node without a key");
        assert_eq!(book.approve(1, NodeId(6), None), Err(Refusal::NoKey));
        assert!(book.approve(1, NodeId(6), Some(KEY)).is_ok());
    }

    #[test]
    fn revoking_ends_what_there_is_on_both_sides() {
        let mut book = Book::default();
        assert_eq!(book.revoke(PEER), Err(Refusal::NotTrusted));
        book.request(1, PEER, None, "hello").expect("noted");
        assert_eq!(book.revoke(PEER), Ok(vec![]), "a request is taken back");
        assert_eq!(book.on_accept(2, PEER, Some(KEY)), Err(Refusal::NotAsked));
        for ours in [true, false] {
            book.on_request(1, incoming(5, Some(KEY))).expect("waits");
            book.approve(1, PEER, None).expect("asked");
            let acts = if ours { book.revoke(PEER) } else { book.on_revoke(PEER, KEY) }.expect("trusted");
            assert!(
                acts.contains(&Act::Dismiss { node: PEER }) && acts.contains(&Act::Forget { with: PEER })
            );
            assert_eq!(acts.len(), if ours { 3 } else { 2 }, "an answer to a revocation would be an echo");
            assert_eq!(book, Book::default());
        }
    }

    #[test]
    fn a_no_that_comes_late_does_not_undo_the_next_request() {
        let mut book = Book::default();
        assert_eq!(book.on_reject(PEER), Err(Refusal::NotAsked));
        book.request(1, PEER, None, "please").expect("asked");
        assert_eq!(book.on_reject(PEER), Ok(()));
        assert_eq!(book.on_reject(PEER), Err(Refusal::NotAsked), "said already");
        // Asked again; then the same no by the registry, and the yes to the second request.
        book.request(2, PEER, Some(KEY), "please do").expect("asked");
        assert_eq!(book.on_reject(PEER), Ok(()));
        assert_eq!(book.on_accept(3, PEER, Some(OTHER)), Err(Refusal::OtherKey));
        assert!(matches!(book.on_accept(3, PEER, Some(KEY)), Ok(Some(_))));
        assert!(book.trusted[&PEER].mutual && book.outgoing.is_empty());
        // Who said no and asks itself waits for the operator.
        let mut book = Book::default();
        book.request(1, PEER, Some(KEY), "please").expect("asked");
        book.on_reject(PEER).expect("asked");
        assert_eq!(book.on_request(2, incoming(5, Some(KEY))), Ok(Outcome::Waits));
        assert_eq!(book.revoke(PEER), Err(Refusal::NotTrusted), "nothing is left to take back");
    }

    #[test]
    fn every_list_has_its_bound() {
        let mut book = Book::default();
        for node in 0..MAX_PENDING as u32 {
            book.on_request(1, incoming(1_000 + node, Some(KEY))).expect("room");
        }
        assert_eq!(book.on_request(1, incoming(5, Some(KEY))), Err(Refusal::Full));
        assert_eq!(
            book.on_request(1, incoming(1_000, Some(KEY))),
            Ok(Outcome::Waits),
            "known ones may repeat"
        );
        for node in 0..MAX_OUTGOING as u32 {
            book.request(1, NodeId(5_000 + node), None, "").expect("room");
        }
        assert_eq!(book.request(1, PEER, None, ""), Err(Refusal::Full));
        book.on_reject(NodeId(5_007)).expect("asked");
        book.request(1, NodeId(4_000), None, "").expect("in the place of the one who said no");
        assert!(book.outgoing.len() == MAX_OUTGOING && !book.outgoing.contains_key(&NodeId(5_007)));
        assert_eq!(book.request(1, PEER, None, ""), Err(Refusal::Full));
        let network = |node| Incoming { network: Some(3), ..incoming(node, Some(KEY)) };
        for node in 0..MAX_TRUSTED as u32 {
            book.on_request(1, network(10_000 + node)).expect("room");
        }
        assert_eq!(book.on_request(1, network(5)), Err(Refusal::Full));
        assert_eq!(book.approve(1, NodeId(1_000), None), Err(Refusal::Full));
        assert!(book.pending.contains_key(&NodeId(1_000)), "and nothing is lost");
    }
}
