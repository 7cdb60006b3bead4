//! Hubs whose logs are held against each other: a cluster's, and one hub that signs two histories. Real processes.

mod common;

use std::path::PathBuf;
use std::process::Output;
use std::thread;
use std::time::{Duration, Instant};

use common::free::free;
use common::{Running, STEP, event, lines, run, text};
use pilotage_registry::claims::Subject;
use pilotage_wire::{Address, NetworkId};
use serde_json::Value;

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn dir(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn file(&self, name: &str) -> String {
        self.dir(name).to_str().unwrap().to_owned()
    }

    fn hub(&self, name: &str, more: &[&str]) -> (Running, String) {
        let dir = self.file(name);
        let own = ["hub", "--json", "--listen", "127.0.0.1", "--registry-port", "0", "--pow-bits", "4"];
        let hub = Running::start(&[&own[..], &["--state", &dir], more].concat());
        let registry = hub.expect("ready", STEP)["registry"].as_str().unwrap().to_owned();
        (hub, registry)
    }

    /// The address of an agent, and that it holds the name from now on.
    fn publish(&self, agent: &str, registry: &str, name: Option<&str>) -> Address {
        let dir = self.file(agent);
        if !self.dir(agent).exists() {
            assert!(run(&["id", "new", "--state", &dir]).status.success());
        }
        let name: Vec<&str> = name.iter().flat_map(|name| ["--hostname", name]).collect();
        let args = ["record", "publish", "--json", "--state", &dir, "--registry", registry];
        let deadline = Instant::now() + STEP;
        loop {
            let output = run(&[&args[..], &name].concat());
            if output.status.success() {
                let said = lines(&output.stdout);
                return event(&said, "published")["address"].as_str().unwrap().parse().unwrap();
            }
            assert!(Instant::now() < deadline, "{}", text(&output.stdout));
            thread::sleep(Duration::from_millis(200));
        }
    }

    fn heads(&self, who: &str, args: &[&str]) -> Output {
        run(&[&["record", "heads", "--json", "--state", &self.file(who)], args].concat())
    }

    fn consistent(&self, who: &str, args: &[&str]) -> Value {
        let output = self.heads(who, args);
        assert!(output.status.success(), "{args:?}: {}", text(&output.stdout));
        let said = lines(&output.stdout);
        let said = event(&said, "heads").clone();
        assert_eq!(said["verdict"], "consistent", "{said}");
        said
    }

    /// What it says of logs that contradict each other; it ends with the exit code for that.
    fn convicted(&self, who: &str, args: &[&str]) -> Value {
        let output = self.heads(who, args);
        assert_eq!(output.status.code(), Some(4), "{}", text(&output.stdout));
        let said = lines(&output.stdout);
        assert_eq!(event(&said, "error")["exit_code"], 4);
        event(&said, "heads").clone()
    }
}

fn partition(address: &Address) -> u8 {
    Subject::Address { network: address.network, node: address.node }.partition()
}

#[test]
fn one_hub_with_two_histories_is_convicted() {
    let place = Place::new();
    let (mut hub, registry) = place.hub("hub", &[]);
    let key = |place: &Place| place.consistent("fay", &[&registry])["keys"].clone();
    let addresses = [place.publish("ann", &registry, None), place.publish("bob", &registry, None)];
    let hub_key = key(&place);
    let backup = place.file("hub.backup");
    let made = run(&["hub", "backup", &backup, "--state", &place.file("hub")]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    // A name whose partition has nothing else in it, so that both histories have one leaf there.
    let name = |n: u32| format!("name{n}");
    let alone = |n: &u32| {
        let of_name = Subject::Hostname { network: NetworkId(0), name: name(*n) }.partition();
        addresses.iter().all(|address| partition(address) != of_name)
    };
    let name = name((0..).find(alone).unwrap());
    let (before, first, second) = (place.file("before"), place.file("first"), place.file("second"));
    assert_eq!(place.consistent("carl", &[&registry, "--save", &before])["saved"], before.as_str());
    place.publish("ann", &registry, Some(&name));
    let said = place.consistent("carl", &[&registry, "--save", &first, "--file", &before]);
    assert_eq!((&said["keys"], said["partitions"].as_array().unwrap().len()), (&hub_key, 16), "{said}");
    // The operator goes back, with the same key, and gives the name to another.
    hub.kill();
    let restored = run(&["hub", "restore", &backup, "--force", "--state", &place.file("hub")]);
    assert!(restored.status.success(), "{}", text(&restored.stderr));
    let (_hub, registry) = place.hub("hub", &[]);
    // Before anything is granted the log is only shorter than what it signed: no honest hub forgets.
    let said = place.convicted("dora", &[&registry, "--file", &first]);
    assert_eq!(said["verdict"], "rewritten", "{said}");
    place.publish("bob", &registry, Some(&name));
    // Who sees one history only sees nothing.
    let said = place.consistent("dora", &[&registry, "--save", &second, "--file", &before]);
    assert_eq!(said["keys"], hub_key);
    // Who brings them together, by hub and file or by two files, does: anybody can check that.
    for args in [vec![registry.as_str(), "--file", &first], vec!["--file", &first, "--file", &second]] {
        let said = place.convicted("gus", &args);
        assert_eq!((&said["verdict"], &said["signed_both"]), (&"fork".into(), &hub_key), "{said}");
        let forks = said["partitions"].as_array().unwrap().iter().filter(|part| part["verdict"] == "fork");
        for fork in forks {
            assert_ne!(fork["heads"][0], fork["heads"][1]);
        }
        let evidence: Value =
            serde_json::from_slice(&std::fs::read(said["evidence"].as_str().unwrap()).unwrap()).unwrap();
        assert_eq!((&evidence["fault"], &evidence["node"]), (&"two_heads".into(), &hub_key[0]), "{evidence}");
    }
    // What nobody has signed convicts nobody.
    let mut bytes = std::fs::read(&first).unwrap();
    // Magic, number of keys, key; in the first head: partition, size, and then the root.
    bytes[5 + 1 + 32 + 20] ^= 1;
    std::fs::write(&first, bytes).unwrap();
    let forged = place.heads("hugo", &[&registry, "--file", &first]);
    assert_eq!(forged.status.code(), Some(1), "{}", text(&forged.stdout));
    assert!(text(&forged.stdout).contains("not signed"), "{}", text(&forged.stdout));
    let nothing = place.heads("hugo", &["--file", &second]);
    assert_eq!(nothing.status.code(), Some(2), "one file and no hub: {}", text(&nothing.stdout));
}

#[test]
fn hubs_of_a_cluster_show_one_log() {
    let place = Place::new();
    let (bind, other) = (free().to_string(), free().to_string());
    let (_first, first) = place.hub("first", &["--cluster", &bind]);
    let token = place.file("first/cluster/token");
    let (_second, second) =
        place.hub("second", &["--cluster", &other, "--join", &bind, "--cluster-token-file", &token]);
    place.publish("ann", &first, Some("fx"));
    let saved = place.file("saved");
    // Who has just joined may not know yet whose signatures count.
    let deadline = Instant::now() + STEP;
    loop {
        let output = place.heads("carl", &[&first, &second, "--save", &saved]);
        if output.status.success() {
            break;
        }
        assert!(Instant::now() < deadline, "{}", text(&output.stdout));
        thread::sleep(Duration::from_millis(200));
    }
    place.publish("bob", &second, Some("sky"));
    let said = place.consistent("dora", &[&second, &first, "--file", &saved]);
    let claims = said["partitions"].as_array().unwrap().iter().map(|part| part["size"].as_u64().unwrap());
    assert_eq!(claims.sum::<u64>(), 4, "two addresses and two names: {said}");
    assert_eq!(said["hubs"].as_array().unwrap().len(), 2);
    // A hub that stands alone is another registry.
    let (_lone, lone) = place.hub("lone", &[]);
    let refused = place.heads("eve", &[&lone, &first]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stdout).contains("different registries"), "{}", text(&refused.stdout));
}
