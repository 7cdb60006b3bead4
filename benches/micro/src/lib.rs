//! What the parts of the stack cost: time, instructions, allocations, memory (spec/decisions/0006-memory-copies.md).
//!
//! * [`workloads`]: small pieces of work that criterion times and valgrind counts the instructions of
//!   (`cargo xtask bench --micro --instructions`).
//! * [`pair`]: two endpoints joined in memory, in virtual time, on which the tests count.

pub mod pair;
pub mod workloads;
