use std::net::TcpStream;
use std::path::Path;
use std::thread;

use super::*;
use crate::duplex::testing::pair;
use crate::duplex::{Duplex, Io};
use crate::file::Quota;
use crate::vectors;

#[test]
fn golden_frames() {
    let cases = vectors::cases("port1001.json");
    assert_eq!(cases.len(), 8);
    for case in cases {
        let golden = vectors::bytes(&case, "frame_hex");
        let payload = vectors::bytes(&case, "payload_hex");
        let kind = Kind::from_number(case["type"].as_u64().unwrap() as u32);
        let header = Header::decode(golden[..HEADER].try_into().unwrap()).unwrap();
        assert_eq!(header.kind, kind);
        assert_eq!(header.length as usize, golden.len() - HEADER);
        let ours = match kind {
            Kind::File => file_frame(case["filename"].as_str().unwrap(), &payload).unwrap(),
            kind => frame(kind, &payload).unwrap(),
        };
        assert_eq!(ours, golden, "{}", case["name"]);
        if kind == Kind::File {
            let lengths = file_lengths(header.length, [golden[8], golden[9]]).unwrap();
            assert_eq!(lengths, (case["filename"].as_str().unwrap().len(), payload.len() as u64));
        }
        if case["name"].as_str().unwrap().starts_with("ack") {
            let answer = Answer::parse(&payload).unwrap();
            assert_eq!(answer.encode(), golden);
        }
    }
    let ack = &Answer::ack(Kind::Unknown(9), 3).encode()[HEADER..];
    assert_eq!(ack, b"ACK UNKNOWN(9) 3 bytes");
}

#[test]
fn answers() {
    assert_eq!(Answer::parse(b"ERR FILE save failed: full").unwrap(), Answer::not_saved(Kind::File, "full"));
    assert_eq!(Answer::parse(b"ERR\x1b[2J").unwrap(), Answer::Refused("\u{fffd}[2J".into()));
    for bad in [&b""[..], b"ACK", b"ACK TEXT 7", b"ACK TEXT x bytes", b"ACK TEXT 7 bytes more", b"OK"] {
        assert!(Answer::parse(bad).is_err(), "{bad:?}");
    }
    let long = Answer::Refused("ä".repeat(2000)).encode();
    assert!(long.len() <= HEADER + MAX_ANSWER as usize);
    assert!(Answer::parse(&long[HEADER..]).is_ok());
}

/// A server with an inbox in `dir`; the other end of its stream.
fn served(dir: &Path, limit: Option<u64>) -> (TcpStream, thread::JoinHandle<std::io::Result<u64>>) {
    let (client, server) = pair();
    let quota = limit.map(|limit| Quota::new(dir, limit));
    let inbox = Inbox::new(dir, quota, false);
    let handle = thread::spawn(move || serve(&server, &inbox, "0:0000.0000.0001", &mut |_| {}));
    (client, handle)
}

fn contents(dir: &Path, entry: &Entry) -> Vec<u8> {
    std::fs::read(dir.join(&entry.file)).unwrap()
}

#[test]
fn everything_that_is_confirmed_lies_in_the_inbox() {
    let dir = tempfile::tempdir().unwrap();
    let (client, server) = served(dir.path(), None);
    let big: Vec<u8> = (0..3_000_000u32).map(|i| i as u8).collect();
    send(&client, Kind::Text, b"hi").unwrap();
    send(&client, Kind::Text, b"").unwrap();
    send(&client, Kind::Binary, &big).unwrap();
    send(&client, Kind::Json, b"{}").unwrap();
    send(&client, Kind::Unknown(77), b"later").unwrap();
    send_file(&client, "a.txt", b"1").unwrap();
    send_file(&client, "a.txt", b"2").unwrap();
    send_file(&client, "", b"3").unwrap();
    client.finish().unwrap();
    assert_eq!(server.join().unwrap().unwrap(), 8);
    let entries = list(dir.path()).unwrap();
    let kinds: Vec<_> = entries.iter().map(|entry| entry.kind.as_str()).collect();
    assert_eq!(kinds, ["TEXT", "TEXT", "BINARY", "JSON", "UNKNOWN(77)", "FILE", "FILE", "FILE"]);
    assert_eq!(contents(dir.path(), &entries[0]), b"hi");
    assert_eq!(contents(dir.path(), &entries[2]), big);
    assert_eq!((entries[5].file.as_str(), entries[6].file.as_str()), ("a.txt", "a (2).txt"));
    assert_eq!(contents(dir.path(), &entries[6]), b"2");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 9, "and nothing else but the index");
}

#[test]
fn unsafe_names_are_refused_and_the_stream_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let inner = dir.path().join("inbox");
    std::fs::create_dir(&inner).unwrap();
    let (client, server) = served(&inner, None);
    let long = "x".repeat(256);
    for bad in ["../x", "/etc/x", "..", "a\\b", "a\0b", ".pilotage-inbox.jsonl", &long] {
        assert!(matches!(send_file(&client, bad, b"data"), Err(SendError::Refused(_))), "{bad:?}");
    }
    // A name that is longer than its frame, then one that is not UTF-8.
    for payload in [&b"\x00\x09a"[..], b"\x00\x02\xff\xfe12", b"", b"\x01"] {
        assert!(matches!(send(&client, Kind::File, payload), Err(SendError::Refused(_))), "{payload:?}");
    }
    send_file(&client, "good", b"data").unwrap();
    client.finish().unwrap();
    server.join().unwrap().unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    assert_eq!(list(&inner).unwrap().len(), 1);
}

#[test]
fn the_limit_of_the_inbox_holds() {
    let dir = tempfile::tempdir().unwrap();
    let (client, server) = served(dir.path(), Some(20_000));
    send(&client, Kind::Binary, &[1; 12_000]).unwrap();
    match send(&client, Kind::Binary, &[2; 12_000]) {
        Err(SendError::Refused(why)) => {
            assert!(why.starts_with("BINARY save failed: ") && why.contains("limit"), "{why}");
            assert!(!why.contains(dir.path().to_str().unwrap()), "no paths of ours: {why}");
        }
        other => panic!("{other:?}"),
    }
    send(&client, Kind::Text, b"small").unwrap();
    client.finish().unwrap();
    server.join().unwrap().unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3, "nothing of the refused one");
}

#[test]
fn an_announced_giant_ends_the_stream_with_a_reason() {
    let dir = tempfile::tempdir().unwrap();
    let (client, server) = served(dir.path(), None);
    std::io::Write::write_all(&mut Io(&client), b"\0\0\0\x01\x01\0\0\x01").unwrap();
    let mut answer = Vec::new();
    std::io::Read::read_to_end(&mut Io(&client), &mut answer).unwrap();
    assert!(matches!(Answer::parse(&answer[HEADER..]).unwrap(), Answer::Refused(_)));
    assert!(server.join().unwrap().is_err());
    assert!(send(&client, Kind::Text, &vec![0; MAX_PAYLOAD as usize + 1]).is_err(), "nor do we send one");
}

#[test]
fn a_message_that_breaks_off_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (client, server) = served(dir.path(), None);
    std::io::Write::write_all(&mut Io(&client), b"\0\0\0\x01\0\0\0\x09half").unwrap();
    client.finish().unwrap();
    assert!(server.join().unwrap().is_err());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}
