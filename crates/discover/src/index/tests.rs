use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::card::testing::{card, signed};
use crate::declare::{Declaration, Skill};
use crate::embed::hashed;

const NOW: u64 = 1_000;

fn summaries(found: &Found) -> Vec<String> {
    found.hits.iter().map(|hit| hit.card.card().declaration.summary().to_owned()).collect()
}

fn search(index: &Index, parts: &[&str]) -> Found {
    index.search(&Query::from_words(parts.iter().copied(), 10).unwrap(), NOW)
}

fn filled(cards: &[(&[&str], &str)]) -> Index {
    let mut index = Index::default();
    for (number, (tags, summary)) in cards.iter().enumerate() {
        index.put(&card(number as u16, tags, summary), Some(NOW)).unwrap();
    }
    index
}

#[test]
fn tags_find_their_special_cases_and_all_of_them_must_fit() {
    let index = filled(&[
        (&["finance.fx.history", "lang.de"], "one"),
        (&["finance.fx"], "two"),
        (&["finance.stocks"], "three"),
        (&["finance.fxx"], "four"),
    ]);
    assert_eq!(summaries(&search(&index, &["cap:finance.fx"])), ["one", "two"]);
    assert_eq!(summaries(&search(&index, &["cap:finance"])).len(), 4);
    assert_eq!(summaries(&search(&index, &["cap:finance.fx", "cap:lang.de"])), ["one"]);
    assert!(search(&index, &["cap:weather"]).hits.is_empty());
}

#[test]
fn a_wish_that_nobody_has_whole_is_widened_and_says_so() {
    let index = filled(&[(&["finance.fx"], "general"), (&["weather"], "other")]);
    let found = search(&index, &["cap:finance.fx.history.minute"]);
    assert_eq!(summaries(&found), ["general"]);
    let why = &found.hits[0].why;
    assert_eq!((why.tags[0].widened, why.matched), (2, 0.25));
    assert!(why.to_string().contains("has only finance.fx (2 word(s) short"), "{why}");
}

#[test]
fn rare_words_weigh_more_and_short_texts_too() {
    let index = filled(&[
        (&["a"], "rates of exchange for euro"),
        (&["b"], "rates of exchange for yen"),
        (&["c"], "rates of exchange for yen and for a great many other things that nobody ever asked about"),
        (&["d"], "weather"),
    ]);
    let found = search(&index, &["exchange rates yen"]);
    assert_eq!(found.fitting, 3);
    assert!(summaries(&found)[0].ends_with("for yen"));
    assert!(summaries(&found)[2].ends_with("for euro"));
    let text = found.hits[2].why.text.as_ref().unwrap();
    assert_eq!((text.found.len(), text.missing.as_slice()), (2, &["yen".to_owned()][..]));
    assert_eq!(found.statistics.having, [3, 3, 2]);
}

#[test]
fn vectors_of_one_model_are_compared() {
    let mut index = Index::default();
    for (number, text) in ["translate german", "weather radar", "train tickets"].iter().enumerate() {
        let declaration = card(number as u16, &["a"], text).card().declaration.clone();
        index
            .put(&signed(number as u16, 1, declaration.with_vector(hashed(text).unwrap())), Some(NOW))
            .unwrap();
    }
    let query = Query::new(vec![], "", hashed("german translaet"), 10).unwrap();
    let found = index.search(&query, NOW);
    assert_eq!(summaries(&found)[0], "translate german");
    assert!(found.hits[0].why.vector.unwrap() > 0.4);
    let other = crate::embed::Embedding::from_values("other", hashed("german").unwrap().values()).unwrap();
    assert!(index.search(&Query::new(vec![], "", Some(other), 10).unwrap(), NOW).hits.is_empty());
}

#[test]
fn the_dead_the_quiet_and_the_failing_fall_behind() {
    let mut index = filled(&[(&["a"], "dead"), (&["a"], "quiet"), (&["a"], "failing"), (&["a"], "fine")]);
    let key = |number: u16| card(number, &["a"], "").card().key;
    index.missed(&key(0));
    let failing = Evidence { failed: 3.0, ..Evidence::default() };
    index.set_evidence(&key(2), failing);
    for number in [2, 3] {
        index.saw(&key(number), NOW + 300);
    }
    let found = index.search(&Query::from_words(["cap:a"], 10).unwrap(), NOW + 300);
    assert_eq!(summaries(&found), ["fine", "failing", "quiet", "dead"]);
    index.saw(&key(0), NOW + 301);
    let found = index.search(&Query::from_words(["cap:a"], 10).unwrap(), NOW + 301);
    assert_eq!(summaries(&found)[0], "dead", "who is heard of again lives");
    // Evidence survives a new card.
    index.put(&signed(2, 2, card(2, &["a"], "failing").card().declaration.clone()), None).unwrap();
    assert_eq!(index.search(&Query::from_words(["cap:a"], 1).unwrap(), NOW).hits.len(), 1);
    assert_eq!(index.entries[index.slots[&key(2)] as usize].as_ref().unwrap().evidence, failing);
}

#[test]
fn the_bound_holds_and_time_makes_room() {
    let mut index = Index::new(Limits { agents: 3 });
    for number in 0..3 {
        assert_eq!(index.put(&card(number, &["a"], "s"), None), Ok(Put::New));
    }
    assert_eq!(index.put(&card(3, &["a"], "s"), None), Err(Full(3)));
    assert_eq!(index.put(&card(2, &["a"], "s"), None), Ok(Put::Same));
    assert_eq!(
        index.put(&signed(2, 2, card(2, &["b"], "t").card().declaration.clone()), None),
        Ok(Put::Updated)
    );
    assert_eq!(index.put(&card(2, &["a"], "s"), None), Ok(Put::Older));
    assert_eq!(index.expire(4_599, 10), 0);
    assert!(index.search(&Query::from_words(["cap:a"], 9).unwrap(), 4_600).hits.is_empty(), "over is over");
    assert_eq!((index.expire(4_600, 2), index.len()), (2, 1));
    assert_eq!(index.put(&card(3, &["a"], "s"), None), Ok(Put::New));
}

#[test]
fn the_pass_over_all_vectors_gives_the_cosine_of_each() {
    let mut index = Index::default();
    let vector = |number: i32, at: usize| {
        let values: [i8; 384] =
            std::array::from_fn(|i| (number * 31 + i as i32 * (at as i32 + 3) * 17) as u8 as i8);
        crate::embed::Embedding::from_values("m", &values).unwrap()
    };
    for number in 0..50 {
        let declaration = card(number, &["a"], "s").card().declaration.clone();
        index.put(&signed(number, 1, declaration.with_vector(vector(i32::from(number), 1))), None).unwrap();
    }
    for place in (0..50).step_by(7) {
        assert!(index.remove(&card(place, &["a"], "").card().key));
    }
    for at in 1..6 {
        let query = vector(7, at);
        let found = index.search(&Query::new(vec![], "", Some(query.clone()), 64).unwrap(), NOW);
        assert!(!found.hits.is_empty());
        for hit in &found.hits {
            let own = hit.card.card().declaration.vector().unwrap();
            let exact = query.cosine(own).unwrap();
            assert!((hit.why.vector.unwrap() - exact).abs() < 1e-6);
        }
        let better = index
            .cards(64)
            .filter(|card| query.cosine(card.card().declaration.vector().unwrap()) > Some(0.0));
        assert_eq!(found.hits.len(), better.count(), "all that point the same way, and no other");
    }
}

#[test]
fn vectors_of_too_many_models_are_kept_and_not_compared() {
    let mut index = Index::default();
    for number in 0..=MAX_MODELS as u16 {
        let vector = crate::embed::Embedding::from_values(&format!("model{number}"), &[1; 384]).unwrap();
        let declaration = card(number, &["a"], "s").card().declaration.clone().with_vector(vector);
        index.put(&signed(number, 1, declaration), None).unwrap();
    }
    assert_eq!((index.len(), index.sizes().2), (MAX_MODELS + 1, MAX_MODELS));
    for number in (0..=MAX_MODELS as u16).rev() {
        assert!(index.remove(&card(number, &["a"], "").card().key));
    }
    assert_eq!(index.sizes().2, 0);
}

#[test]
fn nothing_stays_of_those_who_go() {
    let mut index = Index::default();
    let cards: Vec<SignedCard> = (0..40_u16)
        .map(|number| {
            let text = format!("words {number} of a card");
            let declaration =
                card(number, &["x.y", &format!("t{number}.u")], &text).card().declaration.clone();
            signed(number, 1, declaration.with_vector(hashed(&text).unwrap()))
        })
        .collect();
    for card in &cards {
        index.put(card, None).unwrap();
    }
    for card in cards.iter().rev().step_by(2).chain(cards.iter().step_by(2)) {
        assert!(index.remove(&card.card().key));
        assert!(!index.remove(&card.card().key));
    }
    assert_eq!((index.len(), index.sizes()), (0, (0, 0, 0)));
    assert_eq!(index.texts.average(), 0.0);
}

/// What a search without any index gives.
fn model_search(cards: &HashMap<u16, SignedCard>, tag: &Tag) -> Vec<u16> {
    let mut tag = tag.clone();
    loop {
        let fits = |card: &SignedCard| card.card().declaration.skill_for(&tag).is_some();
        let mut found: Vec<u16> =
            cards.iter().filter(|(_, card)| fits(card)).map(|(number, _)| *number).collect();
        found.sort_unstable();
        match tag.parent() {
            Some(parent) if found.is_empty() => tag = parent,
            _ => return found,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn the_index_is_the_model(
        steps in proptest::collection::vec((0_u16..12, 0_usize..6, any::<bool>(), 0_u8..4), 1..60),
        wanted in 0_usize..6,
    ) {
        let tags = ["a", "a.b", "a.b.c", "a.x", "d", "d.e"];
        let mut index = Index::default();
        let mut model: HashMap<u16, SignedCard> = HashMap::new();
        for (seq, (number, tag, with_vector, what)) in steps.into_iter().enumerate() {
            if what == 0 {
                let known = model.remove(&number);
                let key = card(number, &["a"], "").card().key;
                prop_assert_eq!(index.remove(&key), known.is_some());
                continue;
            }
            let skills = vec![Skill { tag: tags[tag].parse().unwrap(), idempotent: false }];
            let mut declaration = Declaration::new(skills, format!("agent {number} {}", tags[tag])).unwrap();
            if with_vector {
                declaration = declaration.with_vector(hashed(&format!("vector {}", tags[tag])).unwrap());
            }
            let card = signed(number, seq as u64, declaration);
            index.put(&card, None).unwrap();
            model.insert(number, card);
        }
        prop_assert_eq!(index.len(), model.len());
        let tag: Tag = tags[wanted].parse().unwrap();
        let found = index.search(&Query::new(vec![tag.clone()], "", None, 64).unwrap(), NOW);
        let mut numbers: Vec<u16> = found.hits.iter().map(|hit| {
            let key = hit.card.card().key;
            *model.iter().find(|(_, card)| card.card().key == key).unwrap().0
        }).collect();
        numbers.sort_unstable();
        prop_assert_eq!(numbers, model_search(&model, &tag));
        for word in ["agent", "x", "e"] {
            let found = index.search(&Query::from_words([word], 64).unwrap(), NOW);
            let fits = |card: &&SignedCard| text::counts(&card.card().declaration.text()).contains_key(word);
            prop_assert_eq!(found.fitting, model.values().filter(fits).count());
        }
    }
}
