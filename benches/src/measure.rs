//! Clocks, CPU time, pinning, and the guard against foreign load.

use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::resource::{UsageWho, getrusage};
use nix::unistd::Pid;

use crate::Failure;

/// Wall clock and CPU clock started together.
#[derive(Debug, Clone, Copy)]
pub struct Stopwatch {
    wall: Instant,
    cpu: Duration,
}

impl Stopwatch {
    /// Starts both clocks for this process.
    pub fn start() -> Result<Self, Failure> {
        Ok(Self { cpu: cpu_time(UsageWho::RUSAGE_SELF)?, wall: Instant::now() })
    }

    /// Wall time and CPU time (user and system, all threads) since the start.
    pub fn stop(&self) -> Result<(Duration, Duration), Failure> {
        let wall = self.wall.elapsed();
        Ok((wall, cpu_time(UsageWho::RUSAGE_SELF)?.saturating_sub(self.cpu)))
    }
}

/// User plus system time of this process, or of its finished children.
pub fn cpu_time(who: UsageWho) -> Result<Duration, Failure> {
    let usage = getrusage(who).map_err(|e| format!("getrusage: {e}"))?;
    let micros = |t: nix::sys::time::TimeVal| {
        Duration::from_micros((t.tv_sec().max(0) as u64) * 1_000_000 + t.tv_usec().max(0) as u64)
    };
    Ok(micros(usage.user_time()) + micros(usage.system_time()))
}

/// Binds this process (and the threads it will start) to one core.
pub fn pin_to_core(core: usize) -> Result<(), Failure> {
    let mut set = CpuSet::new();
    set.set(core).map_err(|e| format!("core {core}: {e}"))?;
    sched_setaffinity(Pid::from_raw(0), &set).map_err(|e| format!("pinning to core {core}: {e}").into())
}

/// Lets this process (and the threads it will start) use every core again.
pub fn unpin() -> Result<(), Failure> {
    let mut set = CpuSet::new();
    for core in 0..CpuSet::count() {
        set.set(core).map_err(|e| format!("core {core}: {e}"))?;
    }
    sched_setaffinity(Pid::from_raw(0), &set).map_err(|e| format!("unpinning: {e}").into())
}

/// User plus system time of another process, in steps of 10 ms.
pub fn process_cpu_time(pid: u32) -> Result<Duration, Failure> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in brackets may contain anything; what is counted stands behind it (proc_pid_stat(5), fields 14 and 15).
    let (_, behind) = stat.rsplit_once(')').ok_or("/proc/PID/stat: no name")?;
    let ticks: u64 =
        behind.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Ok(Duration::from_millis(ticks * 10))
}

/// Busy time of the whole machine since boot, in clock ticks of 10 ms: all columns of /proc/stat but
/// idle, iowait and the guest columns that user time already contains.
fn machine_busy_ticks() -> Option<u64> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    let columns: Vec<u64> =
        stat.lines().next()?.split_whitespace().skip(1).filter_map(|c| c.parse().ok()).collect();
    Some(columns.iter().take(8).enumerate().filter(|(i, _)| *i != 3 && *i != 4).map(|(_, v)| v).sum())
}

/// Resident memory of this process, in bytes.
pub fn resident_bytes() -> Result<u64, Failure> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("/proc/self/status: no VmRSS")?;
    let kilobytes: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kilobytes << 10)
}

/// Watches how much CPU others used while our children ran.
#[derive(Debug)]
pub struct LoadGuard {
    busy: Option<u64>,
    own: Duration,
    wall: Instant,
}

impl LoadGuard {
    /// Starts watching; call before the children start.
    pub fn start() -> Result<Self, Failure> {
        Ok(Self { busy: machine_busy_ticks(), own: own_time()?, wall: Instant::now() })
    }

    /// CPU time of others in percent of the wall time (100 = one core), after the children have been waited for.
    pub fn foreign_percent(&self) -> Result<Option<f64>, Failure> {
        let (Some(before), Some(after)) = (self.busy, machine_busy_ticks()) else { return Ok(None) };
        let busy = after.saturating_sub(before) as f64 / 100.0;
        let own = own_time()?.saturating_sub(self.own).as_secs_f64();
        Ok(Some(((busy - own).max(0.0) / self.wall.elapsed().as_secs_f64().max(1e-6)) * 100.0))
    }
}

fn own_time() -> Result<Duration, Failure> {
    Ok(cpu_time(UsageWho::RUSAGE_SELF)? + cpu_time(UsageWho::RUSAGE_CHILDREN)?)
}

/// Waits until others use less than `limit_percent` of one core over 0.3 s, or until `patience` is over (none: not at all).
pub fn wait_for_idle(limit_percent: f64, patience: Duration) -> Result<bool, Failure> {
    if patience.is_zero() {
        return Ok(false);
    }
    let deadline = Instant::now() + patience;
    loop {
        let guard = LoadGuard::start()?;
        std::thread::sleep(Duration::from_millis(300));
        match guard.foreign_percent()? {
            Some(foreign) if foreign > limit_percent => {
                if Instant::now() >= deadline {
                    return Ok(false);
                }
            }
            _ => return Ok(true),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_clock_counts_work_and_not_sleep() {
        let watch = Stopwatch::start().expect("clock");
        std::thread::sleep(Duration::from_millis(30));
        let (wall, slept) = watch.stop().expect("clock");
        assert!(wall >= Duration::from_millis(30));
        let started = Instant::now();
        let mut sum = 0_u64;
        while started.elapsed() < Duration::from_millis(60) {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        let (_, worked) = watch.stop().expect("clock");
        assert!(worked > slept, "{worked:?} after work, {slept:?} after sleep");
        let seen = process_cpu_time(std::process::id()).expect("own process");
        assert!(seen >= Duration::from_millis(30), "{seen:?}");
    }
}
