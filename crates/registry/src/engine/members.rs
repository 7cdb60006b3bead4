//! What owners and admins of a network do (spec/registry.md §12.4).
//!
//! The reference believes the `node_id` of such a request (defect A8). Here its key signs, or an admin token is shown.

use super::network::{MAX_DESCRIPTION, MAX_PORTS};
use super::{ConnState, Context, Engine, Refusal, Role, RowKey};
use pilotage_wire::NodeId;
use pilotage_wire::registry as wire;
use pilotage_wire::registry::{MemberRole, Reply, Request};

impl Engine {
    pub(super) fn kick(
        &mut self,
        ctx: &Context<'_>,
        conn: &mut ConnState,
        request: &Request,
        action: &wire::MemberAction,
    ) -> Result<Reply, Refusal> {
        let (id, target) = (action.network_id, action.target_node_id);
        let actor = self.govern(ctx, conn, request, id, Role::Admin)?;
        let network = self.network(id)?;
        // Admins remove members; only the owner removes admins.
        if let Some(actor) = actor
            && network.role(actor) <= network.role(target)
            && network.role(target).is_some_and(|role| role < Role::Owner)
        {
            return Err(Refusal::Role { network: id, needed: Role::Owner.text() });
        }
        self.expel(id, target)?;
        Ok(Reply::Kicked { network_id: id, target_node_id: target })
    }

    pub(super) fn promote(
        &mut self,
        ctx: &Context<'_>,
        conn: &mut ConnState,
        request: &Request,
        action: &wire::MemberAction,
    ) -> Result<Reply, Refusal> {
        self.set_role(ctx, conn, request, action, Role::Admin).map(Reply::Promoted)
    }

    pub(super) fn demote(
        &mut self,
        ctx: &Context<'_>,
        conn: &mut ConnState,
        request: &Request,
        action: &wire::MemberAction,
    ) -> Result<Reply, Refusal> {
        self.set_role(ctx, conn, request, action, Role::Member).map(Reply::Demoted)
    }

    fn set_role(
        &mut self,
        ctx: &Context<'_>,
        conn: &mut ConnState,
        request: &Request,
        action: &wire::MemberAction,
        role: Role,
    ) -> Result<MemberRole, Refusal> {
        let (id, target) = (action.network_id, action.target_node_id);
        self.govern(ctx, conn, request, id, Role::Owner)?;
        let mut network = self.network(id)?.clone();
        match network.role(target) {
            None => return Err(Refusal::NotMember(target, id)),
            Some(Role::Owner) => return Err(Refusal::Owner(id)),
            Some(_) => network.set_role(target, Some(role)),
        }
        self.put_network(id, network)?;
        Ok(MemberRole { network_id: id, target_node_id: target, role: role.text().to_owned() })
    }

    /// The owner becomes an admin, a member the owner.
    pub(super) fn transfer(
        &mut self,
        ctx: &Context<'_>,
        conn: &mut ConnState,
        request: &Request,
        transfer: &wire::TransferOwnership,
    ) -> Result<Reply, Refusal> {
        let (id, next) = (transfer.network_id, transfer.new_owner_id);
        self.govern(ctx, conn, request, id, Role::Owner)?;
        let mut network = self.network(id)?.clone();
        if network.role(next).is_none() {
            return Err(Refusal::NotMember(next, id));
        }
        for (_, role) in network.members.iter_mut().filter(|(_, role)| *role == Role::Owner) {
            *role = Role::Admin;
        }
        network.set_role(next, Some(Role::Owner));
        self.put_network(id, network)?;
        Ok(Reply::OwnershipTransferred { network_id: id, new_owner_id: next })
    }

    pub(super) fn rename(
        &mut self,
        ctx: &Context<'_>,
        conn: &mut ConnState,
        request: &Request,
        rename: &wire::RenameNetwork,
    ) -> Result<Reply, Refusal> {
        let id = rename.network_id;
        self.govern(ctx, conn, request, id, Role::Owner)?;
        let mut network = self.network(id)?.clone();
        if &*network.name != rename.name.as_str() {
            self.check_network_name(&rename.name)?;
            network.name = rename.name.as_str().into();
            self.put_network(id, network)?;
        }
        Ok(Reply::NetworkRenamed { network_id: id, name: rename.name.clone() })
    }

    /// Its id is not used again.
    pub(super) fn delete_network(
        &mut self,
        ctx: &Context<'_>,
        conn: &mut ConnState,
        request: &Request,
        action: &wire::NetworkAction,
    ) -> Result<Reply, Refusal> {
        let id = action.network_id;
        self.govern(ctx, conn, request, id, Role::Owner)?;
        let (first, last) = (RowKey::Invite(NodeId(0), 0), RowKey::Invite(NodeId(u32::MAX), u16::MAX));
        let invites: Vec<RowKey> = self
            .rows
            .range(first, last)
            .map(|(key, _)| *key)
            .filter(|key| matches!(key, RowKey::Invite(_, network) if *network == id))
            .collect();
        self.remove_row(RowKey::Network(id))?;
        for key in invites {
            self.remove_row(key)?;
        }
        Ok(Reply::NetworkDeleted { network_id: id })
    }

    pub(super) fn set_policy(
        &mut self,
        ctx: &Context<'_>,
        conn: &mut ConnState,
        request: &Request,
        policy: &wire::SetNetworkPolicy,
    ) -> Result<Reply, Refusal> {
        let id = policy.network_id;
        self.govern(ctx, conn, request, id, Role::Admin)?;
        let mut network = self.network(id)?.clone();
        if let Some(most) = policy.max_members {
            network.max_members = most;
        }
        if let Some(ports) = &policy.allowed_ports {
            if ports.len() > MAX_PORTS {
                return Err(Refusal::BadArgument("a policy has at most 64 ports"));
            }
            network.allowed_ports.clone_from(ports);
        }
        if let Some(text) = &policy.description {
            if text.len() > MAX_DESCRIPTION {
                return Err(Refusal::BadArgument("a description has at most 256 bytes"));
            }
            network.description = text.as_str().into();
        }
        self.put_network(id, network)?;
        self.read_policy(id).map(Reply::NetworkPolicySet)
    }

    pub(super) fn policy(&self, id: u16) -> Result<Reply, Refusal> {
        self.read_policy(id).map(Reply::NetworkPolicy)
    }

    fn read_policy(&self, id: u16) -> Result<wire::NetworkPolicy, Refusal> {
        let network = self.network(id)?;
        Ok(wire::NetworkPolicy {
            network_id: id,
            max_members: network.max_members,
            allowed_ports: network.allowed_ports.clone(),
            description: network.description.to_string(),
        })
    }

    /// Told to the network address of a member.
    pub(super) fn member_role(&self, ctx: &Context<'_>, query: &wire::MemberQuery) -> Result<Reply, Refusal> {
        let (id, target) = (query.network_id, query.target_node_id);
        let network = self.network(id)?;
        if !network.members.iter().any(|(member, _)| self.comes_from(ctx, *member)) {
            return Err(Refusal::Role { network: id, needed: Role::Member.text() });
        }
        let role = network.role(target).ok_or(Refusal::NotMember(target, id))?.text().to_owned();
        Ok(Reply::Role(MemberRole { network_id: id, target_node_id: target, role }))
    }
}
