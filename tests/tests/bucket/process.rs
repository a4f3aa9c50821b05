//! Mirrors as processes, which have an environment of their own.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use testbed::process::{Daemon, command, free_ports};
use testbed::skopeo::{self, Registry};
use testbed::wait;

use crate::place::{LIMIT, NAME, Place};

/// The time for uploads that pause after failures.
const PAUSES: Duration = Duration::from_mins(5);

/// A mirror as a process with an environment.
pub(crate) struct MirrorProcess {
    daemon: Daemon,
    pub(crate) address: SocketAddr,
    admin: String,
    log: PathBuf,
}

impl MirrorProcess {
    /// Starts a mirror with the keys of `storage.DRIVER` and these variables.
    pub(crate) async fn start(
        place: &Place,
        tier: &str,
        (driver, keys): (&str, &str),
        environment: &[(&str, String)],
    ) -> Self {
        let path = place.configuration(tier, keys, "cache: {maxsize: 1Gi}");
        let ports: [u16; 2] = free_ports().expect("ports");
        let text = std::fs::read_to_string(&path).expect("a file");
        let mut text = text.replacen("s3: {", &format!("{driver}: {{"), 1);
        for port in ports {
            text = text.replacen("addr: '127.0.0.1:0'", &format!("addr: '127.0.0.1:{port}'"), 1);
        }
        std::fs::write(&path, format!("{text}log: {{level: debug}}\n")).expect("a file");
        let mut serve = command(env!("CARGO_BIN_EXE_mirror-under-test"));
        serve.arg("serve").arg(&path);
        for (name, value) in environment {
            serve.env(name, value);
        }
        let log = place.scratch.path().join(format!("{tier}.log"));
        let daemon = Daemon::spawn("mirror", serve, &log).expect("a mirror");
        let address = ([127, 0, 0, 1], ports[0]).into();
        let listens = || async { tokio::net::TcpStream::connect(address).await.ok() };
        wait::until("mirror that listens", LIMIT, listens)
            .await
            .expect("it starts");
        let admin = format!("127.0.0.1:{}", ports[1]);
        Self {
            daemon,
            address,
            admin,
            log,
        }
    }

    pub(crate) async fn pull(&self, place: &Place, into: &str) {
        let registry = Registry::open(self.address);
        let into = place.scratch.path().join(into);
        skopeo::pull(&registry, NAME, &into).await.expect("a pull");
    }

    pub(crate) async fn status(&self) -> Option<Value> {
        let answer = reqwest::get(format!("http://{}/status", self.admin)).await.ok()?;
        let status: Value = serde_json::from_str(&answer.text().await.ok()?).ok()?;
        Some(status["bucket"].clone())
    }

    /// Waits until the bucket has all content, which is in this mirror's local tier.
    pub(crate) async fn until_uploaded(&self, place: &Place) {
        let tag = "docker/registry/v2/repositories/library/app/_manifests/tags/1/current/link";
        let tag = place.store.objects().join(tag);
        let uploaded =
            || async { (self.status().await?["pendingUploads"] == 0 && tag.exists()).then_some(()) };
        wait::until("end of the uploads", PAUSES, uploaded)
            .await
            .expect("they end");
    }

    pub(crate) async fn until_state(&self, state: &str) -> Value {
        let reached = || async { self.status().await.filter(|status| status["state"] == state) };
        wait::until("state of the bucket", LIMIT, reached)
            .await
            .unwrap_or_else(|error| panic!("{state}: {error}; {}", self.daemon.log_tail()))
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).expect("a log")
    }
}
