//! `helm test`: `registry-mirror doctor` with the operator's own rights, in a Pod.

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::rbac::v1::{ClusterRole, RoleBinding};
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::json;
use testbed::FakeKubelet;
use testbed::control_plane::skip_on_existing_cluster;
use testbed::fake_kubelet::{Image, Options};
use testbed::wait;

use crate::SOON;
use crate::cluster::Cluster;

const TEST: &[&str] = &["test", "rm", "--namespace=operators", "--timeout=2m"];

async fn kubelet(cluster: &Cluster) -> FakeKubelet {
    let image = Image::new("/registry-mirror", env!("CARGO_BIN_EXE_operator-under-test"));
    let reference = concat!("registry-mirror:", env!("CARGO_PKG_VERSION"));
    let options = Options::default().image(reference, image);
    FakeKubelet::start(cluster.control_plane.kubeconfig(), options)
        .await
        .unwrap()
}

/// Returns the log of the test's Pod.
async fn said(cluster: &Cluster, kubelet: &FakeKubelet) -> String {
    let pods = Api::<Pod>::namespaced(cluster.client.clone(), "operators");
    let pod = pods.get("rm-registry-mirror-test").await.unwrap();
    std::fs::read_to_string(kubelet.log(&pod.uid().unwrap(), "doctor")).unwrap()
}

/// `helm test` checks the operator, the `CustomResourceDefinition` and the RBAC permissions.
#[tokio::test]
async fn helm_test_checks_operator_crd_and_permissions() {
    if skip_on_existing_cluster("helm_test_checks_operator_crd_and_permissions") {
        return;
    }
    let cluster = Cluster::with_controllers().await;
    cluster.restricted_namespace("operators").await;
    let kubelet = kubelet(&cluster).await;
    cluster.install(&["--wait", "--timeout=2m"]).await.unwrap();
    cluster.helm.run(TEST).await.unwrap();
    let observed = said(&cluster, &kubelet).await;
    for expected in [
        "operator    operators/rm-registry-mirror",
        "has all ",
        "limits specs at least as the default policy does",
        "manages mirrors in every namespace",
        "admission policies let it write only objects of mirrors",
        "no problems",
    ] {
        assert!(observed.contains(expected), "{observed}");
    }
    let bindings = Api::<RoleBinding>::namespaced(cluster.client.clone(), "operators");
    let left = bindings.get_opt("rm-registry-mirror-test").await.unwrap();
    assert!(left.is_none(), "what the test alone may do ends with it");

    // A right is taken away.
    let roles = Api::<ClusterRole>::all(cluster.client.clone());
    let mut role = roles.get("rm-registry-mirror").await.unwrap();
    for rule in role.rules.iter_mut().flatten() {
        if rule
            .resources
            .iter()
            .flatten()
            .any(|resource| resource == "secrets")
        {
            rule.verbs.retain(|verb| verb != "patch");
        }
    }
    let patch = Patch::Merge(json!({"rules": role.rules}));
    roles
        .patch("rm-registry-mirror", &PatchParams::default(), &patch)
        .await
        .unwrap();
    cluster.helm.run(TEST).await.unwrap_err();
    let observed = said(&cluster, &kubelet).await;
    assert!(
        observed.contains("may not patch secrets in every namespace"),
        "{observed}"
    );
}

/// `helm test` passes if the operator has one namespace only.
#[tokio::test]
async fn helm_test_passes_with_one_namespace() {
    if skip_on_existing_cluster("helm_test_passes_with_one_namespace") {
        return;
    }
    let cluster = Cluster::with_controllers().await;
    let kubelet = kubelet(&cluster).await;
    cluster.restricted_namespace("mirrors").await;
    let flags = ["--set=watchNamespaces={mirrors}", "--wait", "--timeout=2m"];
    cluster.install(&flags).await.unwrap();
    cluster.helm.run(TEST).await.unwrap();
    let observed = said(&cluster, &kubelet).await;
    assert!(
        observed.contains("permissions that the operator needs in mirrors")
            && observed.contains("admission policies let it write only objects of mirrors"),
        "{observed}"
    );
    assert!(!observed.contains("in every namespace"), "{observed}");

    // A value looser than the default is a warning and no failure.
    let flags = [
        "--set=watchNamespaces={mirrors},admissionPolicies.enabled=false",
        "--set=policy.images={**},policy.existingClaims=any",
        "--wait",
        "--timeout=2m",
    ];
    cluster.install(&flags).await.unwrap();
    let reported = wait::until("a report of what is looser", SOON, async || {
        cluster.helm.run(TEST).await.unwrap();
        let report = said(&cluster, &kubelet).await;
        report
            .contains("no admission policy keeps it from")
            .then_some(report)
    });
    let reported = reported.await.unwrap();
    for looser in [
        "policy.images is looser",
        "policy.existingClaims is looser",
        "no problems",
    ] {
        assert!(reported.contains(looser), "{reported}");
    }
}
