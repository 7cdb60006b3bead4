//! The parent: all works in turn, one sheet of results.

use std::io::Write;

use pilotage_lab::Lab;

use super::options::{Options, Peer, Work};
use super::{delay, fairness, fetch, peers, side, table, transfer};
use crate::Failure;
use crate::measure::LoadGuard;
use crate::record::Record;

/// Runs what the options say. False if a run failed.
///
/// # Errors
/// [`pilotage_lab::LabError::Unavailable`] inside where there can be no laboratory.
pub fn run(options: &Options) -> Result<bool, Failure> {
    if let Some(text) = &options.side {
        side::run(options, text)?;
        return Ok(true);
    }
    Lab::available()?;
    let mut sheet = Sheet { json: options.json, real_time: options.real_time, records: Vec::new() };
    if options.wants(Work::Transfer) || options.wants(Work::Long) {
        transfer::run(options, &mut sheet)?;
    }
    if options.wants(Work::Fetch) && options.link.is_none() {
        fetch::run(options, &mut sheet)?;
    }
    if options.wants(Work::Fairness) && options.link.is_none() {
        fairness::run(options, &mut sheet)?;
    }
    if options.wants(Work::Delay) && options.link.is_none() {
        delay::run(options, &mut sheet)?;
    }
    if !options.json {
        print!("{}", table::render(&sheet.records));
    }
    Ok(sheet.records.iter().all(|record| record.error.is_none()))
}

/// What was measured so far.
pub(super) struct Sheet {
    json: bool,
    real_time: bool,
    records: Vec<Record>,
}

impl Sheet {
    /// Measures once, prints and keeps the record; a failure is a record too.
    pub(super) fn measure(
        &mut self,
        work: &str,
        peer: Peer,
        repeat: u32,
        once: impl FnOnce() -> Result<Record, Failure>,
    ) -> Record {
        let guard = LoadGuard::start().ok();
        let mut record = once().unwrap_or_else(|error| {
            let mut record = Record::new(work, peer.to_string(), repeat);
            record.error = Some(error.to_string());
            record
        });
        record.foreign_cpu = guard.and_then(|guard| guard.foreign_percent().ok().flatten());
        record = record.setting("peer", peers::settings(peer));
        if self.real_time {
            record = record.setting("ends", "real-time priority");
        }
        self.show(&record);
        self.records.push(record.clone());
        record
    }

    fn show(&self, record: &Record) {
        let mut out = std::io::stdout().lock();
        // Without a reader there is nobody to tell.
        if self.json {
            let _ = record.write_line(&mut out);
            let _ = out.flush();
        } else {
            eprintln!("links: {}", table::line(record));
        }
    }
}
