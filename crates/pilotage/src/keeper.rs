//! The keeper thread: whatever may block and therefore must not run on the driver.
//!
//! It keeps the node registered with the hub (a heartbeat each 30 s; registers anew when the hub
//! forgot us, came back, or our observed address changed), asks the hub about unknown peers, and
//! saves pins a second after they changed. It holds the node only weakly while it waits for the hub,
//! so a silent hub cannot keep a closed node's socket open.

mod ask;

use std::collections::{HashMap, VecDeque};
use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

use pilotage_proto::PeerPolicy;
use pilotage_wire::{Address, NodeId};
use serde_json::{Value, json};

use crate::events::NodeEvent;
use crate::hub::{Directory, Hub, HubError, Register, Registered, Wish};
use crate::lookup::Lookup;
use crate::shared::Shared;
use crate::slot::Slot;
use crate::state::write_atomically;

/// Time between heartbeats (draft: 30 s).
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(30);
/// Time between heartbeats while the hub refuses our questions.
const DOUBTED_HEARTBEAT: Duration = Duration::from_secs(2);
/// The same at a registry of the reference, which refuses to resolve private nodes every day and takes only 50 heartbeats
/// a minute from one address.
const DOUBTED_ABROAD: Duration = Duration::from_secs(15);
/// Strangers that a registry of the reference is asked about per minute; it takes 500 look-ups from one address.
const STRANGERS_PER_MINUTE: f64 = 120.0;
/// As many of them may come at once.
const STRANGERS_AT_ONCE: f64 = 30.0;

/// Silence of the hub is noted as lost after this many tries.
const MAX_FAILURES: u32 = 3;

/// Longest pause between tries to reach the hub.
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// Shortest time between registrations for a changed address.
const MIN_REREGISTER: Duration = Duration::from_secs(5);

/// Changes of the pins are collected for this long before they are written.
const SAVE_DELAY: Duration = Duration::from_secs(1);

/// An attempt to connect that takes longer is a reason to ask the hub where the peer is.
const WATCH: Duration = Duration::from_secs(1);

/// Most attempts that are watched at once.
const MAX_WATCHED: usize = 256;

/// Most peers whose address is wanted.
const MAX_WANTED: usize = 64;

/// Most peers that wait for extra sockets.
const MAX_SOCKET_WISHES: usize = 8;

/// Most unknown peers that wait for the hub's answer (the core asks about at most 64).
const MAX_LOOKUPS: usize = 64;

/// What the driver and the application leave for the keeper.
#[derive(Debug)]
pub(crate) struct Mailbox {
    hub: bool,
    beacon: bool,
    mail: Mutex<Mail>,
    arrived: Condvar,
    /// Held while `peers.json` is written, so that nothing is written once the node is closed.
    saving: Mutex<()>,
}

#[derive(Debug, Default)]
struct Mail {
    lookups: VecDeque<Lookup>,
    save_at: Option<Instant>,
    address_changed: bool,
    hub_doubted: bool,
    /// Attempts to connect over a tunnel that may be dead, oldest first.
    watched: VecDeque<Watch>,
    /// Peers that answer nowhere: the hub may know a newer address.
    wanted: VecDeque<Address>,
    /// Peers for which extra sockets are wanted, and where those should send.
    sockets: VecDeque<(NodeId, SocketAddr)>,
    stop: bool,
}

/// An attempt to connect over an established tunnel. If it is still under way when it falls due, the peer
/// may have restarted elsewhere, and the hub is asked where it is now.
#[derive(Debug)]
struct Watch {
    due: Instant,
    address: Address,
    slot: Weak<Slot>,
}

#[derive(Debug)]
enum Task {
    Lookup(Lookup),
    Save,
    AddressChanged,
    HubDoubted,
    Locate(Address),
    Sockets(NodeId, SocketAddr),
    Due,
    Stop,
}

impl Mailbox {
    pub(crate) fn new(hub: bool, beacon: bool) -> Self {
        Self { hub, beacon, mail: Mutex::default(), arrived: Condvar::new(), saving: Mutex::new(()) }
    }

    pub(crate) fn has_hub(&self) -> bool {
        self.hub
    }

    pub(crate) fn has_beacon(&self) -> bool {
        self.beacon
    }

    /// False if too many wait already.
    pub(crate) fn push(&self, lookup: Lookup) -> bool {
        let mut mail = self.lock();
        // Sealed frames of strangers cost their sender nothing: they never crowd out key exchanges.
        let most = if lookup.key.is_some() { MAX_LOOKUPS } else { 1 };
        if mail.stop || mail.lookups.len() >= most {
            return false;
        }
        mail.lookups.push_back(lookup);
        drop(mail);
        self.arrived.notify_one();
        true
    }

    pub(crate) fn save_soon(&self) {
        let mut mail = self.lock();
        if mail.save_at.is_none() {
            mail.save_at = Some(Instant::now() + SAVE_DELAY);
            drop(mail);
            self.arrived.notify_one();
        }
    }

    /// Watches an attempt to connect over an established tunnel.
    pub(crate) fn watch(&self, address: Address, slot: &Arc<Slot>) {
        let mut mail = self.lock();
        if !self.hub || mail.watched.len() >= MAX_WATCHED {
            return;
        }
        let watch = Watch { due: Instant::now() + WATCH, address, slot: Arc::downgrade(slot) };
        mail.watched.push_back(watch);
        let first = mail.watched.len() == 1;
        drop(mail);
        // The keeper wakes once for all that follow: they fall due later than the first.
        if first {
            self.arrived.notify_one();
        }
    }

    /// Nobody answers where this peer should be. At most [`MAX_WANTED`] wait; each is asked about once.
    pub(crate) fn want_address(&self, address: Address) {
        let mut mail = self.lock();
        if !self.hub || mail.wanted.len() >= MAX_WANTED || mail.wanted.contains(&address) {
            return;
        }
        mail.wanted.push_back(address);
        drop(mail);
        self.arrived.notify_one();
    }

    /// Extra sockets are wanted. Beyond [`MAX_SOCKET_WISHES`] nothing is done: the relay goes on.
    pub(crate) fn want_sockets(&self, peer: NodeId, target: SocketAddr) {
        let mut mail = self.lock();
        if mail.sockets.len() < MAX_SOCKET_WISHES {
            mail.sockets.push_back((peer, target));
            drop(mail);
            self.arrived.notify_one();
        }
    }

    pub(crate) fn address_changed(&self) {
        self.lock().address_changed = true;
        self.arrived.notify_one();
    }

    /// The hub refused a question that it answers to everybody whom it knows, so it may have forgotten us.
    pub(crate) fn doubt_hub(&self) {
        self.lock().hub_doubted = true;
        self.arrived.notify_one();
    }

    pub(crate) fn stop(&self) {
        self.lock().stop = true;
        self.arrived.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Mail> {
        self.mail.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Waits for the next task; [`Task::Due`] at `due`.
    fn next(&self, due: Option<Instant>) -> Task {
        let mut mail = self.lock();
        loop {
            if mail.stop {
                return Task::Stop;
            }
            let now = Instant::now();
            // What keeps us registered comes first: strangers can ask without end.
            if due.is_some_and(|due| due <= now) {
                return Task::Due;
            }
            if let Some((peer, target)) = mail.sockets.pop_front() {
                return Task::Sockets(peer, target);
            }
            if let Some(lookup) = mail.lookups.pop_front() {
                return Task::Lookup(lookup);
            }
            if std::mem::take(&mut mail.address_changed) {
                return Task::AddressChanged;
            }
            if std::mem::take(&mut mail.hub_doubted) {
                return Task::HubDoubted;
            }
            if let Some(address) = mail.wanted.pop_front() {
                return Task::Locate(address);
            }
            while mail.watched.front().is_some_and(|watch| watch.due <= now) {
                let overdue = mail.watched.pop_front().filter(|watch| {
                    watch.slot.upgrade().is_some_and(|slot| !slot.is_connected() && !slot.is_closed())
                });
                if let Some(watch) = overdue {
                    return Task::Locate(watch.address);
                }
            }
            if mail.save_at.is_some_and(|at| at <= now) {
                mail.save_at = None;
                return Task::Save;
            }
            let watched = mail.watched.front().map(|watch| watch.due);
            let until = [mail.save_at, watched, due].into_iter().flatten().min();
            mail = match until {
                None => self.arrived.wait(mail).unwrap_or_else(|poisoned| poisoned.into_inner()),
                Some(until) => {
                    let waited = self.arrived.wait_timeout(mail, until.saturating_duration_since(now));
                    waited.unwrap_or_else(|poisoned| poisoned.into_inner()).0
                }
            };
        }
    }
}

impl Shared {
    /// Writes `peers.json` if something changed. After `last` nothing is ever written again.
    pub(crate) fn save_peers(&self, last: bool) {
        let _saving = self.mailbox.saving.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let unsaved = {
            let mut book = self.book();
            let unsaved = book.take_unsaved();
            if last {
                book.detach();
            }
            unsaved
        };
        if let Some((path, json)) = unsaved
            && let Err(error) = write_atomically(&path, &json)
        {
            tracing::warn!(path = %path.display(), %error, "pins not saved");
            self.book().mark_unsaved();
        }
    }
}

/// The thread's own state.
pub(crate) struct Keeper {
    pub(crate) shared: Weak<Shared>,
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) hub: Option<Arc<Hub>>,
    pub(crate) policies: HashMap<NodeId, PeerPolicy>,
    pub(crate) registered: bool,
    pub(crate) heartbeat: Duration,
    pub(crate) strangers: Budget,
}

/// The keeper's plan for the hub.
struct Schedule {
    due: Option<Instant>,
    failures: u32,
    registered: bool,
    last_register: Instant,
    last_tended: Instant,
}

impl Keeper {
    pub(crate) fn spawn(self) -> std::io::Result<()> {
        std::thread::Builder::new().name("pilotage-keeper".into()).spawn(move || self.run()).map(drop)
    }

    fn run(mut self) {
        let now = Instant::now();
        let due = self
            .hub
            .as_ref()
            .map(|_| now + if self.registered { self.heartbeat } else { Duration::from_secs(1) });
        let mut plan =
            Schedule { due, failures: 0, registered: self.registered, last_register: now, last_tended: now };
        loop {
            match self.mailbox.next(plan.due) {
                Task::Stop => return,
                Task::Lookup(lookup) => self.look_up(lookup),
                Task::Locate(address) => self.locate(address),
                Task::Sockets(peer, target) => crate::side::spawn(self.shared.clone(), peer, target),
                Task::Save => {
                    if let Some(shared) = self.shared.upgrade() {
                        shared.save_peers(false);
                    }
                }
                Task::AddressChanged => {
                    if plan.due.is_some() && plan.registered {
                        plan.registered = false;
                        plan.due = Some(plan.last_register + MIN_REREGISTER);
                    }
                }
                Task::HubDoubted => {
                    // The next heartbeat tells; only it must not wait so long.
                    if plan.registered {
                        let soon = plan.last_tended + self.doubted_heartbeat();
                        plan.due = plan.due.map(|due| due.min(soon));
                    }
                }
                Task::Due => {
                    plan.last_tended = Instant::now();
                    self.tend(&mut plan);
                }
            }
        }
    }

    /// A heartbeat, or a registration where the hub does not know us.
    fn tend(&mut self, plan: &mut Schedule) {
        let Some(hub) = self.hub.clone() else {
            plan.due = None;
            return;
        };
        if hub.wish().away {
            plan.registered = false;
            plan.due = Some(Instant::now() + self.heartbeat);
            return;
        }
        let result = if plan.registered { self.beat(&hub) } else { self.register(&hub).map(|()| false) };
        let now = Instant::now();
        match result {
            Ok(renewed) => {
                let away = std::mem::take(&mut plan.failures) > 0 || renewed;
                let came_back = away && plan.registered;
                if !plan.registered {
                    plan.last_register = now;
                }
                // A hub that was away may have lost what it knew of us.
                plan.registered = !came_back;
                plan.due = Some(if came_back { now } else { now + self.heartbeat });
            }
            Err(error) => {
                *hub.registered() = None;
                plan.failures += 1;
                let forgotten = plan.registered && !error.is_unreachable();
                plan.registered &= error.is_unreachable() && plan.failures < MAX_FAILURES;
                hub.note_error(error.to_string(), plan.registered);
                if (plan.failures == MAX_FAILURES || forgotten)
                    && let Some(shared) = self.shared.upgrade()
                {
                    shared.events.send(NodeEvent::HubLost { reason: error.to_string() });
                }
                let pause = if forgotten { Duration::ZERO } else { pause_after(plan.failures) };
                plan.due = Some(now + pause);
            }
        }
    }

    /// True if the hub was reached over a new connection, so that it may be in another state than we believe.
    fn beat(&mut self, hub: &Hub) -> Result<bool, HubError> {
        let Some(node) = self.shared.upgrade().map(|shared| shared.lock().endpoint.local_address().node)
        else {
            return Ok(false);
        };
        let mut connection = connection(hub)?;
        let Some(directory) = connection.as_mut() else { return Ok(false) };
        directory.heartbeat(node)?;
        let renewed = directory.is_renewed();
        drop(connection);
        hub.note_alive();
        Ok(renewed)
    }

    fn register(&mut self, hub: &Hub) -> Result<(), HubError> {
        // Held until the registry has answered: what a client sets meanwhile comes behind it, not before.
        let wish = hub.wish();
        let Some(request) = self.shared.upgrade().map(|shared| describe(&shared, hub, &wish)) else {
            return Ok(());
        };
        let mut connection = connection(hub)?;
        let Some(directory) = connection.as_mut() else { return Ok(()) };
        let mut registered = directory.register(&request)?;
        if wish.nameless && registered.name.is_some() {
            directory
                .call(&no_name(registered.address.node), Some(&name_signature(registered.address.node)))?;
            registered.name = None;
        }
        drop(connection);
        drop(wish);
        match self.shared.upgrade() {
            Some(shared) => adopt(&shared, hub, &request, &registered),
            None => Ok(()),
        }
    }

    fn doubted_heartbeat(&self) -> Duration {
        match self.hub.as_ref().is_some_and(|hub| hub.is_foreign()) {
            true => DOUBTED_ABROAD.min(self.heartbeat),
            false => DOUBTED_HEARTBEAT,
        }
    }
}

/// The connection that registers us and tells that we are alive, opened if there is none from this network.
fn connection(hub: &Hub) -> Result<MutexGuard<'_, Option<Box<dyn Directory>>>, HubError> {
    let mut connection = hub.registered();
    if hub.take_stale() {
        *connection = None;
    }
    if connection.is_none() {
        *connection = Some(hub.open()?);
    }
    Ok(connection)
}

/// How many strangers the registry may be asked about now.
#[derive(Debug)]
pub(crate) struct Budget {
    left: f64,
    at: Option<Instant>,
}

impl Default for Budget {
    fn default() -> Self {
        Self { left: STRANGERS_AT_ONCE, at: None }
    }
}

impl Budget {
    fn take(&mut self, now: Instant) -> bool {
        let since = self.at.replace(now).map_or(0.0, |at| now.saturating_duration_since(at).as_secs_f64());
        self.left = (self.left + since * STRANGERS_PER_MINUTE / 60.0).min(STRANGERS_AT_ONCE);
        let allowed = self.left >= 1.0;
        if allowed {
            self.left -= 1.0;
        }
        allowed
    }
}

/// 1 s, 2 s, 4 s … up to [`MAX_PAUSE`].
fn pause_after(failures: u32) -> Duration {
    Duration::from_secs(1 << failures.saturating_sub(1).min(5)).min(MAX_PAUSE)
}

/// What to tell the registry about this node now.
pub(crate) fn describe(shared: &Shared, hub: &Hub, wish: &Wish) -> Register {
    let local = shared.local;
    // A port that the router keeps open for everybody is worth more than one that it opened for the beacon.
    let observed = {
        let core = shared.lock();
        core.mapped.or(core.observed_address())
    };
    let lan = lan_address(local, &hub.registry);
    let listen = observed.or(lan).unwrap_or(local);
    Register {
        listen_addr: listen.to_string(),
        lan_addrs: lan.iter().map(SocketAddr::to_string).collect(),
        name: wish.name.clone(),
        visibility: wish.visibility,
        owner: wish.owner.clone(),
    }
}

/// Gives up a name that an older state of the registry has brought back.
fn no_name(node: NodeId) -> Value {
    json!({ "type": "set_hostname", "node_id": node.0, "hostname": "" })
}

fn name_signature(node: NodeId) -> String {
    format!("set_hostname:{}", node.0)
}

/// Takes over what the registry decided.
pub(crate) fn adopt(
    shared: &Shared,
    hub: &Hub,
    request: &Register,
    registered: &Registered,
) -> Result<(), HubError> {
    let mut core = shared.lock();
    let now = Instant::now();
    if !core.endpoint.set_local_address(now, registered.address) {
        tracing::warn!(
            old = %core.endpoint.local_address(), new = %registered.address,
            "the registry calls us something else now: all tunnels end"
        );
        core.endpoint.replace_local_address(now, registered.address);
        shared.events.send(NodeEvent::AddressChanged { address: registered.address });
    }
    shared.finish(core);
    let lan = request.lan_addrs.iter().filter_map(|addr| addr.parse().ok()).collect();
    hub.note_registered(registered, request.visibility.is_public(registered.foreign), lan);
    shared.events.send(NodeEvent::Registered { address: registered.address });
    Ok(())
}

/// Our address on the interface that leads to the registry: a connected UDP socket tells, without sending.
fn lan_address(local: SocketAddr, registry: &str) -> Option<SocketAddr> {
    if !local.ip().is_unspecified() {
        return Some(local);
    }
    let target = crate::hub::resolve_host(registry, local).ok()?;
    let probe = UdpSocket::bind((if target.is_ipv4() { "0.0.0.0" } else { "::" }, 0)).ok()?;
    probe.connect(target).ok()?;
    let ip = probe.local_addr().ok()?.ip();
    (!ip.is_unspecified()).then(|| SocketAddr::new(ip, local.port()))
}

/// The address that a node has before any registry says otherwise.
pub(crate) fn derived_address(key: &[u8; 32]) -> Address {
    let first = pilotage_wire::addressing::node_ids(key).next();
    // Reserved ids are 17 of 2^32 per salt, and there are 65,536 salts.
    Address::new(0, first.map_or(NodeId(16), |(_, node)| node).0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lookup() -> Lookup {
        Lookup { node: NodeId(99), key: Some([1; 32]), relayed: false }
    }

    #[test]
    fn the_queue_of_unknown_peers_is_bounded() {
        let mailbox = Mailbox::new(true, false);
        for _ in 0..MAX_LOOKUPS {
            assert!(mailbox.push(lookup()));
        }
        assert!(!mailbox.push(lookup()));
        assert!(matches!(mailbox.next(None), Task::Lookup(_)));
        assert!(mailbox.push(lookup()));
        mailbox.stop();
        assert!(matches!(mailbox.next(None), Task::Stop), "stopping does not wait for the queue");
        assert!(!mailbox.push(lookup()));
    }

    #[test]
    fn saving_is_delayed_and_merged() {
        let mailbox = Mailbox::new(false, false);
        mailbox.save_soon();
        let first = mailbox.lock().save_at;
        mailbox.save_soon();
        assert_eq!(mailbox.lock().save_at, first);
        let soon = Instant::now() + Duration::from_millis(5);
        assert!(matches!(mailbox.next(Some(soon)), Task::Due), "not yet");
        assert!(matches!(mailbox.next(None), Task::Save));
        assert_eq!(mailbox.lock().save_at, None);
    }

    #[test]
    fn attempts_that_hang_are_located_and_the_list_is_bounded() {
        let mailbox = Mailbox::new(true, false);
        let slots: Vec<_> = (0..MAX_WATCHED + 1).map(|_| Arc::new(Slot::default())).collect();
        slots.iter().enumerate().for_each(|(n, slot)| mailbox.watch(Address::new(0, 100 + n as u32), slot));
        assert_eq!(mailbox.lock().watched.len(), MAX_WATCHED);
        slots[0].set_connected();
        slots[1].set_closed();
        let first = mailbox.next(None);
        assert!(matches!(first, Task::Locate(address) if address == Address::new(0, 102)), "{first:?}");
        drop(slots);
        let soon = Instant::now() + Duration::from_millis(50);
        assert!(matches!(mailbox.next(Some(soon)), Task::Due), "whoever gave up needs no answer");
    }

    #[test]
    fn peers_that_answer_nowhere_are_asked_about_once_each_and_not_without_bound() {
        let mailbox = Mailbox::new(true, false);
        for n in (0..MAX_WANTED as u32 + 5).chain(0..5) {
            mailbox.want_address(Address::new(0, 100 + n));
        }
        assert_eq!(mailbox.lock().wanted.len(), MAX_WANTED);
        let first = mailbox.next(None);
        assert!(matches!(first, Task::Locate(address) if address == Address::new(0, 100)), "{first:?}");
        let without = Mailbox::new(false, false);
        without.want_address(Address::new(0, 100));
        assert!(without.lock().wanted.is_empty(), "nobody to ask");
    }

    #[test]
    fn doubts_about_the_hub_are_merged() {
        let mailbox = Mailbox::new(true, false);
        (0..3).for_each(|_| mailbox.doubt_hub());
        assert!(matches!(mailbox.next(None), Task::HubDoubted));
        assert!(matches!(mailbox.next(Some(Instant::now())), Task::Due));
    }

    #[test]
    fn a_foreign_registry_is_asked_about_strangers_within_its_limit() {
        let (mut budget, start) = (Budget::default(), Instant::now());
        let asked = |budget: &mut Budget, at| (0..1000).filter(|_| budget.take(at)).count();
        assert_eq!(asked(&mut budget, start), 30);
        assert_eq!(asked(&mut budget, start + Duration::from_secs(1)), 2);
        assert_eq!(asked(&mut budget, start + Duration::from_secs(600)), 30);
    }

    #[test]
    fn pauses_double_up_to_a_bound() {
        let pauses: Vec<u64> = (1..9).map(|failures| pause_after(failures).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30, 30]);
    }

    #[test]
    fn the_address_towards_a_local_hub_is_local() {
        let any = "0.0.0.0:4000".parse().expect("address");
        assert_eq!(lan_address(any, "127.0.0.1:9000"), Some("127.0.0.1:4000".parse().expect("address")));
        let one = "127.0.0.1:4000".parse().expect("address");
        assert_eq!(lan_address(one, "unknown.invalid:1"), Some(one));
    }
}
