//! The full-stack plan among nodes that speak S1, some or all of them (spec/secure.md §12).

use pilotage_sim::{Plan, seeds};

/// 500 seeds in ordinary runs; `PILOTAGE_SEEDS` for more. Every invariant of the plan counts: no byte is lost or wrong, nothing
/// is sealed twice under one nonce, nobody is amplified, healed nodes find each other, and in the end there is silence.
#[test]
fn every_seed_holds_every_invariant_in_s1_too() {
    let (mut bytes, mut sealed, mut failed) = (0, 0, Vec::new());
    for seed in seeds(500) {
        // The draft's own faults are for the draft's own test.
        let report = Plan::random_s1(seed).run(false);
        bytes += report.stream_bytes;
        sealed += report.frames_sealed;
        if let Some(violation) = report.violation {
            println!("seed {seed}: {violation}");
            failed.push(seed);
        }
    }
    println!("{bytes} bytes, {sealed} frames");
    assert!(failed.is_empty(), "Plan::random_s1 of {failed:?}");
}

/// `PILOTAGE_SEED=n cargo test -p pilotage-sim --test s1_world -- --ignored --nocapture` shows what a seed means.
#[test]
#[ignore = "prints a story"]
fn one_seed_in_detail() {
    for seed in seeds(1) {
        let plan = Plan::random_s1(seed);
        println!("{:?}", plan.nodes.iter().map(|node| (node.mode, node.limits)).collect::<Vec<_>>());
        println!("{:?}", plan.faults);
        let report = plan.run(true);
        let mut text = Vec::new();
        report.trace.expect("asked for").write_text(&mut text).expect("memory");
        println!("{}", String::from_utf8_lossy(&text));
        println!("{:?}", report.violation);
    }
}
