//! What `pilotage up` declares: the file of `--skills`, or `--skill` on the command line.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use pilotage::{Node, Peer};
use pilotage_discover::descriptor::{Descriptor, MAX_DESCRIPTOR};
use pilotage_discover::embed::Embedding;
use pilotage_discover::{Declaration, Skill, Tag};
use pilotage_services::find::{self, Handler, Host, Offer, Program, Tcp};
use serde::Deserialize;
use serde_json::json;

use super::Context;
use super::message::read_whole;
use crate::args::UpArgs;
use crate::error::CliError;
use crate::units::parse_duration;

/// Largest file of skills, in bytes.
const MAX_FILE: u64 = 64 * 1024;

/// How long a call may take where the file says nothing.
const TIME: Duration = Duration::from_secs(60);

/// How long a card counts where the file says nothing, in seconds.
const LIFE: u64 = 3_600;

/// How often a declaration is put into indexes again.
const REPEAT: Duration = Duration::from_secs(25);

/// How long one index may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// The file of `--skills`. Unknown keys are errors.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct SkillsFile {
    /// What people and searches read.
    summary: Option<String>,
    /// An A2A agent card (JSON): its skills are declared, and others can fetch it.
    agent_card: Option<PathBuf>,
    /// A vector, as `find --vector` reads it.
    vector: Option<PathBuf>,
    /// How long the declaration counts.
    life: Option<String>,
    /// Tell our UDP endpoint to those who find us.
    endpoints: Option<bool>,
    #[serde(default)]
    skill: Vec<SkillEntry>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SkillEntry {
    tag: String,
    #[serde(default)]
    idempotent: bool,
    /// A program and its arguments.
    run: Option<Vec<String>>,
    /// `HOST:PORT`.
    tcp: Option<String>,
    /// How long a call may take.
    time: Option<String>,
}

#[derive(Deserialize)]
struct VectorFile {
    model: String,
    values: Vec<f32>,
}

/// What the node answers on ports 1013 and 1014; `None` if nothing was asked for.
pub(crate) fn host(context: &Context, args: &UpArgs) -> Result<Option<Host>, CliError> {
    let offer = match &args.skills.skills {
        Some(path) => Some(from_file(context, path)?),
        None if args.skills.skill.is_empty() => None,
        None => Some(from_flags(context, args)?),
    };
    if offer.is_none() && !args.skills.announce.is_empty() {
        let next = "declare something with --skills FILE or --skill TAG";
        return Err(CliError::usage("skills", "there is nothing to announce", next));
    }
    if offer.is_none() && args.skills.index.is_none() {
        return Ok(None);
    }
    let host = Host::new(offer, args.skills.index)
        .map_err(|error| CliError::usage("skills", error, "correct the file of --skills"))?;
    match &args.skills.group {
        Some(text) => {
            let interest = Tag::from_user(text).map_err(|error| {
                CliError::usage("group", format!("{text:?}: {error}"), "name an interest such as finance.fx")
            })?;
            Ok(Some(host.of_group(interest)))
        }
        None => Ok(Some(host)),
    }
}

/// Puts our declaration into the indexes of `--announce` again and again, until the node ends: and where none is named, into
/// the hub's, and into those of the groups that it suits.
pub(crate) fn announce(context: &Context, args: &UpArgs, node: &Node, host: &Host) {
    let hub = context.settings.has_hub() && node.hub_status().is_some_and(|hub| hub.public);
    let by_itself = hub && !args.skills.no_announce && args.skills.announce.is_empty();
    let group = hub && args.skills.group.is_some();
    if args.skills.announce.is_empty() && !by_itself && !group {
        return;
    }
    let mut announcer = Announcer {
        context: context.clone(),
        node: node.clone(),
        host: host.clone(),
        said: BTreeMap::new(),
        groups: Vec::new(),
    };
    let named = args.skills.announce.clone();
    let run = move || {
        for round in 0_u32.. {
            for holder in &named {
                announcer.put(holder, false);
            }
            if by_itself {
                announcer.by_itself(round);
            }
            if group {
                announcer.group();
            }
            let begun = Instant::now();
            while begun.elapsed() < REPEAT {
                if announcer.context.stop.requested() {
                    return;
                }
                thread::sleep(Duration::from_millis(100));
            }
        }
    };
    if let Err(error) = thread::Builder::new().name("announce".into()).spawn(run) {
        tracing::warn!(%error, "skills are not announced: no thread");
    }
}

/// How many repetitions pass until groups are looked for again.
const GROUPS_EVERY: u32 = 8;

struct Announcer {
    context: Context,
    node: Node,
    host: Host,
    /// What was said of each holder: only what changes is said.
    said: BTreeMap<String, Result<(), String>>,
    groups: Vec<Peer>,
}

impl Announcer {
    /// `quietly`: a hub without an index is no fault.
    fn put(&mut self, holder: &Peer, quietly: bool) -> bool {
        let Some(card) = self.host.card(&self.node) else { return false };
        let done = find::announce(&self.node, holder, card, PATIENCE).map(drop);
        self.say(holder, done.map_err(|error| error.to_string()), quietly)
    }

    fn say(&mut self, holder: &Peer, done: Result<(), String>, quietly: bool) -> bool {
        let (name, good) = (holder.to_string(), done.is_ok());
        let news = self.said.get(&name) != Some(&done);
        if quietly && !good && !self.said.contains_key(&name) {
            tracing::debug!(holder = name, cause = ?done, "skills are not announced");
        } else if news && !self.context.stop.requested() {
            told(&self.context, &name, Some(&done));
            self.said.insert(name, done);
        }
        good
    }

    /// The hub's index, and the groups that it knows and that suit us.
    fn by_itself(&mut self, round: u32) {
        let index = Peer::Name(find::HUB_INDEX.to_owned());
        if !self.put(&index, true) {
            return;
        }
        if round.is_multiple_of(GROUPS_EVERY) || self.groups.is_empty() {
            let card = self.host.card(&self.node);
            let found =
                card.map(|card| find::groups_for(&self.node, &index, &card.card().declaration, PATIENCE));
            if let Some(Ok(groups)) = found {
                self.groups = groups;
            }
        }
        let own = self.node.address();
        for holder in self.groups.clone() {
            if !matches!(holder, Peer::Address(at) if at.node == own.node) {
                self.put(&holder, true);
            }
        }
    }

    /// The summary of the group whose index we keep.
    fn group(&mut self) {
        let index = Peer::Name(find::HUB_INDEX.to_owned());
        let summary = self.host.summary(&self.node);
        let done = find::announce_group(&self.node, &index, summary, PATIENCE).map(drop);
        let name = format!("{index} (group)");
        let done = done.map_err(|error| error.to_string());
        if self.said.get(&name) != Some(&done) && !self.context.stop.requested() {
            told(&self.context, &name, Some(&done));
            self.said.insert(name, done);
        }
    }
}

fn told(context: &Context, holder: &str, done: Option<&Result<(), String>>) {
    match done {
        Some(Err(error)) => {
            context.output.note(format!("skills: not announced at {holder}: {error}"));
            context.output.event(&json!({ "event": "not_announced", "at": holder, "cause": error }));
        }
        _ => {
            context.output.note(format!("skills: announced at {holder}"));
            context.output.event(&json!({ "event": "announced", "at": holder }));
        }
    }
}

/// Reads a vector.
pub(crate) fn vector(path: &Path) -> Result<Embedding, CliError> {
    let bytes = read_whole(path, MAX_FILE)?;
    let wrong = |cause: String| {
        let next = r#"give {"model": NAME, "values": [384 numbers]}"#;
        CliError::usage("vector", format!("{}: {cause}", path.display()), next)
    };
    let file: VectorFile = serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
    Embedding::from_floats(&file.model, &file.values).map_err(|error| wrong(error.to_string()))
}

fn from_flags(context: &Context, args: &UpArgs) -> Result<Offer, CliError> {
    let entries = args.skills.skill.iter().map(|text| {
        let (tag, tcp) = match text.split_once('=') {
            Some((tag, target)) => (tag, Some(target.to_owned())),
            None => (text.as_str(), None),
        };
        SkillEntry { tag: tag.to_owned(), idempotent: false, run: None, tcp, time: None }
    });
    let file = SkillsFile {
        summary: args.skills.summary.clone(),
        skill: entries.collect(),
        ..SkillsFile::default()
    };
    offer(context, file, Path::new("."))
}

fn from_file(context: &Context, path: &Path) -> Result<Offer, CliError> {
    let bytes = read_whole(path, MAX_FILE)?;
    let wrong = |cause: String| {
        let next = "see `pilotage help up` and spec/discovery.md §10 for the form of the file";
        CliError::usage("skills", format!("{}: {cause}", path.display()), next)
    };
    let text = String::from_utf8(bytes).map_err(|error| wrong(error.to_string()))?;
    let file: SkillsFile = toml::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    // Other files are named from where this one is.
    offer(context, file, path.parent().unwrap_or(Path::new(".")))
}

fn offer(context: &Context, file: SkillsFile, base: &Path) -> Result<Offer, CliError> {
    let wrong =
        |cause: String| CliError::usage("skills", cause, "see spec/discovery.md §10 for the form of skills");
    let (mut skills, mut handlers) = (Vec::new(), Vec::new());
    for entry in &file.skill {
        let tag = Tag::from_user(&entry.tag).map_err(|error| wrong(format!("{:?}: {error}", entry.tag)))?;
        if let Some(handler) = handler(entry, base).map_err(|cause| wrong(format!("{tag}: {cause}")))? {
            handlers.push((tag.clone(), handler));
        }
        skills.push(Skill { tag, idempotent: entry.idempotent });
    }
    let descriptor = file.agent_card.as_ref().map(|card| {
        let bytes = read_whole(&base.join(card), MAX_DESCRIPTOR as u64)?;
        Descriptor::parse(&bytes).map_err(|error| wrong(format!("{}: {error}", card.display())))
    });
    let descriptor = descriptor.transpose()?;
    let mut declaration = match &descriptor {
        None => Declaration::new(skills, file.summary.unwrap_or_default()),
        Some(descriptor) => {
            let described = descriptor.declare().map_err(|error| wrong(error.to_string()))?;
            // What the file itself says about a capability counts.
            let more = described.skills().iter().filter(|skill| !skills.iter().any(|s| s.tag == skill.tag));
            let all: Vec<Skill> = skills.iter().chain(more).cloned().collect();
            let summary = file.summary.unwrap_or_else(|| described.summary().to_owned());
            Declaration::new(all, summary).map(|all| all.with_descriptor(descriptor.hash()))
        }
    }
    .map_err(|error| wrong(error.to_string()))?;
    if let Some(path) = &file.vector {
        declaration = declaration.with_vector(vector(&base.join(path))?);
    }
    let life = match &file.life {
        Some(text) => parse_duration(text).map_err(|error| wrong(format!("life: {error}")))?.as_secs(),
        None => LIFE,
    };
    let life = u32::try_from(life).unwrap_or(u32::MAX);
    // Without a hub nobody could look the endpoint up.
    let endpoints = file.endpoints.unwrap_or(!context.settings.has_hub());
    Ok(Offer { declaration, descriptor, life, endpoints, handlers })
}

fn handler(entry: &SkillEntry, base: &Path) -> Result<Option<Arc<dyn Handler>>, String> {
    let time = match &entry.time {
        Some(text) => parse_duration(text).map_err(|error| format!("time: {error}"))?,
        None => TIME,
    };
    Ok(match (&entry.run, &entry.tcp) {
        (Some(_), Some(_)) => return Err("give run or tcp, not both".into()),
        (Some(command), None) => {
            let mut command = command.clone();
            let program = command.first_mut().ok_or("run is empty")?;
            // ./program is beside the file.
            if program.starts_with("./") {
                *program = base.join(&*program).display().to_string();
            }
            Some(Arc::new(Program { command, time }))
        }
        (None, Some(target)) => Some(Arc::new(Tcp { target: target.clone(), time })),
        (None, None) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context() -> Context {
        let global = crate::args::Global { config: None, ..Default::default() };
        let settings = crate::config::Settings::load(&global).unwrap();
        Context { settings, output: Default::default(), stop: Default::default() }
    }

    fn read(text: &str, files: &[(&str, &str)]) -> Result<Offer, CliError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("skills.toml");
        std::fs::write(&path, text).unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        from_file(&context(), &path)
    }

    #[test]
    fn a_file_becomes_an_offer() {
        let card = r#"{"name":"n","description":"from the card","skills":[{"id":"a.b"},{"id":"c.d"}]}"#;
        let text = "agent_card = 'card.json'\nlife = '2h'\n[[skill]]\ntag = 'a.b'\nidempotent = true\nrun = ['cat']\n";
        let offer = read(text, &[("card.json", card)]).unwrap();
        let skills = offer.declaration.skills().iter().map(|s| (s.tag.to_string(), s.idempotent));
        assert_eq!(skills.collect::<Vec<_>>(), [("a.b".to_owned(), true), ("c.d".to_owned(), false)]);
        assert_eq!(
            (offer.declaration.summary(), offer.life, offer.handlers.len()),
            ("from the card", 7_200, 1)
        );
        assert!(Host::new(Some(offer), None).is_ok());
    }

    #[test]
    fn mistakes_are_named() {
        for (text, word) in [
            ("sumary = 'x'", "sumary"),
            ("[[skill]]\ntag = 'A b'", "A b"),
            ("[[skill]]\ntag = 'a'\nrun = []", "run is empty"),
            ("[[skill]]\ntag = 'a'\nrun = ['x']\ntcp = 'y:1'", "not both"),
            ("summary = 'nothing else'", "1 to 32 tags"),
            ("agent_card = 'card.json'", "no skill"),
            ("[[skill]]\ntag = 'a'\n[[skill]]\ntag = 'a'", "twice"),
        ] {
            let error = read(text, &[("card.json", r#"{"name":"n"}"#)]).unwrap_err();
            assert!(error.cause.contains(word), "{text}: {error}");
        }
    }
}
