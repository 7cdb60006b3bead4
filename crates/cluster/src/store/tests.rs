//! openraft's own suite, and crashes.

use std::path::PathBuf;

use openraft::testing::{StoreBuilder, Suite};

use super::*;

/// Adds the bytes of all commands up.
#[derive(Default)]
pub(crate) struct Sum(u64);

impl Machine for Sum {
    fn apply(&mut self, command: &[u8]) -> Vec<u8> {
        self.0 += command.iter().map(|&byte| u64::from(byte)).sum::<u64>();
        self.0.to_be_bytes().to_vec()
    }

    fn snapshot(&self) -> Vec<u8> {
        self.0.to_be_bytes().to_vec()
    }

    fn install(&mut self, snapshot: &[u8]) -> Result<(), String> {
        self.0 = u64::from_be_bytes(snapshot.try_into().map_err(|_| "eight bytes")?);
        Ok(())
    }
}

struct InFolder;

impl StoreBuilder<crate::types::Types, LogStore, StateStore<Sum>, tempfile::TempDir> for InFolder {
    async fn build(&self) -> Result<(tempfile::TempDir, LogStore, StateStore<Sum>), StorageError> {
        let folder = tempfile::tempdir().expect("temporary folder");
        let store =
            Store::open(&folder.path().join("cluster.redb"), &[7; 32], &Faults::default()).expect("opens");
        let shared = store.restore(Sum::default()).expect("empty");
        Ok((folder, LogStore(store.clone()), StateStore { store, shared }))
    }
}

#[test]
fn the_store_passes_the_suite_of_openraft() {
    Suite::test_all(InFolder).expect("suite");
}

#[test]
fn a_second_process_is_told_that_the_file_is_in_use() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("cluster.redb");
    let first = Store::open(&path, &[7; 32], &Faults::default()).expect("opens");
    assert!(matches!(Store::open(&path, &[7; 32], &Faults::default()), Err(StoreError::InUse(_))));
    let id = first.id();
    drop(first);
    assert_eq!(
        Store::open(&path, &[7; 32], &Faults::default()).expect("opens").id(),
        id,
        "same file, same id"
    );
    let other: PathBuf = folder.path().join("other.redb");
    assert_ne!(
        Store::open(&other, &[7; 32], &Faults::default()).expect("opens").id(),
        id,
        "lost file, other id"
    );
    std::fs::write(&other, b"not a database").expect("writes");
    assert!(matches!(
        Store::open(&other, &[7; 32], &Faults::default()),
        Err(StoreError::Damaged { .. } | StoreError::Io { .. })
    ));
}
