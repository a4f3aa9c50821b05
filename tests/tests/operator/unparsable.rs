//! A stored object that no longer parses.

use crds::RegistryMirror;
use crds::conditions::{ConditionType, Reason};
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps,
};
use kube::api::{DynamicObject, Patch, PatchParams, PostParams};
use kube::core::ApiResource;
use kube::runtime::{conditions, wait};
use kube::{Api, ResourceExt};
use serde_json::json;
use testbed::ControlPlane;
use testbed::control_plane::{Options, skip_on_existing_cluster};

use crate::bench::{Bench, ephemeral, soon};

/// The kind as an earlier version may have had it: any spec goes.
fn lenient() -> CustomResourceDefinition {
    let mut definition = crds::crd();
    for version in &mut definition.spec.versions {
        let schema = version
            .schema
            .as_mut()
            .and_then(|schema| schema.open_api_v3_schema.as_mut())
            .unwrap();
        schema.x_kubernetes_validations = None;
        let any = JSONSchemaProps {
            type_: Some("object".to_owned()),
            x_kubernetes_preserve_unknown_fields: Some(true),
            ..JSONSchemaProps::default()
        };
        schema.properties.as_mut().unwrap().insert("spec".to_owned(), any);
    }
    definition
}

/// A control plane of its own that knows the API by this definition.
async fn defined_as(
    definition: &CustomResourceDefinition,
) -> (&'static ControlPlane, Api<CustomResourceDefinition>) {
    let options = Options {
        manifests: Vec::new(),
        ..Options::default()
    };
    let control_plane: &'static ControlPlane =
        Box::leak(Box::new(ControlPlane::start(options).await.unwrap()));
    let definitions: Api<CustomResourceDefinition> = Api::all(control_plane.client().await);
    let created = definitions
        .create(&PostParams::default(), definition)
        .await
        .unwrap();
    let established = conditions::is_crd_established();
    wait::await_condition(definitions.clone(), &created.name_any(), established)
        .await
        .unwrap();
    (control_plane, definitions)
}

/// A stored object that does not parse is reported and delays no other mirror.
#[tokio::test]
async fn unparsable_object_is_reported_and_delays_none() {
    if skip_on_existing_cluster("unparsable_object_is_reported_and_delays_none") {
        return;
    }
    let (control_plane, _) = defined_as(&lenient()).await;
    let mut bench = Bench::on(control_plane, "unparsable").await;
    let resource = ApiResource::erase::<RegistryMirror>(&());
    let mirrors: Api<DynamicObject> =
        Api::namespaced_with(bench.namespace.client(), bench.namespace.name(), &resource);
    let old = json!({
        "apiVersion": resource.api_version, "kind": resource.kind, "metadata": {"name": "old"},
        "spec": {"upstreams": [{"host": "quay.io"}], "storage": {"type": "Tape"}},
    });
    mirrors
        .patch("old", &PatchParams::apply("admin"), &Patch::Apply(&old))
        .await
        .unwrap();
    bench.start_operator().await;
    let message = soon("report", async || {
        let status = mirrors.get("old").await.unwrap().data.get("status").cloned()?;
        let accepted = status["conditions"]
            .as_array()?
            .iter()
            .find(|c| c["type"] == "Accepted")
            .cloned()?;
        (accepted["status"] == "False" && accepted["reason"] == "InvalidSpec")
            .then(|| accepted["message"].as_str().unwrap_or_default().to_owned())
    })
    .await;
    assert!(message.starts_with("stored object not readable"), "{message}");
    assert!(message.contains("Tape"), "{message}");
    let key = format!(r#"namespace="{}",name="old""#, bench.namespace.name());
    let condition = r#"condition="Accepted",status="False",reason="InvalidSpec""#;
    let series = format!("registry_mirror_status_condition{{{key},{condition}}} 1");
    assert!(bench.metrics().contains(&series), "{}", bench.metrics());

    bench.mirror("new", ephemeral()).await;
    bench.until_accepted("new").await;
    assert!(bench.get::<ConfigMap>("new-config").await.is_some());
    bench
        .until_condition("new", ConditionType::Available, "False", Reason::NoReadyReplicas)
        .await;
}

/// The kind as it was before some of its fields.
fn previous() -> CustomResourceDefinition {
    let mut definition = crds::crd();
    for version in &mut definition.spec.versions {
        let schema = version
            .schema
            .as_mut()
            .and_then(|schema| schema.open_api_v3_schema.as_mut())
            .unwrap();
        schema.x_kubernetes_validations = None;
        let spec = schema.properties.as_mut().unwrap().get_mut("spec").unwrap();
        spec.x_kubernetes_validations = None;
        for field in ["observability", "tls", "access", "nodeConfiguration"] {
            spec.properties.as_mut().unwrap().remove(field).unwrap();
        }
    }
    definition
}

/// An object of the previous `CustomResourceDefinition` is reconciled, and can be changed.
#[tokio::test]
async fn object_of_previous_crd_is_reconciled() {
    if skip_on_existing_cluster("object_of_previous_crd_is_reconciled") {
        return;
    }
    let (control_plane, definitions) = defined_as(&previous()).await;
    let mut bench = Bench::on(control_plane, "previous").await;
    bench.mirror("old", ephemeral()).await;

    let name = crds::crd().name_any();
    let mut upgraded = definitions.get(&name).await.unwrap();
    upgraded.spec = crds::crd().spec;
    definitions
        .replace(&name, &PostParams::default(), &upgraded)
        .await
        .unwrap();
    bench.start_operator().await;
    bench.until_accepted("old").await;
    assert!(bench.get::<ConfigMap>("old-config").await.is_some());
    let change = json!({"spec": {"observability": {"logLevel": "debug"}}});
    bench.merge::<RegistryMirror>("old", change).await;
    let changed = |map: &ConfigMap| {
        let config = map.data.as_ref()?.values().next()?;
        config.contains("level: debug").then_some(())
    };
    bench
        .until("old-config", "a field that the previous one had not", changed)
        .await;
    bench.until_accepted("old").await;
}
