//! One stream to one member: a question, its answer, the next question.

use std::sync::Arc;
use std::time::Duration;

use openraft::error::{RPCError, RaftError, RemoteError, Timeout, Unreachable};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use openraft::{AnyError, RPCTypes};
use pilotage::{Peer, Stream};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::message::{self, Reply, Request};
use super::{Net, PORT};
use crate::frame::{HEADER, Header, Hello, Kind, body};
use crate::types::{Member, RaftId, Types};

/// Longest wait for a new stream.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(700);
/// Between two attempts at a member that cannot be reached.
const BACKOFF: Duration = Duration::from_millis(100);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// No stream could be opened: the question did not leave.
    #[error("{0}")]
    Unreachable(String),
    /// The question left, and nothing is known about what became of it.
    #[error("{0}")]
    Lost(String),
    /// As [`CallError::Lost`], by the clock.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// It does not fit.
    #[error("{0}")]
    TooLong(crate::frame::FrameError),
}

/// A way to one member. Opens its stream when it is needed, and again after an error.
#[derive(Debug)]
pub(crate) struct Link {
    net: Arc<Net>,
    target: RaftId,
    member: Member,
    stream: Option<Stream>,
}

impl Link {
    pub(crate) fn new(net: Arc<Net>, target: RaftId, member: Member) -> Self {
        Self { net, target, member, stream: None }
    }

    /// Asks once. After an error the stream is gone: a late answer must not be taken for that of the next question.
    pub(crate) async fn call(&mut self, request: &Request, limit: Duration) -> Result<Reply, CallError> {
        let bytes = request.encode().map_err(CallError::TooLong)?;
        let outcome = tokio::time::timeout(limit, self.exchange(&bytes)).await;
        match outcome {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(error)) => {
                self.close();
                Err(error)
            }
            Err(_) => {
                self.close();
                Err(CallError::Timeout(limit))
            }
        }
    }

    fn close(&mut self) {
        if let Some(stream) = self.stream.take() {
            stream.reset();
        }
    }

    /// Whoever drops this future half-way also drops the stream, which may still bring the answer.
    async fn exchange(&mut self, bytes: &[u8]) -> Result<Reply, CallError> {
        let mut stream = match self.stream.take().filter(|stream| !stream.is_closed()) {
            Some(stream) => stream,
            None => self.open().await?,
        };
        if self.net.faults.drops(self.member.endpoint) {
            // As if it got lost on the way: the caller's patience decides.
            std::future::pending::<()>().await;
        }
        let lost = |error: std::io::Error| CallError::Lost(error.to_string());
        stream.write_all(bytes).await.map_err(lost)?;
        let reply = read_reply(&mut stream).await?;
        self.stream = Some(stream);
        Ok(reply)
    }

    async fn open(&self) -> Result<Stream, CallError> {
        if self.net.faults.drops(self.member.endpoint) {
            std::future::pending::<()>().await;
        }
        let address = self.member.address().ok_or_else(|| CallError::Unreachable("unusable key".into()))?;
        let peer = Peer::At(address, self.member.endpoint);
        let opened = tokio::time::timeout(CONNECT_TIMEOUT, self.net.node.open_async(peer, PORT)).await;
        let mut stream = match opened {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(CallError::Unreachable(error.to_string())),
            Err(_) => return Err(CallError::Unreachable(format!("no stream within {CONNECT_TIMEOUT:?}"))),
        };
        if self.net.key_of(&stream) != Some(self.member.key) {
            stream.reset();
            return Err(CallError::Unreachable("another key answers at this endpoint".into()));
        }
        let hello = Hello { cluster: self.net.cluster(), from: self.net.me, to: self.target };
        let bytes = message::hello(&hello).map_err(CallError::TooLong)?;
        stream.write_all(&bytes).await.map_err(|error| CallError::Lost(error.to_string()))?;
        Ok(stream)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.close();
    }
}

/// One reply frame.
pub(crate) async fn read_reply(stream: &mut Stream) -> Result<Reply, CallError> {
    let lost = |error: std::io::Error| CallError::Lost(error.to_string());
    let mut header = [0; HEADER];
    stream.read_exact(&mut header).await.map_err(lost)?;
    let header = Header::parse(header).map_err(|error| CallError::Lost(error.to_string()))?;
    if header.kind != Kind::Reply {
        return Err(CallError::Lost("a question instead of an answer".into()));
    }
    let mut bytes = vec![0; header.len];
    stream.read_exact(&mut bytes).await.map_err(lost)?;
    body(Kind::Reply, &bytes).map_err(|error| CallError::Lost(error.to_string()))
}

/// Makes links for openraft.
#[derive(Debug, Clone)]
pub(crate) struct Links(pub(crate) Arc<Net>);

impl RaftNetworkFactory<Types> for Links {
    type Network = Link;

    async fn new_client(&mut self, target: RaftId, member: &Member) -> Link {
        Link::new(self.0.clone(), target, *member)
    }
}

type Failure<E> = RPCError<RaftId, Member, E>;

impl Link {
    fn failure<E: std::error::Error>(&self, error: CallError, action: RPCTypes) -> Failure<E> {
        let text = AnyError::error(error.to_string());
        match error {
            // Unreachable makes openraft wait before it tries again: a member that does not know us yet resets each
            // stream at once.
            CallError::Unreachable(_) | CallError::TooLong(_) | CallError::Lost(_) => {
                RPCError::Unreachable(Unreachable::new(&text))
            }
            CallError::Timeout(timeout) => {
                RPCError::Timeout(Timeout { action, id: self.net.me, target: self.target, timeout })
            }
        }
    }

    fn unexpected<E: std::error::Error>(&self, reply: Reply) -> Failure<E> {
        let text = match reply {
            Reply::Failed(text) => text,
            _ => "an answer to another question".to_owned(),
        };
        RPCError::Unreachable(Unreachable::new(&AnyError::error(text)))
    }
}

impl RaftNetwork<Types> for Link {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<RaftId>, Failure<RaftError<RaftId>>> {
        match self.call(&Request::Append(rpc), option.hard_ttl()).await {
            Ok(Reply::Append(response)) => Ok(response),
            Ok(other) => Err(self.unexpected(other)),
            Err(error) => Err(self.failure(error, RPCTypes::AppendEntries)),
        }
    }

    async fn install_snapshot(
        &mut self,
        rpc: InstallSnapshotRequest<Types>,
        option: RPCOption,
    ) -> Result<
        InstallSnapshotResponse<RaftId>,
        Failure<RaftError<RaftId, openraft::error::InstallSnapshotError>>,
    > {
        match self.call(&Request::Snapshot(rpc), option.hard_ttl()).await {
            Ok(Reply::Snapshot(response)) => Ok(response),
            Ok(Reply::SnapshotMismatch(mismatch)) => {
                let error = RaftError::APIError(mismatch.into());
                Err(RPCError::RemoteError(RemoteError::new_with_node(self.target, self.member, error)))
            }
            Ok(other) => Err(self.unexpected(other)),
            Err(error) => Err(self.failure(error, RPCTypes::InstallSnapshot)),
        }
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<RaftId>,
        option: RPCOption,
    ) -> Result<VoteResponse<RaftId>, Failure<RaftError<RaftId>>> {
        match self.call(&Request::Vote(rpc), option.hard_ttl()).await {
            Ok(Reply::Vote(response)) => Ok(response),
            Ok(other) => Err(self.unexpected(other)),
            Err(error) => Err(self.failure(error, RPCTypes::Vote)),
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(BACKOFF))
    }
}
