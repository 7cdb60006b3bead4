//! Per received segment: the replay window, and reassembly in order, with one gap, and under attack.

use std::hint::black_box;

use pilotage_proto::assembler::{Assembler, MAX_RANGES};
use pilotage_proto::replay::ReplayWindow;

use super::{List, MANY};

const SEGMENT: usize = 1_382;
/// Segments between two reads, as one batch of the kernel brings them.
const BATCH: u64 = 32;

pub(super) fn add(list: &mut List) {
    replay(list);
    in_order(list);
    list.add("assembler/the first of 32 comes last", BATCH, SEGMENT as u64, || {
        let (data, mut out) = (vec![7; SEGMENT], vec![0; SEGMENT * BATCH as usize]);
        let (mut assembler, mut offset) = (Assembler::new(4 << 20), 0);
        move || {
            for i in (1..BATCH).chain([0]) {
                black_box(assembler.insert(offset + i * SEGMENT as u64, &data));
            }
            offset += BATCH * SEGMENT as u64;
            black_box(assembler.read(&mut out));
        }
    });
    under_attack(list);
}

fn replay(list: &mut List) {
    for (name, step, flip) in [
        ("in order", 1, 0),
        ("with gaps", 100, 0),
        ("the window jumps", 10_000, 0),
        ("neighbours swapped", 1, 1),
    ] {
        list.add(format!("replay/{name}"), MANY, 0, move || {
            let (mut window, mut counter) = (<ReplayWindow>::new(), 1_u64);
            move || {
                for _ in 0..MANY {
                    counter += step;
                    black_box(window.check(black_box(counter ^ flip)) && window.mark(counter ^ flip));
                }
            }
        });
    }
    list.add("replay/duplicate", MANY, 0, || {
        let mut window = <ReplayWindow>::new();
        window.mark(1 << 20);
        move || {
            for _ in 0..MANY {
                black_box(window.check(black_box(1 << 20)));
            }
        }
    });
}

fn in_order(list: &mut List) {
    for size in [64, SEGMENT, 8_900] {
        list.add(format!("assembler/in order, 32 and one read/{size}"), BATCH, size as u64, move || {
            let (data, mut out) = (vec![7; size], vec![0; size * BATCH as usize]);
            let (mut assembler, mut offset) = (Assembler::new(4 << 20), 0);
            move || {
                for _ in 0..BATCH {
                    black_box(assembler.insert(offset, &data));
                    offset += size as u64;
                }
                black_box(assembler.read(&mut out));
            }
        });
    }
}

/// One byte in every two, as many gaps as are allowed.
fn full_of_gaps() -> Assembler {
    let mut assembler = Assembler::new(4 << 20);
    for i in 1..=MAX_RANGES as u64 {
        assembler.insert(i * 2, &[1]);
    }
    assembler
}

fn under_attack(list: &mut List) {
    const BEYOND: u64 = MAX_RANGES as u64 * 2 + 2;
    list.add("assembler/one gap too many", MANY, 1, || {
        let mut assembler = full_of_gaps();
        move || {
            for _ in 0..MANY {
                black_box(assembler.insert(black_box(BEYOND), &[1]));
            }
        }
    });
    list.add("assembler/the first of 512 gaps is filled, one opened", 1, 1, || {
        let (mut assembler, mut at, mut end, mut byte) = (full_of_gaps(), 0, BEYOND, [0]);
        move || {
            black_box(assembler.insert(at, &[1, 1]));
            black_box(assembler.insert(end, &[1]));
            assembler.read(&mut byte);
            assembler.read(&mut byte);
            at += 2;
            end += 2;
        }
    });
}
