//! The path agent: the message that peers send each other, and any course of events.

use std::time::Instant;

use pilotage_nat::agent::{CANDIDATES_MAX, OFFER_MAX, Offer, exercise};

use crate::inputs::Input;

/// Operations of one execution.
const OPS: usize = 200;

/// Any bytes. Checked: bounds, and that what was understood is written and read again as it was.
pub(crate) fn path_offer(data: &[u8]) {
    let Some(offer) = Offer::decode(data) else { return };
    assert!(offer.candidates.len() <= CANDIDATES_MAX && offer.sequence != 0);
    let mut buf = [0; OFFER_MAX];
    let len = offer.encode(&mut buf).expect("there is room for any offer");
    assert!(len <= data.len(), "as short as what came, or shorter");
    assert_eq!(Offer::decode(&buf[..len]), Some(offer));
}

/// What an agent is told and asked. Checked: see `exercise`.
pub(crate) fn path_agent(base: Instant, data: &[u8]) {
    let mut input = Input(data);
    let (policy, controlling) = (input.u8(), input.u8() & 1 == 0);
    let mut ops = Vec::new();
    while let (Some(op), true) = (input.op(), ops.len() < OPS) {
        let (kind, n) = (op % 14, input.u8());
        let pass = u64::from(input.u8());
        // From milliseconds to minutes.
        ops.push((kind, n, if op & 0x80 == 0 { pass * 5 } else { pass * 400 }));
    }
    exercise(base, &ops, policy, controlling);
}
