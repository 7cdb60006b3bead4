//! The full-stack plan: seeds, determinism, and the invariants broken on purpose.

use std::collections::BTreeSet;
use std::time::Duration;

use pilotage_sim::{End, Ending, FlowPlan, Invariant, Link, Plan, Report, World, replay_command, seeds};

fn fails(report: &Report) -> Option<String> {
    let violation = report.violation.as_ref()?;
    Some(format!("seed {}: {violation}\n  again: {}", report.seed, replay_command(report.seed)))
}

/// 2,000 seeds in ordinary runs; `PILOTAGE_SEEDS=200000` for all of them (better with `pilotage-sim run`).
#[test]
fn every_seed_holds_every_invariant() {
    let (mut bytes, mut simulated) = (0, Duration::ZERO);
    for seed in seeds(2_000) {
        let report = Plan::random(seed).run(false);
        bytes += report.stream_bytes;
        simulated += report.simulated;
        if let Some(failure) = fails(&report) {
            panic!("{failure}");
        }
    }
    println!("{bytes} bytes, {simulated:?}");
    assert!(std::env::var_os("PILOTAGE_SEED").is_some() || bytes > 1_000_000, "the streams did something");
}

/// What they showed, in this order: SYN of many dialers in step in one short queue; a full accept queue that resets whom it
/// told to be connected (two); keys that two exchanges left different on the two sides; questions that starved
/// heartbeats; a registry set back unnoticed; a pace that stood still for half a minute; a way found dead that was never
/// asked again (the last). A change of the plan makes them other seeds, which is no reason to keep fewer.
#[test]
fn seeds_that_failed_once_hold_now() {
    for seed in [
        612_010, 2_003_096, 2_018_285, 2_121_687, 1_014_820, 601_675, 601_160, 1_007_329, 1_005_900,
        3_192_058, 5_019_379, 5_025_039, 6_053_389, 27_958,
    ] {
        if let Some(failure) = fails(&Plan::random(seed).run(false)) {
            panic!("{failure}");
        }
    }
}

#[test]
fn one_seed_is_one_story() {
    for seed in 0..20 {
        let first = Plan::random(seed).run(false);
        // Another thread, after other work, with a trace: nothing of that may show.
        let second = std::thread::spawn(move || {
            let _ = Plan::random(seed + 1).run(false);
            Plan::random(seed).run(true)
        });
        let second = second.join().expect("no panic");
        assert_eq!(first.digest, second.digest, "seed {seed}");
        assert_eq!(first.counts, second.counts, "seed {seed}");
    }
}

#[test]
fn seeds_differ() {
    let digests: BTreeSet<_> = (0..20).map(|seed| Plan::random(seed).run(false).digest.to_string()).collect();
    assert_eq!(digests.len(), 20);
}

/// What the audit says about plans in a world that breaks `invariant`.
fn sabotaged(invariant: Invariant) -> Option<Invariant> {
    (0..200).find_map(|seed| {
        let report = Plan::random(seed).run_with(false, |world| world.sabotage = Some(invariant));
        report.violation.map(|v| v.invariant)
    })
}

#[test]
fn each_invariant_is_seen_to_break() {
    for invariant in Invariant::ALL {
        assert_eq!(sabotaged(invariant), Some(invariant), "{invariant:?} was broken on purpose");
    }
}

/// The sabotage of amplification above breaks the beacon's half. This is the nodes' half: a stranger is paid back more
/// than it sent.
#[test]
fn a_stranger_that_gets_more_than_it_sent_is_seen() {
    let mut world = World::new(1);
    let stranger = "203.0.113.200:9".parse().expect("address");
    world.audit.watch_stranger(stranger);
    world.audit.on_received(stranger, 100);
    world.audit.on_sent(stranger, 100);
    assert!(world.audit.violation().is_none());
    world.audit.on_sent(stranger, 1);
    assert_eq!(world.audit.violation().map(|v| v.invariant), Some(Invariant::NoAmplification));
}

#[test]
fn fault_points_fire_and_are_counted() {
    pilotage_fault::reset_report();
    for seed in 0..400 {
        if let Some(failure) = fails(&Plan::random(seed).run(false)) {
            panic!("{failure}");
        }
    }
    let report = pilotage_fault::report();
    let fired = report.iter().filter(|(_, c)| c.fired > 0).count();
    for (name, count) in &report {
        println!("{name}: {} of {}", count.fired, count.reached);
    }
    assert!(fired >= 25, "{fired} points fired");
}

/// Two nodes on good links, one flow that ends as told.
fn calm(ending: Ending, bytes: u64) -> (World, usize) {
    let mut world = World::new(5);
    let config = pilotage_proto::Config::default();
    let a = world.add_node(config.clone(), Link::default(), Link::default(), 300);
    let b = world.add_node(config, Link::default(), Link::default(), -300);
    world.introduce(a, b);
    let flow = world.plan_flow(FlowPlan {
        from: a,
        to: b,
        start: Duration::from_millis(10),
        bytes,
        back: 1_000,
        chunk: 5_000,
        slow_reader: None,
        nodelay: false,
        ending,
    });
    (world, flow)
}

#[test]
fn on_a_good_day_everything_arrives() {
    for ending in [Ending::Orderly, Ending::CloseAfterWrite] {
        let (mut world, flow) = calm(ending, 3_000_000);
        world.run_for(Duration::from_secs(60));
        assert!(world.audit.violation().is_none(), "{:?}", world.audit.violation());
        let f = &world.traffic.flows[flow];
        assert_eq!(f.read[0], 3_000_008, "{ending:?}: {}", world.describe_flow(f));
        assert!(f.eof[0], "{ending:?}");
        if ending == Ending::Orderly {
            assert!(f.is_finished() && f.read[1] == 1_000);
        }
    }
}

#[test]
fn a_reset_and_a_leaving_reader_end_both_sides() {
    for ending in [Ending::Reset(100_000), Ending::ReaderCloses(100_000)] {
        let (mut world, flow) = calm(ending, 3_000_000);
        world.run_for(Duration::from_secs(120));
        assert!(world.audit.violation().is_none(), "{:?}", world.audit.violation());
        let f = &world.traffic.flows[flow];
        // What is reset before B has read the flow's number never began for B.
        let b_over = f.is_over(1) || f.ends[1] == End::Idle;
        assert!(f.is_over(0) && b_over, "{ending:?}: {}", world.describe_flow(f));
        assert!(f.read[0] < 3_000_000, "{ending:?}");
    }
}
