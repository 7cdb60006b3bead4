//! Receiving side of the file transfer (spec/services.md §3.5).
//!
//! The caller's thread reads the stream; another one hashes and writes. The file gets its name only
//! after length and hash were found right: until then it is a temporary file in the same directory,
//! which is removed when anything fails.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use super::quota::{Quota, Share};
use super::wire::{Next, Offer, Reply, WireError};
use super::{PIPELINE, Status};
use crate::duplex::{Duplex, Io};

/// The offer must come within this time, or the stream is given up.
const OFFER_TIMEOUT: Duration = Duration::from_secs(30);

/// How long we wait for the sender to read our reply and end the stream.
const LINGER: Duration = Duration::from_secs(5);

/// Temporary names that are tried before giving up.
const TEMP_NAME_TRIES: usize = 16;

/// Where the bytes go.
pub enum Target {
    /// A file of the offered name in this directory, which must exist.
    Directory {
        /// The directory.
        dir: PathBuf,
        /// Replace a file of that name.
        force: bool,
        /// Flush to the disk before confirming.
        fsync: bool,
        /// How far others may fill it; `None` for no limit.
        quota: Option<Arc<Quota>>,
    },
    /// This file, whatever name is offered.
    File {
        /// Its path.
        path: PathBuf,
        /// Replace it if it exists.
        force: bool,
        /// Flush to the disk before confirming.
        fsync: bool,
    },
    /// A writer, such as standard output: it gets the bytes before they are verified.
    Writer(Box<dyn Write + Send>),
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Directory { dir, .. } => f.debug_tuple("Directory").field(dir).finish(),
            Self::File { path, .. } => f.debug_tuple("File").field(path).finish(),
            Self::Writer(_) => f.write_str("Writer"),
        }
    }
}

/// A verified file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// The offered name.
    pub name: String,
    /// Where it was stored, unless it went to a writer.
    pub path: Option<PathBuf>,
    /// Its size.
    pub bytes: u64,
    /// BLAKE3 of the bytes that were stored.
    pub hash: [u8; 32],
    /// From the offer to the stored file.
    pub elapsed: Duration,
}

/// Why no file was stored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReceiveError {
    /// The stream failed, or what came is not the protocol, or the sender gave up.
    #[error("{0}")]
    Wire(#[from] WireError),
    /// The stream ended in the middle.
    #[error("the sender disappeared after {got} bytes")]
    Truncated {
        /// Bytes received.
        got: u64,
    },
    /// A file of that name is there and `force` is off.
    #[error("{} exists already", .0.display())]
    Exists(PathBuf),
    /// The file system refused.
    #[error("cannot store {}: {source}", .path.display())]
    Storage {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The number of bytes is not the announced one.
    #[error("verification failed: {announced} bytes announced, {got} received")]
    LengthMismatch {
        /// What the sender announced.
        announced: u64,
        /// What came.
        got: u64,
    },
    /// The bytes are not those that the sender hashed.
    #[error("verification failed: the BLAKE3 hash of the received bytes differs from the sender's")]
    HashMismatch,
}

impl ReceiveError {
    /// Whether the bytes arrived but were not the right ones.
    #[must_use]
    pub fn is_verification(&self) -> bool {
        matches!(self, Self::LengthMismatch { .. } | Self::HashMismatch)
    }

    fn status(&self) -> Status {
        match self {
            Self::Wire(WireError::Name(_)) => Status::NameRefused,
            Self::Wire(WireError::Aborted(_)) => Status::Aborted,
            Self::Wire(_) | Self::Truncated { .. } => Status::Protocol,
            Self::Exists(_) => Status::Exists,
            Self::Storage { .. } => Status::Storage,
            Self::LengthMismatch { .. } => Status::LengthMismatch,
            Self::HashMismatch => Status::HashMismatch,
        }
    }

    /// What the sender is told: not our directories.
    pub(crate) fn public_text(&self) -> String {
        match self {
            Self::Exists(path) => format!("{} exists already", file_name(path)),
            Self::Storage { path, source } => format!("cannot store {}: {source}", file_name(path)),
            other => other.to_string(),
        }
    }
}

/// Receives one file on a freshly accepted stream. `progress` is told the offer and the bytes so far.
///
/// # Errors
/// See [`ReceiveError`]. The sender has been told, if the stream still worked; nothing is left in
/// the directory.
pub fn receive<D: Duplex + ?Sized>(
    stream: &D,
    target: Target,
    progress: &mut dyn FnMut(&Offer, u64),
) -> Result<Received, ReceiveError> {
    let mut got = 0;
    let outcome = run(stream, target, &mut got, progress);
    let reply = match &outcome {
        Ok(received) => {
            Reply { status: Status::Ok, size: received.bytes, hash: received.hash, text: String::new() }
        }
        Err(error) => Reply { status: error.status(), size: got, hash: [0; 32], text: error.public_text() },
    };
    let replied = reply.write(&mut Io(stream)).and_then(|()| stream.finish());
    if replied.is_ok() {
        linger(stream);
    }
    if outcome.is_err() {
        stream.abort();
    }
    outcome
}

/// Refuses a freshly accepted stream, with a reason for the sender.
pub(crate) fn refuse<D: Duplex + ?Sized>(stream: &D, text: &str) {
    let reply = Reply { status: Status::Busy, size: 0, hash: [0; 32], text: text.into() };
    if reply.write(&mut Io(stream)).and_then(|()| stream.finish()).is_ok() {
        linger(stream);
    }
    stream.abort();
}

/// Reads and discards until the sender ends the stream: it does so when it has read our reply, and
/// a sender that is still writing must not block before it looks.
fn linger<D: Duplex + ?Sized>(stream: &D) {
    let deadline = Instant::now() + LINGER;
    let mut scrap = vec![0; 64 * 1024];
    while let Some(left) = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        if stream.set_read_timeout(Some(left)).is_err() {
            return;
        }
        match stream.read(&mut scrap) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    }
}

fn run<D: Duplex + ?Sized>(
    stream: &D,
    target: Target,
    got: &mut u64,
    progress: &mut dyn FnMut(&Offer, u64),
) -> Result<Received, ReceiveError> {
    stream.set_read_timeout(Some(OFFER_TIMEOUT)).map_err(WireError::Io)?;
    let offer = Offer::read(&mut Io(stream))?;
    stream.set_read_timeout(None).map_err(WireError::Io)?;
    let begin = Instant::now();
    progress(&offer, 0);
    let sink = Sink::open(target, &offer)?;
    let (sink, trailer, hash) = body(stream, sink, got, &mut |bytes| progress(&offer, bytes))?;
    let announced = offer.size.filter(|size| *size != *got).unwrap_or(trailer.size);
    if announced != *got {
        return Err(ReceiveError::LengthMismatch { announced, got: *got });
    }
    if trailer.hash != hash {
        return Err(ReceiveError::HashMismatch);
    }
    let path = sink.commit()?;
    Ok(Received { name: offer.name, path, bytes: *got, hash, elapsed: begin.elapsed() })
}

/// What the sender claims at the end.
struct Trailer {
    size: u64,
    hash: [u8; 32],
}

/// Reads chunks until the trailer while another thread hashes and writes them.
fn body<D: Duplex + ?Sized>(
    stream: &D,
    sink: Sink,
    got: &mut u64,
    progress: &mut dyn FnMut(u64),
) -> Result<(Sink, Trailer, [u8; 32]), ReceiveError> {
    let (filled_tx, filled) = sync_channel::<Vec<u8>>(PIPELINE);
    let (empty_tx, empty) = sync_channel(PIPELINE);
    for _ in 0..PIPELINE {
        let _ = empty_tx.try_send(Vec::new());
    }
    std::thread::scope(|scope| {
        let writer = scope.spawn(move || write_blocks(sink, &filled, &empty_tx));
        let read = read_blocks(stream, filled_tx, &empty, got, progress);
        // `read_blocks` has dropped its sender, so the writer ends.
        let written =
            writer.join().map_err(|_| WireError::Io(io::Error::other("the writing thread panicked")))?;
        // If both failed, the writer's failure came first: reading stops because of it.
        let (sink, hash) = written?;
        Ok((sink, read?, hash))
    })
}

fn read_blocks<D: Duplex + ?Sized>(
    stream: &D,
    filled: SyncSender<Vec<u8>>,
    empty: &Receiver<Vec<u8>>,
    got: &mut u64,
    progress: &mut dyn FnMut(u64),
) -> Result<Trailer, ReceiveError> {
    let mut input = Io(stream);
    let failed = |error: WireError, got: u64| match error {
        WireError::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            ReceiveError::Truncated { got }
        }
        other => ReceiveError::Wire(other),
    };
    loop {
        match Next::read(&mut input).map_err(|error| failed(error, *got))? {
            Next::End { size, hash } => return Ok(Trailer { size, hash }),
            Next::Chunk(len) => {
                let writer_gone = || WireError::Io(io::Error::other("writing stopped"));
                let mut buf = empty.recv().map_err(|_| writer_gone())?;
                buf.resize(len, 0);
                input.read_exact(&mut buf).map_err(|error| failed(error.into(), *got))?;
                *got += len as u64;
                filled.send(buf).map_err(|_| writer_gone())?;
                progress(*got);
            }
        }
    }
}

fn write_blocks(
    mut sink: Sink,
    filled: &Receiver<Vec<u8>>,
    empty: &SyncSender<Vec<u8>>,
) -> Result<(Sink, [u8; 32]), ReceiveError> {
    let mut hasher = blake3::Hasher::new();
    while let Ok(buf) = filled.recv() {
        hasher.update(&buf);
        sink.write(&buf)?;
        let _ = empty.try_send(buf);
    }
    Ok((sink, *hasher.finalize().as_bytes()))
}

/// An open target.
pub(crate) enum Sink {
    File {
        file: File,
        temp: Temp,
        path: PathBuf,
        force: bool,
        fsync: bool,
        written: u64,
        share: Option<Share>,
    },
    Writer(Box<dyn Write + Send>),
}

/// Removes the temporary file unless it was given its name.
pub(crate) struct Temp(Option<PathBuf>);

impl Drop for Temp {
    fn drop(&mut self) {
        if let Some(path) = self.0.take()
            && let Err(error) = fs::remove_file(&path)
        {
            tracing::warn!(path = %path.display(), %error, "cannot remove the temporary file");
        }
    }
}

impl Sink {
    pub(crate) fn open(target: Target, offer: &Offer) -> Result<Self, ReceiveError> {
        let (path, force, fsync, quota) = match target {
            Target::Writer(writer) => return Ok(Self::Writer(writer)),
            // The name was checked by `Offer::read`: it has no directory part.
            Target::Directory { dir, force, fsync, quota } => (dir.join(&offer.name), force, fsync, quota),
            Target::File { path, force, fsync } => (path, force, fsync, None),
        };
        if !force && path.symlink_metadata().is_ok() {
            return Err(ReceiveError::Exists(path));
        }
        let share = match &quota {
            Some(quota) => Some(quota.begin().ok_or_else(|| inbox_full(&path))?),
            None => None,
        };
        let (file, temp) =
            create_temp(&path).map_err(|source| ReceiveError::Storage { path: path.clone(), source })?;
        Ok(Self::File { file, temp, path, force, fsync, written: 0, share })
    }

    pub(crate) fn write(&mut self, data: &[u8]) -> Result<(), ReceiveError> {
        match self {
            Self::File { file, path, written, share, .. } => {
                *written += data.len() as u64;
                if share.as_mut().is_some_and(|share| !share.grow_to(*written)) {
                    return Err(inbox_full(path));
                }
                file.write_all(data).map_err(|source| ReceiveError::Storage { path: path.clone(), source })
            }
            Self::Writer(writer) => writer
                .write_all(data)
                .map_err(|source| ReceiveError::Storage { path: "output".into(), source }),
        }
    }

    pub(crate) fn commit(self) -> Result<Option<PathBuf>, ReceiveError> {
        match self {
            Self::Writer(mut writer) => {
                writer.flush().map_err(|source| ReceiveError::Storage { path: "output".into(), source })?;
                Ok(None)
            }
            Self::File { file, mut temp, path, force, fsync, share, .. } => {
                let storage = |source| ReceiveError::Storage { path: path.clone(), source };
                if fsync {
                    file.sync_all().map_err(storage)?;
                }
                drop(file);
                if let Some(from) = temp.0.as_deref() {
                    let moved = publish(from, &path, force);
                    match moved {
                        Ok(()) => temp.0 = None,
                        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && !force => {
                            return Err(ReceiveError::Exists(path));
                        }
                        Err(source) => return Err(storage(source)),
                    }
                }
                if let Some(share) = share {
                    share.keep();
                }
                Ok(Some(path))
            }
        }
    }
}

fn inbox_full(path: &Path) -> ReceiveError {
    let source = io::Error::new(io::ErrorKind::QuotaExceeded, "the receiver's inbox has reached its limit");
    ReceiveError::Storage { path: path.into(), source }
}

/// Gives the temporary file its name. Without `force` a file that came in the meantime stays: a
/// hard link, unlike a rename, never replaces.
fn publish(from: &Path, to: &Path, force: bool) -> io::Result<()> {
    if force {
        return fs::rename(from, to);
    }
    match fs::hard_link(from, to) {
        Ok(()) => fs::remove_file(from),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(error),
        // File systems without hard links.
        Err(_) if to.symlink_metadata().is_err() => fs::rename(from, to),
        Err(_) => Err(io::ErrorKind::AlreadyExists.into()),
    }
}

fn create_temp(path: &Path) -> io::Result<(File, Temp)> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    for _ in 0..TEMP_NAME_TRIES {
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let temp = dir.join(format!(".pilotage-{}-{number}.part", std::process::id()));
        match OpenOptions::new().write(true).create_new(true).open(&temp) {
            Ok(file) => return Ok((file, Temp(Some(temp)))),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
}
