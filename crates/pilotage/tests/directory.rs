//! What a directory that everybody can write may say, and what is made of it (spec/replica.md §9).

mod common;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use common::{SECOND, at, builder, eventually, identity, within};
use pilotage::records::{Directory, DirectoryStatus, Public, Records, RecordsConfig, Sign, Tally};
use pilotage::{Node, Peer, Source};
use pilotage_registry::record::sign_with;
use pilotage_wire::NetworkId;
use pilotage_wire::addressing::derive_node_id;
use pilotage_wire::record::Record;

/// Gives what it was told to give, and keeps what it is given.
#[derive(Debug, Default)]
struct Board {
    gives: Vec<Vec<u8>>,
    asked: Mutex<Vec<[u8; 32]>>,
    shown: Mutex<Vec<u64>>,
}

impl Directory for Board {
    fn name(&self) -> &'static str {
        "board"
    }

    fn publish(&self, record: Public, sign: Sign) {
        assert!(pilotage::verify(&record.key(), b"any", &sign(b"any")));
        self.shown.lock().unwrap().push(record.seq());
    }

    fn find(&self, key: &[u8; 32], _: NetworkId) -> Vec<Vec<u8>> {
        self.asked.lock().unwrap().push(*key);
        self.gives.clone()
    }

    fn status(&self) -> DirectoryStatus {
        DirectoryStatus::default()
    }
}

fn unix() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}

fn record(of: u8, seq: u64, change: impl FnOnce(&mut Record)) -> Vec<u8> {
    let identity = identity(of);
    let key = identity.public_key();
    let id = derive_node_id(&key, 0).expect("an address");
    let mut record = Record::new(NetworkId(0), id, 0, key, seq, unix() as u32);
    record.endpoints = vec![SocketAddr::from(([127, 0, 0, 1], 4_000 + seq as u16))];
    change(&mut record);
    sign_with(&mut record, key, |message| identity.sign(message)).expect("in bounds")
}

fn start(state: &Path, of: u8, board: &Arc<Board>, private: bool) -> (Node, Records) {
    let node = builder().identity(identity(of)).state_dir(state).start().expect("node");
    let mut config = RecordsConfig::new("127.0.0.1:1", state);
    config.private = private;
    config.directory = Some(board.clone());
    let records = Records::start(&node, config).expect("records");
    (node, records)
}

/// A directory of a node that has met the one with the number 1, and where that was then.
fn met() -> (tempfile::TempDir, Node, SocketAddr) {
    let dir = tempfile::tempdir().expect("directory");
    let peer = builder().identity(identity(1)).start().expect("node");
    let listener = peer.listen(7).expect("free");
    let node = builder().identity(identity(2)).state_dir(dir.path()).start().expect("node");
    let _stream = node.connect(at(&peer), 7).expect("connect");
    drop(listener.accept_timeout(20 * SECOND).expect("accept"));
    let pins = dir.path().join("peers.json");
    eventually(|| std::fs::read_to_string(&pins).is_ok_and(|pins| pins.len() > 40));
    node.close();
    let was = peer.local_addr();
    (dir, peer, was)
}

#[test]
fn only_what_the_peer_itself_has_signed_is_believed() {
    within(120 * SECOND, || {
        let (dir, peer, was) = met();
        let address = peer.address();
        peer.close();
        let mut forged = record(1, 9, |_| {});
        forged[90] ^= 1;
        let lies = vec![
            forged,
            record(3, 9, |_| {}),
            record(1, 8, |record| record.private = true),
            record(1, 7, |record| record.issued -= 90_000),
            b"PREC".to_vec(),
        ];
        let refused = Tally { taken: 0, forged: 3, other: 2, older: 0 };
        // At an address that is not the peer's, though its own key says so.
        let elsewhere = record(1, 9, |record| {
            record.salt = 1;
            record.node = derive_node_id(&record.key, 1).expect("an address");
        });
        let good =
            [lies.clone(), vec![record(1, 5, |_| {}), record(1, 6, |_| {}), record(1, 4, |_| {})]].concat();
        let taken = Tally { taken: 1, older: 1, ..refused.clone() };
        let other = Tally { other: 1, ..Tally::default() };
        for (what, gives, source, endpoint, tally) in [
            ("lies", lies, Source::LastReached, was, refused),
            ("elsewhere", vec![elsewhere], Source::LastReached, was, other),
            ("good", good, Source::Directory("board"), "127.0.0.1:4006".parse().expect("address"), taken),
        ] {
            let board = Arc::new(Board { gives, ..Board::default() });
            let (node, records) = start(dir.path(), 2, &board, false);
            let found = node.resolve(&Peer::Address(address)).expect(what);
            assert_eq!((found.source, found.endpoint), (source, Some(endpoint)), "{what}");
            assert_eq!(records.status().directory.expect("one").tally, tally, "{what}");
            // It is not asked again and again: what it said is remembered, or that it knew nothing.
            let again = node.resolve(&Peer::Address(address)).expect(what);
            assert_eq!(again.endpoint, Some(endpoint), "{what}");
            assert_eq!(board.asked.lock().unwrap().len(), 1, "{what}");
            node.close();
        }
        // After a restart, what was found is remembered, and looked up afresh behind the scenes: an older one changes nothing,
        // a newer one is for the next time.
        for (gives, then) in [(record(1, 3, |_| {}), 4_006), (record(1, 7, |_| {}), 4_007)] {
            let board = Arc::new(Board { gives: vec![gives], ..Board::default() });
            let (node, records) = start(dir.path(), 2, &board, false);
            let found = node.resolve(&Peer::Address(address)).expect("remembered");
            assert_eq!(found.source, Source::Remembered);
            assert!(found.endpoint.is_some_and(|at| at.port() == 4_006 || at.port() == then));
            eventually(|| {
                let tally = records.status().directory.expect("one").tally;
                tally.taken + tally.older == 1
            });
            let found = node.resolve(&Peer::Address(address)).expect("remembered");
            assert_eq!(found.endpoint.map(|at| at.port()), Some(then));
            node.close();
        }
    });
}

#[test]
fn public_nodes_are_shown_without_a_registry_and_private_ones_never() {
    within(60 * SECOND, || {
        let (public, private) = (Arc::new(Board::default()), Arc::new(Board::default()));
        let (a, b) = (tempfile::tempdir().expect("directory"), tempfile::tempdir().expect("directory"));
        let (one, of_one) = start(a.path(), 4, &public, false);
        let (other, of_other) = start(b.path(), 5, &private, true);
        eventually(|| public.shown.lock().unwrap().len() == 1);
        eventually(|| of_other.status().last_error.is_some() && of_one.status().last_error.is_some());
        assert!(private.shown.lock().unwrap().is_empty());
        one.close();
        other.close();
    });
}
