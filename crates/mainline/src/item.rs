//! What is stored: a record as a mutable item of BEP 44.

use mainline::MutableItem;
use pilotage::NetworkId;
use pilotage::records::{Public, Sign};

/// Under which salt the record of a network lies: other items of the same key do not collide with it.
pub(crate) fn salt(network: NetworkId) -> Vec<u8> {
    [b"pilotage-record-v1".as_slice(), &network.0.to_be_bytes()].concat()
}

/// The item of a record, with the record's number; `None` for numbers that BEP 44 does not have.
pub(crate) fn of(record: &Public, sign: &Sign) -> Option<MutableItem> {
    let seq = i64::try_from(record.seq()).ok()?;
    let salt = salt(record.network());
    let signature = sign(&signed(seq, record.bytes(), &salt));
    Some(MutableItem::new_signed_unchecked(record.key(), signature, record.bytes(), seq, Some(&salt)))
}

/// What BEP 44 signs. It begins with "4:salt", as nothing else does that a node's key signs.
fn signed(seq: i64, value: &[u8], salt: &[u8]) -> Vec<u8> {
    let mut out = format!("4:salt{}:", salt.len()).into_bytes();
    out.extend_from_slice(salt);
    out.extend_from_slice(format!("3:seqi{seq}e1:v{}:", value.len()).as_bytes());
    out.extend_from_slice(value);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signed_text_is_that_of_bep_44() {
        // The second test vector of BEP 44, whose signature another program made.
        let key: [u8; 32] = *b"\x77\xff\x84\x90\x5a\x91\x93\x63\x67\xc0\x13\x60\x80\x31\x04\xf9\x24\x32\xfc\xd9\x04\xa4\x35\x11\x87\x6d\xf5\xcd\xf3\xe7\xe5\x48";
        let signature = *b"\x68\x34\x28\x4b\x6b\x24\xc3\x20\x4e\xb2\xfe\xa8\x24\xd8\x2f\x88\x88\x3a\x3d\x95\xe8\xb4\xa2\x1b\x8c\x0d\xed\x55\x3d\x17\xd1\x7d\xdf\x9a\x8a\x71\x04\xb1\x25\x8f\x30\xbe\xd3\x78\x7e\x6c\xb8\x96\xfc\xa7\x8c\x58\xf8\xe0\x3b\x5f\x18\xf1\x49\x51\xa8\x7d\x9a\x08";
        let text = b"4:salt6:foobar3:seqi1e1:v12:Hello World!";
        assert_eq!(signed(1, b"Hello World!", b"foobar"), text);
        assert!(pilotage::verify(&key, text, &signature));
    }

    #[test]
    fn networks_do_not_share_a_place() {
        assert_ne!(salt(NetworkId(1)), salt(NetworkId(256)));
        assert!(salt(NetworkId(1)).len() <= 64, "BEP 44 allows no more");
    }
}
