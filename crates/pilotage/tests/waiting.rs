//! Threads that wait in blocking calls keep the watch of their node in turns with its driver
//! (`crates/pilotage/src/driver/post.rs`): nobody may miss what concerns him, whoever has it.

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::{Pair, SECOND, at, node, pair, pattern, within};
use pilotage::Stream;

/// Answers every message of 64 bytes until the stream ends.
fn echo(mut stream: Stream) {
    let mut message = [0; 64];
    while stream.read_exact(&mut message).is_ok() {
        stream.write_all(&message).expect("write");
    }
}

fn exchange(stream: &mut Stream, mark: u8) {
    stream.write_all(&[mark; 64]).expect("write");
    let mut answer = [0; 64];
    stream.read_exact(&mut answer).expect("read");
    assert_eq!(answer, [mark; 64]);
}

#[test]
fn who_waits_alone_receives_for_itself() {
    within(60 * SECOND, || {
        let Pair { mut near, far, client, .. } = pair();
        std::thread::spawn(move || echo(far));
        for round in 0..2_000_u32 {
            exchange(&mut near, round as u8);
        }
        let stats = client.stats();
        assert!(stats.led_waits > 1_000, "{stats:?}");
    });
}

#[test]
fn many_threads_take_turns_and_none_starves() {
    within(120 * SECOND, || {
        const THREADS: usize = 24;
        const ROUNDS: u32 = 400;
        let (client, server) = (node(), node());
        let listener = server.listen(7).expect("listen");
        std::thread::spawn(move || {
            while let Ok(stream) = listener.accept() {
                std::thread::spawn(move || echo(stream));
            }
        });
        let slowest = Arc::new(AtomicU64::new(0));
        let threads: Vec<_> = (0..THREADS)
            .map(|n| {
                let (client, to, slowest) = (client.clone(), at(&server), slowest.clone());
                std::thread::spawn(move || {
                    let mut stream = client.connect(to, 7).expect("connect");
                    stream.set_nodelay(true).expect("nodelay");
                    for round in 0..ROUNDS {
                        let start = Instant::now();
                        exchange(&mut stream, (round as usize + n) as u8);
                        slowest.fetch_max(start.elapsed().as_millis() as u64, Ordering::Relaxed);
                        if n % 3 == 0 && round % 16 == 0 {
                            // Away from the socket for longer than the driver waits.
                            std::thread::sleep(Duration::from_millis(2));
                        }
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().expect("thread");
        }
        // A lost wake-up would last until the keepalive, or for ever.
        assert!(slowest.load(Ordering::Relaxed) < 10_000, "{slowest:?} ms");
    });
}

#[test]
fn both_directions_at_once_with_a_reader_and_a_writer_on_each_side() {
    within(120 * SECOND, || {
        const LEN: usize = 12 << 20;
        let Pair { near, far, .. } = pair();
        let sent = Arc::new(pattern(LEN, 7));
        let mut threads = Vec::new();
        for stream in [near, far] {
            let (mut out, sent_out) = (stream.try_clone().expect("clone"), sent.clone());
            threads.push(std::thread::spawn(move || {
                out.write_all(&sent_out).expect("write");
                out.shutdown(Shutdown::Write).expect("shutdown");
            }));
            let (mut stream, sent) = (stream, sent.clone());
            threads.push(std::thread::spawn(move || {
                let mut got = Vec::new();
                stream.read_to_end(&mut got).expect("read");
                assert!(got == *sent);
            }));
        }
        for thread in threads {
            thread.join().expect("thread");
        }
    });
}

/// Warms a stream up until its reader keeps the watch.
fn warm(near: &mut Stream, far: &Stream) {
    let far = far.try_clone().expect("clone");
    let (mut write, mut read) = (far.try_clone().expect("clone"), far);
    std::thread::spawn(move || {
        let mut message = [0; 64];
        for _ in 0..50 {
            read.read_exact(&mut message).expect("read");
            write.write_all(&message).expect("write");
        }
    });
    for round in 0..50 {
        exchange(near, round);
    }
}

#[test]
fn a_wait_at_the_socket_ends_at_its_timeout_by_a_shutdown_and_by_the_end_of_the_node() {
    within(60 * SECOND, || {
        let Pair { mut near, far, client, .. } = pair();
        warm(&mut near, &far);
        near.set_read_timeout(Some(Duration::from_millis(50))).expect("timeout");
        let start = Instant::now();
        let error = near.read(&mut [0; 1]).expect_err("nothing comes");
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert!(start.elapsed() >= Duration::from_millis(50) && start.elapsed() < 5 * SECOND);
        near.set_read_timeout(None).expect("no timeout");

        warm(&mut near, &far);
        let other = near.try_clone().expect("clone");
        let waiting = std::thread::spawn(move || other.try_clone().expect("clone").read(&mut [0; 1]));
        std::thread::sleep(Duration::from_millis(100));
        near.shutdown(Shutdown::Read).expect("shutdown");
        assert_eq!(waiting.join().expect("thread").expect("the end"), 0);

        let (other, server) = (client.clone(), node());
        let listener = server.listen(7).expect("listen");
        let mut near = client.connect(at(&server), 7).expect("connect");
        let far = listener.accept().expect("accept");
        warm(&mut near, &far);
        let waiting = std::thread::spawn(move || near.read(&mut [0; 1]).is_err());
        std::thread::sleep(Duration::from_millis(100));
        let start = Instant::now();
        other.close();
        assert!(waiting.join().expect("thread"), "the read failed");
        assert!(start.elapsed() < 10 * SECOND, "{:?}", start.elapsed());
    });
}

#[test]
fn who_left_the_socket_does_not_hold_up_the_others() {
    within(60 * SECOND, || {
        let Pair { mut near, far, client, server, listener } = pair();
        let mut second = client.connect(at(&server), 7).expect("connect");
        let second_far = listener.accept().expect("accept");
        std::thread::spawn(move || echo(second_far));
        let over = Arc::new(AtomicBool::new(false));
        // One thread that takes the watch again and again, and then does something else for a long time.
        let busy = std::thread::spawn({
            let over = over.clone();
            move || {
                while !over.load(Ordering::Relaxed) {
                    exchange(&mut near, 1);
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
        });
        std::thread::spawn(move || echo(far));
        let mut times: Vec<Duration> = (0..100_u8)
            .map(|round| {
                std::thread::sleep(Duration::from_millis(3));
                let start = Instant::now();
                exchange(&mut second, round);
                start.elapsed()
            })
            .collect();
        over.store(true, Ordering::Relaxed);
        busy.join().expect("thread");
        times.sort_unstable();
        // 20 ms if the busy thread took the socket with it.
        assert!(times[50] < Duration::from_millis(15), "{times:?}");
    });
}

/// The driver interrupts a thread that asks and waits without a pause less and less often, and yet finds out that it has gone.
#[test]
fn who_leaves_the_socket_after_long_use_does_not_hold_up_the_others() {
    within(60 * SECOND, || {
        let Pair { mut near, far, client, server, listener } = pair();
        let mut second = client.connect(at(&server), 7).expect("connect");
        let mut second_far = listener.accept().expect("accept");
        std::thread::spawn(move || echo(far));
        for _ in 0..3 {
            let waiting = std::thread::spawn(move || {
                second.read_exact(&mut [0; 64]).expect("read");
                (Instant::now(), second)
            });
            let busy = Instant::now();
            while busy.elapsed() < Duration::from_millis(300) {
                exchange(&mut near, 1);
            }
            // The one that had the socket is here now, and does something else.
            let start = Instant::now();
            second_far.write_all(&[2; 64]).expect("write");
            let (end, back) = waiting.join().expect("thread");
            second = back;
            assert!(end - start < Duration::from_millis(200), "{:?}", end - start);
        }
    });
}

#[test]
fn a_task_that_waits_is_woken_though_threads_wait_too() {
    within(60 * SECOND, || {
        let Pair { mut near, far, client, server, listener } = pair();
        warm(&mut near, &far);
        let task = client.connect(at(&server), 7).expect("connect");
        let mut task_far = listener.accept().expect("accept");
        let waiting = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_time().build().expect("runtime");
            runtime.block_on(async {
                let mut task = task;
                let mut byte = [0; 1];
                tokio::io::AsyncReadExt::read_exact(&mut task, &mut byte).await.expect("read");
                byte[0]
            })
        });
        std::thread::spawn(move || echo(far));
        // Threads of the same node go on meanwhile.
        for round in 0..100 {
            exchange(&mut near, round);
        }
        let led = client.stats().led_waits;
        for round in 0..100 {
            exchange(&mut near, round);
        }
        assert_eq!(client.stats().led_waits, led, "a node with tasks is the driver's");
        task_far.write_all(&[42]).expect("write");
        assert_eq!(waiting.join().expect("thread"), 42);
    });
}
