//! skopeo, crane and curl on images of every usual kind.

use std::path::Path;

use testbed::image::{Layout, Random};
use testbed::registry::{Kind, Registry};
use testbed::scratch::Scratch;
use testbed::skopeo::{self as pushing, Registry as At};
use testbed::upstream::{Options, Upstream};
use tokio::process::Command;

use crate::mirror::Mirror;
use crate::programs::{crane, run, skopeo};

/// The magic number of a zstd frame (RFC 8878).
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

pub(crate) fn made(scratch: &Scratch, seed: u64) -> Layout {
    let directory = scratch.path().join(format!("made-{seed}"));
    Random::new(seed, &[400_000, 10])
        .write(&directory, "1")
        .expect("an image")
}

pub(crate) async fn said(ran: impl Future<Output = Result<String, String>>) -> String {
    ran.await.unwrap_or_else(|said| panic!("{said}"))
}

/// The files of a layout's blobs.
fn blobs(layout: &Path) -> Vec<String> {
    let files = std::fs::read_dir(layout.join("blobs/sha256")).expect("blobs");
    let mut names: Vec<_> = files
        .map(|file| file.expect("a file").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// Skopeo copies all platforms of an image with zstd layers, and lists its tags.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn skopeo_copies_zstd_image_and_lists_tags() {
    let scratch = Scratch::new("zstd").expect("a directory");
    let registry = Registry::start(Kind::Distribution3).await.expect("a registry");
    let mirror = Mirror::start_for(&registry.url).await;
    let from = format!("oci:{}:1", made(&scratch, 11).path().display());
    let to = format!("docker://{}/org/app:zstd", registry.address);
    // Compressed layers stay compressed, so this copy unpacks them.
    let plain = format!("dir:{}", scratch.path().join("plain").display());
    said(skopeo(&["copy", "--all", "--dest-decompress", &from, &plain])).await;
    let zstd = [
        "copy",
        "--all",
        "--dest-tls-verify=false",
        "--dest-compress-format=zstd",
    ];
    said(skopeo(&[&zstd[..], &[&plain, &to]].concat())).await;
    let image = format!("docker://{}/org/app:zstd", mirror.address);
    let manifest = said(skopeo(&["inspect", "--raw", "--tls-verify=false", &image])).await;
    let direct = said(skopeo(&["inspect", "--raw", "--tls-verify=false", &to])).await;
    assert_eq!(manifest, direct);
    for name in ["cold", "warm"] {
        let directory = scratch.path().join(name);
        let copied = format!("oci:{}:1", directory.display());
        let all = ["copy", "--all", "--preserve-digests", "--src-tls-verify=false"];
        said(skopeo(&[&all[..], &[&image, &copied]].concat())).await;
        // 2 platforms of 2 layers, a configuration and a manifest, and the index.
        let names = blobs(&directory);
        assert_eq!(names.len(), 9);
        let read = |name: &String| std::fs::read(directory.join("blobs/sha256").join(name)).expect("a blob");
        let zstd = names.iter().filter(|name| read(name).starts_with(&ZSTD));
        assert_eq!(zstd.count(), 4);
    }
    let tags = said(skopeo(&[
        "list-tags",
        "--tls-verify=false",
        &format!("docker://{}/org/app", mirror.address),
    ]))
    .await;
    assert!(tags.contains("\"zstd\""), "{tags}");
}

/// Crane reads, pulls, validates and copies an image byte for byte.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crane_copies_an_image_byte_for_byte() {
    let scratch = Scratch::new("crane").expect("a directory");
    let registry = Registry::start(Kind::Distribution2).await.expect("a registry");
    let target = Registry::start(Kind::Olareg).await.expect("a registry");
    let layout = made(&scratch, 12);
    let to = At {
        address: registry.address,
        user: None,
    };
    pushing::push(layout.path(), "1", &to, "org/app:1")
        .await
        .expect("a push");
    let mirror = Mirror::start_for(&registry.url).await;
    let digest = layout.digest("1").expect("a digest");
    let (direct, image) = (
        format!("{}/org/app:1", registry.address),
        format!("{}/org/app:1", mirror.address),
    );
    let by_digest = format!("{}/org/app@{digest}", mirror.address);
    for _ in 0..2 {
        assert_eq!(said(crane(&["digest", &image])).await, digest);
        assert_eq!(
            said(crane(&["manifest", &image])).await,
            said(crane(&["manifest", &direct])).await
        );
        let config = said(crane(&["config", "--platform", "linux/arm64", &image])).await;
        assert!(config.contains("arm64"), "{config}");
        said(crane(&["validate", "--remote", &by_digest])).await;
    }
    assert_eq!(
        said(crane(&["ls", &format!("{}/org/app", mirror.address)])).await,
        "1"
    );
    let copy = format!("{}/org/copy:1", target.address);
    said(crane(&["copy", &image, &copy])).await;
    assert_eq!(said(crane(&["digest", &copy])).await, digest);
    let pulled = scratch.path().join("pulled");
    said(crane(&[
        "pull",
        "--format",
        "oci",
        &by_digest,
        &pulled.display().to_string(),
    ]))
    .await;
    assert_eq!(blobs(&pulled), blobs(layout.path()));
}

/// The files that the operator gives to nodes name a mirror so.
pub(crate) fn registries_conf(host: &str, upstream: &Upstream, mirror: &Mirror) -> String {
    format!(
        "[[registry]]\nprefix = \"{host}\"\nlocation = \"{}\"\ninsecure = true\n\n\
         [[registry.mirror]]\nlocation = \"{}/{host}\"\ninsecure = true\n",
        upstream.address(),
        mirror.address
    )
}

/// Skopeo pulls through the mirror of its `registries.conf`, and from the upstream if the mirror is down.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn skopeo_uses_registries_conf_and_falls_back() {
    let scratch = Scratch::new("registries-conf").expect("a directory");
    let upstream = Upstream::start(Options::default()).await.expect("an upstream");
    let layout = made(&scratch, 13);
    upstream.push(&layout, "1", "org/app:1").await.expect("a push");
    let mut mirror = Mirror::of_host("registry.test", &upstream.url()).await;
    let conf = registries_conf("registry.test", &upstream, &mirror);
    // The directory of a user's own configuration.
    scratch.subdirectory(".config/containers").expect("a directory");
    let conf = scratch
        .write(".config/containers/registries.conf", conf)
        .expect("a file");
    let pull = async |name: &str| {
        upstream.reset_counts();
        let to = scratch.path().join(name);
        let mut command = Command::new("skopeo");
        command
            .env("HOME", scratch.path())
            .env("CONTAINERS_REGISTRIES_CONF", &conf);
        command.args([
            "--insecure-policy",
            "copy",
            "--all",
            "docker://registry.test/org/app:1",
        ]);
        said(run(command.arg(format!("oci:{}:1", to.display())))).await;
        assert_eq!(blobs(&to), blobs(layout.path()));
        upstream.counts()
    };
    assert!(pull("cold").await.blob_bytes > 400_000);
    assert_eq!(
        pull("warm").await.blob_bytes,
        0,
        "it did not come from the mirror"
    );
    mirror.go_down().await;
    assert!(pull("without").await.blob_bytes > 400_000);
}

/// Curl gets several ranges in parts, and too many as the whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curl_gets_multiple_ranges_or_the_whole() {
    let scratch = Scratch::new("curl").expect("a directory");
    let upstream = Upstream::start(Options::default()).await.expect("an upstream");
    let layout = made(&scratch, 14);
    upstream.push(&layout, "1", "org/app:1").await.expect("a push");
    let mirror = Mirror::start_for(&upstream.url()).await;
    let blobs = blobs(layout.path());
    let content =
        |name: &String| std::fs::read(layout.path().join("blobs/sha256").join(name)).expect("a blob");
    let layer = blobs
        .iter()
        .find(|name| content(name).len() > 400_000)
        .expect("a layer");
    let (bytes, url) = (
        content(layer),
        format!("http://{}/v2/org/app/blobs/sha256:{layer}", mirror.address),
    );
    for (ranges, status) in [(2, "206"), (16, "206"), (17, "200")] {
        let range: Vec<_> = (0..ranges)
            .map(|n| format!("{}-{}", n * 1000, n * 1000 + 9))
            .collect();
        let body = scratch.path().join(format!("{ranges}"));
        let mut command = Command::new("curl");
        command.args([
            "-sS",
            "--noproxy",
            "*",
            "-w",
            "%{http_code} %{content_type}",
            "-r",
            &range.join(","),
        ]);
        let what = said(run(command.arg("-o").arg(&body).arg(&url))).await;
        let got = std::fs::read(&body).expect("a body");
        assert!(what.starts_with(status), "{what}");
        if status == "200" {
            assert!(got == bytes, "{} of {} bytes", got.len(), bytes.len());
            continue;
        }
        let boundary = what.split_once("boundary=").expect("a boundary").1;
        let parts = got
            .windows(boundary.len())
            .filter(|window| *window == boundary.as_bytes());
        assert_eq!(parts.count(), ranges + 1);
        for n in 0..ranges {
            let part = [b"\r\n\r\n", &bytes[n * 1000..n * 1000 + 10], b"\r\n--"].concat();
            assert!(
                got.windows(part.len()).any(|window| window == part),
                "part {n} of {ranges}"
            );
        }
    }
}
