//! Checks owners before a write. A forced apply would take over a user's object, and delete it with the mirror.

use crds::{RegistryMirror, conditions::Reason};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;

use crate::{
    kind::Kind,
    names,
    owners::{self, controller},
    validate::Rejection,
};

/// Returns whether a mirror, by its UID, is the controller of an object.
pub fn is_controlled_by(mirror: &RegistryMirror, object: &ObjectMeta) -> bool {
    controller(object).is_some_and(|owner| Some(&owner.uid) == mirror.metadata.uid.as_ref())
}

/// Rejects an object that does not belong to the mirror.
///
/// # Errors
/// `NameConflict`.
pub fn check(mirror: &RegistryMirror, kind: Kind, object: &ObjectMeta) -> Result<(), Rejection> {
    let is_claim = kind == Kind::PersistentVolumeClaim;
    if is_controlled_by(mirror, object) || is_claim && is_retained_by(mirror, object) {
        return Ok(());
    }
    let name = object.name.as_deref().unwrap_or_default();
    let cause = match controller(object) {
        None => "exists already and does not belong to this mirror: rename or delete it, or give the mirror another name"
            .to_owned(),
        Some(owner) if owner.kind == "RegistryMirror" && owner.name == mirror.name_any() => {
            "belongs to an earlier RegistryMirror of this name that is still being deleted: the operator retries".to_owned()
        }
        Some(owner) => format!(
            "belongs to {} {}: give one of the two another name",
            owner.kind, owner.name
        ),
    };
    Err(Rejection {
        reason: Reason::NameConflict,
        message: format!("{kind} {name} {cause}"),
    })
}

/// Returns whether an object is an orphan of the mirror: it has the mirror's labels and no controller, as a backup restores it
/// and `--cascade=orphan` leaves it. A PVC has a label of its own.
pub fn is_orphan_of(mirror: &RegistryMirror, kind: Kind, object: &ObjectMeta) -> bool {
    if kind == Kind::PersistentVolumeClaim {
        return object.deletion_timestamp.is_none() && is_retained_by(mirror, object);
    }
    if controller(object).is_some() || object.deletion_timestamp.is_some() {
        return false;
    }
    let expected = names::labels(&mirror.name_any());
    let labels = object.labels.iter().flatten();
    let mut annotations = object.annotations.iter().flatten();
    annotations.any(|(name, _)| name == names::APPLIED)
        && expected
            .iter()
            .all(|one| labels.clone().any(|label| label == one))
}

/// Returns whether a PVC is the mirror's without being controlled by it: retained from a deleted mirror, with a changed
/// retention policy, or made of the claim template.
fn is_retained_by(mirror: &RegistryMirror, claim: &ObjectMeta) -> bool {
    let labels = claim.labels.as_ref();
    let label = labels.and_then(|labels| labels.get(names::CACHE_OF));
    label == Some(&mirror.name_any())
        && controller(claim).is_none_or(|owner| owners::is_set_of(mirror, owner))
}

#[cfg(test)]
mod tests {
    use crds::RegistryMirrorSpec;
    use serde_json::{Value, json};

    use super::*;

    fn mirror() -> RegistryMirror {
        let spec: RegistryMirrorSpec = serde_json::from_value(
            json!({"upstreams": [{"host": "quay.io"}], "storage": {"type": "Ephemeral"}}),
        )
        .unwrap();
        let mut mirror = RegistryMirror::new("hub", spec);
        mirror.metadata.uid = Some("this".to_owned());
        mirror
    }

    fn object(owner: &Value, label: Option<&str>) -> ObjectMeta {
        let labels = label.map(|value| json!({names::CACHE_OF: value}));
        serde_json::from_value(json!({"name": "x", "ownerReferences": owner, "labels": labels})).unwrap()
    }

    fn owner(kind: &str, name: &str, uid: &str) -> Value {
        json!([{"apiVersion": "v1", "kind": kind, "name": name, "uid": uid, "controller": true}])
    }

    fn refusal(kind: Kind, object: &ObjectMeta) -> Option<String> {
        check(&mirror(), kind, object).err().map(|rejection| {
            assert_eq!(rejection.reason, Reason::NameConflict);
            rejection.message
        })
    }

    #[test]
    fn own_object_is_accepted() {
        assert_eq!(
            refusal(
                Kind::Secret,
                &object(&owner("RegistryMirror", "hub", "this"), None)
            ),
            None
        );
    }

    #[test]
    fn object_of_a_user_is_refused() {
        let message = refusal(Kind::Secret, &object(&json!([]), None)).unwrap();
        assert!(message.starts_with("Secret x exists already"), "{message}");
    }

    #[test]
    fn object_of_another_controller_is_refused() {
        let message = refusal(
            Kind::Service,
            &object(&owner("RegistryMirror", "hub-a", "that"), None),
        )
        .unwrap();
        assert!(message.contains("belongs to RegistryMirror hub-a"), "{message}");
    }

    #[test]
    fn object_of_a_deleted_mirror_is_awaited() {
        let message = refusal(
            Kind::Service,
            &object(&owner("RegistryMirror", "hub", "old"), None),
        )
        .unwrap();
        assert!(message.contains("still being deleted"), "{message}");
    }

    /// Users copy labels from one object to another; the annotation is a trace of the operator's own writes.
    #[test]
    fn orphan_without_annotation_is_a_users() {
        let mut orphan = ObjectMeta {
            labels: Some(names::labels("hub")),
            annotations: Some([(names::APPLIED.to_owned(), String::new())].into()),
            ..ObjectMeta::default()
        };
        let is_orphan = |object: &_| is_orphan_of(&mirror(), Kind::Secret, object);
        assert!(is_orphan(&orphan));
        orphan.annotations = None;
        assert!(!is_orphan(&orphan));
    }

    #[test]
    fn retained_pvc_is_adopted_by_label_only() {
        let claim = |label| refusal(Kind::PersistentVolumeClaim, &object(&json!([]), label));
        assert_eq!(claim(Some("hub")), None);
        assert!(claim(Some("other")).is_some());
        assert!(claim(None).is_some());
        assert!(
            refusal(Kind::Secret, &object(&json!([]), Some("hub"))).is_some(),
            "of claims only"
        );
    }
}
