//! Tags (distribution-spec, "Listing Tags").

use http::header::ACCEPT;
use http::{HeaderMap, HeaderValue, Method};
use url::Url;

use super::Upstream;
use super::error::Error;
use super::json_body::too_large;
use super::link::next_page;
use super::rate_limit::RequestClass;
use super::request::{RequestPool, UpstreamRequest};
use crate::json::{self, JsonList, ListEntry, MAX_ENTRIES, Object, Scalar};
use crate::name::{RepositoryName, Tag};
use crate::query;

/// The most bytes of a page of tags.
pub(crate) const MAX_TAG_LIST: usize = 4 << 20;
/// The size of the pages in which a list is asked for that is too large as a whole.
const PAGE_SIZE: usize = 1000;

/// A page of tags as upstream has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListAnswer {
    /// The tags in upstream's order, at most 10,000; entries that no tag can be are left out.
    pub tags: Vec<String>,
    /// The query that asks for the next page, if there is one.
    pub next: Option<String>,
}

json::members! {
    TagList {
        "tags" => tags: JsonList<TagText>,
    }
}

/// The text of a tag, kept as it was read: a list has thousands.
struct TagText(String);

impl ListEntry for TagText {
    type Json = Scalar;

    fn from_json(json: Scalar) -> Option<Self> {
        json.text().filter(|text| Tag::is_valid(text)).map(Self)
    }
}

impl ListAnswer {
    /// Parses a page that a peer answers with.
    ///
    /// # Errors
    /// [`Error::Malformed`].
    pub(crate) fn parse(headers: &HeaderMap, body: &[u8]) -> Result<Self, Error> {
        let next = next_page(headers)?;
        let tags = read_tags(body)?.ok_or_else(|| too_large(MAX_TAG_LIST))?;
        Ok(Self { tags, next })
    }
}

impl Upstream {
    /// Returns a page of a repository's tags; `query` is passed on as it is. A list that is too large is asked for again
    /// in pages of 1,000: older registries send all tags at once to clients that name no number.
    ///
    /// # Errors
    /// As [`Error`] says; [`Error::Malformed`] also for more than 10,000 tags or 4 MiB where pages were asked for.
    pub async fn tags(&self, name: &RepositoryName, query: &str) -> Result<ListAnswer, Error> {
        let name = self.name(name);
        if let Some(page) = self.tags_page(&name, query).await? {
            return Ok(self.with_next(&name, query, page).await);
        }
        let query = query::with(&query::without(query, "n"), "n", &PAGE_SIZE.to_string());
        let page = self.tags_page(&name, &query).await?.ok_or_else(|| {
            Error::malformed(format!(
                "a list of more than {MAX_ENTRIES} tags, or {MAX_TAG_LIST} bytes, in place of pages of {PAGE_SIZE} tags"
            ))
        })?;
        Ok(self.with_next(&name, &query, page).await)
    }

    /// Adds the query of the next page to a full page without one: many registries send no `Link`. A request for the tag
    /// after the last one shows if there is another; without an answer, there may be.
    async fn with_next(&self, name: &str, query: &str, page: ListAnswer) -> ListAnswer {
        let size = query::value(query, "n").and_then(|size| size.parse().ok());
        let is_full = page.next.is_none() && size == Some(page.tags.len());
        let Some(last) = page.tags.last().filter(|_| is_full) else {
            return page;
        };
        let others = query::without(&query::without(query, "n"), "last");
        let after = query::with(&others, "last", last);
        let found = self.tags_page(name, &query::with(&after, "n", "1")).await;
        let is_next = |tag: &String| !page.tags.contains(tag);
        if let Ok(Some(found)) = &found
            && !found.tags.first().is_some_and(is_next)
        {
            return page;
        }
        let next = query::with(&after, "n", &page.tags.len().to_string());
        let next = Some(next);
        ListAnswer { next, ..page }
    }

    /// Returns a page; `None` where it is too large.
    async fn tags_page(&self, name: &str, query: &str) -> Result<Option<ListAnswer>, Error> {
        let mut url = self.transport.url(&format!("{name}/tags/list"));
        url.set_query((!query.is_empty()).then_some(query));
        let authorizer = self.authorizer();
        let permitted = self.send(&authorizer, &about_list(name, url)).await?;
        if permitted.answer.status() != 200 {
            return Err(self.response_error(&authorizer, permitted.answer).await);
        }
        let next = next_page(permitted.answer.headers())?;
        let body = match permitted.answer.read(&self.transport, MAX_TAG_LIST).await {
            Ok(body) => body.parse(|bytes| read_tags(&bytes)).await,
            Err(error) => Err(error),
        };
        match body {
            Ok(tags) => Ok(tags.map(|tags| ListAnswer { tags, next })),
            Err(error) if error == too_large(MAX_TAG_LIST) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Returns the request for a list.
pub(super) fn about_list(name: &str, url: Url) -> UpstreamRequest<'_> {
    const TYPES: &str = "application/vnd.oci.image.index.v1+json, application/json, */*";
    UpstreamRequest {
        class: RequestClass::List,
        pool: RequestPool::Other,
        method: Method::GET,
        url,
        headers: HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(TYPES))]),
        repository: Some(name),
        follow: true,
    }
}

/// Returns the tags of a list; `None` where there are too many. Entries that no tag can be are dropped, as a single one
/// would hide all others.
pub(super) fn read_tags(bytes: &[u8]) -> Result<Option<Vec<String>>, Error> {
    let list = json::read_first::<Object<TagList>>(bytes).and_then(|list| list.0);
    match list.map(|list| list.tags) {
        Some(JsonList::Entries(tags)) => Ok(Some(tags.into_iter().map(|tag| tag.0).collect())),
        Some(JsonList::Absent) => Ok(Some(Vec::new())),
        Some(JsonList::TooMany) => Ok(None),
        Some(JsonList::Other) | None => Err(Error::malformed(
            "upstream's list of tags is not what the specification says",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    /// A list keeps the tags that can be read.
    #[test_case(r#"{"name":"a","tags":null}"#, &[]; "null")]
    #[test_case(r#"{"name":"a"}"#, &[]; "no tags")]
    #[test_case(r#"{"tags":["a",null,7,1.5,true,["b"],{"c":"d"},"","-e","f g","h"]}"#, &["a", "h"]; "odd entries")]
    #[test_case(r#"{"tags":["a","\ud800","b\udc00"],"\ud800":"\udfff"}"#, &["a"]; "halves of surrogate pairs")]
    #[test_case("{\"Tags\":[\"a\"]}\n{}", &["a"]; "as go reads it")]
    fn list_keeps_readable_tags(text: &str, expected: &[&str]) {
        assert_eq!(read_tags(text.as_bytes()).unwrap().unwrap(), expected);
    }

    #[test_case("<html>"; "a page")]
    #[test_case("[]"; "a list alone")]
    #[test_case(r#"{"tags":"a"}"#; "text")]
    #[test_case(r#"{"tags":["a""#; "cut")]
    fn other_json_is_a_malformed_list(text: &str) {
        assert!(read_tags(text.as_bytes()).is_err());
    }

    #[test]
    fn tags_are_bounded_in_number_and_length() {
        let list =
            |count: usize, tag: &str| format!("{{\"tags\":[{}\"z\"]}}", format!("\"{tag}\",").repeat(count));
        let count = |text: String| read_tags(text.as_bytes()).unwrap().map(|tags| tags.len());
        assert_eq!(count(list(MAX_ENTRIES - 1, "a")), Some(MAX_ENTRIES));
        assert_eq!(count(list(MAX_ENTRIES, "a")), None);
        assert_eq!(count(list(1, &"a".repeat(128))), Some(2));
        assert_eq!(count(list(100_000, &"a".repeat(129))), Some(1));
    }
}
