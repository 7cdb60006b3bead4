//! The store against a disk that fills up, fails and loses power at every possible write.

use super::faulty::{Fault, FaultyDisk};
use super::*;
use crate::engine::{Profile, Proof};
use pilotage_wire::addressing::node_ids;
use std::collections::BTreeMap;

fn node(n: u32, port: u16) -> (NodeId, Record) {
    let mut public_key = [0; 32];
    public_key[..4].copy_from_slice(&n.to_be_bytes());
    let (salt, id) = node_ids(&public_key).next().unwrap();
    let record = Record {
        public_key,
        salt,
        proof: Proof::Fresh,
        public: true,
        hostname: Some(format!("n{n}").into()),
        endpoint: Some(([127, 0, 0, 1], port).into()),
        lan_addrs: vec![],
        created: 1,
        profile: Profile::default(),
    };
    (id, record)
}

type Model = BTreeMap<NodeId, Record>;

fn batch(from: u32, count: u32, port: u16) -> Model {
    (from..from + count).map(|n| node(n, port)).collect()
}

fn commit(store: &mut Store, batch: &Model) -> Result<(), StoreError> {
    store.commit(batch.iter().map(|(id, record)| (*id, record)), [])
}

fn loaded(disk: &FaultyDisk) -> Model {
    disk.open().expect("opens").1.into_iter().collect()
}

#[test]
fn what_was_committed_is_there_after_reopening() {
    let disk = FaultyDisk::default();
    let (mut store, found) = disk.open().unwrap();
    assert!(found.is_empty());
    let mut model = batch(0, 100, 1);
    commit(&mut store, &model).unwrap();
    model.extend(batch(50, 100, 2));
    commit(&mut store, &batch(50, 100, 2)).unwrap();
    commit(&mut store, &Model::new()).unwrap();
    drop(store);
    assert_eq!(loaded(&disk), model);
}

/// registry.md §7 test 6: no space at each single write of a batch and of the recovery.
#[test]
fn a_full_disk_at_any_write_stores_nothing_and_heals() {
    let mut failures = 0;
    for after in 0..200 {
        let disk = FaultyDisk::default();
        let (mut store, _) = disk.open().unwrap();
        let mut model = batch(0, 40, 1);
        commit(&mut store, &model).unwrap();
        let before = disk.operations();
        disk.fail_after(after, Fault::Full);
        // New nodes and changed ones; the engine has rolled them back when `recover` asks.
        let wanted = batch(20, 600, 2);
        match commit(&mut store, &wanted) {
            Ok(()) => model.extend(wanted),
            Err(error) => {
                assert!(matches!(error, StoreError::Full { .. }), "{error}");
                assert_eq!(error.to_string(), "hub's disk is full: nothing was stored; free space in /hub");
                assert!(store.is_down());
                assert!(matches!(commit(&mut store, &wanted), Err(StoreError::Down { .. })));
                assert!(store.recover(|id| model.get(&id), |_| None).is_err(), "still full");
                disk.heal();
                store.recover(|id| model.get(&id), |_| None).expect("space is back");
                failures += 1;
            }
        }
        disk.heal();
        assert!(!store.is_down());
        let last = batch(900, 5, 3);
        commit(&mut store, &last).unwrap();
        model.extend(last);
        drop(store);
        assert_eq!(loaded(&disk), model, "fault after {after} operations");
        if disk.operations() - before < after {
            break;
        }
    }
    assert!(failures >= 3, "only {failures} writes were hit");
}

/// A sync that reports failure may have stored everything: after the recovery the disk says what the engine says.
#[test]
fn a_failed_sync_leaves_no_unacknowledged_record_behind() {
    for after in 0..20 {
        let disk = FaultyDisk::default();
        let (mut store, _) = disk.open().unwrap();
        let mut model = batch(0, 10, 1);
        commit(&mut store, &model).unwrap();
        disk.fail_after(after, Fault::SyncFails);
        let wanted = batch(5, 10, 2);
        let result = commit(&mut store, &wanted);
        disk.heal();
        match result {
            Ok(()) => model.extend(wanted),
            Err(error) => {
                assert!(matches!(error, StoreError::Io { .. }), "{error}");
                store.recover(|id| model.get(&id), |_| None).unwrap();
            }
        }
        drop(store);
        assert_eq!(loaded(&disk), model, "fault after {after} operations");
    }
}

/// Power loss at each write: what was acknowledged is there, what was not is there entirely or not at all.
#[test]
fn power_loss_at_any_write_keeps_exactly_the_acknowledged_batches() {
    for after in 0..60 {
        let disk = FaultyDisk::default();
        let (mut store, _) = disk.open().unwrap();
        disk.fail_after(after, Fault::PowerLoss);
        let mut acknowledged = Model::new();
        let mut unsure = Model::new();
        for n in 0..8 {
            // Overlapping batches: new nodes and moved ones.
            let next = batch(n * 20, 40, 1 + u16::try_from(n).unwrap());
            if commit(&mut store, &next).is_err() {
                unsure = acknowledged.clone();
                unsure.extend(next);
                break;
            }
            acknowledged.extend(next);
        }
        drop(store);
        for choice in 0..6u64 {
            let image = disk.0.lock().unwrap().after_power_loss(choice.wrapping_mul(0x9E37_79B9_7F4A_7C15));
            let found = loaded(&FaultyDisk::with_image(image));
            assert!(
                found == acknowledged || (!unsure.is_empty() && found == unsure),
                "power loss after {after} operations, choice {choice}: {} of {} records",
                found.len(),
                acknowledged.len(),
            );
        }
    }
}

/// A flipped bit anywhere in the file is noticed or harmless.
#[test]
fn damaged_files_are_refused_or_complete() {
    let disk = FaultyDisk::default();
    let (mut store, _) = disk.open().unwrap();
    let mut model = batch(0, 60, 1);
    commit(&mut store, &model).unwrap();
    let second = batch(30, 60, 2);
    commit(&mut store, &second).unwrap();
    model.extend(second);
    drop(store);
    let image = disk.0.lock().unwrap().seen.clone();
    let used = image.iter().rposition(|byte| *byte != 0).unwrap();
    let mut refused = 0;
    // Every byte of the header with its two commit slots, then a sample of the pages.
    for at in (0..320).chain((320..used).step_by(used / 500)) {
        let mut damaged = image.clone();
        damaged[at] ^= 0x10;
        match FaultyDisk::with_image(damaged).open() {
            Ok((_, found)) => {
                let found: Model = found.into_iter().collect();
                assert!(found == model, "byte {at}: {} records", found.len());
            }
            Err(StoreError::Corrupted { .. } | StoreError::TooNew { .. }) => refused += 1,
            Err(other) => panic!("byte {at}: {other}"),
        }
    }
    assert!(refused > 0);
}

#[test]
fn truncated_and_foreign_files_are_refused_with_their_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hub.redb");
    let (mut store, _) = Store::open(&path).unwrap();
    commit(&mut store, &batch(0, 50, 1)).unwrap();
    drop(store);
    let image = std::fs::read(&path).unwrap();
    let broken = dir.path().join("broken.redb");
    for len in [1, 9, 100, 4096, 5000, image.len() / 2, image.len() - 1] {
        std::fs::write(&broken, &image[..len]).unwrap();
        let error = Store::open(&broken).map(|_| ()).expect_err("truncated");
        assert!(matches!(error, StoreError::Corrupted { .. }), "{len}: {error}");
        assert!(error.to_string().contains("broken.redb"));
    }
    for content in [vec![0; 8192], b"#!/bin/sh\n".repeat(2000), vec![0xFF; 100_000]] {
        std::fs::write(&broken, &content).unwrap();
        let error = Store::open(&broken).map(|_| ()).expect_err("foreign");
        assert!(matches!(error, StoreError::Corrupted { .. }), "{error}");
        assert_eq!(std::fs::read(&broken).unwrap(), content, "left as it was");
    }
    // A database of another program.
    let other = dir.path().join("other.redb");
    let db = Builder::new().create(&other).unwrap();
    let transaction = db.begin_write().unwrap();
    transaction.open_table(TableDefinition::<u8, u8>::new("theirs")).unwrap();
    transaction.commit().unwrap();
    drop(db);
    assert!(matches!(Store::open(&other), Err(StoreError::Corrupted { .. })));
}

/// A process that dies while it makes its file, at whatever byte, does not keep the next one from starting.
#[test]
fn an_unfinished_new_file_is_begun_anew() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hub.redb");
    let part = dir.path().join("hub.redb.new");
    for leftover in [vec![], vec![0; 4096], b"half of something".repeat(1000)] {
        std::fs::write(&part, leftover).unwrap();
        let (mut store, found) = Store::open(&path).expect("begins anew");
        assert!(found.is_empty());
        commit(&mut store, &batch(0, 3, 1)).unwrap();
        drop(store);
        assert!(!part.exists());
        assert_eq!(Store::open(&path).unwrap().1.len(), 3);
        std::fs::remove_file(&path).unwrap();
    }
}

/// A file that vanishes while the store is down is missed, not replaced by one that has only the newest records.
#[test]
fn a_vanished_file_is_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hub.redb");
    let (mut store, _) = Store::open(&path).unwrap();
    commit(&mut store, &batch(0, 3, 1)).unwrap();
    store.db = None;
    std::fs::remove_file(&path).unwrap();
    let error = store.recover(|_| None, |_| None).expect_err("gone");
    assert!(matches!(error, StoreError::Io { .. }), "{error}");
    assert!(!path.exists());
}

#[test]
fn a_store_in_use_is_said_to_be() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("deep/er/hub.redb");
    let (store, _) = Store::open(&path).unwrap();
    let error = Store::open(&path).map(|_| ()).expect_err("locked");
    assert!(matches!(error, StoreError::InUse { .. }), "{error}");
    drop(store);
    Store::open(&path).unwrap();
    let error = Store::open(dir.path()).map(|_| ()).expect_err("a folder");
    assert!(matches!(error, StoreError::Io { .. }), "{error}");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}

#[test]
fn files_of_a_newer_version_are_left_alone() {
    let disk = FaultyDisk::default();
    drop(disk.open().unwrap());
    let db = Builder::new().create_with_backend(disk.clone()).unwrap();
    let transaction = db.begin_write().unwrap();
    transaction.open_table(META).unwrap().insert(SCHEMA, 2).unwrap();
    transaction.commit().unwrap();
    drop(db);
    assert!(matches!(disk.open(), Err(StoreError::TooNew { .. })));
}

/// Rows share the transaction of the records, and the recovery after a failed one.
#[test]
fn rows_live_and_die_with_their_batch() {
    let row = |n: u64| Row::Response { accept: n.is_multiple_of(2), at: n };
    let key = |n: u32| RowKey::Response(NodeId(n), NodeId(1));
    let mut failures = 0;
    for after in 0..12 {
        let disk = FaultyDisk::default();
        let (mut store, _) = disk.open().unwrap();
        let (old, new) = (row(1), row(2));
        store.commit([], [(key(1), Some(&old)), (key(2), Some(&old))]).unwrap();
        disk.fail_after(after, Fault::Full);
        let mut expected = BTreeMap::from([(key(1), old.clone()), (key(2), old.clone())]);
        let (id, record) = node(7, 1);
        let changes = [(key(1), Some(&new)), (key(2), None), (key(3), Some(&new))];
        match store.commit([(id, &record)], changes) {
            Ok(()) => expected = BTreeMap::from([(key(1), new.clone()), (key(3), new.clone())]),
            Err(_) => {
                failures += 1;
                disk.heal();
                store.recover(|_| None, |key| expected.get(key)).unwrap();
            }
        }
        disk.heal();
        assert_eq!(store.rows().unwrap().into_iter().collect::<BTreeMap<_, _>>(), expected);
        drop(store);
        let (store, _) = disk.open().unwrap();
        assert_eq!(store.rows().unwrap().into_iter().collect::<BTreeMap<_, _>>(), expected);
    }
    assert!(failures > 0);
}
