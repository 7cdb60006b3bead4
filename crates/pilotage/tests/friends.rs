//! Friends who ask about records (spec/replica.md §8): how many are served, and how much each may ask.

mod common;

use std::io::{self, Read as _, Write as _};
use std::time::SystemTime;

use common::{SECOND, at, builder, eventually, identity, node, within};
use pilotage::records::{FRIEND_PORT, Records, RecordsConfig};
use pilotage::{Node, Stream};
use pilotage_registry::book::message::{Query, Reply, Request, next_frame};
use pilotage_registry::record::sign_with;
use pilotage_registry::replica::cache::Cache;
use pilotage_wire::NetworkId;
use pilotage_wire::addressing::{agent_id, derive_node_id};
use pilotage_wire::record::Record;

/// Friends served at once, and questions of each, as spec/replica.md says.
const SERVED: usize = 8;
const QUESTIONS: u32 = 32;

/// A node that remembers one agent, and reaches no registry.
fn friend(dir: &std::path::Path) -> (Node, Records, Query, Vec<u8>) {
    let now = SystemTime::now();
    let unix = now.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs();
    let known = identity(77);
    let key = known.public_key();
    let id = derive_node_id(&key, 0).expect("an address");
    let mut record = Record::new(NetworkId(0), id, 0, key, 1, unix as u32);
    record.ttl = 3_600;
    let bytes = sign_with(&mut record, key, |message| known.sign(message)).expect("in bounds");
    let mut cache = Cache::open(&dir.join("records"), Vec::new(), unix).expect("cache");
    cache.renew(&record, &bytes, now);
    let node = builder().identity(identity(1)).start().expect("node");
    // Nobody listens there.
    let records = Records::start(&node, RecordsConfig::new("127.0.0.1:1", dir)).expect("records");
    assert_eq!(records.status().remembered, 1);
    (node, records, Query::Agent { id: agent_id(&key), network: NetworkId(0) }, bytes)
}

fn open(from: &Node, to: &Node) -> Stream {
    let stream = from.connect(at(to), FRIEND_PORT).expect("connect");
    stream.set_read_timeout(Some(20 * SECOND)).expect("in bounds");
    stream
}

/// One question, and the answer with its number.
fn ask(stream: &mut Stream, number: u32, query: &Query) -> io::Result<Reply> {
    let mut out = Vec::new();
    Request::Resolve { query: query.clone(), proof: true }.encode(number, &mut out);
    stream.write_all(&out)?;
    let (mut input, mut chunk) = (Vec::new(), [0; 2_048]);
    loop {
        if let Some((of, kind, body, _)) = next_frame(&input).map_err(|_| io::Error::other("no frame"))? {
            assert_eq!(of, number);
            return Reply::decode(kind, body).map_err(|_| io::Error::other("no answer"));
        }
        match stream.read(&mut chunk)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            len => input.extend_from_slice(&chunk[..len]),
        }
    }
}

#[test]
fn one_friend_too_many_is_hung_up_on_and_the_others_are_served() {
    within(120 * SECOND, || {
        let dir = tempfile::tempdir().expect("directory");
        let (friend, records, query, bytes) = friend(dir.path());
        let good = Reply::Resolved { record: Some(bytes), claim: None };
        let asker = node();
        let mut streams: Vec<(Stream, u32)> = Vec::new();
        // Who has come before asks again each time: who says nothing for three seconds is left.
        let all_ask = |streams: &mut Vec<(Stream, u32)>| {
            for (stream, number) in streams {
                *number += 1;
                assert_eq!(ask(stream, *number, &query).expect("served"), good);
            }
        };
        for _ in 0..SERVED {
            streams.push((open(&asker, &friend), 0));
            all_ask(&mut streams);
        }
        let mut surplus = open(&asker, &friend);
        assert!(ask(&mut surplus, 1, &query).is_err(), "one more was served");
        all_ask(&mut streams);
        assert_eq!(records.status().answered, (SERVED * (SERVED + 1) / 2 + SERVED) as u64);
        // One goes: there is room for another.
        drop(streams.pop());
        eventually(|| ask(&mut open(&asker, &friend), 1, &query).is_ok());
        asker.close();
        friend.close();
    });
}

#[test]
fn one_friend_may_ask_so_much_and_no_more() {
    within(120 * SECOND, || {
        let dir = tempfile::tempdir().expect("directory");
        let (friend, records, query, bytes) = friend(dir.path());
        let good = Reply::Resolved { record: Some(bytes), claim: None };
        let asker = node();
        let mut stream = open(&asker, &friend);
        for number in 1..=QUESTIONS {
            assert_eq!(ask(&mut stream, number, &query).expect("answered"), good);
        }
        assert!(ask(&mut stream, QUESTIONS + 1, &query).is_err(), "one more was answered");
        assert_eq!(records.status().answered, u64::from(QUESTIONS));
        // It may come again.
        assert_eq!(ask(&mut open(&asker, &friend), 1, &query).expect("answered"), good);
        asker.close();
        friend.close();
    });
}
