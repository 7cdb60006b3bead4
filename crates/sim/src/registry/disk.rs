//! A simulated disk for the registry's real store.
//!
//! Nothing here depends on the order of writes between two syncs: a database may flush its pages in any order, and the
//! same seed must give the same outcome all the same. So what survives a loss of power is chosen per page.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use pilotage_registry::store::{Loaded, StorageBackend, Store, StoreError};

/// Unit of what survives a loss of power.
const PAGE: u64 = 4_096;
/// Bytes of a page that was being written when power went.
const SECTOR: usize = 512;
/// What the store believes to be its file; appears in messages only.
const FILE: &str = "/hub/registry.redb";

/// How a disk behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DiskState {
    /// As it should.
    #[default]
    Healthy,
    /// Every write is refused for want of space.
    Full,
    /// Writes are taken, every sync reports an error.
    SyncFails,
    /// Syncs are acknowledged and not done: no software can bear that. Shows that the invariants notice a loss.
    Lying,
}

/// What undoes a change that has not been synced.
#[derive(Debug)]
enum Undo {
    Len { len: usize, tail: Vec<u8> },
    Write { offset: usize, old: Vec<u8> },
}

#[derive(Debug, Default)]
struct Platter {
    /// What the operating system shows.
    seen: Vec<u8>,
    /// Back to what is durable for certain, oldest first.
    undo: Vec<Undo>,
    state: DiskState,
    /// Handles of an earlier process do nothing any more.
    process: u64,
    /// Syncs until the process dies.
    dies_after: Option<u64>,
}

/// A handle on a disk, as one process holds it.
#[derive(Debug, Clone, Default)]
pub(super) struct Disk {
    platter: Arc<Mutex<Platter>>,
    process: u64,
}

impl Disk {
    /// A disk with an empty store on it, which takes long to make and is therefore made once.
    pub(super) fn formatted() -> Result<Self, StoreError> {
        static IMAGE: OnceLock<Vec<u8>> = OnceLock::new();
        let image = match IMAGE.get() {
            Some(image) => image,
            None => {
                let disk = Self::default();
                drop(disk.open()?);
                let image = disk.image();
                IMAGE.get_or_init(|| image)
            }
        };
        let disk = Self::default();
        disk.replace(image.clone());
        Ok(disk)
    }

    /// Opens the store on it.
    pub(super) fn open(&self) -> Result<(Store, Loaded), StoreError> {
        let disk = self.clone();
        Store::open_on(Path::new(FILE), move || disk.clone())
    }

    pub(super) fn set_state(&self, state: DiskState) {
        self.lock().state = state;
    }

    /// The process ends at its sync number `syncs` from now, or at [`Disk::end_process`].
    pub(super) fn kill_at_sync(&self, syncs: u64) {
        self.lock().dies_after = Some(syncs);
    }

    /// The process is gone: its handles fail from now on. The new one works.
    pub(super) fn end_process(&mut self) {
        let mut platter = self.lock();
        platter.process += 1;
        platter.dies_after = None;
        let process = platter.process;
        drop(platter);
        self.process = process;
    }

    /// Power was lost: of what was not synced each page is there, is not, or is torn, as `seed` says.
    pub(super) fn lose_power(&self, seed: u64) {
        let mut platter = self.lock();
        let mut undo = std::mem::take(&mut platter.undo);
        while let Some(change) = undo.pop() {
            match change {
                Undo::Len { len, mut tail } => {
                    if platter.seen.len() < len {
                        platter.seen.resize(len - tail.len(), 0);
                        platter.seen.append(&mut tail);
                    }
                }
                Undo::Write { offset, mut old } => {
                    let page = offset as u64 / PAGE;
                    let keep = match mix(seed ^ mix(page)) % 4 {
                        0 | 1 => old.len(),
                        2 => SECTOR.min(old.len()),
                        _ => 0,
                    };
                    let at = offset + keep;
                    let back = old.split_off(keep);
                    platter.seen[at..at + back.len()].copy_from_slice(&back);
                }
            }
        }
    }

    /// What the operating system shows.
    pub(super) fn image(&self) -> Vec<u8> {
        self.lock().seen.clone()
    }

    /// Puts another content on the disk, durably.
    pub(super) fn replace(&self, image: Vec<u8>) {
        let mut platter = self.lock();
        platter.seen = image;
        platter.undo.clear();
    }

    fn lock(&self) -> MutexGuard<'_, Platter> {
        self.platter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The platter, if this handle's process is still there.
    fn alive(&self) -> io::Result<MutexGuard<'_, Platter>> {
        let platter = self.lock();
        if platter.process == self.process {
            Ok(platter)
        } else {
            Err(io::Error::other("the process has ended"))
        }
    }

    fn writable(&self) -> io::Result<MutexGuard<'_, Platter>> {
        let platter = self.alive()?;
        if platter.state == DiskState::Full { Err(io::ErrorKind::StorageFull.into()) } else { Ok(platter) }
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.alive()?.seen.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let platter = self.alive()?;
        let bytes = range(offset, out.len()).and_then(|range| platter.seen.get(range));
        out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut platter = self.writable()?;
        let len = usize::try_from(len).map_err(io::Error::other)?;
        let old = platter.seen.len();
        let tail = platter.seen.get(len..).map_or(Vec::new(), <[u8]>::to_vec);
        platter.undo.push(Undo::Len { len: old, tail });
        platter.seen.resize(len, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut platter = self.alive()?;
        match platter.dies_after.as_mut() {
            Some(0) => {
                platter.process += 1;
                return Err(io::Error::other("killed"));
            }
            Some(left) => *left -= 1,
            None => {}
        }
        match platter.state {
            // What is on the platter is unknown, but the system still shows the new content.
            DiskState::SyncFails => return Err(io::Error::other("sync failed")),
            DiskState::Lying => {}
            _ => platter.undo.clear(),
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut platter = self.writable()?;
        let range = range(offset, data.len()).ok_or(io::ErrorKind::InvalidInput)?;
        if platter.seen.len() < range.end {
            let len = platter.seen.len();
            platter.undo.push(Undo::Len { len, tail: Vec::new() });
            platter.seen.resize(range.end, 0);
        }
        let old = platter.seen[range.clone()].to_vec();
        platter.undo.push(Undo::Write { offset: range.start, old });
        platter.seen[range].copy_from_slice(data);
        Ok(())
    }
}

fn range(offset: u64, len: usize) -> Option<std::ops::Range<usize>> {
    let start = usize::try_from(offset).ok()?;
    Some(start..start.checked_add(len)?)
}

/// SplitMix64's output function.
fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
