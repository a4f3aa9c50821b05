//! `GET /v2/<name>/tags/list` (distribution-spec, "Listing Tags") and `GET /v2/_catalog`.

use axum::response::Response;
use http::{HeaderValue, header};
use serde::Serialize;
use url::form_urlencoded;

use super::document::{HeldDocument, hold_document};
use crate::http::error::RegistryError;
use crate::http::{EndpointResponse, RequestContext};
use crate::metrics::Outcome;
use crate::pull::{Page, Served, Window};
use crate::pull_error::PullError;
use crate::query;

/// The longest text of a query, in bytes: tokens of the next page have up to 1 KiB at known registries.
const MAX_PAGE_TEXT: usize = 1024;

/// The body of a list of tags.
#[derive(Serialize)]
struct TagsBody<'a> {
    name: &'a str,
    tags: &'a [String],
}

/// The body of the catalog.
#[derive(Serialize)]
struct CatalogBody<'a> {
    repositories: &'a [String],
}

/// Returns the tags of a repository.
pub(in crate::http) async fn list(
    context: &RequestContext<'_>,
    name: &str,
) -> Result<EndpointResponse, RegistryError> {
    let repository = context.repository(name)?;
    let window = window(context.query)?;
    let query = query::without(context.query, "ns");
    let fetch = || async {
        let (pull, peer) = (&context.app.pull, &context.peer.name);
        Ok(pull.tags(&repository, &query, &window, peer).await?)
    };
    let length = |served: &Served<Page>| json_length(&served.value);
    let served = hold_document(&context.peer.memory, fetch, length).await?;
    let outcome = served.document.outcome;
    let page = served.map(|served| served.value);
    let path = format!("{}/v2/{name}/tags/list", context.app.settings.prefix);
    let render = |tags: &[String]| serde_json::to_vec(&TagsBody { name, tags });
    let response = paged(page, render, &path, context.ns())?;
    Ok(EndpointResponse::new(response, outcome, repository))
}

/// Returns the cached repositories.
pub(in crate::http) async fn catalog(
    context: &RequestContext<'_>,
) -> Result<EndpointResponse, RegistryError> {
    let window = window(context.query)?;
    let fetch = || async { Ok(context.app.pull.catalog(&window, &context.peer.name).await?) };
    let page = hold_document(&context.peer.memory, fetch, json_length).await?;
    let path = format!("{}/v2/_catalog", context.app.settings.prefix);
    let render = |repositories: &[String]| serde_json::to_vec(&CatalogBody { repositories });
    let response = paged(page, render, &path, None)?;
    Ok(EndpointResponse {
        outcome: Outcome::Hit,
        ..EndpointResponse::plain(response)
    })
}

/// Returns the bytes of a page in JSON, without its envelope: a name needs no escapes, but two quotes and a comma.
fn json_length(page: &Page) -> usize {
    page.names.iter().map(|name| name.len() + 3).sum()
}

/// Reads the window of a list. Another pair may be the token of the next page, which the upstream reads.
fn window(query: &str) -> Result<Window, RegistryError> {
    let mut window = Window::default();
    for (key, value) in form_urlencoded::parse(query.as_bytes()) {
        if !(is_page_text(&key) && is_page_text(&value)) {
            return Err(invalid_page(&key));
        }
        match key.as_ref() {
            // Registries read the first value, and an empty one as none.
            "n" if window.n.is_none() && !value.is_empty() => {
                window.n = Some(value.parse().map_err(|_| invalid_page_size(&value))?);
            }
            "last" if window.last.is_none() && !value.is_empty() => window.last = Some(value.into_owned()),
            _ => {}
        }
    }
    Ok(window)
}

/// Returns `true` for a text that may name a page. An upstream that fails at any other would seem to be down.
fn is_page_text(text: &str) -> bool {
    let is_broken = |character: char| character.is_control() || character == char::REPLACEMENT_CHARACTER;
    text.len() <= MAX_PAGE_TEXT && !text.contains(is_broken)
}

fn invalid_page(key: &str) -> RegistryError {
    let key: String = key.chars().take(20).collect();
    let message = format!(
        "the value of {key:?} in the query names no page: send at most {MAX_PAGE_TEXT} bytes of UTF-8 without control characters"
    );
    RegistryError::name_invalid(message)
}

fn invalid_page_size(value: &str) -> RegistryError {
    let value: String = value.chars().take(20).collect();
    let message = format!("n={value:?} is not a number of names: use n=100, say, or leave it out");
    RegistryError::new(
        http::StatusCode::BAD_REQUEST,
        "PAGINATION_NUMBER_INVALID",
        message,
    )
}

/// Returns the response with a page, and the link to the next one.
fn paged(
    page: HeldDocument<Page>,
    render: impl FnOnce(&[String]) -> serde_json::Result<Vec<u8>>,
    path: &str,
    ns: Option<&str>,
) -> Result<Response, RegistryError> {
    let json = render(&page.document.names);
    let json = json.map_err(|error| PullError::unavailable(error.to_string()))?;
    let next = page.document.next.clone();
    let mut response = Response::new(page.body(|_| json.into()));
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    let Some(next) = next else {
        return Ok(response);
    };
    let ns = ns.map(|ns| format!("&ns={}", query::encoded(ns)));
    let ns = ns.unwrap_or_default();
    if let Ok(link) = HeaderValue::try_from(format!("<{path}?{next}{ns}>; rel=\"next\"")) {
        response.headers_mut().insert(header::LINK, link);
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    #[test_case("last=%00" => Some("NAME_INVALID"); "NUL")]
    #[test_case("n=2&l%61st=a%0Ab" => Some("NAME_INVALID"); "a line feed")]
    #[test_case("next_page=%7F" => Some("NAME_INVALID"); "delete in a token")]
    #[test_case("last=%FF" => Some("NAME_INVALID"); "no UTF-8")]
    #[test_case("a%00=b" => Some("NAME_INVALID"); "a key")]
    #[test_case(&format!("last={}", "z".repeat(1025)) => Some("NAME_INVALID"); "too long")]
    #[test_case(&format!("last={}", "z".repeat(1024)) => None; "a long token")]
    #[test_case("last=a/b%2B%2F%3D&next_page=%7B%22a%22:1%7D" => None; "tokens")]
    fn text_that_names_no_page_is_refused(query: &str) -> Option<&'static str> {
        window(query).err().map(|error| error.code)
    }

    #[test]
    fn invalid_page_size_is_refused() {
        for n in ["-1", "a", "1.5", "99999999999999999999999"] {
            let error = window(&format!("n={n}")).unwrap_err();
            assert_eq!(
                (error.status.as_u16(), error.code),
                (400, "PAGINATION_NUMBER_INVALID"),
                "{n}"
            );
        }
        assert_eq!(window("n=&last=").unwrap(), Window::default());
        assert_eq!(window("n=3&n=x").unwrap().n, Some(3));
        assert_eq!(
            window("n=3&last=x").unwrap(),
            Window {
                n: Some(3),
                last: Some("x".into())
            }
        );
    }
}
