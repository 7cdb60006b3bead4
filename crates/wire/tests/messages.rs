//! Error texts are read by people: each names the figure that was wrong.

use pilotage_wire::beacon::BeaconError;
use pilotage_wire::frame::FrameError;
use pilotage_wire::packet::{Flags, PacketError};
use pilotage_wire::{Address, EncodeError, NetworkId, NodeId, SocketAddress};

#[track_caller]
fn says(error: &dyn std::error::Error, words: &[&str]) {
    let text = error.to_string();
    assert!(words.iter().all(|word| text.contains(word)), "{text:?} lacks one of {words:?}");
    assert!(!text.ends_with('.') && !text.contains('\n'), "{text:?}: one clause, to be put into a sentence");
}

#[test]
fn errors_of_the_codecs_name_their_figures() {
    says(&EncodeError::BufferTooSmall { need: 40, have: 12 }, &["40", "12", "larger buffer"]);
    says(&EncodeError::TooLong { len: 70_000, max: 65_535 }, &["70000", "65535"]);
    says(&BeaconError::Empty, &["empty"]);
    says(&BeaconError::Type(9), &["9"]);
    says(&BeaconError::TooShort { number: 2, len: 3 }, &["2", "3"]);
    says(&BeaconError::IpLength(7), &["7", "4", "16"]);
    says(&FrameError::Magic(*b"PIL\x00"), &["PIL\\x00"]);
    says(&FrameError::TooShort { need: 36, len: 5 }, &["36", "5"]);
    says(&PacketError::TooShort { len: 5 }, &["5", "34"]);
    says(&PacketError::Truncated { need: 50, len: 40 }, &["50", "40"]);
    says(&PacketError::Checksum { stated: 0xabc, computed: 0xdef }, &["00000abc", "00000def"]);
    says(&PacketError::Version(7), &["7"]);
    says(&PacketError::Protocol(8), &["8"]);
}

#[test]
fn errors_of_addresses_say_where_to_look() {
    for (text, words) in [
        ("nothing", "':'"),
        ("0:0000.0000.0000", "port"),
        ("0:0000.0000.0001:99999", "65535"),
        ("0:0000.0000.0001:8o", "decimal"),
    ] {
        says(&text.parse::<SocketAddress>().unwrap_err(), &[words]);
    }
    for (text, words) in [
        ("70000:0000.0000.0001", "65535"),
        ("x:0000.0000.0001", "decimal"),
        ("0:0000.0001", "three groups"),
        ("0:0000.00.00001", "four characters"),
        ("0:0000.zzzz.0001", "hex"),
        ("1:0002.0000.0001", "0002"),
    ] {
        says(&text.parse::<Address>().unwrap_err(), &[words]);
    }
}

#[test]
fn values_print_as_users_write_them() {
    let address = Address::new(1, 0x0002_00ab);
    assert_eq!(
        (address.to_string(), format!("{address:?}")),
        ("1:0001.0002.00AB".into(), "1:0001.0002.00AB".into())
    );
    assert_eq!(
        (NetworkId::from(7).to_string(), NodeId::from(0xab).to_string()),
        ("7".into(), "0000.00AB".into())
    );
    assert_eq!(format!("{:?}", Flags::SYN | Flags::ACK), "Flags(SYN|ACK)");
    assert_eq!(Flags::EMPTY.to_string(), "-");
}

#[cfg(feature = "registry")]
#[test]
fn errors_of_the_registry_protocol_say_what_is_allowed() {
    use pilotage_wire::registry::{FrameError, HostnameError, MAX_MESSAGE, MessageError, TagError};
    let text = |s: &str| s.to_owned();
    says(&FrameError::TooLong { len: 9_999_999 }, &["9999999", &MAX_MESSAGE.to_string()]);
    says(&FrameError::Encode, &["JSON"]);
    says(&MessageError::NotJson { detail: text("line 3") }, &["JSON", "line 3"]);
    says(&MessageError::TooDeep, &["levels"]);
    says(&MessageError::MissingType, &["type"]);
    says(&MessageError::UnknownType(text("punch")), &["punch"]);
    says(&MessageError::BadField { kind: text("lookup"), detail: text("node_id") }, &["lookup", "node_id"]);
    says(&HostnameError::Length { len: 64 }, &["64", "63"]);
    says(&HostnameError::Alphabet, &["a-z", "0-9"]);
    says(&HostnameError::Reserved, &["reserved"]);
    says(&TagError::Invalid, &["a-z"]);
    says(&TagError::TooMany, &["at most"]);
}
