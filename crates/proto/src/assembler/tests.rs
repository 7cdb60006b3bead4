//! Behaviour by name, then everything against a vector of optional bytes.

use proptest::prelude::*;

use super::*;

/// The byte that belongs at an offset.
fn byte(offset: u64) -> u8 {
    (offset % 251) as u8
}

fn bytes(range: Range<u64>) -> Vec<u8> {
    range.map(byte).collect()
}

fn insert(a: &mut Assembler, range: Range<u64>) -> Inserted {
    a.insert(range.start, &bytes(range))
}

fn read_all(a: &mut Assembler) -> Vec<u8> {
    let mut out = vec![0; a.readable()];
    let len = a.read(&mut out);
    assert_eq!(len, out.len());
    out
}

fn sacks(a: &Assembler) -> Vec<(u64, u64)> {
    let mut out = [(0, 0); MAX_BLOCKS];
    let len = a.sack_blocks(&mut out);
    out[..len].to_vec()
}

#[test]
fn in_order_data_is_readable_at_once() {
    let mut a = Assembler::new(1000);
    assert_eq!(insert(&mut a, 0..100), Inserted { advanced: true, new_bytes: 100, ..Inserted::default() });
    assert_eq!((a.next(), a.readable(), a.window(), a.window_end()), (100, 100, 900, 1000));
    assert_eq!(read_all(&mut a), bytes(0..100));
    assert_eq!((a.readable(), a.window(), a.window_end()), (0, 1000, 1100));
}

#[test]
fn a_gap_holds_back_what_follows_until_it_is_filled() {
    let mut a = Assembler::new(1000);
    let beyond = insert(&mut a, 50..100);
    assert_eq!(beyond, Inserted { out_of_order: true, new_bytes: 50, ..Inserted::default() });
    assert_eq!((a.readable(), a.has_holes(), a.window()), (0, true, 1000));
    assert_eq!(insert(&mut a, 0..50), Inserted { advanced: true, new_bytes: 50, ..Inserted::default() });
    assert_eq!((a.next(), a.has_holes()), (100, false));
    assert_eq!(read_all(&mut a), bytes(0..100));
}

#[test]
fn a_repeated_segment_is_a_duplicate_whether_read_or_not() {
    let mut a = Assembler::new(1000);
    insert(&mut a, 0..100);
    insert(&mut a, 200..300);
    for range in [0..100, 20..40, 200..300, 250..260] {
        let result = insert(&mut a, range);
        assert!(result.duplicate && result.out_of_order && !result.refused && result.new_bytes == 0);
    }
    read_all(&mut a);
    assert!(insert(&mut a, 0..100).duplicate);
    assert!(a.insert(400, b"").duplicate);
}

#[test]
fn the_first_copy_of_a_byte_wins() {
    let mut a = Assembler::new(1000);
    a.insert(2, b"CD");
    a.insert(6, b"GH");
    let result = a.insert(0, b"abcdefghij");
    assert_eq!((result.new_bytes, result.advanced), (6, true));
    a.insert(5, b"xxxxxyz");
    assert_eq!(read_all(&mut a), b"abCDefGHijyz");
}

#[test]
fn what_exceeds_the_window_is_cut_off_and_what_is_beyond_it_refused() {
    let mut a = Assembler::new(100);
    assert_eq!(insert(&mut a, 0..150).new_bytes, 100);
    assert_eq!((a.next(), a.window()), (100, 0));
    assert!(insert(&mut a, 100..101).refused);
    assert!(a.insert(u64::MAX - 1, b"ab").refused);
    assert!(a.insert(u64::MAX, b"ab").refused);
    let mut out = [0; 30];
    a.read(&mut out);
    let beyond = insert(&mut a, 120..200);
    assert_eq!((beyond.new_bytes, beyond.out_of_order), (10, true));
}

#[test]
fn a_lower_bound_takes_nothing_back() {
    let mut a = Assembler::new(1000);
    insert(&mut a, 0..100);
    insert(&mut a, 500..600);
    a.set_max(50);
    // 600 bytes are held in place; that much remains the bound.
    assert_eq!((a.window(), a.window_end()), (500, 600));
    insert(&mut a, 100..500);
    assert_eq!(read_all(&mut a), bytes(0..600));
    a.set_max(50);
    assert_eq!((a.window(), a.window_end()), (50, 650));
    a.set_max(5000);
    assert_eq!(a.window(), 5000);
}

#[test]
fn the_newest_block_is_reported_first_and_the_lowest_fill_up() {
    let mut a = Assembler::new(10_000);
    assert_eq!(sacks(&a), []);
    for start in [100, 300, 500, 700, 900, 1100] {
        insert(&mut a, start..start + 100);
    }
    assert_eq!(sacks(&a), [(1100, 1200), (900, 1000), (700, 800), (500, 600)]);
    // A block that changes moves to the front, merged with its neighbour.
    insert(&mut a, 400..500);
    assert_eq!(sacks(&a), [(300, 600), (1100, 1200), (900, 1000), (700, 800)]);
    insert(&mut a, 0..1000);
    assert_eq!(sacks(&a), [(1100, 1200)]);
    insert(&mut a, 1000..1100);
    assert_eq!((sacks(&a), a.has_holes()), (vec![], false));
    // Only one changed since the gaps were gone: the others follow from below.
    for start in [3000, 2800, 2600, 2400, 2200] {
        insert(&mut a, start..start + 100);
    }
    insert(&mut a, 2250..2350);
    assert_eq!(sacks(&a)[0], (2200, 2350));
}

#[test]
fn every_block_is_reported_when_an_ack_is_sent_at_each_fourth_change() {
    let mut a = Assembler::new(100_000);
    let mut reported = std::collections::BTreeSet::new();
    for i in 1..=200u64 {
        insert(&mut a, i * 100..i * 100 + 50);
        if a.unreported() >= MAX_BLOCKS {
            reported.extend(sacks(&a));
            a.mark_reported();
        }
    }
    assert_eq!(reported.len(), 200);
    // A block that merely grows is one change.
    for i in 0..10 {
        insert(&mut a, 50_000 + i * 10..50_010 + i * 10);
    }
    assert_eq!(a.unreported(), 1);
}

#[test]
fn one_gap_too_many_is_refused_but_gaps_can_still_be_filled() {
    let mut a = Assembler::new(1 << 20);
    for i in 1..=MAX_RANGES as u64 {
        assert!(!insert(&mut a, i * 2..i * 2 + 1).refused);
    }
    let last = 2 * MAX_RANGES as u64 + 2;
    let refused = insert(&mut a, last..last + 1);
    assert_eq!(refused, Inserted { refused: true, out_of_order: true, ..Inserted::default() });
    // Touching what is there opens no gap.
    assert_eq!(insert(&mut a, last - 1..last + 1).new_bytes, 2);
    assert_eq!(a.holes(), MAX_RANGES);
    assert_eq!(insert(&mut a, 0..3).new_bytes, 2);
    assert_eq!(a.holes(), MAX_RANGES - 1);
    assert!(!insert(&mut a, last + 10..last + 11).refused);
    insert(&mut a, 3..last + 10);
    assert_eq!(read_all(&mut a), bytes(0..last + 11));
}

#[test]
fn a_hundred_thousand_one_byte_gaps_cost_no_more_than_the_window() {
    const WINDOW: usize = 1 << 18;
    let mut a = Assembler::new(WINDOW);
    let mut accepted = 0;
    for i in 1..=100_000u64 {
        // Descending, which is the worst order for a list.
        let at = 200_002 - 2 * i;
        accepted += insert(&mut a, at..at + 1).new_bytes;
    }
    assert_eq!((accepted, a.holes()), (MAX_RANGES, MAX_RANGES));
    assert!(a.ring.capacity() <= WINDOW && a.ranges.capacity() <= 2 * MAX_RANGES);
    // The stream goes on as if nothing had been.
    insert(&mut a, 0..200_010);
    assert_eq!(read_all(&mut a), bytes(0..200_010));
}

#[test]
fn release_gives_memory_back_when_all_is_read() {
    let mut a = Assembler::new(1 << 20);
    insert(&mut a, 0..100_000);
    a.release();
    assert!(a.ring.capacity() > 0);
    read_all(&mut a);
    a.release();
    assert_eq!(a.ring.capacity(), 0);
    insert(&mut a, 100_000..100_010);
    assert_eq!(read_all(&mut a), bytes(100_000..100_010));
}

#[test]
fn peek_and_consume_read_without_a_copy() {
    let mut a = Assembler::new(1 << 20);
    insert(&mut a, 0..100);
    let (x, y) = a.peek();
    assert_eq!([x, y].concat(), bytes(0..100));
    a.consume(60);
    assert_eq!(read_all(&mut a), bytes(60..100));
    a.consume(1000);
    assert_eq!(a.next(), 100);
}

proptest! {
    #[test]
    fn behaves_like_a_vector_of_optional_bytes(
        ops in prop::collection::vec((0u64..600, 0u64..200, 0u8..6, any::<u8>()), 1..120),
    ) {
        const MAX: usize = 500;
        let mut a = Assembler::new(MAX);
        let mut model: Vec<Option<u8>> = vec![None; 100_000];
        let (mut base, mut next) = (0usize, 0usize);
        for (back, len, kind, fill) in ops {
            if kind == 0 {
                let mut out = vec![0; len as usize];
                let got = a.read(&mut out);
                prop_assert_eq!(got, (next - base).min(len as usize));
                let expected: Vec<u8> = model[base..base + got].iter().map(|b| b.unwrap()).collect();
                prop_assert_eq!(&out[..got], &expected[..]);
                base += got;
            } else {
                // Somewhere around the window: a bit below `next` up to a bit beyond its end. The content differs each
                // time, so that the first copy of a byte is told from the second.
                let start = (next + back as usize).saturating_sub(80);
                let data = vec![fill; len as usize];
                let result = a.insert(start as u64, &data);
                let (mut new_bytes, mut inside) = (0, false);
                for (i, place) in model.iter_mut().enumerate().skip(start).take(len as usize) {
                    inside |= i < base + MAX;
                    if i >= next && i < base + MAX && place.is_none() {
                        *place = Some(fill);
                        new_bytes += 1;
                    }
                }
                let old_next = next;
                while model[next].is_some() {
                    next += 1;
                }
                prop_assert_eq!(result.new_bytes, new_bytes);
                prop_assert_eq!(result.advanced, next > old_next);
                prop_assert_eq!(result.refused, len > 0 && !inside);
                prop_assert_eq!(result.duplicate, new_bytes == 0 && !result.refused);
                prop_assert_eq!(result.out_of_order, model[next..].iter().any(Option::is_some));
            }
            prop_assert_eq!((a.next(), a.readable()), (next as u64, next - base));
            prop_assert_eq!(a.window(), base + MAX - next);
            // The ranges are the runs of the model, and the SACK blocks are among them, without repetition.
            let mut runs = Vec::new();
            let mut i = next;
            while i < base + MAX + 1 {
                let from = i;
                while model[i].is_some() {
                    i += 1;
                }
                if i > from {
                    runs.push((from as u64, i as u64));
                }
                i += 1;
            }
            let ranges: Vec<_> = a.ranges.iter().map(|r| (r.start, r.end)).collect();
            prop_assert_eq!(&ranges, &runs);
            let mut blocks = sacks(&a);
            prop_assert_eq!(blocks.len(), runs.len().min(MAX_BLOCKS));
            blocks.sort_unstable();
            blocks.dedup();
            prop_assert_eq!(blocks.len(), runs.len().min(MAX_BLOCKS));
            prop_assert!(blocks.iter().all(|b| runs.contains(b)));
        }
    }
}
