//! Streams in turn.

use std::collections::HashMap;

use super::super::packing::TURN;
use super::*;

/// The streams that begin the packets that may leave now, each with the bytes of those packets, in order.
fn batch(pair: &mut Pair) -> Vec<(u64, usize)> {
    pair.seen = Some(Vec::new());
    pair.flush();
    let mut turns: Vec<(u64, usize)> = Vec::new();
    for (side, frames) in pair.seen.take().unwrap_or_default() {
        let first = Frames::new(&frames).flatten().find_map(|frame| match frame {
            Frame::Stream(piece) => Some(piece.id),
            _ => None,
        });
        let Some(id) = first.filter(|_| side == 0) else { continue };
        match turns.last_mut() {
            Some((last, bytes)) if *last == id => *bytes += frames.len(),
            _ => turns.push((id, frames.len())),
        }
    }
    turns
}

#[test]
fn a_stream_keeps_its_turn_within_a_batch_and_no_longer() {
    const STREAMS: usize = 5;
    // 10 ms at 8 Mbyte/s and more: batches of many packets once the window is open.
    let mut pair = Pair::new(5, CLEAN);
    transfer(&mut pair, &pattern(8 << 20, 1));
    let now = pair.now;
    let slots = [(); STREAMS].map(|()| pair.ends[0].open(now, 7));
    let data = pattern(6 << 20, 2);
    let mut at = [0; STREAMS];
    let (mut batches, mut whole, mut last) = (0, 0, None);
    let mut sent = HashMap::new();
    for _ in 0..2_000 {
        for (slot, at) in slots.iter().zip(&mut at) {
            if let Ok(n) = pair.ends[0].mux.write(*slot, &data[*at..]) {
                *at += n;
            }
        }
        let turns = batch(&mut pair);
        if let (Some((first, _)), Some((end, _))) = (turns.first(), turns.last()) {
            assert!(last != Some(*first), "{first} had the last turn of the batch before");
            last = Some(*end);
            batches += 1;
        }
        for (id, bytes) in &turns {
            assert!(*bytes < TURN + ROOM, "{bytes} bytes in one turn");
            whole += usize::from(*bytes >= TURN);
            *sent.entry(*id).or_insert(0) += *bytes;
        }
        let (most, least) = (sent.values().max(), sent.values().min());
        if at.contains(&data.len()) {
            break;
        }
        // Whoever is in the middle of the last round has had a turn more, or the two ends of two batches.
        assert!(sent.len() < STREAMS || most.zip(least).is_some_and(|(m, l)| m - l <= 3 * TURN), "{sent:?}");
        let now = pair.now;
        for far in pair.ends[1].incoming.clone() {
            pair.ends[1].drain(now, far, &mut Vec::new());
        }
        pair.step();
    }
    assert!(batches > 10 && whole > 10 && sent.len() == STREAMS, "{batches} {whole} {sent:?}");
    assert!(pair.errors.is_empty());
}
