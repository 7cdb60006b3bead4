//! The registry under crashes, a bad disk, broken connections and quarrelling clients, seed by seed.
//!
//! `PILOTAGE_SEED=n cargo test --profile sim -p pilotage-sim --test registry` replays one seed.

mod net;

use std::net::SocketAddr;
use std::time::Duration;

use net::{Chaos, Net, Setup};
use pilotage_registry::engine::{Config, RateLimits};
use pilotage_sim::registry::{AgentEvent, Ask, Bounds, Crash, DiskState, Restart};
use pilotage_sim::seeds;
use pilotage_wire::NodeId;
use pilotage_wire::registry::{Base64, Registered, Reply};

const SECOND: Duration = Duration::from_secs(1);

fn fail(seed: u64, what: &str) -> ! {
    panic!("{what}\nreplay: PILOTAGE_SEED={seed} cargo test --profile sim -p pilotage-sim --test registry")
}

/// Ten minutes of trouble, then three of peace in which everybody must get what is theirs.
fn run(seed: u64) -> Net {
    let setup = Setup::random(seed);
    let mut net = Net::new(seed, &setup);
    let mut chaos = Chaos::new(seed);
    pilotage_fault::install(seed, if seed.is_multiple_of(2) { 30 } else { 0 });
    let result = chaos.rage(&mut net, 600 * SECOND);
    pilotage_fault::clear();
    let result = result.and_then(|()| {
        net.heal();
        net.run_for(180 * SECOND)?;
        net.demand_liveness()
    });
    match result {
        Ok(()) => net,
        Err(what) => fail(seed, &what),
    }
}

#[test]
fn promises_hold_and_everybody_recovers() {
    let count = std::env::var("PILOTAGE_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(60);
    pilotage_fault::reset_report();
    let mut totals = [0; 6];
    for seed in seeds(count) {
        let net = run(seed);
        let stats = net.stats;
        let all =
            [stats.events, stats.crashes, stats.refused, stats.lost, net.host.commits(), stats.registered];
        totals.iter_mut().zip(all).for_each(|(total, one)| *total += one);
    }
    let [events, crashes, refused, lost, commits, registered] = totals;
    println!(
        "events {events} crashes {crashes} refused {refused} lost {lost} commits {commits} registered {registered}"
    );
    for (name, count) in pilotage_fault::report() {
        println!("{name}: reached {} fired {}", count.reached, count.fired);
    }
    assert!(crashes > 0 && refused > 0 && lost > 0 && commits > 0, "the plan does nothing");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in [1, 2, 3, 4, 8, 16] {
        let (first, second) = (run(seed), run(seed));
        assert_eq!(first.digest(), second.digest(), "seed {seed}");
    }
    assert_ne!(run(1).digest(), run(3).digest());
}

/// A quiet registry with this many agents, each with a name and an identity of its own.
fn quiet(agents: u8) -> Net {
    let mut net = Net::new(7, &Setup::quiet(agents));
    net.run_for(10 * SECOND).expect("nothing is wrong yet");
    net
}

fn broken(result: Result<(), String>, words: &str) {
    let what = result.expect_err("the check must notice");
    assert!(what.contains(words), "{what}");
}

#[test]
fn a_disk_that_lies_is_noticed() {
    let mut net = quiet(1);
    net.host.set_disk(DiskState::Lying);
    net.ask(0, Ask::SetName("other".into()));
    net.run_for(2 * SECOND).expect("nobody can know yet");
    // Which pages are lost depends on the loss; sooner or later it is one that matters.
    net.host.crash(Crash::Power);
    net.host.swap_disk();
    net.host.restart(net.now(), Restart::Kept);
    broken(net.host.check(), "acknowledged and is forgotten");
}

#[test]
fn an_old_record_after_a_restart_is_noticed() {
    let mut net = quiet(8);
    assert!(net.host.commits() >= 8, "a backup has been made");
    net.ask(3, Ask::SetName("newer".into()));
    net.run_for(2 * SECOND).expect("well");
    net.host.crash(Crash::Process);
    net.host.swap_disk();
    net.host.restart(net.now(), Restart::Kept);
    broken(net.host.check(), "older than acknowledged");
}

/// The same is no fault if the operator says so: a new life begins.
#[test]
fn an_old_backup_that_is_announced_is_borne() {
    for how in [Restart::OldBackup, Restart::Lost] {
        let mut net = quiet(8);
        net.ask(3, Ask::SetName("newer".into()));
        net.run_for(2 * SECOND).expect("well");
        net.host.crash(Crash::Power);
        net.restart(how);
        net.host.check().expect("announced");
        net.run_for(120 * SECOND).expect("all come back");
        net.demand_liveness().expect("all are back");
        assert_eq!(net.host.nodes(), 8);
    }
}

/// Runs a registration of one more agent while replies are falsified.
fn tampered(falsify: impl FnMut(&mut Reply) + Send + 'static) -> Result<(), String> {
    let mut net = quiet(2);
    net.host.tamper(falsify);
    net.ask(0, Ask::SetName("again".into()));
    net.ask(1, Ask::Name("n0".into()));
    net.move_agent(0, 4_444);
    net.move_agent(1, 4_445);
    net.run_for(60 * SECOND)
}

#[test]
fn an_address_given_to_two_keys_is_noticed() {
    let mut first = None;
    let result = tampered(move |reply| {
        if let Reply::Registered(done) = reply {
            done.node_id = *first.get_or_insert(done.node_id);
        }
    });
    broken(result, "given to two keys");
}

#[test]
fn a_key_with_two_addresses_is_noticed() {
    let result = tampered(|reply| {
        if let Reply::Registered(done) = reply {
            done.node_id = NodeId(done.node_id.0 ^ 1);
        }
    });
    broken(result, "two addresses");
}

#[test]
fn a_name_told_wrongly_is_noticed() {
    let result = tampered(|reply| {
        if let Reply::SetHostname { hostname, .. } = reply {
            *hostname = "n1".into();
        }
    });
    broken(result, "shows a name");
}

/// An acknowledgement of what the disk refused.
#[test]
fn an_acknowledgement_without_a_commit_is_noticed() {
    let mut net = quiet(1);
    net.host.set_disk(DiskState::Full);
    net.host.tamper(|reply| {
        if matches!(reply, Reply::Error { error, .. } if error.contains("disk is full")) {
            *reply = Reply::Registered(Registered {
                node_id: NodeId(77),
                address: "0:0000.0000.004D".into(),
                network_id: 0,
                public_key: Base64([9; 32]),
                observed_addr: "192.0.2.1:1".into(),
                protocol_version: 1,
                hostname: None,
                hostname_error: None,
            });
        }
    });
    net.ask(0, Ask::SetName("other".into()));
    broken(net.run_for(5 * SECOND), "not durable");
}

#[test]
fn tables_beyond_their_bounds_are_noticed() {
    let mut net = quiet(3);
    let bounds = Bounds { nodes: 100, sources: 100, connections: 100 };
    for (bounds, words) in [
        (Bounds { nodes: 2, ..bounds }, "claimed addresses"),
        (Bounds { sources: 0, ..bounds }, "sources"),
        (Bounds { connections: 2, ..bounds }, "connections"),
    ] {
        net.host.set_bounds(bounds);
        broken(net.host.check(), words);
    }
}

/// The bounds themselves, hit from outside: more keys, connections and sources than there is room for.
#[test]
fn a_full_registry_refuses_new_keys_and_serves_the_old_ones() {
    let mut setup = Setup::quiet(12);
    let rates = RateLimits { challenge: 600, ..RateLimits::default() };
    setup.host.engine = Config { max_nodes: 5, max_sources: 4, rates, ..Config::default() };
    setup.host.max_connections = 9;
    let mut net = Net::new(3, &setup);
    net.run_for(300 * SECOND).expect("within bounds");
    assert_eq!(net.host.nodes(), 5);
    net.host.crash(Crash::Process);
    net.restart(Restart::Kept);
    net.run_for(300 * SECOND).expect("within bounds");
    assert_eq!(net.host.nodes(), 5);
    net.demand_liveness().expect("the five are served");
}

/// spec/registry.md §8.3 and §8.1 in one: refuse, say why, serve reads, come back.
#[test]
fn a_full_disk_refuses_changes_serves_questions_and_heals() {
    let mut net = quiet(3);
    net.host.set_disk(DiskState::Full);
    net.ask(0, Ask::SetName("other".into()));
    net.run_for(SECOND).expect("no promise broken");
    assert!(net.host.is_read_only());
    net.events.clear();
    net.ask(1, Ask::Name("n2".into()));
    net.run_for(SECOND).expect("no promise broken");
    assert!(
        matches!(net.events[..], [(1, AgentEvent::Answer(Ask::Name(_), Reply::Hostname(_)))]),
        "{:?}",
        net.events
    );
    net.host.set_disk(DiskState::Healthy);
    net.run_for(15 * SECOND).expect("no promise broken");
    assert!(!net.host.is_read_only());
    net.ask(0, Ask::SetName("other".into()));
    net.events.clear();
    net.run_for(SECOND).expect("no promise broken");
    assert!(matches!(net.events[..], [(0, AgentEvent::Answer(Ask::SetName(_), _))]), "{:?}", net.events);
}

/// Two hosts with one identity: both are served, the address stays one, the endpoint is the last one's.
#[test]
fn clones_share_one_address() {
    let mut setup = Setup::quiet(2);
    setup.agents[1].config.identity = setup.agents[0].config.identity;
    let mut net = Net::new(5, &setup);
    net.run_for(200 * SECOND).expect("no promise broken");
    net.demand_liveness().expect("both are served");
    assert_eq!(net.host.nodes(), 1);
    assert_eq!(net.agents[0].agent.node(), net.agents[1].agent.node());
}

/// An hour forth and back on the wall clock decides nothing.
#[test]
fn wrong_wall_clocks_decide_nothing() {
    let mut net = quiet(4);
    for jump in [3_600, -7_200, 3_600, i64::from(u32::MAX), -i64::from(u32::MAX) * 2] {
        net.jump_clock(jump);
        net.run_for(100 * SECOND).expect("no promise broken");
        net.demand_liveness().expect("all are served");
    }
}

/// A registration that was seen on the wire is of no use to anybody else, nor later.
#[test]
fn a_captured_registration_cannot_be_replayed() {
    let mut net = quiet(2);
    let before: Vec<SocketAddr> = (0..2).map(|n| net.endpoint(n).expect("registered")).collect();
    let captured = net.captured.clone();
    assert!(captured.len() >= 4);
    let commits = net.host.commits();
    for frame in captured {
        net.intrude("203.0.113.66".parse().expect("address"), &frame);
    }
    net.run_for(5 * SECOND).expect("no promise broken");
    assert_eq!(net.host.commits(), commits);
    let after: Vec<SocketAddr> = (0..2).map(|n| net.endpoint(n).expect("registered")).collect();
    assert_eq!(before, after);
}
