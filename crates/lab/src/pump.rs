//! The thread that takes packets out of one namespace, through its link, into the others.

use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use tun_rs::SyncDevice;

use crate::LabError;
use crate::link::Link;

/// Packets taken from the kernel before the due ones are delivered.
const BATCH: usize = 32;
/// What it costs, on a virtual machine, that the thread is woken to take a packet in and by the timer to deliver it.
/// The link's delay is shorter by this, so that what is measured from inside is what was set.
pub(crate) const LEAD: Duration = Duration::from_micros(80);
/// Longest sleep: a bound on what a lost wake-up could do.
const NAP: Duration = Duration::from_millis(100);

/// What the thread and the lab share.
#[derive(Debug)]
pub(crate) struct Shared {
    link: Mutex<Link>,
    wake: OwnedFd,
    stop: AtomicBool,
    stray: AtomicU64,
}

impl Shared {
    pub(crate) fn new(link: Link) -> Result<Self, LabError> {
        let wake = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)
            .map_err(|error| LabError::failed("eventfd", error))?;
        Ok(Self { link: Mutex::new(link), wake, stop: AtomicBool::new(false), stray: AtomicU64::new(0) })
    }

    /// The link. Hold it briefly: packets wait meanwhile.
    pub(crate) fn link(&self) -> MutexGuard<'_, Link> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn stray(&self) -> u64 {
        self.stray.load(Ordering::Relaxed)
    }

    /// Makes the thread look at its link again.
    pub(crate) fn wake(&self) {
        // Full means that it is awake anyway.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.wake();
    }
}

/// Starts the thread of one namespace. With a priority it is asked for real-time scheduling; whether that was granted
/// comes back.
pub(crate) fn start(
    index: usize,
    devices: Arc<[SyncDevice]>,
    shared: Arc<Shared>,
    priority: Option<u8>,
) -> Result<(JoinHandle<()>, bool), LabError> {
    let (tell, told) = std::sync::mpsc::channel();
    let thread = std::thread::Builder::new()
        .name(format!("lab-{index}"))
        .spawn(move || {
            // The receiver waits; and if it did not, nobody needs the answer.
            let _ = tell.send(priority.is_some_and(make_real_time));
            run(index, &devices, &shared);
        })
        .map_err(|error| LabError::failed("thread", error))?;
    let real_time = told.recv().unwrap_or(false);
    Ok((thread, real_time))
}

/// By `chrt` of util-linux: there is no safe call for it in the crates that we have.
pub(crate) fn make_real_time(priority: u8) -> bool {
    let thread = rustix::thread::gettid().as_raw_nonzero().to_string();
    let status = Command::new("chrt")
        .args(["--fifo", "--pid", &priority.to_string(), &thread])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    status.is_ok_and(|status| status.success())
}

fn run(index: usize, devices: &[SyncDevice], shared: &Shared) {
    let mut buffer = vec![0_u8; usize::from(u16::MAX)];
    while !shared.stop.load(Ordering::Acquire) {
        let (next, more) = turn(index, devices, shared, &mut buffer);
        if more {
            continue;
        }
        let sleep = next.map_or(NAP, |at| at.saturating_duration_since(Instant::now()).min(NAP));
        if sleep.is_zero() {
            continue;
        }
        let timeout = Timespec { tv_sec: sleep.as_secs() as i64, tv_nsec: i64::from(sleep.subsec_nanos()) };
        let mut ready = [
            PollFd::from_borrowed_fd(devices[index].as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(shared.wake.as_fd(), PollFlags::IN),
        ];
        // An interrupted wait is a short one.
        let _ = poll(&mut ready, Some(&timeout));
        if !ready[1].revents().is_empty() {
            let _ = rustix::io::read(&shared.wake, &mut [0_u8; 8]);
        }
    }
}

/// Delivers what is due and takes in one batch. Says when the next is due and whether more waits to be taken in.
fn turn(index: usize, devices: &[SyncDevice], shared: &Shared, buffer: &mut [u8]) -> (Option<Instant>, bool) {
    let mut link = shared.link();
    let mut taken = 0;
    while taken < BATCH {
        // A device that is gone or empty gives nothing: both end the batch.
        let Ok(len) = devices[index].recv(buffer) else { break };
        link.offer(Instant::now(), &buffer[..len]);
        taken += 1;
    }
    while let Some(packet) = link.poll(Instant::now()) {
        match destination(&packet).and_then(|to| devices.get(to)) {
            // The far end is a kernel: it takes every packet, or drops it as a network card would.
            Some(device) => drop(device.send(&packet)),
            None => drop(shared.stray.fetch_add(1, Ordering::Relaxed)),
        }
        link.recycle(packet);
    }
    (link.next_arrival(), taken == BATCH)
}

/// The namespace that has the packet's address.
fn destination(packet: &[u8]) -> Option<usize> {
    let address = packet.get(16..20).filter(|_| packet[0] >> 4 == 4)?;
    let [10, 77, 0, host] = *address else { return None };
    usize::from(host).checked_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_find_their_namespace() {
        let mut packet = [0; 28];
        packet[0] = 0x45;
        packet[16..20].copy_from_slice(&[10, 77, 0, 2]);
        assert_eq!(destination(&packet), Some(1));
        packet[19] = 0;
        assert_eq!(destination(&packet), None);
        packet[16] = 224;
        assert_eq!(destination(&packet), None);
        assert_eq!(destination(&[]), None);
        assert_eq!(destination(&[0x60; 40]), None);
    }
}
