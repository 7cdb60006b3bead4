//! The self-test and the life of namespaces, where this machine and user permit it.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use pilotage_lab::selftest::{self, Extent};
use pilotage_lab::{Lab, LabConfig, LabError, LinkConfig};

/// A lab, or nothing and a loud word why not.
fn lab(link: &LinkConfig) -> Option<Lab> {
    match Lab::pair(link, &LabConfig::default()) {
        Ok(lab) => Some(lab),
        Err(LabError::Unavailable(reason)) => {
            eprintln!("SKIPPED: no laboratory here: {reason}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn round_trips_losses_and_rates_are_those_that_were_set() {
    // A machine that is busy at the wrong moment gets a second chance, and a third.
    for attempt in 1..=3 {
        match selftest::run(Extent::Quick, &mut |line| eprintln!("{line}")) {
            Ok(report) if report.passed() && report.trusted_mbit >= 100 => return,
            Ok(report) => eprintln!("attempt {attempt}: trusted up to {} Mbit/s", report.trusted_mbit),
            Err(LabError::Unavailable(reason)) => return eprintln!("SKIPPED: no laboratory here: {reason}"),
            Err(error) => panic!("{error}"),
        }
    }
    panic!("the self-test failed three times");
}

#[test]
fn programs_run_inside_and_nothing_is_left_behind() {
    let Some(lab) = lab(&LinkConfig::new(50_000_000, Duration::from_millis(1))) else { return };
    let names: Vec<String> = (0..2).map(|index| lab.namespace(index).name().to_owned()).collect();
    let shown = lab.namespace(1).command("ip").args(["-brief", "address"]).stderr(Stdio::inherit()).output();
    let shown = String::from_utf8(shown.expect("ip").stdout).expect("text");
    assert!(shown.contains("10.77.0.2/24"), "{shown}");
    assert_eq!(lab.link(0).rate, Some(50_000_000));
    lab.set_link(0, LinkConfig { rate: Some(1_000_000), ..lab.link(0) });
    assert_eq!(lab.link(0).rate, Some(1_000_000));
    assert!(names.iter().all(|name| Path::new("/run/netns").join(name).exists()));
    drop(lab);
    assert!(names.iter().all(|name| !Path::new("/run/netns").join(name).exists()));
}
