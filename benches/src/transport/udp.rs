//! UDP sockets with the buffers that a subject asks for.

use std::net::{SocketAddr, UdpSocket};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::Failure;

/// A bound socket; `None` leaves the kernel's buffers (`net.core.rmem_default`, `wmem_default`).
pub fn socket(addr: SocketAddr, buffer: Option<usize>) -> Result<UdpSocket, Failure> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    if let Some(bytes) = buffer {
        socket.set_recv_buffer_size(bytes)?;
        socket.set_send_buffer_size(bytes)?;
    }
    socket.bind(&SockAddr::from(addr))?;
    Ok(socket.into())
}
