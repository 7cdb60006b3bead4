//! Records, claims, and the messages that carry them.

use pilotage_registry::book::message::{HEADER_LEN, Reply, Request, next_frame};
use pilotage_registry::claims::{Batch, Claim, Claims, Limits, SignedHead, check};
use pilotage_wire::record::{MAX_RECORD, Rank, Record};

/// Records: what was understood has one form, and fits.
pub(crate) fn record(data: &[u8]) {
    let Ok(record) = Record::decode(data) else { return };
    assert_eq!(record.encode().as_deref(), Ok(data), "one record has one form");
    assert!(data.len() <= MAX_RECORD);
    assert_eq!(Rank::of(data).map(|rank| rank.seq), Some(record.seq));
    let signed = record.signed().unwrap_or_default();
    assert_eq!(signed.get(19..), data.get(..data.len() - 64), "all but the signature is signed");
}

/// Claims and what is made of them. The first byte chooses.
pub(crate) fn claims(data: &[u8]) {
    let Some((&kind, bytes)) = data.split_first() else { return };
    match kind % 4 {
        0 => {
            let Ok(claim) = Claim::decode(bytes) else { return };
            assert_eq!(claim.encode(), bytes, "one claim has one form");
            assert!(usize::from(claim.subject.partition()) < pilotage_registry::claims::PARTITIONS);
            let _ = check(&claim, 0);
        }
        1 => {
            let Ok(batch) = Batch::decode(bytes) else { return };
            assert_eq!(batch.encode(), bytes, "one batch has one form");
            let mut machine = Claims::new(Limits { claims: 3, per_agent: 2 });
            let before = machine.snapshot();
            let applied = machine.apply(&batch);
            assert_eq!(applied.outcomes.len(), batch.claims.len());
            machine.undo(applied);
            assert_eq!(machine.snapshot(), before, "a batch taken back leaves nothing");
        }
        2 => {
            if let Some((head, rest)) = SignedHead::decode(bytes) {
                assert_eq!(head.encode(), bytes[..bytes.len() - rest.len()], "one head has one form");
            }
        }
        _ => {
            let mut machine = Claims::new(Limits::default());
            // The check at the end is right, so that the rest is looked at.
            let snapshot = [bytes, blake3::hash(bytes).as_bytes()].concat();
            if machine.install(&snapshot).is_ok() {
                assert_eq!(machine.snapshot(), snapshot, "one state has one snapshot");
            }
        }
    }
}

/// Messages of the second request family.
pub(crate) fn messages(data: &[u8]) {
    if let Ok(Some((_, _, body, len))) = next_frame(data) {
        assert_eq!(len, body.len() + HEADER_LEN);
    }
    let Some((&kind, body)) = data.split_first() else { return };
    let mut out = Vec::new();
    if let Ok(request) = Request::decode(kind, body) {
        request.encode(7, &mut out);
        assert_eq!(out.get(HEADER_LEN..), Some(body), "one request has one form");
    }
    out.clear();
    if let Ok(reply) = Reply::decode(kind, body) {
        reply.encode(7, &mut out);
        assert_eq!(out.get(HEADER_LEN..), Some(body), "one reply has one form");
    }
}
