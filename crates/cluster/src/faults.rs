//! What goes wrong on purpose: lost frames, a full disk, a clock that jumps; without touching the host.

use std::collections::BTreeSet;
use std::net::SocketAddr;
#[cfg(any(test, feature = "chaos"))]
use std::sync::atomic::AtomicU8;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Faults of one node. Clones share the state. Without faults unless a test or `registry-chaos` makes some.
///
/// Each node drops what *it* sends, requests as well as replies; a partition between two needs both sides.
#[derive(Debug, Clone, Default)]
pub struct Faults(Arc<State>);

#[derive(Debug, Default)]
struct State {
    cut: Mutex<BTreeSet<SocketAddr>>,
    #[cfg(any(test, feature = "chaos"))]
    disk: AtomicU8,
    clock: AtomicI64,
}

/// What the disk does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum DiskFault {
    /// It works.
    None = 0,
    /// Nothing can be written: no space.
    Full = 1,
    /// Writing seems to work, and fails when it has to be durable.
    Sync = 2,
}

impl Faults {
    /// From now on nothing is sent to these endpoints, and to all others everything.
    #[cfg(any(test, feature = "chaos"))]
    pub fn cut(&self, endpoints: impl IntoIterator<Item = SocketAddr>) {
        *self.0.cut.lock().unwrap_or_else(PoisonError::into_inner) = endpoints.into_iter().collect();
    }

    /// From now on the disk does this.
    #[cfg(any(test, feature = "chaos"))]
    pub fn disk(&self, fault: DiskFault) {
        self.0.disk.store(fault as u8, Ordering::SeqCst);
    }

    /// From now on the node's clock is so many seconds ahead.
    #[cfg(any(test, feature = "chaos"))]
    pub fn clock(&self, seconds: i64) {
        self.0.clock.store(seconds, Ordering::SeqCst);
    }

    pub(crate) fn drops(&self, endpoint: SocketAddr) -> bool {
        self.0.cut.lock().unwrap_or_else(PoisonError::into_inner).contains(&endpoint)
    }

    #[cfg(any(test, feature = "chaos"))]
    pub(crate) fn disk_fault(&self) -> DiskFault {
        match self.0.disk.load(Ordering::SeqCst) {
            1 => DiskFault::Full,
            2 => DiskFault::Sync,
            _ => DiskFault::None,
        }
    }

    /// The time with the fault.
    pub(crate) fn time(&self, unix_seconds: u64) -> u64 {
        unix_seconds.saturating_add_signed(self.0.clock.load(Ordering::Relaxed))
    }
}
