//! Headers of the file transfer.

#[allow(dead_code, reason = "the service needs more of it")]
#[path = "../../crates/services/src/file/wire.rs"]
mod wire;

use wire::{MAX_CHUNK, MAX_NAME, Next, Offer, Reply, WireError, check_name};

/// Offer, what follows it, and reply: what was understood survives being written and read again.
pub(crate) fn file_header(data: &[u8]) {
    let mut rest = data;
    if let Ok(offer) = Offer::read(&mut rest) {
        assert!(check_name(&offer.name).is_ok() && offer.name.len() <= MAX_NAME);
        assert!(std::path::Path::new(&offer.name).file_name().is_some_and(|n| n == offer.name.as_str()));
        let mut written = Vec::new();
        offer.write(&mut written).expect("a vector takes it");
        let again = Offer::read(&mut &written[..]).expect("own bytes");
        assert_eq!((again.name, again.size), (offer.name, offer.size));
    }
    match Next::read(&mut &*data) {
        Ok(Next::Chunk(len)) => assert!((1..=MAX_CHUNK).contains(&len)),
        Ok(Next::End { size, hash }) => {
            let mut written = Vec::new();
            wire::write_end(&mut written, size, &hash).expect("a vector takes it");
            assert_eq!(written, data[..written.len()]);
        }
        Err(WireError::Aborted(text)) => assert!(!text.chars().any(char::is_control)),
        Err(_) => {}
    }
    if let Ok(reply) = Reply::read(&mut &*data) {
        assert!(!reply.text.chars().any(char::is_control));
        let mut written = Vec::new();
        reply.write(&mut written).expect("a vector takes it");
        let again = Reply::read(&mut &written[..]).expect("own bytes");
        assert_eq!((again.status, again.size, again.hash), (reply.status, reply.size, reply.hash));
        assert!(reply.text.starts_with(&again.text));
    }
}
