//! UPnP over real sockets: searches by UDP, requests by TCP, each bounded in time and size.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use pilotage_nat::portmap::Mapping;
use pilotage_nat::portmap::igd::{Igd, MAX_ANSWER, Outgoing, is_complete};

/// For one request, from the connection to the end of the answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// How often to look for an answer to a search.
const LOOK: Duration = Duration::from_millis(100);
/// Datagrams that are read in one turn: all devices of a network may answer.
const DATAGRAMS: usize = 64;

/// The client of one router and its socket for searches.
pub(super) struct Upnp {
    igd: Igd,
    socket: UdpSocket,
}

impl Upnp {
    pub(super) fn new(router: SocketAddr, client: Ipv4Addr, port: u16, nonce: u16) -> std::io::Result<Self> {
        // Bound to the address that the router sees, so that the group is asked on that network.
        let socket = UdpSocket::bind((client, 0))?;
        socket2::SockRef::from(&socket).set_multicast_if_v4(&client)?;
        socket.set_nonblocking(true)?;
        Ok(Self { igd: Igd::new(router, client, port, nonce, Instant::now()), socket })
    }

    pub(super) fn mapping(&self) -> Option<Mapping> {
        self.igd.mapping()
    }

    /// The port was given back.
    pub(super) fn is_done(&self) -> bool {
        self.igd.is_released()
    }

    /// When the next turn is due.
    pub(super) fn timeout(&self) -> Option<Instant> {
        let look = self.igd.is_searching().then(|| Instant::now() + LOOK);
        [self.igd.poll_timeout(), look].into_iter().flatten().min()
    }

    /// Does what is due. `end`: the port is not wanted any more.
    pub(super) fn turn(&mut self, end: bool) {
        if end && !self.igd.is_released() {
            self.igd.release();
        }
        let mut buf = [0; 2_048];
        for _ in 0..DATAGRAMS {
            let Ok((len, from)) = self.socket.recv_from(&mut buf) else { break };
            self.igd.handle_datagram(from, &buf[..len]);
        }
        while let Some(out) = self.igd.poll(Instant::now()) {
            match out {
                Outgoing::Datagram { to, bytes } => {
                    if let Err(error) = self.socket.send_to(&bytes, to) {
                        tracing::debug!(%error, %to, "no search for a UPnP router");
                    }
                }
                Outgoing::Request { to, bytes } => {
                    let answer = exchange(to, &bytes);
                    if let Err(error) = &answer {
                        tracing::debug!(%error, %to, "the UPnP router does not answer");
                    }
                    self.igd.handle_answer(Instant::now(), answer.ok().as_deref());
                }
            }
        }
    }
}

/// One request and its answer, at most [`MAX_ANSWER`] bytes within [`PATIENCE`].
fn exchange(to: SocketAddr, request: &[u8]) -> std::io::Result<Vec<u8>> {
    let end = Instant::now() + PATIENCE;
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(request)?;
    let mut answer = Vec::new();
    let mut buf = [0; 4_096];
    while answer.len() <= MAX_ANSWER && !is_complete(&answer) {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(std::io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut buf)? {
            0 => break,
            len => answer.extend_from_slice(&buf[..len]),
        }
    }
    Ok(answer)
}
