use std::io::Write;
use std::net::TcpStream;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use pilotage_wire::{Address, NodeId};

use super::store::{DECIDE_WITHIN, MAX_OPEN_PER_PEER, MAX_TASKS};
use super::*;
use crate::duplex::testing::pair;
use crate::duplex::{Duplex, Io};
use crate::vectors;

fn id(n: u8) -> TaskId {
    TaskId::from_random([n; 16])
}

fn peer(node: u32) -> Address {
    Address::new(0, node)
}

#[test]
fn golden_messages() {
    let cases = vectors::cases("port1003.json");
    assert_eq!(cases.len(), 7);
    for case in cases {
        let golden = vectors::bytes(&case, "frame_hex");
        let (kind, length) = header(golden[..HEADER].try_into().unwrap()).unwrap();
        assert_eq!((u64::from(kind), length), (case["type"].as_u64().unwrap(), golden.len() - HEADER));
        let json = &golden[HEADER..];
        let name = case["name"].as_str().unwrap();
        let ours = if name.contains("response") {
            Reply::decode(kind, json).unwrap().encode().unwrap()
        } else {
            Message::decode(kind, json).unwrap().encode().unwrap()
        };
        if kind == 2 {
            continue;
        }
        // The same JSON: the reference escapes <, > and &, which JSON leaves open.
        assert_eq!(ours[..4], golden[..4]);
        let value = |json: &[u8]| serde_json::from_slice::<serde_json::Value>(json).unwrap();
        assert_eq!(value(&ours[HEADER..]), value(json), "{name}");
    }
}

#[test]
fn task_ids() {
    let text = id(7).to_string();
    assert_eq!(text.parse(), Ok(id(7)));
    assert_eq!("00112233-4455-6677-8899-AABBCCDDEEFF".parse::<TaskId>().unwrap().as_str().len(), 36);
    for bad in [
        "",
        "../../../traversal",
        "00112233-4455-6677-8899-aabbccddeeff0",
        "00112233445566778899aabbccddeeff",
        "0011223g-4455-6677-8899-aabbccddeeff",
        "00112233-4455-6677-8899-aabbccddeef/",
        "00112233-4455-6677-8899-aabbccddeeff-",
    ] {
        assert_eq!(bad.parse::<TaskId>(), Err(TaskIdError), "{bad}");
    }
    assert!(Message::decode(3, br#"{"task_id":"../x","status":"NEW"}"#).is_err());
    assert!(Message::decode(9, b"{}").is_err());
    assert!(header([0, 0, 0, 1, 1, 0, 0, 1]).is_err());
}

fn submission(n: u8, from: &str) -> Submission {
    Submission {
        task_id: id(n),
        task_description: format!("do {n}"),
        from_addr: from.into(),
        to_addr: peer(9).to_string(),
    }
}

type Changed = Arc<Mutex<Vec<Task>>>;

/// A server for node 9 that is connected to node `from`.
fn served(taken: &Arc<Taken>, from: u32) -> (TcpStream, JoinHandle<Result<usize, ClientError>>, Changed) {
    let (client, server) = pair();
    let (taken, changed) = (taken.clone(), Changed::default());
    let changed_ = changed.clone();
    let handle = std::thread::spawn(move || {
        serve(&server, &taken, peer(from), &mut |task| changed_.lock().unwrap().push(task))
    });
    (client, handle, changed)
}

fn reception(scores: Option<Scores>) -> Arc<Taken> {
    Arc::new(Taken::new(Arc::new(Store::open(None).unwrap()), || NodeId(9), scores))
}

fn submit_to(taken: &Arc<Taken>, from: u32, submission: &Submission) -> Result<Reply, ClientError> {
    let (client, handle, _) = served(taken, from);
    let reply = submit(&client, submission);
    client.finish().unwrap();
    handle.join().unwrap().unwrap();
    reply
}

fn tell(taken: &Arc<Taken>, from: u32, messages: &[Message]) -> Vec<Task> {
    let (client, handle, changed) = served(taken, from);
    for message in messages {
        deliver(&client, message).unwrap();
    }
    client.finish().unwrap();
    assert_eq!(handle.join().unwrap().unwrap(), messages.len());
    changed.lock().unwrap().clone()
}

#[test]
fn submissions_are_taken_refused_and_repeated() {
    let taken = reception(None);
    let reply = submit_to(&taken, 1, &submission(1, "0:0000.0000.0001")).unwrap();
    assert_eq!((reply.status, reply.message.as_str()), (200, "Task received with status NEW"));
    submit_to(&taken, 1, &submission(1, "0:0000.0000.0001")).unwrap();
    assert_eq!(taken_store(&taken).list().len(), 1, "the same one again is no second task");
    let mut other = submission(1, "");
    other.task_description = "something else".into();
    assert!(submit_to(&taken, 1, &other).is_err());
    assert!(submit_to(&taken, 2, &submission(1, "")).is_err(), "another peer's id");
    match submit_to(&taken, 2, &submission(2, "0:0000.0000.0001")) {
        Err(ClientError::Refused(why)) => assert!(why.contains("from_addr"), "{why}"),
        other => panic!("{other:?}"),
    }
    let (client, handle, _) = served(&taken, 1);
    Io(&client).write_all(b"\0\0\0\x01\0\0\0\x02[]").unwrap();
    client.finish().unwrap();
    let mut answer = Vec::new();
    std::io::Read::read_to_end(&mut Io(&client), &mut answer).unwrap();
    assert_eq!(Reply::decode(1, &answer[HEADER..]).unwrap().status, 400);
    handle.join().unwrap().unwrap();
}

fn taken_store(taken: &Taken) -> &Store {
    taken.store()
}

#[test]
fn polo_scores_decide_if_they_are_asked_for() {
    let scores: Scores = Arc::new(|node: NodeId| match node.0 {
        9 => Ok(1),
        3 => Err("the registry does not answer".into()),
        node => Ok(i64::from(node) - 1),
    });
    let taken = reception(Some(scores));
    match submit_to(&taken, 1, &submission(1, "")) {
        Err(ClientError::Refused(why)) => assert_eq!(why, "Polo score too low: submitter=0, receiver=1"),
        other => panic!("{other:?}"),
    }
    submit_to(&taken, 2, &submission(2, "")).expect("equal is enough");
    assert!(submit_to(&taken, 3, &submission(3, "")).is_err(), "not without a score");
}

#[test]
fn open_tasks_of_a_peer_are_bounded_and_finished_ones_make_room() {
    let store = Store::open(None).unwrap();
    let task = |n: u32, node: u32, state| Task {
        id: TaskId::from_random({
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&n.to_be_bytes());
            bytes
        }),
        side: Side::Received,
        peer: peer(node).to_string(),
        description: String::new(),
        state,
        justification: String::new(),
        created: n.into(),
        accepted: None,
        begun: None,
        changed: n.into(),
        result: None,
        untold: false,
    };
    for n in 0..MAX_OPEN_PER_PEER as u32 {
        store.add(task(n, 1, State::New)).unwrap();
    }
    assert!(matches!(store.add(task(999, 1, State::New)), Err(StoreError::Full)));
    for n in 100..100 + (MAX_TASKS - MAX_OPEN_PER_PEER) as u32 {
        store.add(task(n, 2, State::Declined)).unwrap();
    }
    assert_eq!(store.list().len(), MAX_TASKS);
    store.add(task(5000, 3, State::New)).unwrap();
    assert_eq!(store.list().len(), MAX_TASKS);
    assert!(!store.list().iter().any(|task| task.created == 100), "the oldest finished one went");
}

fn submitted(store: &Store, n: u8, node: u32) {
    let task = Task {
        id: id(n),
        side: Side::Submitted,
        peer: peer(node).to_string(),
        description: "d".into(),
        state: State::New,
        justification: String::new(),
        created: 1,
        accepted: None,
        begun: None,
        changed: 1,
        result: None,
        untold: false,
    };
    store.add(task).unwrap();
}

fn status(n: u8, status: State) -> Message {
    Message::Status(Status { task_id: id(n), status, justification: "j".into() })
}

fn results(n: u8, kind: &str) -> Message {
    Message::Results(Box::new(Results {
        task_id: id(n),
        result_type: kind.into(),
        result_text: "done it".into(),
        filename: "../../evil".into(),
        file_data: "YSxiCg==".into(),
        completed_at: "2026-01-02T03:04:05Z".into(),
        time_idle_ms: 0,
        time_staged_ms: 0,
        time_cpu_ms: 0,
    }))
}

#[test]
fn only_the_other_side_of_a_task_changes_it() {
    let taken = reception(None);
    let store = taken_store(&taken);
    submitted(store, 1, 1);
    assert!(tell(&taken, 2, &[status(1, State::Accepted), results(1, "text")]).is_empty(), "a stranger");
    assert!(tell(&taken, 1, &[status(2, State::Accepted)]).is_empty(), "no such task");
    // Everything that old peers put on one stream is read.
    let changed =
        tell(&taken, 1, &[status(1, State::Accepted), status(1, State::Executing), results(1, "text")]);
    assert_eq!(changed.len(), 3);
    assert_eq!(changed[2].state, State::Succeeded);
    assert_eq!(changed[2].result.as_ref().unwrap().text.as_deref(), Some("done it"));
    assert!(tell(&taken, 1, &[status(1, State::Accepted), results(1, "text")]).is_empty(), "final is final");
    // The submitter may take back what it asked for, and nothing else.
    submit_to(&taken, 1, &submission(5, "")).unwrap();
    assert!(tell(&taken, 1, &[status(5, State::Succeeded)]).is_empty());
    assert_eq!(tell(&taken, 1, &[status(5, State::Cancelled)])[0].state, State::Cancelled);
}

#[test]
fn tasks_and_results_survive_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let tasks = dir.path().join("tasks");
    let store = Arc::new(Store::open(Some(&tasks)).unwrap());
    let taken = Arc::new(Taken::new(store.clone(), || NodeId(9), None));
    submitted(&store, 1, 1);
    submit_to(&taken, 2, &submission(2, "")).unwrap();
    tell(&taken, 1, &[results(1, "file")]);
    let before = store.list();
    drop(store);
    // As after kill -9: half-written files and strangers' files lie about.
    std::fs::write(tasks.join("received-x.part"), b"{").unwrap();
    std::fs::write(tasks.join("received-y.json"), b"{").unwrap();
    let store = Store::open(Some(&tasks)).unwrap();
    assert_eq!(store.list(), before);
    assert_eq!(Store::peek(&tasks).unwrap(), before);
    let path = store.result_path(Side::Submitted, &id(1)).unwrap();
    assert_eq!(std::fs::read(path).unwrap(), b"a,b\n");
    assert_eq!(store.get(Side::Submitted, &id(1)).unwrap().result.unwrap().name, None, "an unsafe name");
    assert!(!tasks.join("received-x.part").exists());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing outside");
}

#[test]
fn time_limits() {
    let store = Store::open(None).unwrap();
    let taken = Arc::new(Taken::new(Arc::new(store), || NodeId(9), None));
    submit_to(&taken, 1, &submission(1, "")).unwrap();
    let store = taken_store(&taken);
    let created = store.list()[0].created;
    let minute = DECIDE_WITHIN.as_millis() as u64;
    assert!(store.expire(created + minute).is_empty());
    let changed = store.expire(created + minute + 1);
    assert_eq!((changed[0].state, changed[0].untold), (State::Cancelled, true));
    assert_eq!(changed[0].justification, super::store::TOO_LATE);
    assert!(store.expire(created + 10 * minute).is_empty(), "only once");
}
