//! The fuzz targets: one function per target, used by the libFuzzer programs in `fuzz_targets/`, by the replay of all
//! corpora on a stable compiler (`tests/replay.rs`), and by anybody who wants to look at one input.
//!
//! Parsers that live in programs or in crates with IO are included as source files, so that nothing has to be made
//! public for the fuzzer and no IO crate has to be built.

use std::time::Instant;

mod beacon;
mod bench;
/// The frames between the nodes of a registry cluster.
#[path = "../../crates/cluster/src/frame.rs"]
#[allow(dead_code, unreachable_pub, reason = "the crate itself uses the rest")]
mod cluster;
mod decode;
mod discover;
mod file;
mod inputs;
/// The invariants of the wire parsers, shared with the mutation test of `pilotage-wire`.
#[path = "../../crates/wire/tests/vectors/invariants.rs"]
pub mod invariants;
mod path;
mod prec;
mod reach;
mod registry;
mod services;
/// The messages of SOCKS clients.
#[path = "../../crates/services/src/gateway/socks5/wire.rs"]
#[allow(dead_code, unreachable_pub, reason = "the crate itself uses the rest")]
mod socks;
mod state;
mod trust;

/// One target.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name: a program in `fuzz_targets/`, a folder in `corpus/` and `regressions/`.
    pub name: &'static str,
    /// What it does with one input; panics if an invariant does not hold.
    pub run: fn(&[u8]),
}

macro_rules! targets {
    ($($name:ident => $run:expr),* $(,)?) => {
        /// All targets, parsers first.
        pub const TARGETS: &[Target] = &[$(Target { name: stringify!($name), run: target::$name }),*];

        /// One function per target: a program that calls one holds nothing of the others.
        pub mod target {
            use super::{
                base, beacon, bench, cluster, decode, discover, file, invariants, path, prec, reach, registry,
                services, socks, state, trust,
            };
            use pilotage_proto::fuzzing;

            $(
                #[doc = concat!("The target `", stringify!($name), "`.")]
                pub fn $name(data: &[u8]) {
                    ($run)(data);
                }
            )*
        }
    };
}

targets! {
    // Parsers.
    address => invariants::address,
    packet => invariants::packet,
    frame => invariants::frame,
    pila_trailer => invariants::pila_trailer,
    sack => invariants::sack,
    beacon => invariants::beacon,
    registry_frame => invariants::registry_frame,
    ipc => invariants::ipc,
    s1_handshake => invariants::s1_handshake,
    s1_frames => invariants::s1_frames,
    socks5 => socks::fuzz_input,
    registry_record => registry::record,
    prec => prec::record,
    claims => prec::claims,
    book => prec::messages,
    cluster_frame => cluster::fuzz_input,
    registry_map => pilotage_registry::placement::fuzz_input,
    heartbeat => pilotage_registry::replica::presence::fuzz_input,
    ledger => pilotage_registry::ledger::fuzz_input,
    reach_text => reach::text,
    portmap => |data| reach::portmap(base(), data),
    igd => |data| reach::igd(base(), data),
    capture => decode::capture,
    view => decode::view,
    file_header => file::file_header,
    bench_header => bench::bench_header,
    state_files => state::state_files,
    trust_message => trust::trust_message,
    trust_file => trust::trust_file,
    nameserver_text => services::nameserver_text,
    secure_frame => services::secure_frame,
    message_frame => services::message_frame,
    event_frame => services::event_frame,
    task_frame => services::task_frame,
    skill_card => discover::skill_card,
    discover_frame => discover::discover_frame,
    discover_records => discover::discover_records,
    // Data structures against models.
    assembler => |data| fuzzing::assembler(base(), data),
    send_buffer => |data| fuzzing::send_buffer(base(), data),
    scoreboard => |data| fuzzing::scoreboard(base(), data),
    replay_window => |data| fuzzing::replay(base(), data),
    // State machines.
    connection => |data| fuzzing::connection(base(), data),
    stream => |data| fuzzing::stream(base(), data),
    tunnel => |data| fuzzing::tunnel(base(), data),
    pair => |data| fuzzing::pair(base(), data),
    s1 => |data| fuzzing::s1(base(), data),
    s1_mux => |data| fuzzing::s1_mux(base(), data),
    beacon_engine => |data| beacon::beacon_engine(base(), data),
    beacon_client => |data| beacon::beacon_client(base(), data),
    path_offer => path::path_offer,
    path_agent => |data| path::path_agent(base(), data),
    registry => |data| registry::engine(base(), data),
}

/// Where virtual time begins: any instant will do, only differences count.
fn base() -> Instant {
    thread_local! {
        static BASE: Instant = Instant::now();
    }
    BASE.with(|base| *base)
}
