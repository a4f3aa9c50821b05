//! A real Kubernetes control plane: etcd, kube-apiserver and, where objects must be acted on,
//! kube-controller-manager, on free ports of 127.0.0.1, without root.

pub(crate) mod access;
mod existing;
mod files;
mod manifests;
mod namespace;
mod processes;

use std::path::{Path, PathBuf};

use kube::Client;
use kube::config::Kubeconfig;
use rustix::process::Signal;
use tokio::sync::OnceCell;

pub use self::existing::{is_used as uses_existing_cluster, skip_on_existing_cluster};
pub use self::namespace::{Namespace, Namespaced, dry_run};

use self::processes::Processes;
use crate::audit::Audit;
use crate::binaries::{self, Kubernetes};
use crate::scratch::Scratch;
use crate::wait::TimedOut;

/// The options of a control plane.
#[derive(Debug, Clone)]
pub struct Options {
    /// Runs kube-controller-manager. Without it, the cluster has no garbage collection, no Deployment or StatefulSet
    /// makes Pods, no PVC is bound and no namespace is removed; namespaces have no `default` ServiceAccount either, so
    /// admission does not ask for it.
    pub controller_manager: bool,
    /// Files applied before kube-controller-manager starts: its garbage collector looks for new kinds only every
    /// 30 s, but knows from the start what is there.
    pub manifests: Vec<PathBuf>,
}

impl Default for Options {
    /// Returns options with controllers and the project's own kinds.
    fn default() -> Self {
        Self {
            controller_manager: true,
            manifests: vec![binaries::workspace().join("crds/registrymirrors.yaml")],
        }
    }
}

impl Options {
    /// Returns options for etcd and an empty API server.
    pub fn bare() -> Self {
        Self {
            controller_manager: false,
            manifests: Vec::new(),
        }
    }

    fn programs(&self) -> Vec<&'static str> {
        let controllers = self.controller_manager.then_some("kube-controller-manager");
        let always = ["etcd", Kubernetes::wanted().api_server()];
        always.into_iter().chain(controllers).collect()
    }
}

/// Why there is no control plane.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Error {
    #[error(transparent)]
    Binaries(#[from] binaries::Error),
    #[error("{what}: {source}")]
    Io { what: String, source: std::io::Error },
    #[error("can't make keys: {0}")]
    Keys(#[from] rcgen::Error),
    #[error("{name} ended while it was starting; the end of its log:\n{log}")]
    Died { name: String, log: String },
    #[error("{source}; the end of the log of {name}:\n{log}")]
    NotReady {
        name: String,
        source: TimedOut,
        log: String,
    },
    #[error("can't use the kubeconfig: {0}")]
    Kubeconfig(#[from] kube::config::KubeconfigError),
    #[error("the API server does not do what the tests ask of it: {0}")]
    Api(#[from] kube::Error),
    #[error("{0:?} can't name a user or a group")]
    Name(String),
    #[error("can't apply {}: {reason}", .path.display())]
    Manifest { path: PathBuf, reason: String },
}

impl Error {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

/// Creates a client from a kubeconfig file.
pub async fn client_from(kubeconfig: &Path) -> Result<Client, Error> {
    access::client(&Kubeconfig::read_from(kubeconfig)?, None).await
}

/// A control plane that answers; it ends on drop, and with the process at the latest.
#[derive(Debug)]
pub struct ControlPlane {
    kubeconfig: Kubeconfig,
    kubeconfig_path: PathBuf,
    // In this order: the processes end before their files go.
    processes: Option<Processes>,
    scratch: Scratch,
}

impl ControlPlane {
    /// Returns the control plane that all tests of this process share, with [`Options::default`]; with
    /// `USE_EXISTING_CLUSTER=true` the cluster of the kubeconfig.
    ///
    /// # Panics
    /// Where it can't be had; the message says why.
    pub async fn shared() -> &'static Self {
        static SHARED: OnceCell<ControlPlane> = OnceCell::const_new();
        let start = async || {
            if uses_existing_cluster() {
                Self::connect().await
            } else {
                Self::start(Options::default()).await
            }
        };
        SHARED
            .get_or_try_init(start)
            .await
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// Starts a control plane for one test, which may kill, audit or fill it. Call
    /// [`skip_on_existing_cluster`] first.
    pub async fn start(options: Options) -> Result<Self, Error> {
        crate::install_crypto_provider();
        binaries::build(&options.programs()).await?;
        let scratch = Scratch::new("control-plane").map_err(Error::io("can't make a scratch directory"))?;
        let (processes, kubeconfig) = Processes::start(&scratch, &options).await?;
        Self::finish(scratch, kubeconfig, Some(processes))
    }

    fn finish(scratch: Scratch, kubeconfig: Kubeconfig, processes: Option<Processes>) -> Result<Self, Error> {
        let kubeconfig_path = access::write(&scratch, "admin.kubeconfig", &kubeconfig)?;
        Ok(Self {
            kubeconfig,
            kubeconfig_path,
            processes,
            scratch,
        })
    }

    /// Returns the administrator's kubeconfig, for programs.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig_path
    }

    /// Returns an administrator's client. It belongs to the runtime that it is made in: each test makes its own.
    ///
    /// # Panics
    /// Where the kubeconfig can't be used, which only that of an existing cluster can't.
    pub async fn client(&self) -> Client {
        access::client(&self.kubeconfig, None)
            .await
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// Returns a client that acts as `user` with `groups` (`system:masters` may do everything), so that the audit log
    /// tells it from others.
    ///
    /// # Panics
    /// Where the kubeconfig can't be used, or the names can't stand in a header.
    pub async fn client_as(&self, user: &str, groups: &[&str]) -> Client {
        access::client(&self.kubeconfig, Some((user, groups)))
            .await
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// Returns the configuration of [`ControlPlane::client_as`], for a client with a layer of the test's own, such as
    /// [`crate::faults::Faults`].
    ///
    /// # Panics
    /// Like [`ControlPlane::client_as`].
    pub async fn config_as(&self, user: &str, groups: &[&str]) -> kube::Config {
        access::config(&self.kubeconfig, Some((user, groups)))
            .await
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// Returns a kubeconfig file with the permissions of a ServiceAccount only.
    pub async fn service_account_kubeconfig(&self, namespace: &str, name: &str) -> Result<PathBuf, Error> {
        let token = access::service_account_token(self.client().await, namespace, name).await?;
        let kubeconfig = access::with_token(&self.kubeconfig, token);
        access::write(
            &self.scratch,
            &format!("{namespace}.{name}.kubeconfig"),
            &kubeconfig,
        )
    }

    /// Creates a namespace for one test, whose name starts with `prefix-`.
    ///
    /// # Panics
    /// Where the API server does not make it.
    pub async fn namespace(&self, prefix: &str) -> Namespace {
        Namespace::create(self, prefix)
            .await
            .unwrap_or_else(|error| panic!("can't make a namespace for {prefix}: {error}"))
    }

    /// Returns the audit log; `None` on an existing cluster.
    pub fn audit(&self) -> Option<&Audit> {
        self.processes.as_ref().map(Processes::audit)
    }

    /// Returns the processes of the control plane with their ids, for measurements; empty on an existing cluster.
    pub fn ids(&self) -> Vec<(&'static str, u32)> {
        self.processes.as_ref().map(Processes::ids).unwrap_or_default()
    }

    /// Returns true if controllers act on Pods, owner references and PVCs.
    pub fn has_controllers(&self) -> bool {
        self.processes.as_ref().is_none_or(Processes::has_controllers)
    }

    /// Kills the API server without notice. An existing cluster is left alone.
    pub fn kill_api_server(&self) {
        if let Some(processes) = &self.processes {
            processes.kill_api_server();
        }
    }

    /// Stops etcd, as a disk that hangs does: clients of the API server wait. An existing cluster is left alone.
    pub fn hang_etcd(&self) -> Result<(), Error> {
        self.signal_etcd(Signal::STOP)
    }

    /// Lets etcd continue.
    pub fn wake_etcd(&self) -> Result<(), Error> {
        self.signal_etcd(Signal::CONT)
    }

    fn signal_etcd(&self, signal: Signal) -> Result<(), Error> {
        let sent = self
            .processes
            .as_ref()
            .map(|processes| processes.signal_etcd(signal));
        sent.unwrap_or(Ok(())).map_err(Error::io("can't signal etcd"))
    }

    /// Starts the API server again where it was, and waits for it.
    pub async fn start_api_server(&self) -> Result<(), Error> {
        match &self.processes {
            Some(processes) => processes.start_api_server(&self.kubeconfig).await,
            None => Ok(()),
        }
    }
}
