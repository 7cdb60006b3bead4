//! Accepting streams on a port.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::{ListenError, closed};
use crate::node::NodeInner;
use crate::shared::{Core, Phase};
use crate::slot::{Direction, Slot};
use crate::stream::Stream;

/// First port that is chosen where the caller does not care (RFC 6335 dynamic range).
const FIRST_DYNAMIC_PORT: u16 = 49_152;

/// Accepts streams on one port. Several threads may accept through a shared reference.
///
/// Dropping it closes the port; streams that were accepted live on.
#[derive(Debug)]
pub struct Listener {
    node: Arc<NodeInner>,
    port: u16,
    slot: Arc<Slot>,
}

impl Listener {
    pub(crate) fn open(node: &Arc<NodeInner>, port: u16) -> Result<Self, ListenError> {
        let mut core = node.shared.lock();
        let port = choose_port(&core, port, |core, port| core.listeners.contains_key(&port))?;
        core.endpoint.listen(port).map_err(|source| ListenError::Core { port, source })?;
        let slot = Arc::new(Slot::default());
        core.listeners.insert(port, slot.clone());
        Ok(Self { node: node.clone(), port, slot })
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Waits for the next stream.
    ///
    /// # Errors
    /// `NotConnected` once the node is closed.
    pub fn accept(&self) -> io::Result<Stream> {
        // Without a deadline there is no other way out than a stream or an error.
        self.accept_until(None).and_then(|stream| stream.ok_or_else(closed))
    }

    /// Waits for the next stream; `None` after `timeout`.
    ///
    /// # Errors
    /// `NotConnected` once the node is closed.
    pub fn accept_timeout(&self, timeout: Duration) -> io::Result<Option<Stream>> {
        self.accept_until(Instant::now().checked_add(timeout))
    }

    /// Waits for the next stream, on any async runtime.
    ///
    /// # Errors
    /// `NotConnected` once the node is closed.
    pub async fn accept_async(&self) -> io::Result<Stream> {
        std::future::poll_fn(|cx| {
            self.node.shared.poll(&self.slot, Direction::Read, cx, || self.try_accept())
        })
        .await
    }

    /// The streams as they come; ends once the node is closed.
    pub fn incoming(&self) -> impl Iterator<Item = Stream> + '_ {
        std::iter::from_fn(|| self.accept().ok())
    }

    fn accept_until(&self, deadline: Option<Instant>) -> io::Result<Option<Stream>> {
        loop {
            let seen = self.slot.epoch(Direction::Read);
            if let Some(accepted) = self.try_accept() {
                return accepted.map(Some);
            }
            if !self.node.shared.wait(&self.slot, Direction::Read, seen, deadline) {
                return Ok(None);
            }
        }
    }

    fn try_accept(&self) -> Option<io::Result<Stream>> {
        let mut core = self.node.shared.lock();
        if core.phase != Phase::Open {
            return Some(Err(closed()));
        }
        let (id, peer) = core.endpoint.accept(self.port)?;
        let stream = Stream::adopt(&self.node, &mut core, id, peer);
        stream.slot().set_connected();
        self.node.shared.finish(core);
        Some(Ok(stream))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let shared = &self.node.shared;
        let mut core = shared.lock();
        core.listeners.remove(&self.port);
        core.endpoint.unlisten(Instant::now(), self.port);
        shared.finish(core);
    }
}

/// The port asked for, or a free dynamic one for 0.
pub(crate) fn choose_port(
    core: &Core,
    port: u16,
    taken: impl Fn(&Core, u16) -> bool,
) -> Result<u16, ListenError> {
    if core.phase != Phase::Open {
        return Err(ListenError::Closed);
    }
    match port {
        0 => (FIRST_DYNAMIC_PORT..=u16::MAX).find(|port| !taken(core, *port)).ok_or(ListenError::InUse(0)),
        port if taken(core, port) => Err(ListenError::InUse(port)),
        port => Ok(port),
    }
}
