//! What members ask each other, as serde types in frames.

use openraft::error::{InstallSnapshotError, RaftError, SnapshotMismatch};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use serde::{Deserialize, Serialize};

use crate::frame::{FrameError, HEADER, Header, Hello, Join, Kind, body};
use crate::status::Status;
use crate::types::{Answer, Member, RaftId, Types};

/// A question.
#[derive(Debug)]
pub(crate) enum Request {
    Append(AppendEntriesRequest<Types>),
    Vote(VoteRequest<RaftId>),
    Snapshot(InstallSnapshotRequest<Types>),
    Propose(Vec<u8>),
    ReadIndex,
    Admit(Join),
    Remove(RaftId),
    Status,
    /// Sign this, if it follows from your state.
    Attest(Vec<u8>),
    /// For the machine, past the log.
    Notice(Vec<u8>),
}

/// An answer.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    Append(AppendEntriesResponse<RaftId>),
    Vote(VoteResponse<RaftId>),
    Snapshot(InstallSnapshotResponse<RaftId>),
    SnapshotMismatch(SnapshotMismatch),
    Answer(Answer),
    /// Linearizable reads must have applied this index.
    Index(u64),
    /// Another node leads, if any does.
    NotLeader(Option<RaftId>),
    Welcome(Welcome),
    Done,
    Status(Box<Status>),
    /// Said to people.
    Failed(String),
    /// The machine's answer, and its index in the log.
    Ordered(Answer, u64),
    /// A signature of 64 bytes; nothing if the statement does not follow from the state (yet).
    Attested(Vec<u8>),
}

/// What a new member learns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Welcome {
    pub(crate) cluster: [u8; 16],
    pub(crate) members: Vec<(RaftId, Member)>,
    /// The host knows the token too.
    pub(crate) proof: [u8; 32],
}

impl Request {
    /// Header and body.
    pub(crate) fn encode(&self) -> Result<Vec<u8>, FrameError> {
        match self {
            Self::Append(request) => framed(Kind::Append, request),
            Self::Vote(request) => framed(Kind::Vote, request),
            Self::Snapshot(request) => framed(Kind::Snapshot, request),
            Self::Propose(command) => framed(Kind::Propose, command),
            Self::ReadIndex => framed(Kind::ReadIndex, &()),
            Self::Admit(join) => framed(Kind::Admit, join),
            Self::Remove(id) => framed(Kind::Remove, id),
            Self::Status => framed(Kind::Status, &()),
            Self::Attest(statement) => framed(Kind::Attest, statement),
            Self::Notice(notice) => framed(Kind::Notice, notice),
        }
    }

    /// Reads the body behind a header.
    pub(crate) fn decode(kind: Kind, bytes: &[u8]) -> Result<Self, FrameError> {
        Ok(match kind {
            Kind::Append => Self::Append(body(kind, bytes)?),
            Kind::Vote => Self::Vote(body(kind, bytes)?),
            Kind::Snapshot => Self::Snapshot(body(kind, bytes)?),
            Kind::Propose => Self::Propose(body(kind, bytes)?),
            Kind::ReadIndex => body(kind, bytes).map(|()| Self::ReadIndex)?,
            Kind::Admit => Self::Admit(body(kind, bytes)?),
            Kind::Remove => Self::Remove(body(kind, bytes)?),
            Kind::Status => body(kind, bytes).map(|()| Self::Status)?,
            Kind::Attest => Self::Attest(body(kind, bytes)?),
            Kind::Notice => Self::Notice(body(kind, bytes)?),
            Kind::Hello | Kind::Join | Kind::Reply => return Err(FrameError::Body(kind)),
        })
    }
}

impl Reply {
    /// Header and body; an answer that is too long becomes one that says so.
    pub(crate) fn encode(&self) -> Vec<u8> {
        framed(Kind::Reply, self)
            .or_else(|error| framed(Kind::Reply, &Self::Failed(error.to_string())))
            .unwrap_or_default()
    }

    pub(crate) fn snapshot(
        result: Result<InstallSnapshotResponse<RaftId>, RaftError<RaftId, InstallSnapshotError>>,
    ) -> Self {
        match result {
            Ok(response) => Self::Snapshot(response),
            Err(RaftError::APIError(InstallSnapshotError::SnapshotMismatch(mismatch))) => {
                Self::SnapshotMismatch(mismatch)
            }
            Err(RaftError::Fatal(error)) => Self::Failed(error.to_string()),
        }
    }
}

pub(crate) fn hello(hello: &Hello) -> Result<Vec<u8>, FrameError> {
    framed(Kind::Hello, hello)
}

pub(crate) fn join(join: &Join) -> Result<Vec<u8>, FrameError> {
    framed(Kind::Join, join)
}

fn framed<T: Serialize>(kind: Kind, value: &T) -> Result<Vec<u8>, FrameError> {
    let out = postcard::to_extend(value, vec![0; HEADER]).map_err(|_| FrameError::Body(kind))?;
    let len = out.len() - HEADER;
    if len > kind.limit() {
        return Err(FrameError::TooLong { kind, len });
    }
    let mut out = out;
    out[..HEADER].copy_from_slice(&Header { kind, len }.encode());
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_command_beyond_the_bound_is_not_sent() {
        assert!(Request::Propose(vec![1; crate::MAX_COMMAND]).encode().is_ok());
        assert!(Request::Propose(vec![1; Kind::Propose.limit() + 1]).encode().is_err());
        assert!(Reply::Failed("x".repeat(Kind::Reply.limit())).encode().len() < 200);
    }

    proptest! {
        /// Whatever a member sends: an error, never a panic, and never more memory than the frame had.
        #[test]
        fn no_body_breaks_the_node(kind in 1_u8..=12, data in proptest::collection::vec(any::<u8>(), 0..600)) {
            let header = Header::parse([1, kind, 0, 0, 0, 0, 0, 0]).expect("a kind");
            if let Ok(request) = Request::decode(header.kind, &data) {
                prop_assert!(request.encode().is_ok());
            }
            let _ = body::<Reply>(Kind::Reply, &data);
        }
    }
}
