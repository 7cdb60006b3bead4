//! Reading records.

use super::{
    Endpoint, HEADER_LEN, HostnameRef, MAGIC, MAX_ENDPOINTS, MAX_PREKEYS, MAX_RECORD, MAX_SEALED, MAX_TAGS,
    Prekey, Record, RecordError, Rotation, SIGNATURE_LEN, Sealed, SealedFor, Tombstone, VERSION, Vector,
    field,
};
use crate::s1::payload::{CERTIFICATE_LEN, PrekeyCertificate};
use crate::{NetworkId, NodeId};
use std::net::{Ipv4Addr, Ipv6Addr};

impl Record {
    /// Reads a record. Checks everything but the signatures; what it accepts, [`Record::encode`] writes again byte by
    /// byte.
    ///
    /// # Errors
    /// [`RecordError`], whatever is wrong first.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        if bytes.len() > MAX_RECORD {
            return Err(RecordError::TooLong(bytes.len()));
        }
        if bytes.first_chunk() != Some(MAGIC) {
            return Err(if bytes.len() < 4 { RecordError::Truncated } else { RecordError::Magic });
        }
        if bytes.len() < HEADER_LEN + 1 + SIGNATURE_LEN {
            return Err(RecordError::Truncated);
        }
        let (body, signature) = bytes.split_last_chunk().ok_or(RecordError::Truncated)?;
        let mut read = Reader(&body[MAGIC.len()..]);
        let (version, min_sec) = (read.u8()?, read.u8()?);
        if version != VERSION {
            return Err(RecordError::Version(version));
        }
        let network = NetworkId(u16::from_be_bytes(*read.array()?));
        let node = NodeId(u32::from_be_bytes(*read.array()?));
        let salt = u16::from_be_bytes(*read.array()?);
        let flags = u16::from_be_bytes(*read.array()?);
        if flags > 1 {
            return Err(RecordError::Value("flags"));
        }
        let key = *read.array()?;
        let seq = u64::from_be_bytes(*read.array()?);
        let ttl = u32::from_be_bytes(*read.array()?);
        let issued = u32::from_be_bytes(*read.array()?);
        let mut record = Self::new(network, node, salt, key, seq, issued);
        (record.min_sec, record.private, record.ttl) = (min_sec, flags == 1, ttl);
        record.caps = u64::from_be_bytes(*read.array()?);
        record.signature = *signature;
        record.prekeys = prekeys(&mut read)?;
        let mut last = 0;
        while !read.0.is_empty() {
            let number = read.u8()?;
            let len = u16::from_be_bytes(*read.array()?);
            let value = read.bytes(len.into())?;
            if number <= last || value.is_empty() {
                return Err(RecordError::Order(number));
            }
            last = number;
            record.read_field(number, value)?;
        }
        record.check()?;
        Ok(record)
    }

    fn read_field(&mut self, number: u8, value: &[u8]) -> Result<(), RecordError> {
        let mut read = Reader(value);
        match number {
            field::ENDPOINTS => self.endpoints = endpoints(&mut read)?,
            field::RELAYS => self.relays = endpoints(&mut read)?,
            field::TAGS => {
                while !read.0.is_empty() {
                    if self.tags.len() == MAX_TAGS {
                        return Err(RecordError::TooMany("tags", MAX_TAGS));
                    }
                    let len = read.u8()?;
                    self.tags.push(text(read.bytes(len.into())?, "tags")?);
                }
            }
            field::HOSTNAME => {
                let index = u64::from_be_bytes(*read.array()?);
                self.hostname = Some(HostnameRef { name: text(read.rest(), "hostname")?, index });
            }
            field::DESCRIPTOR => self.descriptor = Some(*read.array()?),
            field::SEALED => {
                while !read.0.is_empty() {
                    if self.sealed.len() == MAX_SEALED {
                        return Err(RecordError::TooMany("sealed boxes", MAX_SEALED));
                    }
                    self.sealed.push(sealed(&mut read)?);
                }
            }
            field::ROTATION => {
                self.rotation = Some(Rotation { previous: *read.array()?, signature: *read.array()? });
            }
            field::TOMBSTONE => {
                self.tombstone = Some(match read.u8()? {
                    1 => Tombstone::Gone,
                    2 => Tombstone::Rotated,
                    3 => Tombstone::Compromised,
                    _ => return Err(RecordError::Value("tombstone")),
                });
            }
            field::SUMMARY => self.summary = Some(text(read.rest(), "summary")?),
            field::VECTOR => {
                let model = *read.array()?;
                let values = read.rest().iter().map(|byte| byte.cast_signed()).collect();
                self.vector = Some(Vector { model, values });
            }
            field::OPTIONAL.. => self.extensions.push((number, read.rest().to_vec())),
            other => return Err(RecordError::Field(other)),
        }
        if read.0.is_empty() { Ok(()) } else { Err(RecordError::Value("length of a field")) }
    }
}

fn prekeys(read: &mut Reader<'_>) -> Result<Vec<Prekey>, RecordError> {
    let count = usize::from(read.u8()?);
    if count > MAX_PREKEYS {
        return Err(RecordError::TooMany("prekeys", MAX_PREKEYS));
    }
    let one = |_| {
        let key = *read.array()?;
        let certificate = PrekeyCertificate::from_bytes(read.array::<CERTIFICATE_LEN>()?);
        Ok(Prekey { key, certificate })
    };
    (0..count).map(one).collect()
}

/// Reads what [`encode_endpoints`](super::encode_endpoints) wrote, at most [`MAX_ENDPOINTS`].
///
/// # Errors
/// [`RecordError`] if the bytes are something else.
pub fn decode_endpoints(bytes: &[u8]) -> Result<Vec<Endpoint>, RecordError> {
    endpoints(&mut Reader(bytes))
}

/// At most [`MAX_ENDPOINTS`]; `check` knows that relays are fewer.
fn endpoints(read: &mut Reader<'_>) -> Result<Vec<Endpoint>, RecordError> {
    let mut list = Vec::new();
    while !read.0.is_empty() {
        if list.len() == MAX_ENDPOINTS {
            return Err(RecordError::TooMany("endpoints", MAX_ENDPOINTS));
        }
        let ip = match read.u8()? {
            4 => Ipv4Addr::from(*read.array::<4>()?).into(),
            6 => Ipv6Addr::from(*read.array::<16>()?).into(),
            _ => return Err(RecordError::Value("endpoint")),
        };
        list.push(Endpoint::new(ip, u16::from_be_bytes(*read.array()?)));
    }
    Ok(list)
}

fn sealed(read: &mut Reader<'_>) -> Result<Sealed, RecordError> {
    let whom = match read.u8()? {
        1 => SealedFor::Network,
        2 => SealedFor::Peer,
        _ => return Err(RecordError::Value("sealed")),
    };
    let key_id = *read.array()?;
    let len = u16::from_be_bytes(*read.array()?);
    Ok(Sealed { whom, key_id, bytes: read.bytes(len.into())?.to_vec() })
}

fn text(bytes: &[u8], name: &'static str) -> Result<String, RecordError> {
    core::str::from_utf8(bytes).map(str::to_owned).map_err(|_| RecordError::Value(name))
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn array<const N: usize>(&mut self) -> Result<&'a [u8; N], RecordError> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(RecordError::Truncated)?;
        self.0 = rest;
        Ok(head)
    }

    fn u8(&mut self) -> Result<u8, RecordError> {
        Ok(self.array::<1>()?[0])
    }

    fn bytes(&mut self, len: usize) -> Result<&'a [u8], RecordError> {
        let (head, rest) = self.0.split_at_checked(len).ok_or(RecordError::Truncated)?;
        self.0 = rest;
        Ok(head)
    }

    fn rest(&mut self) -> &'a [u8] {
        core::mem::take(&mut self.0)
    }
}
