//! Linux says by itself when addresses or routes change (rtnetlink).

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};

/// Of addresses and of routes, for both versions of IP (`RTMGRP_*` of linux/rtnetlink.h).
const GROUPS: u32 = 0x10 | 0x40 | 0x100 | 0x400;
/// A change comes as several messages: an address goes, another comes, routes follow. They are taken as one if no more than
/// this is between them,
const QUIET: Duration = Duration::from_millis(2);
/// and not more in all. It also bounds how often a host with busy routes makes us look.
const SETTLE: Duration = Duration::from_millis(20);
/// Messages taken at a time.
const DRAIN: usize = 1_024;

/// The news.
#[derive(Debug)]
pub(super) struct Changes(OwnedFd);

impl Changes {
    pub(super) fn listen() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
        bind(&socket, &SocketAddrNetlink::new(0, GROUPS))?;
        Ok(Self(socket))
    }

    /// Waits for a change to be over, at most for `time` until it begins. What is told is not read: whoever is told looks himself.
    pub(super) fn wait(&self, time: Duration) -> bool {
        if !self.readable(time) {
            return false;
        }
        let end = Instant::now() + SETTLE;
        while self.drain() && Instant::now() < end && self.readable(QUIET) {}
        true
    }

    fn readable(&self, time: Duration) -> bool {
        let timeout = Timespec { tv_sec: time.as_secs() as i64, tv_nsec: i64::from(time.subsec_nanos()) };
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        // An interrupted wait is a short one.
        poll(&mut fds, Some(&timeout)).is_ok_and(|ready| ready > 0)
    }

    /// False if the socket is of no use.
    fn drain(&self) -> bool {
        let mut buf = [0; 256];
        for _ in 0..DRAIN {
            match recv(&self.0, &mut buf[..], RecvFlags::TRUNC) {
                Ok(_) | Err(Errno::INTR | Errno::NOBUFS) => {}
                Err(error) => return error == Errno::AGAIN,
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_told_while_nothing_changes() {
        let changes = Changes::listen().expect("netlink");
        let start = Instant::now();
        // Other tests may change addresses meanwhile; then this one says nothing.
        if !changes.wait(Duration::from_millis(30)) {
            assert!(start.elapsed() >= Duration::from_millis(25));
        }
    }
}
