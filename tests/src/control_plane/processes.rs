//! The processes of a control plane and their flags.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use http::Request;
use kube::config::Kubeconfig;
use parking_lot::Mutex;
use rustix::process::Signal;

use super::files::Files;
use super::{Error, Options, access, manifests};
use crate::audit::Audit;
use crate::binaries::{self, Kubernetes};
use crate::process::{Daemon, command, free_ports};
use crate::scratch::Scratch;
use crate::wait;

/// The longest wait for the API server's first answer; 4 s is usual, a busy machine needs more.
const READY: Duration = Duration::from_secs(90);
/// Admission plugins that managed clusters add to those that are on by default. `OpenShift` has the first one, which
/// refuses a change of owner references by a user without the permission to delete the object. `EventRateLimit` is not
/// among them: it drops events, on which tests wait, and the operator treats a lost event as harmless.
const ADMISSION_PLUGINS: [&str; 5] = [
    "OwnerReferencesPermissionEnforcement",
    "AlwaysPullImages",
    "DenyServiceExternalIPs",
    "ExtendedResourceToleration",
    "NodeRestriction",
];
/// The number of tries with other ports after another process has taken a port.
const ATTEMPTS: usize = 5;

#[derive(Debug)]
pub(super) struct Processes {
    // In this order: clients end before what they talk to.
    controller_manager: Option<Daemon>,
    api_server: Mutex<Daemon>,
    etcd: Mutex<Daemon>,
    ports: Ports,
    directory: PathBuf,
    files: Files,
    audit: Audit,
    options: Options,
}

#[derive(Debug, Clone, Copy)]
struct Ports {
    etcd: u16,
    etcd_peers: u16,
    api: u16,
}

impl Processes {
    pub(super) async fn start(scratch: &Scratch, options: &Options) -> Result<(Self, Kubeconfig), Error> {
        let mut attempt = 1;
        let (mut processes, kubeconfig) = loop {
            match Self::start_once(scratch, options, attempt).await {
                Err(Error::Died { log, .. })
                    if log.contains("address already in use") && attempt < ATTEMPTS =>
                {
                    attempt += 1;
                }
                other => break other?,
            }
        };
        let client = access::client(&kubeconfig, None).await?;
        for path in &options.manifests {
            manifests::apply(&client, path).await?;
        }
        if options.controller_manager {
            processes.start_controller_manager(scratch)?;
        }
        Ok((processes, kubeconfig))
    }

    async fn start_once(
        scratch: &Scratch,
        options: &Options,
        attempt: usize,
    ) -> Result<(Self, Kubeconfig), Error> {
        let directory = scratch
            .subdirectory(&attempt.to_string())
            .map_err(Error::io("can't make a scratch directory"))?;
        let files = Files::create(scratch)?;
        let [etcd, etcd_peers, api] = free_ports().map_err(Error::io("no port is free"))?;
        let ports = Ports {
            etcd,
            etcd_peers,
            api,
        };
        let audit_log = directory.join("audit.log");
        let processes = Self {
            controller_manager: None,
            etcd: Mutex::new(run("etcd", &directory, &etcd_flags(ports, &directory))?),
            api_server: Mutex::new(run(
                Kubernetes::wanted().api_server(),
                &directory,
                &api_server_flags(ports, &files, &audit_log, options),
            )?),
            ports,
            audit: Audit::new(&audit_log),
            directory,
            files,
            options: options.clone(),
        };
        let kubeconfig = processes.kubeconfig(&processes.files.admin_token);
        processes.ready(&kubeconfig).await?;
        Ok((processes, kubeconfig))
    }

    fn kubeconfig(&self, token: &str) -> Kubeconfig {
        let server = format!("https://127.0.0.1:{}", self.ports.api);
        access::kubeconfig(server, &self.files.ca, token.to_owned())
    }

    async fn ready(&self, kubeconfig: &Kubeconfig) -> Result<(), Error> {
        let client = access::client(kubeconfig, None).await?;
        let probe = wait::until("answer from kube-apiserver", READY, || {
            let ended = [&self.api_server, &self.etcd]
                .into_iter()
                .any(|daemon| daemon.lock().exited().is_some());
            let client = &client;
            async move {
                let request = Request::get("/readyz").body(Vec::new()).ok()?;
                let answers = client.request_text(request).await.is_ok();
                (ended || answers).then_some(answers)
            }
        });
        match probe.await {
            Ok(true) => Ok(()),
            Ok(false) => {
                let mut dead = self.etcd.lock();
                if dead.exited().is_none() {
                    dead = self.api_server.lock();
                }
                Err(Error::Died {
                    name: dead.name().to_owned(),
                    log: dead.log_tail(),
                })
            }
            Err(source) => {
                let late = self.api_server.lock();
                Err(Error::NotReady {
                    name: late.name().to_owned(),
                    source,
                    log: late.log_tail(),
                })
            }
        }
    }

    fn start_controller_manager(&mut self, scratch: &Scratch) -> Result<(), Error> {
        let kubeconfig = self.kubeconfig(&self.files.controller_manager_token);
        let path = access::write(scratch, "kube-controller-manager.kubeconfig", &kubeconfig)?;
        let flags = controller_manager_flags(&path, &self.files);
        self.controller_manager = Some(run("kube-controller-manager", &self.directory, &flags)?);
        Ok(())
    }

    pub(super) fn audit(&self) -> &Audit {
        &self.audit
    }

    pub(super) fn has_controllers(&self) -> bool {
        self.controller_manager.is_some()
    }

    pub(super) fn ids(&self) -> Vec<(&'static str, u32)> {
        let controllers = self.controller_manager.as_ref();
        let controllers = controllers.map(|daemon| ("kube-controller-manager", daemon.id()));
        [
            ("API server", self.api_server.lock().id()),
            ("etcd", self.etcd.lock().id()),
        ]
        .into_iter()
        .chain(controllers)
        .collect()
    }

    pub(super) fn signal_etcd(&self, signal: Signal) -> io::Result<()> {
        self.etcd.lock().signal(signal)
    }

    pub(super) fn kill_api_server(&self) {
        self.api_server.lock().kill();
    }

    pub(super) async fn start_api_server(&self, kubeconfig: &Kubeconfig) -> Result<(), Error> {
        let audit_log = self.directory.join("audit.log");
        let flags = api_server_flags(self.ports, &self.files, &audit_log, &self.options);
        *self.api_server.lock() = run(Kubernetes::wanted().api_server(), &self.directory, &flags)?;
        self.ready(kubeconfig).await
    }
}

fn run(program: &'static str, directory: &Path, flags: &[String]) -> Result<Daemon, Error> {
    let mut command: Command = command(binaries::locate(program)?);
    command.args(flags).current_dir(directory);
    Daemon::spawn(program, command, &directory.join(format!("{program}.log")))
        .map_err(Error::io(format!("can't start {program}")))
}

fn etcd_flags(ports: Ports, directory: &Path) -> Vec<String> {
    let clients = format!("http://127.0.0.1:{}", ports.etcd);
    let peers = format!("http://127.0.0.1:{}", ports.etcd_peers);
    vec![
        format!("--data-dir={}", directory.join("etcd").display()),
        format!("--listen-client-urls={clients}"),
        format!("--advertise-client-urls={clients}"),
        format!("--listen-peer-urls={peers}"),
        format!("--initial-advertise-peer-urls={peers}"),
        format!("--initial-cluster=default={peers}"),
        // A crash of the machine may lose test objects.
        "--unsafe-no-fsync".to_owned(),
    ]
}

fn api_server_flags(ports: Ports, files: &Files, audit_log: &Path, options: &Options) -> Vec<String> {
    let mut flags = vec![
        format!("--etcd-servers=http://127.0.0.1:{}", ports.etcd),
        format!("--secure-port={}", ports.api),
        "--bind-address=127.0.0.1".to_owned(),
        // Endpoints may not be loopback addresses, and nothing needs the Service `kubernetes` here.
        "--advertise-address=127.0.0.1".to_owned(),
        "--endpoint-reconciler-type=none".to_owned(),
        format!("--tls-cert-file={}", files.certificate.display()),
        format!("--tls-private-key-file={}", files.key.display()),
        format!("--token-auth-file={}", files.tokens.display()),
        "--authorization-mode=RBAC".to_owned(),
        format!("--enable-admission-plugins={}", ADMISSION_PLUGINS.join(",")),
        "--allow-privileged=true".to_owned(),
        "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_owned(),
        format!(
            "--service-account-key-file={}",
            files.service_account_public_key.display()
        ),
        format!(
            "--service-account-signing-key-file={}",
            files.service_account_key.display()
        ),
        format!("--audit-policy-file={}", files.audit_policy.display()),
        format!("--audit-log-path={}", audit_log.display()),
        // Written before the request ends, and never rotated away from who reads it.
        "--audit-log-mode=blocking".to_owned(),
        "--audit-log-maxsize=100000".to_owned(),
    ];
    if !options.controller_manager {
        flags.push("--disable-admission-plugins=ServiceAccount".to_owned());
    }
    flags
}

fn controller_manager_flags(kubeconfig: &Path, files: &Files) -> Vec<String> {
    vec![
        format!("--kubeconfig={}", kubeconfig.display()),
        // It gets no requests.
        "--secure-port=0".to_owned(),
        "--leader-elect=false".to_owned(),
        // The audit log then names each controller.
        "--use-service-account-credentials=true".to_owned(),
        format!("--root-ca-file={}", files.ca.display()),
        format!(
            "--service-account-private-key-file={}",
            files.service_account_key.display()
        ),
        // Instead of 15 s: who waits for an autoscaler is a test.
        "--horizontal-pod-autoscaler-sync-period=1s".to_owned(),
        "--kube-api-qps=500".to_owned(),
        "--kube-api-burst=1000".to_owned(),
    ]
}
