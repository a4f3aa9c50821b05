//! The admission policies that the chart installs.

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Api;
use operator::policy::{AffinityScope, ExistingClaimMode, PodSecurity, Policy};
use serde_json::json;
use testbed::control_plane::{client_from, dry_run, skip_on_existing_cluster};
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

/// The operator without flags has the same policy as with the chart's values.
#[tokio::test]
async fn default_values_are_the_operators_default_policy() {
    let helm = Helm::offline().await;
    let objects = helm.template(&[]).await.unwrap();
    let container = &named(&objects, "Deployment")[0]["spec"]["template"]["spec"]["containers"][0];
    let arguments = container["args"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|argument| argument.as_str());
    let of = |flag: &str| -> Vec<String> {
        let values = arguments
            .clone()
            .filter_map(|argument| argument.strip_prefix(flag));
        values
            .filter(|value| !value.is_empty())
            .map(str::to_owned)
            .collect()
    };
    let policy = Policy::default();
    for (flag, patterns) in [
        ("--allowed-image=", &policy.images),
        ("--allowed-priority-class=", &policy.priority_classes),
        ("--allowed-pod-annotation=", &policy.annotations),
        ("--allowed-pod-label=", &policy.labels),
        ("--allowed-toleration=", &policy.tolerations),
    ] {
        assert_eq!(of(flag), patterns.as_written(), "{flag}");
        assert!(
            arguments.clone().any(|argument| argument.starts_with(flag)),
            "{flag} is given"
        );
    }
    assert_eq!(of("--max-replicas="), [policy.max_replicas.to_string()]);
    assert_eq!(of("--max-storage="), [policy.max_storage.0]);
    assert_eq!(
        (
            policy.existing_claims,
            policy.pod_security,
            policy.affinity_namespaces
        ),
        (
            ExistingClaimMode::Annotated,
            PodSecurity::Baseline,
            AffinityScope::Own
        )
    );
    let flags = ["--existing-claims=", "--pod-security=", "--affinity-namespaces="];
    assert_eq!(flags.map(of).concat(), ["annotated", "baseline", "own"]);
}

/// Returns the message of the admission policy that refuses to create an object, if one does.
async fn is_refused<K>(api: &Api<K>, object: serde_json::Value) -> Option<String>
where
    K: kube::Resource + Clone + serde::Serialize + serde::de::DeserializeOwned + std::fmt::Debug,
{
    let object = serde_json::from_value(object).unwrap();
    match api.create(&dry_run(), &object).await {
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
        "only the operator is bound"
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
