//! Every kept input through its target, on a stable compiler: `corpus/`, what minimised runs reached, and
//! `regressions/`, what was once found. A panic names the file.

use std::fs;
use std::path::{Path, PathBuf};

use pilotage_fuzz::TARGETS;

/// Files of a target's folder below `kind`, in order; none if there is no such folder.
fn inputs(kind: &str, target: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(kind).join(target);
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("a readable folder").path()).collect();
    files.sort();
    files
}

/// Says which input it was, if the target panics.
struct Named<'a>(&'a Path);

impl Drop for Named<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the input was {}", self.0.display());
        }
    }
}

fn replay(target: &str) -> usize {
    let target = TARGETS.iter().find(|t| t.name == target).expect("a target of the table");
    let files: Vec<PathBuf> =
        ["corpus", "regressions"].iter().flat_map(|kind| inputs(kind, target.name)).collect();
    for file in &files {
        let bytes = fs::read(file).expect("a readable input");
        let named = Named(file);
        (target.run)(&bytes);
        drop(named);
    }
    (target.run)(&[]);
    files.len()
}

macro_rules! replays {
    ($($name:ident),* $(,)?) => {
        $(#[test]
        fn $name() {
            assert!(replay(stringify!($name)) > 0, "no kept inputs");
        })*

        #[test]
        fn every_target_is_replayed() {
            let here = [$(stringify!($name)),*];
            let all: Vec<&str> = TARGETS.iter().map(|t| t.name).collect();
            assert_eq!(here.as_slice(), all);
        }
    };
}

replays!(
    address,
    packet,
    frame,
    pila_trailer,
    sack,
    beacon,
    registry_frame,
    ipc,
    s1_handshake,
    s1_frames,
    socks5,
    registry_record,
    prec,
    claims,
    book,
    cluster_frame,
    registry_map,
    heartbeat,
    ledger,
    reach_text,
    portmap,
    igd,
    capture,
    view,
    file_header,
    bench_header,
    state_files,
    trust_message,
    trust_file,
    nameserver_text,
    secure_frame,
    message_frame,
    event_frame,
    task_frame,
    skill_card,
    discover_frame,
    discover_records,
    assembler,
    send_buffer,
    scoreboard,
    replay_window,
    connection,
    stream,
    tunnel,
    pair,
    s1,
    s1_mux,
    beacon_engine,
    beacon_client,
    path_offer,
    path_agent,
    registry,
);

#[test]
fn no_folder_without_a_target() {
    for kind in ["corpus", "regressions"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(kind);
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let name = entry.expect("a readable folder").file_name();
            assert!(TARGETS.iter().any(|t| *t.name == name), "{kind}/{} has no target", name.display());
        }
    }
}
