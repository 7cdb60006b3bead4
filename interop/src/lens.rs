//! A registry seen through a lens: nodes register and look up as ever, but where a reply names one node's UDP
//! endpoint it names the proxy in front of that node. So peers that find each other by a registry, as reference
//! daemons only do, meet by way of the proxy.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::Value;

use crate::Failure;

/// Longest message passed on.
const MAX_MESSAGE: usize = 4 << 20;

/// A running lens; it takes no new connections after the drop.
#[derive(Debug)]
pub(crate) struct Lens {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Lens {
    /// In front of `registry`; whoever looks up the node at `node` is led to `proxy`.
    pub(crate) fn start(registry: SocketAddr, node: SocketAddr, proxy: SocketAddr) -> Result<Self, Failure> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let (from, to) = (node.to_string(), proxy.to_string());
        let thread = std::thread::Builder::new().name("lens".into()).spawn(move || {
            while !stopped.load(Ordering::Acquire) {
                match listener.accept() {
                    Ok((client, _)) => pass_on(client, registry, from.clone(), to.clone()),
                    Err(_) => std::thread::sleep(Duration::from_millis(5)),
                }
            }
        })?;
        Ok(Self { address, stop, thread: Some(thread) })
    }

    /// Where nodes find the registry.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Lens {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            // It does nothing that can panic.
            let _ = thread.join();
        }
    }
}

/// Requests as they are, replies through the lens, until either side ends.
fn pass_on(client: TcpStream, registry: SocketAddr, from: String, to: String) {
    let Ok(server) = TcpStream::connect(registry) else { return };
    if client.set_nonblocking(false).is_err() {
        return;
    }
    let (Ok(client_in), Ok(server_out)) = (client.try_clone(), server.try_clone()) else { return };
    // What ends one direction ends the other; the threads end with their connections.
    std::thread::spawn(move || {
        let (mut input, mut output) = (client_in, server_out);
        let _ = std::io::copy(&mut input, &mut output);
        let _ = output.shutdown(Shutdown::Both);
    });
    std::thread::spawn(move || {
        let (mut input, mut output) = (server, client);
        while let Some(message) = read_message(&mut input) {
            let seen = refract(&message, &from, &to);
            let head = (seen.len() as u32).to_be_bytes();
            if output.write_all(&[&head[..], &seen].concat()).is_err() {
                break;
            }
        }
        let _ = output.shutdown(Shutdown::Both);
        let _ = input.shutdown(Shutdown::Both);
    });
}

fn read_message(input: &mut TcpStream) -> Option<Vec<u8>> {
    let mut head = [0; 4];
    input.read_exact(&mut head).ok()?;
    let len = u32::from_be_bytes(head) as usize;
    let mut message = vec![0; (len <= MAX_MESSAGE).then_some(len)?];
    input.read_exact(&mut message).ok()?;
    Some(message)
}

/// The message with one endpoint replaced. Addresses in the LAN would lead around the proxy.
fn refract(message: &[u8], from: &str, to: &str) -> Vec<u8> {
    let Ok(mut value) = serde_json::from_slice::<Value>(message) else { return message.to_vec() };
    let Some(reply) = value.as_object_mut() else { return message.to_vec() };
    if !reply.contains_key("real_addr") {
        return message.to_vec();
    }
    reply.remove("lan_addrs");
    if reply.get("real_addr").and_then(Value::as_str) == Some(from) {
        reply.insert("real_addr".into(), to.into());
    }
    serde_json::to_vec(&value).unwrap_or_else(|_| message.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_endpoint_of_the_one_node_is_replaced() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let registry = listener.local_addr().expect("address");
        let replies: [&[u8]; 3] = [
            br#"{"type":"resolve_ok","real_addr":"127.0.0.1:5","lan_addrs":["10.0.0.1:5"]}"#,
            br#"{"type":"resolve_ok","real_addr":"127.0.0.1:55"}"#,
            b"no json",
        ];
        let server = std::thread::spawn(move || {
            let (mut socket, _) = listener.accept().expect("accept");
            for reply in replies {
                socket.read_exact(&mut [0; 6]).expect("request");
                socket.write_all(&(reply.len() as u32).to_be_bytes()).expect("length");
                socket.write_all(reply).expect("reply");
            }
        });
        let (node, proxy) = ("127.0.0.1:5".parse().expect("a"), "127.0.0.1:6".parse().expect("b"));
        let lens = Lens::start(registry, node, proxy).expect("lens");
        let mut client = TcpStream::connect(lens.address()).expect("connect");
        let mut got = Vec::new();
        for _ in 0..3 {
            client.write_all(b"\0\0\0\x02{}").expect("request");
            got.push(String::from_utf8(read_message(&mut client).expect("reply")).expect("text"));
        }
        assert_eq!(got[0], r#"{"real_addr":"127.0.0.1:6","type":"resolve_ok"}"#);
        assert!(got[1].contains("127.0.0.1:55") && got[2] == "no json");
        server.join().expect("server");
        assert!(read_message(&mut client).is_none(), "the end is passed on");
    }
}
