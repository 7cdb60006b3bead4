//! Cold transfers: handshake, all bytes, confirmation.

use std::time::Instant;

use pilotage_lab::{Lab, LabConfig, LinkConfig};

use super::options::{LinkName, Options, Peer, Work};
use super::process::Pair;
use super::runner::Sheet;
use super::side::{Sent, Task};
use crate::Failure;
use crate::record::Record;

const ALL: [&str; 18] = [
    "pilotage-bbr",
    "pilotage-cubic",
    "pilotage-newreno",
    "pilotage-s1-bbr",
    "pilotage-s1-cubic",
    "pilotage-s1-newreno",
    "tcp-cubic",
    "tcp-bbr",
    "tls-cubic",
    "tls-bbr",
    "quinn-cubic",
    "quinn-bbr",
    "quinn-default-cubic",
    "quinn-default-bbr",
    "s2n-cubic",
    "s2n-bbr",
    "s2n-default-cubic",
    "s2n-default-bbr",
];
const QUICK: [&str; 10] = [
    "pilotage-bbr",
    "pilotage-cubic",
    "pilotage-s1-bbr",
    "pilotage-s1-cubic",
    "tcp-cubic",
    "tcp-bbr",
    "tls-bbr",
    "quinn-cubic",
    "quinn-bbr",
    "s2n-bbr",
];
const LINKS: [LinkName; 6] = [
    LinkName::Clean,
    LinkName::Lossy,
    LinkName::Radio,
    LinkName::Fast,
    LinkName::Shallow,
    LinkName::Reordering,
];

/// One transfer to be measured.
struct Job {
    name: String,
    link: LinkConfig,
    bytes: u64,
}

/// Runs all transfers that are wanted.
pub(super) fn run(options: &Options, sheet: &mut Sheet) -> Result<(), Failure> {
    let jobs = jobs(options);
    let peers = options.chosen(&ALL, &QUICK);
    let mut cut: Vec<(String, Peer)> = Vec::new();
    for repeat in 1..=options.repeats() {
        for job in &jobs {
            for &peer in &peers {
                // Who was too slow for a transfer needs not show it again with four times the bytes.
                let short = job.name.trim_end_matches("-long").to_owned();
                if job.name.ends_with("-long") && cut.contains(&(short, peer)) {
                    continue;
                }
                let record = sheet.measure(&job.name, peer, repeat, || once(options, job, peer, repeat));
                if record.metrics.get("cut").is_some_and(|cut| *cut > 0.0) {
                    cut.push((job.name.clone(), peer));
                }
            }
        }
    }
    Ok(())
}

fn jobs(options: &Options) -> Vec<Job> {
    let mut links: Vec<(String, LinkConfig, u64)> = match &options.link {
        Some(link) => vec![("link-own".to_owned(), link.clone(), options.size)],
        None => LINKS
            .into_iter()
            .filter(|link| options.links.is_empty() || options.links.contains(link))
            .map(|link| (format!("link-{}", link.name()), link.config(), link.size()))
            .collect(),
    };
    let longer: Vec<_> =
        links.iter().map(|(name, link, bytes)| (format!("{name}-long"), link.clone(), bytes * 4)).collect();
    if !options.wants(Work::Transfer) {
        links.clear();
    }
    if options.wants(Work::Long) {
        links.extend(longer);
    }
    links.into_iter().map(|(name, link, bytes)| Job { name, link, bytes }).collect()
}

fn once(options: &Options, job: &Job, peer: Peer, repeat: u32) -> Result<Record, Failure> {
    let config = LabConfig { seed: u64::from(repeat), ..LabConfig::default() };
    let lab = Lab::pair(&job.link, &config)?;
    let pair = Pair::serve(&lab, peer, 0, options.real_time)?;
    let (before_out, before_back) = (lab.counters(0), lab.counters(1));
    let begun = Instant::now();
    let mut client = pair.start(&lab, Task::Transfer { bytes: job.bytes })?;
    let line = client.line(begun + options.limit())?;
    let waited = begun.elapsed().as_secs_f64();
    let (out, back) = (lab.counters(0).since(&before_out), lab.counters(1).since(&before_back));
    let mut record = Record::new(&job.name, peer.to_string(), repeat);
    let (seconds, payload) = match line {
        Some(line) => {
            let text = line.strip_prefix("result ").ok_or("the client speaks nonsense")?;
            let sent: Sent = serde_json::from_str(text)?;
            if !sent.verified {
                return Err("the bytes that arrived are not those that were sent".into());
            }
            record.note = sent.note;
            (sent.seconds, job.bytes)
        }
        None => {
            record.note = "cut at the limit".into();
            (waited, pair.received().last().map_or(0, |(_, bytes)| *bytes))
        }
    };
    let goodput = payload as f64 * 8.0 / seconds / 1e6;
    let share = job.link.rate.map_or(f64::NAN, |rate| goodput * 1e6 / rate as f64);
    Ok(record
        .metric("time_s", seconds)
        .metric("goodput_mbps", goodput)
        .metric("of_link_ratio", share)
        .metric("wire_ratio", out.offered_bytes as f64 / payload as f64)
        .metric("back_ratio", back.offered_bytes as f64 / payload as f64)
        .metric("packets_out", out.offered as f64)
        .metric("packets_back", back.offered as f64)
        .metric("queue_drops", out.queue_full as f64)
        .metric("lab_late", (out.late + back.late) as f64)
        .metric("lab_overrun", (out.overrun + back.overrun) as f64)
        .metric("cut", f64::from(u8::from(payload != job.bytes)))
        .setting("link", job.link.to_string())
        .setting("bytes", job.bytes.to_string()))
}
