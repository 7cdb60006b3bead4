//! The UDP socket: made with socket2, batched by quinn-udp.

use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, SocketAddrV6, UdpSocket};

use quinn_udp::{RecvMeta, UdpSockRef, UdpSocketState};
use socket2::{Domain, Protocol, Socket as RawSocket, Type};

/// What the operating system granted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SocketInfo {
    /// Receive buffer, in bytes as the operating system counts them.
    pub recv_buffer_bytes: usize,
    /// Send buffer, in bytes as the operating system counts them.
    pub send_buffer_bytes: usize,
    /// Most datagrams that one send call takes (generic segmentation offload); 1 without it.
    pub gso_segments: usize,
    /// Most datagrams that one receive slot may hold (generic receive offload); 1 without it.
    pub gro_segments: usize,
}

/// One bound, non-blocking UDP socket. Sending is possible from any thread.
#[derive(Debug)]
pub(crate) struct Socket {
    io: UdpSocket,
    state: UdpSocketState,
    local: SocketAddr,
}

impl Socket {
    pub(crate) fn bind(address: SocketAddr, recv_bytes: usize, send_bytes: usize) -> io::Result<Self> {
        let raw = RawSocket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        if address.is_ipv6() {
            // A wildcard IPv6 socket also serves IPv4 peers where the system allows it.
            let _ = raw.set_only_v6(!address.ip().is_unspecified());
        }
        // Asked for, not required: unprivileged processes are cut to net.core.{r,w}mem_max.
        let _ = raw.set_recv_buffer_size(recv_bytes);
        let _ = raw.set_send_buffer_size(send_bytes);
        raw.bind(&address.into())?;
        let io: UdpSocket = raw.into();
        let state = UdpSocketState::new(UdpSockRef::from(&io))?;
        let local = io.local_addr()?;
        Ok(Self { io, state, local })
    }

    /// A socket that is bound already.
    pub(crate) fn wrap(io: UdpSocket, buffers: usize) -> io::Result<Self> {
        let raw = socket2::SockRef::from(&io);
        let _ = raw.set_recv_buffer_size(buffers);
        let _ = raw.set_send_buffer_size(buffers);
        let state = UdpSocketState::new(UdpSockRef::from(&io))?;
        let local = io.local_addr()?;
        Ok(Self { io, state, local })
    }

    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.local
    }

    pub(crate) fn info(&self) -> SocketInfo {
        let raw = socket2::SockRef::from(&self.io);
        SocketInfo {
            recv_buffer_bytes: raw.recv_buffer_size().unwrap_or(0),
            send_buffer_bytes: raw.send_buffer_size().unwrap_or(0),
            gso_segments: self.state.max_gso_segments(),
            gro_segments: self.state.gro_segments(),
        }
    }

    /// A second handle on the same socket, for the poller of the driver.
    pub(crate) fn try_clone_io(&self) -> io::Result<mio::net::UdpSocket> {
        Ok(mio::net::UdpSocket::from_std(self.io.try_clone()?))
    }

    /// A third one, for the reactor of a task that drives.
    #[cfg(all(feature = "tokio", unix))]
    pub(crate) fn try_clone(&self) -> io::Result<UdpSocket> {
        self.io.try_clone()
    }

    pub(crate) fn max_gso_segments(&self) -> usize {
        self.state.max_gso_segments()
    }

    /// Sends one datagram, or a batch of `segment_size`d ones. Never blocks.
    pub(crate) fn send(
        &self,
        destination: SocketAddr,
        contents: &[u8],
        segment_size: Option<usize>,
    ) -> io::Result<()> {
        let transmit = quinn_udp::Transmit {
            destination: self.outbound(destination),
            ecn: None,
            contents,
            segment_size,
            src_ip: None,
        };
        self.state.try_send(UdpSockRef::from(&self.io), &transmit)
    }

    /// One batched receive through the driver's handle; the number of filled slots.
    pub(crate) fn recv(
        &self,
        io: &mio::net::UdpSocket,
        slots: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> io::Result<usize> {
        io.try_io(|| self.state.recv(UdpSockRef::from(io), slots, meta))
    }

    /// A dual-stack socket takes IPv4 destinations only in their IPv6-mapped form (RFC 4291 §2.5.5.2).
    fn outbound(&self, destination: SocketAddr) -> SocketAddr {
        match (self.local, destination) {
            (SocketAddr::V6(_), SocketAddr::V4(v4)) => {
                SocketAddr::V6(SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0))
            }
            _ => destination,
        }
    }
}

/// The opposite of [`Socket::outbound`]: the core compares addresses, so one peer has one form.
pub(crate) fn inbound(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_addresses_have_one_form() {
        let mapped: SocketAddr = "[::ffff:127.0.0.1]:9".parse().expect("address");
        assert_eq!(inbound(mapped), "127.0.0.1:9".parse().expect("address"));
        let v6: SocketAddr = "[2001:db8::1]:9".parse().expect("address");
        assert_eq!(inbound(v6), v6);
    }

    #[test]
    fn a_dual_stack_socket_reaches_ipv4() {
        let Ok(socket) = Socket::bind("[::]:0".parse().expect("address"), 1 << 16, 1 << 16) else {
            return; // no IPv6 on this machine
        };
        let peer = UdpSocket::bind("127.0.0.1:0").expect("bind");
        peer.set_read_timeout(Some(std::time::Duration::from_secs(5))).expect("timeout");
        socket.send(peer.local_addr().expect("address"), b"hello", None).expect("send");
        let mut buf = [0; 16];
        let (len, _) = peer.recv_from(&mut buf).expect("receive");
        assert_eq!(&buf[..len], b"hello");
    }

    #[test]
    fn granted_buffers_are_reported() {
        let socket = Socket::bind("127.0.0.1:0".parse().expect("address"), 1 << 16, 1 << 16).expect("bind");
        let info = socket.info();
        assert!(info.recv_buffer_bytes > 0 && info.send_buffer_bytes > 0 && info.gso_segments >= 1);
    }
}
