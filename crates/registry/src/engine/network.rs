//! One network: rule, members, policy, and its stored form.
//!
//! ```text
//! version 1 = 1 | rule 1 | flags 1 (1 enterprise, 2 token, 4 admin token) | created 8 | max members 4
//! | name: len 1, bytes | description: len 2, bytes | [token hash 32] | [admin hash 32]
//! | ports: count 1, 2 each | members: count 4, (id 4, role 1) each, ids ascending          (integers big-endian)
//! ```

use super::rows::RowError;
use super::secret::Secret;
use pilotage_wire::NodeId;

/// Longest name, bytes.
pub(super) const MAX_NAME: usize = 63;
/// Longest description, bytes.
pub(super) const MAX_DESCRIPTION: usize = 256;
/// Most ports of a policy.
pub(super) const MAX_PORTS: usize = 64;

const VERSION: u8 = 1;
const ENTERPRISE: u8 = 1;
const TOKEN: u8 = 2;
const ADMIN: u8 = 4;

/// Who may join.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JoinRule {
    /// Everybody.
    Open,
    /// Who knows the token, or is invited.
    Token,
    /// Who is invited.
    Invite,
}

impl JoinRule {
    /// As in messages.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Token => "token",
            Self::Invite => "invite",
        }
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        match text {
            "" | "open" => Some(Self::Open),
            "token" => Some(Self::Token),
            "invite" => Some(Self::Invite),
            _ => None,
        }
    }
}

/// What a member may do; each role may do what those before may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Belongs.
    Member,
    /// Invites, removes members, sets the policy.
    Admin,
    /// Everything. There is exactly one.
    Owner,
}

impl Role {
    /// As in messages.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Member => "member",
            Self::Admin => "admin",
            Self::Owner => "owner",
        }
    }
}

/// A network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// Unique.
    pub name: Box<str>,
    /// Who may join.
    pub rule: JoinRule,
    /// For [`JoinRule::Token`].
    pub token: Option<Secret>,
    /// Does for this network what the hub's does for all.
    pub admin: Option<Secret>,
    /// As created; has no effect here.
    pub enterprise: bool,
    /// Unix seconds.
    pub created: u64,
    /// Ids ascending.
    pub members: Vec<(NodeId, Role)>,
    /// 0 = the registry's own bound.
    pub max_members: u32,
    /// Empty = all.
    pub allowed_ports: Vec<u16>,
    /// For people.
    pub description: Box<str>,
}

impl Network {
    /// What a node is here.
    #[must_use]
    pub fn role(&self, id: NodeId) -> Option<Role> {
        self.members.binary_search_by_key(&id, |(member, _)| *member).ok().map(|at| self.members[at].1)
    }

    /// Makes a node what it should be; `None`: no member.
    pub(super) fn set_role(&mut self, id: NodeId, role: Option<Role>) {
        match (self.members.binary_search_by_key(&id, |(member, _)| *member), role) {
            (Ok(at), Some(role)) => self.members[at].1 = role,
            (Ok(at), None) => drop(self.members.remove(at)),
            (Err(at), Some(role)) => self.members.insert(at, (id, role)),
            (Err(_), None) => {}
        }
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let rule = match self.rule {
            JoinRule::Open => 0,
            JoinRule::Token => 1,
            JoinRule::Invite => 2,
        };
        let mut flags = u8::from(self.enterprise) * ENTERPRISE;
        flags |= u8::from(self.token.is_some()) * TOKEN;
        flags |= u8::from(self.admin.is_some()) * ADMIN;
        out.extend_from_slice(&[VERSION, rule, flags]);
        out.extend_from_slice(&self.created.to_be_bytes());
        out.extend_from_slice(&self.max_members.to_be_bytes());
        // Lengths are checked when they are set.
        out.push(u8::try_from(self.name.len()).unwrap_or(0));
        out.extend_from_slice(self.name.as_bytes());
        out.extend_from_slice(&u16::try_from(self.description.len()).unwrap_or(0).to_be_bytes());
        out.extend_from_slice(self.description.as_bytes());
        for secret in [&self.token, &self.admin].into_iter().flatten() {
            out.extend_from_slice(&secret.stored());
        }
        out.push(u8::try_from(self.allowed_ports.len()).unwrap_or(0));
        self.allowed_ports.iter().for_each(|port| out.extend_from_slice(&port.to_be_bytes()));
        out.extend_from_slice(&u32::try_from(self.members.len()).unwrap_or(0).to_be_bytes());
        for (id, role) in &self.members {
            out.extend_from_slice(&id.0.to_be_bytes());
            out.push(match role {
                Role::Member => 0,
                Role::Admin => 1,
                Role::Owner => 2,
            });
        }
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, RowError> {
        let mut reader = Reader(bytes);
        Self::read(&mut reader).filter(|_| reader.0.is_empty()).ok_or(RowError)
    }

    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let [version, rule, flags] = reader.array()?;
        let rule = match rule {
            0 => JoinRule::Open,
            1 => JoinRule::Token,
            2 => JoinRule::Invite,
            _ => return None,
        };
        if version != VERSION || flags & !(ENTERPRISE | TOKEN | ADMIN) != 0 {
            return None;
        }
        let created = u64::from_be_bytes(reader.array()?);
        let max_members = u32::from_be_bytes(reader.array()?);
        let [len] = reader.array()?;
        let name = reader.text(usize::from(len)).filter(|name| name.len() <= MAX_NAME)?;
        let len = u16::from_be_bytes(reader.array()?);
        let description = reader.text(usize::from(len)).filter(|text| text.len() <= MAX_DESCRIPTION)?;
        let mut secret = |flag| match flags & flag {
            0 => Some(None),
            _ => reader.array().map(|hash| Some(Secret::from_stored(hash))),
        };
        let (token, admin) = (secret(TOKEN)?, secret(ADMIN)?);
        let [count] = reader.array()?;
        if usize::from(count) > MAX_PORTS {
            return None;
        }
        let ports = (0..count).map(|_| reader.array().map(u16::from_be_bytes));
        let allowed_ports = ports.collect::<Option<Vec<u16>>>()?;
        let count = u32::from_be_bytes(reader.array()?);
        let mut members: Vec<(NodeId, Role)> = Vec::new();
        for _ in 0..count {
            let id = NodeId(u32::from_be_bytes(reader.array()?));
            let role = match reader.array()? {
                [0] => Role::Member,
                [1] => Role::Admin,
                [2] => Role::Owner,
                _ => return None,
            };
            if members.last().is_some_and(|(last, _)| *last >= id) {
                return None;
            }
            members.push((id, role));
        }
        let enterprise = flags & ENTERPRISE != 0;
        Some(Self {
            name,
            rule,
            token,
            admin,
            enterprise,
            created,
            members,
            max_members,
            allowed_ports,
            description,
        })
    }
}

/// Checked reading from the front.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, tail) = self.0.split_first_chunk()?;
        self.0 = tail;
        Some(*head)
    }

    fn text(&mut self, len: usize) -> Option<Box<str>> {
        let (head, tail) = self.0.split_at_checked(len)?;
        self.0 = tail;
        core::str::from_utf8(head).ok().map(Into::into)
    }
}
