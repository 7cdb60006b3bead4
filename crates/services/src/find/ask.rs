//! Asking several nodes at once.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use pilotage::{Address, Peer};
use pilotage_discover::card::follows;
use pilotage_discover::descriptor::Descriptor;
use pilotage_discover::evidence::{Book, Experience};
use pilotage_discover::group::{self, Beyond, GROUPS, MAX_GROUPS, Summary};
use pilotage_discover::index::Hit;
use pilotage_discover::merge::{Merge, Told};
use pilotage_discover::rank::Liveness;
use pilotage_discover::wire::{Answer, Holder, MAX_ANSWER, Request};
use pilotage_discover::{AgentKey, Declaration, Query, SignedCard};

use super::{PORT, Reach, frame, unix_seconds};
use crate::duplex::Duplex;

/// Most nodes that one question goes to.
pub const MAX_ASKED: usize = 256;

/// Nodes that are asked at a time.
const AT_A_TIME: usize = 16;

/// An agent that was found, and how to reach it.
#[derive(Debug, Clone)]
pub struct Provider {
    /// Who, and why.
    pub hit: Hit,
    /// How.
    pub peer: Peer,
}

/// What came of asking one node.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Whom.
    pub peer: Peer,
    /// How many cards it told, or why none.
    pub outcome: Result<usize, String>,
    /// How long it took.
    pub took: Duration,
}

/// What came of asking all.
#[derive(Debug, Clone)]
pub struct Findings {
    /// The best first.
    pub providers: Vec<Provider>,
    /// Each node that was asked, in the order of the answers; those that had not answered in time last.
    pub asked: Vec<Asked>,
    /// To which groups the wish was led, and why; for people.
    pub groups: Vec<String>,
    /// Cards that did not count: a wrong signature, an address that is not that of its key, over, or above a bound.
    pub dropped: usize,
}

struct Reply {
    at: usize,
    result: Result<(Answer, Address), String>,
    took: Duration,
}

/// Asks all of `peers` (at most [`MAX_ASKED`]) and merges what comes within `patience`. Who answers or not is written
/// into `book`, as far as its key becomes known.
pub fn find(
    reach: &Arc<dyn Reach>,
    peers: &[Peer],
    query: &Query,
    book: &mut Book,
    patience: Duration,
) -> Findings {
    let mut gathering = Gathering::new(reach, query, Instant::now() + patience);
    gathering.round(peers, book);
    gathering.finish(book)
}

/// Asks who keeps the index of a hub, and at the same time which groups may know more; then holders of the best groups, and
/// of further ones as long as too few are found (`pilotage_discover::group`). All within `patience`.
pub fn routed(
    reach: &Arc<dyn Reach>,
    index: &Peer,
    query: &Query,
    book: &mut Book,
    patience: Duration,
) -> Findings {
    let deadline = Instant::now() + patience;
    let (reach_, index_, wish) = (reach.clone(), index.clone(), query.clone());
    let groups = thread::Builder::new().name("route".into()).spawn(move || {
        let question = Request::Route(wish);
        match exchange(&*reach_, &index_, &question, deadline).map(|(answer, _)| answer) {
            Ok(Answer::Groups(groups)) => groups,
            _ => Vec::new(),
        }
    });
    let mut gathering = Gathering::new(reach, query, deadline);
    gathering.round(std::slice::from_ref(index), book);
    let holders = groups.ok().and_then(|groups| groups.join().ok()).unwrap_or_default();
    let (summaries, mut walks) = by_group(holders, &mut gathering.dropped);
    let mut routes = group::route(&summaries, query, unix_seconds(), MAX_GROUPS).into_iter().peekable();
    let mut led = Vec::new();
    loop {
        let (whole, living) = gathering.state(book);
        let wanted = query.limit();
        let before = led.len();
        // The first ones at once, then one more at a time.
        while led.len() < GROUPS || led.len() == before {
            let further = routes.next_if(|next| group::goes_on(next, led.len(), whole, living, wanted));
            let Some(next) = further else { break };
            led.push(next.group);
            gathering.groups.push(format!("group {}: {}", summaries[next.group].network, next.why));
        }
        // Of each group as many holders as still have to answer.
        let asked = led.iter().flat_map(|at| walks[*at].next().into_iter().map(move |to| (*at, to)));
        let asked: Vec<(usize, Address)> = asked.collect();
        if asked.is_empty() || gathering.asked.len() >= MAX_ASKED || Instant::now() >= deadline {
            break;
        }
        let peers: Vec<Peer> = asked.iter().map(|(_, to)| Peer::Address(*to)).collect();
        let answered = gathering.round(&peers, book);
        for ((at, _), answered) in asked.iter().zip(answered) {
            walks[*at].note(answered);
        }
        gathering.merge.set_beyond(Beyond::of(&summaries, &led, query, unix_seconds()));
    }
    gathering.finish(book)
}

/// The holders of one group, in the order in which they are asked.
struct Holders {
    order: Vec<Address>,
    at: usize,
    answered: usize,
}

impl Holders {
    /// Whom to ask now: so many that, if all answer, it is enough.
    fn next(&self) -> Vec<Address> {
        let wanted = group::WANTED.saturating_sub(self.answered);
        self.order.iter().skip(self.at).take(wanted).copied().collect()
    }

    fn note(&mut self, answered: bool) {
        self.at += 1;
        self.answered += usize::from(answered);
    }
}

/// One summary for each group, the newest one, and its holders. A summary whose signer cannot have the address that is told
/// for it does not count.
fn by_group(holders: Vec<Holder>, dropped: &mut usize) -> (Vec<Summary>, Vec<Holders>) {
    let mut groups: BTreeMap<u16, Vec<Holder>> = BTreeMap::new();
    for holder in holders {
        if follows(&holder.summary.signer, holder.at) {
            groups.entry(holder.summary.network).or_default().push(holder);
        } else {
            *dropped += 1;
        }
    }
    let group = |(network, holders): (u16, Vec<Holder>)| {
        let keys: Vec<AgentKey> = holders.iter().map(|holder| holder.summary.signer).collect();
        let of = |key: AgentKey| holders.iter().find(|holder| holder.summary.signer == key);
        let order = group::holders(network, &keys).into_iter().take(group::HOLDERS);
        let order = order.filter_map(|key| Some(of(key)?.at)).collect();
        let newest = holders.iter().max_by_key(|holder| holder.summary.issued)?.summary.clone();
        Some((newest, Holders { order, at: 0, answered: 0 }))
    };
    groups.into_iter().filter_map(group).unzip()
}

/// Questions to several nodes, in one or more rounds, and what came of them.
struct Gathering<'a> {
    reach: &'a Arc<dyn Reach>,
    query: &'a Query,
    deadline: Instant,
    merge: Merge,
    /// How those are reached that answered for themselves.
    ways: HashMap<AgentKey, Peer>,
    asked: Vec<Asked>,
    groups: Vec<String>,
    dropped: usize,
}

impl<'a> Gathering<'a> {
    fn new(reach: &'a Arc<dyn Reach>, query: &'a Query, deadline: Instant) -> Self {
        Self {
            reach,
            query,
            deadline,
            merge: Merge::default(),
            ways: HashMap::new(),
            asked: Vec::new(),
            groups: Vec::new(),
            dropped: 0,
        }
    }

    /// Asks these at once; who answered. In all no more than [`MAX_ASKED`] are asked.
    fn round(&mut self, peers: &[Peer], book: &mut Book) -> Vec<bool> {
        let room = MAX_ASKED.saturating_sub(self.asked.len());
        let peers: Arc<[Peer]> = peers[..peers.len().min(room)].into();
        let (deadline, begun) = (self.deadline, Instant::now());
        let (say, said) = channel();
        let next = Arc::new(AtomicUsize::new(0));
        for _ in 0..AT_A_TIME.min(peers.len()) {
            let (peers, next, say, reach) = (peers.clone(), next.clone(), say.clone(), self.reach.clone());
            let request = Request::Query(self.query.clone());
            // They end by themselves: connecting and reading are bounded in time.
            let worker = move || {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(peer) = peers.get(at).filter(|_| Instant::now() < deadline) else { return };
                    let begun = Instant::now();
                    let result =
                        exchange(&*reach, peer, &request, deadline).map_err(|error| error.to_string());
                    if say.send(Reply { at, result, took: begun.elapsed() }).is_err() {
                        return;
                    }
                }
            };
            let _ = thread::Builder::new().name("find".into()).spawn(worker);
        }
        drop(say);
        let (mut came, mut answered) = (vec![false; peers.len()], vec![false; peers.len()]);
        while let Ok(reply) = said.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            came[reply.at] = true;
            let at = reply.at;
            answered[at] = self.take(&peers[at], reply, book);
        }
        for (peer, _) in peers.iter().zip(&came).filter(|(_, came)| !**came) {
            let outcome = Err("no answer in time".to_owned());
            self.asked.push(Asked { peer: peer.clone(), outcome, took: begun.elapsed() });
        }
        answered
    }

    /// Whether it was an answer.
    fn take(&mut self, peer: &Peer, reply: Reply, book: &mut Book) -> bool {
        let now = unix_seconds();
        let outcome = reply.result.and_then(|(answer, from)| match answer {
            Answer::Found { told, forged, statistics } => {
                self.dropped += forged;
                let before = told.len();
                let told: Vec<Told> = told.into_iter().filter_map(|one| bound(one, from)).collect();
                self.dropped += before - told.len();
                for one in told.iter().filter(|one| one.itself) {
                    let key = one.card.card().key;
                    self.ways.insert(key, peer.clone());
                    book.note(&key, Experience::Answered, now);
                }
                book.latencies.connected(u64::try_from(reply.took.as_micros()).unwrap_or(u64::MAX));
                let count = told.len();
                self.merge.add(told, &statistics, self.query.terms().len(), now);
                Ok(count)
            }
            Answer::Refused(why) => Err(format!("refused: {why}")),
            _ => Err("answered something else".to_owned()),
        });
        let answered = outcome.is_ok();
        self.asked.push(Asked { peer: peer.clone(), outcome, took: reply.took });
        answered
    }

    /// How many of those found so far have all tags whole, and how many there are; who is better left alone does not count.
    fn state(&self, book: &Book) -> (usize, usize) {
        let now = unix_seconds();
        let hits = self.merge.ranked(self.query, book, now, |key| book.left_alone_for(key, now).is_some());
        let living = hits.iter().filter(|hit| hit.why.liveness != Liveness::Dead);
        let whole = living.clone().filter(|hit| hit.why.tags.iter().all(|tag| tag.widened == 0));
        (whole.count(), living.count())
    }

    fn finish(self, book: &Book) -> Findings {
        let now = unix_seconds();
        let hits = self.merge.ranked(self.query, book, now, |_| false);
        let way = |hit: &Hit| {
            let card = hit.card.card();
            let known = self.ways.get(&card.key).cloned();
            known.unwrap_or_else(|| match card.endpoints.first() {
                Some(endpoint) => Peer::At(card.address, *endpoint),
                None => Peer::Address(card.address),
            })
        };
        let providers = hits.into_iter().map(|hit| Provider { peer: way(&hit), hit }).collect();
        let dropped = self.dropped + self.merge.dropped();
        Findings { providers, asked: self.asked, groups: self.groups, dropped }
    }
}

/// A card counts as the word of the node that told it if it has its address; otherwise its address must follow from its
/// key, so that a call cannot be led to somebody else.
fn bound(mut one: Told, from: Address) -> Option<Told> {
    let card = one.card.card();
    one.itself &= card.address.node == from.node;
    let good = one.itself || card.address_follows();
    good.then_some(one)
}

/// Puts `card` into the index of `peer`; for how many seconds it stays known without being repeated.
///
/// # Errors
/// When the peer cannot be reached or refuses.
pub fn announce(reach: &dyn Reach, peer: &Peer, card: SignedCard, patience: Duration) -> io::Result<u64> {
    let request = Request::Announce(Box::new(card));
    match exchange(reach, peer, &request, Instant::now() + patience)?.0 {
        Answer::Taken(keep) => Ok(keep),
        Answer::Refused(why) => Err(io::Error::other(format!("refused: {why}"))),
        _ => Err(frame::invalid("answered something else")),
    }
}

/// Puts the signed summary of the index that this node keeps on the list of `peer`; for how many seconds it stays there
/// without being repeated.
///
/// # Errors
/// When the peer cannot be reached or refuses.
pub fn announce_group(
    reach: &dyn Reach,
    peer: &Peer,
    summary: Vec<u8>,
    patience: Duration,
) -> io::Result<u64> {
    match exchange(reach, peer, &Request::Group(summary), Instant::now() + patience)?.0 {
        Answer::Taken(keep) => Ok(keep),
        Answer::Refused(why) => Err(io::Error::other(format!("refused: {why}"))),
        _ => Err(frame::invalid("answered something else")),
    }
}

/// The holders of groups that suit `declaration`, as the index at `peer` knows them: whom an agent announces itself to. At
/// most [`group::MAX_JOINED`] groups.
///
/// # Errors
/// When the peer cannot be reached or refuses.
pub fn groups_for(
    reach: &dyn Reach,
    peer: &Peer,
    declaration: &Declaration,
    patience: Duration,
) -> io::Result<Vec<Peer>> {
    let deadline = Instant::now() + patience;
    let mut suiting: Vec<Holder> = Vec::new();
    // One question for each tag: a group has one of them and not all.
    for skill in declaration.skills() {
        if suiting
            .iter()
            .any(|holder| holder.summary.interest().is_some_and(|interest| skill.tag.is_within(interest)))
        {
            continue;
        }
        let Ok(query) = Query::new(vec![skill.tag.clone()], "", None, 1) else { continue };
        match exchange(reach, peer, &Request::Route(query), deadline)?.0 {
            Answer::Groups(groups) => {
                suiting.extend(groups.into_iter().filter(|holder| holder.summary.suits(declaration)));
            }
            Answer::Refused(why) => return Err(io::Error::other(format!("refused: {why}"))),
            _ => return Err(frame::invalid("answered something else")),
        }
    }
    let (_, groups) = by_group(suiting, &mut 0);
    let mut holders: Vec<Address> =
        groups.into_iter().take(group::MAX_JOINED).flat_map(|group| group.order).collect();
    holders.sort_unstable();
    holders.dedup();
    Ok(holders.into_iter().map(Peer::Address).collect())
}

/// Fetches the descriptor with this hash from the agent.
///
/// # Errors
/// When the peer cannot be reached or refuses, or sends something with another hash.
pub fn describe(
    reach: &dyn Reach,
    peer: &Peer,
    hash: &[u8; 32],
    patience: Duration,
) -> io::Result<Descriptor> {
    match exchange(reach, peer, &Request::Descriptor(*hash), Instant::now() + patience)?.0 {
        Answer::Descriptor(text) => Descriptor::verify(text.as_bytes(), hash).map_err(io::Error::other),
        Answer::Refused(why) => Err(io::Error::other(format!("refused: {why}"))),
        _ => Err(frame::invalid("answered something else")),
    }
}

/// One question on a stream of its own.
fn exchange(
    reach: &dyn Reach,
    peer: &Peer,
    request: &Request,
    deadline: Instant,
) -> io::Result<(Answer, Address)> {
    let (stream, from) = reach.reach(peer, PORT).map_err(|error| io::Error::new(error.kind, error.text))?;
    let stream: &dyn Duplex = &*stream;
    stream.set_nodelay(true)?;
    frame::write(stream, &request.encode())?;
    let bytes = frame::read(stream, MAX_ANSWER, deadline)?;
    Ok((Answer::decode(&bytes).map_err(io::Error::other)?, from))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::gateway::DialError;

    /// Nobody can be reached.
    struct Nobody(AtomicUsize);

    impl Reach for Nobody {
        fn reach(&self, _: &Peer, _: u16) -> Result<(Arc<dyn Duplex>, Address), DialError> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Err(DialError { kind: io::ErrorKind::TimedOut, text: "gone".into() })
        }
    }

    #[test]
    fn no_more_nodes_are_asked_than_the_bound_and_each_says_why_not() {
        let nobody = Arc::new(Nobody(AtomicUsize::new(0)));
        let reach: Arc<dyn Reach> = nobody.clone();
        let peers: Vec<Peer> =
            (0..MAX_ASKED as u32 + 50).map(|n| Peer::Address(Address::new(0, 100 + n))).collect();
        let query = Query::from_words(["cap:a"], 1).unwrap();
        let findings = find(&reach, &peers, &query, &mut Book::default(), Duration::from_secs(60));
        assert_eq!((findings.asked.len(), nobody.0.load(Ordering::Relaxed)), (MAX_ASKED, MAX_ASKED));
        assert!(
            findings.providers.is_empty() && findings.asked.iter().all(|a| a.outcome == Err("gone".into()))
        );
    }
}
