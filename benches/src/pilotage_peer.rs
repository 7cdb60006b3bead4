//! Pilotage through its session API, introduced statically: no hub takes part.

use std::io::Read;
use std::net::{Shutdown, SocketAddr};
use std::time::{Duration, Instant};

use pilotage::{Address, ControllerKind, Identity, Node, Peer, ProtoConfig};
use pilotage_wire::addressing::derive_node_id;

use crate::Failure;
use crate::exchange::{ClientResult, Payload, ServerResult, Sink, run_client, run_server};
use crate::runner::Announce;
use crate::settings::{Congestion, Options, SOCKET_BUFFER, Subject};

/// Port of the comparison, our own bench port (spec/services.md).
const PORT: u16 = 1011;
/// Seeds of the two identities: both sides know both keys, as if introduced by a hub.
const SERVER_SEED: [u8; 32] = [1; 32];
const CLIENT_SEED: [u8; 32] = [2; 32];
/// How long the receiver waits for the sender to end.
const END_WAIT: Duration = Duration::from_secs(5);

/// Address and key that belong to a seed.
fn introduction(seed: [u8; 32]) -> Result<(Address, [u8; 32]), Failure> {
    let key = Identity::from_seed(seed).public_key();
    let node = derive_node_id(&key, 0).ok_or("bench identity: its first node id is reserved")?;
    Ok((Address { network: pilotage_wire::NetworkId(0), node }, key))
}

fn start(
    subject: Subject,
    seed: [u8; 32],
    bind: SocketAddr,
    peer_seed: [u8; 32],
    peer_at: SocketAddr,
    congestion: Congestion,
) -> Result<Node, Failure> {
    let (peer, key) = introduction(peer_seed)?;
    let config = ProtoConfig {
        max_datagram_size: usize::from(subject.max_datagram().unwrap_or(u16::MAX)),
        congestion: match congestion {
            Congestion::Newreno => ControllerKind::NewReno,
            Congestion::Cubic => ControllerKind::Cubic,
            Congestion::Bbr => ControllerKind::Bbr,
        },
        ..ProtoConfig::default()
    };
    Ok(Node::builder()
        .identity(Identity::from_seed(seed))
        .bind(bind)
        .recv_buffer_bytes(SOCKET_BUFFER)
        .send_buffer_bytes(SOCKET_BUFFER)
        .config(config)
        .peer(peer, peer_at, Some(key))
        .start()?)
}

/// The receiver.
pub fn server(
    options: &Options,
    subject: Subject,
    addr: SocketAddr,
    client: SocketAddr,
    announce: Announce,
) -> Result<ServerResult, Failure> {
    let mut sink = Sink::new(options.verify, options.size)?;
    let node = start(subject, SERVER_SEED, addr, CLIENT_SEED, client, options.congestion)?;
    let listener = node.listen(PORT)?;
    announce.ready()?;
    let mut stream = listener.accept()?;
    stream.set_nodelay(true)?;
    let result = run_server(&mut stream, options, &mut sink)?;
    stream.shutdown(Shutdown::Write)?;
    // Leave only after the sender has everything: its end of the stream, or its silence, says so.
    stream.set_read_timeout(Some(END_WAIT))?;
    let _ = stream.read(&mut [0; 1]);
    drop(stream);
    node.close();
    Ok(result)
}

/// The sender.
pub fn client(
    options: &Options,
    subject: Subject,
    addr: SocketAddr,
    local: SocketAddr,
    payload: &Payload,
) -> Result<ClientResult, Failure> {
    let node = start(subject, CLIENT_SEED, local, SERVER_SEED, addr, options.congestion)?;
    let (server, _) = introduction(SERVER_SEED)?;
    let started = Instant::now();
    let mut stream = node.connect(Peer::Address(server), PORT)?;
    stream.set_nodelay(true)?;
    let mut result = run_client(&mut stream, options, payload, started)?;
    let stats = stream.stats();
    let datagram = stream.path().map_or(0, |path| path.datagram_size);
    result.note = format!(
        "datagram {datagram} B, segments {} of which {} again, {} timeouts",
        stats.segments_sent, stats.segments_retransmitted, stats.timeouts
    );
    stream.shutdown(Shutdown::Write)?;
    drop(stream);
    node.close();
    Ok(result)
}
