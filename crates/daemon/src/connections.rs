//! The connections of all clients, by the number that clients know them by.

use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::net::Shutdown;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use pilotage::{ConnectionId, Stream};
use pilotage_wire::ipc::Reply;

use crate::Limits;
use crate::outbox::Outbox;

/// Bytes moved from a connection to its client at a time.
const BUFFER: usize = 16 << 10;

/// How often a blocked write looks whether its client is still there.
pub(crate) const LOOK_UP: Duration = Duration::from_millis(250);

/// Numbers from here on stand for connections of the node that no client opened: its services'.
pub(crate) const FOREIGN: u32 = 0x8000_0000;

#[derive(Debug, Default)]
pub(crate) struct Connections {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    last: u32,
    entries: BTreeMap<u32, Entry>,
    /// Entries of each client.
    held: HashMap<u64, usize>,
}

#[derive(Debug)]
struct Entry {
    stream: Arc<Stream>,
    owner: u64,
    /// The peer sends no more, and the client was told.
    ended: bool,
}

impl Table {
    fn remove(&mut self, id: u32) -> Option<Entry> {
        let entry = self.entries.remove(&id)?;
        if let Some(held) = self.held.get_mut(&entry.owner) {
            *held -= 1;
            if *held == 0 {
                self.held.remove(&entry.owner);
            }
        }
        Some(entry)
    }

    /// Takes out the oldest entry whose peer is done, of this client if one is named.
    fn forget_ended(&mut self, owner: Option<u64>) -> Option<Entry> {
        let ended = |entry: &Entry| entry.ended && owner.is_none_or(|owner| owner == entry.owner);
        let id = self.entries.iter().find(|(_, entry)| ended(entry)).map(|(id, _)| *id)?;
        self.remove(id)
    }
}

impl Connections {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Takes a connection in. At a bound the oldest one gives way whose peer has ended it already.
    ///
    /// # Errors
    /// The bound, for the user, and the stream.
    pub(crate) fn add(
        &self,
        owner: u64,
        stream: Stream,
        limits: &Limits,
    ) -> Result<(u32, Arc<Stream>), (String, Stream)> {
        // Dropped after the lock is released: the last handle of a stream takes the node's lock.
        let mut forgotten = Vec::new();
        let mut table = self.lock();
        let held = |table: &Table| table.held.get(&owner).copied().unwrap_or_default();
        if held(&table) >= limits.connections_per_client {
            forgotten.extend(table.forget_ended(Some(owner)));
        } else if table.entries.len() >= limits.connections {
            forgotten.extend(table.forget_ended(None));
        }
        if held(&table) >= limits.connections_per_client {
            return Err((format!("this client has {} connections already", held(&table)), stream));
        }
        if table.entries.len() >= limits.connections {
            return Err((format!("all clients have {} connections already", table.entries.len()), stream));
        }
        // From 1 to 2^31 - 1, and never one that is in use.
        let id = loop {
            table.last = if table.last + 1 >= FOREIGN { 1 } else { table.last + 1 };
            if !table.entries.contains_key(&table.last) {
                break table.last;
            }
        };
        let stream = Arc::new(stream);
        table.entries.insert(id, Entry { stream: stream.clone(), owner, ended: false });
        *table.held.entry(owner).or_default() += 1;
        drop(table);
        drop(forgotten);
        Ok((id, stream))
    }

    /// A connection of this client.
    pub(crate) fn of(&self, owner: u64, id: u32) -> Option<Arc<Stream>> {
        let table = self.lock();
        table.entries.get(&id).filter(|entry| entry.owner == owner).map(|entry| entry.stream.clone())
    }

    /// Ends a connection; whoever else holds it is told by its pump. What was written is still delivered.
    pub(crate) fn close(&self, by: u64, id: u32) {
        let mut table = self.lock();
        let stream = match table.entries.get(&id) {
            Some(entry) if entry.owner == by => table.remove(id).map(|entry| entry.stream),
            Some(entry) => Some(entry.stream.clone()),
            None => None,
        };
        drop(table);
        if let Some(stream) = stream {
            end(&stream);
        }
    }

    /// Ends all connections of a client that went.
    pub(crate) fn close_all(&self, owner: u64) {
        let mut table = self.lock();
        let ids: Vec<u32> =
            table.entries.iter().filter(|(_, entry)| entry.owner == owner).map(|(id, _)| *id).collect();
        let entries: Vec<Entry> = ids.into_iter().filter_map(|id| table.remove(id)).collect();
        drop(table);
        for entry in entries {
            end(&entry.stream);
        }
    }

    /// The peer sends no more; whether the client still has the connection, so that it wants to know.
    fn mark_ended(&self, id: u32, stream: &Arc<Stream>) -> bool {
        let mut table = self.lock();
        let entry = table.entries.get_mut(&id).filter(|entry| Arc::ptr_eq(&entry.stream, stream));
        entry.map(|entry| entry.ended = true).is_some()
    }

    /// The number of each connection that clients have.
    pub(crate) fn numbers(&self) -> HashMap<ConnectionId, u32> {
        self.lock().entries.iter().map(|(id, entry)| (entry.stream.connection_id(), *id)).collect()
    }
}

/// Wakes who reads it; the end of our direction stands behind what was written.
fn end(stream: &Stream) {
    let _ = stream.shutdown(Shutdown::Both);
}

/// Moves bytes from a connection to its client until one of them ends.
pub(crate) fn pump(connections: &Connections, id: u32, stream: &Arc<Stream>, outbox: &Outbox) {
    let mut buf = vec![0; BUFFER];
    loop {
        match Read::read(&mut &**stream, &mut buf) {
            // Whatever the reason: this protocol has one notice for all.
            Ok(0) | Err(_) => break,
            Ok(len) => {
                if !outbox.push(&Reply::Recv { connection: id, data: &buf[..len] }) {
                    return;
                }
            }
        }
    }
    if connections.mark_ended(id, stream) {
        outbox.push(&Reply::CloseOk { connection: id });
    }
}
