//! Buckets that Distribution filled, and Distribution on buckets that a mirror filled.

use std::path::PathBuf;

use test_case::test_case;
use testbed::binaries;
use testbed::image::Layout;
use testbed::process::{Daemon, command};
use testbed::skopeo::{self, Registry};

use crate::place::{LAYERS, NAME, Place, until_stored};

/// Distribution on the bucket of a place, as a registry to push to.
struct Distribution {
    registry: Registry,
    daemon: Daemon,
}

impl Distribution {
    async fn start(version: u8, place: &Place) -> Self {
        let program = match version {
            2 => PathBuf::from("/usr/bin/docker-registry"),
            _ => binaries::get("registry").await.expect("Distribution 3"),
        };
        let keys = match version {
            // It knows no such key, and uses paths with any endpoint.
            2 => place.store.keys().replace(", forcepathstyle: true", ""),
            _ => place.store.keys(),
        };
        let serve = |address| {
            let yaml = format!(
                "version: 0.1\nstorage: {{s3: {{{keys}}}, redirect: {{disable: true}}}}\nhttp: {{addr: '{address}'}}\n"
            );
            let mut command = command(&program);
            command
                .arg("serve")
                .arg(place.scratch.write("distribution.yml", yaml)?);
            command
                .env("OTEL_TRACES_EXPORTER", "none")
                .env_remove("AWS_CA_BUNDLE");
            Ok(command)
        };
        let log = place.scratch.path().join("distribution.log");
        let (daemon, address) = Daemon::listening("distribution", &log, serve)
            .await
            .expect("Distribution");
        Self {
            registry: Registry::open(address),
            daemon,
        }
    }
}

/// A bucket that Distribution filled is served while the registry is down.
#[test_case(2; "Distribution 2")]
#[test_case(3; "Distribution 3")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bucket_of_distribution_is_served(version: u8) {
    let mut place = Place::new(&LAYERS).await;
    let mut distribution = Distribution::start(version, &place).await;
    skopeo::push(place.image.path(), "1", &distribution.registry, NAME)
        .await
        .expect("a push");
    distribution.daemon.kill();
    place.upstream.go_down();
    let mirror = place.mirror("tier").await;
    place.store.forget();
    place.pull(&mirror, "pulled").await;
    let (_, heads, lists) = place.reads();
    assert_eq!((heads, lists), (0, 0));
}

/// Distribution serves what a mirror wrote.
#[test_case(2; "Distribution 2")]
#[test_case(3; "Distribution 3")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn distribution_serves_the_mirrors_bucket(version: u8) {
    let place = Place::new(&LAYERS).await;
    let mirror = place.mirror("tier").await;
    place.pull(&mirror, "pulled-1").await;
    let count = std::fs::read_dir(place.image.path().join("blobs/sha256"))
        .expect("a directory")
        .count();
    until_stored(&place, count, &mirror).await;
    mirror.stop().await;
    let distribution = Distribution::start(version, &place).await;
    let into = place.scratch.path().join("pulled-2");
    skopeo::pull(&distribution.registry, NAME, &into)
        .await
        .expect("a pull");
    let pulled = Layout::open(&into).expect("a layout");
    assert_eq!(pulled.digest("1"), place.image.digest("1"));
}
