//! What a node answers: what it declares, whom it knows, and calls.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pilotage::{Address, Node, Stream};
use pilotage_discover::card::{CardError, MAX_ENDPOINTS, MAX_LIFE};
use pilotage_discover::descriptor::Descriptor;
use pilotage_discover::group::{self, Summary};
use pilotage_discover::index::{Found, Limits, Put};
use pilotage_discover::merge::Told;
use pilotage_discover::rank::{HEARTBEAT, Liveness};
use pilotage_discover::wire::{Answer, CallHead, CallReply, MAX_REQUEST, MAX_ROUTES, Request, encode_groups};
use pilotage_discover::{AgentKey, Card, Declaration, Index, Query, SignedCard, Tag};

use super::frame;
use super::handler::{Handler, HandlerError};
use super::unix_seconds;
use crate::duplex::Duplex;

/// How long a peer may take for a request.
const REQUEST: Duration = Duration::from_secs(20);

/// How long a caller may wait before it gives the go-ahead.
const GO_AHEAD: Duration = Duration::from_secs(30);

/// What a caller sends when the work shall begin.
pub(super) const GO: u8 = b'G';

/// Cards that are forgotten at a time when they are over.
const EXPIRE: usize = 64;

/// What a node offers.
#[derive(Clone)]
pub struct Offer {
    /// What is declared.
    pub declaration: Declaration,
    /// The long form whose hash is in the declaration.
    pub descriptor: Option<Descriptor>,
    /// How long a card counts, in seconds; it is made anew after half of it.
    pub life: u32,
    /// Tell others our UDP endpoint: they need it where there is no registry to ask.
    pub endpoints: bool,
    /// Who does the work. A capability without one can be found and not called.
    pub handlers: Vec<(Tag, Arc<dyn Handler>)>,
}

impl fmt::Debug for Offer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Offer").field("declaration", &self.declaration).finish_non_exhaustive()
    }
}

/// Why something cannot be offered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OfferError {
    /// The life is out of bounds.
    #[error("a card counts for 1 to {MAX_LIFE} seconds")]
    Life,
    /// The descriptor is another one than the declaration says.
    #[error("the declaration has the hash of another descriptor")]
    Descriptor,
    /// Work for something that is not declared.
    #[error("{0} has a handler and is not declared")]
    Handler(Tag),
}

#[derive(Debug)]
struct State {
    offer: Option<Offer>,
    /// Our card and whose address it holds.
    card: Option<(SignedCard, Address)>,
    seq: u64,
    index: Index,
    /// What the index is about, if it is that of a group.
    interest: Option<Tag>,
    groups: Groups,
}

/// Answers for a node. Clones are handles on the same host.
#[derive(Clone, Debug)]
pub struct Host {
    state: Arc<Mutex<State>>,
    /// It takes announcements of others.
    holds: bool,
}

impl Host {
    /// A host that declares `offer`, if there is one, and keeps cards of others if `hold` says how many.
    ///
    /// # Errors
    /// See [`OfferError`].
    pub fn new(offer: Option<Offer>, hold: Option<usize>) -> Result<Self, OfferError> {
        if let Some(offer) = &offer {
            check(offer)?;
        }
        // Our own card has a place in any case.
        let index = Index::new(Limits { agents: hold.unwrap_or(0).saturating_add(1) });
        let state = State { offer, card: None, seq: 0, index, interest: None, groups: Groups::default() };
        Ok(Self { state: Arc::new(Mutex::new(state)), holds: hold.is_some() })
    }

    /// Declares something else from now on.
    ///
    /// # Errors
    /// See [`OfferError`].
    pub fn declare(&self, node: &Node, offer: Option<Offer>) -> Result<(), OfferError> {
        if let Some(offer) = &offer {
            check(offer)?;
        }
        let mut state = self.lock();
        state.offer = offer;
        state.card = None;
        state.index.remove(&node.public_key());
        Ok(())
    }

    /// The index is that of the agents that have this tag or a special case of it: they join by themselves.
    #[must_use]
    pub fn of_group(self, interest: Tag) -> Self {
        self.lock().interest = Some(interest);
        self
    }

    /// The signed summary of what is in our index.
    #[must_use]
    pub fn summary(&self, node: &Node) -> Vec<u8> {
        self.lock().summary(node, unix_seconds())
    }

    /// Holders of groups on our list.
    #[must_use]
    pub fn groups(&self) -> usize {
        self.lock().groups.0.len()
    }

    /// Agents in the index, our own one with them.
    #[must_use]
    pub fn known(&self) -> usize {
        self.lock().index.len()
    }

    /// Whether others may announce themselves here.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.holds
    }

    /// Our card as it counts now; `None` if nothing is declared.
    #[must_use]
    pub fn card(&self, node: &Node) -> Option<SignedCard> {
        let mut state = self.lock();
        state.refresh(node, unix_seconds());
        state.card.as_ref().map(|(card, _)| card.clone())
    }

    /// What a question gets.
    #[must_use]
    pub fn answer(&self, node: &Node, from: Address, key: Option<[u8; 32]>, request: Request) -> Vec<u8> {
        let now = unix_seconds();
        let mut state = self.lock();
        state.refresh(node, now);
        let answer = match request {
            Request::Route(query) => return state.groups.route(&query, now),
            Request::Group(_) if !self.holds => Answer::Refused("this node keeps no list of groups".into()),
            Request::Group(bytes) => state.groups.take(bytes, from, key, now),
            Request::Query(query) => state.query(&query, &node.public_key(), now),
            Request::Announce(_) if !self.holds => {
                Answer::Refused("this node keeps no cards of others (`up --index` does)".into())
            }
            Request::Announce(card) => state.announce(&card, from, key, now),
            Request::Descriptor(hash) => {
                let descriptor = state.offer.as_ref().and_then(|offer| offer.descriptor.as_ref());
                match descriptor.filter(|descriptor| descriptor.hash() == hash) {
                    Some(descriptor) => {
                        Answer::Descriptor(String::from_utf8_lossy(descriptor.bytes()).into_owned())
                    }
                    None => Answer::Refused("no descriptor with this hash is here".into()),
                }
            }
            Request::Summary => Answer::Summary(state.summary(node, now)),
        };
        answer.encode()
    }

    /// Serves one stream of port 1013.
    ///
    /// # Errors
    /// When the stream fails or says something else.
    pub fn serve(&self, node: &Node, stream: &Stream) -> io::Result<()> {
        let bytes = frame::read(stream, MAX_REQUEST, Instant::now() + REQUEST)?;
        let from = stream.peer().address;
        let answer = match Request::decode(&bytes) {
            Ok(request) => {
                let key = node.peer(from.node).and_then(|tunnel| tunnel.key);
                self.answer(node, from, key, request)
            }
            Err(error) => Answer::Refused(error.to_string()).encode(),
        };
        stream.set_write_timeout(Some(REQUEST))?;
        frame::write(stream, &answer)?;
        Duplex::finish(stream)
    }

    /// Serves one stream of port 1014.
    ///
    /// # Errors
    /// When the stream fails or says something else.
    pub fn serve_call<D: Duplex + ?Sized>(&self, stream: &D) -> io::Result<()> {
        let deadline = Instant::now() + REQUEST;
        let head = frame::read(stream, MAX_REQUEST, deadline)?;
        let refuse = |reason: String| frame::write(stream, &CallReply::Refused { reason }.encode());
        let handler = match CallHead::decode(&head) {
            Ok(head) => match self.handler(&head.tag) {
                Some((tag, handler)) => (head, tag, handler),
                None => {
                    refuse(format!("{} is not served here", head.tag))?;
                    return stream.finish();
                }
            },
            Err(error) => {
                refuse(error.to_string())?;
                return stream.finish();
            }
        };
        let (head, tag, handler) = handler;
        let body = frame::body(stream, head.length, deadline)?;
        if head.ask_first {
            frame::write(stream, &CallReply::Ready.encode())?;
        }
        let mut go = [0];
        frame::exact(stream, &mut go, Instant::now() + GO_AHEAD)?;
        if go != [GO] {
            return Err(frame::invalid("no go-ahead"));
        }
        match handler.handle(tag.as_str(), &body) {
            Ok(result) => {
                frame::write(stream, &CallReply::Done { length: result.len() }.encode())?;
                io::Write::write_all(&mut crate::duplex::Io(stream), &result)?;
            }
            Err(HandlerError::NotBegun(reason)) => refuse(reason)?,
            Err(HandlerError::Failed(reason)) => {
                frame::write(stream, &CallReply::Failed { reason }.encode())?;
            }
        }
        stream.finish()
    }

    /// Who serves a capability: the handler of the same tag, else of the first special case.
    fn handler(&self, tag: &str) -> Option<(Tag, Arc<dyn Handler>)> {
        let wanted: Tag = tag.parse().ok()?;
        let state = self.lock();
        let handlers = &state.offer.as_ref()?.handlers;
        let same = handlers.iter().find(|(tag, _)| *tag == wanted);
        same.or_else(|| handlers.iter().find(|(tag, _)| tag.is_within(&wanted))).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn check(offer: &Offer) -> Result<(), OfferError> {
    if offer.life == 0 || offer.life > MAX_LIFE {
        return Err(OfferError::Life);
    }
    if offer.declaration.descriptor() != offer.descriptor.as_ref().map(Descriptor::hash) {
        return Err(OfferError::Descriptor);
    }
    let declared = |tag: &Tag| offer.declaration.skills().iter().any(|skill| skill.tag == *tag);
    match offer.handlers.iter().find(|(tag, _)| !declared(tag)) {
        Some((tag, _)) => Err(OfferError::Handler(tag.clone())),
        None => Ok(()),
    }
}

impl State {
    /// Makes our card anew if the address changed or half of its life is over.
    fn refresh(&mut self, node: &Node, now: u64) {
        self.index.expire(now, EXPIRE);
        let Some(offer) = &self.offer else { return };
        let address = node.address();
        let good = |card: &SignedCard| {
            now >= card.card().issued && now - card.card().issued < u64::from(card.card().life) / 2
        };
        if self.card.as_ref().is_some_and(|(card, at)| *at == address && good(card)) {
            self.index.saw(&node.public_key(), now);
            return;
        }
        self.seq = self.seq.saturating_add(1).max(now.saturating_mul(1_000));
        let card = Card {
            key: node.public_key(),
            address,
            seq: self.seq,
            issued: now,
            life: offer.life,
            endpoints: if offer.endpoints { endpoints(node) } else { Vec::new() },
            declaration: offer.declaration.clone(),
        };
        match card.sign(|message| node.sign(message)) {
            Ok(card) => {
                if self.index.put(&card, Some(now)).is_err() {
                    tracing::warn!("the index is full: our own card is not in it");
                }
                self.card = Some((card, address));
            }
            Err(error) => tracing::warn!(%error, "our skill card cannot be made"),
        }
    }

    fn query(&self, query: &Query, own: &[u8; 32], now: u64) -> Answer {
        let Found { hits, statistics, .. } = self.index.search(query, now);
        let told = hits.into_iter().map(|hit| {
            let itself = hit.card.card().key == *own;
            let seen_ago = match hit.why.liveness {
                Liveness::Seen(age) => Some(age),
                _ => None,
            };
            Told { card: hit.card, seen_ago, itself }
        });
        Answer::Found { told: told.collect(), forged: 0, statistics }
    }

    /// A node announces itself and nobody else, so that one peer has one place.
    fn announce(&mut self, card: &SignedCard, from: Address, key: Option<[u8; 32]>, now: u64) -> Answer {
        let own = card.card();
        if own.address.node != from.node || key != Some(own.key) {
            return Answer::Refused("a node announces its own card only".into());
        }
        if !own.is_current(now) {
            return Answer::Refused(CardError::Time.to_string());
        }
        match self.index.put(card, Some(now)) {
            Ok(Put::Older) => Answer::Refused("a newer card of this node is known".into()),
            Ok(_) => Answer::Taken(HEARTBEAT),
            Err(full) => Answer::Refused(full.to_string()),
        }
    }

    /// The group summary of what is in our index.
    fn summary(&self, node: &Node, now: u64) -> Vec<u8> {
        let cards: Vec<SignedCard> = self.index.cards(SUMMARISED).collect();
        let network = self.interest.as_ref().map_or(node.address().network.0, group::number);
        let members = cards.iter().map(|card| (card.card().issued, &card.card().declaration));
        let mut summary = Summary::of(network, node.public_key(), now, HEARTBEAT as u32 * 10, members);
        summary.members = u32::try_from(self.index.len()).unwrap_or(u32::MAX);
        if let Some(interest) = &self.interest {
            summary = summary.with_interest(interest);
        }
        summary.sign(|message| node.sign(message))
    }
}

/// Holders of groups that announced themselves, each with its signed summary.
#[derive(Debug, Default)]
struct Groups(BTreeMap<AgentKey, Announced>);

#[derive(Debug)]
struct Announced {
    summary: Summary,
    bytes: Vec<u8>,
    at: Address,
}

/// Most holders of groups on the list; a newcomer is then refused.
pub const MAX_GROUPS: usize = 1_024;

impl Groups {
    /// A node announces its own summary and nobody else's.
    fn take(&mut self, bytes: Vec<u8>, from: Address, key: Option<AgentKey>, now: u64) -> Answer {
        self.0.retain(|_, known| known.summary.is_current(now));
        let Some(summary) = Summary::verify(&bytes).filter(|summary| summary.is_current(now)) else {
            return Answer::Refused("not a signed summary that counts now".into());
        };
        if key != Some(summary.signer) {
            return Answer::Refused("a node announces its own summary only".into());
        }
        let known = self.0.get(&summary.signer);
        if known.is_some_and(|known| known.summary.issued > summary.issued) {
            return Answer::Refused("a newer summary of this node is known".into());
        }
        if known.is_none() && self.0.len() >= MAX_GROUPS {
            return Answer::Refused(format!("the list has {MAX_GROUPS} groups, and takes no more"));
        }
        self.0.insert(summary.signer, Announced { summary, bytes, at: from });
        Answer::Taken(HEARTBEAT)
    }

    /// The best for a query: whoever asks chooses among them, and verifies.
    fn route(&self, query: &Query, now: u64) -> Vec<u8> {
        let all: Vec<&Announced> = self.0.values().collect();
        let routes = group::route(all.iter().map(|known| &known.summary), query, now, MAX_ROUTES);
        encode_groups(routes.iter().filter_map(|route| {
            let known = all.get(route.group)?;
            Some((known.bytes.as_slice(), known.at))
        }))
    }
}

/// Cards that a summary is made of; it is made for each who asks, under the lock.
const SUMMARISED: usize = 2_048;

/// Where our socket is: as bound, else as the interfaces say, else as the beacon saw it.
fn endpoints(node: &Node) -> Vec<SocketAddr> {
    let bound = node.local_addr();
    let mut all = if bound.ip().is_unspecified() { node.interface_addresses() } else { vec![bound] };
    all.extend(node.observed_addr().filter(|seen| !all.contains(seen)));
    all.truncate(MAX_ENDPOINTS);
    all
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::{Signer, SigningKey};

    use super::*;

    fn signed(number: u32, issued: u64) -> (AgentKey, Vec<u8>) {
        let mut seed = [0; 32];
        seed[..4].copy_from_slice(&number.to_be_bytes());
        let key = SigningKey::from_bytes(&seed);
        let public = key.verifying_key().to_bytes();
        let members: [(u64, &Declaration); 0] = [];
        let summary = Summary::of(number as u16, public, issued, 600, members);
        (public, summary.sign(|message| key.sign(message).to_bytes()))
    }

    #[test]
    fn the_list_of_groups_has_a_bound_and_forgets_what_is_over() {
        let mut groups = Groups::default();
        let at = Address::new(0, 9);
        let take = |groups: &mut Groups, number, issued, now| {
            let (key, bytes) = signed(number, issued);
            groups.take(bytes, at, Some(key), now)
        };
        for number in 0..MAX_GROUPS as u32 {
            assert_eq!(take(&mut groups, number, 1_000, 1_000), Answer::Taken(HEARTBEAT), "{number}");
        }
        assert!(matches!(take(&mut groups, 9_999, 1_000, 1_000), Answer::Refused(_)), "no room");
        assert_eq!(take(&mut groups, 5, 1_100, 1_100), Answer::Taken(HEARTBEAT), "who is there is made new");
        assert!(matches!(take(&mut groups, 5, 1_050, 1_100), Answer::Refused(_)), "and never old again");
        assert_eq!(take(&mut groups, 9_999, 1_650, 1_650), Answer::Taken(HEARTBEAT));
        assert_eq!(groups.0.len(), 2, "all that were over are gone");
        let (key, bytes) = signed(1, 1_650);
        assert!(matches!(groups.take(bytes.clone(), at, None, 1_650), Answer::Refused(_)));
        assert!(matches!(groups.take(bytes[1..].to_vec(), at, Some(key), 1_650), Answer::Refused(_)));
    }
}
