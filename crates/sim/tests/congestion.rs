//! Controllers over emulated links, in virtual time: cold transfers, handshake included.

use std::time::Duration;

use pilotage_proto::{Config, ControllerKind};
use pilotage_sim::{Link, Pair};

/// One direction: bits per second, round trip, loss each way, queue in round trips at the rate.
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

/// Seconds for `bytes`, the median of some seeds.
fn seconds(kind: ControllerKind, link: &Link, bytes: u64) -> f64 {
    let mut all: Vec<f64> = (0..5)
        .map(|seed| {
            let config = Config { congestion: kind, max_datagram_size: 1_452, ..Config::default() };
            let mut pair = Pair::with_config(seed, link.clone(), config);
            pair.stream(bytes).expect("arrives");
            pair.elapsed().as_secs_f64() - 30.0 // the wait for silence at the end
        })
        .collect();
    all.sort_by(f64::total_cmp);
    all[2]
}

#[test]
fn a_model_keeps_its_speed_where_loss_halves_the_others() {
    for (name, link, bytes) in [
        ("100M 40ms 0%", link(100, 40, 0.0, 1.0), 20_000_000u64),
        ("100M 40ms 1%", link(100, 40, 0.01, 1.0), 8_000_000),
        ("20M 100ms 2%", link(20, 100, 0.02, 1.0), 2_500_000),
        ("500M 10ms .1%", link(500, 10, 0.001, 1.0), 50_000_000),
        ("10M 30ms shallow", link(10, 30, 0.0, 0.25), 5_000_000),
        ("100M 40ms 1% x4", link(100, 40, 0.01, 1.0), 32_000_000),
        ("100M 40ms 0% x4", link(100, 40, 0.0, 1.0), 80_000_000),
        ("10M 30ms shallow x4", link(10, 30, 0.0, 0.25), 20_000_000),
    ] {
        let took = [ControllerKind::NewReno, ControllerKind::Cubic, ControllerKind::Bbr]
            .map(|k| seconds(k, &link, bytes));
        let mbit = took.map(|t| bytes as f64 * 8.0 / t / 1e6);
        println!(
            "{name:20} newreno {:.2}s cubic {:.2}s bbr {:.2}s  Mbit/s {:.1} {:.1} {:.1}",
            took[0], took[1], took[2], mbit[0], mbit[1], mbit[2]
        );
    }
}
