//! `GET /v2/<name>/tags/list` (distribution-spec, "Listing Tags") and `GET /v2/_catalog`.

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderValue, header};
use serde::Serialize;
use url::form_urlencoded;

use crate::http::error::RegistryError;
use crate::http::{EndpointResponse, RequestContext};
use crate::metrics::Outcome;
use crate::pull::{ListTurn, Page, Window};
use crate::pull_error::PullError;
use crate::query;

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
    let turn = context
        .app
        .pull
        .list_turn(&repository.host, &context.peer.name)
        .await?;
    let served = context
        .app
        .pull
        .tags(
            &repository,
            &query::without(context.query, "ns"),
            &window,
            &context.peer.name,
        )
        .await?;
    let path = format!("{}/v2/{name}/tags/list", context.app.settings.prefix);
    let response = paged(
        &served.value,
        &TagsBody {
            name,
            tags: &served.value.names,
        },
        &path,
        context.ns(),
        turn,
    )?;
    Ok(EndpointResponse::new(response, served.outcome, repository))
}

/// Returns the cached repositories.
pub(in crate::http) async fn catalog(
    context: &RequestContext<'_>,
) -> Result<EndpointResponse, RegistryError> {
    let window = window(context.query)?;
    let (page, turn) = context.app.pull.catalog(&window, &context.peer.name).await?;
    let path = format!("{}/v2/_catalog", context.app.settings.prefix);
    let response = paged(
        &page,
        &CatalogBody {
            repositories: &page.names,
        },
        &path,
        None,
        turn,
    )?;
    Ok(EndpointResponse {
        outcome: Outcome::Hit,
        ..EndpointResponse::plain(response)
    })
}

fn window(query: &str) -> Result<Window, RegistryError> {
    let mut window = Window::default();
    for (key, value) in form_urlencoded::parse(query.as_bytes()) {
        match key.as_ref() {
            "n" => window.n = Some(value.parse().map_err(|_| bad_page_size(&value))?),
            "last" => window.last = Some(value.into_owned()),
            _ => {}
        }
    }
    Ok(window)
}

fn bad_page_size(value: &str) -> RegistryError {
    let value: String = value.chars().take(20).collect();
    let message = format!("n={value:?} is not a number of names: use n=100, say, or leave it out");
    RegistryError::new(http::StatusCode::BAD_REQUEST, "UNSUPPORTED", message)
}

/// The JSON of a list, and the turn of its client until the last byte is sent.
struct ListBody {
    json: Vec<u8>,
    _turn: ListTurn,
}

impl AsRef<[u8]> for ListBody {
    fn as_ref(&self) -> &[u8] {
        &self.json
    }
}

/// Returns the response with a page, and the link to the next one.
fn paged(
    page: &Page,
    body: &impl Serialize,
    path: &str,
    ns: Option<&str>,
    turn: ListTurn,
) -> Result<Response, RegistryError> {
    let json = serde_json::to_vec(body).map_err(|error| PullError::unavailable(error.to_string()))?;
    let body = Bytes::from_owner(ListBody { json, _turn: turn });
    let mut response = Response::new(Body::from(body));
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    let Some(next) = &page.next else {
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

    #[test]
    fn invalid_page_size_is_refused() {
        assert!(window("n=-1").is_err());
        assert_eq!(
            window("n=3&last=x").unwrap(),
            Window {
                n: Some(3),
                last: Some("x".into())
            }
        );
    }
}
