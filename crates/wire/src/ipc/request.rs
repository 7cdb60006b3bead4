//! What drivers ask. `spec/ipc.md §3`.

use super::{EncodeError, IpcError, LENGTH_PREFIX, Reader, Writer};
use crate::{NodeId, SocketAddress};

/// What a driver asks; texts and bytes borrow from the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request<'a> {
    /// Accept connections to this port of ours; 0 asks for a free one.
    Bind {
        /// The port.
        port: u16,
    },
    /// Open a connection.
    Dial {
        /// To whom.
        to: SocketAddress,
    },
    /// Send these bytes in a connection. No reply but an error.
    Send {
        /// Which connection.
        connection: u32,
        /// The bytes.
        data: &'a [u8],
    },
    /// End a connection.
    Close {
        /// Which connection.
        connection: u32,
    },
    /// Send a datagram; node `FFFFFFFF` sends it to every member of the network. No reply but an error.
    SendTo {
        /// To whom.
        to: SocketAddress,
        /// The payload.
        data: &'a [u8],
    },
    /// The same for a datagram that may be delivered twice: it may leave in the first packet of a handshake. Ours, not the reference's.
    SendIdempotent {
        /// To whom.
        to: SocketAddress,
        /// The payload.
        data: &'a [u8],
    },
    /// Everything about the daemon.
    Info,
    /// Trust between nodes.
    Handshake(HandshakeRequest<'a>),
    /// Which node has this name?
    ResolveHostname(&'a str),
    /// Take this name; empty gives it up.
    SetHostname(&'a str),
    /// Whether anybody may learn where we are.
    SetVisibility {
        /// Anybody may.
        public: bool,
    },
    /// Leave the registry.
    Deregister,
    /// Take these tags: a JSON list of texts, as it came.
    SetTags(&'a str),
    /// Post events to this URL; empty ends that.
    SetWebhook(&'a str),
    /// Whether we execute tasks.
    SetTaskExec {
        /// We do.
        enabled: bool,
    },
    /// Networks.
    Network(NetworkRequest<'a>),
    /// A few numbers about the daemon.
    Health,
}

/// Sub-commands of [`Request::Handshake`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandshakeRequest<'a> {
    /// 1: ask a node for trust.
    Send {
        /// Whom.
        node: NodeId,
        /// Why it should.
        justification: &'a str,
    },
    /// 2: grant what it asked for.
    Approve {
        /// Whom.
        node: NodeId,
    },
    /// 3: refuse it.
    Reject {
        /// Whom.
        node: NodeId,
        /// Why.
        reason: &'a str,
    },
    /// 4: who waits for an answer?
    Pending,
    /// 5: who is trusted?
    Trusted,
    /// 6: trust no longer.
    Revoke {
        /// Whom.
        node: NodeId,
    },
}

/// Sub-commands of [`Request::Network`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetworkRequest<'a> {
    /// 1: which networks are there?
    List,
    /// 2: become a member.
    Join {
        /// Of which network.
        network: u16,
        /// Its token, if it wants one.
        token: &'a str,
    },
    /// 3: be no member any more.
    Leave {
        /// Of which network.
        network: u16,
    },
    /// 4: who is a member?
    Members {
        /// Of which network.
        network: u16,
    },
    /// 5: invite a node.
    Invite {
        /// To which network.
        network: u16,
        /// Whom.
        node: NodeId,
    },
    /// 6: who invited us?
    PollInvites,
    /// 7: answer an invitation.
    Respond {
        /// To which network.
        network: u16,
        /// Yes.
        accept: bool,
    },
}

impl<'a> Request<'a> {
    /// Decodes one message (command and payload). Bytes after a payload of fixed length are ignored. `spec/ipc.md §2.3`.
    ///
    /// # Errors
    ///
    /// [`IpcError`], to be answered with [`Reply::Error`](super::Reply::Error).
    pub fn decode(message: &'a [u8]) -> Result<Self, IpcError> {
        let mut r = Reader::new(message)?;
        Ok(match r.command {
            0x01 => Self::Bind { port: r.u16()? },
            0x03 => Self::Dial { to: r.socket()? },
            0x06 => Self::Send { connection: r.u32()?, data: r.rest },
            0x08 => Self::Close { connection: r.u32()? },
            0x0B => Self::SendTo { to: r.socket()?, data: r.rest },
            0x8B => Self::SendIdempotent { to: r.socket()?, data: r.rest },
            0x0D => Self::Info,
            0x0F => Self::Handshake(handshake(&mut r)?),
            0x11 => Self::ResolveHostname(r.text()?),
            0x13 => Self::SetHostname(r.text()?),
            0x15 => Self::SetVisibility { public: r.u8()? != 0 },
            0x17 => Self::Deregister,
            0x19 => Self::SetTags(r.text()?),
            0x1B => Self::SetWebhook(r.text()?),
            0x1D => Self::SetTaskExec { enabled: r.u8()? != 0 },
            0x1F => Self::Network(network(&mut r)?),
            0x21 => Self::Health,
            other => return Err(IpcError::Command(other)),
        })
    }

    /// The command byte.
    pub fn command(&self) -> u8 {
        match self {
            Self::Bind { .. } => 0x01,
            Self::Dial { .. } => 0x03,
            Self::Send { .. } => 0x06,
            Self::Close { .. } => 0x08,
            Self::SendTo { .. } => 0x0B,
            Self::SendIdempotent { .. } => 0x8B,
            Self::Info => 0x0D,
            Self::Handshake(_) => 0x0F,
            Self::ResolveHostname(_) => 0x11,
            Self::SetHostname(_) => 0x13,
            Self::SetVisibility { .. } => 0x15,
            Self::Deregister => 0x17,
            Self::SetTags(_) => 0x19,
            Self::SetWebhook(_) => 0x1B,
            Self::SetTaskExec { .. } => 0x1D,
            Self::Network(_) => 0x1F,
            Self::Health => 0x21,
        }
    }

    /// Bytes of the frame, length field included.
    pub fn encoded_len(&self) -> usize {
        LENGTH_PREFIX + 1 + self.payload_len()
    }

    fn payload_len(&self) -> usize {
        match *self {
            Self::Bind { .. } => 2,
            Self::Dial { .. } => 8,
            Self::Send { data, .. } => 4 + data.len(),
            Self::Close { .. } => 4,
            Self::SendTo { data, .. } | Self::SendIdempotent { data, .. } => 8 + data.len(),
            Self::Info | Self::Deregister | Self::Health => 0,
            Self::Handshake(request) => request.payload_len(),
            Self::ResolveHostname(text)
            | Self::SetHostname(text)
            | Self::SetTags(text)
            | Self::SetWebhook(text) => text.len(),
            Self::SetVisibility { .. } | Self::SetTaskExec { .. } => 1,
            Self::Network(request) => request.payload_len(),
        }
    }

    /// Writes the frame, length field included, and returns its length.
    ///
    /// # Errors
    ///
    /// [`EncodeError`] if the buffer is too small or the message longer than [`MAX_MESSAGE`](super::MAX_MESSAGE).
    pub fn encode(&self, buf: &mut [u8]) -> Result<usize, EncodeError> {
        let mut w = Writer::begin(buf, self.command(), self.payload_len())?;
        match *self {
            Self::Bind { port } => w.put(&port.to_be_bytes()),
            Self::Dial { to } => w.socket(to),
            Self::Send { connection, data } => {
                w.put(&connection.to_be_bytes());
                w.put(data);
            }
            Self::Close { connection } => w.put(&connection.to_be_bytes()),
            Self::SendTo { to, data } | Self::SendIdempotent { to, data } => {
                w.socket(to);
                w.put(data);
            }
            Self::Info | Self::Deregister | Self::Health => {}
            Self::Handshake(request) => request.write(&mut w),
            Self::ResolveHostname(text)
            | Self::SetHostname(text)
            | Self::SetTags(text)
            | Self::SetWebhook(text) => w.put(text.as_bytes()),
            Self::SetVisibility { public: on } | Self::SetTaskExec { enabled: on } => w.put(&[u8::from(on)]),
            Self::Network(request) => request.write(&mut w),
        }
        Ok(self.encoded_len())
    }
}

fn handshake<'a>(r: &mut Reader<'a>) -> Result<HandshakeRequest<'a>, IpcError> {
    Ok(match r.u8()? {
        1 => HandshakeRequest::Send { node: r.node()?, justification: r.text()? },
        2 => HandshakeRequest::Approve { node: r.node()? },
        3 => HandshakeRequest::Reject { node: r.node()?, reason: r.text()? },
        4 => HandshakeRequest::Pending,
        5 => HandshakeRequest::Trusted,
        6 => HandshakeRequest::Revoke { node: r.node()? },
        sub => return Err(IpcError::SubCommand { command: r.command, sub }),
    })
}

impl HandshakeRequest<'_> {
    fn payload_len(&self) -> usize {
        match self {
            Self::Send { justification: text, .. } | Self::Reject { reason: text, .. } => 5 + text.len(),
            Self::Approve { .. } | Self::Revoke { .. } => 5,
            Self::Pending | Self::Trusted => 1,
        }
    }

    fn write(&self, w: &mut Writer<'_>) {
        let (sub, node, text) = match *self {
            Self::Send { node, justification } => (1, Some(node), justification),
            Self::Approve { node } => (2, Some(node), ""),
            Self::Reject { node, reason } => (3, Some(node), reason),
            Self::Pending => (4, None, ""),
            Self::Trusted => (5, None, ""),
            Self::Revoke { node } => (6, Some(node), ""),
        };
        w.put(&[sub]);
        if let Some(node) = node {
            w.put(&node.0.to_be_bytes());
        }
        w.put(text.as_bytes());
    }
}

fn network<'a>(r: &mut Reader<'a>) -> Result<NetworkRequest<'a>, IpcError> {
    Ok(match r.u8()? {
        1 => NetworkRequest::List,
        2 => NetworkRequest::Join { network: r.u16()?, token: r.text()? },
        3 => NetworkRequest::Leave { network: r.u16()? },
        4 => NetworkRequest::Members { network: r.u16()? },
        5 => NetworkRequest::Invite { network: r.u16()?, node: r.node()? },
        6 => NetworkRequest::PollInvites,
        7 => NetworkRequest::Respond { network: r.u16()?, accept: r.u8()? != 0 },
        sub => return Err(IpcError::SubCommand { command: r.command, sub }),
    })
}

impl NetworkRequest<'_> {
    fn payload_len(&self) -> usize {
        match self {
            Self::List | Self::PollInvites => 1,
            Self::Join { token, .. } => 3 + token.len(),
            Self::Leave { .. } | Self::Members { .. } => 3,
            Self::Invite { .. } => 7,
            Self::Respond { .. } => 4,
        }
    }

    fn write(&self, w: &mut Writer<'_>) {
        match *self {
            Self::List => w.put(&[1]),
            Self::Join { network, token } => {
                w.put(&[2]);
                w.put(&network.to_be_bytes());
                w.put(token.as_bytes());
            }
            Self::Leave { network } => {
                w.put(&[3]);
                w.put(&network.to_be_bytes());
            }
            Self::Members { network } => {
                w.put(&[4]);
                w.put(&network.to_be_bytes());
            }
            Self::Invite { network, node } => {
                w.put(&[5]);
                w.put(&network.to_be_bytes());
                w.put(&node.0.to_be_bytes());
            }
            Self::PollInvites => w.put(&[6]),
            Self::Respond { network, accept } => {
                w.put(&[7]);
                w.put(&network.to_be_bytes());
                w.put(&[u8::from(accept)]);
            }
        }
    }
}
