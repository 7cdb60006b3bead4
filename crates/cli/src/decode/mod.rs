//! `pilotage decode`: what is in hex digits, a raw datagram or a capture file.

mod capture;
mod link;
mod view;

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use pilotage_wire::{Address, SocketAddress};
use serde_json::json;

use self::link::Content;
use self::view::{Keys, View};
use crate::args::{DecodeArgs, InputKind};
use crate::cmd::Context;
use crate::error::CliError;

/// Largest hex or raw input, in bytes. Captures are read as streams and have no limit.
const MAX_INPUT: u64 = 64 * 1024 * 1024;

/// Bytes that are looked at to find out what the input is.
const PEEK: usize = 4;

pub(crate) fn run(context: &Context, args: &DecodeArgs) -> Result<(), CliError> {
    let mut decoder = Decoder { context, args, keys: Keys::new(&args.key), count: Count::default() };
    match args.input.as_deref() {
        None | Some("-") => decoder.stream(io::stdin().lock(), "standard input")?,
        Some(input) if Path::new(input).is_file() => {
            let file = File::open(input).map_err(|error| read_error(input, &error))?;
            decoder.stream(BufReader::new(file), input)?;
        }
        Some(input) if args.input_type == InputKind::Auto && looks_like_address(input) => {
            return show_address(context, input);
        }
        Some(input) => match (args.input_type, parse_hex(input)) {
            (InputKind::Auto | InputKind::Hex, Ok(bytes)) => decoder.datagram(None, &bytes),
            (_, Ok(_)) => return Err(read_error(input, &io::ErrorKind::NotFound.into())),
            (_, Err(error)) => {
                return Err(CliError::usage(
                    "input",
                    format!("{input:?} is neither a file nor hex digits: {error}"),
                    "give a path, hex digits, an address, or - for standard input",
                ));
            }
        },
    }
    decoder.finish()
}

#[derive(Debug, Default)]
struct Count {
    shown: u64,
    wrong: u64,
    other: u64,
    fragments: u64,
    unknown_link: u64,
}

struct Decoder<'a> {
    context: &'a Context,
    args: &'a DecodeArgs,
    keys: Keys,
    count: Count,
}

impl Decoder<'_> {
    /// Finds out what the input is and shows it.
    fn stream(&mut self, mut input: impl Read, name: &str) -> Result<(), CliError> {
        let mut start = Vec::with_capacity(PEEK);
        input.by_ref().take(PEEK as u64).read_to_end(&mut start).map_err(|error| read_error(name, &error))?;
        let is_capture = match self.args.input_type {
            InputKind::Pcap => true,
            InputKind::Auto => capture::is_capture(&start),
            InputKind::Hex | InputKind::Raw => false,
        };
        let input = io::Cursor::new(start).chain(input);
        if is_capture {
            return self.capture(input).map_err(|error| {
                let cause = format!("{name}: {error} (after {} datagrams)", self.count.shown);
                CliError::failure("capture", cause, "the file is damaged or cut off: capture again")
            });
        }
        let mut bytes = Vec::new();
        input.take(MAX_INPUT + 1).read_to_end(&mut bytes).map_err(|error| read_error(name, &error))?;
        if bytes.len() as u64 > MAX_INPUT {
            return Err(CliError::failure(
                "input",
                format!("{name}: larger than 64 MiB and no capture file"),
                "give a capture (pcap, pcapng), or split the input",
            ));
        }
        self.hex_or_raw(&bytes, name)
    }

    fn hex_or_raw(&mut self, bytes: &[u8], name: &str) -> Result<(), CliError> {
        let text = match self.args.input_type {
            InputKind::Raw => None,
            InputKind::Auto => std::str::from_utf8(bytes).ok().filter(|text| is_hex_text(text)),
            _ => Some(std::str::from_utf8(bytes).map_err(|_| {
                CliError::usage("input", format!("{name} is not text"), "use --input-type raw")
            })?),
        };
        let Some(text) = text else {
            self.datagram(None, bytes);
            return Ok(());
        };
        for (index, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            let bytes = parse_hex(line).map_err(|error| {
                CliError::usage(
                    "input",
                    format!("{name}, line {}: {error}", index + 1),
                    "one datagram per line, as hex digits",
                )
            })?;
            self.datagram(None, &bytes);
            if self.is_done() {
                break;
            }
        }
        Ok(())
    }

    fn capture(&mut self, input: impl Read) -> io::Result<()> {
        let mut reader = capture::Reader::new(input)?;
        while !self.is_done()
            && let Some(packet) = reader.next()?
        {
            match link::parse(packet.link, &packet.data) {
                Content::Udp(udp) if self.args.all || view::is_ours(udp.payload) => {
                    self.datagram(Some((packet.time_ns, udp)), udp.payload);
                }
                Content::Fragment => self.count.fragments += 1,
                Content::UnknownLink => self.count.unknown_link += 1,
                Content::Udp(_) | Content::Other => self.count.other += 1,
            }
        }
        Ok(())
    }

    fn is_done(&self) -> bool {
        self.context.stop.requested() || self.args.limit.is_some_and(|limit| self.count.shown >= limit)
    }

    /// Shows one datagram, with where it was seen if it comes from a capture.
    fn datagram(&mut self, seen: Option<(Option<u64>, link::Udp<'_>)>, bytes: &[u8]) {
        self.count.shown += 1;
        let View { mut lines, mut value } = view::view(bytes, &self.keys);
        if value["error"].is_string() {
            self.count.wrong += 1;
        }
        value["event"] = "datagram".into();
        value["number"] = self.count.shown.into();
        if let Some((time_ns, udp)) = seen {
            let time = time_ns.map(|ns| format!("{}.{:06} ", ns / 1_000_000_000, ns / 1_000 % 1_000_000));
            let cut =
                if udp.sent_len > bytes.len() { format!(" (of {})", udp.sent_len) } else { String::new() };
            lines.insert(
                0,
                format!(
                    "#{} {}{} > {} {} bytes{cut}",
                    self.count.shown,
                    time.unwrap_or_default(),
                    udp.source,
                    udp.destination,
                    bytes.len(),
                ),
            );
            value["time_ns"] = json!(time_ns);
            value["udp_src"] = udp.source.to_string().into();
            value["udp_dst"] = udp.destination.to_string().into();
            value["length"] = bytes.len().into();
            value["sent_length"] = udp.sent_len.into();
        }
        self.context.output.result(lines.join("\n"), &value);
    }

    fn finish(&self) -> Result<(), CliError> {
        let count = &self.count;
        self.context.output.event(&json!({
            "event": "summary",
            "datagrams": count.shown,
            "wrong": count.wrong,
            "other_packets": count.other,
            "fragments": count.fragments,
            "unknown_link": count.unknown_link,
        }));
        if count.unknown_link > 0 {
            self.context.output.note(format!("note: {} packets of unknown link layers", count.unknown_link));
        }
        if count.fragments > 0 {
            self.context.output.note(format!("note: {} IP fragments were not put together", count.fragments));
        }
        if self.context.stop.requested() {
            return Err(CliError::interrupted());
        }
        // One thing was asked about and it is wrong: that is worth an exit code.
        if count.shown == 1 && count.wrong == 1 {
            return Err(CliError::failure(
                "decode",
                "the datagram is malformed or cannot be opened",
                "see above",
            ));
        }
        Ok(())
    }
}

fn read_error(name: &str, error: &io::Error) -> CliError {
    CliError::failure("input", format!("{name}: {error}"), "check the path and its permissions")
}

/// Text that can only be hex digits with the usual separators.
fn is_hex_text(text: &str) -> bool {
    let digits = text.lines().map(|line| line.split('#').next().unwrap_or_default());
    let mut any = false;
    for line in digits {
        any |= !line.trim().is_empty();
        if !line
            .chars()
            .all(|c| c.is_ascii_hexdigit() || matches!(c, ' ' | '\t' | '\r' | ':' | '-' | ',' | 'x' | 'X'))
        {
            return false;
        }
    }
    any
}

/// Hex digits with blanks, colons, commas, dashes and `0x` between them.
fn parse_hex(text: &str) -> Result<Vec<u8>, String> {
    let mut digits = String::with_capacity(text.len());
    for word in text.split(|c: char| c.is_whitespace() || matches!(c, ':' | ',' | '-')) {
        digits.push_str(word.strip_prefix("0x").or_else(|| word.strip_prefix("0X")).unwrap_or(word));
    }
    if digits.is_empty() {
        return Err("no hex digits".into());
    }
    hex::decode(&digits).map_err(|error| error.to_string())
}

/// `N:` and dots: hex digits never have dots.
fn looks_like_address(text: &str) -> bool {
    text.contains(':') && text.contains('.')
}

fn show_address(context: &Context, text: &str) -> Result<(), CliError> {
    let (address, port) = match text.parse::<SocketAddress>() {
        Ok(socket) => (socket.address, Some(socket.port)),
        Err(_) => {
            let address = text.parse::<Address>().map_err(|error| {
                CliError::usage("address", error, "an address reads N:NNNN.HHHH.LLLL, as in 0:0000.ABCD.1234")
            })?;
            (address, None)
        }
    };
    let bytes = hex::encode(address.to_bytes());
    let text = format!(
        "address {address}\n  network {}\n  node {} ({})\n  on the wire {bytes}{}{}",
        address.network.0,
        address.node,
        address.node.0,
        port.map_or(String::new(), |port| format!("\n  port {port}")),
        if address.is_broadcast() { "\n  broadcast" } else { "" },
    );
    let value = json!({
        "event": "address",
        "kind": "address",
        "address": address.to_string(),
        "network": address.network.0,
        "node": address.node.0,
        "bytes": bytes,
        "port": port,
        "broadcast": address.is_broadcast(),
    });
    context.output.result(text, &value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn hex_in_its_usual_forms() {
        for text in ["50494c50", "50:49:4C:50", "0x50 0x49 0x4c 0x50", "0x50494c50", "50 49-4c,50"] {
            assert_eq!(parse_hex(text).as_deref(), Ok(&b"PILP"[..]), "{text}");
        }
        for text in ["", "5", "zz", "  "] {
            assert!(parse_hex(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn captures_are_told_from_text_and_raw_bytes() {
        assert!(is_hex_text("50 49 # comment with words\n\n4c"));
        assert!(!is_hex_text("hello"));
        assert!(!is_hex_text(" \n"));
        assert!(capture::is_capture(&capture::tests::classic(true, 1, &[])));
        assert!(capture::is_capture(&capture::tests::next_generation(true, 1, &[])));
        assert!(!capture::is_capture(b"PIL"));
        assert!(!capture::is_capture(b"PILS"));
    }

    #[test]
    fn a_datagram_is_found_in_a_capture() {
        let packet = link::tests::v4(b"PILP");
        let file = capture::tests::next_generation(false, 101, &[&packet]);
        let mut reader = capture::Reader::new(&file[..]).unwrap();
        let captured = reader.next().unwrap().unwrap();
        match link::parse(captured.link, &captured.data) {
            Content::Udp(udp) => assert!(view::is_ours(udp.payload)),
            other => panic!("{other:?}"),
        }
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text in "\\PC{0,60}") {
            let _ = parse_hex(&text);
            is_hex_text(&text);
        }
    }
}
