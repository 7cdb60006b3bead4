//! Who may open a tunnel with us: the answer to [`Event::LookupPeer`](pilotage_proto::Event::LookupPeer).
//!
//! 1. A pinned peer must present the pinned key, whatever anybody else says.
//! 2. A peer that the operator introduced by address, and every peer where no hub is configured, is
//!    believed if its key derives its node id (spec/addressing.md), and is pinned with the first tunnel.
//! 3. Otherwise, and for an introduced peer whose id does not derive from its key, the hub is asked, on the keeper's thread: its key must be the presented one. A node
//!    that the hub does not know is judged by rule 2. While the hub cannot be reached, unknown
//!    peers are refused: 32 bits of node id alone are too weak to take its place.
//!
//! A sealed frame of an unknown node presents no key. It only asks us to begin a key exchange, which
//! we do where a pin or the hub names the key to expect.

use std::net::SocketAddr;
use std::time::Instant;

use pilotage_proto::{PeerConfig, PeerPolicy};
use pilotage_wire::addressing::derive_node_id;
use pilotage_wire::{Address, NodeId};

use crate::events::NodeEvent;
use crate::hub::{Entry, HubError};
use crate::shared::{Core, Shared};

/// Salts of the derivation that are accepted: a node takes the next one where an id is taken.
const MAX_SALT: u16 = 8;

/// A peer that nobody has vouched for yet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lookup {
    pub(crate) node: NodeId,
    /// `None`: a sealed frame came, but no key exchange.
    pub(crate) key: Option<[u8; 32]>,
    /// It came by the relay, so the peer's own address has to be found elsewhere.
    pub(crate) relayed: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The peer has this key.
    Accept([u8; 32]),
    Refuse(String),
    /// Nothing to believe or disbelieve; not worth a word.
    Ignore,
    AskHub,
}

/// Whether the key derives this node id.
pub(crate) fn certifies_itself(node: NodeId, key: &[u8; 32]) -> bool {
    (0..MAX_SALT).any(|salt| derive_node_id(key, salt) == Some(node))
}

pub(crate) fn judge(
    lookup: &Lookup,
    pinned: Option<[u8; 32]>,
    voucher: Voucher,
    pins: &std::path::Path,
) -> Verdict {
    match pinned {
        Some(pinned) if lookup.key.is_none_or(|presented| presented == pinned) => {
            return Verdict::Accept(pinned);
        }
        Some(_) => return Verdict::Refuse(format!("its key is not the one pinned in {}", pins.display())),
        None => {}
    }
    match (voucher, judge_by_derivation(lookup)) {
        (Voucher::Hub, _) | (Voucher::KeyThenHub, Verdict::Refuse(_)) => Verdict::AskHub,
        (_, verdict) => verdict,
    }
}

/// Who vouches for a peer without a pin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Voucher {
    /// Its key, which derives its id.
    Key,
    /// The same, and the hub where the id does not derive from the key: registries of the reference assign such ids.
    KeyThenHub,
    /// The hub.
    Hub,
}

fn judge_by_derivation(lookup: &Lookup) -> Verdict {
    match lookup.key {
        Some(key) if certifies_itself(lookup.node, &key) => Verdict::Accept(key),
        Some(_) => Verdict::Refuse(
            "its node id does not derive from its key, and neither hub nor pin vouches for it".into(),
        ),
        None => Verdict::Ignore,
    }
}

pub(crate) fn judge_by_hub(lookup: &Lookup, answer: Result<Entry, HubError>) -> Verdict {
    match answer {
        Ok(Entry { key: Some(key), .. }) if lookup.key.is_none_or(|presented| presented == key) => {
            Verdict::Accept(key)
        }
        Ok(Entry { key: Some(_), .. }) => Verdict::Refuse("the hub names another key for this node".into()),
        Ok(Entry { key: None, .. }) | Err(HubError::NotFound { .. }) => judge_by_derivation(lookup),
        Err(_) if lookup.key.is_none() => Verdict::Ignore,
        Err(error) => Verdict::Refuse(format!("nobody can vouch for it: {error}")),
    }
}

impl Shared {
    /// Answers at once or asks the keeper to; true if the endpoint may have something to send now.
    pub(crate) fn on_lookup(&self, core: &mut Core, lookup: Lookup) -> bool {
        let mut verdict = {
            let book = self.book();
            let pinned = book.get(lookup.node).map(|pin| pin.key);
            let voucher = match (self.mailbox.has_hub(), core.introduced.contains(&lookup.node)) {
                (false, _) => Voucher::Key,
                (true, true) => Voucher::KeyThenHub,
                (true, false) => Voucher::Hub,
            };
            judge(&lookup, pinned, voucher, &book.location())
        };
        if verdict == Verdict::AskHub {
            if self.mailbox.push(lookup) {
                return false;
            }
            verdict = Verdict::Ignore;
        }
        let endpoint = self.book().get(lookup.node).and_then(|pin| pin.endpoint);
        self.answer(core, &lookup, &verdict, endpoint);
        true
    }

    /// Hands a verdict to the endpoint, and where the peer is, if it did not say so itself by calling directly.
    pub(crate) fn answer(
        &self,
        core: &mut Core,
        lookup: &Lookup,
        verdict: &Verdict,
        endpoint: Option<SocketAddr>,
    ) {
        let network = core.endpoint.local_address().network.0;
        let accepted = match verdict {
            // The endpoint itself knows where a frame came from that came directly.
            Verdict::Accept(key) => Some(PeerConfig {
                address: Address::new(network, lookup.node.0),
                key: Some(*key),
                endpoint: endpoint.filter(|_| lookup.relayed),
                policy: PeerPolicy::default(),
                prekey: None,
            }),
            _ => None,
        };
        let accepted = accepted.map(|peer| crate::secure::remembered(&core.endpoint, &self.book(), peer));
        core.endpoint.resolve_peer(Instant::now(), lookup.node, accepted);
        if let Verdict::Refuse(reason) = verdict {
            core.note_refusal(lookup.node, reason);
            self.events.send(NodeEvent::PeerRefused { node: lookup.node, reason: reason.clone() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn lookup(key: [u8; 32]) -> Lookup {
        let node = derive_node_id(&key, 0).expect("an id that is not reserved");
        Lookup { node, key: Some(key), relayed: false }
    }

    fn entry(key: Option<[u8; 32]>) -> Result<Entry, HubError> {
        Ok(Entry { key, name: None })
    }

    #[test]
    fn a_pin_outranks_everything() {
        let lookup = lookup([5; 32]);
        let file = Path::new("peers.json");
        assert_eq!(judge(&lookup, Some([5; 32]), Voucher::Hub, file), Verdict::Accept([5; 32]));
        assert!(
            matches!(judge(&lookup, Some([6; 32]), Voucher::Key, file), Verdict::Refuse(why) if why.contains("peers.json"))
        );
    }

    #[test]
    fn without_a_hub_the_key_must_derive_the_id() {
        let good = lookup([5; 32]);
        let file = Path::new("");
        assert_eq!(judge(&good, None, Voucher::Key, file), Verdict::Accept([5; 32]));
        let forged = Lookup { key: Some([6; 32]), ..good };
        assert!(matches!(judge(&forged, None, Voucher::Key, file), Verdict::Refuse(_)));
        assert_eq!(judge(&good, None, Voucher::KeyThenHub, file), Verdict::Accept([5; 32]));
        assert_eq!(judge(&forged, None, Voucher::KeyThenHub, file), Verdict::AskHub, "assigned, maybe");
        let salted = Lookup { node: derive_node_id(&[5; 32], 7).expect("id"), ..good };
        assert_eq!(judge(&salted, None, Voucher::Key, file), Verdict::Accept([5; 32]));
        let too_far = Lookup { node: derive_node_id(&[5; 32], 8).expect("id"), ..good };
        assert!(matches!(judge(&too_far, None, Voucher::Key, file), Verdict::Refuse(_)));
    }

    #[test]
    fn with_a_hub_its_word_counts_and_its_silence_refuses() {
        let lookup = lookup([5; 32]);
        assert_eq!(judge(&lookup, None, Voucher::Hub, Path::new("")), Verdict::AskHub);
        assert_eq!(judge_by_hub(&lookup, entry(Some([5; 32]))), Verdict::Accept([5; 32]));
        assert!(matches!(judge_by_hub(&lookup, entry(Some([6; 32]))), Verdict::Refuse(_)));
        let unknown = Err(HubError::NotFound { what: "node".into() });
        assert_eq!(judge_by_hub(&lookup, unknown.clone()), Verdict::Accept([5; 32]), "derives its id");
        assert!(matches!(
            judge_by_hub(&Lookup { key: Some([6; 32]), ..lookup }, unknown),
            Verdict::Refuse(_)
        ));
        let down = Err(HubError::Unreachable { reason: "down".into() });
        assert!(matches!(judge_by_hub(&lookup, down), Verdict::Refuse(_)));
    }

    #[test]
    fn a_sealed_frame_of_a_stranger_needs_somebody_who_names_the_key() {
        let silent = Lookup { key: None, ..lookup([5; 32]) };
        let file = Path::new("");
        assert_eq!(judge(&silent, Some([5; 32]), Voucher::Key, file), Verdict::Accept([5; 32]));
        assert_eq!(judge(&silent, None, Voucher::Key, file), Verdict::Ignore);
        assert_eq!(judge_by_hub(&silent, entry(Some([5; 32]))), Verdict::Accept([5; 32]));
        assert_eq!(judge_by_hub(&silent, entry(None)), Verdict::Ignore);
    }
}
