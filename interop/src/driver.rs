//! A client of the reference daemon's local socket, for what its own command line cannot do: pipes of any length and
//! datagrams. Runs as a process of its own, so that a scenario treats both implementations alike.
//!
//! Frames: length u32, command u8, payload (`spec/vectors/ipc.json`). Replies carry no request id.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use clap::Subcommand;

use crate::Failure;

/// Longest frame that the protocol allows.
const MAX_FRAME: usize = 1 << 20;
/// Bytes of one Send: the daemon takes them under one lock.
const CHUNK: usize = 16 * 1024;
/// Frames read ahead.
const QUEUE: usize = 4;
/// How long a reply may take; dialling takes the daemon up to 29 s.
const PATIENCE: Duration = Duration::from_secs(40);
/// A daemon that shows no change for so long has nothing more to move.
const STUCK: Duration = Duration::from_secs(20);
/// So often in a row a daemon must have nothing under way: it may wait for half a second before it sends what it holds.
const QUIET: u32 = 12;
/// Bytes may wait for so long in the daemon before they become a segment.
const NAGLE: Duration = Duration::from_millis(60);

const BIND: u8 = 0x01;
const BIND_OK: u8 = 0x02;
const DIAL: u8 = 0x03;
const DIAL_OK: u8 = 0x04;
const ACCEPT: u8 = 0x05;
const SEND: u8 = 0x06;
const RECV: u8 = 0x07;
const CLOSE: u8 = 0x08;
const CLOSE_OK: u8 = 0x09;
const ERROR: u8 = 0x0A;
const SEND_TO: u8 = 0x0B;
const RECV_FROM: u8 = 0x0C;
const INFO: u8 = 0x0D;
const INFO_OK: u8 = 0x0E;

/// What the driver does.
#[derive(Debug, Subcommand)]
pub(crate) enum Action {
    /// Dial and join the connection to standard input and output
    Connect {
        /// N:NNNN.HHHH.LLLL
        address: String,
        port: u16,
        /// Close at the end of the input (the peer's end closes it anyhow)
        #[arg(long)]
        close: bool,
    },
    /// Wait for one connection and join it to standard input and output
    Listen {
        port: u16,
        #[arg(long)]
        close: bool,
    },
    /// Send datagrams of this length, 10 ms apart
    SendDatagrams { address: String, port: u16, count: u16, len: u16 },
    /// Print the lengths of so many datagrams
    RecvDatagrams { port: u16, count: u16 },
}

/// One session on the socket.
pub(crate) struct Driver {
    socket: UnixStream,
    path: PathBuf,
    frames: Receiver<(u8, Vec<u8>)>,
    /// Frames that came while another one was waited for.
    kept: VecDeque<(u8, Vec<u8>)>,
}

/// Does one action until its end.
pub(crate) fn run(path: &Path, action: &Action) -> Result<(), Failure> {
    let mut driver = Driver::open(path)?;
    match action {
        Action::Connect { address, port, close } => {
            let connection = driver.dial(address, *port)?;
            eprintln!("connected");
            driver.pipe(connection, *close)
        }
        Action::Listen { port, close } => {
            driver.request(BIND, &port.to_be_bytes(), BIND_OK)?;
            eprintln!("listening");
            let accepted = driver.wait_for(ACCEPT, Duration::from_secs(600))?;
            let connection = word(&accepted, 2)?;
            driver.pipe(connection, *close)
        }
        Action::SendDatagrams { address, port, count, len } => {
            for number in 0..*count {
                let mut frame = address_bytes(address)?.to_vec();
                frame.extend(port.to_be_bytes());
                frame.extend(std::iter::repeat_n(number as u8 | 1, usize::from(*len)));
                driver.write(SEND_TO, &frame)?;
                std::thread::sleep(Duration::from_millis(10));
            }
            // The daemon still reads its socket.
            driver.request(INFO, &[], INFO_OK).map(|_| ())
        }
        Action::RecvDatagrams { port, count } => {
            eprintln!("listening");
            let mut left = *count;
            while left > 0 {
                let frame = driver.wait_for(RECV_FROM, PATIENCE)?;
                let to = frame.get(8..10).ok_or("RecvFrom is too short")?;
                if to == port.to_be_bytes() {
                    println!("{}", frame.len() - 10);
                    left -= 1;
                }
            }
            Ok(())
        }
    }
}

impl Driver {
    pub(crate) fn open(path: &Path) -> Result<Self, Failure> {
        let socket = UnixStream::connect(path).map_err(|e| format!("{}: {e}", path.display()))?;
        // A reader that stalls must be felt by the daemon.
        let (out, frames) = sync_channel(QUEUE);
        let reader = socket.try_clone()?;
        std::thread::spawn(move || read_frames(reader, &out));
        Ok(Self { socket, path: path.to_path_buf(), frames, kept: VecDeque::new() })
    }

    /// What the daemon says about itself.
    pub(crate) fn info(&mut self) -> Result<serde_json::Value, Failure> {
        let reply = self.request(INFO, &[], INFO_OK)?;
        Ok(serde_json::from_slice(&reply)?)
    }

    /// One datagram.
    pub(crate) fn datagram(&mut self, address: &str, port: u16, bytes: &[u8]) -> Result<(), Failure> {
        let mut frame = address_bytes(address)?.to_vec();
        frame.extend(port.to_be_bytes());
        frame.extend(bytes);
        self.write(SEND_TO, &frame)
    }

    fn dial(&mut self, address: &str, port: u16) -> Result<u32, Failure> {
        let mut payload = address_bytes(address)?.to_vec();
        payload.extend(port.to_be_bytes());
        word(&self.request(DIAL, &payload, DIAL_OK)?, 0)
    }

    /// Joins a connection to standard input and output until the peer ends it (which ends both directions), or
    /// until the input has ended and everything was acknowledged, if it is to be closed then.
    fn pipe(&mut self, connection: u32, close: bool) -> Result<(), Failure> {
        let socket = self.socket.try_clone()?;
        let path = self.path.clone();
        let sender = std::thread::spawn(move || -> Result<(), String> {
            send_input(socket, &path, connection, close).map_err(|e| e.to_string())
        });
        let mut out = std::io::stdout().lock();
        loop {
            let (command, payload) = self.next_frame(Duration::from_secs(600))?;
            match command {
                RECV if word(&payload, 0)? == connection => out.write_all(&payload[4..])?,
                CLOSE_OK if word(&payload, 0)? == connection => break,
                // Sending to a connection that the peer has closed.
                ERROR if sender.is_finished() => break,
                ERROR => return Err(error_text(&payload).into()),
                _ => {}
            }
            if self.kept.is_empty() {
                out.flush()?;
            }
        }
        out.flush()?;
        if sender.is_finished() {
            sender.join().map_err(|_| "the sending thread failed")??;
        }
        Ok(())
    }

    fn request(&mut self, command: u8, payload: &[u8], expected: u8) -> Result<Vec<u8>, Failure> {
        self.write(command, payload)?;
        self.wait_for(expected, PATIENCE)
    }

    /// The next frame of this kind; an error frame ends the wait. Others are kept.
    fn wait_for(&mut self, expected: u8, limit: Duration) -> Result<Vec<u8>, Failure> {
        let deadline = Instant::now() + limit;
        if let Some(at) = self.kept.iter().position(|(command, _)| *command == expected) {
            return Ok(self.kept.remove(at).map(|(_, payload)| payload).unwrap_or_default());
        }
        loop {
            let (command, payload) = self.receive(deadline.saturating_duration_since(Instant::now()))?;
            match command {
                _ if command == expected => return Ok(payload),
                ERROR => return Err(error_text(&payload).into()),
                _ => self.kept.push_back((command, payload)),
            }
        }
    }

    fn next_frame(&mut self, limit: Duration) -> Result<(u8, Vec<u8>), Failure> {
        match self.kept.pop_front() {
            Some(frame) => Ok(frame),
            None => self.receive(limit),
        }
    }

    fn receive(&mut self, limit: Duration) -> Result<(u8, Vec<u8>), Failure> {
        self.frames.recv_timeout(limit).map_err(|error| {
            let what = match error {
                RecvTimeoutError::Timeout => "the daemon said nothing",
                RecvTimeoutError::Disconnected => "the daemon closed its socket",
            };
            what.into()
        })
    }

    fn write(&mut self, command: u8, payload: &[u8]) -> Result<(), Failure> {
        Ok(self.socket.write_all(&frame(command, payload))?)
    }
}

/// Standard input into the connection.
fn send_input(mut socket: UnixStream, path: &Path, connection: u32, close: bool) -> Result<(), Failure> {
    let mut input = std::io::stdin().lock();
    let mut chunk = vec![0; CHUNK];
    let mut written = 0;
    loop {
        let len = input.read(&mut chunk)?;
        if len == 0 {
            break;
        }
        written += len as u64;
        let mut payload = connection.to_be_bytes().to_vec();
        payload.extend(&chunk[..len]);
        socket.write_all(&frame(SEND, &payload))?;
    }
    if !close {
        return Ok(());
    }
    // The daemon throws away what is not acknowledged when it closes. A session of its own: this one's commands wait for
    // each other, and its replies belong to the other thread.
    let mut other = Driver::open(path)?;
    let mut quiet = 0;
    // A segment that was acknowledged too early stays in its books for ever.
    let mut last = (serde_json::Value::Null, Instant::now());
    while quiet < QUIET && last.1.elapsed() < STUCK {
        std::thread::sleep(NAGLE);
        let info = other.info()?;
        let ours = info["conn_list"]
            .as_array()
            .and_then(|list| list.iter().find(|c| c["id"].as_u64() == Some(u64::from(connection))));
        // What it has not sent yet is in none of these counts but the first.
        let busy = ours.is_some_and(|c| {
            c["bytes_sent"].as_u64().is_some_and(|sent| sent < written)
                || c["unacked"].as_u64() != Some(0)
                || c["in_flight"].as_u64() != Some(0)
        });
        quiet = if busy { 0 } else { quiet + 1 };
        let outstanding = ours.map_or(serde_json::Value::Null, |c| {
            serde_json::json!([c["bytes_sent"], c["unacked"], c["in_flight"]])
        });
        if outstanding != last.0 || !busy {
            last = (outstanding, Instant::now());
        }
    }
    Ok(socket.write_all(&frame(CLOSE, &connection.to_be_bytes()))?)
}

fn read_frames(mut socket: UnixStream, out: &SyncSender<(u8, Vec<u8>)>) {
    loop {
        let mut head = [0; 4];
        if socket.read_exact(&mut head).is_err() {
            return;
        }
        let len = u32::from_be_bytes(head) as usize;
        if len == 0 || len > MAX_FRAME {
            return;
        }
        let mut body = vec![0; len];
        if socket.read_exact(&mut body).is_err() {
            return;
        }
        let payload = body.split_off(1);
        if out.send((body[0], payload)).is_err() {
            return;
        }
    }
}

fn frame(command: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32 + 1).to_be_bytes().to_vec();
    frame.push(command);
    frame.extend(payload);
    frame
}

fn word(payload: &[u8], at: usize) -> Result<u32, Failure> {
    let bytes = payload.get(at..at + 4).ok_or("a frame of the daemon is too short")?;
    Ok(u32::from_be_bytes(bytes.try_into()?))
}

fn error_text(payload: &[u8]) -> String {
    format!("the daemon: {}", String::from_utf8_lossy(payload.get(2..).unwrap_or_default()))
}

/// `N:NNNN.HHHH.LLLL` as 6 bytes.
fn address_bytes(text: &str) -> Result<[u8; 6], Failure> {
    let wrong = || format!("{text} is no address");
    let (_, groups) = text.split_once(':').ok_or_else(wrong)?;
    let digits: String = groups.split('.').collect();
    let number = u64::from_str_radix(&digits, 16).map_err(|_| wrong())?;
    if digits.len() != 12 {
        return Err(wrong().into());
    }
    let [_, _, address @ ..] = number.to_be_bytes();
    Ok(address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn frames_and_addresses_are_those_of_the_vectors() {
        let vectors: serde_json::Value =
            serde_json::from_str(include_str!("../../spec/vectors/ipc.json")).expect("vectors");
        let hex = |name: &str| {
            let cases = vectors["cases"].as_array().expect("cases");
            let case = cases.iter().find(|case| case["name"] == name).expect("case");
            case["framed_hex"].as_str().expect("hex").to_owned()
        };
        let text = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        let mut dial = address_bytes("0:0000.0000.0002").expect("address").to_vec();
        dial.extend(7_u16.to_be_bytes());
        assert_eq!(text(&frame(DIAL, &dial)), hex("dial"));
        assert_eq!(text(&frame(BIND, &5000_u16.to_be_bytes())), hex("bind 5000"));
        assert_eq!(text(&frame(INFO, &[])), hex("info"));
        assert!(address_bytes("0:0000.0002").is_err() && address_bytes("anode").is_err());
    }

    #[test]
    fn an_error_ends_the_wait_and_other_frames_are_kept() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).expect("bind");
        let daemon = std::thread::spawn(move || {
            let (mut socket, _) = listener.accept().expect("accept");
            let mut request = [0; 5];
            socket.read_exact(&mut request).expect("info");
            socket.write_all(&frame(RECV, &[0, 0, 0, 9, b'x'])).expect("recv");
            socket.write_all(&frame(INFO_OK, b"{\"node_id\":7}")).expect("info");
            socket.read_exact(&mut [0; 13]).expect("dial");
            socket.write_all(&frame(ERROR, b"\x00\x01no way")).expect("error");
        });
        let mut driver = Driver::open(&path).expect("open");
        assert_eq!(driver.info().expect("info")["node_id"], 7);
        let error = driver.dial("0:0000.0000.0002", 7).expect_err("refused");
        assert!(error.to_string().contains("no way"), "{error}");
        assert_eq!(driver.next_frame(PATIENCE).expect("kept"), (RECV, vec![0, 0, 0, 9, b'x']));
        daemon.join().expect("daemon");
    }
}
