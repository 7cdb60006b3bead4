//! A small driver of the local socket, and daemons to drive.
#![allow(dead_code, reason = "not every test program needs everything")]

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use pilotage::{Node, Peer};
use pilotage_daemon::{IpcServer, Options, serve};
use pilotage_wire::ipc::{self, Reply, Request};
use pilotage_wire::{Address, SocketAddress};

/// A second.
pub(crate) const SECOND: Duration = Duration::from_secs(1);

/// Runs `test` and fails if it takes longer than `limit`.
pub(crate) fn within(limit: Duration, test: impl FnOnce() + Send + 'static) {
    let (done, finished) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        test();
        let _ = done.send(());
    });
    match finished.recv_timeout(limit) {
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("not finished within {limit:?}"),
        _ => {
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
    }
}

/// A node on loopback.
pub(crate) fn node() -> Node {
    Node::builder().bind("127.0.0.1:0".parse().expect("address")).start().expect("node")
}

/// A node with a served socket.
pub(crate) struct Daemon {
    pub(crate) node: Node,
    pub(crate) server: IpcServer,
    _folder: tempfile::TempDir,
}

pub(crate) fn daemon(options: Options) -> Daemon {
    let folder = tempfile::tempdir().expect("folder");
    let node = node();
    let server = serve(&node, &folder.path().join("run/pilot.sock"), options).expect("served");
    Daemon { node, server, _folder: folder }
}

impl Daemon {
    pub(crate) fn driver(&self) -> Driver {
        Driver::connect(self.server.path())
    }

    pub(crate) fn address(&self) -> Address {
        self.node.address()
    }
}

/// Two daemons that know each other.
pub(crate) fn pair(options: Options) -> (Daemon, Daemon) {
    let (a, b) = (daemon(options), daemon(Options::default()));
    a.node.ping(Peer::At(b.address(), b.node.local_addr()), 5 * SECOND).expect("reachable");
    (a, b)
}

/// A driver: one connection with a daemon.
pub(crate) struct Driver {
    pub(crate) socket: UnixStream,
}

/// A reply with its own memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Got {
    BindOk(u16),
    DialOk(u32),
    Accept {
        local_port: u16,
        connection: u32,
        from: SocketAddress,
    },
    Recv(u32, Vec<u8>),
    CloseOk(u32),
    Error(String),
    RecvFrom {
        from: SocketAddress,
        port: u16,
        data: Vec<u8>,
    },
    Json(u8, serde_json::Value),
    /// The daemon closed the socket.
    End,
    /// Nothing within the timeout.
    Nothing,
}

impl Driver {
    pub(crate) fn connect(path: &Path) -> Self {
        let socket = UnixStream::connect(path).expect("connect");
        socket.set_read_timeout(Some(10 * SECOND)).expect("timeout");
        Self { socket }
    }

    pub(crate) fn put(&mut self, request: &Request<'_>) {
        let mut frame = vec![0; request.encoded_len()];
        request.encode(&mut frame).expect("room");
        self.socket.write_all(&frame).expect("write");
    }

    pub(crate) fn get(&mut self) -> Got {
        let mut prefix = [0; 4];
        match self.socket.read_exact(&mut prefix) {
            Ok(()) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return Got::Nothing;
            }
            Err(_) => return Got::End,
        }
        let mut message = vec![0; ipc::message_len(prefix).expect("length")];
        self.socket.read_exact(&mut message).expect("message");
        match Reply::decode(&message).expect("reply") {
            Reply::BindOk { port } => Got::BindOk(port),
            Reply::DialOk { connection } => Got::DialOk(connection),
            Reply::Accept { local_port, connection, from } => Got::Accept { local_port, connection, from },
            Reply::Recv { connection, data } => Got::Recv(connection, data.to_vec()),
            Reply::CloseOk { connection } => Got::CloseOk(connection),
            Reply::Error { code, text } => {
                assert_eq!(code, 1);
                Got::Error(text.to_owned())
            }
            Reply::RecvFrom { from, port, data } => Got::RecvFrom { from, port, data: data.to_vec() },
            Reply::Json { kind, body } => Got::Json(kind as u8, serde_json::from_slice(body).expect("JSON")),
        }
    }

    pub(crate) fn ask(&mut self, request: &Request<'_>) -> Got {
        self.put(request);
        self.get()
    }

    /// Within `timeout`, or [`Got::Nothing`].
    pub(crate) fn get_within(&mut self, timeout: Duration) -> Got {
        self.socket.set_read_timeout(Some(timeout)).expect("timeout");
        let got = self.get();
        self.socket.set_read_timeout(Some(10 * SECOND)).expect("timeout");
        got
    }

    pub(crate) fn dial(&mut self, address: Address, port: u16) -> u32 {
        match self.ask(&Request::Dial { to: SocketAddress::new(address, port) }) {
            Got::DialOk(connection) => connection,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn accept(&mut self) -> u32 {
        match self.get() {
            Got::Accept { connection, .. } => connection,
            other => panic!("{other:?}"),
        }
    }

    /// Bytes of one connection until there are `len`.
    pub(crate) fn recv(&mut self, connection: u32, len: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while bytes.len() < len {
            match self.get() {
                Got::Recv(of, data) if of == connection => bytes.extend(data),
                other => panic!("{other:?}"),
            }
        }
        bytes
    }
}

/// Waits until `condition` holds.
pub(crate) fn eventually(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..500 {
        if condition() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("never: {what}");
}
