//! A kubelet for machines without root: a Pod's containers run as processes of this machine.
//!
//! What a Pod's containers would run, it runs, from the programs that [`Image`]s name; their mount paths in
//! arguments and environment become directories filled from the Pod's volumes, and listening on all addresses
//! becomes listening on the Pod's own, one of 127.0.0.0/8. It probes, restarts and stops them and reports their
//! states. There is no isolation, no limit is enforced, and no Service leads to the Pods, as Endpoints can't hold
//! loopback addresses. What it can't do (init containers, hooks, subPath, exec probes) it refuses in the
//! container's state.

mod atomic_directory;
mod claims;
mod container;
mod image;
mod invocation;
mod node;
mod pod;
mod pods;
mod probe;
mod rewrite;
mod service_account;
mod sources;
mod status;
mod volumes;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kube::config::Kubeconfig;
use kube::{Api, Client};
use rand::RngExt;
use tokio::task::JoinSet;

pub use self::image::{Image, NamedImage};

use crate::control_plane::{self, Namespaced, access};
use crate::scratch::Scratch;

/// Under this name its requests are in the audit log.
pub const USER: &str = "fake-kubelet";

/// The options of a kubelet.
#[derive(Debug, Clone)]
pub struct Options {
    /// Only this namespace's Pods and claims; all where there is none.
    pub namespace: Option<String>,
    /// The images that can be had, by their full references.
    pub images: BTreeMap<String, Image>,
    /// The interval between reads of Secrets and the like. A real kubelet takes about a minute; a change of the Pod,
    /// say of an annotation, causes a read at once.
    pub sync: Duration,
}

impl Default for Options {
    /// Returns options for all namespaces, without images, with reads every second.
    fn default() -> Self {
        Self {
            namespace: None,
            images: BTreeMap::new(),
            sync: Duration::from_secs(1),
        }
    }
}

impl Options {
    /// Returns options for one namespace.
    pub fn for_namespace(namespace: &str) -> Self {
        Self {
            namespace: Some(namespace.to_owned()),
            ..Self::default()
        }
    }

    /// Adds an image.
    #[must_use]
    pub fn image(mut self, reference: &str, image: Image) -> Self {
        self.images.insert(reference.to_owned(), image);
        self
    }
}

/// A node that runs Pods until it is dropped.
pub struct FakeKubelet {
    // In this order: the processes end before their files go.
    tasks: JoinSet<()>,
    kubelet: Arc<Kubelet>,
}

/// The state that all parts of the kubelet share.
struct Kubelet {
    client: Client,
    kubeconfig: Kubeconfig,
    node: String,
    namespace: Option<String>,
    images: BTreeMap<String, Image>,
    sync: Duration,
    http: reqwest::Client,
    /// Volumes stay as they are for now.
    holds_volumes: AtomicBool,
    scratch: Scratch,
}

impl FakeKubelet {
    /// Registers a Node of a new name and starts to bind and run Pods.
    pub async fn start(kubeconfig: &Path, options: Options) -> Result<Self, control_plane::Error> {
        let kubelet = Arc::new(Kubelet::new(kubeconfig, options).await?);
        node::register(&kubelet).await?;
        claims::publish_class(&kubelet).await?;
        let mut tasks = JoinSet::new();
        tasks.spawn(node::heartbeat(kubelet.clone()));
        tasks.spawn(claims::provision(kubelet.clone()));
        tasks.spawn(claims::reclaim(kubelet.clone()));
        tasks.spawn(pods::follow(kubelet.clone()));
        Ok(Self { tasks, kubelet })
    }

    /// Returns the Node's name.
    pub fn node(&self) -> &str {
        &self.kubelet.node
    }

    /// Stops or continues the reads of Secrets and `ConfigMaps`: a kubelet that is busy, or cut off.
    pub fn hold_volumes(&self, hold: bool) {
        self.kubelet.holds_volumes.store(hold, Ordering::Relaxed);
    }

    /// Returns the file with the output of all runs of a container.
    pub fn log(&self, pod_uid: &str, container: &str) -> PathBuf {
        let pods = self.kubelet.scratch.path().join("pods");
        pods.join(pod_uid).join(format!("{container}.log"))
    }
}

impl Drop for FakeKubelet {
    /// Deletes the Node, so that no controller waits for it and the objects of its Pods are collected.
    fn drop(&mut self) {
        self.tasks.abort_all();
        let kubelet = self.kubelet.clone();
        // The test's runtime may be ending: the request is made on one of its own.
        let request = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .ok()?;
            runtime
                .block_on(node::deregister(&kubelet.kubeconfig, &kubelet.node))
                .ok()
        });
        // An API server that has ended has no Node either.
        let _ = request.join();
    }
}

impl Kubelet {
    async fn new(kubeconfig: &Path, options: Options) -> Result<Self, control_plane::Error> {
        let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
        let client = access::client(&kubeconfig, Some((USER, &["system:masters"]))).await?;
        let scratch =
            Scratch::new(USER).map_err(control_plane::Error::io("can't make a scratch directory"))?;
        // A probe does not ask who the server is.
        let http = reqwest::Client::builder()
            .danger_accept_invalid_certs(true)
            .no_proxy()
            .build();
        Ok(Self {
            client,
            kubeconfig,
            node: format!("fake-{:08x}", rand::rng().random::<u32>()),
            namespace: options.namespace,
            images: options.images,
            sync: options.sync,
            http: http
                .map_err(|error| control_plane::Error::io("can't probe")(std::io::Error::other(error)))?,
            holds_volumes: AtomicBool::new(false),
            scratch,
        })
    }

    /// Returns the API of a kind in the kubelet's namespaces.
    fn api<K: Namespaced>(&self) -> Api<K> {
        match &self.namespace {
            Some(namespace) => self.namespaced(namespace),
            None => Api::all(self.client.clone()),
        }
    }

    fn namespaced<K: Namespaced>(&self, namespace: &str) -> Api<K> {
        Api::namespaced(self.client.clone(), namespace)
    }

    fn labels(&self) -> BTreeMap<&'static str, String> {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        BTreeMap::from([
            ("kubernetes.io/hostname", self.node.clone()),
            ("kubernetes.io/os", "linux".to_owned()),
            ("kubernetes.io/arch", architecture.to_owned()),
        ])
    }
}

/// Returns a random address for a Pod. Other kubelets draw from the same four million.
fn draw_address() -> Ipv4Addr {
    let mut draw = rand::rng();
    Ipv4Addr::new(
        127,
        draw.random_range(64..128),
        draw.random(),
        draw.random_range(1..255),
    )
}
