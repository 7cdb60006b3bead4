//! The goals, each as a ratio of medians of one run of everything.

use super::goals;
use super::stats::Spread;
use crate::record::Record;

/// A number of the report.
#[derive(Debug, Clone)]
pub(super) enum Value {
    /// The median of a metric.
    Of { work: String, subject: &'static str, metric: &'static str },
    /// The best median of a metric among some subjects.
    Best { work: String, subjects: &'static [&'static str], metric: &'static str, highest: bool },
    /// The highest median of some metrics of a subject.
    Most { work: String, subject: &'static str, metrics: &'static [&'static str] },
    /// A number that is given.
    Given(f64),
}

/// What a ratio must be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Goal {
    AtLeast(f64),
    AtMost(f64),
    Between(f64, f64),
}

/// One goal.
#[derive(Debug, Clone)]
pub(super) struct Criterion {
    pub(super) number: &'static str,
    pub(super) text: String,
    pub(super) above: Value,
    pub(super) below: Value,
    pub(super) goal: Goal,
}

/// How a goal stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// Number of the goal.
    pub number: &'static str,
    /// What is compared.
    pub text: String,
    /// The ratio; `None` if one side was not measured.
    pub ratio: Option<f64>,
    /// What it must be.
    pub goal: String,
    /// Whether it is.
    pub met: Option<bool>,
}

impl Value {
    fn get(&self, records: &[Record]) -> Option<f64> {
        let median = |work: &str, subject: &str, metric: &str| {
            Spread::find(records, work, subject, metric).map(|spread| spread.median)
        };
        match self {
            Self::Of { work, subject, metric } => median(work, subject, metric),
            Self::Best { work, subjects, metric, highest } => {
                let medians = subjects.iter().filter_map(|subject| median(work, subject, metric));
                medians.reduce(if *highest { f64::max } else { f64::min })
            }
            Self::Most { work, subject, metrics } => {
                metrics.iter().filter_map(|metric| median(work, subject, metric)).reduce(f64::max)
            }
            Self::Given(value) => Some(*value),
        }
    }
}

impl Goal {
    fn met(self, ratio: f64) -> bool {
        match self {
            Self::AtLeast(bound) => ratio >= bound,
            Self::AtMost(bound) => ratio <= bound,
            Self::Between(low, high) => (low..=high).contains(&ratio),
        }
    }

    fn show(self) -> String {
        match self {
            Self::AtLeast(bound) => format!("≥ {bound}"),
            Self::AtMost(bound) => format!("≤ {bound}"),
            Self::Between(low, high) => format!("{low} to {high}"),
        }
    }
}

impl Criterion {
    fn verdict(self, records: &[Record]) -> Verdict {
        let sides = self.above.get(records).zip(self.below.get(records));
        let ratio = sides.map(|(above, below)| above / below).filter(|ratio| ratio.is_finite());
        Verdict {
            number: self.number,
            text: self.text,
            ratio,
            goal: self.goal.show(),
            met: ratio.map(|ratio| self.goal.met(ratio)),
        }
    }
}

/// How all goals stand after these records.
pub fn verdicts(records: &[Record]) -> Vec<Verdict> {
    goals::all().into_iter().map(|criterion| criterion.verdict(records)).collect()
}

impl Verdict {
    /// The cells of its row.
    pub fn row(&self) -> Vec<String> {
        vec![
            self.number.to_owned(),
            self.text.clone(),
            self.ratio.map_or("–".to_owned(), |ratio| format!("{ratio:.3}")),
            self.goal.clone(),
            match self.met {
                Some(true) => "met".to_owned(),
                Some(false) => "**not met**".to_owned(),
                None => "not measured".to_owned(),
            },
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find<'a>(verdicts: &'a [Verdict], text: &str) -> &'a Verdict {
        verdicts.iter().find(|verdict| verdict.text.contains(text)).expect("criterion")
    }

    #[test]
    fn a_goal_is_met_missed_or_not_measured() {
        let mut records = vec![
            Record::new("bulk-1", "pilotage", 1).metric("goodput_gbps", 10.0).metric("cpu_s_per_gb", 1.0),
            Record::new("bulk-1", "quinn-tuned", 1).metric("goodput_gbps", 5.0).metric("cpu_s_per_gb", 1.5),
        ];
        let before = verdicts(&records);
        let goodput = find(&before, "goodput against quinn");
        assert_eq!((goodput.ratio, goodput.met), (Some(2.0), Some(true)));
        assert_eq!(find(&before, "CPU per GB").met, Some(false));
        assert_eq!(find(&before, "s2n-quic tuned").met, None);
        records.push(Record::new("bulk-1", "s2n-tuned", 1).metric("goodput_gbps", 8.0));
        assert_eq!(find(&verdicts(&records), "s2n-quic tuned").met, Some(false));
    }

    #[test]
    fn the_better_setting_of_a_peer_counts() {
        let records = [
            Record::new("request-64", "pilotage", 1).metric("requests_per_s", 300.0),
            Record::new("request-64", "quinn", 1).metric("requests_per_s", 100.0),
            Record::new("request-64", "quinn-tuned", 1).metric("requests_per_s", 250.0),
        ];
        assert_eq!(find(&verdicts(&records), "requests/s").ratio, Some(1.2));
    }

    #[test]
    fn a_share_must_lie_between_its_bounds() {
        let share = |ratio: f64| {
            let record =
                Record::new("share-against-tcp-cubic", "pilotage-cubic", 1).metric("share_ratio", ratio);
            find(&verdicts(&[record]), "share of pilotage-cubic").met
        };
        assert_eq!((share(0.34), share(0.5), share(0.66)), (Some(false), Some(true), Some(false)));
    }

    #[test]
    fn the_larger_side_counts_for_memory() {
        let record = Record::new("idle-connections", "pilotage", 1)
            .metric("server_bytes_each", 1000.0)
            .metric("client_bytes_each", 8192.0);
        assert_eq!(find(&verdicts(&[record]), "idle connection").ratio, Some(2.0));
    }
}
