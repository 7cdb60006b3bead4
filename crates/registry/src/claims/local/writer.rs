//! The writer thread: decides, commits, answers.

use super::disk::{RecordKey, record_key};
use super::{
    Done, Job, MAX_GROUP, Published, Reader, Shared, SignedRecord, Write, Written, lock, rank, stopped,
};
use crate::claims::{Applied, Batch, Claims, LogError, PARTITIONS, Subject, TreeHead};
use crate::record::{check_time, replaces};
use pilotage_wire::record::Record;
use std::collections::BTreeMap;

/// A write of the batch in hand.
struct Item {
    done: Option<Done>,
    answer: Written,
}

pub(super) fn run(shared: &Shared) {
    while let Some(jobs) = next(shared) {
        let mut writes = Vec::new();
        for (job, done) in jobs {
            match job {
                Job::Write(write) => writes.push((write, done)),
                Job::Install(snapshot) => {
                    batch(shared, std::mem::take(&mut writes));
                    let result = install(shared, &snapshot);
                    let nothing = Written { outcomes: Vec::new(), record: None };
                    answer(done, result.map(|()| nothing));
                }
            }
        }
        batch(shared, writes);
    }
    for (_, done) in lock(&shared.queue).items.drain(..) {
        answer(done, Err(stopped()));
    }
}

/// Waits for work; at most a batch of it. `None` at the end.
fn next(shared: &Shared) -> Option<Vec<(Job, Option<Done>)>> {
    let mut queue = lock(&shared.queue);
    loop {
        if queue.stop {
            return None;
        }
        if !queue.items.is_empty() {
            break;
        }
        queue = shared.wake.wait(queue).unwrap_or_else(std::sync::PoisonError::into_inner);
    }
    let (mut taken, mut weight) = (Vec::new(), 0);
    while let Some((job, _)) = queue.items.front() {
        let more = job.weight();
        // One that is larger than a batch goes alone.
        if weight > 0 && weight + more > MAX_GROUP {
            break;
        }
        weight += more;
        taken.extend(queue.items.pop_front());
    }
    queue.weight = queue.weight.saturating_sub(weight);
    Some(taken)
}

fn answer(done: Option<Done>, result: Result<Written, LogError>) {
    if let Some(done) = done {
        done(result);
    }
}

fn batch(shared: &Shared, writes: Vec<(Write, Option<Done>)>) {
    if writes.is_empty() {
        return;
    }
    if let Err(error) = reopen(shared) {
        let reason = error.to_string();
        for (_, done) in writes {
            answer(done, Err(LogError::Unavailable { reason: reason.clone() }));
        }
        return;
    }
    let (mut claims, mut spans, mut records) = (Vec::new(), Vec::new(), Vec::new());
    let mut items = Vec::with_capacity(writes.len());
    for (write, done) in writes {
        let start = claims.len();
        claims.extend(write.claims);
        spans.push(start..claims.len());
        records.push(write.record);
        items.push(Item { done, answer: Written { outcomes: Vec::new(), record: None } });
    }
    let batch = Batch { time: (shared.config.clock)(), claims };
    let applied = shared.claims_mut().apply(&batch);
    let (kept, decided) = decide_records(shared, &records);
    for ((item, span), record) in items.iter_mut().zip(spans).zip(decided) {
        item.answer.outcomes = applied.outcomes[span].to_vec();
        item.answer.record = record;
    }
    match commit(shared, &applied, &kept) {
        Ok(heads) => {
            if let Some(heads) = heads {
                shared.committed(&applied, heads);
            }
            for item in items {
                answer(item.done, Ok(item.answer));
            }
        }
        Err(error) => {
            tracing::error!(%error, "registry's store failed: claims and records are refused until it works again");
            shared.claims_mut().undo(applied);
            let reason = error.to_string();
            for item in items {
                answer(item.done, Err(LogError::Unavailable { reason: reason.clone() }));
            }
        }
    }
}

/// The heads after the batch; `None` if there was nothing to write.
fn commit(
    shared: &Shared,
    applied: &Applied,
    records: &Kept<'_>,
) -> Result<Option<[TreeHead; PARTITIONS]>, LogError> {
    if applied.granted.is_empty() && applied.removed.is_empty() && records.is_empty() {
        return Ok(None);
    }
    let (clock, heads) = {
        let claims = shared.claims();
        let heads = std::array::from_fn(|partition| claims.head(partition as u8));
        ((claims.time(), claims.next_sweep()), heads)
    };
    shared.disk.commit(applied, records, clock, &heads)?;
    Ok(Some(heads))
}

/// Records to store, in the order in which the file has them: neighbours share pages.
pub(super) type Kept<'a> = BTreeMap<RecordKey, &'a SignedRecord>;
/// Those, and what is answered to each that came.
type Decided<'a> = (Kept<'a>, Vec<Option<Published>>);

/// Which records are to be stored, and what is answered to each.
fn decide_records<'a>(shared: &Shared, records: &'a [Option<SignedRecord>]) -> Decided<'a> {
    let mut stored = shared.disk.records().unwrap_or(0);
    let claims = shared.claims();
    let reader = shared.disk.reader(claims.time()).ok();
    // The newest of this batch per agent and network: none of them is on disk yet.
    let mut newest = Kept::new();
    let mut answers = Vec::with_capacity(records.len());
    for entry in records {
        answers.push(entry.as_ref().map(|entry| {
            let key = record_key(&entry.0.agent_id(), entry.0.network);
            let before = newest.get(&key).copied();
            let answer = decide_record(shared, &claims, reader.as_ref(), (&key, entry), before, &mut stored);
            match answer {
                Ok(published) => published,
                Err(()) => {
                    newest.insert(key, entry);
                    Published::Stored
                }
            }
        }));
    }
    (newest, answers)
}

/// `Err` if the record is to be stored.
fn decide_record(
    shared: &Shared,
    claims: &Claims,
    reader: Option<&Reader>,
    (key, (record, bytes)): (&RecordKey, &SignedRecord),
    in_batch: Option<&SignedRecord>,
    stored: &mut u64,
) -> Result<Published, ()> {
    if let Err(error) = check_time(record, claims.time()) {
        return Ok(Published::Refused(error));
    }
    let address = Subject::Address { network: record.network, node: record.node };
    let held = match &shared.config.holders {
        Some(log) => log.holder(&address).ok().flatten(),
        None => claims.holder(&address),
    };
    let holds = held.is_some_and(|held| held.claim.key == record.key);
    // Who has changed its key says so with the old one, which holds the address no more.
    if !holds && record.tombstone.is_none() {
        return Ok(Published::NoClaim);
    }
    let old = match in_batch {
        Some((old, bytes)) => Some((old.clone(), bytes.clone())),
        None => {
            let bytes = reader.and_then(|reader| reader.record_at(key).ok().flatten());
            bytes.and_then(|bytes| Some((Record::decode(&bytes).ok()?, bytes)))
        }
    };
    match old {
        None if !holds => Ok(Published::NoClaim),
        None if *stored >= shared.config.records as u64 => Ok(Published::Full),
        None => {
            *stored += 1;
            Err(())
        }
        Some((_, old_bytes)) if old_bytes == *bytes => Ok(Published::Stored),
        Some((old, old_bytes)) if replaces(&old, rank(&old_bytes), rank(bytes)) => Err(()),
        Some((old, _)) => Ok(Published::Older { seq: old.seq }),
    }
}

/// After an error: opens the file again and takes over what it says.
fn reopen(shared: &Shared) -> Result<(), LogError> {
    if let Some(claims) = shared.disk.reopen(&shared.config)? {
        tracing::info!("registry's store works again");
        shared.replaced(claims);
    }
    Ok(())
}

fn install(shared: &Shared, snapshot: &[u8]) -> Result<(), LogError> {
    reopen(shared)?;
    let mut claims = Claims::new(shared.config.limits);
    claims.install(snapshot)?;
    shared.disk.install(&claims)?;
    shared.replaced(claims);
    Ok(())
}
