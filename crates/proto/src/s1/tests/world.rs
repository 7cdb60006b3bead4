//! The model of three nodes with real cryptography: every prefix, permutation, duplication and change of datagrams.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU32, Ordering};

use super::super::model::World;
use super::*;

/// Steps of the ordinary run, in worlds of 400.
const STEPS: u32 = 40_000;

fn run(seed: u64, steps: u32) -> [u64; 5] {
    let mut rng = ChaCha20Rng::seed_from_u64(seed);
    crate::audit::start();
    let mut sealed = Vec::new();
    let mut pairs = HashSet::new();
    let mut reached = [0; 5];
    for _ in 0..steps / 400 {
        let mut world = World::new(Instant::now());
        for _ in 0..400 {
            let [op, a, b, c] = rng.next_u32().to_le_bytes();
            world.step(op, a, b, c);
        }
        crate::audit::take(&mut sealed);
        for pair in sealed.drain(..) {
            assert!(pairs.insert((pair.key, pair.prefix, pair.counter)), "a key and nonce twice: {pair:?}");
        }
        let seen = [world.opened, world.ups, world.early, world.resets, world.upgraded];
        for (sum, more) in reached.iter_mut().zip(seen) {
            *sum += more;
        }
        // Worlds are made from the same seeds, so their keys come again: only one is compared at a time.
        pairs.clear();
    }
    reached
}

#[test]
fn any_order_of_datagrams_and_no_key_and_nonce_twice() {
    let [opened, ups, early, resets, upgraded] = run(1, STEPS);
    // The walk must have been everywhere.
    assert!(opened > 300 && ups > 100 && early > 20 && resets > 5, "{opened} {ups} {early} {resets}");
    assert!(upgraded > 5, "{upgraded}");
}

/// `S1_STEPS=100000000 cargo test --profile sim -p pilotage-proto --lib s1::tests::world -- --ignored --nocapture`: so many steps (rounded up to
/// whole parts), on all cores, each part from a seed of its own. 10⁸ take three quarters of an hour of one core.
#[test]
#[ignore = "as long as wanted"]
fn any_order_of_datagrams_for_long() {
    const PART: u32 = 1_000_000;
    let steps: u32 = std::option_env!("S1_STEPS").and_then(|n| n.parse().ok()).unwrap_or(PART);
    let parts = steps.div_ceil(PART);
    let (next, done) = (AtomicU32::new(0), AtomicU32::new(0));
    let walk = || {
        let mut sum = [0_u64; 5];
        loop {
            let part = next.fetch_add(1, Ordering::Relaxed);
            if part >= parts {
                return sum;
            }
            let reached = run(1_000 + u64::from(part), PART);
            sum.iter_mut().zip(reached).for_each(|(sum, more)| *sum += more);
            let done = done.fetch_add(1, Ordering::Relaxed) + 1;
            eprintln!(
                "{done} of {parts} million steps; this thread: opened, up, early, reset, upgraded {sum:?}"
            );
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(walk);
        }
    });
    assert_eq!(done.into_inner(), parts);
}

#[test]
fn after_any_trouble_all_find_each_other_again() {
    let mut rng = ChaCha20Rng::from_seed([9; 32]);
    for _ in 0..20 {
        let mut world = World::new(Instant::now());
        for _ in 0..200 {
            let [op, a, b, c] = rng.next_u32().to_le_bytes();
            world.step(op, a, b, c);
        }
        world.settle();
        // Time passes, all old sessions end; then everybody calls everybody.
        for _ in 0..400 {
            world.step(13, 255, 63, 0);
            world.settle();
        }
        for from in 0..3 {
            for to in 0..3 {
                for _ in 0..4 {
                    world.step(2, from, to, 0);
                    world.settle();
                    world.step(13, 255, 5, 0);
                    world.settle();
                }
                assert!(from == to || world.is_up(from.into(), to.into()), "{from} has no session with {to}");
            }
        }
    }
}
