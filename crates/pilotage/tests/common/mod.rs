//! Helpers of the real-socket tests: everything on 127.0.0.1, everything bounded in time.
#![allow(dead_code, reason = "each test file uses a part")]

use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use pilotage::{Identity, Listener, Node, NodeBuilder, Peer, Stream};

/// A deterministic identity per test node.
pub(crate) fn identity(seed: u8) -> Identity {
    Identity::from_seed([seed; 32])
}

pub(crate) fn builder() -> NodeBuilder {
    Node::builder().bind("127.0.0.1:0".parse().expect("address"))
}

pub(crate) fn node() -> Node {
    builder().start().expect("node starts")
}

pub(crate) fn at(node: &Node) -> Peer {
    Peer::At(node.address(), node.local_addr())
}

/// Two nodes and an established stream between them.
pub(crate) struct Pair {
    pub(crate) client: Node,
    pub(crate) server: Node,
    pub(crate) listener: Listener,
    pub(crate) near: Stream,
    pub(crate) far: Stream,
}

pub(crate) fn pair() -> Pair {
    let (client, server) = (node(), node());
    let listener = server.listen(7).expect("listen");
    let near = client.connect(at(&server), 7).expect("connect");
    let far = listener.accept_timeout(Duration::from_secs(10)).expect("accept").expect("a stream");
    Pair { client, server, listener, near, far }
}

/// Bytes that no shift or repetition maps onto themselves.
pub(crate) fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(len);
    out
}

/// Runs a test body on a thread and fails if it takes longer than `limit`: no test can hang the suite.
pub(crate) fn within(limit: Duration, body: impl FnOnce() + Send + 'static) {
    let (done, wait) = mpsc::channel();
    let thread: JoinHandle<()> = std::thread::spawn(move || {
        body();
        let _ = done.send(());
    });
    match wait.recv_timeout(limit) {
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("not finished within {limit:?}"),
        // Finished, or panicked: join tells which.
        _ => thread.join().unwrap_or_else(|cause| std::panic::resume_unwind(cause)),
    }
}

pub(crate) const SECOND: Duration = Duration::from_secs(1);

/// Waits until `condition` holds; the bound of the test ends it otherwise.
pub(crate) fn eventually(condition: impl Fn() -> bool) {
    while !condition() {
        std::thread::sleep(Duration::from_millis(5));
    }
}
