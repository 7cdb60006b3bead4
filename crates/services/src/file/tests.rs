use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::wire::{self, Offer};
use super::*;
use crate::duplex::testing::pair;

fn into(dir: &Path) -> Target {
    Target::Directory { dir: dir.into(), force: false, fsync: false, quota: None }
}

fn options(name: &str, size: Option<u64>) -> SendOptions {
    SendOptions { name: name.into(), size }
}

fn data(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 251) as u8).collect()
}

fn exchange(
    source: impl Read + Send + 'static,
    options: SendOptions,
    target: Target,
) -> (Result<Sent, SendError>, Result<Received, ReceiveError>) {
    let (a, b) = pair();
    let receiver = thread::spawn(move || receive(&b, target, &mut |_, _| {}));
    let sent = send(&a, source, &options, &mut |_| {});
    // The receiver waits for the end of our direction.
    drop(a);
    (sent, receiver.join().unwrap())
}

fn is_empty(dir: &Path) -> bool {
    dir.read_dir().unwrap().next().is_none()
}

#[test]
fn files_of_all_sizes_arrive() {
    let dir = tempfile::tempdir().unwrap();
    for len in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 5_000_000] {
        for known in [true, false] {
            let bytes = data(len);
            let name = format!("f{len}{known}");
            let size = known.then_some(len as u64);
            let (sent, received) =
                exchange(io::Cursor::new(bytes.clone()), options(&name, size), into(dir.path()));
            let (sent, received) = (sent.unwrap(), received.unwrap());
            assert_eq!(sent.bytes, len as u64);
            assert_eq!(sent.hash, *blake3::hash(&bytes).as_bytes());
            assert_eq!((received.bytes, received.hash), (sent.bytes, sent.hash));
            assert_eq!(std::fs::read(dir.path().join(&name)).unwrap(), bytes);
        }
    }
    assert_eq!(dir.path().read_dir().unwrap().count(), 12, "no temporary file is left");
}

#[test]
fn existing_files_stay_unless_forced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    std::fs::write(&path, "old").unwrap();
    let (sent, received) = exchange(io::Cursor::new(data(30_000_000)), options("x", None), into(dir.path()));
    assert!(matches!(sent, Err(SendError::Rejected { status: Status::Exists, .. })), "{sent:?}");
    assert!(matches!(received, Err(ReceiveError::Exists(_))));
    assert_eq!(std::fs::read(&path).unwrap(), b"old");
    let target = Target::Directory { dir: dir.path().into(), force: true, fsync: true, quota: None };
    exchange(io::Cursor::new(b"new".to_vec()), options("x", Some(3)), target).0.unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"new");
}

#[test]
fn a_file_that_appears_during_the_transfer_is_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    let late = path.clone();
    let (a, b) = pair();
    let target = into(dir.path());
    let receiver = thread::spawn(move || {
        receive(&b, target, &mut |_, bytes| {
            if bytes > 0 {
                std::fs::write(&late, "other").unwrap();
            }
        })
    });
    let sent = send(&a, io::Cursor::new(data(10)), &options("x", None), &mut |_| {});
    assert!(matches!(sent, Err(SendError::Rejected { status: Status::Exists, .. })), "{sent:?}");
    assert!(receiver.join().unwrap().is_err());
    assert_eq!(std::fs::read(&path).unwrap(), b"other");
}

/// A disk with room for `0` bytes.
struct Full(usize);

impl Write for Full {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.0 < data.len() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.0 -= data.len();
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_full_disk_is_reported_to_both_sides_at_once() {
    let begin = Instant::now();
    // Endless source: only the early reply can end this.
    let (sent, received) =
        exchange(io::repeat(1), options("x", None), Target::Writer(Box::new(Full(1_000_000))));
    assert!(matches!(sent, Err(SendError::Rejected { status: Status::Storage, .. })), "{sent:?}");
    assert!(matches!(received, Err(ReceiveError::Storage { .. })), "{received:?}");
    assert!(begin.elapsed() < Duration::from_secs(5));
}

#[test]
fn short_and_long_sources_leave_no_file() {
    for (announced, real) in [(1000, 900), (1000, 1100), (600_000, 599_999)] {
        let dir = tempfile::tempdir().unwrap();
        let (sent, received) =
            exchange(io::Cursor::new(data(real)), options("x", Some(announced)), into(dir.path()));
        assert!(matches!(sent, Err(SendError::SourceSize { .. })), "{sent:?}");
        match received {
            Err(ReceiveError::Wire(WireError::Aborted(text))) => assert!(text.contains("announced")),
            other => panic!("{other:?}"),
        }
        assert!(is_empty(dir.path()));
    }
}

#[test]
fn a_sender_that_disappears_leaves_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = pair();
    let target = into(dir.path());
    let receiver = thread::spawn(move || receive(&b, target, &mut |_, _| {}));
    let mut out = &a;
    Offer { name: "x".into(), size: Some(100) }.write(&mut out).unwrap();
    out.write_all(&50u32.to_be_bytes()).unwrap();
    out.write_all(&[0; 20]).unwrap();
    drop(a);
    let received = receiver.join().unwrap();
    assert!(matches!(received, Err(ReceiveError::Truncated { .. })), "{received:?}");
    assert!(is_empty(dir.path()));
}

#[test]
fn wrong_hash_and_length_are_found_by_the_receiver() {
    let body = data(10);
    let right = *blake3::hash(&body).as_bytes();
    for (size, hash, status) in
        [(10, [0; 32], Status::HashMismatch), (11, right, Status::LengthMismatch), (10, right, Status::Ok)]
    {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = pair();
        let target = into(dir.path());
        let receiver = thread::spawn(move || receive(&b, target, &mut |_, _| {}));
        let mut out = &a;
        Offer { name: "x".into(), size: None }.write(&mut out).unwrap();
        out.write_all(&10u32.to_be_bytes()).unwrap();
        out.write_all(&body).unwrap();
        wire::write_end(&mut out, size, &hash).unwrap();
        let reply = Reply::read(&mut &a).unwrap();
        assert_eq!(reply.status, status);
        drop(a);
        assert_eq!(receiver.join().unwrap().is_ok(), status == Status::Ok);
        assert_eq!(is_empty(dir.path()), status != Status::Ok);
    }
}

/// Answers a transfer with `reply` after reading all of it.
fn lying_receiver(b: TcpStream, reply: Reply) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let mut input = &b;
        Offer::read(&mut input).unwrap();
        while let wire::Next::Chunk(len) = wire::Next::read(&mut input).unwrap() {
            input.read_exact(&mut vec![0; len]).unwrap();
        }
        reply.write(&mut &b).unwrap();
    })
}

#[test]
fn the_sender_does_not_believe_a_wrong_confirmation() {
    let body = data(100);
    let hash = *blake3::hash(&body).as_bytes();
    for (size, hash) in [(100, [1; 32]), (99, hash)] {
        let (a, b) = pair();
        let peer = lying_receiver(b, Reply { status: Status::Ok, size, hash, text: String::new() });
        let sent = send(&a, io::Cursor::new(body.clone()), &options("x", None), &mut |_| {});
        assert!(sent.as_ref().is_err_and(SendError::is_verification), "{sent:?}");
        peer.join().unwrap();
    }
}

#[test]
fn path_traversal_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let inbox = dir.path().join("inbox");
    std::fs::create_dir(&inbox).unwrap();
    assert!(matches!(
        send(&pair().0, io::empty(), &options("../x", None), &mut |_| {}),
        Err(SendError::Name(NameError::Character))
    ));
    // A sender that does not check its own names.
    let (a, b) = pair();
    let target = into(&inbox);
    let receiver = thread::spawn(move || receive(&b, target, &mut |_, _| {}));
    Offer { name: "../x".into(), size: None }.write(&mut &a).unwrap();
    assert_eq!(Reply::read(&mut &a).unwrap().status, Status::NameRefused);
    drop(a);
    assert!(receiver.join().unwrap().is_err());
    assert!(is_empty(&inbox));
    assert_eq!(dir.path().read_dir().unwrap().count(), 1);
}

#[test]
fn garbage_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = pair();
    let target = into(dir.path());
    let receiver = thread::spawn(move || receive(&b, target, &mut |_, _| {}));
    (&a).write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    assert_eq!(Reply::read(&mut &a).unwrap().status, Status::Protocol);
    drop(a);
    assert!(receiver.join().unwrap().is_err());
}

#[test]
fn a_missing_directory_is_reported() {
    let (sent, received) =
        exchange(io::Cursor::new(data(10)), options("x", None), into(Path::new("/nonexistent/dir")));
    match sent {
        Err(SendError::Rejected { status: Status::Storage, text }) => {
            assert!(!text.contains("nonexistent"), "our directories are not the sender's business");
        }
        other => panic!("{other:?}"),
    }
    assert!(received.is_err());
}
