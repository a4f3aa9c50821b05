//! The names, labels and annotations of a mirror's objects.

use std::collections::BTreeMap;

use crds::RegistryMirror;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Resource, ResourceExt};

use crate::kind::Kind;

/// The label of the operator's objects. It watches no others of these kinds.
pub const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "registry-mirror");
/// The label with the name of the mirror.
pub const INSTANCE: &str = "app.kubernetes.io/instance";
/// On PVCs: the mirror whose cache it holds. The label outlives the mirror, and only it lets a mirror of that name
/// adopt the PVC.
pub const CACHE_OF: &str = "registrymirror.io/cache-of";
/// On PVCs of users: the name of the mirror that may use it, or `*` for every mirror of its namespace.
pub const ALLOW_MIRROR: &str = "registrymirror.io/allow-mirror";
/// On all objects: the hash of the last applied manifest, by which a removed field is noticed.
pub const APPLIED: &str = "registrymirror.io/applied";
/// On Pods: a value that changes with each reload, so that the kubelet syncs their volumes at once. On the workload:
/// the value that all Pods have.
pub const RELOAD: &str = "registrymirror.io/reload";
/// On Pods: the number of notifications of one change, and the time of the last one.
pub const RELOAD_NOTIFIED: Annotation = Annotation {
    current: "registrymirror.io/reload-notified",
    former: "registrymirror.io/told",
};
/// On the `ConfigMap` with the configuration: its SHA-256, by which servers report it.
pub const CONFIGURATION: &str = "registrymirror.io/configuration";
/// On the same object: the SHA-256 of the last good configuration.
pub const LAST_GOOD: &str = "registrymirror.io/last-good-configuration";
/// On the credentials Secret: the number of last good entries that were replaced.
pub const REPLACED: &str = "registrymirror.io/credentials-replaced";
/// On the workload: the source of its Pod template.
pub const POD_TEMPLATE_SOURCE: Annotation = Annotation {
    current: "registrymirror.io/pod-template-source",
    former: "registrymirror.io/rendered",
};
/// On the Pods: a hash of the annotations of their ServiceAccount, which clouds read when a Pod is created.
pub const SERVICE_ACCOUNT: &str = "registrymirror.io/service-account-hash";
/// On the same object: the version of the credentials for the bucket.
pub const BUCKET_VERSION: &str = "registrymirror.io/bucket-credentials-version";
/// On the Pod template: the upstream of requests that name none. Servers read it at their start only.
pub const FIRST_UPSTREAM: &str = "registrymirror.io/first-upstream";
/// On the credentials Secret: the Secret and the destination of each entry.
pub const ORIGINS: &str = "registrymirror.io/credential-origins";
/// On the credentials Secret: the time of each upstream's last rotation.
pub const ROTATED: &str = "registrymirror.io/credentials-rotated";

/// The maximum length of the name of an object.
const MAX_NAME: usize = 253;

/// An annotation with a former name. The operator reads both and writes the current one, which removes the former one.
pub struct Annotation {
    /// The name that is written.
    pub current: &'static str,
    /// The name that an earlier version of the operator wrote.
    pub former: &'static str,
}

impl Annotation {
    /// Returns the value, under the current name if there is one.
    pub fn get<'a>(&self, annotations: &'a BTreeMap<String, String>) -> Option<&'a String> {
        annotations
            .get(self.current)
            .or_else(|| annotations.get(self.former))
    }
}

/// Returns the name of the `ConfigMap` with the servers' configuration.
pub fn config(mirror: &str) -> String {
    format!("{mirror}-config")
}

/// Returns the name of the Secret with the upstreams' credentials.
pub fn credentials(mirror: &str) -> String {
    format!("{mirror}-credentials")
}

/// Returns the name of the Secret with certificates and users.
pub fn files(mirror: &str) -> String {
    format!("{mirror}-files")
}

/// Returns the name of the Service with a DNS name for each Pod.
pub fn headless(mirror: &str) -> String {
    format!("{mirror}-headless")
}

/// The key of the CA certificates that clients trust.
pub const CA_BUNDLE_KEY: &str = "ca.crt";

/// Returns the name of the `ConfigMap` with the CA certificates that clients trust.
pub fn ca_bundle(mirror: &str) -> String {
    format!("{mirror}-ca")
}

/// Returns the name of the Secret with the CA of the mirror. No Pod mounts it.
pub fn ca_key(mirror: &str) -> String {
    format!("{mirror}-ca-key")
}

/// Returns the name of the Secret that the servers share among them.
pub fn peers(mirror: &str) -> String {
    format!("{mirror}-peers")
}

/// Returns the name of the `ConfigMap` with files for nodes.
pub fn hosts(mirror: &str) -> String {
    format!("{mirror}-hosts")
}

/// Returns the name of the PVC of a replica, as a `StatefulSet` with a claim template `cache` names it.
pub fn claim(mirror: &str, ordinal: u32) -> String {
    format!("cache-{mirror}-{ordinal}")
}

/// Returns the ordinal of the replica that a PVC belongs to.
pub fn claim_ordinal(mirror: &str, claim: &str) -> Option<u32> {
    claim
        .strip_prefix("cache-")?
        .strip_prefix(mirror)?
        .strip_prefix('-')?
        .parse()
        .ok()
        .filter(|ordinal| self::claim(mirror, *ordinal) == claim)
}

/// Returns every object that only some specs of a mirror ask for. PVCs stay, a workload never changes its kind, and
/// every spec asks for Services and the ServiceAccount.
pub fn every(mirror: &str) -> Vec<(Kind, String)> {
    vec![
        (Kind::ConfigMap, config(mirror)),
        (Kind::ConfigMap, ca_bundle(mirror)),
        (Kind::ConfigMap, hosts(mirror)),
        (Kind::Secret, credentials(mirror)),
        (Kind::Secret, files(mirror)),
        (Kind::Secret, ca_key(mirror)),
        (Kind::Secret, peers(mirror)),
        (Kind::PodDisruptionBudget, mirror.to_owned()),
    ]
}

/// Returns the objects that its Pods mount, and their ServiceAccount.
pub fn mounted(mirror: &str) -> [(Kind, String); 5] {
    [
        (Kind::ConfigMap, config(mirror)),
        (Kind::Secret, credentials(mirror)),
        (Kind::Secret, files(mirror)),
        (Kind::Secret, peers(mirror)),
        (Kind::ServiceAccount, mirror.to_owned()),
    ]
}

/// Returns the labels that select a mirror's Pods. They never change: the selector of a workload is immutable, and one
/// Service selects old and new Pods during a rollout.
pub fn selector(mirror: &str) -> BTreeMap<String, String> {
    BTreeMap::from([
        ("app.kubernetes.io/name".to_owned(), "registry-mirror".to_owned()),
        (INSTANCE.to_owned(), mirror.to_owned()),
        ("app.kubernetes.io/component".to_owned(), "mirror".to_owned()),
    ])
}

/// Returns the labels of every object.
pub fn labels(mirror: &str) -> BTreeMap<String, String> {
    let mut labels = selector(mirror);
    labels.insert(MANAGED_BY.0.to_owned(), MANAGED_BY.1.to_owned());
    labels
}

/// Returns whether the operator created an object for a mirror: it has the operator's label, or a `RegistryMirror` controls it.
pub fn is_operators(object: &ObjectMeta) -> bool {
    let mut labels = object.labels.iter().flatten();
    let mut owners = object.owner_references.iter().flatten();
    labels.any(|(key, value)| (key.as_str(), value.as_str()) == MANAGED_BY)
        || owners.any(|owner| owner.controller == Some(true) && owner.kind == "RegistryMirror")
}

/// Returns whether a text is a name of an object (a DNS subdomain). Kinds, groups and versions are such names, too.
pub fn is_object_name(text: &str) -> bool {
    let is_alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    let ends = [bytes.first(), bytes.last()];
    ends.iter().all(|end| end.is_some_and(is_alphanumeric))
        && bytes
            .iter()
            .all(|byte| is_alphanumeric(byte) || b"-.".contains(byte))
        && bytes.len() <= MAX_NAME
}

/// Returns whether a label is one by which the operator finds objects.
pub fn is_own_label(name: &str) -> bool {
    crds::rules::SELECTOR_LABELS.contains(&name) || name == CACHE_OF
}

/// Returns whether an annotation is one that the operator reads of an object that it may adopt, or of a Pod.
pub fn is_own_annotation(name: &str) -> bool {
    let renamed = [RELOAD_NOTIFIED, POD_TEMPLATE_SOURCE];
    let renamed = renamed.iter().flat_map(|one| [one.current, one.former]);
    [APPLIED, RELOAD]
        .into_iter()
        .chain(renamed)
        .any(|own| own == name)
}

/// Returns whether an object has the name of an object of the mirror that controls it or, for a PVC, that its label names.
pub fn is_of_mirror(kind: Kind, object: &ObjectMeta) -> bool {
    let name = object.name.as_deref().unwrap_or_default();
    if kind == Kind::PersistentVolumeClaim {
        let mirror = object.labels.as_ref().and_then(|labels| labels.get(CACHE_OF));
        return mirror.is_some_and(|mirror| claim_ordinal(mirror, name).is_some());
    }
    let mut owners = object.owner_references.iter().flatten();
    let owner = owners.find(|owner| owner.controller == Some(true) && owner.kind == "RegistryMirror");
    owner.is_some_and(|owner| match kind {
        Kind::ConfigMap | Kind::Secret => every(&owner.name).contains(&(kind, name.to_owned())),
        Kind::Service => name == owner.name || name == headless(&owner.name),
        _ => name == owner.name,
    })
}

/// Returns the metadata of an object that is deleted with the mirror.
pub fn owned(mirror: &RegistryMirror, name: String) -> ObjectMeta {
    ObjectMeta {
        owner_references: mirror.controller_owner_ref(&()).map(|owner| vec![owner]),
        ..kept(mirror, name)
    }
}

/// Returns the metadata of an object that outlives the mirror.
pub fn kept(mirror: &RegistryMirror, name: String) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: mirror.namespace(),
        labels: Some(labels(&mirror.name_any())),
        ..ObjectMeta::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotation_is_read_by_both_names() {
        let value = |names: &[&str]| {
            let all = names.iter().map(|name| ((*name).to_owned(), (*name).to_owned()));
            RELOAD_NOTIFIED.get(&all.collect()).cloned()
        };
        let Annotation { current, former } = RELOAD_NOTIFIED;
        assert_eq!(value(&[former]).as_deref(), Some(former));
        assert_eq!(value(&[former, current]).as_deref(), Some(current));
        assert_eq!(value(&[]), None);
    }

    /// The name of a PersistentVolumeClaim gives its ordinal.
    #[test]
    fn pvc_name_gives_its_ordinal() {
        assert_eq!(claim_ordinal("hub", &claim("hub", 12)), Some(12));
    }

    #[test]
    fn pvc_of_a_longer_mirror_name_is_not_matched() {
        assert_eq!(claim_ordinal("hub", &claim("hub-0", 1)), None);
        assert_eq!(claim_ordinal("hub-0", &claim("hub", 0)), None);
        assert_eq!(claim_ordinal("hub", "cache-hub-x"), None);
        assert_eq!(claim_ordinal("hub", "cache-hub-007"), None, "no ordinal");
    }

    #[test]
    fn selector_never_changes() {
        let selector = selector("hub");
        assert_eq!(
            selector
                .into_iter()
                .map(|(key, value)| format!("{key}={value}"))
                .collect::<Vec<_>>(),
            [
                "app.kubernetes.io/component=mirror",
                "app.kubernetes.io/instance=hub",
                "app.kubernetes.io/name=registry-mirror"
            ]
        );
    }
}
