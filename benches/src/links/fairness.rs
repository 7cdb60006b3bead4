//! Flows that compete for one bottleneck.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use pilotage_lab::{Lab, LabConfig, LinkConfig};

use super::options::{Options, Peer};
use super::process::Pair;
use super::runner::Sheet;
use super::side::{ENDLESS, Task};
use crate::Failure;
use crate::record::Record;

const OURS: [&str; 6] = [
    "pilotage-bbr",
    "pilotage-cubic",
    "pilotage-newreno",
    "pilotage-s1-bbr",
    "pilotage-s1-cubic",
    "pilotage-s1-newreno",
];
/// For comparison: what the peers do to their own kind and to TCP.
const THEIRS: [&str; 3] = ["tcp-cubic", "tcp-bbr", "quinn-bbr"];

/// Flows of one run; the shares are those of the first.
struct Contest {
    name: String,
    subject: Peer,
    flows: Vec<Peer>,
}

/// Runs all contests that are wanted.
pub(super) fn run(options: &Options, sheet: &mut Sheet) -> Result<(), Failure> {
    let all: Vec<&str> = OURS.into_iter().chain(THEIRS).collect();
    let peers = options.chosen(&all, &OURS);
    let (cubic, bbr): (Peer, Peer) = ("tcp-cubic".parse()?, "tcp-bbr".parse()?);
    let mut contests = Vec::new();
    for peer in peers {
        for count in [2, 8] {
            contests.push(Contest {
                name: format!("share-{count}-own"),
                subject: peer,
                flows: vec![peer; count],
            });
        }
        for other in [cubic, bbr].into_iter().filter(|other| *other != peer) {
            let flows = vec![peer, other];
            contests.push(Contest { name: format!("share-against-{other}"), subject: peer, flows });
        }
    }
    for repeat in 1..=options.repeats() {
        for contest in &contests {
            sheet.measure(&contest.name, contest.subject, repeat, || once(options, contest, repeat));
        }
    }
    Ok(())
}

fn once(options: &Options, contest: &Contest, repeat: u32) -> Result<Record, Failure> {
    let link = LinkConfig::new(50_000_000, Duration::from_millis(20));
    let time = Duration::from_secs(if options.quick { 12 } else { 24 });
    let config = LabConfig { seed: u64::from(repeat), ..LabConfig::default() };
    let lab = Lab::pair(&link, &config)?;
    let flows = contest.flows.iter().enumerate();
    let pairs = flows
        .map(|(i, peer)| Pair::serve(&lab, *peer, i as u16, options.real_time))
        .collect::<Result<Vec<_>, _>>()?;
    let begun = (Instant::now(), SystemTime::now());
    let task = Task::Transfer { bytes: ENDLESS };
    let mut clients = pairs.iter().map(|pair| pair.start(&lab, task)).collect::<Result<Vec<_>, _>>()?;
    for client in &mut clients {
        // They never finish: a line or an end would be an error.
        if let Some(line) = client.line(begun.0 + time)? {
            return Err(format!("a flow without end ended: {line}").into());
        }
    }
    // The first third is for finding one's place.
    let micros = |at: SystemTime| at.duration_since(UNIX_EPOCH).map_or(0, |time| time.as_micros() as u64);
    let window = micros(begun.1 + time / 3)..micros(begun.1 + time);
    let received: Vec<f64> = pairs.iter().map(|pair| within(&pair.received(), &window)).collect();
    let seconds = (time - time / 3).as_secs_f64();
    let total: f64 = received.iter().sum();
    let out = lab.counters(0);
    Ok(Record::new(&contest.name, contest.subject.to_string(), repeat)
        .metric("jain", jain(&received))
        .metric("share_ratio", received[0] / total.max(1.0))
        .metric("goodput_mbps", total * 8.0 / seconds / 1e6)
        .metric("smallest_mbps", received.iter().copied().fold(f64::INFINITY, f64::min) * 8.0 / seconds / 1e6)
        .metric("queue_drops", out.queue_full as f64)
        .setting("link", link.to_string())
        .setting("seconds", time.as_secs().to_string()))
}

/// Bytes that came between two times.
fn within(samples: &[(u64, u64)], window: &std::ops::Range<u64>) -> f64 {
    let at =
        |time: u64| samples.iter().take_while(|(at, _)| *at <= time).last().map_or(0, |(_, bytes)| *bytes);
    at(window.end).saturating_sub(at(window.start)) as f64
}

/// Jain's index: 1 if all have the same, 1/n if one has everything.
fn jain(values: &[f64]) -> f64 {
    let (sum, squares) = values.iter().fold((0.0, 0.0), |(sum, squares), v| (sum + v, squares + v * v));
    if squares == 0.0 { 0.0 } else { sum * sum / (values.len() as f64 * squares) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_of_jain() {
        assert!((jain(&[5.0, 5.0, 5.0]) - 1.0).abs() < 1e-12);
        assert!((jain(&[9.0, 0.0, 0.0]) - 1.0 / 3.0).abs() < 1e-12);
        assert_eq!(jain(&[0.0, 0.0]), 0.0);
    }

    #[test]
    fn only_bytes_of_the_window_count() {
        let samples = [(10, 100), (20, 300), (30, 700), (40, 1_000)];
        assert_eq!(within(&samples, &(20..35)), 400.0);
        assert_eq!(within(&samples, &(0..5)), 0.0);
        assert_eq!(within(&[], &(0..5)), 0.0);
    }
}
