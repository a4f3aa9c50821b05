//! A cache with something in it, and a service over it whose upstream gets no request.

use std::sync::Arc;

use futures::StreamExt;
use http::request::Parts;
use http::{HeaderMap, Method, Request, header};
use http_body_util::BodyExt;
use mirror::clock::Clock;
use mirror::config;
use mirror::digest::{Algorithm, Digest, Hashed};
use mirror::health::Health;
use mirror::http::{self as registry, Peer, Service, Settings};
use mirror::metrics::Metrics;
use mirror::name::Repository;
use mirror::pull::{Live, Origin, Pull};
use mirror::store::{self, ImageOrder, ImageRequest, Manifest, Store};
use mirror::upstream::{self, Upstream};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

const MANIFEST: &[u8] = br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json"}"#;

pub(crate) struct Place {
    runtime: Runtime,
    service: Service,
    peer: Peer,
    store: Store,
    repository: Repository,
    pub(crate) digest: Digest,
    pub(crate) blob: Request<()>,
    pub(crate) part: Request<()>,
    pub(crate) head: Request<()>,
    pub(crate) manifest: Request<()>,
    pub(crate) tag: Request<()>,
    _directory: TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let store = runtime
            .block_on(Store::open(directory.path(), options()))
            .unwrap();
        let repository = Repository {
            host: "docker.io".parse().unwrap(),
            name: "library/app".parse().unwrap(),
        };
        let (blob, digest) = runtime.block_on(fill(&store, &repository));
        Self {
            service: service(&store),
            peer: Peer::named("192.0.2.1:4000"),
            blob: request(Method::GET, &format!("blobs/{blob}"), None),
            part: request(Method::GET, &format!("blobs/{blob}"), Some("bytes=1000-1999")),
            head: request(Method::HEAD, &format!("blobs/{blob}"), None),
            manifest: request(Method::GET, &format!("manifests/{digest}"), None),
            tag: request(Method::GET, "manifests/latest", None),
            runtime,
            store,
            repository,
            digest,
            _directory: directory,
        }
    }

    pub(crate) fn ask(&self, request: &Request<()>) {
        self.answer(request.clone().into_parts().0);
    }

    /// Answers this request, to the end of the body.
    pub(crate) fn answer(&self, parts: Parts) {
        let answer = self.service.clone().answer(parts, &self.peer);
        self.runtime.block_on(async {
            let answer = answer.await;
            assert!(answer.status().is_success());
            answer.into_body().collect().await.unwrap();
        });
    }

    /// Returns a cache with this number of images.
    pub(crate) fn with_images(number: usize) -> Self {
        let place = Self::new();
        place.runtime.block_on(add_images(&place.store, number));
        place
    }

    pub(crate) fn list_images(&self) {
        let request = ImageRequest {
            search: String::new(),
            sort: ImageOrder::Pulls,
            limit: 50,
        };
        let page = self.runtime.block_on(self.store.images(request, |_, _| true));
        assert_eq!(page.unwrap().images.len(), 50);
    }

    pub(crate) fn look_up(&self) {
        let found = self.store.manifest(&self.repository, &self.digest);
        assert!(self.runtime.block_on(found).unwrap().is_some());
    }
}

fn options() -> store::StoreOptions {
    store::StoreOptions {
        default_host: "docker.io".parse().unwrap(),
        max_size: Some(config::MaxSize::Bytes(1 << 30)),
        pinned: config::Globs::default(),
        readonly: false,
        clock: Clock::system(),
        metrics: Metrics::new(),
    }
}

/// A blob, and a manifest with a tag.
async fn fill(store: &Store, repository: &Repository) -> (Digest, Digest) {
    let bytes = vec![7; 4096];
    let blob = Digest::compute(Algorithm::Sha256, &bytes);
    let mut staged = store.stage(&repository.host, &blob, Some(4096)).await.unwrap();
    staged.append(&bytes).unwrap();
    staged.commit(std::slice::from_ref(repository)).await.unwrap();
    let manifest = Manifest::new(
        Hashed::compute(Algorithm::Sha256, MANIFEST.into()),
        "application/vnd.oci.image.manifest.v1+json",
    );
    store.put_manifest(repository, &manifest).await.unwrap();
    let (tag, digest) = ("latest".parse().unwrap(), manifest.digest().clone());
    store.put_tag(repository, &tag, &digest).await.unwrap();
    (blob, digest)
}

/// Adds images of a manifest each. Many at once share a write of the index.
async fn add_images(store: &Store, number: usize) {
    let add = async |number: usize| {
        let repository = Repository {
            host: "docker.io".parse().unwrap(),
            name: format!("team/app-{number}").parse().unwrap(),
        };
        let text = format!(r#"{{"schemaVersion":2,"annotations":{{"number":"{number}"}}}}"#);
        let manifest = Manifest::new(
            Hashed::compute(Algorithm::Sha256, text.into_bytes().into()),
            "application/vnd.oci.image.manifest.v1+json",
        );
        store.put_manifest(&repository, &manifest).await.unwrap();
        let tag = "latest".parse().unwrap();
        store.put_tag(&repository, &tag, manifest.digest()).await.unwrap();
    };
    let images = futures::stream::iter(0..number);
    images.for_each_concurrent(256, add).await;
}

fn service(store: &Store) -> Service {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let variables = [
        ("REGISTRY_PROXY_REMOTEURL", "https://registry-1.docker.io"),
        ("REGISTRY_PROXY_CACHE_TAGTTL", "24h"),
    ];
    let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let (config, _) = config::load(None, variables.into_iter()).unwrap();
    let (settings, metrics) = (config.proxy.upstreams[0].clone(), Metrics::new());
    let client = Upstream::with_options(&settings, upstream::Options::default()).unwrap();
    let live = Live {
        upstreams: vec![Origin {
            settings,
            client: Arc::new(client),
        }],
        cache: config.proxy.cache,
    };
    let pull = Pull::new(store.clone(), live, Clock::system(), &metrics);
    let settings = Settings {
        scheme: "http",
        prefix: String::new(),
        headers: HeaderMap::new(),
        access: None,
        access_log: false,
        health: Health::default(),
    };
    registry::service(pull, settings, metrics)
}

fn request(method: Method, what: &str, range: Option<&str>) -> Request<()> {
    let uri = format!("/v2/library/app/{what}");
    let request = Request::builder()
        .method(method)
        .uri(uri)
        .header(header::HOST, "mirror.test");
    let request = match range {
        Some(range) => request.header(header::RANGE, range),
        None => request,
    };
    request.body(()).unwrap()
}
