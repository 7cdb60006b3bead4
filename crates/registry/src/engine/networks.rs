//! Networks: making, entering, leaving, and what everybody may see (spec/registry.md §12).

use super::network::{JoinRule, MAX_NAME, Network};
use super::rows::Kind;
use super::trust::escaped_len;
use super::{ConnState, Context, Engine, Refusal, Role, Row, RowKey, Secret};
use pilotage_wire::registry as wire;
use pilotage_wire::registry::{MemberInfo, NetworkInfo, Reply, Request, check_hostname, rfc3339};
use pilotage_wire::{Address, NodeId};

/// JSON text of entries that one `list_nodes` reply takes, bytes.
const MAX_LIST: usize = 60_000;
/// One entry without name and tags, at most, bytes.
const ENTRY: usize = 320;
/// Longest token, bytes.
const MAX_TOKEN: usize = 256;
/// The last network id; 65,535 would make the broadcast address.
const LAST_NETWORK: u16 = u16::MAX - 1;

impl Engine {
    /// All networks but the backbone, in the order of ids.
    pub(super) fn networks(&self) -> impl Iterator<Item = (u16, &Network)> {
        self.rows.range(RowKey::Network(0), RowKey::Network(u16::MAX)).filter_map(|(key, row)| {
            match (key, row) {
                (RowKey::Network(id), Row::Network(network)) => Some((*id, &**network)),
                _ => None,
            }
        })
    }

    pub(super) fn network(&self, id: u16) -> Result<&Network, Refusal> {
        match self.rows.get(&RowKey::Network(id)) {
            Some(Row::Network(network)) => Ok(network),
            _ => Err(Refusal::NoNetwork(id)),
        }
    }

    pub(super) fn put_network(&mut self, id: u16, network: Network) -> Result<(), Refusal> {
        self.put_row(RowKey::Network(id), Row::Network(Box::new(network)))
    }

    pub(super) fn list_networks(&self) -> Reply {
        let backbone = NetworkInfo {
            id: 0,
            name: "backbone".into(),
            members: self.table.total() as u64,
            join_rule: JoinRule::Open.text().into(),
            enterprise: false,
            created: self.oldest.unwrap_or(0),
        };
        let others = self.networks().map(|(id, network)| NetworkInfo {
            id,
            name: network.name.to_string(),
            members: network.members.len() as u64,
            join_rule: network.rule.text().into(),
            enterprise: network.enterprise,
            created: network.created,
        });
        Reply::Networks { networks: std::iter::once(backbone).chain(others).collect() }
    }

    /// Members are told to a member's network address and to admins; all nodes of the registry only to the hub's admin.
    pub(super) fn list_nodes(
        &mut self,
        ctx: &Context<'_>,
        request: &wire::ListNodes,
    ) -> Result<Reply, Refusal> {
        let id = request.network_id;
        let after = request.after.unwrap_or(0);
        let admin = self.is_admin(ctx, request.admin_token.as_deref(), Some(id).filter(|id| *id != 0))?;
        let members: Vec<(NodeId, Option<Role>)> = if id == 0 {
            if !admin {
                return Err(Refusal::TokenNeeded(" for network 0"));
            }
            self.table.ids_after(after).into_iter().map(|id| (id, None)).collect()
        } else {
            let network = self.network(id)?;
            if !admin && !network.members.iter().any(|(member, _)| self.comes_from(ctx, *member)) {
                return Err(Refusal::Role { network: id, needed: Role::Member.text() });
            }
            let wanted = network.members.iter().filter(|(member, _)| member.0 > after || after == 0);
            wanted.map(|(member, role)| (*member, Some(*role))).collect()
        };
        let (mut nodes, mut size, mut next) = (Vec::new(), 0, None);
        for (member, role) in members {
            let Some(info) = self.member_info(ctx, id, member, role) else { continue };
            size += ENTRY + info.hostname.as_deref().map_or(0, escaped_len);
            size += info.tags.iter().map(|tag| tag.len() + 3).sum::<usize>();
            if size > MAX_LIST {
                next = nodes.last().map(|last: &MemberInfo| last.node_id.0);
                break;
            }
            nodes.push(info);
        }
        Ok(Reply::Nodes { nodes, next })
    }

    fn member_info(
        &self,
        ctx: &Context<'_>,
        network: u16,
        id: NodeId,
        role: Option<Role>,
    ) -> Option<MemberInfo> {
        let node = self.table.get(id)?;
        let record = &node.record;
        let online = self.is_online(node, ctx.now);
        let silence = node.last_seen.map(|seen| ctx.now.duration_since(seen).as_secs());
        Some(MemberInfo {
            node_id: id,
            address: Address::new(network, id.0).to_string(),
            public: record.public,
            polo_score: record.profile.polo_score,
            role: role.map(|role| role.text().to_owned()),
            hostname: record.hostname.as_deref().map(str::to_owned),
            task_exec: record.profile.task_exec,
            tags: record.profile.tags.iter().map(ToString::to_string).collect(),
            real_addr: record.endpoint.filter(|_| online && record.public).map(|addr| addr.to_string()),
            last_seen: silence.map(|silence| rfc3339(ctx.unix.saturating_sub(silence))),
            offline: !online,
        })
    }

    /// The hub's admin makes a network; `node_id` becomes its owner.
    pub(super) fn create_network(
        &mut self,
        ctx: &Context<'_>,
        request: &wire::CreateNetwork,
    ) -> Result<Reply, Refusal> {
        if !self.is_admin(ctx, request.admin_token.as_deref(), None)? {
            return Err(Refusal::TokenNeeded(""));
        }
        let rule = JoinRule::parse(&request.join_rule)
            .ok_or(Refusal::BadArgument("join_rule must be \"open\", \"token\" or \"invite\""))?;
        self.check_network_name(&request.name)?;
        let secret = |text: &Option<String>| match text.as_deref() {
            None | Some("") => Ok(None),
            Some(text) if text.len() > MAX_TOKEN => {
                Err(Refusal::BadArgument("a token has at most 256 bytes"))
            }
            Some(text) => Ok(Some(Secret::new(text))),
        };
        let token = secret(&request.token)?;
        if rule == JoinRule::Token && token.is_none() {
            return Err(Refusal::BadArgument("a network with the rule \"token\" needs a token"));
        }
        let owner = request.node_id;
        if !self.registered(owner)?.durable {
            return Err(Refusal::NotRegistered(owner));
        }
        if self.rows.count(Kind::Network) >= self.config.social.networks {
            return Err(Refusal::TooMany("the registry has as many networks as it may have; delete one"));
        }
        let id = match self.rows.get(&RowKey::NextNetwork) {
            Some(Row::NextNetwork(id)) => *id,
            _ => 1,
        };
        if id > LAST_NETWORK {
            return Err(Refusal::TooMany("all network ids are used up"));
        }
        let network = Network {
            name: request.name.as_str().into(),
            rule,
            token,
            admin: secret(&request.network_admin_token)?,
            enterprise: request.enterprise,
            created: ctx.unix,
            members: vec![(owner, Role::Owner)],
            max_members: 0,
            allowed_ports: Vec::new(),
            description: "".into(),
        };
        self.put_network(id, network)?;
        self.put_row(RowKey::NextNetwork, Row::NextNetwork(id.saturating_add(1)))?;
        let name = request.name.clone();
        Ok(Reply::NetworkCreated { network_id: id, name, enterprise: request.enterprise })
    }

    /// The rule of hostnames, and nobody else has it.
    pub(super) fn check_network_name(&self, name: &str) -> Result<(), Refusal> {
        if check_hostname(name).is_err() || name.len() > MAX_NAME {
            return Err(Refusal::BadArgument(
                "a network's name has 1 to 63 of a-z, 0-9 and -, no - at the ends, and is not backbone",
            ));
        }
        if self.networks().any(|(_, network)| &*network.name == name) {
            return Err(Refusal::BadArgument("another network has this name; choose another one"));
        }
        Ok(())
    }

    pub(super) fn join_network(
        &mut self,
        ctx: &Context<'_>,
        conn: &mut ConnState,
        request: &Request,
        join: &wire::JoinNetwork,
    ) -> Result<Reply, Refusal> {
        let (id, node) = (join.network_id, join.node_id);
        self.network(id)?;
        let invited = self.rows.get(&RowKey::Invite(node, id)).is_some();
        if self.is_admin(ctx, join.admin_token.as_deref(), Some(id))? {
            self.registered(node)?;
        } else {
            self.authorize(ctx, conn, request)?;
            let network = self.network(id)?;
            match network.rule {
                _ if invited => {}
                JoinRule::Open => {}
                JoinRule::Invite => return Err(Refusal::NotInvited(id)),
                JoinRule::Token => {
                    let secret = network.token;
                    let given = join.token.as_deref().unwrap_or_default();
                    self.check_token(ctx, secret, given)?;
                }
            }
        }
        self.enter(id, node)?;
        Ok(Reply::Joined { network_id: id, address: Address::new(id, node.0).to_string() })
    }

    /// Makes a node a member; its invitation is spent. Being one already is no error: a daemon joins at every start.
    fn enter(&mut self, id: u16, node: NodeId) -> Result<(), Refusal> {
        let mut network = self.network(id)?.clone();
        if network.role(node).is_none() {
            let bound = self.config.social.members;
            let own = if network.max_members == 0 { bound } else { bound.min(network.max_members as usize) };
            if network.members.len() >= own {
                return Err(Refusal::TooMany("the network has as many members as it may have"));
            }
            network.set_role(node, Some(Role::Member));
            self.put_network(id, network)?;
        }
        self.remove_row(RowKey::Invite(node, id)).map(drop)
    }

    pub(super) fn leave_network(
        &mut self,
        ctx: &Context<'_>,
        conn: &mut ConnState,
        request: &Request,
        leave: &wire::NetworkAction,
    ) -> Result<Reply, Refusal> {
        let id = leave.network_id;
        self.network(id)?;
        let node = if self.is_admin(ctx, leave.admin_token.as_deref(), Some(id))? {
            leave.node_id.ok_or(Refusal::NoActor)?
        } else {
            self.authorize(ctx, conn, request)?
        };
        self.expel(id, node)?;
        Ok(Reply::Left { network_id: id })
    }

    /// Ends a membership, whatever the reason.
    pub(super) fn expel(&mut self, id: u16, node: NodeId) -> Result<(), Refusal> {
        let mut network = self.network(id)?.clone();
        match network.role(node) {
            None => return Err(Refusal::NotMember(node, id)),
            Some(Role::Owner) => return Err(Refusal::Owner(id)),
            Some(_) => network.set_role(node, None),
        }
        self.put_network(id, network)
    }

    pub(super) fn invite(
        &mut self,
        ctx: &Context<'_>,
        conn: &mut ConnState,
        request: &Request,
        invite: &wire::InviteToNetwork,
    ) -> Result<Reply, Refusal> {
        let (id, target) = (invite.network_id, invite.target_node_id);
        let inviter = self.govern(ctx, conn, request, id, Role::Admin)?;
        self.table.get(target).ok_or(Refusal::NotVisible(target))?;
        if self.network(id)?.role(target).is_some() {
            return Err(Refusal::IsMember(target, id));
        }
        let key = RowKey::Invite(target, id);
        if self.rows.get(&key).is_none() {
            let bounds = &self.config.social;
            let waiting =
                self.rows.range(RowKey::Invite(target, 0), RowKey::Invite(target, u16::MAX)).count();
            if waiting >= bounds.invites_per_node || self.rows.count(Kind::Invite) >= bounds.invites {
                return Err(Refusal::TooMany("too many invitations wait; retry when some are answered"));
            }
            let inviter = inviter.unwrap_or(NodeId(0));
            self.put_row(key, Row::Invite { inviter, at: ctx.unix })?;
        }
        Ok(Reply::Invited { network_id: id, target_node_id: target })
    }

    /// They stay until they are answered.
    pub(super) fn poll_invites(
        &mut self,
        ctx: &Context<'_>,
        conn: &mut ConnState,
        request: &Request,
    ) -> Result<Reply, Refusal> {
        let node = self.authorize(ctx, conn, request)?;
        let waiting = self.rows.range(RowKey::Invite(node, 0), RowKey::Invite(node, u16::MAX));
        let invites = waiting.filter_map(|(key, row)| match (key, row) {
            (RowKey::Invite(_, network_id), Row::Invite { inviter, at }) => {
                Some(wire::InviteInfo { network_id: *network_id, inviter_id: *inviter, timestamp: *at })
            }
            _ => None,
        });
        Ok(Reply::Invites { invites: invites.collect() })
    }

    pub(super) fn respond_invite(
        &mut self,
        ctx: &Context<'_>,
        conn: &mut ConnState,
        request: &Request,
        answer: &wire::RespondInvite,
    ) -> Result<Reply, Refusal> {
        let node = self.authorize(ctx, conn, request)?;
        let id = answer.network_id;
        let key = RowKey::Invite(node, id);
        if self.rows.get(&key).is_none() {
            return Err(Refusal::NoInvite(id));
        }
        if answer.accept {
            self.enter(id, node)?;
        } else {
            self.remove_row(key)?;
        }
        Ok(Reply::InviteAnswered { accepted: answer.accept, network_id: id })
    }
}
