//! Groups: networks of agents with a common interest, found by signed summaries (spec/discovery.md §7).
//!
//! ```text
//!   0  4 "PGRS" | 4 1 version = 1 | 5 2 network | 7 32 key of the signer | 39 8 issued | 47 4 life
//!  51  4 members | 55 8 the newest card's time | 63 2,048 Bloom filter
//!   …  u8 count of common tags (at most 32), each: u8 length, text, u32 members that have it or a special case
//!   …  u8 count of common words (at most 32), each: u8 length, text, u32 members that have it
//!   …  u8 count of centroids (at most 8); if any: u8 length of the model's name, text; each 384 numbers of one byte
//! end 64 Ed25519 signature over "pilotage-group-v1\0" and all before
//! ```

use std::collections::{BTreeMap, BTreeSet};

use crate::bytes::{Reader, put_short};
use crate::card::{AgentKey, MAX_LIFE, signature_holds};
use crate::declare::Declaration;
use crate::embed::{DIMENSIONS, Embedding};
use crate::query::Query;
use crate::tag::Tag;
use crate::words;

/// Bytes of the Bloom filter.
pub const BLOOM: usize = 2_048;

/// Bits that one entry sets.
const HASHES: usize = 6;

/// Most bits that may be set: a filter that is fuller says yes to everything, and is refused.
pub const MAX_BITS: u32 = (BLOOM as u32 * 8) * 3 / 4;

/// Most centroids.
pub const MAX_CENTROIDS: usize = 8;

/// Most tags, and most words, whose members are counted.
pub const MAX_COMMON: usize = 32;

/// Longest summary, in bytes.
pub const MAX_GROUP: usize = 63
    + BLOOM
    + 1
    + MAX_COMMON * (1 + crate::tag::MAX_TAG + 4)
    + 1
    + MAX_COMMON * (1 + words::MAX_WORD + 4)
    + 1
    + 1
    + crate::embed::MAX_MODEL
    + MAX_CENTROIDS * DIMENSIONS
    + 64;

/// Index holders that a group has, if it has so many members. With eight, half of all agents dead leave four groups of a
/// thousand without any holder; with three it would be one in eight.
pub const HOLDERS: usize = 8;

/// Groups that a wish goes to at once.
pub const GROUPS: usize = 3;

/// Groups that a wish goes to at most, where the first ones have too few who live.
pub const MAX_GROUPS: usize = 12;

const MAGIC: [u8; 4] = *b"PGRS";
const DOMAIN: &[u8] = b"pilotage-group-v1\0";

/// The number of a group that has no network of its own: from the tag that its members have in common, with the highest bit
/// set. Two tags seldom have one number; their groups are then routed to together, and nothing else comes of it.
#[must_use]
pub fn number(interest: &Tag) -> u16 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"pilotage-group-name-v1\0").update(interest.as_str().as_bytes());
    let [high, low, ..] = *hasher.finalize().as_bytes();
    u16::from_be_bytes([high | 0x80, low])
}

/// Groups that an agent joins by itself at most.
pub const MAX_JOINED: usize = 4;

/// Which tags and words are in a group: never a wrong no, seldom a wrong yes.
#[derive(Clone, PartialEq, Eq)]
pub struct Bloom(Box<[u8; BLOOM]>);

impl Default for Bloom {
    fn default() -> Self {
        Self(Box::new([0; BLOOM]))
    }
}

impl std::fmt::Debug for Bloom {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bloom({} bits)", self.bits())
    }
}

impl Bloom {
    fn places(kind: u8, text: &str) -> [(usize, u8); HASHES] {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&[kind]).update(text.as_bytes());
        let hash = hasher.finalize();
        let bytes = hash.as_bytes();
        std::array::from_fn(|at| {
            let bit = usize::from(u16::from_le_bytes([bytes[2 * at], bytes[2 * at + 1]])) % (BLOOM * 8);
            (bit / 8, 1 << (bit % 8))
        })
    }

    fn insert(&mut self, kind: u8, text: &str) {
        for (byte, bit) in Self::places(kind, text) {
            self.0[byte] |= bit;
        }
    }

    fn contains(&self, kind: u8, text: &str) -> bool {
        Self::places(kind, text).iter().all(|(byte, bit)| self.0[*byte] & bit != 0)
    }

    /// Adds a tag and all that it is a special case of.
    pub fn insert_tag(&mut self, tag: &Tag) {
        tag.with_ancestors().for_each(|name| self.insert(b't', name));
    }

    /// Whether somebody may have the tag or a special case of it.
    #[must_use]
    pub fn may_have(&self, tag: &Tag) -> bool {
        self.contains(b't', tag.as_str())
    }

    /// Bits that are set.
    #[must_use]
    pub fn bits(&self) -> u32 {
        self.0.iter().map(|byte| byte.count_ones()).sum()
    }
}

/// What a group says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// The network's number.
    pub network: u16,
    /// Who signed: a member, or who owns the network.
    pub signer: AgentKey,
    /// Seconds since 1970.
    pub issued: u64,
    /// Seconds.
    pub life: u32,
    /// Agents.
    pub members: u32,
    /// When the newest of their cards was issued.
    pub newest: u64,
    /// Their tags, and the words of their summaries as far as there is room.
    pub bloom: Bloom,
    /// The most common tags (and what they are special cases of) with the number of members that have each.
    pub common: Vec<(Tag, u32)>,
    /// The most common words of their texts with the number of members that have each.
    pub words: Vec<(String, u32)>,
    /// Where their vectors are; all of one model.
    pub centroids: Vec<Embedding>,
}

/// A group that fits a query, and why.
#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    /// Place in the list that was given.
    pub group: usize,
    /// The rank is by this.
    pub score: f32,
    /// Words of the wish's tags that nobody there has.
    pub short: u32,
    /// For people.
    pub why: String,
}

/// Whether a wish goes to one more group after `asked` of them. `whole` of those found live and have all tags whole,
/// `living` live at all, `wanted` are wanted.
///
/// Where nobody who lives has the tags whole, the wish is widened, and then those that fit are in other groups than the ones
/// that the whole wish led to.
#[must_use]
pub fn goes_on(next: &Route, asked: usize, whole: usize, living: usize, wanted: usize) -> bool {
    if asked < GROUPS {
        return true;
    }
    let fits = next.short == 0 && whole < wanted || whole == 0 && living < wanted;
    fits && asked < MAX_GROUPS
}

/// What the summaries say about the groups that were not asked: how common a word is among all cannot be told from the
/// few groups to which a wish leads, because their words are what they were chosen for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Beyond {
    /// Members of the groups that were asked.
    pub asked: u64,
    /// Members of all other groups.
    pub texts: u64,
    /// For each word of the query: about how many members of those other groups have it.
    pub having: Vec<u64>,
}

impl Beyond {
    /// From the summaries that count at `now`; `asked` are places in the list.
    #[must_use]
    pub fn of(summaries: &[Summary], asked: &[usize], query: &Query, now: u64) -> Self {
        let terms = query.terms();
        let mut beyond = Self { having: vec![0; terms.len()], ..Self::default() };
        for (at, summary) in summaries.iter().enumerate().filter(|(_, summary)| summary.is_current(now)) {
            let members = u64::from(summary.members);
            if asked.contains(&at) {
                beyond.asked += members;
                continue;
            }
            beyond.texts += members;
            for (term, having) in terms.iter().zip(&mut beyond.having) {
                *having += summary.having_word(term);
            }
        }
        beyond
    }
}

impl Summary {
    /// The summary of members' declarations, each with the time of its card. Words go into the filter until a third of its
    /// bits is set; tags always do, as far as [`MAX_BITS`] allows.
    #[must_use]
    pub fn of<'a>(
        network: u16,
        signer: AgentKey,
        issued: u64,
        life: u32,
        members: impl IntoIterator<Item = (u64, &'a Declaration)> + Clone,
    ) -> Self {
        let mut summary = Self {
            network,
            signer,
            issued,
            life,
            members: 0,
            newest: 0,
            bloom: Bloom::default(),
            common: common(members.clone().into_iter().map(|(_, declaration)| declaration)),
            words: common_words(members.clone().into_iter().map(|(_, declaration)| declaration)),
            centroids: Vec::new(),
        };
        for (time, declaration) in members.clone() {
            summary.members = summary.members.saturating_add(1);
            summary.newest = summary.newest.max(time);
            for skill in declaration.skills() {
                if summary.bloom.bits() + (HASHES * crate::tag::MAX_DEPTH) as u32 <= MAX_BITS {
                    summary.bloom.insert_tag(&skill.tag);
                }
            }
        }
        for (_, declaration) in members.clone() {
            for word in words::terms(declaration.summary()) {
                if summary.bloom.bits() < BLOOM as u32 * 8 / 3 {
                    summary.bloom.insert(b'w', &word);
                }
            }
        }
        let vectors: Vec<&Embedding> = members.into_iter().filter_map(|(_, d)| d.vector()).collect();
        summary.centroids = centroids(&vectors);
        summary
    }

    /// With the tag that its members have in common: the first of the common tags, so that a group without members can be
    /// joined.
    #[must_use]
    pub fn with_interest(mut self, interest: &Tag) -> Self {
        let having = self.common.iter().find(|(tag, _)| tag == interest).map_or(0, |(_, members)| *members);
        self.common.retain(|(tag, _)| tag != interest);
        self.common.insert(0, (interest.clone(), having));
        self.common.truncate(MAX_COMMON);
        self.bloom.insert_tag(interest);
        self
    }

    /// The tag that its members have in common, if it is a group by interest ([`number`]).
    #[must_use]
    pub fn interest(&self) -> Option<&Tag> {
        self.common.first().map(|(tag, _)| tag).filter(|tag| number(tag) == self.network)
    }

    /// Whether an agent with this declaration joins by itself: one of its tags is the interest or a special case of it.
    #[must_use]
    pub fn suits(&self, declaration: &Declaration) -> bool {
        self.interest()
            .is_some_and(|interest| declaration.skills().iter().any(|skill| skill.tag.is_within(interest)))
    }

    /// The bytes with the signer's signature.
    pub fn sign(&self, sign: impl FnOnce(&[u8]) -> [u8; 64]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(MAX_GROUP);
        bytes.extend_from_slice(&MAGIC);
        bytes.push(1);
        bytes.extend_from_slice(&self.network.to_be_bytes());
        bytes.extend_from_slice(&self.signer);
        bytes.extend_from_slice(&self.issued.to_be_bytes());
        bytes.extend_from_slice(&self.life.to_be_bytes());
        bytes.extend_from_slice(&self.members.to_be_bytes());
        bytes.extend_from_slice(&self.newest.to_be_bytes());
        bytes.extend_from_slice(&self.bloom.0[..]);
        let common = &self.common[..self.common.len().min(MAX_COMMON)];
        bytes.push(common.len() as u8);
        for (tag, members) in common {
            put_short(&mut bytes, tag.as_str());
            bytes.extend_from_slice(&members.to_be_bytes());
        }
        let words = &self.words[..self.words.len().min(MAX_COMMON)];
        bytes.push(words.len() as u8);
        for (word, members) in words {
            put_short(&mut bytes, word);
            bytes.extend_from_slice(&members.to_be_bytes());
        }
        let centroids = &self.centroids[..self.centroids.len().min(MAX_CENTROIDS)];
        bytes.push(centroids.len() as u8);
        if let Some(first) = centroids.first() {
            put_short(&mut bytes, first.model());
        }
        for centroid in centroids {
            bytes.extend(centroid.to_bytes());
        }
        let signature = sign(&[DOMAIN, &bytes].concat());
        bytes.extend_from_slice(&signature);
        bytes
    }

    /// Reads and checks one; `None` for what is none, is out of bounds or has a wrong signature. Whether the signer may
    /// speak for the network is not known here.
    #[must_use]
    pub fn verify(bytes: &[u8]) -> Option<Self> {
        if bytes.len() > MAX_GROUP {
            return None;
        }
        let (signed, signature) = bytes.split_last_chunk::<64>()?;
        let mut reader = Reader::new(signed);
        if reader.array() != Some(MAGIC) || reader.u8() != Some(1) {
            return None;
        }
        let (network, signer, issued, life) = (reader.u16()?, reader.array()?, reader.u64()?, reader.u32()?);
        let (members, newest) = (reader.u32()?, reader.u64()?);
        let bloom = Bloom(Box::new(reader.array()?));
        let count = usize::from(reader.u8()?);
        if count > MAX_COMMON {
            return None;
        }
        let mut common = Vec::with_capacity(count);
        for _ in 0..count {
            common.push((reader.short_text()?.parse().ok()?, reader.u32()?.min(members)));
        }
        let words = read_words(&mut reader, members)?;
        let count = usize::from(reader.u8()?);
        if count > MAX_CENTROIDS || life == 0 || life > MAX_LIFE || bloom.bits() > MAX_BITS {
            return None;
        }
        let model = if count > 0 { reader.short_text()? } else { "" };
        let mut centroids = Vec::with_capacity(count);
        for _ in 0..count {
            centroids.push(Embedding::from_bytes(model, reader.take(DIMENSIONS)?).ok()?);
        }
        let good = reader.left() == 0 && signature_holds(&signer, &[DOMAIN, signed].concat(), signature);
        good.then_some(Self {
            network,
            signer,
            issued,
            life,
            members,
            newest,
            bloom,
            common,
            words,
            centroids,
        })
    }

    /// Whether it counts at `now`, in seconds since 1970.
    #[must_use]
    pub fn is_current(&self, now: u64) -> bool {
        self.issued <= now.saturating_add(crate::card::MAX_SKEW)
            && now < self.issued.saturating_add(u64::from(self.life))
    }

    /// How well the group fits; `None` if one of the tags is not there even when all but its first word is left out.
    fn score(&self, query: &Query, terms: &[String], now: u64) -> Option<(f32, u32, String)> {
        let mut factor = 1.0_f32;
        let mut missing = 0;
        let mut fitting = self.members;
        let mut why = Vec::new();
        for tag in query.tags() {
            let whole = tag.words().count();
            let known = tag.with_ancestors().find(|name| self.bloom.contains(b't', name))?;
            let short = whole - known.split('.').count();
            factor *= 0.25_f32.powi(short as i32);
            missing += short as u32;
            let having = self.having(known);
            fitting = fitting.min(having);
            why.push(match short {
                0 => format!("has {tag} (about {having} members)"),
                _ => format!("has only {known} of {tag} (about {having} members)"),
            });
        }
        let words = terms.iter().filter(|term| self.bloom.contains(b'w', term)).count();
        let mut quality = 0.0_f32;
        if !terms.is_empty() {
            quality = words as f32 / terms.len() as f32;
            why.push(format!("{words} of {} words", terms.len()));
        }
        let nearest = query.vector().and_then(|vector| {
            let cosines = self.centroids.iter().filter_map(|centroid| centroid.cosine(vector));
            cosines.max_by(f32::total_cmp)
        });
        if let Some(nearest) = nearest {
            quality = quality.max(nearest);
            why.push(format!("nearest centroid {nearest:.2}"));
        }
        if query.tags().is_empty() && quality <= 0.0 {
            return None;
        }
        // Many members that may fit help; a group that has gone quiet is worth less.
        let size = 0.3 + (1.0 + fitting as f32).ln() / 5.0;
        let fresh = 0.5 + 0.5 * 0.5_f32.powf(now.saturating_sub(self.newest) as f32 / 86_400.0);
        why.push(format!(
            "{} members, the newest card {} s old",
            self.members,
            now.saturating_sub(self.newest)
        ));
        Some((factor * (0.2 + 0.8 * quality) * size * fresh, missing, why.join("; ")))
    }
}

impl Summary {
    /// How many members have a tag, as far as it is said: fewer than the least common one that is counted.
    fn having(&self, tag: &str) -> u32 {
        let said = self.common.iter().find(|(common, _)| common.as_str() == tag).map(|(_, members)| *members);
        let least = || match self.common.len() {
            MAX_COMMON => self.common.iter().map(|(_, members)| *members).min().unwrap_or(1),
            _ => 1,
        };
        said.unwrap_or_else(least)
    }
}

impl Summary {
    /// About how many members have a word: as counted; if it is not among the most common ones and may be there, between one
    /// and the least of those, in the middle of the orders of magnitude.
    fn having_word(&self, term: &str) -> u64 {
        if let Some((_, members)) = self.words.iter().find(|(word, _)| word == term) {
            return u64::from(*members);
        }
        let least = match self.words.len() {
            MAX_COMMON => self.words.iter().map(|(_, members)| *members).min().unwrap_or(1),
            _ => return 0,
        };
        if self.bloom.contains(b'w', term) { u64::from(least).isqrt() } else { 0 }
    }
}

/// Words as they stand in a summary: letters and digits.
fn read_words(reader: &mut Reader<'_>, members: u32) -> Option<Vec<(String, u32)>> {
    let count = usize::from(reader.u8()?);
    if count > MAX_COMMON {
        return None;
    }
    let mut words = Vec::with_capacity(count);
    for _ in 0..count {
        let word = reader.short_text()?;
        if word.is_empty() || word.len() > words::MAX_WORD || !word.chars().all(char::is_alphanumeric) {
            return None;
        }
        words.push((word.to_owned(), reader.u32()?.min(members)));
    }
    Some(words)
}

/// The words that most have in their texts.
fn common_words<'a>(members: impl Iterator<Item = &'a Declaration>) -> Vec<(String, u32)> {
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    for declaration in members {
        let distinct: BTreeSet<String> = words::terms(&declaration.text()).into_iter().collect();
        for word in distinct {
            *counts.entry(word).or_default() += 1;
        }
    }
    let mut counts: Vec<(String, u32)> = counts.into_iter().collect();
    counts.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    counts.truncate(MAX_COMMON);
    counts
}

/// The tags that most have, with all that they are special cases of.
fn common<'a>(members: impl Iterator<Item = &'a Declaration>) -> Vec<(Tag, u32)> {
    let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
    for declaration in members {
        let skills = declaration.skills().iter();
        let names: BTreeSet<&str> = skills.flat_map(|skill| skill.tag.with_ancestors()).collect();
        for name in names {
            *counts.entry(name).or_default() += 1;
        }
    }
    let mut counts: Vec<(&str, u32)> = counts.into_iter().collect();
    counts.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
    counts.truncate(MAX_COMMON);
    counts.into_iter().filter_map(|(name, count)| Some((name.parse().ok()?, count))).collect()
}

/// The best groups for a query, the best first; ties go to the lower place in the list (`Route::group`). Summaries that do not count at
/// `now` are passed over.
#[must_use]
pub fn route<'a>(
    summaries: impl IntoIterator<Item = &'a Summary>,
    query: &Query,
    now: u64,
    most: usize,
) -> Vec<Route> {
    let terms = query.terms();
    let current = summaries.into_iter().enumerate().filter(|(_, summary)| summary.is_current(now));
    let mut routes: Vec<Route> = current
        .filter_map(|(group, summary)| {
            let (score, short, why) = summary.score(query, &terms, now)?;
            Some(Route { group, score, short, why })
        })
        .collect();
    routes.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.group.cmp(&b.group)));
    routes.truncate(most);
    routes
}

/// The members of a group in the order in which they hold its index: the first [`HOLDERS`] do, and when one is gone the
/// next one takes over. Everybody who knows the members comes to the same order (rendezvous hashing).
#[must_use]
pub fn holders(network: u16, members: &[AgentKey]) -> Vec<AgentKey> {
    let mut ranked: Vec<([u8; 32], AgentKey)> = members
        .iter()
        .map(|key| {
            let mut hasher = blake3::Hasher::new();
            hasher.update(b"pilotage-holder-v1\0").update(&network.to_be_bytes()).update(key);
            (*hasher.finalize().as_bytes(), *key)
        })
        .collect();
    ranked.sort_unstable_by(|a, b| b.cmp(a));
    ranked.dedup();
    ranked.into_iter().map(|(_, key)| key).collect()
}

/// Answers of holders that one wish wants from a group: two, so that one liar does not decide alone.
pub const WANTED: usize = 2;

/// Members that are asked for themselves where no holder answers.
pub const MAX_FLOOD: usize = 256;

/// Whom of a group to ask next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// Who holds the group's index.
    Holder(AgentKey),
    /// A member, for itself: no holder answered.
    Member(AgentKey),
}

/// The way of one wish through a group: holders in their order until [`WANTED`] have answered; if none of them did, the
/// members, each for itself.
#[derive(Debug, Clone)]
pub struct Walk {
    order: Vec<AgentKey>,
    at: usize,
    holders_answered: usize,
}

impl Walk {
    /// Through a group with these members.
    #[must_use]
    pub fn new(network: u16, members: &[AgentKey]) -> Self {
        Self { order: holders(network, members), at: 0, holders_answered: 0 }
    }

    /// Whom to ask now; [`Walk::answered`] or [`Walk::failed`] says what came of it. `None` at the end.
    #[must_use]
    pub fn next(&self) -> Option<Ask> {
        let key = *self.order.get(self.at)?;
        if self.at < HOLDERS {
            return (self.holders_answered < WANTED).then_some(Ask::Holder(key));
        }
        let flood = self.holders_answered == 0 && self.at < HOLDERS + MAX_FLOOD;
        flood.then_some(Ask::Member(key))
    }

    /// The one of [`Walk::next`] answered.
    pub fn answered(&mut self) {
        self.holders_answered += usize::from(self.at < HOLDERS);
        self.at += 1;
    }

    /// It did not.
    pub fn failed(&mut self) {
        self.at += 1;
    }
}

/// At most [`MAX_CENTROIDS`] centres by four rounds of k-means over the vectors of the most common model; the first
/// centres are spread evenly over the list.
fn centroids(vectors: &[&Embedding]) -> Vec<Embedding> {
    let Some(first) = vectors.first() else { return Vec::new() };
    let mut models: Vec<&str> = vectors.iter().map(|vector| vector.model()).collect();
    models.sort_unstable();
    let count = |model: &str| models.iter().filter(|other| **other == model).count();
    let mut distinct = models.clone();
    distinct.dedup();
    distinct.truncate(crate::index::MAX_MODELS);
    let model = distinct.into_iter().max_by_key(|model| count(model)).unwrap_or(first.model());
    let those: Vec<&Embedding> = vectors.iter().copied().filter(|vector| vector.model() == model).collect();
    let wanted = MAX_CENTROIDS.min(those.len());
    let mut centres: Vec<Embedding> =
        (0..wanted).map(|at| those[at * those.len() / wanted].clone()).collect();
    for _ in 0..4 {
        let mut sums = vec![[0_f32; DIMENSIONS]; centres.len()];
        for vector in &those {
            let near = |centre: &Embedding| centre.cosine(vector).unwrap_or(-1.0);
            let best = (0..centres.len()).max_by(|a, b| near(&centres[*a]).total_cmp(&near(&centres[*b])));
            let Some(best) = best else { continue };
            for (sum, value) in sums[best].iter_mut().zip(vector.values()) {
                *sum += f32::from(*value);
            }
        }
        for (centre, sum) in centres.iter_mut().zip(&sums) {
            if let Ok(moved) = Embedding::from_floats(model, sum) {
                *centre = moved;
            }
        }
    }
    centres
}

#[cfg(test)]
mod tests;
