//! Tags and referrers (distribution-spec, "Content Discovery").

use bytes::Bytes;
use http::header::{ACCEPT, ACCEPT_ENCODING, LINK};
use http::{HeaderMap, HeaderValue, Method};
use serde_json::Value;
use url::Url;

use super::Upstream;
use super::answer::Answer;
use super::error::Error;
use super::exchange::{Lane, Question};
use super::manifests::MOST_MANIFEST;
use super::rest::Class;
use crate::digest::Digest;
use crate::name::RepositoryName;

/// Repositories with a hundred thousand tags exist.
const MOST_LIST: usize = 16 * 1024 * 1024;
const MOST_PAGES: usize = 64;

/// A page of tags as upstream has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListAnswer {
    /// The body.
    pub bytes: Bytes,
    /// The query that asks for the next page, if there is one.
    pub next: Option<String>,
}

impl Upstream {
    /// A page of a repository's tags; `query` is passed on as it is.
    ///
    /// # Errors
    /// As [`Error`] says.
    pub async fn tags(&self, name: &RepositoryName, query: &str) -> Result<ListAnswer, Error> {
        let name = self.name(name);
        let mut url = self.wire.url(&format!("{name}/tags/list"));
        url.set_query((!query.is_empty()).then_some(query));
        let answer = self.list(&name, url).await?;
        let next = next_page(answer.headers());
        let bytes = answer.read(MOST_LIST, self.wire.timeouts.body).await?;
        Ok(ListAnswer { bytes, next })
    }

    /// Everything that refers to a manifest, unfiltered: an index, all pages in one.
    ///
    /// # Errors
    /// As [`Error`] says; a registry without the API says 404 one way or the other.
    pub async fn referrers(&self, name: &RepositoryName, digest: &Digest) -> Result<Bytes, Error> {
        let name = self.name(name);
        let first = self.wire.url(&format!("{name}/referrers/{digest}"));
        let answer = self.list(&name, first.clone()).await?;
        let mut next = next_page(answer.headers());
        let mut whole = self.take_document(answer).await?;
        for _ in 0..MOST_PAGES {
            let Some(query) = next else {
                return Ok(whole);
            };
            let mut url = first.clone();
            url.set_query(Some(&query));
            let answer = self.list(&name, url).await?;
            next = next_page(answer.headers());
            whole = join_pages(&whole, &self.take_document(answer).await?)?;
        }
        // A part would hide signatures.
        Err(Error::malformed(format!(
            "referrers on more than {MOST_PAGES} pages"
        )))
    }

    async fn list(&self, name: &str, url: Url) -> Result<Answer, Error> {
        let access = self.access();
        let question = Question {
            class: Class::List,
            lane: Lane::Other,
            method: Method::GET,
            url,
            headers: HeaderMap::from_iter([
                (
                    ACCEPT,
                    HeaderValue::from_static("application/vnd.oci.image.index.v1+json, application/json"),
                ),
                (ACCEPT_ENCODING, HeaderValue::from_static("identity")),
            ]),
            repository: Some(name),
            follow: true,
        };
        let held = self.ask(&access, &question).await?;
        if held.answer.status() != 200 {
            return Err(self.fault(&access, held.answer).await);
        }
        held.answer.check_encoding()?;
        Ok(held.answer)
    }
}

fn join_pages(one: &[u8], other: &[u8]) -> Result<Bytes, Error> {
    let read = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).ok();
    let joined = || {
        let (mut index, mut page) = (read(one)?, read(other)?);
        let more = page.get_mut("manifests")?.as_array_mut()?;
        index.get_mut("manifests")?.as_array_mut()?.append(more);
        serde_json::to_vec(&index).ok()
    };
    match joined() {
        Some(bytes) if bytes.len() <= MOST_MANIFEST => Ok(bytes.into()),
        Some(_) => Err(Error::malformed(format!(
            "referrers of more than {MOST_MANIFEST} bytes"
        ))),
        None => Err(Error::malformed("a page of referrers without manifests")),
    }
}

/// The query of the link to the next page (RFC 8288). What kept libraries there are for this
/// breaks at a comma inside a URL and at a query without `=`.
pub(super) fn next_page(headers: &HeaderMap) -> Option<String> {
    let values = headers
        .get_all(LINK)
        .iter()
        .filter_map(|value| value.to_str().ok());
    values
        .flat_map(links)
        .find(|(_, parameters)| is_next(parameters))
        .and_then(|(target, _)| {
            let (_, query) = target.split_once('?')?;
            let query = query.split('#').next().unwrap_or_default();
            (!query.is_empty()).then(|| query.to_owned())
        })
}

/// The targets of a Link header, each with the text of its parameters.
fn links(mut rest: &str) -> impl Iterator<Item = (&str, &str)> {
    std::iter::from_fn(move || {
        let (target, after) = rest.split_once('<')?.1.split_once('>')?;
        let end = after.find('<').unwrap_or(after.len());
        let (parameters, next) = after.split_at(end);
        rest = next;
        Some((target, parameters))
    })
}

fn is_next(parameters: &str) -> bool {
    parameters.split([';', ',']).any(|parameter| {
        parameter.split_once('=').is_some_and(|(key, value)| {
            let mut relations = value.trim().trim_matches('"').split_ascii_whitespace();
            key.trim().eq_ignore_ascii_case("rel") && relations.any(|r| r.eq_ignore_ascii_case("next"))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use test_case::test_case;

    fn next(link: &str) -> Option<String> {
        next_page(&HeaderMap::from_iter([(LINK, link.parse().unwrap())]))
    }

    #[test_case(r#"</v2/a/tags/list?n=2&last=b>; rel="next""# => Some("n=2&last=b".to_owned()))]
    #[test_case("<https://r.example/v2/a/tags/list?last=b,c&x>; rel=next" => Some("last=b,c&x".to_owned()); "absolute, with a comma")]
    #[test_case(r#"</p?a=1>; rel="prev", </p?a=2>; title="t"; rel="last next""# => Some("a=2".to_owned()); "the second")]
    #[test_case(r#"</p?a=1>; rel="prev""# => None; "none")]
    #[test_case(r#"</p>; rel="next""# => None; "no query")]
    #[test_case("nonsense" => None; "nonsense")]
    fn the_next_page_is_asked_for_by(link: &str) -> Option<String> {
        next(link)
    }

    #[test]
    fn pages_of_referrers_are_joined_and_nothing_else_changed() {
        let one = br#"{"schemaVersion":2,"manifests":[{"digest":"a"}]}"#;
        let other = br#"{"schemaVersion":2,"manifests":[{"digest":"b"}]}"#;
        let joined: Value = serde_json::from_slice(&join_pages(one, other).unwrap()).unwrap();
        let wanted = serde_json::json!({"schemaVersion": 2, "manifests": [{"digest": "a"}, {"digest": "b"}]});
        assert_eq!(joined, wanted);
        assert!(join_pages(one, b"{}").is_err());
    }

    proptest! {
        #[test]
        fn no_link_makes_the_parser_panic(link in "[ -~]{0,100}") {
            let _ = next(&link);
        }
    }
}
