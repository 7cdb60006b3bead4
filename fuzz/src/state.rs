//! The files of a state directory.

#[allow(dead_code, reason = "the node needs more of it")]
#[path = "../../crates/pilotage/src/state/format.rs"]
mod format;

/// `identity.json`, `peers.json`, `device.json` and `addresses.json`: what was understood survives being written and read again.
pub(crate) fn state_files(data: &[u8]) {
    let Ok(text) = core::str::from_utf8(data) else { return };
    if let Ok(identity) = format::parse_identity(text) {
        let json = format::identity_json(&identity).expect("own keys");
        let again = format::parse_identity(core::str::from_utf8(&json).expect("JSON")).expect("own bytes");
        assert_eq!(again.public_key(), identity.public_key());
    }
    if let Ok(pins) = format::parse_peers(text) {
        let json = format::peers_json(pins.iter().collect()).expect("own pins");
        let again = format::parse_peers(core::str::from_utf8(&json).expect("JSON")).expect("own bytes");
        assert_eq!(again, pins);
    }
    if let Ok(secret) = format::parse_device(text) {
        let json = format::device_json(&secret).expect("32 bytes");
        let again = format::parse_device(core::str::from_utf8(&json).expect("JSON")).expect("own bytes");
        assert_eq!(again, secret);
    }
    if let Ok(known) = format::parse_addresses(text) {
        let json = format::addresses_json(&known).expect("own addresses");
        let again = format::parse_addresses(core::str::from_utf8(&json).expect("JSON")).expect("own bytes");
        assert_eq!(again, known);
    }
}
