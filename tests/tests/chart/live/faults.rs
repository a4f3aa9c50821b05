//! A registry with the faults that alerts are about.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;

/// The size of each blob.
const SIZE: usize = 96 * 1024;
const MANIFEST: &str = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json"}"#;

/// The rate limit that the registry reports.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum RateLimited {
    /// Nearly none is left.
    Nearly,
    /// Nearly all is left.
    No,
}

/// A registry on a free port with one tag `app:v1` and any number of blobs.
#[derive(Clone)]
pub(super) struct Registry {
    pub(super) address: SocketAddr,
    is_limited: Arc<AtomicBool>,
    blobs: Arc<AtomicUsize>,
}

/// Returns the bytes of a blob by its number.
fn content(number: usize) -> Vec<u8> {
    let mut bytes = vec![0; SIZE];
    bytes[..8].copy_from_slice(&(number as u64).to_le_bytes());
    bytes
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

impl Registry {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let registry = Self {
            address: listener.local_addr().unwrap(),
            is_limited: Arc::default(),
            blobs: Arc::default(),
        };
        registry.clone().serve(listener);
        registry
    }

    /// Serves the same content on another listener.
    pub(super) fn serve(self, listener: TcpListener) {
        let router = Router::new()
            .route("/v2/", get(async || "{}"))
            .route("/v2/app/manifests/{tag}", get(manifest))
            .route("/v2/app/blobs/{digest}", get(blob))
            .with_state(self);
        tokio::spawn(async move { axum::serve(listener, router).await });
    }

    pub(super) fn set(&self, limited: RateLimited) {
        self.is_limited
            .store(limited == RateLimited::Nearly, Ordering::Relaxed);
    }

    /// Adds a blob and returns its digest.
    pub(super) fn add_blob(&self) -> String {
        digest(&content(self.blobs.fetch_add(1, Ordering::Relaxed)))
    }

    /// Returns a digest for which the registry sends other bytes.
    pub(super) fn wrong_digest(&self) -> String {
        let number = self.blobs.load(Ordering::Relaxed);
        format!("sha256:{:0<56}{number:08x}", "bad")
    }

    /// Returns a digest that the registry does not have.
    pub(super) fn missing_digest(&self) -> String {
        let number = self.blobs.load(Ordering::Relaxed);
        format!("sha256:{:0<56}{number:08x}", "dead")
    }
}

async fn manifest(State(registry): State<Registry>, Path(tag): Path<String>) -> Response {
    let remaining = if registry.is_limited.load(Ordering::Relaxed) {
        "5;w=60"
    } else {
        "90;w=60"
    };
    let headers = [
        ("content-type", "application/vnd.oci.image.manifest.v1+json"),
        ("ratelimit-limit", "100;w=60"),
        ("ratelimit-remaining", remaining),
        ("ratelimit-reset", "60"),
    ];
    if tag == "v1" || tag == digest(MANIFEST.as_bytes()) {
        (headers, MANIFEST).into_response()
    } else {
        // A 404 without an error of the specification is a wrong address of the registry.
        let error = axum::Json(serde_json::json!({"errors": [{"code": "MANIFEST_UNKNOWN"}]}));
        (StatusCode::NOT_FOUND, [headers[1], headers[2], headers[3]], error).into_response()
    }
}

async fn blob(State(registry): State<Registry>, Path(wanted): Path<String>, _: HeaderMap) -> Response {
    if wanted.starts_with("sha256:bad") {
        return Body::from(vec![7; SIZE]).into_response();
    }
    let newest = registry.blobs.load(Ordering::Relaxed);
    let mut all = (newest.saturating_sub(20)..newest).rev().map(content);
    match all.find(|bytes| digest(bytes) == wanted) {
        Some(bytes) => bytes.into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}
