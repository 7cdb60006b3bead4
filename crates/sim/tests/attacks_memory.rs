//! How much memory an authenticated peer can make the endpoint take. A file of its own: it measures the whole process.

mod attacks_common;

use attacks_common::ms;
use pilotage_proto::Config;
use pilotage_sim::rogue::{Arena, Rogue};

/// Memory of this process that is in use, in bytes, where the platform tells.
fn resident() -> Option<usize> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: usize = statm.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * 4_096)
}

/// First one connection with 10^6 holes over its whole window, then many connections with a few bytes each, placed so
/// that their buffers grow as far as they can.
#[test]
fn holes_take_no_more_memory_than_the_bounds_say() {
    let cfg = Config { receive_memory: 64 << 20, ..Config::default() };
    let window = cfg.recv_buffer;
    let cap = cfg.receive_memory;
    let mut arena = Arena::with_config(1, cfg);
    let mut rogue = Rogue::introduced(&mut arena, 1);
    assert!(rogue.shake_hands(&mut arena));
    let stream = rogue.connect(&mut arena, 80).expect("connects");
    let mut many = Vec::new();
    for _ in 0..60 {
        many.push(rogue.connect(&mut arena, 81).expect("connects"));
    }
    arena.keep = false;
    rogue.received.clear();
    let Some(before) = resident() else { return };
    for i in 0..1_000_000usize {
        let at = (1 + i * 1_048_583) % (window - 1); // all over the window
        rogue.hit(&mut arena, &stream.data(at as u64), &[1]);
        if i % 1_000 == 0 {
            arena.run_for(ms(1));
        }
    }
    let one = resident().unwrap_or(before).saturating_sub(before);
    assert!(one <= 2 * window, "{one} bytes for one connection with holes");
    for shift in 10..24 {
        for stream in &many {
            rogue.hit(&mut arena, &stream.data((1 << shift) - 8), &[1]);
        }
        arena.run_for(ms(1));
    }
    let all = resident().unwrap_or(before).saturating_sub(before);
    println!("10^6 holes: {one} bytes; 60 connections with 14 bytes each: {all} bytes");
    // What is held, and what the simulator itself keeps.
    assert!(all <= cap + 2 * window + (8 << 20), "{all} bytes with a bound of {cap}");
    // Readers that read are served all the same.
    let last = &many[0];
    for i in 0..200 {
        rogue.hit(&mut arena, &last.data(1_000 * i), &[7; 1_000]);
        arena.run_for(ms(1));
    }
    assert!(arena.read_all(last.at_target()).len() >= 64 * 1024);
}
