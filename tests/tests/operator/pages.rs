//! The pages of servers and operator in a browser: they have no violation of accessibility, and their pictures are taken.

use std::net::SocketAddr;
use std::path::PathBuf;

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use crds::conditions::{ConditionType, Reason};
use futures::{StreamExt, stream};
use http::{StatusCode, header};
use k8s_openapi::api::core::v1::Pod;
use operator::admin_server;
use serde_json::json;
use testbed::FakeKubelet;
use testbed::browser::{Browser, View};
use testbed::image::Random;
use testbed::scratch::Scratch;
use testbed::skopeo::{self, Registry};
use testbed::upstream::{self, Upstream};
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::bench::{Bench, soon, with_credentials};
use crate::pods::{address, admin, is_ready, kubelet, pods};

/// The size of the download that runs, and the part of it that arrived, in bytes.
const DOWNLOAD: usize = 10 << 20;
const ARRIVED: usize = 6 << 20;

/// A mirror with images, a download that runs, and an upstream that is down, and a mirror whose spec is rejected.
struct Scene {
    pod: Pod,
    /// `http://ADDRESS` of the operator's port.
    operator: String,
    bench: Bench,
    download: tokio::task::JoinHandle<()>,
    _kubelet: FakeKubelet,
    _upstreams: [Upstream; 2],
    _shutdown: DropGuard,
}

impl Scene {
    async fn start() -> Self {
        let bench = Bench::start("pages").await;
        let kubelet = kubelet(&bench).await;
        let hub = Upstream::start(upstream::Options::default()).await.unwrap();
        let mut quay = Upstream::start(upstream::Options::default()).await.unwrap();
        let upstreams = json!([
            {"host": "docker.io", "remoteURL": hub.url()},
            {"host": "quay.io", "remoteURL": quay.url()},
            {"host": "ghcr.io", "remoteURL": stalling_registry().await},
        ]);
        let spec = json!({"upstreams": upstreams, "storage": {"type": "Ephemeral"}});
        bench.mirror("hub", spec).await;
        bench.mirror("team-a", with_credentials("missing")).await;
        bench
            .until_hub(ConditionType::Ready, "True", Reason::Serving)
            .await;
        let pod = soon("ready Pod", async || {
            pods(&bench).await.into_iter().find(is_ready)
        })
        .await;
        pull_images(&hub, &pod).await;
        quay.go_down();
        let server = format!("http://{}:5000", address(&pod));
        let absent = reqwest::get(format!("{server}/v2/app/manifests/v1?ns=quay.io")).await;
        assert_ne!(absent.unwrap().status(), StatusCode::OK);
        let digest = format!("sha256:{}", "7".repeat(64));
        let blob = format!("{server}/v2/team/tool/blobs/{digest}?ns=ghcr.io");
        let download = tokio::spawn(async move {
            let mut answer = reqwest::get(blob).await.unwrap();
            while let Ok(Some(_)) = answer.chunk().await {}
        });
        soon("running download", async || {
            let fills = admin(&pod, "status/fills").await?;
            fills.contains(&format!("\"bytes\":{ARRIVED}")).then_some(())
        })
        .await;
        let (operator, shutdown) = serve_operator(&bench).await;
        Self {
            pod,
            operator,
            bench,
            download,
            _kubelet: kubelet,
            _upstreams: [hub, quay],
            _shutdown: shutdown,
        }
    }

    /// Returns the pages: name, URL, and the element that a picture shows.
    fn pages(&self) -> [(&'static str, String, &'static str); 4] {
        let server = format!("http://{}:5001/", address(&self.pod));
        let mirror = format!("{}/mirrors/{}/hub", self.operator, self.bench.namespace.name());
        [
            ("server", format!("{server}?refresh=off"), "html"),
            (
                "images",
                format!("{server}?refresh=off&sort=pulls&q=library"),
                "section[aria-labelledby=content]",
            ),
            ("operator", format!("{}/?refresh=off", self.operator), "html"),
            ("mirror", format!("{mirror}?refresh=off"), "html"),
        ]
    }
}

/// Serves the pages of the operator of a bench.
async fn serve_operator(bench: &Bench) -> (String, DropGuard) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let shutdown = CancellationToken::new();
    let health = bench.health();
    tokio::spawn(admin_server::serve(listener, health, shutdown.clone()));
    soon("hit ratio on the page", async || {
        let page = reqwest::get(&url).await.ok()?.text().await.ok()?;
        (page.contains("Last 24 hours") && page.contains(" %")).then_some(())
    })
    .await;
    (url, shutdown.drop_guard())
}

/// Pulls some images through a Pod, the first one most often.
async fn pull_images(hub: &Upstream, pod: &Pod) {
    let scratch = Scratch::new("pages").unwrap();
    let registry = Registry::open(SocketAddr::new(address(pod).parse().unwrap(), 5000));
    for (number, name) in ["nginx:1.27", "redis:7", "python:3.13"].into_iter().enumerate() {
        let (repository, tag) = name.split_once(':').unwrap();
        let layers = [3 << 20, (number + 1) << 20];
        let seed = u64::try_from(number).unwrap();
        let image = scratch.path().join(repository);
        let layout = Random::new(seed, &layers).write(&image, tag).unwrap();
        let name = format!("library/{name}");
        hub.push(&layout, tag, &name).await.unwrap();
        for time in number..3 {
            let into = scratch.path().join(format!("{repository}-{time}"));
            skopeo::pull(&registry, &name, &into).await.unwrap();
        }
    }
}

/// Starts a registry that sends a part of each blob, and then nothing more. Returns its URL.
async fn stalling_registry() -> String {
    async fn answer(request: Request) -> Response {
        if !request.uri().path().contains("/blobs/") {
            return StatusCode::OK.into_response();
        }
        let first = stream::iter([Ok::<_, std::io::Error>(Bytes::from(vec![7; ARRIVED]))]);
        let body = Body::from_stream(first.chain(stream::pending()));
        ([(header::CONTENT_LENGTH, DOWNLOAD)], body).into_response()
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let service = axum::Router::new().fallback(answer);
    tokio::spawn(async move { axum::serve(listener, service).await });
    url
}

/// The pages of the server and of the operator have no violation of accessibility, on a phone and on a desktop, light and
/// dark. With `SCREENSHOTS=DIRECTORY` their pictures are written there.
#[tokio::test]
#[ignore = "needs Chromium and npm: scripts/pages"]
async fn pages_have_no_accessibility_violation() {
    let scene = Scene::start().await;
    let mut browser = Browser::start().await.unwrap();
    let directory = std::env::var_os("SCREENSHOTS").map(PathBuf::from);
    let mut violations = Vec::new();
    for (name, url, element) in scene.pages() {
        for view in View::ALL {
            browser.open(&url, view).await.unwrap();
            let found = browser.violations().await.unwrap();
            violations.extend(
                found
                    .into_iter()
                    .map(|found| format!("{name}, {}: {found}", view.name)),
            );
            if let Some(directory) = &directory {
                let file = directory.join(format!("{name}-{}.png", view.name));
                browser.screenshot(element, &file).await.unwrap();
            }
        }
    }
    browser.close().await.unwrap();
    scene.download.abort();
    assert!(violations.is_empty(), "{violations:#?}");
}

/// A page is loaded again by itself without JavaScript, unless `refresh=off` is in its address.
#[tokio::test]
#[ignore = "needs Chromium and npm: scripts/pages"]
async fn pages_refresh_without_javascript() {
    let scene = Scene::start().await;
    for (name, url, _) in scene.pages() {
        let once = reqwest::get(&url).await.unwrap();
        assert!(once.headers().get(header::REFRESH).is_none(), "{name}");
        let again = reqwest::get(url.replace("refresh=off", "")).await.unwrap();
        assert!(again.headers().contains_key(header::REFRESH), "{name}");
        let text = again.text().await.unwrap();
        assert!(
            !text.contains("<script") && text.contains("refresh=off"),
            "{name}"
        );
    }
    scene.download.abort();
}
