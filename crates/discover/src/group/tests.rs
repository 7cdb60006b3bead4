use ed25519_dalek::{Signer, SigningKey};

use super::*;
use crate::declare::Skill;
use crate::embed::hashed;

fn declaration(tags: &[&str], summary: &str) -> Declaration {
    let skills = tags.iter().map(|tag| Skill { tag: tag.parse().unwrap(), idempotent: false }).collect();
    Declaration::new(skills, summary).unwrap().with_vector(hashed(summary).unwrap())
}

fn signing() -> SigningKey {
    SigningKey::from_bytes(&[3; 32])
}

fn summary(network: u16, members: &[Declaration]) -> Summary {
    let signer = signing().verifying_key().to_bytes();
    Summary::of(network, signer, 1_000, 600, members.iter().map(|member| (900, member)))
}

#[test]
fn a_summary_survives_and_any_change_is_seen() {
    let summary =
        summary(7, &[declaration(&["a.b"], "words of one"), declaration(&["c"], "words of another")]);
    let bytes = summary.sign(|message| signing().sign(message).to_bytes());
    assert!(bytes.len() <= MAX_GROUP);
    assert_eq!(Summary::verify(&bytes), Some(summary));
    for at in (0..bytes.len()).step_by(37) {
        let mut other = bytes.clone();
        other[at] ^= 1;
        assert_eq!(Summary::verify(&other), None, "{at}");
        assert_eq!(Summary::verify(&bytes[..at]), None, "{at}");
    }
}

#[test]
fn a_filter_that_says_yes_to_everything_is_refused() {
    let mut all = summary(7, &[]);
    all.bloom = Bloom(Box::new([0xFF; BLOOM]));
    assert_eq!(Summary::verify(&all.sign(|message| signing().sign(message).to_bytes())), None);
    let many: Vec<Declaration> =
        (0..3_000).map(|i| declaration(&[&format!("x{i}.y{i}.z{i}")], "w")).collect();
    let full = summary(7, &many);
    assert!(full.bloom.bits() <= MAX_BITS, "our own stays below the bound");
}

#[test]
fn the_group_that_knows_the_matter_is_asked_first() {
    let groups = [
        summary(1, &[declaration(&["weather.radar"], "rain radar pictures of europe")]),
        summary(2, &[declaration(&["finance.fx.history"], "exchange rates of the past")]),
        summary(3, &[declaration(&["finance.stocks"], "share prices")]),
    ];
    let query = Query::from_words(["cap:finance.fx", "past exchange rates"], 3).unwrap();
    let routes = route(&groups, &query, 1_000, 3);
    assert_eq!(routes.iter().map(|route| route.group).collect::<Vec<_>>(), [1, 2]);
    assert!(routes[0].why.contains("has finance.fx (about 1 members); 3 of 3 words"), "{}", routes[0].why);
    assert!(routes[1].why.contains("has only finance of finance.fx"), "{}", routes[1].why);
    assert!(route(&groups, &query, 1_601, 3).is_empty(), "summaries that are over do not count");
    let words = Query::from_words(["radar rain"], 3).unwrap();
    assert_eq!(route(&groups, &words, 1_000, 3).len(), 1);
    let vector = Query::new(vec![], "", hashed("radar of the rain"), 1).unwrap();
    assert_eq!(route(&groups, &vector, 1_000, 1)[0].group, 0);
}

#[test]
fn an_agent_joins_what_it_has_in_common_with() {
    let interest: Tag = "finance.fx".parse().unwrap();
    let empty = summary(number(&interest), &[]).with_interest(&interest);
    assert_eq!((empty.interest(), empty.members), (Some(&interest), 0));
    assert!(empty.suits(&declaration(&["weather", "finance.fx.history"], "w")));
    assert!(!empty.suits(&declaration(&["finance"], "w")) && !empty.suits(&declaration(&["finance.f"], "w")));
    let bytes = empty.sign(|message| signing().sign(message).to_bytes());
    assert_eq!(Summary::verify(&bytes).as_ref().and_then(Summary::interest), Some(&interest));
    // With members the interest stays in front, also of more common tags.
    let many =
        summary(number(&interest), &[declaration(&["a"], "w"), declaration(&["a", "finance.fx"], "w")]);
    let many = many.with_interest(&interest);
    assert_eq!(many.common[0], (interest.clone(), 1));
    // Of a network with a number of its own nobody knows what it is about.
    assert_eq!(summary(7, &[declaration(&["finance.fx"], "w")]).with_interest(&interest).interest(), None);
    assert_ne!(number(&interest), number(&"finance".parse().unwrap()));
    assert!(number(&interest) >= 0x8000);
}

#[test]
fn more_groups_are_asked_only_where_they_may_help() {
    let next = |short| Route { group: 0, score: 1.0, short, why: String::new() };
    for (short, asked, whole, living, expected) in [
        (1, GROUPS - 1, 10, 10, true),
        (0, GROUPS, 10, 10, false),
        (0, GROUPS, 9, 9, true),
        // Somebody has the tags whole: who has them only in part would not be shown.
        (1, GROUPS, 1, 1, false),
        (1, GROUPS, 0, 9, true),
        (1, GROUPS, 0, 10, false),
        (0, MAX_GROUPS, 0, 0, false),
    ] {
        assert_eq!(
            goes_on(&next(short), asked, whole, living, 10),
            expected,
            "{short} {asked} {whole} {living}"
        );
    }
}

#[test]
fn words_of_those_who_were_not_asked_count_by_their_summaries() {
    let groups = [
        summary(1, &[declaration(&["a"], "gold silver"), declaration(&["a"], "gold")]),
        summary(2, &[declaration(&["b"], "gold"), declaration(&["b"], "iron"), declaration(&["b"], "tin")]),
    ];
    let query = Query::from_words(["gold silver"], 3).unwrap();
    let beyond = Beyond::of(&groups, &[0], &query, 1_000);
    assert_eq!(beyond, Beyond { asked: 2, texts: 3, having: vec![1, 0] });
    assert_eq!(Beyond::of(&groups, &[0], &query, 5_000), Beyond { having: vec![0, 0], ..Beyond::default() });
    // More words than are counted: one that is not among them is rarer than those, and one that is not there is nowhere.
    let member = |number: usize| {
        let words: Vec<String> = (0..12).map(|word| format!("c{}", (number + word) % 40)).collect();
        declaration(&["b"], &format!("{} rare{number}", words.join(" ")))
    };
    let many = summary(3, &(0..100).map(member).collect::<Vec<_>>());
    assert_eq!(many.words.len(), MAX_COMMON);
    let query = Query::from_words(["b c5 rare7 gold"], 3).unwrap();
    let beyond = Beyond::of(&[many], &[], &query, 1_000);
    assert_eq!((beyond.having[0], beyond.having[3]), (100, 0));
    assert!(beyond.having[1] >= 20 && (1..20).contains(&beyond.having[2]), "{beyond:?}");
}

#[test]
fn holders_move_only_where_one_is_gone() {
    let members: Vec<AgentKey> = (0..50_u8).map(|number| [number; 32]).collect();
    let order = holders(7, &members);
    assert_eq!(order.len(), 50);
    let without: Vec<AgentKey> = members.iter().copied().filter(|key| *key != order[1]).collect();
    let mut expected = order.clone();
    expected.remove(1);
    assert_eq!(holders(7, &without), expected);
    assert_ne!(holders(8, &members), order, "another group has other holders");
}

#[test]
fn where_no_holder_answers_the_members_are_asked() {
    let members: Vec<AgentKey> =
        (0..=u16::MAX).step_by(100).map(|n| [n.to_be_bytes()[0] ^ n.to_be_bytes()[1]; 32]).collect();
    let order = holders(7, &members);
    let mut walk = Walk::new(7, &members);
    assert_eq!(walk.next(), Some(Ask::Holder(order[0])));
    walk.failed();
    walk.answered();
    walk.answered();
    assert_eq!(walk.next(), None, "two holders are enough");
    let many: Vec<AgentKey> = (0..400_u32).map(|n| *blake3::hash(&n.to_be_bytes()).as_bytes()).collect();
    let mut walk = Walk::new(7, &many);
    let mut asked = 0;
    while let Some(ask) = walk.next() {
        assert_eq!(matches!(ask, Ask::Holder(_)), asked < HOLDERS);
        if asked < HOLDERS {
            walk.failed()
        } else {
            walk.answered()
        }
        asked += 1;
    }
    assert_eq!(asked, HOLDERS + MAX_FLOOD, "the bound");
}
