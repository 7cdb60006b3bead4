//! Named fault points: places where a test may let something go wrong that bad luck could cause as well.
//!
//! `if fault::point!("nat.beacon.lose_answer") { return; }` is the constant `false` wherever the calling crate is
//! compiled without debug assertions, so release builds hold neither the branch nor the name. With debug assertions
//! (the profiles `dev` and `sim`) a point fires only in a thread that has called [`install`].
//!
//! # Contract for those who place a point
//!
//! A fault point never makes the code do something wrong. It does what the environment or an unlucky peer could do at
//! this place: lose an answer, fill a queue, refuse a write, begin a re-key early. Everything above it must recover.
//!
//! # Contract for those who install a plan
//!
//! A plan is deterministic: seed and sequence of calls decide what fires. As in FoundationDB's BUGGIFY each point is
//! switched on for a whole run or not at all, so that runs differ in kind and not only in degree.
//!
//! ```
//! pilotage_fault::install(7, 500);
//! let fired = (0..1000).filter(|_| pilotage_fault::point!("example.area.what")).count();
//! let report = pilotage_fault::report();
//! assert_eq!(report["example.area.what"].fired as usize, fired);
//! pilotage_fault::clear();
//! assert!(!pilotage_fault::point!("example.area.what"));
//! ```

use std::cell::RefCell;
use std::collections::BTreeMap;

/// Most names that one thread counts; a point beyond it never fires.
const NAMES_MAX: usize = 1_024;

/// Whether the named fault point fires here and now. Constant `false` without debug assertions.
#[macro_export]
macro_rules! point {
    ($name:literal) => {
        ::core::cfg!(debug_assertions) && $crate::fire($name)
    };
}

/// How often a point was passed, and how often it fired.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Times that the code came by while a plan was installed.
    pub reached: u64,
    /// Times that it fired.
    pub fired: u64,
}

/// A plan in force.
struct Plan {
    state: u64,
    seed: u64,
    per_mille: u32,
}

thread_local! {
    static PLAN: RefCell<Option<Plan>> = const { RefCell::new(None) };
    static COUNTS: RefCell<BTreeMap<&'static str, Count>> = const { RefCell::new(BTreeMap::new()) };
}

/// Lets the points of this thread fire from now on: each point is switched on with one chance in three, and fires with
/// `per_mille` chances in 1,000 while it is. Counts go on from where they were.
pub fn install(seed: u64, per_mille: u32) {
    PLAN.with_borrow_mut(|plan| *plan = Some(Plan { state: mix(seed), seed, per_mille }));
}

/// Ends the plan of this thread; nothing fires any more. Counts stay.
pub fn clear() {
    PLAN.with_borrow_mut(|plan| *plan = None);
}

/// All points that this thread passed under a plan, by name.
#[must_use]
pub fn report() -> BTreeMap<&'static str, Count> {
    COUNTS.with_borrow(Clone::clone)
}

/// Forgets the counts of this thread.
pub fn reset_report() {
    COUNTS.with_borrow_mut(BTreeMap::clear);
}

/// Decides about one pass; called by [`point!`] only.
#[doc(hidden)]
#[must_use]
pub fn fire(name: &'static str) -> bool {
    let decided = PLAN.with_borrow_mut(|plan| {
        let plan = plan.as_mut()?;
        if !mix(plan.seed ^ hash(name)).is_multiple_of(3) {
            return Some(false);
        }
        plan.state = plan.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        Some(mix(plan.state) % 1_000 < u64::from(plan.per_mille))
    });
    let Some(fires) = decided else { return false };
    COUNTS.with_borrow_mut(|counts| {
        if counts.len() >= NAMES_MAX && !counts.contains_key(name) {
            return false;
        }
        let count = counts.entry(name).or_default();
        count.reached += 1;
        count.fired += u64::from(fires);
        fires
    })
}

/// SplitMix64's output function (Steele, Lea, Flood 2014): not for anything secret.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// FNV-1a over the name: the same on every machine.
fn hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fired(seed: u64) -> Vec<bool> {
        install(seed, 300);
        let out = (0..50).map(|_| point!("test.same")).collect();
        clear();
        out
    }

    #[test]
    fn nothing_fires_without_a_plan() {
        clear();
        reset_report();
        assert!(!(0..1000).any(|_| point!("test.none")));
        assert!(report().is_empty());
    }

    #[test]
    fn the_same_seed_fires_the_same_and_seeds_differ() {
        assert_eq!(fired(1), fired(1));
        let different: std::collections::BTreeSet<_> = (0..20).map(fired).collect();
        assert!(different.len() > 3, "{different:?}");
        // Some seeds switch the point off altogether.
        assert!((0..20).any(|seed| fired(seed).iter().all(|f| !f)));
    }

    #[test]
    fn passes_and_firings_are_counted() {
        reset_report();
        let total: usize = (0..20).map(|seed| fired(seed).iter().filter(|f| **f).count()).sum();
        let count = report()["test.same"];
        assert_eq!(count.reached, 20 * 50);
        assert_eq!(count.fired as usize, total);
        assert!(total > 0);
    }
}
