//! What a beacon has to send, gathered so that one system call takes many datagrams.
//!
//! Frames that are relayed to one node come in runs of the same length. They are put behind each other and leave by
//! generic segmentation offload, as they do from the nodes themselves. The order towards one address is kept.

use std::net::SocketAddr;

use pilotage_nat::Port;

use crate::driver::socket::Socket;

/// Datagrams for one address.
#[derive(Debug)]
struct Batch {
    port: Port,
    to: SocketAddr,
    /// Length of all but the last.
    segment: usize,
    count: usize,
    len: usize,
    /// The last one is shorter: nothing can follow.
    closed: bool,
    bytes: Box<[u8]>,
}

/// Batches that are being filled.
#[derive(Debug)]
pub(super) struct Outbox {
    batches: Vec<Batch>,
    /// Which is sent next when all are in use.
    turn: usize,
    /// Datagrams that the kernel would not take. They are lost, as on any busy link.
    pub(super) unsent: u64,
}

/// The sockets of a beacon.
#[derive(Debug)]
pub(super) struct Sockets {
    pub(super) main: Socket,
    pub(super) other: Option<Socket>,
}

impl Sockets {
    fn of(&self, port: Port) -> Option<&Socket> {
        match port {
            Port::Main => Some(&self.main),
            Port::Other => self.other.as_ref(),
        }
    }
}

impl Outbox {
    pub(super) fn new() -> Self {
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        let batch = || Batch {
            port: Port::Main,
            to: nowhere,
            segment: 0,
            count: 0,
            len: 0,
            closed: false,
            bytes: vec![0; MAX_BATCH].into(),
        };
        Self { batches: (0..BATCHES).map(|_| batch()).collect(), turn: 0, unsent: 0 }
    }

    /// Takes one datagram; may send others.
    pub(super) fn push(&mut self, sockets: &Sockets, port: Port, to: SocketAddr, data: &[u8]) {
        let open =
            self.batches.iter().position(|batch| batch.count > 0 && batch.to == to && batch.port == port);
        let index = match open {
            Some(index) => {
                let most = sockets.of(port).map_or(1, Socket::max_gso_segments);
                if !self.batches[index].has_room(data.len(), most) {
                    self.send(sockets, index);
                }
                index
            }
            None => self.batches.iter().position(|batch| batch.count == 0).unwrap_or_else(|| {
                let index = self.turn;
                self.turn = (self.turn + 1) % self.batches.len();
                self.send(sockets, index);
                index
            }),
        };
        self.batches[index].add(port, to, data);
    }

    /// Sends all that is left.
    pub(super) fn flush(&mut self, sockets: &Sockets) {
        for index in 0..self.batches.len() {
            self.send(sockets, index);
        }
    }

    fn send(&mut self, sockets: &Sockets, index: usize) {
        let batch = &mut self.batches[index];
        let count = std::mem::take(&mut batch.count);
        let Some(socket) = sockets.of(batch.port).filter(|_| count > 0) else { return };
        let bytes = &batch.bytes[..batch.len];
        let segment = (count > 1).then_some(batch.segment);
        if socket.send(batch.to, bytes, segment).is_ok() {
            return;
        }
        if count == 1 {
            self.unsent += 1;
            return;
        }
        // Perhaps this way knows no segmentation: one by one.
        for datagram in bytes.chunks(batch.segment.max(1)) {
            self.unsent += u64::from(socket.send(batch.to, datagram, None).is_err());
        }
    }
}

impl Batch {
    fn has_room(&self, len: usize, most: usize) -> bool {
        !self.closed && len > 0 && len <= self.segment && self.count < most && self.len + len <= MAX_BATCH
    }

    fn add(&mut self, port: Port, to: SocketAddr, data: &[u8]) {
        if self.count == 0 {
            (self.port, self.to, self.segment, self.len, self.closed) = (port, to, data.len(), 0, false);
        }
        // A datagram is never longer than a batch, and `has_room` was asked.
        if let Some(place) = self.bytes.get_mut(self.len..self.len + data.len()) {
            place.copy_from_slice(data);
            self.len += data.len();
            self.count += 1;
            self.closed = data.len() < self.segment || data.is_empty();
        }
    }
}

/// Addresses that are gathered for at once: more flows than these cost a system call each time that they alternate.
const BATCHES: usize = 16;
/// Bytes of one batch: the largest UDP payload over IPv4.
const MAX_BATCH: usize = 65_507;

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::time::Duration;

    use super::*;

    fn sockets() -> Sockets {
        let bind = || Socket::bind("127.0.0.1:0".parse().expect("address"), 1 << 20, 1 << 20).expect("bind");
        Sockets { main: bind(), other: Some(bind()) }
    }

    fn receive(socket: &UdpSocket) -> (SocketAddr, Vec<u8>) {
        let mut buf = [0; 70_000];
        let (len, from) = socket.recv_from(&mut buf).expect("receive");
        (from, buf[..len].to_vec())
    }

    #[test]
    fn all_arrives_in_order_whatever_the_lengths() {
        let sockets = sockets();
        let nodes: Vec<UdpSocket> = (0..BATCHES + 3)
            .map(|_| {
                let node = UdpSocket::bind("127.0.0.1:0").expect("bind");
                node.set_read_timeout(Some(Duration::from_secs(5))).expect("timeout");
                node
            })
            .collect();
        let mut outbox = Outbox::new();
        let lengths = [100, 100, 100, 7, 100, 200, 200, 0, 5, 5, 1_400, 1_400, 1_399, 1];
        for (n, len) in lengths.iter().enumerate() {
            for node in &nodes {
                outbox.push(&sockets, Port::Main, node.local_addr().expect("address"), &vec![n as u8; *len]);
            }
        }
        outbox.flush(&sockets);
        outbox.flush(&sockets);
        for node in &nodes {
            for (n, len) in lengths.iter().enumerate() {
                assert_eq!(receive(node), (sockets.main.local_addr(), vec![n as u8; *len]));
            }
        }
        assert_eq!(outbox.unsent, 0);
    }

    #[test]
    fn many_leave_in_few_calls_and_from_the_port_that_was_named() {
        let sockets = sockets();
        let node = UdpSocket::bind("127.0.0.1:0").expect("bind");
        node.set_read_timeout(Some(Duration::from_secs(5))).expect("timeout");
        let to = node.local_addr().expect("address");
        let mut outbox = Outbox::new();
        for n in 0..80u8 {
            outbox.push(&sockets, Port::Main, to, &[n; 300]);
            if n == 20 {
                outbox.push(&sockets, Port::Other, to, b"other");
            }
        }
        outbox.flush(&sockets);
        let (mut next, mut others) = (0, 0);
        for _ in 0..81 {
            let (from, data) = receive(&node);
            if from == sockets.main.local_addr() {
                assert_eq!(data, vec![next; 300]);
                next += 1;
            } else {
                assert_eq!(
                    (from, &data[..]),
                    (sockets.other.as_ref().expect("two").local_addr(), &b"other"[..])
                );
                others += 1;
            }
        }
        assert_eq!((next, others), (80, 1));
    }
}
