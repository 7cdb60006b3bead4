//! A file that nobody writes while it is copied.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Keeps the writer of a store from writing. As each transaction is complete in the file when it ends, a copy that is made
/// meanwhile is one that a process that died at that moment would have left: opening it repairs and verifies it. Reading goes
/// on; who writes waits.
#[derive(Debug, Clone, Default)]
pub struct Still(Arc<Mutex<()>>);

impl Still {
    /// Until the guard is dropped nothing is written.
    pub fn hold(&self) -> MutexGuard<'_, ()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
