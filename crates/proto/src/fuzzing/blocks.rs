//! Single data structures against models of a few lines.

use std::collections::BTreeSet;
use std::time::Instant;

use super::{Input, check, fill};
use crate::assembler::{Assembler, MAX_BLOCKS, MAX_RANGES};
use crate::replay::ReplayWindow;
use crate::scoreboard::model::{Op, Pair};
use crate::send_buffer::SendBuffer;

/// Operations that one execution does at most.
const OPS: usize = 400;

/// Reassembly against a bitmap: what is readable, what is new, which ranges are reported, and every byte's value,
/// where the first copy wins.
pub fn assembler(_base: Instant, data: &[u8]) {
    let mut input = Input::new(data);
    let max = [16, 100, 300, 700][input.below(4)];
    let mut assembler = Assembler::new(max);
    // Per offset: which story of it was taken.
    let mut taken: Vec<Option<u8>> = Vec::new();
    let mut read = 0usize;
    let mut buf = [0u8; 1_000];
    for _ in 0..OPS {
        let Some(op) = input.op() else { break };
        match op % 8 {
            0..=4 => {
                let next = assembler.next() as i64;
                let at = if op % 8 == 4 { input.u64() } else { (next + input.delta()).max(0) as u64 };
                let len = input.len(1_000);
                let story = op / 8 % 3;
                fill(u64::from(story), at, &mut buf[..len]);
                let window_end = assembler.window_end();
                let before = (assembler.next(), assembler.held());
                let inserted = assembler.insert(at, &buf[..len]);
                if inserted.refused {
                    assert!(at >= window_end || assembler.holes() == MAX_RANGES, "refused inside the window");
                    assert_eq!(before, (assembler.next(), assembler.held()));
                } else {
                    let end = at.saturating_add(len as u64).min(window_end) as usize;
                    taken.resize(taken.len().max(end), None);
                    let start = (at as usize).max(read).min(end);
                    let new = taken[start..end].iter_mut().filter(|t| t.is_none());
                    let new = new.map(|t| *t = Some(story)).count();
                    assert_eq!(new, inserted.new_bytes);
                }
            }
            5 => {
                let len = input.len(1_000);
                let n = assembler.read(&mut buf[..len]);
                for (i, byte) in buf[..n].iter().enumerate() {
                    let story = taken[read + i].expect("read what was received");
                    check(u64::from(story), (read + i) as u64, &[*byte]);
                }
                read += n;
            }
            6 => {
                let len = input.len(4_096).min(assembler.readable());
                assembler.consume(len);
                read += len;
                assembler.release();
            }
            _ => {
                check_blocks(&assembler, &taken);
                assembler.mark_reported();
            }
        }
        let next = taken[read..].iter().position(Option::is_none).map_or(taken.len(), |at| read + at);
        assert_eq!(assembler.next(), next as u64);
        assert_eq!(assembler.readable(), next - read);
        let held = taken[read..].iter().flatten().count();
        assert_eq!(assembler.held(), held);
        assert_eq!(assembler.has_holes(), held > next - read);
        assert!(held <= max && assembler.holes() <= MAX_RANGES, "bounded");
    }
}

fn check_blocks(assembler: &Assembler, taken: &[Option<u8>]) {
    let mut blocks = [(0, 0); MAX_BLOCKS];
    let count = assembler.sack_blocks(&mut blocks);
    assert_eq!(count > 0, assembler.has_holes());
    for (i, &(start, end)) in blocks[..count].iter().enumerate() {
        assert!(start < end && start > assembler.next());
        let (start, end) = (start as usize, end as usize);
        assert!(taken[start..end].iter().all(Option::is_some), "a block of received bytes");
        assert!(taken[start - 1].is_none() && taken.get(end).is_none_or(Option::is_none), "a whole range");
        assert!(!blocks[..i].iter().any(|b| b.0 == start as u64), "no block twice");
    }
}

/// The send buffer against a vector: bounds, positions and every byte that can be sent again.
pub fn send_buffer(_base: Instant, data: &[u8]) {
    let mut input = Input::new(data);
    let mut max = input.len(8_192).max(1);
    let mut buffer = SendBuffer::new(max);
    let (mut acked, mut sent, mut end) = (0u64, 0u64, 0u64);
    let mut buf = [0u8; 4_096];
    for _ in 0..OPS {
        let Some(op) = input.op() else { break };
        match op % 6 {
            0 | 1 => {
                let len = input.len(4_096);
                fill(1, end, &mut buf[..len]);
                let room = max.saturating_sub((end - acked) as usize);
                let taken = buffer.write(&buf[..len]);
                assert_eq!(taken, len.min(room));
                end += taken as u64;
            }
            2 => {
                let to = acked + input.len(8_192) as u64;
                buffer.mark_sent(to);
                sent = sent.max(to.min(end));
            }
            3 => {
                let to = acked + input.len(8_192) as u64;
                buffer.on_acked(to);
                acked = to.min(end).max(acked);
                sent = sent.max(acked);
            }
            4 => {
                let start = acked + (input.len(8_192) as u64).min(end - acked);
                let len = (end - start).min(input.len(4_096) as u64);
                buffer.copy_to(start..start + len, &mut buf);
                check(1, start, &buf[..len as usize]);
                // Also what is not held in full: cut, never wrong.
                let (a, b) = buffer.slices(start.saturating_sub(9)..end + 9);
                assert_eq!((a.len() + b.len()) as u64, end - start.saturating_sub(9).max(acked));
            }
            _ => {
                max = input.len(8_192).max(1);
                buffer.set_max(max);
                max = max.max((end - acked) as usize);
                buffer.release();
            }
        }
        assert_eq!((buffer.acked(), buffer.next(), buffer.end()), (acked, sent, end));
        assert_eq!(buffer.free(), max.saturating_sub((end - acked) as usize));
        assert_eq!((buffer.unsent(), buffer.is_empty()), (end - sent, acked == end));
    }
}

/// The replay window against the set of all counters ever marked: none is accepted twice, none refused without cause.
pub fn replay(_base: Instant, data: &[u8]) {
    let mut input = Input::new(data);
    let mut window = ReplayWindow::<5>::new();
    let width = ReplayWindow::<5>::WIDTH;
    let mut marked = BTreeSet::new();
    for _ in 0..OPS {
        let Some(op) = input.op() else { break };
        let highest = marked.last().copied().unwrap_or(0u64);
        let counter = match op % 4 {
            0 => highest.wrapping_add(u64::from(op / 4)),
            1 => highest.saturating_sub(u64::from(input.u16()) % (2 * width)),
            2 => highest.saturating_add(1 << (op / 4)),
            _ => input.u64(),
        };
        let behind = marked.last().is_some_and(|h| *h >= counter && *h - counter >= width);
        let expected = !behind && !marked.contains(&counter);
        assert_eq!(window.check(counter), expected);
        if op & 0x80 == 0 {
            assert_eq!(window.mark(counter), expected);
            if expected {
                marked.insert(counter);
            }
        }
        assert_eq!(window.highest(), marked.last().copied());
    }
}

/// The scoreboard against the model of its unit tests, which looks at every segment and byte for everything.
pub fn scoreboard(base: Instant, data: &[u8]) {
    let mut input = Input::new(data);
    let mut pair = Pair::new(base);
    for _ in 0..OPS / 2 {
        let Some(op) = input.op() else { break };
        pair.apply(match op % 8 {
            0 => Op::Send { len: u64::from(op / 8) + 1, app_limited: input.u8() & 1 == 1 },
            1 | 2 => {
                let cumulative = if op & 0x20 == 0 { 0 } else { thousandths(&mut input) };
                let blocks = (0..op >> 6).map(|_| {
                    let from = thousandths(&mut input);
                    (from, from + u64::from(input.u8()))
                });
                Op::Ack { cumulative, blocks: blocks.collect(), whole: op & 0x18 != 0 }
            }
            3 => Op::Wait { us: input.time().as_micros() as u64 % 20_000_000 },
            4 => Op::Retransmit { count: usize::from(op / 8 % 6) + 1 },
            5 if op & 0x80 != 0 => Op::Overdue { ago_us: u64::from(input.u16()) },
            5 => Op::Timer,
            6 => {
                Op::Split { segment: thousandths(&mut input).min(999), at: thousandths(&mut input).min(999) }
            }
            _ if op & 0x40 == 0 => Op::Probe,
            _ if op & 0x80 == 0 => Op::Rto,
            _ => Op::Told { up_to: thousandths(&mut input) },
        });
    }
    pair.finish();
}

/// A position in what is outstanding, a little beyond its end at most.
fn thousandths(input: &mut Input<'_>) -> u64 {
    u64::from(input.u8()) * 4
}
