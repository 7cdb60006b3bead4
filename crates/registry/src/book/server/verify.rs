//! Threads that check what writes bring, many at a time, and hand what is good to the writer.

use super::super::message::{ClaimAnswer, RecordAnswer, Reply};
use super::answer::failed;
use super::points::Points;
use super::{Answer, Place, Shared, lock, replica};
use crate::claims::local::{Published, Write, Written};
use crate::claims::{Claim, LogError, check_with};
use crate::record::verify_with;
use crate::replica::owner_key;
use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// Writes taken at a time.
const GROUP: usize = 128;
/// Writes that wait; more are refused as busy.
const MAX_WAITING: usize = 16 * 1_024;

/// A write that waits to be checked.
#[derive(Debug)]
pub(super) struct Check {
    pub(super) place: Place,
    pub(super) claims: Vec<Vec<u8>>,
    pub(super) record: Option<Vec<u8>>,
    /// For the replica; otherwise for the log.
    pub(super) put: bool,
}

#[derive(Debug, Default)]
pub(super) struct Checks {
    queue: Mutex<(VecDeque<Check>, bool)>,
    wake: Condvar,
}

impl Checks {
    /// False if too much waits.
    pub(super) fn push(&self, check: Check) -> bool {
        let mut queue = lock(&self.queue);
        if queue.0.len() >= MAX_WAITING {
            return false;
        }
        queue.0.push_back(check);
        drop(queue);
        self.wake.notify_one();
        true
    }

    pub(super) fn stop(&self) {
        lock(&self.queue).1 = true;
        self.wake.notify_all();
    }

    fn take(&self) -> Option<Vec<Check>> {
        let mut queue = lock(&self.queue);
        while queue.0.is_empty() && !queue.1 {
            queue = self.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        if queue.1 {
            return None;
        }
        let count = queue.0.len().min(GROUP);
        Some(queue.0.drain(..count).collect())
    }
}

pub(super) fn run(shared: &Arc<Shared>) {
    let mut keys = Points::default();
    while let Some(checks) = shared.checks.take() {
        group(shared, checks, &mut keys);
    }
}

/// A write whose claims could be read.
struct Sorted {
    place: Place,
    /// What is answered to a claim already.
    answers: Vec<Option<ClaimAnswer>>,
    record: Option<Vec<u8>>,
    put: bool,
}

fn group(shared: &Arc<Shared>, checks: Vec<Check>, keys: &mut Points) {
    let mut claims: Vec<Claim> = Vec::new();
    let mut owners = Vec::new();
    let mut sorted = Vec::with_capacity(checks.len());
    for (at, check) in checks.into_iter().enumerate() {
        let mut answers = Vec::with_capacity(check.claims.len());
        for bytes in &check.claims {
            match Claim::decode(bytes) {
                Ok(claim) => {
                    claims.push(claim);
                    owners.push((at, answers.len()));
                    answers.push(None);
                }
                Err(error) => answers.push(Some(ClaimAnswer::Refused(error.to_string()))),
            }
        }
        sorted.push(Sorted { place: check.place, answers, record: check.record, put: check.put });
    }
    let checked = check_with(&claims, shared.shelf.log().pow_bits(), &mut |key| keys.get(key));
    let mut good: Vec<Vec<Claim>> = sorted.iter().map(|_| Vec::new()).collect();
    for ((claim, result), (at, which)) in claims.into_iter().zip(checked).zip(owners) {
        match result {
            Ok(()) => good[at].push(claim),
            Err(why) => sorted[at].answers[which] = Some(ClaimAnswer::Refused(why.to_string())),
        }
    }
    let records: Vec<&[u8]> = sorted.iter().filter_map(|write| write.record.as_deref()).collect();
    let mut verified = verify_with(&records, &mut |key| keys.get(key)).into_iter();
    let verified: Vec<_> =
        sorted.iter().map(|write| write.record.as_ref().and_then(|_| verified.next())).collect();
    for ((write, claims), verified) in sorted.into_iter().zip(good).zip(verified) {
        submit(shared, write, claims, verified);
    }
}

fn submit(
    shared: &Arc<Shared>,
    sorted: Sorted,
    claims: Vec<Claim>,
    verified: Option<Result<pilotage_wire::record::Record, crate::record::Unbelievable>>,
) {
    let Sorted { place, answers, record, put } = sorted;
    if put {
        let refused = answers.into_iter().flatten().find_map(|answer| match answer {
            ClaimAnswer::Refused(why) => Some(why),
            _ => None,
        });
        let claim = claims.into_iter().next().ok_or_else(|| refused.unwrap_or_default());
        let record = match (verified, record) {
            (Some(Ok(parsed)), Some(bytes)) => Ok((parsed, bytes)),
            (Some(Err(why)), _) => Err(why.to_string()),
            _ => Err("there is no record".to_owned()),
        };
        return replica::submit(shared, place, claim, record);
    }
    let (record, refused) = match (verified, record) {
        (Some(Ok(parsed)), Some(bytes)) => (Some((parsed, bytes)), RecordAnswer::None),
        (Some(Err(why)), _) => (None, RecordAnswer::Refused(why.to_string())),
        _ => (None, RecordAnswer::None),
    };
    let answer_to = shared.clone();
    // Who watches hears of it.
    let news = shared.config.replica.clone().zip(record.as_ref());
    let news = news.map(|(replica, (record, bytes))| {
        (replica, owner_key(&record.agent_id(), record.network), bytes.clone())
    });
    let done = move |written: Result<Written, LogError>| {
        if let (Some((replica, owner, bytes)), Ok(Written { record: Some(Published::Stored), .. })) =
            (news, &written)
        {
            replica.changed(&owner, &bytes);
        }
        let reply = match written {
            Ok(written) => reply(answers, refused, written),
            Err(error) => failed(&error),
        };
        answer_to.answer([Answer { place, reply }]);
    };
    if let Err(error) = shared.shelf.submit(Write { claims, record }, Box::new(done)) {
        shared.busy.fetch_add(1, Ordering::Relaxed);
        shared.answer([Answer { place, reply: failed(&error) }]);
    }
}

fn reply(answers: Vec<Option<ClaimAnswer>>, refused: RecordAnswer, written: Written) -> Reply {
    let mut outcomes = written.outcomes.into_iter();
    let missing = || ClaimAnswer::Refused("not decided".into());
    let claims = answers
        .into_iter()
        .map(|answer| answer.or_else(|| outcomes.next().map(ClaimAnswer::from)).unwrap_or_else(missing))
        .collect();
    let record = match written.record {
        None => refused,
        Some(published) => replica::record_answer(published),
    };
    Reply::Registered { claims, record }
}
