//! The testbed tested: what every other test trusts.

use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, ServiceAccount};
use kube::api::{DeleteParams, ListParams, ObjectMeta, PostParams};
use serde_json::json;
use testbed::control_plane::{Options, client_from, skip_on_existing_cluster};
use testbed::{ControlPlane, wait};

const SOON: Duration = Duration::from_secs(30);

fn named(name: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        ..ObjectMeta::default()
    }
}

fn config_map(name: &str) -> ConfigMap {
    ConfigMap {
        metadata: named(name),
        ..ConfigMap::default()
    }
}

/// A shared control plane gives each test a namespace of its own.
#[tokio::test]
async fn shared_control_plane_gives_own_namespaces() {
    let control_plane = ControlPlane::shared().await;
    let (a, b) = tokio::join!(control_plane.namespace("same"), control_plane.namespace("same"));
    assert_ne!(a.name(), b.name());
    for namespace in [&a, &b] {
        let maps = namespace.api::<ConfigMap>();
        maps.create(&PostParams::default(), &config_map("c"))
            .await
            .unwrap();
    }
}

/// The audit log attributes a write to its user.
#[tokio::test]
async fn audit_log_attributes_writes_to_users() {
    if skip_on_existing_cluster("audit_log_attributes_writes_to_users") {
        return;
    }
    let control_plane = ControlPlane::shared().await;
    let audit = control_plane.audit().unwrap();
    let namespace = control_plane.namespace("audit").await;
    let client = control_plane.client_as("writer", &["system:masters"]).await;
    let maps = kube::Api::<ConfigMap>::namespaced(client, namespace.name());

    let mark = audit.mark().unwrap();
    maps.create(&PostParams::default(), &config_map("c"))
        .await
        .unwrap();
    maps.list(&ListParams::default()).await.unwrap();
    let writes = wait::until("audited write", SOON, async || {
        let writes = audit.writes(mark, "writer", namespace.name()).unwrap();
        (!writes.is_empty()).then_some(writes)
    });
    let [write] = &writes.await.unwrap()[..] else {
        panic!("more than one write")
    };
    assert_eq!(
        (write.verb.as_str(), write.object_ref.name.as_str(), write.code()),
        ("create", "c", Some(201))
    );
    assert_eq!(audit.writes(mark, "admin", namespace.name()).unwrap().len(), 0);
}

/// A service account has only the permissions that it was granted.
#[tokio::test]
async fn service_account_has_granted_permissions_only() {
    let control_plane = ControlPlane::shared().await;
    let namespace = control_plane.namespace("rights").await;
    let account = ServiceAccount {
        metadata: named("weak"),
        ..ServiceAccount::default()
    };
    namespace
        .api()
        .create(&PostParams::default(), &account)
        .await
        .unwrap();
    let path = control_plane
        .service_account_kubeconfig(namespace.name(), "weak")
        .await
        .unwrap();
    let client = client_from(&path).await.unwrap();
    let refused = kube::Api::<ConfigMap>::namespaced(client, namespace.name())
        .get("c")
        .await;
    let kube::Error::Api(status) = refused.unwrap_err() else {
        panic!("not refused by the API server")
    };
    assert_eq!(status.code, 403);
    let who = format!("system:serviceaccount:{namespace}:weak");
    assert!(status.message.contains(&who), "{}", status.message);
}

/// Controllers create the pods of a Deployment and delete them with it.
#[tokio::test]
async fn controllers_create_and_collect_pods() {
    let control_plane = ControlPlane::shared().await;
    let namespace = control_plane.namespace("controllers").await;
    let deployment: Deployment = serde_json::from_value(json!({
        "metadata": {"name": "d"},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": {"app": "d"}},
            "template": {
                "metadata": {"labels": {"app": "d"}},
                "spec": {"containers": [{"name": "c", "image": "none.test/none"}]}
            }
        }
    }))
    .unwrap();
    let (deployments, pods) = (namespace.api::<Deployment>(), namespace.api::<Pod>());
    deployments
        .create(&PostParams::default(), &deployment)
        .await
        .unwrap();
    let count = |wanted: usize| {
        let pods = pods.clone();
        wait::until("right number of Pods", SOON, move || {
            let pods = pods.clone();
            async move {
                let listed = pods.list(&ListParams::default()).await.unwrap();
                (listed.items.len() == wanted).then_some(())
            }
        })
    };
    count(2).await.unwrap();
    deployments
        .delete("d", &DeleteParams::background())
        .await
        .unwrap();
    count(0).await.unwrap();
}

/// A separate API server can be killed and restarts with its objects.
#[tokio::test]
async fn killed_api_server_restarts_with_objects() {
    if skip_on_existing_cluster("killed_api_server_restarts_with_objects") {
        return;
    }
    let control_plane = ControlPlane::start(Options::bare()).await.unwrap();
    let namespace = control_plane.namespace("kill").await;
    let maps = namespace.api::<ConfigMap>();
    maps.create(&PostParams::default(), &config_map("kept"))
        .await
        .unwrap();
    control_plane.kill_api_server();
    assert!(maps.get("kept").await.is_err());
    control_plane.start_api_server().await.unwrap();
    assert!(maps.get("kept").await.is_ok());
}
