//! Async face of the node: wakers in the same slots that threads wait on, and no runtime.

pub(crate) mod blocking;
#[cfg(feature = "futures")]
mod futures;
#[cfg(feature = "tokio")]
mod tokio;

#[cfg(any(feature = "futures", feature = "tokio"))]
mod poll {
    use std::io;
    use std::task::{Context, Poll};

    use crate::slot::Direction;
    use crate::stream::Stream;

    impl Stream {
        pub(crate) fn poll_read_into(&self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
            self.poll(Direction::Read, cx, || self.try_read(buf))
        }

        pub(crate) fn poll_write_from(&self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
            self.poll(Direction::Write, cx, || self.try_write(data))
        }
    }
}
