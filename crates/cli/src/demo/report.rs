//! What the demo found out.

use std::time::Duration;

use serde_json::{Value, json};

use crate::units::{format_bytes, format_duration, format_rate};

/// Everything that is reported, gathered from the children's JSON lines.
#[derive(Debug, Clone, Default)]
pub(super) struct Report {
    /// Sender, receiver and (for a generated file) generator agree on length and hash.
    pub(super) verified: bool,
    /// Bytes that B stored.
    pub(super) bytes: u64,
    pub(super) blake3: String,
    pub(super) nodes: Vec<NodeInfo>,
    /// Line `connected` of A.
    pub(super) connected: Value,
    /// Line `sent` of A.
    pub(super) sent: Value,
    /// `rtt_us` of A.
    pub(super) rtt_us: Value,
    /// `datagrams` of A.
    pub(super) datagrams: Value,
}

/// A node as the report names it.
#[derive(Debug, Clone, Default)]
pub(super) struct NodeInfo {
    pub(super) name: String,
    pub(super) address: String,
    pub(super) fingerprint: String,
}

impl NodeInfo {
    /// From a ready line.
    pub(super) fn from_ready(ready: &Value, name: &str) -> Self {
        let word = |key: &str| ready[key].as_str().unwrap_or_default().to_owned();
        Self { name: name.into(), address: word("address"), fingerprint: word("fingerprint") }
    }
}

impl Report {
    pub(super) fn to_json(&self) -> Value {
        let nodes: Vec<_> = self
            .nodes
            .iter()
            .map(
                |node| json!({ "name": node.name, "address": node.address, "fingerprint": node.fingerprint }),
            )
            .collect();
        json!({
            "event": "demo",
            "verified": self.verified,
            "bytes": self.bytes,
            "blake3": self.blake3,
            "goodput_bps": self.sent["goodput_bps"],
            "elapsed_us": self.sent["elapsed_us"],
            "handshake_us": self.connected["handshake_us"],
            "connect_us": self.connected["connect_us"],
            "rtt_us": self.rtt_us,
            "retransmitted_segments": self.sent["stats"]["segments_retransmitted"],
            "segments": self.sent["stats"]["segments_sent"],
            "path": self.sent["path"]["kind"],
            "path_detail": self.sent["path"]["detail"],
            "nodes": nodes,
            "datagrams": self.datagrams,
        })
    }

    pub(super) fn to_text(&self) -> String {
        let time = |value: &Value| format_duration(Duration::from_micros(value.as_u64().unwrap_or(0)));
        let number = |value: &Value| value.as_u64().unwrap_or(0);
        let mut lines = Vec::new();
        for node in &self.nodes {
            lines.push(format!("{:<15}{}  {}", node.name, node.address, node.fingerprint));
        }
        let detail = &self.sent["path"]["detail"];
        let stats = &self.sent["stats"];
        lines.extend([
            format!("key exchange   {}", time(&self.connected["handshake_us"])),
            format!(
                "transfer       {} in {}: {}",
                format_bytes(self.bytes),
                time(&self.sent["elapsed_us"]),
                format_rate(number(&self.sent["goodput_bps"]) as f64),
            ),
            format!(
                "verified       {}, blake3 {}",
                if self.verified { "yes, every byte" } else { "NO" },
                self.blake3
            ),
            format!(
                "round trips    {}: p50 {}, p99 {}",
                number(&self.rtt_us["count"]),
                time(&self.rtt_us["p50"]),
                time(&self.rtt_us["p99"]),
            ),
            format!(
                "datagrams      {} sent, {} received",
                number(&self.datagrams["sent"]),
                number(&self.datagrams["received"]),
            ),
            format!(
                "retransmitted  {} of {} segments",
                number(&stats["segments_retransmitted"]),
                number(&stats["segments_sent"]),
            ),
            format!(
                "path           {} {}, {}-byte datagrams",
                self.sent["path"]["kind"].as_str().unwrap_or("unknown"),
                detail["remote"].as_str().unwrap_or("-"),
                number(&detail["datagram_size"]),
            ),
        ]);
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_survive_missing_parts() {
        let report = Report::default();
        assert_eq!(report.to_json()["verified"], false);
        assert!(report.to_text().contains("verified       NO"));
    }
}
