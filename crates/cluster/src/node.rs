//! A node of the cluster: start, found, join, propose, read, leave.

mod admission;
mod attest;
mod config;
mod greeting;
mod propose;
mod watch;

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLockReadGuard};
use std::time::Duration;

use openraft::raft::AppendEntriesRequest;
use openraft::{Raft, ServerState};
use pilotage::Node;

pub use self::attest::Signature;
pub use self::config::{ClusterConfig, ClusterError, Start, Timing};
pub use self::greeting::key_at;
pub use self::propose::ProposeError;
use crate::frame::Join;
use crate::machine::Machine;
use crate::net::message::{Reply, Request};
use crate::net::{Links, Net, PORT, Service, serve};
use crate::status::{Status, status};
use crate::store::{Applied, LogStore, SharedMachine, StateStore, Store};
use crate::types::{Member, RaftId, Types};
use crate::{MAX_COMMAND, MAX_SNAPSHOT};

/// Most members, learners included.
pub const MAX_MEMBERS: usize = 64;
/// Most voters: more cost time and give nothing.
pub const MAX_VOTERS: usize = 7;
/// Longest wait for a member's answer to a small question.
const CALL: Duration = Duration::from_millis(500);
/// A leader that no majority has answered for so long is none any more. Milliseconds.
const SILENCE: u64 = 2_000;
/// Name of the cluster's file in its folder.
pub const FILE: &str = "cluster.redb";

/// A running node. Dropping it stops consensus on this node and closes its port.
pub struct Cluster<M: Machine> {
    inner: Arc<Inner<M>>,
    runtime: Option<tokio::runtime::Runtime>,
}

pub(crate) struct Inner<M> {
    pub(crate) net: Arc<Net>,
    pub(crate) raft: Raft<Types>,
    pub(crate) shared: SharedMachine<M>,
    pub(crate) store: Store,
    pub(crate) member: Member,
    pub(crate) token: Option<Vec<u8>>,
    pub(crate) pool: propose::Pool,
    watch: watch::Watch,
    /// Who was there when we joined: listened to as long as the log names nobody.
    pub(crate) peers: std::sync::RwLock<Vec<(RaftId, Member)>>,
}

impl<M: Machine> Cluster<M> {
    /// Opens the file, binds the port, and founds, joins or goes on.
    ///
    /// Blocks until the node is admitted (at most [`ClusterConfig::join_patience`]).
    ///
    /// # Errors
    /// Say what failed and what to do next.
    pub fn start(config: ClusterConfig, machine: M) -> Result<Self, ClusterError> {
        config.check()?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(4)
            .thread_name("cluster")
            .enable_all()
            .build()
            .map_err(|error| ClusterError::System(error.to_string()))?;
        let node = start_node(&config)?;
        let inner = runtime.block_on(Self::open(&config, node, machine))?;
        let cluster = Self { inner, runtime: Some(runtime) };
        cluster.run(&config)?;
        Ok(cluster)
    }

    async fn open(config: &ClusterConfig, node: Node, mut machine: M) -> Result<Arc<Inner<M>>, ClusterError> {
        let key = node.public_key();
        let store = Store::open(&config.folder.join(FILE), &key, &config.faults)?;
        let member = Member { key, endpoint: config.endpoint(), weight: config.weight };
        if let Start::FoundWith(state) = &config.start {
            begin_with(&store, (member, config.bind), &mut machine, state)?;
        }
        let shared = store.restore(machine).map_err(ClusterError::State)?;
        let net = Net::new(node, store.id(), config.faults.clone());
        let stored = |error: redb::Error| ClusterError::State(error.to_string());
        if let Some(cluster) = store.cluster().map_err(stored)? {
            let _ = net.cluster.set(cluster);
        }
        let peers = std::sync::RwLock::new(store.peers().map_err(stored)?);
        let log = LogStore(store.clone());
        let state = StateStore { store: store.clone(), shared: shared.clone() };
        let raft = Raft::new(store.id(), Arc::new(config.raft()?), Links(net.clone()), log, state)
            .await
            .map_err(|error| ClusterError::State(error.to_string()))?;
        let (token, pool, watch) = (config.token.clone(), propose::Pool::default(), watch::Watch::new());
        Ok(Arc::new(Inner { net, raft, shared, store, member, token, pool, watch, peers }))
    }

    fn run(&self, config: &ClusterConfig) -> Result<(), ClusterError> {
        let Some(runtime) = &self.runtime else { return Err(ClusterError::System("no runtime".into())) };
        let inner = &self.inner;
        let listener =
            inner.net.node.listen(PORT).map_err(|error| ClusterError::System(error.to_string()))?;
        runtime.spawn(serve(inner.net.clone(), listener, inner.clone()));
        if inner.token.is_some() {
            runtime.block_on(greeting::serve(config.bind, inner.member.key, runtime.handle()))?;
        }
        if inner.net.cluster.get().is_none() {
            match &config.start {
                Start::Found | Start::FoundWith(_) => runtime.block_on(inner.found())?,
                Start::Join(hosts) => runtime.block_on(inner.join_any(hosts, config.join_patience))?,
                Start::Resume => return Err(ClusterError::NoCluster(config.folder.clone())),
            }
        }
        runtime.spawn(admission::promote(Arc::downgrade(inner)));
        runtime.spawn(watch::run(Arc::downgrade(inner), config.timing));
        runtime.spawn(watch::knock(Arc::downgrade(inner)));
        Ok(())
    }

    /// This node's id.
    #[must_use]
    pub fn id(&self) -> RaftId {
        self.inner.net.me
    }

    /// How it is.
    #[must_use]
    pub fn status(&self) -> Status {
        self.inner.status()
    }

    /// Whether this node leads, as far as it knows.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.inner.raft.metrics().borrow().state == ServerState::Leader
    }

    /// Whether commands are likely to be ordered: consensus runs here, somebody leads, and if it is this node a majority has
    /// answered lately.
    pub fn has_majority(&self) -> bool {
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow();
        let alone = metrics.membership_config.voter_ids().count() < 2;
        metrics.running_state.is_ok()
            && metrics.current_leader.is_some()
            && (alone || metrics.millis_since_quorum_ack.is_none_or(|silence| silence < SILENCE))
    }

    /// Looks at the state machine as it is on this node: what was committed, but perhaps not the newest.
    pub fn read<R>(&self, look: impl FnOnce(&M) -> R) -> R {
        look(&self.inner.applied().machine)
    }

    /// Waits until this node has applied everything that was acknowledged anywhere before the call: a read after it is
    /// linearizable.
    ///
    /// # Errors
    /// [`ProposeError`] if no majority confirms who leads in time.
    pub fn barrier(&self, limit: Duration) -> Result<(), ProposeError> {
        let Some(runtime) = &self.runtime else { return Err(ProposeError::Stopped("closed".into())) };
        runtime.block_on(self.inner.barrier(limit))
    }

    /// Orders a command and gives the machine's answer, from whichever node leads. Blocks for at most `limit`.
    ///
    /// # Errors
    /// [`ProposeError`]; except for [`ProposeError::TooLong`], the command may have been applied or may be later. Proposing it
    /// again is safe ([`Machine`]).
    pub fn propose(&self, command: &[u8], limit: Duration) -> Result<Vec<u8>, ProposeError> {
        let Some(runtime) = &self.runtime else { return Err(ProposeError::Stopped("closed".into())) };
        runtime.block_on(self.inner.propose(command, limit))
    }

    /// As [`Cluster::propose`], without waiting: `then` gets the answer, on a thread of the cluster's.
    pub fn propose_then(
        &self,
        command: Vec<u8>,
        limit: Duration,
        then: impl FnOnce(Result<Vec<u8>, ProposeError>) + Send + 'static,
    ) {
        let inner = self.inner.clone();
        match &self.runtime {
            Some(runtime) => drop(runtime.spawn(async move { then(inner.propose(&command, limit).await) })),
            None => then(Err(ProposeError::Stopped("closed".into()))),
        }
    }

    /// Keys of the voters, ascending.
    #[must_use]
    pub fn voters(&self) -> Vec<[u8; 32]> {
        let mut keys: Vec<[u8; 32]> = self.inner.voters().into_iter().map(|(_, member)| member.key).collect();
        keys.sort_unstable();
        keys
    }

    /// Key of this node.
    #[must_use]
    pub fn key(&self) -> [u8; 32] {
        self.inner.member.key
    }

    /// Asks all voters to sign a statement that follows from the state ([`Machine::vouches`]). `then` gets those signatures that
    /// came in time, on a thread of the cluster's: as soon as there are `need`, or after `limit`.
    pub fn attest_then(
        &self,
        statement: Vec<u8>,
        need: usize,
        limit: Duration,
        then: impl FnOnce(Vec<Signature>) + Send + 'static,
    ) {
        let inner = self.inner.clone();
        match &self.runtime {
            Some(runtime) => {
                drop(runtime.spawn(async move { then(attest::gather(inner, statement, need, limit).await) }));
            }
            None => then(Vec::new()),
        }
    }

    /// Sends something to all other members, past the log ([`Machine::notice`]): once, without waiting, and whoever does not answer
    /// within half a second has not got it. At most 300 KiB.
    pub fn tell(&self, notice: &[u8]) {
        let Some(runtime) = &self.runtime else { return };
        for (id, _) in self.inner.members() {
            if id == self.inner.net.me {
                continue;
            }
            let (inner, request) = (self.inner.clone(), Request::Notice(notice.to_vec()));
            runtime.spawn(async move {
                if let Err(error) = inner.ask(id, &request, CALL).await {
                    tracing::debug!(%error, id, "a notice was lost");
                }
            });
        }
    }

    /// As [`Cluster::barrier`], without waiting: `then` is called on a thread of the cluster's.
    pub fn barrier_then(
        &self,
        limit: Duration,
        then: impl FnOnce(Result<(), ProposeError>) + Send + 'static,
    ) {
        let inner = self.inner.clone();
        match &self.runtime {
            Some(runtime) => drop(runtime.spawn(async move { then(inner.barrier(limit).await) })),
            None => then(Err(ProposeError::Stopped("closed".into()))),
        }
    }

    /// Removes a member for good: its file can never vote again in this cluster.
    ///
    /// # Errors
    /// Says what is in the way.
    pub fn remove(&self, id: RaftId) -> Result<(), ClusterError> {
        let Some(runtime) = &self.runtime else { return Err(ClusterError::System("closed".into())) };
        runtime.block_on(self.inner.remove_anywhere(id))
    }

    /// Takes a snapshot now, whatever the policy says.
    ///
    /// # Errors
    /// Consensus has stopped.
    pub fn snapshot_now(&self) -> Result<(), ClusterError> {
        let Some(runtime) = &self.runtime else { return Err(ClusterError::System("closed".into())) };
        runtime
            .block_on(self.inner.raft.trigger().snapshot())
            .map_err(|error| ClusterError::State(error.to_string()))
    }
}

impl<M: Machine> Drop for Cluster<M> {
    fn drop(&mut self) {
        let Some(runtime) = self.runtime.take() else { return };
        let inner = self.inner.clone();
        // Whoever follows learns nothing from it: the election does its work. What is acknowledged is on disk.
        let close = move || {
            let raft = inner.raft.clone();
            let _ = runtime
                .block_on(async move { tokio::time::timeout(Duration::from_secs(2), raft.shutdown()).await });
            inner.net.node.close();
            drop(inner);
            runtime.shutdown_timeout(Duration::from_secs(2));
        };
        if tokio::runtime::Handle::try_current().is_err() {
            return close();
        }
        // The last owner was an answer that the runtime itself has just given: it cannot wait for its own end.
        let _ = std::thread::Builder::new().name("cluster-end".into()).spawn(close);
    }
}

impl<M: Machine> std::fmt::Debug for Cluster<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("id", &self.inner.net.me).finish_non_exhaustive()
    }
}

/// A node's place among the members; before they are known, one of the first four.
fn rank(id: RaftId, members: impl Iterator<Item = RaftId>) -> u32 {
    let mut members: Vec<RaftId> = members.collect();
    members.sort_unstable();
    let place = members.iter().position(|&member| member == id).unwrap_or((id % 4) as usize);
    u32::try_from(place % MAX_VOTERS).unwrap_or(0)
}

/// A new file begins with this state; one that belongs to a cluster goes on with its own.
fn begin_with<M: Machine>(
    store: &Store,
    (member, bind): (Member, std::net::SocketAddr),
    machine: &mut M,
    state: &[u8],
) -> Result<(), ClusterError> {
    let stored = |error: redb::Error| ClusterError::State(error.to_string());
    if store.cluster().map_err(stored)?.is_some() {
        return Ok(());
    }
    if state.len() > MAX_SNAPSHOT {
        let text = format!("the state to begin with has {} bytes, more than {MAX_SNAPSHOT}", state.len());
        return Err(ClusterError::State(text));
    }
    // Before anything is written: a file with a state that nobody understands would be of no use.
    machine.install(state).map_err(ClusterError::State)?;
    // What is written now has this node's address in it, for good: another program must not have it.
    greeting::is_free(bind)?;
    let mut cluster = [0; 16];
    getrandom::fill(&mut cluster).map_err(|error| ClusterError::System(error.to_string()))?;
    store.begin_with(cluster, member, state).map_err(stored)
}

fn start_node(config: &ClusterConfig) -> Result<Node, ClusterError> {
    let folder: &Path = &config.folder;
    let mut builder = Node::builder().bind(config.bind).state_dir(folder).lan(false).port_mapping(false);
    if let Some(identity) = config.identity.clone() {
        builder = builder.identity(identity);
    }
    builder.start().map_err(|error| ClusterError::System(error.to_string()))
}

impl<M: Machine> Inner<M> {
    fn applied(&self) -> RwLockReadGuard<'_, Applied<M>> {
        self.shared.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn status(&self) -> Status {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        status(&metrics, self.net.cluster())
    }

    async fn answer_append(&self, rpc: AppendEntriesRequest<Types>) -> Reply {
        let leader = rpc.vote;
        self.watch.hears(leader);
        match self.raft.append_entries(rpc).await {
            Ok(response) => {
                self.watch.answered_append(leader, &response);
                Reply::Append(response)
            }
            Err(error) => Reply::Failed(error.to_string()),
        }
    }

    /// All members that this node knows: those of the log, and before there is one, those it was told of.
    pub(crate) fn members(&self) -> Vec<(RaftId, Member)> {
        let metrics = self.raft.metrics();
        let known: Vec<_> =
            metrics.borrow().membership_config.nodes().map(|(&id, &member)| (id, member)).collect();
        if known.is_empty() {
            return self.peers.read().unwrap_or_else(PoisonError::into_inner).clone();
        }
        known
    }
}

impl<M: Machine> Service for Inner<M> {
    fn member(&self, key: &[u8; 32]) -> Option<Member> {
        self.members().into_iter().map(|(_, member)| member).find(|member| member.key == *key)
    }

    fn admits(&self) -> bool {
        self.token.is_some()
    }

    async fn answer(&self, request: Request) -> Reply {
        match request {
            Request::Append(rpc) => self.answer_append(rpc).await,
            Request::Vote(rpc) => match self.raft.vote(rpc.clone()).await {
                Ok(response) => {
                    self.watch.answered_vote(&rpc, &response);
                    Reply::Vote(response)
                }
                Err(error) => Reply::Failed(error.to_string()),
            },
            Request::Snapshot(rpc)
                if rpc.offset.saturating_add(rpc.data.len() as u64) > MAX_SNAPSHOT as u64 =>
            {
                Reply::Failed(format!("a snapshot of more than {MAX_SNAPSHOT} bytes"))
            }
            Request::Snapshot(rpc) => {
                self.watch.hears(rpc.vote);
                Reply::snapshot(self.raft.install_snapshot(rpc).await)
            }
            Request::Propose(command) if command.len() > MAX_COMMAND => {
                Reply::Failed(format!("a command of more than {MAX_COMMAND} bytes"))
            }
            Request::Propose(command) => self.answer_propose(command).await,
            Request::ReadIndex => self.answer_read_index().await,
            Request::Admit(join) => self.answer_admit(join).await,
            Request::Remove(id) => self.answer_remove(id).await,
            Request::Status => Reply::Status(Box::new(self.status())),
            Request::Attest(statement) => {
                Reply::Attested(self.sign(&statement).map(Vec::from).unwrap_or_default())
            }
            Request::Notice(notice) => {
                self.applied().machine.notice(&notice);
                Reply::Done
            }
        }
    }

    async fn join(&self, join: Join) -> Reply {
        self.answer_join(join).await
    }
}

#[cfg(test)]
mod tests;
