//! Codecs of the services of draft-01.

#[allow(dead_code, reason = "the service needs more of it")]
#[path = "../../crates/services/src/events/wire.rs"]
mod events;
#[allow(dead_code, reason = "the service needs more of it")]
#[path = "../../crates/services/src/message/wire.rs"]
mod message;
#[allow(dead_code, reason = "the service needs more of it")]
#[path = "../../crates/services/src/nameserver/wire.rs"]
mod nameserver;
#[allow(dead_code, reason = "the service needs more of it")]
#[path = "../../crates/services/src/secure/wire.rs"]
mod secure;
#[allow(dead_code, reason = "the service needs more of it")]
#[path = "../../crates/services/src/task/wire.rs"]
mod task;

/// Port 53: what was understood survives being written and read again, and stays within its bounds.
pub(crate) fn nameserver_text(data: &[u8]) {
    if let Ok(request) = nameserver::Request::parse(data) {
        let text = request.to_string();
        assert!(!text.chars().any(char::is_control));
        assert_eq!(nameserver::Request::parse(text.as_bytes()), Ok(request));
    }
    if let Ok(reply) = nameserver::Reply::parse(data) {
        if let nameserver::Reply::Services(providers) = &reply {
            assert!(providers.len() <= nameserver::MAX_PROVIDERS);
        }
        let text = reply.to_string();
        let again = nameserver::Reply::parse(text.as_bytes()).expect("own text");
        // The white space of an error's text is not kept.
        assert!(again == reply || matches!(reply, nameserver::Reply::Error(_)));
    }
}

/// Port 443: lengths and statements.
pub(crate) fn secure_frame(data: &[u8]) {
    if let Some(field) = data.first_chunk::<{ secure::LENGTH }>()
        && let Some(sealed) = secure::sealed_length(*field)
    {
        assert!((secure::TAG..=secure::MAX_FRAME).contains(&sealed));
        let head =
            secure::head(sealed - secure::TAG, secure::Role::Client.nonce(1)).expect("a fitting length");
        assert_eq!(&head[..secure::LENGTH], field);
    }
    if let Some(bytes) = data.first_chunk::<{ secure::AUTH }>() {
        let auth = secure::Auth::decode(bytes);
        assert_eq!(auth.encode(), *bytes);
        assert_eq!(auth.signed(&[0; 32]).len(), 18 + 4 + 32 + 8 + 16);
    }
}

/// Port 1001: header, name and answer.
pub(crate) fn message_frame(data: &[u8]) {
    if let Some(bytes) = data.first_chunk::<{ message::HEADER }>()
        && let Ok(header) = message::Header::decode(*bytes)
    {
        assert!(header.length <= message::MAX_PAYLOAD);
        assert_eq!(header.encode(), *bytes);
        if let Some([a, b, ..]) = data.get(message::HEADER..)
            && let Ok((name, rest)) = message::file_lengths(header.length, [*a, *b])
        {
            assert_eq!(2 + name as u64 + rest, u64::from(header.length));
        }
    }
    if let Ok(answer) = message::Answer::parse(data) {
        let text = answer.to_string();
        assert!(!text.chars().any(char::is_control));
        let frame = answer.encode();
        assert!(frame.len() <= message::HEADER + message::MAX_ANSWER as usize);
        let again = message::Answer::parse(&frame[message::HEADER..]).expect("own text");
        assert!(again == answer || matches!(answer, message::Answer::Refused(_)));
    }
}

/// Port 1002: events, with a bound on memory.
pub(crate) fn event_frame(data: &[u8]) {
    let mut rest = data;
    let mut room = 0;
    while let Ok(Some(event)) = events::Event::read(&mut rest, &mut |more| {
        room += more;
        room <= 1 << 20
    }) {
        let bytes = event.encode().expect("what was read can be written");
        let again = events::Event::read(&mut &bytes[..], &mut |_| true).expect("own bytes");
        assert_eq!(again, Some(event));
    }
    assert!(
        room <= data.len() + 64 * 1024 + (1 << 20),
        "memory is taken for what came, not for what was said"
    );
}

/// Port 1003: frames, ids and messages.
pub(crate) fn task_frame(data: &[u8]) {
    let Some((head, json)) = data.split_first_chunk::<{ task::HEADER }>() else { return };
    let Ok((kind, length)) = task::header(*head) else { return };
    let json = &json[..length.min(json.len())];
    if let Ok(message) = task::Message::decode(kind, json) {
        let bytes = message.encode().expect("what was read can be written");
        let (head, json) = bytes.split_first_chunk::<{ task::HEADER }>().expect("a header");
        let (kind, length) = task::header(*head).expect("own header");
        assert_eq!(length, json.len());
        assert_eq!(task::Message::decode(kind, json).expect("own bytes"), message);
    }
    let _ = task::Reply::decode(kind, json);
    if let Ok(id) = std::str::from_utf8(json).unwrap_or_default().parse::<task::TaskId>() {
        let text = id.as_str();
        assert!(text.len() == 36 && text.bytes().all(|b| b == b'-' || b.is_ascii_hexdigit()));
    }
}
