//! When to ask for an election, and ways to the others that are known to work before they are needed.
//!
//! Elections themselves are openraft's; asking for one at a wrong moment costs time and never a claim. openraft's own clock is
//! not used: it draws one time per node at start, looks at it at each tick (1.5 heartbeats) only, and makes a candidate that
//! was refused for its shorter log wait for twice as long, while whoever has the longer log does not know that it should ask.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use openraft::ServerState;
use openraft::raft::{AppendEntriesResponse, VoteRequest, VoteResponse};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::{CALL, Inner, Timing, rank};
use crate::machine::Machine;
use crate::net::message::{Reply, Request};
use crate::types::{LogId, RaftId, Vote};

/// How often the silence is looked at.
const TICK: Duration = Duration::from_millis(20);
/// Between two knocks at each other member.
const KNOCK: Duration = Duration::from_millis(700);
/// A member that has answered a knock within this is taken to be there.
const THERE: Duration = Duration::from_millis(2_500);
/// A node that was just started is not disturbed by silence for so long.
const STARTING: Duration = Duration::from_secs(1);
/// After an election that came to nothing.
const RETRY: Duration = Duration::from_millis(250);
/// After one at which a longer log of ours refused somebody.
const BETTER: Duration = Duration::from_millis(60);
/// Unsuccessful elections after which the pause grows no more.
const MOST_PAUSES: u32 = 4;
/// Unsuccessful elections after which we ask only if a majority answers knocks: our terms would disturb those who agree.
const BLIND: u32 = 2;

/// What this node has heard of a leader.
#[derive(Debug)]
pub(super) struct Watch {
    state: Mutex<Heard>,
    there: Mutex<HashMap<RaftId, Instant>>,
}

#[derive(Debug, Clone, Copy)]
struct Heard {
    /// The leader's last sign of life, or when we last asked or voted for another.
    at: Instant,
    /// The leader of that sign.
    leader: Option<Vote>,
    /// Elections that we asked for since then.
    attempts: u32,
    /// Somebody asked for our vote with a shorter log than ours.
    better: bool,
}

impl Watch {
    pub(super) fn new() -> Self {
        // In the future: a node that was just started leaves a leader time to find it.
        let at = Instant::now() + STARTING;
        let state = Heard { at, leader: None, attempts: 0, better: false };
        Self { state: Mutex::new(state), there: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, Heard> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn there(&self) -> MutexGuard<'_, HashMap<RaftId, Instant>> {
        self.there.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A leader speaks. If it is the one that we know, that counts although its entries are still to be written.
    pub(super) fn hears(&self, leader: Vote) {
        let mut state = self.state();
        if state.leader == Some(leader) {
            state.at = Instant::now();
        }
    }

    /// We took what it said.
    pub(super) fn follows(&self, leader: Vote) {
        *self.state() = Heard { at: Instant::now(), leader: Some(leader), attempts: 0, better: false };
    }

    pub(super) fn answered_append(&self, leader: Vote, response: &AppendEntriesResponse<RaftId>) {
        if !matches!(response, AppendEntriesResponse::HigherVote(_)) {
            self.follows(leader);
        }
    }

    pub(super) fn answered_vote(&self, request: &VoteRequest<RaftId>, response: &VoteResponse<RaftId>) {
        let mut state = self.state();
        if response.vote_granted {
            // Give it time to lead.
            (state.at, state.better) = (Instant::now(), false);
        } else if longer(response.last_log_id, request.last_log_id) {
            state.better = true;
        }
    }

    fn asks(&self) {
        let mut state = self.state();
        (state.at, state.attempts) = (Instant::now(), state.attempts.saturating_add(1));
    }

    fn majority_is_there(&self, now: Instant, others: &[RaftId]) -> bool {
        let there = self.there();
        let there = others.iter().filter(|id| there.get(id).is_some_and(|at| now - *at < THERE)).count();
        // With us.
        there + 1 > others.len().div_ceil(2)
    }
}

fn longer(ours: Option<LogId>, theirs: Option<LogId>) -> bool {
    ours > theirs
}

impl Heard {
    /// How long the silence has to last before we ask.
    fn patience(&self, rank: u32, timing: &Timing) -> Duration {
        match (self.attempts, self.better) {
            (0, false) => timing.election + timing.stagger * rank,
            // Nobody else can win; but the old leader may still be there.
            (0, true) => timing.election,
            (1, true) => BETTER,
            (attempts, _) => {
                // Not in step with another that fails as well.
                let turn = (rank + attempts) % 3;
                RETRY * attempts.min(MOST_PAUSES) + timing.stagger * turn
            }
        }
    }
}

/// Looks at the silence until the node is gone.
pub(super) async fn run<M: Machine>(inner: Weak<Inner<M>>, timing: Timing) {
    loop {
        sleep(TICK).await;
        let Some(inner) = inner.upgrade() else { return };
        let (leads, known, voters) = {
            let metrics = inner.raft.metrics();
            let metrics = metrics.borrow();
            if metrics.running_state.is_err() {
                return;
            }
            let leads = metrics.state == ServerState::Leader;
            let voters: Vec<RaftId> = metrics.membership_config.membership().voter_ids().collect();
            (leads, metrics.vote, voters)
        };
        if leads {
            inner.watch.follows(known);
            continue;
        }
        let me = inner.net.me;
        if !voters.contains(&me) {
            continue;
        }
        let others: Vec<RaftId> = voters.iter().copied().filter(|&id| id != me).collect();
        let heard = *inner.watch.state();
        let now = Instant::now();
        let patience = if others.is_empty() {
            RETRY * heard.attempts.min(MOST_PAUSES)
        } else {
            heard.patience(rank(me, voters.into_iter()), &timing)
        };
        if now.saturating_duration_since(heard.at) < patience
            || (heard.attempts >= BLIND && !inner.watch.majority_is_there(now, &others))
        {
            continue;
        }
        let (silence, attempts) = (now.saturating_duration_since(heard.at), heard.attempts);
        tracing::info!(?silence, attempts, better = heard.better, "no leader: asking to be elected");
        inner.watch.asks();
        if let Err(error) = inner.raft.trigger().elect().await {
            tracing::debug!(%error, "no election");
        }
    }
}

/// Knocks at all other members: tunnels and streams of members that never lead or follow each other would else be made, or
/// found dead, in the middle of an election.
pub(super) async fn knock<M: Machine>(inner: Weak<Inner<M>>) {
    loop {
        sleep(KNOCK).await;
        let Some(inner) = inner.upgrade() else { return };
        let mut knocks = JoinSet::new();
        let members = inner.members();
        inner.watch.there().retain(|id, _| members.iter().any(|(known, _)| known == id));
        for (id, _) in members {
            if id == inner.net.me {
                continue;
            }
            let inner = inner.clone();
            knocks.spawn(async move {
                if let Ok(Reply::Attested(_)) = inner.ask(id, &Request::Attest(Vec::new()), CALL).await {
                    inner.watch.there().insert(id, Instant::now());
                }
            });
        }
        while knocks.join_next().await.is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use openraft::CommittedLeaderId;

    fn heard(attempts: u32, better: bool) -> Heard {
        Heard { at: Instant::now(), leader: None, attempts, better }
    }

    #[test]
    fn members_ask_one_after_the_other_and_again_ever_later() {
        let timing = Timing::default();
        let first: Vec<_> = (0..7).map(|rank| heard(0, false).patience(rank, &timing)).collect();
        assert!(first.windows(2).all(|pair| pair[1] - pair[0] == timing.stagger), "{first:?}");
        assert_eq!(first[0], timing.election);
        for rank in 0..3 {
            let again: Vec<_> =
                (1..8).map(|attempts| heard(attempts, false).patience(rank, &timing)).collect();
            assert!(again.iter().all(|pause| *pause >= RETRY && *pause <= RETRY * 4 + timing.stagger * 2));
        }
        // Two that failed together do not ask together again.
        assert_ne!(heard(1, false).patience(0, &timing), heard(1, false).patience(1, &timing));
    }

    #[test]
    fn who_has_the_longer_log_asks_at_once() {
        let watch = Watch::new();
        let id = |index| Some(LogId::new(CommittedLeaderId::new(1, 1), index));
        let request = VoteRequest::new(Vote::new(2, 1), id(5));
        let refusal = VoteResponse::new(Vote::new(1, 9), id(6), false);
        watch.answered_vote(&request, &refusal);
        assert!(watch.state().better);
        assert_eq!(watch.state().patience(6, &Timing::default()), Timing::default().election);
        watch.asks();
        assert_eq!(watch.state().patience(6, &Timing::default()), BETTER);
        // A leader makes it forget.
        watch.follows(Vote::new_committed(3, 1));
        assert!(!watch.state().better && watch.state().attempts == 0);
        // A refusal for another reason changes nothing.
        watch.answered_vote(&request, &VoteResponse::new(Vote::new(4, 9), id(5), false));
        assert!(!watch.state().better);
    }

    #[test]
    fn who_hears_nobody_keeps_its_term_to_itself() {
        let watch = Watch::new();
        let now = Instant::now();
        assert!(!watch.majority_is_there(now, &[2, 3]));
        watch.there().insert(2, now);
        assert!(watch.majority_is_there(now, &[2, 3]));
        assert!(!watch.majority_is_there(now + THERE, &[2, 3]));
        assert!(!watch.majority_is_there(now, &[2, 3, 4, 5]));
        assert!(watch.majority_is_there(now, &[]));
        assert!(watch.majority_is_there(now, &[2]));
    }

    #[test]
    fn a_strangers_heartbeat_is_no_sign_of_life() {
        let watch = Watch::new();
        let begun = watch.state().at;
        watch.hears(Vote::new_committed(7, 7));
        assert_eq!(watch.state().at, begun);
        watch.answered_append(Vote::new_committed(7, 7), &AppendEntriesResponse::HigherVote(Vote::new(8, 1)));
        assert_eq!(watch.state().leader, None);
        watch.answered_append(Vote::new_committed(7, 7), &AppendEntriesResponse::Success);
        assert_eq!(watch.state().leader, Some(Vote::new_committed(7, 7)));
    }
}
