//! Who is compared, and everything that is set on each.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::settings::Options;
use crate::transport::{ETHERNET_PAYLOAD, QUIC_CONNECTION_WINDOW, QUIC_STREAM_WINDOW, SOCKET_BUFFER};

/// A subject of the comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Subject {
    /// Pilotage, UDP payloads of at most 1,452 bytes.
    Pilotage,
    /// The same in the secure mode S1; the client has the server's prekey, as from its record.
    PilotageS1,
    /// Pilotage, UDP payloads as large as the path takes.
    PilotageLarge,
    /// The same in the secure mode S1.
    PilotageS1Large,
    /// The raw encrypted UDP loop, 1,452-byte datagrams: no protocol, only what the machine can do.
    Ceiling,
    /// The raw encrypted UDP loop, 8,952-byte datagrams (its best size here).
    CeilingLarge,
    /// QUIC: quinn with its defaults.
    Quinn,
    /// QUIC: quinn with large windows and socket buffers.
    QuinnTuned,
    /// QUIC: quinn tuned, UDP payloads of 6,500 bytes.
    QuinnLarge,
    /// QUIC: quinn tuned, ChaCha20-Poly1305.
    QuinnChacha,
    /// QUIC: s2n-quic with its defaults.
    S2n,
    /// QUIC: s2n-quic with large windows and socket buffers.
    S2nTuned,
    /// QUIC: s2n-quic tuned, UDP payloads of 8,952 bytes.
    S2nLarge,
    /// TLS 1.3 over TCP (CUBIC): rustls with aws-lc-rs.
    Tls,
    /// TLS 1.3 over TCP (CUBIC), ChaCha20-Poly1305.
    TlsChacha,
    /// Kernel TCP, CUBIC, not encrypted.
    Tcp,
    /// Kernel TCP, BBR, not encrypted.
    TcpBbr,
    /// The Go reference: its own programs, from the folder PILOT_REF_BIN.
    Reference,
}

/// The code that a subject runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Ours.
    Pilotage,
    /// No protocol.
    Ceiling,
    /// quinn.
    Quinn,
    /// s2n-quic.
    S2n,
    /// rustls over TCP.
    Tls,
    /// Kernel TCP.
    Tcp,
    /// The Go reference.
    Reference,
}

/// What encrypts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suite {
    /// AES-256-GCM (and SHA-384 in TLS).
    Aes256,
    /// ChaCha20-Poly1305.
    ChaCha20,
}

impl Suite {
    /// As in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Aes256 => "AES-256-GCM",
            Self::ChaCha20 => "ChaCha20-Poly1305",
        }
    }
}

/// Largest UDP payload of the "large" quinn subject: ten of them, quinn's batch bound, still fit one
/// segmentation-offload send of 65,507 bytes; with 8,952 bytes quinn loses offload and becomes slower.
pub const QUINN_LARGE: u16 = 6_500;
/// UDP payload of the "large" s2n-quic subject and of the ceiling: a jumbo frame of 9,000 bytes less headers.
pub const JUMBO_PAYLOAD: u16 = 8_952;
/// Largest UDP payload over IPv4.
pub const LARGEST_PAYLOAD: u16 = 65_507;

impl Subject {
    /// All subjects in the order of the tables.
    pub fn all() -> &'static [Subject] {
        Subject::value_variants()
    }

    /// The name on the command line and in the tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pilotage => "pilotage",
            Self::PilotageS1 => "pilotage-s1",
            Self::PilotageLarge => "pilotage-large",
            Self::PilotageS1Large => "pilotage-s1-large",
            Self::Ceiling => "ceiling",
            Self::CeilingLarge => "ceiling-large",
            Self::Quinn => "quinn",
            Self::QuinnTuned => "quinn-tuned",
            Self::QuinnLarge => "quinn-large",
            Self::QuinnChacha => "quinn-chacha",
            Self::S2n => "s2n",
            Self::S2nTuned => "s2n-tuned",
            Self::S2nLarge => "s2n-large",
            Self::Tls => "tls",
            Self::TlsChacha => "tls-chacha",
            Self::Tcp => "tcp",
            Self::TcpBbr => "tcp-bbr",
            Self::Reference => "reference",
        }
    }

    /// Whose code it runs.
    pub fn family(self) -> Family {
        match self {
            Self::Pilotage | Self::PilotageS1 | Self::PilotageLarge | Self::PilotageS1Large => {
                Family::Pilotage
            }
            Self::Ceiling | Self::CeilingLarge => Family::Ceiling,
            Self::Quinn | Self::QuinnTuned | Self::QuinnLarge | Self::QuinnChacha => Family::Quinn,
            Self::S2n | Self::S2nTuned | Self::S2nLarge => Family::S2n,
            Self::Tls | Self::TlsChacha => Family::Tls,
            Self::Tcp | Self::TcpBbr => Family::Tcp,
            Self::Reference => Family::Reference,
        }
    }

    /// Whether it is ours in the secure mode S1.
    pub fn is_s1(self) -> bool {
        matches!(self, Self::PilotageS1 | Self::PilotageS1Large)
    }

    /// Whether windows, buffers and datagram sizes are set; otherwise the library's defaults stand.
    pub fn is_tuned(self) -> bool {
        !matches!(self, Self::Quinn | Self::S2n)
    }

    /// Whether it differs from another subject only in what matters for bulk data (datagram size, suite, windows).
    pub fn is_for_bulk_only(self) -> bool {
        matches!(
            self,
            Self::PilotageLarge
                | Self::PilotageS1Large
                | Self::Ceiling
                | Self::CeilingLarge
                | Self::QuinnLarge
                | Self::QuinnChacha
                | Self::S2nLarge
                | Self::TlsChacha
                | Self::TcpBbr
        )
    }

    /// Largest UDP payload this subject may use; `None` for TCP and for the libraries' defaults.
    pub fn max_datagram(self) -> Option<u16> {
        match self {
            Self::Pilotage
            | Self::PilotageS1
            | Self::Ceiling
            | Self::QuinnTuned
            | Self::QuinnChacha
            | Self::S2nTuned => Some(ETHERNET_PAYLOAD),
            Self::PilotageLarge | Self::PilotageS1Large => Some(LARGEST_PAYLOAD),
            Self::QuinnLarge => Some(QUINN_LARGE),
            Self::S2nLarge | Self::CeilingLarge => Some(JUMBO_PAYLOAD),
            Self::Quinn
            | Self::S2n
            | Self::Tls
            | Self::TlsChacha
            | Self::Tcp
            | Self::TcpBbr
            | Self::Reference => None,
        }
    }

    /// What encrypts its data (TCP: nothing).
    pub fn suite(self) -> Suite {
        match self {
            Self::QuinnChacha | Self::TlsChacha => Suite::ChaCha20,
            _ => Suite::Aes256,
        }
    }

    /// Congestion control of the kernel's TCP under it.
    pub fn tcp_congestion(self) -> &'static str {
        match self {
            Self::TcpBbr => "bbr",
            _ => "cubic",
        }
    }

    /// Everything that was set on this subject, for the report.
    pub fn settings(self, options: &Options) -> String {
        let datagram = self.max_datagram().unwrap_or_default();
        let tuned = format!(
            "stream window {} MiB, connection and send window {} MiB, socket buffers {} MiB, UDP payload up to {datagram}",
            QUIC_STREAM_WINDOW >> 20,
            QUIC_CONNECTION_WINDOW >> 20,
            SOCKET_BUFFER >> 20
        );
        let windows = if self.is_tuned() {
            tuned.as_str()
        } else {
            "windows, socket buffers and datagram size as the library sets them"
        };
        let batch = if self.is_tuned() { ", stream batch 32" } else { "" };
        let suite = self.suite().name();
        let tls = format!("TLS 1.3, {suite}, X25519, ECDSA P-256 certificate, no tickets");
        match self.family() {
            Family::Pilotage if self.is_s1() => format!(
                "secure mode S1 with {suite} (X25519, Noise IK), prekey known beforehand, aws-lc-rs, {}, max_datagram_size {datagram}, everything else by default; a side on one core (blocking: its threads receive, tokio: a task drives the node)",
                options.congestion.name()
            ),
            Family::Pilotage => format!(
                "{suite} (the only suite of the draft's tunnels), aws-lc-rs, {}, max_datagram_size {datagram}, everything else by default; a side on one core (blocking: its threads receive, tokio: a task drives the node)",
                options.congestion.name()
            ),
            Family::Ceiling => format!(
                "UDP with segmentation and receive offload, {suite} (aws-lc-rs) sealed in the send buffer and opened in the receive buffer, payload copied in and out, datagrams of {datagram} B, fixed window without loss recovery; no transport, only what the machine can do"
            ),
            Family::Quinn => format!(
                "quinn 0.11, rustls + aws-lc-rs, {tls}, tokio current_thread, CUBIC, idle timeout 300 s, {windows}"
            ),
            Family::S2n => format!(
                "s2n-quic 1.91, rustls + aws-lc-rs, {tls}, tokio current_thread, CUBIC, idle timeout 300 s, {windows}{batch}"
            ),
            Family::Tls => format!(
                "rustls 0.23 + aws-lc-rs, {tls}, kernel-tuned socket buffers, {}, TCP_NODELAY; std::net for one stream, tokio current_thread for many",
                self.tcp_congestion()
            ),
            Family::Reference => {
                "its programs as they are (AES-256-GCM, datagrams of up to 4,096 B of payload, the kernel's default socket buffers), two daemons and its `bench` command".to_owned()
            }
            Family::Tcp => format!(
                "kernel TCP, not encrypted, kernel-tuned socket buffers, {}, TCP_NODELAY; std::net for one stream, tokio current_thread for many",
                self.tcp_congestion()
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_large_quinn_datagrams_fit_one_offload_send() {
        assert!(usize::from(QUINN_LARGE) * 10 <= usize::from(LARGEST_PAYLOAD));
    }

    #[test]
    fn names_are_those_of_the_command_line_and_of_json() {
        for subject in Subject::all() {
            let on_the_line = subject.to_possible_value().expect("shown");
            assert_eq!(on_the_line.get_name(), subject.name());
            assert_eq!(serde_json::to_value(subject).expect("json"), subject.name());
        }
    }
}
