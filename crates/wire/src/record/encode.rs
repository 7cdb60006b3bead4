//! Writing records.

use super::{
    Endpoint, MAGIC, MAX_ENDPOINTS, MAX_PREKEYS, MAX_RECORD, MAX_RELAYS, MAX_SEALED, MAX_SEALED_LEN,
    MAX_SUMMARY, MAX_TAGS, MAX_TTL, MAX_VECTOR, Record, RecordError, VERSION, check_tag, field,
};
use crate::addressing::is_reserved;
use std::net::IpAddr;

impl Record {
    /// As it is sent and stored; the signature is what [`Record::signature`] says.
    ///
    /// # Errors
    /// [`RecordError`]: too long, or a field that no reader would accept.
    pub fn encode(&self) -> Result<Vec<u8>, RecordError> {
        self.check()?;
        let mut out = Vec::with_capacity(512);
        out.extend_from_slice(MAGIC);
        out.extend([VERSION, self.min_sec]);
        out.extend(self.network.0.to_be_bytes());
        out.extend(self.node.0.to_be_bytes());
        out.extend(self.salt.to_be_bytes());
        out.extend(u16::from(self.private).to_be_bytes());
        out.extend(self.key);
        out.extend(self.seq.to_be_bytes());
        out.extend(self.ttl.to_be_bytes());
        out.extend(self.issued.to_be_bytes());
        out.extend(self.caps.to_be_bytes());
        out.push(self.prekeys.len() as u8);
        for prekey in &self.prekeys {
            out.extend(prekey.key);
            out.extend(prekey.certificate.to_bytes());
        }
        self.fields(&mut out);
        out.extend(self.signature);
        if out.len() > MAX_RECORD { Err(RecordError::TooLong(out.len())) } else { Ok(out) }
    }

    fn fields(&self, out: &mut Vec<u8>) {
        put(out, field::ENDPOINTS, |out| endpoints(out, &self.endpoints));
        put(out, field::RELAYS, |out| endpoints(out, &self.relays));
        put(out, field::TAGS, |out| {
            for tag in &self.tags {
                out.push(tag.len() as u8);
                out.extend(tag.bytes());
            }
        });
        put(out, field::HOSTNAME, |out| {
            if let Some(hostname) = &self.hostname {
                out.extend(hostname.index.to_be_bytes());
                out.extend(hostname.name.bytes());
            }
        });
        put(out, field::DESCRIPTOR, |out| out.extend(self.descriptor.iter().flatten()));
        put(out, field::SEALED, |out| {
            for sealed in &self.sealed {
                out.push(sealed.whom as u8);
                out.extend(sealed.key_id);
                out.extend((sealed.bytes.len() as u16).to_be_bytes());
                out.extend_from_slice(&sealed.bytes);
            }
        });
        put(out, field::ROTATION, |out| {
            if let Some(rotation) = &self.rotation {
                out.extend(rotation.previous);
                out.extend(rotation.signature);
            }
        });
        put(out, field::TOMBSTONE, |out| out.extend(self.tombstone.map(|reason| reason as u8)));
        put(out, field::SUMMARY, |out| out.extend(self.summary.iter().flat_map(|text| text.bytes())));
        put(out, field::VECTOR, |out| {
            if let Some(vector) = &self.vector {
                out.extend(vector.model);
                out.extend(vector.values.iter().map(|value| value.cast_unsigned()));
            }
        });
        for (number, value) in &self.extensions {
            put(out, *number, |out| out.extend_from_slice(value));
        }
    }

    /// The rules that reading and writing share.
    pub(super) fn check(&self) -> Result<(), RecordError> {
        let wrong = |name| Err(RecordError::Value(name));
        if self.min_sec > 2 {
            return wrong("min_sec");
        }
        if is_reserved(self.node) {
            return wrong("node_id");
        }
        if self.ttl == 0 || self.ttl > MAX_TTL {
            return wrong("ttl");
        }
        check_lists(self)?;
        if self.hostname.as_ref().is_some_and(|hostname| !is_hostname(&hostname.name)) {
            return wrong("hostname");
        }
        let bad_summary =
            |text: &String| text.is_empty() || text.len() > MAX_SUMMARY || text.chars().any(char::is_control);
        if self.summary.as_ref().is_some_and(bad_summary) {
            return wrong("summary");
        }
        let bad_vector = |len: usize| len == 0 || len > MAX_VECTOR;
        if self.vector.as_ref().is_some_and(|vector| bad_vector(vector.values.len())) {
            return wrong("vector");
        }
        if self.rotation.is_some_and(|rotation| rotation.previous == self.key) {
            return wrong("rotation");
        }
        let says_more = self.rotation.is_some() || self.has_content();
        if self.tombstone.is_some() && says_more { wrong("tombstone") } else { Ok(()) }
    }

    fn has_content(&self) -> bool {
        !(self.prekeys.is_empty()
            && self.endpoints.is_empty()
            && self.relays.is_empty()
            && self.tags.is_empty()
            && self.sealed.is_empty())
            || self.hostname.is_some()
            || self.descriptor.is_some()
            || self.summary.is_some()
            || self.vector.is_some()
    }
}

fn check_lists(record: &Record) -> Result<(), RecordError> {
    let most = |name, len: usize, max| if len > max { Err(RecordError::TooMany(name, max)) } else { Ok(()) };
    most("prekeys", record.prekeys.len(), MAX_PREKEYS)?;
    most("endpoints", record.endpoints.len(), MAX_ENDPOINTS)?;
    most("relays", record.relays.len(), MAX_RELAYS)?;
    most("tags", record.tags.len(), MAX_TAGS)?;
    most("sealed boxes", record.sealed.len(), MAX_SEALED)?;
    record.tags.iter().try_for_each(|tag| check_tag(tag))?;
    if !record.tags.is_sorted_by(|a, b| a < b) {
        return Err(RecordError::Order(field::TAGS));
    }
    let unusable = |at: &Endpoint| at.port() == 0 || at.ip().is_unspecified() || is_not_plain(*at);
    if record.endpoints.iter().chain(&record.relays).any(unusable) {
        return Err(RecordError::Value("endpoint"));
    }
    if record.sealed.iter().any(|sealed| sealed.bytes.is_empty() || sealed.bytes.len() > MAX_SEALED_LEN) {
        return Err(RecordError::Value("sealed"));
    }
    let mut last = field::OPTIONAL - 1;
    for (number, value) in &record.extensions {
        if *number <= last || value.is_empty() {
            return Err(RecordError::Order(*number));
        }
        last = *number;
    }
    Ok(())
}

/// Scope and flow of an IPv6 address mean nothing elsewhere, and an IPv4 address is written as one.
fn is_not_plain(at: Endpoint) -> bool {
    match at {
        Endpoint::V4(_) => false,
        Endpoint::V6(v6) => v6.scope_id() != 0 || v6.flowinfo() != 0 || v6.ip().to_ipv4_mapped().is_some(),
    }
}

/// `[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?`
fn is_hostname(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&name.len())
        && name.bytes().all(allowed)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

/// Number (1), length (2), value; nothing for an empty value.
fn put(out: &mut Vec<u8>, number: u8, value: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend([number, 0, 0]);
    value(out);
    let len = out.len() - start - 3;
    if len == 0 {
        out.truncate(start);
        return;
    }
    // A length above 65,535 is cut here and the record is refused for its own length.
    out[start + 1..start + 3].copy_from_slice(&(len as u16).to_be_bytes());
}

/// Endpoints as they lie in a record, and in a sealed box.
#[must_use]
pub fn encode_endpoints(list: &[Endpoint]) -> Vec<u8> {
    let mut out = Vec::with_capacity(list.len() * 19);
    endpoints(&mut out, list);
    out
}

fn endpoints(out: &mut Vec<u8>, list: &[Endpoint]) {
    for endpoint in list {
        match endpoint.ip() {
            IpAddr::V4(ip) => {
                out.push(4);
                out.extend(ip.octets());
            }
            IpAddr::V6(ip) => {
                out.push(6);
                out.extend(ip.octets());
            }
        }
        out.extend(endpoint.port().to_be_bytes());
    }
}
