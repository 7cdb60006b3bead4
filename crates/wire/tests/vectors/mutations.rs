//! Every sample of the vectors, whole, cut at every length and with each byte changed in several ways, through every
//! parser. The fuzz targets check the same invariants with more time; this part of their work runs in every test run.

use crate::files::samples;
use crate::invariants;

/// XORed into each position in turn: each single bit, all bits, and a mask that turns digits into other digits.
const MASKS: [u8; 10] = [0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80, 0xFF, 0x0F];

#[test]
fn every_one_byte_mutation_and_truncation_of_every_vector() {
    let mut fed = 0u64;
    let mut feed = |input: &[u8]| {
        invariants::address(input);
        invariants::packet(input);
        invariants::frame(input);
        invariants::pila_trailer(input);
        invariants::sack(input);
        invariants::beacon(input);
        invariants::registry_frame(input);
        invariants::ipc(input);
        invariants::s1_handshake(input);
        invariants::s1_frames(input);
        fed += 1;
    };
    let samples = samples();
    assert_eq!(samples.len(), 494, "samples in the vectors");
    for (_, sample) in samples {
        feed(&sample);
        // Beyond the headers every payload byte plays the same part: walk the first 200 and the last 20.
        let mut mutated = sample.clone();
        for at in (0..sample.len()).filter(|&at| at < 200 || at + 20 >= sample.len()) {
            feed(&sample[..at]);
            for mask in MASKS {
                mutated[at] ^= mask;
                feed(&mutated);
                mutated[at] ^= mask;
            }
        }
    }
    assert!(fed > 200_000, "only {fed} inputs");
}
