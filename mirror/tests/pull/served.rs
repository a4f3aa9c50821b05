//! A mirror over a store of its own, served on a port of its own.

use std::sync::Arc;
use std::time::Duration;

use ::http::HeaderMap;
use bytes::Bytes;
use mirror::clock::Clock;
use mirror::config::{Cache, Globs, MaxSize, TtlFrom};
use mirror::digest::{Algorithm, Digest};
use mirror::http::connection::{self, ConnectionOptions, Listener};
use mirror::http::{self, Settings};
use mirror::metrics::Metrics;
use mirror::pull::{Live, Origin, Pull};
use mirror::store::{OpenError, Store, StoreOptions};
use mirror::upstream::{self, Upstream};
use reqwest::{Client, RequestBuilder, Response};
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::LIMIT;
use crate::hub::Hub;

#[allow(dead_code, reason = "some fields are held, not read")]
pub(crate) struct Mirror {
    pub(crate) url: String,
    pub(crate) clock: Clock,
    pub(crate) store: Store,
    pub(crate) pull: Arc<Pull>,
    pub(crate) metrics: Metrics,
    client: Client,
    directory: tempfile::TempDir,
    running: DropGuard,
}

/// Returns settings: fresh for five minutes, stale for an hour.
pub(crate) fn cache() -> Cache {
    Cache {
        ttl: Some(Duration::from_hours(168)),
        ttl_from: TtlFrom::LastUse,
        tag_ttl: Duration::from_mins(5),
        stale_if_error: Duration::from_hours(1),
        stale_if_denied: false,
        max_size: None,
        pinned: Globs::default(),
        offline: false,
        readonly: false,
        scrub_period: None,
    }
}

/// Returns the settings for one or more upstreams; the clients lose patience quickly.
pub(crate) fn live(hubs: &[(&Hub, &str)], cache: Cache, clock: &Clock) -> Live {
    let origin = |(hub, host): &(&Hub, &str)| {
        let settings = hub.config_as(host);
        let timeouts = upstream::Timeouts {
            idle: Duration::from_secs(1),
            header: Duration::from_secs(5),
            ..upstream::Timeouts::default()
        };
        let options = upstream::Options {
            clock: clock.clone(),
            timeouts,
            ..upstream::Options::default()
        };
        let client = Arc::new(Upstream::with_options(&settings, options).unwrap());
        Origin { settings, client }
    };
    Live {
        upstreams: hubs.iter().map(origin).collect(),
        cache,
    }
}

impl Mirror {
    /// Starts a mirror of this upstream, as `docker.io`.
    pub(crate) async fn of(hub: &Hub) -> Self {
        Self::with(&[(hub, "docker.io")], cache(), None).await
    }

    /// Starts a mirror of a registry with the image `library/app:1` of one layer.
    pub(crate) async fn with_image() -> (Hub, Self, Digest) {
        let hub = Hub::start().await;
        let (digest, _) = hub.push_image("library/app", "1", &[b"layer"]);
        let mirror = Self::of(&hub).await;
        (hub, mirror, digest)
    }

    pub(crate) async fn with(hubs: &[(&Hub, &str)], cache: Cache, max_size: Option<u64>) -> Self {
        Self::on(
            tempfile::tempdir().unwrap(),
            Clock::system(),
            hubs,
            cache,
            max_size,
        )
        .await
    }

    /// Starts another server on the directory, once this one has released it.
    pub(crate) async fn restarted(self, hubs: &[(&Hub, &str)], max_size: Option<u64>) -> Self {
        self.settled().await;
        let Self {
            directory,
            clock,
            store,
            pull,
            client,
            running,
            ..
        } = self;
        // The new server must not start while these values live.
        drop((store, pull, client, running));
        Self::on(directory, clock, hubs, cache(), max_size).await
    }

    /// Returns the root of the store.
    pub(crate) fn root(&self) -> &std::path::Path {
        self.directory.path()
    }

    async fn on(
        directory: tempfile::TempDir,
        clock: Clock,
        hubs: &[(&Hub, &str)],
        cache: Cache,
        max_size: Option<u64>,
    ) -> Self {
        let metrics = Metrics::new();
        let options = StoreOptions {
            default_host: hubs[0].1.parse().unwrap(),
            // With a limit, so that it does not matter how full this machine's disk is.
            max_size: Some(MaxSize::Bytes(max_size.unwrap_or(1 << 30))),
            pinned: Globs::default(),
            readonly: false,
            clock: clock.clone(),
            metrics: metrics.clone(),
        };
        let opened = async {
            loop {
                match Store::open(directory.path(), options.clone()).await {
                    // The one before may have a connection left.
                    Err(OpenError::Locked(_)) => tokio::time::sleep(Duration::from_millis(5)).await,
                    opened => break opened.unwrap(),
                }
            }
        };
        let store = tokio::time::timeout(LIMIT, opened)
            .await
            .expect("the directory is let go of");
        let pull = Pull::new(store.clone(), live(hubs, cache, &clock), clock.clone(), &metrics);
        let settings = Settings {
            scheme: "http",
            prefix: String::new(),
            headers: HeaderMap::new(),
            access: None,
            access_log: false,
            health: mirror::health::Health::default(),
        };
        let service = http::service(pull.clone(), settings, metrics.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (stop, options) = (
            CancellationToken::new(),
            ConnectionOptions {
                tls: None,
                http2: true,
                drain: Duration::from_secs(1),
                max_connections: 1000,
            },
        );
        tokio::spawn(connection::serve(
            Listener::Tcp(listener),
            service,
            options,
            stop.clone(),
        ));
        let client = Client::builder().no_proxy().timeout(LIMIT).build().unwrap();
        let running = stop.drop_guard();
        Self {
            url,
            clock,
            store,
            pull,
            metrics,
            client,
            directory,
            running,
        }
    }

    pub(crate) fn request(&self, method: &str, path: &str) -> RequestBuilder {
        self.client
            .request(method.parse().unwrap(), format!("{}{path}", self.url))
    }

    pub(crate) async fn get(&self, path: &str) -> Response {
        self.request("GET", path).send().await.unwrap()
    }

    /// Returns the status and the body; `None` where the body was cut short.
    pub(crate) async fn fetch(&self, path: &str) -> (u16, Option<Body>) {
        let response = self.get(path).await;
        (response.status().as_u16(), response.bytes().await.ok().map(Body))
    }

    /// Waits until no fill runs.
    pub(crate) async fn settled(&self) {
        let settle = async {
            while self.metrics.fills_active.get() > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(LIMIT, settle)
            .await
            .expect("a fill never ended");
    }
}

/// Checks the status of an answer, and one header.
#[track_caller]
pub(crate) fn assert_answer(response: &Response, status: u16, name: &str, value: &str) {
    let answer = (response.status().as_u16(), header(response, name));
    assert_eq!(answer, (status, value));
}

pub(crate) fn header<'a>(response: &'a Response, name: &str) -> &'a str {
    response
        .headers()
        .get(name)
        .map_or("", |value| value.to_str().unwrap())
}

pub(crate) async fn json(response: Response) -> serde_json::Value {
    serde_json::from_slice(&response.bytes().await.unwrap()).unwrap()
}

/// A body that a failed assertion shows by its length and digest.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Body(pub(crate) Bytes);

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} bytes, {}",
            self.0.len(),
            Digest::compute(Algorithm::Sha256, &self.0)
        )
    }
}
