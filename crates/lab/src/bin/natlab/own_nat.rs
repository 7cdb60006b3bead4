//! What nodes find out about their own NATs, against what the self-test knows.

use std::path::Path;
use std::time::{Duration, Instant};

use pilotage_lab::nat::{Allocation, Dependence, NatKind, World, WorldConfig};
use serde_json::{Value, json};

use crate::Failure;
use crate::party::{Node, Stage};
use crate::scenario::Seen;
use crate::stop;

/// How long a node may take to find out.
const PATIENCE: Duration = Duration::from_secs(15);

/// Half of the kinds at a time, each with a node in one world.
pub(crate) fn run(binary: &Path, folder: &Path) -> Result<Seen, Failure> {
    let stage = Stage::new(binary, folder);
    if !stage.features.beacons {
        return Ok(Seen::new("SKIPPED: this program does not look at its NAT".into(), None));
    }
    let (mut right, mut wrong) = (0, Vec::new());
    for (number, kinds) in NatKind::ALL.chunks(6).enumerate() {
        let own = folder.join(number.to_string());
        std::fs::create_dir_all(&own)?;
        let stage = Stage::new(binary, &own);
        let world = World::new(kinds, &WorldConfig::default())?;
        let _hub = stage.hub(&world, 0)?;
        let nodes = kinds.iter().enumerate().map(|(side, kind)| {
            stage.node(&world, world.side(side).host(), *kind, kind.name()).map(|node| (*kind, node))
        });
        for (kind, node) in nodes.collect::<Result<Vec<_>, _>>()? {
            let found = ask(&stage, &node, kind)?;
            match differs(kind, &found) {
                Some(how) => wrong.push(format!("{kind}: {how}")),
                None => right += 1,
            }
        }
    }
    let text = match wrong.as_slice() {
        [] => format!("all {right} right"),
        wrong => format!("{right} right; {}", wrong.join("; ")),
    };
    Ok(Seen::new(text, Some(wrong.is_empty())))
}

/// What the node says, once it has something to say. Where no UDP passes it has nothing.
fn ask(stage: &Stage<'_>, node: &Node, kind: NatKind) -> Result<Value, Failure> {
    let end = node.begun + PATIENCE;
    loop {
        let found = node.status(stage)?["nat"].clone();
        let complete = !found["mapping"].is_null() && !found["filtering"].is_null();
        if complete || Instant::now() >= end || !kind.behaviour().udp {
            return Ok(found);
        }
        stop::check()?;
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// How what was found differs from what is so. A node may leave open what it cannot know, but not its mapping.
fn differs(kind: NatKind, found: &Value) -> Option<String> {
    let truth = kind.behaviour();
    if !truth.udp {
        return (!found["mapping"].is_null()).then(|| format!("{} without UDP", found["mapping"]));
    }
    let kept = truth.allocation.map(|allocation| allocation == Allocation::Preserve);
    let expected = [
        ("mapping", json!(truth.mapping)),
        ("filtering", json!(truth.filtering)),
        ("hairpin", json!(truth.hairpin)),
        ("preserves_port", json!(kept)),
    ];
    // With one address a beacon cannot show whether a filter looks at addresses: what lets in its other port is at least that open.
    let open_to_port = json!(Dependence::AddressDependent);
    let wrong = expected.into_iter().find(|(name, expected)| {
        let found = &found[*name];
        let open = found.is_null() && *name != "mapping";
        let one_address = *name == "filtering"
            && *found == open_to_port
            && truth.filtering != Some(Dependence::AddressAndPortDependent);
        // A port that was mapped on demand is open to all.
        let mapped = *name == "filtering" && truth.mappable;
        let public = *name == "hairpin" && expected.is_null();
        !(open || public || mapped || one_address || found == expected)
    });
    wrong.map(|(name, expected)| format!("{name} {}, not {expected}", found[name]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_word_is_noticed_and_an_open_one_is_not() {
        let found = |mapping: &str| json!({ "mapping": mapping, "filtering": null, "hairpin": false, "preserves_port": true });
        assert_eq!(differs(NatKind::PortRestricted, &found("endpoint-independent")), None);
        assert!(differs(NatKind::PortRestricted, &found("address-dependent")).is_some());
        assert!(differs(NatKind::SymmetricRandom, &found("address-and-port-dependent")).is_some(), "ports");
        assert!(differs(NatKind::FullCone, &json!({})).is_some(), "mapping");
        assert!(differs(NatKind::UdpBlocked, &json!(null)).is_none());
    }
}
