//! A stream of the node that a command works with.

use std::io;
#[cfg(unix)]
use std::sync::Arc;
use std::time::Duration;

use pilotage::{ConnectionStats, PathInfo, PathKind, SocketAddress, Stream};
use pilotage_services::Duplex;
use serde_json::{Value, json};

use crate::control;
#[cfg(unix)]
use crate::control::frames::DaemonStream;

/// A stream of a node of our own, or of a running one.
#[derive(Debug)]
pub(crate) enum Channel {
    /// Of a node of our own.
    Own(Stream),
    /// Of a running node.
    #[cfg(unix)]
    Daemon {
        /// The stream.
        stream: Arc<DaemonStream>,
        /// The state directory of that node.
        state: std::path::PathBuf,
    },
}

impl Channel {
    pub(crate) fn peer(&self) -> SocketAddress {
        match self {
            Self::Own(stream) => stream.peer(),
            #[cfg(unix)]
            Self::Daemon { stream, .. } => stream.peer,
        }
    }

    /// The path in use and the counters.
    pub(crate) fn details(&self) -> (Option<PathInfo>, ConnectionStats) {
        match self {
            Self::Own(stream) => (stream.path(), stream.stats()),
            #[cfg(unix)]
            Self::Daemon { stream, state } => {
                let request = json!({ "cmd": "stream", "id": stream.id });
                let reply = control::open(state, &request, Duration::ZERO).map(|(reply, _)| reply);
                let reply = reply.unwrap_or_default();
                (path_from_json(&reply["path"]), stats_from_json(&reply["stats"]))
            }
        }
    }

    pub(crate) fn path(&self) -> Option<PathInfo> {
        self.details().0
    }

    /// Another handle.
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Own(stream) => Self::Own(stream.try_clone()?),
            #[cfg(unix)]
            Self::Daemon { stream, state } => Self::Daemon { stream: stream.clone(), state: state.clone() },
        })
    }

    /// Waits until the peer's node has acknowledged everything, after [`Duplex::finish`].
    pub(crate) fn wait_flushed(&self, timeout: Duration) -> io::Result<()> {
        match self {
            Self::Own(stream) => stream.wait_flushed(timeout),
            #[cfg(unix)]
            Self::Daemon { stream, .. } => stream.wait_flushed(timeout),
        }
    }

    fn duplex(&self) -> &dyn Duplex {
        match self {
            Self::Own(stream) => stream,
            #[cfg(unix)]
            Self::Daemon { stream, .. } => &**stream,
        }
    }
}

impl Duplex for Channel {
    fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.duplex().read(buf)
    }

    fn write(&self, data: &[u8]) -> io::Result<usize> {
        self.duplex().write(data)
    }

    fn finish(&self) -> io::Result<()> {
        self.duplex().finish()
    }

    fn abort(&self) {
        self.duplex().abort();
    }

    fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.duplex().set_read_timeout(timeout)
    }

    fn set_nodelay(&self, nodelay: bool) -> io::Result<()> {
        self.duplex().set_nodelay(nodelay)
    }
}

impl io::Read for &Channel {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.duplex().read(buf)
    }
}

impl io::Write for &Channel {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.duplex().write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What [`path_json`](crate::cmd::ping::path_json) wrote.
#[cfg(unix)]
pub(crate) fn path_from_json(value: &Value) -> Option<PathInfo> {
    let count = |key: &str| value[key].as_u64().unwrap_or_default();
    Some(PathInfo {
        kind: if value["kind"] == "relay" { PathKind::Relay } else { PathKind::Direct },
        remote: value["remote"].as_str()?.parse().ok()?,
        rtt: Duration::from_micros(count("rtt_us")),
        min_rtt: Duration::from_micros(count("min_rtt_us")),
        datagram_size: usize::try_from(count("datagram_size")).unwrap_or_default(),
        congestion_window: count("congestion_window"),
        in_flight: count("in_flight"),
    })
}

/// What [`stats_json`](crate::cmd::send::stats_json) wrote.
#[cfg(unix)]
fn stats_from_json(value: &Value) -> ConnectionStats {
    let count = |key: &str| value[key].as_u64().unwrap_or_default();
    ConnectionStats {
        bytes_acked: count("bytes_acked"),
        bytes_received: count("bytes_received"),
        segments_sent: count("segments_sent"),
        segments_received: count("segments_received"),
        segments_retransmitted: count("segments_retransmitted"),
        timeouts: count("timeouts"),
        tail_loss_probes: count("tail_loss_probes"),
        duplicates_received: count("duplicates_received"),
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn paths_and_counters_come_back() {
        let path = PathInfo {
            kind: PathKind::Relay,
            remote: "127.0.0.1:9".parse().unwrap(),
            rtt: Duration::from_micros(1_500),
            min_rtt: Duration::from_micros(900),
            datagram_size: 1_452,
            congestion_window: 99,
            in_flight: 7,
        };
        assert_eq!(path_from_json(&crate::cmd::ping::path_json(&path)), Some(path));
        assert_eq!(path_from_json(&Value::Null), None);
        let stats =
            ConnectionStats { bytes_acked: 1, timeouts: 2, duplicates_received: 3, ..Default::default() };
        assert_eq!(stats_from_json(&crate::cmd::send::stats_json(&stats)), stats);
    }
}
