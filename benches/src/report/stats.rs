//! Medians and spread.

use crate::record::Record;

/// Median, smallest and largest of some values.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Spread {
    /// Median (mean of the middle two for an even count).
    pub median: f64,
    /// Smallest.
    pub min: f64,
    /// Largest.
    pub max: f64,
    /// How many values.
    pub count: usize,
}

impl Spread {
    /// Of any number of values; `None` for none.
    pub fn of(values: impl Iterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median =
            if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 };
        Some(Self { median, min, max, count: values.len() })
    }

    /// Of one metric of one subject at one work. Disturbed runs count only if there is no other.
    pub fn find(records: &[Record], work: &str, subject: &str, metric: &str) -> Option<Self> {
        let of = |disturbed: bool| {
            let mine = |record: &&Record| {
                record.work == work && record.subject == subject && (disturbed || !record.disturbed)
            };
            Self::of(records.iter().filter(mine).filter_map(|record| record.metrics.get(metric).copied()))
        };
        of(false).or_else(|| of(true))
    }

    /// With as many digits as its size makes sensible.
    pub fn show(&self) -> String {
        let digits = match self.median.abs() {
            x if x >= 1000.0 => 0,
            x if x >= 100.0 => 1,
            x if x >= 1.0 => 2,
            _ => 3,
        };
        if self.count == 1 {
            return format!("{:.digits$}", self.median);
        }
        format!("{:.digits$} [{:.digits$}–{:.digits$}]", self.median, self.min, self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_odd_and_even_counts() {
        let spread = Spread::of([3.0, 1.0, 2.0].into_iter()).expect("values");
        assert_eq!((spread.median, spread.min, spread.max, spread.count), (2.0, 1.0, 3.0, 3));
        assert_eq!(Spread::of([1.0, 2.0].into_iter()).expect("values").median, 1.5);
        assert_eq!(Spread::of(std::iter::empty()), None);
    }

    #[test]
    fn disturbed_runs_count_only_where_there_is_no_other() {
        let clean = Record::new("w", "s", 1).metric("m", 1.0);
        let disturbed = Record { disturbed: true, ..Record::new("w", "s", 2).metric("m", 9.0) };
        let both = [clean, disturbed.clone()];
        assert_eq!(Spread::find(&both, "w", "s", "m").expect("values").max, 1.0);
        assert_eq!(Spread::find(&[disturbed], "w", "s", "m").expect("values").max, 9.0);
        assert_eq!(Spread::find(&both, "w", "s", "n"), None);
    }
}
