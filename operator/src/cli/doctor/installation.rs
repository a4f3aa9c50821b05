//! The operator's Deployment, as the chart makes it.

use crds::conditions::Reason;
use k8s_openapi::api::apps::v1::Deployment;
use kube::{Api, Client, ResourceExt, api::ListParams};

use crate::{cli::policy, node_poller::AgentService, policy::Policy};

use super::{
    error_message,
    report::{Check, Class, Finding},
};

/// The chart's labels.
const SELECTOR: &str = "app.kubernetes.io/name=registry-mirror,app.kubernetes.io/component=operator";
const VERSION: &str = "app.kubernetes.io/version";
/// The default of `--lease-name`.
pub(super) const LEASE: &str = "registry-mirror";

/// An installed operator.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Installation {
    /// The namespace.
    pub(super) namespace: String,
    /// Its Deployment.
    pub(super) name: String,
    /// The ServiceAccount.
    pub(super) account: String,
    /// Its Lease, `NAMESPACE/NAME`, which is its name among operators.
    pub(super) lease: String,
    /// The image that it gives mirrors.
    pub(super) server_image: Option<String>,
    /// The namespaces that it looks after; none means all.
    pub(super) namespaces: Vec<String>,
    /// The Service of the node agents that it polls, if there are any.
    pub(super) agents: Option<AgentService>,
    /// The limits that it sets to specs; `None` if this version can't read them.
    pub(super) policy: Option<Policy>,
}

impl Installation {
    /// Returns whether the operator covers a namespace.
    pub(super) fn covers(&self, namespace: &str) -> bool {
        self.namespaces.is_empty() || self.namespaces.iter().any(|covered| covered == namespace)
    }

    /// Returns the namespace and the name of its Lease.
    pub(super) fn lease_parts(&self) -> (String, String) {
        let (namespace, name) = self.lease.split_once('/').unwrap_or((&self.namespace, LEASE));
        (namespace.to_owned(), name.to_owned())
    }

    /// Returns the namespaces that both operators cover, if there are any.
    fn overlap(&self, other: &Self) -> Option<String> {
        let (some, all) = if self.namespaces.is_empty() {
            (other, self)
        } else {
            (self, other)
        };
        if some.namespaces.is_empty() {
            return Some("every namespace".to_owned());
        }
        let both = some.namespaces.iter().filter(|namespace| all.covers(namespace));
        let both: Vec<_> = both.map(String::as_str).collect();
        (!both.is_empty()).then(|| format!("namespace {}", both.join(", ")))
    }
}

/// Finds operators in every namespace or, where the caller may not list Deployments everywhere, in one.
pub(super) async fn find(client: &Client, namespace: &str) -> (Vec<Installation>, Vec<Finding>) {
    let everywhere = list(Api::all(client.clone())).await;
    let found = match everywhere {
        Err(kube::Error::Api(status)) if status.is_forbidden() => {
            list(Api::namespaced(client.clone(), namespace)).await
        }
        found => found,
    };
    match found {
        Ok(deployments) if deployments.is_empty() => (
            Vec::new(),
            vec![not_found(
                "there is no Deployment with the chart's labels where you may list Deployments",
            )],
        ),
        Ok(deployments) => deployments
            .iter()
            .map(|deployment| (installation(deployment), finding(deployment)))
            .unzip(),
        Err(error) => {
            let why = format!("Deployments can't be listed: {}", error_message(&error));
            (Vec::new(), vec![not_found(&why)])
        }
    }
}

/// Returns the warning about an operator that was not found, whose RBAC permissions nothing else reports on.
fn not_found(why: &str) -> Finding {
    let message = format!("the operator was not found, and its RBAC permissions were not checked: {why}");
    Finding::warning(Check::Operator, "-", message).advice(
        "run doctor as a user that may list Deployments, name the operator's ServiceAccount with --as, or install the chart",
    )
}

async fn list(api: Api<Deployment>) -> kube::Result<Vec<Deployment>> {
    Ok(api.list(&ListParams::default().labels(SELECTOR)).await?.items)
}

fn installation(deployment: &Deployment) -> Installation {
    let pod = deployment
        .spec
        .as_ref()
        .and_then(|spec| spec.template.spec.as_ref());
    let account = pod.and_then(|pod| pod.service_account_name.clone());
    let arguments = pod
        .and_then(|pod| pod.containers.first()?.args.clone())
        .unwrap_or_default();
    let values_of = |flag: &str| {
        let values = arguments
            .iter()
            .filter_map(|argument| argument.strip_prefix(flag));
        values.map(ToOwned::to_owned).collect::<Vec<_>>()
    };
    let namespace = deployment.namespace().unwrap_or_default();
    let home = values_of("--lease-namespace=")
        .pop()
        .unwrap_or_else(|| namespace.clone());
    let lease = values_of("--lease-name=")
        .pop()
        .unwrap_or_else(|| LEASE.to_owned());
    Installation {
        lease: format!("{home}/{lease}"),
        namespace,
        name: deployment.name_any(),
        account: account.unwrap_or_else(|| "default".to_owned()),
        server_image: values_of("--server-image=").pop(),
        namespaces: values_of("--watch-namespace="),
        agents: values_of("--agent-service=")
            .pop()
            .and_then(|name| name.parse().ok()),
        policy: policy::of_arguments(&arguments),
    }
}

/// Returns a problem for each two operators that cover the same namespace: only one of them manages a mirror there.
pub(super) fn conflicts(installations: &[Installation]) -> Vec<Finding> {
    let mut found = Vec::new();
    for (index, one) in installations.iter().enumerate() {
        let others = installations.iter().skip(index + 1);
        for other in others.filter(|other| other.lease != one.lease) {
            let Some(place) = one.overlap(other) else { continue };
            let subject = format!("{}/{}", one.namespace, one.name);
            let message = format!(
                "covers {place}, as {}/{} does, too: each mirror there is managed by the operator that came first \
                 (status.managedBy)",
                other.namespace, other.name
            );
            found.push(
                Finding::problem(Check::Operator, Class::Cluster, subject, message)
                    .reason(Reason::ManagedByAnother.as_str())
                    .advice("uninstall one of the two, or give each its own namespaces (watchNamespaces)"),
            );
        }
    }
    found
}

fn finding(deployment: &Deployment) -> Finding {
    let (namespace, name) = (deployment.namespace().unwrap_or_default(), deployment.name_any());
    let subject = format!("{namespace}/{name}");
    let wanted = deployment
        .spec
        .as_ref()
        .and_then(|spec| spec.replicas)
        .unwrap_or(1);
    let status = deployment.status.clone().unwrap_or_default();
    if wanted == 0 {
        let message = "is scaled to zero: mirrors serve, but no operator reconciles them";
        return Finding::problem(Check::Operator, Class::Cluster, subject, message).advice(format!(
            "kubectl scale deployment/{name} --namespace {namespace} --replicas=1"
        ));
    }
    if status.ready_replicas.unwrap_or(0) < 1 {
        let conditions = status.conditions.unwrap_or_default().into_iter();
        let said = conditions.filter(|c| c.status == "False").find_map(|c| c.message);
        let message = format!(
            "is not ready: {}",
            said.unwrap_or_else(|| "no Pod runs yet".to_owned())
        );
        return Finding::problem(Check::Operator, Class::Cluster, subject, message).advice(format!(
            "kubectl describe pod --namespace {namespace} -l {SELECTOR}, and kubectl logs, have the cause"
        ));
    }
    match deployment.labels().get(VERSION) {
        Some(version) if version != env!("CARGO_PKG_VERSION") => {
            let message = format!(
                "is ready, and of version {version}; this is {}",
                env!("CARGO_PKG_VERSION")
            );
            Finding::warning(Check::Operator, subject, message)
                .advice("findings about the CRD and the files hold for this version")
        }
        _ => Finding::ok(Check::Operator, subject, "is ready"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn deployment(replicas: i32, ready: i32, version: &str) -> Deployment {
        serde_json::from_value(json!({
            "metadata": {"name": "rm", "namespace": "ops", "labels": {VERSION: version}},
            "spec": {"replicas": replicas, "selector": {}, "template": {"spec": {
                "serviceAccountName": "rm",
                "containers": [{"name": "operator", "args": [
                    "operator", "--server-image=r.example/m:1", "--watch-namespace=a", "--watch-namespace=b",
                ]}],
            }}},
            "status": {"readyReplicas": ready},
        }))
        .unwrap()
    }

    /// The settings of the operator are read from the arguments of its Deployment.
    #[test]
    fn installation_is_read_from_arguments() {
        let found = installation(&deployment(1, 1, "1"));
        assert_eq!(found.server_image.as_deref(), Some("r.example/m:1"));
        assert_eq!((found.account.as_str(), found.namespaces.len()), ("rm", 2));
        assert!(found.covers("a") && !found.covers("c"));
        assert!(Installation::default().covers("c"));
    }

    #[test]
    fn operators_that_share_namespaces_are_named() {
        let operator = |name: &str, namespaces: &[&str]| Installation {
            namespace: "ops".to_owned(),
            name: name.to_owned(),
            lease: format!("ops/{name}"),
            namespaces: namespaces.iter().map(ToString::to_string).collect(),
            ..Installation::default()
        };
        let found = |one: &[&str], other: &[&str]| {
            let both = [operator("one", one), operator("other", other)];
            let found = conflicts(&both);
            found
                .iter()
                .map(|finding| serde_json::to_string(finding).unwrap())
                .collect::<String>()
        };
        assert!(found(&[], &[]).contains("covers every namespace, as ops/other does"));
        assert!(found(&["a", "b"], &["b", "c"]).contains("covers namespace b, as"));
        assert!(found(&[], &["c"]).contains("covers namespace c, as"));
        assert_eq!(found(&["a"], &["b"]), "");
        let same = [
            operator("one", &[]),
            Installation {
                name: "two".to_owned(),
                ..operator("one", &[])
            },
        ];
        assert_eq!(
            conflicts(&same).len(),
            0,
            "two Deployments of one Lease take turns"
        );
    }

    /// An operator that does not run is a problem, and one of a different version a warning.
    #[test]
    fn idle_operator_is_a_problem() {
        let reported = |deployment| serde_json::to_string(&finding(&deployment)).unwrap();
        let version = env!("CARGO_PKG_VERSION");
        assert!(reported(deployment(0, 0, version)).contains("scaled to zero"));
        assert!(reported(deployment(1, 0, version)).contains("no Pod runs yet"));
        assert!(reported(deployment(1, 1, version)).contains(r#""result":"ok""#));
        assert!(reported(deployment(1, 1, "9.9")).contains(r#""result":"warning""#));
    }
}
