//! Services that run on Pilotage ports: those of draft-01 as its reference speaks them, and our own file transfer and benchmark.
//!
//! The protocols are specified in `spec/services.md`. Each one is written against [`Duplex`], a
//! byte stream with half-close, so that the same code runs over a `pilotage::Stream` and, in tests
//! and comparisons, over a `TcpStream`. [`server`] serves all of them on a `pilotage::Node`.
//!
//! | module | port | what it does |
//! |---|---|---|
//! | [`mod@echo`] | 7 | sends back what it reads |
//! | [`mod@nameserver`] | 53 | names for five minutes at a time |
//! | [`mod@secure`] | 443 | encrypted channel for applications |
//! | [`mod@message`] | 1001 | text, bytes, JSON and small files, each answered |
//! | [`mod@events`] | 1002 | publish and subscribe by topic |
//! | [`mod@task`] | 1003 | asking a node to do something |
//! | [`mod@file`] | 1010 | one file per stream, verified with BLAKE3 at both ends |
//! | [`mod@bench`] | 1011 | sink, source, request/reply; counts datagrams |
//! | [`mod@report`] | 1012 | how a node sees the one that asks |
//! | [`mod@find`] | 1013, 1014 | who can do this? and calls by capability |
//! | [`mod@trust`] | 444 | who trusts whom: requests, approvals, the gate of a private node |
//!
//! Memory is bounded everywhere: the constants that bound it are public and documented.

pub mod bench;
mod budget;
pub mod clock;
pub mod duplex;
pub mod echo;
pub mod events;
pub mod file;
pub mod find;
pub mod gateway;
pub mod message;
pub mod nameserver;
pub mod report;
pub mod secure;
pub mod server;
pub mod task;
pub mod trust;
#[cfg(test)]
mod vectors;

pub use duplex::Duplex;
