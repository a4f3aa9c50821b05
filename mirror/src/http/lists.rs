//! `GET /v2/<name>/tags/list` (distribution-spec, "Listing Tags") and `GET /v2/_catalog`.

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, header};
use serde_json::json;
use url::form_urlencoded;

use super::error::RegistryError;
use super::{Answer, Asked};
use crate::metrics::Outcome;
use crate::pull::{Page, Window};

pub(super) async fn tags(asked: &Asked<'_>, name: &str) -> Result<Answer, RegistryError> {
    let repository = asked.repository(name)?;
    let window = window(asked.query)?;
    let served = asked
        .app
        .pull
        .tags(&repository, &without_ns(asked.query), &window)
        .await?;
    let path = format!("{}/v2/{name}/tags/list", asked.app.settings.prefix);
    let response = paged(
        &served.value,
        &json!({"name": name, "tags": served.value.names}),
        &path,
        asked.ns(),
    );
    Ok(Answer::new(response, served.outcome, repository))
}

pub(super) async fn catalog(asked: &Asked<'_>) -> Result<Answer, RegistryError> {
    let page = asked.app.pull.catalog(&window(asked.query)?).await;
    let path = format!("{}/v2/_catalog", asked.app.settings.prefix);
    let response = paged(&page, &json!({"repositories": page.names}), &path, None);
    Ok(Answer {
        outcome: Outcome::Hit,
        ..Answer::plain(response)
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

/// Upstream gets the query as it came, byte for byte, less what is between the client and us.
fn without_ns(query: &str) -> String {
    let others: Vec<_> = query
        .split('&')
        .filter(|pair| !pair.starts_with("ns=") && *pair != "ns")
        .collect();
    others.join("&")
}

fn paged(page: &Page, body: &serde_json::Value, path: &str, ns: Option<&str>) -> Response {
    let mut response = Json(body).into_response();
    let Some(next) = &page.next else { return response };
    let ns = ns.map(|ns| format!("&ns={ns}")).unwrap_or_default();
    if let Ok(link) = HeaderValue::try_from(format!("<{path}?{next}{ns}>; rel=\"next\"")) {
        response.headers_mut().insert(header::LINK, link);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    #[test_case("ns=docker.io", ""; "alone")]
    #[test_case("n=2&ns=docker.io&last=a%2Fb", "n=2&last=a%2Fb"; "among others")]
    #[test_case("nsx=1", "nsx=1"; "another key")]
    fn the_query_passes_but_for_ns(query: &str, expected: &str) {
        assert_eq!(without_ns(query), expected);
    }

    #[test]
    fn a_page_size_that_is_no_number_is_refused() {
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
