//! temporary
use pilotage::*;
use std::io::{Read, Write};
use std::time::Instant;
fn main() {
    let args: Vec<String> = std::env::args().collect();
    let b = || Node::builder().bind("127.0.0.1:0".parse().unwrap());
    let max: usize = std::env::var("MAXDG").ok().and_then(|v| v.parse().ok()).unwrap_or(65507);
    let cfg = ProtoConfig { max_datagram_size: max, ..ProtoConfig::default() };
    if args[1] == "server" {
        let node = b().config(cfg).start().unwrap();
        println!("{}@{}", node.address(), node.local_addr());
        let l = node.listen(7).unwrap();
        for s in l.incoming() {
            std::thread::spawn(move || {
                s.set_nodelay(true).unwrap();
                let mut s = s;
                let mut head = [0u8; 1];
                if s.read_exact(&mut head).is_err() { return; }
                if head[0] == b'e' {
                    let mut buf = [0u8; 64];
                    while s.read_exact(&mut buf).is_ok() { s.write_all(&buf).unwrap(); }
                } else {
                    let mut buf = vec![0u8; 1 << 20];
                    let mut n = 0u64;
                    loop { match s.read(&mut buf) { Ok(0) | Err(_) => break, Ok(k) => n += k as u64 } }
                    s.write_all(&n.to_be_bytes()).unwrap();
                }
            });
        }
        return;
    }
    let peer: Peer = args[2].parse().unwrap();
    let node = b().config(cfg).start().unwrap();
    if args[1] == "echo" {
        let mut s = node.connect(&peer, 7).unwrap();
        s.set_nodelay(true).unwrap();
        s.write_all(b"e").unwrap();
        let mut lat = Vec::new();
        for _ in 0..20000 {
            let t = Instant::now();
            s.write_all(&[1; 64]).unwrap();
            let mut b = [0; 64];
            s.read_exact(&mut b).unwrap();
            lat.push(t.elapsed());
        }
        lat.sort();
        println!("echo p50 {:?} p99 {:?} max {:?}", lat[10000], lat[19800], lat[19999]);
        println!("{:?}", node.stats());
        return;
    }
    let total: usize = args[3].parse::<usize>().unwrap() << 20;
    let mut s = node.connect(&peer, 7).unwrap();
    s.write_all(b"b").unwrap();
    let buf = vec![7u8; 1 << 20];
    let t = Instant::now();
    let mut left = total;
    while left > 0 { let n = left.min(buf.len()); s.write_all(&buf[..n]).unwrap(); left -= n; }
    s.shutdown(std::net::Shutdown::Write).unwrap();
    let mut got = [0; 8];
    s.read_exact(&mut got).unwrap();
    let e = t.elapsed().as_secs_f64();
    println!("{} MiB {:.2} Gbit/s  got {}", total >> 20, total as f64 * 8.0 / e / 1e9, u64::from_be_bytes(got));
    println!("{:?}\n{:?}\n{:?}", s.stats(), s.path(), node.stats());
}
