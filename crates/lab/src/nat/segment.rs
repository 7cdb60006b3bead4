//! The public segment: a router in this process between the devices of all sites, with a link on the way out of each.
//!
//! ```text
//!  device ─▶ [translator] ─▶ link (delay, rate, loss) ─▶ route ─▶ [translator of the other site] ─▶ device
//! ```
//!
//! One thread serves a whole segment: a laboratory of NATs needs little bandwidth, but many of them run side by side.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use tun_rs::SyncDevice;

use super::packet;
use super::translator::{Translator, Verdict, same_site};
use crate::link::{Counters, Link, LinkConfig};
use crate::{LabError, pump};

/// Packets taken from one device before the others have their turn.
const BATCH: usize = 32;
/// Longest sleep: a bound on what a lost wake-up could do.
const NAP: Duration = Duration::from_millis(100);
/// Priority of the thread: below the laboratory of links, above everything else.
const PRIORITY: u8 = 40;

/// A host behind a site: its device, and its address where several share the site.
pub(crate) struct Attached {
    pub(crate) device: Arc<SyncDevice>,
    /// `None`: everything that comes in is for this host.
    pub(crate) address: Option<Ipv4Addr>,
}

/// One way into the public segment.
pub(crate) struct Site {
    pub(crate) hosts: Vec<Attached>,
    pub(crate) link: Link,
    pub(crate) translator: Option<Translator>,
    /// The first of its sixteen IPv4 addresses.
    pub(crate) first: Ipv4Addr,
    /// Its part of IPv6.
    pub(crate) part: std::net::Ipv6Addr,
    /// Whether anything passes: a cable that can be pulled.
    pub(crate) plugged: bool,
    /// What left it, in packets and bytes of IP.
    pub(crate) sent: (u64, u64),
}

impl Site {
    fn has(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(ip) => (u32::from(ip) ^ u32::from(self.first)) >> 4 == 0,
            IpAddr::V6(ip) => same_site(ip, self.part),
        }
    }

    /// Hands a packet to the host that it is for.
    fn deliver(&self, packet: &[u8]) {
        let to = packet::destination(packet);
        let host = self.hosts.iter().find(|host| match (host.address, to) {
            (Some(address), Some(to)) => IpAddr::V4(address) == to,
            (Some(_), None) => false,
            (None, _) => true,
        });
        // A kernel takes every packet, or drops it as a network card would.
        let _ = host.map(|host| host.device.send(packet));
    }

    /// A packet from a host of this site.
    fn leave(&mut self, now: Instant, packet: &[u8]) {
        let verdict = match &mut self.translator {
            Some(translator) => translator.outbound(now, packet.to_vec()),
            None => Verdict::Outside(packet.to_vec()),
        };
        match verdict {
            Verdict::Outside(packet) if self.plugged => {
                self.sent.0 += 1;
                self.sent.1 += packet.len() as u64;
                self.link.offer(now, &packet);
            }
            Verdict::Inside(packet) => self.deliver(&packet),
            Verdict::Outside(_) | Verdict::Dropped => {}
        }
    }

    /// A packet from the public segment.
    fn enter(&mut self, now: Instant, packet: Vec<u8>) {
        if !self.plugged {
            return;
        }
        match &mut self.translator {
            Some(translator) => {
                if let Verdict::Inside(packet) = translator.inbound(now, packet) {
                    self.deliver(&packet);
                }
            }
            None => self.deliver(&packet),
        }
    }
}

struct Shared {
    sites: Mutex<Vec<Site>>,
    devices: Vec<Arc<SyncDevice>>,
    wake: OwnedFd,
    stop: AtomicBool,
    /// Whether only the hub's site is reached from the others.
    severed: AtomicBool,
}

/// A running segment. It ends when this is dropped.
pub(crate) struct Segment {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Segment {
    pub(crate) fn start(sites: Vec<Site>) -> Result<Self, LabError> {
        let wake = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)
            .map_err(|error| LabError::failed("eventfd", error))?;
        let devices = sites.iter().flat_map(|site| &site.hosts).map(|host| host.device.clone()).collect();
        let shared = Arc::new(Shared {
            sites: Mutex::new(sites),
            devices,
            wake,
            stop: AtomicBool::default(),
            severed: AtomicBool::default(),
        });
        let own = shared.clone();
        let thread = std::thread::Builder::new()
            .name("segment".into())
            .spawn(move || {
                // Without permission times are less exact on a busy machine.
                let _ = pump::make_real_time(PRIORITY);
                run(&own);
            })
            .map_err(|error| LabError::failed("thread", error))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Looks at a site, or changes it, between two packets.
    pub(crate) fn with<T>(&self, site: usize, work: impl FnOnce(&mut Site) -> T) -> T {
        let done = work(&mut self.shared.sites()[site]);
        self.shared.wake();
        done
    }

    pub(crate) fn set_link(&self, site: usize, config: LinkConfig) {
        self.with(site, |site| site.link.reconfigure(Instant::now(), config));
    }

    /// Sites reach the first one only, or each other again.
    pub(crate) fn sever(&self, severed: bool) {
        self.shared.severed.store(severed, Ordering::Release);
    }

    pub(crate) fn counters(&self, site: usize) -> Counters {
        self.with(site, |site| site.link.counters())
    }
}

impl std::fmt::Debug for Segment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Segment").field("devices", &self.shared.devices.len()).finish_non_exhaustive()
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.wake();
        if let Some(thread) = self.thread.take() {
            // One that panicked has said so on standard error.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn sites(&self) -> MutexGuard<'_, Vec<Site>> {
        self.sites.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        // Full means that it is awake anyway.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }
}

fn run(shared: &Shared) {
    let mut buffer = vec![0_u8; usize::from(u16::MAX)];
    while !shared.stop.load(Ordering::Acquire) {
        let (next, more) = turn(&mut shared.sites(), &mut buffer, shared.severed.load(Ordering::Acquire));
        let sleep = next.map_or(NAP, |at| at.saturating_duration_since(Instant::now()).min(NAP));
        if more || sleep.is_zero() {
            continue;
        }
        wait(shared, sleep);
    }
}

/// Until a device has something, somebody wants something, or the time is over.
fn wait(shared: &Shared, sleep: Duration) {
    let timeout = Timespec { tv_sec: sleep.as_secs() as i64, tv_nsec: i64::from(sleep.subsec_nanos()) };
    let mut ready: Vec<_> =
        shared.devices.iter().map(|device| PollFd::from_borrowed_fd(device.as_fd(), PollFlags::IN)).collect();
    ready.push(PollFd::from_borrowed_fd(shared.wake.as_fd(), PollFlags::IN));
    // An interrupted wait is a short one.
    let _ = poll(&mut ready, Some(&timeout));
    let _ = rustix::io::read(&shared.wake, &mut [0_u8; 8]);
}

/// Takes in a batch from every device and delivers what is due. Says when the next is due and whether more waits.
fn turn(sites: &mut [Site], buffer: &mut [u8], severed: bool) -> (Option<Instant>, bool) {
    let mut more = false;
    for site in sites.iter_mut() {
        for host in 0..site.hosts.len() {
            let mut taken = 0;
            while taken < BATCH {
                // A device that is gone or empty gives nothing: both end the batch.
                let Ok(len) = site.hosts[host].device.recv(buffer) else { break };
                site.leave(Instant::now(), &buffer[..len]);
                taken += 1;
            }
            more |= taken == BATCH;
        }
    }
    let mut next: Option<Instant> = None;
    for index in 0..sites.len() {
        while let Some(packet) = sites[index].link.poll(Instant::now()) {
            let to = packet::destination(&packet);
            let to = to.and_then(|to| sites.iter().position(|site| site.has(to)));
            if let Some(to) = to.filter(|to| !severed || index == 0 || *to == 0) {
                sites[to].enter(Instant::now(), packet);
            }
        }
        let due = sites[index].link.next_arrival();
        next = match (next, due) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
    }
    (next, more)
}
