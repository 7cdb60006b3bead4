//! The key of a node for who wants to join it, over TCP. Not believed by anybody: the token proves it afterwards.
//!
//! The server writes one line and reads nothing.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

use super::ClusterError;
use crate::status::hex;

const PREFIX: &str = "PILOTAGE-CLUSTER/1 ";
const LENGTH: usize = PREFIX.len() + 64 + 1;
const PATIENCE: Duration = Duration::from_secs(2);

/// Greets whoever connects, one after the other, until the runtime ends.
pub(super) async fn serve(
    bind: SocketAddr,
    key: [u8; 32],
    runtime: &tokio::runtime::Handle,
) -> Result<(), ClusterError> {
    let listener = TcpListener::bind(bind).await.map_err(|error| taken(bind, &error))?;
    let line = format!("{PREFIX}{}\n", hex(&key));
    runtime.spawn(async move {
        loop {
            match listener.accept().await {
                Ok((mut stream, _)) => {
                    let _ = timeout(PATIENCE, stream.write_all(line.as_bytes())).await;
                }
                Err(_) => sleep(Duration::from_millis(100)).await,
            }
        }
    });
    Ok(())
}

/// Whether [`serve`] will find its port free.
pub(super) fn is_free(bind: SocketAddr) -> Result<(), ClusterError> {
    std::net::TcpListener::bind(bind).map(drop).map_err(|error| taken(bind, &error))
}

fn taken(bind: SocketAddr, error: &std::io::Error) -> ClusterError {
    ClusterError::System(format!("TCP port {bind} for joining nodes: {error}; choose another cluster port"))
}

/// Asks a host for its key.
pub(super) async fn ask(host: &str) -> Result<(SocketAddr, [u8; 32]), String> {
    let work = async {
        let mut stream = TcpStream::connect(host).await.map_err(|error| error.to_string())?;
        let at = stream.peer_addr().map_err(|error| error.to_string())?;
        let mut line = [0; LENGTH];
        stream.read_exact(&mut line).await.map_err(|error| error.to_string())?;
        let key = parse(&line).ok_or("something else answers there; is that a cluster port?")?;
        Ok((at, key))
    };
    timeout(PATIENCE, work).await.unwrap_or_else(|_| Err("no answer".into()))
}

/// Key of the node that has its cluster port there, if one answers within `limit`; nothing is proved by it. Blocks.
#[must_use]
pub fn key_at(at: SocketAddr, limit: Duration) -> Option<[u8; 32]> {
    use std::io::Read as _;
    let mut stream = std::net::TcpStream::connect_timeout(&at, limit).ok()?;
    stream.set_read_timeout(Some(limit)).ok()?;
    let mut line = [0; LENGTH];
    stream.read_exact(&mut line).ok()?;
    parse(&line)
}

fn parse(line: &[u8; LENGTH]) -> Option<[u8; 32]> {
    let text = std::str::from_utf8(line).ok()?.strip_prefix(PREFIX)?.strip_suffix('\n')?;
    let mut key = [0; 32];
    for (byte, digits) in key.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let digits = std::str::from_utf8(digits).ok().filter(|digits| !digits.starts_with('+'))?;
        *byte = u8::from_str_radix(digits, 16).ok()?;
    }
    Some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_greeting_is_read_strictly() {
        let good = format!("{PREFIX}{}\n", "0a".repeat(32));
        let line: [u8; LENGTH] = good.as_bytes().try_into().expect("length");
        assert_eq!(parse(&line), Some([10; 32]));
        for (at, byte) in [(0, b'X'), (LENGTH - 1, b' '), (LENGTH - 2, b'g'), (PREFIX.len(), b'+')] {
            let mut bad = line;
            bad[at] = byte;
            assert_eq!(parse(&bad), None, "byte {at}");
        }
    }
}
