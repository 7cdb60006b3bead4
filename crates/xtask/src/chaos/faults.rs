//! What is done to the nodes.

use std::time::{Duration, Instant};

use serde_json::json;

use super::Scenario;
use super::nodes::Nodes;
use crate::Failure;

/// A killed node is away for so long.
const AWAY: Duration = Duration::from_secs(2);
/// A frozen node stands still, and a partition lasts, for so long.
const LASTS: Duration = Duration::from_secs(3);
/// A jump of a clock, seconds.
const HOUR: i64 = 3_600;
/// Changes of a flapping way.
const FLAPS: u32 = 4;

/// Does it, waits until it is over, and undoes it. Returns when it began, from the beginning of the run.
pub(super) fn inject(
    nodes: &mut Nodes,
    scenario: Scenario,
    begin: Instant,
) -> Result<Option<Duration>, Failure> {
    let Some(leader) = nodes.leader() else {
        eprintln!("  no leader to hit");
        return Ok(None);
    };
    let others: Vec<usize> = (0..nodes.count()).filter(|&index| index != leader).collect();
    let at = begin.elapsed();
    match scenario {
        Scenario::Kill => {
            nodes.kill(leader)?;
            std::thread::sleep(AWAY);
            nodes.revive(leader)?;
        }
        Scenario::Freeze => {
            nodes.signal(leader, "-STOP")?;
            std::thread::sleep(LASTS);
            nodes.signal(leader, "-CONT")?;
        }
        Scenario::Halves => lasting(nodes, |nodes| alone(nodes, leader, &others))?,
        Scenario::Bridge => lasting(nodes, |nodes| {
            nodes.cut(leader, &others[..1])?;
            nodes.cut(others[0], &[leader])
        })?,
        Scenario::OneWay => lasting(nodes, |nodes| nodes.cut(leader, &others))?,
        Scenario::Flapping => {
            for _ in 0..FLAPS {
                alone(nodes, leader, &others)?;
                std::thread::sleep(Duration::from_secs(1));
                connect(nodes)?;
                std::thread::sleep(Duration::from_secs(1));
            }
        }
        Scenario::Disk => {
            // One kind of fault after the other.
            let kind = if (at.as_secs() / 10).is_multiple_of(2) { "full" } else { "sync" };
            nodes.tell(leader, &json!({ "op": "disk", "fault": kind }))?;
            std::thread::sleep(LASTS);
            nodes.tell(leader, &json!({ "op": "disk", "fault": "none" }))?;
            // Its consensus has stopped; look-ups went on.
            nodes.kill(leader)?;
            nodes.revive(leader)?;
        }
        Scenario::Clock => {
            for step in [HOUR, -HOUR, 0] {
                nodes.tell(leader, &json!({ "op": "clock", "ahead": step }))?;
                for &other in &others {
                    nodes.tell(other, &json!({ "op": "clock", "ahead": -step }))?;
                }
                std::thread::sleep(Duration::from_secs(1));
            }
        }
    }
    Ok(Some(at))
}

fn alone(nodes: &Nodes, one: usize, others: &[usize]) -> Result<(), Failure> {
    nodes.cut(one, others)?;
    others.iter().try_for_each(|&other| nodes.cut(other, &[one]))
}

fn lasting(nodes: &Nodes, cut: impl FnOnce(&Nodes) -> Result<(), Failure>) -> Result<(), Failure> {
    cut(nodes)?;
    std::thread::sleep(LASTS);
    connect(nodes)
}

fn connect(nodes: &Nodes) -> Result<(), Failure> {
    (0..nodes.count()).try_for_each(|index| nodes.cut(index, &[]))
}

/// Everything is well again.
pub(super) fn heal(nodes: &mut Nodes) -> Result<(), Failure> {
    for index in 0..nodes.count() {
        nodes.signal(index, "-CONT")?;
        nodes.revive(index)?;
    }
    // A node that has just been started may not listen yet.
    let deadline = Instant::now() + Duration::from_secs(30);
    while let Err(error) = connect(nodes) {
        if Instant::now() > deadline {
            return Err(error);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}
