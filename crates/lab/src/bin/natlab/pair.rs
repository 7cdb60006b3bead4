//! One ordered pair: B is there, A dials it.

use std::path::Path;
use std::time::{Duration, Instant};

use pilotage_lab::nat::{NatKind, World, WorldConfig};
use serde::Serialize;

use crate::Failure;
use crate::echo::Echo;
use crate::party::{Node, Stage};
use crate::stop;

/// Time for a connection to come about.
const PATIENCE: Duration = Duration::from_secs(20);
/// Numbers are sent this often: the path changes under data.
const TICK: Duration = Duration::from_millis(50);
/// The stream goes on for this long after the path became direct.
const AFTER: Duration = Duration::from_millis(600);

/// What was seen. Times in milliseconds.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct PairResult {
    pub(crate) from: NatKind,
    pub(crate) to: NatKind,
    pub(crate) connected: bool,
    /// Why not, in the program's words.
    pub(crate) error: Option<String>,
    /// From the start of A's node to its registration.
    pub(crate) up_ms: Option<u64>,
    /// From the dial to the first byte that came back.
    pub(crate) first_byte_ms: Option<u64>,
    /// The path when the first byte came back.
    pub(crate) first_path: Option<String>,
    /// From the dial to the first direct path.
    pub(crate) direct_ms: Option<u64>,
    /// The path at the end.
    pub(crate) path: Option<String>,
    /// The far end of that path.
    pub(crate) remote: Option<String>,
    /// Why this path, by A's and by B's word.
    pub(crate) reason: Option<String>,
    pub(crate) peer_reason: Option<String>,
    /// Port mappings that the boxes of both sides have made.
    pub(crate) mapped: usize,
    /// Numbers sent through the stream that did not come back in order.
    pub(crate) lost: usize,
    /// The longest way there and back of a number after the first.
    pub(crate) longest_ms: Option<u64>,
    /// Seconds that it took in all.
    pub(crate) seconds: f64,
}

impl PairResult {
    pub(crate) fn new(from: NatKind, to: NatKind) -> Self {
        Self {
            from,
            to,
            connected: false,
            error: None,
            up_ms: None,
            first_byte_ms: None,
            first_path: None,
            direct_ms: None,
            path: None,
            remote: None,
            reason: None,
            peer_reason: None,
            mapped: 0,
            lost: 0,
            longest_ms: None,
            seconds: 0.0,
        }
    }

    pub(crate) fn is_direct(&self) -> bool {
        self.path.as_deref() == Some("direct")
    }
}

/// Runs the pair in a world of its own and watches it for `watch` at most.
pub(crate) fn run(binary: &Path, folder: &Path, from: NatKind, to: NatKind, watch: Duration) -> PairResult {
    let begun = Instant::now();
    let mut result = PairResult::new(from, to);
    if let Err(error) = attempt(binary, folder, watch, &mut result) {
        result.error = Some(error.to_string());
    }
    result.seconds = begun.elapsed().as_secs_f64();
    result
}

fn attempt(binary: &Path, folder: &Path, watch: Duration, result: &mut PairResult) -> Result<(), Failure> {
    std::fs::create_dir_all(folder)?;
    let world = World::new(&[result.from, result.to], &WorldConfig::default())?;
    let stage = Stage::new(binary, folder);
    let _hub = stage.hub(&world, 0)?;
    let mut bob = stage.node(&world, world.side(1).host(), result.to, "bob")?;
    let mut alice = stage.node(&world, world.side(0).host(), result.from, "alice")?;
    result.up_ms = Some(millis(alice.settle(&stage)?));
    bob.settle(&stage)?;
    let mut echo = Echo::dial(binary, world.side(0).host(), &alice.state, "bob", TICK, folder)?;
    result.first_byte_ms = Some(millis(echo.wait(PATIENCE)?));
    result.connected = true;
    let at_once = alice.path(&stage, &bob.address);
    result.first_path = at_once.map(|path| path.kind);
    watch_path(&stage, &alice, &bob, &echo, watch, result)?;
    let outcome = echo.finish();
    result.mapped = world.mappings(0) + world.mappings(1);
    result.lost = outcome.lost;
    result.longest_ms = outcome.round_trips.iter().skip(1).max().map(|time| millis(*time));
    Ok(())
}

/// Until the path is direct and a little longer, or until the time is over.
fn watch_path(
    stage: &Stage<'_>,
    alice: &Node,
    bob: &Node,
    echo: &Echo,
    watch: Duration,
    result: &mut PairResult,
) -> Result<(), Failure> {
    let end = echo.dialled() + watch;
    loop {
        let direct =
            alice.paths(&bob.address).into_iter().find(|(_, path)| path.is_direct()).map(|(at, _)| at);
        let now = alice.path(stage, &bob.address);
        let is_direct = now.as_ref().is_some_and(|path| path.is_direct());
        // Both say so: the event has the time, the status the truth.
        let since =
            direct.or(is_direct.then(Instant::now)).map(|at| at.saturating_duration_since(echo.dialled()));
        result.direct_ms = result.direct_ms.or(since.map(millis));
        if let Some(path) = now {
            (result.path, result.remote, result.reason) = (Some(path.kind), Some(path.remote), path.reason);
        }
        let settled = is_direct && since.is_some_and(|since| echo.dialled().elapsed() >= since + AFTER);
        if settled || Instant::now() >= end {
            break;
        }
        stop::check()?;
        std::thread::sleep(Duration::from_millis(250));
    }
    result.peer_reason = bob.path(stage, &alice.address).and_then(|path| path.reason);
    Ok(())
}

pub(crate) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
