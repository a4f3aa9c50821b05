//! The rights that the chart gives, tried by the operator itself.

use std::collections::BTreeSet;

use crds::RegistryMirror;
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use operator::health::Health;
use operator::lease::{Fence, Lease};
use operator::run::{self, Options};
use serde_json::{Value, json};
use testbed::control_plane::{client_from, skip_on_existing_cluster};
use testbed::pki::Authority;
use testbed::wait;
use tokio_util::sync::CancellationToken;

use crate::cluster::Cluster;
use crate::{SOON, mirror};

/// Where the mirrors are.
const NAMESPACE: &str = "mirrors";
/// What tells a Pod of what it can reload.
const RELOAD: &str = "registrymirror.io/reload";

#[tokio::test]
async fn the_operator_is_refused_nothing_with_the_rights_of_every_namespace() {
    if !skip_on_existing_cluster("the_operator_is_refused_nothing_with_the_rights_of_every_namespace") {
        the_operator_is_refused_nothing(&[]).await;
    }
}

#[tokio::test]
async fn the_operator_is_refused_nothing_with_the_rights_of_one_namespace() {
    if !skip_on_existing_cluster("the_operator_is_refused_nothing_with_the_rights_of_one_namespace") {
        the_operator_is_refused_nothing(&[NAMESPACE]).await;
    }
}

/// Runs the operator as the chart's ServiceAccount.
async fn the_operator_is_refused_nothing(namespaces: &[&str]) {
    let cluster = Cluster::start().await;
    cluster.restricted_namespace(NAMESPACE).await;
    let scope = format!("--set-json=watchNamespaces={}", json!(namespaces));
    cluster.install(&[&scope]).await.unwrap();
    let audit = cluster.control_plane.audit().unwrap();
    let mark = audit.mark().unwrap();

    let account = cluster
        .control_plane
        .service_account_kubeconfig("operators", "rm-registry-mirror");
    let client = client_from(&account.await.unwrap()).await.unwrap();
    let options = Options {
        namespaces: namespaces.iter().map(ToString::to_string).collect(),
        ..Options::default()
    };
    let identity = "operator_of_this_test".to_owned();
    let lease = Lease::new(
        client.clone(),
        "operators",
        "rm-registry-mirror",
        identity,
        Fence::default(),
    );
    lease.acquire().await;
    let stop = CancellationToken::new();
    let running = tokio::spawn(run::run(client, options, Health::default(), stop.clone()));
    live(&cluster).await;
    stop.cancel();
    running.await.unwrap();
    lease.release().await;

    let user = "system:serviceaccount:operators:rm-registry-mirror";
    let mut events = audit.since(mark).unwrap();
    events.retain(|event| event.user() == user);
    let verbs: BTreeSet<_> = events.iter().map(|event| event.verb.as_str()).collect();
    assert!(
        verbs.is_superset(&BTreeSet::from([
            "create", "delete", "get", "list", "patch", "update", "watch"
        ])),
        "{verbs:?}"
    );
    events.retain(|event| event.code() == Some(403));
    assert!(events.is_empty(), "{events:#?}");
}

/// What may happen to mirrors: both workloads, a claim, a reference that comes late, running Pods that are told of a
/// change, and an object that is no longer wanted.
async fn live(cluster: &Cluster) {
    let mirrors = Api::<RegistryMirror>::namespaced(cluster.client.clone(), NAMESPACE);
    let claim = json!({"type": "PersistentVolumeClaim", "persistentVolumeClaim": {"size": "1Gi"}});
    for mirror in [
        mirror("kept", &claim),
        mirror("fleeting", &json!({"type": "Ephemeral"})),
    ] {
        let created = async || mirrors.create(&PostParams::default(), &mirror).await.ok();
        wait::until("definition that takes a mirror", SOON, created)
            .await
            .unwrap();
    }
    let sets = Api::<StatefulSet>::namespaced(cluster.client.clone(), NAMESPACE);
    let deployments = Api::<Deployment>::namespaced(cluster.client.clone(), NAMESPACE);
    let both = async || {
        Some((
            sets.get_opt("kept").await.unwrap()?,
            deployments.get_opt("fleeting").await.unwrap()?,
        ))
    };
    let (set, _) = wait::until("workloads", SOON, both).await.unwrap();
    run_a_pod_of(cluster, set).await;

    let ca = json!({"tls": {"caBundleRef": {"kind": "ConfigMap", "name": "ca"}}, "host": "quay.io"});
    change_upstream(&mirrors, &ca).await;
    make_bundle(cluster).await;
    let files = Api::<Secret>::namespaced(cluster.client.clone(), NAMESPACE);
    let there = async || files.get_opt("kept-files").await.unwrap();
    wait::until("copy of the bundle", SOON, there).await.unwrap();
    let pods = Api::<Pod>::namespaced(cluster.client.clone(), NAMESPACE);
    let told = async || {
        pods.get("kept-0")
            .await
            .unwrap()
            .annotations()
            .get(RELOAD)
            .cloned()
    };
    wait::until("word to the running Pod", SOON, told).await.unwrap();

    change_upstream(&mirrors, &json!({"host": "quay.io"})).await;
    let gone = async || files.get_opt("kept-files").await.unwrap().is_none().then_some(());
    wait::until("end of the copy of the bundle", SOON, gone)
        .await
        .unwrap();
}

/// As a StatefulSet's controller would: none runs here.
async fn run_a_pod_of(cluster: &Cluster, set: StatefulSet) {
    let template = set.spec.unwrap().template;
    let mut pod = Pod {
        metadata: template.metadata.unwrap(),
        spec: template.spec,
        ..Pod::default()
    };
    pod.metadata.name = Some("kept-0".to_owned());
    // The claim's volume is what the controller would add.
    for container in &mut pod.spec.as_mut().unwrap().containers {
        container
            .volume_mounts
            .as_mut()
            .unwrap()
            .retain(|mount| mount.name != "cache");
    }
    let pods = Api::<Pod>::namespaced(cluster.client.clone(), NAMESPACE);
    pods.create(&PostParams::default(), &pod).await.unwrap();
}

async fn change_upstream(mirrors: &Api<RegistryMirror>, upstream: &Value) {
    let change = Patch::Merge(json!({"spec": {"upstreams": [upstream]}}));
    mirrors
        .patch("kept", &PatchParams::default(), &change)
        .await
        .unwrap();
}

async fn make_bundle(cluster: &Cluster) {
    let authority = Authority::new("an upstream's").unwrap();
    let mut bundle = ConfigMap {
        data: Some([("ca.crt".to_owned(), authority.certificate())].into()),
        ..ConfigMap::default()
    };
    bundle.metadata.name = Some("ca".to_owned());
    let maps = Api::<ConfigMap>::namespaced(cluster.client.clone(), NAMESPACE);
    maps.create(&PostParams::default(), &bundle).await.unwrap();
}
