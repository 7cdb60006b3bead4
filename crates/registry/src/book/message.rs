//! Requests and replies. All numbers are big-endian. `spec/registry2.md §5`.
//!
//! A frame is: length of what follows (4), number of the request (4), kind (1), body.

mod replica;

pub use replica::{Ask, Attest, Hello, MAX_EVENTS, MAX_LISTED, OwnerKey, Told, Welcome, Whose};

use super::MAX_MESSAGE;
use super::handover::Handover;
use crate::claims::{CLAIM_MAX, MAX_HEAD_SIGNATURES, Outcome, PARTITIONS, Proof, SignedHead, Subject};
use pilotage_wire::record::MAX_RECORD;
use pilotage_wire::{NetworkId, NodeId};

/// Bytes before a frame's body.
pub const HEADER_LEN: usize = 9;
/// Most claims of one registration.
pub const MAX_CLAIMS: usize = 16;
/// Most leaves of one answer.
pub const MAX_LEAVES: usize = 200;
/// Most hashes of a proof.
const MAX_PROOF: usize = 128;
const _: () = assert!(MAX_LEAVES * (10 + CLAIM_MAX) + HEADER_LEN < MAX_MESSAGE);
/// Longest text of an error, bytes.
const MAX_TEXT: usize = 512;

/// Whose record is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Query {
    /// Of an agent in a network.
    Agent {
        /// Agent id (`spec/addressing.md §2`).
        id: [u8; 32],
        /// Network.
        network: NetworkId,
    },
    /// Of who holds an address.
    Address {
        /// Network.
        network: NetworkId,
        /// Node id.
        node: NodeId,
    },
    /// Of who holds a hostname.
    Hostname {
        /// Network.
        network: NetworkId,
        /// Name.
        name: String,
    },
}

impl Query {
    /// The claim that answers the question, if one does.
    #[must_use]
    pub fn subject(&self) -> Option<Subject> {
        match self {
            Self::Agent { .. } => None,
            Self::Address { network, node } => Some(Subject::Address { network: *network, node: *node }),
            Self::Hostname { network, name } => {
                Some(Subject::Hostname { network: *network, name: name.clone() })
            }
        }
    }

    /// In which network.
    #[must_use]
    pub fn network(&self) -> NetworkId {
        match self {
            Self::Agent { network, .. } | Self::Address { network, .. } | Self::Hostname { network, .. } => {
                *network
            }
        }
    }
}

/// What a client asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Who are you?
    Info,
    /// A record, with the claim that leads to it, and the proof of that if wanted.
    Resolve {
        /// Whose.
        query: Query,
        /// With proof and head.
        proof: bool,
    },
    /// Claims and a record, done together.
    Register {
        /// Encoded claims, at most [`MAX_CLAIMS`].
        claims: Vec<Vec<u8>>,
        /// Encoded record.
        record: Option<Vec<u8>>,
    },
    /// The head of a partition, and that it continues the first `from` leaves.
    Head {
        /// Partition.
        partition: u8,
        /// Size of the head that the client knows; 0 if none.
        from: u64,
    },
    /// Leaves of a partition.
    Leaves {
        /// Partition.
        partition: u8,
        /// First leaf.
        from: u64,
        /// Most of them.
        limit: u16,
    },
    /// Whose signatures make a head: the registry's nodes.
    Nodes,
    /// To whom has this key handed over?
    Handover {
        /// The key of the registry's only node, before.
        from: [u8; 32],
        /// What the answer has to be signed with.
        nonce: [u8; 32],
    },
    /// Of replicas, presence and watching (`spec/replica.md`).
    Replica(Ask),
}

/// What became of the record of a registration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordAnswer {
    /// There was none.
    None,
    /// It is stored.
    Stored,
    /// There is a newer one, with this number.
    Older(u64),
    /// It was not taken; why.
    Refused(String),
}

/// What became of a claim of a registration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClaimAnswer {
    /// It holds, as this leaf.
    Granted(u64),
    /// Another agent holds the thing.
    TakenBy {
        /// The agent.
        agent_id: [u8; 32],
        /// Leaf of its claim.
        index: u64,
    },
    /// It was not taken; why.
    Refused(String),
}

impl From<Outcome> for ClaimAnswer {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Granted { index } => Self::Granted(index),
            Outcome::TakenBy { agent_id, index } => Self::TakenBy { agent_id, index },
            Outcome::Bad(why) => Self::Refused(why.to_string()),
        }
    }
}

/// The claim that led to a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimPart {
    /// Leaf.
    pub index: u64,
    /// Encoded claim.
    pub claim: Vec<u8>,
    /// Proof that the leaf is in the log, and the head for it, if they were asked for.
    pub proof: Option<(Proof, SignedHead)>,
}

/// What a registry answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// It cannot do that; why, and whether trying again may help.
    Error {
        /// Trying again later may help.
        transient: bool,
        /// Cause and next step.
        text: String,
    },
    /// There is no such thing.
    NotFound,
    /// To [`Request::Info`].
    Info {
        /// Key with which this node signs heads.
        node: [u8; 32],
        /// Leading zero bits of a claim's proof of work.
        pow_bits: u8,
        /// Unix seconds.
        time: u64,
        /// Things claimed.
        claims: u64,
        /// Records stored.
        records: u64,
    },
    /// To [`Request::Resolve`].
    Resolved {
        /// Encoded record, if one is stored.
        record: Option<Vec<u8>>,
        /// The claim that led there, unless an agent was asked for.
        claim: Option<ClaimPart>,
    },
    /// To [`Request::Register`].
    Registered {
        /// One per claim.
        claims: Vec<ClaimAnswer>,
        /// Of the record.
        record: RecordAnswer,
    },
    /// To [`Request::Head`].
    Head {
        /// The head.
        head: SignedHead,
        /// That it continues the older one; empty if the client knew none.
        proof: Proof,
    },
    /// To [`Request::Leaves`].
    Leaves(Vec<(u64, Vec<u8>)>),
    /// To [`Request::Nodes`]: their keys, at most [`MAX_HEAD_SIGNATURES`].
    Nodes(Vec<[u8; 32]>),
    /// To [`Request::Handover`].
    Handover(Handover),
    /// To [`Request::Replica`].
    Replica(Told),
}

/// Why bytes are no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("registry: not a message of this protocol ({0})")]
pub struct Malformed(&'static str);

/// Number, kind and body of a frame, and how long the frame is with its own length.
pub type Frame<'a> = (u32, u8, &'a [u8], usize);

/// The first complete frame in `input`; `None` if more has to come.
///
/// # Errors
/// [`Malformed`] if the stream cannot be followed any more.
pub fn next_frame(input: &[u8]) -> Result<Option<Frame<'_>>, Malformed> {
    let Some((len, rest)) = input.split_first_chunk() else { return Ok(None) };
    let len = u32::from_be_bytes(*len) as usize;
    if !(HEADER_LEN - 4..=MAX_MESSAGE).contains(&len) {
        return Err(Malformed("length"));
    }
    let Some(frame) = rest.get(..len) else { return Ok(None) };
    let Some((number, [kind, body @ ..])) = frame.split_first_chunk() else {
        return Err(Malformed("length"));
    };
    Ok(Some((u32::from_be_bytes(*number), *kind, body, 4 + len)))
}

/// Appends a frame. A body of more than [`MAX_MESSAGE`] cannot come about.
fn frame(out: &mut Vec<u8>, number: u32, kind: u8, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend([0; 4]);
    out.extend(number.to_be_bytes());
    out.push(kind);
    body(out);
    let len = (out.len() - start - 4) as u32;
    out[start..start + 4].copy_from_slice(&len.to_be_bytes());
}

impl Request {
    /// Appends the request as a frame.
    pub fn encode(&self, number: u32, out: &mut Vec<u8>) {
        match self {
            Self::Info => frame(out, number, 0, |_| {}),
            Self::Resolve { query, proof } => frame(out, number, 1, |out| {
                out.push(u8::from(*proof));
                let (kind, name): (u8, &[u8]) = match query {
                    Query::Agent { id, .. } => (0, id),
                    Query::Address { node, .. } => (1, &node.0.to_be_bytes()),
                    Query::Hostname { name, .. } => (2, name.as_bytes()),
                };
                out.push(kind);
                out.extend(query.network().0.to_be_bytes());
                out.extend_from_slice(name);
            }),
            Self::Register { claims, record } => frame(out, number, 2, |out| {
                out.push(claims.len().min(MAX_CLAIMS) as u8);
                for claim in claims.iter().take(MAX_CLAIMS) {
                    bytes(out, claim);
                }
                bytes(out, record.as_deref().unwrap_or_default());
            }),
            Self::Head { partition, from } => frame(out, number, 3, |out| {
                out.push(*partition);
                out.extend(from.to_be_bytes());
            }),
            Self::Leaves { partition, from, limit } => frame(out, number, 4, |out| {
                out.push(*partition);
                out.extend(from.to_be_bytes());
                out.extend(limit.to_be_bytes());
            }),
            Self::Nodes => frame(out, number, 5, |_| {}),
            Self::Handover { from, nonce } => {
                frame(out, number, 6, |out| out.extend_from_slice([*from, *nonce].as_flattened()));
            }
            Self::Replica(ask) => frame(out, number, ask.kind(), |out| ask.put(out)),
        }
    }

    /// Reads the body of a request.
    ///
    /// # Errors
    /// [`Malformed`], whatever is wrong first.
    pub fn decode(kind: u8, body: &[u8]) -> Result<Self, Malformed> {
        let mut read = Reader(body);
        let request = match kind {
            0 => Self::Info,
            1 => {
                let proof = read.flag()?;
                Self::Resolve { query: read.query()?, proof }
            }
            2 => {
                let count = usize::from(read.u8()?);
                if count > MAX_CLAIMS {
                    return Err(Malformed("too many claims"));
                }
                let claims = (0..count).map(|_| read.bytes(CLAIM_MAX)).collect::<Result<_, _>>()?;
                let record = read.bytes(MAX_RECORD)?;
                Self::Register { claims, record: Some(record).filter(|record| !record.is_empty()) }
            }
            3 => Self::Head { partition: read.partition()?, from: read.u64()? },
            4 => Self::Leaves {
                partition: read.partition()?,
                from: read.u64()?,
                limit: u16::from_be_bytes(read.array()?),
            },
            5 => Self::Nodes,
            6 => Self::Handover { from: read.array()?, nonce: read.array()? },
            replica::FIRST..=replica::LAST => Self::Replica(Ask::read(kind, &mut read)?),
            _ => return Err(Malformed("kind of request")),
        };
        if read.0.is_empty() { Ok(request) } else { Err(Malformed("length of a request")) }
    }
}

impl Reply {
    /// Appends the reply as a frame.
    pub fn encode(&self, number: u32, out: &mut Vec<u8>) {
        match self {
            Self::Error { transient, text } => frame(out, number, 0, |out| {
                out.push(u8::from(*transient));
                put_text(out, text);
            }),
            Self::NotFound => frame(out, number, 1, |_| {}),
            Self::Info { node, pow_bits, time, claims, records } => frame(out, number, 2, |out| {
                out.extend(node);
                out.push(*pow_bits);
                out.extend([*time, *claims, *records].map(u64::to_be_bytes).as_flattened());
            }),
            Self::Resolved { record, claim } => frame(out, number, 3, |out| {
                bytes(out, record.as_deref().unwrap_or_default());
                put_claim(out, claim.as_ref());
            }),
            Self::Registered { claims, record } => frame(out, number, 4, |out| {
                out.push(claims.len().min(MAX_CLAIMS) as u8);
                claims.iter().take(MAX_CLAIMS).for_each(|claim| put_answer(out, claim));
                replica::put_record_answer(out, record);
            }),
            Self::Head { head, proof } => frame(out, number, 5, |out| {
                put_proof(out, proof);
                out.extend(head.encode());
            }),
            Self::Leaves(leaves) => frame(out, number, 6, |out| {
                let leaves = &leaves[..leaves.len().min(MAX_LEAVES)];
                out.extend((leaves.len() as u16).to_be_bytes());
                for (index, leaf) in leaves {
                    out.extend(index.to_be_bytes());
                    bytes(out, leaf);
                }
            }),
            Self::Nodes(keys) => frame(out, number, 7, |out| put_keys(out, keys)),
            Self::Handover(handover) => frame(out, number, 8, |out| {
                put_keys(out, &handover.nodes);
                out.extend_from_slice(&handover.signature);
            }),
            Self::Replica(told) => frame(out, number, told.kind(), |out| told.put(out)),
        }
    }

    /// Reads the body of a reply.
    ///
    /// # Errors
    /// [`Malformed`], whatever is wrong first.
    pub fn decode(kind: u8, body: &[u8]) -> Result<Self, Malformed> {
        let mut read = Reader(body);
        let reply = match kind {
            0 => Self::Error { transient: read.flag()?, text: read.text()? },
            1 => Self::NotFound,
            2 => Self::Info {
                node: read.array()?,
                pow_bits: read.u8()?,
                time: read.u64()?,
                claims: read.u64()?,
                records: read.u64()?,
            },
            3 => {
                let record = Some(read.bytes(MAX_RECORD)?).filter(|record| !record.is_empty());
                Self::Resolved { record, claim: read.claim()? }
            }
            4 => {
                let count = usize::from(read.u8()?);
                if count > MAX_CLAIMS {
                    return Err(Malformed("too many claims"));
                }
                let claims = (0..count).map(|_| read.answer()).collect::<Result<_, _>>()?;
                let record = replica::record_answer(&mut read)?;
                Self::Registered { claims, record }
            }
            5 => {
                let proof = read.proof()?;
                Self::Head { proof, head: read.head()? }
            }
            6 => {
                let count = usize::from(u16::from_be_bytes(read.array()?));
                if count > MAX_LEAVES {
                    return Err(Malformed("too many leaves"));
                }
                let leaves = (0..count).map(|_| Ok((read.u64()?, read.bytes(CLAIM_MAX)?)));
                Self::Leaves(leaves.collect::<Result<_, _>>()?)
            }
            7 => Self::Nodes(read.keys()?),
            8 => Self::Handover(Handover { nodes: read.keys()?, signature: read.array()? }),
            replica::FIRST..=replica::LAST => Self::Replica(Told::read(kind, &mut read)?),
            _ => return Err(Malformed("kind of reply")),
        };
        if read.0.is_empty() { Ok(reply) } else { Err(Malformed("length of a reply")) }
    }
}

fn put_keys(out: &mut Vec<u8>, keys: &[[u8; 32]]) {
    let keys = &keys[..keys.len().min(MAX_HEAD_SIGNATURES)];
    out.push(keys.len() as u8);
    out.extend_from_slice(keys.as_flattened());
}

fn bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend((bytes.len() as u16).to_be_bytes());
    out.extend_from_slice(bytes);
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    bytes(out, &text.as_bytes()[..text.floor_char_boundary(MAX_TEXT)]);
}

fn put_proof(out: &mut Vec<u8>, proof: &Proof) {
    out.push(proof.0.len().min(MAX_PROOF) as u8);
    proof.0.iter().take(MAX_PROOF).for_each(|hash| out.extend_from_slice(hash));
}

fn put_claim(out: &mut Vec<u8>, claim: Option<&ClaimPart>) {
    let Some(claim) = claim else {
        out.push(0);
        return;
    };
    out.push(if claim.proof.is_some() { 2 } else { 1 });
    out.extend(claim.index.to_be_bytes());
    bytes(out, &claim.claim);
    if let Some((proof, head)) = &claim.proof {
        put_proof(out, proof);
        out.extend(head.encode());
    }
}

fn put_answer(out: &mut Vec<u8>, answer: &ClaimAnswer) {
    match answer {
        ClaimAnswer::Granted(index) => {
            out.push(0);
            out.extend(index.to_be_bytes());
        }
        ClaimAnswer::TakenBy { agent_id, index } => {
            out.push(1);
            out.extend(agent_id);
            out.extend(index.to_be_bytes());
        }
        ClaimAnswer::Refused(why) => {
            out.push(2);
            put_text(out, why);
        }
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(Malformed("cut off"))?;
        self.0 = rest;
        Ok(*head)
    }

    fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(self.array::<1>()?[0])
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    fn flag(&mut self) -> Result<bool, Malformed> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed("flag")),
        }
    }

    fn keys(&mut self) -> Result<Vec<[u8; 32]>, Malformed> {
        let count = usize::from(self.u8()?);
        if count > MAX_HEAD_SIGNATURES {
            return Err(Malformed("too many nodes"));
        }
        (0..count).map(|_| self.array()).collect()
    }

    fn partition(&mut self) -> Result<u8, Malformed> {
        let partition = self.u8()?;
        if usize::from(partition) < PARTITIONS { Ok(partition) } else { Err(Malformed("partition")) }
    }

    fn bytes(&mut self, most: usize) -> Result<Vec<u8>, Malformed> {
        let len = usize::from(u16::from_be_bytes(self.array()?));
        if len > most {
            return Err(Malformed("too long"));
        }
        let (head, rest) = self.0.split_at_checked(len).ok_or(Malformed("cut off"))?;
        self.0 = rest;
        Ok(head.to_vec())
    }

    fn text(&mut self) -> Result<String, Malformed> {
        String::from_utf8(self.bytes(MAX_TEXT)?).map_err(|_| Malformed("text"))
    }

    fn query(&mut self) -> Result<Query, Malformed> {
        let kind = self.u8()?;
        let network = NetworkId(u16::from_be_bytes(self.array()?));
        match kind {
            0 => Ok(Query::Agent { id: self.array()?, network }),
            1 => Ok(Query::Address { network, node: NodeId(u32::from_be_bytes(self.array()?)) }),
            2 => {
                let name = std::str::from_utf8(std::mem::take(&mut self.0)).map_err(|_| Malformed("name"))?;
                pilotage_wire::registry::check_hostname(name).map_err(|_| Malformed("name"))?;
                Ok(Query::Hostname { network, name: name.to_owned() })
            }
            _ => Err(Malformed("kind of query")),
        }
    }

    fn proof(&mut self) -> Result<Proof, Malformed> {
        let count = usize::from(self.u8()?);
        if count > MAX_PROOF {
            return Err(Malformed("proof"));
        }
        (0..count).map(|_| self.array()).collect::<Result<_, _>>().map(Proof)
    }

    fn head(&mut self) -> Result<SignedHead, Malformed> {
        let (head, rest) = SignedHead::decode(self.0).ok_or(Malformed("head"))?;
        self.0 = rest;
        Ok(head)
    }

    fn claim(&mut self) -> Result<Option<ClaimPart>, Malformed> {
        let kind = self.u8()?;
        if kind == 0 {
            return Ok(None);
        }
        let (index, claim) = (self.u64()?, self.bytes(CLAIM_MAX)?);
        let proof = match kind {
            1 => None,
            2 => Some((self.proof()?, self.head()?)),
            _ => return Err(Malformed("claim")),
        };
        Ok(Some(ClaimPart { index, claim, proof }))
    }

    fn answer(&mut self) -> Result<ClaimAnswer, Malformed> {
        match self.u8()? {
            0 => Ok(ClaimAnswer::Granted(self.u64()?)),
            1 => Ok(ClaimAnswer::TakenBy { agent_id: self.array()?, index: self.u64()? }),
            2 => Ok(ClaimAnswer::Refused(self.text()?)),
            _ => Err(Malformed("answer to a claim")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::claims::TreeHead;
    use proptest::prelude::*;

    fn head() -> SignedHead {
        let head = TreeHead { partition: 3, size: 9, root: [7; 32], time: 5 };
        SignedHead { head, signatures: vec![head.sign(&ed25519_dalek::SigningKey::from_bytes(&[1; 32]))] }
    }

    #[test]
    fn messages_round_trip() {
        let network = NetworkId(4);
        let requests = [
            Request::Info,
            Request::Resolve { query: Query::Agent { id: [1; 32], network }, proof: false },
            Request::Resolve { query: Query::Address { network, node: NodeId(77) }, proof: true },
            Request::Resolve { query: Query::Hostname { network, name: "fx".into() }, proof: true },
            Request::Register { claims: vec![vec![1; 150], vec![2; 90]], record: Some(vec![3; 900]) },
            Request::Register { claims: vec![], record: None },
            Request::Head { partition: 15, from: 8 },
            Request::Leaves { partition: 0, from: 9, limit: 100 },
            Request::Nodes,
            Request::Handover { from: [7; 32], nonce: [8; 32] },
        ];
        let part = |proof| ClaimPart { index: 8, claim: vec![5; 150], proof };
        let replies = [
            Reply::Error { transient: true, text: "too much".into() },
            Reply::NotFound,
            Reply::Info { node: [3; 32], pow_bits: 16, time: 1, claims: 2, records: 3 },
            Reply::Resolved { record: Some(vec![1; 300]), claim: None },
            Reply::Resolved { record: None, claim: Some(part(None)) },
            Reply::Resolved { record: None, claim: Some(part(Some((Proof(vec![[4; 32]; 17]), head())))) },
            Reply::Registered {
                claims: vec![
                    ClaimAnswer::Granted(1),
                    ClaimAnswer::TakenBy { agent_id: [6; 32], index: 2 },
                    ClaimAnswer::Refused("no".into()),
                ],
                record: RecordAnswer::Older(7),
            },
            Reply::Registered { claims: vec![], record: RecordAnswer::Refused("old".into()) },
            Reply::Head { head: head(), proof: Proof(vec![[9; 32]; 3]) },
            Reply::Leaves(vec![(5, vec![1; 150]), (6, vec![2; 150])]),
            Reply::Nodes(vec![[1; 32], [2; 32]]),
            Reply::Handover(Handover { nodes: vec![[1; 32], [2; 32]], signature: [3; 64] }),
        ];
        let mut stream = Vec::new();
        requests.iter().zip(10..).for_each(|(request, number)| request.encode(number, &mut stream));
        let mut rest = stream.as_slice();
        for (request, wanted) in requests.iter().zip(10..) {
            let (number, kind, body, len) = next_frame(rest).unwrap().unwrap();
            assert_eq!((number, Request::decode(kind, body).as_ref()), (wanted, Ok(request)));
            for cut in 0..len {
                assert_eq!(next_frame(&rest[..cut]), Ok(None));
            }
            rest = &rest[len..];
        }
        for reply in replies {
            let mut bytes = Vec::new();
            reply.encode(1, &mut bytes);
            let (_, kind, body, _) = next_frame(&bytes).unwrap().unwrap();
            assert_eq!(Reply::decode(kind, body).as_ref(), Ok(&reply));
            assert!(Reply::decode(kind, &[body, &[0]].concat()).is_err());
        }
    }

    #[test]
    fn lengths_are_bounded() {
        assert!(next_frame(&(MAX_MESSAGE as u32 + 1).to_be_bytes()).is_err());
        assert!(next_frame(&4u32.to_be_bytes()).is_err());
        let claims = [vec![17u8], [0u8, 1, 9].repeat(17), vec![0, 0]].concat();
        assert_eq!(Request::decode(2, &claims), Err(Malformed("too many claims")));
        assert_eq!(Reply::decode(7, &[17]), Err(Malformed("too many nodes")));
        assert_eq!(Request::decode(2, &[0, 0xFF, 0xFF]), Err(Malformed("too long")));
        assert_eq!(Request::decode(3, &[16, 0, 0, 0, 0, 0, 0, 0, 0]), Err(Malformed("partition")));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(kind in prop_oneof![0u8..9, replica::FIRST..=replica::LAST], body in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(request) = Request::decode(kind, &body) {
                let mut bytes = Vec::new();
                request.encode(1, &mut bytes);
                prop_assert_eq!(&bytes[HEADER_LEN..], &body);
            }
            if let Ok(reply) = Reply::decode(kind, &body) {
                let mut bytes = Vec::new();
                reply.encode(1, &mut bytes);
                prop_assert_eq!(&bytes[HEADER_LEN..], &body);
            }
            let _ = next_frame(&body);
        }
    }
}
