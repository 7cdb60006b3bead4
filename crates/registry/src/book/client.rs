//! A blocking client that believes nothing unproven. `spec/registry2.md §6`.
//!
//! What it gives was verified: the record's signature and time, that the claim which led there names the record's key and
//! is in the log whose head the registry's node signed, and that this log continues every log that it showed before.

use super::message::{ClaimAnswer, HEADER_LEN, Query, RecordAnswer, Reply, Request, next_frame};
use super::{MAGIC, MAX_MESSAGE};
use crate::claims::{
    Bad, Claim, ClaimError, PARTITIONS, Proof, ProofError, SignedHead, Subject, check, verify_consistency,
    verify_inclusion,
};
use crate::record::{self, Unbelievable};
use pilotage_wire::record::Record;
use std::io::{self, Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::time::Duration;

/// How often a node that is behind is asked again, and the pause before each time.
const CATCH_UP_TRIES: usize = 40;
const CATCH_UP_PAUSE: Duration = Duration::from_millis(50);

/// Why there is no answer that can be believed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BookError {
    /// No connection, or it broke.
    #[error("registry {addr} does not answer ({source}); check the address, and that the hub runs")]
    Io {
        /// The registry.
        addr: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// It speaks something else.
    #[error(
        "registry {addr} does not know records and claims; it is an older hub, or speaks TLS on this port"
    )]
    OtherProtocol {
        /// The registry.
        addr: String,
    },
    /// It refused.
    #[error("registry: {text}")]
    Refused {
        /// Cause and next step.
        text: String,
        /// Trying again later may help.
        transient: bool,
    },
    /// It has no such record or claim.
    #[error(
        "the registry knows no {what}; check the spelling, or the agent has not published a record there"
    )]
    NotFound {
        /// What was asked for.
        what: String,
    },
    /// The claim is proven, but this registry has no record of who holds it.
    #[error(
        "{what} is held by {holder}, of which this registry has no record; the agent has published none here, ask another hub"
    )]
    NoRecord {
        /// What was asked for.
        what: String,
        /// Fingerprint of the holder.
        holder: String,
    },
    /// A node of a cluster is behind what others have shown.
    #[error("this hub is behind the others of its cluster; try again in a moment, or ask another hub")]
    Behind,
    /// The record is not believed.
    #[error("{0}; the registry's answer was refused")]
    Record(#[from] Unbelievable),
    /// The claim is no claim, or its signature is wrong.
    #[error("the registry's answer was refused: {0}")]
    Claim(String),
    /// Record, claim and question do not fit each other.
    #[error("the registry answered with somebody else's {0}; the answer was refused")]
    Mismatch(&'static str),
    /// The proof is wrong.
    #[error("{0}; the answer was refused")]
    Proof(#[from] ProofError),
    /// No node that is trusted has signed the head.
    #[error(
        "the registry's log is not signed by the key that is expected (--registry-key); the answer was refused"
    )]
    Unsigned,
    /// It says that it has become a cluster, and the key that is known has not signed that.
    #[error(
        "the registry says that its key has handed over to others, which that key has not signed; the answer was refused"
    )]
    NotHandedOver,
    /// Two heads that cannot both be true, signed by the same node: proof that it lies.
    #[error("the registry has signed two different logs of the same size; it lies to someone, do not use it")]
    Equivocation(Box<(SignedHead, SignedHead)>),
}

/// A record that is true.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// What the agent says about itself.
    pub record: Record,
    /// As it was signed.
    pub bytes: Vec<u8>,
    /// The claim that led there, and its leaf; none if an agent was asked for.
    pub claim: Option<(Claim, u64)>,
    /// The head under which the claim was proven.
    pub head: Option<SignedHead>,
    /// The proof; none if an agent was asked for.
    pub proof: Option<Proof>,
}

/// A claim that is proven.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The claim.
    pub claim: Claim,
    /// Its leaf.
    pub index: u64,
    /// The head under which it was proven.
    pub head: SignedHead,
    /// The proof.
    pub proof: Proof,
}

/// What a registry says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Info {
    /// Key of the node.
    pub node: [u8; 32],
    /// Leading zero bits of a claim's proof of work.
    pub pow_bits: u8,
    /// Its time, Unix seconds.
    pub time: u64,
    /// Things claimed.
    pub claims: u64,
    /// Records stored.
    pub records: u64,
}

/// A connection with a registry.
#[derive(Debug)]
pub struct BookClient {
    addr: String,
    stream: TcpStream,
    input: Vec<u8>,
    number: u32,
    /// Keys of nodes whose heads count; the first node that answers if none was given.
    nodes: Vec<[u8; 32]>,
    /// How many of them have to sign.
    quorum: usize,
    heads: Vec<Option<SignedHead>>,
}

impl BookClient {
    /// Connects. `nodes` are the keys of the registry's nodes, of which a majority has to sign heads; if it is empty, those
    /// that the first answer names are trusted as long as this client lives.
    ///
    /// # Errors
    /// [`BookError::Io`].
    pub fn connect(addr: &str, timeout: Duration, nodes: Vec<[u8; 32]>) -> Result<Self, BookError> {
        let failed = |source| BookError::Io { addr: addr.to_owned(), source };
        let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
        let connected = addr
            .to_socket_addrs()
            .map_err(failed)?
            .find_map(|at| TcpStream::connect_timeout(&at, timeout).map_err(|error| last = error).ok());
        let mut stream = connected.ok_or_else(|| failed(last))?;
        stream
            .set_read_timeout(Some(timeout))
            .and_then(|()| stream.set_write_timeout(Some(timeout)))
            .and_then(|()| stream.set_nodelay(true))
            .and_then(|()| stream.write_all(&MAGIC))
            .map_err(failed)?;
        let quorum = nodes.len() / 2 + 1;
        let heads = vec![None; PARTITIONS];
        Ok(Self { addr: addr.to_owned(), stream, input: Vec::new(), number: 0, nodes, quorum, heads })
    }

    /// Heads that were seen, to be given to a later client with [`BookClient::remember`].
    pub fn heads(&self) -> impl Iterator<Item = &SignedHead> {
        self.heads.iter().flatten()
    }

    /// Heads that were seen before: a log that does not continue them is refused. Those that the nodes have not signed are
    /// left out.
    pub fn remember(&mut self, heads: impl IntoIterator<Item = SignedHead>) {
        for head in heads {
            if head.signed_by(&self.nodes) >= self.quorum {
                let slot = &mut self.heads[usize::from(head.head.partition) % PARTITIONS];
                *slot = Some(head);
            }
        }
    }

    /// What the registry says about itself.
    ///
    /// # Errors
    /// [`BookError`].
    pub fn info(&mut self) -> Result<Info, BookError> {
        match self.call(&Request::Info)? {
            Reply::Info { node, pow_bits, time, claims, records } => {
                if self.nodes.is_empty() {
                    self.nodes = self.ask_nodes(node)?;
                    self.quorum = self.nodes.len() / 2 + 1;
                }
                Ok(Info { node, pow_bits, time, claims, records })
            }
            other => Err(self.unexpected(other)),
        }
    }

    /// Keys whose majority has to sign heads: those given, or after [`BookClient::info`] those that the registry named.
    #[must_use]
    pub fn nodes(&self) -> &[[u8; 32]] {
        &self.nodes
    }

    /// Whose signatures make a head now, as the registry says: to be believed on the first day only, or to be shown.
    ///
    /// # Errors
    /// [`BookError`].
    pub fn named(&mut self) -> Result<Vec<[u8; 32]>, BookError> {
        let info = self.info()?;
        self.ask_nodes(info.node)
    }

    /// Follows a registry of one node, whose key is the only one known, to the keys of the cluster that it has become: if the
    /// old key says so, and the cluster's log continues every head that was seen before. False if nobody says so; then, and
    /// after an error, the old key is the one that counts. `nonce`: unpredictable, never used before.
    ///
    /// # Errors
    /// [`BookError`]: it is not proven, or cannot be now.
    pub fn follow(&mut self, nonce: [u8; 32]) -> Result<bool, BookError> {
        let [from] = self.nodes[..] else { return Ok(false) };
        let handover = match self.call(&Request::Handover { from, nonce })? {
            Reply::Handover(handover) => handover,
            // An older registry does not know the question.
            Reply::NotFound | Reply::Error { transient: false, .. } => return Ok(false),
            other => return Err(self.unexpected(other)),
        };
        if !handover.verify(&from, &nonce) {
            return Err(BookError::NotHandedOver);
        }
        let before = (self.nodes.clone(), self.quorum, self.heads.clone());
        self.quorum = handover.nodes.len() / 2 + 1;
        self.nodes = handover.nodes;
        let continued = self.heads_continue();
        if continued.is_err() {
            (self.nodes, self.quorum, self.heads) = before;
        }
        continued.map(|()| true)
    }

    /// Whether the log continues all heads that are known, under the keys that count now.
    fn heads_continue(&mut self) -> Result<(), BookError> {
        for partition in 0..self.heads.len() {
            let Some(old) = self.heads[partition].take().filter(|old| old.head.size > 0) else { continue };
            let (head, proof) = self.head_of_at_least(&old, old.head.size)?;
            self.continues(&old, &head, &proof)?;
            if head.head.partition != old.head.partition {
                return Err(BookError::Mismatch("partition"));
            }
            self.heads[partition] = Some(head);
        }
        Ok(())
    }

    /// Whose signatures count, as the registry says; only the one that answers if it is an older one or only listens.
    fn ask_nodes(&mut self, node: [u8; 32]) -> Result<Vec<[u8; 32]>, BookError> {
        match self.call(&Request::Nodes)? {
            Reply::Nodes(mut keys) => {
                keys.sort_unstable();
                keys.dedup();
                Ok(if keys.is_empty() { vec![node] } else { keys })
            }
            Reply::Error { transient: false, .. } => Ok(vec![node]),
            other => Err(self.unexpected(other)),
        }
    }

    /// Registers claims and a record together: one answer per claim, and one for the record.
    ///
    /// # Errors
    /// [`BookError`]; nothing is known about the claims then, and they may be sent again.
    pub fn register(
        &mut self,
        claims: &[Claim],
        record: Option<&[u8]>,
    ) -> Result<(Vec<ClaimAnswer>, RecordAnswer), BookError> {
        let request = Request::Register {
            claims: claims.iter().map(Claim::encode).collect(),
            record: record.map(<[u8]>::to_vec),
        };
        match self.call(&request)? {
            Reply::Registered { claims: answers, record } if answers.len() == claims.len() => {
                Ok((answers, record))
            }
            other => Err(self.unexpected(other)),
        }
    }

    /// Finds and verifies a record; `now` is Unix time in seconds.
    ///
    /// # Errors
    /// [`BookError`]: not found, or not believed.
    pub fn resolve(&mut self, query: &Query, now: u64) -> Result<Found, BookError> {
        let (record, held) = self.look_up(query)?;
        let bytes = record.ok_or_else(|| self.no_record(query, held.as_ref()))?;
        let record = record::verify(&bytes)?;
        record::check_time(&record, now)?;
        check_fits(&record, held.as_ref().map(|held| &held.claim), query)?;
        let mut found = Found { record, bytes, claim: None, head: None, proof: None };
        if let Some(Held { claim, index, head, proof }) = held {
            found.claim = Some((claim, index));
            (found.head, found.proof) = (Some(head), Some(proof));
        }
        Ok(found)
    }

    /// Finds and verifies the claim of an address or a hostname, whether or not its holder has published a record.
    ///
    /// # Errors
    /// [`BookError`]: not found, or not believed. An agent is no claim.
    pub fn holder(&mut self, query: &Query) -> Result<Held, BookError> {
        self.look_up(query)?.1.ok_or(BookError::Mismatch("claim"))
    }

    /// The record, still unverified, and the claim that led there, proven.
    fn look_up(&mut self, query: &Query) -> Result<(Option<Vec<u8>>, Option<Held>), BookError> {
        if self.nodes.is_empty() {
            self.info()?;
        }
        let reply = self.call(&Request::Resolve { query: query.clone(), proof: true })?;
        let (record, claim) = match reply {
            Reply::Resolved { record, claim } => (record, claim),
            Reply::NotFound => return Err(self.not_found(query)),
            other => return Err(self.unexpected(other)),
        };
        let Some(subject) = query.subject() else { return Ok((record, None)) };
        let part = claim.ok_or(BookError::Mismatch("claim"))?;
        let claim = check_claim(&part.claim, &subject)?;
        let (proof, head) = part.proof.ok_or(BookError::Proof(ProofError::NotIncluded))?;
        if head.head.partition != subject.partition() {
            return Err(BookError::Mismatch("partition"));
        }
        verify_inclusion(&head.head, &part.claim, part.index, &proof)?;
        self.believe(&head)?;
        Ok((record, Some(Held { claim, index: part.index, head, proof })))
    }

    /// Takes a head over if enough nodes have signed it and it continues the one known.
    fn believe(&mut self, new: &SignedHead) -> Result<(), BookError> {
        if new.signed_by(&self.nodes) < self.quorum {
            return Err(BookError::Unsigned);
        }
        let partition = usize::from(new.head.partition) % PARTITIONS;
        let Some(known) = self.heads[partition].clone() else {
            self.heads[partition] = Some(new.clone());
            return Ok(());
        };
        if known.head.size == new.head.size {
            return if known.head.root == new.head.root {
                Ok(())
            } else {
                Err(BookError::Equivocation(Box::new((known, new.clone()))))
            };
        }
        // Connections of one registry may give an older head after a newer one; it has to fit all the same.
        let (old, young) = if known.head.size < new.head.size { (&known, new) } else { (new, &known) };
        if old.head.size > 0 {
            let (head, proof) = self.head_of_at_least(old, young.head.size)?;
            self.continues(old, &head, &proof)?;
            if head.head.size == young.head.size && head.head.root != young.head.root {
                return Err(BookError::Equivocation(Box::new((head, young.clone()))));
            }
            if head.head.size > young.head.size {
                let (newest, proof) = self.head(young.head.partition, young.head.size)?;
                self.continues(young, &newest, &proof)?;
            }
            self.heads[partition] = Some(head);
            return Ok(());
        }
        self.heads[partition] = Some(young.clone());
        Ok(())
    }

    /// The newest head, with the proof that it continues `old`. A log that is shorter than one that was signed before was
    /// rewritten; but a node of a cluster may be behind the one that showed us the longer log.
    fn head_of_at_least(&mut self, old: &SignedHead, size: u64) -> Result<(SignedHead, Proof), BookError> {
        for attempt in 0.. {
            match self.head(old.head.partition, old.head.size) {
                Ok((head, proof)) if head.head.size >= size => return Ok((head, proof)),
                Ok(_) | Err(BookError::Proof(ProofError::Rewritten)) if self.nodes.len() > 1 => {
                    if attempt == CATCH_UP_TRIES {
                        return Err(BookError::Behind);
                    }
                    std::thread::sleep(CATCH_UP_PAUSE);
                }
                Ok(_) => break,
                Err(error) => return Err(error),
            }
        }
        Err(BookError::Proof(ProofError::Rewritten))
    }

    fn continues(&self, old: &SignedHead, new: &SignedHead, proof: &Proof) -> Result<(), BookError> {
        if new.signed_by(&self.nodes) < self.quorum {
            return Err(BookError::Unsigned);
        }
        Ok(verify_consistency(&old.head, &new.head, proof)?)
    }

    /// The newest head of a partition, with the proof that it continues the first `from` leaves.
    ///
    /// # Errors
    /// [`BookError`]; the head is not verified yet.
    pub fn head(&mut self, partition: u8, from: u64) -> Result<(SignedHead, Proof), BookError> {
        match self.call(&Request::Head { partition, from })? {
            Reply::Head { head, proof } => Ok((head, proof)),
            // It signed a longer log than it has now.
            Reply::NotFound => Err(BookError::Proof(ProofError::Rewritten)),
            other => Err(self.unexpected(other)),
        }
    }

    /// Leaves of a partition, as the registry says; to be held against a head by who audits it.
    ///
    /// # Errors
    /// [`BookError`].
    pub fn leaves(&mut self, partition: u8, from: u64, limit: u16) -> Result<Vec<(u64, Vec<u8>)>, BookError> {
        match self.call(&Request::Leaves { partition, from, limit })? {
            Reply::Leaves(leaves) => Ok(leaves),
            other => Err(self.unexpected(other)),
        }
    }

    /// Sends a request without waiting; gives its number. For load tests and for those who ask much.
    ///
    /// # Errors
    /// [`BookError::Io`].
    pub fn send(&mut self, requests: &[Request]) -> Result<u32, BookError> {
        let mut out = Vec::new();
        let first = self.number;
        for request in requests {
            request.encode(self.number, &mut out);
            self.number = self.number.wrapping_add(1);
        }
        self.stream.write_all(&out).map_err(|source| self.failed(source))?;
        Ok(first)
    }

    /// The next answer to come, with the number of its request.
    ///
    /// # Errors
    /// [`BookError`].
    pub fn receive(&mut self) -> Result<(u32, Reply), BookError> {
        loop {
            if let Some((number, kind, body, len)) = next_frame(&self.input).map_err(|_| self.other())? {
                let reply = Reply::decode(kind, body).map_err(|_| self.other())?;
                self.input.drain(..len);
                return Ok((number, reply));
            }
            let mut chunk = [0; 16 * 1024];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(self.other()),
                Ok(n) => self.input.extend_from_slice(&chunk[..n]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.failed(error)),
            }
            debug_assert!(self.input.len() <= 4 + MAX_MESSAGE + chunk.len() + HEADER_LEN);
        }
    }

    /// Asks anything, and gives the answer as it came: nothing of it is verified.
    ///
    /// # Errors
    /// [`BookError`].
    pub fn call(&mut self, request: &Request) -> Result<Reply, BookError> {
        let wanted = self.send(std::slice::from_ref(request))?;
        loop {
            let (number, reply) = self.receive()?;
            if number == wanted {
                return Ok(reply);
            }
        }
    }

    fn failed(&self, source: io::Error) -> BookError {
        match source.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => self.other(),
            _ => BookError::Io { addr: self.addr.clone(), source },
        }
    }

    fn other(&self) -> BookError {
        BookError::OtherProtocol { addr: self.addr.clone() }
    }

    fn unexpected(&self, reply: Reply) -> BookError {
        match reply {
            Reply::Error { text, transient } => BookError::Refused { text, transient },
            _ => self.other(),
        }
    }

    fn no_record(&self, query: &Query, held: Option<&Held>) -> BookError {
        match (query.subject(), held) {
            (Some(subject), Some(held)) => BookError::NoRecord {
                what: subject.to_string(),
                holder: pilotage_wire::addressing::Fingerprint::Long(held.claim.agent_id()).to_string(),
            },
            _ => self.not_found(query),
        }
    }

    fn not_found(&self, query: &Query) -> BookError {
        let what = match (query, query.subject()) {
            (Query::Agent { id, .. }, _) => {
                format!("record of agent {}", pilotage_wire::addressing::Fingerprint::Long(*id))
            }
            (_, Some(subject)) => format!("record for {subject}"),
            (_, None) => "such record".into(),
        };
        BookError::NotFound { what }
    }
}

/// A claim that names the subject and is signed by its key; how much work it took is the registry's business.
pub(crate) fn check_claim(bytes: &[u8], subject: &Subject) -> Result<Claim, BookError> {
    let claim = Claim::decode(bytes).map_err(|error: ClaimError| BookError::Claim(error.to_string()))?;
    check(&claim, 0).map_err(|error: Bad| BookError::Claim(error.to_string()))?;
    if claim.is_release() {
        return Err(BookError::Mismatch("claim"));
    }
    if claim.subject == *subject { Ok(claim) } else { Err(BookError::Mismatch("claim")) }
}

pub(crate) fn check_fits(record: &Record, claim: Option<&Claim>, query: &Query) -> Result<(), BookError> {
    if record.network != query.network() || claim.is_some_and(|claim| claim.key != record.key) {
        return Err(BookError::Mismatch("record"));
    }
    let fits = match query {
        Query::Agent { id, .. } => record.agent_id() == *id,
        Query::Address { node, .. } => record.node == *node,
        Query::Hostname { .. } => true,
    };
    if fits { Ok(()) } else { Err(BookError::Mismatch("record")) }
}
