//! Transport comparisons: the same work over Pilotage, QUIC, TLS 1.3 over TCP, and plain TCP.
//!
//! Every subject runs as two fresh operating-system processes, each pinned to one core. The works ([`work`]) are
//! written once over small traits ([`transport`]). The parent ([`runner`]) interleaves the repeats, watches
//! for foreign load, and hands [records](record) to the [report].

pub mod certificate;
pub mod control;
pub mod links;
pub mod measure;
pub mod record;
pub mod reference;
pub mod report;
pub mod runner;
pub mod settings;
pub mod side;
pub mod subject;
pub mod transport;
pub mod work;

/// Any failure of a bench program; the text names the stage.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;
