//! podman, by a `registries.conf` of the test's own.

use std::path::Path;

use testbed::podman;
use testbed::scratch::Scratch;
use testbed::upstream::{Options, Upstream};

use crate::images::{made, registries_conf, said};
use crate::mirror::Mirror;
use crate::programs::{Ran, run};

/// With its images in this directory.
async fn podman(home: &Path, conf: &Path, arguments: &[&str]) -> Ran {
    run(podman::command(home, conf).args(arguments)).await
}

/// Podman pulls through the mirror of its `registries.conf`, and from the upstream if the mirror is down.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn podman_uses_registries_conf_and_falls_back() {
    if !podman::is_possible() {
        return;
    }
    let scratch = Scratch::new("podman").expect("a directory");
    let upstream = Upstream::start(Options::default()).await.expect("an upstream");
    let layout = made(&scratch, 15);
    upstream.push(&layout, "1", "org/app:1").await.expect("a push");
    let mut mirror = Mirror::of_host("registry.test", &upstream.url()).await;
    let conf = registries_conf("registry.test", &upstream, &mirror);
    let conf = scratch.write("registries.conf", conf).expect("a file");
    let policy = scratch
        .write("policy.json", podman::ANY_SIGNATURE)
        .expect("a file");
    let policy = policy.display().to_string();
    let pull = async |name: &str| {
        upstream.reset_counts();
        let home = scratch.subdirectory(name).expect("a directory");
        let image = "registry.test/org/app:1";
        let pull = [
            "pull",
            "--quiet",
            "--signature-policy",
            &policy,
            "--platform",
            "linux/arm64",
            image,
        ];
        said(podman(&home, &conf, &pull)).await;
        let inspect = ["image", "inspect", "--format", "{{.Architecture}}", image];
        assert_eq!(said(podman(&home, &conf, &inspect)).await, "arm64");
        upstream.counts().blob_bytes
    };
    assert!(pull("cold").await > 400_000);
    assert_eq!(pull("warm").await, 0, "it did not come from the mirror");
    mirror.go_down().await;
    assert!(pull("without").await > 400_000);
}
