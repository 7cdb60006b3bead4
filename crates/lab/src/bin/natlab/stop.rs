//! Ctrl-C: everything that waits looks here, and namespaces and programs go as after a failure.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::Failure;

static STOP: AtomicBool = AtomicBool::new(false);

/// From now on a signal ends the run in order.
pub(crate) fn listen() -> Result<(), Failure> {
    ctrlc::set_handler(|| STOP.store(true, Ordering::Release))?;
    Ok(())
}

pub(crate) fn requested() -> bool {
    STOP.load(Ordering::Acquire)
}

/// An error if all of it should end.
pub(crate) fn check() -> Result<(), Failure> {
    if requested() { Err("interrupted".into()) } else { Ok(()) }
}
