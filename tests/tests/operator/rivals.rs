//! Two operators of different installations that cover one namespace: one of them manages each mirror.

use crds::RegistryMirror;
use crds::conditions::{ConditionType, Reason};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::events::v1::Event;
use kube::api::{ListParams, Patch, PatchParams};
use operator::controller::ABANDONED;
use testbed::control_plane::skip_on_existing_cluster;
use testbed::scratch::Scratch;
use testbed::wait;

use crate::bench::{Bench, condition, ephemeral, soon};
use crate::process::Process;

/// The number of checks of the operator that stands by within which neither writes.
const CHECKS: usize = 3;

fn image(deployment: &Deployment) -> Option<String> {
    let template = deployment.spec.as_ref()?.template.spec.as_ref()?;
    template.containers.first()?.image.clone()
}

fn managed_by(mirror: &RegistryMirror) -> Option<String> {
    mirror.status.as_ref()?.managed_by.clone()
}

/// Two operators, each with a Lease and an image of its own.
struct Rivals {
    bench: Bench,
    scratch: Scratch,
    first: Process,
    second: Process,
}

impl Rivals {
    async fn start(name: &str) -> Self {
        let (bench, scratch) = (Bench::idle(name).await, Scratch::new(name).unwrap());
        let first = start(&bench, &scratch, "first", "registry-mirror:first").await;
        bench.mirror("hub", ephemeral()).await;
        bench.until_accepted("hub").await;
        let second = start(&bench, &scratch, "second", "registry-mirror:second").await;
        Self {
            bench,
            scratch,
            first,
            second,
        }
    }

    fn name(&self, operator: &str) -> String {
        format!("{}/{operator}", self.bench.namespace.name())
    }

    /// Waits until the second operator has read the first one's Lease some times; returns the writes of both in that time,
    /// without Leases and events.
    async fn writes_within(&self, checks: usize) -> Vec<String> {
        let mark = self.bench.mark().await;
        let audit = self.bench.control_plane.audit().unwrap();
        soon(&format!("{checks} checks"), async || {
            let mut reads = audit.since(mark).unwrap();
            reads.retain(|read| read.verb == "get" && read.user() == self.second.user);
            reads.retain(|read| read.object_ref.resource == "leases" && read.object_ref.name == "first");
            (reads.len() >= checks).then_some(())
        })
        .await;
        let mut all = Vec::new();
        for operator in [&self.first, &self.second] {
            let writes = audit.writes(mark, &operator.user, self.bench.namespace.name());
            all.extend(writes.unwrap().into_iter().map(|write| {
                let object = write.object_ref;
                format!("{} {} {}", write.verb, object.resource, object.name)
            }));
        }
        all.retain(|write| !write.contains(" leases ") && !write.contains(" events "));
        all
    }

    async fn until_managed_by(&self, operator: &str) {
        let name = self.name(operator);
        let managed = async || {
            let mirror = self.bench.get::<RegistryMirror>("hub").await.unwrap();
            (managed_by(&mirror)? == name && condition(&mirror, ConditionType::OperatorConflict).is_none())
                .then_some(())
        };
        wait::until("another manager", ABANDONED * 3, managed)
            .await
            .unwrap();
    }
}

async fn start(bench: &Bench, scratch: &Scratch, name: &str, image: &str) -> Process {
    let (lease, image) = (format!("--lease-name={name}"), format!("--server-image={image}"));
    Process::start(bench, scratch.path(), name, &[&lease, &image]).await
}

/// The second operator reports the first one and changes nothing, whatever happens to the mirror.
#[tokio::test]
async fn second_operator_stands_by_and_reports_conflict() {
    if skip_on_existing_cluster("second_operator_stands_by_and_reports_conflict") {
        return;
    }
    let rivals = Rivals::start("rivals").await;
    let bench = &rivals.bench;
    let reported = bench
        .until_hub(ConditionType::OperatorConflict, "True", Reason::ManagedByAnother)
        .await;
    for name in ["first", "second"] {
        assert!(
            reported.message.contains(&rivals.name(name)),
            "{}",
            reported.message
        );
    }
    soon("a warning", async || {
        let events = bench.api::<Event>().list(&ListParams::default()).await.unwrap();
        let is_it = |event: &Event| event.reason.as_deref() == Some("ManagedByAnother");
        events.iter().any(is_it).then_some(())
    })
    .await;

    // The mirror that the first one manages, and a new one, which either may take.
    let mut spec = ephemeral();
    spec["replicas"] = serde_json::json!(2);
    bench.mirror("hub", spec.clone()).await;
    bench.until_accepted("hub").await;
    bench.mirror("other", spec).await;
    bench.until_accepted("other").await;
    soon("a check without a write", async || {
        let writes = rivals.writes_within(1).await;
        writes.is_empty().then_some(())
    })
    .await;
    let writes = rivals.writes_within(CHECKS).await;
    assert!(writes.is_empty(), "{writes:#?}");
    let deployment = bench.get::<Deployment>("hub").await.unwrap();
    assert_eq!(image(&deployment).as_deref(), Some("registry-mirror:first"));
}

/// Once the first operator is gone for good, the second one takes its mirrors.
#[tokio::test]
async fn second_operator_takes_over_after_the_first() {
    let mut rivals = Rivals::start("takeover").await;
    rivals
        .bench
        .until_hub(ConditionType::OperatorConflict, "True", Reason::ManagedByAnother)
        .await;
    rivals.first.daemon.terminate().unwrap();
    assert_eq!(rivals.first.code().await, Some(0));
    rivals.until_managed_by("second").await;
    rivals
        .bench
        .until("hub", "the second one's image", |deployment: &Deployment| {
            (image(deployment)? == "registry-mirror:second").then_some(())
        })
        .await;
    // The first one comes back too late.
    let first = start(&rivals.bench, &rivals.scratch, "first", "registry-mirror:first").await;
    rivals
        .bench
        .until_hub(ConditionType::OperatorConflict, "True", Reason::ManagedByAnother)
        .await;
    // One that ends takes back what it reported.
    let mut first = first;
    first.daemon.terminate().unwrap();
    assert_eq!(first.code().await, Some(0));
    rivals.until_managed_by("second").await;
    drop(rivals.second);
}

/// An operator that may not read the manager's Lease says so, and takes the mirror once the record is removed.
#[tokio::test]
async fn unreadable_lease_of_manager_is_reported() {
    if skip_on_existing_cluster("unreadable_lease_of_manager_is_reported") {
        return;
    }
    let (bench, scratch) = (
        Bench::idle("unreadable").await,
        Scratch::new("unreadable").unwrap(),
    );
    bench.mirror("hub", ephemeral()).await;
    let record = async |manager: Option<&str>| {
        let patch = serde_json::json!({"status": {"managedBy": manager}});
        bench
            .api::<RegistryMirror>()
            .patch_status("hub", &PatchParams::default(), &Patch::Merge(&patch))
            .await
            .unwrap();
    };
    record(Some("kube-system/gone")).await;
    let _process = start(&bench, &scratch, "second", "registry-mirror:second").await;
    let reported = bench
        .until_hub(ConditionType::OperatorConflict, "True", Reason::ManagedByAnother)
        .await;
    for words in [
        "may not read the Lease of kube-system/gone",
        "kubectl patch rmir hub",
    ] {
        assert!(reported.message.contains(words), "{}", reported.message);
    }
    record(None).await;
    bench.until_accepted("hub").await;
}

/// An upgrade is another process with another image and the same Lease.
#[tokio::test]
async fn upgraded_operator_is_no_rival() {
    let (bench, scratch) = (Bench::idle("upgraded").await, Scratch::new("upgraded").unwrap());
    let mut before = start(&bench, &scratch, "same", "registry-mirror:before").await;
    bench.mirror("hub", ephemeral()).await;
    bench.until_accepted("hub").await;
    let _after = start(&bench, &scratch, "same", "registry-mirror:after").await;
    before.daemon.terminate().unwrap();
    assert_eq!(before.code().await, Some(0));
    bench
        .until("hub", "the new image", |deployment: &Deployment| {
            (image(deployment)? == "registry-mirror:after").then_some(())
        })
        .await;
    let mirror = bench.get::<RegistryMirror>("hub").await.unwrap();
    assert!(condition(&mirror, ConditionType::OperatorConflict).is_none());
    assert!(bench.get::<Lease>("same").await.is_some());
}
