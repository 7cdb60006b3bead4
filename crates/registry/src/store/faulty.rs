//! Test double: a disk that fills up, fails to sync, or loses power.

use super::{Loaded, Opener, Store, StoreError};
use redb::{Builder, StorageBackend};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

/// What the disk does with a write or a sync.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// No space from this operation on.
    Full,
    /// The sync reports an error although everything may have been written.
    SyncFails,
    /// Power is lost: this and all later operations fail.
    PowerLoss,
}

#[derive(Debug, Default)]
pub(crate) struct Disk {
    /// What the operating system shows.
    pub(crate) seen: Vec<u8>,
    /// What survives power loss for certain.
    durable: Vec<u8>,
    /// Since the last sync.
    pending: Vec<Pending>,
    /// Writes and syncs so far.
    operations: u64,
    /// The fault and the operation at which it starts.
    fault: Option<(u64, Fault)>,
}

#[derive(Debug, Clone)]
enum Pending {
    Len(u64),
    Write(u64, Vec<u8>),
}

impl Pending {
    fn apply(&self, image: &mut Vec<u8>) {
        match self {
            Self::Len(len) => image.resize(usize::try_from(*len).unwrap(), 0),
            Self::Write(offset, data) => {
                let start = usize::try_from(*offset).unwrap();
                let end = start + data.len();
                if image.len() < end {
                    image.resize(end, 0);
                }
                image[start..end].copy_from_slice(data);
            }
        }
    }
}

impl Disk {
    fn active(&self) -> Option<Fault> {
        self.fault.filter(|(at, _)| self.operations >= *at).map(|(_, fault)| fault)
    }

    fn change(&mut self, change: Pending) -> io::Result<()> {
        let fault = self.active();
        self.operations += 1;
        match fault {
            Some(Fault::Full) => return Err(io::ErrorKind::StorageFull.into()),
            Some(Fault::PowerLoss) => return Err(io::Error::other("power loss")),
            _ => {}
        }
        change.apply(&mut self.seen);
        self.pending.push(change);
        Ok(())
    }

    /// The image after power loss: durable bytes plus any subset of what was not synced, the last piece torn.
    pub(crate) fn after_power_loss(&self, choice: u64) -> Vec<u8> {
        let mut image = self.durable.clone();
        let mut random = choice | 1;
        for change in &self.pending {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            match (random % 4, change) {
                (0, _) => {}
                (1, Pending::Write(offset, data)) if data.len() > 512 => {
                    Pending::Write(*offset, data[..512].to_vec()).apply(&mut image);
                }
                _ => change.apply(&mut image),
            }
        }
        image
    }
}

/// Handle on a [`Disk`], one per opened database.
#[derive(Debug, Clone, Default)]
pub(crate) struct FaultyDisk(pub(crate) Arc<Mutex<Disk>>);

impl FaultyDisk {
    pub(crate) fn with_image(image: Vec<u8>) -> Self {
        let disk = Disk { seen: image.clone(), durable: image, ..Disk::default() };
        Self(Arc::new(Mutex::new(disk)))
    }

    pub(crate) fn open(&self) -> Result<(Store, Loaded), StoreError> {
        let disk = self.clone();
        let open: Opener = Box::new(move || Builder::new().create_with_backend(disk.clone()));
        Store::open_with(Path::new("/hub/registry.redb"), open)
    }

    pub(crate) fn fail_after(&self, operations: u64, fault: Fault) {
        let mut disk = self.0.lock().unwrap();
        disk.fault = Some((disk.operations + operations, fault));
    }

    pub(crate) fn heal(&self) {
        self.0.lock().unwrap().fault = None;
    }

    pub(crate) fn operations(&self) -> u64 {
        self.0.lock().unwrap().operations
    }
}

impl StorageBackend for FaultyDisk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().seen.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let disk = self.0.lock().unwrap();
        let start = usize::try_from(offset).unwrap();
        let bytes = disk.seen.get(start..start + out.len());
        out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.lock().unwrap().change(Pending::Len(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut disk = self.0.lock().unwrap();
        let fault = disk.active();
        disk.operations += 1;
        match fault {
            // What is on the platter is unknown, but the system still shows the new content.
            Some(Fault::SyncFails) => Err(io::Error::other("sync failed")),
            Some(Fault::PowerLoss) => Err(io::Error::other("power loss")),
            _ => {
                disk.durable = disk.seen.clone();
                disk.pending.clear();
                Ok(())
            }
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.lock().unwrap().change(Pending::Write(offset, data.to_vec()))
    }
}
