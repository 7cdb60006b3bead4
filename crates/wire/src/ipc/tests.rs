use super::*;
use proptest::prelude::*;
use serde_json::Value;

fn cases() -> Vec<Value> {
    let text = include_str!("../../../../spec/vectors/ipc.json");
    let vectors: Value = serde_json::from_str(text).expect("JSON");
    vectors["cases"].as_array().expect("cases").clone()
}

fn encoded(len: usize, encode: impl FnOnce(&mut [u8]) -> Result<usize, EncodeError>) -> Vec<u8> {
    let mut buf = vec![0xEE; len + 3];
    let written = encode(&mut buf).expect("room");
    assert_eq!(written, len);
    assert_eq!(&buf[len..], [0xEE; 3], "nothing behind the frame is touched");
    buf.truncate(len);
    buf
}

/// Every frame of the reference splits, decodes in its direction, encodes to the same bytes, and every cut is "not yet".
#[test]
fn golden_frames() {
    let (mut requests, mut replies) = (0, 0);
    for case in cases() {
        let name = case["name"].as_str().expect("name");
        let framed = hex::decode(case["framed_hex"].as_str().expect("frame")).expect("hex");
        let message = next_message(&framed).expect("length").expect("complete");
        assert_eq!(hex::encode(message), case["message_hex"].as_str().expect("message"), "{name}");
        for cut in 0..framed.len() {
            assert_eq!(next_message(&framed[..cut]), Ok(None), "{name}");
        }
        let command = case["cmd"].as_str().expect("cmd").trim_start_matches("0x");
        let command = u8::from_str_radix(command, 16).expect("number");
        if case["direction"] == "driver->daemon" {
            let request = Request::decode(message).expect(name);
            assert_eq!(request.command(), command, "{name}");
            assert_eq!(encoded(request.encoded_len(), |buf| request.encode(buf)), framed, "{name}");
            requests += 1;
        } else {
            let reply = Reply::decode(message).expect(name);
            assert_eq!(reply.command(), command, "{name}");
            assert_eq!(encoded(reply.encoded_len(), |buf| reply.encode(buf)), framed, "{name}");
            replies += 1;
        }
    }
    assert_eq!((requests, replies), (28, 19));
}

/// Fields of the frames in which the reference and its own specification differ, and of one of each shape.
#[test]
fn golden_fields() {
    let message = |name: &str| {
        let case = cases().into_iter().find(|case| case["name"] == name).expect("case");
        hex::decode(case["message_hex"].as_str().expect("hex")).expect("hex")
    };
    let from = SocketAddress::new(Address::new(0, 1), 0xC000);
    let accept = Reply::Accept { local_port: 5000, connection: 3, from };
    assert_eq!(Reply::decode(&message("accept")), Ok(accept));
    let recvfrom =
        Reply::RecvFrom { from: SocketAddress::new(Address::new(0, 1), 0xC001), port: 9999, data: b"dgram" };
    assert_eq!(Reply::decode(&message("recvfrom")), Ok(recvfrom));
    let reject = HandshakeRequest::Reject { node: NodeId(2), reason: "no" };
    assert_eq!(Request::decode(&message("handshake reject")), Ok(Request::Handshake(reject)));
    let join = NetworkRequest::Join { network: 1, token: "token" };
    assert_eq!(Request::decode(&message("network join")), Ok(Request::Network(join)));
    let respond = NetworkRequest::Respond { network: 1, accept: true };
    assert_eq!(Request::decode(&message("network respond invite")), Ok(Request::Network(respond)));
    assert_eq!(Request::decode(&message("set tags")), Ok(Request::SetTags("[\"web\",\"gpu\"]")));
    let broadcast = SocketAddress::new("3:0003.FFFF.FFFF".parse().expect("address"), 9999);
    assert_eq!(
        Request::decode(&message("sendto broadcast")),
        Ok(Request::SendTo { to: broadcast, data: b"dgram" })
    );
}

#[test]
fn wrong_messages_are_named() {
    for len in [0, MAX_MESSAGE as u32 + 1, u32::MAX] {
        assert_eq!(next_message(&len.to_be_bytes()), Err(IpcError::Length(len)));
    }
    assert_eq!(next_message(&(MAX_MESSAGE as u32).to_be_bytes()), Ok(None));
    assert_eq!(Request::decode(&[]), Err(IpcError::Empty));
    // Commands of later versions, replies, and everything else.
    for command in [0x00, 0x02, 0x23, 0x2F, 0x30, 0xFF] {
        assert_eq!(Request::decode(&[command, 1, 2]), Err(IpcError::Command(command)));
    }
    for sub in [0, 7] {
        assert_eq!(Request::decode(&[0x0F, sub]), Err(IpcError::SubCommand { command: 0x0F, sub }));
    }
    assert_eq!(Request::decode(&[0x1F, 8]), Err(IpcError::SubCommand { command: 0x1F, sub: 8 }));
    assert_eq!(Request::decode(&[0x1F]), Err(IpcError::TooShort { command: 0x1F, need: 1, have: 0 }));
    assert_eq!(
        Request::decode(&[0x03, 0, 0, 0, 0, 0, 2, 0]),
        Err(IpcError::TooShort { command: 3, need: 8, have: 7 })
    );
    assert_eq!(
        Request::decode(&[0x0F, 1, 0, 0, 0, 2, 0xFF]),
        Err(IpcError::Text(0x0F)),
        "a justification of other bytes"
    );
    assert_eq!(Request::decode(&[0x0D, 9, 9]), Ok(Request::Info), "more than needed is ignored");
    assert_eq!(Reply::decode(&[0x01, 0, 7]), Err(IpcError::Command(1)), "a request is no reply");
}

#[test]
fn the_largest_message_fits_and_no_larger_one() {
    let data = vec![7; MAX_DATA + 1];
    let fits = Reply::Recv { connection: 1, data: &data[..MAX_DATA] };
    let framed = encoded(fits.encoded_len(), |buf| fits.encode(buf));
    assert_eq!(framed.len(), LENGTH_PREFIX + MAX_MESSAGE);
    assert_eq!(next_message(&framed).map(|m| m.map(<[u8]>::len)), Ok(Some(MAX_MESSAGE)));
    let beyond = Reply::Recv { connection: 1, data: &data };
    let mut buf = vec![0; beyond.encoded_len()];
    assert_eq!(beyond.encode(&mut buf), Err(EncodeError::TooLong { len: MAX_MESSAGE + 1, max: MAX_MESSAGE }));
    assert_eq!(fits.encode(&mut [0; 8]), Err(EncodeError::BufferTooSmall { need: framed.len(), have: 8 }));
}

fn text() -> impl Strategy<Value = String> {
    "\\PC{0,40}"
}

proptest! {
    #[test]
    fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
        let _ = next_message(&bytes);
        if let Ok(request) = Request::decode(&bytes) {
            let framed = encoded(request.encoded_len(), |buf| request.encode(buf));
            let message = next_message(&framed).expect("length").expect("complete");
            prop_assert_eq!(Request::decode(message), Ok(request));
        }
        if let Ok(reply) = Reply::decode(&bytes) {
            let framed = encoded(reply.encoded_len(), |buf| reply.encode(buf));
            let message = next_message(&framed).expect("length").expect("complete");
            prop_assert_eq!(Reply::decode(message), Ok(reply));
        }
    }

    #[test]
    fn texts_and_numbers_come_back(text in text(), node: u32, network: u16, port: u16, accept: bool) {
        let (node, text) = (NodeId(node), text.as_str());
        let to = SocketAddress::new(Address { network: crate::NetworkId(network), node }, port);
        for request in [
            Request::Bind { port },
            Request::Dial { to },
            Request::SendTo { to, data: text.as_bytes() },
            Request::SendIdempotent { to, data: text.as_bytes() },
            Request::Handshake(HandshakeRequest::Send { node, justification: text }),
            Request::Handshake(HandshakeRequest::Approve { node }),
            Request::Handshake(HandshakeRequest::Revoke { node }),
            Request::ResolveHostname(text),
            Request::SetWebhook(text),
            Request::SetVisibility { public: accept },
            Request::SetTaskExec { enabled: accept },
            Request::Network(NetworkRequest::Join { network, token: text }),
            Request::Network(NetworkRequest::Invite { network, node }),
            Request::Network(NetworkRequest::Respond { network, accept }),
        ] {
            let framed = encoded(request.encoded_len(), |buf| request.encode(buf));
            let message = next_message(&framed).expect("length").expect("complete");
            prop_assert_eq!(Request::decode(message), Ok(request));
        }
    }
}
