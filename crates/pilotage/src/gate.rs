//! The gate: which peers may call us (spec/trust.md §5).
//!
//! The endpoint keeps the first packets of a caller and asks; the application's closure answers on a thread of its own,
//! so it may use the node, and a slow answer delays nothing but other callers. A verdict is good for [`ADMITTED`].

use std::fmt;
use std::sync::mpsc::{Receiver, TrySendError, sync_channel};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use pilotage_proto::TunnelInfo;
use pilotage_wire::NodeId;
use serde_json::Value;

use crate::hub::{Hub, HubError};
use crate::keeper::{adopt, describe};
use crate::node::Node;
use crate::shared::{Core, Phase, Shared};

/// How long a caller that was let in is not asked about again.
const ADMITTED: Duration = Duration::from_secs(10);

/// Callers that wait for the closure; the endpoint asks about at most 64 at a time.
const MAX_QUESTIONS: usize = 64;

/// Decides whether a node may open streams to us and send us datagrams.
pub type Gate = Arc<dyn Fn(NodeId) -> bool + Send + Sync>;

impl Node {
    /// Closes the node to everybody for whom `gate` says no: their SYN and datagrams are dropped without an answer and
    /// counted in [`EndpointStats::drop_not_admitted`](crate::EndpointStats). Port 444 and echo requests stay open, and
    /// so do streams that are open already. A yes is good for 10 s.
    ///
    /// `gate` runs on a thread of its own and may use the node; it should hold no [`Node`], or the node never closes by
    /// itself. If that thread cannot be started, or `gate` panics, nobody is let in.
    pub fn set_gate(&self, gate: Gate) {
        let shared = &self.inner.shared;
        let (ask, questions) = sync_channel(MAX_QUESTIONS);
        let mut core = shared.lock();
        if core.phase == Phase::Closed {
            return;
        }
        core.endpoint.set_gate(true);
        core.gates += 1;
        let keeper = GateKeeper { shared: Arc::downgrade(shared), number: core.gates, gate };
        *shared.gate() = Some(ask);
        shared.finish(core);
        let spawned =
            std::thread::Builder::new().name("pilotage-gate".into()).spawn(move || keeper.run(&questions));
        if let Err(error) = spawned {
            tracing::error!(%error, "no thread for the gate: nobody is let in");
        }
    }

    /// Lets everybody call again.
    pub fn open_gate(&self) {
        let shared = &self.inner.shared;
        let mut core = shared.lock();
        core.endpoint.set_gate(false);
        core.gates += 1;
        shared.ask_nobody();
        shared.finish(core);
    }

    /// Ends all streams with a peer, and has the gate asked again before it may call.
    pub fn dismiss(&self, peer: NodeId) {
        let shared = &self.inner.shared;
        let mut core = shared.lock();
        core.endpoint.dismiss(Instant::now(), peer);
        shared.finish(core);
    }

    /// The tunnel with one peer, if there is one.
    pub fn peer(&self, peer: NodeId) -> Option<TunnelInfo> {
        self.inner.shared.lock().endpoint.peer(peer)
    }

    /// Signs with the node's identity key (Ed25519). What is signed binds the node: sign nothing that others chose.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.inner.identity.sign(message)
    }

    /// Time between heartbeats to the registry, and between other regular questions to it.
    pub fn keepalive(&self) -> Duration {
        self.inner.keepalive
    }

    /// Sends one request to the registry, with our signature over `signed` if given, and returns the reply as it is.
    ///
    /// Blocks at most some seconds. A request may reach the registry twice where a connection breaks. A name or visibility
    /// that the registry takes so (`set_hostname`, `set_visibility`) replaces the one the node was started with: later
    /// registrations ask for it, as long as the node lives. After `deregister` there are none until one of both is set,
    /// which registers the node first.
    ///
    /// # Errors
    /// [`HubError::NotConfigured`] without a registry; else as the registry answers.
    pub fn registry_call(&self, request: Value, signed: Option<&str>) -> Result<Value, HubError> {
        let hub = self.inner.hub.as_ref().ok_or(HubError::NotConfigured)?;
        let known_again = matches!(request["type"].as_str(), Some("set_hostname" | "set_visibility"));
        if known_again && hub.wish().away {
            self.come_back(hub)?;
        }
        hub.call(&request, signed)
    }

    /// Registers after the node left on request: only who is registered has a name or is visible.
    fn come_back(&self, hub: &Hub) -> Result<(), HubError> {
        let mut wish = hub.wish();
        let request = describe(&self.inner.shared, hub, &wish);
        let registered = hub.ask(|directory| directory.register(&request))?;
        wish.away = false;
        drop(wish);
        adopt(&self.inner.shared, hub, &request, &registered)
    }
}

/// The thread that asks the application's closure.
struct GateKeeper {
    shared: Weak<Shared>,
    number: u64,
    gate: Gate,
}

impl fmt::Debug for GateKeeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GateKeeper").field("number", &self.number).finish_non_exhaustive()
    }
}

impl GateKeeper {
    /// Ends when nobody asks any more.
    fn run(self, questions: &Receiver<NodeId>) {
        for node in questions {
            let open = (self.gate)(node);
            let Some(shared) = self.shared.upgrade() else {
                return;
            };
            let mut core = shared.lock();
            if core.gates != self.number || core.phase == Phase::Closed {
                return;
            }
            let now = Instant::now();
            core.endpoint.admit(now, node, open.then(|| now + ADMITTED));
            shared.finish(core);
        }
    }
}

impl Shared {
    /// Passes the question on.
    pub(crate) fn on_knock(&self, core: &mut Core, peer: NodeId) {
        let asked = match self.gate().as_ref() {
            Some(ask) => ask.try_send(peer),
            None => Err(TrySendError::Disconnected(peer)),
        };
        if asked.is_err() {
            core.endpoint.admit(Instant::now(), peer, None);
        }
    }

    /// Ends the gate's thread once it has nothing left to answer.
    pub(crate) fn ask_nobody(&self) {
        *self.gate() = None;
    }

    fn gate(&self) -> std::sync::MutexGuard<'_, Option<std::sync::mpsc::SyncSender<NodeId>>> {
        self.gate.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
