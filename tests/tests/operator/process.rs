//! An operator as a process.

use std::path::Path;

use k8s_openapi::api::core::v1::ServiceAccount;
use serde_json::json;
use testbed::control_plane::client_from;
use testbed::process::{Daemon, command};

use crate::bench::Bench;
use crate::rights;

/// The Lease of an operator that no argument names another one for.
pub(crate) const LEASE: &str = "registry-mirror";

/// It asks as a ServiceAccount of its own, with the chart's rights in the bench's namespace.
pub(crate) struct Process {
    pub(crate) daemon: Daemon,
    pub(crate) user: String,
}

impl Process {
    /// It listens on no port that is known, unless the arguments say so.
    pub(crate) async fn start(bench: &Bench, scratch: &Path, account: &str, arguments: &[&str]) -> Self {
        bench
            .apply::<ServiceAccount>(json!({"metadata": {"name": account}}))
            .await;
        let namespace = bench.namespace.name();
        let kubeconfig = bench
            .control_plane
            .service_account_kubeconfig(namespace, account)
            .await
            .unwrap();
        let subject = json!({"kind": "ServiceAccount", "name": account, "namespace": namespace});
        let client = client_from(&kubeconfig).await.unwrap();
        let lease = arguments
            .iter()
            .find_map(|flag| flag.strip_prefix("--lease-name="));
        rights::grant(bench, account, subject, &client, lease.unwrap_or(LEASE)).await;
        // A bench measures the one that users run.
        let program = std::env::var_os("OPERATOR_UNDER_TEST")
            .unwrap_or_else(|| env!("CARGO_BIN_EXE_operator-under-test").into());
        let mut command = command(program);
        command
            .args(["operator", "--log-format=text"])
            .arg(format!("--watch-namespace={namespace}"))
            .arg(format!("--lease-namespace={namespace}"))
            .env("LISTEN", "127.0.0.1:0")
            .args(arguments)
            .env("KUBECONFIG", kubeconfig)
            .env("HOSTNAME", account);
        Self {
            daemon: Daemon::spawn(account, command, &scratch.join(format!("{account}.log"))).unwrap(),
            user: format!("system:serviceaccount:{namespace}:{account}"),
        }
    }

    pub(crate) async fn code(&mut self) -> Option<i32> {
        self.daemon.ended().await.unwrap().code()
    }
}
