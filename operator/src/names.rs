//! The names, labels and annotations of a mirror's objects.

use std::collections::BTreeMap;

use crds::RegistryMirror;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Resource, ResourceExt};

use crate::kind::Kind;

/// Says that an object is the operator's: it watches nothing else of these kinds.
pub const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "registry-mirror");
/// Says whose an object is, by the mirror's name.
pub const INSTANCE: &str = "app.kubernetes.io/instance";
/// On a claim: the mirror whose cache it holds. It stays when the mirror goes, and only it lets a mirror of that name
/// take the claim up again.
pub const CACHE_OF: &str = "registrymirror.io/cache-of";
/// On a PVC that a user made: the name of the mirror that may use it, or `*` for every mirror of its namespace.
pub const ALLOW_MIRROR: &str = "registrymirror.io/allow-mirror";
/// On a child: the hash of what was applied last, as a field that is no longer wanted can't be seen otherwise.
pub const APPLIED: &str = "registrymirror.io/applied";
/// On Pods, so that their kubelet looks at their volumes at once, and on the workload once all were told.
pub const RELOAD: &str = "registrymirror.io/reload";
/// On Pods: the number of notifications of one change, and the time of the last one.
pub const RELOAD_NOTIFIED: Renamed = Renamed {
    current: "registrymirror.io/reload-notified",
    former: "registrymirror.io/told",
};
/// On the `ConfigMap` with the configuration: the SHA-256 by which servers name it.
pub const CONFIGURATION: &str = "registrymirror.io/configuration";
/// The same of the last good one.
pub const LAST_GOOD: &str = "registrymirror.io/last-good-configuration";
/// On the credentials Secret: how often a last good entry replaced another.
pub const REPLACED: &str = "registrymirror.io/credentials-replaced";
/// On the workload: the source of its Pod template.
pub const POD_TEMPLATE_SOURCE: Renamed = Renamed {
    current: "registrymirror.io/pod-template-source",
    former: "registrymirror.io/rendered",
};
/// On the Pod template: the upstream that clients get who name none. Servers take another one only when they start.
pub const FIRST_UPSTREAM: &str = "registrymirror.io/first-upstream";
/// On the credentials Secret: where each entry came from and may be sent to.
pub const ORIGINS: &str = "registrymirror.io/credential-origins";
/// On the credentials Secret: when each upstream's last good entry was last replaced.
pub const ROTATED: &str = "registrymirror.io/credentials-rotated";

/// An annotation with a former name. The operator reads both and writes the current one, which removes the former one.
pub struct Renamed {
    /// The name that is written.
    pub current: &'static str,
    /// The name that an earlier version of the operator wrote.
    pub former: &'static str,
}

impl Renamed {
    /// Returns the value, under the current name if there is one.
    pub fn get<'a>(&self, annotations: &'a BTreeMap<String, String>) -> Option<&'a String> {
        annotations
            .get(self.current)
            .or_else(|| annotations.get(self.former))
    }
}

/// The `ConfigMap` with the server's configuration.
pub fn config(mirror: &str) -> String {
    format!("{mirror}-config")
}

/// The Secret with the upstreams' credentials.
pub fn credentials(mirror: &str) -> String {
    format!("{mirror}-credentials")
}

/// The Secret with certificates.
pub fn files(mirror: &str) -> String {
    format!("{mirror}-files")
}

/// The Service that gives each Pod a name.
pub fn headless(mirror: &str) -> String {
    format!("{mirror}-headless")
}

/// The key with what clients have to trust.
pub const CA_BUNDLE_KEY: &str = "ca.crt";

/// The `ConfigMap` with what clients have to trust.
pub fn ca_bundle(mirror: &str) -> String {
    format!("{mirror}-ca")
}

/// The Secret with the mirror's own authority. No Pod mounts it.
pub fn ca_key(mirror: &str) -> String {
    format!("{mirror}-ca-key")
}

/// The `ConfigMap` with files for nodes.
pub fn hosts(mirror: &str) -> String {
    format!("{mirror}-hosts")
}

/// The claim of one replica, as a `StatefulSet` with a claim template `cache` names it.
pub fn claim(mirror: &str, ordinal: u32) -> String {
    format!("cache-{mirror}-{ordinal}")
}

/// Which replica's claim a name is.
pub fn claim_ordinal(mirror: &str, claim: &str) -> Option<u32> {
    claim
        .strip_prefix("cache-")?
        .strip_prefix(mirror)?
        .strip_prefix('-')?
        .parse()
        .ok()
        .filter(|ordinal| self::claim(mirror, *ordinal) == claim)
}

/// Every object that one spec of this mirror asks for and another may not: what is not asked for any more is looked
/// for here. Claims stay, workloads are of one kind for life, and Services and the account are always asked for.
pub fn every(mirror: &str) -> Vec<(Kind, String)> {
    vec![
        (Kind::ConfigMap, config(mirror)),
        (Kind::ConfigMap, ca_bundle(mirror)),
        (Kind::ConfigMap, hosts(mirror)),
        (Kind::Secret, credentials(mirror)),
        (Kind::Secret, files(mirror)),
        (Kind::Secret, ca_key(mirror)),
        (Kind::PodDisruptionBudget, mirror.to_owned()),
    ]
}

/// What its Pods mount, or run as.
pub fn mounted(mirror: &str) -> [(Kind, String); 4] {
    [
        (Kind::ConfigMap, config(mirror)),
        (Kind::Secret, credentials(mirror)),
        (Kind::Secret, files(mirror)),
        (Kind::ServiceAccount, mirror.to_owned()),
    ]
}

/// What selects a mirror's Pods. Never changes: a workload's selector can't be changed, and old and new Pods have to
/// answer to the same Service while a new version rolls out.
pub fn selector(mirror: &str) -> BTreeMap<String, String> {
    BTreeMap::from([
        ("app.kubernetes.io/name".to_owned(), "registry-mirror".to_owned()),
        (INSTANCE.to_owned(), mirror.to_owned()),
        ("app.kubernetes.io/component".to_owned(), "mirror".to_owned()),
    ])
}

/// The labels of every object.
pub fn labels(mirror: &str) -> BTreeMap<String, String> {
    let mut labels = selector(mirror);
    labels.insert(MANAGED_BY.0.to_owned(), MANAGED_BY.1.to_owned());
    labels
}

/// Returns if the operator made an object for a mirror: it has the operator's label, or a `RegistryMirror` controls it.
pub fn is_operators(object: &ObjectMeta) -> bool {
    let mut labels = object.labels.iter().flatten();
    let mut owners = object.owner_references.iter().flatten();
    labels.any(|(key, value)| (key.as_str(), value.as_str()) == MANAGED_BY)
        || owners.any(|owner| owner.controller == Some(true) && owner.kind == "RegistryMirror")
}

/// Metadata of a child that goes with the mirror.
pub fn owned(mirror: &RegistryMirror, name: String) -> ObjectMeta {
    ObjectMeta {
        owner_references: mirror.controller_owner_ref(&()).map(|owner| vec![owner]),
        ..kept(mirror, name)
    }
}

/// Metadata of an object that stays when the mirror goes.
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
        let Renamed { current, former } = RELOAD_NOTIFIED;
        assert_eq!(value(&[former]).as_deref(), Some(former));
        assert_eq!(value(&[former, current]).as_deref(), Some(current));
        assert_eq!(value(&[]), None);
    }

    #[test]
    fn a_claims_name_gives_its_ordinal_back() {
        assert_eq!(claim_ordinal("hub", &claim("hub", 12)), Some(12));
    }

    #[test]
    fn a_claim_of_a_longer_named_mirror_is_not_taken_for_ours() {
        assert_eq!(claim_ordinal("hub", &claim("hub-0", 1)), None);
        assert_eq!(claim_ordinal("hub-0", &claim("hub", 0)), None);
        assert_eq!(claim_ordinal("hub", "cache-hub-x"), None);
        assert_eq!(claim_ordinal("hub", "cache-hub-007"), None, "nobody's name");
    }

    #[test]
    fn the_selector_is_what_was_released() {
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
