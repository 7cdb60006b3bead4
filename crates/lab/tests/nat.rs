//! The self-test of NATs, where this machine and user permit it.

use pilotage_lab::LabError;
use pilotage_lab::nat::{NatKind, selftest};

#[test]
fn every_kind_is_what_its_name_says() {
    match selftest::run(&NatKind::ALL, &|finding| eprintln!("{finding}")) {
        Ok(findings) => {
            assert_eq!(findings.len(), NatKind::ALL.len());
            let wrong: Vec<_> =
                findings.iter().filter(|finding| !finding.passed).map(|one| one.kind.name()).collect();
            assert!(wrong.is_empty(), "not what they are called: {}", wrong.join(", "));
        }
        Err(LabError::Unavailable(reason)) => eprintln!("SKIPPED: no laboratory here: {reason}"),
        Err(error) => panic!("{error}"),
    }
}
