//! Network namespaces: made, entered, removed.

use std::ffi::OsStr;
use std::fs::File;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sched::{CloneFlags, setns};
use tun_rs::SyncDevice;

use crate::LabError;
use crate::device::{INSIDE, ip};

/// Where `ip netns` keeps namespaces.
const FOLDER: &str = "/run/netns";
/// How the names begin: then the process, a number within the process, and the number of the namespace in its lab.
const PREFIX: &str = "pilab-";
/// Settings inside: no memory of earlier connections, no IPv6 chatter.
const SETTINGS: [(&str, &str); 3] = [
    ("/proc/sys/net/ipv4/tcp_no_metrics_save", "1"),
    ("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1"),
    ("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1"),
];
/// What makes a namespace a router.
const ROUTER: [(&str, &str); 1] = [("/proc/sys/net/ipv4/ip_forward", "1")];
/// Nothing is hidden, and nobody is advised.
const OPEN: [(&str, &str); 4] = [
    ("/proc/sys/net/ipv4/conf/all/rp_filter", "0"),
    ("/proc/sys/net/ipv4/conf/default/rp_filter", "0"),
    ("/proc/sys/net/ipv4/conf/all/send_redirects", "0"),
    ("/proc/sys/net/ipv4/conf/default/send_redirects", "0"),
];

/// One namespace of a lab. It is removed when the lab is dropped.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    address: Ipv4Addr,
}

impl Namespace {
    /// Makes the namespace and moves the device into it.
    pub(crate) fn make(lab: u32, index: u8, device: &SyncDevice, mtu: u16) -> Result<Self, LabError> {
        let name = format!("{PREFIX}{}-{lab}-{index}", std::process::id());
        ip(&["netns", "add", &name])?;
        let made = Self { name, address: address_of(index) };
        let outside = device.name().map_err(|error| LabError::failed("TUN device", error))?;
        made.run(|| SETTINGS.iter().try_for_each(|(path, value)| set(path, value)))??;
        let ns = made.name.as_str();
        ip(&["link", "set", &outside, "netns", ns, "name", INSIDE])?;
        ip(&["-n", ns, "link", "set", "lo", "up"])?;
        ip(&["-n", ns, "addr", "add", &format!("{}/24", made.address), "dev", INSIDE])?;
        ip(&["-n", ns, "link", "set", INSIDE, "mtu", &mtu.to_string(), "up"])?;
        Ok(made)
    }

    /// Makes a namespace without a device: a part of a world of NATs, which joins it to others. A host is no router: one that passed on
    /// what still comes for an address that it had would get it back until its hops are used up.
    pub(crate) fn bare(label: &str, address: Ipv4Addr, v6: bool, router: bool) -> Result<Self, LabError> {
        let name = format!("{PREFIX}{}-{label}", std::process::id());
        ip(&["netns", "add", &name])?;
        let made = Self { name, address };
        let settings = SETTINGS.iter().filter(|(path, _)| !v6 || !path.contains("ipv6")).chain(&OPEN);
        let settings = settings.chain(ROUTER.iter().filter(|_| router));
        made.run(|| settings.into_iter().try_for_each(|(path, value)| set(path, value)))??;
        Ok(made)
    }

    /// Its name for `ip netns exec`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address: 10.77.0.1 for the first, and so on.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// A command that will run inside. The process that is spawned is the program itself.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// Runs this inside, on a thread of its own. Sockets made there stay there, whoever uses them later.
    ///
    /// # Errors
    /// [`LabError::Failed`] if the namespace cannot be entered, or if `work` panics.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, LabError> {
        let stage = || format!("entering namespace {}", self.name);
        let file = File::open(self.path()).map_err(|error| LabError::failed(stage(), error))?;
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&file, CloneFlags::CLONE_NEWNET).map_err(|error| LabError::failed(stage(), error))?;
                Ok(work())
            });
            thread.join().unwrap_or_else(|_| Err(LabError::failed(stage(), "the work inside panicked")))
        })
    }

    /// What the kernel dropped because its queue towards the emulator was full.
    pub(crate) fn overrun(&self) -> u64 {
        // Without the figure there is nothing to report.
        self.run(|| std::fs::read_to_string("/proc/net/dev").ok().and_then(|text| transmit_drops(&text)))
            .ok()
            .flatten()
            .unwrap_or(0)
    }

    fn path(&self) -> PathBuf {
        Path::new(FOLDER).join(&self.name)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = ip(&["netns", "del", &self.name]) {
            eprintln!("lab: {error} (the next lab removes it)");
        }
    }
}

/// The address of a namespace in its lab.
pub(crate) fn address_of(index: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, index + 1)
}

/// Removes what labs left behind whose process is gone. Returns the names.
///
/// # Errors
/// [`LabError::Failed`] if one cannot be removed.
pub fn sweep() -> Result<Vec<String>, LabError> {
    let Ok(entries) = std::fs::read_dir(FOLDER) else { return Ok(Vec::new()) };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut removed = Vec::new();
    for name in names.filter(|name| is_stale(name)) {
        match ip(&["netns", "del", &name]) {
            Ok(()) => removed.push(name),
            // Another lab was faster.
            Err(_) if !Path::new(FOLDER).join(&name).exists() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(removed)
}

fn is_stale(name: &str) -> bool {
    let process = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
    process.is_some_and(|process| !Path::new("/proc").join(process.to_string()).exists())
}

fn set(path: &str, value: &str) -> Result<(), LabError> {
    if !Path::new(path).exists() {
        return Ok(());
    }
    std::fs::write(path, value).map_err(|error| LabError::failed(format!("{path} = {value}"), error))
}

/// The column "drop" of the transmit half of our device's line.
fn transmit_drops(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.trim_start().strip_prefix(INSIDE)?.strip_prefix(':'))?;
    line.split_whitespace().nth(11)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_labs_of_dead_processes_are_stale() {
        assert!(!is_stale(&format!("{PREFIX}{}-0-1", std::process::id())));
        assert!(is_stale(&format!("{PREFIX}{}-0-1", u32::MAX)));
        for other in ["default", "pilab-", "pilab-x-0-1", "plt77a"] {
            assert!(!is_stale(other), "{other}");
        }
    }

    #[test]
    fn the_drops_are_read_from_the_right_column() {
        let text = "Inter-|   Receive\n face |bytes\n    lo: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n  lab0: 1 2 3 4 5 6 7 8 9 10 11 77 13 14 15 16\n";
        assert_eq!(transmit_drops(text), Some(77));
        assert_eq!(transmit_drops("eth0: 1 2"), None);
    }
}
