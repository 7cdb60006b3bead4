//! Headers of the benchmark service.

#[allow(dead_code, reason = "the service needs more of it")]
#[path = "../../crates/services/src/bench/datagram.rs"]
mod datagram;
#[allow(dead_code, reason = "the service needs more of it")]
#[path = "../../crates/services/src/bench/hello.rs"]
mod hello;

use datagram::DatagramMessage;
use hello::Mode;

/// The hello of a stream and the datagrams: what was understood survives being written and read again.
pub(crate) fn bench_header(data: &[u8]) {
    if let Some(head) = data.first_chunk::<16>()
        && let Ok(mode) = Mode::decode(head)
    {
        assert_eq!(Mode::decode(&mode.encode()).ok(), Some(mode));
    }
    if let Some(message) = DatagramMessage::decode(data) {
        assert_eq!(DatagramMessage::decode(&message.encode()), Some(message));
    }
}
