//! tokio's traits for [`Stream`], and a node as a task. Timeouts set on the stream apply to blocking calls only.

use std::io;
use std::net::Shutdown;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

#[cfg(unix)]
use crate::driver::task::Drive;
#[cfg(unix)]
use crate::node::Node;
use crate::stream::Stream;

#[cfg(unix)]
impl Node {
    /// Drives the node as a task of the tokio runtime on which the result is polled, instead of on a thread of its own.
    ///
    /// Optional, and faster where tasks of that runtime exchange many small messages: those whom a batch of datagrams concerns run on the same
    /// thread right after it, and their answers leave together (`spec/decisions/0050`). The node is then as prompt as the runtime: a task
    /// that blocks its thread, with a blocking call of this node, too, holds up everything that the node does. ([`Node::close`] blocks as well,
    /// until the peers have what was written: not on a thread that drives one of those peers.) When the future is dropped, the
    /// node closes or the runtime ends, the node's own thread takes over; nothing is lost.
    ///
    /// The future is no handle on the node: it ends when the last of those is gone.
    ///
    /// ```
    /// use pilotage::{Node, Peer};
    /// use tokio::io::{AsyncReadExt, AsyncWriteExt};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    /// runtime.block_on(async {
    ///     let server = Node::builder().bind("127.0.0.1:0".parse()?).start()?;
    ///     let client = Node::builder().bind("127.0.0.1:0".parse()?).start()?;
    ///     tokio::spawn(server.drive());
    ///     tokio::spawn(client.drive());
    ///     let listener = server.listen(7)?;
    ///     let mut stream = client.open_async(Peer::At(server.address(), server.local_addr()), 7).await?;
    ///     stream.write_all(b"hello").await?;
    ///     let mut words = [0; 5];
    ///     listener.accept_async().await?.read_exact(&mut words).await?;
    ///     assert_eq!(&words, b"hello");
    ///     Ok(())
    /// })
    /// # }
    /// ```
    ///
    /// # Errors
    /// The future ends with [`AlreadyExists`](io::ErrorKind::AlreadyExists) if another task drives the node, or with what the reactor
    /// says about the socket; the node goes on without it.
    ///
    /// # Panics
    /// When polled outside of a tokio runtime with its IO and time drivers enabled.
    pub fn drive(&self) -> Drive {
        Drive::new(self.inner.shared.clone())
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let len = ready!(self.poll_read_into(cx, buf.initialize_unfilled()))?;
        buf.advance(len);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_from(cx, data)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.shutdown(Shutdown::Write))
    }
}
