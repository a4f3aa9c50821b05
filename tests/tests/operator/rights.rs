//! An operator's rights: those that the chart gives, and no other, so that every test shows that they are enough.

use std::panic::{AssertUnwindSafe, catch_unwind};

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::{ListParams, PostParams};
use kube::{Api, Client};
use operator::rbac::{LEASE_CREATION, ON_AGENTS, ON_MIRRORS, ON_THE_LEASE, Rule};
use serde_json::{Value, json};
use testbed::control_plane::skip_on_existing_cluster;

use crate::bench::{Bench, soon};

/// Grants the permissions to a subject, in the bench's namespace alone, and waits until the API server knows of them.
/// `client` is the subject's.
pub(crate) async fn grant(bench: &Bench, name: &str, subject: Value, client: &Client, lease: &str) {
    let rule =
        |rule: &Rule| json!({"apiGroups": [rule.group], "resources": rule.resources, "verbs": rule.verbs});
    let mut rules: Vec<_> = [ON_MIRRORS, LEASE_CREATION].concat().iter().map(rule).collect();
    rules.extend(ON_THE_LEASE.iter().map(|on_the_lease| {
        let mut named = rule(on_the_lease);
        named["resourceNames"] = json!([lease]);
        named
    }));
    bench
        .apply::<Role>(json!({"metadata": {"name": name}, "rules": rules}))
        .await;
    let reference = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name});
    let binding = json!({"metadata": {"name": name}, "roleRef": reference, "subjects": [subject]});
    bench.apply::<RoleBinding>(binding).await;

    until_allowed(bench, client, "registrymirror.io", "registrymirrors").await;
}

/// Lets the operator find agents in the bench's namespace.
pub(crate) async fn grant_agents(bench: &Bench) {
    let rule =
        |rule: &Rule| json!({"apiGroups": [rule.group], "resources": rule.resources, "verbs": rule.verbs});
    let rules: Vec<_> = ON_AGENTS.iter().map(rule).collect();
    bench
        .apply::<Role>(json!({"metadata": {"name": "agents"}, "rules": rules}))
        .await;
    let reference = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "agents"});
    let subject = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": bench.user});
    let binding = json!({"metadata": {"name": "agents"}, "roleRef": reference, "subjects": [subject]});
    bench.apply::<RoleBinding>(binding).await;
    until_allowed(bench, &bench.client().await, "discovery.k8s.io", "endpointslices").await;
}

/// Waits until the API server lets a client watch a resource.
async fn until_allowed(bench: &Bench, client: &Client, group: &str, resource: &str) {
    let reviews = Api::<SelfSubjectAccessReview>::all(client.clone());
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(ResourceAttributes {
                namespace: Some(bench.namespace.name().to_owned()),
                verb: Some("watch".to_owned()),
                group: Some(group.to_owned()),
                resource: Some(resource.to_owned()),
                ..ResourceAttributes::default()
            }),
            ..SelfSubjectAccessReviewSpec::default()
        },
        ..SelfSubjectAccessReview::default()
    };
    soon("rights of the operator", async || {
        let answer = reviews.create(&PostParams::default(), &review).await.ok()?;
        answer.status?.allowed.then_some(())
    })
    .await;
}

/// A test whose operator needs more permissions than the chart grants fails.
#[tokio::test]
async fn excess_permissions_fail_the_test() {
    if skip_on_existing_cluster("excess_permissions_fail_the_test") {
        return;
    }
    let bench = Bench::idle("rights").await;
    let roles = Api::<Role>::namespaced(bench.client().await, bench.namespace.name());
    assert!(roles.list(&ListParams::default()).await.is_err());
    // It is in the log by then.
    bench.mark().await;
    let ended = catch_unwind(AssertUnwindSafe(|| drop(bench)));
    let words = ended.unwrap_err().downcast::<String>().unwrap();
    assert!(
        words.starts_with("the operator has no right to") && words.contains("/roles"),
        "{words}"
    );
}
