//! The page at `/` of the admin port: HTML without a script and without anything from elsewhere.

use std::collections::BTreeMap;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::content::{ContentReport, ContentRequest, FillStatus, ImageStatus};
use super::history::{HistoryReport, Period};
use super::numbers::{bytes, duration, from_now, percent, saved_bytes, signed_bytes};
use super::{Status, UpstreamStatus};
use crate::metrics::Totals;

/// The style sheet of the pages of server and operator. The colours have a contrast of at least 4.5 to 1 (WCAG 2.2, 1.4.3).
pub const STYLE: &str = include_str!("page.css");
/// The time after which a browser loads the page again, in seconds.
pub const REFRESH_SECONDS: &str = "15";
/// The orders of images: parameter, name of the column.
const SORTS: [(&str, &str); 5] = [
    ("used", "last use"),
    ("name", "name"),
    ("size", "size"),
    ("pulls", "pulls"),
    ("validated", "last validation"),
];

/// The data of the page.
pub(super) struct PageContent {
    pub(super) status: Status,
    /// The reason why the server is not ready.
    pub(super) not_ready: Option<String>,
    pub(super) upstreams: BTreeMap<String, Totals>,
    pub(super) history: HistoryReport,
    pub(super) fills: Vec<FillStatus>,
    /// The cached images, or the reason why they are not listed.
    pub(super) content: Result<ContentReport, String>,
    pub(super) parameters: ContentRequest,
}

/// Renders the page.
pub(super) fn render(data: &PageContent) -> String {
    let (status, state) = (&data.status, state(data));
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { "registry-mirror: " (state) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header {
                    h1 { "registry-mirror" }
                    p { strong { (state) } ", version " (status.version) ", up for " (duration(status.uptime_seconds)) }
                    @if let Some(reason) = &data.not_ready { p .bad { (text(reason)) } }
                    @for error in [&status.configuration_error, &status.users_error] {
                        @if !error.is_empty() { p .bad { (text(error)) } }
                    }
                }
                main {
                    (savings(&data.history))
                    (cache(status))
                    (upstreams(data))
                    (downloads(&data.fills))
                    (content(data))
                    (usage(status))
                }
                footer { p {
                    "The page is loaded again every " (REFRESH_SECONDS) " seconds: "
                    a href="?refresh=off" { "load it once" } ". The same as JSON: "
                    @for path in ["status", "status/history", "status/fills", "status/content"] {
                        a href=(path) { "/" (path) } " "
                    }
                } }
            }
        }
    };
    page.into_string()
}

fn state(data: &PageContent) -> &'static str {
    match (data.status.draining, &data.not_ready) {
        (true, _) => "stopping",
        (false, Some(_)) => "not ready",
        (false, None) => "ready",
    }
}

/// Isolates a text from elsewhere, whose direction of writing must not reorder the page.
fn text(text: &str) -> Markup {
    html! { bdi { (text) } }
}

fn savings(history: &HistoryReport) -> Markup {
    let column = |value: fn(&Period) -> String| history.periods.iter().map(value).collect::<Vec<_>>();
    let rows = [
        (
            "Hit ratio",
            column(|period| period.hit_ratio.map_or_else(|| "no requests".to_owned(), percent)),
        ),
        ("Hits", column(|period| period.hits.to_string())),
        ("Misses", column(|period| period.misses.to_string())),
        ("Errors", column(|period| period.errors.to_string())),
        ("To clients", column(|period| bytes(period.served_bytes))),
        ("From upstreams", column(|period| bytes(period.upstream_bytes))),
        ("Saved", column(|period| signed_bytes(period.saved_bytes))),
        (
            "First byte, p99",
            column(|period| {
                period
                    .p99_seconds
                    .map_or_else(|| "unknown".to_owned(), |p99| format!("≤ {p99} s"))
            }),
        ),
    ];
    html! {
        section aria-labelledby="savings" {
            h2 #savings { "Savings" }
            table {
                thead { tr {
                    td {}
                    @for period in &history.periods { th scope="col" { "last " (duration(period.seconds)) } }
                } }
                tbody { @for (name, values) in &rows {
                    tr { th scope="row" { (name) } @for value in values { td .number { (value) } } }
                } }
            }
        }
    }
}

fn cache(status: &Status) -> Markup {
    let cache = &status.cache;
    html! {
        section aria-labelledby="cache" {
            h2 #cache { "Cache" }
            p {
                (bytes(cache.bytes))
                @if let Some(limit) = cache.limit_bytes {
                    " of " (bytes(limit)) " "
                    meter aria-label="Use of the cache" min="0" max=(limit) value=(cache.bytes) {}
                }
                ", " (cache.blobs) " blobs and manifests"
                @if let Some(oldest) = &cache.oldest_use { ", the oldest used " (from_now(oldest)) }
            }
            @if cache.full { p .bad { "The cache is full: content passes through without being stored." } }
        }
    }
}

fn upstreams(data: &PageContent) -> Markup {
    html! {
        section aria-labelledby="upstreams" {
            h2 #upstreams { "Upstreams" }
            div .wide tabindex="0" role="region" aria-label="Table of upstreams" { table {
                thead { tr { @for name in
                    [
                        "Upstream", "State", "Last error", "Rate limit", "Credential", "Hits", "Misses", "To clients",
                        "From upstream", "Saved",
                    ]
                    { th scope="col" { (name) } }
                } }
                tbody { @for upstream in &data.status.upstreams {
                    (upstream_row(upstream, &data.upstreams.get(&upstream.host).cloned().unwrap_or_default()))
                } }
            } }
        }
    }
}

fn upstream_row(upstream: &UpstreamStatus, totals: &Totals) -> Markup {
    let is_bad = upstream.state == "Unreachable" || upstream.state == "RateLimited";
    let limit = match (upstream.rate_limit_remaining, upstream.rate_limit) {
        (Some(remaining), Some(limit)) => format!("{remaining} of {limit}"),
        (Some(remaining), None) => remaining.to_string(),
        (None, _) => "none reported".to_owned(),
    };
    html! {
        tr {
            th scope="row" { (text(&upstream.host)) }
            td .bad[is_bad] {
                (upstream.state)
                @if let Some(next) = &upstream.next_try { ", next try " (from_now(next)) }
            }
            td { @if let (Some(error), Some(time)) = (&upstream.last_error, &upstream.last_error_time) {
                (from_now(time)) ": " (text(error))
            } }
            td {
                (limit)
                @if let Some(reset) = &upstream.rate_limit_reset { ", reset " (from_now(reset)) }
            }
            td {
                (format!("{:?}", upstream.credentials.state))
                @if !upstream.credentials.message.is_empty() { ": " (text(&upstream.credentials.message)) }
            }
            td .number { (totals.hits) }
            td .number { (totals.misses) }
            td .number { (bytes(totals.served)) }
            td .number { (bytes(totals.received)) }
            td .number { (signed_bytes(saved_bytes(totals.served, totals.received))) }
        }
    }
}

fn downloads(fills: &[FillStatus]) -> Markup {
    html! {
        section aria-labelledby="downloads" {
            h2 #downloads { "Downloads now" }
            @if fills.is_empty() { p { "None." } } @else {
                div .wide tabindex="0" role="region" aria-label="Table of downloads" { table {
                    thead { tr { @for name in ["Repository", "Blob", "Progress", "Rate", "Clients"] {
                        th scope="col" { (name) }
                    } } }
                    tbody { @for fill in fills {
                        tr {
                            th scope="row" { (text(&fill.repository)) }
                            td { code { (short(&fill.digest)) } }
                            td {
                                (bytes(fill.bytes))
                                @if let Some(size) = fill.size {
                                    " of " (bytes(size)) " "
                                    progress aria-label={ "Download of " (short(&fill.digest)) } max=(size) value=(fill.bytes) {}
                                }
                            }
                            td .number { (bytes(fill.bytes_per_second)) "/s" }
                            td .number { (fill.clients) }
                        }
                    } }
                } }
            }
        }
    }
}

fn content(data: &PageContent) -> Markup {
    let parameters = &data.parameters;
    let (search, sort) = (
        parameters.q.as_deref().unwrap_or_default(),
        parameters.sort.as_deref().unwrap_or("used"),
    );
    html! {
        section aria-labelledby="content" {
            h2 #content { "Images" }
            form method="get" {
                label { "Name contains " input type="search" name="q" maxlength="255" value=(search); }
                " "
                label { "Order " select name="sort" {
                    @for (value, name) in SORTS { option value=(value) selected[value == sort] { (name) } }
                } }
                " "
                button { "Show" }
            }
            @match &data.content {
                Err(reason) => p .bad { (text(reason)) },
                Ok(report) => {
                    p { (report.images.len()) " of " (report.matching) " images with this name, " (report.total) " in all" }
                    (images(&report.images))
                }
            }
        }
    }
}

fn images(images: &[ImageStatus]) -> Markup {
    html! {
        div .wide tabindex="0" role="region" aria-label="Table of images" { table {
            thead { tr { @for name in ["Image", "Digest", "Platforms", "Size", "Pulls", "Last use", "Last validation", "Pinned"] {
                th scope="col" { (name) }
            } } }
            tbody { @for image in images {
                tr {
                    th scope="row" { (text(&image.name)) }
                    td { code { (short(&image.digest)) } }
                    td { (text(&image.platforms.join(", "))) }
                    td .number { (bytes(image.bytes)) }
                    td .number { (image.pulls) }
                    td { (from_now(&image.last_used)) }
                    td { (from_now(&image.validated)) }
                    td { (if image.pinned { "yes" } else { "no" }) }
                }
            } }
        } }
    }
}

fn usage(status: &Status) -> Markup {
    html! {
        section aria-labelledby="usage" {
            h2 #usage { "Pull through this mirror" }
            p { "With MIRROR as the address of the registry port:" }
            pre tabindex="0" role="region" aria-label="Commands" { code { @for (number, upstream) in status.upstreams.iter().enumerate() {
                "docker pull MIRROR/" @if number > 0 { (upstream.host) "/" } "REPOSITORY:TAG   # " (upstream.host) "\n"
            } } }
        }
    }
}

/// Returns the first characters of a digest.
fn short(digest: &str) -> &str {
    digest.get(..19).unwrap_or(digest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credentials::Report;

    fn data() -> PageContent {
        PageContent {
            status: Status::default(),
            not_ready: None,
            upstreams: BTreeMap::new(),
            history: HistoryReport::default(),
            fills: Vec::new(),
            content: Ok(ContentReport::default()),
            parameters: ContentRequest::default(),
        }
    }

    /// Names and messages from elsewhere are text and no markup.
    #[test]
    fn hostile_texts_are_escaped() {
        const HOSTILE: &str = r#"</bdi><script>alert(1)</script>"><img src=x onerror='a'>"#;
        let hostile = || HOSTILE.to_owned();
        let mut data = data();
        data.not_ready = Some(hostile());
        data.status.configuration_error = hostile();
        data.status.version = hostile();
        data.status.upstreams = vec![UpstreamStatus {
            host: hostile(),
            state: hostile(),
            rate_limit_reset: Some(hostile()),
            last_error: Some(hostile()),
            last_error_time: Some(hostile()),
            next_try: Some(hostile()),
            credentials: Report {
                message: hostile(),
                ..Report::default()
            },
            ..UpstreamStatus::default()
        }];
        data.fills = vec![FillStatus {
            repository: hostile(),
            digest: hostile(),
            size: Some(1),
            ..FillStatus::default()
        }];
        let image = ImageStatus {
            name: hostile(),
            digest: hostile(),
            platforms: vec![hostile()],
            ..ImageStatus::default()
        };
        data.content = Ok(ContentReport {
            images: vec![image],
            ..ContentReport::default()
        });
        data.parameters = ContentRequest {
            q: Some(hostile()),
            sort: Some(hostile()),
            n: None,
        };
        let page = render(&data);
        assert!(!page.contains("<script") && !page.contains("<img"), "{page}");
        assert!(page.matches("&lt;script&gt;").count() >= 9, "{page}");
        data.content = Err(hostile());
        assert!(!render(&data).contains("<script"));
    }

    /// The page has its sections, a language, a title, and labels for its inputs.
    #[test]
    fn page_has_its_sections() {
        let page = render(&data());
        for part in [
            "<html lang=\"en\">",
            "<title>registry-mirror: ready</title>",
            "Savings",
            "Cache",
            "Upstreams",
            "Downloads now",
            "Images",
            "Pull through this mirror",
            "prefers-color-scheme: dark",
        ] {
            assert!(page.contains(part), "{part}: {page}");
        }
        assert!(
            !page.contains("src=") && !page.contains("http://") && !page.contains("https://"),
            "{page}"
        );
    }
}
