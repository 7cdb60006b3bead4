//! Many pairs, several at a time.

use std::collections::VecDeque;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use pilotage_lab::LabError;
use pilotage_lab::nat::NatKind;

use crate::pair::{self, PairResult};
use crate::stop;

/// An ordered pair, written `from×to` or `from:to`; `*` stands for all kinds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Choice {
    from: Vec<NatKind>,
    to: Vec<NatKind>,
}

impl FromStr for Choice {
    type Err = LabError;

    fn from_str(text: &str) -> Result<Self, LabError> {
        let (from, to) = text.split_once(['×', ':']).ok_or_else(|| {
            LabError::Setting(format!("`{text}` is no pair: write FROM:TO, or FROM:* for all"))
        })?;
        let kinds = |name: &str| match name {
            "*" => Ok(NatKind::ALL.to_vec()),
            name => name.parse().map(|kind| vec![kind]),
        };
        Ok(Self { from: kinds(from)?, to: kinds(to)? })
    }
}

/// A dozen pairs that have something of everything.
pub(crate) fn quick() -> Vec<(NatKind, NatKind)> {
    use NatKind::*;
    vec![
        (None, None),
        (FullCone, Restricted),
        (PortRestricted, PortRestricted),
        (PortRestricted, None),
        (Hairpin, Double),
        (Double, Mapped),
        (Mapped, OneToOne),
        (SymmetricSequential, FullCone),
        (Restricted, SymmetricRandom),
        (SymmetricRandom, SymmetricRandom),
        (Nat64, PortRestricted),
        (UdpBlocked, Restricted),
    ]
}

/// The pairs that were chosen, each once; all of them without a choice.
pub(crate) fn chosen(choices: &[Choice]) -> Vec<(NatKind, NatKind)> {
    let every = || NatKind::ALL.into_iter().flat_map(|from| NatKind::ALL.map(|to| (from, to)));
    if choices.is_empty() {
        return every().collect();
    }
    let wanted = |(from, to): &(NatKind, NatKind)| {
        choices.iter().any(|choice| choice.from.contains(from) && choice.to.contains(to))
    };
    every().filter(wanted).collect()
}

/// Runs all pairs, `jobs` at a time, and returns what was seen in the order of the pairs.
pub(crate) fn run(
    binary: &Path,
    folder: &Path,
    pairs: &[(NatKind, NatKind)],
    jobs: usize,
    watch: Duration,
) -> Vec<PairResult> {
    let begun = Instant::now();
    let waiting: Mutex<VecDeque<usize>> = Mutex::new((0..pairs.len()).collect());
    let done: Mutex<Vec<(usize, PairResult)>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..jobs.clamp(1, pairs.len().max(1)) {
            scope.spawn(|| {
                while !stop::requested() {
                    let next = waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                    let Some(index) = next else { break };
                    let (from, to) = pairs[index];
                    let own = folder.join(format!("{from}-{to}-{index}"));
                    let result = pair::run(binary, &own, from, to, watch);
                    if stop::requested() {
                        break;
                    }
                    let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
                    done.push((index, result));
                    progress(done.len(), pairs.len(), begun, &done[done.len() - 1].1);
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, result)| result).collect()
}

/// A line of its own for each pair, and on a terminal a bar under them.
fn progress(done: usize, of: usize, begun: Instant, last: &PairResult) {
    let mut err = std::io::stderr().lock();
    let is_terminal = err.is_terminal();
    let clear = if is_terminal { "\r\x1b[K" } else { "" };
    // Nobody is left to tell where this fails.
    let _ = writeln!(err, "{clear}{}", line(last));
    if is_terminal && done < of {
        let left = begun.elapsed().mul_f64((of - done) as f64 / done as f64).as_secs();
        let bar: String = (0..30).map(|cell| if cell * of < done * 30 { '=' } else { ' ' }).collect();
        let _ = write!(err, "[{bar}] {done}/{of}, about {left} s left");
        let _ = err.flush();
    }
}

/// One pair in one line.
pub(crate) fn line(result: &PairResult) -> String {
    let pair = format!("{} × {}", result.from, result.to);
    let Some(first) = result.first_byte_ms else {
        return format!("{pair:<44} NOT CONNECTED: {}", result.error.as_deref().unwrap_or("no reason given"));
    };
    let direct = result.direct_ms.map_or(String::new(), |ms| format!(", direct after {ms} ms"));
    let reason = result.reason.as_deref().map_or(String::new(), |reason| format!(" ({reason})"));
    let trouble = match (&result.error, result.lost) {
        (Some(error), _) => format!(" ERROR: {error}"),
        (_, 0) => String::new(),
        (_, lost) => format!(" LOST {lost}"),
    };
    format!(
        "{pair:<44} first byte {first:>5} ms by {}, then {}{reason}{direct}{trouble}",
        result.first_path.as_deref().unwrap_or("?"),
        result.path.as_deref().unwrap_or("?"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_chosen_by_name_or_star() {
        assert_eq!(chosen(&[]).len(), 144);
        let row: Choice = "mapped:*".parse().expect("row");
        let one: Choice = "none×nat64".parse().expect("one");
        assert_eq!(chosen(std::slice::from_ref(&row)).len(), 12);
        assert_eq!(chosen(&[row.clone(), one, row]).len(), 13);
        assert!("none".parse::<Choice>().is_err() && "none:cone".parse::<Choice>().is_err());
        let all: Choice = "*:*".parse().expect("all");
        assert_eq!(chosen(&[all]).len(), 144);
        assert_eq!(quick().len(), 12);
    }
}
