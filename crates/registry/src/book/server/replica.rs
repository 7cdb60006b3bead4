//! Requests to a replica (`spec/replica.md §3`).

use super::super::message::{Ask, RecordAnswer, Reply, Told};
use super::super::shelf::Look;
use super::answer::failed;
use super::{Answer, Place, Shared, verify};
use crate::claims::local::Published;
use crate::claims::{Claim, LogError, Subject};
use crate::replica::node::Replica;
use crate::replica::store::Put;
use crate::replica::{is_private, owner_in, owner_of};
use crate::store::StoreError;
use pilotage_wire::addressing;
use pilotage_wire::record::Record;
use std::sync::Arc;

/// The answer, or `None` if it comes later.
pub(super) fn decide<'a>(
    shared: &'a Arc<Shared>,
    look: &mut Option<Box<dyn Look + 'a>>,
    place: Place,
    ask: Ask,
) -> Option<Reply> {
    let Some(replica) = &shared.config.replica else {
        return Some(refused("this registry keeps no records for others"));
    };
    match ask {
        Ask::Put { claim, record } => put(shared, replica, place, claim, record),
        Ask::Watch { whose, history, from } => {
            let answer_to = shared.clone();
            let tell = move |told| answer_to.answer([Answer { place, reply: Reply::Replica(told) }]);
            let at = (place.worker, place.conn, place.generation);
            if replica.watch(at, whose, history, from, Box::new(tell)) {
                return None;
            }
            Some(failed(&LogError::Busy))
        }
        other => {
            if look.is_none() {
                *look = shared.shelf.look().ok();
            }
            let published = |owner: &_| {
                let (id, network) = owner_of(owner);
                look.as_ref()?.record(&id, network).ok().flatten()
            };
            let listed = |owner: &_, most| {
                // A private agent is passed over here, not by whoever asks.
                let mut after = *owner;
                let mut found = Vec::new();
                while let Some(page) = look.as_ref().and_then(|look| look.records_after(&after, most).ok()) {
                    let Some(last) = page.last().and_then(|record| owner_in(record)) else { break };
                    after = last;
                    found.extend(page.into_iter().filter(|record| !is_private(record)));
                    if found.len() >= most {
                        break;
                    }
                }
                found
            };
            let mut failure = false;
            let draw = || {
                let mut secret = [0; 32];
                failure = getrandom::fill(&mut secret).is_err();
                secret
            };
            let told = replica.answer(&other, published, listed, draw);
            if failure {
                return Some(refused("no random numbers"));
            }
            Some(told.map_or_else(|text| refused(&text), Reply::Replica))
        }
    }
}

fn refused(text: &str) -> Reply {
    Reply::Error { transient: false, text: text.to_owned() }
}

/// The same again, as agents do each minute, is answered at once; anything else is verified first.
fn put(
    shared: &Arc<Shared>,
    replica: &Arc<Replica>,
    place: Place,
    claim: Vec<u8>,
    record: Vec<u8>,
) -> Option<Reply> {
    if let Some(held) = owner_in(&record).and_then(|owner| replica.held(&owner))
        && held.record == record
        && Record::decode(&record).is_ok_and(|record| record.expires() >= shared.shelf.now())
    {
        return Some(Reply::Replica(Told::Put(RecordAnswer::Stored)));
    }
    if shared.checks.push(verify::Check { place, claims: vec![claim], record: Some(record), put: true }) {
        return None;
    }
    Some(failed(&LogError::Busy))
}

/// A put whose claim and record were verified, or why not.
pub(super) fn submit(
    shared: &Arc<Shared>,
    place: Place,
    claim: Result<Claim, String>,
    record: Result<(Record, Vec<u8>), String>,
) {
    let answer = |answer| shared.answer([Answer { place, reply: Reply::Replica(Told::Put(answer)) }]);
    let Some(replica) = &shared.config.replica else { return };
    let (claim, (record, bytes)) = match (claim, record) {
        (Ok(claim), Ok(record)) => (claim, record),
        (Err(why), _) | (_, Err(why)) => return answer(RecordAnswer::Refused(why)),
    };
    if let Err(why) = may(shared, &claim, &record) {
        return answer(RecordAnswer::Refused(why.into()));
    }
    let put = Put { record, bytes, claim: claim.encode() };
    let answer_to = shared.clone();
    let done = move |result: Result<Published, StoreError>| {
        let reply = match result {
            Ok(published) => Reply::Replica(Told::Put(record_answer(published))),
            Err(error) => Reply::Error { transient: true, text: error.to_string() },
        };
        answer_to.answer([Answer { place, reply }]);
    };
    if !replica.put(put, done) {
        shared.answer([Answer { place, reply: failed(&LogError::Busy) }]);
    }
}

/// Whether the agent may have a record kept: it has done the work for an address that its key derives, or holds it by the
/// log of claims.
fn may(shared: &Shared, claim: &Claim, record: &Record) -> Result<(), &'static str> {
    let address = Subject::Address { network: record.network, node: record.node };
    if claim.subject != address || claim.key != record.key {
        return Err("the claim is not of the record's address and key");
    }
    if claim.is_release() || u64::from(claim.expires) <= shared.shelf.now() {
        return Err("the claim has expired; claim the address again");
    }
    if addressing::derive_node_id(&claim.key, claim.salt) == Some(record.node) {
        return Ok(());
    }
    let holder = shared.shelf.log().holder(&address).ok().flatten();
    if holder.is_some_and(|holder| holder.claim.key == record.key) {
        return Ok(());
    }
    Err("the address does not follow from the key, and this node does not know the key as its holder")
}

pub(super) fn record_answer(published: Published) -> RecordAnswer {
    match published {
        Published::Stored => RecordAnswer::Stored,
        Published::Older { seq } => RecordAnswer::Older(seq),
        Published::NoClaim => RecordAnswer::Refused(
            "the record's key does not hold its address; claim the address first".into(),
        ),
        Published::Refused(why) => RecordAnswer::Refused(why.to_string()),
        Published::Full => RecordAnswer::Refused("this registry holds as many records as it may".into()),
    }
}
