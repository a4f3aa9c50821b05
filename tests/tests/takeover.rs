//! Caches of CNCF Distribution, of Debian's version 2 and of version 3: adopted and given back.
#![expect(clippy::expect_used, reason = "a failure here is the test's")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use mirror::config;
use mirror::server::Server;
use testbed::image::{Layout, Random};
use testbed::process::{Daemon, command, free_ports};
use testbed::scratch::Scratch;
use testbed::skopeo::{self, Registry};
use testbed::upstream::{Counts, Options, Upstream};
use testbed::{binaries, wait};
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

const LIMIT: Duration = Duration::from_mins(1);
const BEFORE: &str = "library/before:1";
const AFTER: &str = "library/after:1";
const SECTIONS: &str = "version: 0.1\nlog: {level: info}\n";

/// A Distribution, by the version that it is of.
async fn distribution(version: u8) -> PathBuf {
    match version {
        2 => PathBuf::from("/usr/bin/docker-registry"),
        _ => binaries::get("registry").await.expect("Distribution 3"),
    }
}

/// One cache directory with one configuration file, for any of the servers.
struct Place {
    upstream: Upstream,
    scratch: Scratch,
    address: std::net::SocketAddr,
    /// The third program in a row has another log than the first.
    starts: usize,
}

impl Place {
    async fn new(version: u8) -> Self {
        let upstream = Upstream::start(Options::default()).await.expect("an upstream");
        let scratch = Scratch::new("takeover").expect("a directory");
        for (seed, name) in [(1, BEFORE), (2, AFTER)] {
            let made = scratch.path().join(format!("made-{seed}"));
            let image = Random::new(seed, &[300_000, 10])
                .write(&made, "1")
                .expect("an image");
            upstream.push(&image, "1", name).await.expect("a push");
        }
        let [port] = free_ports().expect("a port");
        let ttl = if version > 2 { ", ttl: 100h" } else { "" };
        let yaml = format!(
            "{SECTIONS}storage: {{filesystem: {{rootdirectory: '{}'}}}}\n\
             http: {{addr: '127.0.0.1:{port}'}}\nproxy: {{remoteurl: '{}'{ttl}}}\n",
            scratch.path().join("cache").display(),
            upstream.url()
        );
        scratch.write("config.yml", yaml).expect("a file");
        Self {
            upstream,
            scratch,
            address: ([127, 0, 0, 1], port).into(),
            starts: 0,
        }
    }

    fn config(&self) -> PathBuf {
        self.scratch.path().join("config.yml")
    }

    /// Returns the number of entries in the expiry state.
    fn expiries(&self) -> usize {
        let path = self.scratch.path().join("cache/scheduler-state.json");
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.matches("ExpiryData").count()
    }

    async fn theirs(&mut self, program: &Path) -> Daemon {
        self.starts += 1;
        let mut command = command(program);
        command.arg("serve").arg(self.config());
        command.env("OTEL_TRACES_EXPORTER", "none");
        let log = self.scratch.path().join(format!("{}.log", self.starts));
        Daemon::listening_at(self.address, "distribution", &log, command)
            .await
            .expect("Distribution")
    }

    /// Pulls; what upstream was asked for it.
    async fn pull(&mut self, name: &str) -> Counts {
        self.starts += 1;
        self.upstream.reset_counts();
        let registry = Registry::open(self.address);
        let to = self.scratch.path().join(format!("pulled-{}", self.starts));
        skopeo::pull(&registry, name, &to).await.expect("a pull");
        assert!(Layout::open(&to).expect("a layout").digest("1").is_some());
        self.upstream.counts()
    }
}

/// Requests for blobs, whatever they were answered with.
fn blob_requests(counts: Counts) -> u64 {
    counts.blob_gets + counts.blob_heads
}

async fn stop(mut daemon: Daemon) {
    daemon.terminate().expect("it can be ended");
    daemon.ended().await.expect("it ends");
}

async fn there_and_back(version: u8) {
    let program = distribution(version).await;
    let mut place = Place::new(version).await;
    let theirs = place.theirs(&program).await;
    assert!(
        place.pull(BEFORE).await.blob_bytes > 300_000,
        "{version}: the cache was cold"
    );
    // It stores and schedules behind its answers: 2 platforms of 2 layers, a config and a manifest, and the index.
    let scheduled = async || (place.expiries() >= 9).then_some(());
    wait::until("Distribution to write its state", LIMIT, scheduled)
        .await
        .expect("a state");
    stop(theirs).await;

    // With a limit, so that it does not matter how full this machine's disk is.
    let limit = ("REGISTRY_PROXY_CACHE_MAXSIZE".to_owned(), "1Gi".to_owned());
    let loaded = config::load(Some(&place.config()), std::iter::once(limit));
    let (configuration, _) = loaded.expect("their file");
    let server = Server::start(configuration).await.expect("a mirror");
    let end = CancellationToken::new();
    let running = tokio::spawn(server.run(end.clone()));
    let counts = place.pull(BEFORE).await;
    assert_eq!(
        blob_requests(counts),
        0,
        "{version}: what they cached is served by us"
    );
    let counts = place.pull(AFTER).await;
    assert!(
        counts.blob_bytes > 300_000,
        "{version}: what they had not is fetched"
    );
    end.cancel();
    running.await.expect("it ends").expect("no panic");
    let theirs = place.theirs(&program).await;
    for (name, whose) in [(BEFORE, "they"), (AFTER, "only we")] {
        let counts = place.pull(name).await;
        let reported = format!("{version}: what {whose} cached is served by them again: {counts:?}");
        assert_eq!(
            (blob_requests(counts), counts.manifest_bytes),
            (0, 0),
            "{reported}"
        );
    }
    stop(theirs).await;
}

/// A cache of Distribution 2 is adopted, and can be used by Distribution again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn distribution_2_cache_is_adopted_and_returned() {
    there_and_back(2).await;
}

/// A cache of Distribution 3 is adopted, and can be used by Distribution again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn distribution_3_cache_is_adopted_and_returned() {
    there_and_back(3).await;
}

/// Returns the directory in which Go unpacked the sources of Distribution.
async fn sources(version: u8) -> PathBuf {
    let module = match version {
        2 => "github.com/distribution/distribution@v2.8.3+incompatible",
        _ => "github.com/distribution/distribution/v3",
    };
    let output = Command::new("go")
        .args(["mod", "download", "-json", module])
        .current_dir(binaries::workspace().join("tests/cluster/distribution"))
        .output();
    let output = output.await.expect("go");
    let reported: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    reported["Dir"]
        .as_str()
        .unwrap_or_else(|| panic!("{reported}"))
        .into()
}

/// A sample with directories and ports of this test's own put over it by the environment: the status that a client
/// without a password gets, or why it does not start.
async fn starts(sample: &Path) -> Result<u16, String> {
    let scratch = Scratch::new("sample").expect("a directory");
    let root = scratch.path().join("cache").display().to_string();
    let environment = [
        ("REGISTRY_PROXY_REMOTEURL", "https://registry.example"),
        ("REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY", root.as_str()),
        ("REGISTRY_HTTP_ADDR", "127.0.0.1:0"),
        ("REGISTRY_HTTP_DEBUG_ADDR", "127.0.0.1:0"),
    ];
    let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let loaded = config::load(Some(sample), environment.into_iter());
    let (configuration, _) = loaded.map_err(|error| error.to_string())?;
    let server = Server::start(configuration)
        .await
        .map_err(|error| error.to_string())?;
    let address = server.address().to_owned();
    let end = CancellationToken::new();
    let running = tokio::spawn(server.run(end.clone()));
    let answer = reqwest::get(format!("http://{address}/v2/")).await;
    end.cancel();
    let ended = running.await.map_err(|error| error.to_string())?;
    ended.map_err(|error| error.to_string())?;
    answer
        .map(|answer| answer.status().as_u16())
        .map_err(|error| error.to_string())
}

/// Every configuration file that both versions publish, and Debian's. Where one names users, their file is not there
/// on a fresh machine (Debian's path is a directory): the server starts, and admits no client.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn distribution_samples_start_or_are_refused() {
    testbed::install_crypto_provider();
    let (of_2, of_3) = (sources(2).await, sources(3).await);
    let docker = |name: &str| of_2.join("contrib/docker-integration").join(name);
    for (sample, expected) in [
        (PathBuf::from("/etc/docker/registry/config.yml"), Ok(401)),
        (of_2.join("cmd/registry/config-example.yml"), Ok(401)),
        (of_2.join("cmd/registry/config-cache.yml"), Ok(200)),
        (of_2.join("cmd/registry/config-dev.yml"), Ok(200)),
        (docker("tokenserver/registry-config.yml"), Err("auth.token")),
        (docker("tokenserver-oauth/registry-config.yml"), Err("auth.token")),
        (
            docker("tokenserver-oauth/registry-config-notls.yml"),
            Err("auth.token"),
        ),
        (of_3.join("cmd/registry/config-example.yml"), Ok(401)),
        (of_3.join("cmd/registry/config-cache.yml"), Ok(200)),
        (of_3.join("cmd/registry/config-dev.yml"), Ok(200)),
        (of_3.join("docs/content/recipes/osx/config.yml"), Ok(200)),
        (of_3.join("tests/conf-local-s3.yml"), Ok(200)),
        (of_3.join("tests/conf-e2e-cloud-storage.yml"), Err("storage.s3")),
    ] {
        match (starts(&sample).await, expected) {
            (Ok(status), Ok(wanted)) => assert_eq!(status, wanted, "{}", sample.display()),
            (Err(said), Err(key)) => assert!(said.contains(key), "{}: {said}", sample.display()),
            (ended, _) => panic!("{}: {ended:?}", sample.display()),
        }
    }
}

/// Keys that would change what is safe, or served, are refused by name.
#[tokio::test]
async fn unsafe_keys_are_refused_by_name() {
    let scratch = Scratch::new("refused").expect("a directory");
    for (section, key) in [
        ("middleware: {registry: [{name: x}]}", "middleware"),
        (
            "auth: {token: {realm: 'https://a', service: s, issuer: i, rootcertbundle: /c}}",
            "auth.token",
        ),
        (
            "http: {tls: {letsencrypt: {cachefile: /c, email: a@b}}}",
            "http.tls.letsencrypt",
        ),
        ("storage: {s3aws: {bucket: b, region: r}}", "storage.s3aws"),
    ] {
        let yaml = format!("version: 0.1\nproxy: {{remoteurl: 'https://registry.example'}}\n{section}\n");
        let path = scratch.write("config.yml", yaml).expect("a file");
        let refused = config::load(Some(&path), std::iter::empty()).expect_err("it is refused");
        assert!(refused.to_string().contains(key), "{refused}");
    }
}
