//! Objects that the cluster changes whenever they are applied.

use std::time::Duration;

use crds::RegistryMirror;
use crds::conditions::ConditionType;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams};
use kube::core::ApiResource;
use serde_json::json;
use testbed::binaries::Kubernetes;
use testbed::control_plane::skip_on_existing_cluster;

use crate::bench::{Bench, condition, ephemeral, soon};

/// A policy that writes something else into each `ConfigMap` named `hub-config`; none where the API server has none.
async fn rewriting(bench: &Bench) -> Option<[(ApiResource, String); 2]> {
    let name = format!("{}-rewrites", bench.namespace);
    let resource = |kind: &str| ApiResource {
        group: "admissionregistration.k8s.io".to_owned(),
        version: "v1".to_owned(),
        api_version: "admissionregistration.k8s.io/v1".to_owned(),
        kind: kind.to_owned(),
        plural: format!("{}s", kind.to_lowercase()).replace("policys", "policies"),
    };
    let (policy, binding) = (
        resource("MutatingAdmissionPolicy"),
        resource("MutatingAdmissionPolicyBinding"),
    );
    let rule = json!({
        "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": ["configmaps"],
    });
    let objects = [
        (
            policy,
            json!({
                "matchConstraints": {
                    "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": bench.namespace.name()}},
                    "resourceRules": [rule],
                },
                "matchConditions": [{"name": "config", "expression": "object.metadata.name == 'hub-config'"}],
                "failurePolicy": "Fail", "reinvocationPolicy": "Never",
                "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression":
                    "[JSONPatch{op: 'replace', path: '/data/config.yml', value: 'version: 0.1 # ours'}]"}}],
            }),
        ),
        (binding, json!({"policyName": name})),
    ];
    let mut made = Vec::new();
    for (resource, spec) in objects {
        let api: Api<DynamicObject> = Api::all_with(bench.namespace.client(), &resource);
        let object = json!({
            "apiVersion": resource.api_version, "kind": resource.kind, "metadata": {"name": name}, "spec": spec,
        });
        match api
            .patch(&name, &PatchParams::apply("admin"), &Patch::Apply(&object))
            .await
        {
            Ok(_) => made.push((resource, name.clone())),
            Err(kube::Error::Api(status)) if status.is_not_found() => return None,
            Err(error) => panic!("{error}"),
        }
    }
    made.try_into().ok()
}

/// A policy that rewrites objects without end is reported steadily, and the objects are repaired after it.
#[tokio::test]
async fn rewriting_policy_is_reported_until_removed() {
    if skip_on_existing_cluster("rewriting_policy_is_reported_until_removed") {
        return;
    }
    let bench = Bench::start("rewritten").await;
    let Some(policy) = rewriting(&bench).await else {
        assert!(
            Kubernetes::wanted() == Kubernetes::Oldest,
            "no MutatingAdmissionPolicy"
        );
        eprintln!(
            "SKIPPED rewriting_policy_is_reported_until_removed: this Kubernetes has \
             no MutatingAdmissionPolicy"
        );
        return;
    };
    // In force a while after it was made.
    soon("the policy", async || {
        let map = json!({"metadata": {"name": "hub-config"}, "data": {"config.yml": "mine"}});
        let map: ConfigMap = bench.apply(map).await;
        map.data?["config.yml"].contains("ours").then_some(())
    })
    .await;
    bench.delete::<ConfigMap>("hub-config").await;
    bench.mirror("hub", ephemeral()).await;
    let words = "ConfigMap hub-config altered by an admission webhook or policy";
    bench
        .until("hub", "what is rewritten", |mirror: &RegistryMirror| {
            let observed = &condition(mirror, ConditionType::Progressing)?.message;
            observed.contains(words).then_some(())
        })
        .await;
    let mark = bench.mark().await;
    tokio::time::sleep(Duration::from_secs(20)).await;
    let writes = bench.writes(mark);
    let statuses = writes
        .iter()
        .filter(|write| write.ends_with("hub status"))
        .count();
    assert_eq!(statuses, 0, "{writes:#?}");
    assert!(writes.len() <= 5, "{writes:#?}");
    for (resource, name) in policy.iter().rev() {
        let api: Api<DynamicObject> = Api::all_with(bench.namespace.client(), resource);
        api.delete(name, &DeleteParams::default()).await.unwrap();
    }
    bench
        .until("hub-config", "repair", |map: &ConfigMap| {
            map.data.as_ref()?["config.yml"].contains("quay.io").then_some(())
        })
        .await;
    bench
        .until("hub", "a status without it", |mirror: &RegistryMirror| {
            let observed = &condition(mirror, ConditionType::Progressing)?.message;
            (!observed.contains(words)).then_some(())
        })
        .await;
}
