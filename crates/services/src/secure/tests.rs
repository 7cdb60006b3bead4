use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pilotage_proto::crypto::{Aes256Gcm, EphemeralKey, INFO_SECURE, Identity, verify};
use pilotage_wire::NodeId;
use serde_json::Value;

use super::channel::seal;
use super::*;
use crate::duplex::testing::pair;
use crate::duplex::{Duplex, Io};
use crate::{echo, vectors};

fn array<const N: usize>(case: &Value, key: &str) -> [u8; N] {
    vectors::bytes(case, key).try_into().expect("length")
}

#[test]
fn golden_sessions() {
    let cases = vectors::cases("port443.json");
    assert_eq!(cases.len(), 2);
    for case in cases {
        let client = EphemeralKey::from_bytes(array(&case, "client_private"));
        let server_key = EphemeralKey::from_bytes(array(&case, "server_private")).public();
        if !case["client_first_bytes"].is_null() {
            assert_eq!(client.public(), array(&case, "client_first_bytes"));
            assert_eq!(server_key, array(&case, "server_first_bytes"));
        }
        let shared = client.shared_key(&server_key, INFO_SECURE).unwrap();
        assert_eq!(shared.as_bytes(), &array(&case, "key"));
        let aead = Aes256Gcm::new(shared.as_bytes());
        for frame in case["frames"].as_array().unwrap() {
            let role = if frame["role"] == "server" { Role::Server } else { Role::Client };
            let plain = vectors::bytes(frame, "plaintext_hex");
            let golden = vectors::bytes(frame, "frame_hex");
            let counter = frame["counter"].as_u64().unwrap();
            assert_eq!(role.nonce(counter).to_vec(), vectors::bytes(frame, "nonce"));
            assert_eq!(seal(&aead, role, counter, &plain).unwrap(), golden);
            let sealed = sealed_length(golden[..LENGTH].try_into().unwrap()).unwrap();
            assert_eq!(sealed, golden.len() - LENGTH - NONCE);
        }
        for auth in [&case["client_auth"], &case["server_auth"]].into_iter().filter(|auth| !auth.is_null()) {
            let golden: [u8; AUTH] = array(auth, "auth_frame_plaintext");
            let decoded = Auth::decode(&golden);
            assert_eq!(decoded.encode(), golden);
            let identity = Identity::from_seed(array(auth, "ed25519_seed"));
            let own_key = array(auth, "own_x25519_public");
            let signed = decoded.signed(&own_key);
            assert_eq!(signed, vectors::bytes(auth, "signed_message"));
            assert_eq!(identity.sign(&signed), decoded.signature);
            assert!(verify(&identity.public_key(), &signed, &decoded.signature));
            assert_eq!(u64::from(decoded.node), auth["node_id"].as_u64().unwrap());
        }
    }
}

/// What the reference sends as a client, byte for byte, is read by our server; what our server sends is golden too.
#[test]
fn a_golden_client_talks_to_our_server() {
    let case = &vectors::cases("port443.json")[0];
    let (mut client, server) = pair();
    let private = array(case, "server_private");
    let serving = std::thread::spawn(move || {
        let channel = Channel::open(server, Role::Server, None, private).unwrap();
        let mut buf = [0; 100];
        let len = Duplex::read(&channel, &mut buf).unwrap();
        assert_eq!(&buf[..len], b"hello server");
        Io(&channel).write_all(b"hello client").unwrap();
        // The second frame is empty: it is passed over, and then the stream ends.
        assert_eq!(Duplex::read(&channel, &mut buf).unwrap(), 0);
    });
    let frame = |at: usize| vectors::bytes(&case["frames"][at], "frame_hex");
    client.write_all(&vectors::bytes(case, "client_first_bytes")).unwrap();
    client.write_all(&frame(0)).unwrap();
    client.write_all(&frame(2)).unwrap();
    client.finish().unwrap();
    let mut all = Vec::new();
    client.read_to_end(&mut all).unwrap();
    assert_eq!(all, [vectors::bytes(case, "server_first_bytes"), frame(1)].concat());
    serving.join().unwrap();
}

type Ends = (Result<Channel<TcpStream>, Error>, Result<Channel<TcpStream>, Error>);

fn open(client_proof: Option<Proof>, server_proof: Option<Proof>) -> Ends {
    let (a, b) = pair();
    let server = std::thread::spawn(move || Channel::server(b, server_proof.as_ref()));
    let client = Channel::client(a, client_proof.as_ref());
    (client, server.join().unwrap())
}

fn identity(n: u8) -> Identity {
    Identity::from_seed([n; 32])
}

/// Node `n` with the key of seed `n`, which knows nodes 1 and 2.
fn proof(n: u8) -> Proof {
    let known: Known =
        Arc::new(|node: NodeId| (1..=2).contains(&node.0).then(|| identity(node.0 as u8).public_key()));
    Proof::new(NodeId(n.into()), identity(n), known)
}

#[test]
fn echo_through_the_channel_with_and_without_proof() {
    for proofs in [None, Some((proof(1), proof(2)))] {
        let proved = proofs.is_some();
        let (client, server) = proofs.unzip();
        let (client, server) = open(client, server);
        let (client, server) = (client.unwrap(), server.unwrap());
        assert_eq!(client.peer(), proved.then_some(NodeId(2)));
        assert_eq!(server.peer(), proved.then_some(NodeId(1)));
        let serving = std::thread::spawn(move || echo::serve(&server));
        let message: Vec<u8> = (0..MAX_PLAIN * 3 + 7).map(|i| i as u8).collect();
        echo::round_trip(&client, b"short").unwrap();
        echo::round_trip(&client, &message).unwrap();
        client.finish().unwrap();
        assert_eq!(Duplex::read(&client, &mut [0; 1]).unwrap(), 0, "the end comes through");
        assert_eq!(serving.join().unwrap().unwrap(), 5 + message.len() as u64);
        assert!(Duplex::write(&client, b"x").is_err(), "finished");
    }
}

#[test]
fn who_cannot_prove_itself_gets_no_channel() {
    // Another key than the known one, an unknown node, a clock that is off.
    let liar = Proof { identity: identity(9), ..proof(1) };
    let stranger = Proof::new(NodeId(3), identity(3), proof(1).known);
    for bad in [liar, stranger] {
        let (_, server) = open(Some(bad.clone()), Some(proof(2)));
        assert!(matches!(server, Err(Error::Proof(_))), "{server:?}");
        let (client, server) = open(Some(proof(2)), Some(bad));
        assert!(matches!(client, Err(Error::Proof(_))), "{client:?}");
        assert!(server.is_err(), "the client says nothing to a server that has not proved itself");
    }
    // One side proves, the other one does not.
    let (a, b) = pair();
    let server = std::thread::spawn(move || Channel::server(b, Some(&proof(2))));
    drop(Channel::client(a, None).unwrap());
    assert!(server.join().unwrap().is_err());
}

#[test]
fn proofs_are_fresh_and_used_once() {
    let proof = proof(1);
    let now = Instant::now();
    let auth = proof.statement(&[7; 32], 1_000_000, [5; 16]);
    assert_eq!(proof.check(&auth, &[7; 32], 1_000_030, now), Ok(NodeId(1)));
    assert!(proof.check(&auth, &[7; 32], 1_000_000, now).is_err(), "used before");
    let hour = Duration::from_secs(3600);
    assert!(proof.check(&auth, &[7; 32], 1_000_000, now + hour).is_ok(), "forgotten after an hour");
    let auth = proof.statement(&[7; 32], 1_000_000, [6; 16]);
    assert!(proof.check(&auth, &[7; 32], 1_000_031, now).is_err(), "late");
    assert!(proof.check(&auth, &[8; 32], 1_000_000, now).is_err(), "another channel");
}

#[test]
fn remembered_values_are_bounded() {
    let seen = Seen::default();
    let now = Instant::now();
    let value = |n: usize| {
        let mut random = [0; 16];
        random[..8].copy_from_slice(&n.to_be_bytes());
        random
    };
    assert!((0..MAX_REMEMBERED).all(|n| seen.note(value(n), now)));
    assert!(!seen.note(value(MAX_REMEMBERED), now));
    assert!(seen.note(value(MAX_REMEMBERED), now + Duration::from_secs(3600)));
}

/// A server channel whose client speaks raw bytes, with the key of the channel.
fn raw() -> (TcpStream, Channel<TcpStream>, Aes256Gcm) {
    let (mut a, b) = pair();
    let server = std::thread::spawn(move || Channel::server(b, None).unwrap());
    let own = EphemeralKey::from_bytes([3; 32]);
    a.write_all(&own.public()).unwrap();
    let mut key = [0; 32];
    a.read_exact(&mut key).unwrap();
    let aead = Aes256Gcm::new(own.shared_key(&key, INFO_SECURE).unwrap().as_bytes());
    (a, server.join().unwrap(), aead)
}

#[test]
fn frames_that_are_not_the_next_of_the_peer_break_the_channel() {
    let bad = |aead: &Aes256Gcm| {
        let mut forged = seal(aead, Role::Client, 1, b"x").unwrap();
        *forged.last_mut().unwrap() ^= 1;
        [
            ("left out", seal(aead, Role::Client, 2, b"x").unwrap()),
            ("counter 0", seal(aead, Role::Client, 0, b"x").unwrap()),
            ("reflected", seal(aead, Role::Server, 1, b"x").unwrap()),
            ("forged", forged),
            ("too short", vec![0, 0, 0, 27]),
            ("too long", vec![1, 0, 0, 1]),
            ("cut off", vec![0, 0, 0, 40, 0]),
        ]
    };
    for at in 0..7 {
        let (mut client, server, aead) = raw();
        let (what, bytes) = &bad(&aead)[at];
        client.write_all(bytes).unwrap();
        client.finish().unwrap();
        let error = Duplex::read(&server, &mut [0; 9]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidData, "{what}: {error}");
        assert!(Duplex::read(&server, &mut [0; 9]).is_err(), "{what}: it stays broken");
    }
    let (mut client, server, aead) = raw();
    let frame = seal(&aead, Role::Client, 1, b"x").unwrap();
    client.write_all(&[frame.clone(), frame].concat()).unwrap();
    assert_eq!(Duplex::read(&server, &mut [0; 9]).unwrap(), 1);
    assert!(Duplex::read(&server, &mut [0; 9]).is_err(), "replayed");
}

#[test]
fn a_read_timeout_in_the_middle_of_a_frame_loses_nothing() {
    let (mut client, server, aead) = raw();
    let frame = seal(&aead, Role::Client, 1, b"in two parts").unwrap();
    client.write_all(&frame[..20]).unwrap();
    server.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    assert!(Duplex::read(&server, &mut [0; 99]).is_err());
    client.write_all(&frame[20..]).unwrap();
    server.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut buf = [0; 99];
    let len = Duplex::read(&server, &mut buf).unwrap();
    assert_eq!(&buf[..len], b"in two parts");
}

#[test]
fn weak_keys_give_no_channel() {
    let (mut a, b) = pair();
    let server = std::thread::spawn(move || Channel::server(b, None));
    a.write_all(&[0; 32]).unwrap();
    assert!(matches!(server.join().unwrap(), Err(Error::Key)));
}
