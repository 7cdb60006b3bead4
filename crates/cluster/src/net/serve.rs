//! The answering side.

use std::future::Future;
use std::sync::Arc;

use pilotage::{Listener, Stream};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use super::message::{Reply, Request};
use super::{IDLE, Net, PATIENCE};
use crate::frame::{FrameError, HEADER, Header, Hello, Join, Kind, body};
use crate::types::Member;

/// Who answers.
pub(crate) trait Service: Send + Sync + 'static {
    /// The member with this key, if there is one now.
    fn member(&self, key: &[u8; 32]) -> Option<Member>;
    /// Whether strangers may ask to join.
    fn admits(&self) -> bool;
    /// Answers a member.
    fn answer(&self, request: Request) -> impl Future<Output = Reply> + Send;
    /// Answers a stranger whose key is proved.
    fn join(&self, join: Join) -> impl Future<Output = Reply> + Send;
}

/// Accepts and answers until the node is closed.
pub(crate) async fn serve<S: Service>(net: Arc<Net>, listener: Listener, service: Arc<S>) {
    while let Ok(stream) = listener.accept_async().await {
        let Some(key) = net.key_of(&stream) else {
            stream.reset();
            continue;
        };
        let member = service.member(&key);
        let stranger = member.is_none();
        let seat = if stranger && !service.admits() { None } else { net.seat(stranger) };
        let Some(seat) = seat else {
            stream.reset();
            continue;
        };
        let (net, service) = (net.clone(), service.clone());
        tokio::spawn(async move {
            let outcome = match member {
                Some(member) => for_member(&net, stream, key, member, &*service).await,
                None => for_stranger(stream, key, &*service).await,
            };
            if let Err(error) = outcome {
                tracing::debug!(%error, "cluster stream ended");
            }
            drop(seat);
        });
    }
}

/// Why a stream was ended.
#[derive(Debug, thiserror::Error)]
enum StreamError {
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("silence")]
    Silence(#[from] tokio::time::error::Elapsed),
    #[error("meant for another node or cluster")]
    Elsewhere,
    #[error("no longer a member")]
    Removed,
}

async fn for_member<S: Service>(
    net: &Net,
    mut stream: Stream,
    key: [u8; 32],
    member: Member,
    service: &S,
) -> Result<(), StreamError> {
    let (header, bytes) = read_frame(&mut stream).await?;
    let hello: Hello = match header.kind {
        Kind::Hello => body(Kind::Hello, &bytes)?,
        // A member that lost its file, or missed that it was admitted.
        Kind::Join => return answer_join(&mut stream, key, &bytes, service).await,
        other => return Err(FrameError::Body(other).into()),
    };
    if hello.to != net.me || hello.cluster != net.cluster() {
        let reply = Reply::Failed("this node has another id now; it was set up anew".into());
        stream.write_all(&reply.encode()).await?;
        return Err(StreamError::Elsewhere);
    }
    loop {
        let (header, bytes) = read_frame(&mut stream).await?;
        // What it was when the stream began may have changed.
        if service.member(&key).is_none() {
            return Err(StreamError::Removed);
        }
        let reply = service.answer(Request::decode(header.kind, &bytes)?).await;
        if !net.faults.drops(member.endpoint) {
            stream.write_all(&reply.encode()).await?;
        }
    }
}

async fn for_stranger<S: Service>(mut stream: Stream, key: [u8; 32], service: &S) -> Result<(), StreamError> {
    let (header, bytes) = timeout(PATIENCE, read_frame(&mut stream)).await??;
    match header.kind {
        Kind::Join => answer_join(&mut stream, key, &bytes, service).await,
        other => Err(FrameError::Body(other).into()),
    }
}

async fn answer_join<S: Service>(
    stream: &mut Stream,
    key: [u8; 32],
    bytes: &[u8],
    service: &S,
) -> Result<(), StreamError> {
    let join: Join = body(Kind::Join, bytes)?;
    let reply = if join.key == key && service.admits() {
        service.join(join).await
    } else {
        Reply::Failed("this cluster admits nobody now".into())
    };
    timeout(PATIENCE, stream.write_all(&reply.encode())).await??;
    Ok(())
}

/// A frame: may be long in coming, but not in finishing.
async fn read_frame(stream: &mut Stream) -> Result<(Header, Vec<u8>), StreamError> {
    let mut header = [0; HEADER];
    timeout(IDLE, stream.read_exact(&mut header)).await??;
    let header = Header::parse(header)?;
    let mut bytes = vec![0; header.len];
    timeout(PATIENCE, stream.read_exact(&mut bytes)).await??;
    Ok((header, bytes))
}
