//! The answer table, row by row: what upstream says, and what a client gets with a tag cached, with its digest
//! cached, and with nothing cached.

use std::time::Duration;

use http::StatusCode;

use crate::hub::{Fault, Gate, Hub};
use crate::served::{Mirror, header, json as body_of};

/// The response to a client: a status, and its cache outcome or error code.
type Got = (u16, &'static str);

struct Row {
    upstream: &'static str,
    says: Fault,
    by_tag: Got,
    nothing: Got,
    /// `Retry-After` in seconds, at least and at most; where there is one.
    wait: Option<(u64, u64)>,
}

const fn row(
    upstream: &'static str,
    says: Fault,
    by_tag: Got,
    nothing: Got,
    wait: Option<(u64, u64)>,
) -> Row {
    Row {
        upstream,
        says,
        by_tag,
        nothing,
        wait,
    }
}

fn rows() -> Vec<Row> {
    const STALE: Got = (200, "STALE");
    const LATER: Got = (503, "TOOMANYREQUESTS");
    const LIMITED: Got = (429, "TOOMANYREQUESTS");
    const DENIED: Got = (403, "DENIED");
    let (gone, no_name) = ((404, "MANIFEST_UNKNOWN"), (404, "NAME_UNKNOWN"));
    let soon = Some((1, 10));
    // A minute from then: the clock is moved by six first.
    let date = httpdate::fmt_http_date(std::time::SystemTime::now() + Duration::from_mins(7));
    vec![
        row(
            "a 404 in a registry's words",
            Fault::error(404, "MANIFEST_UNKNOWN"),
            gone,
            gone,
            None,
        ),
        row(
            "an unknown name",
            Fault::error(404, "NAME_UNKNOWN"),
            no_name,
            no_name,
            None,
        ),
        row("an ingress' page", Fault::html(404), STALE, LATER, soon),
        row(
            "a 404 with a code of its own",
            Fault::error(404, "TAG_EXPIRED"),
            gone,
            gone,
            None,
        ),
        row(
            "a 410 in a registry's words",
            Fault::error(410, "GONE"),
            gone,
            gone,
            None,
        ),
        row(
            "a 404 in other JSON",
            Fault::Answer(
                StatusCode::NOT_FOUND,
                Vec::new(),
                r#"{"message":"no route"}"#.into(),
            ),
            STALE,
            LATER,
            soon,
        ),
        row("401", Fault::status(401), DENIED, DENIED, None),
        row("403", Fault::error(403, "DENIED"), DENIED, DENIED, None),
        row("403 with a page", Fault::html(403), STALE, DENIED, None),
        row("429 without a time", Fault::limited(None), STALE, LIMITED, soon),
        row(
            "429 with seconds",
            Fault::limited(Some("7")),
            STALE,
            LIMITED,
            Some((5, 7)),
        ),
        row(
            "429 with a date",
            Fault::limited(Some(&date)),
            STALE,
            LIMITED,
            Some((40, 61)),
        ),
        row("500", Fault::status(500), STALE, LATER, soon),
        row("502 with a page", Fault::html(502), STALE, LATER, soon),
        row("503", Fault::status(503), STALE, LATER, soon),
        row("a connection that ends", Fault::Reset, STALE, LATER, soon),
        row("nothing in time", Fault::Hold(Gate::shut()), STALE, LATER, soon),
    ]
}

/// Returns the status, and `X-Cache` or the error's code.
async fn got(mirror: &Mirror, path: &str) -> (u16, String, Option<u64>) {
    let answer = mirror.get(path).await;
    assert!(!answer.headers().contains_key("www-authenticate"));
    let status = answer.status().as_u16();
    let cache = header(&answer, "x-cache").to_owned();
    assert_eq!(
        cache == "STALE",
        header(&answer, "warning").starts_with("299 - \"")
    );
    let wait = header(&answer, "retry-after").parse().ok();
    if status == 200 {
        return (status, cache, wait);
    }
    let code = body_of(answer).await["errors"][0]["code"]
        .as_str()
        .unwrap()
        .to_owned();
    (status, code, wait)
}

#[tokio::test]
async fn upstream_answers_map_to_client_answers_row_by_row() {
    futures::future::join_all(rows().into_iter().map(holds)).await;
}

async fn holds(row: Row) {
    let name = row.upstream;
    let hub = Hub::start().await;
    let (digest, layers) = hub.push_image("library/app", "1", &[b"layer"]);
    let mirror = Mirror::of(&hub).await;
    let blob = format!("/v2/app/blobs/{}", layers[0]);
    mirror.get("/v2/app/manifests/1").await;
    mirror.fetch(&blob).await;
    mirror.settled().await;
    mirror.clock.advance(Duration::from_mins(6));
    hub.always("* /v2/", row.says.clone());
    let (status, what, _) = got(&mirror, "/v2/app/manifests/1").await;
    assert_eq!((status, what.as_str()), row.by_tag, "{name}: by tag, cached");
    for by_digest in [format!("/v2/app/manifests/{digest}"), blob] {
        let (status, what, _) = got(&mirror, &by_digest).await;
        // A refusal of the tag is one of the repository.
        let expected = if row.by_tag.0 == 403 {
            row.by_tag
        } else {
            (200, "HIT")
        };
        assert_eq!((status, what.as_str()), expected, "{name}: {by_digest}, cached");
    }
    let (status, what, wait) = got(&mirror, "/v2/other/manifests/1").await;
    assert_eq!((status, what.as_str()), row.nothing, "{name}: nothing cached");
    let within = |(least, most)| wait.is_some_and(|wait| (least..=most).contains(&wait));
    assert!(
        row.wait.map_or(wait.is_none(), within),
        "{name}: Retry-After {wait:?}"
    );
}
