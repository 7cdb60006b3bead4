//! Pilotage through its session API. The client knows the server's address, key and endpoint; no hub takes part, and
//! the server knows nothing of the client. In S1 the client knows the server's prekey as well, which a record would tell it.

use std::net::SocketAddr;
use std::sync::Arc;

use ::pilotage::{
    Address, ControllerKind, Identity, Listener, Node, Peer, PeerConfig, PeerPolicy, PeerPrekey, ProtoConfig,
    SecureMode,
};
use pilotage_wire::addressing::derive_node_id;
use pilotage_wire::s1::handshake::NewPrekey;

use super::exec::{Exec, block_on, detach_task, runtime, serve_in_turns};
use super::{Announce, Blocking, Client, Handler, Job, Link, Setup, Stream, local_for};
use crate::Failure;
use crate::settings::{Api, Congestion};
use crate::work::Outcome;

/// Port of the comparison, our own bench port (spec/services.md).
pub const PORT: u16 = 1011;
/// The server's identity, which the client is told.
const SERVER_SEED: [u8; 32] = [1; 32];
/// Name of the file that the server leaves its prekey in.
const PREKEY_FILE: &str = "server.prekey";
/// Spare connections and places above those that a work needs.
const SPARE: usize = 64;

/// Address and key that belong to a seed.
pub fn introduction(seed: [u8; 32]) -> Result<(Address, [u8; 32]), Failure> {
    let key = Identity::from_seed(seed).public_key();
    let node = derive_node_id(&key, 0).ok_or("bench identity: its first node id is reserved")?;
    Ok((Address { network: pilotage_wire::NetworkId(0), node }, key))
}

/// Address and key of the server.
pub fn server_introduction() -> Result<(Address, [u8; 32]), Failure> {
    introduction(SERVER_SEED)
}

/// The transport's configuration: the default, but for the largest datagram, the controller, and limits that a work with
/// very many streams needs.
pub fn config(setup: &Setup) -> ProtoConfig {
    let mut config = ProtoConfig {
        max_datagram_size: usize::from(setup.subject.max_datagram().unwrap_or(u16::MAX)),
        congestion: match setup.congestion {
            Congestion::Newreno => ControllerKind::NewReno,
            Congestion::Cubic => ControllerKind::Cubic,
            Congestion::Bbr => ControllerKind::Bbr,
        },
        ..ProtoConfig::default()
    };
    if setup.many_streams > 0 {
        let needed = setup.many_streams as usize + SPARE;
        config.max_connections_per_peer = config.max_connections_per_peer.max(needed);
        config.accept_queue = config.accept_queue.max(needed);
    }
    config
}

fn listen(setup: &Setup) -> Result<(Node, Listener), Failure> {
    let node = Node::builder()
        .identity(Identity::from_seed(SERVER_SEED))
        .bind(setup.server)
        .config(config(setup))
        .secure_mode(mode(setup))
        .start()?;
    let listener = node.listen(PORT)?;
    if let Some(PeerPrekey { prekey, certificate, .. }) = node.prekey() {
        let told = NewPrekey { receiver: 1, cause: [0; 16], prekey, certificate };
        std::fs::write(setup.scratch.join(PREKEY_FILE), told.encode())?;
    }
    Ok((node, listener))
}

/// The server as clients know it.
pub fn server_peer(setup: &Setup) -> Result<PeerConfig, Failure> {
    let (address, key) = server_introduction()?;
    let prekey = match mode(setup) {
        SecureMode::Draft => None,
        _ => {
            let told = NewPrekey::decode(&std::fs::read(setup.scratch.join(PREKEY_FILE))?)?;
            Some(PeerPrekey { identity: key, prekey: told.prekey, certificate: told.certificate })
        }
    };
    Ok(PeerConfig {
        address,
        key: Some(key),
        endpoint: Some(setup.server),
        policy: PeerPolicy::default(),
        prekey,
    })
}

/// Which protection both sides speak, and nothing else.
pub fn mode(setup: &Setup) -> SecureMode {
    if setup.subject.is_s1() { SecureMode::S1 } else { SecureMode::Draft }
}

/// Serves streams until the process ends.
pub fn serve<H: Handler>(setup: &Setup, announce: Announce, handler: &H) -> Result<(), Failure> {
    let (node, listener) = listen(setup)?;
    announce.ready()?;
    match setup.api {
        Api::Blocking => {
            let handler = handler.clone();
            let accept = move || {
                let stream = listener.accept()?;
                stream.set_nodelay(true)?;
                Ok(stream)
            };
            serve_in_turns(accept, move |stream| block_on(handler.handle(Blocking(stream))))
        }
        Api::Tokio => runtime()?.block_on(async {
            let task = node.drive();
            detach_task(async move { Ok(task.await?) });
            loop {
                let stream = listener.accept_async().await?;
                stream.set_nodelay(true)?;
                let handler = handler.clone();
                detach_task(async move { handler.handle(stream).await });
            }
        }),
    }
}

/// Runs the client's part.
pub fn drive<J: Job>(setup: &Setup, job: J) -> Result<Outcome, Failure> {
    let dialer = Dialer::new(setup)?;
    match setup.api {
        Api::Blocking => block_on(job.run(BlockingDialer(dialer), Exec::Threads)),
        Api::Tokio => runtime()?.block_on(async {
            dialer.drive();
            job.run(TokioDialer(dialer), Exec::Tokio).await
        }),
    }
}

/// A node with a new identity at every [`Dialer::renew`].
#[derive(Debug)]
struct Dialer {
    node: Node,
    setup: Setup,
}

impl Dialer {
    fn new(setup: &Setup) -> Result<Self, Failure> {
        Ok(Self { node: client_node(setup)?, setup: setup.clone() })
    }

    fn renew(&mut self) -> Result<(), Failure> {
        self.node.close();
        self.node = client_node(&self.setup)?;
        Ok(())
    }

    /// As other stacks do, a task of the runtime receives, not a thread beside it.
    fn drive(&self) {
        let task = self.node.drive();
        detach_task(async move { Ok(task.await?) });
    }

    fn link(&self) -> Result<Arc<(Node, Peer)>, Failure> {
        let (server, _) = server_introduction()?;
        Ok(Arc::new((self.node.clone(), Peer::Address(server))))
    }
}

fn client_node(setup: &Setup) -> Result<Node, Failure> {
    let local: SocketAddr = local_for(setup.server);
    let peer = server_peer(setup)?;
    Ok(Node::builder()
        .bind(local)
        .config(config(setup))
        .secure_mode(mode(setup))
        .peer_config(peer)
        .start()?)
}

fn note(node: &Node) -> String {
    let stats = node.stats();
    let datagram = node.peers().first().and_then(|peer| peer.path).map_or(0, |path| path.datagram_size);
    format!(
        "datagram {datagram} B, datagrams sent {} in {} calls, received {}",
        stats.endpoint.datagrams_sent, stats.send_calls, stats.endpoint.datagrams_received
    )
}

#[derive(Debug)]
struct BlockingDialer(Dialer);

/// A tunnel, used with blocking calls. The first stream makes it.
#[derive(Debug)]
struct BlockingTunnel(Arc<(Node, Peer)>);

impl Client for BlockingDialer {
    type Link = BlockingTunnel;

    async fn fresh(&mut self) -> Result<(), Failure> {
        self.0.renew()
    }

    async fn dial(&self) -> Result<BlockingTunnel, Failure> {
        self.0.link().map(BlockingTunnel)
    }
}

impl Link for BlockingTunnel {
    type Stream = Blocking<::pilotage::Stream>;

    async fn open(&self) -> Result<Self::Stream, Failure> {
        let stream = self.0.0.open(&self.0.1, PORT)?;
        stream.set_nodelay(true)?;
        Ok(Blocking(stream))
    }

    fn note(&self) -> String {
        note(&self.0.0)
    }
}

#[derive(Debug)]
struct TokioDialer(Dialer);

/// A tunnel, used from tokio. The first stream makes it.
#[derive(Debug)]
struct TokioTunnel(Arc<(Node, Peer)>);

impl Client for TokioDialer {
    type Link = TokioTunnel;

    async fn fresh(&mut self) -> Result<(), Failure> {
        self.0.renew()?;
        self.0.drive();
        Ok(())
    }

    async fn dial(&self) -> Result<TokioTunnel, Failure> {
        self.0.link().map(TokioTunnel)
    }
}

impl Stream for ::pilotage::Stream {}

impl Link for TokioTunnel {
    type Stream = ::pilotage::Stream;

    async fn open(&self) -> Result<Self::Stream, Failure> {
        let stream = self.0.0.open_async(&self.0.1, PORT).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    fn note(&self) -> String {
        note(&self.0.0)
    }
}
