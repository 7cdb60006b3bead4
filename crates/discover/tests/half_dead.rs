//! Half of the agents die at once: what is still found (spec/discovery.md §7).

#[path = "../examples/support/mod.rs"]
mod support;

use support::dead::measure;

#[test]
fn most_that_fits_and_lives_is_found() {
    let recall = measure(2_000, 60, 7);
    println!("{recall}");
    assert!(recall.mean() >= 0.98 && recall.p95() >= 0.95, "{:?}", &recall.at_10[..10]);
    // Also by what nobody can know before the deaths are noticed.
    assert!(recall.p95_by_living() >= 0.9, "{:?}", &recall.by_living[..10]);
}
