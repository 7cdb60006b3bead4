//! Several flows of ours through one bottleneck, in virtual time: what each gets, and what the queue holds.

use std::time::Duration;

use pilotage_proto::ControllerKind::{self, Bbr, Cubic, NewReno};
use pilotage_sim::{Link, Neck};

/// 50 Mbit/s, 40 ms, a queue of one round trip, as in `spec/links.md` 2.4.
fn bottleneck() -> Link {
    Link {
        delay: Duration::from_millis(20),
        rate: Some(6_131_000), // without the headers of IP and UDP
        queue: 250_000,
        mtu: 1_472,
        ..Link::default()
    }
}

struct Outcome {
    /// Mbit/s of each flow.
    rates: Vec<f64>,
    jain: f64,
    total: f64,
    /// Mean wait in the queue.
    wait: Duration,
}

/// Seconds 8 to 24.
fn run(name: &str, seed: u64, flows: &[(ControllerKind, Duration)]) -> Outcome {
    let mut neck = Neck::new(seed, bottleneck(), flows);
    neck.run_until(Duration::from_secs(8));
    let (before, wire, dropped) = (neck.read(), neck.wire(), neck.dropped());
    neck.mean_wait();
    neck.run_until(Duration::from_secs(24));
    let rates: Vec<f64> =
        neck.read().iter().zip(&before).map(|(a, b)| (a - b) as f64 * 8.0 / 1e6 / 16.0).collect();
    let total: f64 = rates.iter().sum();
    let squares: f64 = rates.iter().map(|r| r * r).sum();
    let jain = total * total / (rates.len() as f64 * squares);
    let outcome = Outcome { rates, jain, total, wait: neck.mean_wait() };
    println!(
        "{name:22} Jain {jain:.3}, {total:.1} Mbit/s {:.1?}, wait {:.1?}, {} drops, {:.3} bytes sent per byte",
        outcome.rates,
        outcome.wait,
        neck.dropped() - dropped,
        (neck.wire() - wire) as f64 / (total * 2e6)
    );
    outcome
}

/// Flows that begin one after the other, each a little off the beat.
fn staggered(kind: ControllerKind, count: u64, gap: u64, seed: u64) -> Vec<(ControllerKind, Duration)> {
    (0..count).map(|i| (kind, Duration::from_millis(i * gap + (i * 37 + seed * 101) * 7_919 % 97))).collect()
}

/// The mean over some seeds: the flows of one run meet by chance.
fn mean(kind: ControllerKind, count: u64, gap: u64, of: impl Fn(&Outcome) -> f64) -> f64 {
    let name = format!("{count} {kind:?}, {gap} ms");
    let all: Vec<f64> =
        (0..6).map(|seed| of(&run(&name, seed, &staggered(kind, count, gap, seed)))).collect();
    all.iter().sum::<f64>() / all.len() as f64
}

#[test]
fn eight_flows_of_the_model_share_evenly() {
    for gap in [0, 300] {
        let jain = mean(Bbr, 8, gap, |o| {
            assert!(o.jain > 0.86 && o.total > 44.0, "{:?}", o.rates);
            o.jain
        });
        assert!(jain > 0.93, "gap {gap} ms: Jain {jain:.3}");
    }
}

#[test]
fn who_comes_later_gets_its_share_too() {
    for (kind, least) in [(Bbr, 0.86), (Cubic, 0.6), (NewReno, 0.6)] {
        let jain = mean(kind, 2, 3_000, |o| o.jain);
        assert!(jain > least, "{kind:?}: Jain {jain:.3}");
    }
}

/// The model against CUBIC and AIMD of ours, whoever comes first; and AIMD against CUBIC.
#[test]
fn kinds_leave_each_other_room() {
    for (kinds, least) in [
        ([Bbr, Cubic], 0.2),
        ([Cubic, Bbr], 0.2),
        ([Bbr, NewReno], 0.15),
        ([NewReno, Bbr], 0.15),
        ([NewReno, Cubic], 0.3),
        ([Cubic, NewReno], 0.3),
    ] {
        let name = format!("{:?}, then {:?}", kinds[0], kinds[1]);
        let o = run(&name, 0, &[(kinds[0], Duration::ZERO), (kinds[1], Duration::from_millis(100))]);
        let smaller = o.rates[0].min(o.rates[1]) / o.total;
        assert!(smaller > least, "{name}: {:?}", o.rates);
    }
}

/// What eight flows of the model keep in the queue is less than what eight of CUBIC do; one alone keeps hardly any.
#[test]
fn the_queue_is_shorter_than_with_cubic() {
    let wait = |kind, count| run("wait", 0, &staggered(kind, count, 100, 0)).wait;
    assert!(wait(Bbr, 8) <= wait(Cubic, 8));
    assert!(wait(Bbr, 1) <= Duration::from_millis(8));
}
