//! Small replies in parallel over one connection or tunnel that exists: 64 KB each, always as many under way.

use std::time::{Duration, Instant};

use pilotage_lab::{Lab, LabConfig, LinkConfig};

use super::options::{Family, Options, Peer};
use super::process::Pair;
use super::runner::Sheet;
use super::side::{Task, Way};
use crate::Failure;
use crate::record::Record;

const ALL: [&str; 11] = [
    "pilotage-bbr",
    "pilotage-cubic",
    "pilotage-s1-bbr",
    "pilotage-s1-cubic",
    "quinn-bbr",
    "quinn-cubic",
    "s2n-bbr",
    "tls-bbr",
    "tls-cubic",
    "tcp-bbr",
    "tcp-cubic",
];
const QUICK: [&str; 5] = ["pilotage-bbr", "pilotage-s1-bbr", "quinn-bbr", "s2n-bbr", "tls-bbr"];
/// Bytes of a reply.
const REPLY: u32 = 64 << 10;

/// Runs all fetches that are wanted.
pub(super) fn run(options: &Options, sheet: &mut Sheet) -> Result<(), Failure> {
    for repeat in 1..=options.repeats() {
        for peer in options.chosen(&ALL, &QUICK) {
            let ways: &[Way] = match peer.family {
                Family::Pilotage | Family::PilotageS1 => &[Way::Kept, Way::Fresh],
                Family::Quinn | Family::S2n => &[Way::Fresh],
                Family::Tcp | Family::Tls => &[Way::Muxed],
            };
            for way in ways {
                let name = format!("fetch-{}x64k-{}", options.parallel, name(*way));
                sheet.measure(&name, peer, repeat, || once(options, &name, peer, *way, repeat));
            }
        }
    }
    Ok(())
}

fn name(way: Way) -> &'static str {
    match way {
        Way::Fresh => "fresh",
        Way::Kept => "kept",
        Way::Muxed => "muxed",
    }
}

fn once(options: &Options, name: &str, peer: Peer, way: Way, repeat: u32) -> Result<Record, Failure> {
    let link = LinkConfig::new(100_000_000, Duration::from_millis(25)).losing(0.01);
    let config = LabConfig { seed: u64::from(repeat), ..LabConfig::default() };
    let lab = Lab::pair(&link, &config)?;
    let pair = Pair::serve(&lab, peer, 0, options.real_time)?;
    // Two rounds to open the window, which do not count.
    let warm = options.parallel * 2;
    let count = warm + if options.quick { 200 } else { 400 };
    let begun = Instant::now();
    let mut client =
        pair.start(&lab, Task::Fetch { bytes: REPLY, parallel: options.parallel, count, way })?;
    let mut times = Vec::new();
    let mut warm_at = begun;
    let before = lab.counters(1);
    while let Some(line) = client.line(begun + options.limit() * 2)? {
        let Some(micros) = line.strip_prefix("fetch ").and_then(|text| text.parse::<u64>().ok()) else {
            break;
        };
        times.push(micros);
        if times.len() == warm as usize {
            warm_at = Instant::now();
        }
    }
    let seconds = warm_at.elapsed().as_secs_f64();
    let out = lab.counters(1).since(&before);
    // The wire is counted from the start: at any later time some replies are half way.
    let all = times.len() as f64 * f64::from(REPLY);
    let mut counted = times.split_off(times.len().min(warm as usize));
    if counted.is_empty() {
        return Err("no fetch ended in time".into());
    }
    counted.sort_unstable();
    let at = |share: f64| counted[((counted.len() - 1) as f64 * share).round() as usize] as f64 / 1e3;
    let payload = counted.len() as f64 * f64::from(REPLY);
    Ok(Record::new(name, peer.to_string(), repeat)
        .metric("p50_ms", at(0.5))
        .metric("p90_ms", at(0.9))
        .metric("p99_ms", at(0.99))
        .metric("goodput_mbps", payload * 8.0 / seconds / 1e6)
        .metric("wire_ratio", out.offered_bytes as f64 / all)
        .metric("fetches", counted.len() as f64)
        .metric("cut", f64::from(u8::from(counted.len() as u32 + warm < count)))
        .setting("link", link.to_string()))
}
