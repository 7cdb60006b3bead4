//! Transport comparisons: the same bytes through Pilotage, TLS 1.3 over TCP, QUIC and plain TCP.
//!
//! Every contender runs as two fresh operating-system processes, each pinned to one core, and speaks
//! the same tiny exchange ([`exchange`]) over its stream. The parent ([`runner`]) interleaves the
//! repeats, watches for foreign load, and prints medians with their spread ([`report`]).

pub mod certificate;
pub mod exchange;
pub mod measure;
pub mod pilotage_peer;
pub mod quic;
pub mod report;
pub mod runner;
pub mod settings;
pub mod tcp;
pub mod tls;

/// Any failure of a bench program; the text names the stage.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;
