//! A release's life: installed, upgraded, rolled back, uninstalled, installed again under another name.

use crds::RegistryMirror;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Container, Service, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ListParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::json;
use testbed::control_plane::skip_on_existing_cluster;
use testbed::wait;

use crate::cluster::Cluster;
use crate::{SOON, mirror};

const DEFINITION: &str = "registrymirrors.registrymirror.io";

/// Makes a mirror as soon as the definition is served.
async fn make_mirror(mirrors: &Api<RegistryMirror>) -> RegistryMirror {
    let hub = mirror("hub", &json!({"type": "Ephemeral"}));
    wait::until("definition that takes a mirror", SOON, async || {
        mirrors.create(&PostParams::default(), &hub).await.ok()
    })
    .await
    .unwrap()
}

/// Uninstalling keeps the `CustomResourceDefinition` and its mirrors, and nothing else.
#[tokio::test]
async fn uninstall_keeps_only_crd_and_mirrors() {
    if skip_on_existing_cluster("uninstall_keeps_only_crd_and_mirrors") {
        return;
    }
    let cluster = Cluster::start().await;
    let notes = cluster.install(&["--wait-for-jobs"]).await.unwrap();
    assert!(notes.contains("kubectl rmir pull"), "{notes}");
    let mirrors = Api::<RegistryMirror>::namespaced(cluster.client.clone(), "operators");
    let definitions = Api::<CustomResourceDefinition>::all(cluster.client.clone());
    make_mirror(&mirrors).await;

    cluster.install(&["--set=logLevel=debug"]).await.unwrap();
    let arguments = operator_arguments(&cluster).await;
    assert!(
        arguments.contains(&"--log-level=debug".to_owned()),
        "{arguments:?}"
    );
    cluster
        .helm
        .run(&["rollback", "rm", "1", "--namespace=operators"])
        .await
        .unwrap();
    let arguments = operator_arguments(&cluster).await;
    assert!(
        arguments.contains(&"--log-level=info".to_owned()),
        "{arguments:?}"
    );

    cluster
        .helm
        .run(&["uninstall", "rm", "--namespace=operators"])
        .await
        .unwrap();
    assert_eq!(left_behind(&cluster).await, Vec::<String>::new());
    definitions.get(DEFINITION).await.unwrap();
    mirrors.get("hub").await.unwrap();

    let other = [
        "install",
        "other",
        "CHART",
        "--namespace=operators",
        "--take-ownership",
    ];
    cluster.helm.run(&other).await.unwrap();
    mirrors.get("hub").await.unwrap();
}

/// The release in a namespace of its own.
const RELEASE: [&str; 2] = ["rm", "--namespace=operators"];

/// Upgrading the previous chart keeps values and mirrors, and installs the new `CustomResourceDefinition`.
#[tokio::test]
async fn chart_upgrade_keeps_values_and_mirrors() {
    if skip_on_existing_cluster("chart_upgrade_keeps_values_and_mirrors") {
        return;
    }
    let cluster = Cluster::start().await;
    let helm = async |verb: &str, arguments: &[&str]| {
        let all = [&[verb], &RELEASE[..1], arguments, &RELEASE[1..]].concat();
        cluster.helm.run(&all).await
    };
    let first = ["PREVIOUS", "--create-namespace", "--set=logLevel=debug"];
    helm("install", &first).await.unwrap();
    let mirrors = Api::<RegistryMirror>::namespaced(cluster.client.clone(), "operators");
    let definitions = Api::<CustomResourceDefinition>::all(cluster.client.clone());
    let uid = make_mirror(&mirrors).await.uid();
    let older = definitions.get(DEFINITION).await.unwrap();

    // With nothing but the older chart's values, templates would find none where they need one.
    let refused = helm("upgrade", &["CHART", "--reuse-values"]).await.unwrap_err();
    assert!(refused.contains("podMonitor"), "{refused}");

    for _ in 0..2 {
        helm("upgrade", &["CHART", "--reset-then-reuse-values"])
            .await
            .unwrap();
        let container = operator(&cluster).await;
        assert_eq!(container.image.as_deref(), Some("registry-mirror:0.1.0"));
        assert!(container.args.unwrap().contains(&"--log-level=debug".to_owned()));
        let newer = definitions.get(DEFINITION).await.unwrap();
        assert_ne!(newer.spec, older.spec);
        assert_eq!(mirrors.get("hub").await.unwrap().uid(), uid);

        helm("rollback", &["1"]).await.unwrap();
        let container = operator(&cluster).await;
        assert_eq!(container.image.as_deref(), Some("registry-mirror:0.0.1"));
        assert_eq!(definitions.get(DEFINITION).await.unwrap().spec, older.spec);
        assert_eq!(mirrors.get("hub").await.unwrap().uid(), uid);
    }
    helm("uninstall", &[]).await.unwrap();
    assert_eq!(left_behind(&cluster).await, Vec::<String>::new());
    assert_eq!(mirrors.get("hub").await.unwrap().uid(), uid);
}

async fn operator(cluster: &Cluster) -> Container {
    let deployments = Api::<Deployment>::namespaced(cluster.client.clone(), "operators");
    let deployment = deployments.get("rm-registry-mirror").await.unwrap();
    let template = deployment.spec.unwrap().template;
    template.spec.unwrap().containers.remove(0)
}

async fn operator_arguments(cluster: &Cluster) -> Vec<String> {
    operator(cluster).await.args.unwrap()
}

/// Returns the objects that still have the release's name, without the CRD.
async fn left_behind(cluster: &Cluster) -> Vec<String> {
    async fn names<K>(api: Api<K>) -> Vec<String>
    where
        K: kube::Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
        K::DynamicType: Default,
    {
        let of_the_release = ListParams::default().labels("app.kubernetes.io/instance=rm");
        let found = api.list(&of_the_release).await.unwrap();
        found.items.iter().map(ResourceExt::name_any).collect()
    }
    let client = || cluster.client.clone();
    [
        names(Api::<Deployment>::all(client())).await,
        names(Api::<Service>::all(client())).await,
        names(Api::<ServiceAccount>::all(client())).await,
        names(Api::<ClusterRole>::all(client())).await,
        names(Api::<ClusterRoleBinding>::all(client())).await,
        names(Api::<Role>::all(client())).await,
        names(Api::<RoleBinding>::all(client())).await,
    ]
    .concat()
}

/// Uninstalling deletes the `CustomResourceDefinition` if the values do not keep it.
#[tokio::test]
async fn uninstall_deletes_crd_if_not_kept() {
    if skip_on_existing_cluster("uninstall_deletes_crd_if_not_kept") {
        return;
    }
    let cluster = Cluster::start().await;
    cluster.install(&["--set=crds.keep=false"]).await.unwrap();
    cluster
        .helm
        .run(&["uninstall", "rm", "--namespace=operators"])
        .await
        .unwrap();
    let definitions = Api::<CustomResourceDefinition>::all(cluster.client.clone());
    let gone = async || {
        definitions
            .get_opt(DEFINITION)
            .await
            .unwrap()
            .is_none()
            .then_some(())
    };
    wait::until("end of the definition", SOON, gone).await.unwrap();
}
