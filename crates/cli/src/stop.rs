//! Ctrl-C: the first one asks everything to end in order, the second one ends the process.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

type Hook = Box<dyn FnOnce() + Send>;

/// Shared by the signal handler, `main` and the command.
#[derive(Clone, Default)]
pub(crate) struct Stop {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    requested: AtomicBool,
    hooks: Mutex<Vec<Hook>>,
}

impl Stop {
    /// Whether the command was asked to end.
    pub(crate) fn requested(&self) -> bool {
        self.inner.requested.load(Ordering::Acquire)
    }

    /// The flag itself, for loops that take one.
    pub(crate) fn flag(&self) -> &AtomicBool {
        &self.inner.requested
    }

    /// Runs `hook` when the command is asked to end, at once if it was already. Used to wake what
    /// blocks (a node is closed, a child's pipe is shut).
    pub(crate) fn on_request(&self, hook: impl FnOnce() + Send + 'static) {
        let mut hooks = self.inner.hooks.lock().unwrap_or_else(PoisonError::into_inner);
        if self.requested() {
            drop(hooks);
            hook();
        } else {
            hooks.push(Box::new(hook));
        }
    }

    /// Asks to end; returns whether this was the first request. The hooks run on this thread.
    pub(crate) fn request(&self) -> bool {
        let hooks = {
            let mut hooks = self.inner.hooks.lock().unwrap_or_else(PoisonError::into_inner);
            if self.inner.requested.swap(true, Ordering::AcqRel) {
                return false;
            }
            std::mem::take(&mut *hooks)
        };
        for hook in hooks {
            hook();
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn hooks_run_once_and_late_ones_at_once() {
        let stop = Stop::default();
        let count = Arc::new(AtomicUsize::new(0));
        let hook = |count: &Arc<AtomicUsize>| {
            let count = count.clone();
            move || {
                count.fetch_add(1, Ordering::Relaxed);
            }
        };
        stop.on_request(hook(&count));
        assert!(!stop.requested());
        assert!(stop.request());
        assert!(!stop.request());
        stop.on_request(hook(&count));
        assert_eq!(count.load(Ordering::Relaxed), 2);
    }
}
