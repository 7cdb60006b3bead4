//! Following changes of records. `spec/replica.md §6`.
//!
//! Goes on where it was after a broken connection, at another node if need be; where a node cannot go on from there,
//! everything is listed again, page by page: no more is held than one answer. Of each record only what is newer than what
//! was told before is told. Blocking.

use super::evidence::fits;
use super::owner_in;
use crate::book::client::{BookClient, BookError};
use crate::book::message::{Ask, OwnerKey, Reply, Request, Told, Whose};
use crate::record;
use pilotage_wire::record::{Rank, Record};
use std::collections::HashMap;
use std::collections::VecDeque;
use std::time::Duration;

/// Agents whose newest record is remembered; beyond that a change may be told twice.
const MAX_KNOWN: usize = 262_144;
/// Longer than a node holds a question back.
const PATIENCE: Duration = Duration::from_secs(60);

/// A place in a node's history.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Position {
    /// Which history; 0: none yet.
    pub history: u64,
    /// The last revision that is known.
    pub revision: u64,
}

/// What a follower hears.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A record, verified; also one that says that its agent is gone.
    Record(Box<Record>, Vec<u8>),
    /// The node could not go on from our position, or it is another node: all records follow that we do not know.
    Resync,
}

/// Follows one agent's record, or all.
#[derive(Debug)]
pub struct Follower {
    addrs: Vec<String>,
    at: usize,
    client: Option<BookClient>,
    whose: Whose,
    position: Position,
    known: HashMap<OwnerKey, Rank>,
    ready: VecDeque<Change>,
    /// To begin with all there is.
    list: bool,
    /// A list under way: after whom it goes on, and the position that is reached with its end.
    listing: Option<(OwnerKey, Position)>,
}

impl Follower {
    /// Follows at the first of these registries that answers. From a position on; or, without one or from the default one,
    /// first of all everything there is.
    #[must_use]
    pub fn new(addrs: Vec<String>, whose: Whose, from: Option<Position>) -> Self {
        Self {
            addrs,
            at: 0,
            client: None,
            whose,
            position: from.unwrap_or_default(),
            known: HashMap::new(),
            ready: VecDeque::new(),
            list: from.unwrap_or_default() == Position::default(),
            listing: None,
        }
    }

    /// Where it is now; a later follower can go on from there, at the same node. In the middle of a list it is where it was
    /// before, so that the later follower misses nothing.
    #[must_use]
    pub fn position(&self) -> Position {
        self.position
    }

    /// The next change; `None` if there was none for about a minute.
    ///
    /// # Errors
    /// [`BookError`] if no registry answers; the next call tries again.
    pub fn next_change(&mut self) -> Result<Option<Change>, BookError> {
        if let Some(change) = self.ready.pop_front() {
            return Ok(Some(change));
        }
        let mut failed = 0;
        loop {
            let listed = self.listing.is_some();
            match self.advance() {
                // A page of what is known already, or the end of the list: what follows may be waited for.
                Ok(()) if self.ready.is_empty() && (listed || self.listing.is_some()) => {}
                Ok(()) => return Ok(self.ready.pop_front()),
                Err(error) => {
                    self.client = None;
                    self.listing = None;
                    self.at = (self.at + 1) % self.addrs.len().max(1);
                    failed += 1;
                    if failed >= self.addrs.len() {
                        return Err(error);
                    }
                }
            }
        }
    }

    fn call(&mut self, ask: Ask) -> Result<Told, BookError> {
        let addr = self.addrs.get(self.at).cloned().unwrap_or_default();
        let client = match &mut self.client {
            Some(client) => client,
            None => self.client.insert(BookClient::connect(&addr, PATIENCE, Vec::new())?),
        };
        match client.call(&Request::Replica(ask))? {
            Reply::Replica(told) => Ok(told),
            Reply::Error { text, transient } => Err(BookError::Refused { text, transient }),
            _ => Err(BookError::OtherProtocol { addr }),
        }
    }

    fn advance(&mut self) -> Result<(), BookError> {
        if let Some((after, reached)) = self.listing {
            return self.page(after, reached);
        }
        let Position { history, revision } = self.position;
        let told = self.call(Ask::Watch { whose: self.whose, history, from: revision })?;
        let Told::Events { history, upto, resync, records } = told else {
            return Err(BookError::Mismatch("answer"));
        };
        let reached = Position { history, revision: upto };
        if resync {
            self.ready.push_back(Change::Resync);
        }
        records.into_iter().for_each(|record| self.tell(record));
        if resync || self.list {
            if let Whose::Of(owner) = self.whose {
                if let Told::Held { record, .. } = self.call(Ask::Get { owner, nonce: None })? {
                    self.tell(record);
                }
            } else {
                self.listing = Some(([0; 34], reached));
                return Ok(());
            }
        }
        self.reach(reached);
        Ok(())
    }

    fn reach(&mut self, position: Position) {
        self.listing = None;
        self.list = false;
        self.position = position;
    }

    fn page(&mut self, after: OwnerKey, reached: Position) -> Result<(), BookError> {
        let Told::List(page) = self.call(Ask::List { after })? else {
            return Err(BookError::Mismatch("answer"));
        };
        match page.last().and_then(|record| owner_in(record)) {
            None => self.reach(reached),
            // A node that goes in circles is left.
            Some(last) if last <= after => return Err(BookError::Mismatch("list")),
            Some(last) => {
                self.listing = Some((last, reached));
                page.into_iter().for_each(|record| self.tell(record));
            }
        }
        Ok(())
    }

    /// Queues what verifies and is new.
    fn tell(&mut self, bytes: Vec<u8>) {
        let (Some(owner), Some(rank)) = (owner_in(&bytes), Rank::of(&bytes)) else { return };
        let wanted = match &self.whose {
            Whose::All => true,
            Whose::Of(whose) => *whose == owner,
        };
        if !wanted || self.known.get(&owner).is_some_and(|known| *known >= rank) || !fits(&bytes, &owner) {
            return;
        }
        let Ok(record) = record::verify(&bytes) else { return };
        if self.known.len() >= MAX_KNOWN && !self.known.contains_key(&owner) {
            self.known.clear();
        }
        self.known.insert(owner, rank);
        self.ready.push_back(Change::Record(Box::new(record), bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::book::message::next_frame;
    use crate::record::sign;
    use ed25519_dalek::SigningKey;
    use pilotage_wire::{NetworkId, addressing};
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;

    fn record_of(agent: u8, seq: u64) -> Vec<u8> {
        let key = SigningKey::from_bytes(&[agent; 32]);
        let node = addressing::derive_node_id(&key.verifying_key().to_bytes(), 0).unwrap();
        let mut record = Record::new(NetworkId(0), node, 0, [0; 32], seq, 1_000);
        sign(&mut record, &key, None).unwrap()
    }

    fn follower(addr: &str) -> Follower {
        Follower::new(vec![addr.to_owned()], Whose::All, None)
    }

    /// Takes what is ready.
    fn heard(follower: &mut Follower) -> Vec<Vec<u8>> {
        let ready = follower.ready.drain(..);
        ready
            .filter_map(|change| if let Change::Record(_, bytes) = change { Some(bytes) } else { None })
            .collect()
    }

    #[test]
    fn with_too_many_agents_known_nothing_is_lost_and_a_change_may_come_twice() {
        let mut follower = follower("");
        let rank = Rank::of(&record_of(1, 1)).unwrap();
        for number in 0..MAX_KNOWN as u64 {
            let mut owner = [0; 34];
            owner[..8].copy_from_slice(&number.to_be_bytes());
            follower.known.insert(owner, rank);
        }
        // The last one of those that are known is told while there is room for nobody else.
        follower.known.remove(&[0; 34]);
        follower.tell(record_of(1, 5));
        assert_eq!(follower.known.len(), MAX_KNOWN);
        follower.tell(record_of(1, 4));
        follower.tell(record_of(1, 5));
        follower.tell(record_of(1, 6));
        assert_eq!(follower.known.len(), MAX_KNOWN);
        follower.tell(record_of(2, 1));
        assert_eq!(follower.known.len(), 1, "all are forgotten, but not what waits to be told");
        assert_eq!(heard(&mut follower), [record_of(1, 5), record_of(1, 6), record_of(2, 1)]);
        follower.tell(record_of(2, 1));
        assert!(heard(&mut follower).is_empty());
        follower.tell(record_of(1, 6));
        assert_eq!(heard(&mut follower), [record_of(1, 6)], "told twice");
    }

    /// A node that lists one record a page.
    fn lister(mut records: Vec<Vec<u8>>) -> String {
        records.sort_by_key(|record| owner_in(record));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        std::thread::spawn(move || {
            let mut client = listener.accept().unwrap().0;
            let mut input = vec![0; 4];
            client.read_exact(&mut input).unwrap();
            input.clear();
            let mut chunk = [0; 1_024];
            while let Ok(len @ 1..) = client.read(&mut chunk) {
                input.extend_from_slice(&chunk[..len]);
                while let Ok(Some((number, kind, body, len))) = next_frame(&input) {
                    let told = match Request::decode(kind, body).unwrap() {
                        Request::Replica(Ask::Watch { .. }) => {
                            Told::Events { history: 7, upto: 9, resync: false, records: Vec::new() }
                        }
                        Request::Replica(Ask::List { after }) => {
                            let next = records.iter().find(|record| owner_in(record) > Some(after));
                            Told::List(next.into_iter().cloned().collect())
                        }
                        other => panic!("{other:?}"),
                    };
                    let mut out = Vec::new();
                    Reply::Replica(told).encode(number, &mut out);
                    client.write_all(&out).unwrap();
                    input.drain(..len);
                }
            }
        });
        addr
    }

    #[test]
    fn a_list_is_held_page_by_page_and_ends_with_the_position() {
        let mut follower = follower(&lister((1..=5).map(|agent| record_of(agent, 1)).collect()));
        // One that is known already: its page says nothing, and is passed over.
        let known = owner_in(&record_of(3, 1)).unwrap();
        follower.known.insert(known, Rank::of(&record_of(3, 1)).unwrap());
        for _ in 0..4 {
            assert!(matches!(follower.next_change().unwrap(), Some(Change::Record(..))));
            assert!(follower.ready.is_empty(), "no more than a page");
            assert_eq!(follower.position(), Position::default(), "who begins here misses nothing");
        }
        assert_eq!(follower.next_change().unwrap(), None);
        assert_eq!(follower.position(), Position { history: 7, revision: 9 });
    }
}
