//! Owner references: an object is deleted with its owners. They are worked out here and changed apart from everything else
//! of an object.

use crds::RegistryMirror;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::{Resource, ResourceExt};

/// Returns the owner that controls an object, if any does.
pub fn controller(object: &ObjectMeta) -> Option<&OwnerReference> {
    let mut owners = object.owner_references.iter().flatten();
    owners.find(|owner| owner.controller == Some(true))
}

/// Returns whether an owner is the StatefulSet of a mirror. kube-controller-manager makes it the owner of a claim that it
/// made of the claim template (`persistentVolumeClaimRetentionPolicy`).
pub fn is_set_of(mirror: &RegistryMirror, owner: &OwnerReference) -> bool {
    owner.kind == "StatefulSet" && owner.name == mirror.name_any()
}

/// Returns whether an object is deleted with a mirror.
pub fn goes_with(mirror: &RegistryMirror, object: &ObjectMeta) -> bool {
    let mut owners = object.owner_references.iter().flatten();
    owners.any(|owner| is_of(mirror, owner))
}

fn is_of(mirror: &RegistryMirror, owner: &OwnerReference) -> bool {
    Some(&owner.uid) == mirror.metadata.uid.as_ref() || is_set_of(mirror, owner)
}

/// Returns whether an owner is an earlier mirror of the same name: the claim template of a restored `StatefulSet` names it.
fn is_earlier(mirror: &RegistryMirror, owner: &OwnerReference) -> bool {
    owner.kind == RegistryMirror::kind(&()) && owner.name == mirror.name_any()
}

/// Returns the owner references that an object should have, or `None` where it has them: those of others as they are, and
/// the mirror as controller where it owns the object.
pub fn wanted(mirror: &RegistryMirror, object: &ObjectMeta, is_owned: bool) -> Option<Vec<OwnerReference>> {
    let present = object.owner_references.as_deref().unwrap_or_default();
    let is_other = |owner: &&OwnerReference| !is_of(mirror, owner) && !is_earlier(mirror, owner);
    let others = present.iter().filter(is_other).cloned();
    let own = mirror.controller_owner_ref(&()).filter(|_| is_owned);
    let wanted: Vec<_> = others.chain(own).collect();
    let is_same = wanted.len() == present.len() && wanted.iter().all(|owner| present.contains(owner));
    (!is_same).then_some(wanted)
}

#[cfg(test)]
mod tests {
    use crds::RegistryMirrorSpec;
    use serde_json::{Value, json};
    use test_case::test_case;

    use super::*;

    fn mirror() -> RegistryMirror {
        let spec: RegistryMirrorSpec = serde_json::from_value(
            json!({"upstreams": [{"host": "quay.io"}], "storage": {"type": "Ephemeral"}}),
        )
        .unwrap();
        let mut mirror = RegistryMirror::new("hub", spec);
        mirror.metadata.uid = Some("mirror".to_owned());
        mirror
    }

    fn owned_by(owners: &[(&str, &str, &str)]) -> ObjectMeta {
        let owner = |(kind, name, uid): &(&str, &str, &str)| {
            let api_version = mirror().controller_owner_ref(&()).unwrap().api_version;
            json!({"apiVersion": api_version, "kind": kind, "name": name, "uid": uid, "controller": true})
        };
        let owners: Vec<Value> = owners.iter().map(owner).collect();
        serde_json::from_value(json!({"name": "x", "ownerReferences": owners})).unwrap()
    }

    const MIRROR: (&str, &str, &str) = ("RegistryMirror", "hub", "mirror");
    const SET: (&str, &str, &str) = ("StatefulSet", "hub", "set");
    const EARLIER: (&str, &str, &str) = ("RegistryMirror", "hub", "earlier");
    const OTHER: (&str, &str, &str) = ("Backup", "hub", "other");

    #[test_case(&[MIRROR], true => None; "owned")]
    #[test_case(&[], false => None; "kept")]
    #[test_case(&[OTHER], false => None; "another's")]
    #[test_case(&[MIRROR, OTHER], true => None; "another's, too")]
    #[test_case(&[], true => Some(vec!["mirror".to_owned()]); "to be owned")]
    #[test_case(&[SET], true => Some(vec!["mirror".to_owned()]); "made of the template")]
    #[test_case(&[EARLIER], true => Some(vec!["mirror".to_owned()]); "restored")]
    #[test_case(&[EARLIER], false => Some(vec![]); "restored and to be kept")]
    #[test_case(&[MIRROR, OTHER], false => Some(vec!["other".to_owned()]); "to be kept")]
    #[test_case(&[SET], false => Some(vec![]); "made of the template and to be kept")]
    fn wanted_owners(owners: &[(&str, &str, &str)], is_owned: bool) -> Option<Vec<String>> {
        let wanted = wanted(&mirror(), &owned_by(owners), is_owned)?;
        Some(wanted.into_iter().map(|owner| owner.uid).collect())
    }

    #[test_case(&[MIRROR] => true)]
    #[test_case(&[SET] => true)]
    #[test_case(&[("StatefulSet", "other", "set")] => false)]
    #[test_case(&[EARLIER] => false)]
    #[test_case(&[] => false)]
    fn object_goes_with_mirror(owners: &[(&str, &str, &str)]) -> bool {
        goes_with(&mirror(), &owned_by(owners))
    }
}
