//! The DHT while it is open: opened when it is needed, closed when it is not.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use futures_lite::StreamExt as _;
use mainline::async_dht::{AsyncDht, GetMutableDetailed};
use mainline::errors::{ConcurrencyError, PutMutableError};
use mainline::{DEFAULT_BOOTSTRAP_NODES, Dht};
use pilotage::NetworkId;
use pilotage::records::{Public, Sign};

use crate::wait::until;
use crate::{MAX_FOUND, MainlineConfig, item, lock};

/// Unused for so long, it is closed.
const IDLE: Duration = Duration::from_secs(60);
/// It is closed at this age in any case: after 15 minutes the library would make a node that can be reached from everywhere a
/// server, which stores what belongs to others.
const MAX_AGE: Duration = Duration::from_secs(10 * 60);
/// Nodes that are remembered for the next time, beside those to begin with.
const MAX_REMEMBERED: usize = 32;
/// Longest value that is looked at, bytes: no record is longer.
const MAX_VALUE: usize = 900;
/// For questions that the library answers by itself.
const MOMENT: Duration = Duration::from_millis(500);

/// The DHT, open or not.
#[derive(Debug)]
pub(crate) struct Client {
    bootstrap: Vec<String>,
    bind: Option<Ipv4Addr>,
    answer: Duration,
    live: Mutex<Live>,
}

#[derive(Debug, Default)]
struct Live {
    open: Option<Open>,
    /// Nodes that answered the last time.
    remembered: Vec<String>,
}

#[derive(Debug)]
struct Open {
    dht: AsyncDht,
    since: Instant,
    used: Instant,
}

impl Client {
    pub(crate) fn new(config: &MainlineConfig) -> Self {
        let MainlineConfig { bootstrap, bind, answer, .. } = config;
        Self { bootstrap: bootstrap.clone(), bind: *bind, answer: *answer, live: Mutex::default() }
    }

    /// Stores a record; how many nodes took it.
    pub(crate) fn put(&self, record: &Public, sign: &Sign, deadline: Instant) -> Result<u32, String> {
        let item = item::of(record, sign).ok_or("the record's number is greater than the DHT allows")?;
        let stored = self.with(|dht| match until(deadline, dht.put_mutable(item, None)) {
            Some(Ok(outcome)) => (Ok(outcome.stored_at), true),
            Some(Err(error)) => (Err(explain(&error)), true),
            None => (Err("no node took it in time; is UDP blocked?".to_owned()), false),
        });
        stored.and_then(|stored| stored)
    }

    /// Tells what lies under a key, the greatest number first; then waits for all others who were asked, and says how many answers
    /// were not signed by the key, or none at all.
    pub(crate) fn get(
        &self,
        key: &[u8; 32],
        network: NetworkId,
        deadline: Instant,
        tell: impl FnOnce(Vec<Vec<u8>>),
    ) -> Result<u64, String> {
        let salt = item::salt(network);
        // Once something was found, others have so long to say something newer before it is told.
        let settle = self.answer * 3 / 4;
        self.with(|dht| {
            let GetMutableDetailed { mut items, outcome } = dht.get_mutable_detailed(key, Some(&salt), None);
            let (mut found, mut end) = (BTreeSet::new(), deadline);
            let mut complete = loop {
                match until(end, items.next()) {
                    Some(Some(item)) => {
                        if item.value().len() <= MAX_VALUE {
                            found.insert((item.seq(), item.value().to_vec()));
                        }
                        if found.len() > MAX_FOUND {
                            found.pop_first();
                        }
                        end = end.min(Instant::now() + settle);
                    }
                    Some(None) => break true,
                    None => break false,
                }
            };
            tell(found.into_iter().rev().map(|(_, value)| value).collect());
            while !complete {
                match until(deadline, items.next()) {
                    Some(Some(_)) => {}
                    Some(None) => complete = true,
                    None => break,
                }
            }
            let outcome = complete.then(|| until(Instant::now() + MOMENT, outcome.recv())).flatten();
            let refused = outcome.map_or(0, |outcome| outcome.invalid_values + outcome.invalid_responses);
            (refused.into(), complete)
        })
    }

    /// Does something with the DHT, which says whether the DHT came to an end with it: else it is closed, and with it whatever
    /// keeps it busy.
    fn with<T>(&self, run: impl FnOnce(&AsyncDht) -> (T, bool)) -> Result<T, String> {
        // The library expects its own thread to live, and panics otherwise.
        let done = catch_unwind(AssertUnwindSafe(|| {
            let dht = self.open()?;
            Ok::<_, String>(run(&dht))
        }));
        match done {
            Ok(Ok((output, true))) => {
                if let Some(open) = &mut lock(&self.live).open {
                    open.used = Instant::now();
                }
                Ok(output)
            }
            Ok(Ok((output, false))) => {
                lock(&self.live).open = None;
                Ok(output)
            }
            Ok(Err(why)) => Err(why),
            Err(_) => {
                lock(&self.live).open = None;
                Err("the DHT's own thread has ended".into())
            }
        }
    }

    fn open(&self) -> Result<AsyncDht, String> {
        let mut live = lock(&self.live);
        if live.open.as_ref().is_some_and(|open| open.since.elapsed() >= MAX_AGE) {
            live.close();
        }
        if let Some(open) = &live.open {
            return Ok(open.dht.clone());
        }
        let mut nodes = self.bootstrap.clone();
        if nodes.is_empty() {
            nodes.extend(DEFAULT_BOOTSTRAP_NODES.map(str::to_owned));
        }
        nodes.append(&mut live.remembered);
        let mut builder = Dht::builder();
        builder.port(0).bootstrap(&nodes).request_timeout(self.answer);
        if let Some(bind) = self.bind {
            builder.bind_address(bind);
        }
        let dht = builder.build().map_err(|error| format!("no UDP socket for the DHT: {error}"))?.as_async();
        live.open = Some(Open { dht: dht.clone(), since: Instant::now(), used: Instant::now() });
        Ok(dht)
    }

    /// Closes it if it was not used lately; else says when to look again.
    pub(crate) fn close_idle(&self) -> Option<Duration> {
        // Who opens it just now uses it.
        let Ok(mut live) = self.live.try_lock() else { return Some(IDLE) };
        let open = live.open.as_ref()?;
        let left = IDLE.saturating_sub(open.used.elapsed()).min(MAX_AGE.saturating_sub(open.since.elapsed()));
        if left.is_zero() {
            live.close();
            return None;
        }
        Some(left)
    }
}

impl Live {
    fn close(&mut self) {
        let Some(open) = self.open.take() else { return };
        let known =
            catch_unwind(AssertUnwindSafe(|| until(Instant::now() + MOMENT, open.dht.to_bootstrap())));
        self.remembered = known.ok().flatten().unwrap_or_default();
        self.remembered.truncate(MAX_REMEMBERED);
    }
}

fn explain(error: &PutMutableError) -> String {
    match error {
        PutMutableError::Concurrency(ConcurrencyError::NotMostRecent) => {
            "the DHT has a newer record of this key; does another machine use it?".into()
        }
        PutMutableError::Concurrency(error) => error.to_string(),
        PutMutableError::Query(error) => format!("{error}; is UDP blocked?"),
    }
}
