//! `pilotage record heads`: holds the logs that hubs show, and have shown to others, against each other.

use std::fs;
use std::path::Path;

use pilotage_registry::book::client::BookError;
use pilotage_registry::book::compare::{Prover, Verdict, compare, signed_both};
use pilotage_registry::claims::{PARTITIONS, SignedHead};
use serde_json::{Value, json};

use super::Context;
use super::network::registry_of;
use super::record::{Session, encode_heads, explain, read_heads, unix_time};
use super::replica;
use crate::args::RecordHeadsArgs;
use crate::error::{CliError, Exit};

/// What was found in one partition.
struct Part {
    partition: u8,
    /// The longest head.
    head: SignedHead,
    verdict: Verdict,
}

pub(crate) fn run(context: &Context, args: &RecordHeadsArgs) -> Result<(), CliError> {
    let mut sessions = sessions(context, args)?;
    let saved = args.file.iter().map(|file| saved(file)).collect::<Result<Vec<_>, _>>()?;
    let keys = common_keys(args, &sessions, &saved)?;
    let mut heads: Vec<SignedHead> = saved.into_iter().flat_map(|(_, heads)| heads).collect();
    let now = collect(&mut sessions, &mut heads)?;
    let mut parts = Vec::new();
    for partition in 0..PARTITIONS as u8 {
        let of_it: Vec<SignedHead> =
            heads.iter().chain(&now).filter(|head| head.head.partition == partition).cloned().collect();
        let Some(longest) = of_it.iter().max_by_key(|head| head.head.size).cloned() else { continue };
        let mut provers: Vec<&mut dyn Prover> =
            sessions.iter_mut().map(|session| &mut session.client as &mut dyn Prover).collect();
        let verdict = compare(&of_it, &keys, &mut provers).map_err(|error| explain(&error))?;
        parts.push(Part { partition, head: longest, verdict });
    }
    report(context, args, &mut sessions, &keys, &parts)
}

/// The hubs that are asked: those that are named, or the configured one unless there are files enough.
fn sessions(context: &Context, args: &RecordHeadsArgs) -> Result<Vec<Session>, CliError> {
    let mut hubs: Vec<String> = args.hub.iter().map(|hub| registry_of(hub)).collect();
    if hubs.is_empty() {
        let settings = &context.settings;
        hubs.extend(settings.registry.clone().or_else(|| settings.hub.as_deref().map(registry_of)));
    }
    if hubs.is_empty() && args.file.len() < 2 {
        return Err(CliError::usage(
            "record",
            "there is nothing to compare",
            "name hubs, or two files with --file, which other people have saved",
        ));
    }
    hubs.into_iter().map(|hub| Session::at(context, hub, &args.keys)).collect()
}

type Saved = (Vec<[u8; 32]>, Vec<SignedHead>);

fn saved(file: &Path) -> Result<Saved, CliError> {
    if !file.exists() {
        let next = "name a file that `pilotage record heads --save FILE` wrote";
        return Err(CliError::usage("record", format!("there is no {}", file.display()), next));
    }
    read_heads(file)
}

/// Whose signatures count: all have to be of one registry.
fn common_keys(
    args: &RecordHeadsArgs,
    sessions: &[Session],
    saved: &[Saved],
) -> Result<Vec<[u8; 32]>, CliError> {
    let sorted = |keys: &[[u8; 32]]| {
        let mut keys = keys.to_vec();
        keys.sort_unstable();
        keys.dedup();
        keys
    };
    if !args.keys.registry_key.is_empty() {
        return Ok(sorted(&args.keys.registry_key));
    }
    let shown = sessions.iter().map(|session| session.client.nodes());
    let mut all = shown.chain(saved.iter().map(|(keys, _)| keys.as_slice())).map(sorted);
    let first = all.next().unwrap_or_default();
    if all.any(|keys| keys != first) {
        return Err(CliError::failure(
            "record",
            "these are logs of different registries: other keys sign them",
            "compare hubs of one cluster, or one hub with what it has shown to others; --registry-key says whose signatures count",
        ));
    }
    Ok(first)
}

/// What the hubs show now; what is remembered of them is added to `heads`.
fn collect(sessions: &mut [Session], heads: &mut Vec<SignedHead>) -> Result<Vec<SignedHead>, CliError> {
    let mut now = Vec::new();
    for session in sessions {
        heads.extend(session.client.heads().cloned());
        for partition in 0..PARTITIONS as u8 {
            now.push(session.client.head(partition, 0).map_err(|error| explain(&error))?.0);
        }
    }
    Ok(now)
}

fn report(
    context: &Context,
    args: &RecordHeadsArgs,
    sessions: &mut [Session],
    keys: &[[u8; 32]],
    parts: &[Part],
) -> Result<(), CliError> {
    let bad = parts.iter().find(|part| matches!(part.verdict, Verdict::Fork(_) | Verdict::Rewritten(_)));
    let behind = parts.iter().filter(|part| part.verdict == Verdict::Behind).count();
    let word = bad.map_or(if behind > 0 { "behind" } else { "consistent" }, |part| name(&part.verdict));
    let mut value = json!({
        "event": "heads",
        "verdict": word,
        "hubs": sessions.iter().map(|session| session.registry.as_str()).collect::<Vec<_>>(),
        "keys": keys.iter().map(hex::encode).collect::<Vec<_>>(),
        "partitions": parts.iter().map(|part| shown(part, keys)).collect::<Vec<_>>(),
    });
    let claims: u64 = parts.iter().map(|part| part.head.head.size).sum();
    let mut text = format!("logs         {} partitions, {claims} claims\nverdict      {word}", parts.len());
    if let Some(part) = bad {
        let pair = pair(&part.verdict);
        let liars = pair.map(|pair| signed_both(pair, keys)).unwrap_or_default();
        if let (Some(pair), Some(liar)) = (pair, liars.first()) {
            let file = replica::two_heads(&context.settings.state, *liar, pair, unix_time().as_secs());
            text.push_str(&format!("\nevidence     {}", file.display()));
            value["evidence"] = file.display().to_string().into();
        }
        value["signed_both"] = liars.iter().map(|key| Value::from(hex::encode(key))).collect();
        context.output.result(text, &value);
        let what = match part.verdict {
            Verdict::Fork(_) => "two logs of the same size are signed",
            _ => "a log that was shown and signed is not the start of the one that is shown now",
        };
        return Err(CliError::new(
            Exit::Verification,
            "record",
            format!("{what} (partition {})", part.partition),
            "the registry lies to somebody, or its operator has restored an old backup: ask the operator, and keep the evidence",
        ));
    }
    if behind > 0 {
        context.output.result(text, &value);
        return Err(explain(&BookError::Behind));
    }
    let longest = || parts.iter().map(|part| part.head.clone());
    if let Some(file) = &args.save {
        let failed =
            |error| CliError::failure("record", format!("{}: {error}", file.display()), "name another file");
        fs::write(file, encode_heads(keys, longest())).map_err(failed)?;
        text.push_str(&format!("\nsaved        {}: give it to others who use this registry", file.display()));
        value["saved"] = file.display().to_string().into();
    }
    for session in sessions {
        session.client.remember(longest());
        session.remember();
    }
    context.output.result(text, &value);
    Ok(())
}

fn name(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Consistent => "consistent",
        Verdict::Fork(_) => "fork",
        Verdict::Rewritten(_) => "rewritten",
        Verdict::Behind => "behind",
    }
}

fn pair(verdict: &Verdict) -> Option<&(SignedHead, SignedHead)> {
    match verdict {
        Verdict::Fork(pair) | Verdict::Rewritten(pair) => Some(pair),
        Verdict::Consistent | Verdict::Behind => None,
    }
}

fn shown(part: &Part, keys: &[[u8; 32]]) -> Value {
    json!({
        "partition": part.partition,
        "verdict": name(&part.verdict),
        "size": part.head.head.size,
        "root": hex::encode(part.head.head.root),
        "time": part.head.head.time,
        "signed_by": part.head.signed_by(keys),
        // Signed heads, as they travel: spec/registry2.md §5.
        "heads": pair(&part.verdict).map(|pair| [hex::encode(pair.0.encode()), hex::encode(pair.1.encode())]),
    })
}
