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
#[path = "clients/programs.rs"]
mod programs;
#[path = "clients/tap.rs"]
mod tap;

use std::path::Path;
use std::time::Duration;

use ::mirror::config;
use ::mirror::server::Server;
use testbed::binaries;
use testbed::image::{Layout, Random};
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
        Registry {
            address: self.address.parse().expect("an address"),
            user: None,
            tls: false,
        }
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn skopeo_pulls_all_platforms_behind_a_token_server_and_the_second_pull_costs_no_blob() {
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
            assert_eq!((counts.blob_gets, counts.tokens), (8, 1), "{counts:?}");
            pair.upstream.reset_counts();
        }
    }
    assert_eq!(pair.upstream.counts().blob_bytes, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crane_resolves_lists_and_pulls_and_goes_on_when_upstream_is_down() {
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
