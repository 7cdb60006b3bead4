//! Whether what the clients saw can have come from one registry that never forgets and never gives a name twice.
//!
//! Knows nothing of consensus: histories in, contradictions out. A claim without an answer may or may not have happened.

use std::collections::{BTreeMap, BTreeSet};

use super::clients::{Answer, Kind, Record};

/// What was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    /// Acknowledged claims that are not there any more.
    pub(super) lost: usize,
    /// Names that two claimants were granted.
    pub(super) double: usize,
    /// All contradictions, those included.
    pub(super) violations: Vec<String>,
}

/// Holder of each name at the end, on each node.
pub(super) type Finals = Vec<BTreeMap<u64, Option<u64>>>;

/// Looks at every name on its own: they do not influence each other.
pub(super) fn check(history: &[Record], finals: &Finals) -> Verdict {
    let mut by_name: BTreeMap<u64, Vec<&Record>> = BTreeMap::new();
    for record in history {
        by_name.entry(record.name).or_default().push(record);
    }
    let mut verdict = Verdict::default();
    for (name, records) in by_name {
        one(name, &records, finals, &mut verdict);
    }
    verdict
}

fn one(name: u64, records: &[&Record], finals: &Finals, verdict: &mut Verdict) {
    let granted: BTreeSet<u64> = records.iter().filter(|r| r.granted()).map(|r| r.owner).collect();
    // Everybody whom anybody saw holding the name: grants, refusals, look-ups, the end.
    let mut holders = granted.clone();
    holders.extend(records.iter().filter_map(|record| match record.answer {
        Answer::Holder(holder) => holder,
        _ => None,
    }));
    let mut at_end: BTreeSet<Option<u64>> = BTreeSet::new();
    for node in finals {
        at_end.insert(node.get(&name).copied().flatten());
    }
    holders.extend(at_end.iter().flatten());
    if granted.len() > 1 {
        verdict.double += 1;
        verdict.violations.push(format!("name {name} was granted to {granted:?}"));
    } else if holders.len() > 1 {
        verdict.violations.push(format!("name {name} was seen with the holders {holders:?}"));
    }
    if !granted.is_empty() && at_end.contains(&None) {
        verdict.lost += 1;
        verdict
            .violations
            .push(format!("name {name} was granted to {granted:?} and is held by nobody at the end"));
    }
    order(name, records, verdict);
    // Nobody can hold what he had not asked for by then.
    for holder in &holders {
        let first =
            records.iter().filter(|r| r.kind == Kind::Claim && r.owner == *holder).map(|r| r.start).min();
        let seen = records.iter().filter(|r| r.answer == Answer::Holder(Some(*holder))).map(|r| r.end).min();
        match (first, seen) {
            (None, _) => verdict.violations.push(format!("name {name}: {holder} holds it and never asked")),
            (Some(first), Some(seen)) if seen < first => {
                verdict.violations.push(format!("name {name}: {holder} was seen before it asked"));
            }
            _ => {}
        }
    }
}

/// Once anybody has been told that the name is held, no claim or fresh look-up that begins later may miss it.
fn order(name: u64, records: &[&Record], verdict: &mut Verdict) {
    let strong = |record: &&&Record| matches!(record.kind, Kind::Claim | Kind::Fresh);
    let known = records
        .iter()
        .filter(strong)
        .filter(|record| record.granted() || matches!(record.answer, Answer::Holder(Some(_))))
        .map(|record| record.end)
        .min();
    let Some(known) = known else { return };
    for record in records.iter().filter(strong).filter(|record| record.start > known) {
        if record.answer == Answer::Holder(None) {
            verdict.violations.push(format!(
                "name {name}: held at {known:?}, and a fresh look-up at {:?} saw nobody",
                record.start
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn record(kind: Kind, owner: u64, start: u64, end: u64, answer: Answer) -> Record {
        let (start, end) = (Duration::from_millis(start), Duration::from_millis(end));
        Record { kind, name: 1, owner, start, end, answer }
    }

    fn ends(holder: Option<u64>) -> Finals {
        vec![BTreeMap::from([(1, holder)]); 3]
    }

    #[test]
    fn one_winner_and_a_loser_who_knows_it_are_fine() {
        let history = [
            record(Kind::Claim, 1, 0, 10, Answer::Granted),
            record(Kind::Claim, 2, 0, 10, Answer::Holder(Some(1))),
            record(Kind::Fresh, 0, 5, 8, Answer::Holder(None)),
            record(Kind::Fresh, 0, 11, 12, Answer::Holder(Some(1))),
            record(Kind::Claim, 3, 20, 30, Answer::Unknown),
        ];
        assert_eq!(check(&history, &ends(Some(1))), Verdict::default());
    }

    #[test]
    fn two_winners_are_found() {
        let history =
            [record(Kind::Claim, 1, 0, 10, Answer::Granted), record(Kind::Claim, 2, 0, 10, Answer::Granted)];
        let verdict = check(&history, &ends(Some(1)));
        assert_eq!((verdict.double, verdict.lost), (1, 0));
    }

    #[test]
    fn a_lost_claim_is_found_even_on_one_node_only() {
        let history = [record(Kind::Claim, 1, 0, 10, Answer::Granted)];
        let mut finals = ends(Some(1));
        finals[2].insert(1, None);
        assert_eq!(check(&history, &finals).lost, 1);
        assert_eq!(check(&history, &ends(Some(1))), Verdict::default());
    }

    #[test]
    fn a_claim_that_changed_hands_is_found() {
        let history =
            [record(Kind::Claim, 1, 0, 10, Answer::Granted), record(Kind::Claim, 2, 3, 9, Answer::Unknown)];
        assert_eq!(check(&history, &ends(Some(2))).violations.len(), 1);
    }

    #[test]
    fn a_fresh_look_up_that_misses_what_was_acknowledged_is_found() {
        let history = [
            record(Kind::Claim, 1, 0, 10, Answer::Granted),
            record(Kind::Fresh, 0, 11, 12, Answer::Holder(None)),
        ];
        assert_eq!(check(&history, &ends(Some(1))).violations.len(), 1);
        // An ordinary look-up may be late.
        let history = [
            record(Kind::Claim, 1, 0, 10, Answer::Granted),
            record(Kind::Lookup, 0, 11, 12, Answer::Holder(None)),
        ];
        assert_eq!(check(&history, &ends(Some(1))), Verdict::default());
    }

    #[test]
    fn a_holder_out_of_nowhere_is_found() {
        let history = [
            record(Kind::Claim, 1, 5, 10, Answer::Unknown),
            record(Kind::Fresh, 0, 1, 2, Answer::Holder(Some(1))),
        ];
        assert_eq!(check(&history, &ends(Some(1))).violations.len(), 1);
        assert_eq!(check(&history[..1], &ends(Some(9))).violations.len(), 1);
    }
}
