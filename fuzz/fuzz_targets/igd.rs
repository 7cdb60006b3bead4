#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| pilotage_fuzz::target::igd(input));
