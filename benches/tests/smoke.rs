//! The whole comparison with tiny amounts: every work over every subject runs, verifies its bytes and is reported.

use std::collections::BTreeSet;
use std::process::Command;

use pilotage_benches::record::{Record, read_file};
use pilotage_benches::subject::Subject;
use pilotage_benches::work::Work;

#[test]
fn every_subject_does_every_work_and_is_in_the_report() {
    let folder = tempfile::tempdir().expect("folder");
    let records = folder.path().join("records.jsonl");
    let cores = if std::thread::available_parallelism().map_or(1, usize::from) > 1 { "1,0" } else { "0" };
    let run = Command::new(env!("CARGO_BIN_EXE_transfer"))
        .env_remove("PILOT_REF_BIN")
        .args(["--quick", "--size", "256KiB", "--round-trips", "20", "--fetches", "20", "--contacts", "2"])
        .args(["--idle", "12", "--cores", cores])
        .args(["--command", "the smoke test"])
        .arg("--records")
        .arg(&records)
        .arg("--write")
        .arg(folder.path())
        .output()
        .expect("run");
    let text = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success(), "{text}{}", String::from_utf8_lossy(&run.stderr));

    let records = read_file(&records).expect("records");
    let done: BTreeSet<(&str, &str)> =
        records.iter().map(|record| (record.work.as_str(), record.subject.as_str())).collect();
    for work in Work::all() {
        let here = |subject: &&Subject| work.suits(**subject) && **subject != Subject::Reference;
        for subject in Subject::all().iter().filter(here) {
            assert!(done.contains(&(work.name(), subject.name())), "{} {}", work.name(), subject.name());
        }
    }
    for record in &records {
        assert!(is_plausible(record), "{record:?}");
    }

    let results = std::fs::read_to_string(folder.path().join("RESULTS.md")).expect("RESULTS.md");
    assert!(results.contains("the smoke test"), "{results}");
    for number in ["1", "2", "3", "4", "7"] {
        assert!(results.contains(&format!("\n| {number} | ")), "goal {number}: {results}");
    }
    assert!(results.contains("stream window 32 MiB") && results.contains("blocking"), "{results}");
    assert!(folder.path().join("plots/bulk-1-goodput-gbps.svg").exists());
    assert!(folder.path().join("results.json").exists());
}

/// Something was measured, and no rate or time is zero (growth of memory may be, with so few).
fn is_plausible(record: &Record) -> bool {
    let may_be_zero = |name: &str| name.contains("bytes") || name.contains("cpu");
    !record.metrics.is_empty()
        && record.metrics.iter().all(|(name, value)| *value > 0.0 || (*value == 0.0 && may_be_zero(name)))
}
