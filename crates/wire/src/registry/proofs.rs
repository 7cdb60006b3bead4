//! Who acts with a request, and what is signed for that: the string that the reference expects, and our proof.

use super::signing::Message;
use super::{
    NONCE_LEN, Request, Signature, deregister_proof, deregister_string, register_proof, resolve_string,
    set_hostname_proof, set_hostname_string, set_visibility_proof, set_visibility_string,
};
use crate::NodeId;

/// What a request brings along to show that its sender may do it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credentials<'a> {
    /// Who acts, if the request says so.
    pub actor: Option<NodeId>,
    /// Over [`Request::signed_string`].
    pub signature: Option<&'a Signature>,
    /// Over [`Request::proof_message`].
    pub proof: Option<&'a Signature>,
    /// The hub's or a network's.
    pub admin_token: Option<&'a str>,
}

impl Request {
    /// What this request brings along; `None` for the types that need nothing, and for `register` and `heartbeat`, which
    /// have rules of their own.
    #[must_use]
    pub fn credentials(&self) -> Option<Credentials<'_>> {
        macro_rules! of {
            ($r:ident, $actor:expr) => {
                (Some($actor), $r.signature.as_ref(), $r.proof.as_ref(), None)
            };
        }
        macro_rules! with_token {
            ($r:ident, $actor:expr, $signature:expr) => {
                ($actor, $signature, $r.proof.as_ref(), $r.admin_token.as_deref())
            };
        }
        let (actor, signature, proof, admin_token) = match self {
            Self::SetHostname(r) => of!(r, r.node_id),
            Self::SetVisibility(r) => of!(r, r.node_id),
            Self::Deregister(r) => of!(r, r.node_id),
            Self::SetTags(r) => of!(r, r.node_id),
            Self::SetTaskExec(r) => of!(r, r.node_id),
            Self::RotateKey(r) => of!(r, r.node_id),
            Self::SetKeyExpiry(r) => of!(r, r.node_id),
            Self::ReportTrust(r) | Self::RevokeTrust(r) => of!(r, r.node_id),
            Self::RequestHandshake(r) => of!(r, r.from_node_id),
            Self::PollHandshakes(r) | Self::PollInvites(r) => of!(r, r.node_id),
            Self::RespondHandshake(r) => of!(r, r.node_id),
            Self::RespondInvite(r) => of!(r, r.node_id),
            Self::Resolve(r) => (Some(r.requester_id), r.signature.as_ref(), None, None),
            Self::Punch(r) => (Some(r.requester_id), r.signature.as_ref(), None, None),
            Self::JoinNetwork(r) => with_token!(r, Some(r.node_id), r.signature.as_ref()),
            Self::LeaveNetwork(r) | Self::DeleteNetwork(r) => with_token!(r, r.node_id, r.signature.as_ref()),
            Self::InviteToNetwork(r) => with_token!(r, r.inviter_id, r.signature.as_ref()),
            Self::KickMember(r) | Self::PromoteMember(r) | Self::DemoteMember(r) => {
                with_token!(r, r.node_id, None)
            }
            Self::TransferOwnership(r) => with_token!(r, r.node_id, None),
            Self::RenameNetwork(r) => with_token!(r, r.node_id, None),
            Self::SetNetworkPolicy(r) => with_token!(r, r.node_id, None),
            Self::CreateNetwork(r) => (Some(r.node_id), None, None, r.admin_token.as_deref()),
            Self::ListNodes(r) => (None, None, None, r.admin_token.as_deref()),
            Self::UpdatePoloScore(r) => (Some(r.node_id), None, None, r.admin_token.as_deref()),
            Self::SetPoloScore(r) => (Some(r.node_id), None, None, r.admin_token.as_deref()),
            _ => return None,
        };
        Some(Credentials { actor, signature, proof, admin_token })
    }

    /// The string of spec/registry.md §5.2 that `signature` is over; `None` for the types that have none.
    #[must_use]
    pub fn signed_string(&self) -> Option<String> {
        let kind = self.kind();
        Some(match self {
            Self::SetHostname(r) => set_hostname_string(r.node_id),
            Self::SetVisibility(r) => set_visibility_string(r.node_id),
            Self::Deregister(r) => deregister_string(r.node_id),
            Self::Resolve(r) => resolve_string(r.requester_id, r.node_id),
            Self::SetTags(r) => format!("{kind}:{}", r.node_id.0),
            Self::SetTaskExec(r) => format!("{kind}:{}", r.node_id.0),
            Self::SetKeyExpiry(r) => format!("{kind}:{}", r.node_id.0),
            Self::PollHandshakes(r) | Self::PollInvites(r) => format!("{kind}:{}", r.node_id.0),
            Self::RotateKey(r) => format!("rotate:{}", r.node_id.0),
            Self::ReportTrust(r) | Self::RevokeTrust(r) => format!("{kind}:{}:{}", r.node_id.0, r.peer_id.0),
            Self::RequestHandshake(r) => format!("handshake:{}:{}", r.from_node_id.0, r.to_node_id.0),
            Self::RespondHandshake(r) => format!("respond:{}:{}", r.node_id.0, r.peer_id.0),
            Self::Punch(r) => format!("{kind}:{}:{}", r.node_a.0, r.node_b.0),
            Self::JoinNetwork(r) => format!("{kind}:{}:{}", r.node_id.0, r.network_id),
            Self::LeaveNetwork(r) => format!("{kind}:{}:{}", r.node_id?.0, r.network_id),
            Self::InviteToNetwork(r) => {
                format!("invite:{}:{}:{}", r.inviter_id?.0, r.network_id, r.target_node_id.0)
            }
            Self::RespondInvite(r) => format!("{kind}:{}:{}", r.node_id.0, r.network_id),
            _ => return None,
        })
    }

    /// What a `proof` of this request signs (spec/registry.md §5.1); `None` for the types that take none.
    #[must_use]
    pub fn proof_message(&self, nonce: &[u8; NONCE_LEN]) -> Option<Vec<u8>> {
        match self {
            Self::Register(r) => return Some(register_proof(nonce, r)),
            Self::SetHostname(r) => return Some(set_hostname_proof(nonce, r.node_id, &r.hostname)),
            Self::SetVisibility(r) => return Some(set_visibility_proof(nonce, r.node_id, r.public)),
            Self::Deregister(r) => return Some(deregister_proof(nonce, r.node_id)),
            _ => {}
        }
        let mut message = Message::new(self.kind(), nonce);
        let m = &mut message;
        match self {
            Self::SetTags(r) => {
                m.u32(r.node_id.0);
                m.list(&r.tags, |m, tag| m.bytes(tag.as_bytes()));
            }
            Self::SetTaskExec(r) => {
                m.u32(r.node_id.0);
                m.flag(r.enabled);
            }
            Self::RotateKey(r) => {
                m.u32(r.node_id.0);
                m.bytes(&r.new_public_key.0);
            }
            Self::SetKeyExpiry(r) => {
                m.u32(r.node_id.0);
                m.bytes(r.expires_at.as_bytes());
            }
            Self::ReportTrust(r) | Self::RevokeTrust(r) => m.ids(r.node_id, r.peer_id),
            Self::RequestHandshake(r) => {
                m.ids(r.from_node_id, r.to_node_id);
                m.bytes(r.justification.as_bytes());
            }
            Self::RespondHandshake(r) => {
                m.ids(r.node_id, r.peer_id);
                m.flag(r.accept);
            }
            Self::PollHandshakes(r) | Self::PollInvites(r) => m.u32(r.node_id.0),
            _ => {
                self.network_arguments(m)?;
            }
        }
        Some(message.0)
    }

    fn network_arguments(&self, m: &mut Message) -> Option<()> {
        match self {
            Self::JoinNetwork(r) => {
                m.network(r.network_id);
                m.u32(r.node_id.0);
                m.optional(r.token.as_deref(), |m, token| m.bytes(token.as_bytes()));
            }
            Self::LeaveNetwork(r) | Self::DeleteNetwork(r) => {
                m.network(r.network_id);
                m.u32(r.node_id?.0);
            }
            Self::InviteToNetwork(r) => {
                m.network(r.network_id);
                m.ids(r.inviter_id?, r.target_node_id);
            }
            Self::RespondInvite(r) => {
                m.network(r.network_id);
                m.u32(r.node_id.0);
                m.flag(r.accept);
            }
            Self::KickMember(r) | Self::PromoteMember(r) | Self::DemoteMember(r) => {
                m.network(r.network_id);
                m.ids(r.node_id?, r.target_node_id);
            }
            Self::TransferOwnership(r) => {
                m.network(r.network_id);
                m.ids(r.node_id?, r.new_owner_id);
            }
            Self::RenameNetwork(r) => {
                m.network(r.network_id);
                m.u32(r.node_id?.0);
                m.bytes(r.name.as_bytes());
            }
            Self::SetNetworkPolicy(r) => {
                m.network(r.network_id);
                m.u32(r.node_id?.0);
                m.optional(r.max_members, Message::u32);
                m.optional(r.allowed_ports.as_deref(), |m, ports| {
                    m.list(ports, |m, port| m.network(*port));
                });
                m.optional(r.description.as_deref(), |m, text| m.bytes(text.as_bytes()));
            }
            _ => return None,
        }
        Some(())
    }
}

impl Message {
    fn ids(&mut self, first: NodeId, second: NodeId) {
        self.u32(first.0);
        self.u32(second.0);
    }

    /// Network ids and ports: two bytes.
    fn network(&mut self, id: u16) {
        self.0.extend_from_slice(&id.to_be_bytes());
    }

    fn list<T>(&mut self, items: &[T], mut write: impl FnMut(&mut Self, &T)) {
        self.u32(u32::try_from(items.len()).unwrap_or(u32::MAX));
        items.iter().for_each(|item| write(self, item));
    }
}

#[cfg(test)]
mod tests {
    use super::super::REQUEST_TYPES;
    use super::*;

    /// One request of every type, with all optional fields.
    fn samples() -> Vec<Request> {
        let common = r#""node_id":1,"peer_id":2,"requester_id":1,"from_node_id":1,"to_node_id":2,"network_id":3,
            "target_node_id":2,"new_owner_id":2,"inviter_id":1,"node_a":1,"node_b":2,"hostname":"h","tags":["a"],
            "enabled":true,"public":true,"accept":true,"name":"n","delta":1,"polo_score":1,"token":"t",
            "new_public_key":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=","expires_at":"never",
            "public_key":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=","listen_addr":"h:1","beacon_id":1,
            "addr":"h:1","max_members":5,"allowed_ports":[7],"description":"d","justification":"j""#;
        REQUEST_TYPES
            .iter()
            .map(|kind| Request::parse(format!(r#"{{"type":"{kind}",{common}}}"#).as_bytes()).expect(kind))
            .collect()
    }

    #[test]
    fn every_type_is_there_and_no_two_proofs_are_alike() {
        let mut proofs = std::collections::BTreeSet::new();
        let samples = samples();
        for (kind, request) in REQUEST_TYPES.iter().zip(&samples) {
            assert_eq!(request.kind(), *kind);
            if let Some(message) = request.proof_message(&[7; 32]) {
                assert!(proofs.insert(message), "{kind}");
            }
            // What changes something by a signature also has a proof; the others only tell where somebody is.
            let signs = request.signed_string().is_some();
            let reads = matches!(request, Request::Resolve(_) | Request::Punch(_));
            assert!(!signs || reads || request.proof_message(&[0; 32]).is_some(), "{kind}");
            assert!(!signs || request.credentials().is_some_and(|c| c.actor.is_some()), "{kind}");
        }
        assert_eq!(proofs.len(), 25);
    }

    #[test]
    fn the_strings_are_those_of_the_reference() {
        let strings: Vec<_> = samples().iter().filter_map(Request::signed_string).collect();
        for expected in [
            "set_tags:1",
            "set_task_exec:1",
            "rotate:1",
            "set_key_expiry:1",
            "report_trust:1:2",
            "revoke_trust:1:2",
            "handshake:1:2",
            "poll_handshakes:1",
            "respond:1:2",
            "punch:1:2",
            "join_network:1:3",
            "leave_network:1:3",
            "invite:1:3:2",
            "poll_invites:1",
            "respond_invite:1:3",
        ] {
            assert!(strings.iter().any(|text| text == expected), "{expected}");
        }
    }

    #[test]
    fn every_argument_is_covered() {
        let base = r#"{"type":"set_network_policy","network_id":3,"node_id":1,"max_members":5,"allowed_ports":[7,80],"description":"d"}"#;
        let proof = |text: &str| Request::parse(text.as_bytes()).unwrap().proof_message(&[1; 32]);
        for (from, to) in [
            ("\"max_members\":5", "\"max_members\":6"),
            ("[7,80]", "[7,81]"),
            ("[7,80]", "[7]"),
            ("\"d\"", "\"e\""),
            (",\"description\":\"d\"", ""),
            (":3", ":4"),
            ("\"node_id\":1", "\"node_id\":2"),
        ] {
            let changed = base.replace(from, to);
            assert_ne!(changed, base);
            assert_ne!(proof(base), proof(&changed), "{to}");
        }
        // Without an actor there is nobody to sign.
        assert_eq!(proof(&base.replace("\"node_id\":1,", "")), None);
    }
}
