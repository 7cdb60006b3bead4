//! The file that the demo sends when none is given: BLAKE3's extendable output over the seed.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use crate::stop::Stop;

/// Bytes made at a time.
const BLOCK: usize = 1 << 20;

/// Writes `size` bytes that depend on `seed` only; returns their BLAKE3 hash, or `None` if it was
/// interrupted.
pub(super) fn generate(path: &Path, size: u64, seed: u64, stop: &Stop) -> io::Result<Option<[u8; 32]>> {
    let mut stream = blake3::Hasher::new_derive_key("pilotage 2026 demo file v1")
        .update(&seed.to_be_bytes())
        .finalize_xof();
    let mut hasher = blake3::Hasher::new();
    let mut file = File::create_new(path)?;
    let mut block = vec![0; BLOCK];
    let mut left = size;
    while left > 0 {
        if stop.requested() {
            return Ok(None);
        }
        let len = left.min(BLOCK as u64) as usize;
        stream.fill(&mut block[..len]);
        hasher.update(&block[..len]);
        file.write_all(&block[..len])?;
        left -= len as u64;
    }
    Ok(Some(*hasher.finalize().as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_seed_same_file() {
        let dir = tempfile::tempdir().unwrap();
        let stop = Stop::default();
        let make = |name: &str, size, seed| {
            let path = dir.path().join(name);
            let hash = generate(&path, size, seed, &stop).unwrap().unwrap();
            let bytes = std::fs::read(path).unwrap();
            assert_eq!(bytes.len() as u64, size);
            assert_eq!(*blake3::hash(&bytes).as_bytes(), hash);
            hash
        };
        let size = BLOCK as u64 + 17;
        assert_eq!(make("a", size, 1), make("b", size, 1));
        assert_ne!(make("c", size, 2), make("d", size, 1));
        make("e", 0, 1);
    }
}
