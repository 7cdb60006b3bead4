//! Trust, networks, keys and their bounds (spec/registry.md §11 to §13).

use super::*;
use serde_json::{Value, json};

const TOKEN: &str = "operator's token";

fn other() -> IpAddr {
    IpAddr::from([198, 51, 100, 7])
}

fn world(change: impl FnOnce(&mut Config)) -> Harness {
    let mut config =
        Config { rates: RateLimits::UNLIMITED, admin_token: Some(Secret::new(TOKEN)), ..Config::default() };
    change(&mut config);
    Harness::new(config)
}

impl Harness {
    /// A request signed by a proof of `signer`, from `source`.
    fn act_from(
        &mut self,
        source: impl Into<IpAddr>,
        signer: &SigningKey,
        request: Value,
    ) -> Result<Value, Refusal> {
        let mut conn = ConnState::default();
        let nonce = self.challenge(&mut conn);
        let typed = Request::parse(request.to_string().as_bytes()).unwrap();
        let mut signed = request;
        if let Some(message) = typed.proof_message(&nonce) {
            signed["proof"] = sign(signer, &message).to_string().into();
        }
        let typed = Request::parse(signed.to_string().as_bytes()).unwrap();
        let outcome = self.apply_on(&mut conn, source, &typed);
        self.engine.commit();
        outcome.refused.map_or_else(|| Ok(serde_json::to_value(&outcome.reply).unwrap()), Err)
    }

    fn act(&mut self, signer: &SigningKey, request: Value) -> Result<Value, Refusal> {
        self.act_from(HOME, signer, request)
    }

    fn network(&mut self, owner: NodeId, name: &str, rule: &str, token: &str) -> u16 {
        let request = json!({"type": "create_network", "node_id": owner.0, "name": name, "join_rule": rule,
            "token": token, "admin_token": TOKEN});
        let reply = self.act(&key(1), request).unwrap();
        u16::try_from(reply["network_id"].as_u64().unwrap()).unwrap()
    }
}

fn pair(kind: &str, a: NodeId, b: NodeId) -> Value {
    json!({"type": kind, "node_id": a.0, "peer_id": b.0})
}

/// Reference defect A5: what one side says gives it nothing.
#[test]
fn trust_needs_both_sides_and_a_stranger_gains_nothing_by_reporting() {
    let mut harness = world(|_| {});
    let (a, b) = (harness.register(&key(1)), harness.register(&key(2)));
    harness.act(&key(2), pair("report_trust", b, a)).unwrap();
    // b trusts a: a may find b, not the other way round, and that is no mutual trust.
    assert_eq!(harness.resolve(&key(2), b, a), Err(Refusal::NotVisible(a)));
    assert_eq!(harness.act(&key(1), pair("check_trust", a, b)).unwrap()["trusted"], false);
    assert!(harness.resolve(&key(1), a, b).is_ok());
    // A forged report, and one about oneself or nobody.
    assert_eq!(harness.act(&key(2), pair("report_trust", a, b)), Err(Refusal::BadProof));
    assert_eq!(harness.act(&key(1), pair("report_trust", a, a)), Err(Refusal::Oneself));
    let nobody = NodeId(77);
    assert_eq!(harness.act(&key(1), pair("report_trust", a, nobody)), Err(Refusal::NotVisible(nobody)));
    harness.act(&key(1), pair("report_trust", a, b)).unwrap();
    assert!(harness.resolve(&key(2), b, a).is_ok());
    assert_eq!(harness.act(&key(1), pair("check_trust", a, b)).unwrap()["trusted"], true);
    // Told to the two and to nobody else.
    assert_eq!(harness.act_from(other(), &key(1), pair("check_trust", a, b)).unwrap()["trusted"], false);
    // It survives a restart.
    let rows = harness.engine.rows.all();
    let records: Vec<_> = [a, b].map(|id| (id, harness.engine.record(id).unwrap().clone())).into();
    let mut restarted = Engine::new(harness.engine.config.clone(), records, harness.now).unwrap();
    restarted.load_rows(rows);
    harness.engine = restarted;
    assert!(harness.resolve(&key(2), b, a).is_ok());
    // Either side ends it for both.
    harness.act(&key(2), pair("revoke_trust", b, a)).unwrap();
    assert_eq!(harness.resolve(&key(2), b, a), Err(Refusal::NotVisible(a)));
    assert_eq!(harness.resolve(&key(1), a, b), Err(Refusal::NotVisible(b)));
    assert_eq!(harness.act(&key(1), pair("revoke_trust", a, b)), Err(Refusal::NoTrust(a, b)));
    harness.engine.rows.assert_consistent();
}

#[test]
fn handshakes_are_relayed_once_and_answers_only_to_those_who_asked() {
    let mut harness = world(|_| {});
    let (a, b) = (harness.register(&key(1)), harness.register(&key(2)));
    let ask = |from: NodeId, to: NodeId| json!({"type": "request_handshake", "from_node_id": from.0, "to_node_id": to.0, "justification": "please"});
    let poll = |id: NodeId| json!({"type": "poll_handshakes", "node_id": id.0});
    let answer = |id: NodeId, peer: NodeId, accept: bool| json!({"type": "respond_handshake", "node_id": id.0, "peer_id": peer.0, "accept": accept});
    // An acceptance that nobody asked for reaches nobody.
    harness.act(&key(2), answer(b, a, true)).unwrap();
    assert_eq!(harness.act(&key(1), poll(a)).unwrap()["responses"], json!([]));
    assert_eq!(harness.resolve(&key(2), b, a), Err(Refusal::NotVisible(a)));
    // It counts once the other side asks.
    harness.act(&key(1), ask(a, b)).unwrap();
    assert_eq!(harness.act(&key(1), ask(a, b)), Err(Refusal::AskedAlready(b)));
    let answers = harness.act(&key(1), poll(a)).unwrap();
    assert_eq!(answers["responses"][0]["from_node_id"], b.0);
    assert_eq!(answers["responses"][0]["accept"], true);
    assert!(harness.resolve(&key(2), b, a).is_ok() && harness.resolve(&key(1), a, b).is_ok());
    // Read once.
    assert_eq!(harness.act(&key(2), poll(b)).unwrap()["requests"][0]["justification"], "please");
    assert_eq!(harness.act(&key(2), poll(b)).unwrap()["requests"], json!([]));
    // A refusal ends it.
    harness.act(&key(1), ask(a, b)).unwrap();
    harness.act(&key(2), answer(b, a, false)).unwrap();
    assert_eq!(harness.act(&key(1), poll(a)).unwrap()["responses"][0]["accept"], false);
    assert_eq!(harness.resolve(&key(2), b, a), Err(Refusal::NotVisible(a)));
    assert_eq!(
        harness.act(&key(2), poll(b)).unwrap()["requests"],
        json!([]),
        "answered, so no longer waiting"
    );
    // Asking alone does not tell where one is.
    harness.act(&key(1), ask(a, b)).unwrap();
    assert_eq!(harness.resolve(&key(2), b, a), Err(Refusal::NotVisible(a)));
    // Somebody else's inbox.
    assert_eq!(harness.act(&key(1), poll(b)), Err(Refusal::BadProof));
    let long = json!({"type": "request_handshake", "from_node_id": b.0, "to_node_id": a.0, "justification": "x".repeat(1025)});
    assert!(matches!(harness.act(&key(2), long), Err(Refusal::BadArgument(_))));
    harness.engine.rows.assert_consistent();
}

/// §11.4: a private daemon asks a public one directly; what the registry sees of that is a look-up.
#[test]
fn a_call_opens_the_way_back_for_those_who_consent() {
    let mut harness = world(|config| config.social.calls = 2);
    let (p, a) = (harness.register(&key(1)), harness.register_public(&key(2), "a"));
    let check =
        |harness: &mut Harness| harness.act(&key(1), pair("check_trust", p, a)).unwrap()["trusted"] == true;
    let accept = json!({"type": "respond_handshake", "node_id": a.0, "peer_id": p.0, "accept": true});
    let poll = json!({"type": "poll_handshakes", "node_id": p.0});
    // Without a call nothing that a says reaches p.
    harness.act(&key(2), accept.clone()).unwrap();
    assert_eq!(harness.act(&key(1), poll.clone()).unwrap()["responses"], json!([]));
    assert!(!check(&mut harness));
    // A call alone is nothing either.
    harness.act(&key(2), pair("revoke_trust", a, p)).unwrap();
    harness.resolve(&key(1), p, a).unwrap();
    assert!(!check(&mut harness));
    assert_eq!(harness.resolve(&key(2), a, p), Err(Refusal::NotVisible(p)));
    // Both together are.
    harness.act(&key(2), accept).unwrap();
    assert_eq!(harness.act(&key(1), poll).unwrap()["responses"][0]["accept"], true);
    assert!(check(&mut harness) && harness.resolve(&key(2), a, p).is_ok());
    // Ten minutes later only what p has said itself counts.
    harness.now += Duration::from_secs(600);
    harness.register(&key(1));
    harness.register(&key(2));
    assert!(!check(&mut harness));
    assert_eq!(harness.resolve(&key(2), a, p), Err(Refusal::NotVisible(p)));
    harness.act(&key(1), pair("report_trust", p, a)).unwrap();
    assert!(check(&mut harness) && harness.resolve(&key(2), a, p).is_ok());
    // The table is bounded.
    for n in 3..=6 {
        let id = harness.register(&key(n));
        harness.resolve(&key(n), id, a).unwrap();
        assert!(harness.engine.calls() <= 2);
    }
}

/// §9.2
#[test]
fn inboxes_and_trust_are_bounded() {
    let mut harness = world(|config| {
        config.social.inbox_per_node = 3;
        config.social.inbox = 5;
        config.social.consents_per_node = 4;
        config.social.consents = 10;
    });
    let ids: Vec<NodeId> = (1..=8).map(|n| harness.register(&key(n))).collect();
    let ask = |from: usize, to: usize| {
        let text = "\u{1}".repeat(1000);
        json!({"type": "request_handshake", "from_node_id": ids[from].0, "to_node_id": ids[to].0, "justification": text})
    };
    for n in 1..=3u8 {
        harness.act(&key(n + 1), ask(n.into(), 0)).unwrap();
    }
    assert!(matches!(harness.act(&key(5), ask(4, 0)), Err(Refusal::TooMany(_))), "inbox of one node");
    harness.act(&key(5), ask(4, 1)).unwrap();
    harness.act(&key(6), ask(5, 1)).unwrap();
    assert!(matches!(harness.act(&key(7), ask(6, 2)), Err(Refusal::TooMany(_))), "all inboxes");
    for n in 1..=4 {
        harness.act(&key(8), pair("report_trust", ids[7], ids[n])).unwrap();
    }
    harness.act(&key(8), pair("report_trust", ids[7], ids[4])).unwrap();
    assert!(matches!(harness.act(&key(8), pair("report_trust", ids[7], ids[5])), Err(Refusal::TooMany(_))));
    harness.act(&key(7), pair("report_trust", ids[6], ids[5])).unwrap();
    assert!(matches!(harness.act(&key(6), pair("report_trust", ids[5], ids[6])), Err(Refusal::TooMany(_))));
    harness.engine.rows.assert_consistent();
}

/// A full inbox of long texts is told in pieces that fit into a message.
#[test]
fn a_large_inbox_takes_several_polls() {
    let mut harness = world(|_| {});
    let target = harness.register(&key(1));
    for n in 2..=41 {
        let from = harness.register(&key(n));
        let text = "\"\u{1}".repeat(512);
        let request = json!({"type": "request_handshake", "from_node_id": from.0, "to_node_id": target.0, "justification": text});
        harness.act(&key(n), request).unwrap();
    }
    let (mut told, mut polls) = (0, 0);
    while told < 40 {
        let reply = harness.act(&key(1), json!({"type": "poll_handshakes", "node_id": target.0})).unwrap();
        assert!(reply.to_string().len() <= wire::MAX_MESSAGE);
        told += reply["requests"].as_array().unwrap().len();
        polls += 1;
        assert!(polls < 10);
    }
    assert!(polls > 1 && told == 40);
}

#[test]
fn networks_are_entered_by_their_rule() {
    let mut harness = world(|_| {});
    let (a, b, c) = (harness.register(&key(1)), harness.register(&key(2)), harness.register(&key(3)));
    let join = |id: NodeId, network: u16, token: &str| json!({"type": "join_network", "node_id": id.0, "network_id": network, "token": token});
    let create = json!({"type": "create_network", "node_id": a.0, "name": "lab", "join_rule": "open"});
    assert!(matches!(harness.act(&key(1), create.clone()), Err(Refusal::TokenNeeded(_))));
    let mut wrong = create;
    wrong["admin_token"] = "guess".into();
    assert_eq!(harness.act(&key(1), wrong), Err(Refusal::BadToken));
    let open = harness.network(a, "lab", "open", "");
    let token = harness.network(a, "tok", "token", "s3cret");
    let invite = harness.network(a, "inv", "invite", "");
    assert_eq!((open, token, invite), (1, 2, 3));
    assert_eq!(
        harness.act(&key(2), join(b, open, "")).unwrap()["address"],
        format!("1:0001.{:04X}.{:04X}", b.0 >> 16, b.0 & 0xFFFF)
    );
    harness.act(&key(2), join(b, open, "")).expect("joining twice is no error");
    assert_eq!(harness.act(&key(2), join(b, token, "x")), Err(Refusal::BadToken));
    harness.act(&key(2), join(b, token, "s3cret")).unwrap();
    assert_eq!(harness.act(&key(2), join(b, invite, "")), Err(Refusal::NotInvited(invite)));
    assert_eq!(harness.act(&key(3), join(b, open, "")), Err(Refusal::BadProof), "only for oneself");
    assert_eq!(harness.act(&key(2), join(b, 9, "")), Err(Refusal::NoNetwork(9)));
    // Members find each other although they are private.
    assert!(harness.resolve(&key(1), a, b).is_ok() && harness.resolve(&key(2), b, a).is_ok());
    assert_eq!(harness.resolve(&key(3), c, b), Err(Refusal::NotVisible(b)));
    // Invitations: by an admin, for a node that is not there yet, answered once.
    let invitation = |by: NodeId, whom: NodeId| json!({"type": "invite_to_network", "network_id": invite, "inviter_id": by.0, "target_node_id": whom.0});
    assert!(matches!(harness.act(&key(2), invitation(b, c)), Err(Refusal::Role { .. })));
    harness.act(&key(1), invitation(a, c)).unwrap();
    let waiting = harness.act(&key(3), json!({"type": "poll_invites", "node_id": c.0})).unwrap();
    assert_eq!(
        waiting["invites"][0],
        json!({"network_id": invite, "inviter_id": a.0, "timestamp": harness.unix})
    );
    let accept = json!({"type": "respond_invite", "node_id": c.0, "network_id": invite, "accept": true});
    harness.act(&key(3), accept.clone()).unwrap();
    assert_eq!(harness.act(&key(3), accept), Err(Refusal::NoInvite(invite)));
    assert_eq!(harness.act(&key(1), invitation(a, c)), Err(Refusal::IsMember(c, invite)));
    assert!(harness.resolve(&key(3), c, a).is_ok());
    // Leaving ends what membership gave.
    let leave = |id: NodeId| json!({"type": "leave_network", "node_id": id.0, "network_id": invite});
    harness.act(&key(3), leave(c)).unwrap();
    assert_eq!(harness.resolve(&key(3), c, a), Err(Refusal::NotVisible(a)));
    assert_eq!(harness.act(&key(1), leave(a)), Err(Refusal::Owner(invite)));
    // Members are listed to a member's address, and to the operator.
    let list = json!({"type": "list_nodes", "network_id": open});
    assert_eq!(harness.act(&key(1), list.clone()).unwrap()["nodes"].as_array().unwrap().len(), 2);
    assert!(matches!(harness.act_from(other(), &key(1), list), Err(Refusal::Role { .. })));
    let all = json!({"type": "list_nodes", "network_id": 0, "admin_token": TOKEN});
    assert_eq!(harness.act_from(other(), &key(1), all).unwrap()["nodes"].as_array().unwrap().len(), 3);
    harness.engine.rows.assert_consistent();
}

/// Reference defect A8: a role counts for whoever signs, not for whoever is named.
#[test]
fn roles_are_checked_by_signature() {
    let mut harness = world(|_| {});
    let (a, b, c) = (harness.register(&key(1)), harness.register(&key(2)), harness.register(&key(3)));
    let net = harness.network(a, "lab", "open", "");
    for (n, id) in [(2, b), (3, c)] {
        let join = json!({"type": "join_network", "node_id": id.0, "network_id": net, "token": ""});
        harness.act(&key(n), join).unwrap();
    }
    let on = |kind: &str, by: NodeId, whom: NodeId| json!({"type": kind, "network_id": net, "node_id": by.0, "target_node_id": whom.0});
    // Named, not signed; signed by another; signed by a plain member.
    let unsigned = Request::parse(on("kick_member", a, b).to_string().as_bytes()).unwrap();
    assert_eq!(harness.ask(&unsigned), Err(Refusal::ProofNeeded));
    assert_eq!(harness.act(&key(2), on("kick_member", a, c)), Err(Refusal::BadProof));
    assert!(matches!(harness.act(&key(2), on("kick_member", b, c)), Err(Refusal::Role { .. })));
    assert!(matches!(harness.act(&key(2), on("promote_member", b, b)), Err(Refusal::Role { .. })));
    assert_eq!(harness.act(&key(1), on("promote_member", a, b)).unwrap()["role"], "admin");
    // An admin removes members, not admins, and never the owner.
    assert_eq!(harness.act(&key(1), on("promote_member", a, c)).unwrap()["role"], "admin");
    assert!(matches!(harness.act(&key(2), on("kick_member", b, c)), Err(Refusal::Role { .. })));
    assert_eq!(harness.act(&key(1), on("demote_member", a, c)).unwrap()["role"], "member");
    harness.act(&key(2), on("kick_member", b, c)).unwrap();
    assert_eq!(harness.act(&key(2), on("kick_member", b, a)), Err(Refusal::Owner(net)));
    assert_eq!(harness.act(&key(1), on("kick_member", a, c)), Err(Refusal::NotMember(c, net)));
    // Policy.
    let policy = json!({"type": "set_network_policy", "network_id": net, "node_id": b.0, "max_members": 2,
        "allowed_ports": [7, 80], "description": "d"});
    assert_eq!(harness.act(&key(2), policy).unwrap()["allowed_ports"], json!([7, 80]));
    let join = json!({"type": "join_network", "node_id": c.0, "network_id": net, "token": ""});
    assert!(matches!(harness.act(&key(3), join), Err(Refusal::TooMany(_))));
    let many: Vec<u16> = (0..65).collect();
    let policy =
        json!({"type": "set_network_policy", "network_id": net, "node_id": b.0, "allowed_ports": many});
    assert!(matches!(harness.act(&key(2), policy), Err(Refusal::BadArgument(_))));
    // Ownership goes on, and with it what only the owner may.
    let transfer =
        json!({"type": "transfer_ownership", "network_id": net, "node_id": a.0, "new_owner_id": b.0});
    harness.act(&key(1), transfer).unwrap();
    let rename =
        |by: NodeId| json!({"type": "rename_network", "network_id": net, "node_id": by.0, "name": "new"});
    assert!(matches!(harness.act(&key(1), rename(a)), Err(Refusal::Role { .. })));
    harness.act(&key(2), rename(b)).unwrap();
    let role = json!({"type": "get_member_role", "network_id": net, "target_node_id": a.0});
    assert_eq!(harness.act(&key(1), role).unwrap()["role"], "admin");
    // The end: the id is not used again.
    harness.act(&key(2), json!({"type": "delete_network", "network_id": net, "node_id": b.0})).unwrap();
    assert_eq!(harness.network(a, "next", "open", ""), net + 1);
    harness.engine.rows.assert_consistent();
}

#[test]
fn networks_members_and_invitations_are_bounded() {
    let mut harness = world(|config| {
        config.social.networks = 2;
        config.social.members = 3;
        config.social.invites_per_node = 1;
    });
    let ids: Vec<NodeId> = (1..=5).map(|n| harness.register(&key(n))).collect();
    let first = harness.network(ids[0], "one", "open", "");
    let second = harness.network(ids[0], "two", "invite", "");
    let create = |name: &str| json!({"type": "create_network", "node_id": ids[0].0, "name": name, "admin_token": TOKEN});
    assert!(matches!(harness.act(&key(1), create("three")), Err(Refusal::TooMany(_))));
    for bad in ["one", "backbone", "-x", "", "Capital", &"x".repeat(64)] {
        assert!(harness.act(&key(1), create(bad)).is_err(), "{bad:?}");
    }
    let join =
        |n: usize| json!({"type": "join_network", "node_id": ids[n].0, "network_id": first, "token": ""});
    harness.act(&key(2), join(1)).unwrap();
    harness.act(&key(3), join(2)).unwrap();
    assert!(matches!(harness.act(&key(4), join(3)), Err(Refusal::TooMany(_))));
    let invite = |network: u16| json!({"type": "invite_to_network", "network_id": network, "target_node_id": ids[4].0, "admin_token": TOKEN});
    harness.act(&key(1), invite(second)).unwrap();
    harness.act(&key(1), invite(second)).expect("the same again");
    assert!(matches!(harness.act(&key(1), invite(first)), Err(Refusal::TooMany(_))));
    // A full invitation keeps waiting for room.
    let accept =
        json!({"type": "respond_invite", "node_id": ids[4].0, "network_id": second, "accept": false});
    harness.act(&key(5), accept).unwrap();
    harness.engine.rows.assert_consistent();
}

/// §9.1: tokens cannot be tried at will, not even the right one after too many wrong ones.
#[test]
fn guessing_tokens_is_limited() {
    let mut harness = world(|config| config.rates.guess = 5);
    harness.register(&key(1));
    let with = |token: &str| json!({"type": "list_nodes", "network_id": 0, "admin_token": token});
    for _ in 0..5 {
        assert_eq!(harness.act(&key(1), with("wrong")), Err(Refusal::BadToken));
    }
    assert!(matches!(harness.act(&key(1), with(TOKEN)), Err(Refusal::RateLimited { .. })));
    assert!(harness.act_from(other(), &key(1), with(TOKEN)).is_ok(), "others are not concerned");
    harness.now += Duration::from_secs(60);
    assert!(harness.act(&key(1), with(TOKEN)).is_ok());
    // Without a token nobody is an operator.
    harness.engine.config.admin_token = None;
    assert_eq!(harness.act(&key(1), with(TOKEN)), Err(Refusal::BadToken));
}

/// A long list comes in pages that fit into a message.
#[test]
fn long_lists_come_in_pages() {
    let mut harness = world(|_| {});
    let owner = harness.register(&key(1));
    let net = harness.network(owner, "lab", "open", "");
    let tags: Vec<String> = (0..10).map(|n| format!("{n}{}", "t".repeat(31))).collect();
    for n in 1..=200u8 {
        let name = format!("{n}{}", "n".repeat(60));
        let id = harness.register_public(&key(n), &name);
        harness.act(&key(n), json!({"type": "set_tags", "node_id": id.0, "tags": tags})).unwrap();
        if n > 1 {
            let join = json!({"type": "join_network", "node_id": id.0, "network_id": net, "token": ""});
            harness.act(&key(n), join).unwrap();
        }
    }
    let (mut seen, mut after, mut pages) = (std::collections::BTreeSet::new(), 0, 0);
    loop {
        let request = json!({"type": "list_nodes", "network_id": net, "after": after});
        let reply = harness.act(&key(1), request).unwrap();
        assert!(reply.to_string().len() <= wire::MAX_MESSAGE);
        seen.extend(reply["nodes"].as_array().unwrap().iter().map(|node| node["node_id"].as_u64().unwrap()));
        pages += 1;
        match reply["next"].as_u64() {
            Some(next) => after = next,
            None => break,
        }
    }
    assert!(pages > 1 && seen.len() == 200, "{pages} pages, {} nodes", seen.len());
}

#[test]
fn keys_change_and_end_and_the_id_stays() {
    let mut harness = world(|_| {});
    let id = harness.register_public(&key(1), "ann");
    let rotate = |new: &SigningKey| {
        let new = Base64(new.verifying_key().to_bytes()).to_string();
        json!({"type": "rotate_key", "node_id": id.0, "new_public_key": new})
    };
    // Without the new key's proof, with another's, onto a key in use.
    assert_eq!(harness.act(&key(1), rotate(&key(2))), Err(Refusal::BadProof));
    let both = |harness: &mut Harness, old: &SigningKey, new: &SigningKey, wanted: &SigningKey| {
        let mut conn = ConnState::default();
        let nonce = harness.challenge(&mut conn);
        let mut request = rotate(wanted);
        let message = Request::parse(request.to_string().as_bytes()).unwrap().proof_message(&nonce).unwrap();
        request["proof"] = sign(old, &message).to_string().into();
        request["new_proof"] = sign(new, &message).to_string().into();
        let outcome =
            harness.apply_on(&mut conn, HOME, &Request::parse(request.to_string().as_bytes()).unwrap());
        harness.engine.commit();
        outcome.refused.map_or(Ok(outcome.reply), Err)
    };
    assert_eq!(both(&mut harness, &key(1), &key(3), &key(2)), Err(Refusal::BadProof));
    let taken = harness.register(&key(9));
    assert_eq!(both(&mut harness, &key(1), &key(9), &key(9)), Err(Refusal::KeyTaken));
    assert_ne!(taken, id);
    harness.unix += 3 * 86_400;
    both(&mut harness, &key(1), &key(2), &key(2)).unwrap();
    // The new key is the node; the old one is a stranger.
    assert!(harness.heartbeat(&key(2), id).is_ok());
    assert_eq!(harness.heartbeat(&key(1), id), Err(Refusal::Signature(id)));
    assert_eq!(harness.register(&key(2)), id);
    assert_ne!(harness.register(&key(1)), id);
    let info = harness.act(&key(1), json!({"type": "get_key_info", "node_id": id.0})).unwrap();
    assert_eq!((info["rotate_count"].as_u64(), info["key_age_days"].as_u64()), (Some(1), Some(0)));
    // What is stored loads again.
    let record = harness.engine.record(id).unwrap().clone();
    let mut bytes = Vec::new();
    record.encode(&mut bytes);
    assert_eq!(Record::decode(id, &bytes), Ok(record));
    // The end.
    let expire = |text: &str| json!({"type": "set_key_expiry", "node_id": id.0, "expires_at": text});
    for bad in ["soon", "2020-01-01T00:00:00Z", ""] {
        assert_eq!(harness.act(&key(2), expire(bad)), Err(Refusal::BadExpiry));
    }
    let end = harness.unix + 3_600;
    harness.act(&key(2), expire(&wire::rfc3339(end))).unwrap();
    let beat = harness.heartbeat(&key(2), id).unwrap();
    assert_eq!(beat, Reply::Heartbeat { time: harness.unix, key_expiry_warning: true });
    harness.unix = end;
    assert_eq!(harness.heartbeat(&key(2), id), Err(Refusal::KeyExpired(id)));
    assert_eq!(harness.register_from(HOME, &key(2), |_| {}), Err(Refusal::KeyExpired(id)));
    both(&mut harness, &key(2), &key(4), &key(4)).expect("an ended key can be changed");
    assert!(harness.heartbeat(&key(4), id).is_ok());
    harness.engine.table.assert_consistent();
}

/// Reference defects A8, A11.
#[test]
fn scores_and_punches_are_not_for_everybody() {
    let mut harness = world(|_| {});
    let (a, b, c) = (harness.register(&key(1)), harness.register(&key(2)), harness.register(&key(3)));
    let update = json!({"type": "update_polo_score", "node_id": a.0, "delta": i64::MAX});
    assert!(matches!(harness.act(&key(1), update.clone()), Err(Refusal::TokenNeeded(_))));
    let mut with_token = update.clone();
    with_token["admin_token"] = TOKEN.into();
    assert_eq!(harness.act(&key(1), with_token).unwrap()["polo_score"], 1_000_000_000);
    harness.engine.config.open_scores = true;
    let mut down = update;
    down["delta"] = (-5).into();
    assert_eq!(harness.act(&key(1), down).unwrap()["polo_score"], 999_999_995);
    let punch = |harness: &mut Harness, signer: u8, by: NodeId, x: NodeId, y: NodeId| {
        let signature = Some(sign(&key(signer), format!("punch:{}:{}", x.0, y.0).as_bytes()));
        harness.ask(&Request::Punch(wire::Punch { requester_id: by, node_a: x, node_b: y, signature }))
    };
    assert_eq!(punch(&mut harness, 1, a, a, b), Err(Refusal::NotVisible(b)));
    assert!(matches!(punch(&mut harness, 3, c, a, b), Err(Refusal::BadArgument(_))));
    harness.act(&key(2), pair("report_trust", b, a)).unwrap();
    assert!(punch(&mut harness, 1, a, a, b).is_ok());
    assert_eq!(punch(&mut harness, 2, b, a, b), Err(Refusal::NotVisible(a)));
    assert_eq!(punch(&mut harness, 2, a, a, b), Err(Refusal::Signature(a)));
}
