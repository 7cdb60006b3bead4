//! The labelled set (data/README.md).

use pilotage_discover::embed::hashed;
use pilotage_discover::{Declaration, Index, Query, Skill};

use super::{NOW, sign};

/// One wish and the agent that serves it best.
pub struct Wish {
    pub wanted: String,
    pub text: String,
    pub has_tag: bool,
}

/// Names and summaries of the agents, and the wishes.
pub struct Set {
    pub agents: Vec<(String, Declaration)>,
    pub wishes: Vec<Wish>,
}

/// What the ranking goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    Words,
    Letters,
    Both,
}

/// Answers that were right.
#[derive(Clone, Copy, Debug, Default)]
pub struct Precision {
    pub wishes: usize,
    pub first: usize,
    pub among_three: usize,
}

impl Precision {
    pub fn at_1(&self) -> f64 {
        self.first as f64 / self.wishes as f64
    }

    pub fn at_3(&self) -> f64 {
        self.among_three as f64 / self.wishes as f64
    }
}

/// Numbers of the labelled agents begin here, above all synthetic ones.
const FIRST: u64 = 1 << 40;

pub fn load() -> Set {
    let mut set = Set { agents: Vec::new(), wishes: Vec::new() };
    for line in include_str!("../../data/labelled.tsv").lines().filter(|line| !line.starts_with('#')) {
        let (kind, rest) = line.split_once(' ').expect("a kind");
        let fields: Vec<&str> = rest.split('\t').collect();
        match (kind, fields.as_slice()) {
            ("A", [id, tags, summary]) => {
                let skill = |tag: &str| Skill { tag: tag.parse().expect("a tag"), idempotent: true };
                let declaration = Declaration::new(tags.split(' ').map(skill).collect(), *summary);
                let declaration = declaration.expect("in bounds");
                let vector = hashed(&declaration.text()).expect("words");
                set.agents.push(((*id).to_owned(), declaration.with_vector(vector)));
            }
            ("Q", [id, wish]) => {
                let has_tag = wish.starts_with("cap:");
                set.wishes.push(Wish { wanted: (*id).to_owned(), text: (*wish).to_owned(), has_tag });
            }
            _ => panic!("not a line of the set: {line}"),
        }
    }
    set
}

/// Puts the labelled agents into an index.
pub fn fill(index: &mut Index, set: &Set) {
    for (number, (_, declaration)) in set.agents.iter().enumerate() {
        index.put(&sign(FIRST + number as u64, declaration.clone()), Some(NOW)).expect("room");
    }
}

/// How often the right agent comes first. An agent that is not of the set counts as a wrong one.
pub fn measure(index: &Index, set: &Set, with_tag: bool, by: By) -> Precision {
    let mut precision = Precision::default();
    for wish in set.wishes.iter().filter(|wish| wish.has_tag == with_tag) {
        let words = Query::from_words(wish.text.split(' '), 3).expect("a query");
        let letters = hashed(words.text()).expect("words");
        let query = match by {
            By::Words => words,
            By::Letters => Query::new(words.tags().to_vec(), "", Some(letters), 3).expect("a query"),
            By::Both => words.with_vector(letters),
        };
        let wanted = set.agents.iter().find(|(id, _)| *id == wish.wanted).expect("an agent of the set");
        let hits = index.search(&query, NOW).hits;
        let place = hits.iter().position(|hit| hit.card.card().declaration.summary() == wanted.1.summary());
        precision.wishes += 1;
        precision.first += usize::from(place == Some(0));
        precision.among_three += usize::from(place.is_some());
    }
    precision
}
