//! Messages of ports 1013 and 1014 (spec/discovery.md §4 and §9): a length of four bytes, then JSON.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use pilotage_wire::Address;
use serde::{Deserialize, Serialize};

use crate::card::SignedCard;
use crate::embed::Embedding;
use crate::group::Summary;
use crate::index::Statistics;
use crate::merge::Told;
use crate::query::{MAX_LIMIT, MAX_QUERY_TERMS, Query};
use crate::tag::Tag;

/// Longest request, in bytes: a card, a query with a vector and a group's summary fit.
pub const MAX_REQUEST: usize = 16 * 1_024;

/// Most summaries of one answer.
pub const MAX_ROUTES: usize = 24;

/// Longest answer, in bytes: [`MAX_LIMIT`] of the longest cards fit.
pub const MAX_ANSWER: usize = 512 * 1_024;

/// Longest body of a call and of its result, in bytes.
pub const MAX_BODY: usize = 4 * 1_024 * 1_024;

/// Longest reason that is shown, in bytes; the rest is cut off.
pub const MAX_REASON: usize = 256;

/// Why bytes are not this protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// Longer than allowed.
    #[error("a message of {0} bytes is too long")]
    TooLong(usize),
    /// Not the JSON that it should be.
    #[error("not understood: {0}")]
    Json(String),
    /// A field holds something else than it should.
    #[error("field {0}: {1}")]
    Field(&'static str, String),
}

/// What is asked on port 1013.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Who can do this?
    Query(Query),
    /// Put my card into your index.
    Announce(Box<SignedCard>),
    /// The descriptor with this hash.
    Descriptor([u8; 32]),
    /// What is in your index?
    Summary,
    /// Put the signed summary of my group on your list.
    Group(Vec<u8>),
    /// Which groups may know who can do this?
    Route(Query),
}

/// Somebody who holds the index of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// What the group says about itself; verified.
    pub summary: Summary,
    /// Where the signer of the summary is, as the one who tells it says.
    pub at: Address,
}

/// What is answered on port 1013.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// To a query.
    Found {
        /// Verified cards, the best first. Those that did not verify are left out and counted.
        told: Vec<Told>,
        /// Cards whose signature or form was wrong.
        forged: usize,
        /// How common the query's words are there.
        statistics: Statistics,
    },
    /// To an announcement: for how many seconds it is kept before it must be repeated.
    Taken(u64),
    /// The JSON text of a descriptor.
    Descriptor(String),
    /// A signed group summary (`crate::group`).
    Summary(Vec<u8>),
    /// To [`Request::Route`]: at most [`MAX_ROUTES`], the best first. Those whose signature is wrong are left out. To be
    /// written it needs the bytes, see [`encode_groups`].
    Groups(Vec<Holder>),
    /// No.
    Refused(String),
}

#[derive(Serialize, Deserialize, Default)]
struct RequestWire {
    #[serde(rename = "do")]
    what: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    tags: Vec<String>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    text: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    model: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    vector: String,
    #[serde(default, skip_serializing_if = "is_zero")]
    limit: usize,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    card: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    hash: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    summary: String,
}

#[derive(Serialize, Deserialize, Default)]
struct AnswerWire {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cards: Option<Vec<CardWire>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    texts: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    words: Option<u64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    having: Vec<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    keep: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    descriptor: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    summary: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    groups: Option<Vec<GroupWire>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct GroupWire {
    summary: String,
    at: String,
}

/// The answer to [`Request::Route`]: signed summaries and where their signers are; at most [`MAX_ROUTES`].
#[must_use]
pub fn encode_groups<'a>(groups: impl IntoIterator<Item = (&'a [u8], Address)>) -> Vec<u8> {
    let one =
        |(bytes, at): (&[u8], Address)| GroupWire { summary: STANDARD.encode(bytes), at: at.to_string() };
    let groups = groups.into_iter().take(MAX_ROUTES).map(one).collect();
    text_of(&AnswerWire { groups: Some(groups), ..AnswerWire::default() })
}

#[derive(Serialize, Deserialize)]
struct CardWire {
    card: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    seen_ago: Option<u64>,
    #[serde(default, skip_serializing_if = "is_false")]
    itself: bool,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "the form that serde asks for")]
fn is_zero(value: &usize) -> bool {
    *value == 0
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "the form that serde asks for")]
fn is_false(value: &bool) -> bool {
    !*value
}

fn field(name: &'static str, error: impl ToString) -> WireError {
    WireError::Field(name, error.to_string())
}

fn json<'a, T: Deserialize<'a>>(bytes: &'a [u8], most: usize) -> Result<T, WireError> {
    if bytes.len() > most {
        return Err(WireError::TooLong(bytes.len()));
    }
    serde_json::from_slice(bytes).map_err(|error| WireError::Json(error.to_string()))
}

fn text_of(value: &impl Serialize) -> Vec<u8> {
    // Structs of texts and numbers: nothing in them can fail.
    serde_json::to_vec(value).unwrap_or_default()
}

fn query(wire: RequestWire) -> Result<Query, WireError> {
    let tags = wire.tags.iter().map(|tag| tag.parse()).collect::<Result<Vec<Tag>, _>>();
    let vector = match wire.vector.as_str() {
        "" => None,
        text => {
            let values = STANDARD.decode(text).map_err(|error| field("vector", error))?;
            let vector = Embedding::from_bytes(&wire.model, &values);
            Some(vector.map_err(|error| field("vector", error))?)
        }
    };
    let tags = tags.map_err(|error| field("tags", error))?;
    Query::new(tags, wire.text, vector, wire.limit).map_err(|error| field("query", error))
}

fn query_wire(what: &str, query: &Query) -> RequestWire {
    RequestWire {
        what: what.to_owned(),
        tags: query.tags().iter().map(ToString::to_string).collect(),
        text: query.text().to_owned(),
        model: query.vector().map(|vector| vector.model().to_owned()).unwrap_or_default(),
        vector: query.vector().map(|vector| STANDARD.encode(vector.to_bytes())).unwrap_or_default(),
        limit: query.limit(),
        ..RequestWire::default()
    }
}

impl Request {
    /// Reads the JSON.
    ///
    /// # Errors
    /// See [`WireError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let wire: RequestWire = json(bytes, MAX_REQUEST)?;
        match wire.what.as_str() {
            "query" => query(wire).map(Self::Query),
            "route" => query(wire).map(Self::Route),
            "group" => {
                let bytes = STANDARD.decode(&wire.summary).map_err(|error| field("summary", error))?;
                Ok(Self::Group(bytes))
            }
            "announce" => {
                let bytes = STANDARD.decode(&wire.card).map_err(|error| field("card", error))?;
                let card = SignedCard::verify(&bytes).map_err(|error| field("card", error))?;
                Ok(Self::Announce(Box::new(card)))
            }
            "descriptor" => {
                let hash = blake3::Hash::from_hex(&wire.hash).map_err(|error| field("hash", error))?;
                Ok(Self::Descriptor(*hash.as_bytes()))
            }
            "summary" => Ok(Self::Summary),
            _ => Err(field("do", "query, announce, descriptor, summary, group or route")),
        }
    }

    /// The JSON.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let named = |what: &str| RequestWire { what: what.to_owned(), ..RequestWire::default() };
        text_of(&match self {
            Self::Query(query) => query_wire("query", query),
            Self::Route(query) => query_wire("route", query),
            Self::Group(bytes) => RequestWire { summary: STANDARD.encode(bytes), ..named("group") },
            Self::Announce(card) => RequestWire { card: STANDARD.encode(card.bytes()), ..named("announce") },
            Self::Descriptor(hash) => {
                RequestWire { hash: blake3::Hash::from_bytes(*hash).to_string(), ..named("descriptor") }
            }
            Self::Summary => named("summary"),
        })
    }
}

impl Answer {
    /// Reads the JSON and verifies every card in it. At most [`MAX_LIMIT`] cards are looked at.
    ///
    /// # Errors
    /// See [`WireError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let wire: AnswerWire = json(bytes, MAX_ANSWER)?;
        if let Some(error) = wire.error {
            return Ok(Self::Refused(shown(&error)));
        }
        if let Some(cards) = wire.cards {
            let (mut told, mut forged) = (Vec::new(), 0);
            for one in cards.into_iter().take(MAX_LIMIT) {
                let bytes = STANDARD.decode(&one.card).ok();
                match bytes.and_then(|bytes| SignedCard::verify(&bytes).ok()) {
                    Some(card) => told.push(Told { card, seen_ago: one.seen_ago, itself: one.itself }),
                    None => forged += 1,
                }
            }
            let mut having = wire.having;
            having.truncate(MAX_QUERY_TERMS);
            let (texts, words) = (wire.texts.unwrap_or(0), wire.words.unwrap_or(0));
            return Ok(Self::Found { told, forged, statistics: Statistics { texts, words, having } });
        }
        if let Some(groups) = wire.groups {
            let holder = |group: GroupWire| {
                let summary = Summary::verify(&STANDARD.decode(group.summary).ok()?)?;
                Some(Holder { summary, at: group.at.parse().ok()? })
            };
            return Ok(Self::Groups(groups.into_iter().take(MAX_ROUTES).filter_map(holder).collect()));
        }
        if let Some(descriptor) = wire.descriptor {
            return Ok(Self::Descriptor(descriptor));
        }
        if let Some(summary) = wire.summary {
            return Ok(Self::Summary(STANDARD.decode(summary).map_err(|error| field("summary", error))?));
        }
        wire.keep.map(Self::Taken).ok_or_else(|| field("answer", "nothing that is known here"))
    }

    /// The JSON.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let none = AnswerWire::default;
        text_of(&match self {
            Self::Found { told, statistics, .. } => {
                let card = |one: &Told| CardWire {
                    card: STANDARD.encode(one.card.bytes()),
                    seen_ago: one.seen_ago,
                    itself: one.itself,
                };
                AnswerWire {
                    cards: Some(told.iter().take(MAX_LIMIT).map(card).collect()),
                    texts: Some(statistics.texts),
                    words: Some(statistics.words),
                    having: statistics.having.clone(),
                    ..none()
                }
            }
            Self::Taken(keep) => AnswerWire { keep: Some(*keep), ..none() },
            Self::Descriptor(text) => AnswerWire { descriptor: Some(text.clone()), ..none() },
            Self::Summary(bytes) => AnswerWire { summary: Some(STANDARD.encode(bytes)), ..none() },
            // A summary that was read has its signature no more.
            Self::Groups(_) => AnswerWire { groups: Some(Vec::new()), ..none() },
            Self::Refused(why) => AnswerWire { error: Some(shown(why)), ..none() },
        })
    }
}

/// What a call begins with, on port 1014; the body follows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallHead {
    /// The capability.
    pub tag: String,
    /// A random number in hex, for the logs of both sides.
    pub id: String,
    /// The called one says whether it takes the call, and waits for the go-ahead.
    #[serde(default)]
    pub ask_first: bool,
    /// Bytes of the body.
    pub length: usize,
}

/// What the called one says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum CallReply {
    /// It takes the call and has not begun.
    Ready,
    /// It does not take the call and has not begun.
    Refused {
        /// For people.
        reason: String,
    },
    /// It began and failed.
    Failed {
        /// For people.
        reason: String,
    },
    /// It is done; so many bytes of result follow.
    Done {
        /// Bytes.
        length: usize,
    },
}

impl CallHead {
    /// Reads the JSON; the tag has the form of one and the length is in bounds.
    ///
    /// # Errors
    /// See [`WireError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let head: Self = json(bytes, MAX_REQUEST)?;
        head.tag.parse::<Tag>().map_err(|error| field("tag", error))?;
        if head.id.len() > 64 || !head.id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(field("id", "hex digits"));
        }
        if head.length > MAX_BODY { Err(WireError::TooLong(head.length)) } else { Ok(head) }
    }

    /// The JSON.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        text_of(self)
    }
}

impl CallReply {
    /// Reads the JSON; reasons are made fit to be shown, the length is in bounds.
    ///
    /// # Errors
    /// See [`WireError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut reply: Self = json(bytes, MAX_REQUEST)?;
        match &mut reply {
            Self::Ready => {}
            Self::Refused { reason } | Self::Failed { reason } => *reason = shown(reason),
            Self::Done { length } if *length > MAX_BODY => return Err(WireError::TooLong(*length)),
            Self::Done { .. } => {}
        }
        Ok(reply)
    }

    /// The JSON.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut reply = self.clone();
        if let Self::Refused { reason } | Self::Failed { reason } = &mut reply {
            *reason = shown(reason);
        }
        text_of(&reply)
    }
}

/// A text of others that goes to a terminal: at most [`MAX_REASON`] bytes, nothing that it would obey.
fn shown(text: &str) -> String {
    let mut kept = String::new();
    for c in text.chars() {
        let plain = crate::bytes::is_plain(c.encode_utf8(&mut [0; 4]));
        let c = if plain { c } else { ' ' };
        if kept.len() + c.len_utf8() > MAX_REASON {
            break;
        }
        kept.push(c);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::card::testing::card;
    use crate::embed::hashed;

    #[test]
    fn requests_survive() {
        let vector = hashed("rates").unwrap();
        let query = Query::from_words(["cap:a.b", "words \"quoted\""], 9).unwrap().with_vector(vector);
        for request in [
            Request::Query(query),
            Request::Announce(Box::new(card(1, &["a"], "ä"))),
            Request::Descriptor([0xAB; 32]),
            Request::Summary,
            Request::Group(vec![7; crate::group::MAX_GROUP]),
            Request::Route(Query::from_words(["cap:a"], 3).unwrap()),
        ] {
            let bytes = request.encode();
            assert!(bytes.len() <= MAX_REQUEST);
            assert_eq!(Request::decode(&bytes), Ok(request));
        }
        assert!(matches!(Request::decode(&vec![b' '; MAX_REQUEST + 1]), Err(WireError::TooLong(_))));
        assert!(Request::decode(br#"{"do":"query"}"#).is_err(), "a query that says nothing");
    }

    #[test]
    fn answers_survive_and_forged_cards_are_counted() {
        let told = |number| Told { card: card(number, &["a"], "s"), seen_ago: Some(3), itself: number == 1 };
        let statistics = Statistics { texts: 2, words: 9, having: vec![1, 0] };
        let found = Answer::Found { told: vec![told(1), told(2)], forged: 0, statistics };
        for answer in [
            found.clone(),
            Answer::Taken(60),
            Answer::Descriptor("{}".into()),
            Answer::Summary(vec![1, 2, 3]),
            Answer::Refused("no".into()),
        ] {
            assert_eq!(Answer::decode(&answer.encode()), Ok(answer));
        }
        let text = String::from_utf8(found.encode()).unwrap();
        let forged = text.replacen("\"card\":\"UFNL", "\"card\":\"QUFB", 1);
        assert!(matches!(
            Answer::decode(forged.as_bytes()),
            Ok(Answer::Found { told, forged: 1, .. }) if told.len() == 1
        ));
    }

    #[test]
    fn groups_are_verified_when_they_are_read() {
        use ed25519_dalek::{Signer, SigningKey};
        let key = SigningKey::from_bytes(&[9; 32]);
        let one = card(1, &["a"], "s").card().declaration.clone();
        let summary = Summary::of(7, key.verifying_key().to_bytes(), 5, 600, [(4, &one)]);
        let good = summary.sign(|message| key.sign(message).to_bytes());
        let mut forged = good.clone();
        forged[60] ^= 1;
        let at = Address::new(0, 77);
        let bytes = encode_groups([(good.as_slice(), at), (forged.as_slice(), at)]);
        assert_eq!(Answer::decode(&bytes), Ok(Answer::Groups(vec![Holder { summary, at }])));
        let many = encode_groups(std::iter::repeat_n((good.as_slice(), at), MAX_ROUTES + 9));
        assert!(matches!(Answer::decode(&many), Ok(Answer::Groups(all)) if all.len() == MAX_ROUTES));
    }

    #[test]
    fn the_longest_answer_fits() {
        let group = crate::group::MAX_GROUP.div_ceil(3) * 4 + 64;
        assert!(MAX_ROUTES * group + 64 <= MAX_ANSWER && group <= MAX_REQUEST, "{group}");
        use crate::card::MAX_CARD;
        let one = MAX_CARD.div_ceil(3) * 4 + 64;
        assert!(MAX_LIMIT * one + 1_024 <= MAX_ANSWER, "{one}");
    }

    #[test]
    fn reasons_cannot_paint_the_terminal() {
        let reply = CallReply::decode(br#"{"state":"failed","reason":"a\u001b[2Jb\n"}"#).unwrap();
        assert_eq!(reply, CallReply::Failed { reason: "a [2Jb ".into() });
        let long = CallReply::Refused { reason: "ä".repeat(1_000) };
        assert!(long.encode().len() < MAX_REASON + 64);
        let head = CallHead { tag: "a.b".into(), id: "00ff".into(), ask_first: true, length: 7 };
        assert_eq!(CallHead::decode(&head.encode()), Ok(head.clone()));
        assert!(CallHead::decode(&CallHead { length: MAX_BODY + 1, ..head.clone() }.encode()).is_err());
        assert!(CallHead::decode(&CallHead { tag: "A".into(), ..head }.encode()).is_err());
    }
}
