//! The distribution specification's own conformance suite in its read-only mode, at registries themselves and through
//! a mirror of them: cold, warm, and with the registry gone.
#![expect(clippy::expect_used, reason = "a failure here is the test's")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use mirror::config;
use mirror::server::Server;
use serde_json::Value;
use testbed::binaries;
use testbed::process::free_ports;
use testbed::registry::{Kind, Registry};
use testbed::scratch::Scratch;
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

const REPOSITORY: &str = "conformance/repo1";

/// Reads a registry's content of the repository from its files.
fn content(kind: Kind, data: &Path) -> Content {
    let mut content = Content::default();
    if kind == Kind::Olareg {
        for (digest, path) in digests(&data.join(REPOSITORY).join("blobs")) {
            content.add(digest, &fs::read(path).expect("a file"));
        }
        return content;
    }
    let root = data.join("docker/registry/v2");
    for (digest, _) in digests(&root.join("repositories").join(REPOSITORY).join("_layers")) {
        content.blobs.insert(digest);
    }
    let revisions = root
        .join("repositories")
        .join(REPOSITORY)
        .join("_manifests/revisions");
    for (digest, _) in digests(&revisions) {
        let (algorithm, hex) = digest.split_once(':').expect("a digest");
        let path = root
            .join("blobs")
            .join(algorithm)
            .join(&hex[..2])
            .join(hex)
            .join("data");
        content.add(digest.clone(), &fs::read(path).expect("a file"));
    }
    content
}

/// `ALGORITHM/HEX` below a directory, as digests.
fn digests(directory: &Path) -> Vec<(String, PathBuf)> {
    let entries = |path: &Path| {
        fs::read_dir(path)
            .expect("a directory")
            .map(|entry| entry.expect("an entry"))
    };
    let name = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
    entries(directory)
        .flat_map(|algorithm| {
            let of = name(&algorithm);
            entries(&algorithm.path())
                .map(|entry| (format!("{of}:{}", name(&entry)), entry.path()))
                .collect::<Vec<_>>()
        })
        .collect()
}

/// The digests of a repository that the suite reads.
#[derive(Debug, Default)]
struct Content {
    manifests: BTreeSet<String>,
    blobs: BTreeSet<String>,
    subjects: BTreeSet<String>,
}

impl Content {
    fn add(&mut self, digest: String, bytes: &[u8]) {
        match serde_json::from_slice::<Value>(bytes) {
            Ok(manifest) if manifest["schemaVersion"] == 2 => {
                self.manifests.insert(digest);
                let subject = manifest["subject"]["digest"].as_str().map(str::to_owned);
                self.subjects.extend(subject);
            }
            _ => {
                self.blobs.insert(digest);
            }
        }
    }

    fn environment(&self, tags: &[String]) -> [(&'static str, String); 4] {
        let words = |set: &BTreeSet<String>| set.iter().cloned().collect::<Vec<_>>().join(" ");
        [
            ("OCI_RO_DATA_TAGS", tags.join(" ")),
            ("OCI_RO_DATA_MANIFESTS", words(&self.manifests)),
            ("OCI_RO_DATA_BLOBS", words(&self.blobs)),
            ("OCI_RO_DATA_REFERRERS", words(&self.subjects)),
        ]
    }
}

/// One run of the suite: how often each of its tests passed, and why what failed did.
#[derive(Debug, Default)]
struct Outcome {
    passes: BTreeMap<String, usize>,
    reasons: Vec<String>,
}

async fn suite(at: SocketAddr, results: &Path, environment: &[(&str, String)]) -> Outcome {
    let program = binaries::get("conformance").await.expect("the conformance suite");
    let mut run = Command::new(program);
    run.env("OCI_REGISTRY", at.to_string()).env("OCI_TLS", "disabled");
    run.env("OCI_RESULTS_DIR", results).env("OCI_LOG", "error");
    for what in ["BLOBS_DELETE", "MANIFESTS_DELETE", "TAGS_DELETE"] {
        run.env(format!("OCI_API_{what}"), "false");
    }
    run.envs(environment.iter().map(|(name, value)| (name, value)));
    let output = run.output().await.expect("the suite runs");
    let mut outcome = Outcome::default();
    for line in String::from_utf8_lossy(&output.stdout).lines().map(str::trim) {
        if let Some(test) = line.strip_suffix(": Pass") {
            *outcome.passes.entry(test.to_owned()).or_default() += 1;
        } else if line.starts_with("- ") {
            outcome.reasons.push(line.to_owned());
        }
    }
    outcome
}

/// Of the tests that `matters` names as many pass here as at the registry itself. One test runs once for each digest,
/// in an order that is another each time.
fn nothing_is_lost(here: &Outcome, itself: &Outcome, matters: impl Fn(&str) -> bool, when: &str) {
    for (test, there) in itself.passes.iter().filter(|(test, _)| matters(test)) {
        let passes = here.passes.get(test).copied().unwrap_or_default();
        assert!(
            passes >= *there,
            "{when}: {test}: {passes} pass, {there} there: {:#?}",
            here.reasons
        );
    }
}

async fn tags(at: SocketAddr) -> Vec<String> {
    let answer = reqwest::get(format!("http://{at}/v2/{REPOSITORY}/tags/list")).await;
    let body = answer.expect("an answer").bytes().await.expect("a body");
    let list: Value = serde_json::from_slice(&body).expect("a list");
    let tags = list["tags"].as_array().expect("tags").iter();
    tags.map(|tag| tag.as_str().expect("a tag").to_owned()).collect()
}

async fn loses_nothing(kind: Kind, at_least: usize) {
    let registry = Registry::start(kind).await.expect("a registry");
    let theirs = registry.address;
    let scratch = Scratch::new("suite").expect("a directory");
    let [port] = free_ports().expect("a port");
    let ours = SocketAddr::from(([127, 0, 0, 1], port));
    // The suite itself fills it.
    suite(theirs, &scratch.path().join("push"), &[]).await;
    let mut environment = content(kind, &registry.storage())
        .environment(&tags(theirs).await)
        .to_vec();
    environment.push(("OCI_API_PUSH", "false".to_owned()));

    let yaml = format!(
        "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: '{}'}}}}\n\
         http: {{addr: '{ours}'}}\nproxy: {{remoteurl: 'http://{theirs}', cache: {{maxsize: 1Gi}}}}\n",
        scratch.path().join("cache").display(),
    );
    let path = scratch.write("mirror.yml", yaml).expect("a file");
    let (configuration, _) = config::load(Some(&path), std::iter::empty()).expect("a configuration");
    let server = Server::start(configuration).await.expect("a mirror");
    let end = CancellationToken::new();
    let running = tokio::spawn(server.run(end.clone()));

    let itself = suite(theirs, &scratch.path().join("itself"), &environment).await;
    let passed = itself.passes.values().sum::<usize>();
    assert!(
        passed >= at_least,
        "{kind:?}: {passed} tests passed at the registry itself"
    );
    for when in ["cold", "warm"] {
        let here = suite(ours, &scratch.path().join(when), &environment).await;
        nothing_is_lost(&here, &itself, |_| true, when);
    }
    drop(registry);
    let here = suite(ours, &scratch.path().join("gone"), &environment).await;
    // Only the registry knows its missing content, so it is asked directly.
    let read = |test: &str| test.contains("/read-only/pull/") || test.contains("/read-only/head/");
    nothing_is_lost(&here, &itself, read, "gone");
    end.cancel();
    running.await.expect("it ends").expect("no panic");
}

/// The conformance suite passes through the mirror all that olareg, which passes all of it, passes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conformance_suite_passes_like_olareg() {
    loses_nothing(Kind::Olareg, 250).await;
}

/// The conformance suite passes through the mirror all that Distribution 2 passes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conformance_suite_passes_like_distribution_2() {
    loses_nothing(Kind::Distribution2, 150).await;
}

/// The conformance suite passes through the mirror all that Distribution 3 passes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conformance_suite_passes_like_distribution_3() {
    loses_nothing(Kind::Distribution3, 150).await;
}
