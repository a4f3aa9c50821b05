//! Objects that the cluster's own rules refuse, one by one.

use crds::conditions::{ConditionType, Reason};
use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Secret, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};
use testbed::control_plane::{Namespaced, dry_run};

use crate::bench::{Bench, condition, ephemeral, soon};

/// A policy for a bench's namespace.
pub(crate) struct Policy {
    name: String,
    bindings: Api<ValidatingAdmissionPolicyBinding>,
}

impl Policy {
    /// Refuses objects of these names and this kind; in force once it refuses a dry run.
    async fn refuse(bench: &Bench, resource: (&str, &str, &str), names: &[&str], reason: &str) -> Self {
        let expression = format!("!(object.metadata.name in {})", json!(names));
        Self::require(bench, resource, &expression, reason).await
    }

    /// Refuses objects of this kind for which the CEL expression is false.
    pub(crate) async fn require(
        bench: &Bench,
        resource: (&str, &str, &str),
        expression: &str,
        reason: &str,
    ) -> Self {
        let name = format!("{}-{}", bench.namespace, resource.2);
        let (group, version, plural) = resource;
        let namespace = json!({"matchLabels": {"kubernetes.io/metadata.name": bench.namespace.name()}});
        let policy = json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
            "metadata": {"name": name},
            "spec": {
                "matchConstraints": {
                    "namespaceSelector": namespace,
                    "resourceRules": [{
                        "apiGroups": [group], "apiVersions": [version], "operations": ["CREATE", "UPDATE"],
                        "resources": [plural],
                    }],
                },
                "validations": [{
                    "expression": expression,
                    "message": "not in this house", "reason": reason,
                }],
            },
        });
        let binding = json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": {"name": name}, "spec": {"policyName": name, "validationActions": ["Deny"]},
        });
        let (client, params) = (bench.namespace.client(), PatchParams::apply("admin"));
        let policies: Api<ValidatingAdmissionPolicy> = Api::all(client.clone());
        policies
            .patch(&name, &params, &Patch::Apply(&policy))
            .await
            .unwrap();
        let bindings: Api<ValidatingAdmissionPolicyBinding> = Api::all(client);
        bindings
            .patch(&name, &params, &Patch::Apply(&binding))
            .await
            .unwrap();
        Self { name, bindings }
    }

    pub(crate) async fn end(self) {
        self.bindings
            .delete(&self.name, &DeleteParams::default())
            .await
            .unwrap();
    }
}

/// Waits until a policy is in force for an object, or no longer is.
async fn until_refused<K: Namespaced>(bench: &Bench, name: &str, refused: bool) {
    let object: K = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
    soon("the policy", async || {
        let made = bench.api::<K>().create(&dry_run(), &object).await;
        let is_refused = made.is_err_and(|error| error.to_string().contains("not in this house"));
        (is_refused == refused).then_some(())
    })
    .await;
}

/// Waits until a mirror's condition names an object that is refused.
async fn until_reported(bench: &Bench, kind: ConditionType, object: &str) {
    let words = format!("{object} rejected by");
    bench
        .until("hub", "word of it", |mirror: &crds::RegistryMirror| {
            condition(mirror, kind)?.message.contains(&words).then_some(())
        })
        .await;
}

fn labelled(label: &str, ttl: &str) -> Value {
    let mut spec = ephemeral();
    spec["replicas"] = json!(2);
    spec["cache"] = json!({"tagTTL": ttl});
    spec["pod"] = json!({"labels": {"team": label}});
    spec
}

fn label(deployment: &Deployment) -> Option<String> {
    let template = &deployment.spec.as_ref()?.template;
    template.metadata.as_ref()?.labels.as_ref()?.get("team").cloned()
}

async fn until_labelled(bench: &Bench, wanted: &str) {
    bench
        .until(
            "hub",
            "the workload as the spec asks for it",
            |deployment: &Deployment| (label(deployment).as_deref() == Some(wanted)).then_some(()),
        )
        .await;
}

/// The refusal of a policy is reported by name, and all other objects are applied.
#[tokio::test]
async fn policy_refusal_blocks_no_other_object() {
    let bench = Bench::start("refusals").await;
    let maps = Policy::refuse(&bench, ("", "v1", "configmaps"), &["hub-hosts"], "Forbidden").await;
    let budgets = ("policy", "v1", "poddisruptionbudgets");
    let budgets = Policy::refuse(&bench, budgets, &["hub"], "Invalid").await;
    until_refused::<ConfigMap>(&bench, "hub-hosts", true).await;
    bench.mirror("hub", labelled("a", "1m")).await;
    until_labelled(&bench, "a").await;
    assert!(bench.get::<Service>("hub").await.is_some());
    let observed = bench
        .until("hub", "word of both", |mirror: &crds::RegistryMirror| {
            let observed = condition(mirror, ConditionType::Progressing)?;
            let both = [
                "ConfigMap hub-hosts",
                "PodDisruptionBudget hub",
                "not in this house",
            ];
            both.iter()
                .all(|name| observed.message.contains(name))
                .then(|| observed.clone())
        })
        .await;
    assert_eq!(
        (observed.status.as_str(), observed.reason.as_str()),
        ("False", Reason::ApplyRejected.as_str())
    );
    bench.until_accepted("hub").await;

    // A change arrives all the same.
    bench.mirror("hub", labelled("b", "2m")).await;
    until_labelled(&bench, "b").await;
    bench
        .until("hub-config", "the change", |map: &ConfigMap| {
            map.data.as_ref()?["config.yml"].contains("2m").then_some(())
        })
        .await;
    assert!(bench.get::<PodDisruptionBudget>("hub").await.is_none());

    // Once they are allowed, and the spec gives reason to look, all is there.
    maps.end().await;
    budgets.end().await;
    until_refused::<ConfigMap>(&bench, "hub-hosts", false).await;
    let mut spec = labelled("b", "2m");
    spec["nodeConfiguration"] = json!({"dialTimeout": "3s"});
    bench.mirror("hub", spec).await;
    bench
        .until("hub-hosts", "files for nodes", |map: &ConfigMap| map.data.clone())
        .await;
}

/// A workload waits for the objects that its pods mount.
#[tokio::test]
async fn workload_waits_for_mounted_objects() {
    let bench = Bench::start("mounted").await;
    bench.mirror("hub", labelled("a", "1m")).await;
    bench.until_accepted("hub").await;
    until_labelled(&bench, "a").await;
    let policy = Policy::refuse(&bench, ("", "v1", "configmaps"), &["hub-config"], "Forbidden").await;
    until_refused::<ConfigMap>(&bench, "hub-config", true).await;
    let mut spec = labelled("b", "2m");
    spec["service"] = json!({"port": 5050});
    bench.mirror("hub", spec.clone()).await;
    until_reported(&bench, ConditionType::Progressing, "ConfigMap hub-config").await;
    let port = |service: &Service| {
        service
            .spec
            .as_ref()?
            .ports
            .as_ref()?
            .first()
            .map(|port| port.port)
    };
    assert_eq!(
        port(&bench.get::<Service>("hub").await.unwrap()),
        Some(5050),
        "the rest is applied"
    );
    let workload = bench.get::<Deployment>("hub").await.unwrap();
    assert_eq!(label(&workload).as_deref(), Some("a"));

    policy.end().await;
    until_refused::<ConfigMap>(&bench, "hub-config", false).await;
    spec["cache"] = json!({"tagTTL": "3m"});
    bench.mirror("hub", spec).await;
    until_labelled(&bench, "b").await;
    bench.until_accepted("hub").await;
}

/// If the key of the CA cannot be stored, no certificate that it signed is issued.
#[tokio::test]
async fn unstored_ca_key_issues_no_certificate() {
    let bench = Bench::start("authority-key").await;
    let policy = Policy::refuse(&bench, ("", "v1", "secrets"), &["hub-ca-key"], "Forbidden").await;
    until_refused::<Secret>(&bench, "hub-ca-key", true).await;
    let mut spec = ephemeral();
    spec["tls"] = json!({"mode": "SelfSigned"});
    bench.mirror("hub", spec.clone()).await;
    until_reported(&bench, ConditionType::Progressing, "Secret hub-ca-key").await;
    until_reported(&bench, ConditionType::Ready, "Secret hub-ca-key").await;
    assert!(bench.get::<Secret>("hub-files").await.is_none(), "no certificate");
    assert!(bench.get::<ConfigMap>("hub-ca").await.is_none(), "no authority");
    assert!(bench.get::<Deployment>("hub").await.is_none(), "no server");

    policy.end().await;
    until_refused::<Secret>(&bench, "hub-ca-key", false).await;
    spec["cache"] = json!({"tagTTL": "2m"});
    bench.mirror("hub", spec).await;
    bench
        .until_hub(ConditionType::TLSReady, "True", Reason::CertificateReady)
        .await;
    assert!(bench.get::<ConfigMap>("hub-ca").await.is_some());
}
