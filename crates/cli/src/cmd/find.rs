//! `pilotage find` and `pilotage call`: agents by what they can do (ports 1013 and 1014).

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use pilotage::{Address, NodeId, Peer};
use pilotage_discover::evidence::{Book, MAX_BOOK};
use pilotage_discover::index::Hit;
use pilotage_discover::plan::{Attempt, Began};
use pilotage_discover::wire::MAX_BODY;
use pilotage_discover::{Query, Tag};
use pilotage_services::find::{self, Asked, CallOptions, Findings, MAX_ASKED, Provider, Reach};
use pilotage_wire::addressing::fingerprint128;
use serde_json::{Value, json};

use super::message::{printable, read_whole};
use super::{Context, network, skills};
use crate::args::{CallArgs, FindArgs, NodeArgs, WishArgs};
use crate::error::{CliError, Exit};
use crate::session::{self, Session};
use crate::units::format_duration;

/// How long a node that was just started waits for its neighbours to announce themselves.
const NEIGHBOURS: Duration = Duration::from_secs(2);

/// Answers that `call` chooses among.
const CALL_AMONG: usize = 16;

pub(crate) fn find(context: &Context, args: &FindArgs) -> Result<(), CliError> {
    let query = query(&args.wish, usize::from(args.limit))?;
    let (session, whom) = open(context, &args.node, &args.wish)?;
    let mut book = Evidence::open(context, &args.node);
    let reach: Arc<dyn Reach> = session.clone();
    let findings = ask(&reach, &whom, &query, &mut book.book, args.wish.wait);
    show(context, args, &findings);
    let described = match findings.providers.first().filter(|_| args.describe) {
        Some(best) => describe(context, args, &*reach, best),
        None => Ok(()),
    };
    book.close(context);
    session.close();
    described?;
    if findings.providers.is_empty() { Err(nobody(&args.wish, &findings)) } else { Ok(()) }
}

pub(crate) fn call(context: &Context, args: &CallArgs) -> Result<(), CliError> {
    let query = query(&args.wish, CALL_AMONG)?;
    let tag = match query.tags() {
        [tag] => tag.clone(),
        _ => {
            let next = "name one capability, as in: pilotage call cap:finance.fx.history --data EUR/USD";
            return Err(CliError::usage("call", "a call is of one capability", next));
        }
    };
    let body = body(args)?;
    let (session, whom) = open(context, &args.node, &args.wish)?;
    let mut book = Evidence::open(context, &args.node);
    let reach: Arc<dyn Reach> = session.clone();
    let mut findings = ask(&reach, &whom, &query, &mut book.book, args.wish.wait);
    // A provider of something more general cannot be called for it.
    findings.providers.retain(|provider| provider.hit.card.card().declaration.skill_for(&tag).is_some());
    let done = serve(context, args, &reach, &findings, &tag, &body, &mut book.book);
    book.close(context);
    session.close();
    done
}

fn query(wish: &WishArgs, limit: usize) -> Result<Query, CliError> {
    let wrong = |error| {
        CliError::usage("query", error, "as in: pilotage find cap:finance.fx \"EUR/USD by the minute\"")
    };
    let query = Query::from_words(wish.what.iter().map(String::as_str), limit).map_err(wrong)?;
    Ok(match &wish.vector {
        Some(path) => query.with_vector(skills::vector(path)?),
        None => query,
    })
}

/// Whom a wish goes to.
struct Whom {
    /// Who keeps the hub's index: it is asked first, and leads to groups.
    index: Option<Peer>,
    /// All others, each for itself: if that does not help.
    peers: Vec<Peer>,
}

fn ask(reach: &Arc<dyn Reach>, whom: &Whom, query: &Query, book: &mut Book, patience: Duration) -> Findings {
    let begun = Instant::now();
    let mut first = None;
    if let Some(index) = &whom.index {
        let findings = find::routed(reach, index, query, book, patience);
        if !findings.providers.is_empty() || whom.peers.is_empty() {
            return findings;
        }
        first = Some(findings);
    }
    let left = patience.saturating_sub(begun.elapsed()).max(patience / 2);
    let mut findings = find::find(reach, &whom.peers, query, book, left);
    if let Some(first) = first {
        findings.asked.splice(0..0, first.asked);
        findings.groups = first.groups;
        findings.dropped += first.dropped;
    }
    findings
}

/// The hub's index, if the hub keeps one and nobody else is named.
fn index(context: &Context, node: &NodeArgs, wish: &WishArgs, session: &Session) -> Option<Peer> {
    let named = !wish.ask.is_empty() || wish.network.is_some();
    let hub = context.settings.has_hub() || !node.ephemeral && !session.is_own();
    let index = Peer::Name(find::HUB_INDEX.to_owned());
    (hub && !named).then_some(index).filter(|index| session.resolve(index).is_ok())
}

/// The node and whom it asks.
fn open(context: &Context, node: &NodeArgs, wish: &WishArgs) -> Result<(Arc<Session>, Whom), CliError> {
    for peer in &wish.ask {
        session::check_peer(context, node, peer)?;
    }
    let members = match &wish.network {
        Some(name) => network::member_ids(context, name)?,
        None => Vec::new(),
    };
    let session = Arc::new(session::open(context, node)?);
    let own = session.address()?.node;
    let index = index(context, node, wish, &session);
    let mut peers = wish.ask.clone();
    if wish.ask.is_empty() {
        peers.extend(node.peers.iter().map(|known| Peer::At(known.address, known.at)));
        peers.extend(known(
            context,
            node,
            &session,
            peers.is_empty() && members.is_empty() && index.is_none(),
        )?);
    }
    peers.extend(
        members.into_iter().filter(|id| NodeId(*id) != own).map(|id| Peer::Address(Address::new(0, id))),
    );
    let mut nodes = Vec::new();
    peers.retain(|peer| match peer {
        Peer::Name(_) => true,
        Peer::Address(address) | Peer::At(address, _) => {
            let new = !nodes.contains(&address.node);
            nodes.push(address.node);
            new
        }
    });
    peers.truncate(MAX_ASKED);
    if peers.is_empty() && index.is_none() {
        session.close();
        let next = "name one with --ask PEER, or a network of the hub with --network NAME; `pilotage up` with --lan knows its neighbours";
        return Err(CliError::new(
            Exit::Unreachable,
            "find",
            "this node knows nobody whom it could ask",
            next,
        ));
    }
    Ok((session, Whom { index, peers }))
}

/// Whom the node knows. One that was just started needs a moment to hear its neighbours.
fn known(context: &Context, node: &NodeArgs, session: &Session, alone: bool) -> Result<Vec<Peer>, CliError> {
    let until = Instant::now() + NEIGHBOURS;
    loop {
        let peers = session.known_peers()?;
        let listening = alone && context.settings.lan(node) && !context.stop.requested();
        if !peers.is_empty() || !listening || Instant::now() >= until {
            return Ok(peers);
        }
        thread::sleep(Duration::from_millis(50));
    }
}

fn body(args: &CallArgs) -> Result<Vec<u8>, CliError> {
    match (&args.data, &args.data_file) {
        (_, Some(path)) => read_whole(path, MAX_BODY as u64),
        (Some(dash), None) if dash == "-" => read_whole(Path::new("-"), MAX_BODY as u64),
        (Some(text), None) => Ok(text.clone().into_bytes()),
        (None, None) => Ok(Vec::new()),
    }
}

fn serve(
    context: &Context,
    args: &CallArgs,
    reach: &Arc<dyn Reach>,
    findings: &Findings,
    tag: &Tag,
    body: &[u8],
    book: &mut Book,
) -> Result<(), CliError> {
    let options =
        CallOptions { idempotent: args.idempotent, attempts: usize::from(args.attempts), time: args.time };
    if findings.providers.is_empty() {
        return Err(nobody(&args.wish, findings));
    }
    let providers = &findings.providers;
    let mut observer = |attempt: &Attempt| {
        let (text, mut value) = attempt_text(providers, attempt);
        value["event"] = "attempt_failed".into();
        context.output.note(text);
        context.output.event(&value);
    };
    let served =
        find::call(reach, providers, tag, body, &options, book, &mut observer).map_err(|failed| {
            let tried: Vec<String> = failed.attempts.iter().map(|a| attempt_text(providers, a).0).collect();
            let next = match failed.stop {
                pilotage_discover::plan::Stop::MayHaveBegun => {
                    "find out whether it was carried out; --idempotent says that twice does no harm"
                }
                _ => "try again later, ask more nodes with --ask PEER, or see `pilotage find --explain`",
            };
            CliError::new(Exit::Unreachable, "call", format!("{failed}; {}", tried.join("; ")), next)
        })?;
    let by = &providers[served.by];
    let value = json!({
        "event": "served",
        "by": hit_json(by),
        "took_us": super::ping::micros(served.took),
        "attempts": served.attempts.iter().map(|a| attempt_text(providers, a).1).collect::<Vec<_>>(),
        "text": std::str::from_utf8(&served.result).ok(),
        "bytes": served.result.len(),
        "hex": std::str::from_utf8(&served.result).is_err().then(|| hex::encode(&served.result)),
    });
    if context.output.is_json() {
        context.output.event(&value);
        return Ok(());
    }
    context.output.note(format!("served by {} in {}", by.peer, format_duration(served.took)));
    std::io::stdout()
        .write_all(&served.result)
        .and_then(|()| std::io::stdout().flush())
        .map_err(|error| CliError::failure("output", error, "check where standard output leads"))
}

fn attempt_text(providers: &[Provider], attempt: &Attempt) -> (String, Value) {
    let peer = providers[attempt.candidate].peer.to_string();
    let began = match attempt.began {
        Began::No => "not begun",
        Began::Perhaps => "perhaps begun",
        Began::Yes => "begun",
    };
    let reason = printable(&attempt.reason);
    let value = json!({ "peer": peer, "began": began, "reason": reason, "took_ms": attempt.took_ms });
    (format!("{peer}: {reason} ({began}, after {} ms)", attempt.took_ms), value)
}

fn show(context: &Context, args: &FindArgs, findings: &Findings) {
    let mut lines = Vec::new();
    for (place, provider) in findings.providers.iter().enumerate() {
        let (why, card) = (&provider.hit.why, provider.hit.card.card());
        lines.push(format!(
            "{:>2}  {}  {}\n      {:.3} = match {:.2} × liveness {:.2} × evidence {:.2}",
            place + 1,
            provider.peer,
            card.declaration.summary(),
            why.score(),
            why.matched,
            why.liveness.value(),
            why.evidence.value(),
        ));
        if args.explain {
            lines.extend(why.lines().iter().map(|line| format!("      {line}")));
            let skills: Vec<String> = card.declaration.skills().iter().map(|s| s.tag.to_string()).collect();
            lines.push(format!("      declares {}", skills.join(" ")));
        }
    }
    if args.explain {
        lines.extend(findings.groups.iter().cloned());
        lines.push(format!("asked {} node(s):", findings.asked.len()));
        lines.extend(findings.asked.iter().map(asked_text));
        if findings.dropped > 0 {
            lines.push(format!(
                "{} card(s) did not count: forged, over or of another's address",
                findings.dropped
            ));
        }
    }
    let value = json!({
        "event": "found",
        "found": findings.providers.iter().map(hit_json).collect::<Vec<_>>(),
        "asked": findings.asked.iter().map(|asked| json!({
            "peer": asked.peer.to_string(),
            "cards": asked.outcome.as_ref().ok(),
            "error": asked.outcome.as_ref().err().map(|error| printable(error)),
            "took_us": super::ping::micros(asked.took),
        })).collect::<Vec<_>>(),
        "groups": findings.groups,
        "dropped": findings.dropped,
    });
    if !lines.is_empty() || context.output.is_json() {
        context.output.result(lines.join("\n"), &value);
    }
}

fn asked_text(asked: &Asked) -> String {
    let took = format_duration(asked.took);
    match &asked.outcome {
        Ok(cards) => format!("  {}: {cards} card(s) in {took}", asked.peer),
        Err(error) => format!("  {}: {} ({took})", asked.peer, printable(error)),
    }
}

fn hit_json(provider: &Provider) -> Value {
    let Hit { card, why } = &provider.hit;
    let card = card.card();
    json!({
        "peer": provider.peer.to_string(),
        "address": card.address.to_string(),
        "fingerprint": fingerprint128(&card.key),
        "public_key": hex::encode(card.key),
        "summary": card.declaration.summary(),
        "skills": card.declaration.skills().iter()
            .map(|skill| json!({ "tag": skill.tag.as_str(), "idempotent": skill.idempotent })).collect::<Vec<_>>(),
        "descriptor": card.declaration.descriptor().map(hex::encode),
        "score": why.score(),
        "match": why.matched,
        "liveness": { "value": why.liveness.value(), "why": why.liveness.to_string() },
        "evidence": { "value": why.evidence.value(), "why": why.evidence.to_string() },
        "why": why.lines(),
    })
}

fn describe(context: &Context, args: &FindArgs, reach: &dyn Reach, best: &Provider) -> Result<(), CliError> {
    let Some(hash) = best.hit.card.card().declaration.descriptor() else {
        context.output.note(format!("{} has no descriptor", best.peer));
        return Ok(());
    };
    let descriptor = find::describe(reach, &best.peer, &hash, args.wish.wait)
        .map_err(|error| CliError::stream("descriptor", &error))?;
    // Written anew: what was fetched may hold what a terminal obeys.
    let parsed: Value = serde_json::from_slice(descriptor.bytes()).unwrap_or_default();
    let text = serde_json::to_string_pretty(&parsed).unwrap_or_default();
    let text: String = text.chars().filter(|c| *c == '\n' || !c.is_control()).collect();
    context
        .output
        .result(text, &json!({ "event": "descriptor", "peer": best.peer.to_string(), "card": parsed }));
    Ok(())
}

fn nobody(wish: &WishArgs, findings: &Findings) -> CliError {
    let failed: Vec<String> = findings.asked.iter().filter(|a| a.outcome.is_err()).map(asked_text).collect();
    let mut cause =
        format!("nobody offers {}; {} node(s) were asked", wish.what.join(" "), findings.asked.len());
    if !failed.is_empty() {
        cause.push_str(&format!(", of which {} gave no answer: {}", failed.len(), failed.join(";")));
    }
    let next = "ask other nodes with --ask PEER, wait longer with --wait, or use a more general tag";
    CliError::new(Exit::Unreachable, "find", cause, next)
}

/// The book of a state directory.
struct Evidence {
    path: Option<PathBuf>,
    book: Book,
}

impl Evidence {
    fn open(context: &Context, node: &NodeArgs) -> Self {
        let path = (!node.ephemeral).then(|| context.settings.state.join("evidence.json"));
        let read = |path: &PathBuf| read_whole(path, MAX_BOOK as u64).ok();
        let book =
            path.as_ref().filter(|path| path.exists()).and_then(read).and_then(|bytes| Book::read(&bytes));
        Self { path, book: book.unwrap_or_default() }
    }

    /// Evidence is a convenience: where it cannot be kept, the command has done its work all the same.
    fn close(&self, context: &Context) {
        let Some(path) = &self.path else { return };
        let written = path.with_extension(format!("json.{}", std::process::id()));
        let kept = super::create_private_dir(&context.settings.state)
            .and_then(|()| fs::write(&written, self.book.write()))
            .and_then(|()| fs::rename(&written, path));
        if let Err(error) = kept {
            let _ = fs::remove_file(&written);
            context.output.note(format!("note: {} cannot be written: {error}", path.display()));
        }
    }
}
