//! Who can do this? Discovery of agents by capability (spec/discovery.md), sans-IO.
//!
//! An agent declares what it can do in a signed [`card`]; a holder of cards keeps them in an [`index`] and answers a
//! [`query`]; whoever asks several holders makes one list of the answers by [`merge`]. What is found always comes with
//! its explanation ([`rank`]). [`plan`] decides to whom a call goes when an agent fails.
//!
//! # Contract
//!
//! No clock, socket, file or randomness: `now` comes in as seconds since 1970, signatures are made by closures. Every
//! table has a bound, which its module names. Nothing that comes from others can panic here. The exchange between nodes
//! is `pilotage_services::find`.
//!
//! | module | what it is |
//! |---|---|
//! | [`tag`] | `finance.fx.history` |
//! | [`declare`], [`card`] | what an agent says it can do, and its signed form |
//! | [`descriptor`] | the long form, compatible with A2A agent cards |
//! | [`embed`] | vectors of 384 bytes |
//! | [`query`], [`index`], [`rank`] | asking, finding, ordering |
//! | [`evidence`] | own experience, probes, attestations |
//! | [`group`] | which networks to ask |
//! | [`merge`] | answers of many |
//! | [`plan`] | to whom a call goes |
//! | [`wire`] | messages between nodes |
#![forbid(unsafe_code)]

mod bytes;
pub mod card;
pub mod declare;
pub mod descriptor;
pub mod embed;
pub mod evidence;
pub mod group;
pub mod index;
pub mod merge;
pub mod plan;
pub mod query;
pub mod rank;
pub mod tag;
mod top;
pub mod wire;
mod words;

pub use card::{AgentKey, Card, SignedCard};
pub use declare::{Declaration, Skill};
pub use index::Index;
pub use query::Query;
pub use tag::Tag;
