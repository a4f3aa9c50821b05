//! `kubectl rmir` in front of a server and a misbehaving registry, without a cluster.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failure here is the test's"
)]

#[path = "messages/golden.rs"]
mod golden;
#[path = "../../mirror/tests/fixtures/hub.rs"]
#[allow(unused_imports, unused, reason = "every test binary uses another part of it")]
mod hub;
#[path = "plugin/messages.rs"]
mod messages;

use std::{
    fs,
    path::Path,
    process::{Output, Stdio},
    time::Duration,
};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::timeout,
};

// The fixture needs it.
use http_body as _;
use hub::Hub;

/// The longest that a test waits for what has to happen.
const LIMIT: Duration = Duration::from_mins(1);

/// A `registry-mirror local` with a listener of actions; it ends when it is dropped.
struct Local {
    directory: TempDir,
    _process: Child,
    address: String,
    actions: String,
}

impl Local {
    async fn start(hub: &Hub) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("mirror.json"), spec(hub)).unwrap();
        let mut process = Command::new(env!("CARGO_BIN_EXE_registry-mirror"))
            .args([
                "local",
                "-f",
                "mirror.json",
                "--cache-dir",
                "cache",
                "--port",
                "0",
            ])
            .args(["--actions-port", "0"])
            .current_dir(directory.path())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut log = BufReader::new(process.stderr.take().unwrap()).lines();
        let serving = async {
            loop {
                let line = log.next_line().await.unwrap().expect("it serves");
                if line.contains("\"serving\"") {
                    return serde_json::from_str::<Value>(&line).unwrap();
                }
            }
        };
        let line = timeout(LIMIT, serving).await.unwrap();
        tokio::spawn(async move { while let Ok(Some(_)) = log.next_line().await {} });
        let text = |name: &str| format!("http://{}", line[name].as_str().unwrap());
        Self {
            address: text("address"),
            actions: text("actions"),
            _process: process,
            directory,
        }
    }

    async fn pull(&self, image: &str, args: &[&str]) -> Output {
        let args = [&["pull", image, "--endpoint", &self.address], args].concat();
        run(self.directory.path(), &args).await
    }

    /// Pulls until each part is a hit: until a layer is committed, a pull joins its download.
    async fn until_hits(&self, image: &str) {
        let hits = async {
            while caches(&self.pull(image, &["-o", "json"]).await)
                .iter()
                .any(|cache| cache != "HIT")
            {}
        };
        timeout(LIMIT, hits).await.unwrap();
    }

    /// Runs an action with JSON as its output.
    async fn run_action(&self, args: &[&str]) -> Value {
        let args = [args, &["--endpoint", &self.actions, "-o", "json"]].concat();
        let output = run(self.directory.path(), &args).await;
        assert!(output.status.success(), "{}", stderr(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

/// Returns a mirror of a registry, as a file has it.
fn spec(hub: &Hub) -> String {
    json!({"apiVersion": "registrymirror.io/v1alpha1", "kind": "RegistryMirror",
        "metadata": {"name": "hub"}, "spec": {"storage": {"type": "Ephemeral"},
        "upstreams": [{"host": "hub.test", "remoteURL": hub.url().as_str().trim_end_matches('/')}]}})
    .to_string()
}

/// Runs the plugin without a cluster.
async fn run(directory: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kubectl-rmir"));
    command
        .args(args)
        .current_dir(directory)
        .env("HOME", directory)
        .env("KUBECONFIG", directory.join("kubeconfig"))
        .env_remove("NO_COLOR")
        .kill_on_drop(true);
    timeout(LIMIT, command.output()).await.unwrap().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Returns the cache column of each part that a pull reports as JSON.
fn caches(output: &Output) -> Vec<String> {
    assert!(output.status.success(), "{}", stderr(output));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let parts = report["parts"].as_array().unwrap().iter();
    parts
        .map(|part| {
            assert_eq!(part["digestOk"], true, "{report}");
            part["cache"].as_str().unwrap().to_owned()
        })
        .collect()
}

/// The first pull has only misses, the second one only hits, and both check every digest.
#[tokio::test]
async fn pull_shows_misses_then_hits() {
    let hub = Hub::start().await;
    hub.push_image("app", "v1", &[&vec![1; 500_000], b"two"]);
    let local = Local::start(&hub).await;
    let first = local.pull("hub.test/app:v1", &["-o", "json"]).await;
    assert_eq!(caches(&first), vec!["MISS"; 4]);
    local.until_hits("hub.test/app:v1").await;
    let text = stdout(&local.pull("hub.test/app:v1", &[]).await);
    assert!(text.contains("4 HIT, 0 MISS of 4 parts"), "{text}");
    assert!(text.starts_with("PART"), "{text}");
    assert!(!text.contains('\u{1b}'), "{text:?}");
}

#[tokio::test]
async fn pull_colors_follow_the_option() {
    let hub = Hub::start().await;
    hub.push_image("app", "v1", &[b"layer"]);
    let local = Local::start(&hub).await;
    let always = local.pull("hub.test/app:v1", &["--color", "always"]).await;
    assert!(
        stdout(&always).contains("\u{1b}[33mMISS"),
        "{:?}",
        stdout(&always)
    );
    let never = local.pull("hub.test/app:v1", &["--color", "never"]).await;
    assert!(!stdout(&never).contains('\u{1b}'));
}

/// A pull that fails ends with the exit code of its class, and prints no table of the parts that did not arrive.
#[tokio::test]
async fn failed_pull_has_its_exit_code() {
    let hub = Hub::start().await;
    hub.push_image("app", "v1", &[b"layer"]);
    let local = Local::start(&hub).await;
    let missing = local.pull("hub.test/app:v2", &[]).await;
    assert_eq!(missing.status.code(), Some(3), "{}", stderr(&missing));
    let unknown = local.pull("other.test/app:v1", &[]).await;
    assert_eq!(unknown.status.code(), Some(3), "{}", stderr(&unknown));
    assert_eq!([stdout(&missing), stdout(&unknown)], ["", ""]);
    assert!(
        stderr(&unknown).contains("no upstream \"other.test\""),
        "{}",
        stderr(&unknown)
    );
    let nowhere = ["pull", "app:v1", "--endpoint", "http://127.0.0.1:1"];
    let nowhere = run(local.directory.path(), &nowhere).await;
    assert_eq!(nowhere.status.code(), Some(4), "{}", stderr(&nowhere));
}

/// Of an index, a pull takes the platform, and names the others if it is missing.
#[tokio::test]
async fn pull_takes_the_platform_of_an_index() {
    let hub = Hub::start().await;
    let (arm, _) = hub.push_image("app", "arm", &[b"arm"]);
    let media_type = "application/vnd.oci.image.index.v1+json";
    let index = json!({"schemaVersion": 2, "mediaType": media_type, "manifests": [{
        "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": arm.to_string(), "size": 1,
        "platform": {"os": "linux", "architecture": "arm64"}}]});
    hub.push_manifest("app", Some("all"), media_type, index.to_string());
    let local = Local::start(&hub).await;
    let arm = local
        .pull("hub.test/app:all", &["--platform", "linux/arm64", "-o", "json"])
        .await;
    assert_eq!(caches(&arm).len(), 4, "{}", stdout(&arm));
    let other = local
        .pull("hub.test/app:all", &["--platform", "linux/s390x"])
        .await;
    assert_eq!(other.status.code(), Some(3));
    assert!(
        stderr(&other).contains("--platform: linux/arm64"),
        "{}",
        stderr(&other)
    );
}

/// An image is prewarmed, listed, pulled as a hit, purged, and pulled as a miss.
#[tokio::test]
async fn prewarm_images_and_purge_change_the_cache() {
    let hub = Hub::start().await;
    hub.push_image("app", "v1", &[&vec![1; 500_000], b"two"]);
    let local = Local::start(&hub).await;
    let prewarmed = local.run_action(&["prewarm", "hub.test/app:v1"]).await;
    assert_eq!(prewarmed["prewarmed"][0]["blobs"], 3, "{prewarmed}");
    let images = local.run_action(&["images"]).await;
    assert_eq!(images["images"][0]["repository"], "hub.test/app", "{images}");
    let pulled = local.pull("hub.test/app:v1", &["-o", "json"]).await;
    assert_eq!(caches(&pulled), vec!["HIT"; 4]);
    let purged = local.run_action(&["purge", "hub.test/app:v1"]).await;
    assert_eq!(purged["purged"][0]["tags"], 1, "{purged}");
    assert_eq!(local.run_action(&["images"]).await["images"], json!([]));
    let pulled = local.pull("hub.test/app:v1", &["-o", "json"]).await;
    assert_eq!(caches(&pulled), vec!["MISS"; 4]);
    local.until_hits("hub.test/app:v1").await;
    let purged = local.run_action(&["purge", "--repository", "hub.test/app"]).await;
    assert_eq!(purged["purged"][0]["blobs"], 3, "{purged}");
}

/// Of several images, one that fails does not keep the others from the cache.
#[tokio::test]
async fn failed_prewarm_leaves_other_images() {
    let hub = Hub::start().await;
    hub.push_image("app", "v1", &[b"layer"]);
    let local = Local::start(&hub).await;
    let args = [
        "prewarm",
        "hub.test/app:v2",
        "hub.test/app:v1",
        "--endpoint",
        &local.actions,
    ];
    let output = run(local.directory.path(), &args).await;
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("1 of 2 not prewarmed: hub.test/app:v2"),
        "{}",
        stderr(&output)
    );
    assert_eq!(
        local.run_action(&["images"]).await["images"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
}

/// The completion of shells and of kubectl offers commands, and never prints an error.
#[tokio::test]
async fn completion_offers_commands() {
    let directory = tempfile::tempdir().unwrap();
    let output = run(directory.path(), &["__complete", "pre"]).await;
    assert_eq!(
        stdout(&output),
        "prewarm\tFetch images into the cache before nodes pull them\n:4\n"
    );
    let names = run(directory.path(), &["__complete", "status", "-n", "mirrors", ""]).await;
    assert!(
        names.status.success() && stdout(&names).ends_with(":4\n"),
        "{}",
        stdout(&names)
    );
    assert_eq!(stderr(&names), "");
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = stdout(&run(directory.path(), &["completion", shell]).await);
        assert!(script.contains("kubectl-rmir"), "{shell}: {script}");
    }
    let script = stdout(&run(directory.path(), &["completion", "kubectl"]).await);
    assert!(script.starts_with("#!/bin/sh\n"), "{script}");
}

#[tokio::test]
async fn man_pages_are_written_for_each_command() {
    let directory = tempfile::tempdir().unwrap();
    let output = run(directory.path(), &["man", "--out", "man1"]).await;
    assert!(output.status.success(), "{}", stderr(&output));
    let pages: Vec<_> = fs::read_dir(directory.path().join("man1"))
        .unwrap()
        .map(|page| page.unwrap().file_name().into_string().unwrap())
        .collect();
    for page in ["kubectl-rmir.1", "kubectl-rmir-pull.1", "kubectl-rmir-purge.1"] {
        assert!(pages.iter().any(|found| found == page), "{pages:?}");
    }
}

/// On a terminal, `local` says what it serves and how to pull through it; in a pipe it writes its log only.
#[tokio::test]
async fn local_on_terminal_says_how_to_pull() {
    let hub = Hub::start().await;
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("mirror.json"), spec(&hub)).unwrap();
    let local = format!(
        "{} local -f mirror.json --cache-dir cache --port 0 --actions-port 0",
        env!("CARGO_BIN_EXE_registry-mirror")
    );
    // A terminal of its own.
    let mut terminal = Command::new("script")
        .args(["-qefc", &local, "/dev/null"])
        .current_dir(directory.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(terminal.stdout.take().unwrap()).lines();
    let banner = async {
        let mut text = String::new();
        while !text.contains("Ctrl+C") {
            text.push_str(&lines.next_line().await.unwrap().expect("the banner"));
            text.push('\n');
        }
        text
    };
    let text = timeout(LIMIT, banner).await.unwrap();
    for part in [
        "RegistryMirror hub serves hub.test on http://127.0.0.1:",
        "cache ",
        "kubectl rmir images --endpoint",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

/// The template of the krew manifest, rendered as a release renders it, is a manifest of the plugin.
#[test]
fn krew_template_renders_to_a_manifest() {
    let template = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../.krew.yaml")).unwrap();
    let rendered: String = template
        .lines()
        .map(|line| match line.split_once("{{addURIAndSha \"") {
            Some((indent, rest)) => {
                let url = rest
                    .split('"')
                    .next()
                    .unwrap()
                    .replace("{{ .TagName }}", "v0.1.0");
                format!("{indent}uri: {url}\n{indent}sha256: {}\n", "0".repeat(64))
            }
            None => format!("{}\n", line.replace("{{ .TagName }}", "v0.1.0")),
        })
        .collect();
    let manifest: Value = serde_saphyr::from_str(&rendered).unwrap();
    assert_eq!(
        manifest["apiVersion"],
        "krew.googlecontainertools.github.com/v1alpha2"
    );
    assert_eq!(
        (&manifest["kind"], &manifest["metadata"]["name"]),
        (&json!("Plugin"), &json!("rmir"))
    );
    assert_eq!(manifest["spec"]["version"], "v0.1.0");
    let short = manifest["spec"]["shortDescription"].as_str().unwrap();
    assert!(short.len() <= 50, "krew shows 50 characters: {short}");
    for platform in manifest["spec"]["platforms"].as_array().unwrap() {
        assert_eq!(platform["bin"], "kubectl-rmir", "{platform}");
        assert!(
            platform["uri"]
                .as_str()
                .unwrap()
                .contains("/v0.1.0/kubectl-rmir-linux-"),
            "{platform}"
        );
    }
}
