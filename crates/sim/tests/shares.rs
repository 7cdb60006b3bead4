//! Several flows of ours through one bottleneck, in virtual time: what each gets, and what the queue holds.

use std::time::Duration;

use pilotage_proto::ControllerKind::{self, Bbr, Cubic, NewReno};
use pilotage_sim::{Link, Neck};

/// 50 Mbit/s, 40 ms, a queue of one round trip, as in `spec/links.md` 2.4.
fn bottleneck() -> Link {
    Link {
        delay: Duration::from_millis(20),
        rate: Some(6_250_000),
        queue: 250_000,
        mtu: 1_472,
        ..Link::default()
    }
}

struct Outcome {
    /// Mbit/s of each flow in the window.
    rates: Vec<f64>,
    jain: f64,
    total: f64,
    wait: Duration,
    dropped: u64,
}

fn run(seed: u64, flows: &[(ControllerKind, Duration)], from: u64, until: u64) -> Outcome {
    let mut neck = Neck::new(seed, bottleneck(), flows);
    neck.run_until(Duration::from_secs(from));
    let (before, dropped) = (neck.read(), neck.dropped());
    neck.mean_wait();
    neck.run_until(Duration::from_secs(until));
    let seconds = (until - from) as f64;
    let rates: Vec<f64> =
        neck.read().iter().zip(&before).map(|(a, b)| (a - b) as f64 * 8.0 / 1e6 / seconds).collect();
    let total: f64 = rates.iter().sum();
    let squares: f64 = rates.iter().map(|r| r * r).sum();
    let jain = total * total / (rates.len() as f64 * squares);
    Outcome { rates, jain, total, wait: neck.mean_wait(), dropped: neck.dropped() - dropped }
}

fn staggered(kind: ControllerKind, count: u64, gap: u64) -> Vec<(ControllerKind, Duration)> {
    (0..count).map(|i| (kind, Duration::from_millis(i * gap))).collect()
}

fn print(name: &str, o: &Outcome) {
    let rates: Vec<String> = o.rates.iter().map(|r| format!("{r:.1}")).collect();
    println!(
        "{name:28} jain {:.3} total {:4.1} wait {:4.1} ms drops {:5} [{}]",
        o.jain,
        o.total,
        o.wait.as_secs_f64() * 1e3,
        o.dropped,
        rates.join(" ")
    );
}

#[test]
fn survey() {
    for seed in 0..3 {
        print("8 bbr at once", &run(seed, &staggered(Bbr, 8, 1), 8, 24));
        print("8 bbr staggered 300", &run(seed, &staggered(Bbr, 8, 300), 8, 24));
        print("2 bbr staggered 2000", &run(seed, &staggered(Bbr, 2, 2000), 8, 24));
        print("2 bbr at once", &run(seed, &staggered(Bbr, 2, 1), 8, 24));
        print("2 cubic", &run(seed, &staggered(Cubic, 2, 100), 8, 24));
        print("2 newreno", &run(seed, &staggered(NewReno, 2, 100), 8, 24));
        print("8 cubic", &run(seed, &staggered(Cubic, 8, 100), 8, 24));
        print("1 bbr", &run(seed, &staggered(Bbr, 1, 100), 8, 24));
        print("1 cubic", &run(seed, &staggered(Cubic, 1, 100), 8, 24));
        for (name, kinds) in [("bbr cubic", [Bbr, Cubic]), ("cubic bbr", [Cubic, Bbr]), ("newreno cubic", [NewReno, Cubic]), ("bbr newreno", [Bbr, NewReno])] {
            let flows = [(kinds[0], Duration::ZERO), (kinds[1], Duration::from_millis(100))];
            print(name, &run(seed, &flows, 8, 24));
        }
    }
}
