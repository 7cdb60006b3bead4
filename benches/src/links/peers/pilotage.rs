//! Pilotage through its session API. No hub takes part: both sides know each other's address and key.

use ::pilotage::{
    Address, ControllerKind, Identity, Listener, Node, Peer as NodePeer, PeerConfig, PeerPolicy, PeerPrekey,
    ProtoConfig, SecureMode, Stream,
};
use pilotage_wire::addressing::derive_node_id;
use pilotage_wire::s1::handshake::NewPrekey;

use super::{Client, DATAGRAM, Duplex, Place, Server};
use crate::Failure;
use crate::links::options::{Controller, Family, Peer};

/// Port of the comparison, our own bench port (spec/services.md).
const PORT: u16 = 1011;
const SERVER_SEED: [u8; 32] = [1; 32];
const CLIENT_SEED: [u8; 32] = [2; 32];
/// Where the server tells its prekey, as it would in its record.
const PREKEY_FILE: &str = "server.prekey";

fn introduction(seed: [u8; 32]) -> Result<(Address, [u8; 32]), Failure> {
    let key = Identity::from_seed(seed).public_key();
    let node = derive_node_id(&key, 0).ok_or("bench identity: its first node id is reserved")?;
    Ok((Address { network: pilotage_wire::NetworkId(0), node }, key))
}

fn start(peer: Peer, place: &Place, is_server: bool) -> Result<Node, Failure> {
    let (own, other) = if is_server { (SERVER_SEED, CLIENT_SEED) } else { (CLIENT_SEED, SERVER_SEED) };
    let (bind, at) = if is_server { (place.server, place.client) } else { (place.client, place.server) };
    let (address, key) = introduction(other)?;
    let config = ProtoConfig {
        max_datagram_size: usize::from(DATAGRAM),
        congestion: match peer.controller {
            Controller::Newreno => ControllerKind::NewReno,
            Controller::Cubic => ControllerKind::Cubic,
            Controller::Bbr => ControllerKind::Bbr,
        },
        ..ProtoConfig::default()
    };
    let is_s1 = peer.family == Family::PilotageS1;
    let file = place.scratch.join(PREKEY_FILE);
    let prekey = match std::fs::read(&file) {
        Ok(told) if is_s1 && !is_server => {
            let told = NewPrekey::decode(&told)?;
            Some(PeerPrekey { identity: key, prekey: told.prekey, certificate: told.certificate })
        }
        _ => None,
    };
    let policy = PeerPolicy::default();
    let node = Node::builder()
        .identity(Identity::from_seed(own))
        .bind(bind)
        .config(config)
        .secure_mode(if is_s1 { SecureMode::S1 } else { SecureMode::Draft })
        .peer_config(PeerConfig { address, key: Some(key), endpoint: Some(at), policy, prekey })
        .start()?;
    if let Some(PeerPrekey { prekey, certificate, .. }) = node.prekey().filter(|_| is_server) {
        let told = NewPrekey { receiver: 1, cause: [0; 16], prekey, certificate };
        std::fs::write(file, told.encode())?;
    }
    Ok(node)
}

impl Duplex for Stream {
    fn note(&self) -> String {
        let stats = self.stats();
        let datagram = self.path().map_or(0, |path| path.datagram_size);
        format!(
            "datagram {datagram} B, segments {} of which {} again, {} timeouts",
            stats.segments_sent, stats.segments_retransmitted, stats.timeouts
        )
    }
}

/// The node lives as long as its listener is used.
struct PilotageServer(Listener, #[expect(dead_code, reason = "keeps the node alive")] Node);

impl Server for PilotageServer {
    fn accept(&mut self) -> Result<Box<dyn Duplex>, Failure> {
        let stream = self.0.accept()?;
        stream.set_nodelay(true)?;
        Ok(Box::new(stream))
    }
}

pub(super) fn server(peer: Peer, place: &Place) -> Result<Box<dyn Server>, Failure> {
    let node = start(peer, place, true)?;
    Ok(Box::new(PilotageServer(node.listen(PORT)?, node)))
}

struct PilotageClient(Node);

impl Client for PilotageClient {
    fn open(&self) -> Result<Box<dyn Duplex>, Failure> {
        let (server, _) = introduction(SERVER_SEED)?;
        let stream = self.0.open(NodePeer::Address(server), PORT)?;
        stream.set_nodelay(true)?;
        Ok(Box::new(stream))
    }
}

pub(super) fn client(peer: Peer, place: &Place) -> Result<Box<dyn Client>, Failure> {
    Ok(Box::new(PilotageClient(start(peer, place, false)?)))
}
