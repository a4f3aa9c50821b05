//! A registry, a bucket, and mirrors of the one in front of the other.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::Method;
use mirror::config;
use mirror::server::Server;
use sha2::{Digest as _, Sha256};
use testbed::bucket::{BUCKET, ObjectStore, Seen};
use testbed::image::{Layout, Random};
use testbed::process::free_ports;
use testbed::scratch::Scratch;
use testbed::skopeo::{self, Registry};
use testbed::upstream::{Options, Upstream};
use testbed::wait;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(crate) const LIMIT: Duration = Duration::from_mins(1);
pub(crate) const NAME: &str = "library/app:1";
/// One layer is uploaded in parts.
pub(crate) const LAYERS: [usize; 3] = [20_000_000, 300_000, 10];

/// A registry with one image, and a bucket.
pub(crate) struct Place {
    pub(crate) upstream: Upstream,
    pub(crate) store: ObjectStore,
    pub(crate) image: Layout,
    pub(crate) scratch: Scratch,
}

/// A running mirror.
pub(crate) struct Mirror {
    pub(crate) address: SocketAddr,
    pub(crate) admin: String,
    stop: CancellationToken,
    running: JoinHandle<Result<(), mirror::server::Error>>,
}

impl Place {
    pub(crate) async fn new(layers: &[usize]) -> Self {
        let scratch = Scratch::new("bucket").expect("a directory");
        let upstream = Upstream::start(Options::default()).await.expect("an upstream");
        let image = Random::new(7, layers)
            .write(&scratch.path().join("made"), "1")
            .expect("an image");
        upstream.push(&image, "1", NAME).await.expect("a push");
        let store = ObjectStore::start().await.expect("an object store");
        Self {
            upstream,
            store,
            image,
            scratch,
        }
    }

    /// Returns the configuration of a mirror with a local tier of this name.
    pub(crate) fn configuration(&self, tier: &str, keys: &str, proxy: &str) -> PathBuf {
        let yaml = format!(
            "version: 0.1\n\
             storage: {{filesystem: {{rootdirectory: '{}'}}, s3: {{{keys}}}}}\n\
             http: {{addr: '127.0.0.1:0', debug: {{addr: '127.0.0.1:0'}}}}\n\
             proxy: {{remoteurl: '{}', {proxy}}}\n",
            self.scratch.path().join(tier).display(),
            self.upstream.url(),
        );
        self.scratch.write(&format!("{tier}.yml"), yaml).expect("a file")
    }

    /// Starts mirrors that are replicas of each other.
    pub(crate) async fn replicas<const N: usize>(&self, keys: &str, proxy: &str) -> [Mirror; N] {
        let ports: [u16; N] = free_ports().expect("ports");
        let addresses = ports.map(|port| format!("127.0.0.1:{port}"));
        let secret = self
            .scratch
            .write("secret", "0123456789abcdef\n")
            .expect("a file");
        let mut mirrors = Vec::new();
        for (number, address) in addresses.iter().enumerate() {
            let path = self.configuration(&format!("replica-{number}"), keys, proxy);
            let peers = format!(
                "peers: {{addr: '{address}', addresses: [{}], secretfile: '{}'}}\n",
                addresses.each_ref().map(|one| format!("'{one}'")).join(", "),
                secret.display()
            );
            let text = std::fs::read_to_string(&path).expect("a file");
            std::fs::write(&path, text + &peers).expect("a file");
            mirrors.push(Mirror::start(&path).await);
        }
        mirrors.try_into().ok().expect("as many mirrors as ports")
    }

    /// Starts a mirror with a local tier of this name.
    pub(crate) async fn mirror(&self, tier: &str) -> Mirror {
        self.mirror_with(tier, &self.store.keys(), "cache: {maxsize: 1Gi}")
            .await
    }

    pub(crate) async fn mirror_with(&self, tier: &str, keys: &str, proxy: &str) -> Mirror {
        Mirror::start(&self.configuration(tier, keys, proxy)).await
    }

    /// Pulls the image, and checks that it is the one that was pushed.
    pub(crate) async fn pull(&self, mirror: &Mirror, into: &str) {
        mirror.pull(NAME, &self.scratch.path().join(into)).await;
        let pulled = Layout::open(&self.scratch.path().join(into)).expect("a layout");
        assert_eq!(pulled.digest("1"), self.image.digest("1"));
    }

    /// Returns the requests that match.
    pub(crate) fn requests(&self, matches: impl Fn(&Seen) -> bool) -> Vec<Seen> {
        self.store
            .seen()
            .into_iter()
            .filter(|seen| matches(seen))
            .collect()
    }

    /// Returns the numbers of GET of content, HEAD and LIST.
    pub(crate) fn reads(&self) -> (usize, usize, usize) {
        let content = self.requests(|seen| seen.method == Method::GET && seen.path.ends_with("/data"));
        let heads = self.requests(|seen| seen.method == Method::HEAD);
        let bucket = format!("/{BUCKET}");
        let lists = self.requests(|seen| {
            seen.method == Method::GET
                && (seen.query.contains("list-type") || seen.path.trim_end_matches('/') == bucket)
        });
        (content.len(), heads.len(), lists.len())
    }

    /// Fails where an object of content does not match its digest; returns the number of them.
    pub(crate) fn check_objects(&self) -> usize {
        let mut files = vec![self.store.objects()];
        let mut checked = 0;
        while let Some(path) = files.pop() {
            if path.is_dir() {
                let entries = std::fs::read_dir(&path).expect("a directory");
                files.extend(entries.map(|entry| entry.expect("an entry").path()));
            } else if path.ends_with("data") {
                let bytes = std::fs::read(&path).expect("an object");
                let digest = path.parent().and_then(Path::file_name).expect("a digest");
                assert_eq!(
                    hex::encode(Sha256::digest(&bytes)),
                    digest.to_string_lossy(),
                    "{}",
                    path.display()
                );
                checked += 1;
            }
        }
        checked
    }
}

impl Mirror {
    pub(crate) async fn start(configuration: &Path) -> Self {
        let (config, _) = config::load(Some(configuration), std::iter::empty()).expect("a configuration");
        let server = Server::start(config).await.expect("a mirror");
        let address = server.address().parse().expect("an address");
        let admin = server.admin_address().expect("an admin port");
        let stop = CancellationToken::new();
        let running = tokio::spawn(server.run(stop.clone()));
        Self {
            address,
            admin,
            stop,
            running,
        }
    }

    pub(crate) async fn pull(&self, name: &str, into: &Path) {
        self.try_pull(name, into).await.expect("a pull");
    }

    pub(crate) async fn try_pull(&self, name: &str, into: &Path) -> Result<(), skopeo::Error> {
        let registry = Registry::open(self.address);
        skopeo::pull(&registry, name, into).await
    }

    /// Returns the status and the body of a GET.
    pub(crate) async fn get(&self, path: &str) -> (u16, bytes::Bytes) {
        let answer = reqwest::get(format!("http://{}{path}", self.address))
            .await
            .expect("an answer");
        (answer.status().as_u16(), answer.bytes().await.unwrap_or_default())
    }

    /// Returns the bucket's part of `/status`.
    pub(crate) async fn status(&self) -> serde_json::Value {
        self.whole_status().await["bucket"].clone()
    }

    /// Returns the number of other replicas that serve this one.
    pub(crate) async fn serving_peers(&self) -> usize {
        let status = self.whole_status().await;
        let peers = status["peers"].as_array().into_iter().flatten();
        peers.filter(|peer| peer["state"] == "serving").count()
    }

    async fn whole_status(&self) -> serde_json::Value {
        let text = reqwest::get(format!("http://{}/status", self.admin))
            .await
            .expect("an answer");
        let text = text.text().await.expect("a body");
        serde_json::from_str(&text).expect("JSON")
    }

    /// Returns the sum of the series whose names begin with this text and whose labels have each of these.
    pub(crate) async fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let answer = reqwest::get(format!("http://{}/metrics", self.admin)).await;
        let text = answer.expect("an answer").text().await.expect("a body");
        let has_labels = |line: &&str| labels.iter().all(|label| line.contains(label));
        let lines = text
            .lines()
            .filter(|line| line.starts_with(name))
            .filter(has_labels);
        lines
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    pub(crate) async fn is_ready(&self) -> bool {
        let answer = reqwest::get(format!("http://{}/readyz", self.admin)).await;
        answer.is_ok_and(|answer| answer.status().is_success())
    }

    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.running.await.expect("it stops").expect("no panic");
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.store.fail(None);
    }
}

/// Waits until the bucket has so many objects below a directory of Distribution's layout.
pub(crate) async fn until_stored(place: &Place, blobs: usize, mirror: &Mirror) {
    let stored = || async {
        let pending = mirror.status().await["pendingUploads"].as_u64();
        let found = std::fs::read_dir(place.store.objects().join("docker/registry/v2/blobs/sha256"));
        let found = found.map_or(0, |entries| {
            let below = |entry: std::io::Result<std::fs::DirEntry>| {
                let directory = std::fs::read_dir(entry.expect("an entry").path()).expect("a directory");
                directory
                    .filter(|entry| {
                        entry
                            .as_ref()
                            .is_ok_and(|entry| entry.path().join("data").exists())
                    })
                    .count()
            };
            entries.map(below).sum()
        });
        (pending == Some(0) && found >= blobs).then_some(())
    };
    if let Err(error) = wait::until("bucket with all content", LIMIT, stored).await {
        panic!("{error}: {}", mirror.status().await);
    }
}
