//! The pages of the operator: a row for each mirror, and a page for each, without a script and without anything from
//! elsewhere.

use std::sync::Arc;

use axum::{
    extract::{Path, RawQuery, State},
    http::StatusCode,
    response::{Html, IntoResponse, Response},
};
use crds::RegistryMirror;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use mirror::admin::{PAGE_HEADERS, REFRESH_SECONDS, STYLE, bytes, percent, refresh_header, signed_bytes};

use super::Health;
use crate::{cluster::triggers::StoredMirror, mirror_key::MirrorKey, traffic::Traffic};

/// Answers with the list of the mirrors.
pub(super) async fn list(State(health): State<Health>, RawQuery(query): RawQuery) -> Response {
    let rows: Vec<_> = health
        .metrics
        .mirrors()
        .into_iter()
        .map(|mirror| {
            let traffic = health.metrics.traffic.get(&MirrorKey::from_object(&*mirror));
            (mirror, traffic)
        })
        .collect();
    page("registry-mirror operator", &mirrors(&rows), query.as_deref())
}

/// Answers with the page of a mirror.
pub(super) async fn detail(
    State(health): State<Health>,
    Path((namespace, name)): Path<(String, String)>,
    RawQuery(query): RawQuery,
) -> Response {
    let key = MirrorKey { namespace, name };
    let mirrors = health.metrics.mirrors();
    match mirrors
        .iter()
        .find(|mirror| MirrorKey::from_object(&***mirror) == key)
    {
        Some(mirror) => {
            let traffic = health.metrics.traffic.get(&key);
            page(
                &key.to_string(),
                &html! { (totals(traffic.as_ref())) (conditions(mirror)) },
                query.as_deref(),
            )
        }
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

/// Answers with a page. The browser loads it again by itself unless `refresh=off`.
fn page(title: &str, content: &Markup, query: Option<&str>) -> Response {
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
                footer { p {
                    "Version " (env!("CARGO_PKG_VERSION")) ". The page is loaded again every " (REFRESH_SECONDS) " seconds: "
                    a href="?refresh=off" { "load it once" } ". " a href="/metrics" { "Metrics" }
                } }
            }
        }
    };
    let mut response = (PAGE_HEADERS, Html(page.into_string())).into_response();
    response.headers_mut().extend(refresh_header(query));
    response
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

/// A mirror with its traffic, once a server reported it.
type Row = (Arc<StoredMirror>, Option<Traffic>);

fn mirrors(rows: &[Row]) -> Markup {
    const COLUMNS: [&str; 10] = [
        "Mirror",
        "Ready",
        "Accepted",
        "Upstreams",
        "Storage",
        "Hit ratio",
        "Saved",
        "Cache",
        "Replicas",
        "Version",
    ];
    let reported = rows.iter().filter_map(|(_, traffic)| traffic.as_ref());
    let sum = reported.fold(None, |sum: Option<Traffic>, traffic| {
        let mut sum = sum.unwrap_or_default();
        sum.add(traffic);
        Some(sum)
    });
    html! {
        p { (rows.len()) " mirrors" }
        (totals(sum.as_ref()))
        div .wide tabindex="0" role="region" aria-label="Table of mirrors" { table {
            thead { tr { @for name in COLUMNS { th scope="col" { (name) } } } }
            tbody { @for (mirror, traffic) in rows { (row(mirror, traffic.as_ref())) } }
        } }
    }
}

/// Returns the line of sums; nothing before a server reported.
fn totals(traffic: Option<&Traffic>) -> Markup {
    html! { @if let Some(traffic) = traffic {
        p {
            "Last 24 hours: hit ratio " strong { (hit_ratio(traffic)) }
            ", saved " strong { (signed_bytes(traffic.saved_bytes())) }
            ". Cache used: " strong { (cache(traffic)) } "."
        }
    } }
}

fn hit_ratio(traffic: &Traffic) -> String {
    traffic
        .hit_ratio()
        .map_or_else(|| "no requests".to_owned(), percent)
}

fn cache(traffic: &Traffic) -> String {
    match traffic.limit_bytes {
        0 => bytes(traffic.cache_bytes),
        limit => format!("{} of {}", bytes(traffic.cache_bytes), bytes(limit)),
    }
}

fn row(stored: &StoredMirror, traffic: Option<&Traffic>) -> Markup {
    let MirrorKey { namespace, name } = MirrorKey::from_object(stored);
    let status = readable(stored).and_then(|mirror| mirror.status.as_ref());
    let ready = condition(stored, "Ready");
    html! {
        tr {
            th scope="row" { a href={ "/mirrors/" (namespace) "/" (name) } { (namespace) "/" (name) } }
            td .bad[!ready.starts_with("True")] { (ready) }
            @for kind in ["Accepted", "UpstreamReachable", "StorageReady"] { td { (condition(stored, kind)) } }
            @match traffic {
                Some(traffic) => {
                    td .number { (hit_ratio(traffic)) }
                    td .number { (signed_bytes(traffic.saved_bytes())) }
                    td .number { (cache(traffic)) }
                }
                None => { td {} td {} td {} }
            }
            @match status {
                Some(status) => {
                    td .number { (status.ready_replicas) " of " (status.replicas) }
                    td { (status.known_server_version().unwrap_or_default()) }
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
            mirrors(&[(Arc::clone(&mirror), None)]).into_string(),
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

    /// The page sums the traffic of all mirrors, and says nothing of it before a server reported.
    #[test]
    fn page_sums_the_traffic_of_mirrors() {
        use mirror::admin::{CacheStatus, Status, TrafficStatus};

        let mirror = json!({
            "apiVersion": "registrymirror.io/v1alpha1", "kind": "RegistryMirror",
            "metadata": {"name": "hub", "namespace": "mirrors"},
            "spec": {"upstreams": [{"host": "quay.io"}], "storage": {"type": "Ephemeral"}},
        });
        let mirror = Arc::new(DeserializeGuard(Ok(serde_json::from_value(mirror).unwrap())));
        let mut traffic = Traffic::default();
        traffic.add_server(&Status {
            cache: CacheStatus {
                bytes: 1 << 20,
                limit_bytes: Some(1 << 30),
                ..CacheStatus::default()
            },
            last_day: Some(TrafficStatus {
                hits: 3,
                misses: 1,
                served_bytes: 3 << 20,
                upstream_bytes: 1 << 20,
                ..TrafficStatus::default()
            }),
            ..Status::default()
        });
        let row = |traffic: Option<&Traffic>| (Arc::clone(&mirror), traffic.cloned());
        let page = mirrors(&[row(Some(&traffic)), row(Some(&traffic)), row(None)]).into_string();
        for part in [
            "3 mirrors",
            "<strong>75.0 %</strong>",
            "<strong>4.0 MiB</strong>",
            "<strong>2.0 MiB of 2.0 GiB</strong>",
            "<td class=\"number\">1.0 MiB of 1.0 GiB</td>",
        ] {
            assert!(page.contains(part), "{part}: {page}");
        }
        assert!(!mirrors(&[row(None)]).into_string().contains("Last 24 hours"));
    }
}
