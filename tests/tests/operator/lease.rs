//! Several operators at once: one works, by its Lease.

use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, ServiceAccount};
use k8s_openapi::api::rbac::v1::RoleBinding;
use kube::api::{Patch, PatchParams};
use operator::lease::{DURATION, RETRY};
use rustix::process::Signal;
use serde_json::json;
use testbed::control_plane::skip_on_existing_cluster;
use testbed::process::{Daemon, command};
use testbed::scratch::Scratch;
use tokio::time::Instant;

use crate::bench::{Bench, ephemeral, soon};

/// What a busy machine may add.
const SLACK: Duration = Duration::from_secs(20);

/// An operator as a process, as a ServiceAccount of its own.
struct Process {
    daemon: Daemon,
    user: String,
}

impl Process {
    async fn start(bench: &Bench, scratch: &Path, account: &str) -> Self {
        bench
            .apply::<ServiceAccount>(json!({"metadata": {"name": account}}))
            .await;
        let binding = json!({
            "metadata": {"name": account},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
            "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": bench.namespace.name()}],
        });
        bench.apply::<RoleBinding>(binding).await;
        let namespace = bench.namespace.name();
        let kubeconfig = bench
            .control_plane
            .service_account_kubeconfig(namespace, account)
            .await
            .unwrap();
        let mut command = command(env!("CARGO_BIN_EXE_operator-under-test"));
        command
            .args(["operator", "--listen=127.0.0.1:0", "--log-format=text"])
            .arg(format!("--watch-namespace={namespace}"))
            .arg(format!("--lease-namespace={namespace}"))
            .env("KUBECONFIG", kubeconfig)
            .env("HOSTNAME", account);
        Self {
            daemon: Daemon::spawn(account, command, &scratch.join(format!("{account}.log"))).unwrap(),
            user: format!("system:serviceaccount:{namespace}:{account}"),
        }
    }

    fn signal(&self, signal: Signal) {
        self.daemon.signal(signal).unwrap();
    }

    async fn code(&mut self) -> Option<i32> {
        self.daemon.ended().await.unwrap().code()
    }
}

async fn until_held_by(bench: &Bench, account: &str) {
    let prefix = format!("{account}_");
    bench
        .until("registry-mirror", "its holder", |lease: &Lease| {
            let holder = lease.spec.as_ref()?.holder_identity.as_ref()?;
            holder.starts_with(&prefix).then_some(())
        })
        .await;
}

async fn until_made(bench: &Bench, mirror: &str) {
    bench
        .until(&format!("{mirror}-config"), "a child", |_: &ConfigMap| Some(()))
        .await;
}

#[tokio::test]
async fn a_paused_leader_is_replaced_in_time_and_writes_nothing_when_it_goes_on() {
    if skip_on_existing_cluster("a_paused_leader_is_replaced_in_time_and_writes_nothing_when_it_goes_on") {
        return;
    }
    let bench = Bench::idle("lease").await;
    let scratch = Scratch::new("lease").unwrap();
    let mut first = Process::start(&bench, scratch.path(), "first").await;
    until_held_by(&bench, "first").await;
    let second = Process::start(&bench, scratch.path(), "second").await;
    bench.mirror("one", ephemeral()).await;
    until_made(&bench, "one").await;

    first.signal(Signal::STOP);
    let stopped = Instant::now();
    bench.mirror("two", ephemeral()).await;
    until_held_by(&bench, "second").await;
    assert!(
        stopped.elapsed() < DURATION + RETRY + SLACK,
        "{:?}",
        stopped.elapsed()
    );
    until_made(&bench, "two").await;

    // With the second one stopped too, there is something that the first would like to write.
    second.signal(Signal::STOP);
    bench.mirror("three", ephemeral()).await;
    let mark = bench.mark().await;
    first.signal(Signal::CONT);
    assert_eq!(first.code().await, Some(4), "{}", first.daemon.log_tail());
    second.signal(Signal::CONT);
    let audit = bench.control_plane.audit().unwrap();
    let writes = audit.writes(mark, &first.user, bench.namespace.name()).unwrap();
    assert!(
        writes.iter().all(|write| write.code() == Some(409)),
        "no write but one to the Lease that fails: {writes:#?}"
    );
}

#[tokio::test]
async fn a_leader_that_is_told_to_stop_hands_over_at_once() {
    let bench = Bench::idle("handover").await;
    let scratch = Scratch::new("handover").unwrap();
    let mut first = Process::start(&bench, scratch.path(), "first").await;
    until_held_by(&bench, "first").await;
    let mut second = Process::start(&bench, scratch.path(), "second").await;
    bench.mirror("one", ephemeral()).await;
    until_made(&bench, "one").await;
    first.daemon.terminate().unwrap();
    assert_eq!(first.code().await, Some(0), "{}", first.daemon.log_tail());
    until_held_by(&bench, "second").await;
    bench.mirror("two", ephemeral()).await;
    until_made(&bench, "two").await;

    // Whoever takes the Lease by force is given way to.
    let taken = json!({"spec": {"holderIdentity": "someone_else"}});
    let leases = bench.api::<Lease>();
    let params = PatchParams::default();
    leases
        .patch("registry-mirror", &params, &Patch::Merge(&taken))
        .await
        .unwrap();
    assert_eq!(second.code().await, Some(4), "{}", second.daemon.log_tail());
    soon("no other holder", async || {
        let lease = leases.get("registry-mirror").await.unwrap();
        (lease.spec?.holder_identity? == "someone_else").then_some(())
    })
    .await;
}
