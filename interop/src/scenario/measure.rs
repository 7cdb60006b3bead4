//! Scenarios that give a figure.

use super::lab::Lab;
use super::transfer::rated;
use super::{Passed, require};
use crate::Failure;

/// Less of a 10 Mbit/s link fails.
const LEAST_GOODPUT: f64 = 8.0;

pub(super) fn goodput(lab: &Lab<'_>) -> Result<Passed, Failure> {
    let moved = lab.upload(&[])?;
    let rate = moved.goodput();
    let counts = moved.seen.up.counts;
    require(rate >= LEAST_GOODPUT, || format!("{rate:.2} Mbit/s of 10"))?;
    let ceiling = lab.plan.up.rate_bps.unwrap_or_default() as f64 / 1e6;
    // More than the link carries would mean that the emulation is wrong.
    require(rate <= ceiling, || format!("{rate:.2} Mbit/s on a link of {ceiling:.0}"))?;
    let said = format!(
        "first to last datagram {:.2} s; {} packets lost in the queue; datagrams up to {} bytes",
        moved.seen.lasted.as_secs_f64(),
        counts.queue_full,
        counts.largest_before
    );
    Ok(rated(&moved, said))
}
