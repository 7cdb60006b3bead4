//! Random inputs for one target on a stable compiler, without guidance: for machines without a nightly toolchain, and for
//! counts of steps. Run in `fuzz/`: `cargo run --release --no-default-features --example walk -- s1 60 160 1`: target, seconds,
//! bytes of an input, where the generator begins.

use std::time::{Duration, Instant};

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let number = |at: usize| arguments.get(at).and_then(|text| text.parse::<u64>().ok());
    let name = arguments.get(1).expect("the name of a target");
    let target = pilotage_fuzz::TARGETS.iter().find(|t| t.name == name).expect("a target of this name");
    let (seconds, len) = (number(2).unwrap_or(10), number(3).unwrap_or(160));
    let mut state = number(4).unwrap_or(1) ^ 0x2545_F491_4F6C_DD1D;
    let mut input = vec![0; len as usize];
    let start = Instant::now();
    let mut runs = 0u64;
    while start.elapsed() < Duration::from_secs(seconds) {
        let before = state;
        for chunk in input.chunks_mut(4) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let bytes = ((state >> 32) as u32).to_le_bytes();
            chunk.copy_from_slice(&bytes[..chunk.len()]);
        }
        let run = std::panic::catch_unwind(|| (target.run)(&input));
        assert!(run.is_ok(), "the run that began at {before:#x} failed");
        runs += 1;
    }
    eprintln!("{name}: {runs} runs, {} bytes, {:?}", runs * len, start.elapsed());
}
