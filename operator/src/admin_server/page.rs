//! The pages of the operator: a row for each mirror, and a page for each, without a script and without anything from
//! elsewhere.

use std::sync::Arc;

use axum::{
    extract::{Path, State},
    http::StatusCode,
    response::{Html, IntoResponse, Response},
};
use crds::RegistryMirror;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use mirror::admin::{PAGE_HEADERS, STYLE};

use super::Health;
use crate::{cluster::triggers::StoredMirror, mirror_key::MirrorKey};

/// Answers with the list of the mirrors.
pub(super) async fn list(State(health): State<Health>) -> Response {
    page("registry-mirror operator", &mirrors(&health.metrics.mirrors()))
}

/// Answers with the page of a mirror.
pub(super) async fn detail(
    State(health): State<Health>,
    Path((namespace, name)): Path<(String, String)>,
) -> Response {
    let key = MirrorKey { namespace, name };
    let mirrors = health.metrics.mirrors();
    match mirrors
        .iter()
        .find(|mirror| MirrorKey::from_object(&***mirror) == key)
    {
        Some(mirror) => page(&key.to_string(), &conditions(mirror)),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

fn page(title: &str, content: &Markup) -> Response {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header { h1 { (title) } }
                main { (content) }
                footer { p { "Version " (env!("CARGO_PKG_VERSION")) ". " a href="/metrics" { "Metrics" } } }
            }
        }
    };
    (PAGE_HEADERS, Html(page.into_string())).into_response()
}

/// Returns a readable mirror.
fn readable(stored: &StoredMirror) -> Option<&RegistryMirror> {
    stored.0.as_ref().ok()
}

/// Returns the status and the reason of a condition.
fn condition(stored: &StoredMirror, kind: &str) -> String {
    let status = readable(stored).and_then(|mirror| mirror.status.as_ref());
    let found = status.and_then(|status| status.conditions.iter().find(|condition| condition.type_ == kind));
    found.map_or_else(
        || "unknown".to_owned(),
        |found| format!("{}: {}", found.status, found.reason),
    )
}

fn mirrors(mirrors: &[Arc<StoredMirror>]) -> Markup {
    html! {
        p { (mirrors.len()) " mirrors" }
        div .wide tabindex="0" role="region" aria-label="Table of mirrors" { table {
            thead { tr { @for name in ["Mirror", "Ready", "Accepted", "Upstreams", "Storage", "Replicas", "Version"] {
                th scope="col" { (name) }
            } } }
            tbody { @for mirror in mirrors { (row(mirror)) } }
        } }
    }
}

fn row(stored: &StoredMirror) -> Markup {
    let MirrorKey { namespace, name } = MirrorKey::from_object(stored);
    let status = readable(stored).and_then(|mirror| mirror.status.as_ref());
    let ready = condition(stored, "Ready");
    html! {
        tr {
            th scope="row" { a href={ "/mirrors/" (namespace) "/" (name) } { (namespace) "/" (name) } }
            td .bad[!ready.starts_with("True")] { (ready) }
            @for kind in ["Accepted", "UpstreamReachable", "StorageReady"] { td { (condition(stored, kind)) } }
            @match status {
                Some(status) => {
                    td .number { (status.ready_replicas) " of " (status.replicas) }
                    td { (status.server_version.as_deref().unwrap_or_default()) }
                }
                None => { td {} td {} }
            }
        }
    }
}

fn conditions(stored: &StoredMirror) -> Markup {
    let Some(mirror) = readable(stored) else {
        return html! { p .bad { "The stored object is not readable: correct its spec." } };
    };
    let status = mirror.status.clone().unwrap_or_default();
    html! {
        @if let Some(endpoint) = &status.endpoint { p { "Nodes pull from " code { (endpoint.url) } } }
        h2 #conditions { "Conditions" }
        div .wide tabindex="0" role="region" aria-label="Table of conditions" { table {
            thead { tr { @for name in ["Condition", "Status", "Reason", "Message"] { th scope="col" { (name) } } } }
            tbody { @for condition in &status.conditions {
                tr {
                    th scope="row" { (condition.type_) }
                    td { (condition.status) }
                    td { (condition.reason) }
                    td { bdi { (condition.message) } }
                }
            } }
        } }
        h2 #upstreams { "Upstreams" }
        div .wide tabindex="0" role="region" aria-label="Table of upstreams" { table {
            thead { tr { @for name in ["Upstream", "State"] { th scope="col" { (name) } } } }
            tbody { @for upstream in &status.upstreams {
                tr { th scope="row" { bdi { (upstream.host) } } td { (format!("{:?}", upstream.state)) } }
            } }
        } }
        p { a href="/" { "All mirrors" } }
    }
}

#[cfg(test)]
mod tests {
    use kube::core::DeserializeGuard;
    use serde_json::json;

    use super::*;

    /// Names and messages are text and no markup; the row leads to the page of the mirror.
    #[test]
    fn page_of_a_mirror_is_escaped() {
        const HOSTILE: &str = "<script>alert(1)</script>\"'";
        let mirror = json!({
            "apiVersion": "registrymirror.io/v1alpha1", "kind": "RegistryMirror",
            "metadata": {"name": "hub", "namespace": "mirrors"},
            "spec": {"upstreams": [{"host": "quay.io"}], "storage": {"type": "Ephemeral"}},
            "status": {
                "serverVersion": HOSTILE, "upstreams": [{"host": HOSTILE, "state": "Unreachable"}],
                "conditions": [{
                    "type": "Ready", "status": "False", "reason": HOSTILE, "message": HOSTILE,
                    "lastTransitionTime": "2026-01-01T00:00:00Z",
                }],
            },
        });
        let mirror = Arc::new(DeserializeGuard(Ok(serde_json::from_value(mirror).unwrap())));
        let (list, detail) = (
            mirrors(std::slice::from_ref(&mirror)).into_string(),
            conditions(&mirror).into_string(),
        );
        assert!(list.contains("href=\"/mirrors/mirrors/hub\""), "{list}");
        for page in [list, detail] {
            assert!(
                page.contains("&lt;script&gt;") && !page.contains("<script"),
                "{page}"
            );
        }
    }
}
