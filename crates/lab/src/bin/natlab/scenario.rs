//! What no pair shows: roaming, rebooted NATs, two hosts behind one NAT, daemons of the reference.

use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use pilotage_lab::nat::{NatKind, World, WorldConfig};
use serde::Serialize;

use crate::Failure;
use crate::echo::{Echo, Outcome};
use crate::own_nat;
use crate::pair::millis;
use crate::party::{Node, Stage, beacon_address};
use crate::program::Program;
use crate::reference;
use crate::stop;

/// A number goes through the stream this often.
const TICK: Duration = Duration::from_millis(20);
/// Time for a connection to come about.
const PATIENCE: Duration = Duration::from_secs(20);
/// What the bulk may use, so that its size follows from its time. Bits per second.
const RATE: u64 = 10_000_000;
/// A host that roams does so this often, once the transfer's search for the rate, and the queue that it makes, are over.
const ROAM_EVERY: Duration = Duration::from_secs(1);
const SEARCH: Duration = Duration::from_secs(1);
/// A hole is at most three round trips, beyond what the way takes when nothing happens.
const STALL: Duration = Duration::from_millis(300);

/// A NAT that forgot its table: a number that was under way waits two probe timeouts at most until it is sent again. A probe
/// timeout is two round trips and 40 ms (spec/recovery.md R4.13); by the relay a round trip is twice as long.
const REBOOT: Duration = Duration::from_millis(2 * (2 * 100 + 40));
const REBOOT_RELAYED: Duration = Duration::from_millis(2 * (2 * 200 + 40));
/// What is sent again by the relay takes so much longer there and back than by the way that is gone.
const RELAY_LONGER: Duration = Duration::from_millis(100);

/// The same when the version of IP or the kind of path changes, at 50 ms.
const VERSIONS_STALL: Duration = Duration::from_millis(500);

/// Until another relay carries what one carried that was killed.
const OTHER_RELAY: Duration = Duration::from_secs(2);
/// From the start of a node to its first byte.
const START: Duration = Duration::from_secs(3);

/// What was seen.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Seen {
    pub(crate) name: String,
    pub(crate) text: String,
    /// `None`: it could not be run, and the text says why.
    pub(crate) passed: Option<bool>,
}

impl Seen {
    pub(crate) fn new(text: String, passed: Option<bool>) -> Self {
        Self { name: String::new(), text, passed }
    }
}

/// How long things take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Extent {
    /// Time under a bulk stream with an address change each second.
    pub(crate) roaming: Duration,
    /// Time of the others.
    pub(crate) short: Duration,
    /// Pairs of NATs with daemons of the reference.
    pub(crate) references: usize,
    /// Scenarios at a time: they measure pauses, and a busy machine makes some.
    pub(crate) jobs: usize,
}

/// A step in the middle of a run.
type Disturb<'a> = dyn FnMut(&mut World, Duration) -> Result<(), Failure> + 'a;

/// A scenario by its name.
type Task<'a> = (String, Box<dyn Fn(&Path) -> Result<Seen, Failure> + Send + Sync + 'a>);

/// The scenarios whose names begin as wanted, some at a time.
pub(crate) fn all(binary: &Path, folder: &Path, extent: Extent, wanted: &[String]) -> Vec<Seen> {
    let mut tasks = tasks(binary, extent);
    tasks.retain(|(name, _)| wanted.is_empty() || wanted.iter().any(|part| name.starts_with(part.as_str())));
    let of_reference =
        |(name, _): &Task<'_>| reference::Roles::ALL.iter().any(|roles| name.starts_with(roles.name()));
    if tasks.iter().any(of_reference) && reference::Programs::find().is_none() {
        eprintln!("SKIPPED: daemons of the reference: set PILOT_REF_BIN to the folder of its programs");
    }
    let next = AtomicUsize::new(0);
    let seen: Mutex<Vec<(usize, Seen)>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..extent.jobs.min(tasks.len()) {
            scope.spawn(|| {
                while !stop::requested()
                    && let Some((index, (name, run))) = {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        tasks.get(index).map(|task| (index, task))
                    }
                {
                    let own = folder.join(format!("scenario-{index}"));
                    let made = std::fs::create_dir_all(&own).map_err(Failure::from);
                    let one = made.and_then(|()| run(&own));
                    let one = one.unwrap_or_else(|error| Seen::new(error.to_string(), Some(false)));
                    let one = Seen { name: name.clone(), ..one };
                    eprintln!("{name}: {}", one.text);
                    seen.lock().unwrap_or_else(PoisonError::into_inner).push((index, one));
                }
            });
        }
    });
    let mut seen = seen.into_inner().unwrap_or_else(PoisonError::into_inner);
    seen.sort_by_key(|(index, _)| *index);
    seen.into_iter().map(|(_, one)| one).collect()
}

fn tasks(binary: &Path, extent: Extent) -> Vec<Task<'_>> {
    use NatKind::{FullCone, Hairpin, None, PortRestricted, SymmetricRandom, UdpBlocked};
    let mut tasks: Vec<Task<'_>> = Vec::new();
    for (from, to) in [(None, None), (PortRestricted, FullCone), (SymmetricRandom, None)] {
        let run = move |own: &Path| roaming(binary, own, from, to, extent);
        tasks.push((format!("roaming each second, {from} → {to}"), Box::new(run)));
    }
    for (from, to) in [
        (FullCone, PortRestricted),
        (PortRestricted, PortRestricted),
        (SymmetricRandom, None),
        (SymmetricRandom, SymmetricRandom),
    ] {
        let run = move |own: &Path| reboot(binary, own, from, to, extent);
        tasks.push((format!("NAT reboot, {from} → {to}"), Box::new(run)));
    }
    for kind in [Hairpin, FullCone] {
        let run = move |own: &Path| neighbours(binary, own, kind, extent);
        tasks.push((format!("two hosts behind one NAT, {kind}"), Box::new(run)));
    }
    for (from, to) in
        [(UdpBlocked, PortRestricted), (UdpBlocked, UdpBlocked), (PortRestricted, PortRestricted)]
    {
        let run = move |own: &Path| start(binary, own, from, to);
        tasks.push((format!("from start to first byte, {from} → {to}"), Box::new(run)));
    }
    let run = move |own: &Path| versions(binary, own, extent);
    tasks.push(("path changes, both versions of IP, none → none".into(), Box::new(run)));
    let run = move |own: &Path| relay_killed(binary, own, extent);
    tasks.push(("relay killed, symmetric-random → symmetric-random".into(), Box::new(run)));
    let run = move |own: &Path| own_nat::run(binary, own);
    tasks.push(("what nodes find out about their NATs".into(), Box::new(run)));
    let programs = reference::Programs::find();
    for pair in reference::PAIRS.into_iter().take(extent.references) {
        for roles in reference::Roles::ALL {
            let programs = programs.clone();
            let run = move |own: &Path| match &programs {
                Some(programs) => reference::run(programs, binary, own, roles, pair),
                Option::None => {
                    Ok(Seen::new("SKIPPED: PILOT_REF_BIN names no programs".into(), Option::None))
                }
            };
            tasks.push((format!("{}, {} → {}", roles.name(), pair.0, pair.1), Box::new(run)));
        }
    }
    tasks
}

/// Hub, two nodes, a stream between them that has its path, and a bulk transfer beside it.
struct Running<'a> {
    stage: Stage<'a>,
    world: World,
    alice: Node,
    bob: Node,
    echo: Echo,
    _hub: Program,
}

fn connect<'a>(binary: &'a Path, folder: &'a Path, world: World, to: Place) -> Result<Running<'a>, Failure> {
    let options: &[&str] = if matches!(to, Place::DualStack) { &["--bind", "[::]:0"] } else { &[] };
    connect_with(binary, folder, world, to, options)
}

fn connect_with<'a>(
    binary: &'a Path,
    folder: &'a Path,
    world: World,
    to: Place,
    options: &[&str],
) -> Result<Running<'a>, Failure> {
    let stage = Stage::new(binary, folder);
    let hub = stage.hub(&world, 0)?;
    let (room, kind) = match to {
        Place::Side => (world.side(1).host(), world.side(1).kind()),
        Place::Neighbour => (world.side(0).neighbour(1), world.side(0).kind()),
        Place::DualStack => (world.side(1).host(), NatKind::None),
    };
    let mut bob = stage.node_with(&world, room, kind, "bob", options)?;
    let mut alice = stage.node_with(&world, world.side(0).host(), world.side(0).kind(), "alice", options)?;
    alice.settle(&stage)?;
    bob.settle(&stage)?;
    let mut echo = Echo::dial(binary, world.side(0).host(), &alice.state, "bob", TICK, folder)?;
    echo.wait(PATIENCE)?;
    Ok(Running { stage, world, alice, bob, echo, _hub: hub })
}

/// Where the second node is.
#[derive(Debug, Clone, Copy)]
enum Place {
    Side,
    Neighbour,
    /// As `Side`, with sockets for both versions of IP.
    DualStack,
}

/// Runs a bulk transfer and a stream for about `time`, and `disturb` all the while.
fn under_load(
    running: &mut Running<'_>,
    time: Duration,
    disturb: &mut Disturb<'_>,
) -> Result<Result<u64, String>, Failure> {
    let folder = running.stage.folder;
    let file = folder.join("bulk");
    // As much as the link carries in that time without a hole.
    let size = RATE / 8 * time.as_secs() * 15 / 16;
    pattern(&file, size)?;
    let state = running.alice.state.display().to_string();
    let file = file.display().to_string();
    let args = ["send", "bob", &file, "--state", &state, "--json"];
    let room = running.world.side(0).host();
    let mut send = Program::start(room, folder, "send", running.stage.binary, &args, &[])?;
    let begun = Instant::now();
    let end = begun + time * 2 + PATIENCE;
    while send.ended()?.is_none() && Instant::now() < end {
        stop::check()?;
        disturb(&mut running.world, begun.elapsed())?;
        std::thread::sleep(Duration::from_millis(20));
    }
    let verified =
        send.events().into_iter().find(|(_, event)| event["event"] == "sent" && event["verified"] == true);
    Ok(match verified {
        Some((_, event)) if event["bytes"] == size => Ok(size),
        _ if send.ended()?.is_none() => Err(format!("no end of the transfer in {:?}", begun.elapsed())),
        _ => Err(send.complaint()),
    })
}

/// A file that compresses badly and has no two equal parts.
fn pattern(path: &Path, size: u64) -> Result<(), Failure> {
    let mut file = std::io::BufWriter::new(std::fs::File::create(path)?);
    let mut state = size | 1;
    for _ in 0..size.div_ceil(8) {
        // xorshift64: any bytes will do, the receiver's hash says whether they arrived.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        file.write_all(&state.to_le_bytes())?;
    }
    file.flush()?;
    file.into_inner().map_err(|error| error.to_string())?.set_len(size)?;
    Ok(())
}

fn slow(kinds: &[NatKind], neighbours: u8) -> Result<World, Failure> {
    Ok(World::new(kinds, &WorldConfig { rate: RATE, neighbours, ..WorldConfig::default() })?)
}

fn roaming(
    binary: &Path,
    folder: &Path,
    from: NatKind,
    to: NatKind,
    extent: Extent,
) -> Result<Seen, Failure> {
    let mut running = connect(binary, folder, slow(&[from, to], 0)?, Place::Side)?;
    let mut moves: Vec<Instant> = Vec::new();
    let bulk = under_load(&mut running, SEARCH + extent.roaming, &mut |world, passed| {
        if passed >= SEARCH + ROAM_EVERY * (moves.len() as u32 + 1) && passed < SEARCH + extent.roaming {
            moves.push(Instant::now());
            world.roam(0)?;
        }
        Ok(())
    })?;
    let path = running.alice.path(&running.stage, &running.bob.address);
    let outcome = running.echo.finish();
    Ok(verdict(
        &format!("{} address changes", moves.len()),
        bulk,
        &outcome,
        &moves,
        STALL,
        path.map(|path| path.kind),
    ))
}

fn reboot(binary: &Path, folder: &Path, from: NatKind, to: NatKind, extent: Extent) -> Result<Seen, Failure> {
    let mut running = connect(binary, folder, slow(&[from, to], 0)?, Place::Side)?;
    let mut moves: Vec<Instant> = Vec::new();
    // Once a third of the time is over: the path has settled, and the transfer is at full speed.
    let bulk = under_load(&mut running, extent.short, &mut |world, passed| {
        if passed >= extent.short / 3 && moves.is_empty() {
            moves.push(Instant::now());
            world.reboot(0)?;
        }
        Ok(())
    })?;
    let path = running.alice.path(&running.stage, &running.bob.address);
    let ways = running.alice.paths(&running.bob.address);
    let left = ways.iter().find(|(at, _)| moves.first().is_some_and(|moved| at >= moved));
    let outcome = running.echo.finish();
    let relayed = path.as_ref().is_some_and(|path| !path.is_direct());
    let (allowed, what) = match left {
        _ if relayed => (REBOOT_RELAYED, "table forgotten once".to_owned()),
        Some((at, way)) if !way.is_direct() => {
            let noticed = at.saturating_duration_since(moves[0]);
            (
                REBOOT + RELAY_LONGER,
                format!("table forgotten once, the way left after {} ms", millis(noticed)),
            )
        }
        _ => (REBOOT, "table forgotten once".to_owned()),
    };
    Ok(verdict(&what, bulk, &outcome, &moves, allowed, path.map(|path| path.kind)))
}

fn neighbours(binary: &Path, folder: &Path, kind: NatKind, extent: Extent) -> Result<Seen, Failure> {
    let running = connect(binary, folder, slow(&[kind], 1)?, Place::Neighbour)?;
    let end = Instant::now() + extent.short;
    let is_direct = |running: &Running<'_>| {
        running.alice.path(&running.stage, &running.bob.address).filter(super::party::Way::is_direct)
    };
    let mut direct = None;
    while Instant::now() < end && direct.is_none() {
        stop::check()?;
        direct = is_direct(&running).map(|path| (path, running.echo.dialled().elapsed()));
        std::thread::sleep(Duration::from_millis(100));
    }
    let outcome = running.echo.finish();
    let path = match &direct {
        Some((path, after)) => format!("direct ({}) after {} ms", path.remote, millis(*after)),
        None => "relayed".into(),
    };
    let expected = kind == NatKind::Hairpin;
    let text = format!("first byte after {} ms, {path}, {} lost", ms(outcome.first_byte), outcome.lost);
    Ok(Seen::new(text, Some(direct.is_some() == expected && outcome.lost == 0)))
}

/// From the start of A's node to the first byte from B, which was there before.
fn start(binary: &Path, folder: &Path, from: NatKind, to: NatKind) -> Result<Seen, Failure> {
    let world = World::new(&[from, to], &WorldConfig::default())?;
    let stage = Stage::new(binary, folder);
    let _hub = stage.hub(&world, 0)?;
    let mut bob = stage.node(&world, world.side(1).host(), to, "bob")?;
    bob.settle(&stage)?;
    let begun = Instant::now();
    let alice = stage.node(&world, world.side(0).host(), from, "alice")?;
    let ready = begun.elapsed();
    let mut echo = Echo::dial(binary, world.side(0).host(), &alice.state, "bob", TICK, folder)?;
    echo.wait(PATIENCE)?;
    let first = begun.elapsed();
    let path = alice.path(&stage, &bob.address);
    let lost = echo.finish().lost;
    let text = format!(
        "ready {} ms and first byte {} ms after the start, by {}; {lost} numbers lost",
        millis(ready),
        millis(first),
        path.map_or("no path".into(), |path| path.kind),
    );
    Ok(Seen::new(text, Some(first <= START && lost == 0)))
}

/// Public hosts with both versions of IP: the direct way is cut and comes back, A moves to IPv6 and back.
fn versions(binary: &Path, folder: &Path, extent: Extent) -> Result<Seen, Failure> {
    let config = WorldConfig { rate: RATE, one_way: Duration::from_millis(25), ..WorldConfig::default() };
    let mut world = World::new(&[NatKind::None, NatKind::None], &config)?;
    world.set_versions(1, true, true)?;
    let mut running = connect(binary, folder, world, Place::DualStack)?;
    let mut moves: Vec<Instant> = Vec::new();
    let mut paths = Vec::new();
    let part = extent.short / 5;
    let (stage, alice, bob) =
        (&running.stage.clone(), running.alice.state.clone(), running.bob.address.clone());
    let bulk = under_load(&mut running, extent.short, &mut |world, passed| {
        if passed < part * (moves.len() as u32 + 1) {
            return Ok(());
        }
        let step = moves.len();
        paths.push(
            stage.path(&alice, &bob).map_or("none".into(), |path| format!("{} {}", path.kind, path.remote)),
        );
        moves.push(Instant::now());
        match step {
            0 => world.sever(true),
            1 => world.sever(false),
            2 => world.set_versions(0, false, true)?,
            3 => world.set_versions(0, true, false)?,
            _ => drop(moves.pop()),
        }
        Ok(())
    })?;
    paths.dedup();
    let outcome = running.echo.finish();
    let text = format!("relay, direct, IPv6, IPv4 (before each: {})", paths.join(", "));
    Ok(verdict(&text, bulk, &outcome, &moves, VERSIONS_STALL, None))
}

/// Two beacons that know of each other, no direct way; the one that relays is killed.
fn relay_killed(binary: &Path, folder: &Path, extent: Extent) -> Result<Seen, Failure> {
    let stage = Stage::new(binary, folder);
    if !stage.features.beacons {
        return Ok(Seen::new("SKIPPED: this program has no second beacon".into(), None));
    }
    let world = slow(&[NatKind::SymmetricRandom, NatKind::SymmetricRandom], 0)?;
    world.sever(true);
    let key = folder.join("beacon.key");
    std::fs::write(&key, "5a".repeat(32))?;
    let addresses = [beacon_address(&world, 1), beacon_address(&world, 2)];
    let mut beacons = [stage.beacon(&world, 1, 2, &key)?, stage.beacon(&world, 2, 1, &key)?];
    let list = format!("{},{}", addresses[0], addresses[1]);
    let mut running = connect_with(binary, folder, world, Place::Side, &["--beacon", &list])?;
    let mut moves: Vec<Instant> = Vec::new();
    let (alice, bob) = (running.alice.state.clone(), running.bob.address.clone());
    let mut killed = None;
    let bulk = under_load(&mut running, extent.short, &mut |_, passed| {
        if passed >= extent.short / 3 && moves.is_empty() {
            let remote = stage.path(&alice, &bob).map(|path| path.remote);
            let used = addresses.iter().position(|address| Some(address.to_string()) == remote).unwrap_or(0);
            killed = remote;
            beacons[used].kill();
            moves.push(Instant::now());
        }
        Ok(())
    })?;
    let path = running.alice.path(&running.stage, &running.bob.address);
    let path = path.map(|path| format!("{} {}", path.kind, path.remote));
    let outcome = running.echo.finish();
    let text = format!("killed the relay {}", killed.as_deref().unwrap_or("(which, nobody says)"));
    Ok(verdict(&text, bulk, &outcome, &moves, OTHER_RELAY, path))
}

/// What a stream and a transfer went through.
fn verdict(
    what: &str,
    bulk: Result<u64, String>,
    outcome: &Outcome,
    moves: &[Instant],
    allowed: Duration,
    path: Option<String>,
) -> Seen {
    // A number sent within a second after a change, or just before it, is one that the change may have held up.
    let longest = moves.iter().filter_map(|at| {
        let near = |sent: &Instant| {
            *sent + Duration::from_millis(200) >= *at
                && sent.saturating_duration_since(*at) < Duration::from_secs(1)
        };
        outcome
            .sent
            .iter()
            .zip(&outcome.round_trips)
            .filter(|(sent, _)| near(sent))
            .map(|(_, time)| *time)
            .max()
    });
    let mut stalls: Vec<Duration> = longest.collect();
    stalls.sort_unstable();
    let rank = |share: f64| stalls.get(((share * stalls.len() as f64).ceil() as usize).max(1) - 1).copied();
    let mut all = outcome.round_trips.clone();
    all.sort_unstable();
    // A long hole may hold up most of them: the quarter that was fastest knows nothing of it.
    let usual = all.get(all.len() / 4).copied().unwrap_or_default();
    let over = stalls.iter().filter(|stall| **stall > usual + allowed).count();
    let bulk_text = match &bulk {
        Ok(bytes) => format!("{bytes} bytes verified by the receiver"),
        Err(error) => format!("TRANSFER FAILED: {error}"),
    };
    let text = format!(
        "{what}; {bulk_text}; stream: {} of {} numbers lost, there and back {} ms as a rule, after a change p50 {} ms, max {} ms, {over} of {} over {} ms; {} at the end",
        outcome.lost,
        outcome.sent.len(),
        millis(usual),
        ms(rank(0.5)),
        ms(stalls.last().copied()),
        stalls.len(),
        millis(usual + allowed),
        path.as_deref().unwrap_or("path not asked for"),
    );
    let passed = bulk.is_ok() && outcome.lost == 0 && over == 0 && !moves.is_empty();
    Seen::new(text, Some(passed))
}

fn ms(time: Option<Duration>) -> String {
    time.map_or("none".into(), |time| millis(time).to_string())
}
