//! Controllers over emulated links, in virtual time: cold transfers, handshake included.

use std::time::Duration;

use pilotage_proto::{Config, ControllerKind};
use pilotage_sim::{Link, Pair};

/// Megabits per second and milliseconds of round trip; loss each way; queue in round trips at that rate.
fn link(mbit: u64, rtt_ms: u64, loss: f64, queue: f64) -> Link {
    let rate = mbit * 125_000;
    Link {
        delay: Duration::from_micros(rtt_ms * 500),
        rate: Some(rate),
        queue: (rate as f64 * rtt_ms as f64 / 1_000.0 * queue) as usize,
        loss,
        mtu: 1_472,
        ..Link::default()
    }
}

/// Goodput in Mbit/s, the median of some seeds.
fn goodput(kind: ControllerKind, link: &Link, bytes: u64) -> f64 {
    let mut all: Vec<f64> = (0..3)
        .map(|seed| {
            let config = Config { congestion: kind, max_datagram_size: 1_452, ..Config::default() };
            let mut pair = Pair::with_config(seed, link.clone(), config);
            pair.stream(bytes).expect("arrives");
            let seconds = pair.elapsed().as_secs_f64() - 30.0; // the wait for silence at the end
            bytes as f64 * 8.0 / seconds / 1e6
        })
        .collect();
    all.sort_by(f64::total_cmp);
    all[1]
}

/// The links of the benchmark table (`benches/RESULTS.md`): where loss is random the model keeps its speed; where loss is
/// the sign of a full queue it is no worse than CUBIC.
#[test]
fn a_model_keeps_its_speed_where_loss_halves_the_others() {
    // (link, bytes, least goodput of BBR, least ratio to CUBIC)
    for (name, link, bytes, least, ratio) in [
        ("100 Mbit/s, 40 ms", link(100, 40, 0.0, 1.0), 10_000_000u64, 65.0, 0.95),
        ("100 Mbit/s, 40 ms, 1 %", link(100, 40, 0.01, 1.0), 4_000_000, 40.0, 7.0),
        ("20 Mbit/s, 100 ms, 2 %", link(20, 100, 0.02, 1.0), 2_000_000, 7.0, 5.0),
        ("500 Mbit/s, 10 ms, 0.1 %", link(500, 10, 0.001, 1.0), 20_000_000, 250.0, 3.0),
        ("10 Mbit/s, 30 ms, queue of 9 kB", link(10, 30, 0.0, 0.25), 3_000_000, 8.3, 0.9),
    ] {
        let [cubic, bbr] = [ControllerKind::Cubic, ControllerKind::Bbr].map(|k| goodput(k, &link, bytes));
        println!("{name:32} cubic {cubic:6.1} bbr {bbr:6.1} Mbit/s");
        assert!(bbr >= least && bbr >= cubic * ratio, "{name}: BBR {bbr:.1}, CUBIC {cubic:.1} Mbit/s");
    }
}
