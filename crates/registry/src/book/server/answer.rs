//! Answers to questions: from the state at once, or later if a head needs signatures or the node has to catch up first.

use super::super::handover::Handover;
use super::super::message::{ClaimPart, MAX_LEAVES, Query, Reply, Request};
use super::super::shelf::{Look, Shelf};
use super::verify::Check;
use super::{Answer, Place, Shared, replica};
use crate::claims::{LogError, MAX_HEAD_SIGNATURES, SignedHead, TreeHead};
use crate::replica::owner_key;
use pilotage_wire::record::Rank;
use pilotage_wire::{NetworkId, addressing};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The answer, or `None` if it comes later.
pub(super) fn decide<'a>(
    shared: &'a Arc<Shared>,
    look: &mut Option<Box<dyn Look + 'a>>,
    place: Place,
    request: Result<Request, String>,
) -> Option<Reply> {
    let request = match request {
        Ok(request) => request,
        Err(text) => return Some(Reply::Error { transient: false, text }),
    };
    match request {
        Request::Register { claims, record } => {
            if shared.checks.push(Check { place, claims, record, put: false }) {
                return None;
            }
            shared.busy.fetch_add(1, Ordering::Relaxed);
            Some(failed(&LogError::Busy))
        }
        Request::Resolve { query, proof } => resolve(shared, look, place, query, proof),
        Request::Replica(ask) => replica::decide(shared, look, place, ask),
        Request::Head { partition, from } => head(shared, place, partition, from),
        Request::Handover { from, nonce } => Some(handover(shared, &from, &nonce)),
        other => Some(simple(&*shared.shelf, other).unwrap_or_else(|error| failed(&error))),
    }
}

/// What the key of before says to who asks for it, and to nobody else.
fn handover(shared: &Shared, from: &[u8; 32], nonce: &[u8; 32]) -> Reply {
    let signers = shared.shelf.log().signers();
    match shared.config.former.as_ref().filter(|former| former.key == *from && !signers.is_empty()) {
        Some(former) => {
            Reply::Handover(Handover::new(from, nonce, signers, |message| (former.sign)(message)))
        }
        None => Reply::NotFound,
    }
}

pub(super) fn failed(error: &LogError) -> Reply {
    let transient = matches!(
        error,
        LogError::Busy
            | LogError::Unavailable { .. }
            | LogError::NotLeader { .. }
            | LogError::NoQuorum { .. }
    );
    Reply::Error { transient, text: error.to_string() }
}

fn later(shared: &Arc<Shared>, place: Place, reply: Result<Reply, LogError>) {
    let reply = reply.unwrap_or_else(|error| failed(&error));
    shared.answer([Answer { place, reply }]);
}

fn simple(shelf: &dyn Shelf, request: Request) -> Result<Reply, LogError> {
    let log = shelf.log();
    match request {
        Request::Info => Ok(Reply::Info {
            node: log.node_key(),
            pow_bits: log.pow_bits(),
            time: shelf.now(),
            claims: log.claims() as u64,
            records: shelf.records()?,
        }),
        Request::Nodes => {
            let mut keys = log.signers();
            keys.truncate(MAX_HEAD_SIGNATURES);
            Ok(Reply::Nodes(keys))
        }
        Request::Leaves { partition, from, limit } => {
            let leaves = log.read(partition, from, usize::from(limit).min(MAX_LEAVES))?;
            Ok(Reply::Leaves(leaves.into_iter().map(|leaf| (leaf.index, leaf.claim.encode())).collect()))
        }
        // Taken care of before.
        _ => Ok(Reply::NotFound),
    }
}

fn head(shared: &Arc<Shared>, place: Place, partition: u8, from: u64) -> Option<Reply> {
    let size = shared.shelf.log().head(partition).size;
    let ready = size.checked_sub(1).and_then(|last| shared.shelf.log().ready_head(partition, last));
    if let Some(head) = ready {
        return Some(continued(&*shared.shelf, head, from));
    }
    let asked = shared.clone();
    let then = move |head: Result<SignedHead, LogError>| {
        let reply = head.map(|head| continued(&*asked.shelf, head, from));
        later(&asked, place, reply);
    };
    shared.shelf.log().newest_head(partition, Box::new(then));
    None
}

fn continued(shelf: &dyn Shelf, head: SignedHead, from: u64) -> Reply {
    let TreeHead { partition, size, .. } = head.head;
    let proof = match from {
        0 => Some(Default::default()),
        from => shelf.log().prove_consistency(partition, from, size),
    };
    proof.map_or(Reply::NotFound, |proof| Reply::Head { head, proof })
}

/// What was found of a query.
enum Found {
    Nothing,
    /// All that was asked for.
    Whole(Reply),
    /// A record, and a claim that is still to be proven.
    Unproven(Option<Vec<u8>>, u8, u64, Vec<u8>),
}

fn resolve<'a>(
    shared: &'a Arc<Shared>,
    look: &mut Option<Box<dyn Look + 'a>>,
    place: Place,
    query: Query,
    proof: bool,
) -> Option<Reply> {
    let found = match look {
        Some(look) => Ok(look),
        None => shared.shelf.look().map(|new| look.insert(new)),
    }
    .and_then(|look| find(shared, &**look, &query, proof));
    match found {
        Err(error) => Some(failed(&error)),
        Ok(Found::Whole(reply)) => Some(reply),
        Ok(Found::Unproven(record, partition, index, claim)) => {
            prove(shared, place, record, (partition, index, claim))
        }
        Ok(Found::Nothing) if query.subject().is_none() => Some(Reply::NotFound),
        // Perhaps granted at another node a moment ago.
        Ok(Found::Nothing) => {
            let asked = shared.clone();
            let again = move || {
                let reply = asked.shelf.look().and_then(|look| find(&asked, &*look, &query, proof));
                match reply {
                    Ok(Found::Unproven(record, partition, index, claim)) => {
                        if let Some(reply) = prove(&asked, place, record, (partition, index, claim)) {
                            later(&asked, place, Ok(reply));
                        }
                    }
                    Ok(Found::Whole(reply)) => later(&asked, place, Ok(reply)),
                    Ok(Found::Nothing) => later(&asked, place, Ok(Reply::NotFound)),
                    Err(error) => later(&asked, place, Err(error)),
                }
            };
            if shared.shelf.log().catch_up(Box::new(again)) { None } else { Some(Reply::NotFound) }
        }
    }
}

fn find(shared: &Shared, look: &dyn Look, query: &Query, proof: bool) -> Result<Found, LogError> {
    let network = query.network();
    let Some(subject) = query.subject() else {
        let Query::Agent { id, .. } = query else { return Ok(Found::Nothing) };
        let record = newest(shared, look, id, network)?;
        return Ok(record.map_or(Found::Nothing, |record| {
            Found::Whole(Reply::Resolved { record: Some(record), claim: None })
        }));
    };
    let Some((index, claim)) = look.claim(&subject)? else { return Ok(Found::Nothing) };
    let key = crate::claims::key_of(&claim).unwrap_or_default();
    let record = newest(shared, look, &addressing::agent_id(&key), network)?;
    if proof {
        return Ok(Found::Unproven(record, subject.partition(), index, claim));
    }
    let claim = Some(ClaimPart { index, claim, proof: None });
    Ok(Found::Whole(Reply::Resolved { record, claim }))
}

/// The record as it was registered here, or put here as at a replica, whichever is the newer one.
fn newest(
    shared: &Shared,
    look: &dyn Look,
    id: &[u8; 32],
    network: NetworkId,
) -> Result<Option<Vec<u8>>, LogError> {
    let registered = look.record(id, network)?;
    let Some(replica) = &shared.config.replica else { return Ok(registered) };
    // Of most agents there is one of both only. A rank is a hash of the whole record.
    let Some(put) = replica.held(&owner_key(id, network)).map(|held| held.record) else {
        return Ok(registered);
    };
    let newer = Rank::of(&put) > registered.as_deref().and_then(Rank::of);
    Ok(if newer { Some(put) } else { registered })
}

/// With the proof, from a head that is at hand or from the next one.
fn prove(
    shared: &Arc<Shared>,
    place: Place,
    record: Option<Vec<u8>>,
    (partition, index, claim): (u8, u64, Vec<u8>),
) -> Option<Reply> {
    let whole = move |shelf: &dyn Shelf, head: SignedHead| -> Result<Reply, LogError> {
        let proof = shelf.log().prove(partition, index, head.head.size)?;
        let claim = Some(ClaimPart { index, claim, proof: Some((proof, head)) });
        Ok(Reply::Resolved { record, claim })
    };
    if let Some(head) = shared.shelf.log().ready_head(partition, index) {
        return Some(whole(&*shared.shelf, head).unwrap_or_else(|error| failed(&error)));
    }
    let asked = shared.clone();
    let then = move |head: Result<SignedHead, LogError>| {
        let reply = head.and_then(|head| whole(&*asked.shelf, head));
        later(&asked, place, reply);
    };
    shared.shelf.log().newest_head(partition, Box::new(then));
    None
}
