//! Requests and replies of replicas. `spec/replica.md §3`.

use super::{Malformed, Reader, RecordAnswer, bytes, put_text};
use crate::claims::CLAIM_MAX;
use pilotage_wire::NetworkId;
use pilotage_wire::record::MAX_RECORD;

/// Kinds of requests and replies that belong here.
pub(super) const FIRST: u8 = 16;
pub(super) const LAST: u8 = 21;
/// Most records of one page of a list.
pub const MAX_LISTED: usize = 64;
/// Most changes of one answer to a watch.
pub const MAX_EVENTS: usize = 64;
const _: () = assert!(MAX_EVENTS * (10 + MAX_RECORD) + 64 < super::MAX_MESSAGE);

/// Agent id and network: what a record is kept under.
pub type OwnerKey = [u8; 34];

/// Whose changes are watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// Everybody's, but for private agents.
    All,
    /// One agent's.
    Of(OwnerKey),
}

/// An agent wants to send heartbeats.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Its Ed25519 key.
    pub key: [u8; 32],
    /// The network.
    pub network: NetworkId,
    /// An X25519 key made for this.
    pub ephemeral: [u8; 32],
    /// Unix seconds.
    pub time: u64,
    /// The agent's signature.
    pub signature: [u8; 64],
}

/// The answer to a [`Hello`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Welcome {
    /// Names the agent in heartbeats.
    pub slot: u32,
    /// UDP port of heartbeats, at the address of the registry.
    pub port: u16,
    /// Seconds between two heartbeats.
    pub interval: u32,
    /// An X25519 key made for this.
    pub ephemeral: [u8; 32],
    /// The token with which heartbeats are authenticated, sealed for the agent.
    pub sealed: [u8; 48],
    /// The node's signature.
    pub signature: [u8; 64],
}

/// A node's signature over what it answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attest {
    /// Unix seconds.
    pub time: u64,
    /// Ed25519 (see [`crate::replica::evidence::attested`]).
    pub signature: [u8; 64],
}

/// What is asked of a replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// Keep this record; the claim of its address shows that the agent may ask for it.
    Put {
        /// Encoded claim.
        claim: Vec<u8>,
        /// Encoded record.
        record: Vec<u8>,
    },
    /// The record of an agent, and when it was last heard of.
    Get {
        /// Whose.
        owner: OwnerKey,
        /// If the answer is to be signed: any number.
        nonce: Option<[u8; 16]>,
    },
    /// The map of registry nodes.
    Map,
    /// What changes after revision `from` of history `history` (0: from now on). Answered when something has changed, or
    /// after a while.
    Watch {
        /// Whose changes.
        whose: Whose,
        /// Which history.
        history: u64,
        /// The last revision that is known.
        from: u64,
    },
    /// Records behind this key, in order.
    List {
        /// The last one that is known; zeros to begin.
        after: OwnerKey,
    },
    /// An agent wants to send heartbeats.
    Hello(Hello),
}

/// What a replica answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// To [`Ask::Put`].
    Put(RecordAnswer),
    /// To [`Ask::Get`].
    Held {
        /// Encoded record; empty if there is none.
        record: Vec<u8>,
        /// Encoded claim of its address; empty if the node has none at hand.
        claim: Vec<u8>,
        /// Seconds since the agent's last heartbeat, if there was one.
        seen: Option<u32>,
        /// If it was asked for.
        attest: Option<Attest>,
    },
    /// To [`Ask::Map`]: a signed map; empty if the node has none.
    Map(Vec<u8>),
    /// To [`Ask::Watch`].
    Events {
        /// Which history.
        history: u64,
        /// The revision that is known now.
        upto: u64,
        /// The revision asked for is no longer, or never was, in this history: list and begin again at `upto`.
        resync: bool,
        /// Changed records.
        records: Vec<Vec<u8>>,
    },
    /// To [`Ask::List`]: records, the last one's key is where to go on; empty at the end.
    List(Vec<Vec<u8>>),
    /// To [`Ask::Hello`].
    Welcome(Welcome),
}

impl Ask {
    pub(super) fn kind(&self) -> u8 {
        match self {
            Self::Put { .. } => 16,
            Self::Get { .. } => 17,
            Self::Map => 18,
            Self::Watch { .. } => 19,
            Self::List { .. } => 20,
            Self::Hello(_) => 21,
        }
    }

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::Put { claim, record } => {
                bytes(out, claim);
                bytes(out, record);
            }
            Self::Get { owner, nonce } => {
                out.extend_from_slice(owner);
                out.push(u8::from(nonce.is_some()));
                out.extend(nonce.iter().flatten());
            }
            Self::Map => {}
            Self::Watch { whose, history, from } => {
                out.extend([*history, *from].map(u64::to_be_bytes).as_flattened());
                match whose {
                    Whose::All => out.push(0),
                    Whose::Of(owner) => {
                        out.push(1);
                        out.extend_from_slice(owner);
                    }
                }
            }
            Self::List { after } => out.extend_from_slice(after),
            Self::Hello(hello) => {
                out.extend(hello.key);
                out.extend(hello.network.0.to_be_bytes());
                out.extend(hello.ephemeral);
                out.extend(hello.time.to_be_bytes());
                out.extend(hello.signature);
            }
        }
    }

    pub(super) fn read(kind: u8, read: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(match kind {
            16 => Self::Put { claim: read.bytes(CLAIM_MAX)?, record: read.bytes(MAX_RECORD)? },
            17 => {
                let owner = read.array()?;
                Self::Get { owner, nonce: read.flag()?.then(|| read.array()).transpose()? }
            }
            18 => Self::Map,
            19 => {
                let (history, from) = (read.u64()?, read.u64()?);
                let whose = if read.flag()? { Whose::Of(read.array()?) } else { Whose::All };
                Self::Watch { whose, history, from }
            }
            20 => Self::List { after: read.array()? },
            _ => Self::Hello(Hello {
                key: read.array()?,
                network: NetworkId(u16::from_be_bytes(read.array()?)),
                ephemeral: read.array()?,
                time: read.u64()?,
                signature: read.array()?,
            }),
        })
    }
}

impl Told {
    pub(super) fn kind(&self) -> u8 {
        match self {
            Self::Put(_) => 16,
            Self::Held { .. } => 17,
            Self::Map(_) => 18,
            Self::Events { .. } => 19,
            Self::List(_) => 20,
            Self::Welcome(_) => 21,
        }
    }

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::Put(answer) => put_record_answer(out, answer),
            Self::Held { record, claim, seen, attest } => {
                bytes(out, record);
                bytes(out, claim);
                out.push(u8::from(seen.is_some()));
                out.extend(seen.iter().flat_map(|seen| seen.to_be_bytes()));
                out.push(u8::from(attest.is_some()));
                if let Some(attest) = attest {
                    out.extend(attest.time.to_be_bytes());
                    out.extend(attest.signature);
                }
            }
            Self::Map(map) => out.extend_from_slice(map),
            Self::Events { history, upto, resync, records } => {
                out.extend([*history, *upto].map(u64::to_be_bytes).as_flattened());
                out.push(u8::from(*resync));
                put_records(out, records);
            }
            Self::List(records) => put_records(out, records),
            Self::Welcome(welcome) => {
                out.extend(welcome.slot.to_be_bytes());
                out.extend(welcome.port.to_be_bytes());
                out.extend(welcome.interval.to_be_bytes());
                out.extend(welcome.ephemeral);
                out.extend(welcome.sealed);
                out.extend(welcome.signature);
            }
        }
    }

    pub(super) fn read(kind: u8, read: &mut Reader<'_>) -> Result<Self, Malformed> {
        let u32_of = |read: &mut Reader<'_>| read.array().map(u32::from_be_bytes);
        Ok(match kind {
            16 => Self::Put(record_answer(read)?),
            17 => {
                let (record, claim) = (read.bytes(MAX_RECORD)?, read.bytes(CLAIM_MAX)?);
                let seen = read.flag()?.then(|| u32_of(read)).transpose()?;
                let attest = read.flag()?.then(|| attest(read)).transpose()?;
                Self::Held { record, claim, seen, attest }
            }
            18 => Self::Map(std::mem::take(&mut read.0).to_vec()),
            19 => Self::Events {
                history: read.u64()?,
                upto: read.u64()?,
                resync: read.flag()?,
                records: records(read, MAX_EVENTS)?,
            },
            20 => Self::List(records(read, MAX_LISTED)?),
            _ => Self::Welcome(Welcome {
                slot: u32_of(read)?,
                port: u16::from_be_bytes(read.array()?),
                interval: u32_of(read)?,
                ephemeral: read.array()?,
                sealed: read.array()?,
                signature: read.array()?,
            }),
        })
    }
}

fn attest(read: &mut Reader<'_>) -> Result<Attest, Malformed> {
    Ok(Attest { time: read.u64()?, signature: read.array()? })
}

fn put_records(out: &mut Vec<u8>, records: &[Vec<u8>]) {
    let records = &records[..records.len().min(MAX_EVENTS)];
    out.push(records.len() as u8);
    records.iter().for_each(|record| bytes(out, record));
}

fn records(read: &mut Reader<'_>, most: usize) -> Result<Vec<Vec<u8>>, Malformed> {
    let count = usize::from(read.u8()?);
    if count > most {
        return Err(Malformed("too many records"));
    }
    (0..count).map(|_| read.bytes(MAX_RECORD)).collect()
}

pub(super) fn put_record_answer(out: &mut Vec<u8>, answer: &RecordAnswer) {
    match answer {
        RecordAnswer::None => out.push(0),
        RecordAnswer::Stored => out.push(1),
        RecordAnswer::Older(seq) => {
            out.push(2);
            out.extend(seq.to_be_bytes());
        }
        RecordAnswer::Refused(why) => {
            out.push(3);
            put_text(out, why);
        }
    }
}

pub(super) fn record_answer(read: &mut Reader<'_>) -> Result<RecordAnswer, Malformed> {
    Ok(match read.u8()? {
        0 => RecordAnswer::None,
        1 => RecordAnswer::Stored,
        2 => RecordAnswer::Older(read.u64()?),
        3 => RecordAnswer::Refused(read.text()?),
        _ => return Err(Malformed("answer to a record")),
    })
}

#[cfg(test)]
mod tests {
    use super::super::{HEADER_LEN, Reply, Request, next_frame};
    use super::*;

    #[test]
    fn messages_of_replicas_round_trip() {
        let owner = [7; 34];
        let asks = [
            Ask::Put { claim: vec![1; 150], record: vec![2; 400] },
            Ask::Get { owner, nonce: None },
            Ask::Get { owner, nonce: Some([4; 16]) },
            Ask::Map,
            Ask::Watch { whose: Whose::All, history: 5, from: 9 },
            Ask::Watch { whose: Whose::Of(owner), history: 0, from: 0 },
            Ask::List { after: owner },
            Ask::Hello(Hello {
                key: [1; 32],
                network: NetworkId(3),
                ephemeral: [2; 32],
                time: 77,
                signature: [3; 64],
            }),
        ];
        for ask in asks {
            let (mut out, request) = (Vec::new(), Request::Replica(ask));
            request.encode(3, &mut out);
            let (number, kind, body, len) = next_frame(&out).unwrap().unwrap();
            assert_eq!((number, len), (3, out.len()));
            assert_eq!(Request::decode(kind, body), Ok(request));
            assert!(Request::decode(kind, &[body, &[0]].concat()).is_err());
        }
        let attest = Some(Attest { time: 8, signature: [9; 64] });
        let tolds = [
            Told::Put(RecordAnswer::Older(4)),
            Told::Held { record: vec![1; 300], claim: vec![], seen: Some(7), attest },
            Told::Held { record: vec![], claim: vec![], seen: None, attest: None },
            Told::Events { history: 1, upto: 2, resync: true, records: vec![vec![1; 900]; MAX_EVENTS] },
            Told::List(vec![vec![1; 900]; MAX_LISTED]),
            Told::Welcome(Welcome {
                slot: 1,
                port: 2,
                interval: 3,
                ephemeral: [4; 32],
                sealed: [5; 48],
                signature: [6; 64],
            }),
            Told::Map(vec![1, 2, 3]),
        ];
        for told in tolds {
            let (mut out, reply) = (Vec::new(), Reply::Replica(told));
            reply.encode(3, &mut out);
            let (_, kind, body, _) = next_frame(&out).unwrap().unwrap();
            assert_eq!(Reply::decode(kind, body), Ok(reply));
            assert_eq!(out.len(), HEADER_LEN + body.len());
        }
        assert!(Reply::decode(20, &[65]).is_err(), "more than a page");
    }
}
