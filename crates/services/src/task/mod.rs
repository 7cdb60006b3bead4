//! Task submission, port 1003 (spec/services.md §7): one node asks another to do something and gets results.
//!
//! [`Store`] keeps the tasks of both sides, on disk if it has a directory. [`serve`] takes what others send; [`Tasks`] is
//! what the operator does (submit, accept, decline, execute, results, cancel). Each decision is stored first and then
//! sent to the other side, again and again until it took it or [`store::NOTICE_LIFE`] has passed.

mod client;
mod operate;
mod receive;
pub mod store;
mod wire;

pub use client::{ClientError, deliver, submit};
pub use operate::{MAX_FILE, OperateError, Output, TELLERS, Tasks};
pub use receive::{Scores, Taken, serve};
pub use store::{Side, Store, StoreError, Task};
pub use wire::{
    HEADER, MAX_JSON, MAX_TEXT, Message, Reply, Results, State, Status, Submission, TaskId, TaskIdError,
    WireError, header,
};

/// The port that serves it (draft-01 §8.1).
pub const PORT: u16 = 1003;

#[cfg(test)]
mod tests;
