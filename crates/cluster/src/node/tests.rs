//! Real nodes on loopback, in one process.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::*;
use crate::free::free;
use crate::{DiskFault, Faults, parse_id};

/// Patience for everything: the machine may be busy.
const LONG: Duration = Duration::from_secs(180);

/// All commands that were applied, once each.
#[derive(Default)]
struct Words(Vec<Vec<u8>>);

impl Machine for Words {
    fn apply(&mut self, command: &[u8]) -> Vec<u8> {
        let at = self.0.iter().position(|word| word == command).unwrap_or_else(|| {
            self.0.push(command.to_vec());
            self.0.len() - 1
        });
        at.to_string().into_bytes()
    }

    fn snapshot(&self) -> Vec<u8> {
        postcard::to_stdvec(&self.0).expect("fits")
    }

    fn install(&mut self, snapshot: &[u8]) -> Result<(), String> {
        self.0 = postcard::from_bytes(snapshot).map_err(|error| error.to_string())?;
        Ok(())
    }
}

fn config(folder: &Path, bind: SocketAddr, start: Start) -> ClusterConfig {
    let mut config = ClusterConfig::new(folder, bind, start);
    config.token = Some(b"the token of these tests".to_vec());
    config.join_patience = LONG;
    config.snapshot_every = 20;
    config.timing = Timing::SLOW;
    config
}

struct Group {
    folder: tempfile::TempDir,
    nodes: Vec<Option<Cluster<Words>>>,
    binds: Vec<SocketAddr>,
    faults: Vec<Faults>,
}

impl Group {
    fn new(count: usize) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let mut group = Self { folder, nodes: Vec::new(), binds: Vec::new(), faults: Vec::new() };
        for _ in 0..count {
            group.add();
        }
        group.until("all are voters", |group| group.voters() == count);
        group
    }

    fn add(&mut self) -> usize {
        let index = self.nodes.len();
        self.binds.push(free());
        self.nodes.push(None);
        self.faults.push(Faults::default());
        self.start(index);
        index
    }

    fn path(&self, index: usize) -> PathBuf {
        self.folder.path().join(index.to_string())
    }

    fn start(&mut self, index: usize) {
        let first = self.binds[0].to_string();
        let start = if index == 0 { Start::Found } else { Start::Join(vec![first]) };
        let mut config = config(&self.path(index), self.binds[index], start);
        config.faults = self.faults[index].clone();
        self.nodes[index] = Some(Cluster::start(config, Words::default()).expect("starts"));
    }

    fn live(&self) -> impl Iterator<Item = &Cluster<Words>> {
        self.nodes.iter().flatten()
    }

    /// As the node that knows least sees it; none while a change is under way: in it a majority of the new ones alone
    /// decides nothing, and who is cut off then may take everything with it.
    fn voters(&self) -> usize {
        let voters = |node: &Cluster<Words>| {
            let status = node.status();
            if status.changing { 0 } else { status.members.iter().filter(|member| member.voter).count() }
        };
        self.live().map(voters).min().unwrap_or(0)
    }

    fn leader(&self) -> usize {
        let mut found = None;
        self.until("there is a leader", |group| {
            let leads = |node: &Option<Cluster<Words>>| {
                let status = node.as_ref().map(Cluster::status).unwrap_or_default();
                status.role == "leader" && status.quorum_ms.is_some_and(|age| age < 1_000)
            };
            found = group.nodes.iter().position(leads);
            found.is_some()
        });
        found.expect("leader")
    }

    fn until(&self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + LONG;
        while !done(self) {
            assert!(
                Instant::now() < deadline,
                "never: {what}: {:#?}",
                self.live().map(Cluster::status).collect::<Vec<_>>()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn propose(&self, index: usize, word: &str) -> String {
        let node = self.nodes[index].as_ref().expect("runs");
        let answer = node.propose(word.as_bytes(), LONG).expect("ordered");
        String::from_utf8(answer).expect("number")
    }

    /// All nodes have the same words.
    fn agree(&self, count: usize) {
        self.until("all agree", |group| {
            let words: Vec<Vec<Vec<u8>>> =
                group.live().map(|node| node.read(|words| words.0.clone())).collect();
            words.windows(2).all(|pair| pair[0] == pair[1]) && words[0].len() == count
        });
    }
}

#[test]
fn three_nodes_agree_and_outlive_their_leader() {
    let mut group = Group::new(3);
    for (index, word) in ["a", "b", "c"].into_iter().enumerate() {
        assert_eq!(group.propose(index, word), index.to_string());
    }
    assert_eq!(group.propose(2, "a"), "0", "asked again, answered again");
    group.agree(3);
    let leader = group.leader();
    group.nodes[leader] = None;
    let other = (leader + 1) % 3;
    assert_eq!(group.propose(other, "d"), "3");
    let node = group.nodes[other].as_ref().expect("runs");
    node.barrier(LONG).expect("a majority answers");
    assert_eq!(node.read(|words| words.0.len()), 4);
    // Enough for several snapshots: who was away comes back by one.
    for number in 0..60 {
        group.propose(other, &format!("more {number}"));
    }
    group.start(leader);
    group.agree(64);
    let id = group.nodes[leader].as_ref().expect("runs").status().id;
    assert!(group.live().all(|node| node.status().members.iter().any(|member| member.id == id)));
}

#[test]
fn a_cut_off_leader_grants_nothing_and_nothing_is_lost() {
    let group = Group::new(3);
    let old = group.leader();
    let others: Vec<usize> = (0..3).filter(|&index| index != old).collect();
    group.faults[old].cut(others.iter().map(|&other| group.binds[other]));
    for &other in &others {
        group.faults[other].cut([group.binds[old]]);
    }
    let node = group.nodes[old].as_ref().expect("runs");
    let refused = node.propose(b"of the minority", Duration::from_millis(1_500));
    assert!(matches!(refused, Err(ProposeError::Unavailable { .. })), "{refused:?}");
    assert!(node.barrier(Duration::from_millis(300)).is_err(), "no fresh read without a majority");
    assert_eq!(node.read(|words| words.0.len()), 0, "look-ups go on");
    assert_eq!(group.propose(others[0], "of the majority"), "0");
    for faults in &group.faults {
        faults.cut([]);
    }
    assert_eq!(group.propose(old, "together again"), group.propose(others[1], "together again"));
    group.until("all agree", |group| {
        let words: Vec<_> = group.live().map(|node| node.read(|words| words.0.clone())).collect();
        words.iter().all(|list| *list == words[0] && list.len() >= 2)
    });
}

/// The disk of the leader is full, or takes nothing for good: it leaves consensus and says why, still answers look-ups,
/// the others go on, and it comes back when there is room.
#[test]
fn a_leader_whose_disk_fails_makes_room_for_another() {
    let mut group = Group::new(3);
    for (round, fault) in [DiskFault::Full, DiskFault::Sync].into_iter().enumerate() {
        group.propose(0, &format!("before {round}"));
        group.agree(3 * round + 1);
        let old = group.leader();
        let other = (old + 1) % 3;
        group.faults[old].disk(fault);
        // What this does is one of the next: the leader cannot write it, and another one orders it.
        assert_eq!(group.propose(other, &format!("during {round}")), (3 * round + 1).to_string());
        group.until("it has stopped", |group| {
            group.nodes[old].as_ref().expect("runs").status().role == "stopped"
        });
        let node = group.nodes[old].as_ref().expect("runs");
        assert!(node.status().fault.is_some());
        assert!(node.read(|words| words.0.len()) > 3 * round, "look-ups go on");
        let refused = node.propose(b"here", Duration::from_millis(200));
        assert!(matches!(refused, Err(ProposeError::Stopped(_))), "{refused:?}");
        group.faults[old].disk(DiskFault::None);
        group.nodes[old] = None;
        group.start(old);
        group.propose(old, &format!("after {round}"));
        group.agree(3 * round + 3);
    }
}

#[test]
fn three_become_five_and_three_again() {
    let mut group = Group::new(3);
    group.propose(0, "before");
    group.add();
    group.until("the fourth listens", |group| group.live().all(|node| node.status().members.len() == 4));
    assert_eq!(group.voters(), 3, "an even number of voters helps nobody");
    group.add();
    group.until("five voters", |group| group.voters() == 5);
    group.propose(4, "with five");
    group.agree(2);
    let leader = group.leader();
    let leave: Vec<usize> = (0..5).filter(|&index| index != leader).take(2).collect();
    for &index in &leave {
        let id = group.nodes[index].take().expect("runs").id();
        let deadline = Instant::now() + LONG;
        while let Err(error) = group.nodes[group.leader()].as_ref().expect("runs").remove(id) {
            assert!(Instant::now() < deadline, "{error}");
        }
    }
    group.until("three voters", |group| group.voters() == 3);
    let left = group.leader();
    group.propose(left, "with three");
    group.agree(3);
}

#[test]
fn who_may_not_come_in_does_not() {
    let mut group = Group::new(1);
    let host = group.binds[0].to_string();
    let folder = tempfile::tempdir().expect("folder");
    let mut stranger = config(folder.path(), free(), Start::Join(vec![host.clone()]));
    stranger.token = Some(b"not the token of these tests".to_vec());
    stranger.join_patience = Duration::ZERO;
    let refused = Cluster::start(stranger.clone(), Words::default()).expect_err("wrong token");
    assert!(refused.to_string().contains("wrong token"), "{refused}");
    stranger.token = None;
    assert!(matches!(Cluster::start(stranger, Words::default()), Err(ClusterError::NoToken)));
    let nowhere = config(&folder.path().join("x"), free(), Start::Resume);
    assert!(matches!(Cluster::start(nowhere, Words::default()), Err(ClusterError::NoCluster(_))));
    // A node that lost its file is another one, and must not take the old one's place unasked.
    let second = group.add();
    let id = group.nodes[second].take().expect("runs").id();
    std::fs::remove_file(group.path(second).join(FILE)).expect("removed");
    let mut again = config(&group.path(second), group.binds[second], Start::Join(vec![host]));
    again.join_patience = Duration::ZERO;
    let refused = Cluster::start(again.clone(), Words::default()).expect_err("earlier file");
    assert!(refused.to_string().contains("earlier file"), "{refused}");
    group.nodes[0].as_ref().expect("runs").remove(id).expect("removed");
    again.join_patience = LONG;
    let fresh = Cluster::start(again, Words::default()).expect("joins");
    assert_ne!(fresh.id(), id);
    assert_eq!(parse_id(&fresh.status().id), Some(fresh.id()));
}

#[test]
fn nonsense_in_the_configuration_is_named() {
    let folder = tempfile::tempdir().expect("folder");
    let good = config(folder.path(), free(), Start::Found);
    let start = |change: &dyn Fn(&mut ClusterConfig)| {
        let mut config = good.clone();
        change(&mut config);
        Cluster::start(config, Words::default()).expect_err("refused")
    };
    assert!(matches!(start(&|config| config.weight = 0), ClusterError::Weight(0)));
    assert!(matches!(start(&|config| config.token = Some(vec![1; 15])), ClusterError::Token(15)));
    assert!(matches!(start(&|config| config.bind = ([0, 0, 0, 0], 7).into()), ClusterError::Endpoint(_)));
    let node = Cluster::start(good, Words::default()).expect("starts");
    let long = node.propose(&vec![0; MAX_COMMAND + 1], LONG);
    assert_eq!(long, Err(ProposeError::TooLong(MAX_COMMAND + 1)));
    assert!(node.remove(node.id()).is_err(), "the last voter stays");
    assert!(node.remove(1).is_err(), "nobody has this id");
}

#[test]
fn a_cluster_begins_with_a_state_and_whoever_joins_gets_it() {
    let folder = tempfile::tempdir().expect("folder");
    let state = |words: &[&str]| {
        let words = words.iter().map(|word| word.as_bytes().to_vec()).collect();
        std::sync::Arc::new(Words(words).snapshot())
    };
    let begin = |name: &str, bind, state: std::sync::Arc<Vec<u8>>| {
        Cluster::start(config(&folder.path().join(name), bind, Start::FoundWith(state)), Words::default())
    };
    let words = |node: &Cluster<Words>| node.read(|words| words.0.len());
    let (bind, other) = (free(), free());
    // What nobody understands begins nothing, and is in nobody's way afterwards.
    let refused = begin("first", bind, std::sync::Arc::new(vec![255; 40])).expect_err("no state");
    assert!(matches!(refused, ClusterError::State(_)), "{refused}");
    let first = begin("first", bind, state(&["a", "b"])).expect("starts");
    assert_eq!(words(&first), 2, "from the first moment on");
    assert_eq!(first.propose(b"b", LONG).expect("ordered"), b"1", "what was granted before is known");
    assert_eq!(first.propose(b"c", LONG).expect("ordered"), b"2");
    let status = first.status();
    assert_eq!((status.role.as_str(), status.members.len()), ("leader", 1));
    drop(first);
    // A cluster that has begun goes on with its own state.
    let first = begin("first", bind, state(&["x"])).expect("starts again");
    assert_eq!((first.status().cluster, first.status().id), (status.cluster.clone(), status.id));
    first.barrier(LONG).expect("leads");
    assert_eq!(words(&first), 3);
    let joins = Start::Join(vec![bind.to_string()]);
    let second = Cluster::start(config(&folder.path().join("second"), free(), joins), Words::default());
    let second = second.expect("joins");
    second.barrier(LONG).expect("caught up");
    assert_eq!(second.read(|words| words.0.clone()), first.read(|words| words.0.clone()));
    // The same state again is another cluster, whose nodes are strangers here.
    let twin = begin("twin", other, state(&["a", "b"])).expect("starts");
    assert_ne!(twin.status().cluster, status.cluster);
}
