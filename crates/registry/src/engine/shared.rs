//! The engine of a node whose state is a cluster's (`spec/cluster.md §10`): what it decides is undone and proposed, what was agreed
//! comes back and is absorbed.

use super::{Context, Engine, Record, Refusal, Row, RowKey};
use crate::ledger::{Changes, Key, MAX_CALLS, MAX_SEEN, Notice, Print, Transaction, Value, print};
use pilotage_wire::NodeId;
use pilotage_wire::registry::Request;
use std::collections::{BTreeMap, HashSet};
use std::time::Instant;

/// A place in the batch in progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    nodes: usize,
    rows: usize,
}

/// What the others have to be told.
#[derive(Debug, Default)]
pub(super) struct News {
    /// As many as there are nodes, at most.
    seen: HashSet<NodeId>,
    /// At most [`MAX_CALLS`].
    calls: HashSet<(NodeId, NodeId)>,
}

impl Engine {
    /// From now on signs of life are kept for the others.
    pub fn share(&mut self) {
        self.news.get_or_insert_default();
    }

    /// Where the batch in progress ends now.
    #[must_use]
    pub fn mark(&self) -> Mark {
        Mark { nodes: self.table.staged_len(), rows: self.rows.staged_len() }
    }

    /// What was staged since `mark`, where `request` was decided, with what it was decided upon; `None` if nothing was.
    #[must_use]
    pub fn transaction(&self, mark: Mark, request: &Request) -> Option<Transaction> {
        // The oldest state since the mark counts: the values before the request.
        let mut changed: BTreeMap<Key, Option<Print>> = BTreeMap::new();
        for (id, record) in self.table.before(mark.nodes) {
            changed.entry(Key::Node(id)).or_insert_with(|| record.map(print_record));
        }
        for (key, row) in self.rows.before(mark.rows) {
            changed.entry(Key::Row(key)).or_insert_with(|| row.map(print_row));
        }
        if changed.is_empty() {
            return None;
        }
        // All invitations to a network go with it, also those that this node has not seen.
        let gone = |network| {
            let key = RowKey::Network(network);
            changed.contains_key(&Key::Row(key)) && self.rows.get(&key).is_none()
        };
        let with_it = |key: &Key| matches!(key, Key::Row(RowKey::Invite(_, network)) if gone(*network));
        let written: Vec<Key> = changed.keys().filter(|key| !with_it(key)).copied().collect();
        let writes = written.iter().map(|key| (key.encode(), self.stored(key))).collect();
        let mut checks: BTreeMap<Key, Option<Print>> =
            written.iter().map(|key| (*key, changed.get(key).copied().flatten())).collect();
        for key in read_by(request) {
            let now = || self.stored(&key).as_deref().map(print);
            checks.entry(key).or_insert_with(now);
        }
        let checks = checks.into_iter().map(|(key, print)| (key.encode(), print)).collect();
        Some(Transaction { checks, writes })
    }

    /// The stored form, staged changes included.
    fn stored(&self, key: &Key) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        match key {
            Key::Node(id) => self.record(*id)?.encode(&mut out),
            Key::Row(key) => self.rows.get(key)?.encode(&mut out),
        }
        Some(out)
    }

    /// Takes over what the cluster has agreed on. Nothing may be staged.
    pub fn absorb(&mut self, changes: Changes, now: Instant) {
        if changes.whole {
            self.rows.clear();
        }
        for change in changes.values {
            match change {
                (Key::Node(id), Some(Value::Node(record))) => {
                    let created = record.created;
                    self.oldest = Some(self.oldest.map_or(created, |oldest| oldest.min(created)));
                    self.table.settle(id, *record, now);
                }
                (Key::Row(key), Some(Value::Row(row))) => self.rows.settle(key, Some(row)),
                (Key::Row(key), _) => self.rows.settle(key, None),
                // Nodes do not go.
                (Key::Node(_), _) => {}
            }
        }
    }

    /// A sign of life, here.
    pub fn saw(&mut self, id: NodeId, now: Instant) {
        self.table.touch(id, now);
        if let Some(news) = &mut self.news {
            news.seen.insert(id);
        }
    }

    /// Whoever acted with a request that was carried out.
    pub fn saw_actor(&mut self, request: &Request, now: Instant) {
        let actor = match request {
            Request::Register(register) => self.table.by_key(&register.public_key.0),
            Request::Heartbeat(heartbeat) => Some(heartbeat.node_id),
            // An operator's word about a node is none of the node's.
            Request::UpdatePoloScore(_) | Request::SetPoloScore(_) | Request::CreateNetwork(_) => None,
            request => request.credentials().filter(|by| by.admin_token.is_none()).and_then(|by| by.actor),
        };
        if let Some(id) = actor.filter(|id| self.registered(*id).is_ok()) {
            self.saw(id, now);
        }
    }

    pub(super) fn tell_call(&mut self, from: NodeId, to: NodeId) {
        if let Some(news) = self.news.as_mut().filter(|news| news.calls.len() < MAX_CALLS) {
            news.calls.insert((from, to));
        }
    }

    /// What the others have not been told yet, as much as one notice takes.
    pub fn take_notice(&mut self) -> Option<Notice> {
        let news = self.news.as_mut()?;
        if news.seen.is_empty() && news.calls.is_empty() {
            return None;
        }
        let seen: Vec<u32> = news.seen.iter().take(MAX_SEEN).map(|id| id.0).collect();
        for id in &seen {
            news.seen.remove(&NodeId(*id));
        }
        let calls = news.calls.drain().map(|(from, to)| (from.0, to.0)).collect();
        Some(Notice { seen, calls })
    }

    /// Takes over what another node has seen.
    pub fn heed(&mut self, notice: &Notice, now: Instant) {
        for id in notice.seen.iter().take(MAX_SEEN) {
            if self.registered(NodeId(*id)).is_ok() {
                self.table.touch(NodeId(*id), now);
            }
        }
        for (from, to) in notice.calls.iter().take(MAX_CALLS) {
            self.remember_call(NodeId(*from), NodeId(*to), now);
        }
    }

    /// The outcome of a request that needs a change while none is possible, for `reason`; what needs none is served.
    pub fn refuse_change(
        &mut self,
        ctx: &Context<'_>,
        conn: &mut super::ConnState,
        request: &Request,
        reason: &str,
    ) -> super::Outcome {
        self.set_read_only(Some(reason.to_owned()));
        let outcome = self.reapply(ctx, conn, request);
        self.set_read_only(None);
        outcome
    }
}

impl Refusal {
    /// Whether a node that has not yet seen what was agreed elsewhere may refuse wrongly for this reason.
    #[must_use]
    pub fn may_be_behind(&self) -> bool {
        matches!(
            self,
            Self::NotVisible(_)
                | Self::NameNotVisible
                | Self::Offline(..)
                | Self::NotRegistered(_)
                | Self::Signature(_)
                | Self::BadProof
                | Self::NoNetwork(_)
                | Self::NotMember(..)
                | Self::Role { .. }
                | Self::NotInvited(_)
                | Self::NoInvite(_)
                | Self::NoTrust(..)
        )
    }
}

/// Whether a request of this kind asks for a change as a rule.
#[cfg(feature = "store")]
#[must_use]
pub(crate) fn changes(request: &Request) -> bool {
    !matches!(
        request,
        Request::Challenge
            | Request::Heartbeat(_)
            | Request::Lookup(_)
            | Request::Resolve(_)
            | Request::ResolveHostname(_)
            | Request::Punch(_)
            | Request::BeaconRegister(_)
            | Request::BeaconList
            | Request::CheckTrust(_)
            | Request::PollHandshakes(_)
            | Request::PollInvites(_)
            | Request::GetKeyInfo(_)
            | Request::GetPoloScore(_)
            | Request::ListNetworks
            | Request::ListNodes(_)
            | Request::GetNetworkPolicy(_)
            | Request::GetMemberRole(_)
    )
}

/// What decides about a request beside what it changes: the record of who acts, the trust of a pair, a network.
fn read_by(request: &Request) -> Vec<Key> {
    let mut keys = Vec::new();
    keys.extend(request.credentials().and_then(|by| by.actor).map(Key::Node));
    let pair = match request {
        Request::ReportTrust(r) | Request::RevokeTrust(r) => Some((r.node_id, r.peer_id)),
        Request::RequestHandshake(r) => Some((r.from_node_id, r.to_node_id)),
        Request::RespondHandshake(r) => Some((r.node_id, r.peer_id)),
        _ => None,
    };
    if let Some((a, b)) = pair {
        for (a, b) in [(a, b), (b, a)] {
            let rows = [RowKey::Consent(a, b), RowKey::Request(a, b), RowKey::Response(a, b)];
            keys.extend(rows.map(Key::Row));
        }
    }
    let network = match request {
        Request::JoinNetwork(r) => Some(r.network_id),
        Request::LeaveNetwork(r) | Request::DeleteNetwork(r) => Some(r.network_id),
        Request::InviteToNetwork(r) => Some(r.network_id),
        Request::RespondInvite(r) => Some(r.network_id),
        Request::KickMember(r) | Request::PromoteMember(r) | Request::DemoteMember(r) => Some(r.network_id),
        Request::TransferOwnership(r) => Some(r.network_id),
        Request::RenameNetwork(r) => Some(r.network_id),
        Request::SetNetworkPolicy(r) => Some(r.network_id),
        _ => None,
    };
    keys.extend(network.map(|network| Key::Row(RowKey::Network(network))));
    let invited = match request {
        Request::JoinNetwork(r) => Some((r.node_id, r.network_id)),
        _ => None,
    };
    keys.extend(invited.map(|(node, network)| Key::Row(RowKey::Invite(node, network))));
    keys
}

fn print_record(record: &Record) -> Print {
    let mut out = Vec::new();
    record.encode(&mut out);
    print(&out)
}

fn print_row(row: &Row) -> Print {
    let mut out = Vec::new();
    row.encode(&mut out);
    print(&out)
}
