//! TUN devices.

use std::process::Command;

use tun_rs::{DeviceBuilder, SyncDevice};

use crate::LabError;

/// Packets that the kernel keeps for the emulator before it drops: a tenth of a second at 1 Gbit/s.
const QUEUE_LENGTH: u32 = 10_000;
/// Name of the device inside its namespace.
pub(crate) const INSIDE: &str = "lab0";

/// A TUN device in this process's namespace, without offload, read and written without blocking.
pub(crate) fn create(name: &str, mtu: u16) -> Result<SyncDevice, LabError> {
    let failed = |cause: std::io::Error| LabError::failed(format!("TUN device {name}"), cause);
    let device = DeviceBuilder::new()
        .name(name)
        .mtu(mtu)
        .enable(false)
        .with(|options| {
            options.offload(false).tx_queue_len(QUEUE_LENGTH);
        })
        .build_sync()
        .map_err(failed)?;
    device.set_nonblocking(true).map_err(failed)?;
    Ok(device)
}

/// Runs `ip` and fails with what it said.
pub(crate) fn ip(args: &[&str]) -> Result<(), LabError> {
    let stage = || format!("ip {}", args.join(" "));
    let output = Command::new("ip").args(args).output().map_err(|error| LabError::failed(stage(), error))?;
    if output.status.success() {
        return Ok(());
    }
    Err(LabError::failed(stage(), String::from_utf8_lossy(&output.stderr).trim()))
}
