//! The invariants of every parser, shared with the mutation test of `pilotage-wire`.

#[path = "../../crates/wire/tests/vectors/invariants.rs"]
pub mod invariants;
