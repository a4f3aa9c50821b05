//! See [`crate::fuzzing`].

#![expect(clippy::unwrap_used, reason = "what does not hold ends the fuzzer")]

use bytes::Bytes;
use http::{HeaderMap, header::LINK};
use serde_json::Value;
use url::{Url, form_urlencoded};

use super::auth::challenge::Challenge;
use super::auth::token::{MAX_LIFE, MAX_TOKEN, Token};
use super::link::{MAX_NEXT, next_page};
use super::referrers::add;
use super::tags::read_tags;
use crate::json::{self, JsonList, ListEntry, MAX_ENTRIES, Object};
use crate::name::Tag;
use crate::raw_index::{ReferrerIndex, with_artifact_type};

/// Checks that token requests go only to a web address without a user.
pub(crate) fn challenge(headers: &HeaderMap) {
    let Some(Challenge::Bearer(bearer)) = Challenge::read(headers) else {
        return;
    };
    let realm = bearer.realm;
    assert!(matches!(realm.scheme(), "http" | "https"), "{realm}");
    assert!(
        realm.host().is_some() && realm.username().is_empty() && realm.password().is_none(),
        "{realm}"
    );
    assert_ne!(
        (bearer.service.as_deref(), bearer.scope.as_deref()),
        (Some(""), Some(""))
    );
}

/// Checks that the next page differs from this one only in its query, which names no upstream and is one link for
/// clients.
pub(crate) fn link(headers: &HeaderMap) {
    let Ok(Some(query)) = next_page(headers) else {
        return;
    };
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~%+=&".contains(&byte);
    assert!(
        (1..=MAX_NEXT).contains(&query.len()) && query.bytes().all(is_plain),
        "{query:?}"
    );
    assert!(
        form_urlencoded::parse(query.as_bytes()).all(|(key, _)| key != "ns"),
        "{query:?}"
    );
    let sent = format!("</v2/a/tags/list?{query}>; rel=\"next\"")
        .parse()
        .unwrap();
    let read = next_page(&HeaderMap::from_iter([(LINK, sent)])).unwrap();
    assert_eq!(read.as_deref(), Some(&*query));
    let first: Url = "https://registry.example/v2/library/app/tags/list"
        .parse()
        .unwrap();
    let mut next = first.clone();
    next.set_query(Some(&query));
    assert_eq!(
        (next.origin(), next.path(), next.fragment()),
        (first.origin(), first.path(), None)
    );
}

/// Checks that a token is short, expires within a day, and is never printed.
pub(crate) fn token_answer(body: &[u8]) {
    let Ok(token) = Token::read(body) else { return };
    assert!(token.header.len() <= "Bearer ".len() + MAX_TOKEN && token.header.is_sensitive());
    assert!(token.life <= MAX_LIFE);
}

/// Checks that a list is bounded, and that each entry is a tag.
pub(crate) fn tag_list(body: &[u8]) {
    let Ok(Some(tags)) = read_tags(body) else { return };
    assert!(tags.len() <= MAX_ENTRIES);
    for tag in tags {
        assert_eq!(tag.parse::<Tag>().unwrap().as_str(), tag);
    }
}

/// Pages, each after a zero byte, are joined into one index: its manifests are the objects of the pages' lists, and a
/// filter leaves some of them.
pub(crate) fn referrers(data: &[u8]) {
    let (mut joined, mut whole) = (ReferrerIndex::default(), Vec::new());
    for page in data.split(|byte| *byte == 0) {
        let Ok(Some(more)) = add(joined, &Bytes::copy_from_slice(page)) else {
            return;
        };
        let Some(descriptors) = descriptors(page) else {
            return;
        };
        joined = more;
        whole.extend(descriptors);
    }
    let index = joined.into_bytes();
    let filtered = with_artifact_type(&index, "a").unwrap();
    assert_eq!(descriptors(&index), Some(whole.clone()));
    let filtered = descriptors(&filtered).unwrap();
    assert!(filtered.iter().all(|one| whole.contains(one)));
}

json::members! {
    /// An index as a tree of values, which takes memory.
    Tree {
        "manifests" => manifests: JsonList<Value>,
    }
}

impl ListEntry for Value {
    type Json = Self;

    fn from_json(json: Self) -> Option<Self> {
        json.is_object().then_some(json)
    }
}

/// Returns the manifests of an index; `None` where the tree cannot be made, such as of numbers beyond its range.
fn descriptors(index: &[u8]) -> Option<Vec<Value>> {
    let tree = json::read::<Object<Tree>>(index)?.0?;
    Some(tree.manifests.entries())
}
