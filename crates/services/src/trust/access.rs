//! Who passes the gate of a private node besides the trusted: nodes that share a network with us, says the registry.
//!
//! The gate never waits for the registry: an unknown caller is turned away, the worker asks, and the caller's next SYN
//! finds the answer. Answers are kept for a while, and only so many questions are asked.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use pilotage_wire::NodeId;
use serde_json::{Value, json};

use super::Inner;
use super::serve::Job;

/// How long the registry's word counts: a yes, and a no.
const KEPT: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(10));
/// Answers that are kept; at the bound all are forgotten.
pub(super) const MAX_KEPT: usize = 1_024;
/// Questions per second, and at once. A registry of the reference takes 500 look-ups a minute from one address, and up
/// to three are needed for an answer.
const RATE: f64 = 1.0;
const BURST: f64 = 10.0;

/// What the registry said lately.
#[derive(Debug, Default)]
pub(super) struct Access {
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    answers: HashMap<NodeId, Answer>,
    left: Option<(f64, Instant)>,
}

#[derive(Debug, Clone, Copy)]
enum Answer {
    /// The worker was told to ask.
    Asked(Instant),
    Known(bool, Instant),
}

impl Access {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub(super) fn forget(&self, node: NodeId) {
        self.lock().answers.remove(&node);
    }

    /// The answer, if there is one; else whether to ask now.
    fn look(&self, node: NodeId, now: Instant) -> Result<bool, bool> {
        let mut known = self.lock();
        match known.answers.get(&node) {
            Some(Answer::Known(yes, until)) if now < *until => return Ok(*yes),
            Some(Answer::Asked(at)) if now.saturating_duration_since(*at) < KEPT.1 => return Err(false),
            _ => {}
        }
        if !known.take(now) {
            return Err(false);
        }
        if known.answers.len() >= MAX_KEPT {
            known.answers.clear();
        }
        known.answers.insert(node, Answer::Asked(now));
        Err(true)
    }

    pub(super) fn note(&self, node: NodeId, yes: bool, now: Instant) {
        let until = now + if yes { KEPT.0 } else { KEPT.1 };
        let mut known = self.lock();
        if known.answers.len() >= MAX_KEPT && !known.answers.contains_key(&node) {
            known.answers.clear();
        }
        known.answers.insert(node, Answer::Known(yes, until));
    }
}

impl Known {
    fn take(&mut self, now: Instant) -> bool {
        let (left, at) = self.left.unwrap_or((BURST, now));
        let left = (left + now.saturating_duration_since(at).as_secs_f64() * RATE).min(BURST);
        let allowed = left >= 1.0;
        self.left = Some((left - f64::from(u8::from(allowed)), now));
        allowed
    }
}

impl Inner {
    /// The gate's question: answered at once.
    #[allow(clippy::disallowed_methods, reason = "services are the IO edge")]
    pub(super) fn may_enter(&self, node: NodeId) -> bool {
        if self.is_trusted(node) {
            return true;
        }
        match self.access.look(node, Instant::now()) {
            Ok(answer) => answer,
            Err(ask) => {
                if ask && self.jobs.try_send(Job::Check(node)).is_err() {
                    self.access.forget(node);
                }
                false
            }
        }
    }

    /// Asks the registry whether a caller shares a network with us. Its list of trust alone does not count: at a
    /// registry of the reference anybody can put himself on it (spec/deviations.md N-5).
    #[allow(clippy::disallowed_methods, reason = "services are the IO edge")]
    pub(super) fn check_caller(&self, node: NodeId) {
        let question = json!({ "type": "check_trust", "node_id": self.us().0, "peer_id": node.0 });
        let connected = match self.node.registry_call(question, None) {
            Ok(reply) => reply["trusted"] == Value::Bool(true),
            Err(error) => {
                tracing::debug!(%error, %node, "no answer about a caller");
                return self.access.forget(node);
            }
        };
        let shared =
            connected && self.look_up(node).is_some_and(|entry| self.common_network(&entry).is_some());
        self.access.note(node, shared, Instant::now());
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_kept_for_a_while_and_questions_are_few() {
        let (access, start) = (Access::default(), Instant::now());
        assert_eq!(access.look(NodeId(1), start), Err(true));
        assert_eq!(access.look(NodeId(1), start), Err(false), "asked already");
        access.note(NodeId(1), true, start);
        assert_eq!(access.look(NodeId(1), start + Duration::from_secs(59)), Ok(true));
        assert_eq!(access.look(NodeId(1), start + Duration::from_secs(60)), Err(true));
        access.note(NodeId(2), false, start);
        assert_eq!(access.look(NodeId(2), start + Duration::from_secs(9)), Ok(false));
        let later = start + Duration::from_secs(600);
        let asked = (100..1_000).filter(|n| access.look(NodeId(*n), later) == Err(true)).count();
        assert_eq!(asked, 10);
        for n in 0..3 * MAX_KEPT as u32 {
            access.note(NodeId(10_000 + n), false, later);
            assert!(access.lock().answers.len() <= MAX_KEPT);
        }
    }
}
