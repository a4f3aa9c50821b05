//! The admission policies that the chart installs.

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Api;
use kube::api::PostParams;
use serde_json::json;
use testbed::control_plane::{client_from, skip_on_existing_cluster};
use testbed::wait;

use crate::cluster::Cluster;
use crate::helm::Helm;
use crate::{SOON, named};

#[tokio::test]
async fn admission_policies_follow_from_values() {
    let helm = Helm::offline().await;
    for (flags, expected) in [
        (vec![], true),
        (vec!["--set=admissionPolicies.enabled=true"], true),
        (vec!["--set=admissionPolicies.enabled=false"], false),
        (vec!["--set-string=admissionPolicies.enabled=false"], false),
        (vec!["--set=watchNamespaces={a}"], true),
        (
            vec!["--set=rbac.create=false,serviceAccount.create=false,serviceAccount.name=mine"],
            true,
        ),
    ] {
        let objects = helm.template(&flags).await.unwrap();
        let policies = named(&objects, "ValidatingAdmissionPolicy");
        let bindings = named(&objects, "ValidatingAdmissionPolicyBinding");
        assert_eq!(!policies.is_empty(), expected, "{flags:?}");
        assert_eq!(policies.len(), bindings.len());
        let account = if flags.iter().any(|flag| flag.contains("mine")) {
            "'system:serviceaccount:operators:mine'"
        } else {
            "'system:serviceaccount:operators:rm-registry-mirror'"
        };
        for (policy, binding) in policies.iter().zip(&bindings) {
            assert_eq!(binding["spec"]["policyName"], policy["metadata"]["name"]);
            assert_eq!(binding["spec"]["validationActions"], json!(["Deny"]));
            let conditions = policy["spec"]["matchConditions"].to_string();
            assert!(conditions.contains(account), "{conditions}");
            assert!(!policy.to_string().contains("OPERATOR"), "{policy}");
            assert!(!policy.to_string().contains("'LEASE"), "{policy}");
        }
    }
}

/// Returns if the ServiceAccount of the operator may create an object of a type.
async fn is_refused<K>(api: &Api<K>, object: serde_json::Value) -> Option<String>
where
    K: kube::Resource + Clone + serde::Serialize + serde::de::DeserializeOwned + std::fmt::Debug,
{
    let dry = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let object = serde_json::from_value(object).unwrap();
    match api.create(&dry, &object).await {
        Err(kube::Error::Api(status)) if status.message.contains("ValidatingAdmissionPolicy") => {
            Some(status.message.clone())
        }
        _ => None,
    }
}

/// The release's own ServiceAccount, with the permissions that the chart grants.
#[tokio::test]
async fn installed_policies_bind_the_operators_account() {
    if skip_on_existing_cluster("installed_policies_bind_the_operators_account") {
        return;
    }
    let cluster = Cluster::start().await;
    cluster.install(&[]).await.unwrap();
    let account = cluster
        .control_plane
        .service_account_kubeconfig("operators", "rm-registry-mirror");
    let client = client_from(&account.await.unwrap()).await.unwrap();
    let maps = Api::<ConfigMap>::namespaced(client.clone(), "kube-system");
    let map = json!({"metadata": {"name": "x"}});
    let refused = async || is_refused(&maps, map.clone()).await;
    wait::until("the policies", SOON, refused).await.unwrap();
    let secrets = Api::<Secret>::namespaced(client, "kube-system");
    let token = json!({
        "metadata": {"name": "x", "annotations": {"kubernetes.io/service-account.name": "default"}},
        "type": "kubernetes.io/service-account-token",
    });
    assert!(is_refused(&secrets, token).await.is_some());
    let admin = Api::<ConfigMap>::namespaced(cluster.client.clone(), "kube-system");
    assert_eq!(
        is_refused(&admin, map.clone()).await,
        None,
        "nobody else is bound"
    );

    cluster
        .install(&["--set=admissionPolicies.enabled=false"])
        .await
        .unwrap();
    let admitted = async || is_refused(&maps, map.clone()).await.is_none().then_some(());
    wait::until("the end of the policies", SOON, admitted)
        .await
        .unwrap();
}
