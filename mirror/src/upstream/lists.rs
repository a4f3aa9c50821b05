//! Tags and referrers (distribution-spec, "Content Discovery").

use bytes::Bytes;
use http::header::{ACCEPT, LINK};
use http::{HeaderMap, HeaderValue, Method};
use serde_json::{Value, json};
use url::Url;

use super::Upstream;
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
    /// Returns a page of a repository's tags; `query` is passed on as it is.
    ///
    /// # Errors
    /// As [`Error`] says.
    pub async fn tags(&self, name: &RepositoryName, query: &str) -> Result<ListAnswer, Error> {
        let name = self.name(name);
        let mut url = self.wire.url(&format!("{name}/tags/list"));
        url.set_query((!query.is_empty()).then_some(query));
        let access = self.access();
        let held = self.ask(&access, &about_list(&name, url)).await?;
        if held.answer.status() != 200 {
            return Err(self.fault(&access, held.answer).await);
        }
        let next = next_page(held.answer.headers());
        let bytes = held.answer.read(MOST_LIST, self.wire.timeouts.body).await?;
        Ok(ListAnswer { bytes, next })
    }

    /// Returns all manifests that refer to a manifest, unfiltered: an index, all pages in one. `None` where the registry
    /// has no referrers API, whatever it answers in its place.
    ///
    /// # Errors
    /// As [`Error`] says.
    pub async fn referrers(&self, name: &RepositoryName, digest: &Digest) -> Result<Option<Bytes>, Error> {
        let name = self.name(name);
        let first = self.wire.url(&format!("{name}/referrers/{digest}"));
        let Some((mut whole, mut next)) = self.referrers_page(&name, first.clone()).await? else {
            return Ok(None);
        };
        for _ in 0..MOST_PAGES {
            let Some(query) = next else {
                return Ok(Some(whole));
            };
            let mut url = first.clone();
            url.set_query(Some(&query));
            let page = match self.referrers_page(&name, url).await {
                Err(Error::NotFound { .. }) => None,
                page => page?,
            };
            // A part would hide signatures.
            let (page, after) =
                page.ok_or_else(|| Error::malformed("referrers of which a page is missing"))?;
            (whole, next) = (join_pages(&whole, &page)?, after);
        }
        Err(Error::malformed(format!(
            "referrers on more than {MOST_PAGES} pages"
        )))
    }

    /// Returns an index and the query of the next page; `None` where the answer is that of a registry without the API.
    async fn referrers_page(&self, name: &str, url: Url) -> Result<Option<(Bytes, Option<String>)>, Error> {
        let access = self.access();
        let held = self.ask(&access, &about_list(name, url)).await?;
        match held.answer.status().as_u16() {
            200..=399 => {
                let next = next_page(held.answer.headers());
                let index = read_index(self.take_document(held.answer).await?)?;
                Ok(index.map(|index| (index, next)))
            }
            // These say something of the request or its time, and nothing of the API.
            401 | 403 | 407 | 408 | 425 => Err(self.fault(&access, held.answer).await),
            400..=499 => match self.fault(&access, held.answer).await {
                found @ Error::NotFound { .. } => Err(found),
                _ => Ok(None),
            },
            501 => Ok(None),
            _ => Err(self.fault(&access, held.answer).await),
        }
    }
}

fn about_list(name: &str, url: Url) -> Question<'_> {
    const TYPES: &str = "application/vnd.oci.image.index.v1+json, application/json, */*";
    Question {
        class: Class::List,
        lane: Lane::Other,
        method: Method::GET,
        url,
        headers: HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(TYPES))]),
        repository: Some(name),
        follow: true,
    }
}

/// Returns the index with a list of manifests, from which what is no descriptor is dropped. `None` for a page, and for
/// JSON that is no index, such as `{}`.
fn read_index(bytes: Bytes) -> Result<Option<Bytes>, Error> {
    let mut index: Value = match serde_json::from_slice(&bytes) {
        Ok(value) => value,
        Err(_) if bytes.trim_ascii_start().starts_with(b"{") => {
            return Err(Error::malformed("a list of referrers that is broken JSON"));
        }
        Err(_) => return Ok(None),
    };
    let is_index = is_index(&index);
    match index.get_mut("manifests") {
        Some(Value::Array(manifests)) => {
            let sent = manifests.len();
            manifests.retain(Value::is_object);
            if manifests.len() == sent {
                return Ok(Some(bytes));
            }
        }
        None | Some(Value::Null) if is_index => index["manifests"] = json!([]),
        None | Some(Value::Null) => return Ok(None),
        Some(_) => {
            return Err(Error::malformed(
                "a list of referrers whose manifests are no list",
            ));
        }
    }
    Ok(Some(index.to_string().into()))
}

/// Tells whether an object without manifests is an index all the same, by its type or else by its version.
fn is_index(object: &Value) -> bool {
    match object.get("mediaType") {
        Some(Value::String(media_type)) => {
            media_type.contains("index") || media_type.contains("manifest.list")
        }
        _ => object.get("schemaVersion").is_some(),
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
        let wanted = json!({"schemaVersion": 2, "manifests": [{"digest": "a"}, {"digest": "b"}]});
        assert_eq!(joined, wanted);
        assert!(join_pages(one, b"{}").is_err());
    }

    const INDEX: &str = "application/vnd.oci.image.index.v1+json";

    fn index(text: &str) -> Option<String> {
        let index = read_index(text.to_owned().into()).unwrap();
        index.map(|bytes| String::from_utf8(bytes.to_vec()).unwrap())
    }

    #[test_case("<html>"; "a page")]
    #[test_case(""; "nothing")]
    #[test_case("{}"; "an empty object")]
    #[test_case("[]"; "a list")]
    #[test_case(r#"{"message":"ok"}"#; "other JSON")]
    #[test_case(r#"{"mediaType":"application/vnd.oci.image.manifest.v1+json","schemaVersion":2}"#; "an image")]
    fn other_json_means_no_referrers_api(text: &str) {
        assert_eq!(index(text), None);
    }

    #[test]
    fn an_index_without_manifests_is_an_empty_list() {
        for manifests in [
            "",
            r#","manifests":null"#,
            r#","manifests":[]"#,
            r#","manifests":[null,1]"#,
        ] {
            for own in [
                r#""schemaVersion":2"#.to_owned(),
                format!(r#""mediaType":"{INDEX}""#),
            ] {
                let read = index(&format!("{{{own}{manifests}}}")).unwrap();
                let read: Value = serde_json::from_str(&read).unwrap();
                assert_eq!(read["manifests"], json!([]), "{own}{manifests}");
            }
        }
    }

    #[test]
    fn an_index_comes_as_it_was_sent_but_for_odd_entries() {
        let sent = r#"{ "manifests": [{"digest":"a"}] }"#;
        assert_eq!(index(sent).as_deref(), Some(sent));
        let odd = r#"{"manifests":["x",{"digest":"a"},null]}"#;
        assert_eq!(index(odd).unwrap(), r#"{"manifests":[{"digest":"a"}]}"#);
    }

    #[test_case(r#"{"schemaVersion":2,"manifests":[{"#; "cut")]
    #[test_case(r#"{"manifests":{}}"#; "no list")]
    fn a_broken_index_is_malformed(text: &str) {
        assert!(matches!(
            read_index(text.to_owned().into()),
            Err(Error::Malformed { .. })
        ));
    }

    proptest! {
        #[test]
        fn no_link_makes_the_parser_panic(link in "[ -~]{0,100}") {
            let _ = next(&link);
        }
    }
}
