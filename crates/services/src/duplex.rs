//! [`Duplex`]: the little that a service needs of a byte stream.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

/// An ordered byte stream with two directions that end separately.
///
/// All methods take `&self`, so one thread can read while another writes.
pub trait Duplex: Send + Sync {
    /// Reads at least one byte, or returns 0 at the end of the peer's direction.
    ///
    /// # Errors
    /// As `Read::read`.
    fn read(&self, buf: &mut [u8]) -> io::Result<usize>;

    /// Writes at least one byte of a non-empty `data`; blocks while the send buffer is full.
    ///
    /// # Errors
    /// As `Write::write`.
    fn write(&self, data: &[u8]) -> io::Result<usize>;

    /// Ends our direction after all written bytes; reading goes on.
    ///
    /// # Errors
    /// If the stream has failed already.
    fn finish(&self) -> io::Result<()>;

    /// Gives the stream up at once: blocked readers and writers of both sides return with an error.
    fn abort(&self);

    /// Bounds how long one `read` may wait; `None` = for ever.
    ///
    /// # Errors
    /// If the stream refuses the option.
    fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()>;

    /// Sends small writes at once instead of gathering them.
    ///
    /// # Errors
    /// If the stream refuses the option.
    fn set_nodelay(&self, nodelay: bool) -> io::Result<()>;
}

impl Duplex for pilotage::Stream {
    fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        Read::read(&mut &*self, buf)
    }

    fn write(&self, data: &[u8]) -> io::Result<usize> {
        Write::write(&mut &*self, data)
    }

    fn finish(&self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }

    fn abort(&self) {
        // `reset` consumes a handle, and every handle names the same stream.
        if let Ok(handle) = self.try_clone() {
            handle.reset();
        }
    }

    fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        pilotage::Stream::set_read_timeout(self, timeout)
    }

    fn set_nodelay(&self, nodelay: bool) -> io::Result<()> {
        pilotage::Stream::set_nodelay(self, nodelay)
    }
}

impl Duplex for TcpStream {
    fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        Read::read(&mut &*self, buf)
    }

    fn write(&self, data: &[u8]) -> io::Result<usize> {
        Write::write(&mut &*self, data)
    }

    fn finish(&self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }

    fn abort(&self) {
        let _ = self.shutdown(Shutdown::Both);
    }

    fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        TcpStream::set_read_timeout(self, timeout)
    }

    fn set_nodelay(&self, nodelay: bool) -> io::Result<()> {
        TcpStream::set_nodelay(self, nodelay)
    }
}

/// Borrowed `Read + Write` view of a [`Duplex`].
#[derive(Debug)]
pub(crate) struct Io<'a, D: ?Sized>(pub(crate) &'a D);

impl<D: Duplex + ?Sized> Read for Io<'_, D> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }
}

impl<D: Duplex + ?Sized> Write for Io<'_, D> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0.write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use std::net::{TcpListener, TcpStream};

    /// Two ends of a TCP connection on loopback.
    pub(crate) fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let a = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (b, _) = listener.accept().unwrap();
        (a, b)
    }
}
