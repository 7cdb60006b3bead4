//! Receiving: a slab allocated once, filled by one batched system call, opened in place by the core.

use std::io::{self, IoSliceMut};

use quinn_udp::{BATCH_SIZE, RecvMeta};

use super::socket::{Socket, inbound};

/// Largest UDP payload with its receive-offload coalescing, in bytes.
const SLOT: usize = 1 << 16;

/// The receive slab: [`BATCH_SIZE`] slots of 64 KiB, and what the kernel said about each.
#[derive(Debug)]
pub(crate) struct RecvSlab {
    data: Box<[u8]>,
    meta: [RecvMeta; BATCH_SIZE],
    filled: usize,
}

impl RecvSlab {
    pub(crate) fn new() -> Self {
        // One page-aligned zeroed mapping: a slot costs memory only once it has been used.
        Self { data: vec![0; SLOT * BATCH_SIZE].into(), meta: [RecvMeta::default(); BATCH_SIZE], filled: 0 }
    }

    /// Fills the slab with one system call. `Ok(true)`: the socket may hold more.
    pub(crate) fn fill(&mut self, socket: &Socket, io: &mio::net::UdpSocket) -> io::Result<bool> {
        self.filled = 0;
        let mut slots = self.data.chunks_exact_mut(SLOT);
        let mut slots: [IoSliceMut<'_>; BATCH_SIZE] =
            std::array::from_fn(|_| IoSliceMut::new(slots.next().unwrap_or_default()));
        self.filled = socket.recv(io, &mut slots, &mut self.meta)?;
        // A short batch means that the queue was seen empty; what comes later raises a new edge.
        Ok(self.filled == BATCH_SIZE)
    }

    /// Every received datagram, to be changed in place.
    pub(crate) fn datagrams(&mut self) -> impl Iterator<Item = (pilotage_proto::RecvMeta, &mut [u8])> {
        self.data.chunks_exact_mut(SLOT).zip(&self.meta[..self.filled]).flat_map(|(slot, meta)| {
            let about = pilotage_proto::RecvMeta { remote: inbound(meta.addr), local_ip: meta.dst_ip };
            // `stride` is 0 for an empty datagram, and chunks of 0 would panic.
            let len = meta.len.min(SLOT);
            slot[..len].chunks_mut(meta.stride.max(1)).map(move |datagram| (about, datagram))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::time::{Duration, Instant};

    #[test]
    fn a_batch_is_split_into_its_datagrams() {
        let socket = Socket::bind("127.0.0.1:0".parse().expect("address"), 1 << 20, 1 << 20).expect("bind");
        let io = socket.try_clone_io().expect("clone");
        let sender = Socket::bind("127.0.0.1:0".parse().expect("address"), 1 << 20, 1 << 20).expect("bind");
        let mut batch = Vec::new();
        for byte in 0..10_u8 {
            batch.extend_from_slice(&[byte; 100]);
        }
        batch.truncate(950);
        if sender.max_gso_segments() > 1 {
            sender.send(socket.local_addr(), &batch, Some(100)).expect("send");
        } else {
            for datagram in batch.chunks(100) {
                sender.send(socket.local_addr(), datagram, None).expect("send");
            }
        }
        UdpSocket::bind("127.0.0.1:0").expect("bind").send_to(&[], socket.local_addr()).expect("empty");

        let mut slab = RecvSlab::new();
        let mut got = Vec::new();
        let end = Instant::now() + Duration::from_secs(5);
        while got.len() < 10 && Instant::now() < end {
            match slab.fill(&socket, &io) {
                Ok(_) => got.extend(slab.datagrams().map(|(meta, data)| {
                    assert_eq!(meta.remote, sender.local_addr());
                    data.to_vec()
                })),
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        }
        assert_eq!(got, batch.chunks(100).map(<[u8]>::to_vec).collect::<Vec<_>>());
    }
}
