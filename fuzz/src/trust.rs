//! Messages of port 444, and the list of trusted nodes as a file.

#[allow(dead_code, reason = "the service needs more of it")]
#[path = "../../crates/services/src/trust/book.rs"]
mod book;
#[allow(dead_code, reason = "the service needs more of it")]
#[path = "../../crates/services/src/trust/message.rs"]
mod message;
#[allow(dead_code, reason = "the service needs more of it")]
#[path = "../../crates/services/src/trust/store.rs"]
mod store;

use message::{MAX_TEXT, Message, is_incomplete};

/// What was understood survives being written and read again; texts are short and hold no control characters.
pub(crate) fn trust_message(data: &[u8]) {
    let incomplete = is_incomplete(data);
    let Ok(message) = Message::parse(data) else { return };
    assert!(!incomplete);
    for text in [&message.justification, &message.reason] {
        assert!(text.len() <= MAX_TEXT && !text.chars().any(char::is_control));
    }
    let json = message.encode();
    assert_eq!(Message::parse(&json).as_ref(), Ok(&message));
    assert!(is_incomplete(&json[..json.len() - 1]));
}

/// `trust.json`: what was understood survives being written and read again.
pub(crate) fn trust_file(data: &[u8]) {
    let Ok(text) = core::str::from_utf8(data) else { return };
    let Ok(book) = store::from_json(text) else { return };
    let json = store::to_json(&book).expect("own book");
    assert_eq!(store::from_json(core::str::from_utf8(&json).expect("JSON")), Ok(book));
}
