//! What only beacons of ours understand: proof of our key, questions about our NAT. `spec/nat.md §7`, §8.

use std::net::SocketAddr;
use std::time::Instant;

use pilotage_fault as fault;
use pilotage_wire::addressing::derive_node_id;
use pilotage_wire::beacon::{Extension, MAX_PERMITTED, MAX_PROOF_TEXT, Message, NodeList, proof_text};

use super::behaviour::Question;
use super::{BeaconClient, ClientEvent, ClientMessage, Signer, is_unicast, mix};

impl BeaconClient {
    pub(super) fn prove(
        &self,
        index: usize,
        signer: &dyn Signer,
        cookie: &[u8; 24],
        observed: SocketAddr,
    ) -> Option<ClientMessage> {
        let (link, node, key) = (self.links.get(index)?, self.node?, self.key.as_ref()?);
        let (nonce, _) = link.nonce?;
        let list = NodeList::<{ 4 * MAX_PERMITTED }>::new(self.permitted.iter().copied());
        let message = |signature| {
            let (salt, beacon, accept) = (self.salt, link.address, self.accept);
            let permitted = list.ids();
            let prove =
                Extension::Prove { node, salt, nonce, cookie, key, beacon, accept, permitted, signature };
            ClientMessage::new(Message::Extension(prove), 0)
        };
        let unsigned = message(&[0; 64]);
        let mut text = [0; MAX_PROOF_TEXT];
        let len = proof_text(&unsigned, observed, &mut text)?;
        Some(message(&signer.sign(&text[..len])))
    }

    pub(super) fn poll_discovery(&mut self, now: Instant) -> Option<(SocketAddr, ClientMessage)> {
        let counter = &mut self.counter;
        let seed = self.seed;
        let question = self.discovery.poll(now, || {
            *counter += 1;
            mix(seed ^ *counter)
        })?;
        let (to, message, padded_to) = match question {
            Question::Probe { to, from_other_port, nonce } => {
                (to, Extension::Probe { from_other_port, nonce }, PADDED_PROBE)
            }
            Question::Hairpin { to, nonce } => (to, Extension::Hairpin { nonce }, 0),
        };
        Some((to, ClientMessage::new(Message::Extension(message), padded_to)))
    }

    /// `spec/nat.md §7`.
    pub(super) fn handle_extension(
        &mut self,
        index: usize,
        extension: Extension<'_>,
        now: Instant,
    ) -> ClientEvent {
        let Some(link) = self.links.get_mut(index) else { return ClientEvent::Ignored };
        let (nonce, addr) = match extension {
            Extension::Challenge { nonce, addr, .. }
            | Extension::Registered { nonce, addr, .. }
            | Extension::Refused { nonce, addr, .. } => (nonce, addr),
            _ => return ClientEvent::Ignored,
        };
        if !link.is_answer(nonce, now) || !is_unicast(addr) || fault::point!("nat.client.late_answer") {
            return ClientEvent::Ignored;
        }
        match extension {
            // Without an id there is nothing to prove.
            Extension::Challenge { cookie, addr, .. } => {
                link.on_challenge(now, cookie, addr);
                if self.node.is_none() {
                    (link.challenge, link.next_hello) = (None, None);
                }
            }
            Extension::Registered { rank, other_port, .. } => link.on_registered(now, rank, other_port, addr),
            Extension::Refused { reason, .. } => link.on_refused(now, reason, addr),
            _ => {}
        }
        if index == self.primary {
            self.discover_nat(now);
        }
        ClientEvent::Observed(addr)
    }

    /// Finds out how our NAT behaves, if that is not known for our present address.
    pub(super) fn discover_nat(&mut self, now: Instant) {
        self.counter += 1;
        let nonce = mix(self.seed ^ self.counter);
        if let Some(link) = self.links.get(self.primary).filter(|link| link.ours)
            && let Some(observed) = link.observed
        {
            self.discovery.begin(now, link.address, observed, link.other_port, nonce);
        }
    }

    /// A node tries salts in their order (`spec/addressing.md §3.3`), and rarely gets far.
    pub(super) fn find_salt(&mut self) {
        let (Some(node), Some(key)) = (self.node, self.key) else { return };
        self.salt = (0..SALTS_TRIED).find(|&salt| derive_node_id(&key, salt) == Some(node)).unwrap_or(0);
    }
}

/// A probe as long as its reply over IPv6.
const PADDED_PROBE: usize = 31;
/// Salts with which our id may be derived: who needs more of them is taken at its word.
const SALTS_TRIED: u16 = 64;
