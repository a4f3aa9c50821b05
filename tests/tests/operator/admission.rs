//! The chart's admission policies: every test's operator writes under them, and a stolen token of it is of little use.

use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Secret, Service, ServiceAccount};
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use testbed::control_plane::{Namespaced, dry_run, skip_on_existing_cluster, uses_existing_cluster};

use crate::bench::{Bench, ephemeral, soon, with_claims};

const FILE: &str = include_str!("../../../charts/registry-mirror/files/admission-policies.yaml");
/// The beginning of the names of the policies in tests.
pub(crate) const PREFIX: &str = "operator-under-test";
/// The callers that are operators: users of benches, and the `ServiceAccount`s of operators that are processes. Leases have
/// names of their own in tests.
const OPERATORS: &str = "request.userInfo.username.startsWith('operator-of-') \
    || (request.userInfo.username.startsWith('system:serviceaccount:') \
    && !request.userInfo.username.startsWith('system:serviceaccount:kube-system:'))";

/// Returns the chart's policies for all operators of tests.
fn policies() -> Vec<Value> {
    let replaced = [
        ("request.userInfo.username == 'OPERATOR'", OPERATORS),
        ("object.metadata.name == 'LEASE'", "true"),
        ("object.metadata.namespace == 'LEASE_NAMESPACE'", "true"),
    ];
    let text = replaced.iter().fold(FILE.to_owned(), |text, (from, to)| {
        assert!(text.contains(from), "{from}");
        text.replace(from, to)
    });
    let mut policies: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
    for policy in &mut policies {
        let name = format!("{PREFIX}-{}", policy["metadata"]["name"].as_str().unwrap());
        policy["metadata"]["name"] = json!(name);
    }
    policies
}

async fn apply<K>(client: &Client, object: &Value)
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
{
    let params = PatchParams::apply("admin").force();
    let name = object["metadata"]["name"].as_str().unwrap();
    let api = Api::<K>::all(client.clone());
    api.patch(name, &params, &Patch::Apply(object)).await.unwrap();
}

/// Installs the policies on a bench's control plane, and waits until they are in force. A cluster of users stays as it is.
pub(crate) async fn install(bench: &Bench) {
    if uses_existing_cluster() {
        return;
    }
    let (client, policies) = (bench.namespace.client(), policies());
    for policy in &policies {
        apply::<ValidatingAdmissionPolicy>(&client, policy).await;
    }
    for policy in &policies {
        let name = &policy["metadata"]["name"];
        let binding = json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": {"name": name}, "spec": {"policyName": name, "validationActions": ["Deny"]},
        });
        apply::<ValidatingAdmissionPolicyBinding>(&client, &binding).await;
    }
    let thief = thief(bench).await;
    soon("the admission policies", async || {
        refusal(create::<ConfigMap>(&thief, bench, json!({"metadata": {"name": "probe"}})).await)
    })
    .await;
}

/// Returns a client that acts as an operator to which RBAC grants everything: what is refused is refused by a policy.
async fn thief(bench: &Bench) -> Client {
    let user = format!("operator-of-{}-stolen", bench.namespace);
    bench.control_plane.client_as(&user, &["system:masters"]).await
}

/// Creates an object, or tries to, without keeping it.
async fn create<K: Namespaced>(client: &Client, bench: &Bench, object: Value) -> kube::Result<K> {
    let object = serde_json::from_value(object).unwrap();
    Api::<K>::namespaced(client.clone(), bench.namespace.name())
        .create(&dry_run(), &object)
        .await
}

/// Changes an object, or tries to.
async fn change<K: Namespaced>(client: &Client, bench: &Bench, name: &str, patch: Value) -> kube::Result<K> {
    Api::<K>::namespaced(client.clone(), bench.namespace.name())
        .patch(name, &PatchParams::default(), &Patch::Merge(&patch))
        .await
}

/// Returns the message of a policy's refusal; `None` if the request was not refused by one.
fn refusal<T>(result: kube::Result<T>) -> Option<String> {
    match result {
        Err(kube::Error::Api(status)) if status.code == 403 => {
            let message = status.message.clone();
            message.contains(PREFIX).then_some(message)
        }
        _ => None,
    }
}

#[track_caller]
fn assert_refused<T>(result: kube::Result<T>, expected: &str)
where
    T: std::fmt::Debug,
{
    let said = format!("{result:?}");
    let message = refusal(result).unwrap_or_else(|| panic!("not refused by a policy: {said}"));
    assert!(message.contains(expected), "{message}");
}

/// An owner reference and the label of a mirror, which a thief can write, too.
fn disguised(name: &str) -> Value {
    json!({
        "name": name,
        "labels": {"app.kubernetes.io/managed-by": "registry-mirror"},
        "ownerReferences": [{
            "apiVersion": "registrymirror.io/v1alpha1", "kind": "RegistryMirror", "name": "hub", "uid": "none",
            "controller": true,
        }],
    })
}

/// A workload that the policies admit.
fn workload() -> Value {
    let labels = json!({"app": "x"});
    json!({
        "metadata": disguised("hub"),
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {
                "serviceAccountName": "hub", "automountServiceAccountToken": false,
                "containers": [{"name": "a", "image": "a", "securityContext": {"allowPrivilegeEscalation": false}}],
            }},
        },
    })
}

/// A bench with a mirror that has all its objects, a Pod, and a thief of the operator's token.
async fn scene(name: &str) -> (Bench, Client) {
    let bench = Bench::start(name).await;
    bench.mirror("hub", with_claims("1Gi")).await;
    bench.until_accepted("hub").await;
    let thief = thief(&bench).await;
    (bench, thief)
}

#[tokio::test]
async fn operator_token_writes_no_object_of_others() {
    if skip_on_existing_cluster("operator_token_writes_no_object_of_others") {
        return;
    }
    let (bench, thief) = scene("others").await;
    bench
        .apply::<ConfigMap>(json!({"metadata": {"name": "mine"}, "data": {"a": "b"}}))
        .await;
    bench.secret("mine", json!({"a": "b"})).await;
    let only = "only objects with its label";
    let bare = json!({"metadata": {"name": "new"}});
    assert_refused(create::<ConfigMap>(&thief, &bench, bare.clone()).await, only);
    assert_refused(create::<Secret>(&thief, &bench, bare).await, only);
    let labelled =
        json!({"metadata": {"name": "new", "labels": {"app.kubernetes.io/managed-by": "registry-mirror"}}});
    assert_refused(create::<ConfigMap>(&thief, &bench, labelled).await, only);
    let data = json!({"data": {"a": "evil"}});
    assert_refused(change::<ConfigMap>(&thief, &bench, "mine", data).await, only);

    // A thief may write label and owner into an object of a user, which then would be the operator's.
    let taken = json!({"metadata": disguised("mine"), "data": {"a": "ZXZpbA=="}});
    let objects_of_mirrors = "only objects of mirrors";
    assert_refused(
        change::<ConfigMap>(&thief, &bench, "mine", taken.clone()).await,
        objects_of_mirrors,
    );
    assert_refused(
        change::<Secret>(&thief, &bench, "mine", taken).await,
        objects_of_mirrors,
    );
    // And an object of a mirror stays one.
    let freed = json!({"metadata": {"ownerReferences": null}});
    assert_refused(
        change::<Secret>(&thief, &bench, "hub-credentials", freed).await,
        only,
    );

    let api = |name: &'static str| {
        let maps = Api::<ConfigMap>::namespaced(thief.clone(), bench.namespace.name());
        async move { maps.delete(name, &DeleteParams::default()).await }
    };
    assert_refused(api("mine").await, "may delete only");
    let claims = Api::<PersistentVolumeClaim>::namespaced(thief.clone(), bench.namespace.name());
    let deleted = claims.delete("cache-hub-0", &DeleteParams::default()).await;
    assert_refused(deleted, "may delete only");
    let services = Api::<Service>::namespaced(thief.clone(), bench.namespace.name());
    assert_refused(
        services.delete("hub", &DeleteParams::default()).await,
        "may delete only",
    );
}

#[tokio::test]
async fn operator_token_makes_no_account_token() {
    if skip_on_existing_cluster("operator_token_makes_no_account_token") {
        return;
    }
    let (bench, thief) = scene("tokens").await;
    for kind in [
        "kubernetes.io/service-account-token",
        "bootstrap.kubernetes.io/token",
    ] {
        let mut secret = json!({"metadata": disguised("new"), "type": kind});
        secret["metadata"]["annotations"] = json!({"kubernetes.io/service-account.name": "default"});
        assert_refused(
            create::<Secret>(&thief, &bench, secret).await,
            "only Secrets of type Opaque",
        );
    }
    let mut account = json!({"metadata": disguised("other"), "automountServiceAccountToken": false});
    assert_refused(
        create::<ServiceAccount>(&thief, &bench, account.clone()).await,
        "name of its mirror",
    );
    account["metadata"]["name"] = json!("hub");
    account["automountServiceAccountToken"] = json!(true);
    let mount = json!({"automountServiceAccountToken": true});
    assert_refused(
        change::<ServiceAccount>(&thief, &bench, "hub", mount).await,
        "whose token no Pod mounts",
    );
    let secrets = json!({"secrets": [{"name": "x"}]});
    assert_refused(
        change::<ServiceAccount>(&thief, &bench, "hub", secrets).await,
        "may not give Secrets",
    );
    let lease = json!({"metadata": {"name": "x"}});
    assert!(
        create::<Lease>(&thief, &bench, lease).await.is_ok(),
        "tests have Leases of any name"
    );
}

/// The Pod that the StatefulSet of the mirror has.
#[tokio::test]
async fn operator_token_changes_annotations_of_pods_only() {
    if skip_on_existing_cluster("operator_token_changes_annotations_of_pods_only") {
        return;
    }
    let (bench, thief) = scene("pods").await;
    bench.until("hub-0", "the Pod", |_: &Pod| Some(())).await;
    let other = json!({"metadata": {"name": "other"}, "spec": {"containers": [{"name": "a", "image": "a"}]}});
    bench.apply::<Pod>(other.clone()).await;
    assert_refused(
        create::<Pod>(&thief, &bench, other).await,
        "neither create nor delete Pods",
    );
    let reload = json!({"metadata": {"annotations": {"registrymirror.io/reload": "x"}}});
    assert_refused(
        change::<Pod>(&thief, &bench, "other", reload.clone()).await,
        "only to Pods of mirrors",
    );
    let image = json!({"spec": {"containers": [{"name": "mirror", "image": "evil"}]}});
    let image = Api::<Pod>::namespaced(thief.clone(), bench.namespace.name())
        .patch("hub-0", &PatchParams::default(), &Patch::Strategic(&image))
        .await;
    assert_refused(image, "only annotations");
    for metadata in [
        json!({"labels": {"app": "payments"}}),
        json!({"finalizers": ["example.com/never"]}),
        json!({"ownerReferences": null}),
    ] {
        let changed = change::<Pod>(&thief, &bench, "hub-0", json!({"metadata": metadata})).await;
        assert_refused(changed, "only annotations");
    }
    let foreign = json!({"metadata": {"annotations": {"k8s.v1.cni.cncf.io/networks": "x"}}});
    assert_refused(
        change::<Pod>(&thief, &bench, "hub-0", foreign).await,
        "only its own annotations",
    );
    change::<Pod>(&thief, &bench, "hub-0", reload).await.unwrap();
    let pods = Api::<Pod>::namespaced(thief.clone(), bench.namespace.name());
    assert_refused(
        pods.delete("hub-0", &DeleteParams::default()).await,
        "neither create nor delete Pods",
    );
}

#[tokio::test]
async fn operator_token_runs_no_pod_with_rights() {
    if skip_on_existing_cluster("operator_token_runs_no_pod_with_rights") {
        return;
    }
    let bench = Bench::idle("templates").await;
    let thief = thief(&bench).await;
    create::<Deployment>(&thief, &bench, workload()).await.unwrap();
    let (node, volumes, privileged) = (
        "namespaces of a node",
        "only volumes of the types",
        "no privileged containers",
    );
    let token = json!([{"name": "v", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}]);
    let init = json!([{"name": "i", "image": "i", "securityContext": {"privileged": true}}]);
    let capabilities = json!({"capabilities": {"add": ["SYS_ADMIN"]}});
    for (field, value, expected) in [
        (
            "/serviceAccountName",
            json!("default"),
            "only as the ServiceAccount",
        ),
        ("/automountServiceAccountToken", json!(true), "without its token"),
        ("/hostNetwork", json!(true), node),
        ("/hostPID", json!(true), node),
        ("/hostIPC", json!(true), node),
        ("/nodeName", json!("a"), node),
        (
            "/volumes",
            json!([{"name": "v", "hostPath": {"path": "/"}}]),
            volumes,
        ),
        ("/volumes", token, volumes),
        (
            "/containers/0/securityContext",
            json!({"privileged": true}),
            privileged,
        ),
        ("/containers/0/securityContext", capabilities, privileged),
        ("/initContainers", init, privileged),
        (
            "/containers/0/ports",
            json!([{"containerPort": 1, "hostPort": 1}]),
            "ports of a node",
        ),
    ] {
        let mut evil = workload();
        let (parent, key) = field.rsplit_once('/').unwrap();
        evil["spec"]["template"]["spec"].pointer_mut(parent).unwrap()[key] = value;
        assert_refused(create::<Deployment>(&thief, &bench, evil).await, expected);
    }
}

#[tokio::test]
async fn operator_token_draws_no_traffic_of_others() {
    if skip_on_existing_cluster("operator_token_draws_no_traffic_of_others") {
        return;
    }
    let bench = Bench::idle("traffic").await;
    let thief = thief(&bench).await;
    let spec = json!({"type": "ExternalName", "externalName": "evil.example"});
    let service = json!({"metadata": disguised("hub"), "spec": spec});
    assert_refused(
        create::<Service>(&thief, &bench, service).await,
        "without externalIPs",
    );
    // The API server of tests refuses external addresses before it asks the policies.
    let spec = json!({"ports": [{"port": 80}], "externalIPs": ["192.0.2.1"]});
    let service = json!({"metadata": disguised("hub"), "spec": spec});
    assert!(create::<Service>(&thief, &bench, service).await.is_err());
}

/// A user's own additions to a workload stay, and keep the operator from nothing.
#[tokio::test]
async fn workload_with_users_sidecar_is_still_reconciled() {
    let bench = Bench::start("sidecar").await;
    bench.mirror("hub", ephemeral()).await;
    bench.until_accepted("hub").await;
    let sidecar = json!({"spec": {"template": {"spec": {
        "containers": [{"name": "agent", "image": "a", "securityContext": {"privileged": true}}],
        "volumes": [{"name": "host", "hostPath": {"path": "/var/log"}}],
    }}}});
    let deployments = bench.api::<Deployment>();
    deployments
        .patch("hub", &PatchParams::default(), &Patch::Strategic(&sidecar))
        .await
        .unwrap();
    let mut spec = ephemeral();
    spec["pod"] = json!({"nodeSelector": {"a": "b"}});
    bench.mirror("hub", spec).await;
    bench
        .until("hub", "the node selector", |deployment: &Deployment| {
            let pod = deployment.spec.as_ref()?.template.spec.as_ref()?;
            (pod.node_selector.is_some() && pod.containers.len() == 2).then_some(())
        })
        .await;
}

/// The API server type-checks each expression against the kinds that it is for.
#[tokio::test]
async fn admission_policies_have_no_type_warnings() {
    let bench = Bench::idle("types").await;
    let policies = Api::<ValidatingAdmissionPolicy>::all(bench.namespace.client());
    for policy in self::policies() {
        let name = policy["metadata"]["name"].as_str().unwrap().to_owned();
        if uses_existing_cluster() {
            return;
        }
        let warnings = soon("the verdict of the API server", async || {
            let policy = policies.get(&name).await.unwrap();
            let generation = policy.meta().generation;
            let status = policy
                .status
                .filter(|status| status.observed_generation == generation)?;
            Some(
                status
                    .type_checking
                    .and_then(|checked| checked.expression_warnings)
                    .unwrap_or_default(),
            )
        })
        .await;
        assert!(warnings.is_empty(), "{name}: {warnings:#?}");
    }
}
