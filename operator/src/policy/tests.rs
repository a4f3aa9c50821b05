//! Specs that ask for more than the policy allows.
#![expect(clippy::needless_pass_by_value, reason = "the tables read better")]

use crds::RegistryMirrorSpec;
use serde_json::{Value, json};
use test_case::test_case;

use super::*;
use crate::observed::Claim;

const SERVER_IMAGE: &str = "registry.example:5000/registry-mirror:1.0";

fn mirror(change: &Value) -> RegistryMirror {
    let mut spec = json!({"upstreams": [{"host": "quay.io"}], "storage": {"type": "Ephemeral"}});
    for (field, value) in change.as_object().unwrap() {
        spec[field] = value.clone();
    }
    let spec: RegistryMirrorSpec = serde_json::from_value(spec).unwrap();
    let mut mirror = RegistryMirror::new("hub", spec);
    mirror.metadata.namespace = Some("a".to_owned());
    mirror
}

/// Returns the field that a policy does not allow.
fn refused(policy: &Policy, change: &Value) -> Option<String> {
    let rejection = policy.check(&mirror(change), SERVER_IMAGE, None).err()?;
    assert_eq!(rejection.reason, Reason::NotAllowed);
    Some(rejection.message.split(':').next().unwrap().to_owned())
}

fn pod(field: &str, value: Value) -> Value {
    json!({"pod": {field: value}})
}

#[test_case(json!({}); "the smallest spec")]
#[test_case(pod("image", json!("registry.example:5000/registry-mirror:2.0")); "another tag")]
#[test_case(pod("image", json!("registry.example:5000/registry-mirror@sha256:aa")); "a digest")]
#[test_case(json!({"replicas": 50}); "as many replicas")]
#[test_case(pod("annotations", json!({"note": "x", "prometheus.io/scrape": "true"})); "annotations")]
#[test_case(pod("labels", json!({"team": "a", "example.com/team": "b"})); "labels")]
#[test_case(pod("tolerations", json!([{"key": "node.kubernetes.io/not-ready", "operator": "Exists"}])); "a toleration")]
#[test_case(json!({"storage": {"type": "Ephemeral", "ephemeral": {"sizeLimit": "2Ti"}}}); "as large a volume")]
#[test_case(pod("securityContext", json!({"runAsUser": 1000})); "a user")]
fn default_policy_allows(change: Value) {
    assert_eq!(refused(&Policy::default(), &change), None);
}

#[test_case(pod("image", json!("evil.example/registry-mirror:1.0")), "spec.pod.image"; "another registry")]
#[test_case(pod("image", json!("registry-mirror:1.0")), "spec.pod.image"; "no registry")]
#[test_case(pod("image", json!("registry.example:5000/registry-mirror/evil:1.0")), "spec.pod.image"; "below")]
#[test_case(pod("image", json!("registry.example:5000/registry-mirror:5000/evil")), "spec.pod.image"; "like a port")]
#[test_case(pod("image", json!("registry.example")), "spec.pod.image"; "a part of the name")]
#[test_case(json!({"replicas": 51}), "spec.replicas"; "replicas")]
#[test_case(pod("priorityClassName", json!("system-node-critical")), "spec.pod.priorityClassName"; "priority")]
#[test_case(pod("annotations", json!({"k8s.v1.cni.cncf.io/networks": "a"})), "spec.pod.annotations"; "Multus")]
#[test_case(pod("annotations", json!({"container.apparmor.security.beta.kubernetes.io/mirror": "unconfined"})),
    "spec.pod.annotations"; "AppArmor annotation")]
#[test_case(pod("annotations", json!({"iam.amazonaws.com/role": "admin"})), "spec.pod.annotations"; "a cloud role")]
#[test_case(pod("labels", json!({"app": "payments"})), "spec.pod.labels"; "a Service's label")]
#[test_case(pod("labels", json!({"app.kubernetes.io/part-of": "x"})), "spec.pod.labels"; "a label of Kubernetes")]
#[test_case(pod("tolerations", json!([{"operator": "Exists"}])), "spec.pod.tolerations"; "every taint")]
#[test_case(pod("tolerations", json!([{"key": "", "operator": "Exists"}])), "spec.pod.tolerations"; "an empty key")]
#[test_case(pod("tolerations", json!([{"key": "node-role.kubernetes.io/control-plane"}])), "spec.pod.tolerations";
    "the control plane")]
#[test_case(json!({"storage": {"type": "Ephemeral", "ephemeral": {"sizeLimit": "2049Gi"}}}),
    "spec.storage.ephemeral.sizeLimit"; "a disk")]
#[test_case(json!({"storage": {"type": "PersistentVolumeClaim", "persistentVolumeClaim": {"size": "3Ti"}}}),
    "spec.storage.persistentVolumeClaim.size"; "a claim")]
#[test_case(pod("securityContext", json!({"appArmorProfile": {"type": "Unconfined"}})), "spec.pod.securityContext";
    "AppArmor")]
#[test_case(pod("containerSecurityContext", json!({"seccompProfile": {"type": "Unconfined"}})),
    "spec.pod.containerSecurityContext"; "seccomp")]
#[test_case(pod("affinity", json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
    {"topologyKey": "kubernetes.io/hostname", "namespaceSelector": {}}]}})),
    "spec.pod.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].namespaceSelector";
    "other tenants' Pods")]
fn default_policy_refuses(change: Value, field: &str) {
    assert_eq!(refused(&Policy::default(), &change).as_deref(), Some(field));
}

/// An administrator can allow all that the default refuses.
#[test]
fn open_policy_allows_everything() {
    let all = || PatternList::from_constants(&["**"]);
    let policy = Policy {
        images: all(),
        priority_classes: all(),
        annotations: all(),
        labels: all(),
        tolerations: all(),
        max_replicas: 1000,
        max_storage: Quantity("7Ei".to_owned()),
        existing_claims: ExistingClaimMode::Any,
        pod_security: PodSecurity::Any,
        affinity_namespaces: AffinityScope::Any,
    };
    let spec = json!({
        "replicas": 1000,
        "storage": {"type": "PersistentVolumeClaim", "persistentVolumeClaim": {"size": "5000Pi"}},
        "pod": {
            "image": "evil.example/a/b:1", "priorityClassName": "system-node-critical", "labels": {"app": "x"},
            "annotations": {"k8s.v1.cni.cncf.io/networks": "a"}, "tolerations": [{"operator": "Exists"}, {"key": "a/b"}],
            "securityContext": {"appArmorProfile": {"type": "Unconfined"}},
            "affinity": {"podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{
                "weight": 1, "podAffinityTerm": {"topologyKey": "kubernetes.io/hostname", "namespaces": ["b"]}}]}},
        },
    });
    assert_eq!(refused(&policy, &spec), None);
    assert_eq!(
        policy.check(&mirror(&spec), SERVER_IMAGE, Some(&existing(None))),
        Ok(())
    );
}

#[test_case("quay.io/team/*", "quay.io/team/mirror:1", true; "a repository")]
#[test_case("quay.io/team/mirror:1.*", "quay.io/team/mirror:1.2", true; "a tag")]
#[test_case("quay.io/team/mirror:1.*", "quay.io/team/mirror:2.0", false; "another tag")]
#[test_case("quay.io/team/*", "quay.io/team/a/b:1", false; "deeper")]
#[test_case("quay.io/team/**", "quay.io/team/a/b:1", true; "any depth")]
#[test_case("quay.io/team/*", "evil.io/quay.io/team/x:1", false; "another host")]
fn image_pattern(pattern: &str, image: &str, expected: bool) {
    let policy = Policy {
        images: PatternList::from_constants(&[pattern]),
        ..Policy::default()
    };
    assert_eq!(refused(&policy, &pod("image", json!(image))).is_none(), expected);
}

#[test]
fn rejection_names_fields_limits_and_values() {
    let spec = json!({"replicas": 51, "pod": {"labels": {"a": "", "b": "", "c": "", "d": ""}}});
    let rejection = Policy::default()
        .check(&mirror(&spec), SERVER_IMAGE, None)
        .unwrap_err();
    assert_eq!(
        rejection.message,
        "spec.replicas: the operator's policy does not allow 51 replicas, but at most 50; change it, or let an \
         administrator of the operator allow it (value policy.maxReplicas); spec.pod.labels: the operator's policy does \
         not allow label \"a\", \"b\", \"c\" and 1 more, but team, owner, environment, cost-center, */team, */owner, \
         */environment, */cost-center; change it, or let an administrator of the operator allow it (value \
         policy.podLabels)"
    );
}

fn existing(allowed: Option<&str>) -> ExistingClaim {
    ExistingClaim {
        name: "data".to_owned(),
        claim: Some(Claim::default()),
        allowed_mirror: allowed.map(str::to_owned),
    }
}

fn claim_refused(existing: &ExistingClaim) -> Option<Reason> {
    let rejection = Policy::default()
        .check(&mirror(&json!({})), SERVER_IMAGE, Some(existing))
        .err()?;
    assert!(
        rejection.message.contains("registrymirror.io/allow-mirror"),
        "{}",
        rejection.message
    );
    Some(rejection.reason)
}

#[test_case(Some("hub") => None; "by name")]
#[test_case(Some("*") => None; "every mirror")]
#[test_case(Some("other") => Some(Reason::NotAllowed); "another mirror")]
#[test_case(Some("") => Some(Reason::NotAllowed); "no mirror")]
#[test_case(None => Some(Reason::NotAllowed); "no annotation")]
fn existing_claim(allowed: Option<&str>) -> Option<Reason> {
    claim_refused(&existing(allowed))
}

/// Whatever gets the name later must not be mounted unseen.
#[test]
fn missing_existing_claim_is_not_waited_for() {
    let missing = ExistingClaim {
        claim: None,
        ..existing(None)
    };
    assert_eq!(claim_refused(&missing), Some(Reason::ReferenceNotFound));
}
