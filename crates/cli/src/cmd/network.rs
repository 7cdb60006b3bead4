//! `pilotage network`: networks of nodes, at the hub.
//!
//! Speaks with the registry on a connection of its own and signs with the identity of the state directory, so it works
//! beside a running node and without one.

use std::time::Duration;

use pilotage::{DEFAULT_HUB_PORT, Peer};
use pilotage_registry::client::{Client, ClientError, ClientTls};
use pilotage_wire::{Address, NodeId, addressing};
use serde_json::{Map, Value, json};

use super::Context;
use super::id::read_identity;
use crate::args::{JoinRule, NetworkAction, NetworkArgs};
use crate::control;
use crate::error::{CliError, Exit};

/// How long one question to the registry may take.
const TIMEOUT: Duration = Duration::from_secs(10);

pub(crate) fn run(context: &Context, args: &NetworkArgs) -> Result<(), CliError> {
    let mut session = Session::open(context, args)?;
    let reply = session.perform(&args.action)?;
    context.output.result(text(&args.action, &reply), &reply);
    Ok(())
}

/// The node ids of a network's members; NETWORK is a number or a name.
pub(crate) fn member_ids(context: &Context, network: &str) -> Result<Vec<u32>, CliError> {
    let action = NetworkAction::Members { network: network.to_owned() };
    let args = NetworkArgs { admin_token: None, node_id: None, action };
    let reply = Session::open(context, &args)?.members(network)?;
    let nodes = reply["nodes"].as_array().map(Vec::as_slice).unwrap_or_default();
    let id = |node: &Value| node["node_id"].as_u64().and_then(|id| u32::try_from(id).ok());
    Ok(nodes.iter().filter_map(id).collect())
}

struct Session<'a> {
    context: &'a Context,
    args: &'a NetworkArgs,
    client: Client,
}

impl<'a> Session<'a> {
    fn open(context: &'a Context, args: &'a NetworkArgs) -> Result<Self, CliError> {
        let settings = &context.settings;
        let registry = settings.registry.clone().or_else(|| settings.hub.as_deref().map(registry_of));
        let registry = registry.ok_or_else(|| {
            CliError::usage("network", "no hub is configured", "name one with --hub HOST[:PORT]")
        })?;
        let tls = settings.registry_tls_pin.map_or(ClientTls::Plain, ClientTls::Pinned);
        let client = Client::connect_with(&registry, TIMEOUT, tls).map_err(|error| explain(&error))?;
        Ok(Self { context, args, client })
    }

    fn perform(&mut self, action: &NetworkAction) -> Result<Value, CliError> {
        match action {
            NetworkAction::Create { name, rule, token, network_admin_token } => {
                let node = self.own_id()?;
                let rule = match rule {
                    JoinRule::Open => "open",
                    JoinRule::Token => "token",
                    JoinRule::Invite => "invite",
                };
                let mut request =
                    json!({"type": "create_network", "node_id": node.0, "name": name, "join_rule": rule});
                put(&mut request, "token", token.as_deref());
                put(&mut request, "network_admin_token", network_admin_token.as_deref());
                self.ask(request, None)
            }
            NetworkAction::List => self.ask(json!({"type": "list_networks"}), None),
            NetworkAction::Members { network } => self.members(network),
            NetworkAction::Invites => {
                let node = self.own_id()?;
                let request = json!({"type": "poll_invites", "node_id": node.0});
                self.ask(request, Some(format!("poll_invites:{}", node.0)))
            }
            NetworkAction::Join { network, token } => {
                let (node, id) = (self.own_id()?, self.network(network)?);
                let mut request = json!({"type": "join_network", "node_id": node.0, "network_id": id});
                request["token"] = token.as_deref().unwrap_or_default().into();
                request["inviter_id"] = 0.into();
                self.ask(request, Some(format!("join_network:{}:{id}", node.0)))
            }
            NetworkAction::Leave { network } => {
                let (node, id) = (self.own_id()?, self.network(network)?);
                let request = json!({"type": "leave_network", "node_id": node.0, "network_id": id});
                self.ask(request, Some(format!("leave_network:{}:{id}", node.0)))
            }
            NetworkAction::Accept { network } => self.answer(network, true),
            NetworkAction::Decline { network } => self.answer(network, false),
            other => self.govern(other),
        }
    }

    fn answer(&mut self, network: &str, accept: bool) -> Result<Value, CliError> {
        let (node, id) = (self.own_id()?, self.network(network)?);
        let request =
            json!({"type": "respond_invite", "node_id": node.0, "network_id": id, "accept": accept});
        self.ask(request, Some(format!("respond_invite:{}:{id}", node.0)))
    }

    /// What admins and owners do. With an admin token nobody needs to be either.
    fn govern(&mut self, action: &NetworkAction) -> Result<Value, CliError> {
        let (kind, network, field, peer) = match action {
            NetworkAction::Invite { network, peer } => {
                ("invite_to_network", network, "target_node_id", Some(peer))
            }
            NetworkAction::Kick { network, peer } => ("kick_member", network, "target_node_id", Some(peer)),
            NetworkAction::Promote { network, peer } => {
                ("promote_member", network, "target_node_id", Some(peer))
            }
            NetworkAction::Demote { network, peer } => {
                ("demote_member", network, "target_node_id", Some(peer))
            }
            NetworkAction::Transfer { network, peer } => {
                ("transfer_ownership", network, "new_owner_id", Some(peer))
            }
            NetworkAction::Rename { network, .. } => ("rename_network", network, "", None),
            NetworkAction::Delete { network } => ("delete_network", network, "", None),
            NetworkAction::Policy { network, max_members: None, allowed_ports: None, description: None } => {
                let id = self.network(network)?;
                return self.ask(json!({"type": "get_network_policy", "network_id": id}), None);
            }
            NetworkAction::Policy { network, .. } => ("set_network_policy", network, "", None),
            _ => {
                return Err(CliError::usage(
                    "network",
                    "not an action on a network",
                    "see `pilotage network --help`",
                ));
            }
        };
        let id = self.network(network)?;
        let mut request = json!({"type": kind, "network_id": id});
        let target = peer.map(|peer| self.peer(peer)).transpose()?;
        if let Some(target) = target {
            request[field] = target.0.into();
        }
        match action {
            NetworkAction::Rename { name, .. } => request["name"] = name.as_str().into(),
            NetworkAction::Policy { max_members, allowed_ports, description, .. } => {
                if let Some(most) = max_members {
                    request["max_members"] = (*most).into();
                }
                if let Some(ports) = allowed_ports {
                    request["allowed_ports"] = ports.clone().into();
                }
                put(&mut request, "description", description.as_deref());
            }
            _ => {}
        }
        let actor = if kind == "invite_to_network" { "inviter_id" } else { "node_id" };
        // A token needs nobody who acts; without one this node does.
        let node = match (&self.args.admin_token, self.own_id()) {
            (Some(_), Err(_)) => None,
            (_, node) => Some(node?),
        };
        let mut string = None;
        if let Some(node) = node {
            request[actor] = node.0.into();
            string = Some(match target {
                Some(target) if kind == "invite_to_network" => format!("invite:{}:{id}:{}", node.0, target.0),
                _ => format!("{kind}:{}:{id}", node.0),
            });
        }
        self.ask(request, string)
    }

    /// All pages of a list.
    fn members(&mut self, network: &str) -> Result<Value, CliError> {
        let id = self.network(network)?;
        let mut request = json!({"type": "list_nodes", "network_id": id});
        let mut reply = self.ask(request.clone(), None)?;
        let mut nodes = reply["nodes"].as_array().cloned().unwrap_or_default();
        let mut page = reply.clone();
        // Each page begins above the one before; a registry that does not keep to that is not asked for ever.
        while let Some(next) = page["next"].as_u64().filter(|next| request["after"].as_u64() < Some(*next)) {
            request["after"] = next.into();
            page = self.ask(request.clone(), None)?;
            nodes.extend(page["nodes"].as_array().cloned().unwrap_or_default());
        }
        reply["nodes"] = nodes.into();
        if let Some(fields) = reply.as_object_mut() {
            fields.remove("next");
        }
        Ok(reply)
    }

    /// Sends one request; `sign` is the string of the reference for it.
    fn ask(&mut self, mut request: Value, sign: Option<String>) -> Result<Value, CliError> {
        let kind = request["type"].as_str().unwrap_or_default();
        let takes_token = !matches!(
            kind,
            "list_networks"
                | "get_network_policy"
                | "poll_invites"
                | "respond_invite"
                | "lookup"
                | "resolve_hostname"
        );
        let token = self.args.admin_token.as_deref().filter(|_| takes_token);
        put(&mut request, "admin_token", token);
        let result = match sign {
            Some(text) if token.is_none() => {
                let identity = read_identity(&self.context.settings.state)?;
                self.client.call_json(request, Some((&text, &|message| identity.sign(message))))
            }
            _ => self.client.call_json(request, None),
        };
        result.map_err(|error| explain(&error))
    }

    /// A network by number or name.
    fn network(&mut self, text: &str) -> Result<u16, CliError> {
        if let Ok(id) = text.parse() {
            return Ok(id);
        }
        let list = self.ask(json!({"type": "list_networks"}), None)?;
        let found = list["networks"].as_array().into_iter().flatten().find(|network| network["name"] == text);
        let id = found.and_then(|network| network["id"].as_u64()).and_then(|id| u16::try_from(id).ok());
        id.ok_or_else(|| {
            CliError::failure(
                "network",
                format!("there is no network {text:?}"),
                "`pilotage network list` shows those that exist",
            )
        })
    }

    fn peer(&mut self, peer: &Peer) -> Result<NodeId, CliError> {
        match peer {
            Peer::Address(address) | Peer::At(address, _) => Ok(address.node),
            Peer::Name(name) => {
                let me = self.own_id().ok();
                self.client
                    .resolve_hostname(name, me)
                    .map(|found| found.node)
                    .map_err(|error| explain(&error))
            }
        }
    }

    /// This node's id: as told, as the running node has it, or as the key gives it and the registry confirms.
    fn own_id(&mut self) -> Result<NodeId, CliError> {
        if let Some(id) = self.args.node_id {
            return Ok(NodeId(id));
        }
        let state = &self.context.settings.state;
        let running = control::request(state, "status").ok();
        let address = running.as_ref().and_then(|reply| reply["address"].as_str()?.parse::<Address>().ok());
        if let Some(address) = address {
            return Ok(address.node);
        }
        let public_key = read_identity(state)?.public_key();
        // Further salts are for collisions, which are rare.
        for (_, id) in addressing::node_ids(&public_key).take(3) {
            match self.client.lookup(id) {
                Ok(found) if found.public_key == Some(public_key) => return Ok(id),
                Ok(_) | Err(ClientError::Refused { .. }) => {}
                Err(error) => return Err(explain(&error)),
            }
        }
        Err(CliError::failure(
            "network",
            "this node is not registered at the hub",
            "start it with `pilotage up`; at a hub of another kind give --node-id ID",
        ))
    }
}

fn put(request: &mut Value, field: &str, text: Option<&str>) {
    if let Some(text) = text {
        request[field] = text.into();
    }
}

fn explain(error: &ClientError) -> CliError {
    let text = error.to_string();
    let (cause, next) = text.split_once("; ").unwrap_or((&text, "see `pilotage network --help`"));
    let exit = if error.is_transient() { Exit::Unreachable } else { Exit::Failure };
    CliError::new(exit, "network", cause, next)
}

/// `HOST[:PORT]` with the default port.
pub(super) fn registry_of(hub: &str) -> String {
    let colons = hub.matches(':').count();
    if hub.ends_with(']') || colons == 0 {
        format!("{hub}:{DEFAULT_HUB_PORT}")
    } else if colons > 1 && !hub.starts_with('[') {
        format!("[{hub}]:{DEFAULT_HUB_PORT}")
    } else {
        hub.to_owned()
    }
}

/// The reply for people.
fn text(action: &NetworkAction, reply: &Value) -> String {
    let list = |field: &str, none: &str, line: &dyn Fn(&Value) -> String| {
        let items = reply[field].as_array().map(Vec::as_slice).unwrap_or_default();
        if items.is_empty() { none.to_owned() } else { items.iter().map(line).collect::<Vec<_>>().join("\n") }
    };
    match action {
        NetworkAction::List => list("networks", "there are no networks", &|network| {
            let (id, name) = (network["id"].to_string(), plain(&network["name"]));
            format!("{id:<5} {name:<24} {:<7} {} members", plain(&network["join_rule"]), network["members"])
        }),
        NetworkAction::Members { .. } => list("nodes", "it has no members", &|node| {
            let place = if node["offline"] == true { "off line".into() } else { plain(&node["real_addr"]) };
            let (address, role) = (plain(&node["address"]), plain(&node["role"]));
            format!("{address}  {role:<7} {:<24} {place}", plain(&node["hostname"]))
        }),
        NetworkAction::Invites => list("invites", "there are no invitations", &|invite| {
            format!("network {}, invited by node {}", invite["network_id"], invite["inviter_id"])
        }),
        _ => {
            let empty = Map::new();
            let fields = reply.as_object().unwrap_or(&empty);
            let lines = fields.iter().filter(|(key, _)| *key != "type");
            let lines: Vec<String> =
                lines.map(|(key, value)| format!("{key:<15} {}", plain(value))).collect();
            lines.join("\n")
        }
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hub_has_its_registry_on_the_default_port() {
        for (hub, registry) in [
            ("hub.example", "hub.example:9000"),
            ("hub.example:9100", "hub.example:9100"),
            ("::1", "[::1]:9000"),
            ("[::1]", "[::1]:9000"),
            ("[::1]:9100", "[::1]:9100"),
        ] {
            assert_eq!(registry_of(hub), registry);
        }
    }

    #[test]
    fn lists_are_tables_and_other_replies_are_fields() {
        let reply = json!({"type": "list_networks_ok", "networks": [{"id": 1, "name": "lab", "members": 2, "join_rule": "open"}]});
        assert_eq!(text(&NetworkAction::List, &reply), "1     lab                      open    2 members");
        let none = json!({"type": "poll_invites_ok", "invites": []});
        assert_eq!(text(&NetworkAction::Invites, &none), "there are no invitations");
        let leave = NetworkAction::Leave { network: "1".into() };
        let reply = json!({"type": "leave_network_ok", "network_id": 1});
        assert_eq!(text(&leave, &reply), "network_id      1");
    }
}
