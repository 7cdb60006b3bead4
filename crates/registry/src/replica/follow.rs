//! Following changes of records. `spec/replica.md §6`.
//!
//! Goes on where it was after a broken connection, at another node if need be; where a node cannot go on from there,
//! everything is listed again. Of each record only what is newer than what was told before is told. Blocking.

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
}

impl Follower {
    /// Follows at the first of these registries that answers. From a position on, or first of all everything there is.
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
            list: from.is_none(),
        }
    }

    /// Where it is now; a later follower can go on from there, at the same node.
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
        let mut failure = None;
        for _ in 0..self.addrs.len().max(1) {
            match self.advance() {
                Ok(()) => return Ok(self.ready.pop_front()),
                Err(error) => {
                    self.client = None;
                    self.at = (self.at + 1) % self.addrs.len().max(1);
                    failure = Some(error);
                }
            }
        }
        Err(failure.unwrap_or(BookError::NotFound { what: "registry to follow".into() }))
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
        let Position { history, revision } = self.position;
        let told = self.call(Ask::Watch { whose: self.whose, history, from: revision })?;
        let Told::Events { history, upto, resync, records } = told else {
            return Err(BookError::Mismatch("answer"));
        };
        if resync || self.list {
            if resync {
                self.ready.push_back(Change::Resync);
            }
            self.everything()?;
            self.list = false;
        }
        for record in records {
            self.tell(record);
        }
        self.position = Position { history, revision: upto };
        Ok(())
    }

    fn everything(&mut self) -> Result<(), BookError> {
        if let Whose::Of(owner) = self.whose {
            if let Told::Held { record, .. } = self.call(Ask::Get { owner, nonce: None })? {
                self.tell(record);
            }
            return Ok(());
        }
        let mut after = [0; 34];
        loop {
            let Told::List(page) = self.call(Ask::List { after })? else {
                return Err(BookError::Mismatch("answer"));
            };
            let Some(last) = page.last().and_then(|record| owner_in(record)) else { return Ok(()) };
            // A node that goes in circles is left.
            if last <= after {
                return Err(BookError::Mismatch("list"));
            }
            after = last;
            page.into_iter().for_each(|record| self.tell(record));
        }
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
