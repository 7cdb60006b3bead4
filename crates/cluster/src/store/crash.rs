//! Power loss at every operation of the disk: what was acknowledged is there afterwards, and nothing that never was.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use openraft::{CommittedLeaderId, EntryPayload};
use redb::StorageBackend;

use super::*;
use crate::types::{Command, Entry};

/// What happened to the disk.
#[derive(Debug, Clone)]
enum Event {
    Len(u64),
    Write(u64, Vec<u8>),
    Sync,
    /// The model's state of this number was acknowledged; whether it must be durable.
    Acknowledged(usize, bool),
}

/// A disk that writes down what is done to it.
#[derive(Debug, Clone, Default)]
struct Recorder(Arc<Mutex<(Vec<u8>, Vec<Event>)>>);

fn apply(image: &mut Vec<u8>, event: &Event) {
    match event {
        Event::Len(len) => image.resize(usize::try_from(*len).expect("small"), 0),
        Event::Write(offset, data) => {
            let start = usize::try_from(*offset).expect("small");
            if image.len() < start + data.len() {
                image.resize(start + data.len(), 0);
            }
            image[start..start + data.len()].copy_from_slice(data);
        }
        Event::Sync | Event::Acknowledged(..) => {}
    }
}

impl Recorder {
    fn on(image: Vec<u8>) -> Self {
        Self(Arc::new(Mutex::new((image, Vec::new()))))
    }

    fn note(&self, event: Event) {
        let (image, events) = &mut *self.0.lock().expect("lock");
        apply(image, &event);
        events.push(event);
    }
}

impl StorageBackend for Recorder {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().expect("lock").0.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).expect("small");
        let image = &self.0.lock().expect("lock").0;
        let part = image.get(start..start + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(part);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.note(Event::Len(len));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.note(Event::Sync);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.note(Event::Write(offset, data.to_vec()));
        Ok(())
    }
}

/// What a file says.
#[derive(Debug, Clone, PartialEq, Default)]
struct Model {
    vote: Option<Vote>,
    entries: BTreeMap<u64, Vec<u8>>,
    purged: Option<LogId>,
    snapshot: Option<(SnapshotMeta, Vec<u8>)>,
}

impl Model {
    fn of(store: &Store) -> Self {
        let command = |entry: Entry| match entry.payload {
            EntryPayload::Normal(command) => (entry.log_id.index, command.0),
            other => panic!("{other:?}"),
        };
        Self {
            vote: read_vote(store).expect("vote"),
            entries: LogStore(store.clone()).read_all().expect("log").into_iter().map(command).collect(),
            purged: store.meta(PURGED).expect("purged"),
            snapshot: store.snapshot().expect("snapshot"),
        }
    }
}

fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(CommittedLeaderId::new(term, 1), index)
}

/// Does a life's worth of things, and acknowledges each.
fn live(store: &Store, recorder: &Recorder, rounds: u64) -> Vec<Model> {
    let log = LogStore(store.clone());
    let mut states = vec![Model::of(store)];
    let mut model = states[0].clone();
    let mut next = 1_u64;
    let mut done = |model: &Model, durable: bool| {
        states.push(model.clone());
        recorder.note(Event::Acknowledged(states.len() - 1, durable));
    };
    for round in 1..=rounds {
        let vote = Vote::new_committed(round, 1);
        log.write_vote(&vote).expect("vote");
        model.vote = Some(vote);
        done(&model, true);
        for batch in 0..4_u64 {
            let entries: Vec<Entry> = (0..=batch)
                .map(|number| {
                    let bytes = vec![(round * 7 + number) as u8; 20 + 300 * (number as usize % 3)];
                    Entry {
                        log_id: log_id(round, next + number),
                        payload: EntryPayload::Normal(Command(bytes)),
                    }
                })
                .collect();
            for entry in &entries {
                let EntryPayload::Normal(command) = &entry.payload else { continue };
                model.entries.insert(entry.log_id.index, command.0.clone());
            }
            next += entries.len() as u64;
            log.write(entries).expect("entries");
            done(&model, true);
        }
        if round % 3 == 0 {
            next -= 2;
            log.remove(next.., None).expect("truncate");
            model.entries.split_off(&next);
            done(&model, true);
        }
        if round % 2 == 0 {
            let last = log_id(round, next - 1);
            let about = SnapshotMeta {
                last_log_id: Some(last),
                snapshot_id: format!("{round}"),
                ..Default::default()
            };
            let bytes = vec![round as u8; 3_000 * round as usize];
            store.set_snapshot(&about, &bytes).expect("snapshot");
            model.snapshot = Some((about, bytes));
            done(&model, true);
            let upto = log_id(round, next - 4);
            log.remove(..=upto.index, Some(upto)).expect("purge");
            model.entries = model.entries.split_off(&(upto.index + 1));
            model.purged = Some(upto);
            done(&model, false);
        }
    }
    states
}

/// What may be on the platter: everything before the last sync, and of what came after any part, torn pieces included.
fn after_power_loss(durable: &[u8], pending: &[Event], mut random: u64) -> Vec<u8> {
    let mut image = durable.to_vec();
    for event in pending {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        match (random % 4, event) {
            (0, _) => {}
            (1, Event::Write(offset, data)) if data.len() > 512 => {
                apply(&mut image, &Event::Write(*offset, data[..512].to_vec()));
            }
            _ => apply(&mut image, event),
        }
    }
    image
}

/// `PILOTAGE_CRASH_CHOICES`: outcomes that are tried at each operation. 2 in the ordinary run.
#[test]
fn a_crash_keeps_what_was_acknowledged() {
    let choices = std::env::var("PILOTAGE_CRASH_CHOICES").map_or(2, |text| text.parse().expect("a number"));
    let path = Path::new("/hub/cluster.redb");
    let open = |disk: Recorder| Store::open_on(path, &[7; 32], disk);
    let first = Recorder::default();
    drop(open(first.clone()).expect("opens"));
    let begin = first.0.lock().expect("lock").0.clone();
    let recorder = Recorder::on(begin.clone());
    let store = open(recorder.clone()).expect("opens");
    let id = store.id();
    let states = live(&store, &recorder, 8);
    drop(store);
    let events = recorder.0.lock().expect("lock").1.clone();
    let (mut durable, mut pending) = (begin, Vec::new());
    let (mut least, mut most) = (0, 0);
    let mut points = 0_u64;
    for (number, event) in events.iter().enumerate() {
        match event {
            Event::Acknowledged(state, must) => {
                most = *state;
                if *must {
                    least = *state;
                }
            }
            Event::Sync => {
                pending.drain(..).for_each(|event| apply(&mut durable, &event));
            }
            other => pending.push(other.clone()),
        }
        for choice in 0..choices {
            let seed = ((number as u64) << 20 | choice << 1 | 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
            let image = after_power_loss(&durable, &pending, seed);
            let store =
                open(Recorder::on(image)).unwrap_or_else(|error| panic!("operation {number}: {error}"));
            assert_eq!(store.id(), id, "the node is the same");
            let found = Model::of(&store);
            // One more than acknowledged may have reached the disk, whole.
            let allowed = &states[least..=(most + 1).min(states.len() - 1)];
            assert!(
                allowed.contains(&found),
                "operation {number}, states {least} to {}: {found:?}",
                most + 1
            );
            points += 1;
        }
    }
    assert_eq!(most, states.len() - 1, "the whole life was replayed");
    eprintln!("{points} crash points");
    assert!(points > 300);
}
