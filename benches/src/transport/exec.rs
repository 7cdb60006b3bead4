//! Where the futures of a work run: on plain threads with blocking calls, or on a single-threaded tokio runtime.

use std::future::Future;
use std::pin::pin;
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

/// Serves one stream on a thread of its own; says why if that fails.
pub fn detach(job: impl Future<Output = Result<(), Failure>> + Send + 'static) -> Result<(), Failure> {
    spawn_thread(async move { complain(job.await) })?;
    Ok(())
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
}
