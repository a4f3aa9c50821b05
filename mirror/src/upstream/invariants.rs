//! See [`crate::fuzzing`].

#![expect(clippy::unwrap_used, reason = "what does not hold ends the fuzzer")]

use http::HeaderMap;
use url::Url;

use super::challenge::Challenge;
use super::link::next_page;

/// A token is asked for at a web address that names no user.
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

/// The next page differs from this one by its query alone.
pub(crate) fn link(headers: &HeaderMap) {
    let Ok(Some(query)) = next_page(headers) else {
        return;
    };
    assert!(
        !query.is_empty() && !query.contains(['#', '\r', '\n']),
        "{query:?}"
    );
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
