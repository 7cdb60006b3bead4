//! The channel itself.

use std::fmt;
use std::io::{self, Read, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use pilotage_proto::crypto::{Aes256Gcm, EphemeralKey, INFO_SECURE, PacketAead};
use pilotage_wire::NodeId;

use super::auth::Proof;
use super::wire::{self, AUTH, Auth, LENGTH, NONCE, Role, TAG};
use crate::duplex::{Duplex, Io};

/// Bytes of plaintext in the frames that we send.
pub const MAX_PLAIN: usize = 32 * 1024;

/// The whole handshake must end within this time.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Bytes that are read at a time: an announced length alone takes no memory.
const STEP: usize = 64 * 1024;

/// Why there is no channel.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The stream failed or ended.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The peer's key gives no secret.
    #[error("the peer sent a key that gives no secret")]
    Key,
    /// The peer did not prove who it is.
    #[error("the peer did not prove who it is: {0}")]
    Proof(&'static str),
    /// The system gave no random bytes.
    #[error("no random numbers: {0}")]
    Random(String),
}

/// An encrypted stream over another one. Ends separately like it; both sides may be used from different threads.
pub struct Channel<D> {
    stream: D,
    role: Role,
    aead: Aes256Gcm,
    reader: Mutex<Reader>,
    writer: Mutex<Writer>,
    peer: Option<NodeId>,
}

impl<D: fmt::Debug> fmt::Debug for Channel<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channel")
            .field("stream", &self.stream)
            .field("role", &self.role)
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}

struct Reader {
    /// Counter that the next frame must have.
    next: u64,
    /// Received bytes of the frame that is coming.
    partial: Vec<u8>,
    /// Plaintext that was not read yet.
    plain: Vec<u8>,
    taken: usize,
    /// The direction has ended, or was found to be wrong.
    state: ReadState,
}

#[derive(PartialEq, Eq)]
enum ReadState {
    Open,
    Ended,
    Broken,
}

struct Writer {
    /// Counter of the next frame; `None` after the last one, or after a write that failed in the middle.
    next: Option<u64>,
}

impl<D: Duplex> Channel<D> {
    /// The end that opened the stream. With `proof`, both sides prove who they are.
    ///
    /// # Errors
    /// See [`Error`]; the stream is given up then.
    pub fn client(stream: D, proof: Option<&Proof>) -> Result<Self, Error> {
        Self::open(stream, Role::Client, proof, random()?)
    }

    /// The end that accepted the stream.
    ///
    /// # Errors
    /// As [`Channel::client`].
    pub fn server(stream: D, proof: Option<&Proof>) -> Result<Self, Error> {
        Self::open(stream, Role::Server, proof, random()?)
    }

    /// With a key that the caller has drawn.
    pub(super) fn open(
        stream: D,
        role: Role,
        proof: Option<&Proof>,
        private: [u8; 32],
    ) -> Result<Self, Error> {
        let outcome = handshake(&stream, role, private, proof);
        match outcome {
            Ok((aead, peer, read, written)) => Ok(Self {
                stream,
                role,
                aead,
                reader: Mutex::new(Reader { next: read, ..Reader::new() }),
                writer: Mutex::new(Writer { next: Some(written) }),
                peer,
            }),
            Err(error) => {
                stream.abort();
                Err(error)
            }
        }
    }

    /// The node at the other end, if it has proved that.
    #[must_use]
    pub fn peer(&self) -> Option<NodeId> {
        self.peer
    }

    /// The stream below.
    #[must_use]
    pub fn stream(&self) -> &D {
        &self.stream
    }

    fn reader(&self) -> MutexGuard<'_, Reader> {
        self.reader.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The key, who the peer is, and the counters of the next frame read and written.
type Agreed = (Aes256Gcm, Option<NodeId>, u64, u64);

fn handshake<D: Duplex>(
    stream: &D,
    role: Role,
    private: [u8; 32],
    proof: Option<&Proof>,
) -> Result<Agreed, Error> {
    let deadline = Instant::now() + HANDSHAKE;
    stream.set_nodelay(true)?;
    let own = EphemeralKey::from_bytes(private);
    let mut peer_key = [0; 32];
    if role == Role::Client {
        Io(stream).write_all(&own.public())?;
    }
    read_by(stream, &mut peer_key, deadline)?;
    if role == Role::Server {
        Io(stream).write_all(&own.public())?;
    }
    // Our own key sent back: nobody but us could know the secret.
    if peer_key == own.public() {
        return Err(Error::Key);
    }
    let aead = Aes256Gcm::new(own.shared_key(&peer_key, INFO_SECURE).ok_or(Error::Key)?.as_bytes());
    let Some(proof) = proof else {
        stream.set_read_timeout(None)?;
        return Ok((aead, None, 1, 1));
    };
    let say = || -> Result<(), Error> {
        let auth = proof.statement(&own.public(), unix_seconds(), random()?);
        let frame = seal(&aead, role, 1, &auth.encode())?;
        Ok(Io(stream).write_all(&frame)?)
    };
    // The server speaks first, and the client only to a server that has proved itself.
    if role == Role::Server {
        say()?;
    }
    let mut frame = [0; LENGTH + NONCE + AUTH + TAG];
    read_by(stream, &mut frame, deadline)?;
    let peer = check_auth(&aead, role.peer(), &mut frame, proof, &peer_key)?;
    if role == Role::Client {
        say()?;
    }
    stream.set_read_timeout(None)?;
    Ok((aead, Some(peer), 2, 2))
}

fn check_auth(
    aead: &Aes256Gcm,
    from: Role,
    frame: &mut [u8; LENGTH + NONCE + AUTH + TAG],
    proof: &Proof,
    peer_key: &[u8; 32],
) -> Result<NodeId, Error> {
    let wrong = Error::Proof("its first frame is not a proof");
    let nonce = from.nonce(1);
    if Some(frame[..LENGTH + NONCE].to_vec()) != wire::head(AUTH, nonce).map(|head| head.to_vec()) {
        return Err(wrong);
    }
    let plain = aead.open_in_place(&nonce, &from.prefix(), &mut frame[LENGTH + NONCE..]);
    let plain: Option<&[u8; AUTH]> = plain.and_then(|plain| (&*plain).try_into().ok());
    let auth = Auth::decode(plain.ok_or(wrong)?);
    proof.check(&auth, peer_key, unix_seconds(), Instant::now()).map_err(Error::Proof)
}

/// Reads until `buf` is full, at most until `deadline`.
fn read_by<D: Duplex>(stream: &D, buf: &mut [u8], deadline: Instant) -> io::Result<()> {
    let mut filled = 0;
    while filled < buf.len() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut buf[filled..]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(len) => filled += len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| Error::Random(error.to_string()))?;
    Ok(bytes)
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// One frame.
pub(super) fn seal(aead: &Aes256Gcm, role: Role, counter: u64, plain: &[u8]) -> io::Result<Vec<u8>> {
    let nonce = role.nonce(counter);
    let head = wire::head(plain.len(), nonce).ok_or(io::ErrorKind::InvalidInput)?;
    let mut frame = Vec::with_capacity(head.len() + plain.len() + TAG);
    frame.extend_from_slice(&head);
    frame.extend_from_slice(plain);
    frame.resize(frame.len() + TAG, 0);
    aead.seal_in_place(&nonce, &role.prefix(), &mut frame[head.len()..]);
    Ok(frame)
}

impl Reader {
    fn new() -> Self {
        Self { next: 1, partial: Vec::new(), plain: Vec::new(), taken: 0, state: ReadState::Open }
    }

    /// Bytes that must be there before the next step: the head, then the whole frame.
    fn wanted(&self) -> io::Result<usize> {
        let Some(field) = self.partial.first_chunk::<LENGTH>() else { return Ok(LENGTH) };
        let sealed = wire::sealed_length(*field).ok_or_else(|| broken("a frame of a wrong length"))?;
        Ok(LENGTH + NONCE + sealed)
    }

    /// Reads a frame to its end and opens it; `false` at the end of the stream. What was read before an error (a read
    /// timeout) is kept.
    fn fill<D: Duplex>(&mut self, stream: &D, aead: &Aes256Gcm, from: Role) -> io::Result<bool> {
        loop {
            let wanted = self.wanted()?;
            let have = self.partial.len();
            if have == wanted && have > LENGTH {
                break;
            }
            let step = STEP.min(wanted - have);
            self.partial.resize(have + step, 0);
            let result = stream.read(&mut self.partial[have..]);
            self.partial.truncate(have + *result.as_ref().unwrap_or(&0));
            match result {
                Ok(0) if have == 0 => return Ok(false),
                Ok(0) => return Err(broken("the end inside a frame")),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let mut frame = std::mem::take(&mut self.partial);
        let nonce = from.nonce(self.next);
        // Exactly the next frame of the other end: nothing replayed, left out, or reflected.
        if frame[LENGTH..LENGTH + NONCE] != nonce {
            return Err(broken("a frame out of order"));
        }
        let opened = aead.open_in_place(&nonce, &from.prefix(), &mut frame[LENGTH + NONCE..]);
        let length = opened.ok_or_else(|| broken("a frame that does not open"))?.len();
        self.next = self.next.checked_add(1).ok_or_else(|| broken("more frames than one key allows"))?;
        frame.truncate(LENGTH + NONCE + length);
        self.plain = frame;
        self.taken = LENGTH + NONCE;
        Ok(true)
    }
}

fn broken(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("secure channel: {what}"))
}

impl<D: Duplex> Duplex for Channel<D> {
    fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        let mut reader = self.reader();
        // Frames may be empty.
        while reader.taken == reader.plain.len() && !buf.is_empty() {
            match reader.state {
                ReadState::Open => {}
                ReadState::Ended => return Ok(0),
                ReadState::Broken => return Err(broken("it has failed before")),
            }
            match reader.fill(&self.stream, &self.aead, self.role.peer()) {
                Ok(true) => {}
                Ok(false) => reader.state = ReadState::Ended,
                Err(error) => {
                    if error.kind() == io::ErrorKind::InvalidData {
                        reader.state = ReadState::Broken;
                        self.stream.abort();
                    }
                    return Err(error);
                }
            }
        }
        let len = buf.len().min(reader.plain.len() - reader.taken);
        let taken = reader.taken;
        buf[..len].copy_from_slice(&reader.plain[taken..taken + len]);
        reader.taken += len;
        Ok(len)
    }

    fn write(&self, data: &[u8]) -> io::Result<usize> {
        if data.is_empty() {
            return Ok(0);
        }
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        // Taken out first: after a write that fails in the middle of a frame nothing more may follow.
        let counter = writer.next.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let len = data.len().min(MAX_PLAIN);
        let frame = seal(&self.aead, self.role, counter, &data[..len])?;
        Io(&self.stream).write_all(&frame)?;
        writer.next = counter.checked_add(1);
        Ok(len)
    }

    fn finish(&self) -> io::Result<()> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner).next = None;
        self.stream.finish()
    }

    fn abort(&self) {
        self.stream.abort();
    }

    fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.stream.set_read_timeout(timeout)
    }

    fn set_nodelay(&self, nodelay: bool) -> io::Result<()> {
        self.stream.set_nodelay(nodelay)
    }
}

impl<D: Duplex> Read for Channel<D> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        Duplex::read(self, buf)
    }
}

impl<D: Duplex> Write for Channel<D> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        Duplex::write(self, data)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
