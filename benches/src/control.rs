//! The two sides of a run agree on their clocks over a TCP connection of their own, beside the transport that is
//! measured: one line of text from the client, one from the server.
//!
//! ```text
//! start → ok             the server's CPU clock starts
//! stop  → 0.123456789    CPU seconds of the server since then
//! rss   → 12345678       resident memory of the server, in bytes
//! hash  → hex            BLAKE3 of what the ceiling's receiver got
//! quit  → ok             the server process ends
//! ```

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::Failure;
use crate::measure::{Stopwatch, resident_bytes};

/// How long the client waits for an answer: the server may have to hash a gigabyte first.
const ANSWER_WAIT: Duration = Duration::from_secs(60);

/// How long the server's work may take to leave a value (hashing a gigabyte, say).
const LEFT_WAIT: Duration = if cfg!(test) { Duration::from_millis(50) } else { Duration::from_secs(30) };

/// A value that the server's work leaves for the client.
pub type Left = Arc<Mutex<Option<String>>>;

/// The client's end.
#[derive(Debug)]
pub struct Control(BufReader<TcpStream>);

impl Control {
    /// Connects to the server's end.
    pub fn connect(addr: SocketAddr) -> Result<Self, Failure> {
        let socket = TcpStream::connect(addr).map_err(|e| format!("control connection: {e}"))?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(ANSWER_WAIT))?;
        Ok(Self(BufReader::new(socket)))
    }

    fn ask(&mut self, question: &str) -> Result<String, Failure> {
        self.0.get_mut().write_all(format!("{question}\n").as_bytes())?;
        let mut answer = String::new();
        self.0.read_line(&mut answer)?;
        let answer = answer.trim_end();
        match answer.strip_prefix("error ") {
            Some(error) => Err(format!("server: {error}").into()),
            None if answer.is_empty() => Err("the server ended early (its message is above)".into()),
            None => Ok(answer.to_owned()),
        }
    }

    /// Starts the server's CPU clock.
    pub fn start(&mut self) -> Result<(), Failure> {
        self.ask("start").map(drop)
    }

    /// CPU seconds of the server since [`Control::start`].
    pub fn stop(&mut self) -> Result<f64, Failure> {
        Ok(self.ask("stop")?.parse()?)
    }

    /// Resident memory of the server, in bytes.
    pub fn resident_bytes(&mut self) -> Result<u64, Failure> {
        Ok(self.ask("rss")?.parse()?)
    }

    /// What the server's work left.
    pub fn left(&mut self) -> Result<String, Failure> {
        self.ask("hash")
    }

    /// Ends the server process.
    pub fn quit(&mut self) -> Result<(), Failure> {
        self.ask("quit").map(drop)
    }
}

/// The value, once it is there.
fn wait_for(left: &Left) -> Option<String> {
    let deadline = Instant::now() + LEFT_WAIT;
    loop {
        let value = left.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if value.is_some() || Instant::now() >= deadline {
            return value;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Answers one client until it says `quit` or goes.
pub fn answer(listener: &TcpListener, left: &Left) -> Result<(), Failure> {
    let (mut socket, _) = listener.accept()?;
    socket.set_nodelay(true)?;
    let mut questions = BufReader::new(socket.try_clone()?);
    let mut watch = Stopwatch::start()?;
    let mut question = String::new();
    loop {
        question.clear();
        if questions.read_line(&mut question)? == 0 {
            return Ok(());
        }
        let reply = match question.trim_end() {
            "start" => {
                watch = Stopwatch::start()?;
                "ok".to_owned()
            }
            "stop" => watch.stop()?.1.as_secs_f64().to_string(),
            "rss" => resident_bytes()?.to_string(),
            "hash" => wait_for(left).unwrap_or_else(|| "error nothing was left".to_owned()),
            "quit" => "ok".to_owned(),
            other => format!("error `{other}` is not a question"),
        };
        socket.write_all(format!("{reply}\n").as_bytes())?;
        if question.trim_end() == "quit" {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_answered_until_the_client_quits() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let addr = listener.local_addr().expect("address");
        let left = Left::default();
        let given = left.clone();
        let server = std::thread::spawn(move || answer(&listener, &given));
        let mut control = Control::connect(addr).expect("connect");
        control.start().expect("start");
        assert!(control.stop().expect("stop") >= 0.0);
        assert!(control.resident_bytes().expect("rss") > 100_000);
        assert!(control.left().is_err(), "nothing was left yet");
        *left.lock().expect("lock") = Some("ab".to_owned());
        assert_eq!(control.left().expect("left"), "ab");
        assert!(control.ask("sing").is_err());
        control.quit().expect("quit");
        server.join().expect("join").expect("server");
    }
}
