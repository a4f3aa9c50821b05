//! Several operators at once: one works, by its Lease.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Patch, PatchParams};
use operator::lease::{DURATION, RETRY};
use rustix::process::Signal;
use serde_json::json;
use testbed::control_plane::skip_on_existing_cluster;
use testbed::scratch::Scratch;
use tokio::time::Instant;

use crate::bench::{Bench, ephemeral, soon};
use crate::process::Process;

/// The additional time on a busy machine.
const SLACK: Duration = Duration::from_secs(20);

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

/// A paused leader is replaced in time, and writes nothing once it continues.
#[tokio::test]
async fn paused_leader_is_replaced_and_writes_nothing() {
    if skip_on_existing_cluster("paused_leader_is_replaced_and_writes_nothing") {
        return;
    }
    let bench = Bench::idle("lease").await;
    let scratch = Scratch::new("lease").unwrap();
    let mut first = Process::start(&bench, scratch.path(), "first", &[]).await;
    until_held_by(&bench, "first").await;
    let second = Process::start(&bench, scratch.path(), "second", &[]).await;
    bench.mirror("one", ephemeral()).await;
    until_made(&bench, "one").await;

    first.daemon.signal(Signal::STOP).unwrap();
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
    second.daemon.signal(Signal::STOP).unwrap();
    bench.mirror("three", ephemeral()).await;
    let mark = bench.mark().await;
    first.daemon.signal(Signal::CONT).unwrap();
    assert_eq!(first.code().await, Some(4), "{}", first.daemon.log_tail());
    second.daemon.signal(Signal::CONT).unwrap();
    let audit = bench.control_plane.audit().unwrap();
    let writes = audit.writes(mark, &first.user, bench.namespace.name()).unwrap();
    assert!(
        // 409, or 504 if the operator ended before the answer.
        writes.iter().all(|write| write.code() >= Some(400)),
        "no write but one to the Lease that fails: {writes:#?}"
    );
}

/// A leader that is stopped releases its Lease at once.
#[tokio::test]
async fn stopped_leader_releases_its_lease_at_once() {
    let bench = Bench::idle("handover").await;
    let scratch = Scratch::new("handover").unwrap();
    let mut first = Process::start(&bench, scratch.path(), "first", &[]).await;
    until_held_by(&bench, "first").await;
    let mut second = Process::start(&bench, scratch.path(), "second", &[]).await;
    bench.mirror("one", ephemeral()).await;
    until_made(&bench, "one").await;
    first.daemon.terminate().unwrap();
    assert_eq!(first.code().await, Some(0), "{}", first.daemon.log_tail());
    until_held_by(&bench, "second").await;
    bench.mirror("two", ephemeral()).await;
    until_made(&bench, "two").await;

    // The operator gives way to a holder that takes the Lease by force.
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
