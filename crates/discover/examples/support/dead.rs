//! Groups of agents of which half die at once, and what is still found.
//!
//! Agents join the groups of their fields. Each group's index is held by its first holders; all holders have all members'
//! cards. Half of all agents die, and nobody has noticed: every index still calls them alive. A wish is led to the best
//! groups by their summaries, then by [`Walk`] to holders, or where all of them are dead to members themselves. Whoever is
//! found is tried; who does not answer falls behind, and where too few live, more groups are asked. What comes out is compared with an index of the living alone.

use std::collections::{BTreeMap, HashMap, HashSet};

use pilotage_discover::evidence::Book;
use pilotage_discover::group::{Ask, Beyond, MAX_GROUPS, Summary, Walk, goes_on, route};
use pilotage_discover::index::{Hit, Limits, Statistics};
use pilotage_discover::merge::{Merge, Told};
use pilotage_discover::rank::Liveness;
use pilotage_discover::{AgentKey, Index, Query, SignedCard};

use super::{Agent, NOW, Random, agent, tag};

/// Answers that a wish wants.
const WANTED: usize = 10;

/// What was measured.
pub struct Recall {
    /// For each wish, the worst first; the ten best are those of the living by the word statistics of all agents: what a
    /// complete index said before the deaths, with the dead struck out.
    pub at_10: Vec<f64>,
    /// The same, with the word statistics of the living alone, which nobody can know before the deaths are noticed.
    pub by_living: Vec<f64>,
    /// Nodes asked per wish, dead ones with them.
    pub asked: Vec<usize>,
    /// Groups all of whose holders were dead.
    pub without_holders: usize,
}

impl Recall {
    /// What 95 of 100 wishes reach or exceed.
    pub fn p95(&self) -> f64 {
        self.at_10[self.at_10.len() * 5 / 100]
    }

    /// The same by the statistics of the living.
    pub fn p95_by_living(&self) -> f64 {
        self.by_living[self.by_living.len() * 5 / 100]
    }

    pub fn mean(&self) -> f64 {
        self.at_10.iter().sum::<f64>() / self.at_10.len() as f64
    }
}

impl std::fmt::Display for Recall {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "recall@10: p95 {:.3}, mean {:.3}, worst {:.3} (by the word statistics of the living: p95 {:.3}); nodes asked per wish: median {}, most {}; groups without holders: {}",
            self.p95(),
            self.mean(),
            self.at_10[0],
            self.p95_by_living(),
            self.asked[self.asked.len() / 2],
            self.asked[self.asked.len() - 1],
            self.without_holders,
        )
    }
}

struct Group {
    members: Vec<AgentKey>,
    index: Index,
}

pub fn measure(agents: u64, wishes: usize, seed: u64) -> Recall {
    let all: Vec<Agent> = (0..agents).map(|number| agent(number, false)).collect();
    let mut random = Random(seed);
    let dead: HashSet<AgentKey> =
        all.iter().map(|agent| agent.card.card().key).filter(|_| random.below(2) == 0).collect();
    let cards: HashMap<AgentKey, &SignedCard> = all.iter().map(|a| (a.card.card().key, &a.card)).collect();
    let (groups, summaries) = gather(&all);
    let limits = Limits { agents: all.len() };
    let (mut living, mut everybody) = (Index::new(limits), Index::new(limits));
    for agent in &all {
        everybody.put(&agent.card, Some(NOW)).expect("room");
    }
    for agent in all.iter().filter(|agent| !dead.contains(&agent.card.card().key)) {
        living.put(&agent.card, Some(NOW)).expect("room");
    }
    let mut recall =
        Recall { at_10: Vec::new(), by_living: Vec::new(), asked: Vec::new(), without_holders: 0 };
    for number in 0..wishes {
        let model = &all[random.below(all.len())];
        let (domain, field) = model.fields[0];
        let text: Vec<&str> = (0..3).map(|_| model.words[random.below(model.words.len())].as_str()).collect();
        let tag = tag(domain, field, 0)
            .parse::<pilotage_discover::Tag>()
            .expect("a tag")
            .parent()
            .expect("a field");
        let text = if number % 2 == 0 { text.join(" ") } else { String::new() };
        let query = Query::new(vec![tag], text, None, 64).expect("a query");
        let mut merge = Merge::default();
        let mut asked = 0;
        let mut led = Vec::new();
        for found in route(&summaries, &query, NOW, MAX_GROUPS) {
            let (whole, living) = state(&merge, &query, &dead);
            if !goes_on(&found, led.len(), whole, living, WANTED) {
                break;
            }
            let group = &groups[found.group];
            led.push(found.group);
            asked += ask(group, found.group, &query, &dead, &cards, &mut merge, &mut recall.without_holders);
            merge.set_beyond(Beyond::of(&summaries, &led, &query, NOW));
        }
        let hits =
            merge.ranked(&query.clone().with_limit(WANTED), &Book::default(), NOW, |key| dead.contains(key));
        let alone = living.search(&query, NOW);
        if alone.hits.is_empty() {
            continue;
        }
        let ours: Vec<SignedCard> = hits.into_iter().map(|hit| hit.card).collect();
        let whole = everybody.search(&query, NOW).statistics;
        recall.at_10.push(share(&query, &alone.hits, &ours, &whole, &dead, &merge));
        recall.by_living.push(share(&query, &alone.hits, &ours, &alone.statistics, &dead, &merge));
        recall.asked.push(asked);
    }
    recall.by_living.sort_by(f64::total_cmp);
    recall.at_10.sort_by(f64::total_cmp);
    recall.asked.sort_unstable();
    recall
}

/// How cards stand to each other by given word statistics.
fn judge(query: &Query, cards: impl Iterator<Item = SignedCard>, statistics: &Statistics) -> Vec<Hit> {
    let mut merge = Merge::default();
    let told = cards.map(|card| Told { card, seen_ago: Some(0), itself: false }).collect();
    merge.add(told, statistics, query.terms().len(), NOW);
    merge.ranked(query, &Book::default(), NOW, |_| false)
}

/// Which part of the best was found. Agents that fit as well as the last one of the ten are as good as it.
fn share(
    query: &Query,
    alone: &[Hit],
    ours: &[SignedCard],
    statistics: &Statistics,
    dead: &HashSet<AgentKey>,
    merge: &Merge,
) -> f64 {
    let mut best = judge(query, alone.iter().map(|hit| hit.card.clone()), statistics);
    best.truncate(WANTED);
    let least = best.last().map_or(0.0, |hit| hit.why.matched) - 1e-6;
    let living = ours.iter().filter(|card| !dead.contains(&card.card().key)).cloned();
    let good = judge(query, living, statistics).iter().filter(|hit| hit.why.matched >= least).count();
    if good < best.len() && std::env::var_os("WHY").is_some() {
        why_not(query, &best, ours, merge, good);
    }
    good.min(best.len()) as f64 / best.len() as f64
}

/// For people: which of the best were not found, and whether somebody told of them.
fn why_not(query: &Query, best: &[Hit], ours: &[SignedCard], merge: &Merge, good: usize) {
    let all = merge.ranked(query, &Book::default(), NOW, |_| false);
    let missed = best.iter().filter(|hit| !ours.contains(&hit.card));
    let missed: Vec<String> = missed
        .map(|hit| match all.iter().position(|other| other.card == hit.card) {
            Some(place) => format!("{:.3} told, place {place}", hit.why.matched),
            None => format!("{:.3} not told", hit.why.matched),
        })
        .collect();
    println!("{:?}: {good} of {}: {missed:?}", query.text(), best.len());
}

/// How many of those found so far live and have all tags whole, and how many live.
fn state(merge: &Merge, query: &Query, dead: &HashSet<AgentKey>) -> (usize, usize) {
    let hits = merge.ranked(query, &Book::default(), NOW, |key| dead.contains(key));
    let living = hits.iter().filter(|hit| hit.why.liveness != Liveness::Dead);
    let whole = living.clone().filter(|hit| hit.why.tags.iter().all(|tag| tag.widened == 0));
    (whole.count(), living.count())
}

/// One group per field, by its number.
fn gather(all: &[Agent]) -> (Vec<Group>, Vec<Summary>) {
    let mut fields: BTreeMap<(usize, usize), Vec<&Agent>> = BTreeMap::new();
    for agent in all {
        for field in &agent.fields {
            fields.entry(*field).or_default().push(agent);
        }
    }
    let (mut groups, mut summaries) = (Vec::new(), Vec::new());
    for (number, members) in fields.into_values().enumerate() {
        let mut index = Index::new(Limits { agents: members.len() });
        for member in &members {
            index.put(&member.card, Some(NOW)).expect("room");
        }
        let declarations = members.iter().map(|member| (NOW - 100, &member.card.card().declaration));
        summaries.push(Summary::of(number as u16, members[0].card.card().key, NOW, 600, declarations));
        groups.push(Group { members: members.iter().map(|member| member.card.card().key).collect(), index });
    }
    (groups, summaries)
}

/// Asks a group; how many nodes were asked.
fn ask(
    group: &Group,
    number: usize,
    query: &Query,
    dead: &HashSet<AgentKey>,
    cards: &HashMap<AgentKey, &SignedCard>,
    merge: &mut Merge,
    without_holders: &mut usize,
) -> usize {
    let terms = query.terms().len();
    let mut walk = Walk::new(number as u16, &group.members);
    let (mut asked, mut flooded) = (0, false);
    while let Some(ask) = walk.next() {
        asked += 1;
        let (key, holder) = match ask {
            Ask::Holder(key) => (key, true),
            Ask::Member(key) => (key, false),
        };
        if !holder && !flooded {
            flooded = true;
            *without_holders += 1;
        }
        if dead.contains(&key) {
            walk.failed();
            continue;
        }
        walk.answered();
        let told = |card: SignedCard, itself| Told { card, seen_ago: Some(0), itself };
        if holder {
            let found = group.index.search(query, NOW);
            let cards = found.hits.into_iter().map(|hit| told(hit.card, false)).collect();
            merge.add(cards, &found.statistics, terms, NOW);
        } else {
            let mut own = Index::new(Limits { agents: 1 });
            own.put(cards[&key], Some(NOW)).expect("room");
            let found = own.search(query, NOW);
            let statistics = Statistics { texts: 1, ..found.statistics };
            merge.add(
                found.hits.into_iter().map(|hit| told(hit.card, true)).collect(),
                &statistics,
                terms,
                NOW,
            );
        }
    }
    asked
}
