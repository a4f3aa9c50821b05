//! The Helm chart, put to Helm and to a real API server.
#![expect(clippy::unwrap_used, reason = "a failure here is the test's")]

#[path = "chart/admission.rs"]
mod admission;
#[path = "chart/agent.rs"]
mod agent;
#[path = "chart/cluster.rs"]
mod cluster;
#[path = "chart/doctor.rs"]
mod doctor;
#[path = "chart/helm.rs"]
mod helm;
#[path = "chart/life.rs"]
mod life;
#[path = "chart/live.rs"]
mod live;
#[path = "chart/monitoring.rs"]
mod monitoring;
#[path = "chart/rights.rs"]
mod rights;
#[path = "chart/values.rs"]
mod values;

use std::collections::BTreeSet;
use std::time::Duration;

use cluster::Cluster;
use crds::RegistryMirror;
use helm::Helm;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use serde_json::{Value, json};
use testbed::control_plane::{dry_run, skip_on_existing_cluster};

const SOON: Duration = Duration::from_mins(1);

fn named<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    objects.iter().filter(|object| object["kind"] == kind).collect()
}

/// `helm lint` reports nothing.
#[tokio::test]
async fn helm_lint_reports_nothing() {
    let helm = Helm::offline().await;
    helm.run(&["lint", "--strict", "CHART"]).await.unwrap();
}

/// Values that change which objects there are, and those objects next to the Deployment and the admission policies.
const SHAPES: [(&[&str], &[&str]); 9] = [
    (
        &["--set=crds.enabled=false,rbac.aggregate=false", agent::AGENT],
        &[
            "ClusterRole",
            "ClusterRoleBinding",
            "DaemonSet",
            "Role",
            "Role",
            "Role",
            "Role",
            "RoleBinding",
            "RoleBinding",
            "RoleBinding",
            "RoleBinding",
            "Service",
            "Service",
            "ServiceAccount",
            "ServiceAccount",
        ],
    ),
    (
        &[],
        &[
            "ClusterRole",
            "ClusterRole",
            "ClusterRole",
            "ClusterRoleBinding",
            "CustomResourceDefinition",
            "Role",
            "RoleBinding",
            "Service",
            "ServiceAccount",
        ],
    ),
    (
        &["--set=crds.enabled=false"],
        &[
            "ClusterRole",
            "ClusterRole",
            "ClusterRole",
            "ClusterRoleBinding",
            "Role",
            "RoleBinding",
            "Service",
            "ServiceAccount",
        ],
    ),
    (
        &["--set=crds.enabled=false,watchNamespaces={a,b}"],
        &[
            "ClusterRole",
            "ClusterRole",
            "Role",
            "Role",
            "Role",
            "RoleBinding",
            "RoleBinding",
            "RoleBinding",
            "Service",
            "ServiceAccount",
        ],
    ),
    (
        &["--set=crds.enabled=false,watchNamespaces={a},rbac.aggregate=false"],
        &[
            "Role",
            "Role",
            "RoleBinding",
            "RoleBinding",
            "Service",
            "ServiceAccount",
        ],
    ),
    (
        &["--set=crds.enabled=false,rbac.create=false"],
        &["Service", "ServiceAccount"],
    ),
    (
        &["--set=crds.enabled=false,rbac.create=false,serviceAccount.create=false,serviceAccount.name=mine"],
        &["Service"],
    ),
    (
        &["--set=crds.enabled=false,rbac.create=false,metrics.service=false"],
        &["ServiceAccount"],
    ),
    (
        &[
            "--set=crds.enabled=false,rbac.create=false,metrics.service=false,resources=null,podLabels.a=b",
            "--set=podAnnotations.a=b,nodeSelector.a=b,tolerations[0].operator=Exists,priorityClassName=p",
            "--set=imagePullSecrets[0].name=s,serviceAccount.annotations.a=b,metrics.annotations.a=b",
            "--set-json=affinity={\"nodeAffinity\":{}}",
        ],
        &["ServiceAccount"],
    ),
];

/// The values decide which objects the chart renders.
#[tokio::test]
async fn values_select_rendered_objects() {
    let helm = Helm::offline().await;
    for (flags, expected) in SHAPES {
        let objects = helm.template(flags).await.unwrap();
        let mut kinds: Vec<_> = objects
            .iter()
            .map(|object| object["kind"].as_str().unwrap())
            .filter(|kind| !kind.starts_with("ValidatingAdmissionPolicy"))
            .collect();
        kinds.sort_unstable();
        let mut expected = [expected, &["Deployment"]].concat();
        expected.sort_unstable();
        assert_eq!(kinds, expected, "{flags:?}");
        let names: BTreeSet<_> = objects
            .iter()
            .map(|o| {
                format!(
                    "{} {} {}",
                    o["kind"], o["metadata"]["namespace"], o["metadata"]["name"]
                )
            })
            .collect();
        assert_eq!(names.len(), objects.len(), "two objects of one name: {names:?}");
    }
}

/// The values of the chart set the arguments of the operator.
#[tokio::test]
async fn values_set_the_operators_arguments() {
    let helm = Helm::offline().await;
    for (flags, expected) in [
        (
            vec![],
            vec![
                "--server-image=registry-mirror:0.1.0",
                "--log-level=info",
                "--log-format=json",
                "--upgrade-max-concurrent=3",
                "--upgrade-progress-deadline=10m",
            ],
        ),
        (
            vec!["--set=upgrades.maxConcurrent=20,upgrades.progressDeadline=1h30m"],
            vec!["--upgrade-max-concurrent=20", "--upgrade-progress-deadline=1h30m"],
        ),
        (
            vec!["--set=image.repository=r.example/m,image.tag=v2"],
            vec!["--server-image=r.example/m:v2"],
        ),
        (
            vec!["--set=mirrorImage=r.example/other:1"],
            vec!["--server-image=r.example/other:1"],
        ),
        (
            vec!["--set=watchNamespaces={a,b}"],
            vec!["--watch-namespace=a", "--watch-namespace=b"],
        ),
        (
            vec![
                "--set=policy.images={r.example/*,q.example/m:1},policy.maxReplicas=3,policy.podLabels=null",
            ],
            vec![
                "--allowed-image=r.example/*",
                "--allowed-image=q.example/m:1",
                "--max-replicas=3",
                "--allowed-pod-label=",
            ],
        ),
        (
            vec!["--set=logLevel=debug,logFormat=text"],
            vec!["--log-level=debug", "--log-format=text"],
        ),
    ] {
        let objects = helm.template(&flags).await.unwrap();
        let container = &named(&objects, "Deployment")[0]["spec"]["template"]["spec"]["containers"][0];
        let reported: Vec<_> = container["args"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(Value::as_str)
            .collect();
        for argument in expected {
            assert!(reported.contains(&argument), "{argument} is not in {reported:?}");
        }
    }
}

/// The digest of an image overrides its tag.
#[tokio::test]
async fn digest_overrides_tag() {
    let helm = Helm::offline().await;
    let digest = format!("sha256:{}", "0".repeat(64));
    let objects = helm
        .template(&["--set=image.tag=v2", &format!("--set=image.digest={digest}")])
        .await
        .unwrap();
    let container = &named(&objects, "Deployment")[0]["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["image"], format!("registry-mirror@{digest}"));
}

/// With named namespaces no permission of the operator reaches beyond them.
#[tokio::test]
async fn named_namespaces_limit_rbac_permissions() {
    let helm = Helm::offline().await;
    let objects = helm.template(&["--set=watchNamespaces={a}"]).await.unwrap();
    assert!(named(&objects, "ClusterRoleBinding").is_empty());
    let mut roles = named(&objects, "Role");
    let lease = |role: &mut &Value| role["rules"][0]["resources"] == json!(["leases"]);
    let leases: Vec<_> = roles.extract_if(.., lease).collect();
    assert_eq!(leases.len(), 1, "of the operator's own namespace");
    assert_ne!(leases[0]["metadata"]["namespace"], "a");
    assert_eq!(roles.len(), 1);
    assert_eq!(roles[0]["metadata"]["namespace"], "a");
}

/// No RBAC rule grants a wildcard.
#[tokio::test]
async fn no_rule_grants_a_wildcard() {
    let helm = Helm::offline().await;
    for object in helm.template(&[]).await.unwrap() {
        let rules = object["rules"].as_array().into_iter().flatten();
        assert!(
            rules.into_iter().all(|rule| !rule.to_string().contains('*')),
            "{object}"
        );
    }
}

#[tokio::test]
async fn wrong_values_are_refused_by_name() {
    let helm = Helm::offline().await;
    for (flag, expected) in [
        ("--set=image.tga=v2", "tga"),
        ("--set=imagePullPolicy=Always", "imagePullPolicy"),
        ("--set=image.pullPolicy=Sometimes", "/image/pullPolicy"),
        ("--set=image.digest=sha256:abc", "/image/digest"),
        ("--set=image.repository=", "/image/repository"),
        ("--set=watchNamespaces=a", "/watchNamespaces"),
        ("--set=watchNamespaces={A}", "/watchNamespaces/0"),
        ("--set=watchNamespaces={a,a}", "/watchNamespaces"),
        ("--set-string=crds.keep=no", "/crds/keep"),
        (
            "--set=admissionPolicies.enabled=maybe",
            "/admissionPolicies/enabled",
        ),
        ("--set=logLevel=loud", "/logLevel"),
        ("--set=upgrades.maxConcurrent=0", "/upgrades/maxConcurrent"),
        (
            "--set=upgrades.progressDeadline=soon",
            "/upgrades/progressDeadline",
        ),
        ("--set=podLabels.a=1", "/podLabels/a"),
        ("--set=policy.maxReplicas=-1", "/policy/maxReplicas"),
        ("--set=policy.maxStorage=much", "/policy/maxStorage"),
        ("--set=policy.existingClaims=all", "/policy/existingClaims"),
        ("--set=policy.podSecurity=restricted", "/policy/podSecurity"),
        (
            "--set=policy.affinityNamespaces=all",
            "/policy/affinityNamespaces",
        ),
        ("--set-json=policy.images=[\"a b\"]", "/policy/images/0"),
        ("--set=policy.image=a", "image"),
        ("--set=replicas=-1", "/replicas"),
        ("--set=fullnameOverride=A", "/fullnameOverride"),
        ("--set=podMonitor=null", "podMonitor"),
        ("--set=serviceAccount.create=false", "serviceAccount.name"),
    ] {
        let refused = helm.template(&[flag]).await.unwrap_err();
        assert!(refused.contains(expected), "{flag}: {refused}");
    }
}

#[tokio::test]
async fn renamed_value_is_refused_with_its_new_name() {
    let helm = Helm::offline().await;
    for (flag, expected) in [
        (
            "--set=upgrades.atATime=3",
            "upgrades.atATime is now upgrades.maxConcurrent",
        ),
        (
            "--set=upgrades.patience=10m",
            "upgrades.patience is now upgrades.progressDeadline",
        ),
    ] {
        let refused = helm.template(&[flag]).await.unwrap_err();
        assert!(refused.contains(expected), "{flag}: {refused}");
    }
    // As the message advises.
    let removed = "--set=upgrades.atATime=null,upgrades.patience=null";
    helm.template(&[removed]).await.unwrap();
}

fn mirror(name: &str, storage: &Value) -> RegistryMirror {
    let spec = json!({"upstreams": [{"host": "quay.io"}], "storage": storage});
    RegistryMirror::new(name, serde_json::from_value(spec).unwrap())
}

/// The operator's pod is admitted under the restricted Pod Security Standard.
#[tokio::test]
async fn operator_pod_meets_restricted_standard() {
    if skip_on_existing_cluster("operator_pod_meets_restricted_standard") {
        return;
    }
    let cluster = Cluster::start().await;
    cluster.restricted_namespace("operators").await;
    let objects = cluster.helm.template(&[]).await.unwrap();
    let template = &named(&objects, "Deployment")[0]["spec"]["template"];
    let mut pod: Pod = serde_json::from_value(template.clone()).unwrap();
    pod.metadata.name = Some("operator".to_owned());
    let pods = Api::<Pod>::namespaced(cluster.client.clone(), "operators");
    pods.create(&dry_run(), &pod).await.unwrap();
}
