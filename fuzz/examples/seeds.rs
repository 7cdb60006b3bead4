//! Writes the golden bytes of `spec/vectors` as seeds into `corpus/<target>/`. Run in `fuzz/`: `cargo run --example seeds`.
//!
//! Files are named by content, so running it twice adds nothing.

#[path = "../../crates/wire/tests/vectors/files.rs"]
#[allow(dead_code, reason = "the tests need more of it")]
mod files;

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;

fn main() -> std::io::Result<()> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let mut written = BTreeMap::new();
    for (target, bytes) in files::samples() {
        let mut hasher = DefaultHasher::new();
        bytes.hash(&mut hasher);
        let folder = corpus.join(target);
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join(format!("vector-{:016x}", hasher.finish())), &bytes)?;
        *written.entry(target).or_insert(0) += 1;
    }
    for (target, count) in written {
        println!("{target}: {count} seeds");
    }
    Ok(())
}
