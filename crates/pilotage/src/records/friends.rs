//! Asking a friend, and being asked (spec/replica.md §8): frames of the registry's protocol over a stream.

use std::io::{self, Read as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use pilotage_registry::book::message::{HEADER_LEN, Query, Reply, Request};
use pilotage_registry::replica::cache::Known;
use pilotage_wire::Address;

use super::{FRIEND_PORT, Inner, lock, spawn, unix};
use crate::listener::Listener;
use crate::node::Node;
use crate::peer::Peer;
use crate::stream::Stream;

/// Friends served at once; a further one is hung up on.
const MAX_SERVED: usize = 8;
/// Questions of one stream.
const MAX_QUESTIONS: usize = 32;
/// Longest question: a hostname.
const MAX_QUESTION: usize = 128;
/// Longest answer: record, claim, proof, head.
const MAX_ANSWER: usize = 16 * 1_024;
/// Friends that are asked.
const MAX_ASKED: usize = 4;
/// What friends did not know is not asked again before this has passed.
const AGAIN: Duration = Duration::from_secs(10);
/// Questions that are remembered as asked in vain.
const MAX_UNKNOWN: usize = 256;
const PATIENCE: Duration = Duration::from_secs(3);
const TICK: Duration = Duration::from_millis(250);

pub(super) fn serve(inner: &Arc<Inner>, listener: &Listener) {
    let served = Arc::new(AtomicUsize::new(0));
    while !inner.stopped() {
        let stream = match listener.accept_timeout(TICK) {
            Ok(Some(stream)) => stream,
            Ok(None) => continue,
            Err(_) => return,
        };
        if served.fetch_add(1, Ordering::AcqRel) >= MAX_SERVED {
            served.fetch_sub(1, Ordering::AcqRel);
            continue;
        }
        let (inner, count) = (inner.clone(), served.clone());
        let run = move || {
            if let Err(error) = answer(&inner, stream) {
                tracing::debug!(%error, "a friend's question was not answered");
            }
            count.fetch_sub(1, Ordering::AcqRel);
        };
        if spawn("pilotage-friend", run).is_err() {
            served.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

fn answer(inner: &Inner, mut stream: Stream) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    for _ in 0..MAX_QUESTIONS {
        let Some((number, kind, body)) = frame(&mut stream, MAX_QUESTION)? else { return Ok(()) };
        let reply = match Request::decode(kind, &body) {
            Ok(Request::Resolve { query, .. }) => lock(&inner.cache).answer(&query, unix().as_secs()),
            _ => Reply::NotFound,
        };
        if matches!(reply, Reply::Resolved { .. }) {
            lock(&inner.status).answered += 1;
        }
        let mut out = Vec::new();
        reply.encode(number, &mut out);
        stream.write_all(&out)?;
    }
    Ok(())
}

/// Number, kind and body; `None` at the end.
fn frame(stream: &mut Stream, most: usize) -> io::Result<Option<(u32, u8, Vec<u8>)>> {
    let mut head = [0; HEADER_LEN];
    match stream.read_exact(&mut head) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let [a, b, c, d, e, f, g, h, kind] = head;
    let len = u32::from_be_bytes([a, b, c, d]) as usize;
    let body = len.checked_sub(HEADER_LEN - 4).filter(|body| *body <= most);
    let mut body = vec![0; body.ok_or_else(|| io::Error::other("a frame of this length is none"))?];
    stream.read_exact(&mut body)?;
    Ok(Some((u32::from_be_bytes([e, f, g, h]), kind, body)))
}

/// Asks those with a tunnel, then those whose record says where they are. What is not proven is not believed.
pub(super) fn ask(inner: &Arc<Inner>, query: &Query) -> Option<Known> {
    // Strangers who call must not make us ask again and again.
    lock(&inner.unknown).retain(|(_, asked)| asked.elapsed() < AGAIN);
    if !inner.config.friends || lock(&inner.unknown).iter().any(|(known, _)| known == query) {
        return None;
    }
    let node = lock(&inner.node).clone()?;
    let us = node.address().node;
    let mut friends: Vec<Peer> = Vec::new();
    let tunnels = node.peers().into_iter().filter(|tunnel| tunnel.established);
    friends.extend(tunnels.map(|tunnel| Peer::Address(tunnel.peer)));
    for (network, id, endpoints) in lock(&inner.cache).agents(unix().as_secs()) {
        let address = Address { network, node: id };
        let wanted = matches!(query, Query::Address { node, .. } if *node == id);
        if let Some(at) = endpoints.first()
            && id != us
            && !wanted
            && !friends.contains(&Peer::Address(address))
        {
            friends.push(Peer::At(address, *at));
        }
    }
    friends.truncate(MAX_ASKED);
    let known = friends.into_iter().find_map(|friend| ask_one(inner, &node, &friend, query));
    if known.is_none() {
        let mut unknown = lock(&inner.unknown);
        if unknown.len() >= MAX_UNKNOWN {
            unknown.pop_front();
        }
        unknown.push_back((query.clone(), Instant::now()));
    }
    known
}

fn ask_one(inner: &Arc<Inner>, node: &Node, friend: &Peer, query: &Query) -> Option<Known> {
    // A connection that does not come about in time is left to itself.
    let (send, receive) = std::sync::mpsc::sync_channel(1);
    let (node, target) = (node.clone(), friend.clone());
    spawn("pilotage-ask", move || drop(send.send(node.open(target, FRIEND_PORT)))).ok()?;
    let mut stream = receive.recv_timeout(PATIENCE).ok()?.ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let mut out = Vec::new();
    Request::Resolve { query: query.clone(), proof: true }.encode(1, &mut out);
    stream.write_all(&out).ok()?;
    let (_, kind, body) = frame(&mut stream, MAX_ANSWER).ok()??;
    let reply = Reply::decode(kind, &body).ok()?;
    let believed = lock(&inner.cache).believe(query, &reply, unix().as_secs(), SystemTime::now());
    match believed {
        Ok(known) => Some(known),
        Err(error) => {
            tracing::debug!(%error, %friend, "a friend does not know, or is not believed");
            None
        }
    }
}
