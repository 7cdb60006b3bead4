//! `pilotage record`, and `pilotage resolve` at the hub: records and claims, verified here.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pilotage::Identity;
use pilotage_registry::book::client::{BookClient, BookError, Found};
use pilotage_registry::book::message::{ClaimAnswer, Query, RecordAnswer};
use pilotage_registry::claims::{Claim, HOSTNAME_LEASE, LEASE, SignedHead, Subject};
use pilotage_registry::record::sign_with;
use pilotage_wire::addressing::{self, Fingerprint};
use pilotage_wire::record::{Record, RecordError, Tombstone};
use pilotage_wire::{Address, NetworkId, NodeId};
use serde_json::{Value, json};

use super::id::read_identity;
use super::network::registry_of;
use super::replica::Looked;
use super::{Context, keyring, mainline, replica};
use crate::args::{
    MainlineArgs, RecordAction, RecordArgs, RecordPublishArgs, RecordShowArgs, RegistryKeys, ResolveArgs,
};
use crate::error::{CliError, Exit};

const TIMEOUT: Duration = Duration::from_secs(10);
/// Salts that are tried until an address is free. Collisions are rare.
const SALTS: usize = 16;
/// Largest file of remembered heads that is read, bytes.
const MAX_HEADS: u64 = 64 * 1024;

pub(crate) fn run(context: &Context, args: &RecordArgs) -> Result<(), CliError> {
    match &args.action {
        RecordAction::Show(args) => {
            let query = query(&args.who, args.network)?;
            let looked = resolve(context, (&args.keys, &args.mainline), &query, key_of(&args.who))?;
            let mut shown = value("record", &looked.found);
            looked.add(&mut shown);
            context.output.result(format!("{}{}", text(&looked.found), looked.text()), &shown);
            Ok(())
        }
        RecordAction::Holder(args) => holder(context, args),
        RecordAction::Publish(args) => publish(context, args),
        RecordAction::Heads(args) => super::heads::run(context, args),
    }
}

/// Who holds a name or an address, proven; without the holder's record.
fn holder(context: &Context, args: &RecordShowArgs) -> Result<(), CliError> {
    let query = query(&args.who, args.network)?;
    if query.subject().is_none() {
        let next = "give a hostname or an address, or see `pilotage record show`";
        return Err(CliError::usage("record", "a fingerprint is held by nobody else", next));
    }
    let mut session = Session::open(context, &args.keys)?;
    let held = session.client.holder(&query).map_err(|error| explain(&error))?;
    session.remember();
    let fingerprint = addressing::fingerprint256(&held.claim.key);
    let (signed, nodes) = (held.head.signed_by(session.client.nodes()), session.client.nodes().len());
    let text = format!(
        "holder       {fingerprint}\nclaim        leaf {} of {}, until {} (Unix time)\nsigned by    {signed} of {nodes} nodes",
        held.index, held.head.head.size, held.claim.expires
    );
    let value = json!({
        "event": "holder",
        "name": args.who,
        "fingerprint": fingerprint,
        "agent_id": hex::encode(held.claim.agent_id()),
        "public_key": hex::encode(held.claim.key),
        "claim_index": held.index,
        "expires": held.claim.expires,
        "log_size": held.head.head.size,
        "log_root": hex::encode(held.head.head.root),
        "signed_by": signed,
        "nodes": nodes,
    });
    context.output.result(text, &value);
    Ok(())
}

/// Finds an agent at the hub and prints its address.
pub(crate) fn resolve_name(context: &Context, args: &ResolveArgs) -> Result<(), CliError> {
    let who = args.wanted.as_str();
    let looked = resolve(context, (&args.keys, &args.mainline), &query(who, 0)?, key_of(who))?;
    let mut value = value("resolved", &looked.found);
    value["name"] = who.into();
    looked.add(&mut value);
    let more = looked.text();
    if !more.is_empty() {
        context.output.note(more.trim_start());
    }
    context.output.result(address(&looked.found.record), &value);
    Ok(())
}

/// By the hub's log and its nodes' records; where none answers, from what is remembered, and at last by the Mainline DHT.
fn resolve(
    context: &Context,
    (keys, public): (&RegistryKeys, &MainlineArgs),
    query: &Query,
    given: Option<[u8; 32]>,
) -> Result<Looked, CliError> {
    let state = &context.settings.state;
    let now = unix_time().as_secs();
    let nobody = context.settings.mainline(public) && !context.settings.has_hub();
    let mut session = match Session::open(context, keys) {
        Ok(session) => session,
        Err(error) if error.exit == Exit::Unreachable || nobody => {
            let known = replica::without_hub(state, &keys.registry_key, query, now);
            let Some(directory) = mainline::open(context, public, None)? else { return known.ok_or(error) };
            let looked = mainline::look(context, directory.as_ref(), query, given, known, now);
            return looked.ok_or(error);
        }
        Err(error) => return Err(error),
    };
    let result = session.client.resolve(query, now);
    if let Err(BookError::Equivocation(heads)) = &result {
        let file = replica::two_heads(state, session.key, heads, now);
        context.output.note(format!("evidence: {}", file.display()));
    }
    let looked = replica::look(state, &session.registry, session.key, query, result, now);
    let looked = looked.map_err(|error| explain(&error))?;
    session.remember();
    let found = &looked.found;
    if found.record.tombstone == Some(Tombstone::Compromised) {
        return Err(CliError::failure(
            "record",
            "the agent says that its key is known to others",
            "do not trust this key any more; ask the agent's owner for the new one",
        ));
    }
    Ok(looked)
}

/// Where records are asked for, and whose is meant: for `watch`.
pub(super) fn whose(
    context: &Context,
    keys: &RegistryKeys,
    who: Option<&str>,
) -> Result<(String, Option<[u8; 32]>), CliError> {
    let mut session = Session::open(context, keys)?;
    let Some(who) = who else { return Ok((session.registry, None)) };
    let query = query(who, 0)?;
    if let Query::Agent { id, .. } = query {
        return Ok((session.registry, Some(id)));
    }
    let found = session.client.resolve(&query, unix_time().as_secs()).map_err(|error| explain(&error))?;
    session.remember();
    Ok((session.registry, Some(found.record.agent_id())))
}

pub(super) fn query(who: &str, network: u16) -> Result<Query, CliError> {
    let network = NetworkId(network);
    if let Ok(Address { network, node }) = who.parse() {
        return Ok(Query::Address { network, node });
    }
    if let Some(key) = key_of(who) {
        return Ok(Query::Agent { id: addressing::agent_id(&key), network });
    }
    if who.starts_with("pb1") || who.starts_with("pa1") {
        return match who.parse() {
            Ok(Fingerprint::Long(id)) => Ok(Query::Agent { id, network }),
            Ok(Fingerprint::Short(_)) => Err(CliError::usage(
                "record",
                "a short fingerprint does not find an agent",
                "give the long one (pb1…), as `pilotage id` prints it",
            )),
            Err(error) => {
                Err(CliError::usage("record", error, "give a hostname, an address, or a fingerprint"))
            }
        };
    }
    let subject = Subject::Hostname { network, name: who.to_owned() };
    subject
        .check()
        .map_err(|error| CliError::usage("record", error, "give a hostname, an address, or a fingerprint"))?;
    Ok(Query::Hostname { network, name: who.to_owned() })
}

/// A whole key. No hostname is that long.
fn key_of(who: &str) -> Option<[u8; 32]> {
    let mut key = [0; 32];
    hex::decode_to_slice(who, &mut key).ok().map(|()| key)
}

/// A connection, and what is remembered of the hub's log between two commands.
pub(super) struct Session {
    pub(super) client: BookClient,
    pub(super) registry: String,
    key: [u8; 32],
    /// What is known of this hub.
    file: PathBuf,
    /// What all hubs of its cluster have shown.
    cluster: Option<PathBuf>,
    pow_bits: u8,
}

impl Session {
    fn open(context: &Context, keys: &RegistryKeys) -> Result<Self, CliError> {
        let settings = &context.settings;
        let registry = settings.registry.clone().or_else(|| settings.hub.as_deref().map(registry_of));
        let registry = registry.ok_or_else(|| {
            CliError::usage("record", "no hub is configured", "name one with --hub HOST[:PORT]")
        })?;
        Self::at(context, registry, keys)
    }

    /// With this hub, whichever is configured.
    pub(super) fn at(context: &Context, registry: String, keys: &RegistryKeys) -> Result<Self, CliError> {
        let settings = &context.settings;
        let name: String =
            registry.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '_' }).collect();
        let file = settings.state.join(format!("registry-{name}.heads"));
        let (known, heads) = read_heads(&file)?;
        let pinned = if keys.registry_key.is_empty() { known } else { keys.registry_key.clone() };
        let mut client =
            BookClient::connect(&registry, TIMEOUT, pinned.clone()).map_err(|error| explain(&error))?;
        let info = client.info().map_err(|error| explain(&error))?;
        if pinned.is_empty() {
            let list: Vec<String> = client.nodes().iter().map(hex::encode).collect();
            let what = if list.len() == 1 { "the hub's key" } else { "the keys of the hub's cluster" };
            context.output.note(format!("trusting {what} {} from now on", list.join(" ")));
        }
        client.remember(heads);
        if !pinned.is_empty() && !pinned.contains(&info.node) {
            let given = !keys.registry_key.is_empty();
            keyring::changed(context, &mut client, &registry, (given, &file), &info)?;
        }
        let cluster = cluster_file(&settings.state, client.nodes());
        if let Some(cluster) = &cluster {
            client.remember(read_heads(cluster)?.1);
        }
        Ok(Self { client, registry, key: info.node, file, cluster, pow_bits: info.pow_bits })
    }

    /// Keeps the heads: the hub's log must continue them next time, and so must that of the other hubs of its cluster.
    pub(super) fn remember(&self) {
        let heads: Vec<u8> = self.client.heads().flat_map(SignedHead::encode).collect();
        let keys = self.client.nodes();
        match &self.cluster {
            None => write_heads(&self.file, &[keys.as_flattened(), &heads].concat()),
            Some(cluster) => {
                let known = [KEYS.as_slice(), &[keys.len() as u8], keys.as_flattened()].concat();
                write_heads(&self.file, &known);
                write_heads(cluster, &[known, heads].concat());
            }
        }
    }
}

/// Start of a file with the keys of several nodes; else the first 32 bytes are the key of the only one.
const KEYS: &[u8; 5] = b"PRGK\x01";

/// Keys and heads as [`read_heads`] reads them.
pub(super) fn encode_heads(keys: &[[u8; 32]], heads: impl Iterator<Item = SignedHead>) -> Vec<u8> {
    let heads: Vec<u8> = heads.flat_map(|head| head.encode()).collect();
    [KEYS.as_slice(), &[keys.len() as u8], keys.as_flattened(), &heads].concat()
}

/// Where the heads of a cluster are kept, whichever of its hubs showed them.
fn cluster_file(state: &Path, keys: &[[u8; 32]]) -> Option<PathBuf> {
    if keys.len() < 2 {
        return None;
    }
    let mut keys = keys.to_vec();
    keys.sort_unstable();
    // Any hash over all of them does.
    let name = keys.iter().fold([0; 32], |mut all: [u8; 32], key| {
        all.iter_mut().zip(key).for_each(|(all, key)| *all ^= key);
        addressing::agent_id(&all)
    });
    Some(state.join(format!("registry-cluster-{}.heads", hex::encode(&name[..8]))))
}

fn write_heads(file: &Path, bytes: &[u8]) {
    let dir = file.parent().map_or(Ok(()), super::create_private_dir);
    let part = file.with_extension("heads.new");
    if let Err(error) = dir.and_then(|()| fs::write(&part, bytes)).and_then(|()| fs::rename(&part, file)) {
        tracing::warn!(%error, file = %file.display(), "cannot remember the hub's log");
    }
}

pub(super) fn read_heads(file: &Path) -> Result<(Vec<[u8; 32]>, Vec<SignedHead>), CliError> {
    let damaged = || {
        CliError::failure(
            "record",
            format!("{} is damaged", file.display()),
            "remove it: the hub is then believed as on the first day",
        )
    };
    let Ok(meta) = fs::metadata(file) else { return Ok((Vec::new(), Vec::new())) };
    if meta.len() > MAX_HEADS {
        return Err(damaged());
    }
    let bytes = fs::read(file).map_err(|_| damaged())?;
    parse_heads(&bytes).ok_or_else(damaged)
}

fn parse_heads(bytes: &[u8]) -> Option<(Vec<[u8; 32]>, Vec<SignedHead>)> {
    let (count, mut rest) = match bytes.strip_prefix(KEYS) {
        Some(rest) => rest.split_first().map(|(count, rest)| (usize::from(*count), rest))?,
        None => (1, bytes),
    };
    let (mut keys, mut heads) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let (key, tail) = rest.split_first_chunk()?;
        keys.push(*key);
        rest = tail;
    }
    while !rest.is_empty() {
        let (head, tail) = SignedHead::decode(rest)?;
        heads.push(head);
        rest = tail;
    }
    Some((keys, heads))
}

fn publish(context: &Context, args: &RecordPublishArgs) -> Result<(), CliError> {
    let identity = read_identity(&context.settings.state)?;
    let now = unix_time();
    let mut session = Session::open(context, &args.keys)?;
    let (salt, node, index) = claim_address(&mut session, &identity, args.network, now)?;
    let mut record =
        Record::new(NetworkId(args.network), node, salt, identity.public_key(), millis(now), seconds(now));
    record.ttl = args.hours * 3_600;
    record.min_sec = args.min_sec;
    record.private = args.private;
    if args.gone {
        record.tombstone = Some(Tombstone::Gone);
    } else {
        record.tags = args.tag.clone();
        record.tags.sort_unstable();
        record.tags.dedup();
        record.summary = args.summary.clone();
        record.endpoints = args.endpoint.clone();
        record.relays = args.relay.clone();
        record.descriptor = args.descriptor;
    }
    if let Some(name) = &args.hostname {
        let index = claim_hostname(&mut session, &identity, args.network, name, now)?;
        record.hostname = Some(pilotage_wire::record::HostnameRef { name: name.clone(), index });
    }
    let bytes = sign_with(&mut record, identity.public_key(), |message| identity.sign(message))
        .map_err(bad_record)?;
    let (_, answer) = session.client.register(&[], Some(&bytes)).map_err(|error| explain(&error))?;
    match answer {
        RecordAnswer::Stored => {}
        RecordAnswer::Older(seq) => {
            return Err(CliError::failure(
                "record",
                format!("the hub has a newer record of this agent (number {seq})"),
                "another machine publishes with this key, or this clock is behind; compare them",
            ));
        }
        RecordAnswer::Refused(why) => {
            return Err(CliError::failure("record", why, "see `pilotage record publish --help`"));
        }
        RecordAnswer::None => return Err(CliError::failure("record", "the hub did not answer", "try again")),
    }
    session.remember();
    let text = format!("{}  {} bytes, good for {} hours", address(&record), bytes.len(), args.hours);
    let mut value = record_json(&record, bytes.len());
    value["event"] = "published".into();
    value["claim_index"] = index.into();
    context.output.result(text, &value);
    Ok(())
}

/// The address under the first salt that is free, or ours already.
fn claim_address(
    session: &mut Session,
    identity: &Identity,
    network: u16,
    now: Duration,
) -> Result<(u16, NodeId, u64), CliError> {
    let key = identity.public_key();
    let day = start_of_day(now);
    let expires = seconds(day) + LEASE as u32;
    for (salt, node) in addressing::node_ids(&key).take(SALTS) {
        let Some(claim) = Claim::address(NetworkId(network), key, salt, millis(day), expires) else {
            continue;
        };
        if let Some(index) = claim_one(session, identity, claim)? {
            return Ok((salt, node, index));
        }
    }
    Err(CliError::failure(
        "record",
        format!("the first {SALTS} addresses of this key are taken by others"),
        "that does not happen by chance; make a new identity with `pilotage id new`, or ask the hub's operator",
    ))
}

fn claim_hostname(
    session: &mut Session,
    identity: &Identity,
    network: u16,
    name: &str,
    now: Duration,
) -> Result<u64, CliError> {
    let subject = Subject::Hostname { network: NetworkId(network), name: name.to_owned() };
    subject.check().map_err(|error| CliError::usage("record", error, "choose another name"))?;
    let day = start_of_day(now);
    let expires = seconds(day) + HOSTNAME_LEASE as u32;
    let claim = Claim::new(subject, identity.public_key(), millis(day), expires);
    claim_one(session, identity, claim)?.ok_or_else(|| {
        CliError::failure(
            "record",
            format!("the name {name:?} belongs to another agent"),
            "choose another name",
        )
    })
}

/// The leaf of the claim; `None` if another agent holds the thing.
fn claim_one(session: &mut Session, identity: &Identity, claim: Claim) -> Result<Option<u64>, CliError> {
    let claim = claim.sign_with(session.pow_bits, |message| identity.sign(message));
    let (answers, _) = session.client.register(&[claim], None).map_err(|error| explain(&error))?;
    match answers.into_iter().next() {
        Some(ClaimAnswer::Granted(index)) => Ok(Some(index)),
        Some(ClaimAnswer::TakenBy { .. }) => Ok(None),
        Some(ClaimAnswer::Refused(why)) => Err(refused(&why)),
        None => Err(CliError::failure("record", "the hub did not answer", "try again")),
    }
}

fn refused(text: &str) -> CliError {
    let (cause, next) = text.split_once("; ").unwrap_or((text, "see `pilotage record --help`"));
    CliError::failure("record", cause, next)
}

fn bad_record(error: RecordError) -> CliError {
    let text = error.to_string();
    let (cause, next) = text.split_once("; ").unwrap_or((&text, "see `pilotage record publish --help`"));
    CliError::usage("record", cause, next)
}

pub(super) fn explain(error: &BookError) -> CliError {
    let text = error.to_string();
    let (cause, next) = text.rsplit_once("; ").unwrap_or((&text, "see `pilotage record --help`"));
    let exit = match error {
        BookError::Io { .. } | BookError::Refused { transient: true, .. } => Exit::Unreachable,
        _ => Exit::Failure,
    };
    CliError::new(exit, "record", cause, next)
}

fn address(record: &Record) -> Address {
    Address { network: record.network, node: record.node }
}

fn text(found: &Found) -> String {
    let record = &found.record;
    let mut lines = vec![
        format!("address      {}", address(record)),
        format!("fingerprint  {}", addressing::fingerprint256(&record.key)),
    ];
    let mut line = |name: &str, value: String| {
        if !value.is_empty() {
            lines.push(format!("{name:<12} {value}"));
        }
    };
    let list =
        |list: &[std::net::SocketAddr]| list.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    line("hostname", record.hostname.as_ref().map(|hostname| hostname.name.clone()).unwrap_or_default());
    line("state", record.tombstone.map(|_| "gone".to_owned()).unwrap_or_default());
    line("endpoints", list(&record.endpoints));
    line("relays", list(&record.relays));
    line("tags", record.tags.join(" "));
    line("summary", record.summary.clone().unwrap_or_default());
    line("number", record.seq.to_string());
    let proven =
        found.head.as_ref().map(|head| format!("claim proven in the hub's log of {} claims", head.head.size));
    line("proof", proven.unwrap_or_else(|| "signed by the agent's key".into()));
    lines.join("\n")
}

fn value(event: &str, found: &Found) -> Value {
    let mut value = record_json(&found.record, found.bytes.len());
    value["event"] = event.into();
    value["claim_index"] = found.claim.as_ref().map(|(_, index)| *index).into();
    value["log_size"] = found.head.as_ref().map(|head| head.head.size).into();
    value["log_root"] = found.head.as_ref().map(|head| hex::encode(head.head.root)).into();
    value["bytes"] = hex::encode(&found.bytes).into();
    value
}

pub(super) fn record_json(record: &Record, len: usize) -> Value {
    let list = |list: &[std::net::SocketAddr]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
    json!({
        "address": address(record).to_string(),
        "agent_id": hex::encode(record.agent_id()),
        "fingerprint": addressing::fingerprint256(&record.key),
        "public_key": hex::encode(record.key),
        "hostname": record.hostname.as_ref().map(|hostname| hostname.name.clone()),
        "seq": record.seq,
        "issued": record.issued,
        "expires": record.expires(),
        "min_sec": record.min_sec,
        "private": record.private,
        "gone": record.tombstone.is_some(),
        "endpoints": list(&record.endpoints),
        "relays": list(&record.relays),
        "tags": record.tags,
        "summary": record.summary,
        "descriptor": record.descriptor.map(hex::encode),
        "prekeys": record.prekeys.len(),
        "length": len,
    })
}

#[allow(clippy::disallowed_methods, reason = "a command line tool reads the clock")]
pub(super) fn unix_time() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// The claims of one day are the same claim, which is not granted twice: the log grows by one a day at most.
fn start_of_day(now: Duration) -> Duration {
    Duration::from_secs(now.as_secs() / 86_400 * 86_400)
}

fn seconds(now: Duration) -> u32 {
    u32::try_from(now.as_secs()).unwrap_or(u32::MAX)
}

fn millis(now: Duration) -> u64 {
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}
