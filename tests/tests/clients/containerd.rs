//! The real containerd, alone: without a kubelet, with a root, a state and a socket of its own.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use testbed::image::{Layout, Random};
use testbed::process::{Daemon, command};
use testbed::scratch::Scratch;
use testbed::upstream::{Options, Upstream};
use testbed::{Node, binaries, wait};
use tokio::process::Command;

use crate::mirror::Mirror;
use crate::odd::{Odd, Says};
use crate::programs::{Ran, run};
use crate::tap::Tap;

const LIMIT: Duration = Duration::from_mins(1);
const HOST: &str = "registry.test";

/// The form in which a `hosts.toml` names a mirror.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Written {
    /// As the operator writes it: `?ns=` names the registry.
    Plain,
    /// With the registry's name in the path, too, as for mirrors that know no `ns`.
    Overridden,
}

/// Killed when dropped, and with it what it mounted.
pub(crate) struct Containerd {
    daemon: Daemon,
    scratch: Scratch,
    ctr: PathBuf,
}

impl Containerd {
    /// Only root can have one.
    pub(crate) async fn start() -> Option<Self> {
        if !Node::is_possible() {
            assert!(
                std::env::var("CI").as_deref() != Ok("true"),
                "containerd needs root"
            );
            eprintln!("left out: containerd needs root");
            return None;
        }
        let (program, ctr) = (binaries::get("containerd").await, binaries::get("ctr").await);
        let scratch = Scratch::new("containerd").expect("a directory");
        let home = scratch.path().display();
        let config = format!(
            "version = 3\nroot = '{home}/root'\nstate = '{home}/state'\n\
             disabled_plugins = ['io.containerd.cri.v1.images', 'io.containerd.cri.v1.runtime', \
             'io.containerd.grpc.v1.cri', 'io.containerd.nri.v1.nri', 'io.containerd.tracing.processor.v1.otlp']\n\
             [grpc]\naddress = '{home}/c.sock'\n"
        );
        let config = scratch.write("config.toml", config).expect("a file");
        let mut start = command("unshare");
        start.args(["--mount", "--propagation", "private", "--"]);
        start
            .arg(program.expect("containerd"))
            .arg("--config")
            .arg(config);
        let log = scratch.path().join("log");
        let containerd = Self {
            daemon: Daemon::spawn("containerd", start, &log).expect("containerd"),
            scratch,
            ctr: ctr.expect("ctr"),
        };
        let answers = async || containerd.ctr("default", &["version"]).await.ok();
        if let Err(late) = wait::until("containerd", LIMIT, answers).await {
            panic!("{late}: {}", containerd.daemon.log_tail());
        }
        Some(containerd)
    }

    async fn ctr(&self, namespace: &str, arguments: &[&str]) -> Ran {
        let mut command = Command::new(&self.ctr);
        command.arg("--address").arg(self.scratch.path().join("c.sock"));
        run(command.args(["--namespace", namespace]).args(arguments)).await
    }

    /// Pulls `registry.test/NAME` by a mirror at this address alone.
    pub(crate) async fn pull(&self, namespace: &str, mirror: SocketAddr, how: Written, name: &str) -> Ran {
        let hosts = self.scratch.path().join(format!("hosts-{namespace}"));
        std::fs::create_dir_all(hosts.join(HOST)).expect("a directory");
        let toml = match how {
            Written::Plain => format!("[host.\"http://{mirror}\"]\ncapabilities = [\"pull\", \"resolve\"]\n"),
            Written::Overridden => format!(
                "[host.\"http://{mirror}/v2/{HOST}\"]\ncapabilities = [\"pull\", \"resolve\"]\noverride_path = true\n"
            ),
        };
        // No server listens there: only the mirror can answer.
        let toml = format!("server = \"http://127.0.0.1:1\"\n{toml}");
        std::fs::write(hosts.join(HOST).join("hosts.toml"), toml).expect("a file");
        let (hosts, image) = (hosts.display().to_string(), format!("{HOST}/{name}"));
        self.ctr(namespace, &["images", "pull", "--hosts-dir", &hosts, &image])
            .await
    }

    /// The digests of all that it has.
    async fn content(&self, namespace: &str) -> String {
        let listed = self.ctr(namespace, &["content", "ls", "-q"]).await;
        listed.unwrap_or_else(|said| panic!("{said}"))
    }
}

fn image(scratch: &Scratch) -> Layout {
    let made = Random {
        platforms: vec![testbed::image::native_platform()],
        ..Random::new(21, &[2_000_000, 10])
    };
    made.write(&scratch.path().join("made"), "1").expect("an image")
}

/// The digest of its largest blob.
fn layer(layout: &Layout) -> String {
    let files = std::fs::read_dir(layout.path().join("blobs/sha256")).expect("blobs");
    let largest = files
        .map(|file| file.expect("a file"))
        .max_by_key(|file| file.metadata().map_or(0, |data| data.len()));
    format!(
        "sha256:{}",
        largest.expect("a blob").file_name().to_string_lossy()
    )
}

/// Containerd pulls by `hosts.toml`, with and without `override_path`, and resumes a pull that was cut.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containerd_pulls_by_hosts_toml_and_resumes() {
    let Some(containerd) = Containerd::start().await else {
        return;
    };
    let scratch = Scratch::new("pulled").expect("a directory");
    let upstream = Upstream::start(Options::default()).await.expect("an upstream");
    let layout = image(&scratch);
    for name in ["org/app:1", "org/other:1"] {
        upstream.push(&layout, "1", name).await.expect("a push");
    }
    let mirror = Mirror::of_host(HOST, &upstream.url()).await;
    let tap = Tap::start(mirror.address).await;
    tap.cut_once_at(1_000_000);
    let pulled = containerd
        .pull("one", tap.address, Written::Plain, "org/app:1")
        .await;
    pulled.unwrap_or_else(|said| panic!("{said}"));
    let requests = tap.requests();
    assert!(
        requests.contains("/v2/org/app/manifests/1?ns=registry.test"),
        "{requests}"
    );
    assert!(
        tap.was_cut() && requests.contains("\nrange: bytes="),
        "{requests}"
    );
    assert!(containerd.content("one").await.contains(&layer(&layout)));
    let bytes = upstream.counts().blob_bytes;
    assert!(
        bytes < 2_200_000,
        "{bytes} bytes from upstream: the cut cost a second download"
    );

    let pulled = containerd
        .pull("two", tap.address, Written::Overridden, "org/other:1")
        .await;
    pulled.unwrap_or_else(|said| panic!("{said}"));
    let requests = tap.requests();
    assert!(
        requests.contains("/v2/registry.test/org/other/manifests/1?ns=registry.test"),
        "{requests}"
    );
    tap.saw_no_credentials().expect("no credentials");
}

/// Containerd never keeps wrong bytes, and pulls once the upstream is right again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containerd_rejects_wrong_bytes_then_recovers() {
    let Some(containerd) = Containerd::start().await else {
        return;
    };
    let scratch = Scratch::new("wrong").expect("a directory");
    let layout = image(&scratch);
    let odd = Odd::start(&layout, "1").await;
    let mirror = Mirror::of_host(HOST, &odd.url()).await;
    let tap = Tap::start(mirror.address).await;
    odd.says(Says::WrongBlobs);
    let refused = containerd
        .pull("wrong", tap.address, Written::Plain, "org/app:1")
        .await;
    refused.expect_err("the layer is wrong");
    // It has taken what came before the cut, and asked for the rest.
    assert!(tap.requests().contains("\nrange: bytes="), "{}", tap.requests());
    assert!(!containerd.content("wrong").await.contains(&layer(&layout)));
    odd.says(Says::Truth);
    let pulls = async || {
        let pulled = containerd
            .pull("wrong", tap.address, Written::Plain, "org/app:1")
            .await;
        pulled.ok()
    };
    wait::until("pull after the refusal", LIMIT, pulls)
        .await
        .expect("a pull");
    assert!(containerd.content("wrong").await.contains(&layer(&layout)));
}
