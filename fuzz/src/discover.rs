//! Parsers of discovery by capability (spec/discovery.md).

use pilotage_discover::card::SignedCard;
use pilotage_discover::descriptor::Descriptor;
use pilotage_discover::evidence::{Attestation, Book};
use pilotage_discover::group::Summary;
use pilotage_discover::query::MAX_LIMIT;
use pilotage_discover::wire::{Answer, CallHead, CallReply, MAX_ROUTES, Request};
use pilotage_discover::{Declaration, Query, Tag};

/// Cards and declarations: what is read is written as the same bytes, and may be shown.
pub(crate) fn skill_card(data: &[u8]) {
    if let Ok(declaration) = Declaration::decode(data) {
        let mut bytes = Vec::new();
        declaration.encode(&mut bytes);
        assert_eq!(bytes, data);
        assert!(!declaration.summary().chars().any(char::is_control));
    }
    if let Ok(signed) = SignedCard::read_verified(data) {
        let again = signed.card().clone().sign(|_| {
            let mut signature = [0; 64];
            signature.copy_from_slice(&data[data.len() - 64..]);
            signature
        });
        assert_eq!(again.expect("in bounds").bytes(), data);
        let _ = (signed.card().is_current(0), signed.card().is_current(u64::MAX), signed.card().expires());
        if SignedCard::verify(data).is_ok() {
            assert_eq!(SignedCard::verify(data), Ok(signed));
        }
    }
}

/// Messages of ports 1013 and 1014: what is read survives being written.
pub(crate) fn discover_frame(data: &[u8]) {
    if let Ok(request) = Request::decode(data) {
        assert_eq!(Request::decode(&request.encode()), Ok(request));
    }
    if let Ok(answer) = Answer::decode(data) {
        if let Answer::Found { told, .. } = &answer {
            assert!(told.len() <= MAX_LIMIT);
        }
        let again = Answer::decode(&answer.encode()).expect("own bytes");
        match (again, answer) {
            (Answer::Found { told: a, .. }, Answer::Found { told: b, .. }) => assert_eq!(a, b),
            // What was read of a group has its signature no more, and is written as nothing.
            (Answer::Groups(a), Answer::Groups(b)) => assert!(a.is_empty() && b.len() <= MAX_ROUTES),
            (a, b) => assert_eq!(a, b),
        }
    }
    if let Ok(head) = CallHead::decode(data) {
        assert_eq!(CallHead::decode(&head.encode()), Ok(head));
    }
    if let Ok(reply) = CallReply::decode(data) {
        assert_eq!(CallReply::decode(&reply.encode()), Ok(reply));
    }
}

/// Summaries of groups, attestations, descriptors, the book of evidence, and what people type.
pub(crate) fn discover_records(data: &[u8]) {
    let _ = Summary::verify(data);
    let _ = Attestation::verify(data);
    if let Ok(descriptor) = Descriptor::parse(data) {
        assert!(!descriptor.name().chars().any(char::is_control));
        assert_eq!(Descriptor::verify(data, &descriptor.hash()).as_ref(), Ok(&descriptor));
        if let Ok(declaration) = descriptor.declare() {
            assert_eq!(declaration.descriptor(), Some(descriptor.hash()));
        }
    }
    if let Some(book) = Book::read(data) {
        let bytes = book.write();
        assert_eq!(Book::read(&bytes).map(|book| book.write()), Some(bytes));
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(tag) = Tag::from_user(text) {
        assert_eq!(tag.as_str().parse(), Ok(tag.clone()));
        assert!(tag.with_ancestors().all(|name| name.parse().is_ok_and(|wanted| tag.is_within(&wanted))));
    }
    if let Ok(query) = Query::from_words(text.split('\n'), 10) {
        assert!(query.terms().iter().all(|term| !term.is_empty()));
    }
}
