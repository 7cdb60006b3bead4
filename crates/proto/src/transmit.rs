//! Datagrams in and out: what the driver hands over and what it is asked to send.

use std::net::{IpAddr, SocketAddr};

/// What the driver knows about one received datagram.
#[derive(Debug, Clone, Copy)]
pub struct RecvMeta {
    /// Source of the datagram.
    pub remote: SocketAddr,
    /// Local address it arrived at, where the platform tells.
    pub local_ip: Option<IpAddr>,
}

/// One batch of equally sized datagrams to one destination, lying in a [`TransmitBuf`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transmit {
    /// Where to send the batch.
    pub destination: SocketAddr,
    /// Bytes of the buffer that belong to this batch, from its start.
    pub size: usize,
    /// Size of every datagram of the batch but the last, which may be shorter. `None`: one datagram.
    pub segment_size: Option<usize>,
}

/// The slab that outgoing datagrams are written and sealed in, owned by the driver.
///
/// Holds at most `max_segments` datagrams of one common size (the last may be shorter) and at most
/// 65,507 bytes in all, which is what one generic-segmentation-offload send accepts.
#[derive(Debug)]
pub struct TransmitBuf {
    data: Box<[u8]>,
    max_segments: usize,
}

impl TransmitBuf {
    /// Most bytes of one batch: the UDP payload limit over IPv4.
    pub const CAPACITY: usize = 65_507;

    /// A buffer for batches of at most `max_segments` datagrams (1 disables batching).
    pub fn new(max_segments: usize) -> Self {
        Self { data: vec![0; Self::CAPACITY].into_boxed_slice(), max_segments: max_segments.max(1) }
    }

    /// Most datagrams of one batch.
    pub fn max_segments(&self) -> usize {
        self.max_segments
    }

    /// Changes the batch limit, for a driver that learns that the kernel refuses offload.
    pub fn set_max_segments(&mut self, max_segments: usize) {
        self.max_segments = max_segments.max(1);
    }

    /// The bytes of the batch described by a [`Transmit`].
    pub fn bytes(&self, size: usize) -> &[u8] {
        &self.data[..size.min(Self::CAPACITY)]
    }

    pub(crate) fn data_mut(&mut self) -> &mut [u8] {
        &mut self.data
    }
}
