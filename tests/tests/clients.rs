//! Clients that are not ours, through a mirror, from a registry that is not ours.
#![expect(clippy::expect_used, reason = "a failure here is the test's")]

#[path = "clients/answers.rs"]
mod answers;
#[path = "clients/artifacts.rs"]
mod artifacts;
#[path = "clients/containerd.rs"]
mod containerd;
#[path = "clients/images.rs"]
mod images;
#[path = "clients/mirror.rs"]
mod mirror;
#[path = "clients/odd.rs"]
mod odd;
#[path = "clients/podman.rs"]
mod podman;
#[path = "clients/programs.rs"]
mod programs;
#[path = "clients/tap.rs"]
mod tap;

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use ::mirror::config;
use ::mirror::server::Server;
use testbed::binaries;
use testbed::image::{Layout, Random};
use testbed::pki::Authority;
use testbed::process::{Daemon, command};
use testbed::scratch::Scratch;
use testbed::skopeo::{self, Registry};
use testbed::upstream::{Access, Options, Upstream};
use tokio::process::Command;
use tokio_util::sync::{CancellationToken, DropGuard};

const NAME: &str = "library/app:1";
const USER: (&str, &str) = ("user", "correct horse");
const LIMIT: Duration = Duration::from_mins(1);

/// A registry that asks for tokens, and a mirror of it configured as Distribution is, but for a limit, so that it does
/// not matter how full this machine's disk is.
struct Pair {
    upstream: Upstream,
    image: Layout,
    address: String,
    scratch: Scratch,
    _running: DropGuard,
}

impl Pair {
    async fn start(access: Access) -> Self {
        let scratch = Scratch::new("clients").expect("a directory");
        let upstream = Upstream::start(Options::protected(access, USER))
            .await
            .expect("an upstream");
        let made = scratch.path().join("made");
        let image = Random::new(7, &[2_000_000, 100_000, 10])
            .write(&made, "1")
            .expect("an image");
        upstream.push(&image, "1", NAME).await.expect("a push");
        let server = Server::start(configuration(&upstream, scratch.path()))
            .await
            .expect("a mirror");
        let (address, stop) = (server.address().to_owned(), CancellationToken::new());
        tokio::spawn(server.run(stop.clone()));
        Self {
            upstream,
            image,
            address,
            scratch,
            _running: stop.drop_guard(),
        }
    }

    fn registry(&self) -> Registry {
        Registry::open(self.address.parse().expect("an address"))
    }

    async fn crane(&self, arguments: &[&str]) -> String {
        let crane = binaries::get("crane").await.expect("crane");
        let output = Command::new(crane)
            .arg("--insecure")
            .args(arguments)
            .kill_on_drop(true)
            .output();
        let output = output.await.expect("crane runs");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

fn configuration(upstream: &Upstream, scratch: &Path) -> config::Config {
    let yaml = format!(
        "version: 0.1\n\
         storage: {{filesystem: {{rootdirectory: {}}}}}\n\
         http: {{addr: '127.0.0.1:0'}}\n\
         proxy: {{remoteurl: '{}', username: {}, password: {}, cache: {{maxsize: 1Gi}}}}\n",
        scratch.join("cache").display(),
        upstream.url(),
        USER.0,
        USER.1
    );
    let path = scratch.join("config.yml");
    std::fs::write(&path, yaml).expect("a file");
    config::load(Some(&path), std::iter::empty())
        .expect("a configuration")
        .0
}

/// Skopeo pulls all platforms behind a token server, and the second pull costs no blob.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn skopeo_pulls_all_platforms_with_tokens() {
    let pair = Pair::start(Access::Bearer(LIMIT)).await;
    for directory in ["first", "second"] {
        let pulled = pair.scratch.path().join(directory);
        skopeo::pull(&pair.registry(), NAME, &pulled)
            .await
            .expect("a pull");
        assert_eq!(
            Layout::open(&pulled).expect("a layout").digest("1"),
            pair.image.digest("1")
        );
        if directory == "first" {
            let counts = pair.upstream.counts();
            // One token tries the credential at the start, one is for the repository.
            assert_eq!((counts.blob_gets, counts.tokens), (8, 2), "{counts:?}");
            pair.upstream.reset_counts();
        }
    }
    assert_eq!(pair.upstream.counts().blob_bytes, 0);
}

/// Crane resolves, lists and pulls, also while the upstream is down.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crane_pulls_also_while_upstream_is_down() {
    let mut pair = Pair::start(Access::Basic).await;
    let image = format!("{}/{NAME}", pair.address);
    assert_eq!(
        pair.crane(&["digest", &image]).await,
        pair.image.digest("1").expect("a digest")
    );
    assert_eq!(
        pair.crane(&["ls", &format!("{}/library/app", pair.address)])
            .await,
        "1"
    );
    assert_eq!(pair.crane(&["catalog", &pair.address]).await, "library/app");
    let tar = pair.scratch.path().join("app.tar");
    pair.crane(&["pull", &image, &tar.to_string_lossy()]).await;
    pair.upstream.go_down();
    let again = pair.scratch.path().join("again.tar");
    let pull = async || pair.crane(&["pull", &image, &again.to_string_lossy()]).await;
    tokio::time::timeout(LIMIT, pull())
        .await
        .expect("a stale pull in time");
    assert_eq!(
        std::fs::read(tar).expect("a file"),
        std::fs::read(again).expect("a file")
    );
}

/// `registry-mirror local`, until it is dropped.
async fn local(scratch: &Scratch, yaml: &str) -> (Daemon, SocketAddr) {
    let file = scratch.write("mirror.yaml", yaml).expect("a file");
    let local = |address: SocketAddr| {
        let mut command = command(env!("CARGO_BIN_EXE_operator-under-test"));
        command.args(["local", "--port", &address.port().to_string(), "-f"]);
        command
            .arg(&file)
            .arg("--cache-dir")
            .arg(scratch.path().join("cache"));
        Ok(command)
    };
    let log = scratch.path().join("local.log");
    Daemon::listening("local", &log, local).await.expect("a process")
}

/// An example with another registry in place of Docker Hub.
fn example(name: &str, upstream: &Upstream) -> String {
    let path = binaries::workspace().join("examples").join(name);
    let yaml = std::fs::read_to_string(path).expect("an example");
    let hub = "- host: docker.io\n";
    assert!(yaml.contains(hub), "{name} is about Docker Hub");
    yaml.replace(hub, &format!("{hub}      remoteURL: {}\n", upstream.url()))
}

async fn filled(scratch: &Scratch) -> Upstream {
    let upstream = Upstream::start(Options::default()).await.expect("an upstream");
    let image = Random::new(7, &[10_000]).write(&scratch.path().join("made"), "1");
    upstream
        .push(&image.expect("an image"), "1", NAME)
        .await
        .expect("a push");
    upstream
}

/// `local` serves users over TLS, and writes the CA for them.
#[tokio::test]
async fn local_serves_over_tls_with_its_own_ca() {
    let scratch = Scratch::new("local").expect("a directory");
    let upstream = filled(&scratch).await;
    let (_local, address) = local(&scratch, &example("basic-access.yaml", &upstream)).await;
    let authorities = scratch.subdirectory("authorities").expect("a directory");
    std::fs::copy(scratch.path().join("cache.ca.crt"), authorities.join("ca.crt")).expect("what it wrote");
    let image = format!("{address}/{NAME}");
    let pulled = scratch.path().join("pulled");
    let pull = async |user: Option<(&str, &str)>, authorities: &Path| {
        skopeo::pull_checked(&image, user, authorities, &pulled).await
    };
    let refused = |result: Result<(), skopeo::Error>| result.expect_err("a refusal").to_string();
    let known = Some(("ann", "only-for-the-example"));
    let none = scratch.subdirectory("none").expect("a directory");
    assert!(refused(pull(known, &none).await).contains("certificate"));
    assert!(refused(pull(None, &authorities).await).contains("unauthorized"));
    let guessed = refused(pull(Some(("ann", "guessed")), &authorities).await);
    assert!(guessed.contains("unauthorized"), "{guessed}");
    pull(known, &authorities).await.expect("a pull");
}

#[tokio::test]
async fn local_serves_the_certificate_of_a_secret() {
    let scratch = Scratch::new("local").expect("a directory");
    let upstream = filled(&scratch).await;
    let authority = Authority::new("internal").expect("an authority");
    let leaf = authority.serving(&["127.0.0.1"]).expect("a certificate");
    let secret = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "hub-issued-tls"},
        "stringData": {"tls.crt": leaf.certificate, "tls.key": leaf.key},
    });
    // JSON is YAML.
    let yaml = format!("{}---\n{secret}\n", example("tls-cert-manager.yaml", &upstream));
    let (_local, address) = local(&scratch, &yaml).await;
    let authorities = scratch.subdirectory("authorities").expect("a directory");
    std::fs::write(authorities.join("ca.crt"), authority.certificate()).expect("a file");
    let image = format!("{address}/{NAME}");
    let pulled = scratch.path().join("pulled");
    skopeo::pull_checked(&image, None, &authorities, &pulled)
        .await
        .expect("a pull");
}
