//! Claims: they grow as the storage driver says, keep their caches, and go only where the spec lets them.

use std::time::Duration;

use crds::RegistryMirror;
use crds::conditions::{ConditionType, Reason};
use futures::future::join_all;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::authorization::v1::SelfSubjectAccessReview;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::api::rbac::v1::{PolicyRule, Role};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use testbed::FakeKubelet;
use testbed::control_plane::skip_on_existing_cluster;
use testbed::upstream::{self, Upstream};

use crate::bench::{Bench, belongs_to, push_one, soon, with_claims};
use crate::pods::{address, is_ready, kubelet, pods, restarts};

type Claim = PersistentVolumeClaim;

async fn class(bench: &Bench, provisioner: &str, expands: bool) -> String {
    let name = format!("class-{}-{expands}", bench.namespace);
    let class = json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": name},
        "provisioner": provisioner, "volumeBindingMode": "Immediate", "allowVolumeExpansion": expands,
    });
    let classes: Api<StorageClass> = Api::all(bench.namespace.client());
    let params = PatchParams::apply("admin").force();
    classes
        .patch(&name, &params, &Patch::Apply(&class))
        .await
        .unwrap();
    name
}

fn of_class(size: &str, class: &str) -> Value {
    let mut spec = with_claims(size);
    spec["storage"]["persistentVolumeClaim"]["storageClassName"] = json!(class);
    spec
}

fn requested(claim: &Claim) -> Option<String> {
    let requests = claim.spec.as_ref()?.resources.as_ref()?.requests.as_ref()?;
    Some(requests.get("storage")?.0.clone())
}

async fn until_requested(bench: &Bench, claim: &str, size: &str) {
    bench
        .until(claim, &format!("wish for {size}"), |claim: &Claim| {
            (requested(claim)? == size).then_some(())
        })
        .await;
}

/// Writes the status with which a storage driver and a node report the growth of a PVC.
async fn say(bench: &Bench, claim: &str, status: Value) {
    let params = PatchParams::default();
    let patch = json!({ "status": status });
    bench
        .api::<Claim>()
        .patch_status(claim, &params, &Patch::Merge(&patch))
        .await
        .unwrap();
}

fn stage(kind: &str) -> Value {
    json!([{"type": kind, "status": "True", "message": format!("{kind}: said the driver")}])
}

/// Waits for a message of `StorageReady`.
async fn until_storage(bench: &Bench, status: &str, reason: Reason, words: &str) -> Condition {
    let what = format!("StorageReady={status}/{reason} with {words:?}");
    bench
        .until("hub", &what, |mirror: &RegistryMirror| {
            crate::bench::condition(mirror, ConditionType::StorageReady)
                .filter(|c| c.status == status && c.reason == reason.as_str() && c.message.contains(words))
                .cloned()
        })
        .await
}

async fn until_bound(bench: &Bench) {
    until_storage(bench, "True", Reason::VolumeReady, "").await;
    bench
        .until("hub", "capacity", |mirror: &RegistryMirror| {
            mirror.status.as_ref()?.storage.as_ref()?.capacity.clone()
        })
        .await;
}

/// `PersistentVolumeClaims` grow as their driver allows, and no pod is replaced.
#[tokio::test]
async fn pvcs_grow_without_replacing_pods() {
    let bench = Bench::start("grow").await;
    let _kubelet = kubelet(&bench).await;
    bench.mirror("hub", with_claims("16Mi")).await;
    until_bound(&bench).await;
    let set = bench.get::<StatefulSet>("hub").await.unwrap();
    bench.mirror("hub", with_claims("32Mi")).await;
    until_requested(&bench, "cache-hub-0", "32Mi").await;
    until_storage(
        &bench,
        "True",
        Reason::Resizing,
        "resizes to 32Mi: waiting for the storage driver",
    )
    .await;
    for (kind, words) in [
        ("Resizing", "the storage driver grows the volume"),
        ("ControllerResizeError", "ControllerResizeError: said the driver"),
        ("FileSystemResizePending", "the node grows the file system"),
    ] {
        say(&bench, "cache-hub-0", json!({"conditions": stage(kind)})).await;
        until_storage(&bench, "True", Reason::Resizing, words).await;
    }
    let grown = json!({"conditions": [], "capacity": {"storage": "32Mi"}});
    say(&bench, "cache-hub-0", grown).await;
    until_storage(&bench, "True", Reason::VolumeReady, "").await;
    let status = bench.get::<RegistryMirror>("hub").await.unwrap().status.unwrap();
    assert_eq!(status.storage.unwrap().capacity.unwrap().0, "32Mi");
    let after = bench.get::<StatefulSet>("hub").await.unwrap();
    assert_eq!(after.spec, set.spec, "the set is as it was");
    assert_eq!(after.uid(), set.uid());
}

/// A resize can be cancelled while the capacity has not grown, and never shrinks below the capacity.
#[tokio::test]
async fn resize_is_cancelled_until_capacity_grows() {
    let bench = Bench::start("typo").await;
    let _kubelet = kubelet(&bench).await;
    bench.mirror("hub", with_claims("16Mi")).await;
    until_bound(&bench).await;
    bench.mirror("hub", with_claims("160Gi")).await;
    until_requested(&bench, "cache-hub-0", "160Gi").await;
    let infeasible = json!({
        "conditions": stage("ControllerResizeError"),
        "allocatedResourceStatuses": {"storage": "ControllerResizeInfeasible"},
    });
    say(&bench, "cache-hub-0", infeasible).await;
    let observed = until_storage(&bench, "False", Reason::ResizeUnsupported, "said the driver").await;
    assert!(
        observed
            .message
            .contains("set a size above the current capacity of 16Mi"),
        "{}",
        observed.message
    );
    // The typing error is corrected: the API server lets a claim's wish go down to just above what it has.
    bench.mirror("hub", with_claims("20Mi")).await;
    until_requested(&bench, "cache-hub-0", "20Mi").await;
    let grown = json!({
        "conditions": [], "capacity": {"storage": "20Mi"}, "allocatedResourceStatuses": null,
    });
    say(&bench, "cache-hub-0", grown).await;
    bench
        .until("hub", "new capacity", |mirror: &RegistryMirror| {
            let capacity = mirror.status.as_ref()?.storage.as_ref()?.capacity.clone()?;
            (capacity.0 == "20Mi").then_some(())
        })
        .await;

    let smaller = json!({
        "apiVersion": "registrymirror.io/v1alpha1", "kind": "RegistryMirror",
        "metadata": {"name": "hub"}, "spec": with_claims("18Mi"),
    });
    let params = PatchParams::apply("admin").force();
    let refused = bench
        .api::<RegistryMirror>()
        .patch("hub", &params, &Patch::Apply(&smaller))
        .await;
    let message = refused.unwrap_err().to_string();
    assert!(message.contains("claims can't shrink"), "{message}");
}

/// A PersistentVolumeClaim whose class does not support growth is reported, and the mirror serves.
#[tokio::test]
async fn unsupported_growth_is_reported_while_serving() {
    let bench = Bench::start("fixed").await;
    let _kubelet = kubelet(&bench).await;
    let class = class(&bench, "registrymirror.io/test-directory", false).await;
    bench.mirror("hub", of_class("16Mi", &class)).await;
    bench.until_ready().await;
    bench.mirror("hub", of_class("32Mi", &class)).await;
    let observed = until_storage(&bench, "False", Reason::ResizeUnsupported, "cache-hub-0").await;
    assert!(
        observed.message.contains("must support resize"),
        "{}",
        observed.message
    );
    let mirror = bench.get::<RegistryMirror>("hub").await.unwrap();
    let ready = crate::bench::condition(&mirror, ConditionType::Ready).unwrap();
    assert_eq!(ready.status, "True", "{}", ready.message);
    // And back, as nothing has grown.
    bench.mirror("hub", of_class("16Mi", &class)).await;
    until_storage(&bench, "True", Reason::VolumeReady, "").await;
}

/// An unbound PersistentVolumeClaim cannot grow, and its resize can be cancelled to any earlier size.
#[tokio::test]
async fn unbound_pvc_resize_can_be_cancelled() {
    let bench = Bench::start("unbound").await;
    let class = class(&bench, "registrymirror.io/none", true).await;
    bench.mirror("hub", of_class("16Gi", &class)).await;
    until_storage(&bench, "False", Reason::ClaimPending, "has no volume yet").await;
    bench.mirror("hub", of_class("32Gi", &class)).await;
    let observed = until_storage(&bench, "False", Reason::ClaimPending, "is immutable").await;
    assert!(observed.message.contains("cache-hub-0"), "{}", observed.message);
    bench.mirror("hub", of_class("16Gi", &class)).await;
    until_storage(&bench, "False", Reason::ClaimPending, "has no volume yet").await;
    let claim = bench.get::<Claim>("cache-hub-0").await.unwrap();
    assert_eq!(requested(&claim).unwrap(), "16Gi");
}

/// A mirror with claims, in front of a registry with one image.
struct Stage {
    bench: Bench,
    _kubelet: FakeKubelet,
    upstream: Upstream,
}

impl Stage {
    async fn set(name: &str) -> Self {
        let bench = Bench::start(name).await;
        let kubelet = kubelet(&bench).await;
        let upstream = Upstream::start(upstream::Options::default()).await.unwrap();
        push_one(&upstream, 11).await;
        Self {
            bench,
            _kubelet: kubelet,
            upstream,
        }
    }

    async fn scale(&self, replicas: i32) -> Vec<Pod> {
        let patch = json!({"spec": {"replicas": replicas}});
        self.bench.merge::<RegistryMirror>("hub", patch).await;
        soon(&format!("{replicas} Pods that serve"), async || {
            let pods = pods(&self.bench).await;
            let all = pods.iter().all(is_ready) && pods.len() == usize::try_from(replicas).unwrap();
            all.then_some(pods)
        })
        .await
    }

    async fn claims(&self) -> Vec<Option<String>> {
        let mut uids = Vec::new();
        for ordinal in 0..3 {
            let claim = self.bench.get::<Claim>(&format!("cache-hub-{ordinal}")).await;
            uids.push(
                claim
                    .filter(|c| c.metadata.deletion_timestamp.is_none())
                    .and_then(|c| c.uid()),
            );
        }
        uids
    }
}

/// Pulls the image from a Pod, and returns the status code and the cache outcome.
async fn pull(pod: &Pod) -> (u16, String) {
    let url = format!("http://{}:5000/v2/team/app/manifests/one", address(pod));
    let response = reqwest::get(url).await.unwrap();
    let cache = response.headers().get("x-cache");
    let cache = cache.map(|value| value.to_str().unwrap().to_owned());
    (response.status().as_u16(), cache.unwrap_or_default())
}

/// Replicas that are removed and added keep every PersistentVolumeClaim and its cache.
#[tokio::test]
async fn scaling_keeps_every_pvc_and_its_cache() {
    let mut stage = Stage::set("replicas").await;
    let mut spec = with_claims("16Mi");
    spec["upstreams"] = json!([{"host": "registry.example", "remoteURL": stage.upstream.url()}]);
    spec["replicas"] = json!(1);
    stage.bench.mirror("hub", spec).await;
    for pod in stage.scale(3).await {
        assert_eq!(pull(&pod).await, (200, "MISS".to_owned()));
    }
    let claims = stage.claims().await;
    assert!(claims.iter().all(Option::is_some), "{claims:?}");
    stage.scale(1).await;
    assert_eq!(stage.claims().await, claims);
    stage.scale(0).await;
    stage
        .bench
        .until_hub(ConditionType::Available, "False", Reason::ScaledToZero)
        .await;
    assert_eq!(stage.claims().await, claims);
    stage.upstream.go_down();
    for pod in stage.scale(1).await {
        assert_eq!(pull(&pod).await, (200, "HIT".to_owned()));
    }
    for pod in stage.scale(3).await {
        assert_eq!(pull(&pod).await, (200, "HIT".to_owned()), "{}", pod.name_any());
    }
    assert_eq!(stage.claims().await, claims);
}

/// The retention policy decides at any time if `PersistentVolumeClaims` are deleted with the mirror.
#[tokio::test]
async fn retention_policy_changes_at_any_time() {
    let bench = Bench::start("policy").await;
    let spec = |policy: &str, replicas: i32| {
        let mut spec = with_claims("1Gi");
        spec["storage"]["persistentVolumeClaim"]["retentionPolicy"] = json!(policy);
        spec["replicas"] = json!(replicas);
        spec
    };
    let mirror = bench.mirror("hub", spec("Delete", 2)).await;
    let until_owned = async |owned: bool| {
        // The second claim's replica is gone by then.
        for claim in ["cache-hub-0", "cache-hub-1"] {
            bench
                .until(claim, &format!("owner={owned}"), |claim: &Claim| {
                    (belongs_to(claim, &mirror) == owned
                        && claim.owner_references().len() == usize::from(owned))
                    .then_some(())
                })
                .await;
        }
    };
    until_owned(true).await;
    bench.mirror("hub", spec("Retain", 1)).await;
    until_owned(false).await;
    bench.mirror("hub", spec("Delete", 1)).await;
    until_owned(true).await;
    bench.mirror("hub", spec("Retain", 0)).await;
    until_owned(false).await;
    bench.delete::<RegistryMirror>("hub").await;
    bench.until_gone::<StatefulSet>("hub").await;

    // Without its own label a claim is anybody's.
    bench
        .merge::<Claim>(
            "cache-hub-1",
            json!({"metadata": {"labels": {"registrymirror.io/cache-of": null}}}),
        )
        .await;
    let before = bench.get::<Claim>("cache-hub-1").await.unwrap();
    bench.mirror("hub", spec("Delete", 2)).await;
    let refused = bench
        .until_hub(ConditionType::Accepted, "False", Reason::NameConflict)
        .await;
    assert!(
        refused
            .message
            .starts_with("PersistentVolumeClaim cache-hub-1 exists already"),
        "{}",
        refused.message
    );
    let after = bench.get::<Claim>("cache-hub-1").await.unwrap();
    assert_eq!(after.resource_version(), before.resource_version());
}

/// A second server on the same cache ends with a clear message and is never ready.
#[tokio::test]
async fn second_server_on_one_cache_is_never_ready() {
    let bench = Bench::start("second").await;
    let kubelet = kubelet(&bench).await;
    let claim = json!({
        "metadata": {"name": "shared", "annotations": {"registrymirror.io/allow-mirror": "*"}},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "16Mi"}}},
    });
    bench.apply::<Claim>(claim).await;
    let spec = json!({
        "upstreams": [{"host": "quay.io"}],
        "storage": {"type": "PersistentVolumeClaim", "persistentVolumeClaim": {"existingClaim": "shared"}},
    });
    bench.mirror("first", spec.clone()).await;
    bench
        .until_condition("first", ConditionType::Ready, "True", Reason::Serving)
        .await;
    bench.mirror("second", spec).await;
    let pod = soon("restart of the second server", async || {
        let pods = pods(&bench).await;
        pods.into_iter()
            .find(|pod| pod.name_any().starts_with("second-") && restarts(pod) > 0)
    })
    .await;
    let log = kubelet.log(&pod.uid().unwrap(), "mirror");
    let log = std::fs::read_to_string(log).unwrap();
    assert!(log.contains("another process"), "{log}");
    let ready = async |name: &str| {
        let mirror = bench.get::<RegistryMirror>(name).await.unwrap();
        crate::bench::condition(&mirror, ConditionType::Ready)
            .unwrap()
            .status
            .clone()
    };
    assert_eq!(
        (ready("first").await, ready("second").await),
        ("True".to_owned(), "False".to_owned())
    );
    assert!(!is_ready(&pod));
}

/// A mirror with one claim each, of which nothing but the retention policy and the size change.
fn retained(policy: &str, size: &str) -> Value {
    let mut spec = with_claims(size);
    spec["storage"]["persistentVolumeClaim"]["retentionPolicy"] = json!(policy);
    spec
}

/// A growth that the storage class refuses does not keep the claim from following the retention policy.
#[tokio::test]
async fn retention_policy_applies_despite_refused_growth() {
    let bench = Bench::start("kept-fixed").await;
    let _kubelet = kubelet(&bench).await;
    let class = class(&bench, "registrymirror.io/test-directory", false).await;
    let of = |policy: &str, size: &str| {
        let mut spec = retained(policy, size);
        spec["storage"]["persistentVolumeClaim"]["storageClassName"] = json!(class);
        spec
    };
    bench.mirror("hub", of("Delete", "16Mi")).await;
    until_bound(&bench).await;
    bench.mirror("hub", of("Delete", "32Mi")).await;
    until_storage(&bench, "False", Reason::ResizeUnsupported, "cache-hub-0").await;
    bench.mirror("hub", of("Retain", "32Mi")).await;
    bench
        .until("cache-hub-0", "no owner", |claim: &Claim| {
            claim.owner_references().is_empty().then_some(())
        })
        .await;
    until_storage(&bench, "False", Reason::ResizeUnsupported, "cache-hub-0").await;
}

/// Without the permission that the admission plugin asks for, a claim that is to be kept is reported until it is safe.
#[tokio::test]
async fn unretainable_pvc_is_reported() {
    if skip_on_existing_cluster("unretainable_pvc_is_reported") {
        return;
    }
    let bench = Bench::start("unsafe").await;
    bench.mirror("hub", retained("Delete", "1Gi")).await;
    bench.until_accepted("hub").await;
    let rules = forbid_deletion(&bench, "persistentvolumeclaims").await;
    bench.mirror("hub", retained("Retain", "1Gi")).await;
    let words = "would still be deleted with the mirror";
    let reported = until_storage(&bench, "False", Reason::RetentionPolicyNotApplied, words).await;
    assert!(reported.message.contains("can't delete"), "{}", reported.message);
    soon("a warning", async || {
        let events = bench.api::<Event>().list(&ListParams::default()).await.unwrap();
        let is_it = |event: &Event| {
            event.reason.as_deref() == Some("RetentionPolicyNotApplied")
                && event.type_.as_deref() == Some("Warning")
        };
        events.iter().any(is_it).then_some(())
    })
    .await;

    bench.merge::<Role>("operator", json!({"rules": rules})).await;
    bench
        .until("cache-hub-0", "no owner", |claim: &Claim| {
            claim.owner_references().is_empty().then_some(())
        })
        .await;
    bench
        .until("hub", "end of the warning", |mirror: &RegistryMirror| {
            let storage = crate::bench::condition(mirror, ConditionType::StorageReady)?;
            (storage.reason != Reason::RetentionPolicyNotApplied.as_str()).then_some(())
        })
        .await;
    bench.delete::<RegistryMirror>("hub").await;
    bench.until_gone::<StatefulSet>("hub").await;
    let kept = bench.get::<Claim>("cache-hub-0").await.unwrap();
    assert!(kept.metadata.deletion_timestamp.is_none());
}

/// Without that permission, a claim that is to go with the mirror is reported, and the operator applies all else.
#[tokio::test]
async fn unownable_pvc_is_reported() {
    if skip_on_existing_cluster("unownable_pvc_is_reported") {
        return;
    }
    let bench = Bench::start("stays").await;
    bench.mirror("hub", retained("Retain", "1Gi")).await;
    bench.until_accepted("hub").await;
    forbid_deletion(&bench, "persistentvolumeclaims").await;
    let mut spec = retained("Delete", "1Gi");
    spec["replicas"] = json!(2);
    bench.mirror("hub", spec).await;
    let words = "would stay when the mirror is deleted";
    until_storage(&bench, "False", Reason::RetentionPolicyNotApplied, words).await;
    bench
        .until("hub", "two replicas", |set: &StatefulSet| {
            (set.spec.as_ref()?.replicas? == 2).then_some(())
        })
        .await;
    bench.until_accepted("hub").await;
}

/// Takes the permission to delete a resource from the operator, and waits until the API server knows. Returns the rules
/// that the Role had.
pub(crate) async fn forbid_deletion(bench: &Bench, resource: &str) -> Option<Vec<PolicyRule>> {
    let mut role = bench.get::<Role>("operator").await.unwrap();
    let rules = role.rules.clone();
    for rule in role.rules.iter_mut().flatten() {
        if rule.resources.iter().flatten().any(|one| one == resource) {
            rule.verbs.retain(|verb| verb != "delete");
        }
    }
    bench
        .merge::<Role>("operator", json!({"rules": role.rules}))
        .await;
    let reviews = Api::<SelfSubjectAccessReview>::all(bench.client().await);
    let review: SelfSubjectAccessReview = serde_json::from_value(json!({"spec": {"resourceAttributes": {
        "namespace": bench.namespace.name(), "verb": "delete", "resource": resource,
    }}}))
    .unwrap();
    soon("end of a permission", async || {
        let answer = reviews.create(&PostParams::default(), &review).await.unwrap();
        (!answer.status?.allowed).then_some(())
    })
    .await;
    rules
}

/// kube-controller-manager may make a claim of the template after the garbage collector has deleted the operator's.
#[tokio::test]
async fn quickly_deleted_mirror_leaves_no_pvc() {
    const TIMES: usize = 24;
    let bench = Bench::start("fleeting").await;
    let mirrors = bench.api::<RegistryMirror>();
    let live = async |number: usize| {
        let name = format!("m{number}");
        bench.mirror(&name, retained("Delete", "1Gi")).await;
        // At different stages of its creation.
        tokio::time::sleep(Duration::from_millis(40 * number as u64)).await;
        mirrors.delete(&name, &DeleteParams::default()).await.unwrap();
        bench.until_gone::<RegistryMirror>(&name).await;
        bench.until_gone::<StatefulSet>(&name).await;
    };
    join_all((0..TIMES).map(live)).await;
    soon("end of every claim", async || {
        let claims = bench.api::<Claim>().list(&ListParams::default()).await.unwrap();
        let left = claims
            .iter()
            .filter(|claim| claim.metadata.deletion_timestamp.is_none());
        (left.count() == 0).then_some(())
    })
    .await;
}
