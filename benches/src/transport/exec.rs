//! Where the futures of a work run: on plain threads with blocking calls, or on a single-threaded tokio runtime.

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use crate::Failure;

/// Stack of a thread that serves or drives one stream, in bytes.
const STACK: usize = 256 << 10;

/// Where futures run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exec {
    /// A thread for each; every call blocks.
    Threads,
    /// Tasks of the tokio runtime that polls the caller.
    Tokio,
}

impl Exec {
    /// Runs all of them at the same time and returns their results in order. One alone runs in place.
    pub async fn all<T, F>(self, mut jobs: Vec<F>) -> Result<Vec<T>, Failure>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Failure>> + Send + 'static,
    {
        if jobs.len() == 1 {
            return Ok(vec![jobs.remove(0).await?]);
        }
        let mut results = Vec::with_capacity(jobs.len());
        match self {
            Self::Threads => {
                let threads = jobs.into_iter().map(spawn_thread).collect::<Result<Vec<_>, _>>()?;
                for thread in threads {
                    results.push(thread.join().map_err(|_| "a thread of the work panicked")??);
                }
            }
            Self::Tokio => {
                let tasks: Vec<_> = jobs.into_iter().map(tokio::spawn).collect();
                for task in tasks {
                    results.push(task.await??);
                }
            }
        }
        Ok(results)
    }
}

fn spawn_thread<T, F>(job: F) -> std::io::Result<std::thread::JoinHandle<T>>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    std::thread::Builder::new().stack_size(STACK).spawn(move || block_on(job))
}

/// Accepts for ever. The thread that has accepted a stream serves it, and the next one accepts meanwhile: a thread is made only when
/// all are busy, as in any server that answers often. Says why if a stream fails.
///
/// # Errors
/// `accept` failed, or no thread could be made.
pub fn serve_in_turns<S>(
    accept: impl FnMut() -> Result<S, Failure> + Send + 'static,
    serve: impl Fn(S) -> Result<(), Failure> + Clone + Send + 'static,
) -> Result<(), Failure> {
    Arc::new(Turns { accept: Mutex::new(accept), waiting: AtomicUsize::new(0) }).take(&serve)
}

/// Who accepts.
struct Turns<A> {
    accept: Mutex<A>,
    /// Threads that accept, or will.
    waiting: AtomicUsize,
}

impl<A> Turns<A> {
    fn take<S>(
        self: &Arc<Self>,
        serve: &(impl Fn(S) -> Result<(), Failure> + Clone + Send + 'static),
    ) -> Result<(), Failure>
    where
        A: FnMut() -> Result<S, Failure> + Send + 'static,
    {
        loop {
            self.waiting.fetch_add(1, Ordering::AcqRel);
            let accepted = (self.accept.lock().map_err(|_| "accepting panicked")?)();
            let last = self.waiting.fetch_sub(1, Ordering::AcqRel) == 1;
            let stream = accepted?;
            if last {
                let (turns, serve) = (self.clone(), serve.clone());
                let next = std::thread::Builder::new().stack_size(STACK);
                next.spawn(move || complain(turns.take(&serve)))?;
            }
            complain(serve(stream));
        }
    }
}

/// Serves one stream as a task of the current tokio runtime; says why if that fails.
pub fn detach_task(job: impl Future<Output = Result<(), Failure>> + Send + 'static) {
    tokio::spawn(async move { complain(job.await) });
}

fn complain(result: Result<(), Failure>) {
    if let Err(error) = result {
        eprintln!("transfer: server: {error}");
    }
}

/// Runs a future whose every wait is a blocking call.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
        // Does not happen with blocking streams; a busy wait beats a wrong result.
        std::thread::yield_now();
    }
}

/// A single-threaded tokio runtime.
pub fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::sync::mpsc;
    use std::time::{Duration, Instant};

    #[test]
    fn results_come_in_order_on_threads_and_on_tokio() {
        let jobs = || (0..9).map(|n| async move { Ok(n) }).collect();
        let expected: Vec<i32> = (0..9).collect();
        assert_eq!(block_on(Exec::Threads.all(jobs())).expect("threads"), expected);
        assert_eq!(runtime().expect("runtime").block_on(Exec::Tokio.all(jobs())).expect("tokio"), expected);
    }

    #[test]
    fn the_failure_of_one_is_the_failure_of_all() {
        let jobs = (0..3).map(|n| async move { if n == 1 { Err("one".into()) } else { Ok(n) } }).collect();
        assert_eq!(block_on(Exec::Threads.all(jobs)).expect_err("fails").to_string(), "one");
    }

    #[test]
    fn threads_take_turns_and_a_new_one_is_made_only_when_all_are_busy() {
        let (streams, incoming) = mpsc::channel::<u32>();
        let (told, served) = mpsc::channel();
        let (release, held) = mpsc::channel::<()>();
        let held = Arc::new(Mutex::new(held));
        let serve = move |number| {
            told.send((number, std::thread::current().id()))?;
            if number >= 100 {
                held.lock().map_err(|_| "poisoned")?.recv()?;
            }
            Ok(())
        };
        let accept = move || Ok(incoming.recv()?);
        let turns = Arc::new(Turns { accept: Mutex::new(accept), waiting: AtomicUsize::new(0) });
        let server = turns.clone();
        std::thread::spawn(move || server.take(&serve));
        let mut seen = HashSet::new();
        let mut serve_one = |number| {
            streams.send(number).expect("a server");
            let (served, thread) = served.recv_timeout(Duration::from_secs(20)).expect("served");
            assert_eq!(served, number);
            seen.insert(thread);
            seen.len()
        };
        let started = Instant::now();
        for number in 0..50 {
            // The first to accept and the one that accepts while it serves.
            assert!(serve_one(number) <= 2);
            // It has said that it serves before it is free again: then a third may be made, rightly.
            while turns.waiting.load(Ordering::Acquire) != 2 {
                assert!(started.elapsed() < Duration::from_secs(20), "both wait for streams again");
                std::thread::yield_now();
            }
        }
        // Those that are held serve nobody else.
        assert!((100..105).map(&mut serve_one).max() >= Some(5));
        assert!(serve_one(1) <= 7);
        drop(release);
    }
}
