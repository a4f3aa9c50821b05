//! Renders the Pod template. It has only values that servers can't reload, because each change of it replaces the Pods.

use std::collections::BTreeMap;

use crds::{Pod, RegistryMirror};
use k8s_openapi::{
    api::core::v1::{
        ConfigMapVolumeSource, LocalObjectReference, PodSecurityContext, PodSpec, PodTemplateSpec,
        SeccompProfile, SecretVolumeSource, TopologySpreadConstraint, Volume,
    },
    apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta},
};
use kube::ResourceExt;
use sha2::{Digest as _, Sha256};

use super::{config, container, storage};
use crate::names;
use crate::{
    desired::{Platform, Release},
    validate::Accepted,
};

/// A user that no image has: files of the cache belong to its group.
const UNPRIVILEGED: i64 = 65532;
/// The time for the server to write its index after it has drained.
const AFTER_DRAIN_SECONDS: i64 = 15;

/// Renders the Pod template.
pub(super) fn template(accepted: &Accepted<'_>, release: &Release) -> PodTemplateSpec {
    let mirror = accepted.mirror;
    let wanted = &mirror.spec.pod;
    let mut labels = wanted.labels.clone();
    labels.extend(names::labels(&mirror.name_any()));
    PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(labels),
            annotations: Some(annotations(accepted)),
            ..ObjectMeta::default()
        }),
        spec: Some(spec(accepted, wanted, release)),
    }
}

fn annotations(accepted: &Accepted<'_>) -> BTreeMap<String, String> {
    let mut annotations = accepted.mirror.spec.pod.annotations.clone();
    let first = accepted.upstreams.first();
    annotations.extend(first.map(|first| (names::FIRST_UPSTREAM.to_owned(), first.spec.host.clone())));
    let account = &accepted.mirror.spec.service_account.annotations;
    if !account.is_empty() {
        let hash = Sha256::digest(format!("{account:?}"));
        annotations.insert(names::SERVICE_ACCOUNT.to_owned(), hex::encode(&hash[..16]));
    }
    annotations
}

fn spec(accepted: &Accepted<'_>, wanted: &Pod, release: &Release) -> PodSpec {
    let mirror = accepted.mirror;
    PodSpec {
        service_account_name: Some(mirror.name_any()),
        automount_service_account_token: Some(false),
        // Service variables are named like the server's own (`REGISTRY_PORT` for a Service `registry`).
        enable_service_links: Some(false),
        security_context: Some(pod_security(wanted.security_context.clone(), release.platform)),
        containers: vec![container::server(accepted, wanted, release)],
        volumes: Some(volumes(accepted)),
        termination_grace_period_seconds: Some(
            config::LEAVING_SECONDS + config::DRAIN_SECONDS + AFTER_DRAIN_SECONDS,
        ),
        image_pull_secrets: list(&pull_secrets(wanted)),
        node_selector: some(&wanted.node_selector),
        tolerations: list(&wanted.tolerations),
        affinity: wanted.affinity.clone(),
        topology_spread_constraints: Some(spread(mirror, wanted)),
        priority_class_name: wanted.priority_class_name.clone(),
        ..PodSpec::default()
    }
}

fn pull_secrets(wanted: &Pod) -> Vec<LocalObjectReference> {
    let names = wanted.image_pull_secrets.iter().map(|secret| secret.name.clone());
    names.map(|name| LocalObjectReference { name }).collect()
}

fn volumes(accepted: &Accepted<'_>) -> Vec<Volume> {
    let name = accepted.mirror.name_any();
    let secret = |volume: &str, secret: String, optional: Option<bool>| Volume {
        name: volume.to_owned(),
        secret: Some(SecretVolumeSource {
            secret_name: Some(secret),
            optional,
            ..SecretVolumeSource::default()
        }),
        ..Volume::default()
    };
    let mut volumes = vec![
        Volume {
            name: "config".to_owned(),
            config_map: Some(ConfigMapVolumeSource {
                name: names::config(&name),
                ..ConfigMapVolumeSource::default()
            }),
            ..Volume::default()
        },
        secret("credentials", names::credentials(&name), None),
        // There or not: an upstream's first CA bundle comes to running Pods.
        secret("files", names::files(&name), Some(true)),
    ];
    let peers = accepted.peers.as_ref();
    volumes.extend(peers.map(|_| secret("peers", names::peers(&name), None)));
    volumes.extend(storage::pod_volume(&accepted.volume));
    volumes
}

/// Returns the topology spread constraints. A single replica has them as well, so that a second one does not change the
/// template.
fn spread(mirror: &RegistryMirror, wanted: &Pod) -> Vec<TopologySpreadConstraint> {
    if !wanted.topology_spread_constraints.is_empty() {
        return wanted.topology_spread_constraints.clone();
    }
    vec![TopologySpreadConstraint {
        max_skew: 1,
        topology_key: "kubernetes.io/hostname".to_owned(),
        when_unsatisfiable: "ScheduleAnyway".to_owned(),
        label_selector: Some(LabelSelector {
            match_labels: Some(names::selector(&mirror.name_any())),
            ..LabelSelector::default()
        }),
        ..TopologySpreadConstraint::default()
    }]
}

/// Returns the Pods' security context: with the container's, the `restricted` Pod Security Standard. A platform that
/// assigns users and groups refuses fixed ones.
fn pod_security(wanted: Option<PodSecurityContext>, platform: Platform) -> PodSecurityContext {
    let fixed = || match platform {
        Platform::Kubernetes => PodSecurityContext {
            run_as_user: Some(UNPRIVILEGED),
            run_as_group: Some(UNPRIVILEGED),
            fs_group: Some(UNPRIVILEGED),
            ..PodSecurityContext::default()
        },
        Platform::OpenShift => PodSecurityContext::default(),
    };
    let wanted = wanted.unwrap_or_else(fixed);
    let runtime_default = || SeccompProfile {
        type_: "RuntimeDefault".to_owned(),
        ..SeccompProfile::default()
    };
    PodSecurityContext {
        run_as_non_root: wanted.run_as_non_root.or(Some(true)),
        seccomp_profile: wanted.seccomp_profile.or_else(|| Some(runtime_default())),
        // The kubelet does not walk a large cache's files at every start.
        fs_group_change_policy: wanted
            .fs_group_change_policy
            .or_else(|| Some("OnRootMismatch".to_owned())),
        ..wanted
    }
}

fn some(map: &BTreeMap<String, String>) -> Option<BTreeMap<String, String>> {
    (!map.is_empty()).then(|| map.clone())
}

fn list<T: Clone>(items: &[T]) -> Option<Vec<T>> {
    (!items.is_empty()).then(|| items.to_vec())
}
