//! Sending side of the file transfer (spec/services.md §3.4).
//!
//! Three threads: one reads and hashes the source, the caller's writes to the stream, one waits for
//! the reply. The reply may come at any time: a receiver that cannot take the file says so at once.

use std::io::{self, Read, Write};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::time::{Duration, Instant};

use super::wire::{self, Reply, WireError};
use super::{CHUNK, NameError, Offer, PIPELINE, Status, check_name};
use crate::duplex::{Duplex, Io};

/// How long the receiver may take from our last byte to its reply: it may have to flush to disk.
const REPLY_TIMEOUT: Duration = Duration::from_secs(120);

/// How long a reply may take after our side has failed.
const LATE_REPLY_TIMEOUT: Duration = Duration::from_secs(3);

/// Bytes in front of each chunk.
const CHUNK_HEADER: usize = 4;

/// What to announce.
#[derive(Debug, Clone)]
pub struct SendOptions {
    /// File name for the receiver, without directory.
    pub name: String,
    /// Size of the source in bytes, if known; the transfer fails if the source has more or fewer.
    pub size: Option<u64>,
}

/// A transfer that the receiver has confirmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    /// Bytes of the file.
    pub bytes: u64,
    /// BLAKE3 of the file, computed here and reported alike by the receiver.
    pub hash: [u8; 32],
    /// From the first byte written to the receiver's reply.
    pub elapsed: Duration,
}

/// Why a file was not delivered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The name cannot be sent.
    #[error("file name: {0}")]
    Name(#[from] NameError),
    /// The source failed.
    #[error("cannot read the source: {0}")]
    Source(io::Error),
    /// The source ended early or did not end.
    #[error("the source changed: {expected} bytes were announced, {got} read")]
    SourceSize {
        /// Bytes announced.
        expected: u64,
        /// Bytes read until this was noticed.
        got: u64,
    },
    /// The stream failed.
    #[error("stream: {0}")]
    Stream(io::Error),
    /// The answer was not understood, or did not come.
    #[error("reply: {0}")]
    Reply(WireError),
    /// The receiver did not answer after the last byte.
    #[error("reply: the receiver confirmed nothing within 120 s")]
    NoReply,
    /// The receiver refused or failed; the text is its own.
    #[error("the receiver reports {status:?}: {text}")]
    Rejected {
        /// Its status.
        status: Status,
        /// Its explanation.
        text: String,
    },
    /// The receiver says that all is well but counted or hashed something else.
    #[error("verification failed: the receiver has {bytes} bytes with another length or hash")]
    Mismatch {
        /// Bytes that the receiver counted.
        bytes: u64,
    },
}

impl SendError {
    /// Whether the bytes arrived but were not the right ones.
    #[must_use]
    pub fn is_verification(&self) -> bool {
        matches!(
            self,
            Self::Mismatch { .. }
                | Self::Rejected { status: Status::HashMismatch | Status::LengthMismatch, .. }
        )
    }
}

/// Sends all of `source` on a fresh stream and waits for the receiver's verdict. `progress` is told
/// the bytes handed to the stream so far.
///
/// Our direction is left open for the caller, who may still want to read statistics: it ends the
/// stream, by dropping it if not otherwise. The receiver waits a moment for that (§3.6).
///
/// A source that blocks (a terminal) does not delay an error of the stream: it is read by a thread
/// of its own, which ends with its next read.
///
/// # Errors
/// See [`SendError`]; the stream is given up then.
pub fn send<D, S>(
    stream: &D,
    source: S,
    options: &SendOptions,
    progress: &mut dyn FnMut(u64),
) -> Result<Sent, SendError>
where
    D: Duplex + ?Sized,
    S: Read + Send + 'static,
{
    check_name(&options.name)?;
    let blocks = spawn_reader(source, options.size).map_err(SendError::Source)?;
    let begin = Instant::now();
    std::thread::scope(|scope| {
        let (reply_tx, replies) = sync_channel(1);
        scope.spawn(move || {
            let reply = Reply::read(&mut Io(stream));
            let _ = reply_tx.send((reply, Instant::now()));
        });
        let outcome = transfer(stream, &blocks, &replies, options, progress);
        let outcome = match outcome {
            Ok((bytes, hash, at)) => Ok(Sent { bytes, hash, elapsed: at.saturating_duration_since(begin) }),
            Err(error) => {
                // Wakes the reply thread, which the scope waits for.
                stream.abort();
                Err(error)
            }
        };
        drop(replies);
        outcome
    })
}

type Replies = Receiver<(Result<Reply, WireError>, Instant)>;

/// Writes offer, chunks and end; judges the reply. Returns size, hash and when the reply came.
fn transfer<D: Duplex + ?Sized>(
    stream: &D,
    blocks: &Blocks,
    replies: &Replies,
    options: &SendOptions,
    progress: &mut dyn FnMut(u64),
) -> Result<(u64, [u8; 32], Instant), SendError> {
    let mut out = Io(stream);
    let offer = Offer { name: options.name.clone(), size: options.size };
    offer.write(&mut out).map_err(|error| stream_failed(error, replies))?;
    let mut bytes = 0;
    loop {
        match replies.try_recv() {
            Ok((reply, _)) => return Err(early(reply)),
            Err(TryRecvError::Empty | TryRecvError::Disconnected) => {}
        }
        match blocks.filled.recv() {
            Ok(Block::Data(buf, len)) => {
                out.write_all(&buf[..CHUNK_HEADER + len]).map_err(|error| stream_failed(error, replies))?;
                bytes += len as u64;
                progress(bytes);
                let _ = blocks.empty.try_send(buf);
            }
            Ok(Block::End(hash)) => {
                wire::write_end(&mut out, bytes, &hash).map_err(|error| stream_failed(error, replies))?;
                let at = judge(bytes, &hash, replies)?;
                return Ok((bytes, hash, at));
            }
            Ok(Block::Failed(error)) => return Err(give_up(stream, error, replies)),
            Err(_) => {
                let error = io::Error::other("the reading thread ended");
                return Err(give_up(stream, SendError::Source(error), replies));
            }
        }
    }
}

/// Waits for the reply and compares it with what we sent.
fn judge(bytes: u64, hash: &[u8; 32], replies: &Replies) -> Result<Instant, SendError> {
    let (reply, at) = match replies.recv_timeout(REPLY_TIMEOUT) {
        Ok(reply) => reply,
        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return Err(SendError::NoReply),
    };
    let reply = reply.map_err(SendError::Reply)?;
    if reply.status != Status::Ok {
        return Err(SendError::Rejected { status: reply.status, text: reply.text });
    }
    if reply.size != bytes || reply.hash != *hash {
        return Err(SendError::Mismatch { bytes: reply.size });
    }
    Ok(at)
}

/// A reply before the end can only be a refusal.
fn early(reply: Result<Reply, WireError>) -> SendError {
    match reply {
        Ok(Reply { status: Status::Ok, .. }) => {
            SendError::Reply(WireError::Malformed("the receiver confirmed a file that was not sent yet"))
        }
        Ok(Reply { status, text, .. }) => SendError::Rejected { status, text },
        Err(WireError::Io(error)) => SendError::Stream(error),
        Err(error) => SendError::Reply(error),
    }
}

/// The stream broke while writing: the receiver's own words, if any came, explain it better.
fn stream_failed(error: io::Error, replies: &Replies) -> SendError {
    match replies.recv_timeout(LATE_REPLY_TIMEOUT) {
        Ok((Ok(reply), _)) if reply.status != Status::Ok => {
            SendError::Rejected { status: reply.status, text: reply.text }
        }
        _ => SendError::Stream(error),
    }
}

/// Our source broke: tell the receiver, so that it can say why there is no file.
fn give_up<D: Duplex + ?Sized>(stream: &D, error: SendError, replies: &Replies) -> SendError {
    if wire::write_abort(&mut Io(stream), &error.to_string()).is_ok() {
        let _ = replies.recv_timeout(LATE_REPLY_TIMEOUT);
    }
    error
}

/// From the reading thread to the writer.
enum Block {
    /// A chunk: room for the header, then this many bytes.
    Data(Vec<u8>, usize),
    /// The source has ended; BLAKE3 of it all.
    End([u8; 32]),
    /// The source failed.
    Failed(SendError),
}

/// The two channels in which [`PIPELINE`] buffers circulate.
struct Blocks {
    filled: Receiver<Block>,
    empty: SyncSender<Vec<u8>>,
}

/// Starts the thread that reads and hashes. It ends when the source does or nobody listens any more.
fn spawn_reader<S: Read + Send + 'static>(mut source: S, size: Option<u64>) -> io::Result<Blocks> {
    let (filled_tx, filled) = sync_channel(PIPELINE);
    let (empty, empty_rx) = sync_channel(PIPELINE);
    for _ in 0..PIPELINE {
        let _ = empty.try_send(Vec::new());
    }
    std::thread::Builder::new().name("file-reader".into()).spawn(move || {
        let mut hasher = blake3::Hasher::new();
        let mut total = 0;
        while let Ok(buf) = empty_rx.recv() {
            let block = next_block(&mut source, buf, &mut hasher, &mut total, size);
            let last = !matches!(block, Block::Data(..));
            if filled_tx.send(block).is_err() || last {
                return;
            }
        }
    })?;
    Ok(Blocks { filled, empty })
}

fn next_block(
    source: &mut impl Read,
    mut buf: Vec<u8>,
    hasher: &mut blake3::Hasher,
    total: &mut u64,
    size: Option<u64>,
) -> Block {
    buf.resize(CHUNK_HEADER + CHUNK, 0);
    let len = loop {
        match source.read(&mut buf[CHUNK_HEADER..]) {
            Ok(len) => break len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Block::Failed(SendError::Source(error)),
        }
    };
    *total += len as u64;
    match size {
        Some(expected) if *total > expected || (len == 0 && *total < expected) => {
            return Block::Failed(SendError::SourceSize { expected, got: *total });
        }
        _ => {}
    }
    if len == 0 {
        return Block::End(*hasher.finalize().as_bytes());
    }
    hasher.update(&buf[CHUNK_HEADER..CHUNK_HEADER + len]);
    // At most CHUNK, which fits in 32 bits.
    buf[..CHUNK_HEADER].copy_from_slice(&(len as u32).to_be_bytes());
    Block::Data(buf, len)
}
